"""The invariant of seq: every committed row gets exactly one number, whoever wrote it and
however long that took; and all subscribers of all gateways see them in that order."""

import random
import threading
import time
import uuid

import psycopg

from harness.raw_http import build_request
from harness.waiting import scaled, wait_until

INSERT = "INSERT INTO gateway.events (channel, data) VALUES (%s, %s::json)"
SECONDS = 5


class Hammer:
    """Writers of every kind, until told to stop; what each committed, in its order."""

    def __init__(self, pg, gateways):
        self.pg = pg
        self.gateways = gateways
        self.stop = threading.Event()
        self.committed = {}  # writer -> the data it knows to be committed, in order
        self.failures = []

    def run(self, seconds, count):
        """For so long, and until so much is committed."""
        kinds = [self.short, self.short, self.long, self.rolls_back, self.savepoints,
                 self.prepared, self.copies, *[self.posts] * 4]
        threads = [threading.Thread(target=self._guarded, args=(kind, number))
                   for number, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        time.sleep(seconds)  # how long to hammer, not a wait for anything
        wait_until(lambda: self.failures or sum(map(len, list(self.committed.values()))) > count,
                   "much is committed", 60)
        self.stop.set()
        for thread in threads:
            thread.join(scaled(60))
            assert not thread.is_alive(), "a writer hangs"
        assert not self.failures, self.failures

    def _guarded(self, kind, number):
        name = f"h.{kind.__name__}{number}"
        self.committed[name] = []
        try:
            kind(name, self.committed[name], random.Random(number))
        except Exception as failure:  # shown by run(), with the writer's name
            self.failures.append((name, repr(failure)))

    def fresh(self):
        return '"' + uuid.uuid4().hex + '"'

    def short(self, name, done, chance):
        with self.pg.connect(autocommit=True) as connection:
            while not self.stop.is_set():
                data = self.fresh()
                connection.execute(INSERT, (name, data))
                done.append(data)

    def long(self, name, done, chance):
        with self.pg.connect() as connection:
            while not self.stop.is_set():
                rows = [self.fresh() for _ in range(chance.randint(1, 200))]
                for data in rows:
                    connection.execute(INSERT, (name, data))
                    if chance.random() < 0.01:
                        self.stop.wait(0.3)
                connection.commit()
                done += rows

    def rolls_back(self, name, done, chance):
        with self.pg.connect() as connection:
            while not self.stop.is_set():
                data = self.fresh()
                connection.execute(INSERT, (name, data))
                if chance.random() < 0.5:
                    connection.rollback()
                else:
                    connection.commit()
                    done.append(data)

    def savepoints(self, name, done, chance):
        with self.pg.connect() as connection:
            while not self.stop.is_set():
                kept = []
                for _ in range(chance.randint(1, 12)):
                    data = self.fresh()
                    connection.execute("SAVEPOINT s")
                    connection.execute(INSERT, (name, data))
                    if chance.random() < 0.4:
                        connection.execute("ROLLBACK TO SAVEPOINT s")
                    else:
                        kept.append(data)
                        if chance.random() < 0.5:
                            connection.execute("RELEASE SAVEPOINT s")
                connection.commit()
                done += kept

    def prepared(self, name, done, chance):
        """Two-phase commit: the commit comes from another session than the insert, long
        after it, and without a NOTIFY, which PostgreSQL refuses to prepare."""
        with self.pg.connect(autocommit=True) as connection, \
             self.pg.connect(autocommit=True) as other:
            while not self.stop.is_set():
                data, gid = self.fresh(), uuid.uuid4().hex
                connection.execute("BEGIN")
                connection.execute("SET LOCAL gateway.quiet = on")
                connection.execute(INSERT, (name, data))
                connection.execute(f"PREPARE TRANSACTION '{gid}'")
                self.stop.wait(chance.random() * 0.1)
                if chance.random() < 0.3:
                    other.execute(f"ROLLBACK PREPARED '{gid}'")
                else:
                    other.execute(f"COMMIT PREPARED '{gid}'")
                    done.append(data)

    def copies(self, name, done, chance):
        with self.pg.connect() as connection:
            while not self.stop.is_set():
                rows = [self.fresh() for _ in range(chance.randint(1, 500))]
                with connection.cursor().copy(
                        "COPY gateway.events (channel, data) FROM STDIN") as copy:
                    for data in rows:
                        copy.write_row((name, data))
                connection.commit()
                done += rows
                self.stop.wait(0.05)

    def posts(self, name, done, chance):
        gateway = chance.choice(self.gateways)
        with gateway.connection(timeout=60) as connection:
            while not self.stop.is_set():
                rows = [self.fresh() for _ in range(chance.randint(1, 5))]
                body = "[" + ",".join(f'{{"channel":"{name}","data":{data}}}'
                                      for data in rows) + "]"
                connection.send(build_request("POST", "/events", [
                    ("Content-Type", "application/json")], body.encode()))
                answer = connection.read_response(60)
                assert answer.status == 201, repr(answer)
                done += rows


class Reader(threading.Thread):
    """Reads a stream beside the writers until the end event has come."""

    def __init__(self, stream):
        super().__init__()
        self.stream = stream
        stream.keep_wire = False
        self.events = []
        self.failure = None

    def run(self):
        try:
            self.events = self.stream.until(lambda event: event.type == "end",
                                            timeout=scaled(20))
        except Exception as failure:  # shown by the test
            self.failure = failure


def test_every_committed_row_gets_one_number_and_all_see_that_order(pg, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    readers = [Reader(gateways[0].subscribe("*")), Reader(gateways[1].subscribe("h.*")),
               Reader(gateways[1].subscribe("h.*", http10=True))]
    for reader in readers:
        reader.start()
    hammer = Hammer(pg, gateways)
    try:
        hammer.run(SECONDS, 1000)
        wait_until(lambda: pg.value("SELECT count(*) FROM gateway.events WHERE seq IS NULL") == 0,
                   "every row has its number", timeout=30)
        gateways[0].publish("h.end", "0", "end")
        for reader in readers:
            reader.join(scaled(60))
    finally:
        for reader in readers:
            reader.stream.close()
    assert [reader.failure for reader in readers] == [None] * 3

    rows = pg.execute("SELECT seq, channel, data::text FROM gateway.events ORDER BY seq")
    assert len({seq for seq, _, _ in rows}) == len(rows), "one number each"
    stored = {}
    for _, channel, data in rows:
        stored.setdefault(channel, []).append(data)
    assert stored.pop("h.end") == ["0"]
    expected = {name: done for name, done in hammer.committed.items() if done}
    assert stored == expected, "what was committed is there, each writer's in its own order"
    order = [data for _, _, data in rows]
    for reader in readers:
        assert [event.data for event in reader.events] == order


def test_rows_that_were_there_before_any_gateway_are_numbered(pg, gateway_factory):
    pg.execute("INSERT INTO gateway.events (channel, data)"
               " SELECT 'c', to_json(n) FROM generate_series(1, 12000) n")
    gateway_factory(pg)
    wait_until(lambda: pg.value("SELECT count(seq) FROM gateway.events") == 12000, "all numbered")
    assert [data for _, _, data in pg.events()] == [str(n) for n in range(1, 12001)]


def test_a_transaction_open_across_gateways_lives_is_numbered(pg, gateway_factory):
    with pg.connect() as slow:
        slow.execute(INSERT, ("c", '"slow"'))
        first = gateway_factory(pg)
        first.publish("c", '"one"')
        pg.publish("c", '"two"')
        wait_until(lambda: len(pg.events()) == 2, "the others do not wait for it")
        first.kill()
        second = gateway_factory(pg)
        with second.subscribe("c") as stream:
            slow.commit()
            assert stream.next_event().data == '"slow"'


def test_a_flood_of_small_transactions_is_delivered_while_it_lasts(gateway, pg):
    stop = threading.Event()

    def insert():
        with pg.connect(autocommit=True) as connection:
            while not stop.is_set():
                connection.execute(INSERT, ("flood", "1"))

    writers = [threading.Thread(target=insert) for _ in range(8)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(5):
            numbered = pg.value("SELECT count(seq) FROM gateway.events")
            gateway.wait_metric("pgsse_events_received_total", lambda got: got > numbered, 5)
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_a_row_of_an_application_comes_before_a_later_post(gateway, pg):
    """Whoever waits for the commit before publishing can rely on the order."""
    with gateway.subscribe("c") as stream:
        for number in range(30):
            pg.publish("c", f'"sql {number}"')
            gateway.publish("c", f'"post {number}"')
            assert [event.data for event in stream.take(2)] == [
                f'"sql {number}"', f'"post {number}"']


def test_a_row_that_was_locked_comes_though_another_writer_stays_open(gateway, pg):
    with gateway.subscribe("c") as stream, pg.connect() as writer, pg.connect() as locker:
        writer.execute(INSERT, ("c", '"open"'))
        locker.execute("LOCK TABLE gateway.sweeps")  # no sweep before the row is locked
        pg.execute(INSERT, ("c", '"locked"'))
        with pg.connect() as holder:
            holder.execute("SELECT FROM gateway.events FOR UPDATE")
            locker.commit()
            gateway.publish("c", '"not held up"')
            assert stream.next_event().data == '"not held up"'
        assert stream.next_event(timeout=30).data == '"locked"'
        writer.commit()
        assert stream.next_event().data == '"open"'


def test_who_began_after_a_commit_comes_after_it_also_in_a_backlog(pg):
    """A batch that finds a locked row again does not let younger transactions overtake those
    that its snapshot shows as running."""
    pg.value("SELECT gateway.sweep(1, true)")  # begins the copy's own life
    pg.publish("c", '"locked"')
    with pg.connect() as lock, pg.connect() as first:
        lock.execute("SELECT 1 FROM gateway.events FOR UPDATE")
        pg.value("SELECT gateway.sweep()")
        first.execute(INSERT, ("c", '"first"'))  # running in the snapshot that is taken now
        for _ in range(3):
            pg.publish("c", '"backlog"')
        assert pg.value("SELECT gateway.sweep(1)") == 1
        first.commit()
        pg.publish("c", '"second"')
        lock.rollback()
        for _ in range(4):
            pg.value("SELECT gateway.sweep(5000, true)")
    order = [data for data, in pg.execute(
        "SELECT data::text FROM gateway.events ORDER BY seq")]
    assert order.index('"first"') < order.index('"second"'), order
    assert len(order) == 6 and pg.value("SELECT count(seq) FROM gateway.events") == 6


def test_the_doorbell_says_how_far_it_rings(pg):
    batch = ("SELECT first_seq, last_seq FROM gateway.publish_batch(ARRAY['c', 'c'],"
             " ARRAY['t', 't'], ARRAY['1', '2'], NULL, %s, %s)")
    rung = []
    with pg.connect(autocommit=True) as ear:
        ear.add_notify_handler(lambda notification: rung.append(notification.payload))
        ear.execute("LISTEN gateway_events")
        _, posted = pg.execute(batch, ([1, 1], ["key"]))[0]
        pg.publish("c", "3")
        assert pg.value("SELECT gateway.sweep()") == 1
        swept = pg.value("SELECT seq FROM gateway.events WHERE data::text = '3'")
        # Nothing but what others have committed: the events of that key are there already.
        pg.publish("c", "4")
        assert pg.execute(batch, ([1, 1], ["key"])) == [(None, None)]
        taken_up = pg.value("SELECT seq FROM gateway.events WHERE data::text = '4'")
        for _ in range(2):  # what was committed before has come with the second answer
            ear.execute("SELECT 1")
    assert rung == [str(posted), str(swept), str(taken_up)]


def test_an_application_cannot_publish_what_the_interface_forbids(pg):
    for channel, type in (("", "t"), ("c", ""), ("a\nb", "t"), ("c", "a\rb"), ("x" * 256, "t"),
                          ("c", "\x7f"), ("a\x85b", "t"), ("orders.*", "t"),
                          ("c", "gap"), ("c", "checkpoint")):
        try:
            pg.publish(channel, "1", type)
        except psycopg.errors.CheckViolation:
            continue
        raise AssertionError(f"taken: {channel!r} {type!r}")


def test_an_application_needs_no_more_than_insert(pg, cluster, gateway):
    cluster.admin("DO $$ BEGIN CREATE ROLE application LOGIN; EXCEPTION"
                  " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    pg.execute("GRANT USAGE ON SCHEMA gateway TO application")
    pg.execute("GRANT INSERT (channel, type, data) ON gateway.events TO application")
    with psycopg.connect(cluster.dsn(pg.name, "application")) as connection:
        with gateway.subscribe("c") as stream:
            connection.execute(INSERT, ("c", "1"))
            connection.commit()
            assert stream.next_event().data == "1"
            connection.execute("SELECT gateway.publish('c', '2')")
            connection.commit()
            assert stream.next_event().data == "2"


def test_an_id_seen_is_never_given_again_after_a_crash(postgres, gateway_factory):
    """A number must be durable before anyone sees it."""
    database = postgres.create_database(template="gateway_template")
    gateway = gateway_factory(database)
    seen = {}
    with gateway.subscribe("c") as stream:
        for round in range(3):
            for number in range(10):
                database.execute("SET synchronous_commit = off")
                database.publish("c", f'"{round}.{number}"')
            for event in stream.take(10, timeout=20):
                assert seen.setdefault(event.id, event.data) == event.data
            postgres.crash()
            postgres.start()
            gateway.wait_ready(timeout=20)
            database.close()
    stored = dict((str(seq), data) for seq, data in database.execute(
        "SELECT seq, data::text FROM gateway.events"))
    assert {id: stored.get(id) for id in seen} == seen
