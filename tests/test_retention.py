"""Retention: old events go, oldest first, nobody is stopped by it, and what is gone is known."""

import subprocess
import threading
import time

import psycopg
import pytest

from harness.postgres import OWNER
from harness.tools import find_postgres_tool
from harness.waiting import scaled, wait_until

SHORT = {"events.retention": "10s"}  # a look a second
ADD = ("INSERT INTO gateway.events (seq, channel, data, created_at)"
       " SELECT nextval('gateway.events_seq'), %s, to_json(n), clock_timestamp() - %s::interval"
       " FROM generate_series(1, %s) n")


@pytest.fixture
def pg(pg):
    """Numbers begin at 1: the copy of a database would begin a block of its own."""
    pg.execute("UPDATE gateway.incarnations SET identity = gateway.identity()")
    return pg


def add(database, count, age="1 day", channel="old"):
    """Numbered events of that age, as if they had been published then."""
    with database.connect() as connection:
        connection.execute("SELECT gateway.lock_order()")
        connection.execute("SET LOCAL gateway.quiet = on")
        connection.execute(ADD, (channel, age, count))


def seqs(database):
    return [seq for seq, in database.execute(
        "SELECT seq FROM gateway.events WHERE seq IS NOT NULL ORDER BY seq")]


def floor(database):
    """The lowest id from which every event is still there; None: nothing was ever deleted."""
    return database.value("SELECT max(seq) FROM gateway.purges")


def purge(database, older_than="1 hour", batch=1000, after=0):
    return database.execute("SELECT * FROM gateway.purge(%s::interval, %s, %s)",
                            (older_than, batch, after))[0]


def wait_gone(database, channel="old", timeout=30):
    wait_until(lambda: not database.value(
        "SELECT EXISTS (SELECT FROM gateway.events WHERE channel = %s)", (channel,)),
        "the old events are gone", timeout)


# -- the functions --------------------------------------------------------------------------


def test_a_batch_takes_the_oldest_and_says_how_far_it_came(pg):
    add(pg, 25)
    assert floor(pg) is None
    assert purge(pg, batch=10) == (10, 10)
    assert floor(pg) == 10
    assert purge(pg, batch=10, after=10) == (10, 20)
    assert purge(pg, batch=10, after=20) == (5, 25)
    assert purge(pg, batch=10) == (0, None)
    assert (seqs(pg), floor(pg)) == ([], 25)
    assert pg.value("SELECT count(*) FROM gateway.purges") == 1, "only the newest is kept"


def test_what_is_left_has_no_holes(pg):
    """An old event behind a young one waits until that one is old."""
    add(pg, 5)
    add(pg, 1, age="0 s")
    add(pg, 5)
    assert purge(pg) == (5, 5)
    assert purge(pg, after=5) == (0, None)
    assert seqs(pg) == [6, 7, 8, 9, 10, 11]


def test_events_without_a_number_are_never_purged(pg):
    pg.execute("INSERT INTO gateway.events (data, created_at) VALUES ('1', '2001-01-01')")
    add(pg, 3)
    assert purge(pg) == (3, 3)
    assert pg.value("SELECT count(*) FROM gateway.events") == 1


def test_one_at_a_time_and_nobody_waits(pg):
    add(pg, 20)
    with pg.connect() as one:
        assert one.execute("SELECT * FROM gateway.purge('1 h', 10)").fetchone() == (10, 10)
        assert purge(pg) == (None, None)
        with pg.connect() as writer:  # the order lock is another one
            writer.execute("SET statement_timeout = '5s'")
            assert writer.execute("SELECT first_seq FROM gateway.publish_batch("
                                  "'{c}', '{message}', '{1}')").fetchone() == (21,)
        one.rollback()
    assert seqs(pg) == list(range(1, 22)) and floor(pg) is None
    assert purge(pg) == (20, 20)


def test_a_row_that_somebody_has_locked_ends_the_batch(pg):
    add(pg, 10)
    with pg.connect() as application:
        application.execute("SELECT FROM gateway.events WHERE seq = 4 FOR SHARE")
        with pg.connect() as other:
            other.execute("SET statement_timeout = '5s'")
            assert other.execute("SELECT * FROM gateway.purge('1 h', 1000)").fetchone() == (3, 3)
        assert purge(pg) == (0, None)
        assert seqs(pg) == list(range(4, 11))
    assert purge(pg) == (7, 10)


def test_purging_nothing_writes_nothing(pg):
    add(pg, 5)
    purge(pg)
    pg.execute("BEGIN")
    assert purge(pg) == (0, None)
    assert pg.value("SELECT pg_current_xact_id_if_assigned()") is None
    pg.execute("COMMIT")


def test_a_batch_does_not_step_over_what_it_deleted(pg):
    """An old snapshot keeps the dead entries of the index; `after_seq` goes past them."""
    add(pg, 20000)
    pg.execute("ANALYZE gateway.events")
    with pg.connect() as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM gateway.events")
        last = 0
        for _ in range(18):
            purged, last = purge(pg, batch=1000, after=last)
            assert purged == 1000

        def pages(after):
            pg.execute("BEGIN")
            (plan,), = pg.execute("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON)"
                                  " SELECT gateway.purge('1 h', 1, %s)", (after,))
            pg.execute("ROLLBACK")
            return plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]

        pages(last)  # what a session looks up once
        assert pages(last) * 3 < pages(0)
        assert purge(pg, batch=1000, after=last) == (1000, 19000)


@pytest.mark.parametrize("delete, left, known", [
    ("DELETE FROM gateway.events WHERE seq <= 4", [5, 6, 7, 8, 9, 10], 4),
    ("DELETE FROM gateway.events WHERE seq = 7", [1, 2, 3, 4, 5, 6, 8, 9, 10], 7),
    ("DELETE FROM gateway.events", [], 10),
    ("DELETE FROM gateway.events WHERE seq > 99", list(range(1, 11)), None),
    ("DELETE FROM gateway.events WHERE seq IS NULL", list(range(1, 11)), None),
    ("DELETE FROM gateway.events e USING generate_series(2, 3) n WHERE e.seq = n",
     [1, 4, 5, 6, 7, 8, 9, 10], 3),
    ("WITH gone AS (DELETE FROM gateway.events WHERE seq = 2 RETURNING 1) SELECT 1",
     [1, 3, 4, 5, 6, 7, 8, 9, 10], 2),
    ("SET session_replication_role = replica; DELETE FROM gateway.events WHERE seq = 1",
     list(range(2, 11)), 1),
    ("TRUNCATE gateway.events", [], 10),
    ("BEGIN; TRUNCATE gateway.events RESTART IDENTITY; ROLLBACK", list(range(1, 11)), None),
    ("BEGIN; DELETE FROM gateway.events WHERE seq = 9; ROLLBACK", list(range(1, 11)), None),
])
def test_deleting_by_hand_is_noticed(pg, cluster, delete, left, known):
    add(pg, 10)
    pg.publish("c", '"not numbered"')
    with psycopg.connect(cluster.dsn(pg.name, "postgres"), autocommit=True) as connection:
        connection.execute(delete)
    assert (seqs(pg), floor(pg)) == (left, known)


def test_only_the_highest_deletion_counts(pg):
    add(pg, 10)
    for seq in (5, 2, 8, 1):
        pg.execute("DELETE FROM gateway.events WHERE seq = %s", (seq,))
    assert floor(pg) == 8
    assert purge(pg) == (6, 10)
    assert pg.execute("SELECT seq FROM gateway.purges") == [(10,)]


def test_two_who_delete_do_not_wait_for_each_other(pg):
    add(pg, 10)
    with pg.connect() as one, pg.connect() as other:
        for connection, seq in ((one, 3), (other, 6)):
            connection.execute("SET statement_timeout = '5s'")
            connection.execute("DELETE FROM gateway.events WHERE seq = %s", (seq,))
        assert floor(pg) is None
        one.commit()
        assert floor(pg) == 3
        other.commit()
    assert floor(pg) == 6


def test_truncating_an_empty_table_is_no_loss(pg):
    pg.execute("TRUNCATE gateway.events")
    assert floor(pg) is None


def test_a_truncate_that_does_not_see_the_newest_notes_them_all_the_same(pg):
    add(pg, 3)
    with pg.connect() as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT 1")
        add(pg, 3)
        old.execute("TRUNCATE gateway.events")
        old.commit()
    assert floor(pg) == 6


def test_a_role_with_the_right_to_delete_needs_no_other(pg, cluster):
    add(pg, 10)
    cluster.admin("DO $$ BEGIN CREATE ROLE cleaner LOGIN; EXCEPTION"
                  " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    pg.execute("GRANT USAGE ON SCHEMA gateway TO cleaner")
    pg.execute("GRANT SELECT (seq, created_at), DELETE ON gateway.events TO cleaner")
    with psycopg.connect(cluster.dsn(pg.name, "cleaner"), autocommit=True) as cleaner:
        # A table of one's own in front of ours leads nowhere else.
        cleaner.execute("CREATE TEMP TABLE purges (seq bigint)")
        cleaner.execute("SET search_path = pg_temp, gateway")
        cleaner.execute("DELETE FROM gateway.events WHERE seq <= 4")
        assert floor(pg) == 4
        for forbidden in ("INSERT INTO gateway.purges VALUES (9)", "DELETE FROM gateway.purges",
                          "SELECT gateway.purge('1 s', 10)",
                          "CREATE TEMP TABLE t (seq bigint); CREATE TRIGGER t AFTER DELETE ON t"
                          " REFERENCING OLD TABLE AS gone EXECUTE FUNCTION gateway.note_delete()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                cleaner.execute(forbidden)


# -- the migration --------------------------------------------------------------------------


def take_back(pg, command, version=1):
    """To that schema; the first is the one without retention."""
    while pg.value("SELECT max(version) FROM gateway.migrations") > version:
        assert command("migrate", "down", settings={"database.dsn": pg.dsn}).returncode == 0
    assert (pg.value("SELECT to_regclass('gateway.purges')") is None) == (version < 2)


@pytest.mark.parametrize("before, known", [
    ("SELECT 1", None),
    ("DELETE FROM gateway.events WHERE seq <= 30", 30),
    ("DELETE FROM gateway.events WHERE seq IN (3, 60)", 60),
    ("DELETE FROM gateway.events WHERE seq > 90", 100),
    ("DELETE FROM gateway.events", 100),
    ("UPDATE gateway.events SET seq = NULL WHERE seq = 40", 40),
])
def test_what_was_deleted_before_the_migration_is_found(pg, command, before, known):
    take_back(pg, command)
    add(pg, 100)
    pg.execute(before)
    done = command("migrate", "up", settings={"database.dsn": pg.dsn})
    assert done.returncode == 0, done.stderr
    assert floor(pg) == known


@pytest.mark.parametrize("version", [1, 3])
def test_the_migration_does_not_hold_up_writers_for_long(pg, command, version):
    """It waits for a transaction that has written an event; who comes after waits for it."""
    take_back(pg, command, version)
    with pg.connect() as slow:
        slow.execute("INSERT INTO gateway.events (data) VALUES ('1')")
        done = []
        thread = threading.Thread(target=lambda: done.append(
            command("migrate", "up", settings={"database.dsn": pg.dsn})))
        thread.start()
        wait_until(lambda: pg.value("SELECT count(*) FROM pg_stat_activity WHERE"
                                    " wait_event_type = 'Lock' AND datname = current_database()"),
                   "the migration waits")
        pg.execute("SET statement_timeout = '20s'")
        pg.publish("c", "2")
        thread.join(scaled(30))
        assert done[0].returncode == 1 and "lock timeout" in done[0].stderr
        slow.commit()
    assert command("migrate", "up", settings={"database.dsn": pg.dsn}).returncode == 0
    assert floor(pg) is None


def test_a_database_without_events_begins_with_nothing_lost(pg):
    assert floor(pg) is None


def test_what_is_gone_is_still_known_in_a_restored_dump(pg, cluster, gateway_factory):
    add(pg, 10)
    purge(pg)
    add(pg, 2)
    copy = cluster.create_database(template="template0")
    try:
        dump = subprocess.run([find_postgres_tool("pg_dump"), pg.dsn], capture_output=True,
                              text=True, timeout=scaled(60), check=True).stdout
        subprocess.run([find_postgres_tool("psql"), "-qXv", "ON_ERROR_STOP=1", copy.dsn],
                       input=dump, text=True, check=True, timeout=scaled(60),
                       stdout=subprocess.DEVNULL)
        assert (seqs(copy), floor(copy)) == ([11, 12], 10)
        gateway = gateway_factory(copy, SHORT)
        wait_gone(copy)
        assert floor(copy) == 12
        assert int(gateway.publish("c", "1")) > 1 << 40
        gateway.stop()
    finally:
        copy.drop()


# -- the gateway ----------------------------------------------------------------------------


def test_old_events_go_and_young_ones_stay(pg, gateway_factory):
    add(pg, 3500)
    gateway = gateway_factory(pg, {"events.retention": "1h"})  # a look a minute
    gateway.stop()
    gateway = gateway_factory(pg, SHORT)
    id = gateway.publish("young", "1")
    wait_gone(pg)
    gateway.wait_metric("pgsse_purged_seq", 3500)
    assert gateway.metric("pgsse_events_purged_total") == 3500
    assert (seqs(pg), floor(pg)) == ([int(id)], 3500)
    assert gateway.get("/events/3500").status == 404
    assert gateway.get(f"/events/{id}").status == 200


def test_without_a_word_nothing_is_deleted(pg, gateway):
    add(pg, 10, age="30 years")
    time.sleep(2)  # a look would have come
    assert len(seqs(pg)) == 10
    assert gateway.metric("pgsse_events_purged_total") == 0


def test_two_gateways_share_the_work(pg, gateway_factory):
    """Every event is purged once: the gateways' counts add up to what was there."""
    gateways = [gateway_factory(pg, SHORT) for _ in range(2)]
    for round in range(1, 4):
        add(pg, 15000)
        wait_gone(pg)
        wait_until(lambda: sum(gateway.metric("pgsse_events_purged_total")
                               for gateway in gateways) == 15000 * round, "it adds up")
    assert floor(pg) == 45000


def test_a_gateway_killed_in_the_middle_leaves_it_to_the_next(pg, gateway_factory):
    add(pg, 40000)
    first = gateway_factory(pg, SHORT)
    wait_until(lambda: floor(pg), "it has begun")
    first.kill()
    left = seqs(pg)
    assert left == list(range(left[0], 40001)), "a prefix is gone"
    second = gateway_factory(pg, SHORT)
    wait_gone(pg)
    assert floor(pg) == 40000
    second.wait_metric("pgsse_purged_seq", 40000)


def test_a_read_only_database_is_left_alone_and_told(pg, cluster, gateway_factory):
    add(pg, 10)
    cluster.admin(f'ALTER DATABASE "{pg.name}" SET default_transaction_read_only = on')
    gateway = gateway_factory(pg, SHORT, ready=False)
    gateway.wait_log("cannot delete what is old: .*read-only")
    assert len(seqs(pg)) == 10
    cluster.admin(f'ALTER DATABASE "{pg.name}" RESET default_transaction_read_only')
    wait_gone(pg)
    gateway.wait_log("looking for what is old at")
    gateway.alive_or_raise()


def test_a_locked_row_holds_up_retention_and_nobody_else(pg, gateway_factory):
    add(pg, 2000)
    with pg.connect() as application:
        application.execute("SELECT FROM gateway.events WHERE seq = 1500 FOR UPDATE")
        gateway = gateway_factory(pg, SHORT)
        wait_until(lambda: floor(pg) == 1499, "up to the locked row")
        with gateway.subscribe("c") as stream:
            pg.publish("c", "1")
            gateway.publish("c", "2")
            assert [event.data for event in stream.take(2)] == ["1", "2"]
        assert seqs(pg)[0] == 1500
        assert "cannot" not in gateway.log()
    wait_gone(pg)


def test_the_gateways_role_may_be_another_than_the_owner(pg, cluster, gateway_factory):
    add(pg, 10)
    cluster.admin("DO $$ BEGIN CREATE ROLE servant LOGIN; EXCEPTION"
                  " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    for grant in ("USAGE ON SCHEMA", "ALL ON ALL TABLES IN SCHEMA",
                  "ALL ON ALL SEQUENCES IN SCHEMA", "EXECUTE ON ALL FUNCTIONS IN SCHEMA"):
        pg.execute(f"GRANT {grant} gateway TO servant")
    dsn = pg.dsn.replace(f"user={OWNER}", "user=servant")
    assert dsn != pg.dsn
    gateway_factory(pg, {**SHORT, "database.dsn": dsn})
    wait_gone(pg)
    assert floor(pg) == 10


class Meanwhile(threading.Thread):
    """POSTs and INSERTs, one after the other, and a stream that must bring each; how long
    each took from its sending to its arrival, in seconds."""

    def __init__(self, pg, gateway):
        super().__init__()
        self.pg, self.gateway = pg, gateway
        self.stop = threading.Event()
        self.times = []
        self.failure = None

    def run(self):
        try:
            with self.gateway.subscribe("new") as stream, \
                 self.pg.connect(autocommit=True) as writer:
                number = 0
                while not self.stop.is_set():
                    number += 1
                    begun = time.monotonic()
                    if number % 2:
                        self.gateway.publish("new", str(number))
                    else:
                        writer.execute("INSERT INTO gateway.events (channel, data)"
                                       " VALUES ('new', %s)", (str(number),))
                    assert stream.next_event().data == str(number)
                    self.times.append(time.monotonic() - begun)
        except Exception as failure:  # shown by the test
            self.failure = failure


def test_writers_and_subscribers_go_on_while_much_is_deleted(pg, gateway_factory):
    gateway = gateway_factory(pg)
    with gateway.subscribe("last") as stream:
        add(pg, 200000)
        gateway.publish("last", "1")
        stream.next_event(timeout=60)  # the gateway has read them all
    gateways = [gateway, gateway_factory(pg, {"events.retention": "1min"})]
    meanwhile = Meanwhile(pg, gateway)
    meanwhile.start()
    try:
        wait_gone(pg, timeout=80)
    finally:
        meanwhile.stop.set()
        meanwhile.join(scaled(30))
    assert meanwhile.failure is None, meanwhile.failure
    assert len(meanwhile.times) > 50, "they went on all the time"
    # Only where the machine stood still it was for long.
    late = [seconds for seconds in meanwhile.times if seconds > scaled(1)]
    assert len(late) < len(meanwhile.times) / 20, sorted(late)
    assert floor(pg) == 200000
    assert gateways[1].metric("pgsse_events_purged_total") == 200000
    count = pg.value("SELECT count(*) FROM gateway.events WHERE channel = 'new'")
    assert count == len(meanwhile.times), "none of the new ones is gone"
