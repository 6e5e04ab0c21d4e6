"""Fixtures of the black-box suite.

    pg                a fresh, migrated database of the test's own
    gateway           a gateway on that database, ready
    two               two of them on one database
    gateway_factory   more gateways, with other settings
    empty_database    a fresh database without any migration
    postgres          a PostgreSQL server of the test's own, to be crashed or frozen
    browser           a Chromium, whose console must stay empty

One PostgreSQL server runs for each worker process; everything it and the gateways leave is
removed at the end.
"""

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from harness.gateway import DRAIN_SECONDS, Gateway, run_gateway
from harness.postgres import Cluster
from harness.tools import find_gateway
from harness.waiting import scaled

TEMPLATE = "gateway_template"
TEST_SECONDS = 100

# Each test has a database, which is three hundred files: in memory, where there is room.
MEMORY = "/dev/shm"
ROOM_BYTES = 4 * 1024 ** 3


def pytest_configure():
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES:
        os.environ.setdefault("PGSSE_TEST_DATA", MEMORY)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(scaled(TEST_SECONDS)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skipped test is a failed one; a failed one shows what its gateways logged."""
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
    if report.failed and call.when == "call":
        for running in getattr(item, "gateways", ()):
            text = running.log()
            report.sections.append((f"log of {running.directory.name}", text[-8000:]))


def migrate(directory, database):
    done = run_gateway(directory, "migrate", "up", settings={"database.dsn": database.dsn})
    assert done.returncode == 0, done.stderr


def cluster_with_template(directory, copy_of=None):
    cluster = Cluster(copy_of)
    try:
        pristine = cluster.home / "pristine"
        if copy_of is None:
            subprocess.run(["cp", "-a", cluster.data, pristine], check=True)
        cluster.start()
        cluster.create_owner()
        migrate(directory, cluster.create_database(TEMPLATE))
    except BaseException:
        cluster.remove()
        raise
    return cluster


@pytest.fixture(scope="session")
def cluster():
    """The worker's server. Tests that harm their server use `postgres` instead."""
    directory = Path(tempfile.mkdtemp(prefix="pgsse-migrate-"))
    server = cluster_with_template(directory)
    yield server
    server.remove()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def directory():
    """The test's own folder; short, because Unix sockets live in it."""
    path = Path(tempfile.mkdtemp(prefix="pgsse-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def pg(cluster):
    database = cluster.create_database(template=TEMPLATE)
    yield database
    database.drop()


@pytest.fixture
def empty_database(cluster):
    database = cluster.create_database()
    yield database
    database.drop()


@pytest.fixture
def postgres(cluster, directory):
    """A server of the test's own with a migrated database: .database()."""
    server = cluster_with_template(directory / "migrate", cluster.home / "pristine")
    yield server
    server.remove()


@pytest.fixture
def gateway_factory(request, directory):
    """start(database, settings, env=…, ready=True) -> Gateway. `database` may be None."""
    running = []
    request.node.gateways = running
    numbers = itertools.count(1)

    def start(database, settings=None, env=None, ready=True, listening=True, **options):
        values = {"http.listen": "127.0.0.1:0", "server.shards": "2",
                  "server.drain": f"{DRAIN_SECONDS}s"}
        if database is not None:
            values["database.dsn"] = database.dsn
        values.update(settings or {})
        values = {name: value for name, value in values.items() if value is not None}
        started = Gateway(directory / f"gateway{next(numbers)}", values, env, **options)
        running.append(started)
        if ready:
            started.wait_ready()
        elif listening:
            started.wait_listening()
        return started

    yield start
    failures = []
    for started in running:
        try:
            started.stop()
        except AssertionError as failure:
            failures.append(failure)
        finally:
            if started.process.poll() is None:
                started.process.send_signal(signal.SIGKILL)
                started.process.wait()
    if failures:
        raise failures[0]


@pytest.fixture
def gateway(pg, gateway_factory):
    return gateway_factory(pg)


@pytest.fixture
def two(pg, gateway_factory):
    """Two gateways on that database."""
    return gateway_factory(pg), gateway_factory(pg)


@pytest.fixture
def command(directory):
    """Runs pg-sse-gateway with arguments, to its end: .returncode, .stdout, .stderr."""
    numbers = itertools.count(1)

    def run(*arguments, **options):
        return run_gateway(directory / f"command{next(numbers)}", *arguments, **options)

    return run


@pytest.fixture
def browser():
    from harness.browser import Browser  # only the tests of the page need Selenium

    started = Browser()
    yield started
    try:
        assert started.run("return window.violations ?? []") == []
        assert started.console() == []
    finally:
        started.close()


@pytest.fixture(scope="session")
def binary():
    return find_gateway()
