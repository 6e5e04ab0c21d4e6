"""Servers take turns under the same load, round after round."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from . import figures, machine
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

    def arguments(self, seconds, turns=1):
        """`turns`: of so many, one second is this one's."""
        return ["--subscribers", self.subscribers, "--channels", self.channels,
                "--rate", self.rate, "--burst", self.burst,
                "--seconds", round(self.seconds * seconds * turns, 2),
                "--warmup", self.warmup * turns, *self.more]

    def timeout(self, seconds, turns=1):
        return (self.seconds * seconds + self.warmup) * turns + SLACK_SECONDS


# What a server can do wrong without ending the whole run.
PROBLEMS = (NotMeasured, TimeoutError, OSError, AssertionError)


def visit(world, names, load, seconds):
    """The servers, started for it, under the same load: {name: what load says about it, or the
    problem}. Several are there at the same time and take turns, second by second, on one core:
    what the machine's neighbours do meanwhile, they do to all."""
    turns = len(names)
    found = {}

    def measure(name, server, slot):
        slots = ["--slot", f"{slot}/{turns}"] if turns > 1 else []
        try:
            found[name] = run("load", *server.load_arguments(), *load.arguments(seconds, turns),
                              *slots, timeout=load.timeout(seconds, turns))
        except PROBLEMS as problem:
            found[name] = problem

    with ExitStack() as stack, ThreadPoolExecutor(turns) as pool:
        servers = {}
        for name in names:
            try:
                servers[name] = stack.enter_context(world.start(name))
            except PROBLEMS as problem:
                found[name] = problem
        if turns > 1:
            stack.enter_context(machine.cores_apart(
                [pid for server in servers.values() for pid in server.pids]))
        for name, server in servers.items():
            pool.submit(measure, name, server, names.index(name))
    return found


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


def alternate(bench, row, loads, rounds=None, together=()):
    """loads: {server: its Load}. Those of `together`, which have the same, are measured at the same
    time; the others one after the other. Peers that are slow take part in fewer rounds:
    {server: n}. Who could not be measured once is not asked again."""
    found = Rounds()
    count = {name: min(bench.rounds, (rounds or {}).get(name, bench.rounds)) for name in loads}
    groups = [tuple(together)] if together else []
    groups += [(name,) for name in loads if name not in together]
    for number in range(bench.rounds):
        for group in groups:
            names = [name for name in group
                     if number < count[name] and name not in found.missing]
            if not names:
                continue
            results = visit(bench.world, names, loads[names[0]], bench.seconds)
            for name, result in results.items():
                if isinstance(result, Exception):
                    found.missing[name] = str(result)
                    say(f"{row}: {SERVERS[name].title}: {result}")
                    continue
                found.results.setdefault(name, []).append(result)
                say(f"{row}: round {number + 1}: {SERVERS[name].title}: {brief(result)}")
    return found


def brief(result):
    """For the line of progress."""
    return (f"{result['cpu_usec_per_delivery']:.3f} µs a delivery,"
            f" {result['deliveries_per_second']:.0f} deliveries/s,"
            f" p99 {result['latency_usec']['p99'] / 1000:.2f} ms")
