"""What a measurement stands on: PostgreSQL that is as durable as a user's, and a gateway on it.

    with ground(settings) as (database, gateway):
        …
"""

import contextlib
import shutil
import tempfile
from pathlib import Path

from harness.gateway import Gateway, run_gateway
from harness.postgres import SETTINGS, Cluster

SUBSCRIBERS_MAX = 19000


class DurableCluster(Cluster):
    """fsync is on: it is part of what is claimed."""

    settings = {**SETTINGS, "fsync": "on", "shared_buffers": "256MB"}


@contextlib.contextmanager
def database(cluster_class=DurableCluster):
    """An empty database with the schema, on a server of its own."""
    cluster = cluster_class()
    directory = Path(tempfile.mkdtemp(prefix="pgsse-migrate-"))
    try:
        cluster.start()
        cluster.create_owner()
        made = cluster.create_database("bench")
        done = run_gateway(directory, "migrate", "up", settings={"database.dsn": made.dsn})
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        yield made
        made.close()
    finally:
        cluster.remove()
        shutil.rmtree(directory, ignore_errors=True)


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
