"""What bounds groups: so many of them; no wait for what an open transaction has locked; an end
for what has used up its attempts, for holders that are frozen, and for consumers of a group that
is removed."""

import contextlib
import json
import select
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import errors

from harness.groups import ack, act, consume
from harness.waiting import wait_until

REMOVE = "/groups?channel=jobs&group=workers"


def groups(gateway, query=""):
    response = gateway.get(f"/groups{query}")
    assert response.status == 200, response
    return response.json()["groups"]


def state(gateway, event, group="workers"):
    return gateway.get(f"/events/{event}/result?group={group}").json()["state"]


# -- so many of them -----------------------------------------------------------------------


def test_there_are_so_many_groups_and_no_more(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.groups": "2"})
    with consume(gateway, "a"), consume(gateway, "b"):
        wait_until(lambda: len(groups(gateway)) == 2, "two groups are there")
        with consume(gateway, "c", started=False) as third:
            assert third.wait_end() and third.retries
        gateway.wait_log("there are 2 groups already")
        with consume(gateway, "a") as another:  # of a group that is there
            gateway.publish("a", "1")
            gateway.publish("a", "2")
            another.next_event()
    assert len(groups(gateway)) == 2
    assert gateway.request("DELETE", "/groups?channel=a&group=workers").status == 204
    with consume(gateway, "c") as third:
        wait_until(lambda: groups(gateway, "?channel=c"), "there is room again")
        gateway.publish("c", "1")
        third.next_event()


def test_two_who_make_the_last_group_at_once_do_not_both_get_it(pg):
    with pg.connect() as one, pg.connect() as other:
        for session in (one, other):
            session.execute("SET gateway.groups_max = 1")
            session.commit()
        one.execute("SELECT gateway.claim('jobs', 'a')")
        answers = []

        def claim():
            try:
                other.execute("SELECT gateway.claim('jobs', 'b')")
                answers.append("made")
            except errors.ConfigurationLimitExceeded as refused:
                answers.append(str(refused))
        thread = threading.Thread(target=claim)
        thread.start()
        wait_until(lambda: pg.value("SELECT count(*) FROM pg_stat_activity WHERE"
                                    " wait_event_type = 'Lock' AND datname = current_database()"),
                   "the other waits")
        one.commit()
        thread.join()
        assert "there are 1 groups already" in answers[0]
        other.rollback()
        other.execute("SELECT gateway.claim('jobs', 'a')")  # is there


def test_sessions_without_the_setting_make_a_thousand(pg):
    pg.execute("INSERT INTO gateway.groups (channel, name, begins_after)"
               " SELECT 'many', n::text, 0 FROM generate_series(1, 999) n")
    pg.execute("SELECT gateway.claim('jobs', 'last')")
    with pytest.raises(errors.ConfigurationLimitExceeded):
        pg.execute("SELECT gateway.claim('jobs', 'one more')")
    with pg.connect() as session:
        session.execute("SET gateway.groups_max = 1001")
        session.execute("SELECT gateway.claim('jobs', 'one more')")


def test_who_wants_no_new_group_is_told_that_there_is_none(pg):
    with pytest.raises(Exception) as refused:
        pg.execute("SELECT gateway.claim('jobs', 'workers', start => NULL)")
    assert refused.value.sqlstate == "GW404"
    pg.execute("SELECT gateway.claim('jobs', 'workers')")
    pg.execute("SELECT gateway.claim('jobs', 'workers', start => NULL)")


def test_the_more_groups_are_listed_the_less_is_counted(pg, gateway):
    pg.execute("SELECT gateway.publish_batch(array_fill('jobs'::text, ARRAY[150]),"
               " array_fill('m'::text, ARRAY[150]), array_fill('1'::text, ARRAY[150]))")
    pg.execute("INSERT INTO gateway.groups (channel, name, begins_after)"
               " SELECT 'jobs', to_char(n, 'FM0000'), 0 FROM generate_series(1, 5) n")
    answer = gateway.get("/groups").json()
    assert answer["counted_to"] == 10000 and {each["lag"] for each in answer["groups"]} == {150}
    pg.execute("INSERT INTO gateway.groups (channel, name, begins_after)"
               " SELECT 'jobs', to_char(n, 'FM0000'), 0 FROM generate_series(6, 1100) n")
    answer = gateway.get("/groups").json()
    assert answer["counted_to"] == 100 and {each["lag"] for each in answer["groups"]} == {100}
    assert [each["group"] for each in answer["groups"]] == [f"{n:04}" for n in range(1, 1001)]
    assert gateway.get("/groups?channel=nobody").json() == {"groups": [], "counted_to": 10000}


# -- what somebody else has locked -------------------------------------------------------------


def is_tried(pg, function):
    return pg.value("SELECT count(*) FROM pg_stat_activity WHERE query LIKE %s"
                    " AND datname = current_database() AND pid <> pg_backend_pid()",
                    (f"%{function}%",))


@pytest.mark.parametrize("how", ["ack", "nack"])
def test_an_open_acknowledgement_holds_up_nobody_else(gateway, pg, how):
    with consume(gateway, max=2) as worker, consume(gateway, "other") as other, \
            pg.connect() as session:
        for n in range(2):
            gateway.publish("jobs", str(n))
        first, second = worker.take(2)
        session.execute("SELECT gateway.ack(%s, 'workers')", (first.id,))
        tries = [threading.Thread(target=act, args=(gateway, how, first.id)) for _ in range(4)]
        for thread in tries:
            thread.start()
        assert ack(gateway, second.id).status == 204
        gateway.publish("other", "1")
        assert ack(gateway, other.next_event().id).status == 204
        assert "open transaction" in act(gateway, how, first.id).problem(503)["detail"]
        for thread in tries:
            thread.join()
        assert "canceling statement due to lock timeout" not in gateway.log()
        session.commit()
        assert act(gateway, how, first.id).problem(409)


def test_who_asks_while_a_transaction_is_open_is_answered_when_it_is_over(gateway, pg):
    with consume(gateway) as worker, pg.connect() as session:
        gateway.publish("jobs", "1")
        got = worker.next_event()
        session.execute("SELECT FROM gateway.deliveries FOR UPDATE")
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ack(gateway, got.id).status))
        thread.start()
        wait_until(lambda: is_tried(pg, "ack_many"), "it is tried")
        session.rollback()
        thread.join()
    assert answers == [204]


def test_acknowledgements_that_meet_a_locked_table_wait_together(gateway, pg):
    pg.execute("SELECT gateway.claim('other', 'workers'), gateway.claim('jobs', 'workers')")
    pg.execute("SELECT gateway.publish_batch(array_fill('jobs'::text, ARRAY[200]),"
               " array_fill('m'::text, ARRAY[200]), array_fill('1'::text, ARRAY[200]))")
    with consume(gateway, max=200) as worker, pg.connect() as session, \
            ThreadPoolExecutor(200) as pool:
        ids = [event.id for event in worker.take(200)]
        session.execute("LOCK TABLE gateway.deliveries")
        answers = [pool.submit(ack, gateway, each) for each in ids]
        wait_until(lambda: is_tried(pg, "ack_many"), "they are tried")
        assert gateway.request("DELETE", "/groups?channel=other&group=workers",
                               timeout=10).status == 204
        assert all("open transaction" in each.result().problem(503)["detail"]
                   for each in answers)
        answers = [pool.submit(ack, gateway, each) for each in ids]
        session.rollback()
        assert {each.result().status for each in answers} == {204}


def test_removals_that_meet_open_transactions_hold_up_nobody_else(gateway, pg):
    pg.execute("SELECT gateway.claim(channel, 'workers')"
               " FROM unnest(ARRAY['busy', 'free']) channel")
    remove = "/groups?channel={}&group=workers"
    with consume(gateway) as worker, pg.connect() as session, ThreadPoolExecutor(40) as pool:
        gateway.publish("jobs", "1")
        got = worker.next_event()
        session.execute("SELECT FROM gateway.groups WHERE channel = 'busy' FOR NO KEY UPDATE")
        answers = [pool.submit(gateway.request, "DELETE", remove.format("busy"))
                   for _ in range(40)]
        wait_until(lambda: is_tried(pg, "remove_group"), "they are tried")
        assert gateway.request("POST", f"/events/{got.id}/ack?group=workers",
                               timeout=5).status == 204
        assert gateway.request("DELETE", remove.format("free"), timeout=5).status == 204
        assert all("open transaction" in each.result().problem(503)["detail"]
                   for each in answers)
        session.rollback()
        assert gateway.request("DELETE", remove.format("busy")).status == 204


def test_what_a_leaver_held_is_given_back_when_an_open_transaction_is_undone(two, pg):
    with consume(two[0], max=2, lease="1h") as leaver, pg.connect() as session:
        for n in range(2):
            two[0].publish("jobs", str(n))
        first, _ = leaver.take(2)
        session.execute("SELECT gateway.ack(%s, 'workers')", (first.id,))
        with consume(two[1], lease="1h", max=2) as stayer:
            leaver.close()
            assert stayer.next_event().data == "1"
            session.rollback()
            assert stayer.next_event().data == "0"


def test_a_new_holder_gets_nothing_before_what_an_open_transaction_has(two, pg):
    with consume(two[0], exclusive="true") as former, pg.connect() as session:
        two[0].publish("jobs", "0")
        got = former.next_event()
        former.close()
        wait_until(lambda: pg.value("SELECT due FROM gateway.group_list"), "it is given back")
        session.execute("SELECT gateway.ack(%s, 'workers')", (got.id,))
        two[0].publish("jobs", "1")
        with consume(two[1], exclusive="true", max=2) as holder:
            two[1].wait_metric("pgsse_groups_claims_total", lambda claims: claims >= 1)
            session.rollback()
            assert [each.data for each in holder.take(2)] == ["0", "1"]


def test_by_sql_an_acknowledgement_waits_for_another(pg):
    pg.execute("SELECT gateway.claim('jobs', 'workers')")
    pg.execute("SELECT gateway.publish_batch(ARRAY['jobs'], ARRAY['m'], ARRAY['1'])")
    (id,), = pg.execute("SELECT id FROM gateway.claim('jobs', 'workers')")
    for call in ("ack", "nack"):
        with pg.connect() as one, pg.connect() as other:
            one.execute("SELECT gateway.ack(%s, 'workers')", (id,))
            thread = threading.Thread(
                target=other.execute, args=(f"SELECT gateway.{call}(%s, 'workers')", (id,)))
            thread.start()
            wait_until(lambda: pg.value("SELECT count(*) FROM pg_stat_activity WHERE"
                                        " wait_event_type = 'Lock' AND"
                                        " datname = current_database()"), "the other waits")
            one.rollback()
            thread.join()
            other.rollback()


# -- the last attempt --------------------------------------------------------------------------


def test_what_has_used_up_its_attempts_is_dead_though_all_have_left(gateway):
    with consume(gateway, max_attempts=1, lease="1s") as worker, \
            gateway.subscribe("jobs.dead") as dead:
        event = gateway.publish("jobs", "1")
        worker.next_event()
        worker.close()
        assert json.loads(dead.next_event().data)["reason"] == "consumer left"
        assert state(gateway, event) == "dead"


def test_who_waits_is_told_that_it_is_dead_though_nobody_claims(gateway, pg):
    """By SQL it was claimed for the last time, and forgotten."""
    pg.execute("SELECT gateway.claim('jobs', 'workers', max_attempts => 2)")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(
        gateway.request("POST", "/events?channel=jobs&group=workers&wait=30s",
                        [("Content-Type", "application/json")], b"1")))
    thread.start()

    def claim(lease):
        return wait_until(lambda: pg.execute(
            "SELECT attempt FROM gateway.claim('jobs', 'workers', lease => %s)", (lease,)),
            "it is claimed")
    claim("0.001 s")
    claim("0.1 s")
    thread.join()
    assert answers[0].status == 202 and answers[0].json()["state"] == "dead"


def test_retention_buries_where_nobody_is_connected(pg, gateway_factory):
    gateway = gateway_factory(pg, {"events.retention": "20s"})
    with gateway.subscribe("jobs.dead") as dead:
        pg.execute("SELECT gateway.claim('jobs', 'workers', max_attempts => 1)")
        gateway.publish("jobs", "1")
        pg.execute("SELECT gateway.claim('jobs', 'workers', lease => '0.001 s')")
        assert json.loads(dead.next_event(30).data)["attempts"] == 1


def test_the_used_up_are_found_among_many_and_some_at_a_time(pg):
    pg.execute("SELECT gateway.claim('jobs', 'workers', max_attempts => 3)")
    pg.execute("SELECT gateway.publish_batch(array_fill('jobs'::text, ARRAY[250]),"
               " array_fill('m'::text, ARRAY[250]), array_fill('1'::text, ARRAY[250]))")
    for _ in range(2):
        pg.execute("SELECT gateway.claim('jobs', 'workers', 250, lease => '0.0001 s')")
    assert pg.value("SELECT gateway.bury_used_up(1000)") == 0
    pg.execute("SELECT gateway.claim('jobs', 'workers', 220, lease => '0.0001 s')")
    with pg.connect() as session:
        session.execute("SELECT FROM gateway.deliveries WHERE attempt = 3 LIMIT 20 FOR UPDATE")
        seen = [pg.value("SELECT gateway.bury_used_up(1000)") for _ in range(3)]
        assert sum(seen) <= 200 and seen[0] >= 80
    while pg.value("SELECT gateway.bury_used_up(1000)"):
        pass
    assert pg.value("SELECT count(*) FROM gateway.deliveries WHERE dead") == 220
    assert pg.value("SELECT count(*) FROM gateway.events WHERE channel = 'jobs.dead'") == 220


@pytest.mark.parametrize("bury", ["SELECT gateway.bury_used_up(1000)",
                                  "SELECT count(*) FROM gateway.claim('jobs', 'workers')"])
def test_what_is_dead_and_heavy_is_buried_some_at_a_time(pg, bury):
    """Each is written once more: too much of it at once is more than a statement has time for."""
    pg.execute("SELECT gateway.claim('jobs', 'workers', max_attempts => 1)")
    pg.execute("SELECT gateway.publish_batch(array_fill('jobs'::text, ARRAY[12]),"
               " array_fill('m'::text, ARRAY[12]),"
               " array_fill(to_json(repeat('x', 1000000))::text, ARRAY[12]))")
    pg.execute("SELECT gateway.claim('jobs', 'workers', 12, lease => '0.0001 s',"
               " max_bytes => 100000000)")
    pg.execute("DELETE FROM gateway.events WHERE seq ="
               " (SELECT min(seq) FROM gateway.events WHERE channel = 'jobs')")
    dead = "SELECT count(*) FROM gateway.events WHERE channel = 'jobs.dead'"
    seen = []
    for _ in range(3):
        pg.execute(bury)
        seen.append(pg.value(dead))
    assert seen == [4, 8, 11]
    assert pg.value("SELECT lost FROM gateway.group_list WHERE name = 'workers'") == 1


# -- one at a time -----------------------------------------------------------------------------


def lead(gateway, channel="jobs", **query):
    return consume(gateway, channel, "leader", exclusive="true", **query)


def begin(gateway, worker):
    """Makes it the holder."""
    gateway.publish("jobs", '"first"')
    assert ack(gateway, worker.next_event().id, "leader").status == 204


def count_closed(streams):
    """Those whose peer has closed; what else it sent them may lie about unread."""
    poll = select.poll()
    for stream in streams:
        poll.register(stream.sock, select.POLLRDHUP)
    return len(poll.poll(0))


def test_holders_at_a_gateway_that_stops_say_goodbye_first(pg, gateway_factory):
    """Their successors are at work while most of the others have not been told yet."""
    ending = gateway_factory(pg, {"server.drain": "60s"})
    staying = gateway_factory(pg)
    with contextlib.ExitStack() as open_streams:
        def open_stream(make, *arguments):
            return open_streams.enter_context(make(*arguments))
        crowd = [open_stream(ending.subscribe, "crowd") for _ in range(300)]
        first = [open_stream(lead, ending, f"jobs{n}") for n in range(6)]
        for n, stream in enumerate(first):
            ending.publish(f"jobs{n}", "1")
            assert ack(ending, stream.next_event().id, "leader").status == 204
        second = [open_stream(lead, staying, f"jobs{n}") for n in range(6)]
        third = [open_stream(lead, ending, f"jobs{n}") for n in range(6)]  # not for these
        ending.terminate()
        for n in range(6):
            staying.publish(f"jobs{n}", "2")
        for stream in second:
            assert stream.next_event().data == "2"
        assert count_closed(crowd) < 150
        assert all(stream.wait_end() for stream in first + third)
        ending.kill()


def test_a_frozen_gateway_loses_its_exclusive_groups(two):
    with lead(two[0], max=10, lease="1h") as first:
        begin(two[0], first)
        with lead(two[1], max=10, lease="1h") as second:
            for n in range(2):
                two[1].publish("jobs", str(n))
            held = first.take(2)
            two[0].process.send_signal(signal.SIGSTOP)
            try:
                got = [second.next_event(40) for _ in range(2)]
                assert [event.data for event in got] == ["0", "1"]
                two[1].wait_log("had said nothing for 10 s")
            finally:
                two[0].process.send_signal(signal.SIGCONT)
            assert first.wait_end()
            assert ack(two[0], held[0].id, "leader").problem(409)
            assert ack(two[0], got[0].id, "leader").status == 204


# -- a group that is removed -------------------------------------------------------------------


def test_consumers_of_a_removed_group_are_sent_away(two):
    with consume(two[0]) as a, consume(two[1]) as b, consume(two[1], group="others") as c:
        two[0].publish("jobs", "1")
        held = c.next_event()
        assert two[0].request("DELETE", REMOVE).status == 204
        assert a.wait_end() and b.wait_end() and a.retries
        assert [each["group"] for each in groups(two[1])] == ["others"]
        two[0].publish("jobs", "2")
        assert ack(two[0], held.id, "others").status == 204
        assert c.next_event().data == "2"


def test_those_in_line_for_a_removed_group_are_sent_away_too(two):
    with lead(two[0]) as first:
        begin(two[0], first)
        with lead(two[1]) as second:
            assert two[1].request("DELETE", "/groups?channel=jobs&group=leader").status == 204
            assert first.wait_end() and second.wait_end()
            assert groups(two[0]) == []


def test_a_group_that_is_removed_by_sql_sends_its_consumers_away(gateway, pg):
    with consume(gateway, max=2) as worker:
        gateway.publish("jobs", "1")
        held = worker.next_event()
        pg.execute("SELECT gateway.remove_group('jobs', 'workers')")
        assert worker.wait_end()
        assert ack(gateway, held.id).problem(404)


# -- many in hand ------------------------------------------------------------------------------


def test_of_many_in_hand_all_are_seen_to_in_the_end(gateway, pg):
    """Their consumers hold more than is asked about at once, and all are acknowledged by SQL."""
    pg.execute("SELECT gateway.claim('jobs', 'workers')")
    pg.execute("SELECT gateway.publish_batch(array_fill('jobs'::text, ARRAY[1300]),"
               " array_fill('m'::text, ARRAY[1300]), array_fill('1'::text, ARRAY[1300]))")
    with consume(gateway, max=600, lease="1h") as a, consume(gateway, max=600, lease="1h") as b:
        ids = [event.id for event in a.take(600) + b.take(600)]
        pg.execute("SELECT gateway.ack_many(%s, array_fill('workers'::text, ARRAY[1200]), NULL)",
                   (ids,))
        gateway.wait_metric("pgsse_groups_in_hand", 100)


# -- what is wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["lease=30s", "max=3", "max_attempts=2", "exclusive=true"])
def test_what_is_for_a_group_names_the_group_it_lacks(gateway, query):
    assert "group" in gateway.get(f"/events?{query}").problem(400)["detail"]


def test_a_call_to_a_channel_that_can_have_no_group_is_400(gateway):
    path = f"/events?channel={'x' * 251}&group=workers&wait=1s"
    refused = gateway.request("POST", path, [("Content-Type", "application/json")], b"1")
    assert "250" in refused.problem(400)["detail"]
    body = json.dumps({"channel": "x" * 251, "data": 1}).encode()
    refused = gateway.request("POST", "/events?group=workers&wait=1s",
                              [("Content-Type", "application/json")], body)
    assert "250" in refused.problem(400)["detail"]
