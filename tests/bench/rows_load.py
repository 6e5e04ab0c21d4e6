"""Rows in which `load` subscribes and publishes, and all servers take their turns."""

from .rounds import Load, alternate
from .row import key, row

DELIVERY = "cpu_usec_per_delivery"

# They have their subscribers at the same time, and are published to in turns, second by second.
TOGETHER = (("bare", "gateway", "nchan"),)
PAIR = (("bare", "gateway"),)

# Nobody's heartbeat is due while it is measured.
QUIET = {"stream.heartbeat": "1min"}


def shard_share(result):
    """Of the gateway's CPU time, what its shard used: the sends, not the feed."""
    threads = result["threads"]
    return sum(seconds for name, seconds in threads.items() if name.startswith("shard"))


def deliveries(found, subscribers, to_bare, to_nchan=None):
    """The lines of one row; peers beside the limit as far as they took part."""
    what = f"{subscribers:,} subscribers".replace(",", " ")
    lines = [found.compare(what, key(DELIVERY), "µs", "bare", to_bare)]
    for peer, target in (("nchan", to_nchan), ("node", None)):
        if peer in found.results or peer in found.missing:
            lines.append(found.compare(what, key(DELIVERY), "µs", peer, target))
    if "nchan" in found.results:
        lines.append(found.compare("  the bare server itself", key(DELIVERY), "µs", "nchan",
                                   ours="bare"))
    lines.append(found.limit("  of these the shard alone",
                             lambda result: shard_share(result) / result["deliveries"] * 1e6,
                             "µs"))
    return lines


def same_load(load, *names):
    return {name: load for name in names}


@row("all-1000", "CPU a delivered message: 1 000 subscribers, all get each event",
     "50 events/s, one to a POST, 150 bytes on the wire; CPU time of all threads of the server"
     " (/proc/PID/task/*/schedstat), without PostgreSQL's, over the messages that arrived. All but"
     " Node.js have their subscribers at the same time, and take turns, second by second; these servers"
     " have one core, subscribers the others. Node.js is there alone, on whichever core is free, which"
     " is cheaper")
def all_1000(bench):
    load = Load(1000, 50)
    found = alternate(bench, "all-1000", same_load(load, "bare", "gateway", "nchan", "node"),
                      {"node": 1}, TOGETHER)
    return deliveries(found, 1000, 1.08, 0.70), found.as_json()


@row("all-10000", "10 000 subscribers, all get each event: CPU, and until the last has it",
     "5 events/s, likewise: slow enough for each server to be done with one before the next."
     " Complete: from the POST, and for the gateway through the database, until the last of them has"
     " read the event; 8 s and 40 events a round, and the quantile is that of all rounds' events together")
def all_10000(bench):
    load = Load(10000, 5, seconds=4, more=("--each",))
    found = alternate(bench, "all-10000", same_load(load, "bare", "gateway", "nchan", "node"),
                      {"node": 1}, TOGETHER)
    each = lambda result: [usec / 1000 for usec in result["each_complete_usec"]]  # noqa: E731
    return [*deliveries(found, 10000, 1.08, 0.60),
            found.pool("complete, p99", each, 0.99, "ms", "bare", 1.2),
            found.pool("complete, p99", each, 0.99, "ms", "nchan", 0.75)], found.as_json()


@row("all-19000", "CPU a delivered message: 19 000 subscribers, all get each event",
     "4 events/s, likewise")
def all_19000(bench):
    found = alternate(bench, "all-19000", same_load(Load(19000, 4), "bare", "gateway"),
                      together=PAIR)
    return deliveries(found, 19000, 1.08), found.as_json()


@row("channels", "CPU a delivered message: 100 channels of 100 subscribers",
     "400 events/s: 4 POSTs a second of 100 events, one for each channel")
def channels(bench):
    load = Load(10000, 400, channels=100, burst=100)
    found = alternate(bench, "channels", same_load(load, "bare", "gateway", "nchan", "node"),
                      {"node": 1}, TOGETHER)
    return deliveries(found, 10000, 1.08, 0.65), found.as_json()


@row("one-of-n", "One of N: each subscriber has a channel of its own, an event goes to one",
     "250 events/s; a gateway with 1 000 and one with 18 000 take turns, and so do two bare servers."
     " The cost of an event is all of the gateway's CPU time over the events, from POST to send; a"
     " walk over connections would show in it. Heartbeats, which cost what connections there are, are"
     " a minute apart: none is due while this is measured")
def one_of_n(bench):
    few, many = 1000, 18000
    names = {server: [f"{server} {count}" for count in (few, many)]
             for server in ("gateway", "bare")}
    loads = {f"{server} {count}": Load(count, 250, channels=count, server=server,
                                       settings=QUIET if server == "gateway" else None)
             for server in names for count in (few, many)}
    found = alternate(bench, "one-of-n", loads, together=tuple(map(tuple, names.values())))
    lines = [found.compare(what, key("cpu_usec_per_event"), "µs", names[server][0], target,
                           ours=names[server][1], title="1 000")
             for server, what, target in (("gateway", "CPU an event, 18 000", 1.2),
                                          ("bare", "  the bare server", None))]
    lines.append(found.compare("latency at 18 000, p50", key("latency_usec", "p50"), "µs",
                               names["bare"][1], ours=names["gateway"][1], title="bare"))
    return lines, found.as_json()


@row("ring-latency", "From the ring to the client: the gateway's rooms without a database",
     "250 events/s, one of 1 000 channels. A program pushes what is POSTed to it into the ring and"
     " runs everything else of the gateway (tests/bench/ring.c): from the push until a subscriber"
     " has it. At the bare server it is from the POST, which it has to read and to parse. In both, one"
     " thread is woken to send")
def ring_latency(bench):
    found = alternate(bench, "ring-latency",
                      same_load(Load(1000, 250, channels=1000), "bare", "ring"))
    lines = [found.compare("p50", key("latency_usec", "p50"), "µs", "bare", 1.1, ours="ring"),
             found.compare("p99", key("latency_usec", "p99"), "µs", "bare", ours="ring")]
    return lines, found.as_json()


# Nchan takes each event of a burst by itself; at the others' rate it would be busy for minutes. It,
# too, has one burst to warm up, and two that are measured.
BURSTS = {1000: (Load(1000, 1000, burst=100), Load(1000, 100, burst=100)),
          10000: (Load(10000, 200, burst=100),
                  Load(10000, 10, burst=100, warmup=10, seconds=10))}


def burst(bench, subscribers):
    load, slow = BURSTS[subscribers]
    found = alternate(bench, f"bursts-{subscribers}",
                      {"bare": load, "gateway": load, "nchan": slow}, {"nchan": 1}, PAIR)
    lines = deliveries(found, subscribers, 1.10, 1 / 60)
    return lines, found.as_json()


@row("bursts-1000", "CPU a delivered message: bursts of 100 events, 1 000 subscribers",
     "10 bursts a second, each one POST; Nchan, which takes them one by one, one a second. It is there"
     " alone, on whichever core is free, which is cheaper")
def bursts_1000(bench):
    return burst(bench, 1000)


@row("bursts-10000", "CPU a delivered message: bursts of 100 events, 10 000 subscribers",
     "2 bursts a second, each one POST; Nchan, likewise, one in 10 seconds, for 20 s")
def bursts_10000(bench):
    return burst(bench, 10000)


@row("sustained", "Sustained: 10 000 events/s to each of 1 000 subscribers, one shard",
     "100 POSTs/s of 100 events, 3 s a round, all on whichever cores are free; one subscriber in 50 is read and checked, of the others the"
     " bytes are counted. To reach: 9 million/s with a p99 under 15 ms; or, where not even the bare server"
     " does that on this machine, 0.9 of what it delivers, and its p99 stands beside it. BENCH_WAL=new"
     " shows what a new segment of PostgreSQL's WAL costs")
def sustained(bench):
    load = Load(1000, 10000, burst=100, seconds=1.5, more=("--count",))
    found = alternate(bench, "sustained", same_load(load, "bare", "gateway"))
    rate = lambda result: result["deliveries_per_second"] / 1e6  # noqa: E731
    late = lambda result: result["latency_usec"]["p99"] / 1000  # noqa: E731

    def absolute(name):
        return (found.limit("deliveries", rate, "million/s", 9.0, ">=", ours=name),
                found.limit("latency, p99", late, "ms", 15.0, ours=name))

    relative = found.compare("deliveries", rate, "million/s", "bare", 0.9, ">=")
    deliveries_, latency = either(absolute("gateway"), relative, absolute("bare"))
    return [deliveries_, relative, latency,
            found.compare("latency, p99", late, "ms", "bare")], found.as_json()


def either(absolute, relative, bare):
    """So much, and no later than that; or, where not even the bare server can do it on this machine, as
    much as that does. Only one of the two is asked for."""
    reached = [all(check.verdict == "met" for check in checks) for checks in (absolute, bare)]
    for check in (relative,) if any(reached) else absolute:
        check.target = None
    return absolute
