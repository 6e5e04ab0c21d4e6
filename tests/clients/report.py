"""The tables."""


def table(head, rows):
    """Columns as wide as they must be; figures to the right."""
    lines = [head, *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for number, line in enumerate(lines):
        print("  ".join(cell.rjust(width) if cell.isdigit() and number else cell.ljust(width)
                        for cell, width in zip(line, widths)).rstrip())


def bursts(results):
    """results: [(front, client, cuts, reconnects, verdict)]; whether all are clean."""
    head = ["front", "client", "version", "cuts", "events", "lost", "doubled", "reordered",
            "foreign", "gaps", "reconnects", ""]
    table(head, [
        [front, client.name, client.version(), cuts, verdict.events, verdict.lost,
         verdict.doubled, verdict.reordered, verdict.foreign, verdict.gaps, reconnects,
         verdict.wrong]
        for front, client, cuts, reconnects, verdict in results])
    return all(verdict.is_clean() for *_, verdict in results)


def manners(results):
    """results: [(client, {what: outcome})]; whether all are good."""
    head = ["client", "full", "heartbeats", "checkpoint"]
    table(head, [[client.name, *(outcomes[name] for name in head[1:])]
                 for client, outcomes in results])
    return not any(outcome.startswith("!") for _, outcomes in results
                   for outcome in outcomes.values())
