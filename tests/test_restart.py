"""Leaving and coming back: a gateway that is restarted under load refuses nobody and loses
nothing. The test holds the listening socket, as systemd's socket unit does."""

import itertools
import json
import select
import signal
import socket
import threading
import time

import pytest

from harness.raw_http import Closed, RawConnection, build_request
from harness.sse import ProtocolError, Stream, StreamEnded
from harness.waiting import Deadline, scaled, wait_until

RESTARTS = 4
JSON = [("Content-Type", "application/json")]


class Held:
    """A listening socket that outlives the gateways behind it."""

    def __init__(self, start, pg, settings=None):
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self.sock.getsockname()
        self._start = start
        self._pg = pg
        self._settings = {"http.listen": "127.0.0.1:1", **(settings or {})}

    def gateway(self):
        """Popen's child does not know its own pid for LISTEN_PID; a shell does."""
        launcher = ["bash", "-c", f"exec 3<&{self.sock.fileno()}; LISTEN_PID=$$; LISTEN_FDS=1;"
                    ' export LISTEN_PID LISTEN_FDS; exec "$@"', "bash"]
        return self._start(self._pg, self._settings, launcher=launcher,
                           pass_fds=[self.sock.fileno()], address=self.address)


@pytest.fixture
def hold(gateway_factory, pg):
    held = []

    def make(settings=None):
        held.append(Held(gateway_factory, pg, settings))
        return held[-1]

    yield make
    for each in held:
        each.sock.close()


class Worker(threading.Thread):
    """Does something again and again until it is told to stop. What must not happen to it is
    noted; with `forgiving`, connections may break."""

    def __init__(self, address, forgiving=False):
        super().__init__(daemon=True)
        self.address = address
        self.forgiving = forgiving
        self.stopping = threading.Event()
        self.wrongs = []
        self.count = 0

    def run(self):
        try:
            while not self.stopping.is_set():
                self.step()
        except BaseException as error:  # noqa: B902: a thread's end must be seen
            self.wrongs.append(f"{type(error).__name__}: {error}")

    def broke(self, what):
        if not self.forgiving:
            self.wrongs.append(what)
        self.stopping.wait(0.01)

    def finish(self):
        self.stopping.set()
        self.join(scaled(30))
        assert not self.is_alive(), f"{self.name} hangs"


class Newcomer(Worker):
    """A new connection for each request; every one must be answered."""

    def __init__(self, address, target, **options):
        super().__init__(address, **options)
        self.target = target

    def step(self):
        try:
            with RawConnection(self.address, timeout=30) as connection:
                connection.send(build_request("GET", self.target))
                answer = connection.read_response(30)
            assert answer.status == 200, repr(answer)
            self.count += 1
        except (Closed, ConnectionError) as error:
            self.broke(f"GET {self.target}: {type(error).__name__}: {error}")
        self.stopping.wait(0.002)


class Publisher(Worker):
    """One POST after the other, each event until it is acknowledged; each try has data of its
    own, because what was not acknowledged may be there all the same."""

    def __init__(self, address, number, reuse, **options):
        super().__init__(address, **options)
        self.number = number
        self.reuse = reuse
        self.connection = None
        self.requests = 0  # on this connection
        self.acknowledged = {}
        self.unavailable = 0
        self.tries = itertools.count()

    def step(self):
        data = f"{self.number}-{next(self.tries)}"
        if self.connection is None:
            self.connection = RawConnection(self.address, timeout=30)
            self.requests = 0
        try:
            body = json.dumps({"channel": "c", "data": data}).encode()
            self.connection.send_as_much_as_taken(build_request("POST", "/events", JSON, body))
            answer = self.connection.read_response(30)
        except (Closed, ConnectionError) as error:
            # A connection between two requests may be closed at any time; but an answer that
            # was begun is whole, and a new connection gets one.
            if self.requests == 0 or getattr(error, "received", b""):
                self.broke(f"POST {self.requests} of a connection: {error}")
            self.hang_up()
            return
        self.requests += 1
        if answer.status == 201:
            self.acknowledged[answer.json()["id"]] = data
            self.count += 1
        else:
            assert answer.problem(503) and int(answer.headers["Retry-After"]) > 0
            self.unavailable += 1
        if not self.reuse or "close" in answer.headers.names_in("Connection"):
            self.hang_up()
        self.stopping.wait(0.003)

    def hang_up(self):
        self.connection.close()
        self.connection = None


class Subscriber(Worker):
    """Comes back with its last id after the time that it was told, as EventSource does."""

    def __init__(self, address, http10=False, **options):
        super().__init__(address, **options)
        self.http10 = http10
        self.events = []
        self.last_id = None
        self.retries = []
        self.stream = None
        self.subscribed = threading.Event()

    def step(self):
        try:
            self.stream = Stream(self.address, ["c"], last_event_id=self.last_id, timeout=30,
                                 http10=self.http10)
        except (ProtocolError, ConnectionError) as error:
            self.broke(f"GET /events: {type(error).__name__}: {error}")
            return
        assert self.stream.status == 200, self.stream.status
        self.stream.keep_wire = False
        if self.read() is False:
            self.broke("the stream was broken off")
        self.retries += self.stream.retries
        self.stream.close()
        self.stopping.wait(self.stream.retries[-1] / 1000 if self.stream.retries else 0.1)

    def read(self):
        """True: it ended cleanly; None: enough was read."""
        try:
            while not self.stopping.is_set():
                try:
                    event = self.stream.next_event(0.1)
                except TimeoutError:
                    continue
                finally:
                    # A checkpoint moves it, too.
                    self.last_id = self.stream.last_id
                    if self.last_id is not None:
                        self.subscribed.set()
                assert event.type == "message", event
                self.events.append((int(event.id), json.loads(event.data)))
                self.count += 1
                self.last_id = event.id
        except StreamEnded as end:
            return end.clean
        return None


class Load:
    """Publishers, subscribers and newcomers, all at once."""

    def __init__(self, address, forgiving=False):
        self.subscribers = [Subscriber(address, http10=number % 3 == 2, forgiving=forgiving)
                            for number in range(6)]
        self.publishers = [Publisher(address, number, number % 2 == 0, forgiving=forgiving)
                           for number in range(4)]
        self.newcomers = [Newcomer(address, target, forgiving=forgiving)
                          for target in ("/healthz", "/streams", "/metrics")]

    def __enter__(self):
        for subscriber in self.subscribers:
            subscriber.start()
        for subscriber in self.subscribers:
            assert subscriber.subscribed.wait(scaled(30)), subscriber.wrongs
        for worker in self.publishers + self.newcomers:
            worker.start()
        return self

    def __exit__(self, *_):
        for worker in self.everybody():
            worker.finish()

    def everybody(self):
        return self.publishers + self.newcomers + self.subscribers

    def go_on_for(self, count):
        """Until everybody has done that much more."""
        before = {worker: worker.count for worker in self.everybody()}

        def done():
            self.check()
            return all(worker.count >= count + was for worker, was in before.items())

        wait_until(done, "everybody is served", 60)

    def check(self):
        wrongs = [wrong for worker in self.everybody() for wrong in worker.wrongs]
        assert not wrongs, (len(wrongs), wrongs[:5])

    def finish(self, pg):
        """Stops publishing, waits until all subscribers have everything, and compares."""
        for worker in self.publishers + self.newcomers:
            worker.finish()
        published = [(seq, json.loads(data)) for seq, data in pg.execute(
            "SELECT seq, data::text FROM gateway.events ORDER BY seq")]
        last = published[-1][0]
        for subscriber in self.subscribers:
            wait_until(lambda: subscriber.wrongs or
                       subscriber.events and subscriber.events[-1][0] >= last,
                       "a subscriber has everything", 60)
        self.check()
        for publisher in self.publishers:
            acknowledged = {(int(id), data) for id, data in publisher.acknowledged.items()}
            assert acknowledged and acknowledged <= set(published), "acknowledged, but absent"
        for subscriber in self.subscribers:
            assert subscriber.events == published, "lost, doubled or in another order"
        return published


@pytest.mark.timeout(scaled(200))
def test_restarts_under_load_refuse_nobody_and_lose_nothing(pg, hold):
    held = hold({"stream.retry": "200ms"})
    gateway = held.gateway()
    with Load(held.address) as load:
        load.go_on_for(20)
        for _ in range(RESTARTS):
            gateway.stop()  # SIGTERM; status 0 within the drain time
            gateway = held.gateway()
            load.go_on_for(20)
        load.finish(pg)
    retries = [retry for subscriber in load.subscribers for retry in subscriber.retries]
    assert all(150 <= retry <= 250 for retry in retries), retries
    assert len(set(retries)) > len(retries) // 4, retries
    # One greeting and one goodbye for each of the lives of the gateway.
    assert len(retries) >= 2 * len(load.subscribers) * RESTARTS


@pytest.mark.timeout(scaled(200))
def test_kill_9_under_load_loses_nothing(pg, hold):
    held = hold({"stream.retry": "200ms"})
    gateway = held.gateway()
    with Load(held.address, forgiving=True) as load:
        load.go_on_for(20)
        for _ in range(RESTARTS):
            gateway.kill()
            gateway = held.gateway()
            load.go_on_for(20)
        load.finish(pg)


@pytest.mark.timeout(scaled(200))
def test_who_comes_at_the_last_moment_is_answered(pg, hold):
    """Nobody else is there, so the gateway ends as soon as it may: what it has accepted by
    then, and has not looked at yet, is not nobody."""
    held = hold({"server.shards": "3"})
    gateway = held.gateway()
    for _ in range(2 * RESTARTS):
        # Frozen, it finds both at once when it goes on: the connections and the signal.
        gateway.process.send_signal(signal.SIGSTOP)
        comers = [RawConnection(held.address, timeout=30) for _ in range(4)]
        for comer in comers:
            comer.send(build_request("GET", "/healthz"))
        gateway.terminate()
        gateway.process.send_signal(signal.SIGCONT)
        gateway.stop()
        gateway = held.gateway()
        for comer in comers:
            with comer:
                assert comer.read_response(30).status == 200


def test_a_post_on_a_connection_that_is_open_is_done_during_the_drain(pg, hold):
    """The publisher works until the end; and the answer says that it was the last one."""
    held = hold({"server.drain": "10s"})
    gateway = held.gateway()
    gateway.drain = 10
    body = b'{"data":"begun"}'
    request = build_request("POST", "/events", JSON, body)
    with gateway.subscribe("events"), RawConnection(held.address) as connection:
        connection.send(request[:-len(body)])
        gateway.wait_metric("pgsse_connections", 3)  # its header is read
        gateway.terminate()
        gateway.wait_log("ending")
        connection.send(body)
        answer = connection.read_response()
        assert answer.status == 201 and "close" in answer.headers.names_in("Connection")
        connection.wait_closed()
    gateway.stop()


def goodbye_times(streams, seconds):
    """When each stream ended, in seconds from now; all within `seconds`."""
    begin = time.monotonic()
    deadline = Deadline(seconds)
    poll = select.poll()
    waiting = {stream.sock.fileno(): stream for stream in streams}
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    times = []
    while waiting:
        for fd, _ in poll.poll(1000 * deadline.left_or_raise(f"{len(waiting)} goodbyes")):
            try:
                assert waiting[fd].wait_end(0.001) is True
            except TimeoutError:
                continue  # what came before the goodbye
            times.append(time.monotonic() - begin)
            poll.unregister(fd)
            del waiting[fd]
    return times


def test_goodbyes_are_spread_over_the_drain_time(pg, gateway_factory):
    drain = 4
    gateway = gateway_factory(pg, {"server.drain": f"{drain}s"})
    gateway.drain = drain
    streams = [gateway.subscribe("c", http10=number % 4 == 3) for number in range(160)]
    try:
        gateway.terminate()
        times = sorted(goodbye_times(streams, drain + 5))
        gateway.stop()
        # Evenly over four fifths of the time, so that the last ones are gone at its end: in
        # a quarter of that 40 are to be expected, and 96 only if the machine stood still.
        spread = drain * 4 / 5
        most = max(sum(begin <= when < begin + spread / 4 for when in times) for begin in times)
        assert most < 96, times
        assert spread / 2 < times[-1], times[-10:]
        told = [stream.retries[-1] for stream in streams]
        assert all(len(stream.retries) == 2 for stream in streams)
        assert all(1500 <= retry <= 2500 for retry in told) and len(set(told)) > 100, told
    finally:
        for stream in streams:
            stream.close()


def test_few_goodbyes_do_not_take_the_whole_drain_time(pg, gateway_factory):
    gateway = gateway_factory(pg, {"server.drain": "10min"})
    streams = [gateway.subscribe("c") for _ in range(5)]
    try:
        gateway.terminate()
        goodbye_times(streams, 20)
        gateway.stop()
    finally:
        for stream in streams:
            stream.close()
