"""Deadlines, and waiting for a condition instead of for a time.

Sanitizer builds are several times slower: PGSSE_TEST_SLOWNESS multiplies every deadline.
Where it is not set, the program under test tells how it was built.
"""

import os
import time

from .tools import gateway_path


def _slowness():
    if "PGSSE_TEST_SLOWNESS" in os.environ:
        return float(os.environ["PGSSE_TEST_SLOWNESS"])
    try:
        program = gateway_path().read_bytes()
    except OSError:
        return 1.0
    return 5.0 if b"__tsan_init" in program else 3.0 if b"__asan_init" in program else 1.0


SLOWNESS = _slowness()

# Long enough that only a hang reaches it, short enough that a hang is reported soon.
PATIENCE = 30.0


def scaled(seconds):
    return seconds * SLOWNESS


class Deadline:
    """A moment by which something must have happened."""

    def __init__(self, seconds=PATIENCE):
        self.seconds = scaled(seconds)
        self._due = time.monotonic() + self.seconds

    def left(self):
        return max(0.0, self._due - time.monotonic())

    def passed(self):
        return self.left() == 0.0

    def left_or_raise(self, what):
        left = self.left()
        if left == 0.0:
            raise TimeoutError(f"{what}: not within {self.seconds:g} s")
        return left


def wait_until(condition, what, timeout=PATIENCE, interval=0.02):
    """Returns the first true value of condition(); TimeoutError names `what` and the last
    value seen."""
    deadline = Deadline(timeout)
    while True:
        value = condition()
        if value:
            return value
        if deadline.passed():
            raise TimeoutError(f"{what}: not within {deadline.seconds:g} s (last: {value!r})")
        time.sleep(interval)
