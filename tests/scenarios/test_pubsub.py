"""Pub/sub between the processes of an application: all of them listen, or one of them does and
another when it dies; with their own messages or without. Two gateways; instances in Python and in
shell with curl, and both kinds die."""

import json
import re
import sys
import time
from pathlib import Path

import pytest

from harness.people import Curl, Program
from harness.waiting import wait_until

HERE = Path(__file__).parent
SINGLE = "channel=cache&group=leader&exclusive=true&max=100"


def tell(gateway, client, *numbers):
    """An instance tells the others that cache entries are stale."""
    for number in numbers:
        answer = gateway.post(json.dumps({"from": client, "stale": number}), channel="cache",
                              headers=[("X-Client-ID", client)])
        assert answer.status == 201, answer


class Instance(Program):
    """A process of the application, and what it has heard."""

    def messages(self):
        """(number, id) of each, in order."""
        found = (re.fullmatch(r"heard (\S+) (.*)", line) for line in self.lines())
        return [(json.loads(match[2])["stale"], match[1]) for match in found if match]

    def heard(self):
        return [number for number, _ in self.messages()]

    def wait_heard(self, number):
        wait_until(lambda: number in self.heard(), f"{self.log.name} hears {number}")

    def done(self):
        """What it has heard and was told that it is acknowledged."""
        acks = [line.split()[1] for line in self.lines() if line.startswith("204 ")]
        return [number for number, id in self.messages() if id in acks]


@pytest.fixture
def start(directory):
    """start(query, gateways) or start(None, gateways, name): an instance, in Python or in
    shell. One in Python goes on at the next gateway when the one it is at is gone."""
    instances = []

    def start(query, gateways, name=""):
        urls = [gateway.url for gateway in gateways]
        if query:
            command = [sys.executable, HERE / "http_listener.py", query, *urls]
        else:
            command = ["sh", HERE / "shell_listener.sh"]
        log = directory / f"instance{len(instances)}"
        instances.append(Instance(command, log, {"GATEWAY": urls[0], "NAME": name}))
        return instances[-1]

    yield start
    for instance in instances:
        instance.kill()


# -- all listen --------------------------------------------------------------------------------


def test_all_listen_with_and_without_their_own(two, start):
    """Also when a gateway dies: nobody misses anything, or hears it twice."""
    one, other = two
    hears_all = start("channel=cache", [one, other])
    web_1 = start("channel=cache&exclude_client=web-1", [one, other])
    web_2 = start("channel=cache&exclude_client=web-2", [other, one])
    for instance in (hears_all, web_1, web_2):
        instance.wait_line("checkpoint")
    with Curl(other.url + "/events?channel=cache&exclude_client=web-1") as onlooker:
        onlooker.until("event: checkpoint")
        tell(one, "web-1", 1, 3)
        tell(other, "web-2", 2, 4)
        web_1.wait_heard(4)
        one.kill()
        tell(other, "web-1", 5, 7)
        tell(other, "web-2", 6, 8)
        tell(other, "web-3", 9)
        for instance in (hears_all, web_1, web_2):
            instance.wait_heard(9)
        lines = onlooker.until('data: {"from": "web-3", "stale": 9}')
    assert hears_all.heard() == [1, 3, 2, 4, 5, 7, 6, 8, 9]
    assert web_1.heard() == [2, 4, 6, 8, 9]
    assert web_2.heard() == [1, 3, 5, 7, 9]
    assert not [line for line in lines if "web-1" in line]


# -- one listens -------------------------------------------------------------------------------


def take_over(what, kill, gateway, numbers, follower):
    """Kills the one that listens; what is told then is heard by the follower."""
    began = time.monotonic()
    kill()
    tell(gateway, "web-9", *numbers)
    wait_until(follower.heard, "another one listens")
    print(f"{what} is killed: the next one listens after {time.monotonic() - began:.2f} s")
    follower.wait_heard(numbers[-1])


def check_handover(first, second):
    """In order, and from the first that was not acknowledged on."""
    for instance in (first, second):
        assert instance.heard() == sorted(instance.heard())
    assert second.heard()[0] > first.done()[-1]
    assert set(first.done()).isdisjoint(second.heard())


def test_one_listens_with_its_own_and_another_when_it_or_its_gateway_is_killed(two, start):
    one, other = two
    first = start(SINGLE, [one, other])
    wait_until(lambda: one.metric("pgsse_groups_consumers") == 1, "it is there")
    tell(one, "web-1", *range(10))
    first.wait_heard(9)
    second = start(None, [other])
    wait_until(lambda: other.metric("pgsse_groups_consumers") == 1, "the second one waits")
    tell(other, "web-2", *range(10, 20))
    first.wait_heard(15)
    assert not second.heard()

    take_over("the process", first.kill, one, range(20, 30), second)
    third = start(SINGLE, [one])
    wait_until(lambda: one.metric("pgsse_groups_consumers") == 1, "the third one waits")
    tell(one, "web-3", *range(30, 40))
    second.wait_heard(35)
    assert not third.heard()

    take_over("its gateway", other.kill, one, range(40, 50), third)
    wait_until(lambda: 49 in third.done(), "all is acknowledged")
    check_handover(first, second)
    check_handover(second, third)
    assert {*first.heard(), *second.heard(), *third.heard()} == set(range(50))


def test_one_listens_without_its_own(two, start):
    """A group's events go to one, whoever published them: so exclude_client is refused, and the
    one that listens passes by what it has published itself."""
    one, other = two
    refusal = one.get(f"/events?{SINGLE}&exclude_client=web-1").problem(400)
    assert "exclude_client" in refusal["detail"]
    first = start(None, [one], "web-1")
    wait_until(lambda: one.metric("pgsse_groups_consumers") == 1, "it is there")
    for number in range(10):
        tell(two[number % 2], f"web-{number % 2 + 1}", number)
    first.wait_heard(9)
    second = start(None, [other], "web-2")
    wait_until(lambda: other.metric("pgsse_groups_consumers") == 1, "the second one waits")
    take_over("the process", first.kill, one, [10], second)
    for number in range(11, 20):
        tell(two[number % 2], f"web-{number % 2 + 1}", number)
    tell(one, "web-1", 20)
    second.wait_heard(20)
    assert first.heard() == [1, 3, 5, 7, 9]
    assert [number for number in second.heard() if number > 9] == [10, 12, 14, 16, 18, 20]


def test_whoever_leaves_in_peace_loses_nothing_and_has_nothing_done_twice(two, start):
    one, other = two
    everybody = start("channel=cache", [one, other])
    everybody.wait_line("checkpoint")
    first = start(SINGLE, [one, other])
    wait_until(lambda: one.metric("pgsse_groups_consumers") == 1, "it is there")
    tell(one, "web-1", *range(10))
    first.wait_heard(5)
    second = start(SINGLE, [other, one])
    wait_until(lambda: other.metric("pgsse_groups_consumers") == 1, "the second one waits")

    assert first.terminate() == 0
    tell(one, "web-1", *range(10, 20))
    second.wait_heard(19)
    assert first.heard() + second.heard() == list(range(20))

    # A gateway that is ended says goodbye: the one at it goes on at the other gateway.
    wait_until(lambda: 19 in second.done(), "it is acknowledged")
    other.stop()
    tell(one, "web-1", *range(20, 30))
    second.wait_heard(29)
    everybody.wait_heard(29)
    assert first.heard() + second.heard() == list(range(30))
    one.stop()
    assert everybody.heard() == list(range(30))
    assert everybody.terminate() == second.terminate() == 0
