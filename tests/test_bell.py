"""Writers ring only for a gateway that sleeps; and no row waits because nobody rang."""

import random
import threading
import time

import psycopg

from harness.raw_http import Closed
from harness.waiting import scaled, wait_until

INSERT = "INSERT INTO gateway.events (channel, data) VALUES ('c', '1')"
TAKE = "SELECT pg_try_advisory_lock(1885827955, 3)"

# Sooner than the look once a second finds half of what is written at any time.
SOON = 0.3

# The look, and what a busy machine adds: only where that stood still a row waits longer.
LONGEST_WAIT = 1.7


def median(waits):
    return sorted(waits)[len(waits) // 2]


class Ear:
    """A session that hears the bell as a gateway does."""

    def __init__(self, pg):
        self.heard = 0
        self.connection = pg.connect(autocommit=True)
        self.connection.add_notify_handler(self._hear)
        self.connection.execute("LISTEN gateway_wake")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def _hear(self, _):
        self.heard += 1

    def rings(self):
        """How often it rang since it was asked last. What was committed before has come with
        this answer."""
        self.connection.execute("SELECT 1")
        self.connection.execute("SELECT 1")
        rung, self.heard = self.heard, 0
        return rung


def rings_of(pg, sleeping, work):
    """How often work(connection), committed at its end, rings."""
    with Ear(pg) as ear, pg.connect(autocommit=True) as gateway, pg.connect() as writer:
        if sleeping:
            wait_until(lambda: gateway.execute(TAKE).fetchone()[0],
                       "the session that had the bell before is gone")
        work(writer)
        writer.commit()
        return ear.rings()


def insert(connection):
    connection.execute(INSERT)


def insert_often(connection):
    for _ in range(3):
        connection.execute(INSERT)
    connection.execute("INSERT INTO gateway.events (channel, data)"
                       " SELECT 'c', to_json(n) FROM generate_series(1, 1000) n")


def copy_in(connection):
    with connection.cursor().copy("COPY gateway.events (channel, data) FROM STDIN") as copy:
        for number in range(500):
            copy.write_row(("c", str(number)))


def insert_by_function(connection):
    connection.execute("SELECT gateway.publish('c', '1')")


def insert_after_a_savepoint_is_undone(connection):
    connection.execute("SAVEPOINT s")
    connection.execute(INSERT)
    connection.execute("ROLLBACK TO SAVEPOINT s")
    connection.execute(INSERT)


def insert_before_a_savepoint_is_undone(connection):
    connection.execute(INSERT)
    connection.execute("SAVEPOINT s")
    connection.execute(INSERT)
    connection.execute("ROLLBACK TO SAVEPOINT s")


def insert_in_a_savepoint(connection):
    connection.execute("SAVEPOINT s")
    connection.execute(INSERT)
    connection.execute("RELEASE SAVEPOINT s")


def insert_in_a_caught_exception(connection):
    connection.execute("""DO $$ BEGIN
        BEGIN
            INSERT INTO gateway.events (data) VALUES ('1');
            RAISE EXCEPTION 'undone';
        EXCEPTION WHEN raise_exception THEN
            INSERT INTO gateway.events (data) VALUES ('2');
        END;
    END $$""")


def insert_where_settings_are_local(connection):
    connection.execute("""CREATE FUNCTION pg_temp.local() RETURNS void LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp SET work_mem = '1MB' AS $$ BEGIN
            INSERT INTO gateway.events (data) VALUES ('1'); END $$""")
    connection.execute("SELECT pg_temp.local()")
    connection.execute(INSERT)


def at_once_and_undone(connection):
    """The trigger runs within the savepoint, and what it did is undone with it."""
    connection.execute(INSERT)
    connection.execute("SAVEPOINT s")
    connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
    connection.execute("ROLLBACK TO SAVEPOINT s")


KINDS = [insert, insert_often, copy_in, insert_by_function, insert_after_a_savepoint_is_undone,
         insert_before_a_savepoint_is_undone, insert_in_a_savepoint,
         insert_in_a_caught_exception, insert_where_settings_are_local, at_once_and_undone]


def undo(connection):
    connection.execute("SAVEPOINT s")
    connection.execute(INSERT)
    connection.execute("ROLLBACK TO SAVEPOINT s")


def test_each_transaction_rings_once_for_a_gateway_that_sleeps(pg):
    assert {kind.__name__: rings_of(pg, True, kind) for kind in KINDS} == {
        kind.__name__: 1 for kind in KINDS}


def test_nobody_rings_while_no_gateway_sleeps(pg):
    assert {kind.__name__: rings_of(pg, False, kind) for kind in KINDS} == {
        kind.__name__: 0 for kind in KINDS}


def test_what_is_undone_or_quiet_does_not_ring(pg):
    def quiet(connection):
        connection.execute("SET LOCAL gateway.quiet = on")
        connection.execute(INSERT)

    assert rings_of(pg, True, undo) == 0
    assert rings_of(pg, True, quiet) == 0
    assert pg.value("SELECT count(*) FROM gateway.events") == 1


def test_what_comes_with_its_number_does_not_ring(pg):
    def publish(connection):
        connection.execute("SELECT gateway.publish_batch(ARRAY['c'], ARRAY['t'], ARRAY['1'])")

    assert rings_of(pg, True, publish) == 0
    assert pg.value("SELECT count(*) FROM gateway.events WHERE seq IS NOT NULL") == 1


def test_who_was_told_not_to_ring_keeps_the_bell_until_its_rows_can_be_seen(pg):
    with pg.connect(autocommit=True) as gateway:
        for end in ("COMMIT", "ROLLBACK"):
            with pg.connect(autocommit=True) as writer:
                writer.execute("BEGIN")
                writer.execute("SET CONSTRAINTS ALL IMMEDIATE")
                writer.execute(INSERT)
                assert gateway.execute(TAKE).fetchone() == (False,)
                writer.execute(end)
                assert gateway.execute(TAKE).fetchone() == (True,)
                gateway.execute("SELECT pg_advisory_unlock(1885827955, 3)")


def test_a_transaction_that_is_still_open_keeps_nobody_from_sleeping(pg):
    with Ear(pg) as ear, pg.connect(autocommit=True) as gateway, pg.connect() as writer:
        writer.execute(INSERT)
        assert gateway.execute(TAKE).fetchone() == (True,)
        writer.commit()
        assert ear.rings() == 1


def test_what_is_prepared_comes_when_it_is_committed(pg, gateway):
    """With gateway.quiet in any case. Without it PREPARE succeeds only while nobody sleeps,
    and then the bell is kept, by nobody's session, until the transaction is committed."""
    with pg.connect(autocommit=True) as writer, pg.connect(autocommit=True) as other, \
         gateway.subscribe("c") as stream:
        waits = []
        for _ in range(3):
            writer.execute("BEGIN")
            writer.execute("SET LOCAL gateway.quiet = on")
            writer.execute(INSERT)
            writer.execute("PREPARE TRANSACTION 'quiet'")
            other.execute("COMMIT PREPARED 'quiet'")
            begin = time.monotonic()
            stream.next_event()
            waits.append(time.monotonic() - begin)
        assert median(waits) < scaled(LONGEST_WAIT)


def test_a_prepared_transaction_keeps_the_bell(pg):
    with pg.connect(autocommit=True) as writer, pg.connect(autocommit=True) as gateway:
        writer.execute("BEGIN")
        writer.execute(INSERT)
        writer.execute("PREPARE TRANSACTION 'loud'")
        assert gateway.execute(TAKE).fetchone() == (False,)
        writer.execute("COMMIT PREPARED 'loud'")
        assert gateway.execute(TAKE).fetchone() == (True,)


def test_a_session_that_replays_rings_too(pg, cluster):
    with Ear(pg) as ear, pg.connect(autocommit=True) as gateway:
        assert gateway.execute(TAKE).fetchone()[0]
        with psycopg.connect(cluster.dsn(pg.name, "postgres"), autocommit=True) as replica:
            replica.execute("SET session_replication_role = replica")
            replica.execute(INSERT)
        assert ear.rings() == 1


def test_an_application_that_may_only_insert_can_look_at_the_bell(pg, cluster):
    cluster.admin("DO $$ BEGIN CREATE ROLE application LOGIN; EXCEPTION"
                  " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    pg.execute("GRANT USAGE ON SCHEMA gateway TO application")
    pg.execute("GRANT INSERT (channel, type, data) ON gateway.events TO application")
    with Ear(pg) as ear, psycopg.connect(cluster.dsn(pg.name, "application"),
                                         autocommit=True) as application:
        application.execute(INSERT)
        assert ear.rings() == 0
        with pg.connect(autocommit=True) as gateway:
            assert gateway.execute(TAKE).fetchone()[0]
            application.execute(INSERT)
            assert ear.rings() == 1


# -- with gateways --


class Waits(threading.Thread):
    """Reads a stream; when each row came. Reconnects when its gateway is gone."""

    def __init__(self, gateways):
        super().__init__(daemon=True)
        self.gateways = gateways
        self.came = {}
        self.last_id = None
        self.stop = threading.Event()
        self.failure = None

    def run(self):
        try:
            while not self.stop.is_set():
                self._listen()
        except Exception as failure:  # shown by the test
            self.failure = failure

    def _listen(self):
        gateway = next((g for g in self.gateways if g.process.poll() is None), None)
        if gateway is None:
            self.stop.wait(0.02)
            return
        try:
            with gateway.subscribe("w", last_event_id=self.last_id or "earliest") as stream:
                while not self.stop.is_set():
                    try:
                        event = stream.next_event(timeout=0.5)
                    except TimeoutError:
                        continue
                    self.came.setdefault(event.data, time.monotonic())
                    self.last_id = event.id
        except (OSError, Closed):
            self.stop.wait(0.02)


class Writers:
    """Transactions of all kinds, in bursts and far between, so that the gateways fall asleep
    and get up all the time; and when each was committed."""

    def __init__(self, pg):
        self.pg = pg
        self.committed = {}
        self.stop = threading.Event()
        self.failures = []

    def write(self, number):
        chance = random.Random(number)
        try:
            with self.pg.connect(autocommit=True) as connection:
                count = 0
                while not self.stop.is_set():
                    # Up to some hundred without a pause, or one, then for so long nothing.
                    for _ in range(chance.choice([1, 1, 2, 5, 20, 100])):
                        data = f'"{number}.{count}"'
                        count += 1
                        self.transaction(connection, chance, data)
                    self.stop.wait(chance.choice([0, 0.01, 0.05, 0.16, 0.2, 0.4]))
        except Exception as failure:  # shown by the test
            self.failures.append(repr(failure))

    def transaction(self, connection, chance, data):
        kind = chance.random()
        connection.execute("BEGIN")
        if kind < 0.2:
            connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        connection.execute("INSERT INTO gateway.events (channel, data) VALUES ('w', %s::json)",
                           (data,))
        if chance.random() < 0.05:
            self.stop.wait(chance.choice([0.01, 0.2, 0.6]))
        connection.execute("COMMIT")
        self.committed[data] = time.monotonic()


def waits_of(pg, gateways, seconds, amid):
    """How long each of a hundred rows and more waited from its commit until it came; amid()
    happens meanwhile."""
    reader = Waits(gateways)
    writers = Writers(pg)
    threads = [reader, *[threading.Thread(target=writers.write, args=(n,)) for n in range(4)]]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(writers.committed) < 100 and not writers.failures:
            amid()
            time.sleep(0.3)
    finally:
        writers.stop.set()
        for thread in threads[1:]:
            thread.join(scaled(30))
    try:
        wait_until(lambda: len(reader.came) >= len(writers.committed) or reader.failure,
                   "all rows have come")
    finally:
        reader.stop.set()
        reader.join(scaled(30))
    assert not writers.failures and reader.failure is None, (writers.failures, reader.failure)
    return [reader.came[data] - when for data, when in writers.committed.items()]


def hardly_any_waits_long(waits):
    late = [wait for wait in waits if wait > scaled(LONGEST_WAIT)]
    assert len(late) <= len(waits) / 50, (len(waits), sorted(late))


def test_no_row_waits_long_in_any_order_of_things(pg, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    waits = waits_of(pg, gateways, 8, lambda: None)
    hardly_any_waits_long(waits)
    assert median(waits) < SOON


def test_no_row_waits_long_when_the_gateway_on_duty_is_killed(pg, gateway_factory):
    """kill -9 of the one on duty, asleep or awake, again and again: the other takes over."""
    for _ in range(3):
        first = gateway_factory(pg)
        wait_until(lambda: pg.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
                                    " AND objid = 4 AND database = (SELECT oid FROM pg_database"
                                    " WHERE datname = current_database())") == 1, "on duty")
        second = gateway_factory(pg)
        begin = time.monotonic()

        def amid(first=first, begin=begin):
            if time.monotonic() > begin + 1.0 and first.process.poll() is None:
                first.kill()

        waits = waits_of(pg, [second], 3, amid)
        assert first.process.poll() is not None
        hardly_any_waits_long(waits)
        second.stop()


def test_a_gateway_that_is_gone_leaves_nobody_ringing(pg, gateway_factory):
    gateway = gateway_factory(pg)
    with Ear(pg) as ear:
        wait_until(lambda: pg.execute(INSERT) or ear.rings(), "it sleeps, and is rung for")
        gateway.kill()
        wait_until(lambda: pg.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'pg-sse-gateway%'") == 0, "its sessions have ended")
        ear.rings()
        for _ in range(20):
            pg.execute(INSERT)
        assert ear.rings() == 0
    gateway_factory(pg)
    wait_until(lambda: pg.value("SELECT count(*) FROM gateway.events WHERE seq IS NULL") == 0,
               "the next one numbers what was written meanwhile")


def test_after_a_crash_of_postgresql_rows_come_at_once_again(postgres, gateway_factory):
    database = postgres.create_database(template="gateway_template")
    gateway = gateway_factory(database)
    for _ in range(2):
        with database.connect(autocommit=True) as writer:
            for _ in range(300):  # so that it is awake
                writer.execute(INSERT)
        postgres.crash()
        postgres.start()
        database.close()
        gateway.wait_ready(timeout=20)
        with gateway.subscribe("c") as stream, database.connect(autocommit=True) as writer:
            waits = []
            for _ in range(8):
                time.sleep(0.037)  # not in step with the look
                begin = time.monotonic()
                writer.execute(INSERT)
                stream.next_event()
                waits.append(time.monotonic() - begin)
            assert median(waits) < SOON
