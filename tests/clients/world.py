"""PostgreSQL, two gateways and whoever publishes; nginx or haproxy in front, if wanted."""

import itertools
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import psycopg

from harness.gateway import DRAIN_SECONDS, Gateway, run_gateway
from harness.postgres import Cluster
from harness.raw_http import Closed
from harness.tools import die_with_parent, find_tool
from harness.waiting import wait_until

CHANNEL = "clients"

SETTINGS = {
    "http.listen": "127.0.0.1:0",
    "http.cors_origins": "*",
    "server.shards": "2",
    "server.drain": f"{DRAIN_SECONDS}s",
    "ring.bytes": "256MiB",
    # Soon, and many, so that much happens in a short time.
    "stream.retry": "200ms",
    "stream.heartbeat": "200ms",
}


class World:
    """One PostgreSQL with one database, and gateways "a" and "b" on it."""

    def __init__(self):
        self.home = Path(tempfile.mkdtemp(prefix="pgsse-clients-"))
        self.numbers = itertools.count(1)
        self.gateways = {}  # those that are ready, or were
        self.started = []
        self.cluster = Cluster()
        try:
            self.cluster.start()
            self.cluster.create_owner()
            self.database = self.cluster.create_database()
            done = run_gateway(self.home / "migrate", "migrate", "up",
                               settings={"database.dsn": self.database.dsn})
            if done.returncode:
                raise RuntimeError(done.stderr)
        except BaseException:
            self.cluster.remove()
            raise

    def start(self, name, **settings):
        values = {**SETTINGS, "database.dsn": self.database.dsn,
                  **{key.replace("__", "."): value for key, value in settings.items()}}
        gateway = Gateway(self.home / f"{name}{next(self.numbers)}", values)
        self.started.append(gateway)
        self.gateways[name] = gateway.wait_ready()
        return gateway

    def rows(self, channel=CHANNEL):
        return self.database.execute(
            "SELECT seq, type, data::text FROM gateway.events WHERE channel = %s"
            " AND seq IS NOT NULL ORDER BY seq", (channel,))

    def close(self):
        try:
            for gateway in self.started:
                gateway.stop()
        finally:
            for gateway in self.started:
                if gateway.process.poll() is None:
                    gateway.kill()
            self.database.close()
            self.cluster.remove()
            shutil.rmtree(self.home, ignore_errors=True)


# What data looks like: small, of several lines, beyond ASCII, and larger than any buffer.
def some_data(random_numbers, number):
    kind = random_numbers.random()
    if kind < 0.7:
        return json.dumps({"number": number, "text": "x" * random_numbers.randrange(200)})
    if kind < 0.9:
        return json.dumps({"number": number, "lines": ["ä€😀", "id: 1", "data: 2"]}, indent=1,
                          ensure_ascii=False)
    if kind < 0.98:
        return json.dumps("\N{WHITE SMILING FACE}" * random_numbers.randrange(1, 300))
    if kind < 0.997:
        return json.dumps({"number": number, "long": "z" * 20_000})
    return json.dumps({"number": number, "long": "y" * 150_000})


def some_type(random_numbers):
    return random_numbers.choice(("message", "message", "created", "updated"))


class Publishers:
    """One publishes with POST, one with SQL, until they are told to stop."""

    def __init__(self, world, seed, pace):
        self.world = world
        self.seed = seed
        self.pace = pace  # seconds between two bursts of one publisher
        self.stopping = threading.Event()
        self.acknowledged = []
        self.failures = []
        self.threads = [threading.Thread(target=self._run, args=(each, number), daemon=True)
                        for number, each in enumerate((self._post, self._insert))]

    def start(self):
        for thread in self.threads:
            thread.start()

    def stop(self):
        self.stopping.set()
        for thread in self.threads:
            thread.join(60)
        if self.failures:
            raise self.failures[0]

    def _run(self, burst, number):
        random_numbers = random.Random(self.seed * 10 + number)
        numbers = itertools.count(1)
        try:
            while not self.stopping.is_set():
                events = [(some_type(random_numbers), some_data(random_numbers, next(numbers)))
                          for _ in range(random_numbers.randrange(1, 200))]
                burst(random_numbers, events)
                self.stopping.wait(self.pace * random_numbers.random() * 2)
        except Exception as failure:
            self.failures.append(failure)

    def _post(self, random_numbers, events):
        """An array in one POST, to either gateway. One that got no answer is not repeated:
        the table says what became of it."""
        body = "[" + ",".join('{"channel":"%s","type":"%s","data":%s}' % (CHANNEL, type, data)
                              for type, data in events) + "]"
        gateway = self.world.gateways[random_numbers.choice("ab")]
        try:
            answer = gateway.post(body)
        except (OSError, Closed):
            return
        if answer.status == 201:
            self.acknowledged += [int(event["id"]) for event in answer.json()["events"]]
        elif answer.status != 503:
            raise AssertionError(repr(answer))

    def _insert(self, random_numbers, events):
        """Some rows in one transaction, some in transactions of their own."""
        with psycopg.connect(self.world.database.dsn, autocommit=True) as connection:
            statement = ("INSERT INTO gateway.events (channel, type, data)"
                         " VALUES (%s, %s, %s)")
            rows = [(CHANNEL, type, data) for type, data in events]
            single = random_numbers.randrange(min(20, len(rows)))
            for row in rows[:single]:
                connection.execute(statement, row)
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(statement, rows[single:])


NGINX = """
daemon off;
pid {home}/nginx.pid;
error_log {home}/nginx.log;
events {{ }}
http {{
    access_log off;
    {paths}
    gzip on;
    {servers}
}}
"""

# While no gateway is there, nginx answers 502, and from that an EventSource never comes back:
# "nginx-later" says instead what a gateway would say. (The header is for pages of another
# origin.)
NGINX_LATER = """
            error_page 502 504 =200 @later;
        }
        location @later {
            default_type text/event-stream;
            add_header Access-Control-Allow-Origin *;
            return 200 "retry: 500\\n";
        }"""

HAPROXY = """
defaults
    mode http
    compression algo gzip
    compression type text/event-stream
    timeout connect 5s
    timeout client 50s
    timeout server 50s
{servers}
"""


def free_ports(count):
    """So many that nobody listens on; they are taken a moment later."""
    doors = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [door.getsockname()[1] for door in doors]
    for door in doors:
        door.close()
    return ports


class Proxy:
    """A port for each relay, through nginx as its package's defaults have it (HTTP/1.0
    towards the gateway, buffers), or through haproxy with compression wanted."""

    def __init__(self, kind, relays):
        self.home = Path(tempfile.mkdtemp(prefix=f"pgsse-{kind}-"))
        self.home.chmod(0o755)
        ports = free_ports(len(relays))
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.config = self.home / "config"
        pairs = list(zip(ports, relays))
        self.log = open(self.home / "log", "wb")
        command = {"nginx": lambda: self._nginx(pairs, " }"),
                   "nginx-later": lambda: self._nginx(pairs, NGINX_LATER),
                   "haproxy": lambda: self._haproxy(pairs)}[kind]()
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            start_new_session=True, preexec_fn=die_with_parent(15))
        wait_until(lambda: all(map(self._answers, ports)), f"{kind} listens")

    def _nginx(self, pairs, rest):
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        paths = "\n    ".join(f"{name}_temp_path {self.home}/{name};" for name in names)
        servers = "\n    ".join(
            f"server {{ listen 127.0.0.1:{port};"
            f" location / {{ proxy_pass {relay.url};{rest} }}" for port, relay in pairs)
        self.config.write_text(NGINX.format(home=self.home, paths=paths, servers=servers))
        user = ["-g", "user nobody nogroup;"] if os.geteuid() == 0 else []
        return [find_tool("nginx"), "-c", str(self.config), "-p", str(self.home), *user]

    def _haproxy(self, pairs):
        servers = "".join(
            f"frontend f{port}\n    bind 127.0.0.1:{port}\n    default_backend b{port}\n"
            f"backend b{port}\n    server s 127.0.0.1:{relay.address[1]}\n"
            for port, relay in pairs)
        self.config.write_text(HAPROXY.format(servers=servers))
        return [find_tool("haproxy"), "-db", "-f", str(self.config)]

    def _answers(self, port):
        if self.process.poll() is not None:
            raise RuntimeError((self.home / "log").read_text())
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        except OSError:
            return False

    def close(self):
        self.process.terminate()
        self.process.wait(15)
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)
