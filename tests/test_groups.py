"""Groups: each event goes to one consumer, which acknowledges it; or it goes to another."""

import json
import threading
import time
from contextlib import contextmanager

import pytest

from harness.groups import ack, act, consume, nack, parts
from harness.waiting import wait_until

TEMPLATE = "gateway_template"


def groups(gateway):
    response = gateway.get("/groups")
    assert response.status == 200, response
    return response.json()["groups"]


def settle(gateway, **expected):
    """Waits until the one group there is stands like that."""
    def look():
        found = groups(gateway)
        return found and {name: found[0][name] for name in expected} == expected
    wait_until(look, f"the group has {expected}")


# -- one of them gets it -----------------------------------------------------------------


def test_an_event_is_delivered_and_acknowledged_once(gateway):
    with consume(gateway) as worker:
        event = gateway.publish("jobs", '{"n":1}', "sort")
        got = worker.next_event()
        assert (got.type, got.data) == ("sort", '{"n":1}')
        assert parts(got.id) == (event, 1)
        assert ack(gateway, got.id).status == 204
        assert ack(gateway, got.id).problem(409)
        settle(gateway, lag=0, in_flight=0, due=0)


def test_each_event_goes_to_one_consumer_of_the_group_and_to_each_group(two):
    with consume(two[0], max=100) as a, consume(two[1], max=100) as b, \
            consume(two[1], group="others", max=100) as other:
        wanted = [two[n % 2].publish("jobs", str(n)) for n in range(60)]
        two[0].publish("elsewhere", "1")
        assert [parts(got.id)[0] for got in other.take(60)] == wanted
        wait_until(lambda: sum(gateway.metric("pgsse_groups_in_hand") for gateway in two) == 120,
                   "all are in hand")
        count_a = two[0].metric("pgsse_groups_in_hand")
        got = a.take(count_a) + b.take(60 - count_a)
        assert sorted(int(parts(each.id)[0]) for each in got) == [int(event) for event in wanted]


def test_a_consumer_holds_no_more_than_its_max(gateway):
    for n in range(5):
        gateway.publish("jobs", str(n))
    with consume(gateway, max=2, last_event_id="earliest") as worker:
        first, second = worker.take(2)
        settle(gateway, in_flight=2, lag=3)
        assert not worker.pending()
        assert ack(gateway, second.id).status == 204
        third = worker.next_event()
        assert [first.data, second.data, third.data] == ["0", "1", "2"]
        settle(gateway, in_flight=2, lag=2)


def test_several_consumers_share_a_backlog(gateway):
    for n in range(4):
        gateway.publish("jobs", str(n))
    with consume(gateway, last_event_id="earliest") as a, consume(gateway) as b, \
            consume(gateway) as c, consume(gateway) as d:
        assert sorted(worker.next_event().data for worker in (a, b, c, d)) == list("0123")


def test_a_new_group_begins_now_or_with_the_earliest(gateway):
    with gateway.subscribe("jobs") as stream:
        gateway.publish("jobs", '"before"')
        stream.next_event()
    with consume(gateway, "jobs", "new") as new, \
            consume(gateway, "jobs", "old", last_event_id="earliest", max=2) as old:
        gateway.publish("jobs", '"after"')
        assert new.next_event().data == '"after"'
        assert [event.data for event in old.take(2)] == ['"before"', '"after"']


def test_what_is_published_right_after_the_greeting_is_a_new_groups(gateway):
    """The group itself is made a moment later."""
    for n in range(20):
        with consume(gateway, f"jobs{n}") as worker:
            gateway.publish(f"jobs{n}", "1")
            worker.next_event()


def test_a_group_goes_on_where_it_was(gateway):
    with consume(gateway) as worker:
        gateway.publish("jobs", "1")
        assert ack(gateway, worker.next_event().id).status == 204
    gateway.publish("jobs", "2")
    with consume(gateway, headers=[("Last-Event-ID", "1.1.aaaaaaaaaaaa")]) as worker:
        assert worker.next_event().data == "2"


def test_there_are_no_checkpoints_but_heartbeats(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.heartbeat": "200ms"})
    with consume(gateway) as worker, gateway.subscribe("other") as other:
        gateway.publish("other", "1")
        other.next_event()
        for _ in range(3):
            worker.next_comment()
        assert not worker.checkpoints


# -- and if it does not acknowledge, another ----------------------------------------------


def test_what_a_consumer_held_when_it_left_goes_to_another(two):
    with consume(two[0]) as leaver:
        gateway_event = two[0].publish("jobs", "1")
        held = leaver.next_event()
        with consume(two[1]) as stayer:
            leaver.close()
            again = stayer.next_event()
            assert parts(again.id) == (gateway_event, 2)
            assert ack(two[1], held.id).problem(409)
            assert ack(two[1], again.id).status == 204


def test_a_lease_that_is_over_gives_the_event_to_another(gateway):
    with consume(gateway, lease="1s") as slow:
        gateway.publish("jobs", "1")
        first = slow.next_event()
        again = slow.next_event()
        assert parts(again.id)[1] == 2
        assert ack(gateway, first.id).problem(409)
        assert ack(gateway, again.id).status == 204


def test_a_gateway_that_is_killed_loses_nothing(two):
    with consume(two[0], lease="1s", max=3) as doomed, consume(two[1], lease="1s") as other:
        for n in range(4):
            two[1].publish("jobs", str(n))
        doomed.next_event()
        two[0].kill()
        seen = set()
        while len(seen) < 4:
            got = other.next_event()
            if ack(two[1], got.id).status == 204:
                seen.add(got.data)
        settle(two[1], in_flight=0, due=0, lag=0)


def test_what_is_given_back_comes_again_after_its_delay(gateway):
    with consume(gateway) as worker:
        gateway.publish("jobs", "1")
        assert nack(gateway, worker.next_event().id).status == 204
        second = worker.next_event()
        began = time.monotonic()
        assert nack(gateway, second.id, delay="1s", reason="not now").status == 204
        third = worker.next_event()
        assert time.monotonic() - began >= 0.9
        assert [parts(second.id)[1], parts(third.id)[1]] == [2, 3]
        assert nack(gateway, second.id).problem(409)


def test_after_its_attempts_an_event_is_dead(gateway):
    with consume(gateway, max_attempts=2) as worker, gateway.subscribe("jobs.dead") as dead:
        event = gateway.publish("jobs", '{"a":1}', "sort")
        nack(gateway, worker.next_event().id, reason="first")
        nack(gateway, worker.next_event().id, reason="no such file")
        letter = dead.next_event()
        assert letter.type == "dead"
        told = json.loads(letter.data)
        assert told == {"id": event, "channel": "jobs", "group": "workers", "type": "sort",
                        "attempts": 2, "reason": "no such file", "data": {"a": 1}}
        settle(gateway, dead=1, in_flight=0, due=0)


def test_a_place_is_free_when_another_gateway_took_the_acknowledgement(two):
    with consume(two[0]) as worker:
        for n in range(5):
            two[1].publish("jobs", str(n))
        for n in range(5):
            got = worker.next_event()
            assert got.data == str(n)
            assert ack(two[1], got.id).status == 204


def test_consumers_go_on_when_the_database_was_away(postgres, gateway_factory):
    gateway = gateway_factory(postgres.create_database(template=TEMPLATE))
    with consume(gateway) as worker:
        gateway.publish("jobs", "1")
        held = worker.next_event()
        postgres.stop()
        assert ack(gateway, held.id).problem(503)
        assert gateway.get("/groups").problem(503)
        postgres.start()
        wait_until(lambda: ack(gateway, held.id).status == 204, "it is acknowledged")
        wait_until(lambda: gateway.post("2", channel="jobs").status == 201, "it is published")
        assert worker.next_event().data == "2"


# -- a slow one ---------------------------------------------------------------------------


def test_a_consumer_that_does_not_read_is_dealt_little_and_loses_nothing(gateway):
    big = json.dumps("x" * 300_000)
    for _ in range(40):
        gateway.publish("jobs", big)
    with consume(gateway, max=40, last_event_id="earliest") as worker:
        gateway.wait_metric("pgsse_streams_behind", 1)
        in_hand = gateway.metric("pgsse_groups_in_hand")
        assert in_hand < 40
        assert gateway.metric("pgsse_connection_memory_bytes") < 8_000_000
        got = worker.take(40)
        assert all(event.data == big for event in got)
        assert len({event.id for event in got}) == 40


def test_ended_consumers_are_forgotten(gateway):
    for _ in range(5):
        with consume(gateway, max=10):
            gateway.publish("jobs", "1")
    gateway.wait_metric("pgsse_groups_consumers", 0)
    gateway.wait_metric("pgsse_groups_in_hand", 0)


# -- what is wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("query, what", [
    ("group=", "empty"), ("group=a%01b", "control"), ("group=a%0Ab", "control"),
    ("group=" + "x" * 256, "longer"), ("group=a&group=b", "two groups"),
    ("group=a%C3", "UTF-8"), ("group=a*", "pattern"),
    ("group=a&channel=b*", "pattern"), ("group=a&channel=b&channel=c", "one channel"),
    ("group=a&channel=" + "x" * 251, "at most 250"),
    ("group=a&type=t", "type"), ("group=a&last=3", "last"), ("group=a&relay=r", "relay"),
    ("group=a&exclude_client=c", "exclude_client"),
    ("group=a&lease=0", "lease"), ("group=a&lease=10ms", "lease"), ("group=a&lease=2d", "lease"),
    ("group=a&lease=soon", "lease"), ("group=a&max=0", "max"), ("group=a&max=1001", "max"),
    ("group=a&max_attempts=0", "max_attempts"), ("group=a&exclusive=yes", "exclusive"),
    ("group=a&last_event_id=17", "earliest"), ("lease=30s", "lease"), ("exclusive=true", "excl"),
])
def test_a_bad_wish_is_400(gateway, query, what):
    assert what in gateway.get(f"/events?{query}").problem(400)["detail"]


@pytest.mark.parametrize("what", ["ack", "nack"])
def test_what_is_no_delivery_is_refused(gateway, what):
    event = gateway.publish("jobs", "1")
    for bad in (event, "0.1.aaaaaaaaaaaa", "1.0.aaaaaaaaaaaa", "1.1.short", "1.1.AAAAAAAAAAAA",
                "1.1.aaaaaaaaaaaa.1", "x", "%2e", "99999999999999999999.1.aaaaaaaaaaaa",
                "1.99999999999.aaaaaaaaaaaa"):
        assert act(gateway, what, bad).problem(400), bad
    never = f"{event}.1.aaaaaaaaaaaa"
    assert act(gateway, what, never).problem(404)
    with consume(gateway) as worker:
        gateway.publish("jobs", "2")
        got = worker.next_event()
        assert act(gateway, what, never).problem(404)
        assert act(gateway, what, got.id, group="others").problem(404)
        event, attempt = parts(got.id)
        assert act(gateway, what, f"{event}.1.aaaaaaaaaaaa").problem(409)
        assert gateway.request("POST", f"/events/{got.id}/{what}", body=b"").problem(400)
        assert act(gateway, what, got.id, group="a\x01").problem(400)
        assert act(gateway, what, got.id, unknown=1).problem(400)


def test_a_bad_nack_is_refused(gateway):
    with consume(gateway) as worker:
        gateway.publish("jobs", "1")
        got = worker.next_event()
        for query in ({"delay": "soon"}, {"delay": "31d"}, {"reason": "x" * 1025}):
            assert nack(gateway, got.id, **query).problem(400)
        assert nack(gateway, got.id, delay="0", reason="\u20ac").status == 204


def test_a_result_is_json(gateway):
    with consume(gateway) as worker:
        gateway.publish("jobs", "1")
        got = worker.next_event()
        for bad in ("{", "1 2", "nothing", '"\x00"'):
            assert ack(gateway, got.id, result=bad).problem(400)
        assert act(gateway, "ack", got.id, body=b'"\xff"').problem(400)
        assert act(gateway, "ack", got.id, body=b'"' + b"x" * 1_100_000 + b'"').problem(413)
        assert ack(gateway, got.id, result=' {"sum": 1.0, "sum": 2}\n').status == 204


def test_methods_and_paths(gateway):
    assert gateway.get("/events/1.1.aaaaaaaaaaaa/ack").status == 405
    assert gateway.request("DELETE", "/events/1").status == 405
    assert gateway.get("/events/1/other").status == 404
    assert gateway.request("POST", "/groups", body=b"").status == 405
    assert gateway.request("OPTIONS", "/events/1/nack").headers["Allow"] == "POST, OPTIONS"
    assert gateway.request("HEAD", "/events?group=workers").status == 200
    assert groups(gateway) == []


def test_another_origin_may_not_acknowledge(gateway):
    origin = [("Origin", "http://evil.example")]
    path = "/events/1.1.aaaaaaaaaaaa/ack?group=workers"
    assert gateway.request("POST", path, origin, b"").problem(403)
    assert gateway.request("DELETE", "/groups?channel=a&group=b", origin).problem(403)


def test_there_are_so_many_consumers_and_no_more(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.consumers": "2"})
    with consume(gateway), consume(gateway) as second:
        with consume(gateway, started=False) as third:
            assert third.wait_end() and third.retries
        second.close()
        gateway.wait_metric("pgsse_groups_consumers", 1)
        with consume(gateway) as third:
            gateway.wait_metric("pgsse_groups_consumers", 2)


# -- looking, and removing ----------------------------------------------------------------


def test_groups_are_listed_and_removed(gateway):
    with consume(gateway, max=1) as worker:
        for n in range(3):
            gateway.publish("jobs", str(n))
        worker.next_event()
        settle(gateway, channel="jobs", group="workers", lag=2, in_flight=1, due=0, dead=0,
               max_attempts=5)
    assert gateway.get("/groups?channel=other").json()["groups"] == []
    remove = "/groups?channel=jobs&group=workers"
    assert gateway.request("DELETE", "/groups?group=workers").problem(400)
    assert gateway.request("DELETE", "/groups?channel=jobs&group=x").problem(404)
    gateway.wait_metric("pgsse_groups_consumers", 0)
    assert gateway.request("DELETE", remove).status == 204
    assert gateway.request("DELETE", remove).problem(404)
    assert groups(gateway) == []


def test_a_group_that_is_removed_under_its_consumers_begins_anew_when_they_come_back(gateway):
    gateway.publish("jobs", "1")
    with consume(gateway, last_event_id="earliest", max=2) as worker:
        assert worker.next_event().data == "1"
        assert gateway.request("DELETE", "/groups?channel=jobs&group=workers").status == 204
        assert worker.wait_end() and groups(gateway) == []
    with consume(gateway) as worker:
        gateway.publish("jobs", "2")
        assert worker.next_event().data == "2"


# -- together -----------------------------------------------------------------------------


def test_eight_workers_do_each_job_and_none_twice(two):
    jobs, done, lock = 400, {}, threading.Lock()
    ended = threading.Event()

    def work(number):
        gateway = two[number % 2]
        with consume(gateway, max=4) as worker:
            while not ended.is_set():
                try:
                    got = worker.next_event(0.5)
                except TimeoutError:
                    continue
                if ack(two[(number + int(parts(got.id)[0])) % 2], got.id).status == 204:
                    with lock:
                        done[got.data] = done.get(got.data, 0) + 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    two[0].publish("jobs", '"first"')
    with consume(two[0], last_event_id="earliest") as first:
        assert ack(two[0], first.next_event().id).status == 204
    for worker in workers:
        worker.start()
    try:
        for n in range(jobs):
            two[n % 2].publish("jobs", str(n))
        wait_until(lambda: len(done) == jobs, "all jobs are done", 60)
    finally:
        ended.set()
        for worker in workers:
            worker.join()
    assert set(done.values()) == {1}
    settle(two[0], lag=0, in_flight=0, due=0)


# -- one at a time -------------------------------------------------------------------------


def lead(gateway, **query):
    return consume(gateway, group="leader", exclusive="true", **query)


def work_off(gateway, worker, wanted):
    """Takes what is wanted, in order, and acknowledges it."""
    for data in wanted:
        got = worker.next_event()
        assert got.data == data
        assert ack(gateway, got.id, "leader").status == 204


@contextmanager
def in_line(gateway, neighbour, **query):
    """Two exclusive consumers, of which the first is the holder."""
    with lead(gateway, **query) as first:
        gateway.publish("jobs", '"first"')
        work_off(gateway, first, ['"first"'])
        with lead(neighbour, **query) as second:
            yield first, second


def test_an_exclusive_group_has_one_consumer_at_a_time(two):
    with lead(two[0], max=10) as first:
        two[0].publish("jobs", "1")
        work_off(two[0], first, ["1"])
        with lead(two[1], max=10) as second, lead(two[0], max=10) as third:
            for n in range(2, 12):
                two[n % 2].publish("jobs", str(n))
            work_off(two[1], first, [str(n) for n in range(2, 12)])
            assert not second.pending() and not third.pending()


@pytest.mark.parametrize("neighbour", [0, 1], ids=["same gateway", "another gateway"])
def test_the_next_takes_over_with_what_was_not_acknowledged_in_order(two, neighbour):
    with in_line(two[0], two[neighbour], max=10) as (first, second):
        for n in range(6):
            two[0].publish("jobs", str(n))
        events = first.take(6)
        for done in (0, 2):
            assert ack(two[0], events[done].id, "leader").status == 204
        first.close()
        two[1].publish("jobs", "6")
        work_off(two[neighbour], second, ["1", "3", "4", "5", "6"])
        assert ack(two[0], events[1].id, "leader").problem(409)


def test_the_next_takes_over_when_the_gateway_is_killed(two):
    with in_line(two[0], two[1], max=10, lease="60s") as (first, second):
        for n in range(3):
            two[1].publish("jobs", str(n))
        first.take(3)
        two[0].kill()
        work_off(two[1], second, ["0", "1", "2"])


def test_no_lease_ends_while_the_exclusive_consumer_is_there(gateway):
    with in_line(gateway, gateway, lease="1s") as (first, second):
        gateway.publish("jobs", "1")
        got = first.next_event()
        with pytest.raises(TimeoutError):
            second.next_event(3)
        assert not first.pending()
        assert ack(gateway, got.id, "leader").status == 204


def test_a_lost_connection_is_a_lost_lock(pg, two):
    with in_line(two[0], two[1], max=10) as (first, second):
        two[0].publish("jobs", "1")
        held = first.next_event()
        pg.value("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "
                 "datname = current_database() AND application_name = 'pg-sse-gateway/groups' "
                 "AND pid = (SELECT l.pid FROM pg_locks l WHERE l.locktype = 'advisory' AND "
                 "l.objsubid = 1 AND l.granted AND l.pid IN (SELECT a.pid FROM "
                 "pg_stat_activity a WHERE a.application_name = 'pg-sse-gateway/groups' "
                 "AND a.datname = current_database()))")
        assert first.wait_end()
        again = second.next_event()
        assert parts(again.id) == (parts(held.id)[0], 2)
        assert ack(two[1], again.id, "leader").status == 204


def test_a_worker_may_acknowledge_in_a_transaction_of_its_own(gateway, pg):
    """What it did and the acknowledgement are committed together."""
    for exclusive in ("false", "true"):
        with consume(gateway, f"jobs-{exclusive}", exclusive=exclusive) as worker:
            for n in range(3):
                gateway.publish(f"jobs-{exclusive}", str(n))
            for n in range(3):
                got = worker.next_event()
                assert got.data == str(n)
                pg.execute("SELECT gateway.ack(%s, 'workers')", (got.id,))


def test_a_claim_in_an_open_transaction_holds_up_its_own_group_only(gateway, pg):
    with consume(gateway, "a") as a, consume(gateway, "b") as b, pg.connect() as session:
        for n in range(2):
            gateway.publish("a", str(n))
        first = a.next_event()
        assert len(session.execute("SELECT * FROM gateway.claim('a', 'workers')").fetchall()) == 1
        assert ack(gateway, first.id).status == 204
        gateway.wait_log("could not claim deliveries")
        for n in range(5):
            gateway.publish("b", str(n))
            got = b.next_event()
            assert got.data == str(n) and ack(gateway, got.id).status == 204
        assert not a.pending()
        session.rollback()
        assert a.next_event().data == "1"


def test_a_consumer_of_a_relayed_channel_has_nobody_listen_to_it(pg, gateway_factory):
    gateway = gateway_factory(pg, {"channels.relay": "*"})
    with consume(gateway, "jobs") as worker, gateway.subscribe("chat") as stream:
        stream.wait_checkpoint()
        assert gateway.metric("pgsse_relay_channels") == 1
        gateway.publish("jobs", "1")
        worker.next_event()


def test_groups_are_listed_of_a_channel_by_its_name(gateway):
    for channel in ("", "%ff", "a*", "x" * 251):
        gateway.get(f"/groups?channel={channel}").problem(400)
    assert gateway.get("/groups?channel=nobody").json()["groups"] == []
