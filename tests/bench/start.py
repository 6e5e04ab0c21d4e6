"""How long a gateway takes from its start to READY=1 on a large table.

    python3 -m bench.start [rows]

The table is filled by one INSERT, numbered as it goes, with fsync off; then PostgreSQL is
restarted as durable as a user's, and the gateway started: the first time with nothing of the
database in PostgreSQL's memory nor in the kernel's, then as often as asked with both warm.
READY=1 is what systemd is told; /readyz is asked every two milliseconds.
"""

import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

from harness.postgres import SETTINGS

from . import ground, machine

ROWS = 5_000_000
CHANNELS = 1000
STARTS = 5
PATIENCE_SECONDS = 60

FILL = """
INSERT INTO gateway.events (seq, channel, type, data, created_at)
SELECT n, 'channel-' || n %% %(channels)s, 'message',
       ('{"number":' || n || ',"text":"' || repeat('x', 100) || '"}')::json,
       clock_timestamp()
  FROM generate_series(1, %(rows)s) n
"""

INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
 WHERE schemaname = 'gateway' AND tablename = 'events'
   AND indexname NOT IN (SELECT conname FROM pg_constraint)
"""


class Filler(ground.DurableCluster):
    settings = {**SETTINGS, "fsync": "off", "synchronous_commit": "off", "wal_level": "minimal",
                "max_wal_senders": "0", "max_wal_size": "8GB", "full_page_writes": "off",
                "shared_buffers": "1GB", "maintenance_work_mem": "256MB", "autovacuum": "off",
                "checkpoint_timeout": "1h"}


def fill(database, rows):
    """The indexes are made anew, as they were, when all is there: half the time."""
    with database.connect() as connection:
        indexes = connection.execute(INDEXES).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX gateway.{name}")
        connection.execute("SET LOCAL gateway.quiet = on")
        connection.execute(FILL, {"rows": rows, "channels": CHANNELS})
        for _, definition in indexes:
            connection.execute(definition)
        connection.execute("SELECT setval('gateway.events_seq', %s)", (rows,))
    database.execute("VACUUM (ANALYZE) gateway.events")


def make_durable(database):
    """From here on the server is as any other."""
    cluster = database.cluster
    database.close()
    cluster.stop()
    cluster.settings = ground.DurableCluster.settings
    cluster.start()


def make_cold(database):
    """Nothing of the database is in memory: neither PostgreSQL's, nor the kernel's."""
    cluster = database.cluster
    database.close()
    cluster.stop()
    os.sync()
    for path in cluster.data.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cluster.start()


def is_ready(port):
    """Does /readyz say 200?"""
    with contextlib.suppress(OSError), \
         socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    return False


def was_told(notifications):
    with contextlib.suppress(BlockingIOError):
        while text := notifications.recv(4096):
            if b"READY=1" in text.split(b"\n"):
                return True
    return False


def start_once(database):
    """Milliseconds from the start to READY=1, and to the first 200 of /readyz."""
    port = machine.free_port()
    with tempfile.TemporaryDirectory(prefix="pgsse-notify-") as directory, \
         socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notifications:
        path = str(Path(directory) / "notify")
        notifications.bind(path)
        began = time.monotonic()
        took = {}
        with ground.started(database, {"http.listen": f"127.0.0.1:{port}"},
                            env={"NOTIFY_SOCKET": path}) as gateway:
            while len(took) < 2:
                now = (time.monotonic() - began) * 1000
                if now > PATIENCE_SECONDS * 1000:
                    raise TimeoutError(f"not ready: {gateway.log()}")
                if "ready" not in took and was_told(notifications):
                    took["ready"] = now
                if "readyz" not in took and is_ready(port):
                    took["readyz"] = now
                time.sleep(0.002)
    return took


def measure(rows=ROWS, starts=STARTS):
    """Makes its own server and table."""
    with ground.database(Filler) as database:
        began = time.monotonic()
        fill(database, rows)
        filled = time.monotonic() - began
        make_durable(database)
        make_cold(database)
        cold = start_once(database)
        warm = [start_once(database) for _ in range(starts)]
    return {
        "rows": rows,
        "fill_seconds": round(filled, 1),
        "cold_ready_msec": round(cold["ready"], 1),
        "cold_readyz_msec": round(cold["readyz"], 1),
        "ready_msec": round(statistics.median(entry["ready"] for entry in warm), 1),
        "readyz_msec": round(statistics.median(entry["readyz"] for entry in warm), 1),
        "ready_msec_max": round(max(entry["ready"] for entry in warm), 1),
    }


def main():
    print(json.dumps(measure(*map(int, sys.argv[1:]))))


if __name__ == "__main__":
    main()
