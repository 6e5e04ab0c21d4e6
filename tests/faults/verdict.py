"""The comparison: the table against what was seen, and against what was acknowledged."""

import array
import bisect
import re
import subprocess
import zlib

from harness.tools import find_tool

from .ledger import ABORTED, COMMITTED, UNKNOWN
from .traffic import TOKEN, matches

COUNTS = ("lost", "doubled", "reordered", "phantom", "absent", "gaps")

_ESCAPE = re.compile(rb"\\(.)", re.S)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\"}


def _unescape(field):
    """COPY's text format, as far as JSON text needs it."""
    if b"\\" not in field:
        return field
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), field)


def frame_of(seq, type, data):
    """The frame that every subscriber must get for this row."""
    lines = re.split(rb"\r\n|\r|\n", data) if b"\n" in data or b"\r" in data else (data,)
    event = b"" if type == b"message" else b"event: " + type + b"\n"
    return b"id: " + seq + b"\n" + event + b"\n".join([b"data: " + line for line in lines])


class Rows:
    """The table of events: numbered rows in their order, as ids, checksums and tokens."""

    def __init__(self):
        self.ids = array.array("q")
        self.sums = array.array("I")
        self.kinds = []    # (channel, type)
        self.tokens = []   # (writer, tx, index, count), or None for the checker's own
        self.unnumbered = []  # tokens of rows without a number
        self._chosen = {}

    @classmethod
    def read(cls, dsn):
        rows = cls()
        query = ("COPY (SELECT coalesce(seq, 0), channel, type, data FROM gateway.events"
                 " ORDER BY seq NULLS LAST) TO STDOUT")
        text = subprocess.run([find_tool("psql"), "-X", "-q", "-d", dsn, "-c", query],
                              check=True, capture_output=True, timeout=120).stdout
        for line in text.splitlines():
            seq, channel, type, data = line.split(b"\t")
            rows.add(seq, channel, type, _unescape(data))
        return rows

    def add(self, seq, channel, type, data):
        found = TOKEN.match(data)
        token = found and (found[1].decode(), int(found[2]), int(found[3]), int(found[4]))
        if seq == b"0":
            self.unnumbered.append(token)
            return
        self.ids.append(int(seq))
        self.sums.append(zlib.crc32(frame_of(seq, type, data)))
        self.kinds.append((channel.decode(), type.decode()))
        self.tokens.append(token)

    def chosen(self, channels, types):
        """(ids, sums) of the rows that a subscriber has asked for."""
        key = (tuple(channels), tuple(types))
        if key not in self._chosen:
            wanted = {kind: any(matches(pattern, kind[0]) for pattern in channels)
                      and (not types or kind[1] in types) for kind in set(self.kinds)}
            ids, sums = array.array("q"), array.array("I")
            for index, kind in enumerate(self.kinds):
                if wanted[kind]:
                    ids.append(self.ids[index])
                    sums.append(self.sums[index])
            self._chosen[key] = ids, sums
        return self._chosen[key]


class Verdict:
    """`exact`: nobody may be told `gap`, because nothing that was committed may be lost."""

    def __init__(self, exact=True):
        self.exact = exact
        self.counts = dict.fromkeys(COUNTS, 0)
        self.examples = []
        self.lost_by_postgres = 0

    def count(self, what, number, example):
        if number:
            self.counts[what] += number
            if len(self.examples) < 12 and (self.exact or what != "gaps"):
                self.examples.append(f"{what}: {number} - {example}")

    def clean(self):
        return not any(number for what, number in self.counts.items()
                       if self.exact or what != "gaps")

    def add(self, other):
        for what, number in other.counts.items():
            self.counts[what] += number
        self.examples = (self.examples + other.examples)[:12]


# -- the table against the ledger ---------------------------------------------------------


def judge_table(verdict, rows, begin_id, entries, former=()):
    """`former`: the rows of primaries that were lost, if their loss is PostgreSQL's own."""
    known = {(entry.writer, entry.tx): entry for entry in entries}
    found = {}
    last_of = {}
    verdict.count("lost", len(rows.unnumbered), "rows that were never numbered")
    for position in range(bisect.bisect_left(rows.ids, begin_id), len(rows.ids)):
        token = rows.tokens[position]
        if token is None:
            continue
        writer, tx, index, _ = token
        entry = known.get((writer, tx))
        if entry is None or entry.outcome == ABORTED:
            verdict.count("phantom", 1, f"{token} was never committed")
            continue
        places = found.setdefault((writer, tx), {})
        if index in places:
            verdict.count("doubled", 1, f"{token} stands in the table twice")
        places[index] = rows.ids[position]
        if (tx, index) < last_of.get(writer, (0, 0)):
            verdict.count("reordered", 1, f"{token} comes after {last_of[writer]}")
        last_of[writer] = (tx, index)
    gone = {token[:2] for source in former for token in [*source.tokens, *source.unnumbered]
            if token}
    for key, entry in known.items():
        _judge_entry(verdict, entry, found.get(key, {}), key in gone)


def _judge_entry(verdict, entry, places, may_be_gone):
    name = f"{entry.writer}/{entry.tx}"
    missing = entry.count - len(places)
    if places and missing:
        verdict.count("lost", missing, f"of {name} only {len(places)} are there: torn")
    elif entry.outcome == COMMITTED and missing:
        if may_be_gone:
            verdict.lost_by_postgres += missing
        else:
            verdict.count("absent", missing, f"{name} was acknowledged")
    elif entry.outcome == COMMITTED and entry.first_id is not None:
        said = entry.first_id, entry.last_id
        if said != (places[0], places[entry.count - 1]) and not may_be_gone:
            verdict.count("absent", entry.count, f"{name} was acknowledged as {said}")
    assert entry.outcome in (UNKNOWN, COMMITTED, ABORTED, "relaxed")


# -- the table against a subscriber -------------------------------------------------------


def judge_subscriber(verdict, rows, begin_id, seen, former=()):
    """What was seen before a `gap` must be what one of the servers had, which may have been
    lost since; what was seen last must be what there is."""
    name = f"{seen.name} of {','.join(seen.channels)}"
    gaps = len(seen.segments) - 1
    verdict.count("gaps", gaps, f"{name}: {[segment.gap for segment in seen.segments[1:]][:3]}")
    covered = None  # every row up to this one has been looked at
    for number, segment in enumerate(seen.segments):
        is_last = number == gaps
        begin = _begin_of(segment, begin_id, seen.late)
        if begin is None:
            continue
        if number == 0:
            _forget_before(segment, begin)
        end = None if is_last else _end_of(segment)
        if covered is not None and begin > covered + 1:
            ids, _ = rows.chosen(seen.channels, seen.types)
            skipped = bisect.bisect_left(ids, begin) - bisect.bisect_right(ids, covered)
            verdict.count("lost", skipped, f"{name}: over a gap")
        candidates = []
        for pool in [rows] if is_last else [rows, *former]:
            candidate = Verdict()
            _judge_segment(candidate, pool.chosen(seen.channels, seen.types), begin, end,
                           segment, name)
            candidates.append(candidate)
        verdict.add(min(candidates, key=lambda each: sum(each.counts.values())))
        if end is not None:
            covered = max(covered or 0, end)


def _begin_of(segment, begin_id, late):
    """The first id that it must have; None if it has seen nothing."""
    if segment.after is not None:
        return segment.after + 1
    if not late:
        return begin_id
    if segment.checkpoints and segment.checkpoints[0][0] == 0:
        return segment.checkpoints[0][1] + 1
    return segment.ids[0] if segment.ids else None


def _forget_before(segment, begin):
    """A stream may open with what was committed just before it was asked for."""
    early = next((place for place, id in enumerate(segment.ids) if id >= begin),
                 len(segment.ids))
    del segment.ids[:early], segment.sums[:early]
    segment.checkpoints = [(place - early, id) for place, id in segment.checkpoints
                           if place >= early]


def _end_of(segment):
    """The last id that it knew of."""
    last = [segment.after or 0]
    last += segment.ids[-1:]
    last += [id for _, id in segment.checkpoints[-1:]]
    return max(last)


def _judge_segment(verdict, chosen, begin, end, segment, name):
    ids, sums = chosen
    first = bisect.bisect_left(ids, begin)
    last = len(ids) if end is None else bisect.bisect_right(ids, end)
    expected = ids[first:last]
    if segment.ids != expected or segment.sums != sums[first:last]:
        _tell_apart(verdict, dict(zip(expected, sums[first:last])), segment, name)
    for place, id in segment.checkpoints:
        if place and segment.ids[place - 1] > id or \
                place < len(segment.ids) and segment.ids[place] <= id:
            verdict.count("reordered", 1, f"{name}: checkpoint {id} stands at a wrong place")


def _tell_apart(verdict, expected, segment, name):
    seen = set()
    newest = 0
    counts = dict.fromkeys(COUNTS, 0)
    first = {}
    for id, sum in zip(segment.ids, segment.sums):
        what = None
        if id in seen:
            what = "doubled"
        elif id not in expected or expected[id] != sum:
            what = "phantom"
        elif id < newest:
            what = "reordered"
        if what is not None:
            counts[what] += 1
            first.setdefault(what, id)
        seen.add(id)
        newest = max(newest, id)
    missing = [id for id in expected if id not in seen]
    counts["lost"] = len(missing)
    first["lost"] = f"{missing[:1]} to {missing[-1:]}"
    for what, number in counts.items():
        verdict.count(what, number, f"{name}: first {first.get(what)}")
