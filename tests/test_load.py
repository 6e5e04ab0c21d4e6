"""The bench's load generator, held against servers that are wrong on purpose: each mistake
must be seen, or no figure of the bench means anything."""

import contextlib
import json
import re
import select
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from harness.tools import find_gateway
from harness.waiting import scaled

SUBSCRIBERS = 60


class Server(threading.Thread):
    """Sends what is POSTed to everybody; `spoil(number, index, frame)` says what the subscriber
    with that index gets instead of the frame."""

    def __init__(self, spoil):
        super().__init__(daemon=True)
        self.spoil = spoil
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.socket.getsockname()[1]
        self.subscribers = []
        self.published = 0

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection):
        head = b""
        while b"\r\n\r\n" not in head:
            more = connection.recv(65536)
            if not more:
                return
            head += more
        if head.startswith(b"GET"):
            self.subscribe(connection, head)
        else:
            with contextlib.suppress(ConnectionResetError):
                self.publish(connection, head)

    def subscribe(self, connection, head):
        self.greet(connection, re.search(rb"channel=(\w+)", head)[1])

    def greet(self, connection, channel):
        self.subscribers.append((connection, channel))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")

    def publish(self, connection, received):
        number = 0
        channel = re.search(rb"channel=(\w+)", received)[1]
        while True:
            head, _, rest = received.partition(b"\r\n\r\n")
            found = re.search(rb"Content-Length: (\d+)", head)
            length = int(found[1]) if found else 0
            if not found or len(rest) < length:
                more = connection.recv(65536)
                if not more:
                    return
                received += more
                continue
            received = rest[length:]
            for line in rest[:length].splitlines():
                self.deliver(number, b"id: %d\ndata: %s\n\n" % (number, line), channel)
                self.published += 1
                number += 1
            connection.sendall(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    def deliver(self, number, frame, channel):
        listening = [connection for connection, name in self.subscribers if name == channel]
        for index, subscriber in enumerate(listening):
            subscriber.sendall(self.spoil(number, index, frame))

    def close(self):
        self.socket.close()
        for subscriber, _ in self.subscribers:
            subscriber.close()


def spoil_one(instead, number=20, index=7):
    def spoil(this_number, this_index, frame):
        return instead(frame) if (this_number, this_index) == (number, index) else frame
    return spoil


def command(server, *options, patience=2):
    """`patience`: seconds until what has not come is missing."""
    return [str(Path(find_gateway()).parent / "bench" / "load"), "--server", "gateway",
            "--port", str(server.port), "--subscribers", str(SUBSCRIBERS), "--rate", "50",
            "--warmup", "0.2", "--seconds", "0.6", "--patience", str(patience), *options]


@contextlib.contextmanager
def serving(server):
    server.start()
    try:
        yield server
    finally:
        server.close()


def load_server(server, *options, patience=2):
    done = subprocess.run(command(server, *options, patience=patience), capture_output=True,
                          text=True, timeout=scaled(60), stdin=subprocess.DEVNULL)
    assert done.returncode in (0, 1) and done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def load(spoil, *options, server_class=Server, patience=2):
    with serving(server_class(spoil)) as server:
        return load_server(server, *options, patience=patience)


@pytest.mark.parametrize("options", [(), ("--count",)])
def test_a_server_that_sends_everything_is_found_to_do_so(options):
    status, result = load(lambda number, index, frame: frame, *options, patience=30)
    assert status == 0, result
    assert result["deliveries"] == 30 * SUBSCRIBERS
    assert result["missing"] == result["doubled"] == 0
    assert 0 < result["latency_usec"]["p50"] <= result["latency_usec"]["max"]


@pytest.mark.parametrize("options", [(), ("--count",)])
def test_one_frame_that_is_missing_is_seen(options):
    status, result = load(spoil_one(lambda frame: b""), *options)
    assert status == 1
    assert result["missing"] >= 1


def test_one_frame_that_comes_twice_is_seen():
    status, result = load(spoil_one(lambda frame: frame + frame), patience=30)
    assert status == 1
    assert result["doubled"] == 1


def test_one_frame_that_comes_twice_is_seen_by_its_bytes():
    status, result = load(spoil_one(lambda frame: frame + frame), "--count")
    assert status == 1
    assert result["missing"] > 0


def test_two_frames_that_change_places_are_seen():
    kept = []

    def swap(number, index, frame):
        if index != 3 or number not in (10, 11):
            return frame
        kept.append(frame)
        return b"" if number == 10 else kept[1] + kept[0]

    status, result = load(swap, patience=6)
    assert status == 1
    assert (result["missing"], result["doubled"]) == (1, 1)


def test_a_frame_that_says_there_is_a_gap_is_seen():
    gap = b"id: 1\nevent: gap\ndata: {}\n\n"
    status, result = load(spoil_one(lambda frame: gap + frame), patience=30)
    assert status == 1
    assert result["gaps"] == 1


class Cutting(Server):
    """Closes one connection behind an event."""

    def deliver(self, number, frame, channel):
        super().deliver(number, frame, channel)
        if number == 25:
            self.subscribers.pop(5)[0].close()


def test_a_connection_that_ends_is_seen():
    status, result = load(lambda number, index, frame: frame, server_class=Cutting)
    assert status == 1
    assert result["lost"] == 1
    assert result["missing"] > 0


class Dated(Server):
    """Remembers when each event was sent."""

    def __init__(self, spoil):
        super().__init__(spoil)
        self.sent_usec = []

    def deliver(self, number, frame, channel):
        self.sent_usec.append(int(re.search(rb'"t":"(\d+)"', frame)[1]))
        super().deliver(number, frame, channel)


@pytest.mark.parametrize("slot", [0, 1])
def test_who_takes_turns_publishes_in_its_own_seconds_only(slot):
    server = Dated(lambda number, index, frame: frame)
    with serving(server):
        status, result = load_server(server, "--slot", f"{slot}/2", "--warmup", "2",
                                     "--seconds", "2", patience=30)
    assert (status, result["events"]) == (0, 50)
    assert {usec // 1_000_000 % 2 for usec in server.sent_usec} == {slot}


def test_who_never_has_its_turn_measured_nothing_and_says_so():
    long_ago = int(time.monotonic() - 10) % 1000
    with serving(Server(lambda number, index, frame: frame)) as server:
        done = subprocess.run(command(server, "--slot", f"{long_ago}/1000"), capture_output=True,
                              text=True, timeout=scaled(60), stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "nothing was published" in done.stderr


@pytest.mark.parametrize("options", [("--slot", "2/2"), ("--seconds", "0"), ("--rate", "0")])
def test_what_makes_no_sense_is_refused(options):
    with serving(Server(lambda number, index, frame: frame)) as server:
        done = subprocess.run(command(server, *options), capture_output=True, text=True,
                              timeout=scaled(60), stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: load")


def test_who_is_held_publishes_nothing_until_it_may_and_stays_until_it_may_go():
    with serving(Server(lambda number, index, frame: frame)) as server, \
            subprocess.Popen(command(server, "--hold", "--each"), stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True) as held:
        assert held.stdout.readline() == "ready\n"
        assert len(server.subscribers) == SUBSCRIBERS
        assert server.published == 0
        print("go", file=held.stdin, flush=True)
        assert held.stdout.readline() == "done\n"
        connections = [connection for connection, _ in server.subscribers]
        assert select.select(connections, [], [], 0)[0] == []  # nobody has hung up
        output, _ = held.communicate(timeout=scaled(60))
    result = json.loads(output)
    assert held.returncode == 0
    assert len(result["each_complete_usec"]) == result["events"] == 30
    assert 0 < max(result["each_complete_usec"]) == result["complete_usec"]["max"]


class Remembering(Server):
    """Sends those who come with an id what came after it, but turns the first few of them away."""

    refusals = 5

    def __init__(self, spoil):
        super().__init__(spoil)
        self.lock = threading.Lock()
        self.frames = {}

    def subscribe(self, connection, head):
        channel = re.search(rb"channel=(\w+)", head)[1]
        last = re.search(rb"Last-Event-ID: (\d+)", head)
        with self.lock:
            if last and self.refusals:
                self.refusals -= 1
                connection.close()
                return
            self.greet(connection, channel)
            for frame in self.frames.get(channel, [])[int(last[1]) + 1:] if last else ():
                connection.sendall(frame)

    def deliver(self, number, frame, channel):
        with self.lock:
            self.frames.setdefault(channel, []).append(frame)
            super().deliver(number, frame, channel)


class Behind(Remembering):
    """Takes longer for an event than it is until the next: much is unread when the last is sent."""

    def deliver(self, number, frame, channel):
        time.sleep(0.05)
        super().deliver(number, frame, channel)


@pytest.mark.parametrize("server_class", [Remembering, Behind])
def test_all_who_return_have_caught_up_and_who_was_turned_away_comes_again(server_class):
    status, result = load(lambda number, index, frame: frame, "--storm", "40",
                          server_class=server_class)
    assert status == 0, result
    storm = result["storm"]
    assert (storm["returning"], storm["caught_up"], storm["refused"]) == (40, 40, 5)
    assert storm["caught_up_seconds"] > 1  # who was turned away has waited
    assert storm["missed_each"] == 29


class Elsewhere(Server):
    """Sends those who come with an id what another server has been sent since, but for one event."""

    def __init__(self, other, lacking):
        super().__init__(None)
        self.other = other
        self.lacking = lacking

    def subscribe(self, connection, head):
        channel = re.search(rb"channel=(\w+)", head)[1]
        last = int(re.search(rb"Last-Event-ID: (\d+)", head)[1])
        self.greet(connection, channel)
        for number, frame in enumerate(self.other.frames[channel]):
            if number > last and number != self.lacking:
                connection.sendall(frame)


@pytest.mark.parametrize("lacking, missing", [(None, 0), (20, 40)])
def test_who_comes_elsewhere_first_is_held_to_the_same(lacking, missing):
    with serving(Remembering(lambda number, index, frame: frame)) as server, \
            serving(Elsewhere(server, lacking)) as elsewhere:
        status, result = load_server(server, "--storm", "40", "--elsewhere", str(elsewhere.port))
    assert (status, result["missing"]) == (missing > 0, missing)
    storm = result["storm"]
    assert (len(elsewhere.subscribers), storm["caught_up"]) == (40, 40)
    assert 0 < storm["caught_up_elsewhere_seconds"] < storm["caught_up_seconds"]
    assert storm["live_p99_elsewhere_usec"] > 0


def test_a_storm_that_is_held_waits_for_a_line_of_its_own():
    with serving(Remembering(lambda number, index, frame: frame)) as server, \
            subprocess.Popen(command(server, "--storm", "40", "--hold"), text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE) as held:
        for word in ("ready", "ready", "done"):
            assert held.stdout.readline() == f"{word}\n"
            assert word == "done" or len(server.subscribers) == SUBSCRIBERS + 1  # and the witness
            print("go", file=held.stdin, flush=True)
        result = json.loads(held.stdout.readline())
    assert result["storm"]["caught_up"] == 40
