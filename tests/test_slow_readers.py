"""A reader that takes nothing slows nobody, costs little, and is let go in the end."""

import contextlib
import json
import os
import re
import subprocess
import time

import pytest

from bench import memory
from harness.raw_http import build_request
from harness.waiting import SLOWNESS, scaled, wait_until

MIB = 1024 * 1024


def flood(gateway, fast, megabytes):
    """Publishes that much; after each megabyte the fast reader must have all of it."""
    piece = json.dumps("x" * (64 * 1024 - 2))
    body = "[" + ",".join('{"channel":"c","data":%s}' % piece for _ in range(16)) + "]"
    for _ in range(megabytes):
        answer = gateway.post(body, timeout=scaled(20))
        assert answer.status == 201, repr(answer)
        for event in fast.take(16, timeout=scaled(20)):
            assert len(event.data) == 64 * 1024


def test_readers_that_never_read_slow_nobody_and_cost_little(pg, gateway_factory):
    gateway = gateway_factory(pg, {"ring.bytes": "8MiB", "stream.idle_close": "5min",
                                   "stream.heartbeat": "1s"})
    stuck = [gateway.subscribe("c", receive_buffer=4096, http10=number % 2 == 1)
             for number in range(6)]
    try:
        with gateway.subscribe("c") as fast:
            fast.keep_wire = False
            flood(gateway, fast, 10)  # the ring and the buffers are full from here on
            before = gateway.rss_bytes()
            flood(gateway, fast, 40)
            grown = gateway.rss_bytes() - before
            # If each kept what it has not read, it would be 240 MiB. Sanitizers keep
            # freed memory for a while, and shadow what there is.
            assert grown < 24 * MIB * max(1, SLOWNESS), f"{grown / MIB:.0f} MiB more"
            assert gateway.metric("pgsse_streams") == 7
            with gateway.subscribe("other") as newcomer:
                gateway.publish("other", "1")
                assert newcomer.next_event().data == "1"
    finally:
        for stream in stuck:
            stream.close()
    gateway.wait_metric("pgsse_streams", 0)


def test_a_reader_that_takes_nothing_for_long_is_closed(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.idle_close": "1s", "stream.heartbeat": "200ms"})
    with gateway.subscribe("c") as fast, gateway.subscribe("c", receive_buffer=4096) as stuck:
        with gateway.subscribe("c", receive_buffer=4096, http10=True) as stuck_old:
            gateway.wait_metric("pgsse_streams", 3)
            flood(gateway, fast, 12)
            gateway.wait_metric("pgsse_streams", 1)
            assert gateway.metric("pgsse_streams_idle_closed_total") == 2
            for stream in (stuck, stuck_old):
                stream.wait_end()
        gateway.publish("c", "1")
        assert fast.next_event().data == "1"


def test_who_takes_a_large_event_in_sips_is_not_taken_for_stuck(pg, gateway_factory):
    """The kernel holds megabytes, and its socket says nothing until many of them are gone."""
    gateway = gateway_factory(pg, {"stream.idle_close": "2s", "stream.heartbeat": "500ms"})
    data = json.dumps("x" * (5 * MIB))
    pg.publish("big", data)
    with gateway.subscribe("big", last_event_id="earliest", receive_buffer=65536) as stream:
        end = time.monotonic() + scaled(5)
        while time.monotonic() < end:  # how long it takes sips, not a wait for anything
            stream.sip(40000)
            time.sleep(0.1)
        assert gateway.metric("pgsse_streams_idle_closed_total") == 0
        assert stream.next_event(timeout=30).data == data


def test_a_quiet_stream_is_not_taken_for_a_stuck_one(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.idle_close": "300ms", "stream.heartbeat": "100ms"})
    with gateway.subscribe("c") as stream:
        for _ in range(15):
            stream.next_comment()
        gateway.publish("c", "1")
        assert stream.next_event().data == "1"


def test_a_reader_that_pauses_gets_everything_once_it_reads_again(pg, gateway_factory):
    """As much as the sockets' buffers do not take, and less than the ring holds."""
    gateway = gateway_factory(pg, {"ring.bytes": "64MiB"})
    with gateway.subscribe("c") as fast:
        with gateway.subscribe("c", receive_buffer=4096) as pausing, \
             gateway.subscribe("c", receive_buffer=4096, http10=True) as pausing_old:
            flood(gateway, fast, 16)
            for stream in (pausing, pausing_old):
                events = stream.take(256)
                assert all(len(event.data) == 64 * 1024 for event in events)
                assert len({event.id for event in events}) == 256
            gateway.publish("c", '"end"')
            assert pausing.next_event().data == pausing_old.next_event().data == '"end"'


# -- GET /streams -------------------------------------------------------------------------


@pytest.fixture
def everywhere(pg, gateway_factory, directory):
    """A gateway on TCP, IPv6 and a Unix socket; and the three addresses."""
    path = str(directory / "http.sock")
    gateway = gateway_factory(pg, {"http.listen": f"127.0.0.1:0,[::1]:0,unix:{path}",
                                   "server.shards": "3"})
    port6 = int(gateway.wait_log(r"listening on \[::1\]:([0-9]+)")[1])
    return gateway, [gateway.address, ("::1", port6), path]


def subscribe_at(gateway, address, *channels, **options):
    was, gateway.address = gateway.address, address
    try:
        return gateway.subscribe(*channels, **options)
    finally:
        gateway.address = was


def address_of(stream):
    if isinstance(stream.sock.getsockname(), str):
        return "unix"
    host, port = stream.sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listed(gateway, query=""):
    answer = gateway.get("/streams" + query)
    assert answer.status == 200, repr(answer)
    assert answer.headers["Cache-Control"] == "no-store"
    return answer.json()


def test_the_slowest_readers_are_listed_by_address(everywhere):
    gateway, addresses = everywhere
    with contextlib.ExitStack() as streams:
        stuck = [streams.enter_context(subscribe_at(
            gateway, address, "c", "quiet.*", types=["message", 'a "b\\ü'], receive_buffer=4096,
            http10=number % 2 == 1)) for number, address in enumerate(addresses)]
        fast = streams.enter_context(gateway.subscribe("c"))
        fast.keep_wire = False
        for address in addresses * 3:
            streams.enter_context(subscribe_at(gateway, address, "quiet"))
        flood(gateway, fast, 12)

        def settled():
            streams = listed(gateway)["streams"]
            states = [(each["state"], each["events_behind"] > 0) for each in streams]
            return states == [("behind", True)] * 3 + [("live", False)] * 10 and streams

        everybody = wait_until(settled, "only three are behind")
        assert listed(gateway)["total"] == 13
        slow = everybody[:3]
        assert sorted(each["address"] for each in slow) == sorted(map(address_of, stuck))
        assert [each["events_behind"] for each in slow] == sorted(
            (each["events_behind"] for each in slow), reverse=True)
        for each in slow:
            assert each["state"] == "behind"
            assert 0 < each["events_behind"] <= 12 * 16
            assert each["unsent_bytes"] > 4096
            assert each["channels"] == ["c", "quiet.*"]
            assert each["types"] == ["message", 'a "b\\ü']
            assert 0 <= each["silent_seconds"] <= each["open_seconds"] < scaled(100)
        assert {each["address"]: each["http_version"] for each in slow} == {
            address_of(stream): "1.0" if number % 2 == 1 else "1.1"
            for number, stream in enumerate(stuck)}
        for each in everybody[3:]:
            assert each["state"] == "live" and each["events_behind"] == 0
        assert address_of(fast) in [each["address"] for each in everybody[3:]]

        worst = slow[0]["events_behind"]
        gateway.wait_metric("pgsse_streams_lag_max_events", worst)
        # Those that read again are up to date soon, and nobody is behind any more.
        for stream in stuck:
            stream.take(12 * 16)
        wait_until(lambda: all(each["state"] == "live" for each in listed(gateway)["streams"]),
                   "all are up to date")
        gateway.wait_metric("pgsse_streams_lag_max_events", 0)


def test_a_reader_that_is_overtaken_is_listed_as_replaying(pg, gateway_factory):
    gateway = gateway_factory(pg, {"ring.bytes": "1MiB"})
    with gateway.subscribe("c") as fast, gateway.subscribe("c", receive_buffer=4096) as stuck:
        fast.keep_wire = False
        flood(gateway, fast, 12)
        gateway.wait_metric("pgsse_ring_events", lambda events: events < 40)
        assert listed(gateway)["streams"][0]["address"] == address_of(stuck)

        def look():
            stuck.next_event()
            return "replaying" in [each["state"] for each in listed(gateway)["streams"]]

        wait_until(look, "it goes on from the table")
        stuck.take(1)


def test_the_list_has_a_limit(gateway):
    with contextlib.ExitStack() as streams:
        for _ in range(25):
            streams.enter_context(gateway.subscribe("c"))
        assert len(listed(gateway)["streams"]) == 20
        for limit, count in ((1, 1), (7, 7), (1000, 25)):
            answer = listed(gateway, f"?limit={limit}")
            assert (len(answer["streams"]), answer["total"]) == (count, 25)
        for wrong in ("0", "1001", "-1", "x", "", "1e2"):
            gateway.get(f"/streams?limit={wrong}").problem(400)
        assert '"limt"' in gateway.get("/streams?limit=5&limt=5").problem(400)["detail"]
    gateway.wait_metric("pgsse_streams", 0)
    assert listed(gateway) == {"streams": [], "total": 0}


def test_the_list_is_a_resource_like_others(gateway):
    head = gateway.request("HEAD", "/streams")
    assert head.status == 200 and head.headers["Content-Type"] == "application/json"
    options = gateway.request("OPTIONS", "/streams")
    assert options.status == 204 and options.headers["Allow"] == "GET, HEAD, OPTIONS"
    gateway.request("POST", "/streams", body=b"{}").problem(405)


@pytest.mark.parametrize("header", [
    "Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.1", "x-real-ip: 192.0.2.1",
    "Via: 1.1 proxy", "Origin: https://elsewhere.example", "Sec-Fetch-Site: same-origin"])
def test_the_list_is_not_shown_through_a_proxy_or_to_other_pages(everywhere, header):
    gateway, addresses = everywhere
    name, _, value = header.partition(": ")
    for gateway.address in addresses:
        detail = gateway.get("/streams", [(name, value)]).problem(403)["detail"]
        assert name.lower() in detail.lower()
        listed(gateway)


def run(*command):
    done = subprocess.run(command, timeout=scaled(30), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def may_make_hosts():
    """Is this root, and not one in a container without rights or a chroot? `ip -n` wants mounts of
    its own, too."""
    return os.geteuid() == 0 and subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, timeout=30).returncode == 0


@pytest.fixture
def far_host():
    """A host of the test's own at the end of a wire: (its name, the address of this end)."""
    number = os.getpid() & 0x3fff  # others may run beside this
    name, net = f"pgsse{number}", f"198.18.{number >> 6}."
    here, there = net + str((number & 63) * 4 + 1), net + str((number & 63) * 4 + 2)
    run("ip", "netns", "add", name)
    try:
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "wire", "netns", name)
        run("ip", "addr", "add", here + "/30", "dev", name)
        run("ip", "link", "set", name, "up")
        run("ip", "-n", name, "addr", "add", there + "/30", "dev", "wire")
        run("ip", "-n", name, "link", "set", "wire", "up")
        yield name, here
    finally:
        run("ip", "netns", "del", name)


if may_make_hosts():  # for others there is tests/unit/test_slowest.c

    def test_the_list_is_not_shown_to_other_hosts(pg, gateway_factory, far_host):
        name, here = far_host
        gateway = gateway_factory(pg, {"http.listen": f"127.0.0.1:0,{here}:0"})
        port = gateway.wait_log(rf"listening on {re.escape(here)}:([0-9]+)")[1]

        def ask(path):
            return run("ip", "netns", "exec", name, "curl", "-s", "-m", "10",
                       f"http://{here}:{port}{path}")

        assert ask("/healthz") == "ok\n"
        assert json.loads(ask("/streams"))["status"] == 403
        # This host's own address is not the loopback either.
        gateway.address = (here, int(port))
        gateway.get("/streams").problem(403)


# -- what they cost -----------------------------------------------------------------------


def test_memory_of_connections_is_counted_and_given_back(gateway):
    idle = gateway.connection_memory(0)
    names = ["%03d" % number + "x" * 250 for number in range(60)]
    with contextlib.ExitStack() as streams:
        for _ in range(20):
            streams.enter_context(gateway.subscribe("c"))
        before = gateway.connection_memory(20)
        assert 1024 < (before - idle) / 20 < 4096
        streams.enter_context(gateway.subscribe(*names, types=["t" * 255]))
        large = gateway.connection_memory(21) - before
        assert large > 8192 + 60 * 255 + 255, "its header, and what it is kept as"
        before += large
        connection = streams.enter_context(gateway.connection())
        body = b'{"data":"' + b"x" * MIB
        connection.send(build_request("POST", "/events", [
            ("Content-Type", "application/json"), ("Content-Length", str(2 * MIB))]) + body)
        gateway.wait_metric("pgsse_connection_memory_bytes", lambda now: now - before > MIB)
    assert gateway.connection_memory(0) == idle


def test_an_idle_browser_costs_no_more_than_it_must(pg, gateway_factory):
    """The account says so, and the process's own memory says the same."""
    gateway = gateway_factory(pg, {"server.shards": "1"})
    figures = memory.measure_gateway(gateway, count=1000)
    assert 600 < figures["request_bytes"] < 640
    assert 3000 < figures["accounted_bytes_per_subscriber"] < 3500, figures
    # Sanitizers put fences around every allocation.
    if SLOWNESS == 1:
        assert figures["pss_bytes_per_subscriber"] < 3700, figures


def test_cookies_cost_as_much_as_they_are_long(gateway):
    """Browsers send those of every program on the same host."""
    costs = []
    for length in (0, 100, 1500):
        with memory.Holder(gateway.address) as holder:
            cookie = f"Cookie: session={'x' * length}\r\n\r\n" if length else "\r\n"
            header = memory.chrome_header("/events?channel=c")[:-2] + cookie.encode()
            costs.append(memory.accounted_bytes(gateway, holder, [header] * 50))
        gateway.wait_metric("pgsse_streams", 0)
    assert costs[0] < 3500 and costs[1] < 3500 + 2048 and costs[2] < 3500 + 6144, costs
