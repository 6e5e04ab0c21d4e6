"""A client that comes back, to any gateway of the database, after anything, gets exactly what it
missed; and where that cannot be, it is told so first."""

import contextlib
import json
import os
import signal
import subprocess
import threading

import pytest

from harness.gateway import Gateway
from harness.postgres import OWNER
from harness.sse import StreamEnded
from harness.tools import find_postgres_tool
from harness.waiting import SLOWNESS, scaled, wait_until

# So little that most of what these tests publish is out of the ring at once.
SMALL = {"ring.bytes": "64KiB"}


def fill(pg, count, channel="c", bytes=100):
    """Publishes by SQL: data is the running number and some padding."""
    pg.execute("INSERT INTO gateway.events (channel, data)"
               " SELECT %s, json_build_object('n', n, 'pad', repeat('x', %s))"
               " FROM generate_series(1, %s) n", (channel, bytes, count))


def numbered(pg, channel="c", after=0):
    """Ids of the channel, once all of them have one."""
    wait_until(lambda: pg.value("SELECT count(*) FROM gateway.events WHERE seq IS NULL") == 0,
               "every event has its number", timeout=60)
    return [str(seq) for seq, in pg.execute(
        "SELECT seq FROM gateway.events WHERE channel = %s AND seq > %s ORDER BY seq",
        (channel, after))]


def ids_of(stream, count, timeout=60):
    return [event.id for event in stream.take(count, timeout)]


@pytest.fixture
def small(pg, gateway_factory):
    return gateway_factory(pg, SMALL)


# -- from the table, and on to the ring ----------------------------------------------------


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
def test_what_is_out_of_the_ring_comes_from_the_table(pg, small, http10):
    fill(pg, 5000)
    ids = numbered(pg)
    for place in (0, 1, 499, 500, 501, 2500, 4700, 4998, 4999):
        with small.subscribe("c", last_event_id=ids[place], http10=http10) as stream:
            assert ids_of(stream, len(ids) - place - 1) == ids[place + 1:]
            ids.append(small.publish("c", "1"))
            assert stream.next_event().id == ids[-1]
            assert not stream.pending()


def test_after_a_restart_nothing_is_missing(pg, gateway_factory):
    first = gateway_factory(pg)
    with first.subscribe("c") as stream:
        start = first.publish("c", "0")
        assert stream.next_event().id == start
    first.kill()
    fill(pg, 3000)
    second = gateway_factory(pg)
    with second.subscribe("c", last_event_id=start) as stream:
        got = ids_of(stream, 3000)
    assert got == numbered(pg, after=start)
    third = gateway_factory(pg, SMALL)
    with third.subscribe("c", last_event_id=got[7]) as stream:
        assert ids_of(stream, 2992) == got[8:]


def test_the_joint_holds_while_others_publish(pg, gateway_factory):
    gateways = [gateway_factory(pg, SMALL), gateway_factory(pg, SMALL)]
    start = gateways[0].publish("c", "0")
    fill(pg, 4000)
    stop = threading.Event()

    def publish():
        with pg.connect(autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO gateway.events (channel, data)"
                                   " SELECT 'c', to_json(n) FROM generate_series(1, 7) n")

    writer = threading.Thread(target=publish)
    writer.start()
    try:
        streams = [gateway.subscribe("c", last_event_id=start)
                   for gateway in gateways for _ in range(3)]
        got = [ids_of(stream, 6000) for stream in streams]
    finally:
        stop.set()
        writer.join()
    expected = numbered(pg, after=start)[:6000]
    assert all(ids == expected for ids in got)
    for stream in streams:
        stream.close()


def test_a_slow_reader_is_overtaken_and_does_not_notice(pg, small):
    with small.subscribe("c", receive_buffer=4096) as stream:
        stream.keep_wire = False
        fill(pg, 3000, bytes=4000)
        small.wait_metric("pgsse_events_received_total", 3000, timeout=60)
        got = stream.take(3000, timeout=60)
    assert [event.id for event in got] == numbered(pg)
    assert [json.loads(event.data)["n"] for event in got] == list(range(1, 3001))
    assert small.metric("pgsse_streams_lagged_total") >= 1
    assert small.metric("pgsse_replay_events_total") > 0


def test_one_large_event_broken_in_the_middle_goes_on_from_the_table(pg, small):
    data = json.dumps("".join(chr(97 + n % 26) for n in range(3 * 1024 * 1024)))
    for http10 in (False, True):
        with small.subscribe("big", receive_buffer=4096, http10=http10) as stream:
            stream.keep_wire = False
            small.publish("big", data)
            small.wait_metric("pgsse_streams_behind", 1)
            fill(pg, 2000)
            last = small.publish("big", "2")
            small.wait_metric("pgsse_head_seq", int(last))
            assert stream.next_event(timeout=60).data == data
            assert stream.next_event().id == last
    assert small.metric("pgsse_streams_lagged_total") >= 2


def test_rare_channels_prefixes_and_types(pg, small):
    pg.execute("INSERT INTO gateway.events (channel, type, data) SELECT"
               " CASE WHEN n % 1000 = 5 THEN 'rare' WHEN n % 10 = 1"
               " THEN 'user.' || n % 70 ELSE 'busy' END,"
               " CASE WHEN n % 3 = 0 THEN 'a' ELSE 'b' END, to_json(n)"
               " FROM generate_series(1, 30000) n")
    start = int(numbered(pg, "busy")[0]) - 1

    def rows(where):
        return [str(seq) for seq, in pg.execute(
            f"SELECT seq FROM gateway.events WHERE ({where}) AND seq > {start} ORDER BY seq")]

    cases = [(["rare"], (), "channel = 'rare'"),
             (["rare", "user.11"], (), "channel IN ('rare', 'user.11')"),
             (["user.*"], ["a"], "channel LIKE 'user.%' AND type = 'a'"),
             (["user.1*", "rare", "rare"], (), "channel LIKE 'user.1%' OR channel = 'rare'"),
             (["busy"], ["a"], "channel = 'busy' AND type = 'a'"),
             (["*"], (), "true"), (["none"], (), "false")]
    for channels, types, where in cases:
        expected = rows(where)
        with small.subscribe(*channels, types=types, last_event_id=str(start)) as stream:
            stream.keep_wire = False
            assert ids_of(stream, len(expected)) == expected, channels
            small.wait_metric("pgsse_streams_behind", 0)
            assert not stream.pending()


# -- where a first connection begins ---------------------------------------------------------


def test_earliest_is_all_that_is_kept(pg, small):
    fill(pg, 1500)
    ids = numbered(pg)
    for options in ({"last_event_id": "earliest"},
                    {"parameters": [("last_event_id", "earliest")]}):
        with small.subscribe("c", **options) as stream:
            assert ids_of(stream, 1500) == ids
    pg.execute("DELETE FROM gateway.events WHERE seq <= %s", (ids[99],))
    with small.subscribe("c", last_event_id="earliest") as stream:
        assert ids_of(stream, 1400) == ids[100:], "without a gap: it asked for what there is"


def test_last_is_the_newest_events_of_these_channels_then_live(pg, small):
    fill(pg, 50, "a")
    fill(pg, 2000, "b")
    fill(pg, 3, "x.1")
    a, b, x = numbered(pg, "a"), numbered(pg, "b"), numbered(pg, "x.1")
    small.wait_metric("pgsse_head_seq", int(x[-1]))  # what it has not seen comes in any case
    for channels, count, expected in [
            (["*"], 5, b[-2:] + x), (["x.*"], 2, x[-2:]), (["a", "x.1"], 10, a[-7:] + x),
            (["a"], 10, a[-10:]), (["b"], 700, b[-700:])]:
        with small.subscribe(*channels, parameters=[("last", str(count))]) as stream:
            assert ids_of(stream, len(expected)) == expected, (channels, count)
            live = small.publish("new", "1")
            small.wait_metric("pgsse_head_seq", int(live))
            small.wait_metric("pgsse_streams_behind", 0)
            assert not stream.pending()
    with small.subscribe("a", parameters=[("last", "1000")]) as stream:
        assert ids_of(stream, 50) == a, "there are no more"
        live = small.publish("a", "1")
        assert stream.next_event().id == live
    with small.subscribe("nothing", parameters=[("last", "5")]) as stream:
        wait_until(lambda: stream_has_checkpoint(stream), "it has an id to come back with")


@contextlib.contextmanager
def nobody_connects(pg):
    """Sessions that are there are served; new ones are not, until then."""
    postmaster = pg.cluster.process
    postmaster.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        postmaster.send_signal(signal.SIGCONT)


def test_last_leaves_out_nothing_that_comes_after_the_answer(pg, small):
    fill(pg, 5)
    before = numbered(pg)
    small.wait_metric("pgsse_head_seq", int(before[-1]))
    with nobody_connects(pg):  # and so the newest two cannot be asked for
        stream = small.subscribe("c", parameters=[("last", "2")])
        ids = [small.publish("c", str(number)) for number in range(4)]
    with stream:
        assert ids_of(stream, 4, timeout=20) == ids


def test_last_is_nobodys_id_that_could_be_lost(pg, small):
    """Where the subscriber came is in no life of the table any more when the newest are looked up: it
    had no id, and is told of none. What is published in the new life came after it."""
    fill(pg, 5)
    before = numbered(pg)
    small.wait_metric("pgsse_head_seq", int(before[-1]))
    with pg.connect() as session:
        with nobody_connects(pg):
            stream = small.subscribe("c", parameters=[("last", "2")])
            session.execute("ALTER TABLE gateway.events DISABLE TRIGGER USER")  # no trace of it
            session.execute("DELETE FROM gateway.events WHERE seq > %s", (before[2],))
            session.execute("ALTER TABLE gateway.events ENABLE TRIGGER USER")
            session.execute("SELECT gateway.has_seen(%s)", (before[4],))
            session.commit()
            ids = [small.publish("c", str(number)) for number in range(4)]
            assert int(ids[0]) - int(before[-1]) > 2 ** 39, "another life"
        with stream:
            events = stream.take(4, timeout=20)
    assert [(event.type, event.id) for event in events] == [("message", id) for id in ids]


def stream_has_checkpoint(stream):
    try:
        stream.next_event(timeout=0.05)
    except TimeoutError:
        pass
    return stream.checkpoints


def test_last_counts_the_types_asked_for(pg, small):
    pg.execute("INSERT INTO gateway.events (channel, type, data) SELECT 'c',"
               " CASE WHEN n % 100 = 0 THEN 'rare' ELSE 'usual' END, to_json(n)"
               " FROM generate_series(1, 3000) n")
    small.wait_metric("pgsse_head_seq", int(numbered(pg)[-1]))
    with small.subscribe("c", types=["rare"], parameters=[("last", "3")]) as stream:
        assert [event.data for event in stream.take(3)] == ["2800", "2900", "3000"]


def test_who_comes_back_with_an_id_is_not_sent_the_last_again(small):
    ids = [small.publish("c", str(number)) for number in range(5)]
    with small.subscribe("c", parameters=[("last", "4")], last_event_id=ids[3]) as stream:
        assert stream.next_event().id == ids[4]


@pytest.mark.parametrize("last", ["0", "-1", "x", "10001", "", "1.5", "99999999999999999999"])
def test_a_bad_last_is_400(small, last):
    small.get(f"/events?last={last}").problem(400)


# -- ids stay young --------------------------------------------------------------------------


def test_a_quiet_channel_gets_checkpoints(pg, gateway_factory):
    gateway = gateway_factory(pg, {**SMALL, "stream.heartbeat": "200ms"})
    with gateway.subscribe("quiet") as stream, gateway.subscribe("quiet", http10=True) as old:
        for each in (stream, old):
            wait_until(lambda each=each: stream_has_checkpoint(each), "it begins with an id")
        for _ in range(3):
            busy = gateway.publish("busy", "1")
            for each in (stream, old):
                wait_until(lambda each=each: stream_has_checkpoint(each)[-1] == busy, "its id moves")
        count = len(stream.checkpoints)
        for _ in range(3):
            stream.next_comment()
        assert len(stream.checkpoints) == count, "nothing new: a heartbeat is enough"
        young = stream.last_id
    fill(pg, 2000, "busy")
    id = gateway.publish("quiet", "1")
    with gateway.subscribe("quiet", last_event_id=young) as stream:
        assert stream.next_event().id == id


def test_who_leaves_before_the_first_event_misses_nothing(pg, small):
    with small.subscribe("c") as stream:
        wait_until(lambda: stream_has_checkpoint(stream), "it has an id")
    id = small.publish("c", "1")
    with small.subscribe("c", last_event_id=stream.last_id) as stream:
        assert stream.next_event().id == id


def test_the_goodbye_carries_the_youngest_id(pg, gateway_factory):
    gateway = gateway_factory(pg)
    with gateway.subscribe("quiet") as stream:
        wait_until(lambda: stream_has_checkpoint(stream), "it has an id")
        busy = gateway.publish("busy", "1")
        gateway.wait_metric("pgsse_head_seq", int(busy))
        gateway.terminate()
        assert stream.wait_end()
        assert stream.last_id == busy


# -- never silently --------------------------------------------------------------------------


def first_gap(stream):
    gap = stream.next_event()
    assert gap.type == "gap", gap
    notice = json.loads(gap.data)
    assert gap.id == notice["oldest"], "an id to go on from"
    return notice


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
def test_what_was_deleted_is_told(pg, small, http10):
    fill(pg, 1000)
    ids = numbered(pg)
    pg.execute("DELETE FROM gateway.events WHERE seq <= %s", (ids[499],))
    small.kill()
    for settings in (SMALL, {}):
        gateway = Gateway(small.directory / f"again{len(settings)}",
                          {"http.listen": "127.0.0.1:0", "database.dsn": pg.dsn, **settings})
        try:
            gateway.wait_ready()
            with gateway.subscribe("c", last_event_id=ids[10], http10=http10) as stream:
                assert first_gap(stream) == {"requested": ids[10], "oldest": ids[499],
                                             "reason": "expired"}
                assert ids_of(stream, 500) == ids[500:]
            with gateway.subscribe("c", last_event_id=ids[499], http10=http10) as stream:
                assert ids_of(stream, 500) == ids[500:], "nothing after it is gone"
            assert gateway.metric('pgsse_streams_gaps_total{reason="expired"}') == 1
        finally:
            gateway.stop()


def test_a_hole_in_the_middle_is_told_and_the_rest_is_sent(pg, small):
    fill(pg, 2000)
    ids = numbered(pg)
    small.wait_metric("pgsse_head_seq", int(ids[-1]))  # and the first are out of its ring
    pg.execute("DELETE FROM gateway.events WHERE seq = %s", (ids[1000],))
    with small.subscribe("c", last_event_id=ids[99]) as stream:
        notice = first_gap(stream)
        assert notice["reason"] == "expired" and notice["oldest"] == ids[99]
        assert ids_of(stream, 1899) == ids[100:1000] + ids[1001:]


def test_what_is_deleted_while_it_is_being_sent_is_told(pg, small):
    fill(pg, 4000, bytes=2000)
    ids = numbered(pg)
    with small.subscribe("c", last_event_id=ids[0], receive_buffer=4096) as stream:
        stream.keep_wire = False
        assert stream.next_event().id == ids[1]
        pg.execute("DELETE FROM gateway.events WHERE seq <= %s", (ids[3899],))
        got, last = [ids[1]], ids[1]
        try:
            while last != ids[-1]:
                event = stream.next_event(timeout=60)
                if event.type == "gap":
                    assert event.id == ids[3899]
                    break
                got.append(event.id)
                last = event.id
        except Exception:  # broken off in the middle of an event that is gone
            with small.subscribe("c", last_event_id=last) as again:
                assert first_gap(again)["oldest"] == ids[3899]
                assert ids_of(again, 100) == ids[3900:]
        else:
            assert ids_of(stream, 100) == ids[3900:]
        assert got == ids[1:len(got) + 1], "up to there nothing is missing"


@pytest.mark.parametrize("more", [True, False], ids=["and others follow", "and that was all"])
def test_what_is_deleted_before_a_gateway_has_seen_it_is_told(pg, small, more):
    first = small.publish("c", "1")
    with small.subscribe("c", last_event_id=first) as stream:
        small.wait_metric("pgsse_streams_behind", 0)
        os.kill(small.pid, signal.SIGSTOP)
        try:
            pg.execute("BEGIN; SELECT gateway.publish_batch(ARRAY['c', 'c'], ARRAY['a', 'a'],"
                       " ARRAY['2', '3']); COMMIT")
            gone = numbered(pg, after=first)
            pg.execute("DELETE FROM gateway.events WHERE seq > %s", (first,))
            if more:
                pg.execute("BEGIN; SELECT gateway.publish_batch(ARRAY['c'], ARRAY['a'],"
                           " ARRAY['4']); COMMIT")
        finally:
            os.kill(small.pid, signal.SIGCONT)
        notice = first_gap(stream)
        assert notice == {"requested": first, "oldest": first, "reason": "expired"}
        assert len(gone) == 2
        if more:
            assert stream.next_event().data == "4"
        live = small.publish("c", "5")
        assert stream.next_event().id == live


def test_ids_from_a_lost_stretch_are_told(pg, cluster, gateway_factory):
    """A dump that is restored elsewhere: what came after it is lost, and its ids are not given
    again."""
    gateway = gateway_factory(pg, SMALL)
    kept = [gateway.publish("c", str(number)) for number in range(20)]
    copy = cluster.create_database()
    dump = subprocess.run([find_postgres_tool("pg_dump"), pg.dsn], check=True, timeout=60,
                          capture_output=True, env={**os.environ, "LC_ALL": "C"})
    lost = [gateway.publish("c", str(number)) for number in range(5)]
    subprocess.run([find_postgres_tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", copy.dsn],
                   input=dump.stdout, check=True, timeout=60, capture_output=True)
    try:
        second = gateway_factory(copy, SMALL)
        new = [second.publish("c", str(number)) for number in range(10)]
        for id in lost:
            with second.subscribe("c", last_event_id=id) as stream:
                notice = first_gap(stream)
                assert notice["reason"] == "future" and notice["requested"] == id
                assert ids_of(stream, 30) == kept + new
        with second.subscribe("c", last_event_id=kept[-1]) as stream:
            assert ids_of(stream, 10) == new, "this one is still good"
        assert not set(lost) & set(new)
    finally:
        for running in (gateway, second):
            running.stop()
        copy.drop()


def test_a_dump_restored_twice_gives_no_id_twice(pg, cluster, gateway_factory):
    gateway = gateway_factory(pg, SMALL)
    kept = [gateway.publish("c", str(number)) for number in range(5)]
    dump = subprocess.run([find_postgres_tool("pg_dump"), pg.dsn], check=True, timeout=60,
                          capture_output=True, env={**os.environ, "LC_ALL": "C"}).stdout
    copies, ids = [], []
    for _ in range(2):
        copies.append(cluster.create_database())
        subprocess.run([find_postgres_tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1",
                        copies[-1].dsn], input=dump, check=True, timeout=60, capture_output=True)
        running = gateway_factory(copies[-1], SMALL)
        ids.append([running.publish("c", str(number)) for number in range(8)])
    try:
        assert not set(ids[0]) & set(ids[1])
        with running.subscribe("c", last_event_id=ids[0][4]) as stream:
            assert first_gap(stream)["reason"] == "future"
            assert ids_of(stream, 13) == kept + ids[1]
    finally:
        running.stop()
        for copy in copies:
            copy.drop()


def test_what_is_purged_after_one_gap_is_told_by_another(pg, small):
    """A young event is deleted by hand, which is told; then old ones go below it."""
    fill(pg, 40000, bytes=1000)
    ids = numbered(pg)
    pg.execute("DELETE FROM gateway.events WHERE seq = %s", (ids[39990],))
    with small.subscribe("c", last_event_id=ids[0], receive_buffer=4096) as stream:
        stream.keep_wire = False
        assert first_gap(stream)["reason"] == "expired"
        got = ids_of(stream, 100)
        pg.execute("DELETE FROM gateway.events WHERE seq <= %s", (ids[38999],))
        last = got[-1]
        try:
            for event in iter(lambda: stream.next_event(timeout=60), None):
                if event.type == "gap":
                    break
                assert int(event.id) == int(last) + 1, "nothing is missing without a word"
                last = event.id
        except StreamEnded:  # broken off in the middle of an event that is gone
            with small.subscribe("c", last_event_id=last) as again:
                assert first_gap(again)["oldest"] == ids[38999]


def test_one_question_that_fails_is_nobody_elses_outage(pg, small):
    fill(pg, 3000)
    ids = numbered(pg)
    small.wait_metric("pgsse_head_seq", int(ids[-1]))
    pg.execute(f"REVOKE EXECUTE ON FUNCTION gateway.newest_after(text, text, integer, integer, text)"
               f" FROM {OWNER}")
    with small.subscribe("c", parameters=[("last", "1")]) as one, \
            small.subscribe("c", parameters=[("last", "2")]) as two:
        small.wait_log("newest_after")
        for number in range(30):
            assert small.get(f"/events/{ids[number]}").status == 200
        with small.subscribe("c", last_event_id=ids[0]) as stream:
            assert ids_of(stream, 2999) == ids[1:]
        pg.execute(f"GRANT EXECUTE ON FUNCTION gateway.newest_after(text, text, integer, integer, text)"
                   f" TO {OWNER}")
        assert one.next_event().id == ids[-1]
        assert ids_of(two, 2) == ids[-2:]


def test_an_id_from_another_gateway_a_moment_ago_is_no_gap(pg, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    for number in range(100):
        id = gateways[number % 2].publish("c", str(number))
        with gateways[(number + 1) % 2].subscribe("c", last_event_id=id) as stream:
            following = gateways[number % 2].publish("c", "0")
            assert stream.next_event().id == following


# -- many at once, and a database that is away -----------------------------------------------


def test_many_who_come_back_at_once_share_their_queries(pg, gateway_factory):
    gateway = gateway_factory(pg, {**SMALL, "limits.connections": "2000"})
    fill(pg, 5000)
    ids = numbered(pg)
    many = 400 if SLOWNESS == 1 else 100
    streams = []
    try:
        for number in range(many):
            place = number * 37 % 5000
            streams.append((place, gateway.subscribe(
                "c", last_event_id=ids[place], started=False)))
        for place, stream in streams:
            assert ids_of(stream, 4999 - place) == ids[place + 1:]
    finally:
        for _, stream in streams:
            stream.close()
    pages = gateway.metric("pgsse_replay_pages_total")
    # One at a time they would have cost ten pages each, and five on the average.
    assert pages < many * 2, f"{pages:.0f} pages for {many} streams"


def test_a_restart_is_survived_without_a_query_for_each(pg, gateway_factory):
    first = gateway_factory(pg)
    fill(pg, 5000)
    ids = numbered(pg)
    first.kill()
    gateway = gateway_factory(pg)
    for place in range(0, 5000, 250):
        with gateway.subscribe("c", last_event_id=ids[place]) as stream:
            assert ids_of(stream, 4999 - place) == ids[place + 1:]
    assert gateway.metric("pgsse_replay_pages_total") == 0, "the ring began with what there was"


def test_who_comes_back_while_the_database_is_away_waits_for_it(postgres, gateway_factory):
    database = postgres.create_database(template="gateway_template")
    gateway = gateway_factory(database, {**SMALL, "stream.heartbeat": "200ms"})
    fill(database, 3000)
    ids = numbered(database)
    gateway.wait_metric("pgsse_head_seq", int(ids[-1]))
    database.close()
    postgres.stop()
    streams = [gateway.subscribe("c", last_event_id=ids[5]),
               gateway.subscribe("c", last_event_id="earliest"),
               gateway.subscribe("c", last_event_id="nonsense", http10=True),
               gateway.subscribe("c", parameters=[("last", "9")])]
    try:
        for stream in streams:
            stream.next_comment()
            stream.next_comment()
        postgres.start()
        assert ids_of(streams[0], 2994) == ids[6:]
        assert ids_of(streams[1], 3000) == ids
        assert first_gap(streams[2])["reason"] == "unknown"
        assert ids_of(streams[2], 3000) == ids
        assert ids_of(streams[3], 9) == ids[-9:]
    finally:
        for stream in streams:
            stream.close()


def test_leaving_in_the_middle_of_a_replay_costs_nothing(pg, small):
    fill(pg, 20000)
    ids = numbered(pg)
    for number in range(60):
        with small.subscribe("c", last_event_id=ids[number], started=False) as stream:
            if number % 3 == 0:
                stream.next_event()
            elif number % 3 == 1:
                stream.wait_started()
    small.wait_metric("pgsse_streams", 0)
    assert small.metric("pgsse_streams_replaying") == 0
    with small.subscribe("c", last_event_id=ids[0], receive_buffer=4096):
        small.wait_metric("pgsse_streams_replaying", 1)
        small.terminate()
        small.wait_exit(scaled(10))

