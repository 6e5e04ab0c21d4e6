"""by_hand.py URL - the tests' own strict reader as a client, over a socket of its own."""

import json
import sys
import time
from urllib.parse import urlsplit

from harness.sse import ProtocolError, Stream, StreamEnded


def tell(what):
    print(json.dumps(what), flush=True)


def follow(address, target, last_id):
    """One connection to its end; the last id, and how long to wait now, in ms."""
    with Stream(address, target=target, last_event_id=last_id, timeout=600) as stream:
        stream.keep_wire = False
        if stream.status != 200:
            raise ConnectionError(f"status {stream.status}")
        tell({"open": True})
        try:
            while True:
                event = stream.next_event(600)
                tell({"event": [event.id, event.type, event.data]})
        except StreamEnded as end:
            tell({"error": str(end)})
        return stream.last_id, stream.retries[-1] if stream.retries else None


def main(url):
    parts = urlsplit(url)
    address = (parts.hostname, parts.port)
    target = f"{parts.path}?{parts.query}"
    last_id, retry = None, 1000
    while True:
        try:
            last_id, said = follow(address, target, last_id)
            retry = said or retry
        except OSError as error:
            tell({"error": str(error)})
        except ProtocolError as error:
            # Cut off before there was an answer; any other is the gateway's mistake.
            if not str(error).startswith("closed before its head"):
                raise
            tell({"error": str(error)})
        time.sleep(retry / 1000)


main(sys.argv[1])
