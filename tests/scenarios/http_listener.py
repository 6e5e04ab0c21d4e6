"""An instance of an application that listens by HTTP, with nothing but Python.

    http_listener.py QUERY URL...

Says a line for each message, `heard ID DATA`, and comes back with its last id, to the next of
the gateways, when a stream ends. With `group=` in QUERY it acknowledges what it has heard, and
says what was answered. SIGTERM: it finishes the message in hand, and leaves.
"""

import http.client
import signal
import sys
import time
import urllib.error
from urllib.request import Request, urlopen


def frames(url, last_id=None):
    """(id, type, data) of each frame of one stream, until it ends."""
    request = Request(url, headers={"Last-Event-ID": last_id} if last_id else {})
    id, type, data = None, "message", []
    with urlopen(request) as stream:
        for line in stream:
            line = line.decode().rstrip("\n")
            if line.startswith("id: "):
                id = line[4:]
            elif line.startswith("event: "):
                type = line[7:]
            elif line.startswith("data:"):
                data.append(line[6:])
            elif not line and data:
                yield id, type, "\n".join(data)
                type, data = "message", []


def everything(query, urls):
    """The frames of one stream after the other, for ever; (url, id, type, data)."""
    last_id = None
    while True:
        for url in urls:
            try:
                for last_id, type, data in frames(f"{url}/events?{query}",
                                                  None if "group=" in query else last_id):
                    yield url, last_id, type, data
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.1)


def act(url, delivery, what, group):
    """What is answered to an `ack` or `nack`: a status, or `gone` if there is nobody to ask."""
    try:
        return urlopen(f"{url}/events/{delivery}/{what}?group={group}", b"").status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return "gone"


class Leave:
    """SIGTERM ends the program at once while it waits, and between two messages otherwise."""

    def __init__(self):
        self.busy = self.wanted = False
        signal.signal(signal.SIGTERM, self.on_signal)

    def on_signal(self, *_):
        self.wanted = True
        if not self.busy:
            sys.exit(0)

    def __enter__(self):
        self.busy = True

    def __exit__(self, *_):
        self.busy = False
        if self.wanted:
            sys.exit(0)


def main(query, *urls):
    leave = Leave()
    group = query.partition("group=")[2].partition("&")[0]
    for url, id, type, data in everything(query, urls):
        with leave:
            if type == "checkpoint":
                print("checkpoint", flush=True)
                continue
            print("heard", id, data, flush=True)
            if group:
                print(act(url, id, "ack", group), id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
