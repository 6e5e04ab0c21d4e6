"""Workers of two groups of one channel, by HTTP at both gateways, in one process.

    crew    four workers, and each event is for one of them. They leave with deliveries in hand,
            forget some, and give some back until they are dead
    heir    exclusive: three workers, of whom one at a time gets everything in order; they leave
            too, but forget nothing

Whatever a worker was handed and what it was answered is noted; the verdict compares it with what
stands in the table of deliveries.
"""

import random
import socket
import time
from urllib.parse import urlencode

from .board import MOST_GROUPS
from .publishers import Connection, run_threads
from .subscribers import SILENCE_SECONDS
from .traffic import JOBS_CHANNEL, PROBE, TOKEN
from .wire import Framer, WireError

GROUPS = ("crew", "heir")
CREW, HEIR = range(MOST_GROUPS)
SIZES = (4, 3)  # workers of each
# The heir's lease is renewed by its gateway, and longer than that may stand still: where it ends,
# what was in hand comes again behind what is new.
WISHES = ({"lease": "2s", "max": 5, "max_attempts": 6},
          {"lease": "30s", "max": 5, "max_attempts": 50, "exclusive": "true"})

ACKED = "acknowledged"
REFUSED = "refused"    # 404 or 409, and at once: it is not held any more
UNKNOWN = "unknown"    # no answer at first, if ever: it may be acknowledged or not
TRIES = 4

# Of the crew: what is forgotten comes again at the end of its lease.
FORGOTTEN, LEAVES = 0.01, 0.03
HOLDS_SECONDS = (0.5, 4)  # how long the heir stays, and perhaps with something in hand


class Delivery:
    __slots__ = ("group", "stream", "id", "outcome")

    def __init__(self, group, stream, id):
        self.group = group
        self.stream = stream  # a number: of the connection that it came by
        self.id = id          # (seq, attempt, lease)
        self.outcome = None   # of its acknowledgement; None: it was not tried


def parse_id(text):
    seq, attempt, lease = text.decode().split(".")
    return int(seq), int(attempt), lease


def is_poison(data):
    """Whether the crew gives it back until it is dead."""
    found = TOKEN.search(data)
    return found is not None and int(found[2]) % 17 == 0


class Worker:
    def __init__(self, group, number, addresses, board, deliveries, problems, seed):
        self.group = group
        self.number = number
        self.addresses = addresses
        self.board = board
        self.deliveries = deliveries
        self.problems = problems
        self.random = random.Random(f"{seed} worker {group} {number}")
        self.connections = [Connection(address) for address in addresses]
        self.streams = 0

    def run(self):
        while self.board.working.value:
            try:
                self._work()
            except OSError:
                pass
            except (ValueError, WireError) as error:
                self.problems.append(f"a worker of {GROUPS[self.group]}: {error}")
            time.sleep(self.random.uniform(0.02, 0.2))
        for connection in self.connections:
            connection.close()

    # -- one stream ---------------------------------------------------------------------

    def _work(self):
        self.streams += 1
        self.stream = self.number + 100 * self.streams
        self.gateway = self.random.randrange(len(self.addresses))
        self.leaves = None
        if self.group == HEIR:
            self.leaves = time.monotonic() + self.random.uniform(*HOLDS_SECONDS)
        with socket.create_connection(self.addresses[self.gateway], 3) as sock:
            sock.settimeout(0.3)
            query = urlencode({"channel": JOBS_CHANNEL, "group": GROUPS[self.group],
                               "last_event_id": "earliest", **WISHES[self.group]})
            # In HTTP/1.0 the body is frames and nothing else.
            sock.sendall(f"GET /events?{query} HTTP/1.0\r\nHost: faults.test\r\n\r\n".encode())
            framer = Framer()
            for body in self._bodies(sock):
                for frame in framer.feed(body):
                    if not self._take(frame):
                        return

    def _bodies(self, sock):
        head, heard, in_body = b"", time.monotonic(), False
        while self.board.working.value and time.monotonic() - heard < SILENCE_SECONDS:
            try:
                data = sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                return
            heard = time.monotonic()
            if not in_body:
                head += data
                head, in_body, data = head.partition(b"\r\n\r\n")
                if in_body and b" 200 " not in head[:16]:
                    raise WireError(f"it was answered {head[:200]!r}")
            if in_body:
                yield data

    # -- one delivery -------------------------------------------------------------------

    def _take(self, frame):
        """False: it leaves, with that in hand."""
        first, _, rest = frame.partition(b"\n")
        delivery = Delivery(self.group, self.stream, parse_id(first[4:]))
        self.deliveries.append(delivery)
        chance = self.random.random()
        if self.leaves is not None and time.monotonic() > self.leaves:
            return False
        if self.group == CREW and is_poison(rest):
            self._post(delivery, "nack")
            return True
        if self.group == CREW and chance < FORGOTTEN + LEAVES:
            return chance < FORGOTTEN
        delivery.outcome = self._post(delivery, "ack")
        if delivery.outcome == ACKED and rest.startswith(f"event: {PROBE}\n".encode()):
            number = int(rest.rpartition(b'"probe":')[2].partition(b"}")[0])
            self.board.jobs_done[number * MOST_GROUPS + self.group] = time.monotonic()
        # While an heir stays, the lease of what it may still have in hand is renewed, and nobody
        # gets it. The crew's would end; it leaves likewise.
        return delivery.outcome != UNKNOWN

    def _post(self, delivery, what):
        """At its own gateway, or at the other, until there is an answer."""
        id = ".".join(map(str, delivery.id))
        own, refused = self.gateway, REFUSED
        for _ in range(TRIES):
            place = own if self.random.random() < 0.9 else self.random.randrange(len(self.addresses))
            try:
                status, body = self.connections[place].post(
                    f"/events/{id}/{what}?group={GROUPS[self.group]}", [], b"")
            except OSError:
                status = 503
            if status == 503:  # perhaps it was done
                refused = UNKNOWN
            if status == 204:
                return ACKED
            if status in (404, 409):
                return refused
            if status not in (429, 503):
                raise ValueError(f"{what} was answered {status}: {body[:300]!r}")
            own = self.random.randrange(len(self.addresses))
            time.sleep(self.random.uniform(0.05, 0.3))
        return UNKNOWN


def work(addresses, board, seed):
    """Until board.working says that there is no more; (deliveries, problems)."""
    deliveries, problems = [], []
    workers = []
    for group, size in enumerate(SIZES):
        for _ in range(size):
            workers.append(Worker(group, len(workers), addresses, board, deliveries, problems,
                                  seed))
    run_threads([worker.run for worker in workers], problems)
    return deliveries, problems
