"""Relayed notifications among everything else: what began after another had been committed comes
after it, for every subscriber of every gateway, whoever wrote what."""

import contextlib
import random
import threading
import time

import psycopg
import pytest

from conftest import TEMPLATE
from harness.waiting import scaled, wait_until

RELAY = {"channels.relay": "chat"}


def listen(gateway):
    stream = gateway.subscribe("chat")
    try:
        return stream.wait_checkpoint()
    except BaseException:
        stream.close()
        raise


class History:
    """Which transactions there were, with what is to come of each, and between which moments each
    began and was committed."""

    def __init__(self):
        self.done = []
        self.lock = threading.Lock()

    def take(self, labels, transaction):
        begun = time.monotonic_ns()
        transaction()
        with self.lock:
            self.done.append((begun, time.monotonic_ns(), labels))

    def labels(self):
        return [label for _, _, labels in self.done for label in labels]

    def out_of_order(self, seen):
        """Pairs of which the second began after the first was committed, and came before."""
        place = {label: at for at, label in enumerate(seen)}
        ended = sorted((end, max(map(place.get, labels)), labels)
                       for _, end, labels in self.done)
        found, last, at = [], (-1, None), 0
        for begun, _, labels in sorted(self.done):
            while ended[at][0] < begun:
                last = max(last, ended[at][1:])
                at += 1
            if min(map(place.get, labels)) < last[0]:
                found.append((last[1], labels))
        return found


class Session:
    """One connection whose transactions follow each other without a pause."""

    def __init__(self, pg, history, name, gateways):
        self.history = history
        self.name = name
        self.gateways = gateways
        self.chance = random.Random(name)
        self.connection = pg.connect(autocommit=True)
        self.count = 0

    def label(self):
        self.count += 1
        return f"{self.name}.{self.count}"

    def insert(self, label):
        self.connection.execute("INSERT INTO gateway.events (channel, data)"
                                " VALUES ('chat', to_json(%s::text))", (label,))

    def notify(self, label):
        self.connection.execute("SELECT pg_notify('chat', %s)", (label,))

    def one_row(self, row):
        self.insert(row)

    def one_notification(self, row):
        self.notify(row)

    def many_rows(self, first, second, third):
        self.connection.execute("INSERT INTO gateway.events (channel, data)"
                                " SELECT 'chat', to_json(n) FROM unnest(%s::text[]) n",
                                ([first, second, third],))

    def both(self, row, notification):
        with self.connection.transaction():
            self.notify(notification)
            self.insert(row)

    def undone_in_part(self, first, second):
        with self.connection.transaction():
            self.insert(first)
            self.insert(second)
            self.connection.execute("SAVEPOINT s")
            self.insert("undone")
            self.notify("undone")
            self.connection.execute("ROLLBACK TO SAVEPOINT s")

    def at_once(self, first, second):
        """The trigger does not wait for the commit, and rows follow it."""
        with self.connection.transaction():
            self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
            self.insert(first)
            self.insert(second)

    def post(self, row):
        self.chance.choice(self.gateways).publish("chat", f'"{row}"')

    KINDS = [one_row] * 4 + [one_notification] * 6 + [many_rows, both, undone_in_part, at_once,
                                                      post]

    def go(self):
        kind = self.chance.choice(self.KINDS)
        labels = [self.label() for _ in range(kind.__code__.co_argcount - 1)]
        self.history.take(labels, lambda: kind(self, *labels))


def run_sessions(sessions, rounds):
    failures = []

    def run(session):
        try:
            for _ in range(rounds):
                session.go()
        except Exception as failure:  # shown below
            failures.append(repr(failure))

    threads = [threading.Thread(target=run, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled(120))
        assert not thread.is_alive(), "a session hangs"
    for session in sessions:
        session.connection.close()
    assert not failures, failures


def check(streams, history, gateways):
    gateways[0].publish("chat", '"end"')
    for stream in streams:
        with stream:
            seen = [event.data.strip('"')
                    for event in stream.until(lambda event: event.data == '"end"')]
        assert sorted(seen[:-1]) == sorted(history.labels())
        wrong = history.out_of_order(seen)
        assert not wrong, (len(wrong), wrong[:5])


@pytest.mark.parametrize("sessions, rounds", [(1, 400), (2, 250), (6, 120)])
def test_what_began_after_a_commit_comes_after_it(pg, gateway_factory, sessions, rounds):
    """From one session, where all follows from all, and from several at once, by which the
    gateway on duty is rung for so often that it would get up."""
    gateways = [gateway_factory(pg, RELAY), gateway_factory(pg, RELAY)]
    streams = [listen(gateway) for gateway in gateways]
    history = History()
    run_sessions([Session(pg, history, f"s{number}", gateways) for number in range(sessions)],
                 rounds)
    check(streams, history, gateways)


@contextlib.contextmanager
def inserts(pg, sessions):
    """Meanwhile so many sessions insert as fast as they can."""
    stop = threading.Event()

    def insert():
        with pg.connect(autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("INSERT INTO gateway.events (channel, data)"
                                   " VALUES ('other', '1')")

    threads = [threading.Thread(target=insert) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(scaled(30))


def bell_is_taken(pg):
    return pg.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 3"
                    " AND mode = 'ExclusiveLock' AND granted AND database ="
                    " (SELECT oid FROM pg_database WHERE datname = current_database())") == 1


@pytest.mark.parametrize("order", [None, "near"])
def test_whoever_relays_is_rung_for_whoever_has_the_duty(pg, gateway_factory, order):
    """The gateway on duty relays nothing, or not in this order; and it is awake, because a lot
    is inserted, when the other one begins to relay."""
    on_duty = gateway_factory(pg, {**RELAY, "channels.relay_order": order} if order else {})
    with inserts(pg, 3):
        wait_until(lambda: not bell_is_taken(pg), "awake, because a lot is inserted")
        gateway = gateway_factory(pg, RELAY)
        history = History()
        streams = [listen(gateway)]
        run_sessions([Session(pg, history, f"s{number}", [on_duty, gateway])
                      for number in range(3)], 100)
        check(streams, history, [gateway])


def test_when_the_last_has_left_nobody_need_ring_again(pg, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg, RELAY)]
    with inserts(pg, 1):
        wait_until(lambda: not bell_is_taken(pg), "awake, because a lot is inserted")
        with listen(gateways[1]):
            assert bell_is_taken(pg)
        wait_until(lambda: not bell_is_taken(pg), "awake again", timeout=30)


@pytest.mark.parametrize("order", ["commit", "near"])
def test_a_notification_comes_behind_all_rows_of_a_large_transaction(pg, gateway_factory, order):
    """So many that they get their numbers in several batches, and from either gateway."""
    settings = {**RELAY, "channels.relay_order": order}
    gateways = [gateway_factory(pg, settings), gateway_factory(pg, settings)]
    streams = [listen(gateway) for gateway in gateways]
    for number in range(3):
        pg.execute("INSERT INTO gateway.events (channel, data) SELECT"
                   " CASE WHEN n %% 1000 = 0 THEN 'chat' ELSE 'other' END,"
                   " to_json(%s * 12000 + n) FROM generate_series(1, 12000) n", (number,))
        pg.execute("SELECT pg_notify('chat', %s)", (f"behind {number}",))
    wanted = [text for number in range(3)
              for text in [str(number * 12000 + n) for n in range(1000, 12001, 1000)]
              + [f"behind {number}"]]
    for stream in streams:
        with stream:
            seen = [event.data for event in stream.take(len(wanted))]
            assert sorted(seen) == sorted(wanted)
            if order == "commit":
                assert seen == wanted
            for number in range(3):
                assert seen.index(f"behind {number}") > seen.index(str((number + 1) * 12000))


def test_rows_that_never_come_hold_up_nothing_for_long(gateway_factory, pg):
    """They are rung for, and locked, or deleted by somebody else, before they have a number."""
    gateway = gateway_factory(pg, RELAY)
    with listen(gateway) as stream, pg.connect() as writer, pg.connect() as other:
        other.execute("SELECT pg_advisory_xact_lock(1885827955, 1)")  # nothing is numbered
        for data in ("1", "2", "3"):
            writer.execute("INSERT INTO gateway.events (channel, data) VALUES ('chat', %s)",
                           (data,))
            writer.commit()
        writer.execute("DELETE FROM gateway.events WHERE data::text = '2'")
        writer.commit()
        writer.execute("SELECT FROM gateway.events WHERE data::text = '3' FOR UPDATE")
        pg.execute("NOTIFY chat, 'there'")
        other.commit()
        assert [event.data for event in stream.take(2)] == ["1", "there"]


def test_a_ring_that_rings_for_nothing_holds_up_nothing(gateway_factory, pg):
    gateway = gateway_factory(pg, RELAY)
    with listen(gateway) as stream:
        for payload in ("999999999999", "1", "x", "relay", "-1", "18446744073709551616", ""):
            pg.execute("SELECT pg_notify('gateway_wake', %s)", (payload,))
            pg.execute("SELECT pg_notify('chat', %s)", (f"after {payload}",))
            assert stream.next_event().data == f"after {payload}"


def test_what_nobody_rings_for_comes_before_what_is_notified_after_it(gateway_factory, pg):
    gateway = gateway_factory(pg, RELAY)
    with listen(gateway) as stream, pg.connect() as writer:
        for number in range(20):
            writer.execute("SET LOCAL gateway.quiet = on")
            writer.execute("INSERT INTO gateway.events (channel, data)"
                           " VALUES ('chat', to_json(%s::int))", (number,))
            writer.commit()
            pg.execute("SELECT pg_notify('chat', %s)", (f"notified {number}",))
        seen = [event.data for event in stream.take(40)]
    place = {data: at for at, data in enumerate(seen)}
    assert all(place[str(n)] < place[f"notified {n}"] for n in range(20)), seen


def test_an_application_without_rights_to_read_rings_too(cluster, gateway_factory):
    database = cluster.create_database(template=TEMPLATE)
    cluster.admin("DO $$ BEGIN CREATE ROLE application LOGIN; EXCEPTION"
                  " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    database.execute("GRANT USAGE ON SCHEMA gateway TO application")
    database.execute("GRANT INSERT (channel, type, data) ON gateway.events TO application")
    gateway = gateway_factory(database, RELAY)
    with listen(gateway) as stream, psycopg.connect(
            cluster.dsn(database.name, "application"), autocommit=True) as application:
        # Nothing that the caller brings along is used with the rights of the schema's owner.
        application.execute("""
            CREATE FUNCTION pg_temp.never(xid8, xid8) RETURNS boolean LANGUAGE plpgsql AS
                'BEGIN RAISE EXCEPTION ''used''; END';
            CREATE OPERATOR pg_temp.= (FUNCTION = pg_temp.never, LEFTARG = xid8,
                                       RIGHTARG = xid8);
            SET search_path = pg_temp, pg_catalog""")
        for number in range(30):
            application.execute("INSERT INTO gateway.events (channel, data)"
                                " VALUES ('chat', pg_catalog.to_json(%s::int))", (number,))
            application.execute("SELECT pg_catalog.pg_notify('chat', %s::text)", (f"n{number}",))
        assert [event.data for event in stream.take(60)] == [
            text for number in range(30) for text in (str(number), f"n{number}")]
    gateway.stop()
    database.drop()
