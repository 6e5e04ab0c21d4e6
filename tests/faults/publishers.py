"""POSTs over several connections: single events, arrays, lines, and bare data.

With `keys` each request carries an Idempotency-Key and is repeated, at any gateway, until it
is acknowledged. Without, a request that got no clear answer stays unknown.
"""

import json
import random
import socket
import threading
import time

from .board import Pace
from .ledger import ABORTED, COMMITTED, Pen
from .traffic import TYPES, event_data, pick_channel

ANSWER_SECONDS = 8.0
# How long a request is repeated after the run has ended.
AFTERWARDS_SECONDS = 30.0


class Connection:
    """One keep-alive connection to one gateway, opened when it is needed."""

    def __init__(self, address):
        self.address = address
        self._sock = None

    def close(self):
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def post(self, target, headers, body):
        """(status, body); OSError when there is no answer. A connection that was silent may
        have been closed by the gateway meanwhile, which tells nothing about the request."""
        try:
            if self._sock is None:
                self._sock = socket.create_connection(self.address, ANSWER_SECONDS)
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            lines = [f"POST {target} HTTP/1.1", "Host: faults.test", *headers,
                     f"Content-Length: {len(body)}", "", ""]
            self._sock.sendall("\r\n".join(lines).encode() + body)
            return self._read()
        except OSError:
            self.close()
            raise

    def _read(self):
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        status, length = int(head[9:12]), 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line[15:])
        while len(body) < length:
            body += self._more()
        if b"\r\nconnection: close" in head.lower():
            self.close()
        return status, body

    def _more(self):
        data = self._sock.recv(65536)
        if not data:
            raise ConnectionError("the gateway closed the connection")
        return data


class Request:
    """The bytes of one request; the same when it is repeated."""

    def __init__(self, entry, random):
        kind = random.random()
        single = kind < 0.4 or kind >= 0.9
        entry.count = 1 if single else random.randint(2, 60)
        self.target, self.headers = "/events", ["Content-Type: application/json"]
        events = []
        for index in range(entry.count):
            data = event_data(entry.writer, entry.tx, index, entry.count, random)
            channel, type = pick_channel(random), random.choice(TYPES)
            events.append(f'{{"channel":"{channel}","type":"{type}","data":{data}}}')
        if kind >= 0.9:
            self.target = f"/events?channel={channel}&type={type}"
            text = data
        elif single:
            text = events[0]
        elif kind < 0.75:
            text = "[" + ",".join(events) + "]"
        else:
            self.headers = ["Content-Type: application/x-ndjson"]
            text = "\n".join(event.replace("\n", " ") for event in events)
        self.body = text.encode()


def acknowledged(entry, body):
    entry.outcome = COMMITTED
    answer = json.loads(body)
    if not answer:  # only a naive gateway that acknowledges what has no number yet
        return
    events = answer.get("events", [answer])
    if len(events) != entry.count:
        raise ValueError(f"{entry.count} events were acknowledged by {len(events)} ids")
    entry.first_id, entry.last_id = int(events[0]["id"]), int(events[-1]["id"])


class Publisher:
    """One thread: one request at a time, so that its events have an order of their own."""

    def __init__(self, hand, rate, addresses, board, keys, entries, problems, seed):
        self.hand = hand
        self.board = board
        self.keys = keys
        self.problems = problems
        self.random = random.Random(f"{seed} publisher {hand}")
        self.run_name = f"{seed}"
        self.pen = Pen(f"h{hand}", entries)
        self.pace = Pace(rate, board, time.monotonic, time.sleep)
        self.connections = [Connection(address) for address in addresses]
        self.connection = self.random.choice(self.connections)

    def run(self):
        more = True
        while more:
            entry = self.pen.entry()
            request = Request(entry, self.random)
            self._settle(entry, request)
            more = self.pace.wait(entry.count)
        for connection in self.connections:
            connection.close()

    def _settle(self, entry, request):
        headers = list(request.headers)
        if self.keys:
            headers.append(f"Idempotency-Key: {self.run_name}-{entry.writer}-{entry.tx}")
        ended = None
        while True:
            if self._try(entry, request, headers):
                return
            if not self.keys:
                self.pen.doubt()
                return
            self.connection = self.random.choice(self.connections)
            time.sleep(self.random.uniform(0.05, 0.3))
            if not self.board.publishing.value:
                ended = ended or time.monotonic()
                if time.monotonic() - ended > AFTERWARDS_SECONDS:
                    self.problems.append(f"{entry.writer}/{entry.tx} was never acknowledged")
                    return

    def _try(self, entry, request, headers):
        """True if the entry's fate is known now."""
        try:
            status, body = self.connection.post(request.target, headers, request.body)
        except OSError:
            time.sleep(0.02)
            return False
        if status in (200, 201):
            acknowledged(entry, body)
            self.board.written[self.hand] += entry.count
            if self.random.random() < 0.02:
                self.connection = self.random.choice(self.connections)
            return True
        if status == 503:
            self.board.unavailable[self.hand] += 1
            time.sleep(0.05)
            return False
        if status == 429:
            return False
        entry.outcome = ABORTED
        self.problems.append(f"a POST was answered {status}: {body[:300]!r}")
        return True


def knows_keys(address):
    """Whether a request that is repeated with its key is taken for what it is."""
    connection = Connection(address)
    headers = ["Content-Type: application/json", "Idempotency-Key: does-it-know-keys"]
    statuses = [connection.post("/events?channel=setup", headers, b"1")[0] for _ in range(2)]
    connection.close()
    return statuses == [201, 200]


def publish(hands, rate, addresses, board, keys, seed):
    """Runs one thread for each number in `hands`; (entries, problems)."""
    entries, problems = [], []
    all_publishers = [Publisher(hand, rate / len(hands), addresses, board, keys, entries,
                                problems, seed) for hand in hands]
    run_threads([publisher.run for publisher in all_publishers], problems)
    return entries, problems


def run_threads(targets, problems):
    """All of them to their end; what one dies of is a problem of the run."""

    def guarded(target):
        try:
            target()
        except Exception as error:  # noqa: BLE001 - told, not hidden
            problems.append(f"a publisher failed: {error!r}")

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
