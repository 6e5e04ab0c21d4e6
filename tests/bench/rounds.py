"""Servers take turns under the same load, round after round."""

from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil

from . import figures, machine
from .programs import NotMeasured, run_together, say
from .servers import SERVERS

# Beside what is measured: connecting thousands, and waiting for what is under way.
SLACK_SECONDS = 60


@dataclass
class Load:
    """What `load` is told, and which server it is for, where that is not its name."""

    subscribers: int
    rate: float
    channels: int = 1
    burst: int = 1
    seconds: float = 1.0  # times BENCH_SECONDS
    warmup: float = 1.0
    more: tuple = ()
    server: str = None
    settings: dict = None  # of the server, beside those that all have

    def times(self, seconds, turns):
        """Seconds to warm up, and to measure, until each of so many had its turns: whole seconds, or
        one would have more of them than the others, or none."""
        own = self.warmup, self.seconds * seconds
        return own if turns == 1 else tuple(ceil(each) * turns for each in own)

    def arguments(self, seconds, turns=1):
        """`turns`: of so many, one second is this one's."""
        warmup, measured = self.times(seconds, turns)
        return ["--subscribers", self.subscribers, "--channels", self.channels,
                "--rate", self.rate, "--burst", self.burst, "--seconds", round(measured, 2),
                "--warmup", warmup, *self.more]

    def timeout(self, seconds, turns=1):
        return sum(self.times(seconds, turns)) + SLACK_SECONDS


# What a server can do wrong without ending the whole run.
PROBLEMS = (NotMeasured, TimeoutError, OSError, AssertionError)


def visit(world, loads, seconds):
    """The servers of loads ({name: Load}), started for it: {name: what load says about it, or the
    problem}. Several are there at the same time, begin together and take turns, second by second,
    on one core: what the machine's neighbours do meanwhile, they do to all."""
    turns = len(loads)
    found, servers = {}, {}
    with ExitStack() as stack:
        for name, load in loads.items():
            try:
                options = {"settings": load.settings} if load.settings else {}
                servers[name] = stack.enter_context(world.start(load.server or name, **options))
            except PROBLEMS as problem:
                found[name] = problem
        if turns > 1:
            stack.enter_context(machine.cores_apart(
                [pid for server in servers.values() for pid in server.pids]))
        commands = {}
        for slot, (name, load) in enumerate(loads.items()):
            if name in servers:
                commands[name] = ("load", [*servers[name].load_arguments(),
                                           *load.arguments(seconds, turns),
                                           *(["--slot", f"{slot}/{turns}"] if turns > 1 else ())])
        return found | run_together(commands, max(load.timeout(seconds, turns)
                                                  for load in loads.values()))


def title_of(name):
    return SERVERS[name].title if name in SERVERS else name


class Rounds:
    """What each server did in each round, and why one could not be measured."""

    def __init__(self):
        self.results = {}
        self.missing = {}

    def values(self, name, key):
        return [key(result) for result in self.results.get(name, ())]

    def compare(self, what, key, unit, against, target=None, relation="<=", ours="gateway",
                title=None):
        """The gateway's figure beside another's, which may have had fewer rounds."""
        title = title or title_of(against)
        for name in (ours, against):
            if name in self.missing:
                return figures.Check(what, against=title, missing=self.missing[name])
        return figures.compare(what, self.values(ours, key), self.values(against, key), unit,
                               title, target, relation)

    def pool(self, what, key, share, unit, against, target=None, ours="gateway", title=None):
        """A quantile of all that the rounds have found together, beside another's; key makes a list
        of a result."""
        title = title or title_of(against)
        for name in (ours, against):
            if name in self.missing:
                return figures.Check(what, against=title, missing=self.missing[name])
        mine, theirs = (figures.quantile(sum(self.values(name, key), []), share)
                        for name in (ours, against))
        check = figures.compare(what, [mine], [theirs], unit, title, target)
        check.rounds = min(len(self.results[name]) for name in (ours, against))
        return check

    def limit(self, what, key, unit, target=None, relation="<=", ours="gateway"):
        """The gateway's median, held against a number."""
        if ours in self.missing:
            return figures.Check(what, missing=self.missing[ours])
        return figures.middle(what, self.values(ours, key), unit, target, relation)

    def as_json(self):
        return {"results": self.results, "missing": self.missing}


def in_turn(items, number):
    """The order of that round: each of them is the first in one of so many, because who comes first may
    find a machine that still has something else to do."""
    items = list(items)
    first = number % len(items)
    return items[first:] + items[:first]


def alternate(bench, row, loads, rounds=None, together=(), visit=visit):
    """loads: {name: its Load}. `together` are groups of names that are measured at the same time;
    the others are measured one after the other, in each round in another order. Peers that are slow
    take part in fewer rounds: {name: n}. Who could not be measured once is not asked again."""
    found = Rounds()
    count = {name: min(bench.rounds, (rounds or {}).get(name, bench.rounds)) for name in loads}
    grouped = [name for group in together for name in group]
    groups = [*together, *((name,) for name in loads if name not in grouped)]
    for number in range(bench.rounds):
        for group in in_turn(groups, number):
            chosen = {name: loads[name] for name in group
                      if number < count[name] and name not in found.missing}
            if not chosen:
                continue
            for name, result in visit(bench.world, chosen, bench.seconds).items():
                if isinstance(result, Exception):
                    found.missing[name] = str(result)
                    say(f"{row}: {title_of(name)}: {result}")
                    continue
                found.results.setdefault(name, []).append(result)
                say(f"{row}: round {number + 1}: {title_of(name)}: {brief(result)}")
    return found


def brief(result):
    """For the line of progress."""
    return (f"{result['cpu_usec_per_delivery']:.3f} µs a delivery,"
            f" {result['deliveries_per_second']:.0f} deliveries/s,"
            f" p99 {result['latency_usec']['p99'] / 1000:.2f} ms")
