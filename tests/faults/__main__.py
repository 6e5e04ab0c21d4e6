"""Runs the faults one after the other, each in a process of its own, and prints the table.

    FAULTS        which, by name; all unless given. FAULTS=list says what there is
    FAULT_EVENTS  how many events in all
    FAULT_AWAY    for how many seconds PostgreSQL is gone in postgres-away
    FAULT_RING    [ring] bytes of all gateways, instead of one small and one usual ring
    FAULT_SEED    what chance is drawn from; printed, so that a run can be repeated
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.tools import REPOSITORY, die_with_parent

from . import report
from .injections import FAULTS
from .run import Plan, run_fault, write_result

# Beyond the time that a fault's turns take and its events need.
SLACK_SECONDS = 240


def arguments():
    parser = argparse.ArgumentParser(prog="python3 -m faults", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", metavar="FAULT", help="this fault, in this process")
    parser.add_argument("--result", type=Path, help="the file for machines")
    parser.add_argument("--events", type=int, default=int(os.environ.get("FAULT_EVENTS", 1000000)))
    parser.add_argument("--away", type=float, default=float(os.environ.get("FAULT_AWAY", 60)))
    parser.add_argument("--ring", default=os.environ.get("FAULT_RING") or None)
    parser.add_argument("--seed", default=os.environ.get("FAULT_SEED")
                        or str(time.time_ns() % 10**6))
    parser.add_argument("--brisk", action="store_true", help="the short form: half the turns")
    parser.add_argument("--pristine", type=Path, help="a folder that initdb has made, to be"
                        " copied instead of another initdb")
    parser.add_argument("--sabotage", help="put the naive gateway in the gateways' place, with"
                        " this mistake of its own ('' for none)")
    return parser.parse_args()


def chosen():
    names = os.environ.get("FAULTS", "").replace(",", " ").split() or list(FAULTS)
    if names == ["list"]:
        for fault in FAULTS.values():
            print(f"{fault.name:34}{'(root) ' if fault.root else ''}{fault.about}")
        sys.exit(0)
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        sys.exit(f"no fault is called {' or '.join(unknown)}; FAULTS=list says which there are")
    return [FAULTS[name] for name in names]


def end(child):
    """It is asked to clean up, and then there is an end of it, and of what it started."""
    try:
        if child.poll() is None:
            child.terminate()
            child.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def run_in_child(fault, events, options):
    """The result of one fault; what ends it early is a result, too."""
    seconds = fault.seconds + options.away + events / 1000 + SLACK_SECONDS
    with tempfile.TemporaryDirectory(prefix="pgsse-result-") as folder:
        path = Path(folder) / "result"
        command = [sys.executable, "-B", "-m", "faults", "--one", fault.name, "--result",
                   str(path), "--events", str(events), "--away", str(options.away), "--seed", options.seed]
        command += ["--ring", options.ring] if options.ring else []
        command += ["--brisk"] if options.brisk else []
        command += ["--sabotage", options.sabotage] if options.sabotage is not None else []
        child = subprocess.Popen(command, cwd=REPOSITORY / "tests", start_new_session=True,
                                 preexec_fn=die_with_parent(signal.SIGTERM))
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"nothing, within {seconds:.0f} s"
        finally:
            end(child)
        if path.exists():
            return json.loads(path.read_text())
    return {"fault": fault.name, "passed": False,
            "problems": [f"it ended with {status}: see above"]}


def main():
    options = arguments()
    if options.one:
        plan = Plan(options.events, options.seed, options.away, options.ring, options.sabotage,
                    options.brisk, options.pristine)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        result = run_fault(options.one, plan)
        if options.result:
            write_result(result, options.result)
        else:
            print(json.dumps(result, indent=1))
        return 0 if result["passed"] else 1
    return run_all(options)


def run_all(options):
    faults = chosen()
    left_out = [fault for fault in faults if fault.why_not()]
    faults = [fault for fault in faults if not fault.why_not()]
    weights = sum(fault.weight for fault in faults)
    results, begin = [], time.monotonic()
    print(f"seed {options.seed}", file=sys.stderr)
    for number, fault in enumerate(faults, 1):
        print(f"{number} of {len(faults)}: {fault.name}: {fault.about}", file=sys.stderr,
              flush=True)
        events = int(options.events * fault.weight / weights)
        results.append(run_in_child(fault, events, options))
    print(report.table(results))
    for line in report.remarks(results):
        print(line)
    for fault in left_out:
        print(f"{fault.name}: NOT RUN: {fault.why_not()}")
    failed = [result["fault"] for result in results if not result["passed"]]
    path = options.result or REPOSITORY / "build" / "faults.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_result({"seed": options.seed, "seconds": round(time.monotonic() - begin),
                  "passed": not failed, "not_run": [fault.name for fault in left_out],
                  "faults": results}, path)
    print(f"{report.deliveries(results)} deliveries were compared")
    print(f"{len(results) - len(failed)} of {len(results)} faults passed in"
          f" {time.monotonic() - begin:.0f} s, seed {options.seed}"
          + (f"; failed: {' '.join(failed)}" if failed else ""))
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
