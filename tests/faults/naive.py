"""A small gateway that can be told to make mistakes: the checker must see each of them, and
must find nothing when there is none.

    python3 -m faults.naive HOST PORT DSN MISTAKE

It has real sockets and a real LISTEN, and numbers rows as the gateways do. The mistakes:

    (empty)                 none
    resume-by-insertion     a resume reads what was inserted after the client's last event,
                            in the order of insertion, instead of the order of commits
    dropped-notification    of every tenth notification, what it was about is not sent
    doubled-frame           every hundredth frame is sent twice
    swapped-frames          every hundredth pair of frames is sent the wrong way round
    early-acknowledgement   a POST is acknowledged first and committed then

and those of its groups (naive_groups).
"""

import json
import re
import select
import socket
import sys
import threading
import time
from queue import Empty, SimpleQueue
from urllib.parse import parse_qsl, urlsplit

import psycopg

from .naive_groups import GROUP_MISTAKES, Consumer, Groups, settle
from .traffic import matches
from .verdict import frame_of

MISTAKES = ("resume-by-insertion", "dropped-notification", "doubled-frame", "swapped-frames",
            "early-acknowledgement", *GROUP_MISTAKES)
ROWS = "SELECT seq, channel, type, data::text FROM gateway.events WHERE "
EVENT = re.compile(r'\s*\{"channel":"([^"]+)","type":"([^"]+)","data":')
CHUNKED = ("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
           "Transfer-Encoding: chunked\r\n\r\n2\r\n:\n\r\n")
PLAIN = "HTTP/1.0 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n:\n"
HEARTBEAT_SECONDS = 1.0


class Naive:
    def __init__(self, dsn, mistake):
        self.dsn = dsn
        self.mistake = mistake
        self.ready = False
        self.head = None          # the newest seq that was handed out
        self.streams = set()
        self.lock = threading.Lock()  # of head and streams
        self.notifications = 0
        self.groups = Groups(mistake)

    def connect(self):
        return psycopg.connect(self.dsn, autocommit=True, connect_timeout=2,
                               application_name="naive", options="-c statement_timeout=5s")

    # -- from the database --------------------------------------------------------------

    def listen_for_ever(self):
        while True:
            try:
                with self.connect() as connection:
                    self.listen(connection)
            except psycopg.Error:
                self.ready = False
                time.sleep(0.05)

    def listen(self, connection):
        connection.execute("LISTEN gateway_events")
        connection.execute("LISTEN gateway_wake")
        # Asleep for ever: whoever writes rings.
        connection.execute("SELECT pg_try_advisory_lock(1885827955, 3)")
        if self.head is None:
            rows = connection.execute("SELECT coalesce(max(seq), 0) FROM gateway.events")
            self.head = rows.fetchone()[0]
        self.catch_up(connection, notified=False)
        self.ready = True
        pgconn = connection.pgconn
        while True:
            # libpq says what has arrived; a second of silence is asked about anyway.
            pgconn.consume_input()
            notified = False
            while pgconn.notifies():
                notified = True
            self.catch_up(connection, notified)
            if not notified:
                select.select([pgconn.socket], [], [], 0.3)

    def catch_up(self, connection, notified):
        while connection.execute("SELECT gateway.sweep()").fetchone()[0]:
            pass
        rows = connection.execute(ROWS + "seq > %s ORDER BY seq", (self.head,)).fetchall()
        if not rows:
            return
        self.notifications += notified
        dropped = (self.mistake == "dropped-notification" and notified
                   and self.notifications % 10 == 0)
        with self.lock:
            self.head = rows[-1][0]
            for stream in () if dropped else self.streams:
                stream.queue.put(rows)

    # -- from the clients ---------------------------------------------------------------

    def serve(self, sock):
        try:
            with sock:
                sock.settimeout(20)
                buffer = b""
                while (request := read_request(sock, buffer)) is not None:
                    method, target, fields, body, buffer, version = request
                    url = urlsplit(target)
                    query = parse_qsl(url.query)
                    if url.path == "/readyz":
                        answer(sock, "200 OK" if self.ready else "503 Unavailable", {})
                    elif url.path != "/events":
                        answer(sock, settle(self.groups, self.connect, url.path, dict(query)), {})
                    elif method == "POST":
                        self.publish(sock, query, fields, body)
                    elif "group" in dict(query):
                        sock.sendall(PLAIN.encode())
                        Consumer(self.groups, self.connect, dict(query), sock.sendall).run()
                        return
                    else:
                        Stream(self, sock, query, fields, version).run()
                        return
        except (OSError, psycopg.Error):
            pass

    def publish(self, sock, query, fields, body):
        events = parse_events(dict(query), fields, body.decode())
        early = self.mistake == "early-acknowledgement"
        try:
            with self.connect() as connection:
                with connection.transaction():
                    ids = [connection.execute(
                        "INSERT INTO gateway.events (channel, type, data) VALUES (%s, %s, %s)"
                        " RETURNING id", event).fetchone()[0] for event in events]
                    if early:
                        answer(sock, "201 Created", {})
                        time.sleep(0.5)
                while not early and None in (seqs := [seq for (seq,) in connection.execute(
                        "SELECT seq FROM gateway.events WHERE id = ANY (%s) ORDER BY id",
                        (ids,))]):
                    connection.execute("SELECT gateway.sweep()")
        except psycopg.Error:
            if not early:
                answer(sock, "503 Unavailable", {})
            return
        if not early:
            answer(sock, "201 Created", {"events": [{"id": str(seq)} for seq in seqs]})


class Stream:
    def __init__(self, gateway, sock, query, fields, version):
        self.gateway = gateway
        self.sock = sock
        self.patterns = [value for name, value in query if name == "channel"] or ["events"]
        self.types = [value for name, value in query if name == "type"]
        self.last = int(fields["last-event-id"]) if "last-event-id" in fields else None
        self.chunked = version == "HTTP/1.1"
        self.queue = SimpleQueue()
        self.sent = 0

    def run(self):
        gateway = self.gateway
        with gateway.lock:
            joined = gateway.head
            gateway.streams.add(self)
        try:
            self.sock.sendall((CHUNKED if self.chunked else PLAIN).encode())
            if self.last is not None:
                self.send(self.replay(joined))
            while True:
                try:
                    rows = self.queue.get(timeout=HEARTBEAT_SECONDS)
                except Empty:
                    self.write([b":\n"])
                else:
                    # The other gateway may have given it more than this one had read.
                    self.send([row for row in rows if self.last is None or row[0] > self.last])
        finally:
            with gateway.lock:
                gateway.streams.discard(self)

    def replay(self, joined):
        with self.gateway.connect() as connection:
            if self.gateway.mistake == "resume-by-insertion":
                return connection.execute(
                    ROWS + "id > (SELECT id FROM gateway.events WHERE seq = %s) AND seq <= %s"
                    " ORDER BY id", (self.last, joined)).fetchall()
            return connection.execute(ROWS + "seq > %s AND seq <= %s ORDER BY seq",
                                      (self.last, joined)).fetchall()

    def send(self, rows):
        frames = []
        for seq, channel, type, data in rows:
            if any(matches(pattern, channel) for pattern in self.patterns) \
                    and (not self.types or type in self.types):
                frames.append(frame_of(str(seq).encode(), type.encode(), data.encode())
                              + b"\n\n")
                self.sent += 1
                self.go_wrong(frames)
        self.write(frames)

    def go_wrong(self, frames):
        if self.sent % 100 == 0 and self.gateway.mistake == "doubled-frame":
            frames.append(frames[-1])
        if self.sent % 100 < 50 and self.gateway.mistake == "swapped-frames" and len(frames) > 1:
            frames[-2:] = reversed(frames[-2:])
            self.sent += 50

    def write(self, frames):
        if self.chunked:
            frames = [b"%x\r\n%s\r\n" % (len(frame), frame) for frame in frames]
        self.sock.sendall(b"".join(frames))


def read_request(sock, buffer):
    while b"\r\n\r\n" not in buffer:
        data = sock.recv(65536)
        if not data:
            return None
        buffer += data
    head, _, rest = buffer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    method, target, version = first.split(" ")
    fields = {name.lower(): value.strip()
              for name, _, value in (line.partition(":") for line in lines)}
    length = int(fields.get("content-length", 0))
    while len(rest) < length:
        data = sock.recv(65536)
        if not data:
            return None
        rest += data
    return method, target, fields, rest[:length], rest[length:], version


def answer(sock, status, body):
    text = json.dumps(body).encode()
    sock.sendall(f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
                 f"Content-Length: {len(text)}\r\n\r\n".encode() + text)


def parse_events(query, fields, body):
    """(channel, type, data) of each; the data as the text it came as."""
    if "channel" in query:
        return [(query["channel"], query.get("type", "message"), body)]
    events, place = [], 1 if body.startswith("[") else 0
    while found := EVENT.match(body, place):
        _, end = json.JSONDecoder().raw_decode(body, found.end())
        events.append((found[1], found[2], body[found.end():end]))
        place = end + 2  # the closing brace, and a comma or a newline
    return events


def main(host, port, dsn, mistake):
    assert mistake in ("", *MISTAKES), mistake
    naive = Naive(dsn, mistake)
    listening = socket.create_server((host, int(port)), backlog=200)
    threading.Thread(target=naive.listen_for_ever, daemon=True).start()
    while True:
        sock, _ = listening.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=naive.serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
