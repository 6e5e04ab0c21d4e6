"""Does anything grow? Subscribers leave and come back, others publish and look at /metrics.

    make bench BENCH_ROWS=churn BENCH_CHURN_SECONDS=3600
    python3 -m bench.churn [seconds] [subscribers] [departures a second]

The ring is small, and full from the beginning. The server's anonymous memory is taken every
second (that in files is libraries, of which its share falls and rises with the processes that
others run); what counts is the slope after the first quarter, by which time whatever is made
once has been made. A run of half a minute can tell a leak for each departure, an hour's a slow one: a page
is 4096 bytes, and so many departures are few thousand. It is also said what was open at the
end that was not open when the first quarter was over.
"""

import json
import random
import statistics
import sys
import time

from .ground import ground
from .machine import raise_file_limit
from .memory import Holder, chrome_header, pss_bytes

SETTINGS = {"ring.bytes": "1MiB"}
RING_BYTES = 1 << 20

CHANNELS = 20
POSTS_PER_SECOND = 20
SAMPLE_SECONDS = 1.0
HOUR = 3600


def slope(samples):
    """Bytes an hour, by the medians of all pairs (Theil and Sen): a momentary peak, or a
    step near one end, does not make a trend."""
    if len(samples) < 4:
        raise ValueError("too few samples for a slope")
    thin = samples[::max(1, len(samples) // 300)]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for i, a in enumerate(thin) for b in thin[i + 1:]]
    return statistics.median(slopes) * HOUR


class Churn:
    def __init__(self, gateway, subscribers, rate):
        self.gateway = gateway
        self.rate = rate
        self.chance = random.Random(1)
        self.holder = Holder(gateway.address)
        self.holder.connect([self.header() for _ in range(subscribers)])
        self.departures = 0
        self.posts = 0

    def header(self):
        return chrome_header(f"/events?channel=c{self.chance.randrange(CHANNELS)}")

    def fill_ring(self):
        for _ in range(2 * RING_BYTES // 65536):
            self.publish(65536)

    def replace(self):
        """One leaves, without a word, and another one comes."""
        at = self.chance.randrange(len(self.holder.sockets))
        self.holder.sockets[at].close()
        self.holder.connect([self.header()])
        self.holder.sockets[at] = self.holder.sockets.pop()
        self.departures += 1

    def drain(self):
        """Everybody reads what there is."""
        for connection in self.holder.sockets:
            try:
                while connection.recv(65536):
                    pass
            except BlockingIOError:
                pass

    def publish(self, size):
        answer = self.gateway.post(
            json.dumps([{"channel": f"c{self.chance.randrange(CHANNELS)}", "data": "x" * size}]))
        if answer.status != 201:
            raise RuntimeError(f"a POST was answered {answer}")

    def post(self):
        self.publish(self.chance.choice((1, 50, 500, 5000)))
        self.posts += 1

    def tick(self):
        """A hundredth of a second's work, for as long as it takes."""
        for what, rate in ((self.replace, self.rate), (self.post, POSTS_PER_SECOND)):
            whole, part = divmod(rate / 100, 1)
            for _ in range(int(whole) + (self.chance.random() < part)):
                what()


def descriptors_at_rest(gateway, subscribers):
    """With all subscribers there, and nobody about to leave."""
    gateway.wait_metric("pgsse_streams", subscribers)
    counts = []
    for _ in range(10):
        counts.append(gateway.fd_count())
        time.sleep(0.02)
    return min(counts)


def measure(gateway, seconds=30, subscribers=1000, rate=200):
    """Bytes an hour by which a gateway grows that was started with SETTINGS."""
    raise_file_limit()
    churn = Churn(gateway, subscribers, rate)
    churn.fill_ring()
    samples = []
    descriptors = None
    began = tick = time.monotonic()
    sample = began + SAMPLE_SECONDS
    with churn.holder:
        while tick < began + seconds:
            churn.tick()
            now = time.monotonic()
            if now >= sample:
                sample += SAMPLE_SECONDS
                churn.drain()
                gateway.metrics()
                samples.append((now - began, pss_bytes(gateway.pid, "_Anon")))
            if descriptors is None and now > began + seconds / 4:
                descriptors = descriptors_at_rest(gateway, subscribers)
            tick = max(tick + 0.01, now)
            time.sleep(max(0, tick - time.monotonic()))
        descriptors = descriptors_at_rest(gateway, subscribers) - descriptors
    settled = [entry for entry in samples if entry[0] > seconds / 4]
    return {
        "seconds": seconds,
        "subscribers": subscribers,
        "departures": churn.departures,
        "posts": churn.posts,
        "anonymous_bytes_after_first_quarter": settled[0][1],
        "anonymous_bytes_at_end": settled[-1][1],
        "anonymous_bytes_max": max(bytes_ for _, bytes_ in settled),
        "anonymous_bytes_per_hour": round(slope(settled)),
        "anonymous_bytes_per_departure": round(
            slope(settled) / HOUR * seconds / churn.departures, 2),
        "descriptors_more": descriptors,
    }


def main():
    numbers = [float(text) for text in sys.argv[1:]]
    with ground(SETTINGS) as (_, gateway):
        print(json.dumps(measure(gateway, *(int(number) for number in numbers))))


if __name__ == "__main__":
    main()
