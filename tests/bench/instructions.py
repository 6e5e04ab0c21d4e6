"""How many instructions the shard's thread spends on one delivered message.

Counted by callgrind on build/bench/ring, the gateway without its database. Unlike a time the
count hardly depends on what else the machine does. Start-up is not in it: it is taken twice,
over a different number of events, with the subscribers connected, and the difference divided.
What the kernel does in send(2) is not counted, and takes a hundred times as long.

    cd tests && python3 -B -m bench.instructions
"""

import collections
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.tools import REPOSITORY, die_with_parent, find_tool
from harness.waiting import wait_until

from . import machine
from .programs import program

STEP = 40                # events of the shorter count; the longer one has three times as many
SUBSCRIBERS = 200
MANY_SUBSCRIBERS = 2000
BURST = 100
LOOKS = 3                # the least counts: time that passes costs, too, once a turn of the wheel
HEARTBEATS = 3           # per subscriber, when they are counted
PATIENCE = 60

# Kept for metrics and heartbeats, in the function that sends.
KEPT_IN_SENDING = re.compile(r"sent_bytes|->delivered|last_sent_usec|told_seq")
KEPT_ELSEWHERE = {"stats.c", "wheel.c", "clock.c", "connection.c", "thread.c"}

Profile = collections.namedtuple("Profile", "instructions sends lines")


# -- what callgrind writes --

def read_profile(text):
    """Instructions and calls of send(2) in all, and instructions by (file, line)."""
    names, lines = {}, collections.Counter()
    file, called, line, sends, is_call = "", "", 0, 0, False
    for row in text.splitlines():
        spec = re.match(r"(c?)(fl|fi|fe|fn)=\((\d+)\)(?: (.*))?$", row)
        cost = re.match(r"([+-]?\d+|\*) (\d+)$", row)
        if spec:
            key = (spec[2] == "fn", spec[3])
            names.setdefault(key, spec[4])
            if spec[1]:
                called = names[key] if spec[2] == "fn" else called
            elif spec[2] != "fn":
                file = names[key]
        elif row.startswith("calls="):
            sends += int(row.split()[0][6:]) if re.match("(send|sendmsg)$", called) else 0
            is_call = True
        elif cost:
            if cost[1] != "*":
                line = int(cost[1]) + (line if cost[1][0] in "+-" else 0)
            if not is_call:  # what a callee took is listed with the callee
                lines[(Path(file).name, line)] += int(cost[2])
            is_call = False
    return Profile(sum(lines.values()), sends, lines)


class Counted:
    """build/bench/ring under callgrind, with its subscribers."""

    def __init__(self, subscribers, channels=1, heartbeat="1h"):
        self.directory = Path(tempfile.mkdtemp(prefix="pgsse-count-"))
        self.sockets, self.parts = [], 0
        self.channels = channels
        machine.raise_file_limit()
        log = open(self.directory / "log", "wb")
        self.process = subprocess.Popen(
            [find_tool("valgrind"), "--tool=callgrind", "--separate-threads=yes",
             f"--callgrind-out-file={self.directory}/out", str(program("ring")), "--port", "0",
             "--publish-port", "0", "--set", f"stream.heartbeat={heartbeat}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=die_with_parent())
        log.close()
        try:
            found = wait_until(self._ports, "the ring listens", PATIENCE)
            self.feed = socket.create_connection(("127.0.0.1", int(found[2])), PATIENCE)
            for i in range(subscribers):
                self.sockets.append(self._subscribe(int(found[1]), i % channels))
            for stream in self.sockets:
                self._take(stream, b"checkpoint", 1)
            self.publish(0)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for stream in self.sockets:
            stream.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        finally:
            self.process.kill()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _ports(self):
        log = (self.directory / "log").read_text()
        if self.process.poll() is not None:
            raise RuntimeError(f"the ring ended with {self.process.returncode}:\n{log}")
        return re.search(r"listening on 127\.0\.0\.1:(\d+), for events on port (\d+)", log)

    @staticmethod
    def _subscribe(port, channel):
        stream = socket.create_connection(("127.0.0.1", port), PATIENCE)
        stream.sendall(b"GET /events?channel=c%d HTTP/1.1\r\nHost: bench\r\n\r\n" % channel)
        return stream

    @staticmethod
    def _take(stream, what, count):
        """Reads until `what` has come so many times; returns how many times it has."""
        seen, kept = 0, b""
        while seen < count:
            received = stream.recv(1 << 20)
            if not received:
                raise ConnectionError("a stream ended")
            kept += received
            seen = kept.count(what)
        return seen

    def publish(self, event, burst=1):
        """`burst` events at once, and waits until all who listen to their channel have them."""
        channel = event % self.channels
        body = b'{"text":"0123456789abcdefghijklmnopqrstuvwxyz"}\n' * burst
        self.feed.sendall(b"POST /events?channel=c%d HTTP/1.1\r\nHost: bench\r\n"
                          b"Content-Length: %d\r\n\r\n%s" % (channel, len(body), body))
        self._take(self.feed, b"HTTP/1.1 202", 1)
        for stream in self.sockets[channel::self.channels]:
            seen = self._take(stream, b"data: {", burst)
            assert seen == burst, f"{seen} events instead of {burst}"

    def take_heartbeats(self, count):
        for stream in self.sockets:
            self._take(stream, b"\r\n:\n\r\n", count)

    def count(self, work):
        """The profile of the shard's thread while work() is done."""
        self._control("--zero")
        work()
        self._control("--dump")
        self.parts += 1
        for path in self.directory.glob(f"out.{self.parts}-*"):
            text = path.read_text()
            if "fanout_round" in text:
                return read_profile(text)
        raise RuntimeError("callgrind has not seen the shard's thread")

    def _control(self, what):
        subprocess.run([find_tool("callgrind_control"), what, str(self.process.pid)],
                       check=True, capture_output=True, timeout=PATIENCE)

    def slope(self, deliveries, burst=1, step=STEP):
        """One more of `deliveries`: (instructions, calls of send, profile of the difference);
        one event is published per step, or `burst` of them at once."""
        def run(events):
            counts = [self.count(lambda: [self.publish(i, burst) for i in range(events)])
                      for _ in range(LOOKS)]
            return min(counts, key=lambda profile: profile.instructions)

        few, many = run(step), run(3 * step)
        more = 2 * step * deliveries
        return ((many.instructions - few.instructions) / more,
                (many.sends - few.sends) / more,
                {place: (cost - few.lines[place]) / more for place, cost in many.lines.items()})


# -- figures --

def kept_per_message(lines):
    """Of these instructions, those for metrics, heartbeats, deadlines and limits."""
    source = (REPOSITORY / "gateway" / "stream.c").read_text().splitlines()
    kept = 0.0
    for (file, line), cost in lines.items():
        in_sending = (file == "stream.c" and 0 < line <= len(source)
                      and KEPT_IN_SENDING.search(source[line - 1]))
        kept += cost if in_sending or file in KEPT_ELSEWHERE else 0
    return kept


def measure_one_channel():
    """Everybody listens to one channel."""
    with Counted(SUBSCRIBERS) as ring:
        each, sends, lines = ring.slope(SUBSCRIBERS)
        burst, burst_sends, _ = ring.slope(SUBSCRIBERS * BURST, BURST, STEP // 4)
    return {"per_message": each, "sends_per_message": sends,
            "kept_per_message": kept_per_message(lines),
            "per_message_in_bursts": burst, "sends_per_message_in_bursts": burst_sends}


def measure_one_of(subscribers):
    """Each listens to a channel of his own: what does an event for one of them cost?"""
    with Counted(subscribers, channels=subscribers) as ring:
        return ring.slope(1, step=2 * STEP)[0]


def measure_heartbeat():
    with Counted(SUBSCRIBERS, heartbeat="1s") as ring:
        profile = ring.count(lambda: ring.take_heartbeats(HEARTBEATS))
    return profile.instructions / profile.sends


def measure():
    figures = measure_one_channel()
    figures[f"per_event_for_one_of_{SUBSCRIBERS}"] = measure_one_of(SUBSCRIBERS)
    figures[f"per_event_for_one_of_{MANY_SUBSCRIBERS}"] = measure_one_of(MANY_SUBSCRIBERS)
    figures["per_heartbeat"] = measure_heartbeat()
    return {name: round(figure, 3) for name, figure in figures.items()}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=4)
    print()
