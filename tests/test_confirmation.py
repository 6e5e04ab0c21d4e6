"""POST ?wait=: answered when a group has acknowledged the event, on whichever gateway."""

import json
import threading
from urllib.parse import quote

import pytest

from harness.groups import ack, consume, nack, parts
from harness.waiting import wait_until


class Call(threading.Thread):
    """A POST that waits, while the test goes on."""

    def __init__(self, gateway, data='{"n":1}', wait="10s", group="workers", channel="jobs",
                 headers=(), body=None):
        super().__init__(daemon=True)
        self.gateway = gateway
        self.target = f"/events?channel={channel}&wait={wait}&group={quote(group, safe='')}"
        self.body = data.encode()
        self.headers = [("Content-Type", "application/json"), *headers]
        self.response = None
        self.start()

    def run(self):
        self.response = self.gateway.request("POST", self.target, self.headers, self.body,
                                             timeout=70)

    def answer(self):
        self.join(60)
        assert self.response is not None, "not answered"
        return self.response


def test_the_answer_comes_with_the_acknowledgement_and_its_result(two):
    for caller, worker in ((0, 0), (0, 1)):
        with consume(two[worker]) as stream:
            call = Call(two[caller])
            got = stream.next_event()
            assert ack(two[1], got.id, result='{"sum": 1.0,  "sum":2}').status == 204
            answer = call.answer()
            event = parts(got.id)[0]
            assert answer.status == 200
            assert answer.text == (f'{{"id":"{event}","channel":"jobs","type":"message",'
                                   '"state":"acknowledged","result":{"sum": 1.0,  "sum":2}}\n')


def test_an_acknowledgement_without_a_result_is_null(gateway):
    with consume(gateway) as worker:
        call = Call(gateway)
        ack(gateway, worker.next_event().id)
        assert call.answer().json()["result"] is None


def test_one_who_acknowledges_by_sql_is_heard(gateway, pg):
    pg.execute("SELECT * FROM gateway.claim('jobs', 'workers')")
    call = Call(gateway)
    rows = wait_until(lambda: pg.execute("SELECT id FROM gateway.claim('jobs', 'workers')"),
                      "it is claimed")
    pg.execute("SELECT gateway.ack(%s, 'workers', '[1]')", (rows[0][0],))
    assert call.answer().json()["result"] == [1]


def test_when_the_time_is_over_the_event_stands_and_can_be_asked_for(gateway):
    group = "a group/ä"
    with consume(gateway, group=group) as worker:
        call = Call(gateway, wait="200ms", group=group)
        got = worker.next_event()
        answer = call.answer()
        event = parts(got.id)[0]
        assert answer.status == 202
        assert answer.json() == {"id": event, "channel": "jobs", "type": "message",
                                 "state": "waiting"}
        place = answer.headers["Location"]
        assert place == f"/events/{event}/result?group=a%20group%2F%C3%A4"
        later = gateway.get(place)
        assert later.status == 202
        assert later.json() == {"id": event, "group": group, "state": "delivered", "attempt": 1,
                                "acked_at": None, "result": None}
        assert ack(gateway, got.id, group, '"done"').status == 204
        later = gateway.get(place)
        assert later.status == 200
        assert later.json()["state"] == "acknowledged" and later.json()["result"] == "done"
        assert gateway.get(f"/events/{event}").status == 200


def test_without_a_group_there_is_nothing_to_hear(gateway):
    answer = Call(gateway, wait="100ms", group="nobody").answer()
    assert answer.status == 202
    assert gateway.get(answer.headers["Location"]).problem(404)


def test_a_dead_event_is_answered_at_once(gateway):
    with consume(gateway, max_attempts=1) as worker:
        call = Call(gateway, wait="60s")
        nack(gateway, worker.next_event().id, reason="no")
        answer = call.answer()
        assert answer.status == 202 and answer.json()["state"] == "dead"
        later = gateway.get(answer.headers["Location"])
        assert later.status == 200 and later.json()["state"] == "dead"


def test_a_call_that_is_sent_again_gets_the_first_ones_result(gateway):
    key = [("Idempotency-Key", "k")]
    with consume(gateway) as worker:
        call = Call(gateway, headers=key)
        ack(gateway, worker.next_event().id, result="7")
        first = call.answer()
        again = Call(gateway, headers=key).answer()
        assert (first.status, first.body) == (200, again.body)


def test_those_who_wait_cost_no_thread_and_no_connection(gateway, pg):
    with consume(gateway, max=1000) as worker:
        def cost():
            return (pg.value("SELECT count(*) FROM pg_stat_activity WHERE datname ="
                             " current_database() AND backend_type = 'client backend'"),
                    len(gateway._stacks()))
        gateway.get("/groups")
        before = cost()
        calls = [Call(gateway, str(n), wait="30s") for n in range(60)]
        events = worker.take(60)
        assert gateway.metric("pgsse_groups_waits") == 60
        assert cost() <= before
        for event in events:
            ack(gateway, event.id, result=event.data)
        for n, call in enumerate(calls):
            assert call.answer().json()["result"] == n
    gateway.wait_metric("pgsse_groups_waits", 0)
    wait_until(lambda: pg.value("SELECT count(*) FROM gateway.waits") == 0, "no row is left")


def test_there_are_so_many_waits_and_no_more(pg, gateway_factory):
    gateway = gateway_factory(pg, {"limits.waits": "1"})
    first = Call(gateway, wait="60s")
    gateway.wait_metric("pgsse_groups_waits", 1)
    assert Call(gateway).answer().problem(503)
    assert pg.value("SELECT count(*) FROM gateway.events") <= 1
    gateway.terminate()
    assert first.answer().status == 202


def test_a_restart_of_the_database_loses_no_answer(postgres, gateway_factory):
    database = postgres.create_database(template="gateway_template")
    gateway = gateway_factory(database)
    with consume(gateway) as worker:
        call = Call(gateway, wait="60s")
        got = worker.next_event()
        gateway.wait_metric("pgsse_groups_waits", 1)
        postgres.stop()
        postgres.start()
        wait_until(lambda: ack(gateway, got.id, result="1").status in (204, 409), "it is taken")
        assert call.answer().json()["result"] == 1


@pytest.mark.parametrize("query", [
    "wait=10s", "group=workers", "wait=61s&group=w", "wait=0&group=w", "wait=soon&group=w",
    "wait=10&group=w", "wait=1s&group=", "wait=1s&group=a%01", "wait=1s&wait=2s&group=w",
    "wait=1s&group=w&group=x"])
def test_a_bad_wait_is_400(gateway, pg, query):
    response = gateway.request("POST", f"/events?channel=c&{query}",
                               [("Content-Type", "application/json")], b"1")
    assert response.problem(400)
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


def test_only_one_event_can_be_waited_for(gateway, pg):
    for body in (b'[{"data":1}]', b'[{"data":1},{"data":2}]'):
        assert gateway.request("POST", "/events?wait=1s&group=w",
                               [("Content-Type", "application/json")], body).problem(400)
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


def test_a_result_that_is_not_there_is_404(gateway):
    event = gateway.publish("jobs", "1")
    assert gateway.get(f"/events/{event}/result?group=w").problem(404)
    assert gateway.get("/events/x/result?group=w").problem(404)
    assert gateway.get(f"/events/{event}/result").problem(400)
    with consume(gateway, group="w", last_event_id="earliest", max=1) as worker:
        worker.next_event()
        second = gateway.publish("jobs", "2")
        waiting = gateway.get(f"/events/{second}/result?group=w")
        assert waiting.status == 202 and json.loads(waiting.text)["state"] == "waiting"
