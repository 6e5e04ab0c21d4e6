"""GET /events: the frames, byte for byte; who gets which; how a stream begins and ends."""

import json
import re

import pytest

from harness.raw_http import build_request
from harness.sse import Stream
from harness.waiting import scaled, wait_until


def body_of(stream):
    """The stream's bytes out of their chunks."""
    out, rest = b"", bytes(stream.wire)
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        count = int(size, 16)
        out, end, rest = out + rest[:count], rest[count:count + 2], rest[count + 2:]
        assert end == b"\r\n"
    return out


def without_retry(event):
    return re.sub(rb"^retry: [0-9]+\n", b"", event.raw)


# -- frames -------------------------------------------------------------------------------


def test_a_frame_is_id_event_data_and_an_empty_line(gateway):
    with gateway.subscribe("orders") as stream:
        id = gateway.publish("orders", '{"n":\r\n1}', "created")
        assert without_retry(stream.next_event()) == (
            f'id: {id}\nevent: created\ndata: {{"n":\ndata: 1}}\n\n'.encode())
        id = gateway.publish("orders", '"x"')
        assert stream.next_event().raw == f'id: {id}\ndata: "x"\n\n'.encode()


def test_each_frame_is_one_chunk(gateway):
    with gateway.subscribe("orders") as stream:
        gateway.publish("orders", "0")
        stream.next_event()
        del stream.wire[:]
        id = gateway.publish("orders", '"eleven"')
        event = stream.next_event()
        assert bytes(stream.wire) == b"%x\r\n%s\r\n" % (len(event.raw), event.raw), id


def test_ids_are_short_and_rise(gateway):
    with gateway.subscribe("c") as stream:
        ids = [gateway.publish("c", "1") for _ in range(20)]
        assert [event.id for event in stream.take(20)] == ids
    assert all(re.fullmatch(r"[0-9A-Za-z._-]{1,64}", id) for id in ids)
    assert len(set(ids)) == 20


def test_a_type_is_written_as_it_is(gateway):
    with gateway.subscribe("c") as stream:
        for type in ("created", "übergabe: 1", " leading and trailing ", "data", "x" * 255):
            gateway.publish("c", "1", type)
            assert stream.next_event().type == type


# -- who gets which -----------------------------------------------------------------------


def test_without_a_channel_the_channel_is_events(gateway):
    with gateway.subscribe() as stream:
        gateway.publish("other", "1")
        gateway.post('{"data":2}')
        assert stream.next_event().data == "2"


def test_several_channels_come_in_one_order(gateway):
    with gateway.subscribe("a", "b", "ü/1 2") as stream:
        for number, channel in enumerate(["a", "b", "other", "ü/1 2", "a", "b"]):
            gateway.publish(channel, str(number))
        assert [event.data for event in stream.take(5)] == ["0", "1", "3", "4", "5"]


def test_a_trailing_star_matches_by_prefix(gateway):
    with gateway.subscribe("orders.*") as stream, gateway.subscribe("*") as all:
        for channel in ("orders.eu", "orders", "ordersx", "orders.", "orders.eu.de", "events"):
            gateway.publish(channel, json.dumps(channel))
        assert [event.data for event in stream.take(3)] == [
            '"orders.eu"', '"orders."', '"orders.eu.de"']
        assert len(all.take(6)) == 6


def test_a_star_elsewhere_is_only_a_star(gateway):
    with gateway.subscribe("a*b") as stream:
        gateway.publish("axb", "1")
        gateway.publish("a*b", "2")
        assert stream.next_event().data == "2"


def test_overlapping_channels_deliver_once(gateway):
    with gateway.subscribe("orders.eu", "orders.*", "orders.eu", "o*", "orders.eu*") as stream:
        for number in range(5):
            gateway.publish("orders.eu", str(number))
        gateway.publish("orders.us", '"end"')
        assert [event.data for event in stream.take(6)] == ["0", "1", "2", "3", "4", '"end"']


def test_a_type_filter_lets_only_these_through(gateway):
    with gateway.subscribe("c", "d*", types=["created", "message"]) as stream:
        for channel in ("c", "d1"):
            for type in ("created", "updated", "create", "createdx", "message"):
                gateway.publish(channel, json.dumps(type), type)
        assert [event.type for event in stream.take(4)] == ["created", "message"] * 2
        gateway.publish("c", '"end"')
        assert stream.next_event().data == '"end"'


def test_all_subscribers_see_one_order(gateway, pg):
    channels = [f"c{number}" for number in range(8)]
    streams = [gateway.subscribe("*"), gateway.subscribe(*channels, "end"),
               gateway.subscribe("c*", "end", http10=True), gateway.subscribe("*")]
    try:
        for round in range(40):
            gateway.post(json.dumps([{"channel": channel, "data": round} for channel in channels]))
            pg.publish(channels[round % 8], '"sql"')
        wait_until(lambda: pg.value("SELECT count(seq) FROM gateway.events") == 360, "all numbered")
        gateway.publish("end", "0")
        seen = [[(event.id, event.data) for event in stream.take(361)] for stream in streams]
    finally:
        for stream in streams:
            stream.close()
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert len({id for id, _ in seen[0]}) == 361


def test_a_stream_that_has_begun_misses_nothing(gateway):
    for number in range(30):
        with gateway.subscribe("c") as stream:
            id = gateway.publish("c", str(number))
            assert stream.next_event().id == id


# -- from SQL -----------------------------------------------------------------------------


def test_an_insert_arrives(gateway, pg):
    with gateway.subscribe("orders") as stream:
        pg.execute("""INSERT INTO gateway.events (channel, type, data)
                      VALUES ('orders', 'created', '{"b":1, "a":2,"b":3}')""")
        event = stream.next_event()
        assert (event.type, event.data) == ("created", '{"b":1, "a":2,"b":3}')
        pg.execute("INSERT INTO gateway.events (channel, data) VALUES ('orders', '1')")
        assert stream.next_event().type == "message"


def test_publish_in_sql_arrives(gateway, pg):
    with gateway.subscribe("orders") as stream:
        pg.execute("""SELECT gateway.publish('orders', '{"n":1}', 'created')""")
        event = stream.next_event()
        assert (event.type, json.loads(event.data)) == ("created", {"n": 1})
        pg.execute("SELECT gateway.publish('orders', '2')")
        event = stream.next_event()
        assert (event.type, event.data) == ("message", "2")


def test_many_rows_of_one_statement_arrive(gateway, pg):
    with gateway.subscribe("c") as stream:
        pg.execute("INSERT INTO gateway.events (channel, data)"
                   " SELECT 'c', to_json(n) FROM generate_series(1, 3000) n")
        assert sorted(int(event.data) for event in stream.take(3000)) == list(range(1, 3001))


def test_data_larger_than_a_notification_arrives(gateway, pg):
    with gateway.subscribe("c") as stream:
        pg.execute("INSERT INTO gateway.events (channel, data)"
                   " VALUES ('c', to_json(repeat('ü', 1000000)))")
        assert json.loads(stream.next_event().data) == "ü" * 1000000


def test_an_open_transaction_arrives_at_its_commit_and_disturbs_nobody(gateway, pg):
    with gateway.subscribe("c") as stream, pg.connect() as slow:
        slow.execute("INSERT INTO gateway.events (channel, data) VALUES ('c', '\"slow\"')")
        for number in range(10):
            gateway.publish("c", str(number))
            assert stream.next_event().data == str(number)
            pg.publish("c", f'"sql {number}"')
            assert stream.next_event().data == f'"sql {number}"'
        slow.commit()
        assert stream.next_event().data == '"slow"'
        gateway.publish("c", '"after"')
        assert stream.next_event().data == '"after"'


def test_what_is_rolled_back_never_appears(gateway, pg):
    with gateway.subscribe("c") as stream, pg.connect() as writer:
        for number in range(5):
            writer.execute("INSERT INTO gateway.events (channel, data) VALUES ('c', '\"never\"')")
            writer.rollback()
            pg.publish("c", str(number))
            assert stream.next_event().data == str(number)


# -- how it begins ------------------------------------------------------------------------


def test_headers_keep_proxies_and_browsers_from_meddling(gateway):
    with gateway.subscribe("c") as stream:
        assert stream.status == 200
        assert stream.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert stream.headers["Cache-Control"] == "no-cache, no-transform"
        assert stream.headers["X-Accel-Buffering"] == "no"
        assert stream.headers["Transfer-Encoding"] == "chunked"
        assert "Content-Length" not in stream.headers
        assert "Access-Control-Allow-Origin" not in stream.headers


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
def test_the_first_bytes_come_at_once(gateway, http10):
    with gateway.subscribe("quiet", http10=http10) as stream:
        assert stream.body_bytes > 0


def test_an_http10_client_gets_no_chunks(gateway):
    with gateway.subscribe("c", http10=True) as stream:
        assert "Transfer-Encoding" not in stream.headers
        ids = [gateway.publish("c", f'"{number}"') for number in range(50)]
        events = stream.take(50)
        assert [event.id for event in events] == ids
        big = '"' + "x" * 1000000 + '"'
        gateway.publish("c", big)
        assert stream.next_event().data == big


def test_head_of_a_stream_has_its_headers_and_ends(gateway):
    with gateway.connection() as connection:
        for _ in range(2):
            connection.send(build_request("HEAD", "/events?channel=c"))
            answer = connection.read_response(method="HEAD")
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        connection.send(build_request("GET", "/healthz"))
        assert connection.read_response().status == 200, "nothing was left over"
    gateway.wait_metric("pgsse_streams", 0)


def test_heartbeats_are_a_lone_colon(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.heartbeat": "100ms"})
    with gateway.subscribe("quiet") as stream, gateway.subscribe("q", http10=True) as old:
        for _ in range(5):
            stream.next_comment()
            old.next_comment()
        body = re.sub(rb"(?m)^retry: [0-9]+\n", b"", body_of(stream))
        body = body.replace(b"id: %s\nevent: checkpoint\ndata:\n\n"
                            % stream.checkpoints[0].encode(), b"", 1)
        assert body == b":\n" * len(body.split()), body
        id = gateway.publish("quiet", "1")
        assert stream.next_event().id == id
        stream.next_comment()


def test_retry_rides_on_the_first_frame_and_is_jittered(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.retry": "2s"})
    start = gateway.publish("c", "0")
    streams = [gateway.subscribe("c", last_event_id=start) for _ in range(12)]
    try:
        gateway.publish("c", "1")
        gateway.publish("c", "2")
        first, second = zip(*(stream.take(2) for stream in streams))
    finally:
        for stream in streams:
            stream.close()
    retries = [event.retry for event in first]
    assert all(retry is not None and 1000 <= retry <= 3000 for retry in retries), retries
    assert len(set(retries)) > 1, "jittered"
    assert [event.retry for event in second] == [None] * 12


BAD_QUERIES = [
    "channel=", "channel=a&channel=", "channel=%00", "channel=a%0Ab", "channel=%FF",
    "channel=" + "x" * 256, "channel=a%C2%85", "channel=a&type=", "channel=a&type=%0D",
    "channel=a&type=" + "x" * 256, "channel=a&type=%C3%28",
]


@pytest.mark.parametrize("query", BAD_QUERIES, ids=lambda query: query[:30])
def test_what_can_never_match_is_400(gateway, query):
    gateway.get("/events?" + query).problem(400)


@pytest.mark.parametrize("query", ["last_event_id=1%00", "channel=a%00b", "chan%00nel=a"])
def test_an_escaped_nul_is_told_as_what_it_is(gateway, query):
    assert "NUL (%00)" in gateway.get("/events?" + query).problem(400)["detail"]
    with gateway.subscribe("c", parameters=[("last_event_id", "1%00")]) as stream:
        assert json.loads(stream.next_event().data)["requested"] == "1%00"


def test_very_many_channels_are_served_or_refused(gateway):
    target = "/events?" + "&".join(f"channel=c{number}" for number in range(300))
    stream = Stream(gateway.address, target=target)
    with stream:
        assert stream.status in (200, 400, 414, 431)
        if stream.status == 200:
            stream.wait_started()
            gateway.publish("c299", "1")
            assert stream.next_event().data == "1"
    gateway.answers()


# -- Last-Event-ID ------------------------------------------------------------------------


def test_a_reader_that_returns_misses_nothing(gateway):
    with gateway.subscribe("c") as stream:
        gateway.publish("c", '"one"')
        last = stream.next_event()
    ids = [gateway.publish("c", str(number)) for number in range(10)]
    gateway.publish("other", "0")
    with gateway.subscribe("c", last_event_id=last.id) as stream:
        assert [event.id for event in stream.take(10)] == ids
        ids = [gateway.publish("c", "1")]
        assert [event.id for event in stream.take(1)] == ids


def test_the_last_id_may_be_a_parameter_and_the_header_wins(gateway):
    ids = [gateway.publish("c", str(number)) for number in range(4)]
    with gateway.subscribe("c", parameters=[("last_event_id", ids[1])]) as stream:
        assert stream.next_event().id == ids[2]
    with gateway.subscribe("c", last_event_id=ids[2],
                           parameters=[("last_event_id", ids[0])]) as stream:
        assert stream.next_event().id == ids[3]


def test_the_newest_id_resumes_with_what_comes(gateway):
    id = gateway.publish("c", "1")
    with gateway.subscribe("c", last_event_id=id) as stream:
        assert gateway.publish("c", "2") == stream.next_event().id


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
@pytest.mark.parametrize("id", ["nonsense", "-1", "999999999999999", "1e3", "x" * 100, "%00"])
def test_an_id_that_cannot_be_resumed_is_told_so_first(gateway, id, http10):
    ids = [gateway.publish("c", str(number)) for number in range(3)]
    with gateway.subscribe("c", last_event_id=id, http10=http10) as stream:
        gap = stream.next_event()
        assert gap.type == "gap"
        notice = json.loads(gap.data)
        assert {"requested", "oldest", "reason"} <= set(notice), notice
        assert notice["requested"] == id and notice["reason"]
        assert [event.id for event in stream.take(3)] == ids, "goes on from the oldest"


# -- how it ends --------------------------------------------------------------------------


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_departed_client_is_forgotten_though_nothing_is_sent(gateway, how, http10):
    streams = [gateway.subscribe("quiet", http10=http10) for _ in range(20)]
    gateway.wait_metric("pgsse_streams", 20)
    descriptors = gateway.fd_count()
    for stream in streams:
        if how == "reset":
            stream.sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: on, 0 s
        stream.close()
    gateway.wait_metric("pgsse_streams", 0)
    wait_until(lambda: gateway.fd_count() <= descriptors - 20, "their sockets are closed")


def test_a_client_that_departs_amid_a_flood_harms_nobody(gateway):
    with gateway.subscribe("c") as stays:
        for number in range(10):
            leaves = gateway.subscribe("c")
            gateway.post(json.dumps([{"channel": "c", "data": "x" * 20000}] * 50))
            leaves.close()
        assert len(stays.take(500)) == 500
    gateway.wait_metric("pgsse_streams", 0)


def test_a_stream_lives_no_longer_than_its_maximum_age(pg, gateway_factory):
    gateway = gateway_factory(pg, {"stream.max_age": "1s"})
    with gateway.subscribe("c") as stream:
        id = gateway.publish("c", "1")
        assert stream.next_event().id == id
        assert stream.wait_end() is True


# -- CORS ---------------------------------------------------------------------------------


@pytest.fixture
def cors_gateway(pg, gateway_factory):
    return gateway_factory(pg, {"http.cors_origins": "https://a.example, https://b.example:8443"})


@pytest.mark.parametrize("origin", ["https://a.example", "https://b.example:8443"])
def test_an_origin_that_is_configured_may_read_and_publish(cors_gateway, origin):
    with cors_gateway.subscribe("c", headers=[("Origin", origin)]) as stream:
        assert stream.headers["Access-Control-Allow-Origin"] == origin
        assert "origin" in stream.headers.names_in("Vary")
    answer = cors_gateway.post('{"data":1}', headers=[("Origin", origin)])
    assert answer.status == 201
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    problem = cors_gateway.post("{", headers=[("Origin", origin)])
    assert problem.headers["Access-Control-Allow-Origin"] == origin, "a page may read why"


@pytest.mark.parametrize("origin", ["https://evil.example", "https://a.example.evil", "null",
                                    "http://a.example", "https://a.example:444"])
def test_another_origin_is_not_allowed(cors_gateway, origin):
    with cors_gateway.subscribe("c", headers=[("Origin", origin)]) as stream:
        assert "Access-Control-Allow-Origin" not in stream.headers
        assert "origin" in stream.headers.names_in("Vary")


def test_a_preflight_is_answered(cors_gateway):
    answer = cors_gateway.request("OPTIONS", "/events", [
        ("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type, last-event-id")])
    assert answer.status in (200, 204)
    assert answer.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert "post" in answer.headers.names_in("Access-Control-Allow-Methods")
    assert {"content-type", "last-event-id"} <= answer.headers.names_in(
        "Access-Control-Allow-Headers")


def test_every_origin_may_be_allowed(pg, gateway_factory):
    gateway = gateway_factory(pg, {"http.cors_origins": "*"})
    with gateway.subscribe("c", headers=[("Origin", "https://any.example")]) as stream:
        assert stream.headers["Access-Control-Allow-Origin"] in ("*", "https://any.example")


# -- full ---------------------------------------------------------------------------------


def test_over_the_connection_limit_streams_are_sent_away_softly(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.connections": "8", "stream.retry": "2s"})
    streams = [gateway.subscribe("c") for _ in range(8)]
    try:
        with gateway.subscribe("c", started=False) as extra:
            assert extra.status == 200
            assert extra.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            assert extra.wait_end() is True
            assert len(extra.retries) == 1 and 1000 <= extra.retries[0] <= 3000
        answer = gateway.post('{"data":1}')
        answer.problem(429)
        assert int(answer.headers["Retry-After"]) >= 1
        streams.pop().close()
        wait_until(lambda: gateway.post('{"data":1,"channel":"c"}').status == 201,
                   "there is room again")
        for stream in streams:
            stream.next_event()
    finally:
        for stream in streams:
            stream.close()


def test_many_more_than_the_limit_are_all_answered(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.connections": "8"})
    streams = [gateway.subscribe("c") for _ in range(8)]
    extras = []
    try:
        for _ in range(60):
            extras.append(gateway.subscribe("c", started=False))
        assert all(extra.wait_end() is True for extra in extras)
        streams[0].close()
        streams[0] = wait_until(lambda: reopened(gateway), "there is room again")
    finally:
        for stream in streams + extras:
            stream.close()


def reopened(gateway):
    """A stream that stays open, or None."""
    stream = gateway.subscribe("c", started=False)
    if stream.headers.get("Connection") != "close":
        return stream
    stream.close()
    return None


def test_streams_do_not_starve_each_other(gateway):
    """Two thousand events to sixty streams, some of them busy, most of them idle."""
    idle = [gateway.subscribe(f"idle{number}") for number in range(40)]
    busy = [gateway.subscribe("busy") for _ in range(20)]
    try:
        body = json.dumps([{"channel": "busy", "data": number} for number in range(500)])
        for _ in range(4):
            assert gateway.post(body, timeout=scaled(30)).status == 201
        for stream in busy:
            assert [int(event.data) for event in stream.take(2000)] == list(range(500)) * 4
        for number, stream in enumerate(idle):
            gateway.publish(f"idle{number}", "1")
            assert stream.next_event().data == "1"
    finally:
        for stream in idle + busy:
            stream.close()
