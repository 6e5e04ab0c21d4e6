"""The programs in C beside this file, run and listened to: each prints one line of JSON."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time

from harness.tools import die_with_parent, gateway_path


# All subscribers of one program are connected within that.
CONNECT_SECONDS = 90


class NotMeasured(Exception):
    """Why there is no figure."""


def program(name):
    """build/bench/NAME."""
    path = gateway_path().resolve().parent / "bench" / name
    if not path.exists():
        raise NotMeasured(f"there is no build/bench/{name}")
    return path


def end(process):
    """It is asked to end, and then there is an end of it and of what it started, which may have outlived
    it. It has a process group of its own."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Program:
    """One of them, running; `with` ends it."""

    def __init__(self, name, *arguments, env=None):
        self.name = name
        self.command = [str(program(name)), *map(str, arguments)]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True, env={**os.environ, **(env or {})},
            preexec_fn=die_with_parent(signal.SIGTERM))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        end(self.process)

    def await_word(self, word, timeout):
        """It says so and waits for go(), or has ended, as result() will tell."""
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            raise self.complain(f"{self.name} was not {word} within {timeout:.0f} s")
        self.process.stdout.readline()

    def go(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()

    def complain(self, why):
        say(f"failed: {' '.join([self.name, *self.command[1:]])}")
        return NotMeasured(why)

    def result(self, timeout):
        """What the program measured. Whatever it complains about ends the row."""
        try:
            output, complaint = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise self.complain(f"{self.name} did not end within {timeout:.0f} s") from None
        if self.process.returncode != 0:
            why = "; ".join(complaint.split("\n")[:5]).strip("; ")
            raise self.complain(why or f"{self.name} ended with {self.process.returncode}")
        try:
            return json.loads(output.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise self.complain(f"{self.name} printed no JSON: {output[-200:]!r}") from None


def run(name, *arguments, timeout, env=None):
    """What the program measured."""
    with Program(name, *arguments, env=env) as started:
        return started.result(timeout)


def run_together(commands, timeout):
    """{key: (program's name, arguments)}, of programs that take --hold: all begin when the last of
    them is ready, and stay until the last of them is done. {key: what it measured, or the
    problem}"""
    problems = {}
    with contextlib.ExitStack() as stack:
        started = {key: stack.enter_context(Program(name, *arguments, "--hold"))
                   for key, (name, arguments) in commands.items()}

        def each(do):
            found = {}
            for key, one in started.items():
                if key in problems:
                    continue
                try:
                    found[key] = do(one)
                except NotMeasured as problem:
                    problems[key] = problem
            return found

        each(lambda one: one.await_word("ready", CONNECT_SECONDS))
        each(Program.go)
        each(lambda one: one.await_word("done", timeout))
        return each(lambda one: one.result(timeout)) | problems


_begin = time.monotonic()


def say(text):
    """A line of progress: a person waits."""
    seconds = int(time.monotonic() - _begin)
    print(f"{seconds // 60:3}:{seconds % 60:02} {text}", file=sys.stderr, flush=True)
