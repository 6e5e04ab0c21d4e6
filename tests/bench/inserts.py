"""What a gateway costs those who insert events themselves: pgbench with 16 clients, one
INSERT of one row in each transaction, fsync on.

    python3 -B -m bench.inserts [--slow] [--rounds N] [--seconds S]     (in tests/)

The situations take turns, each in a fresh database of one server:

    without  the schema, and there was never a gateway at this database
    one      a gateway is attached
    two      two gateways
    relayed  one that relays a channel to a subscriber, notifications in the order of the commits
    near     the same with relay_order = near
    left     a gateway was killed with -9 in the middle of the same inserts; nobody since

All but `without` are given as the median over the rounds of their throughput over its own in
the same round. With --slow each fdatasync takes 2 ms longer
(slow_fsync.c). At the end of each turn every row must have its number, and must have come
to every gateway.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import threading
from pathlib import Path

from harness.gateway import Gateway
from harness.tools import find_postgres_tool
from harness.waiting import wait_until

from . import ground
from .machine import cpu_seconds
from .programs import program
from .rounds import in_turn

CLIENTS = 16
THREADS = 2
SITUATIONS = ("without", "one", "two", "relayed", "near", "left")
GATEWAYS = {"one": 1, "two": 2}
RELAY_ORDERS = {"relayed": "commit", "near": "near"}
SCRIPT = """INSERT INTO gateway.events (channel, type, data) VALUES ('bench', 'inserted', '{"n":1}');\n"""
RATE = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)


@contextlib.contextmanager
def preloaded(library):
    """Programs started meanwhile begin with this library."""
    if library is None:
        yield
        return
    os.environ["LD_PRELOAD"] = str(library)
    try:
        yield
    finally:
        del os.environ["LD_PRELOAD"]


def pgbench(database, seconds, directory, rate=None):
    """Transactions a second: as many as there can be, or at that rate."""
    script = directory / "insert.sql"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [find_postgres_tool("pgbench"), "--no-vacuum", "--protocol=prepared",
         f"--client={CLIENTS}", f"--jobs={THREADS}", f"--time={seconds}", f"--file={script}",
         *([f"--rate={rate}"] if rate else []), database.dsn],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds + 60)
    rate = RATE.search(done.stdout)
    if done.returncode != 0 or not rate:
        raise RuntimeError(f"pgbench: {done.stdout}{done.stderr}")
    return float(rate[1])


class Turn:
    """One situation, once: its database, its gateways, its figures."""

    def __init__(self, server, directory):
        self.server = server
        self.directory = directory
        self.database = server.create_database(template=ground.TEMPLATE)
        self.gateways = []
        self.streams = []

    def attach(self, **settings):
        self.gateways.append(Gateway(
            self.directory / f"{self.database.name}.{len(self.gateways)}",
            {"http.listen": "127.0.0.1:0", "server.shards": "1",
             "database.dsn": self.database.dsn, **settings}).wait_ready())

    def relay(self, order):
        self.attach(**{"channels.relay": "chat", "channels.relay_order": order})
        self.streams.append(self.gateways[-1].subscribe("chat").wait_checkpoint())

    def listener_pids(self):
        return [pid for pid, in self.server.admin(
            "SELECT pid FROM pg_stat_activity WHERE datname = %s"
            " AND application_name = 'pg-sse-gateway/listener'", self.database.name)]

    def kill_amid(self):
        """A gateway that is gone when the rest of the turn begins."""
        self.attach()
        killer = threading.Timer(0.7, self.gateways[0].kill)
        killer.start()
        pgbench(self.database, 1, self.directory)
        killer.join()
        self.gateways.clear()

    def run(self, seconds):
        """(transactions a second, CPU seconds of listening backends for each of seconds,
        of the gateways)"""
        pids = self.listener_pids()
        before = sum(map(cpu_seconds, pids)), sum(cpu_seconds(g.pid) for g in self.gateways)
        rate = pgbench(self.database, seconds, self.directory)
        after = sum(map(cpu_seconds, pids)), sum(cpu_seconds(g.pid) for g in self.gateways)
        return {"per_second": rate, "backend_cpu": (after[0] - before[0]) / seconds,
                "gateway_cpu": (after[1] - before[1]) / seconds}

    def check(self):
        """Every row has its number and has come to every gateway."""
        for gateway in self.gateways:
            wait_until(lambda: self.database.value(
                "SELECT NOT EXISTS (SELECT FROM gateway.events WHERE seq IS NULL)"),
                "every row has its number", timeout=60)
            count, newest = self.database.execute(
                "SELECT count(*), max(seq) FROM gateway.events")[0]
            gateway.wait_metric("pgsse_head_seq", newest, timeout=60)
            received = gateway.metric("pgsse_events_received_total")
            if received != count:
                raise RuntimeError(f"{received} of {count} rows came to a gateway")

    def end(self):
        try:
            for stream in self.streams:
                stream.close()
            for gateway in self.gateways:
                gateway.stop()
        finally:
            self.database.drop()


def take_turn(server, directory, situation, seconds):
    turn = Turn(server, directory)
    try:
        if situation == "left":
            turn.kill_amid()
        if situation in RELAY_ORDERS:
            turn.relay(RELAY_ORDERS[situation])
        for _ in range(GATEWAYS.get(situation, 0)):
            turn.attach()
        figures = turn.run(seconds)
        turn.check()
        return figures
    finally:
        turn.end()


def measure(slow=False, rounds=3, seconds=5, situations=SITUATIONS, say=lambda line: None):
    """Medians over the rounds: for each situation the transactions a second and, but for
    `without`, the ratio."""
    directory = Path(tempfile.mkdtemp(prefix="pgsse-bench-"))
    directory.chmod(0o755)
    with preloaded(program("slow_fsync.so") if slow else None):
        server = ground.start_cluster()
    try:
        taken = {situation: [] for situation in situations}
        for number in range(rounds):
            for situation in in_turn(situations, number):
                figures = take_turn(server, directory, situation, seconds)
                taken[situation].append(figures)
                say(f"round {number + 1}, {situation}: {figures['per_second']:.0f}/s;"
                    f" listening backends {figures['backend_cpu']:.2f} CPU,"
                    f" gateways {figures['gateway_cpu']:.2f} CPU")
        return summary(slow, taken)
    finally:
        server.remove()
        shutil.rmtree(directory, ignore_errors=True)


def summary(slow, taken):
    result = {"clients": CLIENTS, "slow_fsync": slow, "rounds": len(taken["without"])}
    for situation, turns in taken.items():
        rates = [turn["per_second"] for turn in turns]
        result[situation] = {name: round(statistics.median(turn[name] for turn in turns), 3)
                             for name in turns[0]}
        if situation != "without":
            result[situation]["ratio"] = round(statistics.median(
                rate / base["per_second"] for rate, base in zip(rates, taken["without"])), 3)
    return result


def main():
    parser = argparse.ArgumentParser(prog="python3 -m bench.inserts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slow", action="store_true", help="fdatasync takes 2 ms longer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--situations", default=",".join(SITUATIONS))
    options = parser.parse_args()
    print(json.dumps(measure(options.slow, options.rounds, options.seconds,
                             options.situations.split(","), print)))


if __name__ == "__main__":
    main()
