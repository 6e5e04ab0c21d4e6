"""What strangers send: after each of it the gateway still answers and has let go of it."""

import random
import time

import pytest

from harness.raw_http import Closed, RawConnection, build_request
from harness.sse import ProtocolError
from harness.waiting import PATIENCE, Deadline, scaled, wait_until

JSON = ("Content-Type", "application/json")
OK_BODY = b'{"data":1}'

READERS = 2


@pytest.fixture
def target(pg, gateway_factory):
    """A gateway that loses patience soon; at the end nothing may be left open."""
    gateway = gateway_factory(pg, {"limits.header_time": "1s", "limits.body_time": "1s",
                                   "limits.keep_alive": "2s"})
    gateway.answers()
    with gateway.subscribe("warm"):
        # What is opened on first use is open now.
        assert gateway.get(f"/events/{gateway.publish('warm', '1')}").status == 200
    gateway.wait_metric("pgsse_streams", 0)
    before = settled_fd_count(gateway)
    yield gateway
    gateway.answers()
    # A connection for reading may have been made since, and is kept.
    wait_until(lambda: gateway.fd_count() <= before + READERS, "every descriptor is given back")


def settled_fd_count(gateway):
    """The count once it stays the same for some looks in a row."""
    last, same = -1, 0
    deadline = Deadline()
    while same < 10 and not deadline.passed():
        count = gateway.fd_count()
        same = same + 1 if count == last else 0
        last = count
        time.sleep(0.01)
    return last


def refused(gateway, request, statuses=(400,)):
    """The request is answered with one of the statuses, and the connection closed."""
    with gateway.connection() as connection:
        connection.send_as_much_as_taken(request)
        answer = connection.read_response()
        assert answer.status in statuses, repr(answer)
        connection.wait_closed()


def refused_or_closed(gateway, request, statuses=(400,)):
    try:
        refused(gateway, request, statuses)
    except Closed as closed:
        assert closed.received == b"", closed


# -- smuggling ----------------------------------------------------------------------------

SMUGGLING = {
    "two lengths": [("Content-Length", "10"), ("Content-Length", "11")],
    "two lengths in one": [("Content-Length", "10, 11")],
    "the same length twice": [("Content-Length", "10"), ("Content-Length", "10")],
    "a length with a sign": [("Content-Length", "+10")],
    "a negative length": [("Content-Length", "-1")],
    "a length that is no number": [("Content-Length", "ten")],
    "a hexadecimal length": [("Content-Length", "0xa")],
    "an enormous length": [("Content-Length", "99999999999999999999999")],
    "length and chunked": [("Content-Length", "10"), ("Transfer-Encoding", "chunked")],
    "chunked and length": [("Transfer-Encoding", "chunked"), ("Content-Length", "10")],
    "gzip": [("Transfer-Encoding", "gzip")],
    "identity": [("Transfer-Encoding", "identity")],
    "xchunked": [("Transfer-Encoding", "xchunked")],
    "chunked, then gzip": [("Transfer-Encoding", "chunked, gzip")],
    "gzip, then chunked": [("Transfer-Encoding", "gzip, chunked")],
    "chunked twice": [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
    "chunked twice in one": [("Transfer-Encoding", "chunked, chunked")],
    "an empty coding": [("Transfer-Encoding", "")],
    "chunked with a vertical tab": [("Transfer-Encoding", "\vchunked")],
    "two hosts": [("Host", "a"), ("Host", "b")],
    "a space before the colon": [("Content-Length ", "10")],
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_what_two_servers_could_read_differently_is_refused(target, pg, name):
    request = build_request("POST", "/events", [JSON, *SMUGGLING[name]]) + OK_BODY
    refused_or_closed(target, request, (400, 411, 413, 501))
    assert pg.value("SELECT count(*) FROM gateway.events WHERE channel = 'events'") == 0


FOLDED = {
    "a coding on the next line": b"Transfer-Encoding:\r\n chunked\r\n",
    "a length on the next line": b"Content-Length:\r\n 10\r\n",
    "a length continued": b"Content-Length: 1\r\n\t0\r\n",
}


def test_a_length_behind_a_carriage_return_alone_is_refused(target):
    """Of a connection's first request: in later ones libmicrohttpd takes it for a line's
    end, and there is no telling from outside."""
    refused_or_closed(target, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: 1\rContent-Length: 10"
                              b"\r\n\r\n0123456789", (400,))


@pytest.mark.parametrize("hidden", [b"X: a\0b\r\n", b"X: a\r\n b\r\n", b"X: a\rY: b\r\n"],
                         ids=["NUL", "folded", "CR"])
def test_empty_lines_before_a_request_hide_nothing_in_it(target, hidden):
    refused_or_closed(target, b"\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n" + hidden + b"\r\n",
                      (400,))


def test_empty_lines_before_a_request_are_allowed(target):
    with target.connection() as connection:
        connection.send(b"\r\n\r\n" + build_request("GET", "/healthz"))
        assert connection.read_response().status == 200


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("name", FOLDED)
def test_a_length_over_two_lines_is_refused(target, name, later):
    with target.connection() as connection:
        if later:
            connection.send(build_request("GET", "/healthz"))
            assert connection.read_response().status == 200
        connection.send_as_much_as_taken(
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + FOLDED[name] + b"\r\n"
            + build_request("GET", "/metrics"))
        assert connection.read_response().status == 400
        assert connection.wait_closed() == b"", "what is behind it is not served"


def test_what_follows_a_refused_request_is_not_served(target, pg):
    inner = build_request("POST", "/events", [JSON], OK_BODY)
    with target.connection() as connection:
        connection.send_as_much_as_taken(build_request("POST", "/events", [
            JSON, ("Content-Length", "4"), ("Transfer-Encoding", "chunked")])
            + b"0\r\n\r\n" + inner)
        assert connection.read_response().status in (400, 501)
        assert connection.wait_closed() == b""
    assert pg.value("SELECT count(*) FROM gateway.events WHERE channel = 'events'") == 0


BAD_CHUNKS = [b"x\r\nabc\r\n0\r\n\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"5\r\nabcdefgh\r\n",
              b"0x5\r\nabcde\r\n0\r\n\r\n", b"\r\n\r\n"]


@pytest.mark.parametrize("body", BAD_CHUNKS)
def test_broken_chunks_are_refused_or_closed(target, pg, body):
    refused_or_closed(target, build_request("POST", "/events", [
        JSON, ("Transfer-Encoding", "chunked")]) + body, (400, 408, 413))
    assert pg.value("SELECT count(*) FROM gateway.events WHERE channel = 'events'") == 0


# -- malformed ----------------------------------------------------------------------------

MALFORMED = {
    "NUL in a field": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "NUL in a name": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\0Y: a\r\n\r\n",
    "NUL in the target": b"GET /healthz\0x HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the query": b"GET /events?channel=a\0b HTTP/1.1\r\nHost: x\r\n\r\n",
    "NUL in the method": b"G\0T /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "escaped NUL in the path": b"GET /healthz%00 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "an unknown version": b"GET /healthz HTTP/9.9\r\nHost: x\r\n\r\n",
    "a field without a colon": b"GET /healthz HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "a folded field": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "a field without a name": b"GET /healthz HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n",
    "garbage": bytes(range(256)) * 4 + b"\r\n\r\n",
    "a TLS hello": bytes.fromhex("1603010200010001fc0303") + b"\xaa" * 512,
    "HTTP/2 without being asked": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a PostgreSQL start": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "only line ends": b"\r\n" * 2000,
    "bare line feeds": b"GET /healthz HTTP/1.1\nHost: x\n\n",
    "bare carriage returns": b"GET /healthz HTTP/1.1\rHost: x\r\r",
}

# Where a server may be lenient (RFC 9112, 2.2 and 5.2), or no harm can come from it.
LENIENT = {"bare line feeds", "a folded field", "a field without a name", "no version",
           "an unknown version"}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_end_soon(target, name):
    """An answer or a close within the header's time, never a hang."""
    with target.connection() as connection:
        connection.send_as_much_as_taken(MALFORMED[name])
        answer = connection.wait_closed(timeout=PATIENCE)
    if name in LENIENT:
        return
    assert answer == b"" or answer.startswith(b"HTTP/1."), answer[:100]
    assert b" 200 " not in answer[:20], answer[:100]


def test_no_nul_and_no_second_host_get_through(target):
    for name in ("NUL in a field", "NUL in a name", "NUL in the target", "NUL in the query"):
        refused_or_closed(target, MALFORMED[name])


HIDDEN = {
    "in the path": b"GET /healthz\0x HTTP/1.1\r\nHost: x\r\n\r\n",
    "in the query": b"GET /healthz?a=\0x HTTP/1.1\r\nHost: x\r\n\r\n",
    "in a value": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n",
    "behind a value": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\0\r\n\r\n",
    "in a name": b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\0: a\r\n\r\n",
}


@pytest.mark.parametrize("place", HIDDEN)
def test_a_nul_in_a_later_request_is_refused_too(target, place):
    """The lobby sees the bytes of a connection's first request alone."""
    with target.connection() as connection:
        connection.send(build_request("GET", "/healthz", [("Accept", "*/*"), ("Empty", "")]))
        assert connection.read_response().status == 200
        connection.send(HIDDEN[place])
        answer = connection.wait_closed()  # libmicrohttpd 1.0 may close without a word
        assert not answer or answer.startswith(b"HTTP/1.1 400 ")


def test_the_header_limit_holds_for_later_requests_too(target):
    with target.connection() as connection:
        for size, status in ((10, 200), (15000, 200), (20000, 431)):
            connection.send(build_request("GET", "/healthz", [("X", "y" * size)]))
            assert connection.read_response().status == status
        connection.wait_closed()


def test_random_bytes_never_harm(target):
    chance = random.Random(4711)
    words = [b"GET ", b"POST ", b"/events", b" HTTP/1.1\r\n", b"Host: x\r\n", b"\r\n", b"\r\n\r\n",
             b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"5", b"\0", b"\xff",
             b"?channel=",
             b"%", b"&", b"=", b": ", b"Content-Type: application/json\r\n", b'{"data":1}']
    for _ in range(150):
        with target.connection() as connection:
            connection.send_as_much_as_taken(
                b"".join(chance.choices(words, k=chance.randint(1, 30))))
            if chance.random() < 0.3:
                connection.reset()
    target.answers()


# -- too much -----------------------------------------------------------------------------


def test_a_header_over_the_limit_is_refused(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.header": "4KiB"})
    assert gateway.get("/healthz", [("X-Padding", "x" * 3000)]).status == 200
    for request in (build_request("GET", "/healthz", [("X", "x" * 5000)]),
                    build_request("GET", "/healthz", [(f"X-{n}", "y" * 50) for n in range(200)]),
                    build_request("GET", "/events?channel=" + "x" * 5000),
                    build_request("GET", "/healthz", [("X", "x" * 3000000)])):
        refused_or_closed(gateway, request, (400, 413, 414, 431))
    gateway.answers()


def test_a_header_as_large_as_allowed_is_served(gateway):
    """Cookies of other programs on the same host can be large."""
    answer = gateway.get("/events/999999", [("Cookie", "c" * 6000)])
    answer.problem(404)
    with gateway.subscribe("c", headers=[("Cookie", "c" * 6000)]) as stream:
        gateway.publish("c", "1")
        assert stream.next_event().data == "1"


def test_posts_take_headers_of_every_size(gateway):
    """Each on a connection of its own, which has room for what its first request brings."""
    shapes = [[("Cookie", "c" * size)] for size in range(0, 15500, 1550)]
    shapes += [[(f"X-{number}", "x" * 20)] * number for number in range(0, 450, 50)]
    for fields in shapes:
        answer = gateway.post("1", channel="c", headers=fields)
        assert answer.status == 201, (len(fields), sum(len(value) for _, value in fields))


def test_streams_take_headers_of_every_size(gateway):
    """Up to nearly the limit (16 KiB), in one field or in many; nothing between is special."""
    shapes = [[("Cookie", "c" * size)] for size in range(0, 15500, 131)]
    shapes += [[(f"X-{number}", "x" * 20)] * number for number in range(0, 200, 7)]
    # As programs and browsers send them, where the smallest rooms end.
    shapes += [[("X", "x" * length)] * number for number in (1, 5, 14)
               for length in range(0, 4000 // number, 60 // number)]
    refused = []
    for fields in shapes:
        try:
            with gateway.subscribe("c", headers=fields, started=False) as stream:
                if stream.status == 200:
                    continue
                what = stream.status
        except ProtocolError:
            what = "closed"
        refused.append((sum(len(name) + len(value) + 4 for name, value in fields), what))
    assert refused == [], "sizes of fields, and what became of the request"


# -- too slow -----------------------------------------------------------------------------


def drip(connection, data, timeout):
    """Sends a byte now and then until the peer closes; True if it did in time."""
    deadline = Deadline(timeout)
    for byte in data:
        if connection.closed_now():
            return True
        if deadline.passed():
            return False
        connection.send_as_much_as_taken(bytes([byte]))
        time.sleep(0.05)  # the pace of the attack, not a wait
    return connection.closed_now()


def test_a_dripped_header_ends_at_its_deadline(target):
    with target.connection() as connection:
        assert drip(connection, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2000, 20)


def test_a_dripped_body_ends_at_its_deadline(target, pg):
    for coding in (("Content-Length", "100000"), ("Transfer-Encoding", "chunked")):
        with target.connection() as connection:
            connection.send(build_request("POST", "/events", [JSON, coding]))
            body = b"1\r\n[\r\n" * 2000 if coding[1] == "chunked" else b"[" * 2000
            assert drip(connection, body, 20), coding


def test_a_silent_connection_ends_at_the_headers_deadline(target):
    with target.connection() as silent, target.connection() as half, target.connection() as body:
        half.send(b"GET /healthz HTTP/1.1\r\n")
        body.send(build_request("POST", "/events", [JSON, ("Content-Length", "10")]))
        for connection in (silent, half, body):
            connection.wait_closed(timeout=20)


def test_dripping_next_request_of_a_kept_connection_ends_too(target):
    with target.connection() as connection:
        connection.send(build_request("GET", "/healthz"))
        assert connection.read_response().status == 200
        assert drip(connection, b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2000, 20)


def test_a_client_that_does_not_take_its_answer_is_let_go(target):
    """A large answer, and nobody who reads it."""
    target.publish("big", '"' + "x" * 3000000 + '"')
    id = target.publish("big", '"' + "x" * 3000000 + '"')
    target.wait_metric("pgsse_connections", 1)  # the one that asks
    with target.connection(receive_buffer=4096) as connection:
        connection.send(build_request("GET", f"/events/{id}"))
        target.wait_metric("pgsse_connections", 2)
        target.wait_metric("pgsse_connections", 1, timeout=90)


def test_400_silent_connections_keep_nobody_out(target):
    silent = [target.connection() for _ in range(400)]
    try:
        target.answers()
        with target.subscribe("c") as stream:
            target.publish("c", "1")
            assert stream.next_event().data == "1"
    finally:
        for connection in silent:
            connection.close()


def test_400_silent_connections_at_the_limit_keep_nobody_out_for_long(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.connections": "400", "limits.header_time": "1s"})
    silent = [gateway.connection() for _ in range(400)]

    def served():
        try:
            return gateway.post('{"data":1}').status == 201
        except (Closed, OSError):
            return False

    try:
        wait_until(served, "the 401st is served")
    finally:
        for connection in silent:
            connection.close()


# -- gone ---------------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(target):
    with target.connection() as connection:
        requests = [build_request("POST", f"/events?channel=p{n}", [JSON], str(n).encode())
                    for n in range(20)]
        connection.send(b"".join(requests) + build_request("GET", "/nothing"))
        for number in range(20):
            answer = connection.read_response()
            assert answer.status == 201 and answer.json()["channel"] == f"p{number}"
        assert connection.read_response().status == 404


def test_a_request_pipelined_behind_a_stream_harms_nobody(target):
    with target.connection() as connection:
        connection.send(build_request("GET", "/events?channel=c")
                        + build_request("GET", "/healthz") * 50)
        target.wait_metric("pgsse_streams", 1)
        target.publish("c", '"behind"')
        connection.read_until(b'data: "behind"\n\n', Deadline(), "the event")
    target.wait_metric("pgsse_streams", 0)


def test_a_client_that_talks_into_its_stream_harms_nobody(target):
    with target.subscribe("c") as stream:
        stream.sock.sendall(b"x" * 100000)
        target.publish("c", "1")
        assert stream.next_event().data == "1"
    target.wait_metric("pgsse_streams", 0)


def test_a_client_that_shuts_its_sending_side_is_noticed(target):
    """Half closed: either the stream goes on or it ends, but it is not kept for ever."""
    with target.subscribe("c") as stream:
        stream.sock.shutdown(1)
        target.wait_metric("pgsse_streams", lambda value: value in (0, 1))
        target.answers()
    target.wait_metric("pgsse_streams", 0)


STAGES = {
    "at once": b"",
    "in the request line": b"GET /ev",
    "in the header": b"GET /events HTTP/1.1\r\nHos",
    "before the body": build_request("POST", "/events", [JSON, ("Content-Length", "10")]),
    "in the body": build_request("POST", "/events", [JSON, ("Content-Length", "10")]) + b'{"da',
    "in a chunk": build_request("POST", "/events", [JSON, ("Transfer-Encoding", "chunked")])
    + b"a\r\n{",
    "before the answer": build_request("POST", "/events", [JSON], OK_BODY),
    "before an event's answer": build_request("GET", "/events/1"),
    "before the stream begins": build_request("GET", "/events?channel=c"),
    "before the figures": build_request("GET", "/metrics"),
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stage", STAGES)
def test_leaving_at_any_stage_harms_nobody(target, stage, how):
    for _ in range(15):
        connection = target.connection()
        connection.send(STAGES[stage])
        connection.reset() if how == "reset" else connection.close()
    target.answers()
    target.wait_metric("pgsse_streams", 0)


def test_leaving_while_postgresql_works_harms_nobody(target, pg):
    with pg.connect() as blocker:
        blocker.execute("LOCK TABLE gateway.events IN SHARE MODE")
        for number in range(30):
            connection = target.connection()
            connection.send(STAGES["before the answer"])
            connection.reset() if number % 2 else connection.close()
        target.answers()
        blocker.rollback()
    assert target.publish("c", "1")


def test_no_descriptor_left_is_survived(pg, gateway_factory):
    gateway = gateway_factory(pg, launcher=("prlimit", "--nofile=64:64", "--"))
    crowd = []
    try:
        for _ in range(120):
            crowd.append(RawConnection(gateway.address))
    finally:
        for connection in crowd:
            connection.close()

    def served():
        try:
            return gateway.post('{"data":1}').status == 201
        except (Closed, OSError, TimeoutError):
            return False

    wait_until(served, "it serves again", timeout=scaled(15))
