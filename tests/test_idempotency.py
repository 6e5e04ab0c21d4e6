"""Idempotency-Key: a POST that is sent again publishes nothing again, whichever gateway it
comes to and whatever happened to the first answer."""

import collections
import json
import random
import threading
import time

import pytest

from harness.raw_http import Closed, build_request
from harness.waiting import Deadline, scaled, wait_until

JSON = "application/json"
NDJSON = "application/x-ndjson"


def post(gateway, body, key, content_type=JSON, **options):
    return gateway.post(body, content_type, headers=[("Idempotency-Key", key)], **options)


def count(pg):
    return pg.value("SELECT count(*) FROM gateway.events")


def same_answer(first, again):
    assert first.status == 201 and again.status == 200, (first, again)
    assert again.body == first.body
    assert again.headers.get("Location") == first.headers.get("Location")
    assert again.headers["Content-Type"] == first.headers["Content-Type"]


BODIES = {
    "an event": ('{"channel":"a","type":"t","data":{"n":1.0}}', JSON, {}),
    "an array": ('[{"data":1},{"data":2,"channel":"b"},{"data":1}]', JSON, {}),
    "lines": ('{"data":1}\n{"data":2}\n', NDJSON, {}),
    "data": ('{"order":1}', JSON, {"channel": "a", "type": "t"}),
    "a webhook": ('{"order":1}', "application/vnd.shop+json", {"channel": "a"}),
    "text": ("shipped", "text/plain", {"channel": "a"}),
    "a CloudEvent": ('{"specversion":"1.0","id":"1","source":"/s","type":"t"}',
                     "application/cloudevents+json", {}),
    "CloudEvents": ('[{"specversion":"1.0","id":"1","source":"/s","type":"t"},'
                    '{"specversion":"1.0","id":"2","source":"/s","type":"t"}]',
                    "application/cloudevents-batch+json", {}),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_retry_gets_the_same_answer_and_publishes_nothing(gateway, pg, what):
    body, content_type, query = BODIES[what]
    first = post(gateway, body, "k", content_type, **query)
    published = count(pg)
    gateway.publish("between", "0")
    for _ in range(2):
        same_answer(first, post(gateway, body, "k", content_type, **query))
    assert count(pg) == published + 1
    post(gateway, body, "another", content_type, **query)
    assert count(pg) == 2 * published + 1


def test_a_subscriber_sees_a_repeated_event_once(gateway):
    with gateway.subscribe("c") as stream:
        for _ in range(3):
            post(gateway, "1", "k", channel="c")
        gateway.publish("c", "2")
        assert [stream.next_event().data for _ in range(2)] == ["1", "2"]


@pytest.mark.parametrize("body, query", [
    ('{"data":2}', {}), ('{"data":1,"channel":"x"}', {}), ('{"data":1,"type":"x"}', {}),
    ('[{"data":1},{"data":1}]', {}), ('{"data":1 }', {"channel": "events"})],
    ids=["data", "channel", "type", "count", "bytes"])
def test_a_key_used_for_other_events_is_422(gateway, pg, body, query):
    assert post(gateway, '{"data":1}', "k").status == 201
    problem = post(gateway, body, "k", **query).problem(422)
    assert "Idempotency-Key" in problem["detail"]
    assert count(pg) == 1
    assert post(gateway, '{"data":1}', "k").status == 200


def test_what_counts_are_the_events_and_not_their_form(gateway, pg):
    first = post(gateway, '{"data":[1, 2]}', "k")
    for body, content_type, query in (
            ('{ "type":"message", "data" : [1, 2] }', JSON, {}),
            ("[1, 2]", JSON, {"channel": "events"}),
            ("[1, 2]", "application/x+json", {"channel": "events", "type": "message"})):
        same_answer(first, post(gateway, body, "k", content_type, **query))
    many = post(gateway, '[{"data":[1, 2]}]', "k")
    assert many.status == 200 and many.json() == {"events": [first.json()]}
    assert count(pg) == 1


@pytest.mark.parametrize("key", ["", "a b", "ä", "k" * 256, "a\x7f"],
                         ids=["empty", "space", "not-ascii", "long", "control"])
def test_a_malformed_key_is_400(gateway, pg, key):
    headers = [("Idempotency-Key", key.encode().decode("latin-1"))]
    answer = gateway.post('{"data":1}', headers=headers)
    assert answer.status == 400, answer
    if "\x7f" not in key:
        assert "Idempotency-Key" in answer.problem(400)["detail"]
    assert count(pg) == 0


def test_two_keys_are_400(gateway, pg):
    headers = [("Idempotency-Key", "a"), ("idempotency-key", "a")]
    assert "two" in gateway.post('{"data":1}', headers=headers).problem(400)["detail"]
    assert count(pg) == 0


def test_a_key_may_be_any_255_visible_characters(gateway):
    for key in ("k" * 255, "".join(map(chr, range(0x21, 0x7f))), '"quoted"'):
        same_answer(post(gateway, "1", key, channel="c"), post(gateway, "1", key, channel="c"))


def test_white_space_around_a_key_is_none_of_it(gateway):
    same_answer(post(gateway, "1", "k", channel="c"), post(gateway, "1", " k\t ", channel="c"))


def test_a_refused_request_leaves_its_key_free(gateway, pg):
    pg.execute("ALTER TABLE gateway.events ADD CONSTRAINT no_poison CHECK (channel <> 'poison')")
    post(gateway, "1", "k", channel="poison").problem(400)
    assert post(gateway, "{", "k").status == 400
    assert post(gateway, "1", "k", channel="fine").status == 201


def test_ten_thousand_events_are_one_unit(gateway, pg):
    body = json.dumps([{"data": number} for number in range(10000)])
    first = post(gateway, body, "k")
    same_answer(first, post(gateway, body, "k"))
    ids = [int(event["id"]) for event in first.json()["events"]]
    assert ids == list(range(ids[0], ids[0] + 10000))
    assert count(pg) == 10000


def test_repeated_requests_are_counted(gateway):
    for _ in range(3):
        post(gateway, '[{"data":1},{"data":2}]', "k")
    figures = gateway.metrics()
    assert figures["pgsse_publish_repeated_requests_total"] == 2
    assert figures["pgsse_events_published_total"] == 2


# -- together -----------------------------------------------------------------------------


def in_threads(jobs):
    """Runs them all at once; what each returned, in order."""
    results = [None] * len(jobs)
    gate = threading.Barrier(len(jobs))

    def run(number, job):
        gate.wait(scaled(20))
        results[number] = job()

    threads = [threading.Thread(target=run, args=each) for each in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(scaled(60))
        assert not thread.is_alive(), "a client hangs"
    return results


def test_sixteen_clients_with_one_key_publish_once(pg, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    for turn in range(10):
        body = json.dumps([{"data": turn}, {"data": -turn}])
        answers = in_threads([lambda one=gateways[n % 2]: post(one, body, f"k{turn}")
                              for n in range(16)])
        assert collections.Counter(each.status for each in answers) == {201: 1, 200: 15}
        assert len({each.body for each in answers}) == 1
        assert count(pg) == 2 * (turn + 1)


def test_of_two_bodies_with_one_key_the_first_wins_everywhere(pg, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    for turn in range(10):
        answers = in_threads([lambda n=n: (n % 4 // 2, post(gateways[n % 2], str(n % 4 // 2),
                                                             f"k{turn}", channel=f"c{turn}"))
                              for n in range(16)])
        stored = [int(data) for _, _, data in pg.events(f"c{turn}")]
        assert len(stored) == 1
        for body, answer in answers:
            assert answer.status in ((200, 201) if body == stored[0] else (422,)), answer


def test_conflicts_spoil_no_neighbour(gateway, pg):
    post(gateway, "0", "taken", channel="taken")

    def client(number):
        statuses = []
        for turn in range(20):
            if (number + turn) % 7 == 0:
                statuses.append((422, post(gateway, "1", "taken", channel="taken").status))
            elif number % 2:
                statuses.append((201, gateway.post("1", channel=f"w{number}").status))
            else:
                statuses.append((201, post(gateway, "1", f"{number}.{turn}",
                                           channel=f"w{number}").status))
        return statuses

    answers = in_threads([lambda n=n: client(n) for n in range(24)])
    flat = [pair for mine in answers for pair in mine]
    assert all(wanted == status for wanted, status in flat), flat
    assert count(pg) == 1 + sum(wanted == 201 for wanted, _ in flat)


# -- when the first answer is lost --------------------------------------------------------


class Clients:
    """Clients that send each event under its own key until they have an answer: to any
    gateway that is there, again after any failure. What they were told, by key."""

    def __init__(self, gateways, workers):
        self.gateways = gateways
        self.stop = threading.Event()
        self.told = {}
        self.retries = 0
        self.wrong = []
        self.threads = [threading.Thread(target=self._run, args=(n,)) for n in range(workers)]
        for thread in self.threads:
            thread.start()

    def _run(self, worker):
        chance = random.Random(worker)
        number = 0
        while not self.stop.is_set():
            key = f"{worker}.{number}"
            self._send(key, json.dumps([{"data": key}, {"data": key}]), chance)
            number += 1

    def _send(self, key, body, chance):
        deadline = Deadline(60)
        while not deadline.passed():
            try:
                answer = post(chance.choice(self.gateways), body, key, timeout=10)
            except (OSError, Closed, AssertionError, TimeoutError):
                answer = None
            if answer is not None and answer.status in (200, 201):
                self.told[key] = [int(each["id"]) for each in answer.json()["events"]]
                return
            if answer is not None and answer.status != 503:
                self.wrong.append((key, answer))
                return
            self.retries += 1
            self.stop.wait(0.01)
        self.wrong.append((key, "no answer"))

    def finish(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(scaled(90))
            assert not thread.is_alive(), "a client hangs"
        assert not self.wrong, self.wrong[:5]
        return self.told


def each_once(pg, told):
    """Every key's two events are there once, under the numbers that its client was told."""
    stored = collections.defaultdict(list)
    for seq, key in pg.execute("SELECT seq, data #>> '{}' FROM gateway.events ORDER BY seq"):
        stored[key].append(seq)
    assert dict(stored) == told


def test_gateways_killed_at_random_publish_each_key_once(pg, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    clients = Clients(gateways, 12)
    chance = random.Random(7)
    for turn in range(8):
        done = len(clients.told)
        wait_until(lambda: len(clients.told) > done + 30, "the clients get on")
        time.sleep(chance.random() / 20)  # anywhere in a batch, not a wait for anything
        gateways[turn % 2].kill()
        gateways[turn % 2] = gateway_factory(pg)
    told = clients.finish()
    assert clients.retries > 0
    each_once(pg, told)


@pytest.mark.parametrize("how", ["crash", "stop"])
def test_postgresql_restarted_under_load_publishes_each_key_once(postgres, gateway_factory, how):
    pg = postgres.create_database(template="gateway_template")
    settings = {"limits.publish_time": "1s"}  # who waits is told so before long
    clients = Clients([gateway_factory(pg, settings), gateway_factory(pg, settings)], 8)
    for _ in range(3):
        done = len(clients.told)
        wait_until(lambda: len(clients.told) > done + 30, "the clients get on", 40)
        retries = clients.retries
        getattr(postgres, how)()
        wait_until(lambda: clients.retries > retries, "a client has to try again")
        postgres.start()
    each_once(pg, clients.finish())


def test_backends_killed_under_load_publish_each_key_once(pg, gateway_factory):
    clients = Clients([gateway_factory(pg), gateway_factory(pg)], 8)
    for _ in range(12):
        done = len(clients.told)
        wait_until(lambda: len(clients.told) > done + 10, "the clients get on")
        pg.cut_gateways()
    each_once(pg, clients.finish())


def test_a_key_is_known_after_a_restart_of_everything(postgres, gateway_factory):
    pg = postgres.create_database(template="gateway_template")
    gateway = gateway_factory(pg)
    first = post(gateway, '{"data":1}', "k")
    gateway.stop()
    postgres.stop()
    postgres.start()
    same_answer(first, post(gateway_factory(pg), '{"data":1}', "k"))


def test_a_client_that_hung_up_finds_its_event(gateway, pg):
    with pg.connect() as blocker, gateway.connection() as connection:
        blocker.execute("SELECT gateway.lock_order()")
        connection.send(build_request("POST", "/events", [
            ("Content-Type", JSON), ("Idempotency-Key", "k")], b'{"data":1}'))
        wait_until(lambda: gateway.metrics()["pgsse_publish_waiting_events"] == 1, "it waits")
    wait_until(lambda: count(pg) == 1, "it is committed")
    assert post(gateway, '{"data":1}', "k").status == 200


# -- pages of other origins ---------------------------------------------------------------


def test_a_preflight_allows_keys_and_cloudevents(pg, gateway_factory):
    gateway = gateway_factory(pg, {"http.cors_origins": "https://a.example"})

    def preflight(origin, asked):
        return gateway.request("OPTIONS", "/events", [
            ("Origin", origin), ("Access-Control-Request-Method", "POST"),
            ("Access-Control-Request-Headers", asked)])

    asked = ("ce-id,CE-Source, ce-specversion,ce-type,content-type,idempotency-key,x-other,"
             "ce-a_b,ce-")
    allowed = preflight("https://a.example", asked).headers.names_in("Access-Control-Allow-Headers")
    assert {"ce-id", "ce-source", "ce-specversion", "ce-type", "content-type",
            "idempotency-key"} <= allowed
    assert not {"x-other", "ce-a_b", "ce-"} & allowed
    assert "Access-Control-Allow-Headers" not in preflight("https://b.example", asked).headers
