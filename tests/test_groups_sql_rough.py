"""Groups under load and harm: many who claim and acknowledge at once, backends killed in the
middle, groups removed, events deleted, dumps restored; and what it costs to find a job."""

import random
import subprocess
import threading

import psycopg
import pytest
from psycopg import errors

from harness.tools import find_postgres_tool
from harness.waiting import scaled, wait_until
from test_groups_sql import LEASE, ack, add, claim, listed, nack, refused, state, wait_due

JOBS = 2000
WORKERS = 16


class Crew:
    """Workers on connections of their own; what each was handed and acknowledged."""

    def __init__(self, pg, lease, may_be_refused=("GW409",)):
        self.pg = pg
        self.lease = lease
        self.may_be_refused = may_be_refused
        self.handed = []     # (seq, attempt)
        self.acked = []      # seq, of acknowledgements that were answered
        self.uncertain = []  # seq, of those whose answer never came
        self.refused = 0
        self.failures = []
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._guarded, args=(number,))
                        for number in range(WORKERS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join(scaled(60))
            assert not thread.is_alive(), "a worker hangs"
        assert not self.failures, self.failures

    def _guarded(self, number):
        chance = random.Random(number)
        while not self.stop.is_set():
            try:
                with self.pg.connect(autocommit=True) as connection:
                    while not self.stop.is_set():
                        self._turn(connection, chance)
            except psycopg.OperationalError:
                pass  # killed; a new connection
            except Exception as failure:  # shown at the end
                self.failures.append(repr(failure))
                return

    def _turn(self, connection, chance):
        rows = connection.execute(
            f"SELECT id, seq, attempt FROM gateway.claim('jobs', 'workers', 3, {self.lease},"
            f" max_attempts => 1000000)").fetchall()
        with self.lock:
            self.handed += [row[1:] for row in rows]
        for id, seq, _ in rows:
            what = chance.random()
            if what < 0.05:
                self._take("SELECT gateway.nack(%s, 'workers', '0.01 s')", connection, id)
            elif what > 0.1:  # and the rest is left lying
                self._acknowledge(connection, id, seq)
        if not rows:
            self.stop.wait(0.01)

    def _acknowledge(self, connection, id, seq):
        try:
            done = self._take("SELECT gateway.ack(%s, 'workers')", connection, id)
        except psycopg.OperationalError:
            with self.lock:
                self.uncertain.append(seq)
            raise
        if done:
            with self.lock:
                self.acked.append(seq)

    def _take(self, sql, connection, id):
        """False: it was refused, as it may be."""
        try:
            connection.execute(sql, (id,))
            return True
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            assert error.sqlstate in self.may_be_refused, error
            with self.lock:
                self.refused += 1
            return False

    def wait_done(self, jobs):
        wait_until(lambda: self.pg.value(
            "SELECT count(*) FROM gateway.deliveries WHERE acked_at IS NOT NULL") == jobs,
            "each job is done", timeout=80)


def check_books(pg, crew):
    """Each job is acknowledged, none twice, and each attempt was handed to one."""
    seqs = [seq for seq, in pg.execute("SELECT seq FROM gateway.events WHERE channel = 'jobs'")]
    acked = crew.acked + [seq for seq in crew.uncertain if seq not in set(crew.acked)]
    print(f"{len(seqs)} jobs, {len(crew.handed)} deliveries, {len(crew.acked)} acknowledged,"
          f" {len(crew.uncertain)} uncertain, {crew.refused} refused")
    assert len(crew.acked) == len(set(crew.acked)), "acknowledged twice"
    assert set(acked) == set(seqs), "each job is done"
    assert len(crew.handed) == len(set(crew.handed)), "one attempt was handed to two"
    assert pg.value("SELECT count(*) FROM gateway.deliveries") == len(seqs)


def test_many_claim_while_events_are_published_and_numbered(pg):
    """What they leave lying and give back included: an event is never in two hands."""
    claim(pg)
    with Crew(pg, "'0.2 s'") as crew:
        for _ in range(20):
            pg.execute("INSERT INTO gateway.events (channel, data)"
                       " SELECT 'jobs', '1' FROM generate_series(1, %s)", (JOBS // 40,))
            pg.execute("SELECT gateway.publish_batch(array_fill('jobs'::text, ARRAY[%s]),"
                       " array_fill('m'::text, ARRAY[%s]), array_fill('1'::text, ARRAY[%s]))",
                       [JOBS // 40] * 3)
        crew.wait_done(JOBS)
    check_books(pg, crew)
    assert len(crew.handed) > JOBS, "some were handed out again"


def test_backends_killed_in_the_middle_lose_nothing_and_double_nothing(pg, cluster):
    claim(pg)
    add(pg, JOBS)
    with Crew(pg, "'0.3 s'") as crew:
        for _ in range(30):
            cluster.admin(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
                " WHERE datname = %s AND query ~ 'gateway.(claim|ack|nack)'"
                " ORDER BY random() LIMIT 4) p", pg.name)
            crew.stop.wait(0.05)
        crew.wait_done(JOBS)
    check_books(pg, crew)


def test_a_crash_of_the_server_takes_back_no_acknowledgement(postgres):
    pg = postgres.create_database(template="gateway_template")
    claim(pg)
    add(pg, 500)
    with pg.connect(autocommit=True) as worker:
        worker.execute("SET synchronous_commit = off")
        acked = []
        for id, seq, *_ in worker.execute(
                "SELECT * FROM gateway.claim('jobs', 'workers', 200)").fetchall()[:150]:
            worker.execute("SELECT gateway.ack(%s, 'workers')", (id,))
            acked.append(seq)
        postgres.crash()
    pg.close()
    postgres.start()
    assert [seq for seq, in pg.execute("SELECT seq FROM gateway.deliveries WHERE acked_at"
                                       " IS NOT NULL ORDER BY seq")] == acked
    pg.execute("UPDATE gateway.deliveries SET due_at = clock_timestamp() WHERE acked_at IS NULL")
    assert len(claim(pg, 1000)) == 500 - len(acked)


def test_of_two_who_acknowledge_at_once_one_is_told_no(pg):
    add(pg, 1)
    (id, *_), = claim(pg)
    with pg.connect() as one, pg.connect(autocommit=True) as other:
        one.execute("SELECT gateway.ack(%s, 'workers')", (id,))
        answers = []

        def acknowledge():
            try:
                other.execute("SELECT gateway.ack(%s, 'workers')", (id,))
                answers.append("done")
            except psycopg.Error as error:
                answers.append(error.sqlstate)

        thread = threading.Thread(target=acknowledge)
        thread.start()
        wait_until(lambda: pg.value("SELECT count(*) FROM pg_stat_activity WHERE"
                                    " wait_event_type = 'Lock' AND datname = current_database()"),
                   "the other waits")
        one.commit()
        thread.join(scaled(20))
    assert answers == ["GW409"]


def test_claims_of_one_group_wait_and_of_two_do_not(pg):
    add(pg, 10)
    claim(pg, group="others")
    with pg.connect() as slow:
        slow.execute("SELECT * FROM gateway.claim('jobs', 'workers', start => 'earliest')")
        slow.commit()
        slow.execute("SELECT * FROM gateway.claim('jobs', 'workers')")
        with pg.connect(autocommit=True) as quick:
            quick.execute("SET statement_timeout = '5s'")
            assert len(quick.execute("SELECT * FROM gateway.claim('jobs', 'others')").fetchall()) == 1
            with pytest.raises((errors.QueryCanceled, errors.LockNotAvailable)):
                quick.execute("SELECT * FROM gateway.claim('jobs', 'workers')")
        slow.rollback()
    assert [row[3] for row in claim(pg)] == [2]


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_an_old_snapshot_is_told_so_and_hands_out_nothing_twice(pg, level):
    add(pg, 5)
    claim(pg)
    with pg.connect() as old:
        old.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        old.execute("SELECT 1")
        claim(pg, 2)
        with pytest.raises(errors.SerializationFailure):
            old.execute("SELECT * FROM gateway.claim('jobs', 'workers')")
        old.rollback()
        old.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        assert len(old.execute("SELECT * FROM gateway.claim('jobs', 'workers')").fetchall()) == 1


def test_what_is_given_back_by_a_long_transaction_is_not_forgotten(pg):
    """Claims go on meanwhile, and look again and again for what is due."""
    add(pg, 100)
    (id, seq, *_), = claim(pg)
    with pg.connect() as slow:
        slow.execute("SELECT gateway.nack(%s, 'workers')", (id,))
        floor = "SELECT max(due_from) FROM gateway.floors"
        before = pg.value(floor)
        wait_until(lambda: pg.value("SELECT clock_timestamp() > %s + interval '1.5 s'", (before,)),
                   "a claim would raise the floor")
        for _ in range(5):
            ack(pg, claim(pg)[0][0])
        assert pg.value(floor) == before
        slow.commit()
    assert claim(pg)[0][1:3] == (seq, 2)
    wait_until(lambda: claim(pg) is not None and pg.value(floor) > before, "the floor is raised")


# -- groups come and go ---------------------------------------------------------------------


def test_a_removed_group_is_gone_and_begins_anew(pg):
    add(pg, 3)
    (id, seq, *_), = claim(pg)
    assert pg.value("SELECT gateway.remove_group('jobs', 'workers')")
    assert not pg.value("SELECT gateway.remove_group('jobs', 'workers')")
    assert not pg.value("SELECT gateway.remove_group(NULL, 'workers')")
    assert state(pg, seq) is None
    with refused("GW404"):
        ack(pg, id)
    assert len(claim(pg, 10)) == 3
    pg.execute("SELECT gateway.purge_deliveries('1 d', 1000)")
    assert pg.value("SELECT count(DISTINCT group_id) FROM gateway.deliveries") == 1


def test_a_group_that_is_removed_while_all_claim_from_it(pg):
    claim(pg)
    add(pg, 200)
    with Crew(pg, "'0.2 s'", ("GW404", "GW409")) as crew:
        for _ in range(40):
            pg.execute("SELECT gateway.remove_group('jobs', 'workers')")
            add(pg, 5)
    known = {id for id, in pg.execute("SELECT id FROM gateway.groups")}
    pg.execute("SELECT gateway.purge_deliveries('1 d', 100000)")
    assert {id for id, in pg.execute("SELECT DISTINCT group_id FROM gateway.deliveries")} <= known
    assert crew.handed and crew.refused


def test_what_is_not_there_any_more_is_counted_as_lost(pg):
    add(pg, 10)
    (first, *_), = claim(pg)
    claim(pg, 2, lease=LEASE)
    pg.execute("DELETE FROM gateway.events WHERE seq IN (SELECT seq FROM gateway.events"
               " ORDER BY seq LIMIT 5)")
    assert listed(pg, "lost", "lag") == (2, 5)
    with refused("GW404"):
        ack(pg, first)
    wait_due(pg, 2)
    assert [row[3] for row in claim(pg, 1)] == [6]
    assert listed(pg, "lost", "in_flight", "due") == (3, 2, 1)
    for _ in range(2):
        pg.execute("SELECT gateway.purge_deliveries('1 d', 1000)")
        assert listed(pg, "lost", "in_flight", "due", "lag") == (5, 1, 0, 4)
    assert pg.value("SELECT count(*) FROM gateway.losses") == 1, "their sum is kept"


def test_retention_takes_the_deliveries_and_the_group_goes_on(pg):
    add(pg, 30)
    for row in claim(pg, 10):
        ack(pg, row[0])
    pg.execute("UPDATE gateway.events SET created_at = '2001-01-01' WHERE seq <="
               " (SELECT min(seq) + 19 FROM gateway.events)")
    purged, last = pg.execute("SELECT * FROM gateway.purge('1 d', 1000)")[0]
    assert purged == 20
    assert listed(pg, "lost", "lag") == (10, 10)
    purge = "SELECT * FROM gateway.purge_deliveries('1 d', 4, %s)"
    seen = [pg.execute(purge, (0,))[0]]
    while seen[-1][0] >= 4:
        seen.append(pg.execute(purge, (seen[-1][1],))[0])
    assert [count for count, _ in seen] == [4, 4, 1], "the newest stays: it is the position"
    assert [row[3] for row in claim(pg, 100)] == list(range(21, 31))
    assert listed(pg, "position") == (last + 10,)


def test_what_somebody_has_locked_is_left_to_the_next_look(pg):
    add(pg, 5)
    rows = claim(pg, 5)
    pg.execute("DELETE FROM gateway.events")
    with pg.connect() as application:
        application.execute("SELECT FROM gateway.deliveries WHERE seq = %s FOR UPDATE",
                            (rows[1][1],))
        assert pg.value("SELECT purged FROM gateway.purge_deliveries('1 d', 100)") == 3
    assert pg.value("SELECT purged FROM gateway.purge_deliveries('1 d', 100)") == 1
    with pg.connect() as other:
        other.execute("SELECT pg_advisory_xact_lock(1885827955, 2)")
        assert pg.value("SELECT purged FROM gateway.purge_deliveries('1 d', 100)") is None


def test_old_waits_are_forgotten(pg):
    pg.execute("INSERT INTO gateway.waits (seq, group_name, created_at)"
               " VALUES (1, 'w', clock_timestamp() - interval '2 d'), (2, 'w', clock_timestamp())")
    pg.execute("SELECT gateway.purge_deliveries('1 d', 100)")
    assert pg.execute("SELECT seq FROM gateway.waits") == [(2,)]


def test_a_restored_dump_goes_on_where_it_was(pg, cluster):
    add(pg, 6)
    held, done, returned = claim(pg, 3)
    ack(pg, done[0], result='{"n": 1}')
    nack(pg, returned[0], reason="again")
    copy = cluster.create_database(template="template0")
    try:
        dump = subprocess.run([find_postgres_tool("pg_dump"), pg.dsn], capture_output=True,
                              text=True, timeout=scaled(60), check=True).stdout
        subprocess.run([find_postgres_tool("psql"), "-qXv", "ON_ERROR_STOP=1", copy.dsn],
                       input=dump, text=True, check=True, timeout=scaled(60),
                       stdout=subprocess.DEVNULL)
        add(copy, 1)  # of the new life
        assert [(row[3], row[2]) for row in claim(copy, 10)] == [(3, 2), (4, 1), (5, 1), (6, 1),
                                                                 (1, 1)]
        ack(copy, held[0])
        assert state(copy, done[1]) == ("acknowledged", 1, {"n": 1})
        assert listed(copy, "lag", "in_flight", "lost") == (0, 5, 0)
        assert claim(copy, group="another")[0][3] == 1
    finally:
        copy.drop()


# -- rights ---------------------------------------------------------------------------------


def test_a_worker_needs_the_functions_and_nothing_else(pg, cluster):
    add(pg, 3)
    cluster.admin("DO $$ BEGIN CREATE ROLE worker LOGIN; EXCEPTION"
                  " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    pg.execute("GRANT USAGE ON SCHEMA gateway TO worker")
    with psycopg.connect(cluster.dsn(pg.name, "worker"), autocommit=True) as worker:
        calls = ["gateway.claim('jobs', 'workers')", "gateway.ack('1.1.aaaaaaaaaaaa', 'workers')",
                 "gateway.nack('1.1.aaaaaaaaaaaa', 'workers')", "gateway.result(1, 'workers')"]
        for call in calls:
            with pytest.raises(errors.InsufficientPrivilege):
                worker.execute(f"SELECT {call}")
        pg.execute("GRANT EXECUTE ON FUNCTION gateway.claim, gateway.ack, gateway.nack,"
                   " gateway.result TO worker")
        # A table of one's own in front of ours leads nowhere else.
        worker.execute("CREATE TEMP TABLE groups (LIKE pg_class)")
        worker.execute("SET search_path = pg_temp, gateway")
        rows = worker.execute("SELECT id, seq FROM gateway.claim('jobs', 'workers', 2,"
                              " start => 'earliest', max_attempts => 1)").fetchall()
        worker.execute("SELECT gateway.ack(%s, 'workers')", (rows[0][0],))
        worker.execute("SELECT gateway.nack(%s, 'workers')", (rows[1][0],))
        assert worker.execute("SELECT state FROM gateway.result(%s, 'workers')",
                              (rows[0][1],)).fetchone() == ("acknowledged",)
        for forbidden in ("SELECT * FROM gateway.events", "SELECT * FROM gateway.deliveries",
                          "UPDATE gateway.deliveries SET dead = true",
                          "SELECT gateway.bury(1, '{1}')", "SELECT * FROM gateway.group_list",
                          "SELECT gateway.ack_many('{}', '{}', '{}')",
                          "SELECT gateway.remove_group('jobs', 'workers')"):
            with pytest.raises(errors.InsufficientPrivilege):
                worker.execute(forbidden)
    pg.execute("REVOKE ALL ON FUNCTION gateway.claim, gateway.ack, gateway.nack, gateway.result"
               " FROM worker; REVOKE ALL ON SCHEMA gateway FROM worker")


# -- what it costs --------------------------------------------------------------------------

ROWS = 300_000


def blocks(connection, sql):
    """Blocks that the statement touches, in the cache or not, with all it calls."""
    plan = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}").fetchone()[0][0]
    return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]


@pytest.mark.timeout(scaled(300))
def test_a_job_is_found_without_walking_over_the_others(pg):
    """Whatever the planner believes: the session is older than the rows, and nobody has
    counted them; an old snapshot keeps what was acknowledged; and thousands are in flight."""
    pg.execute("ALTER TABLE gateway.events SET (autovacuum_enabled = off)")
    pg.execute("ALTER TABLE gateway.deliveries SET (autovacuum_enabled = off)")
    with pg.connect(autocommit=True) as worker, pg.connect() as old:
        worker.prepare_threshold = None
        claiming = "SELECT id FROM gateway.claim('jobs', 'workers', start => 'earliest')"
        for _ in range(8):
            worker.execute(claiming)
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM gateway.deliveries")
        add(pg, ROWS // 2, channel="others")
        add(pg, 40000)
        add(pg, ROWS // 2, channel="others")
        for _ in range(10):
            rows = worker.execute("SELECT id FROM gateway.claim('jobs', 'workers', 1000,"
                                  " lease => '0.2 s')").fetchall()
            worker.execute("SELECT gateway.ack_many(%s, array_fill('workers'::text, ARRAY[1000]),"
                           " NULL)", ([id for id, in rows],))
        for _ in range(25):
            worker.execute("SELECT count(*) FROM gateway.claim('jobs', 'workers', 1000)")
        wait_until(lambda: pg.value("SELECT clock_timestamp() > max(due_at) + interval '1.1 s'"
                                    " FROM gateway.deliveries WHERE acked_at IS NOT NULL"),
                   "all those leases are over")
        worker.execute(claiming)  # steps over them once
        for analyzed in (False, True):
            if analyzed:
                pg.execute("ANALYZE gateway.events, gateway.deliveries, gateway.groups")
            for _ in range(8):
                (id,), = worker.execute(claiming).fetchall()
                (other,), = worker.execute(claiming).fetchall()
                costs = {sql: blocks(worker, sql) for sql in (
                    claiming, f"SELECT gateway.ack('{id}', 'workers')",
                    f"SELECT gateway.nack('{other}', 'workers', '1 h')",
                    f"SELECT * FROM gateway.result({id.split('.')[0]}, 'workers')",
                    "SELECT * FROM gateway.claim('others', 'quiet')",
                    "SELECT gateway.release('{}', '{}')")}
                # The tables and their indexes are some 8 000 blocks.
                assert max(costs.values()) < 200, (analyzed, costs)
            assert blocks(worker, "SELECT * FROM gateway.claim('jobs', 'workers', 100)") < 4000
