"""COMMIT to bytes at the subscriber, one event at a time, on a durable database.

    python3 -m bench.latency [events of each kind]

What was taken is written at the head of latency.c, which takes it; "commit" is what this is
about, for a POST as for an INSERT of an application's own: from the moment that PostgreSQL
itself notes for the transaction's COMMIT, before it writes and flushes its WAL, to the event's
bytes. One subscriber, fsync on, random pauses of 10 to 50 ms: the gateway has nothing else to
do, and is asleep when an event comes.
"""

import json
import sys

from . import ground
from .programs import run


class TellingCluster(ground.DurableCluster):
    """It remembers when each transaction was committed."""

    settings = {**ground.DurableCluster.settings, "track_commit_timestamp": "on"}


def measure(gateway, database, count=300):
    """Microseconds, of a started gateway on a TellingCluster."""
    return run("latency", gateway.port, database.dsn, count, timeout=60 + count)


def measure_alone(count=300):
    """Makes its own server."""
    with ground.database(TellingCluster) as database, ground.started(database) as gateway:
        return measure(gateway.wait_ready(), database, count)


def main():
    print(json.dumps(measure_alone(*map(int, sys.argv[1:])), indent=1))


if __name__ == "__main__":
    main()
