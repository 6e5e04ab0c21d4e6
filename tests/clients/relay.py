"""The way between one client and the gateways: TCP both ways, until it is cut.

A cut is planned by where it falls (in which part of a frame), how the connection ends, and
after how many frames of the connection. The rest of what the gateway had sent is thrown away,
as by a network that broke at that byte.

The relay knows its gateways in an order and takes the first that lets it in, as a load
balancer would. A patient one, for behind a proxy, also asks again where a gateway was gone
before it began to answer: the proxy would make a 502 of that, and from such an answer an
EventSource never comes back. The relay also keeps what each request said in Last-Event-ID.
"""

import re
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass

# A whole frame of the stream, in or out of its chunk.
FRAME = re.compile(rb"id: ([0-9A-Za-z._-]+)\n(?:event: [^\n]*\n)?(?:data:[^\n]*\n)+\n")
CHUNK = re.compile(rb"[0-9a-fA-F]+\r\n(?:retry: [0-9]+\n)?" + FRAME.pattern + rb"\r\n")
LAST_EVENT_ID = re.compile(rb"\r\nlast-event-id:[ \t]*([^\r\n]*)", re.I)

PLACES = ("in the id", "after the id", "in the data", "before the blank line", "between frames")
ENDS = ("close", "reset")

HOLD_SECONDS = 20


@dataclass
class Cut:
    place: str
    end: str
    after_frames: int
    stall_seconds: float = 0  # nothing is passed on for so long before it


def offset_in(frame, place):
    """How many bytes of this frame (a match of FRAME) still get through."""
    begin, end = frame.span()
    text = frame[0]
    return {
        "in the id": begin + len(b"id: ") + max(1, len(frame[1]) // 2),
        "after the id": begin + text.index(b"\n") + 1,
        "in the data": begin + text.index(b"data:") + (len(text) - text.index(b"data:")) // 2,
        "before the blank line": end - 1,
        "between frames": end,
    }[place]


def close_as(sock, end):
    """With FIN after what was sent, or with RST, which may overtake it."""
    try:
        if end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    sock.close()


class Connection:
    """One connection of the client, in a thread of its own."""

    def __init__(self, relay, client):
        self.relay = relay
        self.client = client
        self.upstream = None
        self.frames = 0
        self.answered = False  # something has come from a gateway
        self.heartbeats = 0
        self.asked = None  # the Last-Event-ID of its request
        self.request = b""
        self.order = None  # an end it was told to come to
        self.extra = []    # frames to be slipped in where none is under way
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            while self._dial() and self._pass_on():
                self.upstream.close()
        except OSError:
            self._end("reset")
        finally:
            self._end("close")
            self.relay.forget(self)

    def _dial(self):
        """The first gateway that lets us in. While none does, the client waits: whoever is to
        be refused has found the door closed."""
        due = time.monotonic() + HOLD_SECONDS
        while time.monotonic() < due and self.order is None:
            for target in self.relay.targets():
                try:
                    self.upstream = socket.create_connection(target.address, 5)
                    self.upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.upstream.sendall(self.request)
                    return True
                except OSError:
                    continue
            time.sleep(0.02)
        return False

    def _pass_on(self):
        """Until the end of either side, or of the order; true to ask once more."""
        while self.order is None:
            ready, _, _ = select.select([self.client, self.upstream], [], [], 0.05)
            if self.client in ready:
                data = self.client.recv(65536)
                if not data:
                    return False
                self._read_request(data)
                try:
                    self.upstream.sendall(data)
                except OSError:
                    return self.relay.patient and not self.answered
            if self.upstream in ready and not self._pass_down():
                return self.relay.patient and not self.answered
        self._end(self.order)
        return False

    def _read_request(self, data):
        self.request += data
        if self.asked is None and b"\r\n\r\n" in self.request:
            found = LAST_EVENT_ID.search(self.request)
            self.asked = found[1].decode() if found else ""
            self.relay.note_request(self)

    def _pass_down(self):
        """What has come from the gateway; False at the end of it."""
        try:
            data = self.upstream.recv(65536)
        except ConnectionResetError:
            if self.answered or not self.relay.patient:
                self._end("reset")
            return False
        if not data:
            return False
        self.answered = True
        self.heartbeats += data.count(b"\n:\n")
        cut = self.relay.next_cut(self)
        offset = self._place(data, cut) if cut else None
        self.frames += data.count(b"id: ")
        if offset is None:
            self.client.sendall(self.relay.change(data))
            # A heartbeat comes whole: behind it no frame is under way.
            while self.extra and data.endswith(b"\n:\n\r\n"):
                self.client.sendall(self.extra.pop(0))
            return True
        if cut.stall_seconds:
            time.sleep(cut.stall_seconds)
        self.client.sendall(data[:offset])
        self.relay.cut_done(cut)
        self._end(cut.end)
        return False

    def _place(self, data, cut):
        """Where in `data` the cut falls: in the frame in its middle, or None."""
        if self.frames < cut.after_frames:
            return None
        frames = list(FRAME.finditer(data))
        return offset_in(frames[len(frames) // 2], cut.place) if frames else None

    def _end(self, how):
        close_as(self.client, how)
        if self.upstream is not None:
            close_as(self.upstream, how)


class Relay:
    """One client's way to the gateways."""

    def __init__(self, targets, patient=False):
        self.patient = patient
        self._targets = list(targets)
        self._lock = threading.Lock()
        self._connections = set()
        self._plan = []
        self.cuts_done = []
        self.breaks = 0         # streams that ended, however
        self.requests = []      # the Last-Event-ID of each stream, "" for none
        self.times = []         # when they came
        self.changes = []       # functions: bytes from a gateway to other bytes
        self._listening = None
        self.address = ("127.0.0.1", 0)
        self.open_door()

    # -- the door -----------------------------------------------------------------------

    def open_door(self):
        door = socket.socket()
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind(self.address)
        door.listen(64)
        door.settimeout(0.1)
        self.address = door.getsockname()
        self._listening = door
        threading.Thread(target=self._accept, args=(door,), daemon=True).start()

    def close_door(self):
        """From now on clients are refused, as where nobody listens."""
        door, self._listening = self._listening, None
        if door is not None:
            door.close()

    def _accept(self, door):
        while self._listening is door:
            try:
                client, _ = door.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            client.settimeout(60)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(self, client)
            with self._lock:
                self._connections.add(connection)
            connection.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.address[1]}"

    def close(self):
        self.close_door()
        self.cut_all("close")

    # -- gateways -----------------------------------------------------------------------

    def targets(self):
        with self._lock:
            return list(self._targets)

    def aim(self, targets):
        with self._lock:
            self._targets = list(targets)

    def cut_all(self, end):
        """Every connection, wherever it is."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            if connection.answered or not self.patient:
                connection.order = end

    # -- what connections ask and tell --------------------------------------------------

    def plan(self, cuts):
        with self._lock:
            self._plan = list(cuts)

    def planned(self):
        with self._lock:
            return len(self._plan)

    def next_cut(self, connection):
        with self._lock:
            return self._plan[0] if self._plan else None

    def cut_done(self, cut):
        with self._lock:
            if self._plan and self._plan[0] is cut:
                self._plan.pop(0)
                self.cuts_done.append(cut)

    def change(self, data):
        for change in self.changes:
            data = change(data)
        return data

    def note_request(self, connection):
        with self._lock:
            self.requests.append(connection.asked)
            self.times.append(time.monotonic())

    def forget(self, connection):
        with self._lock:
            self._connections.discard(connection)
            self.breaks += connection.frames > 0

    def slip_in(self, frame):
        """One more frame for the open stream, in a chunk of its own."""
        chunk = b"%x\r\n%s\r\n" % (len(frame), frame)
        with self._lock:
            for connection in self._connections:
                connection.extra.append(chunk)

    def heartbeats(self):
        """Of the streams that are open."""
        with self._lock:
            return sum(connection.heartbeats for connection in self._connections)

    def describe(self):
        """For whoever wonders why a client gets nothing."""
        with self._lock:
            streams = [f"{each.frames} frames since {each.asked!r}"
                       for each in self._connections]
            return (f"last asked for {self.requests[-3:]}, cut at last {self.cuts_done[-1:]},"
                    f" {len(self._plan)} cuts to go, open: {streams or 'none'}")

    @property
    def reconnects(self):
        with self._lock:
            return max(0, len(self.requests) - 1)
