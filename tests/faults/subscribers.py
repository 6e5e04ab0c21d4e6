"""Many subscribers in one process, each of which knows what a client knows: its last id.

Some stay for the whole run, some leave and come back at random in every rude way there is,
to whichever gateway; some read so slowly that they are overtaken; some come late. What each
has seen is kept as ids and checksums of frames, which the verdict compares with the table.
"""

import array
import heapq
import itertools
import select
import socket
import struct
import time
import zlib
from urllib.parse import quote

from .traffic import ALL_CHANNELS, BEGIN, CHANNELS, END, PROBE, PROBE_CHANNEL, matches
from .wire import Framer, Unchunker, WireError

# A stream that gives no byte for so long, not even a heartbeat, is given up by its client.
SILENCE_SECONDS = 12.0
CONNECT_SECONDS = 6.0
SLOW_BYTES = 3000
SLOW_SECONDS = 0.06

# The phases of a run, told by the main process.
RUN, CALM, STOP = range(3)


class Habits:
    """What kind of a subscriber it is."""

    def __init__(self, name, channels=("*",), types=(), stay=None, wait=0.4, slow=False,
                 http10=False, late=False, gateway=None):
        self.name = name
        self.channels = channels
        self.types = types
        self.stay = stay        # (least, most) seconds until it leaves; None: it stays
        self.wait = wait        # up to how long it waits before it comes back
        self.slow = slow
        self.http10 = http10
        self.late = late        # its first connection comes in the middle of the run
        self.gateway = gateway  # always to this one; None: to any


def usual_crowd(gateways, restless=10):
    """The subscribers of a world; the first of them, one a gateway, wait for probes."""
    crowd = [Habits("prober", (PROBE_CHANNEL,), wait=0.02, gateway=number)
             for number in range(gateways)]
    for number in range(gateways):
        crowd += [Habits("steady", gateway=number),
                  Habits("steady", ("orders.*",), gateway=number),
                  Habits("steady", ("quiet",), gateway=number),
                  Habits("slow", slow=True, gateway=number)]
    crowd += [Habits("typed", types=("created",)),
              Habits("typed", ("users.1", "orders.paid"), ("changed", "message"), (0.5, 4)),
              Habits("old", ("users.1", "news"), stay=(1, 5), http10=True),
              Habits("late", ("orders.*", "logs"), stay=(1, 3), late=True),
              Habits("late", late=True)]
    wishes = itertools.cycle([("*",), ("orders.*",), ("users.1", "users.2"), ("news",), ("logs",),
                              ("orders.new", "quiet", "logs"), ("quiet",)])
    stays = itertools.cycle([(0.05, 0.6), (0.3, 2), (0.5, 5)])
    crowd += [Habits("restless", next(wishes), stay=next(stays)) for _ in range(restless)]
    return crowd


class Segment:
    """What was seen without anybody saying `gap` in between."""

    def __init__(self, after):
        self.after = after  # the id of the gap it begins with; None: no gap before it
        self.gap = None     # what that gap said
        self.ids = array.array("q")
        self.sums = array.array("I")
        self.checkpoints = []  # (how many ids stood before it, its id)


class Seen:
    """What a subscriber hands in at the end."""

    def __init__(self, habits):
        self.name = habits.name
        self.channels = habits.channels
        self.types = habits.types and (*habits.types, BEGIN, END, PROBE)
        self.late = habits.late
        self.segments = [Segment(None)]
        self.resumes = 0
        self.problems = []
        self.finished = False


class Subscriber:
    def __init__(self, number, habits, crowd):
        self.habits = habits
        self.crowd = crowd
        self.seen = Seen(habits)
        self.last_id = None
        self.sock = None
        self.began = self.counted = self.in_body = False
        self.generation = 0  # of the connection: what was planned for an older one is void
        channels = {name for name in ALL_CHANNELS
                    if any(matches(pattern, name) for pattern in habits.channels)}
        self.ends_missing = set(channels)
        self.begins_missing = set(channels)
        self.label = f"{habits.name} {number} of {','.join(habits.channels)}"

    # -- coming and going ---------------------------------------------------------------

    def open(self):
        self.generation += 1
        self.gateway = self.habits.gateway
        if self.gateway is None:
            self.gateway = self.crowd.random.randrange(len(self.crowd.addresses))
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        if self.habits.slow:
            # Small segments, or a window smaller than one of the loopback's stalls.
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.head = b""
        self.in_body = False
        self.asked = False
        self.heard = time.monotonic()
        self.framer = Framer()
        self.unchunker = None if self.habits.http10 else Unchunker()
        try:
            self.sock.connect(self.crowd.addresses[self.gateway])
        except BlockingIOError:
            pass
        except OSError:
            self.leave()
            return
        self.crowd.watch(self, select.EPOLLIN | select.EPOLLOUT)

    def request(self):
        query = [("channel", name) for name in self.habits.channels]
        if self.seen.types:
            query += [("type", name) for name in self.seen.types]
        query = "&".join(f"{name}={quote(value, safe='*')}" for name, value in query)
        lines = [f"GET /events?{query} HTTP/{'1.0' if self.habits.http10 else '1.1'}",
                 "Host: faults.test", "Accept: text/event-stream"]
        if self.last_id is not None:
            lines.append(f"Last-Event-ID: {self.last_id.decode()}")
        return "\r\n".join([*lines, "", ""]).encode()

    def leave(self, how="close"):
        """The connection ends, from our side or because the other side has ended it."""
        if self.sock is None:
            return
        if how == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif how == "half" and self.in_body:
            try:
                self.take(self.sock.recv(self.crowd.random.randint(1, 700)))
            except OSError:
                pass
        if self.sock is None:  # taking it has ended it
            return
        self.crowd.unwatch(self)
        self.sock.close()
        self.sock = None
        self.generation += 1
        if not self.seen.finished:
            self.crowd.after(self.crowd.random.uniform(0.01, self.habits.wait), self.open, self)

    def leave_at_random(self):
        # Who has no id yet could not ask for what it misses.
        if self.crowd.phase == RUN and self.last_id is not None:
            self.leave(self.crowd.random.choice(("close", "reset", "half")))

    # -- bytes --------------------------------------------------------------------------

    def ready(self, events):
        if not self.asked:
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error:
                self.leave()
                return
            self.asked = True
            try:
                self.sock.send(self.request())
            except OSError:
                self.leave()
                return
            if self.last_id is not None:
                self.seen.resumes += 1
                self.crowd.resumes += 1
            self.crowd.watch(self, select.EPOLLIN, again=True)
            return
        try:
            data = self.sock.recv(SLOW_BYTES if self.is_slow() else 262144)
        except BlockingIOError:
            return
        except OSError:
            self.leave()
            return
        if not data:
            self.leave()
            return
        self.heard = time.monotonic()
        self.take(data)
        if self.is_slow() and self.sock is not None:
            self.crowd.unwatch(self)
            self.crowd.after(SLOW_SECONDS, self.watch_again, self)

    def is_slow(self):
        return self.habits.slow and self.in_body and self.crowd.phase == RUN

    def watch_again(self):
        self.crowd.watch(self, select.EPOLLIN)

    def take(self, data):
        try:
            if not self.in_body:
                data = self._take_head(data)
                if not data:
                    return
            if self.unchunker is not None:
                data = self.unchunker.feed(data)
            self._take_frames(self.framer.feed(data))
            if not self.counted and (data or self.framer.comments):
                self.counted = True
                self.crowd.connected += 1
            if self.unchunker is not None and self.unchunker.ended:
                self.leave()
        except WireError as error:
            self.complain(str(error))
            self.leave()

    def _take_head(self, data):
        self.head += data
        head, found, rest = self.head.partition(b"\r\n\r\n")
        if not found:
            return b""
        if b" 200 " not in head[:16] or b"text/event-stream" not in head:
            raise WireError(f"an EventSource would never come back from {head[:300]!r}")
        if self.unchunker is not None and b"ransfer-Encoding: chunked" not in head:
            self.unchunker = None
        self.in_body = True
        self.head = b""
        stay = self.habits.stay
        if stay is not None and self.crowd.phase == RUN:
            self.crowd.after(self.crowd.random.uniform(*stay), self.leave_at_random, self)
        return rest

    def _take_frames(self, frames):
        segment = self.seen.segments[-1]
        add_id, add_sum, crc32 = segment.ids.append, segment.sums.append, zlib.crc32
        for frame in frames:
            end = frame.index(b"\n")
            if frame.startswith(b"event: ", end + 1):
                type_end = frame.index(b"\n", end + 1)
                special = self.SPECIAL.get(frame[end + 8:type_end])
                if special is not None:
                    self.last_id = frame[4:end]
                    if special(self, frame[type_end + 1:]):
                        segment = self.seen.segments[-1]
                        add_id, add_sum = segment.ids.append, segment.sums.append
                        continue
            try:
                add_id(int(frame[4:end]))
            except (ValueError, OverflowError):
                raise WireError(f"not an id: {frame[:80]!r}") from None
            add_sum(crc32(frame))
        if frames:
            self.last_id = frames[-1][4:frames[-1].index(b"\n")]
            self.crowd.frames += len(frames)

    # Each returns whether the frame is no event.

    def _gap(self, data):
        self.seen.segments.append(Segment(int(self.last_id)))
        self.seen.segments[-1].gap = data.decode(errors="replace")
        return True

    def _checkpoint(self, data):
        if data.strip() != b"data:":
            self.complain(f"a checkpoint with data: {data[:80]!r}")
        segment = self.seen.segments[-1]
        segment.checkpoints.append((len(segment.ids), int(self.last_id)))
        return True

    def _begin(self, data):
        self.begins_missing.discard(self._channel_of(data))
        if not self.begins_missing and not self.began:
            self.began = True
            self.crowd.begun += 1
        return False

    def _end(self, data):
        self.ends_missing.discard(self._channel_of(data))
        if not self.ends_missing and not self.seen.finished:
            self.seen.finished = True
            self.crowd.finished += 1
        return False

    def _probe(self, data):
        if self.habits.name == "prober":
            number = int(data.rpartition(b'"probe":')[2].partition(b"}")[0])
            self.crowd.probe(number, self.gateway)
        return False

    @staticmethod
    def _channel_of(data):
        return data.rpartition(b'"channel":"')[2].partition(b'"')[0].decode()

    SPECIAL = {b"gap": _gap, b"checkpoint": _checkpoint, BEGIN.encode(): _begin,
               END.encode(): _end, PROBE.encode(): _probe}

    def complain(self, text):
        if len(self.seen.problems) < 5:
            self.seen.problems.append(f"{self.label}: {text}")

    def check_alive(self, now):
        if self.sock is None or self.is_slow():
            return
        patience = SILENCE_SECONDS if self.in_body else CONNECT_SECONDS
        if now - self.heard > patience:
            self.crowd.silences += 1
            self.leave()


class Crowd:
    """The loop. Counters are shared with the main process through `board`."""

    def __init__(self, all_habits, addresses, board, random):
        self.addresses = addresses
        self.board = board
        self.random = random
        self.phase = RUN
        self.connected = self.begun = self.finished = 0
        self.frames = self.resumes = self.silences = 0
        self._epoll = select.epoll()
        self._by_fd = {}
        self._due = []
        self._order = itertools.count()
        self.subscribers = [Subscriber(number, habits, self)
                            for number, habits in enumerate(all_habits)]

    def watch(self, subscriber, events, again=False):
        fd = subscriber.sock.fileno()
        if again:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
            self._by_fd[fd] = subscriber

    def unwatch(self, subscriber):
        fd = subscriber.sock.fileno()
        if self._by_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds, action, subscriber):
        """Unless the subscriber's connection is another one by then."""
        heapq.heappush(self._due, (time.monotonic() + seconds, next(self._order), action,
                                   subscriber, subscriber.generation))

    def probe(self, number, gateway):
        if not self.board.probes[number * len(self.addresses) + gateway]:
            self.board.probes[number * len(self.addresses) + gateway] = time.monotonic()

    def run(self):
        for subscriber in self.subscribers:
            if subscriber.habits.late:
                self.after(self.random.uniform(1, 4), subscriber.open, subscriber)
            else:
                subscriber.open()
        checked = 0.0
        while self.phase != STOP:
            now = time.monotonic()
            while self._due and self._due[0][0] <= now:
                _, _, action, subscriber, generation = heapq.heappop(self._due)
                if generation == subscriber.generation:
                    action()
            if now - checked > 0.5:
                checked = now
                for subscriber in self.subscribers:
                    subscriber.check_alive(now)
            for fd, events in self._epoll.poll(0.02):
                subscriber = self._by_fd.get(fd)
                if subscriber is not None:
                    subscriber.ready(events)
            self._show()
        for subscriber in self.subscribers:
            subscriber.seen.finished = not subscriber.ends_missing
            if subscriber.sock is not None:
                subscriber.sock.close()
        return [subscriber.seen for subscriber in self.subscribers]

    def _show(self):
        board = self.board
        self.phase = board.phase.value
        board.connected.value = self.connected
        board.begun.value = self.begun
        board.finished.value = self.finished
        board.open.value = sum(each.sock is not None and each.in_body
                               for each in self.subscribers)
        board.frames.value = self.frames
        board.resumes.value = self.resumes
        board.silences.value = self.silences


def early_count(all_habits):
    return sum(not habits.late for habits in all_habits)


assert PROBE_CHANNEL not in CHANNELS
