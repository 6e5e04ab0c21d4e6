"""POST /events: what is taken, what is refused, and what an answer promises."""

import concurrent.futures
import json
import threading

import pytest

from harness.raw_http import build_request, chunked
from harness.waiting import Deadline, scaled

JSON = "application/json"
NDJSON = "application/x-ndjson"


def published(response, status=201):
    assert response.status == status, repr(response)
    return response.json()


# -- what is taken ------------------------------------------------------------------------


def test_an_object_is_one_event(gateway, pg):
    answer = gateway.post('{"channel":"orders","type":"created","data":{"n":1}}')
    event = published(answer)
    assert event == {"id": event["id"], "channel": "orders", "type": "created"}
    assert answer.headers["Location"] == f"/events/{event['id']}"
    assert answer.headers["Content-Type"].startswith(JSON)
    assert pg.events() == [("orders", "created", '{"n":1}')]


def test_every_answer_ends_its_line(gateway):
    created = gateway.post('{"data":1}')
    for answer in (created, gateway.post("[]"), gateway.get(created.headers["Location"]),
                   gateway.get("/streams"), gateway.get("/readyz"), gateway.get("/metrics")):
        assert answer.body.endswith(b"\n") and not answer.body.endswith(b"\n\n"), repr(answer)


def test_channel_and_type_may_be_left_out(gateway, pg):
    event = published(gateway.post('{"data":null}'))
    assert (event["channel"], event["type"]) == ("events", "message")
    assert pg.events() == [("events", "message", "null")]


def test_an_array_is_many_events_in_its_order(gateway, pg):
    body = [{"channel": "a", "data": number} for number in range(100)]
    events = published(gateway.post(json.dumps(body)))["events"]
    assert [event["channel"] for event in events] == ["a"] * 100
    assert len({event["id"] for event in events}) == 100
    assert [data for _, _, data in pg.events()] == [str(number) for number in range(100)]


def test_an_array_of_one_is_answered_as_many(gateway):
    assert len(published(gateway.post('[{"data":1}]'))["events"]) == 1


@pytest.mark.parametrize("body", [
    b'{"data":1}\n{"data":2}\n',
    b'{"data":1}\n{"data":2}',
    b'{"data":1}\r\n{"data":2}\r\n',
    b'\n{"data":1}\n\n\r\n  {"data":2}  \n\n',
], ids=["newline", "no-last-newline", "crlf", "empty-lines"])
def test_ndjson_is_one_event_a_line(gateway, pg, body):
    events = published(gateway.post(body, NDJSON))["events"]
    assert len(events) == 2
    assert [data for _, _, data in pg.events()] == ["1", "2"]


def test_with_a_channel_in_the_query_the_body_itself_is_the_data(gateway, pg):
    event = published(gateway.post('{"channel":"not me","data":1}', channel="orders"))
    assert (event["channel"], event["type"]) == ("orders", "message")
    published(gateway.post("[1,2]", channel="orders", type="paid"))
    assert pg.events() == [("orders", "message", '{"channel":"not me","data":1}'),
                           ("orders", "paid", "[1,2]")]


def test_plain_text_becomes_a_json_string(gateway, pg):
    text = 'He said "hi\\there"\r\n\ttab, é, 😀, \x01 and \x7f'
    for content_type in ("text/plain", "text/plain; charset=utf-8", "Text/Plain;charset=\"UTF-8\""):
        published(gateway.post(text.encode(), content_type, channel="hooks"))
    published(gateway.post(b"", "text/plain", channel="hooks"))
    assert [json.loads(data) for _, _, data in pg.events()] == [text] * 3 + [""]


@pytest.mark.parametrize("content_type", [
    "application/json; charset=utf-8", 'application/json;charset="utf-8"', "Application/JSON",
    "application/json ; charset=UTF-8"])
def test_a_media_type_may_have_a_charset_and_any_case(gateway, content_type):
    published(gateway.post('{"data":1}', content_type))


def test_names_in_the_query_are_percent_decoded(gateway, pg):
    event = published(gateway.post("1", channel="a b/ü&c=d+e%", type="x y"))
    assert (event["channel"], event["type"]) == ("a b/ü&c=d+e%", "x y")
    assert pg.events() == [("a b/ü&c=d+e%", "x y", "1")]


VALUES = [
    "123456789012345678901234567890123456789012345678901234567890",
    "1e400", "-1E-4000", "-0", "0.0", "1.0E+2", "0.1000000000000000000000000000000000001",
    '{"b":1,"a":2,"b":3}',
    '{ "spaced" :\t[ 1 ,2 ] }',
    '"\\u00e9\\ud83d\\ude00\\/\\b\\f\\n\\r\\t\\"\\\\"',
    '"é ü ߿ ࠀ \uffff 😀 \U0010ffff \u2028\u2029 \x7f \u0085"',
    '"\\u0001\\u001f"', '"\\ud800"', '""', "[]", "{}", "true", "false", "null",
    '{"":{"":[[],[{}]]}}',
]


@pytest.mark.parametrize("way", ["object", "query", "ndjson"])
def test_data_comes_out_as_it_went_in(gateway, pg, way):
    # PostgreSQL's json takes a lone surrogate only as an escape, and keeps all of it.
    with gateway.subscribe("c") as stream:
        for value in VALUES:
            if way == "query":
                answer = gateway.post(value, channel="c")
            else:
                answer = gateway.post('{"data":%s,"channel":"c"}' % value,
                                      JSON if way == "object" else NDJSON)
            assert answer.status == 201, (value, answer)
            assert stream.next_event().data == value
    assert [data for _, _, data in pg.events()] == VALUES


def test_line_ends_in_json_white_space_are_lines_of_data(gateway, pg):
    value = '{\r\n"a":\r1,\n\n"b":[\n]}'
    with gateway.subscribe("c") as stream:
        gateway.publish("c", value)
        assert stream.next_event().data == '{\n"a":\n1,\n\n"b":[\n]}'
    assert pg.events() == [("c", "message", value)]


def test_names_may_be_255_bytes_of_any_script(gateway, pg):
    name = "ü" * 127 + "x"
    event = published(gateway.post(json.dumps({"channel": name, "type": name, "data": 0})))
    assert (event["channel"], event["type"]) == (name, name)


def test_an_answer_comes_after_the_commit(gateway, pg):
    for number in range(20):
        gateway.publish("c", str(number))
        assert pg.value("SELECT count(*) FROM gateway.events WHERE seq IS NOT NULL") == number + 1


def test_no_answer_comes_before_the_commit(gateway, pg):
    with pg.connect() as blocker, gateway.connection() as connection:
        blocker.execute("LOCK TABLE gateway.events IN SHARE MODE")
        connection.send(build_request("POST", "/events", [("Content-Type", JSON)], b'{"data":1}'))
        assert gateway.get("/healthz").status == 200
        assert not connection.closed_now() and not connection.buffer
        blocker.rollback()
        assert connection.read_response().status == 201


def test_the_location_leads_to_the_event(gateway):
    data = '{"z":1,"a":123456789012345678901234567890,"z":2}'
    location = gateway.post(data, channel="orders", type="created").headers["Location"]
    answer = gateway.get(location)
    event = published(answer, 200)
    assert event["id"] == location.removeprefix("/events/")
    assert (event["channel"], event["type"]) == ("orders", "created")
    assert data in answer.text, "the data is shown as it was published"


@pytest.mark.parametrize("id", ["1", "999999999999", "18446744073709551615"])
def test_an_event_that_does_not_exist_is_404(gateway, id):
    gateway.get(f"/events/{id}").problem(404)


@pytest.mark.parametrize("id", ["0", "-1", "01", "x", "1x", "%31%00", "99999999999999999999999"])
def test_an_id_nobody_gave_out_is_400_or_404(gateway, id):
    gateway.get(f"/events/{id}").problem((400, 404))


def test_expect_100_continue_is_answered_before_the_body(gateway):
    body = b'{"data":"patience"}'
    head = build_request("POST", "/events", [("Content-Type", JSON), ("Expect", "100-continue"),
                                             ("Content-Length", str(len(body)))])
    with gateway.connection() as connection:
        connection.send(head)
        assert connection.read_response().status == 100
        connection.send(body)
        assert connection.read_response().status == 201


def test_a_body_may_come_in_chunks(gateway, pg):
    body = json.dumps({"data": "x" * 200000}).encode()
    with gateway.connection() as connection:
        connection.send(build_request("POST", "/events", [
            ("Content-Type", JSON), ("Transfer-Encoding", "chunked")]) + chunked(body, 1000))
        assert connection.read_response().status == 201
    assert pg.value("SELECT length(data #>> '{}') FROM gateway.events") == 200000


def test_a_connection_serves_many_requests(gateway):
    with gateway.connection() as connection:
        for number in range(50):
            connection.send(build_request("POST", f"/events?channel=c{number % 3}",
                                          [("Content-Type", JSON)], str(number).encode()))
            assert connection.read_response().status == 201


def test_four_mebibytes_are_taken(gateway, pg):
    size = 4 * 1024 * 1024
    body = b'"' + b"x" * (size - 2) + b'"'
    published(gateway.post(body, channel="big"))
    assert pg.value("SELECT octet_length(data::text) FROM gateway.events") == size


def test_nesting_as_deep_as_documented_is_taken(gateway):
    published(gateway.post("[" * 512 + "]" * 512, channel="deep"))


# -- what is refused ----------------------------------------------------------------------

REFUSED_BODIES = {
    "empty": b"",
    "blank": b"  \n ",
    "not JSON": b"hello",
    "cut off": b'{"data":1',
    "rest behind": b'{"data":1} x',
    "two values": b'{"data":1}{"data":2}',
    "a number": b"17",
    "a string": b'"data"',
    "null": b"null",
    "no data": b'{"channel":"c"}',
    "empty object": b"{}",
    "empty array": b"[]",
    "unknown member": b'{"data":1,"chanel":"c"}',
    "data twice": b'{"data":1,"data":2}',
    "channel is a number": b'{"channel":1,"data":1}',
    "channel is null": b'{"channel":null,"data":1}',
    "channel is empty": b'{"channel":"","data":1}',
    "channel has a newline": b'{"channel":"a\\nb","data":1}',
    "channel has a DEL": b'{"channel":"a\\u007fb","data":1}',
    "channel has a C1 control": b'{"channel":"a\\u0085b","data":1}',
    "channel has a NUL": b'{"channel":"a\\u0000b","data":1}',
    "channel has a lone surrogate": b'{"channel":"a\\ud800b","data":1}',
    "channel is 256 bytes": b'{"channel":"%s","data":1}' % (b"x" * 256),
    "type is a number": b'{"type":1,"data":1}',
    "type is empty": b'{"type":"","data":1}',
    "type has a carriage return": b'{"type":"a\\rb","data":1}',
    "type is 256 bytes": b'{"type":"%s","data":1}' % (b"x" * 256),
    "type is the gateway's own": b'{"type":"gap","data":1}',
    "channel ends in a star": b'{"channel":"orders.*","data":1}',
    "a raw newline in a string": b'{"data":"a\nb"}',
    "an escaped NUL in a value": b'{"data":"a\\u0000b"}',
    "an escaped NUL in a key": b'{"data":{"a\\u0000":1}}',
    "a NUL byte": b'{"data":"\0"}',
    "a NUL behind": b'{"data":1}\0',
    "a BOM": b'\xef\xbb\xbf{"data":1}',
    "UTF-8 that is cut": b'{"data":"\xc3"}',
    "UTF-8 that is overlong": b'{"data":"\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"data":"\xed\xa0\x80"}',
    "beyond Unicode": b'{"data":"\xf4\x90\x80\x80"}',
    "Latin-1": b'{"data":"\xe9"}',
    "leading zero": b'{"data":01}',
    "plus sign": b'{"data":+1}',
    "NaN": b'{"data":NaN}',
    "single quotes": b"{'data':1}",
    "trailing comma": b'{"data":[1,]}',
    "comment": b'{"data":1/**/}',
    "deep nesting": b'{"data":' + b"[" * 100000 + b"]" * 100000 + b"}",
    "deep nesting left open": b"[" * 1000000,
}


def test_what_is_not_an_event_is_400_and_stores_nothing(gateway, pg):
    wrong = []
    for name, body in REFUSED_BODIES.items():
        answer = gateway.post(body)
        if answer.status != 400:
            wrong.append((name, answer))
            continue
        answer.problem(400)
    assert not wrong
    assert pg.value("SELECT count(*) FROM gateway.events") == 0
    gateway.answers()


def test_a_problem_says_what_and_where(gateway):
    assert "chanel" in gateway.post('{"data":1,"chanel":"c"}').problem(400)["detail"]
    assert "channel" in gateway.post('{"data":1,"channel":""}').problem(400)["detail"]
    assert "data" in gateway.post('{"channel":"c"}').problem(400)["detail"]
    assert "13" in gateway.post('{"data":[1,2 3]}').problem(400)["detail"], "the byte is named"


def test_one_bad_element_of_an_array_refuses_all_and_is_named(gateway, pg):
    body = [{"data": number} for number in range(10)]
    body[7] = {"data": 7, "type": ""}
    assert "8" in gateway.post(json.dumps(body)).problem(400)["detail"], "counted from one"
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


def test_one_bad_line_of_ndjson_refuses_all_and_is_named(gateway, pg):
    detail = gateway.post(b'{"data":1}\n\n{"data":2}\n{"data":}\n', NDJSON).problem(400)["detail"]
    assert "4" in detail, f"the line is named: {detail}"
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


@pytest.mark.parametrize("query", [
    "channel=", "channel=%00", "channel=a%0Ab", "channel=%FF", "channel=" + "x" * 256,
    "channel=a&channel=b", "channel=a&type=b&type=c", "channel=a&chanel=b",
    "channel=a&type=", "channel=a&type=%07", "channel=a&type=" + "x" * 256, "channel=orders.*",
], ids=lambda query: query[:24])
def test_a_bad_name_in_the_query_is_400(gateway, pg, query):
    answer = gateway.request("POST", "/events?" + query, [("Content-Type", JSON)], b"1")
    answer.problem(400)
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


@pytest.mark.parametrize("body", [b"", b"{", b"1 2", b'"\\u0000"', b'"\xff"'])
def test_with_a_channel_the_body_must_still_be_json(gateway, body):
    gateway.post(body, channel="c").problem(400)


@pytest.mark.parametrize("body", [b"a\0b", b"\xff\xfe", b"\xed\xa0\x80"])
def test_plain_text_must_be_utf8_without_nul(gateway, body):
    gateway.post(body, "text/plain", channel="c").problem(400)


@pytest.mark.parametrize("content_type", [
    "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
    "application/jsonx", "json", "text/json-ish", "application/json; charset=utf-16",
    "text/plain; charset=iso-8859-1"])
def test_another_media_type_is_415(gateway, pg, content_type):
    gateway.post('{"data":1}', content_type).problem(415)
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


@pytest.mark.parametrize("content_type", [None, "text/plain"])
def test_an_event_without_its_media_type_is_refused(gateway, content_type):
    gateway.post('{"data":1}', content_type).problem((400, 415))


def test_a_body_over_the_limit_is_413_before_it_is_sent(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.body": "64KiB"})
    with gateway.connection() as connection:
        connection.send(build_request("POST", "/events", [
            ("Content-Type", JSON), ("Content-Length", str(64 * 1024 + 1))]))
        connection.read_response().problem(413)
    with gateway.connection() as connection:
        connection.send(build_request("POST", "/events", [
            ("Content-Type", JSON), ("Content-Length", "99999999999"),
            ("Expect", "100-continue")]))
        connection.read_response().problem(413)
    gateway.answers()


def test_a_body_over_the_limit_is_413_when_it_comes_in_chunks(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.body": "64KiB"})
    body = b'"' + b"x" * (64 * 1024) + b'"'
    with gateway.connection() as connection:
        connection.send_as_much_as_taken(build_request("POST", "/events?channel=c", [
            ("Content-Type", JSON), ("Transfer-Encoding", "chunked")]) + chunked(body, 4096))
        connection.read_response().problem(413)
    published(gateway.post(body[:64 * 1024 - 1] + b'"', channel="c"))


def test_a_body_without_an_end_ends_at_its_deadline(pg, gateway_factory):
    """Far over the limit, as fast as the gateway takes it: an answer or a close in time."""
    gateway = gateway_factory(pg, {"limits.body": "64KiB", "limits.body_time": "1s"})
    before = gateway.rss_bytes()
    with gateway.connection() as connection:
        connection.send(build_request("POST", "/events?channel=c", [
            ("Content-Type", JSON), ("Transfer-Encoding", "chunked")]))
        chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
        deadline = Deadline(10)
        while not deadline.passed():
            try:
                connection.send(chunk)
            except OSError:
                break
        else:
            raise AssertionError("it takes a body for ever")
    gateway.answers()
    assert gateway.rss_bytes() - before < scaled(16 * 1024 * 1024)


# -- together -----------------------------------------------------------------------------


def publish_together(gateway, workers, requests, bad_every=0):
    """`workers` connections send `requests` POSTs each; returns (status, channel, data)."""
    answers = []
    begin = threading.Barrier(workers)

    def work(worker):
        mine = []
        with gateway.connection(timeout=60) as connection:
            begin.wait()
            for number in range(requests):
                bad = bad_every and (worker + number) % bad_every == 0
                channel, data = f"w{worker}", str(number)
                target = "/events?channel=" + ("poison" if bad else channel)
                connection.send(build_request("POST", target, [("Content-Type", JSON)],
                                              data.encode()))
                mine.append((connection.read_response(60).status, channel, data, bool(bad)))
        answers.append(mine)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled(90))
    assert len(answers) == workers, "a publisher did not finish"
    return [answer for mine in answers for answer in mine]


def test_publishers_that_wait_share_a_batch(gateway, pg):
    gateway.publish("c", "0")
    with pg.connect() as holder, concurrent.futures.ThreadPoolExecutor(1) as executor:
        holder.execute("SELECT gateway.lock_order()")
        publishing = executor.submit(publish_together, gateway, workers=64, requests=1)
        gateway.wait_metric("pgsse_publish_waiting_events", 64)
        holder.commit()
        assert {status for status, *_ in publishing.result()} == {201}
    figures = gateway.metrics()
    assert figures["pgsse_events_published_total"] == 65
    # The first, one that waits for the lock, and one with all who have come meanwhile.
    assert figures["pgsse_publish_batches_total"] <= 3


def test_many_publishers_are_served_in_the_order_of_each(gateway, pg):
    answers = publish_together(gateway, workers=64, requests=20)
    assert {status for status, *_ in answers} == {201}
    assert gateway.metric("pgsse_events_published_total") == 1280
    for worker in range(64):
        assert [data for _, _, data in pg.events(f"w{worker}")] == [str(n) for n in range(20)]


REFUSALS = {
    "a constraint": "ALTER TABLE gateway.events ADD CONSTRAINT test CHECK (channel <> 'poison')",
    "a trigger that raises": """
        CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RAISE 'no poison'; END$$;
        CREATE TRIGGER refuse BEFORE INSERT ON gateway.events FOR EACH ROW
            WHEN (new.channel = 'poison') EXECUTE FUNCTION public.refuse()""",
    "a trigger that leaves it out": """
        CREATE FUNCTION public.leave_out() RETURNS trigger LANGUAGE plpgsql AS
            $$BEGIN RETURN NULL; END$$;
        CREATE TRIGGER leave_out BEFORE INSERT ON gateway.events FOR EACH ROW
            WHEN (new.channel = 'poison') EXECUTE FUNCTION public.leave_out()""",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_one_that_postgresql_refuses_spoils_no_neighbour(gateway, pg, refusal):
    pg.execute(REFUSALS[refusal])
    answers = publish_together(gateway, workers=32, requests=20, bad_every=7)
    for status, _, _, bad in answers:
        assert (400 <= status < 500) if bad else status == 201
    good = sorted((channel, data) for _, channel, data, bad in answers if not bad)
    assert sorted((channel, data) for channel, _, data in pg.events()) == good


def test_what_postgresql_refuses_is_a_problem_that_says_why(gateway, pg):
    pg.execute("ALTER TABLE gateway.events ADD CONSTRAINT no_poison CHECK (channel <> 'poison')")
    problem = gateway.post("1", channel="poison").problem((400, 409, 422))
    assert "no_poison" in problem["detail"]
    body = '[{"data":1},{"data":2,"channel":"poison"},{"data":3}]'
    gateway.post(body).problem((400, 409, 422))
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


# -- methods and paths --------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_another_method_is_405_and_says_which_there_are(gateway, method):
    answer = gateway.request(method, "/events", body=b"")
    answer.problem(405)
    assert {"get", "head", "post", "options"} <= answer.headers.names_in("Allow")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/"])
def test_what_can_only_be_read_is_405_for_post(gateway, path):
    answer = gateway.request("POST", path, body=b"")
    answer.problem(405)
    allowed = answer.headers.names_in("Allow")
    assert {"get", "head"} <= allowed and "post" not in allowed


@pytest.mark.parametrize("path", ["/nothing", "/events/", "/events/1/2", "/eventsx", "/%2e%2e/x",
                                  "/../gateway.ini", "/static/../../gateway.ini", "//"])
def test_another_path_is_404(gateway, path):
    gateway.get(path).problem((400, 404))


def test_options_names_the_methods(gateway):
    answer = gateway.request("OPTIONS", "/events")
    assert answer.status in (200, 204)
    assert {"get", "head", "post", "options"} <= answer.headers.names_in("Allow")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/"])
def test_head_answers_as_get_without_a_body(gateway, path):
    with gateway.connection() as connection:
        for _ in range(3):
            connection.send(build_request("HEAD", path))
            answer = connection.read_response(method="HEAD")
            assert answer.status == 200
            assert "Content-Type" in answer.headers
        connection.send(build_request("GET", "/healthz"))
        assert connection.read_response().status == 200, "nothing was left over"


def test_head_of_an_event_answers_as_get(gateway):
    location = gateway.post('{"data":1}').headers["Location"]
    answer = gateway.request("HEAD", location)
    assert answer.status == 200 and answer.body == b""
    assert gateway.request("HEAD", "/events/999999999").status == 404
