"""A call to another service: an application needs thumbnails, and a service at the other gateway
makes them, in shell with curl. Its callers learn that it was done, and with what result; whatever
cannot be done is put aside with the reason, and holds up nobody."""

import json
import subprocess
import threading
from pathlib import Path

import pytest

from harness.people import Curl, Program, Psql
from harness.raw_http import Closed
from harness.tools import find_tool
from harness.waiting import scaled, wait_until

HERE = Path(__file__).parent
TARGET = "/events?channel=pictures&group=thumbnails"


def picture(name):
    return json.dumps({"picture": f"{name}.png"})


def call(gateway, data, wait="60s", key=None):
    """A caller in Python; the answer."""
    headers = [("Content-Type", "application/json")]
    if key:
        headers.append(("Idempotency-Key", key))
    return gateway.request("POST", f"{TARGET}&wait={wait}", headers, data.encode(), timeout=70)


def curl(gateway, data):
    """A caller with curl, as the README has it; what it prints."""
    done = subprocess.run([find_tool("curl"), "-s", "-H", "Content-Type: application/json",
                           "-d", data, f"{gateway.url}{TARGET}&wait=60s"], text=True,
                          capture_output=True, timeout=scaled(70))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Later(threading.Thread):
    """A call that somebody waits for, while others go on. Its answer is None if the gateway is
    gone before there is one."""

    def __init__(self, *arguments, **options):
        super().__init__(daemon=True)
        self.arguments, self.options = arguments, options
        self.start()

    def run(self):
        try:
            self.answer = call(*self.arguments, **self.options)
        except (Closed, ConnectionError):
            self.answer = None

    def wait(self):
        self.join(scaled(70))
        return self.answer


@pytest.fixture
def service(directory):
    """service(gateway): the other service is started there. One at a time."""
    programs = []

    def start(gateway):
        program = Program(["sh", HERE / "call_worker.sh"], directory / f"service{len(programs)}",
                          {"GATEWAY": gateway.url})
        programs.append(program)
        gateway.wait_metric("pgsse_groups_consumers", 1)
        return program

    yield start
    for program in programs:
        program.kill()


def test_a_call_is_answered_with_its_result_by_a_service_at_another_gateway(two, service):
    one, other = two
    at_other = service(other)
    answer = call(one, picture("cat"))
    assert answer.status == 200
    event = answer.json()["id"]
    assert answer.json() == {"id": event, "channel": "pictures", "type": "message",
                             "state": "acknowledged", "result": {"thumbnail": "cat-64.png"}}
    assert curl(one, picture("dog"))["result"] == {"thumbnail": "dog-64.png"}
    assert at_other.lines() == ["made cat", "made dog"]
    later = other.get(f"/events/{event}/result?group=thumbnails")
    assert later.status == 200 and later.json()["result"] == {"thumbnail": "cat-64.png"}


def test_a_malformed_call_in_between_is_put_aside_and_harms_no_other(pg, gateway_factory, service):
    settings = {"channels.relay": "pictures"}
    one, other = gateway_factory(pg, settings), gateway_factory(pg, settings)
    at_other = service(other)
    with Curl(one.url + "/events?channel=pictures.dead") as dead:
        dead.until("event: checkpoint")
        before, malformed, after = (Later(one, data) for data in
                                    (picture("before"), '{"pictures": [1]}', picture("after")))
        assert before.wait().json()["result"] == {"thumbnail": "before-64.png"}
        assert after.wait().json()["result"] == {"thumbnail": "after-64.png"}

        # Twice it was given back; its caller is told that it is not going to be done.
        answer = malformed.wait()
        assert answer.status == 202 and answer.json()["state"] == "dead"
        event = answer.json()["id"]
        assert json.loads(dead.next_data()) == {
            "id": event, "channel": "pictures", "group": "thumbnails", "type": "message",
            "attempts": 2, "reason": "not a picture", "data": {"pictures": [1]}}
        assert one.get(answer.headers["Location"]).json()["state"] == "dead"

    # What is not JSON does not get so far; and one that NOTIFYs as in the old days is heard by
    # those who listen, and is no business of the group.
    assert call(one, '{"picture": ').problem(400)
    psql = Psql(pg.dsn)
    with one.subscribe("pictures") as listener:
        listener.wait_checkpoint()
        psql("""NOTIFY pictures, '{"picture": ';""")
        assert listener.next_event().data == '{"picture": '
    psql("""SELECT gateway.publish('pictures', '{"picture": "sql.png"}')""")
    assert curl(one, picture("last"))["result"] == {"thumbnail": "last-64.png"}
    lines = at_other.lines()
    assert sorted(lines) == sorted(["made before", "made after", "made sql", "made last"]
                                   + 2 * ['refused {"pictures": [1]}'])
    assert lines[-2:] == ["made sql", "made last"]


def test_a_caller_whose_time_is_over_asks_later(two, service):
    one, other = two
    service(other).kill()
    other.wait_metric("pgsse_groups_consumers", 0)
    answer = call(one, picture("owl"), wait="200ms")
    assert answer.status == 202 and answer.json()["state"] == "waiting"
    place = answer.headers["Location"]
    assert place == f"/events/{answer.json()['id']}/result?group=thumbnails"
    assert other.get(place).status == 202

    at_one = service(one)
    later = wait_until(lambda: (found := other.get(place)).status == 200 and found,
                       "the result is there")
    assert later.json()["result"] == {"thumbnail": "owl-64.png"}
    assert at_one.lines() == ["made owl"]


def test_a_call_that_is_sent_again_is_done_once_and_answered_alike(pg, two, service):
    one, other = two
    service(other).kill()
    other.wait_metric("pgsse_groups_consumers", 0)
    # The caller is in a hurry; its gateway dies while it waits; it asks again at the other one, and
    # so does somebody else with the same key.
    assert call(one, picture("fox"), wait="200ms", key="fox").status == 202
    cut_off = Later(one, picture("fox"), key="fox")
    one.wait_metric("pgsse_groups_waits", 1)
    one.kill()
    assert cut_off.wait() is None
    calls = [Later(other, picture("fox"), key="fox") for _ in range(2)]
    other.wait_metric("pgsse_groups_waits", 2)

    at_other = service(other)
    answers = [call.wait() for call in calls] + [call(other, picture("fox"), key="fox")]
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert answers[0].json()["result"] == {"thumbnail": "fox-64.png"}
    assert at_other.lines() == ["made fox"]
    assert pg.value("SELECT count(*) FROM gateway.events") == 1
    assert call(other, picture("wolf"), key="fox").problem(422)
