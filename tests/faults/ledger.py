"""What the publishers know about what they have written.

An entry is one transaction or one request, which is atomic: all of its events or none. It is
noted before anything is sent, as UNKNOWN, and settled when the answer is there.
"""

UNKNOWN = "unknown"      # no answer: may be there or not
COMMITTED = "committed"  # acknowledged: must be there
RELAXED = "relaxed"      # acknowledged, but with synchronous_commit off: a crash may take it
ABORTED = "aborted"      # rolled back or refused: must not be there


class Entry:
    __slots__ = ("writer", "tx", "count", "outcome", "first_id", "last_id")

    def __init__(self, writer, tx, count):
        self.writer = writer
        self.tx = tx
        self.count = count
        self.outcome = UNKNOWN
        self.first_id = self.last_id = None  # as the acknowledgement said, if it did


class Pen:
    """Signs what one writer writes, one entry after the other."""

    def __init__(self, name, entries):
        self._base = name
        self._entries = entries
        self._doubts = 0
        self._tx = 0

    def entry(self, count=0):
        writer = f"{self._base}.{self._doubts}" if self._doubts else self._base
        self._tx += 1
        entry = Entry(writer, self._tx, count)
        self._entries.append(entry)
        return entry

    def doubt(self):
        """The last entry may still be committed, after what is written next: nothing can be
        said about the order between the two, so another name signs from here on."""
        self._doubts += 1
