"""Those who use the gateway in tests/scenarios, as programs of their own: somebody at psql,
somebody with curl, and processes that are killed like any other."""

import os
import signal
import subprocess

from .gateway import clean_environment
from .tools import die_with_parent, find_postgres_tool, find_tool
from .waiting import scaled, wait_until


class Psql:
    """Somebody at psql."""

    def __init__(self, dsn):
        self.dsn = dsn

    def __call__(self, script):
        done = subprocess.run([find_postgres_tool("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1",
                               self.dsn], input=script, text=True, capture_output=True,
                              timeout=scaled(60))
        assert done.returncode == 0, done.stderr
        return done.stdout


class Curl:
    """Somebody who looks on with curl: its lines, as they come."""

    def __init__(self, url):
        self.process = subprocess.Popen([find_tool("curl"), "-sN", url], text=True,
                                        stdout=subprocess.PIPE, preexec_fn=die_with_parent())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def until(self, line):
        return self._until(lambda got: got == line)

    def next_data(self):
        """The first line of the next event's data."""
        return self._until(lambda got: got.startswith("data: "))[-1][6:]

    def _until(self, wanted):
        lines = []
        for got in self.process.stdout:
            lines.append(got.rstrip("\n"))
            if wanted(lines[-1]):
                return lines
        raise AssertionError(f"curl ended; {lines[-10:]}")


class Program:
    """A program with a log of its own, and with all that it starts: `kill` is kill -9 for
    everything of it, as when its machine loses power."""

    def __init__(self, command, log, env=None):
        self.log = log
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, env=clean_environment(log.parent, env), start_new_session=True,
                preexec_fn=die_with_parent())

    def lines(self):
        """What it has said so far, in whole lines."""
        return self.log.read_text(errors="replace").rpartition("\n")[0].splitlines()

    def wait_line(self, wanted):
        """Until it has said that."""
        wait_until(lambda: wanted in self.lines(), f"{wanted!r} in {self.log.name}")

    def running(self):
        return self.process.poll() is None

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()

    def terminate(self):
        """Asks it to leave; the status it leaves with."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(scaled(30))
