"""What it costs to listen to a thousand relayed channels, beside one.

One gateway, fsync on, and the channels in streams of 50:

    stand_msec      from the first request until all of them are listened to
    postgres_usec   CPU of all of PostgreSQL's processes, the writers' too, for a notification
                    that is committed by itself, 2 000 a second
    gateway_usec    of the gateway, which sends each to one subscriber
    unwanted_usec   of the backend that listens, for one of a channel that nobody wants, of 10 000
                    in one transaction
    latency_usec    of one at a time, from before it is sent until its bytes are at the
                    subscriber (latency.c)
"""

import contextlib
import subprocess
import time

from harness.tools import find_postgres_tool

from .machine import PostgresMeter, cpu_seconds
from .programs import NotMeasured, run

CHANNELS = (1, 1000)
A_STREAM = 50
NOTIFICATIONS = 1500
A_SECOND = 2000
CLIENTS = 4
UNWANTED = 10_000
ONE_AT_A_TIME = 200
SETTINGS = {"channels.relay": "c*"}
RELAYED = "pgsse_relay_notifications_total"

SCRIPT = r"""\set n random(0, {last})
SELECT pg_notify('c' || :n, repeat('x', 50));
"""


def subscribe(gateway, channels):
    """Streams of these channels, all of which are listened to; `with` closes them."""
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(gateway.subscribe(*channels[at:at + A_STREAM], started=False))
            for at in range(0, len(channels), A_STREAM)]
        for stream in streams:
            stream.wait_checkpoint()
        return stack.pop_all()


def notify(server, channels):
    """Each by itself, as an application would."""
    script = server.folder / "notify.sql"
    script.write_text(SCRIPT.format(last=channels - 1))
    done = subprocess.run(
        [find_postgres_tool("pgbench"), "--no-vacuum", f"--client={CLIENTS}",
         f"--transactions={NOTIFICATIONS // CLIENTS}", f"--rate={A_SECOND}", f"--file={script}",
         server.database.dsn],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"pgbench: {done.stderr}")


def measure_cpu(server, cluster, channels):
    """Of PostgreSQL and of the gateway, a notification."""
    gateway = server.gateway
    before = gateway.metric(RELAYED)
    postgres, own = PostgresMeter(cluster), cpu_seconds(gateway.pid)
    notify(server, channels)
    gateway.wait_metric(RELAYED, before + NOTIFICATIONS)
    postgres, own = postgres.seconds(), cpu_seconds(gateway.pid) - own
    return postgres / NOTIFICATIONS * 1e6, own / NOTIFICATIONS * 1e6


def measure_unwanted(server, cluster):
    """Of the backend that listens, for one that goes nowhere."""
    pid, = (pid for pid, in cluster.admin(
        "SELECT pid FROM pg_stat_activity WHERE datname = %s"
        " AND application_name = 'pg-sse-gateway/listener'", server.database.name))
    before, relayed = cpu_seconds(pid), server.gateway.metric(RELAYED)
    server.database.execute("SELECT count(pg_notify('nobody', n::text))"
                            " FROM generate_series(1, %s) n", (UNWANTED,))
    server.database.execute("NOTIFY c0, 'behind them'")
    server.gateway.wait_metric(RELAYED, relayed + 1)
    return (cpu_seconds(pid) - before) / UNWANTED * 1e6


def measure_with(server, cluster, count):
    """With so many channels listened to."""
    names = [f"c{number}" for number in range(count)]
    began = time.monotonic()
    with subscribe(server.gateway, names):
        stand = (time.monotonic() - began) * 1000
        if server.gateway.metric("pgsse_relay_channels") != count:
            raise NotMeasured(f"not {count} channels are listened to")
        postgres, own = measure_cpu(server, cluster, count)
        unwanted = measure_unwanted(server, cluster)
        latency = run("latency", server.port, server.database.dsn, ONE_AT_A_TIME, names[-1],
                      timeout=60)["notify"]
    return {"stand_msec": stand, "postgres_usec": postgres, "gateway_usec": own,
            "unwanted_usec": unwanted, "latency_usec": latency}


def measure(bench):
    """{channels: a result for each round}"""
    found = {count: [] for count in CHANNELS}
    for _ in range(bench.rounds):
        with bench.world.start("gateway", settings=SETTINGS) as server:
            # The few first: who has left is listened to for a while.
            for count in CHANNELS:
                found[count].append(measure_with(server, bench.world.cluster, count))
    return found
