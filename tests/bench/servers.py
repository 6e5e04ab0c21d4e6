"""Who is measured: each server on a free port, in a folder of its own, stopped by its pid.

`load --server KIND` knows how each wants to be subscribed to and published to. All have one
thread or process that sends, access logs off, and room for 19 000 subscribers.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psycopg

from harness.gateway import Gateway
from harness.tools import die_with_parent, gateway_path
from harness.waiting import wait_until

from . import ground, machine
from .programs import NotMeasured, end, program

HERE = Path(__file__).resolve().parent

# What fits into 20 000 descriptors, beside the gateway's own and those who only knock.
PLACES = 19_050

GATEWAY_SETTINGS = {
    "http.listen": "127.0.0.1:0",
    "server.shards": "1",
    "server.drain": "0",
    "limits.connections": str(PLACES),
}


class World:
    """A folder and one PostgreSQL for all servers of a run; the server is started when it is
    first needed."""

    def __init__(self):
        self.home = Path(tempfile.mkdtemp(prefix="pgsse-bench-"))
        self.home.chmod(0o755)
        self._cluster = None
        self._numbers = itertools.count(1)
        self._packages = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._cluster:
            self._cluster.remove()
        shutil.rmtree(self.home, ignore_errors=True)

    def folder(self, name):
        path = self.home / f"{name}{next(self._numbers)}"
        path.mkdir()
        path.chmod(0o755)
        return path

    @property
    def cluster(self):
        if self._cluster is None:
            self._cluster = ground.start_cluster()
        return self._cluster

    def database(self):
        """A new one with the schema and no event."""
        name = f"b{next(self._numbers)}"
        return self.cluster.create_database(name, template=ground.TEMPLATE)

    @staticmethod
    def drop(database):
        """Interrupted from the terminal, PostgreSQL ends by itself, and with it the database."""
        with contextlib.suppress(psycopg.OperationalError):
            database.drop()

    def node_packages(self):
        """Where Node.js finds `pg`."""
        if self._packages is None:
            self._packages = install_node_packages()
        return self._packages

    def node_pg_version(self):
        """None when no row needed it."""
        if self._packages is None:
            return None
        package = (self._packages / "pg" / "package.json").read_text()
        return json.loads(package)["version"]

    def start(self, name, **options):
        """A server of SERVERS that answers; `with` stops it."""
        return SERVERS[name](self, **options)


class Server:
    """A process that listens on `port`; `pids` are what is measured of it."""

    kind = None    # what load calls it
    title = None   # what the table calls it

    def __init__(self, world):
        self.world = world
        self.folder = world.folder(self.kind)
        self.port = None
        self.process = None
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pids(self):
        return [self.process.pid]

    def load_arguments(self):
        """Whom load talks to."""
        found = ["--server", self.kind, "--port", self.port]
        for pid in self.pids:
            found += ["--pid", pid]
        return found

    def run(self, command, env=None):
        """Starts it and waits until it listens."""
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.folder, env={**os.environ, **(env or {})}, start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM))
        wait_until(self.listens, f"{self.kind} listens", interval=0.01)

    def listens(self):
        if self.process.poll() is not None:
            raise NotMeasured(f"{self.kind} ended: {(self.folder / 'log').read_text()[-500:]}")
        return machine.is_listening(self.process.pid, self.port)

    def stop(self):
        if self.process is not None:
            end(self.process)
            shutil.rmtree(self.folder, ignore_errors=True)


class Bare(Server):
    kind, title = "bare", "bare"

    def start(self):
        self.port = machine.free_port()
        self.run([program("bare"), self.port])


class BareMhd(Server):
    """For POSTs only: a plain libmicrohttpd program without a database."""

    kind, title = "bare_mhd", "bare MHD"

    def start(self):
        self.port = machine.free_port()
        self.run([program("bare_mhd"), "--port", self.port])


class Ring(Server):
    """The gateway's own rooms, without its database. It is published to on a second port, in
    bare's manner."""

    kind, title = "bare", "no database"

    def __init__(self, world, settings=None):
        self.settings = settings or {}
        super().__init__(world)

    def start(self):
        self.port, self.feed = machine.free_port(), machine.free_port()
        settings = [word for name, value in self.settings.items()
                    for word in ("--set", f"{name}={value}")]
        self.run([program("ring"), "--port", self.port, "--publish-port", self.feed, *settings])

    def load_arguments(self):
        return [*super().load_arguments(), "--publish-port", self.feed]


class GatewayServer(Server):
    """The gateway as it is installed: metrics, heartbeats, limits and resume are on."""

    kind, title = "gateway", "gateway"

    def __init__(self, world, database=None, settings=None):
        self.database = database
        self.own_database = database is None
        self.settings = settings or {}
        self.gateway = None
        super().__init__(world)

    def start(self):
        self.database = self.database or self.world.database()
        self.gateway = Gateway(self.folder, {**GATEWAY_SETTINGS, **self.settings,
                                             "database.dsn": self.database.dsn})
        self.process = self.gateway.process
        self.gateway.wait_ready()
        self.port = self.gateway.port

    def stop(self):
        try:
            if self.gateway is not None:
                self.gateway.stop()
        finally:
            if self.gateway is not None and self.gateway.process.poll() is None:
                self.gateway.kill()
            if self.database is not None and self.own_database:
                self.world.drop(self.database)
            shutil.rmtree(self.folder, ignore_errors=True)


NGINX = """
{user}
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {home}/nginx.pid;
error_log {home}/nginx.log error;
load_module {module};
events {{ worker_connections 19900; }}
http {{
    access_log off;
    {paths}
    keepalive_requests 1000000000;
    nchan_shared_memory_size 256M;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/sub/(\\w+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }}
        location ~ ^/pub/(\\w+)$ {{
            nchan_publisher http;
            nchan_channel_id $1;
            nchan_message_buffer_length {buffer};
            nchan_message_timeout 1m;
        }}
    }}
}}
"""

NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

# Messages that Nchan keeps for each channel. The default of 10 loses what comes in bursts of
# 100; ten bursts fit into this.
NCHAN_BUFFER = 1000


class Nchan(Server):
    kind, title = "nchan", "Nchan"

    def start(self):
        if not NCHAN_MODULE.exists():
            raise NotMeasured("nginx's module Nchan is not installed")
        self.port = machine.free_port()
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "\n    ".join(f"{name}_temp_path {self.folder}/{name};" for name in names)
        config = self.folder / "nginx.conf"
        config.write_text(NGINX.format(
            home=self.folder, module=NCHAN_MODULE, paths=paths, port=self.port,
            buffer=NCHAN_BUFFER, user="user nobody nogroup;" if os.geteuid() == 0 else ""))
        self.run(["/usr/sbin/nginx", "-c", config, "-p", self.folder])

    def listens(self):
        """The master listens before it has a worker."""
        return super().listens() and bool(machine.children(self.process.pid))

    @property
    def pids(self):
        """The worker's too, which does the work."""
        return [self.process.pid, *machine.children(self.process.pid)]


class Node(Server):
    kind, title = "node", "Node.js"

    def __init__(self, world):
        self.database = None
        super().__init__(world)

    def start(self):
        packages = self.world.node_packages()
        self.port = machine.free_port()
        self.database = self.world.database()
        info = psycopg.conninfo.conninfo_to_dict(self.database.dsn)
        env = {"NODE_PATH": str(packages), "PGHOST": info["host"], "PGPORT": info["port"],
               "PGUSER": info["user"], "PGDATABASE": info["dbname"]}
        self.run(["node", HERE / "node_sse.js", self.port], env)

    def stop(self):
        super().stop()
        if self.database is not None:
            self.world.drop(self.database)


DEBIAN_NODE_PACKAGES = Path("/usr/share/nodejs")


def install_node_packages():
    """Debian's node-pg, or, beside a Node.js that is not Debian's, the same from npm. The
    folder that holds the module `pg`."""
    if shutil.which("node") is None:
        raise NotMeasured("Node.js is not installed")
    if (DEBIAN_NODE_PACKAGES / "pg").exists():
        return DEBIAN_NODE_PACKAGES
    folder = gateway_path().resolve().parent / "bench" / "node"
    folder.mkdir(parents=True, exist_ok=True)
    lock = (HERE / "package-lock.json").read_bytes()
    stamp = folder / "installed-lock.json"
    if not stamp.exists() or stamp.read_bytes() != lock:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, folder)
        if shutil.which("npm") is None:
            raise NotMeasured("neither Debian's node-pg nor npm is there")
        done = subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise NotMeasured(f"npm could not install pg: {done.stderr[-300:]}")
        stamp.write_bytes(lock)
    return folder / "node_modules"


SERVERS = {"bare": Bare, "gateway": GatewayServer, "ring": Ring, "nchan": Nchan, "node": Node}
