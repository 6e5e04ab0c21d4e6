"""SQL transactions of every kind: short and long, rolled back, with savepoints, COPY,
prepared, and with synchronous_commit off. Each thread has one kind and one connection."""

import random
import time

import psycopg

from .board import Pace
from .ledger import ABORTED, COMMITTED, RELAXED, Pen
from .publishers import run_threads
from .traffic import TYPES, event_data, pick_channel

INSERT = "INSERT INTO gateway.events (channel, type, data) VALUES (%s, %s, %s)"
BURST = """INSERT INTO gateway.events (channel, type, data)
    SELECT (%(channels)s::text[])[1 + n %% %(channel_count)s], 'message',
           format('{"w":"%%s","t":%%s,"i":%%s,"n":%%s,"pad":"burst"}',
                  %(writer)s::text, %(tx)s::int, n, %(count)s::int)::json
      FROM generate_series(0, %(count)s - 1) n"""
AFTERWARDS_SECONDS = 30.0


def connect(dsn):
    return psycopg.connect(dsn, connect_timeout=5, options="-c statement_timeout=60s")


class Writer:
    def __init__(self, hand, kind, rate, dsn, board, entries, problems, seed):
        self.hand = hand
        self.kind = kind
        self.dsn = dsn
        self.board = board
        self.problems = problems
        self.random = random.Random(f"{seed} writer {hand}")
        self.seed = seed
        self.pen = Pen(f"s{hand}", entries)
        self.pace = Pace(rate, board, time.monotonic, time.sleep)
        self.connection = None

    def run(self):
        more = True
        while more:
            count = self._once()
            more = self.pace.wait(count)
        if self.connection is not None:
            self.connection.close()

    def _once(self):
        """One transaction; how many events it was. What fails before the COMMIT was sent is
        not there, and what fails at the COMMIT may be."""
        if self.connection is None or self.connection.closed:
            try:
                self.connection = connect(self.dsn())
            except psycopg.Error:
                time.sleep(self.random.uniform(0.1, 0.4))
                return 0
        entry = self.pen.entry()
        self.committing = False
        try:
            KINDS[self.kind](self, entry)
        except psycopg.Error as error:
            if self.committing:
                self.pen.doubt()
            else:
                entry.outcome = ABORTED
            self._forget(error)
            return 0
        if entry.outcome not in (COMMITTED, RELAXED):
            return 0
        self.board.written[self.hand] += entry.count
        return entry.count

    def _forget(self, error):
        try:
            self.connection.close()
        except psycopg.Error:
            pass
        self.connection = None
        # Class 53: the disk is full, and the like. 08, 57: no server. 25006: a standby.
        known = ("08", "53", "57", "25006", "XX000", "58")
        if error.sqlstate and not error.sqlstate.startswith(known):
            self.problems.append(f"a transaction failed: {error.sqlstate} {error}")
        time.sleep(self.random.uniform(0.05, 0.2))

    def _commit(self, entry, outcome=COMMITTED):
        self.committing = True
        self.connection.commit()
        entry.outcome = outcome

    def _rows(self, entry, first, count):
        for index in range(first, first + count):
            yield (pick_channel(self.random), self.random.choice(TYPES),
                   event_data(entry.writer, entry.tx, index, entry.count, self.random))

    def _insert(self, cursor, entry, first, count):
        for row in self._rows(entry, first, count):
            if self.random.random() < 0.5:
                cursor.execute(INSERT, row)
            else:
                cursor.execute("SELECT gateway.publish(%s, %s, %s)", (row[0], row[2], row[1]))

    # -- kinds --------------------------------------------------------------------------

    def short(self, entry):
        entry.count = self.random.randint(1, 20)
        with self.connection.cursor() as cursor:
            self._insert(cursor, entry, 0, entry.count)
        if self.random.random() < 0.15:
            self.connection.rollback()
            entry.outcome = ABORTED
        else:
            self._commit(entry)

    def savepoints(self, entry):
        """Two halves that stay, and between them what is rolled back to the savepoint."""
        entry.count = 2 * self.random.randint(1, 8)
        dropped = self.pen.entry(3)
        dropped.outcome = ABORTED
        half = entry.count // 2
        with self.connection.cursor() as cursor:
            self._insert(cursor, entry, 0, half)
            cursor.execute("SAVEPOINT a")
            self._insert(cursor, dropped, 0, 3)
            cursor.execute("ROLLBACK TO SAVEPOINT a")
            cursor.execute("SAVEPOINT b")
            self._insert(cursor, entry, half, half)
            cursor.execute("RELEASE SAVEPOINT b")
        self._commit(entry)

    def copy(self, entry):
        entry.count = self.random.randint(100, 1500)
        with self.connection.cursor() as cursor:
            with cursor.copy("COPY gateway.events (channel, type, data) FROM STDIN") as copy:
                for row in self._rows(entry, 0, entry.count):
                    copy.write_row(row)
        self._commit(entry)

    def long(self, entry):
        """Open for seconds, writing now and then: others commit meanwhile, earlier and later
        in the order of insertion."""
        entry.count = self.random.randint(5, 60)
        end = time.monotonic() + self.random.uniform(1, 9)
        with self.connection.cursor() as cursor:
            for index in range(entry.count):
                self._insert(cursor, entry, index, 1)
                left = end - time.monotonic()
                if left > 0 and self.board.publishing.value:
                    time.sleep(min(0.3, left / (entry.count - index)))
        if self.random.random() < 0.1:
            self.connection.rollback()
            entry.outcome = ABORTED
        else:
            self._commit(entry)

    def relaxed(self, entry):
        entry.count = self.random.randint(1, 30)
        with self.connection.cursor() as cursor:
            cursor.execute("SET LOCAL synchronous_commit = off")
            self._insert(cursor, entry, 0, entry.count)
        self._commit(entry, RELAXED)

    def prepared(self, entry):
        entry.count = self.random.randint(1, 20)
        name = f"{self.seed}-{entry.writer}-{entry.tx}"
        self.connection.tpc_begin(self.connection.xid(1, name, "faults"))
        with self.connection.cursor() as cursor:
            cursor.execute("SET LOCAL gateway.quiet = on")
            self._insert(cursor, entry, 0, entry.count)
        self.connection.tpc_prepare()
        time.sleep(self.random.uniform(0, 0.5))
        if self.random.random() < 0.2:
            self.connection.tpc_rollback()
            entry.outcome = ABORTED
            return
        self.committing = True
        self.connection.tpc_commit()
        entry.outcome = COMMITTED


KINDS = {"short": Writer.short, "savepoints": Writer.savepoints, "copy": Writer.copy,
         "long": Writer.long, "relaxed": Writer.relaxed, "prepared": Writer.prepared}
SHARES = {"short": 3, "savepoints": 2, "copy": 6, "long": 0.5, "relaxed": 2, "prepared": 1}


def burst(dsn, entry, channels):
    """One transaction with entry.count rows; ends with the commit."""
    with connect(dsn) as connection:
        connection.execute(BURST, {"channels": list(channels), "channel_count": len(channels),
                                   "writer": entry.writer, "tx": entry.tx,
                                   "count": entry.count})
    entry.outcome = COMMITTED


def write(hands, rate, dsn, board, seed):
    """Runs a thread for each of `hands` = {number: kind}; (entries, problems). dsn() gives
    the server that takes writes now."""
    entries, problems = [], []
    whole = sum(SHARES[kind] for kind in hands.values())
    writers = [Writer(hand, kind, rate * SHARES[kind] / whole, dsn, board, entries, problems,
                      seed) for hand, kind in hands.items()]
    run_threads([writer.run for writer in writers], problems)
    return entries, problems
