"""Thousands come back at once, as after a restart or a broken network: each gets exactly what
it missed, and PostgreSQL is asked no more often than for a few."""

import re
import resource
import selectors
import socket

import pytest

from harness.raw_http import build_request
from harness.waiting import SLOWNESS, Deadline, scaled, wait_until

CLIENTS = 5000 if SLOWNESS == 1 else 1000
EVENTS = 600  # a minute of ten a second: two pages
A_HANDFUL = 12
ID = re.compile(rb"(?:^|\n)id: ([0-9]+)\n")


@pytest.fixture(autouse=True)
def descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * CLIENTS:
        pytest.fail(f"{hard} descriptors are not enough for {CLIENTS} clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Client:
    """One who comes back after ids[place], and what it has been sent since."""

    def __init__(self, address, ids, place):
        self.missed = ids[place + 1:]
        self.got = []
        self.pending = b""
        self.sock = socket.create_connection(address, timeout=scaled(30))
        self.sock.sendall(
            build_request("GET", "/events?channel=c", [("Last-Event-ID", ids[place])]))
        self.sock.setblocking(False)

    def receive(self):
        data = self.sock.recv(1 << 17)
        assert data, f"a stream has ended after {len(self.got)} of {len(self.missed)} events"
        self.pending += data
        whole = self.pending.rfind(b"\n\n") + 1
        self.got += ID.findall(self.pending, 0, whole)
        self.pending = self.pending[whole:]
        return len(self.got) >= len(self.missed)

    def check(self):
        assert [id.decode() for id in self.got] == self.missed


def come_back(address, ids, count):
    """So many at once, with ids from all over the stretch; until each has what it missed."""
    clients = [Client(address, ids, number * 37 % (len(ids) - 1)) for number in range(count)]
    deadline = Deadline(90)
    try:
        with selectors.DefaultSelector() as waiting:
            for client in clients:
                waiting.register(client.sock, selectors.EVENT_READ, client)
            while waiting.get_map():
                assert not deadline.passed(), f"{len(waiting.get_map())} have not caught up"
                for key, _ in waiting.select(1):
                    if key.data.receive():
                        waiting.unregister(key.fileobj)
        for client in clients:
            client.check()
    finally:
        for client in clients:
            client.sock.close()


def fill(pg):
    """A minute's events, numbered; their ids."""
    pg.execute("INSERT INTO gateway.events (channel, data)"
               " SELECT 'c', json_build_object('n', n, 'pad', repeat('x', 120))"
               " FROM generate_series(1, %s) n", (EVENTS,))
    wait_until(lambda: pg.value("SELECT count(*) FROM gateway.events WHERE seq IS NULL") == 0,
               "every event has its number")
    return [str(seq) for seq, in pg.execute("SELECT seq FROM gateway.events ORDER BY seq")]


def storm(pg, gateway_factory, settings):
    """The gateway has just been started; how many pages it has read for them."""
    first = gateway_factory(pg)
    ids = fill(pg)
    first.stop()
    gateway = gateway_factory(pg, {"limits.connections": str(CLIENTS + 100), **settings})
    come_back(gateway.address, ids, CLIENTS)
    assert pg.value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name LIKE 'pg-sse-gateway%'") <= 5
    assert gateway.metric("pgsse_connections_expired_total") == 0
    return gateway.metric("pgsse_replay_pages_total")


@pytest.mark.timeout(scaled(150))
def test_who_comes_back_with_an_id_of_the_last_minute_costs_no_query(pg, gateway_factory):
    assert storm(pg, gateway_factory, {}) == 0


@pytest.mark.timeout(scaled(150))
def test_who_comes_back_from_outside_the_ring_costs_a_handful_of_queries(pg, gateway_factory):
    assert 0 < storm(pg, gateway_factory, {"ring.bytes": "64KiB"}) <= A_HANDFUL
