"""The naive gateway's groups: a claim every tenth of a second for each consumer. Its mistakes:

    handed-to-two           every tenth delivery goes to another consumer of the group as well
    forgotten-ack           every tenth acknowledgement of a group whose consumers share is answered
                            204, and not done
    two-holders             of an exclusive group nobody holds the lock
"""

import threading
import time

import psycopg

from .verdict import frame_of

GROUP_MISTAKES = ("handed-to-two", "forgotten-ack", "two-holders")
CLAIM = ("SELECT id, type, data::text FROM"
         " gateway.claim(%s, %s, %s, %s::interval, %s, max_attempts => %s)")
LOCK = "SELECT pg_try_advisory_lock(hashtext(%s))"
RECALL = "SELECT gateway.recall(%s, %s)"
HELD = """SELECT d.seq || '.' || d.attempt || '.' || d.lease
      FROM gateway.deliveries d JOIN gateway.groups g ON g.id = d.group_id
     WHERE g.channel = %s AND g.name = %s AND d.acked_at IS NULL AND NOT d.dead"""
PAUSE_SECONDS = 0.1


class Groups:
    """What the consumers of all groups share."""

    def __init__(self, mistake):
        self.mistake = mistake
        self.lock = threading.Lock()
        self.dealt = self.acknowledged = 0
        self.sessions = threading.local()
        self.doubles = {}  # group -> frames that are to be dealt once more, and by whom
        self.exclusive = set()  # of their names

    def session(self, connect):
        """A connection for each thread that acknowledges."""
        if getattr(self.sessions, "connection", None) is None or self.sessions.connection.closed:
            self.sessions.connection = connect()
        return self.sessions.connection

    def answers_only(self, group):
        """Whether this acknowledgement is not done. An exclusive group's lease is long: whatever
        is forgotten would keep its one consumer waiting."""
        if group in self.exclusive:
            return False
        with self.lock:
            self.acknowledged += 1
            return self.mistake == "forgotten-ack" and self.acknowledged % 10 == 0

    def deal(self, consumer, frames):
        """With what another was dealt already."""
        with self.lock:
            waiting = self.doubles.get(consumer.group, [])
            frames += [frame for owner, frame in waiting if owner is not consumer]
            self.doubles[consumer.group] = [each for each in waiting if each[0] is consumer]
            for frame in frames:
                self.dealt += 1
                if self.mistake == "handed-to-two" and self.dealt % 10 == 0:
                    self.doubles[consumer.group].append((consumer, frame))
        return frames


class Consumer:
    def __init__(self, groups, connect, query, send):
        self.groups = groups
        self.connect = connect
        self.send = send  # takes bytes
        self.channel, self.group = query["channel"], query["group"]
        self.max = int(query["max"])
        self.lease, self.attempts = query["lease"], int(query["max_attempts"])
        self.exclusive = query.get("exclusive") == "true" and groups.mistake != "two-holders"
        if self.exclusive:
            groups.exclusive.add(self.group)
        self.ids = set()  # dealt, and not acknowledged when it last looked

    def run(self):
        with self.connect() as connection:
            try:
                self.wait_for_lock(connection)
                while True:
                    self.beat()
                    self.take_turn(connection)
            finally:
                self.give_back(connection)

    def beat(self):
        self.send(b":\n")
        time.sleep(PAUSE_SECONDS)

    def wait_for_lock(self, connection):
        while self.exclusive and not connection.execute(LOCK, (self.group,)).fetchone()[0]:
            self.beat()
        if self.exclusive:  # as a gateway does: what the one before had in hand comes first
            while connection.execute(RECALL, (self.channel, self.group)).fetchone()[0]:
                pass

    def take_turn(self, connection):
        self.ids &= {id for (id,) in connection.execute(HELD, (self.channel, self.group))}
        free, frames = self.max - len(self.ids), []
        if free > 0:
            for id, type, data in connection.execute(
                    CLAIM, (self.channel, self.group, free, self.lease, "earliest", self.attempts)):
                self.ids.add(id)
                frames.append(frame_of(id.encode(), type.encode(), data.encode()) + b"\n\n")
        self.send(b"".join(self.groups.deal(self, frames)))

    def give_back(self, connection):
        try:
            connection.execute("SELECT gateway.release(%s, %s)",
                               (list(self.ids), [self.group] * len(self.ids)))
        except psycopg.Error:
            pass


def settle(groups, connect, path, query):
    """The status for /events/<delivery>/ack or nack."""
    _, _, id, what = path.split("/")
    if what == "ack" and groups.answers_only(query["group"]):
        return "204 No Content"
    try:
        groups.session(connect).execute(f"SELECT gateway.{what}(%s, %s)", (id, query["group"]))
    except psycopg.Error as error:
        return "409 Conflict" if (error.sqlstate or "").startswith("GW") else "503 Unavailable"
    return "204 No Content"
