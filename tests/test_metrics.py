"""/metrics, /healthz, /readyz and the healthcheck command."""

import os
import re
import signal
import subprocess

import pytest

from harness.raw_http import build_request
from harness.sse import StreamEnded
from harness.tools import find_tool
from harness.waiting import scaled, wait_until


def test_promtool_finds_nothing_wrong(gateway):
    with gateway.subscribe("c") as stream:
        gateway.publish("c", "1")
        stream.next_event()
        text = gateway.get("/metrics").body
    done = subprocess.run([find_tool("promtool"), "check", "metrics"], input=text,
                          capture_output=True, timeout=scaled(30))
    assert done.returncode == 0 and done.stdout + done.stderr == b"", done.stdout + done.stderr


def test_the_format_is_prometheus_text(gateway):
    answer = gateway.get("/metrics")
    assert re.match(r"text/plain; ?version=0\.0\.4", answer.headers["Content-Type"])
    names = set(re.findall(r"^([a-z_]+)", answer.text, re.MULTILINE))
    assert names and all(name.startswith("pgsse_") for name in names), names
    assert answer.text.endswith("\n")


def test_publishing_and_delivering_are_counted(gateway, pg):
    before = gateway.metrics()
    with gateway.subscribe("c") as stream, gateway.subscribe("c") as other, \
         gateway.subscribe("quiet"):
        for number in range(5):
            gateway.publish("c", str(number))
        pg.publish("c", '"sql"')
        stream.take(6)
        other.take(6)
        gateway.post("{")
        gateway.get("/nothing")

        def grown(name):
            return gateway.metric(name) - before[name]

        assert grown("pgsse_events_published_total") == 5
        assert 1 <= grown("pgsse_publish_batches_total") <= 5
        assert grown("pgsse_events_received_total") == 6
        wait_until(lambda: grown("pgsse_events_delivered_total") == 12, "twelve are delivered")
        assert grown("pgsse_events_received_bytes_total") > 0
        assert grown("pgsse_delivered_bytes_total") > 0
        assert grown("pgsse_events_numbered_total") == 1
        assert grown("pgsse_streams_opened_total") == 3
        assert gateway.metric("pgsse_streams") == 3
        # Noted after the streams have been woken.
        wait_until(lambda: gateway.metric("pgsse_head_seq") >= 6, "the head is at six")
        wait_until(lambda: gateway.metric("pgsse_ring_events") >= 6, "the ring holds six")
    gateway.wait_metric("pgsse_streams", 0)


def test_answers_are_counted_by_class(gateway):
    def answers():
        return {name: value for name, value in gateway.metrics().items()
                if name.startswith("pgsse_http_responses_total")}

    before = answers()
    for _ in range(3):
        gateway.get("/nothing")
    after = answers()
    assert sum(after.values()) - sum(before.values()) >= 3
    (name,) = [name for name in after if "4xx" in name]
    assert after[name] - before[name] == 3


def test_connections_are_counted(gateway):
    gateway.wait_metric("pgsse_connections", 1)  # the one that asks
    connections = [gateway.connection() for _ in range(10)]
    try:
        for connection in connections:
            connection.send(build_request("GET", "/healthz"))
            assert connection.read_response().status == 200
        gateway.wait_metric("pgsse_connections", 11)
    finally:
        for connection in connections:
            connection.close()
    gateway.wait_metric("pgsse_connections", 1)


def test_how_long_a_publish_takes_is_measured(gateway):
    for _ in range(4):
        gateway.publish("c", "1")
    figures = gateway.metrics()
    assert figures["pgsse_publish_duration_seconds_count"] == 4
    assert 0 < figures["pgsse_publish_duration_seconds_sum"] < 60
    assert figures['pgsse_publish_duration_seconds_bucket{le="+Inf"}'] == 4


def test_healthz_and_readyz_say_200(gateway):
    for path in ("/healthz", "/readyz"):
        answer = gateway.get(path)
        assert answer.status == 200
        assert answer.headers.names_in("Cache-Control") & {"no-store", "no-cache"}


def test_healthcheck_says_whether_it_is_ready(gateway, command):
    settings = {"http.listen": f"127.0.0.1:{gateway.port}"}
    assert command("healthcheck", settings=settings).returncode == 0
    gateway.stop()
    done = command("healthcheck", settings=settings)
    assert done.returncode == 1
    assert str(gateway.port) in done.stderr


def test_healthcheck_fails_while_the_database_is_away(gateway_factory, command, directory):
    gateway = gateway_factory(None, {"database.dsn": f"host={directory} dbname=x"}, ready=False)
    done = command("healthcheck", settings={"http.listen": f"127.0.0.1:{gateway.port}"})
    assert done.returncode == 1
    assert done.stderr.strip()


@pytest.mark.parametrize("form", ["wildcard", "unix", "second"])
def test_healthcheck_finds_the_gateway_wherever_it_listens(pg, gateway_factory, command, directory,
                                                           form):
    path = directory / "health.sock"
    gateway = gateway_factory(pg, {"http.listen": f"127.0.0.1:0,unix:{path}"})
    listen = {"wildcard": f"0.0.0.0:{gateway.port}", "unix": f"unix:{path}",
              "second": f"unix:{path},127.0.0.1:{gateway.port}"}[form]
    assert command("healthcheck", settings={"http.listen": listen}).returncode == 0


def test_a_frozen_gateway_is_not_healthy(gateway, command):
    os.kill(gateway.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, gateway.pid, os.WSTOPPED)  # the last of its threads, too
    try:
        done = command("healthcheck", settings={"http.listen": f"127.0.0.1:{gateway.port}"})
    finally:
        os.kill(gateway.pid, signal.SIGCONT)
    assert done.returncode == 1


def test_streams_show_in_the_figures_while_they_last(gateway):
    with gateway.subscribe("c") as stream:
        gateway.wait_metric("pgsse_streams", 1)
        gateway.stop()
        try:
            stream.next_event()
        except StreamEnded as end:
            assert end.clean
