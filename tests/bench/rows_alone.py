"""Rows with a measurement of their own: a program or a module that measures one thing."""

from . import figures, rounds, scale
from .knobs import CHURN_SECONDS
from .machine import PostgresMeter
from .programs import run, say
from .row import key, measurement, row
from .servers import BareMhd

CLIENTS = 256
INSERT_CLIENTS = 16
IDLE = 10_000
RETURNING = 10_000


# -- memory -----------------------------------------------------------------------------


@row("memory", "Process memory of an idle subscriber, 10 000 of them",
     "growth of PSS (/proc/PID/smaps_rollup) from none to all; the request is what Chromium's"
     " EventSource sends. What the kernel keeps for a socket is not in it, for none of them")
def memory(bench):
    module, size = measurement("memory"), key("pss_bytes_per_subscriber")
    found = rounds.Rounds()
    for name, path in (("gateway", "/events?channel=c{}"), ("nchan", "/sub/c{}")):
        try:
            with bench.world.start(name) as server:
                found.results[name] = [module.measure(
                    server.pids, ("127.0.0.1", server.port), IDLE, path)]
        except rounds.PROBLEMS as problem:
            found.missing[name] = str(problem)
            continue
        say(f"memory: {name}: {size(found.results[name][0]):.0f} bytes a subscriber")
    return [found.limit("one channel", size, "bytes", 3500),
            found.compare("one channel", size, "bytes", "nchan", 0.35)], {
                name: result[0] for name, result in found.results.items()}


# Growth in all: a run of half a minute does not tell less from noise, and an hour's must not
# come to more. Whatever is forgotten of each subscriber weighs more in both.
CHURN_KIB = 384


@row("churn", "Does anything grow? 1 000 subscribers, 200 leave and come back a second",
     f"{CHURN_SECONDS} s with 20 POSTs/s and a look at /metrics each second; the slope of the"
     " anonymous memory (/proc/PID/smaps_rollup) after the first quarter, times the whole. What is less"
     " cannot be told from noise in half a minute; for an hour: BENCH_CHURN_SECONDS=3600 BENCH_ROWS=churn")
def churn(bench):
    module = measurement("churn")
    with bench.world.start("gateway", settings=module.SETTINGS) as server:
        raw = module.measure(server.gateway, CHURN_SECONDS)
    grown = raw["anonymous_bytes_per_departure"] * raw["departures"] / 1024
    return [figures.limit(f"growth in {CHURN_SECONDS} s", grown, "KiB", CHURN_KIB),
            figures.limit("departures", raw["departures"], ""),
            figures.limit("descriptors more at the end", raw["descriptors_more"], "", 0)], raw


# -- publishing -------------------------------------------------------------------------


def post(server, connections, seconds):
    arguments = [word for pid in server.pids for word in ("--pid", pid)]
    return run("post", "--port", server.port, "--connections", connections, "--seconds",
               max(1, round(seconds)), "--path", "/events", *arguments, timeout=seconds + 60)


def post_to_gateway(bench):
    """And what PostgreSQL took for each of the events."""
    with bench.world.start("gateway") as server:
        meter = PostgresMeter(bench.world.cluster)
        result = post(server, CLIENTS, bench.seconds)
        postgres, rows = meter.seconds(), scale.stored(server.database, result)
    return {**result, "postgres_cpu_usec_per_answer": postgres / rows * 1e6}


def post_to_bare(bench):
    with BareMhd(bench.world) as server:
        return post(server, CLIENTS, bench.seconds)


def bound(bare, gateway):
    """Answers a second, if a gateway took no more than the bare program: then the same time of the
    same cores goes to PostgreSQL, too."""
    both = bare["server_cpu_usec_per_answer"] + bare["generator_cpu_usec_per_answer"]
    least = (bare["server_cpu_usec_per_answer"] + gateway["generator_cpu_usec_per_answer"] +
             gateway["postgres_cpu_usec_per_answer"])
    return bare["answers_per_second"] * both / least


@row("posts", f"Durable acknowledged POSTs: {CLIENTS} clients, one event each",
     "a closed loop on kept connections; beside it a bare libmicrohttpd program that answers the"
     " same POST without a database. Generator, gateway and PostgreSQL (fsync on) share the cores."
     " Bound: the cores' time that bare MHD and the generator had, spent on these two and PostgreSQL's"
     " part")
def posts(bench):
    raw = {"bare_mhd": [], "gateway": []}
    for number in range(bench.rounds):
        for name, measure in rounds.in_turn((("bare_mhd", post_to_bare), ("gateway", post_to_gateway)),
                                            number):
            raw[name].append(measure(bench))
            say(f"posts: round {number + 1}: {name}: {raw[name][-1]['answers_per_second']} answers/s")
    ours, theirs = raw["gateway"], raw["bare_mhd"]

    def of(results, name):
        return [result[name] for result in results]

    rates, cpu = "answers_per_second", "server_cpu_usec_per_answer"
    return [figures.compare("answers a second", of(ours, rates), of(theirs, rates), "",
                            BareMhd.title, 0.80, ">="),
            figures.compare("  the bound", list(map(bound, theirs, ours)), of(theirs, rates), "",
                            BareMhd.title),
            figures.compare("CPU an answer", of(ours, cpu), of(theirs, cpu), "µs", BareMhd.title),
            figures.middle("  PostgreSQL's", of(ours, "postgres_cpu_usec_per_answer"), "µs"),
            figures.middle("  the generator's", of(ours, "generator_cpu_usec_per_answer"), "µs"),
            figures.middle("latency, p99", [result["latency_usec"]["p99"] / 1000
                                            for result in ours], "ms")], raw


@row("publisher", "The publisher alone, without HTTP, beside inserts of single rows",
     "256 requests of one event on their way; single rows: one connection, a prepared INSERT,"
     " each committed by itself; in turns of a second, fsync on")
def publisher(bench):
    database = bench.world.database()
    try:
        raw = run("publisher", "--dsn", database.dsn, "--seconds", max(1, round(bench.seconds / 2)),
                  "--rounds", bench.rounds, timeout=120)
    finally:
        bench.world.drop(database)
    line = figures.Check("durable events a second", raw["events_per_second"], "", "inserts",
                         raw["inserts_per_second"], raw["ratio"], ">=", 15, bench.rounds)
    return [line], raw


def inserts(bench, slow, target, situations):
    """The target is that of one gateway."""
    raw = measurement("inserts").measure(
        slow=slow, rounds=bench.rounds, seconds=max(1, round(1.5 * bench.seconds)),
        situations=("without", *situations), say=lambda line: say(f"inserts: {line}"))
    titles = {"one": "one attached", "two": "two attached", "relayed": "one that relays"}
    return [figures.Check(f"{titles[situation]}, rows a second", raw[situation]["per_second"], "",
                          "without", raw["without"]["per_second"], raw[situation]["ratio"], ">=",
                          target if situation == "one" else None, bench.rounds)
            for situation in situations], raw


@row("inserts", f"An application's own inserts, {INSERT_CLIENTS} clients, with gateways attached and"
     " without",
     "pgbench, one row in each transaction; every row must have come to each gateway. fsync on. One that"
     " relays: notifications in the order of the commits (relay_order), for a subscriber. 3 s a turn")
def inserts_usual(bench):
    return inserts(bench, False, 0.55, ("one", "two", "relayed"))


@row("inserts-slow", "The same with each fdatasync 2 ms longer, as on a disk of a cloud",
     "an LD_PRELOAD library in PostgreSQL delays fdatasync")
def inserts_slow(bench):
    return inserts(bench, True, 0.85, ("one",))


@row("watched", "A row written to a watched table: CPU of the writer's backend, beside a plain table",
     "100 000 rows in one statement, and 2 000 in a transaction each; fsync on. Transition: a statement"
     " trigger, which is not right in all cases (tests/bench/watched.py)", only_named=True)
def watched(bench):
    raw = measurement("watched").measure(bench.rounds, say=lambda line: say(f"watched: {line}"))
    titles = {"insert": "INSERT of many", "update": "UPDATE of many", "single": "INSERT of one"}

    def of(table, work):
        return raw[table][work]["cpu_usec"]

    return [line for work, title in titles.items() for line in (
        figures.compare(title, of("watched", work), of("plain", work), "µs", "plain"),
        figures.middle("  two of its four columns", of("columns", work), "µs"),
        figures.middle("  by transition tables", of("transition", work), "µs"))], raw


@row("latency", "From the commit to the bytes at a subscriber, idle machine, fsync on",
     "300 of each, one at a time, 10 to 50 ms apart: from the moment that PostgreSQL notes for the"
     " COMMIT (track_commit_timestamp), before it is flushed, until the event's bytes are read")
def latency(bench):
    raw = measurement("latency").measure_alone(300)
    lines = []
    for name, title, target in (("post", "POST", 1.2), ("insert", "INSERT", 1.8)):
        p50, p99 = (raw[name]["commit"][which] / 1000 for which in ("p50", "p99"))
        lines.append(figures.limit(f"{title}, commit to bytes, p50", p50, "ms", target))
        lines.append(figures.compare(f"{title}, commit to bytes, p99", [p99], [p50], "ms", "p50", 3.0))
    return lines, raw


@row("relay", "NOTIFYs of an application, relayed: with 1 000 channels listened to, and with one",
     "fsync on; 1 500 notifications, 2 000 a second, each committed by itself and sent to one subscriber:"
     " CPU of all of PostgreSQL's processes, the writers' too, and of the gateway. Of a channel nobody wants:"
     " the backend that listens alone, 10 000 in one transaction. NOTIFY to bytes: 200, one at a time, from"
     " before the NOTIFY is sent")
def relay(bench):
    raw = measurement("relayed").measure(bench)
    one, many = raw.values()

    def compare(what, unit, of):
        return figures.compare(what, list(map(of, many)), list(map(of, one)), unit, "one")

    return [compare("until all are listened to", "ms", key("stand_msec")),
            compare("PostgreSQL's CPU a notification", "µs", key("postgres_usec")),
            compare("  of a channel nobody wants", "µs", key("unwanted_usec")),
            compare("the gateway's CPU a notification", "µs", key("gateway_usec")),
            *(compare(f"NOTIFY to bytes, {quantile}", "ms",
                      lambda found, at=quantile: found["latency_usec"][at] / 1000)
              for quantile in ("p50", "p99"))], raw


# -- coming back, and starting ----------------------------------------------------------

# Of all descriptors that there are, so many leave room for those who have not asked yet.
STORM_SETTINGS = {"limits.connections": str(RETURNING + 2000)}
STORM = ("--subscribers", 1000, "--rate", 10, "--storm", RETURNING, "--seconds", 60)


@row("storm", "10 000 subscribers come back at once with ids a minute old",
     "1 000 live subscribers, 10 events/s: each who returns has 600 events to catch up on. At once: one"
     " thread connects and asks for one after the other and waits for nobody's answer; whoever is closed"
     " without one comes again after 2 s, as a browser does. Begin: the first of them connects; end: the"
     " last has all that was published. Elsewhere: they come to another gateway of the same database and"
     " machine first, and share nothing but the cores and PostgreSQL with the live ones")
def storm(bench):
    with bench.world.start("gateway", settings=STORM_SETTINGS) as server, \
            bench.world.start("gateway", database=server.database,
                              settings=STORM_SETTINGS) as elsewhere:
        raw = run("load", *server.load_arguments(), *STORM, "--elsewhere", elsewhere.port,
                  timeout=240)
    found = raw["storm"]
    before, during, elsewhere_ = (found[f"live_p99_{when}_usec"] / 1000
                             for when in ("before", "during", "elsewhere"))
    return [figures.limit("all caught up", found["caught_up_seconds"], "s", 3.0),
            figures.limit("closed without an answer, and come again", found["refused"], ""),
            figures.compare("live subscribers' p99 meanwhile", [during], [before], "ms", "before",
                            2.0),
            figures.compare("  while they come elsewhere", [elsewhere_], [before], "ms", "before")], raw


@row("start", "From the start to READY on 5 million rows",
     "READY=1 as systemd is told; the median of five starts, and one with nothing of the database"
     " in PostgreSQL's memory or the kernel's")
def start(bench):
    raw = measurement("start").measure()
    return [figures.limit("start", raw["ready_msec"], "ms", 1000),
            figures.limit("start, nothing in memory", raw["cold_ready_msec"], "ms", 1000)], raw


# -- instructions -----------------------------------------------------------------------


@row("instructions", "Instructions of the shard's thread, user space, under callgrind",
     "tests/bench/ring.c; the difference of two counts of different length, so that the start is"
     " not in it. Hardly depends on the neighbours; that of an event for one does by a tenth, as the"
     " shard takes a turn more now and then. tests/test_instructions.py holds the bounds")
def instructions(bench):
    raw = measurement("instructions").measure()
    few, many = (raw[f"per_event_for_one_of_{count}"] for count in (200, 2000))
    return [figures.limit("a delivered message", raw["per_message"], ""),
            figures.limit("the same, in bursts of 100", raw["per_message_in_bursts"], ""),
            figures.limit("system calls a message", raw["sends_per_message"], ""),
            figures.compare("an event for one of 2 000", [many], [few], "", "of 200", 1.2)], raw


@row("safety-belts", "Metrics, heartbeats and limits together, of a delivered message's CPU time",
     "too little to be seen by switching them off: of heartbeats, by making them due 100 times as often,"
     " that their time is kept (none is sent where messages come); metrics by their instructions; limits"
     " are met when somebody connects, not by a message")
def safety_belts(bench):
    raw = measurement("overhead").measure(min(bench.rounds, 2), bench.seconds)
    return [figures.limit("share of the CPU time", raw["share"] * 100, "%", 3.0)], raw


# -- several gateways -------------------------------------------------------------------


@row("two-gateways", "Two gateways on one machine and one database, 5 000 subscribers at each",
     "8 events/s POSTed to each for its own subscribers, each takes in the other's, too; CPU time beside"
     " one gateway's with 10 000")
def two_gateways(bench):
    return scale.two_gateways(bench)


@row("crowd", "30 000 subscribers from one machine, 15 000 at each of two gateways",
     "2 events/s POSTed to each for its own subscribers, each takes in the other's, too. One that is missing"
     " or comes twice would be no figure", only_named=True)
def crowd(bench, subscribers=30_000):
    return scale.crowd(bench, subscribers)


@row("listeners", "What one more gateway costs the database, for each event",
     "1 000 events/s POSTed to the first of 1, 2 and 4 gateways; CPU time of all of PostgreSQL's"
     " processes over the events")
def listeners(bench):
    return scale.listeners(bench)


@row("listeners-inserts", "The same, where an application inserts the events itself",
     "1 000 rows/s by pgbench, each committed by itself: the application's own backends and the numbers"
     " that a gateway gives its rows are in it")
def listeners_inserts(bench):
    return scale.listeners(bench, scale.insert_events)


@row("publishers", "Two gateways that publish into one database",
     f"{CLIENTS} clients, half of them at each; PostgreSQL's CPU time for each acknowledged POST")
def publishers(bench):
    return scale.publishers(bench)


