"""A private PostgreSQL in a folder of its own, reachable through a Unix socket only.

Nothing of it is durable beyond a crash of PostgreSQL itself (fsync is off: the machine is
not going to lose power in a test), everything else is as usual. PGSSE_TEST_DATA says where
the folder is made, if not among the temporary ones. The gateway's databases
belong to `gateway`, an ordinary role, so that no right of a superuser is used by accident.
"""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from .tools import die_with_parent, find_postgres_tool
from .waiting import scaled, wait_until

OWNER = "gateway"
SUPERUSER = "postgres"

SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "fsync": "off",
    "shared_buffers": "32MB",
    "max_connections": "80",
    "max_prepared_transactions": "20",
    "max_wal_size": "1GB",
    "jit": "off",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %q%a ",
}


def server_user():
    """PostgreSQL refuses to run as root; Popen arguments that make it somebody else."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.fail("there is no user 'postgres' or 'nobody' to run PostgreSQL as")


class Cluster:
    """One PostgreSQL server. start() and stop() may be repeated: the data stays."""

    settings = SETTINGS
    initdb_options = ()

    def __init__(self, copy_of=None):
        self.home = Path(tempfile.mkdtemp(prefix="pgsse-pg-",
                                          dir=os.environ.get("PGSSE_TEST_DATA")))
        self.data = self.home / "data"
        self.log_path = self.home / "log"
        self.process = None
        self._user = server_user()
        self._names = (f"t{number}" for number in itertools.count(1))
        try:
            self._prepare(copy_of)
        except BaseException:
            self.remove()
            raise

    def _prepare(self, copy_of):
        self.log_path.touch()
        if self._user:
            for path in (self.home, self.log_path):
                os.chown(path, self._user["user"], self._user["group"])
        self.home.chmod(0o755)
        if copy_of is None:
            self._run("initdb", "--no-sync", "--auth=trust", "--encoding=UTF8",
                      "--locale=C.UTF-8", f"--username={SUPERUSER}", *self.initdb_options,
                      "-D", self.data)
        else:
            subprocess.run(["cp", "-a", "--reflink=auto", copy_of, self.data], check=True)

    def _run(self, tool, *arguments):
        done = subprocess.run([find_postgres_tool(tool), *map(str, arguments)],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, cwd=self.home, text=True,
                              timeout=scaled(60), **self._user)
        if done.returncode != 0:
            raise RuntimeError(f"{tool} failed with status {done.returncode}: {done.stdout}")

    # -- life ---------------------------------------------------------------------------

    def start(self):
        assert self.process is None, "the cluster is running already"
        arguments = [find_postgres_tool("postgres"), "-D", str(self.data), "-k", str(self.home)]
        for name, value in self.settings.items():
            arguments += ["-c", f"{name}={value}"]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log, cwd=self.home,
                                            preexec_fn=die_with_parent(signal.SIGQUIT),
                                            **self._user)
        wait_until(self._accepts, "PostgreSQL accepts connections", timeout=60)

    def _accepts(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended while starting: {self.log()}")
        try:
            with psycopg.connect(self.dsn("postgres", SUPERUSER)) as connection:
                connection.execute("SELECT 1")
            return True
        except psycopg.OperationalError:
            return False

    def stop(self, how=signal.SIGINT):
        """SIGINT is PostgreSQL's fast shutdown, SIGQUIT its immediate one (as a crash)."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.thaw()
            self.process.send_signal(how)
            try:
                self.process.wait(scaled(30))
            except subprocess.TimeoutExpired:
                self.process.send_signal(signal.SIGQUIT)
                self.process.wait(scaled(30))
        self.process = None

    def crash(self):
        self.stop(signal.SIGQUIT)

    def remove(self):
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.home, ignore_errors=True)

    # -- faults -------------------------------------------------------------------------

    def _pids(self):
        """The postmaster first, so that it makes no new children while they are listed."""
        postmaster = self.process.pid
        yield postmaster
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == postmaster:
                yield int(entry.name)

    def freeze(self):
        """Every process of the server stops in its tracks; the sockets stay open."""
        for pid in self._pids():
            self._signal(pid, signal.SIGSTOP)

    def thaw(self):
        for pid in self._pids():
            self._signal(pid, signal.SIGCONT)

    @staticmethod
    def _signal(pid, number):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    # -- databases ----------------------------------------------------------------------

    def dsn(self, database, user=OWNER):
        return f"host={self.home} port=5432 user={user} dbname={database}"

    def admin(self, sql, *parameters, database="postgres"):
        """One statement as the superuser, outside a transaction."""
        with psycopg.connect(self.dsn(database, SUPERUSER), autocommit=True) as connection:
            cursor = connection.execute(sql, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def create_owner(self):
        self.admin(f"CREATE ROLE {OWNER} LOGIN")

    def create_database(self, name=None, template="template0", options=""):
        name = name or next(self._names)
        self.admin(f'CREATE DATABASE "{name}" TEMPLATE "{template}" OWNER {OWNER} {options}')
        return Database(self, name)

    def log(self):
        return self.log_path.read_text(errors="replace")


class Database:
    """One database of a cluster; what a test reads and writes as an application would."""

    def __init__(self, cluster, name):
        self.cluster = cluster
        self.name = name
        self.dsn = cluster.dsn(name)
        self._connection = None

    def connect(self, autocommit=False):
        """A connection of the caller's own, to be closed by the caller."""
        return psycopg.connect(self.dsn, autocommit=autocommit)

    def execute(self, sql, parameters=None):
        """One statement, committed when this returns; its rows, if it has any."""
        if self._connection is not None and self._connection.closed:
            self._connection = None
        if self._connection is None:
            self._connection = self.connect(autocommit=True)
        cursor = self._connection.execute(sql, parameters)
        return cursor.fetchall() if cursor.description else []

    def value(self, sql, parameters=None):
        return self.execute(sql, parameters)[0][0]

    def publish(self, channel, data, type="message"):
        """As an application would: an INSERT of its own."""
        self.execute("INSERT INTO gateway.events (channel, type, data) VALUES (%s, %s, %s)",
                     (channel, type, data))

    def events(self, channel="%"):
        """(channel, type, data) of all that is committed and numbered, in order."""
        return self.execute("SELECT channel, type, data::text FROM gateway.events"
                            " WHERE seq IS NOT NULL AND channel LIKE %s ORDER BY seq", (channel,))

    def cut_gateways(self):
        """Every connection of a gateway to this database is cut; how many there were."""
        return self.cluster.admin(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = %s AND application_name LIKE 'pg-sse-gateway%%'", self.name)[0][0]

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def drop(self):
        self.close()
        self.cluster.admin(f'DROP DATABASE IF EXISTS "{self.name}" WITH (FORCE)')
