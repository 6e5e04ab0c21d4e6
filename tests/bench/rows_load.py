"""Rows in which `load` subscribes and publishes, and all servers take their turns."""

from . import figures
from .rounds import Load, alternate
from .row import key, row

DELIVERY = "cpu_usec_per_delivery"

# The gateway, its limit and Nchan have their subscribers at the same time, and are published to in
# turns, second by second.
TOGETHER = ("bare", "gateway", "nchan")
PAIR = ("bare", "gateway")


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
     " Node.js have their subscribers at the same time, and take turns, second by second; servers"
     " have one core, subscribers the others")
def all_1000(bench):
    load = Load(1000, 50)
    found = alternate(bench, "all-1000", same_load(load, "bare", "gateway", "nchan", "node"),
                      {"node": 1}, TOGETHER)
    return deliveries(found, 1000, 1.08, 0.70), found.as_json()


@row("all-10000", "CPU a delivered message: 10 000 subscribers, all get each event",
     "8 events/s, likewise")
def all_10000(bench):
    load = Load(10000, 8, seconds=2)
    found = alternate(bench, "all-10000", same_load(load, "bare", "gateway", "nchan", "node"),
                      {"node": 1}, TOGETHER)
    return deliveries(found, 10000, 1.08, 0.60), found.as_json()


@row("fan-out", "Until the last of 10 000 subscribers has an event",
     "8 events/s, one server after the other: from the POST, and for the gateway through the"
     " database, until the last of them has read the event")
def fan_out(bench):
    load = Load(10000, 8, seconds=1.5)
    found = alternate(bench, "fan-out", same_load(load, "bare", "gateway", "nchan"), {"nchan": 2})
    complete = lambda result: result["complete_usec"]["p99"] / 1000  # noqa: E731
    return [found.compare("p99", complete, "ms", "bare", 1.2),
            found.compare("p99", complete, "ms", "nchan", 0.75)], found.as_json()


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
     "250 events/s. The cost of an event is all of the gateway's CPU time over the events, from"
     " POST to send; a walk over connections would show in it")
def one_of_n(bench):
    small = alternate(bench, "one-of-n, 1 000",
                      same_load(Load(1000, 250, channels=1000), "bare", "gateway"))
    large = alternate(bench, "one-of-n, 18 000",
                      same_load(Load(18000, 250, channels=18000), "bare", "gateway"))
    event = key("cpu_usec_per_event")
    lines = []
    for name, title in (("gateway", "the gateway"), ("bare", "the bare server")):
        what = f"{title}: CPU an event, 18 000 / 1 000"
        problem = large.missing.get(name) or small.missing.get(name)
        lines.append(figures.Check(what, missing=problem) if problem else figures.compare(
            what, large.values(name, event), small.values(name, event), "µs", "1 000",
            1.2 if name == "gateway" else None))
    lines.append(large.compare("latency at 18 000, p50", key("latency_usec", "p50"), "µs", "bare"))
    return lines, {"1000": small.as_json(), "18000": large.as_json()}


@row("ring-latency", "From the ring to the client: the gateway's rooms without a database",
     "250 events/s, one of 1 000 channels. A program pushes what is POSTed to it into the ring and"
     " runs everything else of the gateway (tests/bench/ring.c): from the push until a subscriber"
     " has it; at the bare server, from the POST. In both, one thread is woken to send")
def ring_latency(bench):
    found = alternate(bench, "ring-latency",
                      same_load(Load(1000, 250, channels=1000), "bare", "ring"))
    lines = [found.compare("p50", key("latency_usec", "p50"), "µs", "bare", 1.1, ours="ring"),
             found.compare("p99", key("latency_usec", "p99"), "µs", "bare", ours="ring")]
    return lines, found.as_json()


# Nchan takes each event of a burst by itself; at the others' rate it would be busy for minutes.
BURSTS = {1000: (Load(1000, 1000, burst=100), Load(1000, 50, burst=100, warmup=0)),
          10000: (Load(10000, 200, burst=100), Load(10000, 10, burst=100, warmup=0))}


def burst(bench, subscribers):
    load, slow = BURSTS[subscribers]
    found = alternate(bench, f"bursts-{subscribers}",
                      {"bare": load, "gateway": load, "nchan": slow}, {"nchan": 1}, PAIR)
    lines = deliveries(found, subscribers, 1.10, 1 / 60)
    return lines, found.as_json()


@row("bursts-1000", "CPU a delivered message: bursts of 100 events, 1 000 subscribers",
     "10 bursts a second, each one POST; Nchan, which takes them one by one, every other second")
def bursts_1000(bench):
    return burst(bench, 1000)


@row("bursts-10000", "CPU a delivered message: bursts of 100 events, 10 000 subscribers",
     "2 bursts a second, each one POST; Nchan, likewise, one in 10 seconds")
def bursts_10000(bench):
    return burst(bench, 10000)


@row("sustained", "Sustained: 10 000 events/s to each of 1 000 subscribers, one shard",
     "100 POSTs/s of 100 events; one subscriber in 50 is read and checked, of the others the"
     " bytes are counted. Or, on a slower machine: 0.9 of what the bare server delivers")
def sustained(bench):
    load = Load(1000, 10000, burst=100, seconds=1.5, more=("--count",))
    found = alternate(bench, "sustained", same_load(load, "bare", "gateway"))
    rate = lambda result: result["deliveries_per_second"] / 1e6  # noqa: E731
    lines = [found.limit("deliveries", rate, "million/s", 9.0, ">="),
             found.compare("deliveries", rate, "million/s", "bare", 0.9, ">="),
             found.limit("latency, p99", lambda result: result["latency_usec"]["p99"] / 1000,
                         "ms", 15.0)]
    return either(lines), found.as_json()


def either(lines):
    """As much as was asked for, or as much as the machine can do: one of the two is enough,
    and with the second the latency is not asked for."""
    absolute, relative, latency = lines
    if absolute.verdict == "missed" and relative.verdict == "met":
        absolute.target = latency.target = None
    elif absolute.verdict == latency.verdict == "met":
        relative.target = None
    return lines
