"""Rows in which it matters which core does what. What they say depends on how many cores there are, so
they are in no table of everything: they are measured where they are named."""

import os

from . import figures, machine
from .programs import NotMeasured, run, say
from .rounds import PROBLEMS, Load, Rounds, brief, in_turn
from .row import key, row
from .rows_load import DELIVERY

# -- shards -----------------------------------------------------------------------------

CROWD = Load(10000, 5, seconds=4, more=("--each",))


def shard_counts():
    """1, 2, 4 and so on, up to one for each core."""
    cores = len(os.sched_getaffinity(0))
    return [1 << power for power in range(cores.bit_length())]


def visit_shards(bench, count):
    """Those who receive are one thread, on any core but the first."""
    with bench.world.start("gateway", settings={"server.shards": str(count)}) as server:
        machine.spread(server.gateway.pid, "shard/")
        with machine.cores_apart([]):
            return run("load", *server.load_arguments(), *CROWD.arguments(bench.seconds),
                       timeout=CROWD.timeout(bench.seconds))


def complete(results, share):
    """That quantile, in milliseconds, of the events of all rounds together."""
    return figures.quantile([usec / 1000 for result in results
                             for usec in result["each_complete_usec"]], share)


@row("shards", "One shard, and one for each core: 10 000 subscribers, all get each event",
     "5 events/s; each shard has a core of its own, and those who receive any but the first, which on two"
     " cores is that of the second shard. Complete: from the POST until the last of them has read the"
     " event; the quantiles are those of all rounds' events together", asked=True)
def shards(bench):
    raw = {count: [] for count in shard_counts()}
    for number in range(bench.rounds):
        for count in in_turn(raw, number):
            raw[count].append(visit_shards(bench, count))
            say(f"shards: round {number + 1}: {count}: {brief(raw[count][-1])}")
    lines = []
    for count in list(raw)[1:]:
        lines.append(figures.compare(f"{count} shards, CPU a delivered message",
                                     *([result[DELIVERY] for result in raw[of]] for of in (count, 1)),
                                     "µs", "one"))
        lines += [figures.compare(f"{count} shards, complete, {what}",
                                  *([complete(raw[of], share)] for of in (count, 1)), "ms", "one")
                  for what, share in (("p50", 0.5), ("p99", 0.99))]
    return lines, raw


# -- steered packets --------------------------------------------------------------------

# With many more, what a core has yet to receive is more than the kernel keeps for it.
STEERED = Load(1000, 50)


def visit_steered(bench, name):
    with bench.world.start(name) as server, machine.cores_apart(server.pids):
        before = machine.backlogs()
        result = run("load", *server.load_arguments(), *STEERED.arguments(bench.seconds),
                     timeout=STEERED.timeout(bench.seconds))
        dropped, woken = (after - at_first for after, at_first in zip(machine.backlogs(), before))
    if dropped:
        raise NotMeasured(f"{dropped} packets found no room in the backlog of a core")
    return {**result, "woken": woken}


@row("steered", "The receivers' half of TCP on another core: 1 000 subscribers, all get each event",
     "50 events/s. One server after the other, in a network namespace whose loopback leaves what is"
     " received to the subscribers' cores (receive packet steering). A core that has nothing to receive"
     " is woken by an interrupt from the one that sends. Needs root", asked=True)
def steered(bench):
    names = ("bare", "gateway", "nchan")
    found = Rounds()
    with machine.steered_network():
        for number in range(bench.rounds):
            for name in in_turn(names, number):
                if name in found.missing:
                    continue
                try:
                    found.results.setdefault(name, []).append(visit_steered(bench, name))
                    say(f"steered: round {number + 1}: {name}: {brief(found.results[name][-1])}")
                except PROBLEMS as problem:
                    found.missing[name] = str(problem)
    woken = lambda result: result["woken"] / result["deliveries"]  # noqa: E731
    return [*(found.compare("CPU a delivered message", key(DELIVERY), "µs", peer)
              for peer in ("bare", "nchan")),
            found.compare("  the bare server itself", key(DELIVERY), "µs", "nchan", ours="bare"),
            *(found.compare("interrupts a delivered message", woken, "", peer)
              for peer in ("bare", "nchan"))], found.as_json()
