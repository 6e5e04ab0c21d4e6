"""Rows about groups: by SQL, by HTTP, and a POST that waits until it is acknowledged."""

import re
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from harness.tools import find_postgres_tool

from . import figures
from .programs import NotMeasured, Program, run, say
from .row import row

WORKERS = (1, 8)
JOBS_A_SECOND = 8000  # more than are done
SCRIPT = r"""SELECT id FROM gateway.claim('jobs', 'workers') \gset
SELECT gateway.ack(:id, 'workers');
"""
RATE = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


def prepare(database, jobs, channel="jobs"):
    """So many jobs that wait, and a group that begins before them."""
    database.execute("SELECT gateway.claim(%s, 'workers')", (channel,))
    database.execute("INSERT INTO gateway.events (channel, type, data)"
                     " SELECT %s, 'job', json_build_object('n', n)"
                     " FROM generate_series(1, %s) n", (channel, jobs))
    while database.value("SELECT gateway.sweep()"):
        pass
    database.execute("VACUUM ANALYZE gateway.events")


def cycles(database, workers, seconds):
    """Claim-and-acknowledge cycles a second of so many workers."""
    prepare(database, round(JOBS_A_SECOND * (seconds + 1)))
    with tempfile.TemporaryDirectory(prefix="pgsse-bench-") as directory:
        script = Path(directory) / "cycle.sql"
        script.write_text(SCRIPT)
        done = subprocess.run(
            [find_postgres_tool("pgbench"), "--no-vacuum", "--protocol=prepared",
             f"--client={workers}", "--jobs=1", f"--time={seconds}", f"--file={script}",
             database.dsn],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + 60)
    rate = RATE.search(done.stdout)
    if done.returncode != 0 or not rate:
        raise RuntimeError(f"pgbench: {done.stdout}{done.stderr}")
    acked, handed = database.execute("SELECT count(acked_at), count(*) FROM gateway.deliveries")[0]
    if handed - acked > workers:
        raise RuntimeError(f"{handed - acked} of {handed} deliveries were not acknowledged")
    return float(rate[1])


@row("queue", "A queue by SQL: claim-and-acknowledge cycles",
     "pgbench, a job at a time: gateway.claim() and gateway.ack(), each committed by itself, fsync"
     " on; no gateway is needed for it once the jobs have their numbers")
def queue(bench):
    raw = {}
    for workers in WORKERS:
        rates = []
        for _ in range(bench.rounds):
            database = bench.world.database()
            try:
                rates.append(cycles(database, workers, max(1, round(bench.seconds / 2))))
            finally:
                bench.world.drop(database)
        raw[f"workers_{workers}"] = rates
        say(f"queue: {workers} workers: {median(rates):.0f} cycles a second")
    return [figures.middle(f"{workers} worker{'s' if workers > 1 else ''}, cycles a second",
                           raw[f"workers_{workers}"], "") for workers in WORKERS], raw


# (consumers, what each may have in hand): jobs a second that are more than are done.
CROWDS = {(1, 1): 4000, (8, 1): 8000, (1, 100): 30_000, (8, 100): 40_000}
CONFIRM_MSEC = 3.0
WAIT_SECONDS = 10


def http_cycles(database, gateways, crowd, number, seconds):
    """Cycles a second of consumers at both gateways."""
    consumers, places = crowd
    channel, warmup = f"jobs{number}", 0.3
    jobs = round(CROWDS[crowd] * (seconds + warmup))
    prepare(database, jobs, channel)
    ports = [word for gateway in gateways for word in ("--port", gateway.port)]
    result = run("worker", *ports, "--channel", channel, "--consumers", consumers, "--max", places,
                 "--seconds", seconds, "--warmup", warmup, timeout=seconds + 60)
    if result["cycles_in_all"] >= jobs:
        raise NotMeasured(f"all of {jobs} jobs were done before the time was over")
    return result


def confirmations(poster, worker, seconds):
    """POSTs one after the other, each answered when the worker has acknowledged it."""
    with Program("worker", "--port", worker.port, "--seconds", seconds + 60) as consumer:
        consumer.await_word("ready", 10)
        result = run("post", "--port", poster.port, "--connections", 1, "--seconds", seconds,
                     "--warmup", 0.3, "--path", f"/events?wait={WAIT_SECONDS}s&group=workers",
                     timeout=seconds + 60)
    if result["latency_usec"]["max"] >= WAIT_SECONDS * 1e6:
        raise NotMeasured("a POST was not acknowledged in time")
    return result


def title_of(crowd):
    consumers, places = crowd
    return f"{consumers} consumer{'s' if consumers > 1 else ''}, max={places}, cycles a second"


@row("groups", "A queue by HTTP: claim-and-acknowledge cycles, and POSTs that wait for theirs",
     "two gateways, fsync on; consumers (tests/bench/worker.c) at both, which acknowledge whatever they"
     " read at once, each in a POST. Confirmed: one POST /events?wait= after the other, from the POST"
     " until its answer, which comes when the one worker has acknowledged the event; it is durable"
     " twice on the way, as an event and as an acknowledgement")
def groups(bench):
    raw = {title_of(crowd): [] for crowd in CROWDS}
    raw |= {"same": [], "other": []}
    seconds = bench.seconds / 3
    with bench.world.start("gateway") as first, \
            bench.world.start("gateway", database=first.database) as second:
        gateways, number = (first, second), 0
        for _ in range(bench.rounds):
            for crowd in CROWDS:
                number += 1
                found = http_cycles(first.database, gateways, crowd, number, seconds)
                raw[title_of(crowd)].append(found)
                say(f"groups: {title_of(crowd)}: {found['cycles_per_second']}")
            for where, worker in (("same", first), ("other", second)):
                raw[where].append(confirmations(first, worker, seconds))
                say(f"groups: confirmed at the {where} gateway: {raw[where][-1]['latency_usec']}")
    lines = [figures.middle(name, [each["cycles_per_second"] for each in raw[name]], "")
             for name in map(title_of, CROWDS)]
    for where in ("same", "other"):
        for quantile, target in (("p50", CONFIRM_MSEC), ("p99", None)):
            lines.append(figures.middle(
                f"confirmed, {where} gateway, {quantile}",
                [each["latency_usec"][quantile] / 1000 for each in raw[where]], "ms", target))
    return lines, raw
