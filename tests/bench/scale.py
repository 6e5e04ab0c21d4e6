"""Several gateways on one database: what each costs the others, and PostgreSQL.

What a gateway costs its database does not grow with its subscribers: one connection that
listens, and one query for each batch of events. How much that is, is measured here.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor

from harness.waiting import wait_until

from . import figures, inserts
from .machine import PostgresMeter, cpu_seconds, thread_seconds
from .programs import NotMeasured, run, run_together, say
from .rounds import in_turn

GATEWAYS = (1, 2, 4)

# Fewer than of others: nothing is to be reached here.
ROUNDS = 2

# Of the listeners' row: as many as in the example of paper.py, one to a POST.
EVENTS_PER_SECOND = 1000


@contextlib.contextmanager
def gateways(bench, count):
    """So many on one database."""
    with contextlib.ExitStack() as stack:
        database = bench.world.database()
        stack.callback(bench.world.drop, database)
        yield [stack.enter_context(bench.world.start("gateway", database=database))
               for _ in range(count)]


def at_once(*calls):
    """Each in a thread of its own; all results, or the first problem."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


# -- subscribers at two gateways --------------------------------------------------------


def measure_crowds(bench, count, subscribers=10_000, rate=8):
    """So many subscribers in all, at one gateway or half of them at each of two, with so many events/s
    each. At two gateways these are twice as many in all, and each gateway takes in all of them."""
    with gateways(bench, count) as servers:
        found = run_together(
            {number: ("load", [*server.load_arguments(), "--prefix", f"g{number}x", "--subscribers",
                               subscribers // count, "--rate", rate, "--seconds",
                               2 * bench.seconds])
             for number, server in enumerate(servers)}, timeout=2 * bench.seconds + 60).values()
    for result in found:
        if isinstance(result, NotMeasured):
            raise result
    return {"cpu_seconds": sum(result["server_cpu_seconds"] for result in found),
            "deliveries": sum(result["deliveries"] for result in found), "loads": list(found)}


def per_delivery(result):
    return result["cpu_seconds"] / result["deliveries"] * 1e6


def two_gateways(bench):
    raw = {1: [], 2: []}
    for number in range(min(bench.rounds, ROUNDS)):
        for count in in_turn(raw, number):
            raw[count].append(measure_crowds(bench, count))
            say(f"two-gateways: round {number + 1}: {count}:"
                f" {per_delivery(raw[count][-1]):.2f} µs a delivery")
    line = figures.compare("two, CPU a delivered message", *(
        [per_delivery(result) for result in raw[count]] for count in (2, 1)), "µs", "one")
    return [line], raw


def crowd(bench, subscribers):
    raw = []
    for number in range(min(bench.rounds, ROUNDS)):
        raw.append(measure_crowds(bench, 2, subscribers, rate=2))
        say(f"crowd: round {number + 1}: {raw[-1]['deliveries']} deliveries,"
            f" {per_delivery(raw[-1]):.2f} µs each")
    late = [max(load["latency_usec"]["p99"] for load in result["loads"]) / 1000 for result in raw]
    return [figures.middle("messages, all of which came", [result["deliveries"] for result in raw], ""),
            figures.middle("CPU a delivered message", [per_delivery(result) for result in raw], "µs"),
            figures.middle("latency, p99", late, "ms")], raw


# -- listeners --------------------------------------------------------------------------


def feed_seconds(server):
    """CPU of what a gateway does for an event whoever subscribes: all but its shard's."""
    return sum(seconds for name, seconds in thread_seconds(server.gateway.pid).items()
               if not name.startswith("shard"))


def post_events(bench, servers, seconds):
    """To the first of them."""
    run("load", *servers[0].load_arguments(), "--subscribers", 10, "--rate", EVENTS_PER_SECOND,
        "--seconds", seconds, timeout=seconds + 60)


def insert_events(bench, servers, seconds):
    """By an application, row by row."""
    inserts.pgbench(servers[0].database, max(1, round(seconds)), bench.world.folder("pgbench"),
                    rate=EVENTS_PER_SECOND)


def listen(bench, count, publish):
    """CPU microseconds an event: PostgreSQL's, and that of the last gateway, which only
    listens if there are several."""
    with gateways(bench, count) as servers:
        last = servers[-1]
        meter, fed, whole = (PostgresMeter(bench.world.cluster), feed_seconds(last),
                             cpu_seconds(last.gateway.pid))
        publish(bench, servers, bench.seconds)
        events = last.database.value("SELECT count(*) FROM gateway.events")
        for server in servers:
            await_events(server, events)
        postgres = meter.seconds()
        fed, whole = feed_seconds(last) - fed, cpu_seconds(last.gateway.pid) - whole
    return {"gateways": count, "events": events, "postgres_usec": postgres / events * 1e6,
            "feed_usec": fed / events * 1e6, "gateway_usec": whole / events * 1e6}


def await_events(server, count):
    """All of them, and not one more."""
    received = lambda: server.gateway.metric("pgsse_events_received_total")  # noqa: E731
    wait_until(lambda: received() >= count, "every event comes to every gateway", timeout=30)
    if received() != count:
        raise NotMeasured(f"{received():.0f} of {count} events came to a gateway")


def listeners(bench, publish=post_events):
    raw = {count: [] for count in GATEWAYS}
    for number in range(min(bench.rounds, ROUNDS)):
        for count in in_turn(GATEWAYS, number):
            raw[count].append(listen(bench, count, publish))
            say(f"listeners: round {number + 1}: {count}:"
                f" {raw[count][-1]['postgres_usec']:.1f} µs of PostgreSQL an event")
    postgres = {count: [result["postgres_usec"] for result in results]
                for count, results in raw.items()}
    one, *_, most = GATEWAYS
    each = [(b - a) / (most - one) for a, b in zip(postgres[one], postgres[most])]
    feed = [result["feed_usec"] for result in raw[most]]
    return [*(figures.middle(f"{count} gateway{'s' if count > 1 else ''}", values, "µs")
              for count, values in postgres.items()),
            figures.middle("each one more", each, "µs"),
            figures.middle("in a gateway that only listens", feed, "µs")], raw


# -- publishers -------------------------------------------------------------------------


def stored(database, *posts):
    """How many events are in the table: at the least those that were acknowledged."""
    rows = database.value("SELECT count(*) FROM gateway.events")
    acknowledged = sum(result["answers_in_all"] for result in posts)
    if rows < acknowledged:
        raise NotMeasured(f"{acknowledged} POSTs acknowledged, {rows} events stored")
    return rows


def publish(bench, count, clients):
    with gateways(bench, count) as servers:
        meter = PostgresMeter(bench.world.cluster)
        seconds = max(1, round(bench.seconds))
        found = at_once(*(
            lambda server=server: run(
                "post", "--port", server.port, "--connections", clients // count, "--seconds",
                seconds, "--path", "/events", "--pid", server.gateway.pid, timeout=seconds + 60)
            for server in servers))
        postgres = meter.seconds()
        rows = stored(servers[0].database, *found)
    return {"answers_per_second": sum(result["answers_per_second"] for result in found),
            "postgres_usec": postgres / rows * 1e6, "rows": rows, "posts": found}


def publishers(bench, clients=256):
    raw = {1: [], 2: []}
    for number in range(min(bench.rounds, ROUNDS)):
        for count in in_turn(raw, number):
            raw[count].append(publish(bench, count, clients))
            say(f"publishers: round {number + 1}: {count}:"
                f" {raw[count][-1]['answers_per_second']:.0f} answers/s,"
                f" {raw[count][-1]['postgres_usec']:.1f} µs of PostgreSQL each")
    lines = [figures.compare(what, *([result[name] for result in raw[count]] for count in (2, 1)),
                             unit, "one")
             for what, name, unit in (("two, answers a second", "answers_per_second", ""),
                                      ("two, PostgreSQL's CPU a POST", "postgres_usec", "µs"))]
    return lines, raw
