"""Groups by SQL: claim, ack, nack, release, and what a group remembers of it all."""

import contextlib

import psycopg
import pytest
from psycopg import errors

from harness.waiting import wait_until

LEASE = "'0.05 s'"


def add(pg, count, channel="jobs", data="to_json(n)"):
    """Published and numbered."""
    pg.execute(f"INSERT INTO gateway.events (channel, type, data)"
               f" SELECT %s, 'job', {data} FROM generate_series(1, {count}) n", (channel,))
    while pg.value("SELECT gateway.sweep()"):
        pass


def claim(pg, max=1, channel="jobs", group="workers", **options):
    """The rows of a claim; what is not given is as in SQL."""
    options = {"lease": "'30 s'", "start": "'earliest'", **options}
    rest = "".join(f", {name} => {value}" for name, value in options.items())
    return pg.execute(f"SELECT id, seq, attempt, data FROM gateway.claim(%s, %s, {max}{rest})",
                      (channel, group))


def claim_when_due(pg, *arguments, **options):
    return wait_until(lambda: claim(pg, *arguments, **options), "something is due")


def ack(pg, id, group="workers", result=None):
    pg.execute("SELECT gateway.ack(%s, %s, %s)", (id, group, result))


def nack(pg, id, group="workers", delay="0", reason=None):
    pg.execute("SELECT gateway.nack(%s, %s, %s, %s)", (id, group, delay, reason))


def state(pg, seq, group="workers"):
    rows = pg.execute("SELECT state, attempt, result FROM gateway.result(%s, %s)", (seq, group))
    return rows[0] if rows else None


def listed(pg, *columns, group="workers"):
    return pg.execute(f"SELECT {', '.join(columns)} FROM gateway.group_list WHERE name = %s",
                      (group,))[0]


def dead(pg, channel="jobs"):
    pg.execute("SELECT gateway.sweep()")
    return [data for data, in pg.execute(
        "SELECT data FROM gateway.events WHERE channel = %s AND type = 'dead' ORDER BY seq",
        (f"{channel}.dead",))]


@contextlib.contextmanager
def refused(sqlstate):
    """What is done in this block is refused, with this SQLSTATE."""
    with pytest.raises(psycopg.Error) as caught:
        yield
    assert caught.value.sqlstate == sqlstate


def wait_due(pg, count):
    wait_until(lambda: listed(pg, "due") == (count,), f"{count} are due")


# -- handing out ----------------------------------------------------------------------------


def test_each_event_is_handed_out_once_and_in_order(pg):
    add(pg, 5)
    first, second = claim(pg, 2), claim(pg, 10)
    assert [row[3] for row in first + second] == [1, 2, 3, 4, 5]
    assert [row[2] for row in first + second] == [1] * 5
    assert claim(pg, 10) == []
    id, seq, attempt, _ = first[0]
    assert id.startswith(f"{seq}.{attempt}.") and len(id.split(".")[2]) == 12
    assert len({row[0] for row in first + second}) == 5


def test_a_claim_tells_all_of_the_event(pg):
    pg.publish("jobs", '{"n":  1.50}', "resize")
    pg.execute("SELECT gateway.sweep()")
    with pg.connect() as connection:
        row = connection.execute(
            "SELECT channel, type, data::text, created_at = (SELECT created_at FROM"
            " gateway.events) FROM gateway.claim('jobs', 'workers', start => 'earliest')"
        ).fetchone()
    assert row == ("jobs", "resize", '{"n":  1.50}', True)


def test_a_new_group_begins_now_unless_told_otherwise(pg):
    add(pg, 3)
    assert claim(pg, 10, group="late", start="'now'") == []
    add(pg, 2)
    assert [row[3] for row in claim(pg, 10, group="late")] == [1, 2]
    assert len(claim(pg, 10, group="all")) == 5


def test_groups_and_channels_do_not_know_one_another(pg):
    add(pg, 2)
    add(pg, 1, channel="other")
    for group in ("workers", "auditors", "Работники"):
        assert len(claim(pg, 10, group=group)) == 2
    assert len(claim(pg, 10, channel="other")) == 1
    assert pg.value("SELECT count(*) FROM gateway.groups") == 4


def test_only_numbered_events_are_handed_out(pg):
    pg.publish("jobs", "1")
    assert claim(pg, 10) == []
    pg.execute("SELECT gateway.sweep()")
    assert len(claim(pg, 10)) == 1


def test_as_many_as_their_data_fits_and_at_least_one(pg):
    add(pg, 4, data="to_json(repeat('x', 1000))")
    assert len(claim(pg, 10, max_bytes=10)) == 1
    assert len(claim(pg, 10, max_bytes=2100)) == 2
    assert len(claim(pg, 10, max_bytes=2100)) == 1


def test_what_is_due_and_what_is_new_share_the_bytes(pg):
    add(pg, 6, data="to_json(repeat('x', 1000))")
    nack(pg, claim(pg)[0][0])
    assert [row[2] for row in claim(pg, 10, max_bytes=2100)] == [2, 1]
    assert len(claim(pg, 10, max_bytes=1)) == 1


def test_a_claim_that_finds_nothing_writes_nothing(pg):
    claim(pg)
    with pg.connect() as connection:
        connection.execute("SELECT * FROM gateway.claim('jobs', 'workers')")
        assert connection.execute("SELECT pg_current_xact_id_if_assigned()").fetchone() == (None,)


# -- leases ---------------------------------------------------------------------------------


def test_what_is_over_its_lease_goes_to_another(pg):
    add(pg, 3)
    first = claim(pg, 2, lease=LEASE)
    wait_due(pg, 2)
    again = claim(pg, 2)
    assert [(row[1], row[2]) for row in again] == [(row[1], 2) for row in first]
    with refused("GW409"):
        ack(pg, first[0][0])
    for row in again:
        ack(pg, row[0])


def test_what_is_due_comes_first_and_lowest_first(pg):
    add(pg, 6)
    claimed = claim(pg, 4)
    for row in reversed(claimed[:3]):
        nack(pg, row[0])
    assert [(row[3], row[2]) for row in claim(pg, 4)] == [(1, 2), (2, 2), (3, 2), (5, 1)]


def test_a_lease_that_is_over_may_be_acknowledged_until_somebody_else_has_it(pg):
    add(pg, 1)
    (id, seq, *_), = claim(pg, lease=LEASE)
    wait_due(pg, 1)
    ack(pg, id)
    assert claim(pg) == []
    assert state(pg, seq) == ("acknowledged", 1, None)


def test_a_lease_that_goes_on_is_not_given_to_another(pg):
    add(pg, 1)
    claim(pg)
    assert [claim(pg) for _ in range(20)] == [[]] * 20
    assert listed(pg, "in_flight", "due", "lag") == (1, 0, 0)


# -- acknowledging --------------------------------------------------------------------------


def test_who_has_acknowledged_cannot_do_it_again(pg):
    add(pg, 1)
    (id, seq, *_), = claim(pg)
    ack(pg, id, result='{"size": 3}')
    for again in (ack, nack):
        with refused("GW409"):
            again(pg, id)
    assert state(pg, seq) == ("acknowledged", 1, {"size": 3})


def test_what_was_never_delivered_is_not_found(pg):
    add(pg, 3)
    (id, seq, *_), = claim(pg)
    lease = id.split(".")[2]
    for unknown, group in ((f"{seq + 1}.1.{lease}", "workers"), (id, "others"),
                           (f"9223372036854775807.1.{lease}", "workers")):
        for take in (ack, nack):
            with refused("GW404"):
                take(pg, unknown, group)
    for held_by_another in (f"{seq}.2.{lease}", f"{seq}.1.aaaaaaaaaaaa"):
        with refused("GW409"):
            ack(pg, held_by_another)
    ack(pg, id)


@pytest.mark.parametrize("id", [
    None, "", "42", "42.1", "42.1.", "0.1.aaaaaaaaaaaa", "42.0.aaaaaaaaaaaa",
    "42.1.AAAAAAAAAAAA", "42.1.aaaaaaaaaaa", "42.1.aaaaaaaaaaaaa", " 42.1.aaaaaaaaaaaa",
    "42.1.aaaaaaaaaaaa\n", "-1.1.aaaaaaaaaaaa", "042.1.aaaaaaaaaaaa", "4e1.1.aaaaaaaaaaaa",
    "9223372036854775808.1.aaaaaaaaaaaa", "42.1000000000.aaaaaaaaaaaa", "x" * 100000])
def test_what_is_no_id_of_a_delivery_is_said(pg, id):
    claim(pg)
    for take in (ack, nack):
        with pytest.raises(errors.InvalidParameterValue, match="not the id of a delivery"):
            take(pg, id)


def test_a_result_is_kept_as_it_is_and_has_a_limit(pg):
    add(pg, 2)
    one, two = claim(pg, 2)
    with pytest.raises(errors.InvalidParameterValue, match="1 MiB"):
        ack(pg, one[0], result='"' + "x" * 1048576 + '"')
    with pytest.raises(errors.InvalidTextRepresentation):
        ack(pg, one[0], result="{no")
    ack(pg, one[0], result='"' + "x" * 1048574 + '"')
    ack(pg, two[0], result='[1.0,  {"a":1,"a":2}]')
    assert pg.value("SELECT result::text FROM gateway.result(%s, 'workers')",
                    (two[1],)) == '[1.0,  {"a":1,"a":2}]'


def test_many_at_once_are_told_one_by_one(pg):
    add(pg, 6)
    ids = [row[0] for row in claim(pg, 6)]
    ack(pg, ids[0])
    asked = [ids[3], "no id", ids[0], ids[1], ids[1], ids[2], None, "1.1.aaaaaaaaaaaa", ids[4]]
    groups = ["workers"] * 8 + [None]
    results = ['{"a": 1}', None, None, None, "2", "{no", None, None, None]
    assert pg.value("SELECT gateway.ack_many(%s, %s, %s)", (asked, groups, results)) \
        == [0, 400, 409, 0, 409, 400, 400, 404, 400]
    assert state(pg, ids[3].split(".")[0]) == ("acknowledged", 1, {"a": 1})
    assert state(pg, ids[1].split(".")[0]) == ("acknowledged", 1, None)
    assert pg.value("SELECT gateway.ack_many('{}', '{}', '{}')") == []
    assert pg.value("SELECT gateway.nack_many(%s, %s, %s::interval[], %s)", (
        [ids[5], ids[4], "no id", ids[0], ids[4], ids[2]], ["workers"] * 6,
        ["0", "1 h", "0", "0", "0", "-1 s"], ["a", "b", None, None, None, None])) \
        == [0, 0, 400, 409, 409, 400]
    assert pg.value("SELECT gateway.nack_many('{}', '{}', '{}', '{}')") == []
    assert listed(pg, "in_flight", "due") == (2, 1)


def test_acknowledged_in_the_transaction_of_the_work_it_is_done_with_it_or_not_at_all(pg):
    add(pg, 1)
    pg.execute("CREATE TABLE public.done (seq bigint)")
    (id, seq, *_), = claim(pg, lease=LEASE)
    with pg.connect() as worker:
        worker.execute("INSERT INTO done VALUES (%s)", (seq,))
        worker.execute("SELECT gateway.ack(%s, 'workers')", (id,))
        wait_due(pg, 1)
        assert claim(pg) == [], "it is about to be acknowledged"
        worker.rollback()
    (id, seq, attempt, _), = claim(pg)
    assert attempt == 2
    with pg.connect() as worker:
        worker.execute("INSERT INTO done VALUES (%s)", (seq,))
        worker.execute("SELECT gateway.ack(%s, 'workers')", (id,))
    assert pg.execute("SELECT seq FROM done") == [(seq,)]
    assert state(pg, seq)[0] == "acknowledged"


@pytest.mark.parametrize("before, after", [("off", "on"), ("local", "on"), ("on", "on"),
                                           ("remote_apply", "remote_apply")])
def test_an_acknowledgement_is_durable_whatever_the_session_says(pg, before, after):
    add(pg, 1)
    (id, *_), = claim(pg)
    with pg.connect() as worker:
        worker.execute(f"SET synchronous_commit = {before}")
        worker.execute("SELECT gateway.ack(%s, 'workers')", (id,))
        assert worker.execute("SHOW synchronous_commit").fetchone() == (after,)
        worker.commit()
        assert worker.execute("SHOW synchronous_commit").fetchone() == (before,)


@pytest.mark.parametrize("wanted", ["on", "remote_apply", "remote_write", "off"])
def test_a_claim_does_not_wait_for_the_disk_and_takes_nothing_else_with_it(pg, wanted):
    add(pg, 3)
    with pg.connect() as worker:
        def setting():
            return worker.execute("SHOW synchronous_commit").fetchone()[0]

        worker.execute(f"SET synchronous_commit = {wanted}")
        worker.commit()
        (id,), = worker.execute("SELECT id FROM gateway.claim('jobs', 'workers',"
                                " start => 'earliest')").fetchall()
        assert setting() == "off"
        worker.execute("SELECT gateway.ack(%s, 'workers')", (id,))
        assert setting() == (wanted if wanted != "off" else "on")
        worker.commit()
        worker.execute("CREATE TEMP TABLE mine (n integer)")
        worker.execute("SELECT gateway.claim('jobs', 'workers')")
        assert setting() == wanted, "something was written before"
        worker.commit()
        assert setting() == wanted


# -- giving back ----------------------------------------------------------------------------


def test_what_is_given_back_with_a_delay_comes_after_it(pg):
    add(pg, 2)
    one, two = claim(pg, 2)
    nack(pg, one[0], delay="1 h", reason="busy")
    nack(pg, two[0], delay="0.05 s")
    assert [(row[1], row[2]) for row in claim_when_due(pg, 10)] == [(two[1], 2)]
    assert claim(pg, 10) == []
    assert listed(pg, "in_flight", "due") == (2, 0)
    with refused("GW409"):
        ack(pg, one[0])


def test_who_gives_back_what_is_due_at_once_rings(pg):
    add(pg, 3)
    one, two, three = claim(pg, 3)
    with listening(pg, "gateway_due") as told:
        nack(pg, one[0], delay="1 h")
        nack(pg, two[0])
        pg.execute("SELECT gateway.release(%s, %s)", ([three[0]], ["workers"]))
    assert told == ["jobs", "jobs"]


def test_who_waits_for_an_acknowledgement_is_told_and_nobody_else(pg):
    add(pg, 4)
    rows = claim(pg, 4, max_attempts=1)
    for _, seq, *_ in rows[1:]:
        pg.execute("INSERT INTO gateway.waits (seq, group_name) VALUES (%s, %s)",
                   (seq, "workers" if seq != rows[3][1] else "others"))
    with listening(pg, "gateway_acks") as told:
        for row in (rows[0], rows[1], rows[3]):
            ack(pg, row[0])
        nack(pg, rows[2][0])
    assert told == [f"{rows[1][1]} workers", f"{rows[2][1]} workers"]


@contextlib.contextmanager
def listening(pg, channel):
    """The payloads of what is notified in this block."""
    told = []
    with pg.connect(autocommit=True) as listener:
        listener.add_notify_handler(lambda notify: told.append(notify.payload))
        listener.execute(f"LISTEN {channel}")
        yield told
        pg.execute(f"NOTIFY {channel}, 'the end'")
        wait_until(lambda: listener.execute("SELECT 1") and "the end" in told, "the end")
    told.remove("the end")


def test_what_a_consumer_held_when_it_left_is_due_at_once(pg):
    add(pg, 4)
    held = claim(pg, 3)
    ack(pg, held[0][0])
    pg.execute("SELECT gateway.release(%s, %s)",
               ([row[0] for row in held] + ["no id", None], ["workers"] * 5))
    ack(pg, held[1][0])  # it had done that, and nobody else has it yet
    assert [(row[3], row[2]) for row in claim(pg, 10)] == [(3, 2), (4, 1)]
    with refused("GW409"):
        ack(pg, held[2][0])


@pytest.mark.parametrize("delay, reason", [("-1 s", None), ("31 days", None), (None, None),
                                           ("0", "x" * 1025)])
def test_a_bad_delay_or_reason_is_said(pg, delay, reason):
    add(pg, 1)
    (id, *_), = claim(pg)
    with pytest.raises(errors.InvalidParameterValue, match="a delay is|a reason has"):
        nack(pg, id, delay=delay, reason=reason)
    ack(pg, id)


# -- the dead -------------------------------------------------------------------------------


def test_what_has_used_up_its_attempts_is_told_on_the_dead_channel(pg):
    add(pg, 1)
    for attempt in (1, 2):
        (_, seq, *rest), = claim_when_due(pg, lease=LEASE, max_attempts=2)
        assert rest == [attempt, 1]
    wait_due(pg, 1)
    add(pg, 1)
    seq += 1
    assert claim(pg)[0][1] == seq, "the first is dead"
    assert dead(pg) == [{"id": str(seq - 1), "channel": "jobs", "group": "workers",
                         "type": "job", "attempts": 2, "reason": "lease over", "data": 1}]
    assert state(pg, seq - 1) == ("dead", 2, None)
    assert listed(pg, "dead", "in_flight", "due", "lag") == (1, 1, 0, 0)


def test_who_gives_back_the_last_attempt_is_the_last(pg):
    add(pg, 2)
    one, two = claim(pg, 2, max_attempts=1)
    nack(pg, one[0], delay="1 h", reason="\x01 \"no\" \\ Ж")
    nack(pg, two[0])
    assert [data["reason"] for data in dead(pg)] == ["\x01 \"no\" \\ Ж", "no reason given"]
    with refused("GW409"):
        ack(pg, one[0])
    assert claim(pg, 10) == []


def test_the_reason_is_that_of_the_last_attempt(pg):
    add(pg, 2)
    for row in claim(pg, 2, max_attempts=2):
        nack(pg, row[0], reason="early")
    one, two = claim(pg, 2)
    pg.execute("SELECT gateway.release(%s, %s)", ([one[0]], ["workers"]))
    nack(pg, two[0], reason="late")
    assert claim(pg, 2) == []
    assert sorted(data["reason"] for data in dead(pg)) == ["consumer left", "late"]


def test_the_dead_are_events_of_a_channel_with_groups_of_its_own(pg):
    add(pg, 1)
    nack(pg, claim(pg, max_attempts=1)[0][0])
    dead(pg)
    (id, *_), = claim(pg, channel="jobs.dead", group="menders")
    ack(pg, id, "menders")


def test_an_event_too_large_to_be_told_again_is_told_without_its_data(pg):
    add(pg, 1, data="to_json(repeat('x', 67000000))")
    nack(pg, claim(pg, max_attempts=1)[0][0])
    assert [data["data"] for data in dead(pg)] == [None]


def test_another_number_of_attempts_holds_from_then_on(pg):
    add(pg, 1)
    claim(pg, lease=LEASE)
    assert listed(pg, "max_attempts") == (5,)
    assert claim_when_due(pg, lease=LEASE, max_attempts=7)[0][2] == 2
    assert listed(pg, "max_attempts") == (7,)
    wait_due(pg, 1)
    assert claim(pg, max_attempts=2) == []
    assert len(dead(pg)) == 1


# -- what gateways ask ------------------------------------------------------------------------


def renew(pg, ids, lease):
    return [id for id, in pg.execute("SELECT gateway.renew(%s, %s, %s)",
                                     (ids, ["workers"] * len(ids), lease))]


def test_asking_what_is_held_writes_nothing(pg):
    add(pg, 2)
    held, done = (row[0] for row in claim(pg, 2))
    ack(pg, done)
    rows = "SELECT array_agg((ctid, xmin, due_at) ORDER BY seq)::text FROM gateway.deliveries"
    before = pg.value(rows)
    assert renew(pg, [held, done], None) == [done]
    assert pg.value(rows) == before


def test_a_delivery_that_is_being_acknowledged_does_not_keep_others_from_being_renewed(pg):
    add(pg, 2)
    first, second = (row[0] for row in claim(pg, 2))
    with pg.connect(autocommit=False) as worker:
        worker.execute("SELECT gateway.ack(%s, 'workers')", (first,))
        assert renew(pg, [first, second], "1 h") == []
    long = "SELECT count(*) FROM gateway.deliveries WHERE due_at > now() + interval '30 min'"
    assert pg.value(long) == 1
    assert renew(pg, [first, second], None) == [first]


def test_so_many_are_called_back_at_once_the_lowest_first(pg):
    add(pg, 1500)
    claim(pg, 1000), claim(pg, 500)
    assert pg.value("SELECT gateway.recall('jobs', 'workers')") == 1000
    assert pg.value("SELECT max(seq) FILTER (WHERE due_at <= now()) < "
                    "min(seq) FILTER (WHERE due_at > now()) FROM gateway.deliveries")
    assert pg.value("SELECT gateway.recall('jobs', 'workers')") == 500
    assert pg.value("SELECT gateway.recall('jobs', 'workers')") == 0


# -- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments, said", [
    ("NULL, 'w'", "channel is NULL"), ("'c', NULL", "name of the group is NULL"),
    ("'', 'w'", "channel of a group"), ("'c', ''", "name of a group"),
    ("'c*', 'w'", "no prefix"), ("'c', 'w*'", "not end in"),
    ("E'c\\x01', 'w'", "control characters"), ("'c', E'w\\n'", "control characters"),
    ("repeat('c', 251), 'w'", "250 bytes"), ("'c', repeat('w', 256)", "255 bytes"),
    ("'c', 'w', 0", "from 1 to 1000"), ("'c', 'w', 1001", "from 1 to 1000"),
    ("'c', 'w', NULL", "from 1 to 1000"), ("'c', 'w', -5", "from 1 to 1000"),
    ("'c', 'w', 1, '0 s'", "a lease"), ("'c', 'w', 1, '-1 s'", "a lease"),
    ("'c', 'w', 1, '25 h'", "a lease"), ("'c', 'w', 1, NULL", "a lease"),
    ("'c', 'w', start => 'soon'", "start is"), ("'c', 'w', max_attempts => 0", "max_attempts"),
    ("'c', 'w', max_attempts => 1000001", "max_attempts"),
    ("'c', 'w', max_bytes => 0", "max_bytes"), ("'c', 'w', max_bytes => NULL", "max_bytes")])
def test_a_bad_argument_is_said_and_makes_no_group(pg, arguments, said):
    with pytest.raises(errors.InvalidParameterValue, match=said):
        pg.execute(f"SELECT * FROM gateway.claim({arguments})")
    assert pg.value("SELECT count(*) FROM gateway.groups") == 0


def test_the_longest_names_there_are_can_be_used_and_the_dead_be_told(pg):
    channel, group = "ж" * 125, "г" * 127
    add(pg, 1, channel=channel)
    (id, *_), = claim(pg, channel=channel, group=group, max_attempts=1)
    pg.execute("INSERT INTO gateway.waits (seq, group_name) VALUES (%s, %s)",
               (id.split(".")[0], group))
    nack(pg, id, group)
    assert len(dead(pg, channel)) == 1
