"""PostgreSQL and the gateways of one run, and how they are harmed and mended.

    World           what a fault is given
    World.servers   the PostgreSQL servers: one, or a primary with a standby
    World.gateways  a Member each: a gateway that comes and goes; its address stays
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from harness.gateway import Gateway, check_disasters, clean_environment, run_gateway
from harness.postgres import OWNER, SUPERUSER, Cluster
from harness.raw_http import Closed, RawConnection, build_request
from harness.tools import REPOSITORY, die_with_parent
from harness.waiting import scaled, wait_until

DATABASE = "faults"
DRAIN_SECONDS = 1


class Server(Cluster):
    """The harness's cluster, which can also be killed outright."""

    settings = {**Cluster.settings, "max_connections": "100", "wal_level": "replica",
                "synchronous_commit": "on", "wal_keep_size": "256MB"}

    killed = False   # and not started again since
    crashed = False  # once, at least

    def kill(self):
        """kill -9 of every process at once; the files stay as they are."""
        self.killed = self.crashed = True
        pids = list(self._pids())
        for pid in pids:
            self._signal(pid, signal.SIGKILL)
        self.process.wait()
        self.process = None
        # PostgreSQL refuses to start while one of them still holds the shared memory.
        wait_until(lambda: not any(_alive(pid) for pid in pids), "PostgreSQL is dead")

    def start(self):
        super().start()
        self.killed = False

    def remove(self):
        # What it has left in shared memory is cleared away by its next start.
        if self.killed:
            self.start()
        super().remove()

    def crash(self):
        self.crashed = True
        super().crash()

    def running(self):
        return self.process is not None and self.process.poll() is None

    def revive(self):
        """Starts it if it is not running, whatever ended it."""
        if not self.running():
            self.process = None
            self.crashed = True
            self.start()


class TcpServer(Server):
    """Reachable by TCP too, in a network namespace where port 5432 is nobody else's."""

    settings = {**Server.settings, "listen_addresses": "127.0.0.1"}


class SmallServer(Server):
    """On a file system so small that it can be filled; needs mounts of its own."""

    settings = {**Server.settings, "max_wal_size": "8MB", "min_wal_size": "2MB",
                "wal_keep_size": "0"}
    initdb_options = ("--wal-segsize=1",)
    megabytes = 160

    def _prepare(self, copy_of):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs",
                        str(self.home)], check=True)
        super()._prepare(None)

    def enlarge(self, megabytes):
        self.megabytes += megabytes
        subprocess.run(["mount", "-o", f"remount,size={self.megabytes}m", str(self.home)],
                       check=True)

    def free_bytes(self):
        return shutil.disk_usage(self.home).free

    def remove(self):
        self.stop(signal.SIGQUIT)
        subprocess.run(["umount", "-l", str(self.home)], check=False)
        super().remove()


class Standby(Server):
    """A copy of a running server, which it then follows."""

    def __init__(self, primary):
        self.primary = primary
        super().__init__()

    def _prepare(self, copy_of):
        self.log_path.touch()
        if self._user:
            for path in (self.home, self.log_path):
                os.chown(path, self._user["user"], self._user["group"])
        self.home.chmod(0o755)
        self._run("pg_basebackup", "-D", self.data, "-h", self.primary.home, "-U", SUPERUSER,
                  "-R", "-X", "stream", "--checkpoint=fast", "--no-sync")

    def promote(self):
        self.crashed = True  # claims do not wait for a standby either
        self.admin("SELECT pg_promote(wait := false)")

    def is_streaming(self):
        return bool(self.primary.admin("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'"))


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Servers:
    """The servers of a world: one takes writes, another may follow it.

    `hosts` are the places a gateway is told of at its start; a standby is always at one of
    them, so that a promotion is found without anybody's help."""

    def __init__(self, kind, pristine):
        self.tcp = kind is TcpServer
        self.primary = kind(pristine)
        self.standby = None
        self.former = []  # primaries that were left behind
        self._places = []
        self._extra = Path(tempfile.mkdtemp(prefix="pgsse-hosts-"))
        self._extra.chmod(0o755)
        for number in range(4):
            self._places.append(self._extra / f"host{number}")
        self._point(0, self.primary)
        self._next = 1
        self.primary.start()
        self.primary.create_owner()
        self.primary.create_database(DATABASE)

    def _point(self, number, server):
        self._places[number].symlink_to(server.home)

    def dsn(self):
        """The way to whoever takes writes, for writers and for looking."""
        return self.primary.dsn(DATABASE)

    def gateway_dsn(self, places):
        if self.tcp:
            return f"host=127.0.0.1 port=5432 user={OWNER} dbname={DATABASE}"
        if places == 1:
            return self.dsn()
        hosts = ",".join(str(place) for place in self._places[:places])
        ports = ",".join(["5432"] * places)
        return (f"host={hosts} port={ports} user={OWNER} dbname={DATABASE}"
                " target_session_attrs=read-write")

    def add_standby(self, synchronous):
        self.standby = Standby(self.primary)
        self._point(self._next, self.standby)
        self._next += 1
        self.standby.start()
        wait_until(self.standby.is_streaming, "the standby follows", timeout=30)
        if synchronous:
            self.primary.admin("ALTER SYSTEM SET synchronous_standby_names = '*'")
            self.primary.admin("SELECT pg_reload_conf()")
            wait_until(lambda: self.primary.admin(
                "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"),
                "the standby is synchronous")

    def fail_over(self):
        """The primary is dead already; the standby takes its place."""
        self.former.append(self.primary)
        self.standby.promote()
        self.primary, self.standby = self.standby, None

    def remove(self):
        for server in [self.primary, self.standby, *self.former]:
            if server is not None:
                server.remove()
        shutil.rmtree(self._extra, ignore_errors=True)


class Member:
    """A gateway that comes and goes; its address stays."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.address = (world.address, 8101 + number)
        self.lives = 0
        self.gateway = None

    @property
    def pid(self):
        return self.gateway.pid

    def settings(self):
        host, port = self.address
        return {"http.listen": f"{host}:{port}", "database.dsn": self.world.gateway_dsn(),
                "server.shards": "2", "server.drain": f"{DRAIN_SECONDS}s",
                "stream.heartbeat": "1s", "stream.retry": "100ms",
                "stream.idle_close": "5min", "limits.publish_time": "3s",
                "ring.bytes": self.world.ring_bytes(self.number)}

    def start(self):
        self.lives += 1
        directory = self.world.directory / f"gateway{self.number}-{self.lives}"
        self.gateway = Gateway(directory, self.settings(), address=self.address)

    def running(self):
        return self.gateway is not None and self.gateway.process.poll() is None

    def wait_ready(self):
        wait_until(self.ready, f"gateway {self.number + 1} is ready", timeout=30)

    def kill(self):
        """kill -9."""
        gateway, self.gateway = self.gateway, None
        gateway.kill()

    def stop(self):
        """SIGTERM, and the end it must come to."""
        gateway, self.gateway = self.gateway, None
        gateway.drain = DRAIN_SECONDS
        gateway.stop()

    def ready(self):
        """Whether /readyz says so; a gateway that does not answer is not."""
        try:
            with RawConnection(self.address, 2) as connection:
                connection.send(build_request("GET", "/readyz", [("Connection", "close")]))
                return connection.read_response(2).status == 200
        except (OSError, AssertionError, Closed):
            return False

    def look_after(self):
        """What systemd would do: who has ended without being told is started again."""
        if self.gateway is None or self.gateway.process.poll() is None:
            return
        last = self.gateway.log().strip().rpartition("\n")[2]
        text = (f"gateway {self.number + 1} ended by itself with status"
                f" {self.gateway.process.returncode}: {last}")
        if self.world.fault.exact:
            self.world.problems.append(text)
        else:
            self.world.note(text)
        self.gateway.check()
        self.start()


class NaiveMember(Member):
    """The naive gateway in a gateway's place."""

    def start(self):
        self.lives += 1
        directory = self.world.directory / f"naive{self.number}-{self.lives}"
        directory.mkdir()
        command = [sys.executable, "-B", "-m", "faults.naive", self.address[0],
                   str(self.address[1]), self.world.gateway_dsn(), self.world.sabotage]
        with open(directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=REPOSITORY / "tests", stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, env=clean_environment(directory), preexec_fn=die_with_parent())
        self.gateway = self
        self.directory = directory

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        self.gateway = None
        self.process.kill()
        self.process.wait()

    stop = kill

    def check(self):
        pass

    def log(self):
        return (self.directory / "log").read_text(errors="replace")


class World:
    """Everything of one run, except those who publish and subscribe."""

    def __init__(self, fault, plan):
        self.fault = fault
        self.plan = plan
        self.random = random.Random(f"{plan.seed} world")
        self.sabotage = plan.sabotage
        self.directory = Path(tempfile.mkdtemp(prefix="pgsse-faults-"))
        # An address of this world's own on the loopback, so that nobody else's server can
        # be met at a port that was ours a moment ago.
        chance = random.SystemRandom()
        self.address = "127.{}.{}.{}".format(*(chance.randint(2, 250) for _ in range(3)))
        self.folders = [self.directory]  # to be removed at the end
        self.notes = []     # worth saying
        self.problems = []  # must not be
        self.board = None
        self.pen = None     # signs what the main process writes
        self.measured = {}  # what was measured -> the figures, in seconds
        self.servers = None
        self.gateways = []

    def build(self):
        self.fault.furnish(self)
        self.servers = Servers(self.fault.server, self.plan.pristine)
        done = run_gateway(self.directory / "migrate", "migrate", "up",
                           settings={"database.dsn": self.servers.dsn()})
        if done.returncode:
            raise RuntimeError(f"migrate: {done.stderr}")
        member = NaiveMember if self.sabotage is not None else Member
        self.gateways = [member(self, number) for number in range(2)]
        for gateway in self.gateways:
            gateway.start()
        for gateway in self.gateways:
            gateway.wait_ready()

    def remove(self):
        for gateway in self.gateways:
            if gateway.running():
                gateway.kill()
        if self.servers is not None:
            self.servers.remove()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self):
        """The proper end of the gateways: each ends well and has nothing to complain of."""
        for gateway in self.gateways:
            gateway.stop()
        for log in self.directory.glob("gateway*"):
            check_disasters(log, log.name)

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)

    def expect(self, true, text):
        if not true and text not in self.problems:
            self.problems.append(text)

    def measure(self, what, seconds):
        self.measured.setdefault(what, []).append(round(seconds, 3))

    @property
    def addresses(self):
        return [gateway.address for gateway in self.gateways]

    def gateway_dsn(self):
        return self.servers.gateway_dsn(self.fault.places)

    def ring_bytes(self, number):
        """The first gateway has a ring that is overtaken all the time, the second the usual."""
        return self.plan.ring or ("256KiB" if number == 0 else "64MiB")

    def connect(self):
        return psycopg.connect(self.servers.dsn(), autocommit=True, connect_timeout=2,
                               options="-c statement_timeout=20s")

    def wait_database(self, seconds=60):
        """Until it answers; returns when that was."""

        def answers():
            try:
                with self.connect() as connection:
                    connection.execute("SELECT 1")
                return True
            except psycopg.Error:
                return False

        wait_until(answers, "the database answers", seconds, interval=0.005)
        return time.monotonic()

    def look_after(self):
        for gateway in self.gateways:
            gateway.look_after()

    def sleep(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.look_after()
            time.sleep(min(left, 0.1))

    def time_until_noticed(self, most=10):
        """Seconds from now until every gateway says that it is not ready."""
        begin = time.monotonic()
        waiting = list(self.gateways)
        while waiting and time.monotonic() - begin < scaled(most) + 2:
            for gateway in list(waiting):
                if not gateway.ready():
                    waiting.remove(gateway)
            time.sleep(0.02)
        taken = time.monotonic() - begin
        self.measure("noticed", taken)
        self.expect(not waiting and taken <= scaled(most), f"noticed after {taken:.1f} s")
        return taken
