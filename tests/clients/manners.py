"""What each client does with the gateway's small talk.

    full         `200`, `retry:` (one second) and a close, as long as there is no room: it comes
                 back until there is
    heartbeats   the line ":" shows no message
    checkpoint   the id moves, no message is shown; it comes back with that id
"""

from contextlib import ExitStack
from statistics import median

from harness.waiting import wait_until

from .clients import Pages, make_clients
from .relay import Relay
from .world import CHANNEL, World

SEATS = 24
TRIES = 3
HEARTBEATS = 5
SECONDS = 60


class Manners:
    def __init__(self, names):
        self.world = World()
        self.pages = Pages()
        self.clients = make_clients(names, self.pages)
        self.relays = []

    def run(self):
        """[(client, {what: outcome})]; an outcome that begins with "!" is a failure."""
        try:
            outcomes = {client: {} for client in self.clients}
            for name in ("full", "heartbeats", "checkpoint"):
                for client, outcome in getattr(self, f"_{name}")():
                    outcomes[client][name] = outcome
            return list(outcomes.items())
        finally:
            for client in self.clients:
                client.stop()
            for relay in self.relays:
                relay.close()
            self.pages.close()
            self.world.close()

    def _pairs(self):
        return list(zip(self.clients, self.relays))

    def _wait(self, condition, what):
        """For each client that lives; who is not there in time is told in its outcome."""
        def all_of_them():
            return all(condition(client, relay) or client.complaint()
                       for client, relay in self._pairs())

        try:
            wait_until(all_of_them, what, SECONDS)
        except TimeoutError:
            pass

    def _publish(self, text):
        """One event for all; its id, and whom it reached as their newest and only."""
        before = {client: len(client.recording.events) for client in self.clients}
        self.world.database.publish(CHANNEL, f'"{text}"')
        wait_until(lambda: self.world.rows() and self.world.rows()[-1][2] == f'"{text}"',
                   "the event has its number")
        seq = str(self.world.rows()[-1][0])
        self._wait(lambda client, _: len(client.recording.events) > before[client],
                   f"{text!r} arrives")
        return {client: client.recording.events[before[client]:] == [
            (seq, "message", f'"{text}"')] for client in self.clients}

    def _full(self):
        gateway = self.world.start("a", limits__connections=str(SEATS),
                                   stream__retry="1s")
        self.relays = [Relay([gateway]) for _ in self.clients]
        with ExitStack() as guests:
            for _ in range(SEATS):
                guests.enter_context(gateway.subscribe("elsewhere"))
            for client, relay in self._pairs():
                client.start(f"{relay.url}/events?channel={CHANNEL}")
            self._wait(lambda _, relay: len(relay.requests) > TRIES, "it tries again")
            early = {client: list(client.recording.events) for client in self.clients}
        tries = {relay: relay.times[:] for relay in self.relays}
        self._wait(lambda _, relay: relay.heartbeats() > 0, "it is let in")
        arrived = self._publish("let in")
        for client, relay in self._pairs():
            times = tries[relay]
            good = len(times) > TRIES and not early[client] and arrived[client]
            apart = median(after - before for before, after in zip(times, times[1:])) if good else 0
            yield client, f"{len(times)} tries, {apart:.1f} s apart, let in" if good else (
                f"! {len(times)} tries, messages {early[client]}, event: {arrived[client]}"
                f" {client.complaint() or ''}")

    def _heartbeats(self):
        before = {relay: relay.heartbeats() for relay in self.relays}
        messages = {client: len(client.recording.events) for client in self.clients}
        self._wait(lambda _, relay: relay.heartbeats() >= before[relay] + HEARTBEATS,
                   "heartbeats come")
        arrived = self._publish("after heartbeats")
        for client, relay in self._pairs():
            count = relay.heartbeats() - before[relay]
            shown = len(client.recording.events) - messages[client] - 1
            good = count >= HEARTBEATS and shown == 0 and arrived[client]
            yield client, f"{count} came, none shown" if good else (
                f"! {count} came, {shown} shown, event: {arrived[client]}")

    def _checkpoint(self):
        """By the relay, byte for byte as a gateway sends it to who has been quiet for long,
        with the id of an event on another channel."""
        self.world.database.publish("elsewhere", '"x"')
        wait_until(lambda: self.world.rows("elsewhere"), "the other event has its number")
        seq = self.world.rows("elsewhere")[-1][0]
        messages = {client: len(client.recording.events) for client in self.clients}
        for relay in self.relays:
            relay.slip_in(b"id: %d\nevent: checkpoint\ndata:\n\n" % seq)
        before = {relay: relay.heartbeats() for relay in self.relays}
        self._wait(lambda _, relay: relay.heartbeats() >= before[relay] + 2,
                   "it is passed on")
        asked = {relay: len(relay.requests) for relay in self.relays}
        for relay in self.relays:
            relay.cut_all("close")
        self._wait(lambda _, relay: len(relay.requests) > asked[relay], "it comes back")
        arrived = self._publish("after a checkpoint")
        for client, relay in self._pairs():
            shown = len(client.recording.events) - messages[client] - 1
            came_with = relay.requests[-1] if relay.requests else ""
            good = (came_with.isdigit() and int(came_with) >= seq and shown == 0
                    and arrived[client] and not client.recording.gaps)
            yield client, "came back with its id, none shown" if good else (
                f"! came back with {came_with!r} instead of {seq}, {shown} shown,"
                f" event: {arrived[client]}, gaps: {client.recording.gaps}")
