"""What an idle subscriber costs in the server's process: bytes of PSS, and of RSS.

    python3 -m bench.memory [subscribers]

The server is looked at, then given subscribers that send what Chromium's EventSource sends,
one after the other; when all have had their first bytes and the figures have come to rest,
it is looked at again. What the kernel keeps for each socket is not the process's and does
not count: some kilobytes on both sides, the same for every server.
"""

import json
import re
import selectors
import socket
import sys
from pathlib import Path

from harness.waiting import wait_until

from .ground import ground
from .machine import raise_file_limit

# As Chromium 156 sent it, but for the names of the hosts and of the browser: a page that
# is not on this machine, in a browser with a window.
CHROME_HEADER = """\
GET {path} HTTP/1.1
Host: events.example.com
Connection: keep-alive
Pragma: no-cache
Cache-Control: no-cache
sec-ch-ua-platform: "Linux"
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
Chrome/156.0.0.0 Safari/537.36
Accept: text/event-stream
sec-ch-ua: "Not:A-Brand";v="8", "Chromium";v="156", "Google Chrome";v="156"
sec-ch-ua-mobile: ?0
Sec-Fetch-Site: same-origin
Sec-Fetch-Mode: cors
Sec-Fetch-Dest: empty
Referer: https://events.example.com/dashboard/orders/today
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: en-US,en;q=0.9

"""

# Connections on their way at the same time: fewer than a listening socket keeps waiting.
AT_ONCE = 64


def chrome_header(path):
    return CHROME_HEADER.format(path=path).replace("\n", "\r\n").encode()


def pss_bytes(pid, part=""):
    """`part`: only what is `_Anon`ymous in it, or in a `_File`."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(rf"^Pss{part}: +([0-9]+) kB", text, re.MULTILINE)[1]) * 1024


def rss_bytes(pid):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^VmRSS:\s+([0-9]+) kB", text, re.MULTILINE)[1]) * 1024


# What others on the machine do to libraries that they share with the server shows in its PSS.
REST_BYTES = 64 * 1024


def at_rest(pids):
    """(PSS, RSS) of the processes together, once they no longer change."""
    seen = []

    def rests():
        seen.append(sum(map(pss_bytes, pids)))
        return len(seen) >= 5 and max(seen[-5:]) - min(seen[-5:]) <= REST_BYTES

    wait_until(rests, "the server's memory is at rest", timeout=30, interval=0.1)
    return seen[-1], sum(map(rss_bytes, pids))


class Holder:
    """Subscribers that read nothing but the first bytes of their stream."""

    def __init__(self, address):
        self.address = address
        self.sockets = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        for connection in self.sockets:
            connection.close()
        self.sockets.clear()

    def connect(self, headers):
        """One for each header; they are there when each has had bytes of the body."""
        for at in range(0, len(headers), AT_ONCE):
            self._connect(headers[at:at + AT_ONCE])

    def _connect(self, headers):
        with selectors.DefaultSelector() as selector:
            for header in headers:
                connection = socket.create_connection(self.address, timeout=20)
                self.sockets.append(connection)
                connection.sendall(header)
                selector.register(connection, selectors.EVENT_READ, bytearray())
            while selector.get_map():
                ready = selector.select(20)
                if not ready:
                    raise TimeoutError("a subscriber got no answer within 20 s")
                for key, _ in ready:
                    self._read(selector, key)

    @staticmethod
    def _read(selector, key):
        piece = key.fileobj.recv(4096)
        key.data.extend(piece)
        if not piece or not key.data.startswith(b"HTTP/1.1 200"[:len(key.data)]):
            raise RuntimeError(f"not a stream: {bytes(key.data[:80])!r}")
        head, blank, body = key.data.partition(b"\r\n\r\n")
        if blank and (body or b"chunked" not in head):
            selector.unregister(key.fileobj)
            key.fileobj.setblocking(False)


def measure(pids, address, count=10000, path="/events?channel=c{}", channels=1):
    """Bytes for each of `count` idle subscribers of the server that these processes are;
    `{}` in the path is the channel's number."""
    raise_file_limit()
    headers = [chrome_header(path.format(number % channels)) for number in range(count)]
    with Holder(address) as holder:
        pss, rss = at_rest(pids)
        holder.connect(headers)
        pss_full, rss_full = at_rest(pids)
    return {
        "subscribers": count,
        "channels": channels,
        "request_bytes": max(map(len, headers)),
        "pss_bytes_per_subscriber": round((pss_full - pss) / count, 1),
        "rss_bytes_per_subscriber": round((rss_full - rss) / count, 1),
        "pss_bytes_before": pss,
        "pss_bytes_after": pss_full,
    }


def accounted_bytes(gateway, holder, headers):
    """What /metrics says that each of these subscribers takes."""
    before = gateway.connection_memory(len(holder.sockets))
    holder.connect(headers)
    return (gateway.connection_memory(len(holder.sockets)) - before) / len(headers)


def measure_gateway(gateway, count=10000, channels=1):
    """The same of a started gateway, with its own account beside it."""
    with Holder(gateway.address) as first:
        # What is made once, and not for each, is there before the first look.
        accounted = accounted_bytes(gateway, first, [chrome_header("/events?channel=c0")] * 50)
    gateway.wait_metric("pgsse_streams", 0)
    figures = measure([gateway.pid], gateway.address, count, channels=channels)
    return {**figures, "accounted_bytes_per_subscriber": accounted}


KEPT_REQUEST = b"""\
POST /events?channel=kept HTTP/1.1\r
Host: localhost\r
User-Agent: python-requests/2.28.1\r
Accept-Encoding: gzip, deflate\r
Accept: */*\r
Connection: keep-alive\r
Content-Type: application/json\r
Content-Length: 12\r
\r
{"number":1}"""


def measure_kept(gateway, count=1000):
    """Bytes for each connection that is kept open between two POSTs."""
    raise_file_limit()
    with Holder(gateway.address) as holder:
        pss, _ = at_rest([gateway.pid])
        for _ in range(count):
            connection = socket.create_connection(gateway.address, timeout=20)
            holder.sockets.append(connection)
            connection.sendall(KEPT_REQUEST)
            if not connection.recv(4096).startswith(b"HTTP/1.1 201 "):
                raise RuntimeError("a POST was not answered with 201")
        pss_full, _ = at_rest([gateway.pid])
    return {"connections": count,
            "pss_bytes_per_kept_connection": round((pss_full - pss) / count, 1)}


def main():
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10000
    for channels in (1, count):
        with ground() as (_, gateway):
            print(json.dumps(measure_gateway(gateway, count, channels)))
    with ground() as (_, gateway):
        print(json.dumps(measure_kept(gateway)))


if __name__ == "__main__":
    main()
