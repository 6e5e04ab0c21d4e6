"""Servers take turns under the same load, round after round."""

from dataclasses import dataclass

from . import figures
from .programs import NotMeasured, run, say
from .servers import SERVERS

# Beside what is measured: connecting thousands, and waiting for what is under way.
SLACK_SECONDS = 60


@dataclass
class Load:
    """What `load` is told."""

    subscribers: int
    rate: float
    channels: int = 1
    burst: int = 1
    seconds: float = 1.0  # times BENCH_SECONDS
    warmup: float = 1.0
    more: tuple = ()

    def arguments(self, seconds):
        return ["--subscribers", self.subscribers, "--channels", self.channels,
                "--rate", self.rate, "--burst", self.burst,
                "--seconds", round(self.seconds * seconds, 2), "--warmup", self.warmup,
                *self.more]


def visit(world, name, load, seconds):
    """One server, started for it, under one load; what load says about it."""
    with world.start(name) as server:
        return run("load", *server.load_arguments(), *load.arguments(seconds),
                   timeout=load.seconds * seconds + load.warmup + SLACK_SECONDS)


class Rounds:
    """What each server did in each round, and why one could not be measured."""

    def __init__(self):
        self.results = {}
        self.missing = {}

    def values(self, name, key):
        return [key(result) for result in self.results.get(name, ())]

    def compare(self, what, key, unit, against, target=None, relation="<=", ours="gateway"):
        """The gateway's figure beside another's, which may have had fewer rounds."""
        title = SERVERS[against].title
        for name in (ours, against):
            if name in self.missing:
                return figures.Check(what, against=title, missing=self.missing[name])
        return figures.compare(what, self.values(ours, key), self.values(against, key), unit,
                               title, target, relation)

    def limit(self, what, key, unit, target=None, relation="<=", ours="gateway"):
        """The gateway's median, held against a number."""
        if ours in self.missing:
            return figures.Check(what, missing=self.missing[ours])
        return figures.limit(what, figures.median(self.values(ours, key)), unit, target,
                             relation)

    def as_json(self):
        return {"results": self.results, "missing": self.missing}


def alternate(bench, row, loads, rounds=None):
    """loads: {server: its Load}. Peers that are slow take part in fewer rounds: {server: n}.
    Who could not be measured once is not asked again."""
    found = Rounds()
    count = {name: min(bench.rounds, (rounds or {}).get(name, bench.rounds)) for name in loads}
    for number in range(bench.rounds):
        for name, load in loads.items():
            if number >= count[name] or name in found.missing:
                continue
            try:
                result = visit(bench.world, name, load, bench.seconds)
            except (NotMeasured, TimeoutError, OSError, AssertionError) as problem:
                found.missing[name] = str(problem)
                say(f"{row}: {SERVERS[name].title}: {problem}")
                continue
            found.results.setdefault(name, []).append(result)
            say(f"{row}: round {number + 1}: {SERVERS[name].title}: {brief(result)}")
    return found


def brief(result):
    """For the line of progress."""
    return (f"{result['cpu_usec_per_delivery']:.3f} µs a delivery,"
            f" {result['deliveries_per_second']:.0f} deliveries/s,"
            f" p99 {result['latency_usec']['p99'] / 1000:.2f} ms")
