"""What one client handed out, as it tells it: one JSON text a line."""

import json
import threading


class Recording:
    def __init__(self):
        self._lock = threading.Lock()
        self.events = []     # (id, type, data), in the order they came
        self.gaps = []       # the same, of the gateway's own type `gap`
        self.checkpoints = []
        self.opens = 0
        self.errors = []
        self.dead = False    # it said that it will not come back
        self.newest = 0

    def line(self, line):
        if not line.strip():
            return
        what = json.loads(line)
        with self._lock:
            if "open" in what:
                self.opens += 1
            elif "error" in what:
                self.errors.append(what["error"])
                self.dead = self.dead or bool(what.get("dead"))
            else:
                self._event(tuple(what["event"]))

    def _event(self, event):
        kept = {"gap": self.gaps, "checkpoint": self.checkpoints}.get(event[1], self.events)
        kept.append(event)
        if event[0].isdigit():
            self.newest = max(self.newest, int(event[0]))

    def follow(self, pipe):
        """Reads the pipe to its end, in a thread of its own."""
        def run():
            with pipe:
                for line in pipe:
                    self.line(line)

        threading.Thread(target=run, daemon=True).start()
