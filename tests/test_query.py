"""The parameters of a request: what is wrong with them is named."""

import pytest

# Method, place, what it knows.
ENDPOINTS = {
    "subscribe": ("GET", "/events?", "channel, relay, type, exclude_client, last_event_id and last"),
    "consume": ("GET", "/events?group=g&",
                "channel, group, lease, max, max_attempts, last_event_id and exclusive"),
    "publish": ("POST", "/events?", "channel, type, wait and group"),
    "nack": ("POST", "/events/1.1.k3f90a2b7c1d/nack?group=g&", "group, delay and reason"),
    "remove": ("DELETE", "/groups?channel=c&group=g&", "group and channel"),
}


def ask(gateway, method, target):
    return gateway.request(method, target, body=b"1" if method == "POST" else None).problem(400)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_an_unknown_parameter_is_told_which_there_are(gateway, endpoint):
    method, place, known = ENDPOINTS[endpoint]

    detail = ask(gateway, method, place + "chanel=a")["detail"]
    assert detail == f'unknown parameter "chanel"; there are {known}'


def test_where_there_is_only_one_that_is_told(gateway):
    detail = ask(gateway, "GET", "/groups?group=a")["detail"]
    assert detail == 'unknown parameter "group"; there is only channel'


@pytest.mark.parametrize("method, target, what", [
    ("POST", "/events?type=a&type=b", "an event has one channel and one type"),
    ("POST", "/events?wait=1s&wait=2s&group=g", "there is one wait, and one group to wait for"),
    ("GET", "/events?group=g&group=h", "there are two groups"),
    ("POST", "/events/1.1.k3f90a2b7c1d/ack?group=g&group=g",
     'there are two of the parameter "group"'),
    ("DELETE", "/groups?channel=c&channel=&group=g", 'there are two of the parameter "channel"'),
])
def test_one_too_many_is_told(gateway, method, target, what):
    assert ask(gateway, method, target)["detail"] == what


@pytest.mark.parametrize("method, target, name", [
    ("POST", "/events/1.1.k3f90a2b7c1d/ack", "group"),
    ("GET", "/events/1/result", "group"),
    ("DELETE", "/groups?channel=c", "group"),
    ("DELETE", "/groups?group=g", "channel"),
])
def test_a_missing_one_is_named(gateway, method, target, name):
    assert ask(gateway, method, target)["detail"] == f"the parameter {name} is missing"


@pytest.mark.parametrize("query, first", [
    ("channel=%01&what=1", "channel"),
    ("what=1&channel=%01", "what"),
])
def test_of_several_that_are_wrong_the_first_is_told(gateway, query, first):
    detail = ask(gateway, "GET", f"/events?{query}")["detail"]
    assert first in detail.partition(";")[0]


def test_a_long_name_is_cut(gateway):
    detail = ask(gateway, "GET", f"/events?{'x' * 400}=1")["detail"]
    assert detail.startswith(f'unknown parameter "{"x" * 64}"; ')
