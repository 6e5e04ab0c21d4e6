"""The programs in C beside this file, run and listened to: each prints one line of JSON."""

import json
import os
import signal
import subprocess
import sys
import time

from harness.tools import die_with_parent, gateway_path


class NotMeasured(Exception):
    """Why there is no figure."""


def program(name):
    """build/bench/NAME."""
    path = gateway_path().resolve().parent / "bench" / name
    if not path.exists():
        raise NotMeasured(f"there is no build/bench/{name}")
    return path


def end(process):
    """It is asked to end, and then there is an end of it and of what it started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(name, *arguments, timeout, env=None):
    """What the program measured. Whatever it complains about ends the row."""
    command = [str(program(name)), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True,
                               env={**os.environ, **(env or {})},
                               preexec_fn=die_with_parent(signal.SIGTERM))
    try:
        output, complaint = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        say(f"no end: {' '.join([name, *command[1:]])}")
        raise NotMeasured(f"{name} did not end within {timeout:.0f} s") from None
    finally:
        end(process)
    if process.returncode != 0:
        say(f"failed: {' '.join([name, *command[1:]])}")
        why = "; ".join(complaint.split("\n")[:5]).strip("; ")
        raise NotMeasured(why or f"{name} ended with status {process.returncode}")
    try:
        return json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise NotMeasured(f"{name} printed no JSON: {output[-200:]!r}") from None


_begin = time.monotonic()


def say(text):
    """A line of progress: a person waits."""
    seconds = int(time.monotonic() - _begin)
    print(f"{seconds // 60:3}:{seconds % 60:02} {text}", file=sys.stderr, flush=True)
