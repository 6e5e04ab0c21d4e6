"""Measures row after row, and prints the table. Missed targets are said and are no failure:
the status is 1 when something could not be measured, or a message was missing.

    BENCH_ROWS     which rows, by name; BENCH_ROWS=list says what there is. Unless given, all but
                   those that are measured only where they are named
    BENCH_ROUNDS   how often each server has its turn (3)
    BENCH_SECONDS  for how long it is measured each time (2); some rows take more or less
    BENCH_CHURN_SECONDS  for how long subscribers leave and come back (30)
    BENCH_WAL      "used": PostgreSQL's WAL goes into segments that were written before, as after a
                   while; or "new": it has to make each, and what is committed then waits for it
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.tools import REPOSITORY

from . import knobs, machine, table
from .programs import NotMeasured, say
from .rows import ROWS
from .servers import World


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ended_by = []  # the signal, if there was one


@dataclass
class Bench:
    """What a row is given."""

    world: World
    rounds: int
    seconds: float


def arguments():
    parser = argparse.ArgumentParser(prog="python3 -m bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=REPOSITORY / "build" / "bench.json",
                        help="the file for machines; the table is put beside it as .txt")
    return parser.parse_args()


ONLY_NAMED = "; only where it is named"


def chosen():
    names = (os.environ.get("BENCH_ROWS", "").replace(",", " ").split()
             or [row.name for row in ROWS.values() if not row.only_named])
    if names == ["list"]:
        for row in ROWS.values():
            print(f"{row.name:{max(map(len, ROWS)) + 2}}{row.title}{ONLY_NAMED if row.only_named else ''}")
        sys.exit(0)
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        sys.exit(f"no row is called {' or '.join(unknown)}; BENCH_ROWS=list says which there are")
    return [ROWS[name] for name in names]


def measure(bench, row):
    """What a row found; what ends it early is said in its place."""
    begin = time.monotonic()
    found = {"name": row.name, "title": row.title, "how": row.how, "lines": [], "raw": None,
             "missing": None}
    try:
        found["lines"], found["raw"] = row.measure(bench)
    except (Exception, pytest.fail.Exception) as problem:
        leave_if_told()  # and who was ended with it complains
        expected = isinstance(problem, (NotMeasured, TimeoutError))
        found["missing"] = str(problem) if expected else f"{type(problem).__name__}: {problem}"
        say(f"{row.name}: not measured: {found['missing']}")
    leave_if_told()  # an exit from within what C has called, a finalizer say, is lost
    found["seconds"] = round(time.monotonic() - begin, 1)
    say(f"{row.name}: done in {found['seconds']:.0f} s")
    return found


def leave_if_told():
    if ended_by:
        sys.exit(128 + ended_by[0])


AGAIN_SECONDS = 0.01


def makes_process(frame):
    """Is it in the middle of that? What is raised in the hooks of a fork is lost."""
    while frame is not None and frame.f_code is not subprocess.Popen._execute_child.__code__:
        frame = frame.f_back
    return frame is not None


def leave(number, frame):
    """All that was started is ended on the way out; who asks once more meanwhile is not heard."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    if makes_process(frame):
        signal.signal(signal.SIGALRM, lambda _, later: leave(number, later))
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)
        return
    ended_by.append(number)
    say(f"ended by {signal.Signals(number).name}")
    leave_if_told()


def main():
    options, rows = arguments(), chosen()
    for number in ENDING:
        signal.signal(number, leave)
    machine.raise_file_limit()
    begin = time.monotonic()
    run = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "machine": machine.describe(),
           "rounds": knobs.ROUNDS, "seconds_each": knobs.SECONDS, "wal": knobs.WAL,
           "load_before": os.getloadavg()[0]}
    results = []
    with World() as world:
        for number, row in enumerate(rows, 1):
            say(f"{number} of {len(rows)}: {row.name}: {row.title}")
            results.append(measure(Bench(world, knobs.ROUNDS, knobs.SECONDS), row))
        run["versions"] = machine.versions(world.node_pg_version())
    run["seconds"] = round(time.monotonic() - begin, 1)
    whole = table.text(run, results)
    print(whole)
    table.write(options.result, run, results)
    options.result.with_suffix(".txt").write_text(whole + "\n")
    return 1 if any(row["missing"] or any(check.missing for check in row["lines"])
                    for row in results) else 0


if __name__ == "__main__":
    sys.exit(main())
