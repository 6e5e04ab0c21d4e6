"""Rows about groups."""

import re
import subprocess
import tempfile
from pathlib import Path
from statistics import median

from harness.tools import find_postgres_tool

from . import figures
from .programs import say
from .row import row

WORKERS = (1, 8)
JOBS_A_SECOND = 6000  # more than are done
SCRIPT = r"""SELECT id FROM gateway.claim('jobs', 'workers') \gset
SELECT gateway.ack(:id, 'workers');
"""
RATE = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


def prepare(database, jobs):
    """So many jobs that wait, and a group that begins before them."""
    database.execute("SELECT gateway.claim('jobs', 'workers')")
    database.execute("INSERT INTO gateway.events (channel, type, data)"
                     " SELECT 'jobs', 'job', json_build_object('n', n)"
                     " FROM generate_series(1, %s) n", (jobs,))
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
                rates.append(cycles(database, workers, max(1, round(bench.seconds))))
            finally:
                bench.world.drop(database)
        raw[f"workers_{workers}"] = rates
        say(f"queue: {workers} workers: {median(rates):.0f} cycles a second")
    return [figures.limit(f"{workers} worker{'s' if workers > 1 else ''}, cycles a second",
                          median(raw[f"workers_{workers}"]), "") for workers in WORKERS], raw
