"""What the processes of a run show each other: a few numbers in shared memory."""

import ctypes
from multiprocessing.sharedctypes import RawArray, RawValue

MOST_PROBES = 200
MOST_HANDS = 32
MOST_GROUPS = 2


class Board:
    """Each number is written by one party: the phase, `publishing` and `working` by the main
    process, `written[hand]` by the thread of that number, `jobs_done` by the workers, the rest
    by the subscribers."""

    def __init__(self, gateways):
        self.phase = RawValue(ctypes.c_int, 0)
        self.publishing = RawValue(ctypes.c_int, 1)
        self.working = RawValue(ctypes.c_int, 1)
        self.connected = RawValue(ctypes.c_int, 0)
        self.begun = RawValue(ctypes.c_int, 0)
        self.finished = RawValue(ctypes.c_int, 0)
        self.open = RawValue(ctypes.c_int, 0)
        self.frames = RawValue(ctypes.c_longlong, 0)
        self.resumes = RawValue(ctypes.c_longlong, 0)
        self.silences = RawValue(ctypes.c_longlong, 0)
        self.written = RawArray(ctypes.c_longlong, MOST_HANDS)   # events acknowledged
        self.unavailable = RawArray(ctypes.c_longlong, MOST_HANDS)  # POSTs answered 503
        # When (monotonic) probe number n was first seen through gateway g: [n * gateways + g]
        self.probes = RawArray(ctypes.c_double, MOST_PROBES * gateways)
        # When probe number n was acknowledged in group g: [n * MOST_GROUPS + g]
        self.jobs_done = RawArray(ctypes.c_double, MOST_PROBES * MOST_GROUPS)

    def events(self):
        return sum(self.written)

    def refusals(self):
        return sum(self.unavailable)


class Pace:
    """Holds a thread to so many events a second, counted from the begin: what an outage has
    held up is made good afterwards, at twice the pace."""

    def __init__(self, rate, board, clock, sleep):
        self._rate = rate
        self._board = board
        self._clock = clock
        self._sleep = sleep
        self._due = clock()

    def wait(self, count):
        """After `count` events. False when there is nothing more to be written."""
        now = self._clock()
        self._due += count / self._rate
        if self._due < now:
            self._due = max(self._due, now - 20)
            rest = count / self._rate / 2
        else:
            rest = self._due - now
        end = now + rest
        while self._board.publishing.value and self._clock() < end:
            self._sleep(min(0.1, max(0.0, end - self._clock())))
        return bool(self._board.publishing.value)
