"""Under systemd: sockets handed over, ready, watchdog, stopping; and the unit files."""

import os
import re
import socket
import subprocess
import time

import pytest

from harness.gateway import clean_environment
from harness.raw_http import RawConnection, build_request
from harness.tools import REPOSITORY, find_tool
from harness.waiting import PATIENCE, Deadline, scaled, wait_until

UNITS = REPOSITORY / "gateway" / "systemd"


class Notify:
    """The datagram socket that systemd would listen on."""

    def __init__(self, path):
        self.path = str(path)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(self.path)
        self.lines = []

    def close(self):
        self.sock.close()

    def drain(self):
        """Takes what is there without waiting."""
        self.sock.setblocking(False)
        try:
            while True:
                self.lines += self.sock.recv(65536).decode().splitlines()
        except BlockingIOError:
            return self.lines

    def wait(self, pattern, timeout=PATIENCE):
        """The next line that matches; those before it are dropped."""
        deadline = Deadline(timeout)
        while True:
            while self.lines:
                line = self.lines.pop(0)
                if re.fullmatch(pattern, line):
                    return line
            self.sock.settimeout(deadline.left_or_raise(f"{pattern} on NOTIFY_SOCKET"))
            try:
                self.lines += self.sock.recv(65536).decode().splitlines()
            except socket.timeout:
                raise TimeoutError(f"{pattern} did not come on NOTIFY_SOCKET") from None


@pytest.fixture
def notify(directory):
    listening = Notify(directory / "notify.sock")
    yield listening
    listening.close()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


# -- sockets handed over ------------------------------------------------------------------


@pytest.fixture
def activated(pg, gateway_factory, directory):
    """start(*listen) -> a gateway that systemd-socket-activate starts on first contact."""

    def start(*listen, address, env=None):
        tool = find_tool("systemd-socket-activate")
        launcher = [tool]
        for place in listen:
            launcher += ["-l", place]
        # It hands over only the variables it is told to.
        given = clean_environment(directory / "gateway1", env)
        for name in given:
            if name.endswith("SAN_OPTIONS") or name in (env or {}):
                launcher += ["-E", name]
        gateway = gateway_factory(pg, {"http.listen": "127.0.0.1:1"}, env, ready=False,
                                  listening=False, launcher=launcher, address=address)
        gateway.wait_log("[Ll]istening on")
        return gateway.wait_ready()

    return start


def test_a_tcp_socket_may_be_handed_over(activated):
    port = free_port()
    gateway = activated(f"127.0.0.1:{port}", address=("127.0.0.1", port))
    with gateway.subscribe("c") as stream:
        gateway.publish("c", "1")
        assert stream.next_event().data == "1"


def test_a_unix_socket_may_be_handed_over(activated, directory):
    path = str(directory / "http.sock")
    gateway = activated(path, address=path)
    with gateway.subscribe("c") as stream:
        gateway.publish("c", "1")
        assert stream.next_event().data == "1"
    gateway.stop()
    assert os.path.exists(path), "it belongs to systemd"


def test_several_sockets_may_be_handed_over(activated, directory):
    port, path = free_port(), str(directory / "http.sock")
    gateway = activated(f"127.0.0.1:{port}", path, address=("127.0.0.1", port))
    with gateway.subscribe("c") as stream:
        gateway.address = path
        gateway.publish("c", "1")
        assert stream.next_event().data == "1"
        for _ in range(40):  # whichever shard accepts it
            gateway.answers()


def test_a_socket_handed_over_refuses_nobody_during_a_restart(pg, gateway_factory, directory):
    """Connections made while no gateway runs wait in the socket for the next one."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        address = listening.getsockname()
        # Popen's child does not know its own pid for LISTEN_PID; a shell does.
        launcher = ["bash", "-c", f'exec 3<&{listening.fileno()}; LISTEN_PID=$$; LISTEN_FDS=1;'
                    ' export LISTEN_PID LISTEN_FDS; exec "$@"', "bash"]
        options = {"launcher": launcher, "pass_fds": [listening.fileno()], "address": address}
        first = gateway_factory(pg, {"http.listen": "127.0.0.1:1"}, **options)
        assert first.publish("c", "1")
        first.stop()
        with RawConnection(address) as waiting:
            waiting.send(build_request("POST", "/events", [("Content-Type", "application/json")],
                                       b'{"data":"waited"}'))
            gateway_factory(pg, {"http.listen": "127.0.0.1:1"}, **options)
            assert waiting.read_response(30).status == 201


# -- notifications ------------------------------------------------------------------------


def test_ready_is_said_when_it_is_true_and_stopping_at_the_end(pg, gateway_factory, notify):
    gateway = gateway_factory(pg, env={"NOTIFY_SOCKET": notify.path}, ready=False, listening=False)
    notify.wait("READY=1", timeout=30)
    gateway.wait_log("listening on")
    gateway.address = ("127.0.0.1", int(re.search(r"127\.0\.0\.1:([0-9]+)", gateway.log())[1]))
    assert gateway.get("/readyz").status == 200
    gateway.terminate()
    notify.wait("STOPPING=1")
    gateway.stop()


def test_status_tells_how_it_is(pg, gateway_factory, notify):
    gateway = gateway_factory(pg, env={"NOTIFY_SOCKET": notify.path})
    assert len(notify.wait("STATUS=.+")) > len("STATUS=")
    gateway.answers()


def test_ready_waits_for_the_database(postgres, gateway_factory, notify):
    database = postgres.create_database(template="gateway_template")
    postgres.stop()
    gateway = gateway_factory(database, env={"NOTIFY_SOCKET": notify.path}, ready=False)
    status = notify.wait("STATUS=.*(database|PostgreSQL|connect).*")
    assert gateway.get("/readyz").status == 503
    assert "READY=1" not in notify.drain(), status
    postgres.start()
    notify.wait("READY=1", timeout=30)
    assert gateway.get("/readyz").status == 200


def pause_between_feeds(notify):
    """The median of three, in seconds."""
    times = []
    for _ in range(4):
        notify.wait("WATCHDOG=1")
        times.append(time.monotonic())
    return sorted(after - before for before, after in zip(times, times[1:]))[1]


def test_the_watchdog_is_fed(pg, gateway_factory, notify):
    gateway = gateway_factory(pg, env={"NOTIFY_SOCKET": notify.path,
                                       "WATCHDOG_USEC": str(int(scaled(1) * 1000000))})
    notify.wait("READY=1", timeout=30)
    assert pause_between_feeds(notify) < scaled(1)
    gateway.answers()


def test_the_watchdog_is_fed_while_the_database_is_frozen(postgres, gateway_factory, notify):
    """PostgreSQL's trouble is no reason to be killed."""
    gateway = gateway_factory(postgres.create_database(template="gateway_template"), env={
        "NOTIFY_SOCKET": notify.path, "WATCHDOG_USEC": str(int(scaled(2) * 1000000))})
    postgres.freeze()
    try:
        wait_until(lambda: gateway.get("/readyz").status == 503, "it is noticed", 12)
        notify.drain()
        notify.lines.clear()
        assert pause_between_feeds(notify) < scaled(2)
    finally:
        postgres.thaw()
    gateway.wait_ready()


def test_without_systemd_nothing_is_missing(gateway):
    gateway.answers()


# -- the end ------------------------------------------------------------------------------


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
def test_sigterm_ends_open_streams_within_the_drain_time(gateway, http10):
    streams = [gateway.subscribe("c", http10=http10) for _ in range(50)]
    try:
        gateway.publish("c", "1")
        gateway.terminate()
        for stream in streams:
            assert stream.wait_end() is True, "it ended cleanly"
            assert [event.data for event in stream.pending()] == ["1"]
            assert len(stream.retries) == 2, "it was told when to come back"
        gateway.stop()
    finally:
        for stream in streams:
            stream.close()


def test_sigterm_does_not_wait_for_readers_that_do_not_read(gateway):
    with gateway.subscribe("c", receive_buffer=4096), \
         gateway.subscribe("c", receive_buffer=4096, http10=True), \
         gateway.connection() as silent, gateway.connection() as half:
        half.send(b"POST /events HTTP/1.1\r\n")
        for _ in range(8):
            gateway.publish("c", '"' + "x" * 2000000 + '"')
        gateway.stop()
        silent.wait_closed()


def test_sigterm_answers_what_was_begun(pg, gateway_factory):
    gateway = gateway_factory(pg, {"server.drain": "10s"})
    gateway.drain = 10
    with pg.connect() as blocker, gateway.connection() as connection:
        blocker.execute("LOCK TABLE gateway.events IN SHARE MODE")
        connection.send(build_request("POST", "/events", [("Content-Type", "application/json")],
                                      b'{"data":"begun"}'))
        wait_until(lambda: pg.value("SELECT count(*) FROM pg_locks WHERE NOT granted"),
                   "the batch waits for the lock")
        gateway.terminate()
        gateway.wait_log("stopping|drain|SIGTERM|shutting down|ending")
        blocker.rollback()
        assert connection.read_response().status == 201
    gateway.stop()
    assert [data for _, _, data in pg.events()] == ['"begun"']


def test_a_second_sigterm_does_no_harm(gateway):
    with gateway.subscribe("c"):
        gateway.terminate()
        gateway.terminate()
        gateway.stop()


def test_sigint_ends_it_as_sigterm_does(gateway):
    with gateway.subscribe("c") as stream:
        gateway.process.send_signal(2)
        assert stream.wait_end() is True
        gateway.stop()


def test_sigterm_before_the_database_has_come_ends_it(gateway_factory, directory):
    gateway = gateway_factory(None, {"database.dsn": f"host={directory} dbname=x"}, ready=False)
    with gateway.subscribe("c") as stream:
        gateway.terminate()
        assert stream.wait_end() is True
    gateway.stop()


def test_sigterm_while_postgresql_is_frozen_ends_it(postgres, gateway_factory):
    gateway = gateway_factory(postgres.create_database(template="gateway_template"),
                              {"limits.publish_time": "60s"})
    with gateway.subscribe("c") as stream, gateway.connection() as connection:
        postgres.freeze()
        try:
            connection.send(build_request("POST", "/events", [
                ("Content-Type", "application/json")], b'{"data":1}'))
            gateway.answers()
            gateway.stop()
        finally:
            postgres.thaw()
        assert stream.wait_end() is True


def test_a_broken_pipe_is_no_end(gateway):
    gateway.process.send_signal(13)
    gateway.answers()


# -- unit files ---------------------------------------------------------------------------


@pytest.fixture
def units(directory, binary):
    """The unit files as `make install` would leave them, but for where the program is."""
    folder = directory / "units"
    folder.mkdir()
    for source in sorted(UNITS.iterdir()):
        text = re.sub(r"@\w+@|/\S*(?=/pg-sse-gateway\b)", str(binary.parent), source.read_text())
        text = re.sub(r"^(ExecStart\w*=[-+!@:|]*)\S+", rf"\g<1>{binary}", text, flags=re.MULTILINE)
        (folder / source.name.removesuffix(".in")).write_text(text)
    assert {"pg-sse-gateway.service", "pg-sse-gateway.socket"} <= set(os.listdir(folder))
    return folder


def test_systemd_finds_nothing_wrong_with_the_units(units):
    done = subprocess.run([find_tool("systemd-analyze"), "verify", "--man=no",
                           *map(str, sorted(units.iterdir()))],
                          capture_output=True, text=True, timeout=scaled(60),
                          env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"})
    complaints = [line for line in done.stderr.splitlines() if "pg-sse-gateway" in line]
    assert done.returncode == 0 and not complaints, done.stderr


def test_the_service_is_well_confined(units):
    done = subprocess.run([find_tool("systemd-analyze"), "security", "--offline=true",
                           "--threshold=20", str(units / "pg-sse-gateway.service")],
                          capture_output=True, text=True, timeout=scaled(60))
    assert done.returncode == 0, done.stdout[-500:] + done.stderr


