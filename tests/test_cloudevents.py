"""CloudEvents 1.0 by POST: structured, batch and binary; (source, id) is the key."""

import json

import pytest

JSON = "application/json"
EVENT = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"

ORDER = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "com.shop.created"}


def structured(gateway, event, **options):
    return gateway.post(json.dumps(event), EVENT, **options)


def batch(gateway, *events, **options):
    return gateway.post(json.dumps(events), BATCH, **options)


def binary(gateway, event, body=b"", content_type=None, **options):
    headers = [(f"ce-{name}", value) for name, value in event.items()]
    return gateway.post(body, content_type, headers=headers, **options)


def attributes(pg):
    return [found for found, in pg.execute("SELECT attributes FROM gateway.events ORDER BY seq")]


# -- forms --------------------------------------------------------------------------------


def test_a_structured_event_is_published(gateway, pg):
    event = {**ORDER, "subject": "orders", "time": "2026-01-02T03:04:05Z", "traceparent": "00-x",
             "number": 7, "flag": False, "nothing": None, "data": {"order": 1042}}
    with gateway.subscribe("orders") as stream:
        answer = structured(gateway, event)
        seen = stream.next_event()
    assert answer.status == 201
    told = answer.json()
    assert told == {"id": seen.id, "channel": "orders", "type": "com.shop.created"}
    assert answer.headers["Location"] == f"/events/{told['id']}"
    assert json.loads(seen.data) == {"order": 1042} and seen.type == "com.shop.created"
    kept = {name: value for name, value in event.items() if name not in ("data", "nothing")}
    assert attributes(pg) == [kept]
    assert gateway.get(answer.headers["Location"]).json()["data"] == {"order": 1042}


def test_data_comes_out_as_it_went_in(gateway, pg):
    for number, data in enumerate(["1e400", '{ "b":1,"a":2,\t"b":3}', '"\\u00e9\\ud800"', "null"]):
        head = json.dumps({**ORDER, "id": str(number)})[:-1]
        assert gateway.post(f'{head}, "data": {data} }}', EVENT).status == 201
        assert binary(gateway, {**ORDER, "id": f"b{number}"}, f" {data}\n", JSON).status == 201
        assert [text for _, _, text in pg.events()][-2:] == [data, data]


def test_an_event_without_data_has_null(gateway, pg):
    assert structured(gateway, ORDER).status == 201
    for number, content_type in enumerate((None, JSON, "text/plain", "image/png")):
        assert binary(gateway, {**ORDER, "id": f"b{number}"}, b"", content_type).status == 201
    assert pg.events() == [("events", "com.shop.created", "null")] * 5


def test_a_batch_is_answered_as_a_list_in_its_order(gateway, pg):
    answer = batch(gateway, {**ORDER, "data": 1}, {**ORDER, "id": "2", "subject": "s", "data": 2})
    assert answer.status == 201
    told = answer.json()["events"]
    assert [(each["channel"], each["type"]) for each in told] == [
        ("events", "com.shop.created"), ("s", "com.shop.created")]
    assert [data for _, _, data in pg.events()] == ["1", "2"]


BODIES = {
    "json": (JSON, b'{"n": 1}', '{"n": 1}'),
    "vendor json": ("application/vnd.shop+json; charset=utf-8", b"[1]", "[1]"),
    "text": ("text/plain", 'a "b"\né'.encode(), '"a \\"b\\"\\né"'),
    "html": ("text/html; charset=UTF-8", b"<p>", '"<p>"'),
    "bytes": ("application/octet-stream", b"\x00\xff\x10", '"AP8Q"'),
    "xml": ("application/xml", b"<a/>", '"PGEvPg=="'),
    "no type": (None, b"abc", '"YWJj"'),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_binary_body_is_data_by_its_type(gateway, pg, what):
    content_type, body, data = BODIES[what]
    assert binary(gateway, ORDER, body, content_type).status == 201
    assert pg.events() == [("events", "com.shop.created", data)]
    kept = dict(ORDER)
    if content_type is not None:
        kept["datacontenttype"] = content_type
    if what in ("bytes", "xml", "no type"):
        kept["data_base64"] = True
    assert attributes(pg) == [kept]


def test_data_in_base64_stays_what_it_is(gateway, pg):
    event = {**ORDER, "datacontenttype": "image/png", "data_base64": "AP8Q"}
    assert structured(gateway, event).status == 201
    assert pg.events() == [("events", "com.shop.created", '"AP8Q"')]
    assert attributes(pg) == [{**event, "data_base64": True}]


def test_header_values_are_percent_decoded(gateway, pg):
    event = {**ORDER, "subject": "Euro%20%E2%82%AC%20%f0%9f%98%80", "quoted": '"a \\"b\\" %25"'}
    assert binary(gateway, event, b"1", JSON).status == 201
    assert pg.events() == [("Euro € 😀", "com.shop.created", "1")]
    assert attributes(pg)[0]["quoted"] == 'a "b" %'


def test_header_names_are_of_any_case(gateway, pg):
    event = {"SpecVersion": "1.0", "ID": "1", "Source": "/shop", "TYPE": "t", "Channel": "c"}
    assert binary(gateway, event, b"1", JSON).status == 201
    assert pg.events() == [("c", "t", "1")]


@pytest.mark.parametrize("mode", ["structured", "binary"])
@pytest.mark.parametrize("extra, query, channel", [
    ({}, {}, "events"),
    ({"subject": "s"}, {}, "s"),
    ({"subject": "s", "channel": "c"}, {}, "c"),
    ({"subject": "s", "channel": "c"}, {"channel": "q"}, "q"),
    ({"subject": "no channel*"}, {"channel": "q"}, "q"),
])
def test_the_channel_is_the_querys_or_the_events(gateway, pg, mode, extra, query, channel):
    event = {**ORDER, **extra}
    send = structured if mode == "structured" else binary
    assert send(gateway, event, **query).json()["channel"] == channel
    assert attributes(pg) == [event], "nothing of it is lost"


def test_other_events_have_no_attributes(gateway, pg):
    gateway.publish("c", "1")
    structured(gateway, ORDER)
    pg.publish("c", "2")
    assert sorted(attributes(pg), key=str) == [None, None, ORDER] or \
        attributes(pg).count(None) == 2


# -- what is wrong ------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["id", "source", "specversion", "type"])
def test_a_missing_attribute_is_named(gateway, pg, missing):
    event = {name: value for name, value in ORDER.items() if name != missing}
    assert f'"{missing}" is missing' in structured(gateway, event).problem(400)["detail"]
    assert f'"{missing}" is missing' in binary(gateway, event).problem(400)["detail"]
    detail = batch(gateway, {**ORDER, "id": "2"}, event).problem(400)["detail"]
    assert detail.startswith("event 2: ")
    assert structured(gateway, {**event, missing: ""}).status == 400
    assert binary(gateway, {**event, missing: ""}).status == 400
    assert structured(gateway, {**event, missing: 1}).status == 400
    assert pg.events() == []


@pytest.mark.parametrize("body, content_type, says", [
    ("{", EVENT, "not JSON"),
    ("[]", EVENT, "object"),
    ("{}", BATCH, "array"),
    ("[]", BATCH, "no event"),
    (json.dumps({**ORDER, "specversion": "0.3"}), EVENT, "0.3"),
    (json.dumps({**ORDER, "type": "gap"}), EVENT, "gap"),
    (json.dumps({**ORDER, "subject": "a*"}), EVENT, "channel"),
    (json.dumps({**ORDER, "data": 1, "data_base64": ""}), EVENT, "both"),
    (json.dumps({**ORDER, "data_base64": "?"}), EVENT, "Base64"),
    (json.dumps({**ORDER, "id": "x" * 1025}), EVENT, "1024"),
    (json.dumps({**ORDER, "ext": {}}), EVENT, "ext"),
    (json.dumps({**ORDER, "Ext": 1}), EVENT, "Ext"),
    (json.dumps([ORDER, {**ORDER, "id": "2"}, ORDER]), BATCH, "event 1 and event 3"),
])
def test_what_is_wrong_is_said(gateway, pg, body, content_type, says):
    assert says in gateway.post(body, content_type).problem(400)["detail"]
    assert pg.events() == []


def test_a_wrong_form_is_said(gateway, pg):
    gateway.post(json.dumps(ORDER), "application/cloudevents+avro").problem(415)
    gateway.post(json.dumps(ORDER), EVENT + "; charset=latin1").problem(415)
    assert "curl -d" in binary(gateway, ORDER, b"{}",
                               "application/x-www-form-urlencoded").problem(415)["detail"]
    assert "not JSON" in binary(gateway, ORDER, b"{", JSON).problem(400)["detail"]
    assert "UTF-8" in binary(gateway, ORDER, b"\xff", "text/plain").problem(400)["detail"]
    assert "ce-x" in binary(gateway, {**ORDER, "x": "%ff"}).problem(400)["detail"]
    assert "twice" in gateway.post(b"", None, headers=[
        ("ce-id", "1"), *((f"ce-{name}", value) for name, value in ORDER.items())
    ]).problem(400)["detail"]
    assert "64" in binary(gateway, {**ORDER, **{f"x{n}": "1" for n in range(61)}}).problem(400)["detail"]
    assert "?type=" in structured(gateway, ORDER, channel="c", type="t").problem(400)["detail"]
    assert pg.events() == []


# -- the key ------------------------------------------------------------------------------


def test_an_event_sent_again_is_not_published_again(gateway, pg):
    event = {**ORDER, "subject": "orders", "data": {"n": 1}}
    first = structured(gateway, event)
    for again in (structured(gateway, event),
                  structured(gateway, {**event, "traceparent": "added on the way"}),
                  binary(gateway, {**ORDER, "subject": "orders"}, json.dumps(event["data"]), JSON)):
        assert again.status == 200 and again.body == first.body
        assert again.headers["Location"] == first.headers["Location"]
    assert batch(gateway, event).json() == {"events": [first.json()]}
    assert len(pg.events()) == 1


def test_source_and_id_are_told_apart(gateway, pg):
    for source, name in (("/a", "b"), ("/ab", ""), ("/", "ab"), ("/a", "bc"), ("/ab", "c")):
        if name:
            assert structured(gateway, {**ORDER, "source": source, "id": name}).status == 201
    headers = [("Idempotency-Key", "c:2:/ab")]
    assert gateway.post('{"data":1}', headers=headers).status == 201
    assert len(pg.events()) == 5


def test_a_batch_publishes_what_is_new_in_it(gateway, pg):
    events = [{**ORDER, "id": str(number), "data": number} for number in range(4)]
    first = batch(gateway, *events[1:3]).json()["events"]
    answer = batch(gateway, *events)
    assert answer.status == 201
    told = answer.json()["events"]
    assert told[1:3] == first
    again = batch(gateway, *events)
    assert again.status == 200 and again.json()["events"] == told
    stored = {data: str(seq) for seq, data in
              pg.execute("SELECT seq, data::text FROM gateway.events")}
    assert stored == {str(number): told[number]["id"] for number in range(4)}


def test_another_event_of_the_same_name_is_422_and_nothing_is_published(gateway, pg):
    structured(gateway, {**ORDER, "data": 1})
    assert structured(gateway, {**ORDER, "data": 2}).status == 422
    detail = batch(gateway, {**ORDER, "id": "new"}, {**ORDER, "data": 2}).problem(422)["detail"]
    assert detail.startswith("event 2: ")
    assert len(pg.events()) == 1
    assert structured(gateway, {**ORDER, "id": "new"}).status == 201


def test_an_idempotency_key_wins_over_source_and_id(gateway, pg):
    def send(key):
        return batch(gateway, ORDER, {**ORDER, "id": "2"}, headers=[("Idempotency-Key", key)])

    assert [send("a").status, send("a").status, send("b").status] == [201, 200, 201]
    assert len(pg.events()) == 4
    assert structured(gateway, ORDER).status == 201, "its own key was not used"


def test_ten_thousand_events_each_with_its_key(gateway, pg):
    events = [{**ORDER, "id": f"{number}", "data": number} for number in range(10000)]
    first = batch(gateway, *events)
    assert first.status == 201
    again = batch(gateway, *events[:-1], {**ORDER, "id": "last"})
    assert again.status == 201
    assert again.json()["events"][:-1] == first.json()["events"][:-1]
    assert batch(gateway, *events).status == 200
    assert len(pg.events()) == 10001
