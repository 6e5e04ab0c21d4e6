"""What a measurement stands on: PostgreSQL that is as durable as a user's, and a gateway on it.

    with ground(settings) as (database, gateway):
        …
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from harness.gateway import Gateway, run_gateway
from harness.postgres import SETTINGS, Cluster

from . import knobs

SUBSCRIBERS_MAX = 19000

# Of 16 MB each: more than is written until the next checkpoint, which lets them be used again. To
# drop a database makes one.
WAL_SEGMENTS = 16


class DurableCluster(Cluster):
    """As an operator would run it: what is acknowledged is on the disk (fsync is on, it is part of
    what is claimed), and there is room for the WAL of a measurement."""

    settings = {**SETTINGS, "fsync": "on", "shared_buffers": "256MB", "max_connections": "100",
                "min_wal_size": f"{16 * WAL_SEGMENTS}MB", "max_wal_size": "4GB",
                "wal_recycle": "on" if knobs.WAL == "used" else "off",
                "checkpoint_timeout": "30min"}

    def use_wal(self):
        """As after a while: what is written now goes into segments that were written before. A
        new one is filled with zeros, in the middle of some commit, and all behind it wait."""
        self.admin("SELECT pg_logical_emit_message(false, 'bench', ''), pg_switch_wal()"
                   " FROM generate_series(1, %s)", WAL_SEGMENTS)
        self.admin("CHECKPOINT")


# A database with the schema and no event, to be copied.
TEMPLATE = "pristine"


def start_cluster(kind=DurableCluster):
    """A server with TEMPLATE; remove() ends it."""
    cluster = kind()
    try:
        cluster.start()
        cluster.create_owner()
        made = cluster.create_database(TEMPLATE)
        with tempfile.TemporaryDirectory(prefix="pgsse-migrate-") as directory:
            done = run_gateway(Path(directory), "migrate", "up",
                               settings={"database.dsn": made.dsn})
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        if knobs.WAL == "used":
            cluster.use_wal()
        os.sync()  # nobody's fsync is to write what initdb left
    except BaseException:
        cluster.remove()
        raise
    return cluster


@contextlib.contextmanager
def database(kind=DurableCluster):
    """An empty database with the schema, on a server of its own."""
    cluster = start_cluster(kind)
    try:
        made = cluster.create_database("bench", template=TEMPLATE)
        yield made
        made.close()
    finally:
        cluster.remove()


@contextlib.contextmanager
def started(made, settings=None, **options):
    """A gateway, as soon as there is a process. One shard, and room for all the subscribers
    that a file limit of 20000 allows."""
    directory = Path(tempfile.mkdtemp(prefix="pgsse-bench-"))
    values = {"http.listen": "127.0.0.1:0", "server.shards": "1", "server.drain": "2s",
              "limits.connections": str(SUBSCRIBERS_MAX), "database.dsn": made.dsn}
    gateway = None
    try:
        gateway = Gateway(directory, {**values, **(settings or {})}, **options)
        yield gateway
        gateway.stop()
    finally:
        if gateway is not None and gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def ground(settings=None):
    with database() as made, started(made, settings) as gateway:
        yield made, gateway.wait_ready(timeout=60)
