"""The long test: ten thousand events in bursts, and every way to be cut off.

Each client has a relay of its own, which cuts where its plan says. Besides, things happen to
the gateways themselves:

    moved      every stream is cut and comes back to the other gateway
    killed     kill -9 of one gateway; its clients go to the other one
    ended      SIGTERM of one gateway, which says goodbye to its clients
    restarted  kill -9 of both; clients are refused until the same are there again
"""

import random
import sys
import time

from harness.waiting import Deadline, wait_until

from .clients import Pages, make_clients
from .relay import ENDS, PLACES, Cut, Relay
from .verdict import judge
from .world import CHANNEL, Proxy, Publishers, World

FRONTS = ("direct", "nginx", "nginx-later", "haproxy")
FAULTS = ("moved", "killed", "ended", "restarted")

START_SECONDS = 90   # browsers, on a busy machine
FAULT_SECONDS = 45   # until every client has got something again
CUTS_SECONDS = 150
END_SECONDS = 60


def progress(text):
    print(text, file=sys.stderr, flush=True)


def cuts_of(random_numbers):
    """Each place with each end, and two for readers whose line was stuck before."""
    cuts = [Cut(place, end, random_numbers.randrange(2, 60)) for place in PLACES
            for end in ENDS]
    cuts += [Cut(place, "reset", 2, stall_seconds=1) for place in PLACES[:2]]
    random_numbers.shuffle(cuts)
    return cuts


class Burst:
    """One run with one front: one of FRONTS."""

    def __init__(self, front, names, events, faults, seed):
        self.front, self.events, self.faults = front, events, faults
        self.patient = front in ("nginx", "haproxy")
        self.random = random.Random(seed)
        self.world = World()
        self.proxy = None
        self.pages = Pages()
        self.relays = []
        self.clients = make_clients(names, self.pages)
        self.publishers = Publishers(self.world, seed, pace=0.4)

    def run(self):
        """[(client, streams that broke, reconnects, verdict)]."""
        try:
            self._open()
            self._first_events()
            self.publishers.start()
            self._plan()
            for fault in self.faults:
                progress(f"{self.front}: {fault}")
                getattr(self, f"_{fault}")()
                self._wait_for_news(f"what follows on {fault}")
                self._aim()
            self._wait_for_cuts()
            self.publishers.stop()
            self._last_events()
            return self._verdicts()
        finally:
            self._close()

    def _plan(self):
        for relay in self.relays:
            relay.plan(cuts_of(self.random))

    # -- beginning and end --------------------------------------------------------------

    def _open(self):
        a, b = self.world.start("a"), self.world.start("b")
        self.relays = [Relay([a, b] if number % 2 else [b, a], patient=self.patient)
                       for number in range(len(self.clients))]
        urls = [relay.url for relay in self.relays]
        if self.front != "direct":
            self.proxy = Proxy(self.front, self.relays)
            urls = self.proxy.urls
        for client, url in zip(self.clients, urls):
            client.start(f"{url}/events?channel={CHANNEL}")

    def _first_events(self):
        """Each client must have an id before the first cut: without one, nobody can know
        what it has missed."""
        def all_have_one():
            self.world.database.publish(CHANNEL, '"first"')
            return all(client.recording.events or client.complaint() for client in self.clients)

        wait_until(all_have_one, "every client gets events", START_SECONDS, interval=0.25)

    def _last_events(self):
        """Two, so that what comes too much has come when the second is there."""
        for number in (1, 2):
            self.world.database.publish(CHANNEL, f'"last {number}"')
            wait_until(self._all_are_numbered, "every row has its number", END_SECONDS)
            self._wait_for(self._newest(), END_SECONDS)

    def _verdicts(self):
        rows = self.world.rows()
        table = {seq for seq, _, _ in rows}
        absent = [seq for seq in self.publishers.acknowledged if seq not in table]
        if absent:
            raise AssertionError(f"acknowledged but absent: {absent[:10]}")
        results = []
        for client, relay in zip(self.clients, self.relays):
            verdict = judge(rows, client.recording)
            verdict.wrong = client.complaint() or ""
            if relay.planned():
                verdict.wrong = verdict.wrong or f"{relay.planned()} cuts were not made"
            results.append((client, relay.breaks, relay.reconnects, verdict))
        return results

    def _close(self):
        self.publishers.stopping.set()
        for client in self.clients:
            client.stop()
        for relay in self.relays:
            relay.close()
        if self.proxy is not None:
            self.proxy.close()
        self.pages.close()
        self.world.close()

    # -- waiting ------------------------------------------------------------------------

    def _all_are_numbered(self):
        return not self.world.database.execute(
            "SELECT 1 FROM gateway.events WHERE seq IS NULL LIMIT 1")

    def _newest(self):
        return self.world.database.value(
            "SELECT max(seq) FROM gateway.events WHERE channel = %s", (CHANNEL,))

    def _wait_for(self, seq, seconds):
        """Until every client that lives has that event, or the time is over: the verdict
        tells what is missing."""
        deadline = Deadline(seconds)
        while not deadline.passed():
            behind = [pair for pair in self._living() if pair[0].recording.newest < seq]
            if not behind:
                return
            time.sleep(0.05)
        for client, relay in behind:
            client.stuck = f"did not get beyond {client.recording.newest}"
            progress(f"{self.front}: {client.name} {client.stuck}; it said"
                     f" {client.recording.errors[-1:]}; {relay.describe()}")

    def _living(self):
        return [(client, relay) for client, relay in zip(self.clients, self.relays)
                if not client.complaint()]

    def _wait_for_news(self, what):
        """Until every client has something that was published after now."""
        before = self._newest()
        wait_until(lambda: self._newest() > before, f"news for {what}", FAULT_SECONDS)
        self._wait_for(self._newest(), FAULT_SECONDS)

    def _wait_for_cuts(self):
        """Until all cuts are made and as many events published as were wanted."""
        deadline = Deadline(CUTS_SECONDS)
        while not deadline.passed():
            waiting = [relay for _, relay in self._living() if relay.planned()]
            count = self.world.database.value("SELECT count(*) FROM gateway.events")
            if not waiting and count >= self.events:
                return
            time.sleep(0.2)

    # -- what happens to gateways -------------------------------------------------------

    def _aim(self):
        """The relays know the gateways as they are now, half of them each first. Not at once
        after a fault: there the others have to do."""
        gateways = self.world.gateways
        for number, relay in enumerate(self.relays):
            order = "ab" if number % 2 else "ba"
            relay.aim([gateways[name] for name in order])

    def _moved(self):
        for relay in self.relays:
            relay.aim(relay.targets()[::-1])
            relay.cut_all(self.random.choice(ENDS))

    def _killed(self):
        self.world.gateways["a"].kill()
        self.world.start("a")

    def _ended(self):
        self.world.gateways["b"].stop()
        self.world.start("b")

    def _restarted(self):
        """Where the relays are patient, clients are kept waiting instead of refused."""
        if not self.patient:
            for relay in self.relays:
                relay.close_door()
        for gateway in self.world.gateways.values():
            gateway.kill()
        for relay in self.relays:
            relay.aim([])
        for name in "ab":
            self.world.start(name)
        self._aim()
        if not self.patient:
            for relay in self.relays:
                relay.open_door()
