"""Relayed channels: what an application NOTIFYs comes to those who subscribe to the channel, in
its place among the events; and what is missing is told."""

import json
import re
import threading
from urllib.parse import quote

import pytest
from psycopg import sql

from conftest import TEMPLATE, migrate
from harness.postgres import Database
from harness.sse import events_target
from harness.waiting import scaled

RELAY = {"channels.relay": "chat, app_*"}
LISTENED = "pgsse_relay_channels"
GAPS = 'pgsse_streams_gaps_total{reason="relay"}'

# What PostgreSQL takes in one notification.
PAYLOAD_MAX = 7999
NAME_MAX = 63


@pytest.fixture
def gateway(pg, gateway_factory):
    return gateway_factory(pg, RELAY)


def listen(gateway, *channels, **options):
    """A stream that has begun to hear what is notified."""
    stream = gateway.subscribe(*channels, **options)
    try:
        return stream.wait_checkpoint()
    except BaseException:
        stream.close()
        raise


def notify(pg, channel, payload=""):
    pg.execute("SELECT pg_notify(%s, %s)", (channel, payload))


def gap_of(event):
    assert event.type == "gap", event
    return json.loads(event.data)


def cut_listener(pg):
    cut = pg.cluster.admin(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
        " AND application_name = 'pg-sse-gateway/listener'", pg.name)[0][0]
    assert cut > 0


# -- what comes ---------------------------------------------------------------------------


def test_a_notification_has_the_id_of_the_event_before_it(gateway, pg):
    id = gateway.publish("other", "1")
    gateway.wait_metric("pgsse_head_seq", int(id))
    with listen(gateway, "chat") as stream:
        pg.execute("NOTIFY chat, 'hello'")
        assert stream.next_event().raw == f"id: {id}\ndata: hello\n\n".encode()
        later = gateway.publish("other", "2")
        gateway.wait_metric("pgsse_head_seq", int(later))
        pg.execute("NOTIFY chat, 'again'")
        assert stream.next_event().raw == f"id: {later}\ndata: again\n\n".encode()


def test_a_payload_comes_as_it_is(gateway, pg):
    payloads = ["", "not JSON", '{"n": 1}', "two\nlines", "\r\nCR\rand LF\n", "ünï ☃ 🂡",
                " blanks ", "id: 7", "x" * PAYLOAD_MAX, "\n" * PAYLOAD_MAX, "end"]
    with listen(gateway, "chat") as stream, listen(gateway, "chat", http10=True) as old:
        for payload in payloads:
            notify(pg, "chat", payload)
        lines = [re.sub("\r\n|\r", "\n", payload) for payload in payloads]
        assert [event.data for event in stream.take(len(payloads))] == lines
        assert [event.data for event in old.take(len(payloads))] == lines


def test_events_and_notifications_of_a_channel_come_together(gateway, pg):
    with listen(gateway, "chat") as stream:
        notify(pg, "chat", "before")
        gateway.publish("chat", '"posted"', "created")
        pg.publish("chat", '"inserted"')
        notify(pg, "chat", "after")
        seen = [(event.type, event.data) for event in stream.take(4)]
    assert seen == [("message", "before"), ("created", '"posted"'),
                    ("message", '"inserted"'), ("message", "after")]


def test_what_is_not_committed_is_not_notified(gateway, pg):
    with listen(gateway, "chat") as stream, pg.connect() as writer:
        writer.execute("NOTIFY chat, 'undone'")
        writer.rollback()
        writer.execute("NOTIFY chat, 'done'")
        notify(pg, "chat", "first")
        writer.commit()
        assert [event.data for event in stream.take(2)] == ["first", "done"]


def test_filters_hold_for_notifications_too(gateway, pg):
    with listen(gateway, "chat", "app_1", "app_2", types=["message"]) as messages, \
            listen(gateway, "chat", "app_2", types=["created"]) as created, \
            listen(gateway, "app_1") as one:
        for number in range(3):
            notify(pg, "app_1", f"one {number}")
            notify(pg, "app_2", f"two {number}")
            gateway.publish("app_2", f'"created {number}"', "created")
            notify(pg, "chat", f"chat {number}")
            notify(pg, "app_3", "nobody's")
        assert [event.data for event in messages.take(9)] == [
            f"{name} {number}" for number in range(3) for name in ("one", "two", "chat")]
        assert [event.data for event in created.take(3)] == [
            f'"created {number}"' for number in range(3)]
        assert [event.data for event in one.take(3)] == [f"one {number}" for number in range(3)]


def test_a_prefix_takes_events_and_no_notifications(gateway, pg):
    with listen(gateway, "app_*") as prefix, listen(gateway, "app_1", "app_*") as both:
        notify(pg, "app_1", "notified")
        gateway.publish("app_1", '"posted"')
        assert prefix.next_event().data == '"posted"'
        assert [event.data for event in both.take(2)] == ["notified", '"posted"']


def test_who_wants_it_twice_gets_it_once(gateway, pg):
    target = events_target(["chat", "chat"], parameters=[("relay", "chat")])
    with listen(gateway, target=target) as stream:
        notify(pg, "chat", "once")
        notify(pg, "chat", "end")
        assert [event.data for event in stream.take(2)] == ["once", "end"]
        gateway.wait_metric(LISTENED, 1)


# -- names --------------------------------------------------------------------------------


NAMES = ['with "quotes"', "'; DROP SCHEMA gateway; --", "UPPER", "upper", "with blank",
         "ü☃", "a", "x" * NAME_MAX, "ü" * 31 + "x", "gateway", "comma,comma", "back\\slash", "$1"]


def test_names_are_quoted_and_never_cut(pg, gateway_factory):
    gateway = gateway_factory(pg, {"channels.relay": "*"})
    long = "x" * (NAME_MAX + 1)
    with listen(gateway, *NAMES, long) as stream:
        notify(pg, "x" * NAME_MAX, "not for the longer one")
        for name in NAMES:
            notify(pg, name, name)
            pg.execute(sql.SQL("NOTIFY {}, 'as a statement'").format(sql.Identifier(name)))
        # Stored events of the longer one come as ever.
        gateway.publish(long, '"stored"')
        assert stream.next_event().data == "not for the longer one"
        for name in NAMES:
            assert [event.data for event in stream.take(2)] == [name, "as a statement"]
        assert stream.next_event().data == '"stored"'
    # Alone, it is not a subscriber to what it would be cut to.
    with gateway.subscribe(long) as stream, listen(gateway, "end") as end:
        notify(pg, "x" * NAME_MAX, "for nobody")
        notify(pg, "end", "end")
        assert end.next_event().data == "end"
        gateway.publish(long, '"stored"')
        assert stream.next_event().data == '"stored"'


def test_the_gateways_own_channels_are_not_relayed(pg, gateway_factory):
    gateway = gateway_factory(pg, {"channels.relay": "*"})
    with listen(gateway, "gateway_events", "gateway_wake", "gateway_x", "chat") as stream:
        pg.publish("other", "1")
        gateway.publish("other", "2")
        notify(pg, "gateway_x", "none")
        notify(pg, "chat", "end")
        assert stream.next_event().data == "end"
    for name in ("gateway_events", "gateway_wake", "gateway_"):
        assert gateway.get(f"/events?relay={name}").status == 403


@pytest.mark.parametrize("name, status, words", [
    ("other", 403, "[channels] relay"),
    ("chatx", 403, "[channels] relay"),
    ("app", 403, "[channels] relay"),
    ("", 400, "empty"),
    ("app_*", 400, "prefix"),
    ("app_" + "x" * (NAME_MAX - 3), 400, "63 bytes"),
    ("app_\n", 400, "control character"),
    ("app_\udcff", 400, "UTF-8"),
])
def test_a_channel_that_may_not_be_relayed_is_refused(gateway, name, status, words):
    answer = gateway.get("/events?relay=" + quote(name.encode(errors="surrogateescape")))
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert words in answer.json()["detail"]


def test_nothing_is_relayed_unless_it_is_said(pg, gateway_factory):
    gateway = gateway_factory(pg)
    with gateway.subscribe("chat") as stream:
        notify(pg, "chat", "no")
        gateway.publish("chat", '"stored"')
        assert stream.next_event().data == '"stored"'
    assert gateway.get("/events?relay=chat").status == 403
    assert gateway.metric(LISTENED) == 0


@pytest.mark.parametrize("patterns, words", [
    ("a,,b", "empty"), ("chat,", "empty"), ("x" * 64, "63"), ("gateway_events", "own"),
    ("gateway_*", "own")])
def test_bad_patterns_are_told(command, patterns, words):
    done = command("check-config", settings={"channels.relay": patterns})
    assert done.returncode == 2
    assert "[channels] relay" in done.stderr and words in done.stderr


def test_beyond_the_limit_a_stream_is_asked_to_come_back(pg, gateway_factory):
    gateway = gateway_factory(pg, {**RELAY, "channels.relay_max": "2"})
    with listen(gateway, "app_1", "app_2", "app_2") as stream:
        refused = gateway.get("/events?channel=app_2&channel=app_3")
        assert refused.status == 200 and refused.body.startswith(b"retry: ")
        with listen(gateway, "app_1") as other, gateway.subscribe("app_3x*", "orders"):
            notify(pg, "app_1", "1")
            assert stream.next_event().data == other.next_event().data == "1"
    # Whoever leaves makes room at once, although it is still listened to.
    gateway.wait_metric("pgsse_streams", 0)
    with listen(gateway, "app_3", "app_4") as stream:
        notify(pg, "app_4", "4")
        assert stream.next_event().data == "4"


# -- order --------------------------------------------------------------------------------


class Writers:
    """Others that INSERT and NOTIFY, and POST to these gateways, meanwhile, as fast as they
    can."""

    def __init__(self, pg, gateways=()):
        self.pg = pg
        self.stop = threading.Event()
        self.failures = []
        kinds = [self.inserts, self.notifies] + [
            lambda gateway=gateway: self.posts(gateway) for gateway in gateways]
        self.threads = [threading.Thread(target=self.guarded, args=(kind,)) for kind in kinds]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(scaled(60))
            assert not thread.is_alive(), "a writer hangs"
        assert not self.failures, self.failures

    def guarded(self, kind):
        try:
            kind()
        except Exception as failure:
            self.failures.append(repr(failure))

    def posts(self, gateway):
        while not self.stop.is_set():
            gateway.publish("other", "1")

    def inserts(self):
        with self.pg.connect(autocommit=True) as connection:
            while not self.stop.is_set():
                connection.execute(
                    "INSERT INTO gateway.events (channel, data) VALUES ('other', '2')")

    def notifies(self):
        with self.pg.connect(autocommit=True) as connection:
            while not self.stop.is_set():
                connection.execute("NOTIFY app_other, '3'")


ROUNDS = 150


def test_among_posts_the_order_is_that_of_the_commits(pg, gateway_factory):
    gateways = [gateway_factory(pg, RELAY), gateway_factory(pg, RELAY)]
    streams = [listen(gateway, "chat", **options) for gateway in gateways
               for options in ({}, {"http10": True})]
    streams.append(listen(gateways[0], "chat", "app_other", "none"))
    wanted = []
    with Writers(pg, gateways):
        for number in range(ROUNDS):
            gateways[number % 2].publish("chat", f'"posted {number}"')
            notify(pg, "chat", f"notified {number}")
            wanted += [f'"posted {number}"', f"notified {number}"]
            if number % 10 == 0:
                notify(pg, "chat", f"and again {number}")
                wanted.append(f"and again {number}")
    gateways[0].publish("chat", '"end"')
    for stream in streams:
        with stream:
            seen = [event.data for event in stream.until(lambda event: event.data == '"end"')
                    if event.data != "3"]
        assert seen == wanted + ['"end"']


def test_what_was_inserted_before_comes_before(pg, gateway_factory):
    gateways = [gateway_factory(pg, RELAY), gateway_factory(pg, RELAY)]
    streams = [listen(gateway, "chat") for gateway in gateways]
    with Writers(pg), pg.connect(autocommit=True) as writer:
        for number in range(ROUNDS):
            if number % 3 == 0:  # in one transaction
                with writer.transaction():
                    writer.execute("SELECT pg_notify('chat', %s)", (f"notified {number}",))
                    writer.execute("SELECT gateway.publish('chat', to_json(%s::int))", (number,))
            else:
                writer.execute("SELECT gateway.publish('chat', to_json(%s::int))", (number,))
                writer.execute("SELECT pg_notify('chat', %s)", (f"notified {number}",))
    gateways[0].publish("chat", '"end"')
    for stream in streams:
        with stream:
            seen = [event.data for event in stream.until(lambda event: event.data == '"end"')]
        place = {data: at for at, data in enumerate(seen)}
        assert len(seen) == 2 * ROUNDS + 1
        for number in range(ROUNDS):
            if number % 3 != 0:
                assert place[str(number)] < place[f"notified {number}"]
        assert [data for data in seen if data.isdigit()] == [str(n) for n in range(ROUNDS)]
        assert [data for data in seen if data.startswith("n")] == [
            f"notified {number}" for number in range(ROUNDS)]


def test_ids_rise_and_a_resume_is_exact(gateway, pg):
    """Cut off at any place and back with its last id: each event once, no notification twice."""
    with Writers(pg, [gateway]):
        events, notified, last, ids = [], [], None, []
        number = 0
        for cut in range(12):
            with gateway.subscribe("chat", last_event_id=last) as stream:
                stream.wait_checkpoint()
                for _ in range(4):
                    gateway.publish("chat", f'"{number}"')
                    notify(pg, "chat", f"n{number}")
                    number += 1
                for event in stream.take(1 + cut % 8):
                    (notified if event.data.startswith("n") else events).append(event.data)
                    ids.append(int(event.id))
                    last = event.id
        with gateway.subscribe("chat", last_event_id=last) as stream:
            gateway.publish("chat", '"end"')
            for event in stream.until(lambda event: event.data == '"end"'):
                (notified if event.data.startswith("n") else events).append(event.data)
                ids.append(int(event.id))
    assert events == [f'"{n}"' for n in range(number)] + ['"end"']
    assert len(set(notified)) == len(notified)
    assert ids == sorted(ids)


# -- what is missing is told --------------------------------------------------------------


def test_a_lost_connection_of_the_listener_is_told_to_each_channel(gateway, pg):
    id = gateway.publish("chat", "1")
    gateway.wait_metric("pgsse_head_seq", int(id))
    with listen(gateway, "chat", "app_1") as both, listen(gateway, "chat", types=["x"]) as typed, \
            listen(gateway, "chat", http10=True) as old, gateway.subscribe("orders") as other, \
            gateway.subscribe("app_*") as prefix:
        cut_listener(pg)
        gaps = [gap_of(event) for event in both.take(2)]
        assert sorted(gap.pop("channel") for gap in gaps) == ["app_1", "chat"]
        for gap in [*gaps]:
            assert gap == {"requested": id, "oldest": id, "reason": "relay"}
        for stream in (typed, old):
            assert gap_of(stream.next_event())["channel"] == "chat"
        gateway.wait_metric(GAPS, 4)
        # All are listened to again, and nobody else has noticed.
        notify(pg, "app_1", "again")
        notify(pg, "chat", "there")
        assert [event.data for event in both.take(2)] == ["again", "there"]
        assert old.next_event().data == "there"
        gateway.publish("orders", "2")
        gateway.publish("app_1", "3")
        assert other.next_event().data == "2"
        assert prefix.next_event().data == "3"


def test_a_restart_of_the_database_is_told_and_no_event_is_missed(postgres, gateway_factory):
    pg = postgres.create_database(template=TEMPLATE)
    gateway = gateway_factory(pg, RELAY)
    with listen(gateway, "chat") as stream, listen(gateway, "app_1") as other:
        gateway.publish("chat", '"before"')
        notify(pg, "chat", "notified before")
        assert [event.data for event in stream.take(2)] == ['"before"', "notified before"]
        pg.close()
        postgres.crash()
        postgres.start()
        gateway.wait_ready()
        gateway.publish("chat", '"after"')
        rest = stream.take(2)
        assert sorted(event.type for event in rest) == ["gap", "message"]
        assert gap_of(other.next_event())["channel"] == "app_1"
        notify(pg, "chat", "notified after")
        assert stream.next_event().data == "notified after"
    pg.close()


def test_who_comes_while_the_database_is_away_is_told_too(postgres, gateway_factory):
    pg = postgres.create_database(template=TEMPLATE)
    gateway = gateway_factory(pg, RELAY)
    with listen(gateway, "chat") as early:
        gateway.publish("chat", "1")
        assert early.next_event().data == "1"  # or who comes next would be sent it
    pg.close()
    postgres.stop()
    with listen(gateway, "chat") as stream:  # it does not wait for the database
        postgres.start()
        assert gap_of(stream.next_event())["channel"] == "chat"
        notify(pg, "chat", "back")
        assert stream.next_event().data == "back"
    pg.close()


def test_a_slow_reader_is_overtaken_and_told(pg, gateway_factory):
    gateway = gateway_factory(pg, {**RELAY, "ring.bytes": "64KiB"})
    wanted = [json.dumps("x" * 400000 + str(number)) for number in range(60)]
    with listen(gateway, "chat", receive_buffer=4096) as slow, listen(gateway, "chat") as quick, \
            listen(gateway, "chat", http10=True, receive_buffer=4096) as old:
        for number, data in enumerate(wanted):
            notify(pg, "chat", f"notified {number}")
            gateway.publish("chat", data)
            quick.until(lambda event: event.data == data)
        gateway.wait_metric("pgsse_streams_behind", 2)
        for behind, stream in ((1, slow), (0, old)):
            seen = stream.until(lambda event: event.data == wanted[-1])
            if all(event.type != "gap" for event in seen):
                seen.append(stream.next_event())
            assert [event.data for event in seen if event.data.startswith('"x')] == wanted
            gaps = [gap_of(event) for event in seen if event.type == "gap"]
            assert gaps and all(gap["reason"] == "relay" and gap["channel"] == "chat"
                                for gap in gaps)
            notified = [int(event.data.split()[1]) for event in seen
                        if event.data.startswith("notified")]
            # Each once, in order; not all, or there would have been no need to tell.
            assert notified == sorted(set(notified)) and 0 < len(notified) < len(wanted)
            gateway.wait_metric("pgsse_streams_behind", behind)
            notify(pg, "chat", "it goes on")
            stream.until(lambda event: event.data == "it goes on")


def test_a_slow_reader_that_is_not_overtaken_misses_nothing(gateway, pg):
    with listen(gateway, "chat", receive_buffer=4096) as slow, \
            listen(gateway, "chat", http10=True, receive_buffer=4096) as old:
        for number in range(10):
            pg.execute("SELECT pg_notify('chat', n || repeat('y', 7900))"
                       " FROM generate_series(%s::int, %s) n", (number * 200, number * 200 + 199))
            gateway.publish("chat", json.dumps("x" * 50000))
        gateway.wait_metric("pgsse_streams_behind", 2)
        notify(pg, "chat", "end")
        for stream in (slow, old):
            seen = [event.data for event in stream.until(lambda event: event.data == "end")]
            assert [data for data in seen[:-1] if not data.startswith('"x')] == [
                str(number) + "y" * 7900 for number in range(2000)]
            assert len(seen) == 2000 + 10 + 1
    assert gateway.metric(GAPS) == 0


# -- many, and come and go ----------------------------------------------------------------


CHANNELS = 1000
A_STREAM = 50


def test_a_thousand_channels_are_relayed(gateway, pg):
    names = [f"app_{number}" for number in range(CHANNELS)]
    streams = [gateway.subscribe(*names[at:at + A_STREAM])
               for at in range(0, CHANNELS, A_STREAM)]
    try:
        for stream in streams:
            stream.wait_checkpoint()
        assert gateway.metric(LISTENED) == CHANNELS
        for round in ("first", "second"):
            pg.execute("SELECT pg_notify('app_' || n, %s || ' ' || n)"
                       " FROM generate_series(0, %s) n", (round, CHANNELS - 1))
            for index, stream in enumerate(streams):
                assert [event.data for event in stream.take(A_STREAM)] == [
                    f"{round} {index * A_STREAM + n}" for n in range(A_STREAM)]
            if round == "first":
                cut_listener(pg)
                for stream in streams:
                    assert {gap_of(event)["reason"] for event in stream.take(A_STREAM)} == {
                        "relay"}
    finally:
        for stream in streams:
            stream.close()


def test_channels_come_and_go_while_it_runs(gateway, pg):
    stop = threading.Event()

    def notifies():
        with pg.connect(autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("NOTIFY app_0, 'noise'")

    noise = threading.Thread(target=notifies)
    noise.start()
    try:
        with listen(gateway, "chat") as stays:
            for number in range(60):
                with listen(gateway, f"app_{number % 20}") as stream:
                    notify(pg, f"app_{number % 20}", f"mine {number}")
                    stream.until(lambda event: event.data == f"mine {number}")
                    notify(pg, "chat", str(number))
            assert [event.data for event in stays.take(60)] == [str(n) for n in range(60)]
            assert gateway.metric(LISTENED) == 21
            # Nobody wants the others any more.
            gateway.wait_metric(LISTENED, 1, timeout=60)
            with listen(gateway, "app_7") as again:
                notify(pg, "app_7", "back")
                assert again.next_event().data == "back"
    finally:
        stop.set()
        noise.join(scaled(30))


# -- databases in other encodings ----------------------------------------------------------


@pytest.fixture
def database_in(cluster, directory):
    """A migrated database in that encoding."""
    made = []

    def make(encoding):
        name = f"in_{encoding.lower()}"
        cluster.admin(f'CREATE DATABASE "{name}" TEMPLATE template0 OWNER gateway'
                      f" ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
        made.append(Database(cluster, name))
        migrate(directory / "migrate", made[-1])
        return made[-1]

    yield make
    for database in made:
        database.drop()


def test_bytes_that_are_not_utf8_are_replaced_and_stop_nobody(database_in, gateway_factory):
    pg = database_in("SQL_ASCII")
    gateway = gateway_factory(pg, RELAY)
    with listen(gateway, "chat", "app_ü") as stream:
        pg.execute("SELECT pg_notify('chat', 'before'), pg_notify('chat', E'\\xc3\\xbc\\xff\\xe2!'),"
                   " pg_notify('chat', 'behind')")
        assert [event.data for event in stream.take(3)] == ["before", "ü\ufffd\ufffd!", "behind"]
        pg.execute("SELECT pg_notify(E'app_\\xc3\\xbc', 'named')")
        assert stream.next_event().data == "named"
    assert gateway.metric(GAPS) == 0


def test_a_name_that_the_database_cannot_have_harms_no_other(database_in, gateway_factory):
    pg = database_in("LATIN1")
    gateway = gateway_factory(pg, RELAY)
    with listen(gateway, "app_☃", "chat", "app_ü") as stream:
        gateway.wait_log("cannot be listened to")
        pg.execute("SELECT pg_notify('chat', 'ü'), pg_notify('app_ü', 'named')")
        assert [event.data for event in stream.take(2)] == ["ü", "named"]
        gateway.wait_metric(LISTENED, 2)
