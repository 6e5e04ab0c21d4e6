"""The table for people, at most 110 columns wide, and the file for machines."""

import json
import textwrap

from . import paper

WIDTH = 110
COLUMNS = (f"{'':44}{'gateway':>10}  {'':8}{'':>10}{'ratio':>9}  {'to reach':>10}  "
           f"{'rounds':>11}")


def number(value):
    """Three digits that count; thousands apart."""
    if value is None:
        return ""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    if abs(value) >= 1 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3f}"


def ratio(value):
    if value is None:
        return ""
    return f"{value:.4f}x" if value < 0.1 else f"{value:.3f}x" if value < 10 else f"{value:.1f}x"


def line(check, what):
    """One check; `what` is left out where it is the same as in the line above."""
    name = f"  {what}{', ' + check.unit if what and check.unit else ''}"
    if check.missing:
        return f"{name:44}{'':12}{check.against:8}not measured: {check.missing}"[:WIDTH]
    target = ""
    if check.target is not None:
        shown = number(check.target) if check.ratio is None else ratio(check.target)
        target = f"{check.relation} {shown}"
    return (f"{name:44}{number(check.value):>10}  {check.against:8}{number(check.other):>10}"
            f"{ratio(check.ratio):>9}  {target:>10}  {check.verdict:6}{check.rounds:>5}")


def rows_text(rows):
    for row in rows:
        yield row["title"]
        what = None
        for check in row["lines"]:
            yield line(check, "" if check.what == what else check.what)
            what = check.what
        if row["missing"]:
            yield from textwrap.wrap(f"not measured: {row['missing']}", WIDTH,
                                     initial_indent="  ", subsequent_indent="  ")
        yield from textwrap.wrap(row["how"], WIDTH, initial_indent="  · ",
                                 subsequent_indent="    ")
        yield ""


WAL = {"used": "WAL segments that it has used before", "new": "new WAL segments"}


def heading(run):
    machine, versions = run["machine"], run["versions"]
    whole_seconds = round(run["seconds"])
    yield (f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB,"
           f" Linux {machine['kernel']}, {machine['system']}")
    yield ", ".join(f"{name} {version}" for name, version in versions.items())
    yield (f"medians of so many rounds as each line says; {run['seconds_each']:g} s each, unless said"
           f" otherwise; {run['date']};")
    yield (f"{whole_seconds // 60} min {whole_seconds % 60} s in all; load of the machine at the beginning"
           f" {run['load_before']:.2f}")
    yield f"PostgreSQL writes into {WAL[run['wal']]}"
    yield ""


def text(run, rows):
    counts = {verdict: 0 for verdict in ("met", "missed", "not measured")}
    for row in rows:
        for check in row["lines"]:
            if check.verdict:
                counts[check.verdict] += 1
        counts["not measured"] += bool(row["missing"])
    lines = [*heading(run), COLUMNS.rstrip(), *rows_text(rows), *paper.text(rows), ""]
    lines.append(f"{counts['met']} targets met, {counts['missed']} missed,"
                 f" {counts['not measured']} not measured")
    return "\n".join(lines)


def write(path, run, rows):
    """Everything that was measured, not only what the table shows of it."""
    whole = {**run, "rows": [{**row, "lines": [check.as_json() for check in row["lines"]]}
                             for row in rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")
