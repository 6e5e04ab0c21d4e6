"""Rows in which it matters which core does what. What they say depends on how many cores there are, so
they are in no table of everything: they are measured where they are named."""

import os

from . import machine
from .programs import CONNECT_SECONDS, NotMeasured, Program, run
from .rounds import PROBLEMS, Load, alternate
from .row import key, row
from .rows_load import DELIVERY

# -- shards -----------------------------------------------------------------------------

SHARDS_MAX = 64


def shard_counts():
    """1, 2, 4 and so on, up to one for each core."""
    cores = len(os.sched_getaffinity(0))
    if cores == 1:
        raise NotMeasured("the machine has one core")
    return [1 << power for power in range(min(cores, SHARDS_MAX).bit_length())]


def visit_shards(world, loads, seconds):
    """One gateway; those who receive from it are one thread, on any core but the first."""
    (name, load), = loads.items()
    try:
        with world.start(load.server, settings=load.settings) as server:
            machine.spread(server.gateway.pid, "shard/")
            with machine.cores_apart([]):
                return {name: run("load", *server.load_arguments(), *load.arguments(seconds),
                                  timeout=load.timeout(seconds))}
    except PROBLEMS as problem:
        return {name: problem}


@row("shards", "One shard, and more, each with a core of its own: 10 000 subscribers, all get each event",
     "5 events/s. Those who receive are on any core but the first; on two cores that is the second"
     " shard's. Complete: from the POST until the last of them has read the event; the quantiles are those"
     " of all rounds' events together", only_named=True)
def shards(bench, subscribers=10_000):
    one, *more = shard_counts()
    loads = {count: Load(subscribers, 5, seconds=4, more=("--each",), server="gateway",
                         settings={"server.shards": str(count)}) for count in (one, *more)}
    found = alternate(bench, "shards", loads, visit=visit_shards)
    each = lambda result: [usec / 1000 for usec in result["each_complete_usec"]]  # noqa: E731
    lines = []
    for count in more:
        lines += [found.compare(f"{count} shards, CPU a delivered message", key(DELIVERY), "µs", one,
                                ours=count, title="one"),
                  *(found.pool(f"{count} shards, complete, {what}", each, share, "ms", one, ours=count,
                               title="one") for what, share in (("p50", 0.5), ("p99", 0.99)))]
    return lines, found.as_json()


# -- steered packets --------------------------------------------------------------------


def visit_steered(world, loads, seconds):
    """One server, on the first core; the subscribers are on the others. What wakes these is counted
    from the first event to the last."""
    (name, load), = loads.items()
    try:
        with world.start(name) as server, machine.cores_apart(server.pids), \
                Program("load", *server.load_arguments(), *load.arguments(seconds),
                        "--hold") as loading:
            loading.await_word("ready", CONNECT_SECONDS)
            before = machine.backlogs()
            loading.go()
            loading.await_word("done", load.timeout(seconds))
            dropped, woken = (now - then for now, then in zip(machine.backlogs(), before))
            result = loading.result(load.timeout(seconds))
    except PROBLEMS as problem:
        return {name: problem}
    if dropped:
        return {name: NotMeasured(f"{dropped} packets found no room in the backlog of a core")}
    return {name: {**result, "woken_per_delivery": woken / result["deliveries"]}}


@row("steered", "The receivers' half of TCP on another core: 1 000 subscribers, all get each event",
     "50 events/s. One server after the other, in a network namespace whose loopback leaves what is"
     " received to the subscribers' cores (receive packet steering). A core that has nothing to receive"
     " is woken by an interrupt from the one that sends; those of all programs of the machine are"
     " counted. Needs root", only_named=True)
def steered(bench, subscribers=1000):
    # With many more, what a core has yet to receive is more than the kernel keeps for it. And nothing
    # is to warm up: its interrupts would be counted, its messages not.
    load = Load(subscribers, 50, warmup=0)
    bench.world.cluster  # PostgreSQL is started before, and not in that network
    with machine.steered_network():
        found = alternate(bench, "steered", {name: load for name in ("bare", "gateway", "nchan")},
                          visit=visit_steered)
    return [*(found.compare("CPU a delivered message", key(DELIVERY), "µs", peer)
              for peer in ("bare", "nchan")),
            found.compare("  the bare server itself", key(DELIVERY), "µs", "nchan", ours="bare"),
            *(found.compare("interrupts a delivered message", key("woken_per_delivery"), "", peer)
              for peer in ("bare", "nchan"))], found.as_json()
