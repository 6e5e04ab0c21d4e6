"""The table, and the file for machines."""

COLUMNS = (("events", "events"), ("subscribers", "subscribers"), ("resumes", "resumes"), ("jobs", "jobs"),
           ("lost", "lost"), ("doubled", "doubled"), ("reordered", "reordered"),
           ("phantom", "phantom"), ("absent", "acknowledged but absent"), ("gaps", "gaps"))
SUMMED = tuple(name for name, _ in COLUMNS)
TIMES = {"recovered": "recovered within", "taken_over": "jobs within"}


def _row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _longest(results):
    for name in TIMES:
        times = [time for result in results for time in result["measured"].get(name, ())]
        yield f"{max(times):.2f} s" if times else ""


def table(results):
    """As Markdown, the sum in the last line."""
    titles = ["fault", *(title for _, title in COLUMNS), *TIMES.values()]
    lines = [_row(titles), "|---|" + "---:|" * (len(titles) - 1)]
    for result in results:
        if "events" not in result:
            lines.append(_row([result["fault"], "did not run to its end",
                               *[""] * (len(titles) - 2)]))
            continue
        lines.append(_row([result["fault"], *(result[name] for name in SUMMED),
                           *_longest([result])]))
    whole = [result for result in results if "events" in result]
    sums = [sum(result[name] for result in whole) for name in SUMMED]
    lines.append(_row(["**all**", *sums, *_longest(whole)]))
    return "\n".join(lines)


def deliveries(results):
    return sum(result.get("frames", 0) for result in results)


def remarks(results):
    """What there is to say beside the figures, a line each."""
    for result in results:
        name = result["fault"]
        noticed = result.get("measured", {}).get("noticed")
        if noticed:
            yield f"{name}: noticed within {max(noticed):.1f} s"
        if result.get("lost_by_postgres"):
            yield (f"{name}: PostgreSQL itself has lost {result['lost_by_postgres']} acknowledged"
                   f" events; {result['gaps']} streams were told so by a gap")
        for text in result.get("notes", ()):
            yield f"{name}: {text}"
        for text in [*result.get("examples", ()), *result.get("problems", ())]:
            yield f"{name}: PROBLEM: {text}"
