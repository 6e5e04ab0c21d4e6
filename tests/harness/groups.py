"""Consumers of a group, and what they say."""

import re
from urllib.parse import quote

LEASE = re.compile(r"[0-9a-z]{12}")


def consume(gateway, channel="jobs", group="workers", headers=(), started=True, **query):
    parameters = [("group", group), *((name, str(value)) for name, value in query.items())]
    return gateway.subscribe(channel, parameters=parameters, headers=headers, started=started)


def act(gateway, what, delivery, group="workers", body=b"", **query):
    parameters = "&".join(f"{name}={quote(str(value), safe='')}"
                          for name, value in {"group": group, **query}.items())
    return gateway.request("POST", f"/events/{delivery}/{what}?{parameters}", body=body)


def ack(gateway, delivery, group="workers", result=None):
    return act(gateway, "ack", delivery, group, result.encode() if result is not None else b"")


def nack(gateway, delivery, group="workers", **query):
    return act(gateway, "nack", delivery, group, **query)


def parts(delivery):
    event, attempt, lease = delivery.split(".")
    assert LEASE.fullmatch(lease)
    return event, int(attempt)
