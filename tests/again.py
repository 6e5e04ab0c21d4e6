"""Runs once more, by itself, what failed in the last `make test` of a build.

    make again            (SAN=thread make again: of that build)

Tests run several for each CPU at a time, on machines that others share: one may fail because it
was left without a processor. What fails once more has failed, and so has what no second run
excuses: a finding of a sanitizer, an assertion of the program, a runner that broke off. What
passes now is told by name, as something to be mended.
"""

import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

NEVER_EXCUSED = re.compile(r"Sanitizer|runtime error:|Assertion .* failed")


def failed_units(build):
    """Programs of which a test failed; ValueError: something is not to be excused."""
    results = build / "results"
    reports = [path for path in (build / "reports").glob("*") if path.stat().st_size > 0]
    names = re.findall(r"^failed: (\S+)", (results / "unit-failed.txt").read_text(), re.M)
    logs = [(results / f"{name}.log").read_text(errors="replace") for name in names]
    found = re.fullmatch(r"\d+ passed, (\d+) failed\s*", (results / "unit.txt").read_text())
    if reports or any(map(NEVER_EXCUSED.search, logs)):
        raise ValueError("a sanitizer or an assertion has found something")
    if found is None or (int(found[1]) > 0) != bool(names):
        raise ValueError("the unit tests did not run to their end")
    return [str(build / "unit" / name) for name in names]


def failed_cases(build):
    """Black-box tests that failed, as pytest names them."""
    cases = []
    for case in xml.parse(build / "results" / "pytest.xml").getroot().iter("testcase"):
        wrong = [part for part in case if part.tag in ("failure", "error", "skipped")]
        if any(NEVER_EXCUSED.search("".join(part.itertext())) for part in case if wrong):
            raise ValueError("a sanitizer or an assertion has found something")
        if wrong:
            path = "tests/" + case.get("classname").replace(".", "/") + ".py"
            cases.append(f"{path}::{case.get('name')}")
    return cases


def run_again(build, units, cases):
    (build / "results").rename(build / "results-first")
    (build / "results").mkdir()
    good = True
    if units:
        good = subprocess.run(["tests/unit/run", str(build), *units]).returncode == 0
    if cases:
        command = [sys.executable, "-m", "pytest", *cases,
                   f"--junitxml={build}/results/pytest.xml"]
        good = subprocess.run(command).returncode == 0 and good
    return good


def main():
    build = Path(sys.argv[1])
    try:
        units, cases = failed_units(build), failed_cases(build)
        if not units and not cases:
            raise ValueError("no test is known to have failed")
    except (OSError, ValueError, xml.ParseError) as error:
        sys.exit(f"again: not run again: {error}")
    good = run_again(build, units, cases)
    if good:
        for name in units + cases:
            print(f"unsteady: {name} failed beside others, and passes by itself")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
