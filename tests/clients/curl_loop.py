"""curl_loop.py URL - curl as a client: started anew whenever it ends, with the last id."""

import json
import re
import subprocess
import sys
import time


def tell(what):
    print(json.dumps(what), flush=True)


class Parser:
    """The lines of one connection (WHATWG HTML, 9.2.6); an event counts when it is whole."""

    def __init__(self):
        self.buffer = b""
        self.id, self.type, self.data = None, "", []
        self.retry = None

    def feed(self, data):
        """The events that are whole now: (id, type, data)."""
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        for line in lines:
            if not line:
                if self.data:
                    yield self.id, self.type or "message", "\n".join(self.data)
                self.type, self.data = "", []
                continue
            field, _, value = line.decode().partition(":")
            value = value[1:] if value.startswith(" ") else value
            if field == "id":
                self.id = value
            elif field == "event":
                self.type = value
            elif field == "data":
                self.data.append(value)
            elif field == "retry" and re.fullmatch("[0-9]+", value):
                self.retry = int(value)


def main(url):
    last_id, retry = None, 1000
    while True:
        command = ["curl", "-sN", "-H", "Accept: text/event-stream"]
        if last_id is not None:
            command += ["-H", f"Last-Event-ID: {last_id}"]
        with subprocess.Popen([*command, url], stdout=subprocess.PIPE, bufsize=0) as curl:
            parser = Parser()
            opened = False
            while data := curl.stdout.read(65536):
                if not opened:
                    tell({"open": True})
                    opened = True
                for event in parser.feed(data):
                    last_id = event[0]
                    tell({"event": event})
        tell({"error": f"curl ended with {curl.returncode}"})
        retry = parser.retry or retry
        time.sleep(retry / 1000)


main(sys.argv[1])
