"""The fault checker: its short form against the gateways, and the proofs that it finds what
it looks for. `make check-faults` is the long form.

Each run is a process of its own, because a fault may need one (see faults/__main__.py).
"""

import json
import subprocess
import sys
from collections import Counter

import pytest

from faults import jobs, verdict
from faults.injections import FAULTS
from faults.ledger import COMMITTED, RELAXED, UNKNOWN, Entry
from faults.naive import MISTAKES
from faults.subscribers import Habits, Seen, Segment
from faults.wire import Framer, Unchunker, WireError
from faults.workers import ACKED, CREW, HEIR, REFUSED, Delivery, Worker
from harness.tools import REPOSITORY
from harness.waiting import SLOWNESS, scaled

EVENTS = 1500
RUN_SECONDS = 150


def run_faults(directory, cluster, *arguments):
    """The result of one run; what it said on the way is shown when the test fails."""
    path = directory / "result"
    command = [sys.executable, "-B", "-m", "faults", "--brisk", "--events", str(EVENTS),
               "--pristine", str(cluster.home / "pristine"), "--result", str(path), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY / "tests", stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=scaled(RUN_SECONDS))
    print(done.stdout)
    assert path.exists(), f"it ended with {done.returncode} and left no result"
    result = json.loads(path.read_text())
    assert (done.returncode == 0) == result["passed"], result
    return result


def counts(result):
    return {name: result[name] for name in verdict.COUNTS}


# -- the short form -----------------------------------------------------------------------


@pytest.mark.timeout(scaled(RUN_SECONDS + 10))
@pytest.mark.parametrize("fault", ["gateway-killed", "gateway-ended", "postgres-killed",
                                   "backends-ended"])
def test_nothing_is_lost_doubled_or_out_of_order(directory, cluster, fault):
    result = run_faults(directory, cluster, "--one", fault)
    assert result["passed"], (counts(result), result["examples"], result["problems"])
    assert set(counts(result).values()) == {0}
    assert result["events"] >= EVENTS * 0.8 and result["resumes"] > 3
    assert result["jobs"] > EVENTS / 50


# -- the checker finds what it looks for --------------------------------------------------

FOUND_BY = {"resume-by-insertion": ("none", "lost"),
            "dropped-notification": ("none", "lost"),
            "doubled-frame": ("none", "doubled"),
            "swapped-frames": ("none", "reordered"),
            "early-acknowledgement": ("backends-ended", "absent"),
            "handed-to-two": ("none", "doubled"),
            "forgotten-ack": ("none", "absent"),
            "two-holders": ("none", "reordered")}


if SLOWNESS == 1:  # the gateway that makes mistakes is no sanitizer's build

    @pytest.mark.timeout(scaled(RUN_SECONDS + 10))
    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_gateway_that_makes_a_mistake_is_found_out(directory, cluster, mistake):
        fault, count = FOUND_BY[mistake]
        result = run_faults(directory, cluster, "--one", fault, "--sabotage", mistake)
        assert not result["passed"]
        assert result[count] > 0, counts(result)

    @pytest.mark.timeout(scaled(RUN_SECONDS + 10))
    def test_in_the_same_world_a_gateway_without_the_mistake_passes(directory, cluster):
        result = run_faults(directory, cluster, "--one", "backends-ended", "--sabotage", "")
        assert result["passed"], (counts(result), result["examples"], result["problems"])


def test_every_mistake_has_a_fault_that_shows_it():
    assert set(FOUND_BY) == set(MISTAKES)
    assert {fault for fault, _ in FOUND_BY.values()} <= set(FAULTS)


# -- the verdict, case by case ------------------------------------------------------------


def table(*rows):
    """(id, writer, tx, index, count) each, in the channel "c"."""
    made = verdict.Rows()
    for id, writer, tx, index, count in rows:
        made.add(str(id).encode(), b"c", b"message",
                 f'{{"w":"{writer}","t":{tx},"i":{index},"n":{count}}}'.encode())
    return made


def entry(writer, tx, count, outcome):
    made = Entry(writer, tx, count)
    made.outcome = outcome
    return made


THREE = [(10, "a", 1, 0, 1), (11, "a", 2, 0, 2), (12, "a", 2, 1, 2)]


def judged_table(rows, *entries, former=()):
    found = verdict.Verdict()
    verdict.judge_table(found, table(*rows), 1, entries, [table(*each) for each in former])
    return {what: number for what, number in found.counts.items() if number}, found


@pytest.mark.parametrize("rows, entries, expected", [
    (THREE, [("a", 1, 1, COMMITTED), ("a", 2, 2, COMMITTED)], {}),
    (THREE, [("a", 1, 1, UNKNOWN), ("a", 2, 2, RELAXED)], {}),
    (THREE[:1], [("a", 1, 1, COMMITTED), ("a", 2, 2, UNKNOWN)], {}),
    (THREE[:1], [("a", 1, 1, COMMITTED), ("a", 2, 2, RELAXED)], {}),
    (THREE[:1], [("a", 1, 1, COMMITTED), ("a", 2, 2, COMMITTED)], {"absent": 2}),
    (THREE[:2], [("a", 1, 1, COMMITTED), ("a", 2, 2, UNKNOWN)], {"lost": 1}),
    (THREE, [("a", 2, 2, COMMITTED)], {"phantom": 1}),
    (THREE, [("a", 1, 1, "aborted"), ("a", 2, 2, COMMITTED)], {"phantom": 1}),
    (THREE + [(13, "a", 2, 1, 2)], [("a", 1, 1, COMMITTED), ("a", 2, 2, COMMITTED)],
     {"doubled": 1}),
    ([(10, "a", 2, 0, 1), (11, "a", 1, 0, 1)], [("a", 1, 1, COMMITTED), ("a", 2, 1, COMMITTED)],
     {"reordered": 1}),
])
def test_the_table_is_held_to_the_ledger(rows, entries, expected):
    assert judged_table(rows, *[entry(*each) for each in entries])[0] == expected


def test_an_acknowledged_id_must_be_that_events_id():
    given = entry("a", 1, 1, COMMITTED)
    given.first_id = given.last_id = 10
    assert judged_table(THREE[:1], given)[0] == {}
    given.first_id = given.last_id = 9
    assert judged_table(THREE[:1], given)[0] == {"absent": 1}


def test_what_a_failover_lost_is_postgresqls_loss_and_no_other():
    acknowledged = [entry("a", 1, 1, COMMITTED), entry("a", 2, 2, COMMITTED)]
    found, told = judged_table(THREE[:1], *acknowledged, former=[THREE])
    assert found == {} and told.lost_by_postgres == 2
    assert judged_table(THREE[:1], *acknowledged, former=[THREE[:1]])[0] == {"absent": 2}


def seen(*segments, late=False):
    """Each segment: the ids seen, and before all but the first the id of its `gap`."""
    made = Seen(Habits("test", ("c",), late=late))
    made.segments = []
    frames = table(*THREE, (13, "a", 3, 0, 1))
    for after, ids in segments:
        segment = Segment(after)
        for id in ids:
            segment.ids.append(id)
            segment.sums.append(frames.sums[frames.ids.index(id)] if id in frames.ids else 0)
        made.segments.append(segment)
    return made


def judged_subscriber(each, *former):
    found = verdict.Verdict()
    verdict.judge_subscriber(found, table(*THREE), 10, each, [table(*rows) for rows in former])
    return {what: number for what, number in found.counts.items() if number}


@pytest.mark.parametrize("ids, expected", [
    ([10, 11, 12], {}),
    ([10, 12], {"lost": 1}),
    ([], {"lost": 3}),
    ([10, 11, 11, 12], {"doubled": 1}),
    ([10, 12, 11], {"reordered": 1}),
    ([10, 11, 12, 99], {"phantom": 1}),
    ([9, 10, 11, 12], {}),
])
def test_a_subscriber_is_held_to_the_table(ids, expected):
    assert judged_subscriber(seen((None, ids))) == expected


def test_an_event_with_other_content_is_a_phantom():
    each = seen((None, [10, 11, 12]))
    each.segments[0].sums[1] ^= 1
    assert judged_subscriber(each) == {"phantom": 1}


def test_who_comes_late_is_held_to_what_follows_its_first_event():
    assert judged_subscriber(seen((None, [11, 12]), late=True)) == {}
    assert judged_subscriber(seen((None, [10, 12]), late=True)) == {"lost": 1}
    assert judged_subscriber(seen((None, []), late=True)) == {}


def test_a_checkpoint_is_held_to_its_place():
    each = seen((None, [10, 11, 12]))
    each.segments[0].checkpoints = [(1, 10), (3, 20)]
    assert judged_subscriber(each) == {}
    each.segments[0].checkpoints = [(1, 11)]
    assert judged_subscriber(each) == {"reordered": 1}


def test_a_gap_is_counted_and_what_it_skips_is_lost():
    assert judged_subscriber(seen((None, [10]), (11, [12]))) == {"gaps": 1, "lost": 1}
    assert judged_subscriber(seen((None, [10, 11]), (9, [10, 11, 12]))) == {"gaps": 1}


def test_what_was_lost_in_a_failover_may_be_seen_before_a_gap_only():
    former = [*THREE, (13, "a", 3, 0, 1)]
    told = seen((None, [10, 11, 12, 13]), (9, [10, 11, 12]))
    assert judged_subscriber(told, THREE, former) == {"gaps": 1}
    assert judged_subscriber(told) == {"gaps": 1, "phantom": 1}
    assert judged_subscriber(seen((None, [10, 11, 12, 13])), former) == {"phantom": 1}
    assert judged_subscriber(seen((None, [10, 11, 13]), (9, [10, 11, 12])), former) == {
        "gaps": 1, "lost": 1}


# -- the verdict on groups ----------------------------------------------------------------

OPEN, DONE, DEAD = (False, False), (True, False), (False, True)


def judged_jobs(group, states, deliveries, letters=(), crashed=False):
    """States: {seq: (attempt, lease, how it stands)}; deliveries: (stream, seq, attempt, lease,
    outcome)."""
    name = ("crew", "heir")[group]
    stands = {(name, seq): jobs.State(attempt, lease, *how)
              for seq, (attempt, lease, how) in states.items()}
    handed = []
    for stream, *id, outcome in deliveries:
        handed.append(Delivery(group, stream, tuple(id)))
        handed[-1].outcome = outcome
    found = verdict.Verdict()
    jobs.judge(found, jobs.Jobs(stands, Counter((name, seq) for seq in letters)), handed, crashed)
    return {what: number for what, number in found.counts.items() if number}


@pytest.mark.parametrize("states, deliveries, expected", [
    ({7: (1, "a", DONE)}, [(1, 7, 1, "a", ACKED)], {}),
    ({7: (1, "a", DONE)}, [(1, 7, 1, "a", UNKNOWN)], {}),
    ({7: (2, "b", DONE)}, [(1, 7, 1, "a", None), (2, 7, 2, "b", ACKED)], {}),
    ({7: (2, "b", DONE)}, [(1, 7, 1, "a", REFUSED), (2, 7, 2, "b", ACKED)], {}),
    ({7: (1, "a", OPEN)}, [(1, 7, 1, "a", None)], {"lost": 1}),
    ({7: (None, None, OPEN)}, [], {"lost": 1}),
    ({7: (1, "a", DONE)}, [(1, 7, 1, "a", None)], {"phantom": 1}),
    ({7: (2, "b", DONE)}, [(1, 7, 1, "a", ACKED), (2, 7, 2, "b", ACKED)],
     {"absent": 1, "doubled": 1}),
    ({7: (1, "a", OPEN)}, [(1, 7, 1, "a", ACKED)], {"lost": 1, "absent": 1}),
    ({7: (1, "a", DONE)}, [(1, 7, 1, "a", ACKED), (2, 7, 1, "a", REFUSED)], {"doubled": 1}),
    ({7: (1, "b", DONE)}, [(1, 7, 1, "a", None), (2, 7, 1, "b", ACKED)], {"doubled": 1}),
])
def test_a_group_is_held_to_its_table(states, deliveries, expected):
    assert judged_jobs(CREW, states, deliveries) == expected


def test_a_claim_that_a_crash_took_may_be_made_again():
    again = {7: (1, "b", DONE)}, [(1, 7, 1, "a", REFUSED), (2, 7, 1, "b", ACKED)]
    assert judged_jobs(CREW, *again, crashed=True) == {}


def test_who_is_dead_is_said_to_be_so_once():
    dead = {7: (3, None, DEAD)}, [(1, 7, 3, "c", None)]
    assert judged_jobs(CREW, *dead, letters=[7]) == {}
    assert judged_jobs(CREW, *dead) == {"lost": 1}
    assert judged_jobs(CREW, *dead, letters=[7, 7]) == {"doubled": 1}


@pytest.mark.parametrize("handed, expected", [
    ([(1, 7, 1), (1, 8, 1), (2, 9, 1)], {}),
    ([(1, 7, 1), (1, 8, 1), (2, 8, 2), (2, 9, 1)], {}),
    ([(1, 8, 1), (1, 7, 1), (1, 9, 1)], {"reordered": 1}),
    ([(1, 7, 1), (2, 8, 1), (1, 9, 1)], {"reordered": 1}),
])
def test_an_exclusive_group_has_one_holder_who_gets_all_in_order(handed, expected):
    deliveries = [(stream, seq, attempt, f"{stream}.{seq}", UNKNOWN)
                  for stream, seq, attempt in handed]
    states = {seq: (attempt, f"{stream}.{seq}", DONE) for stream, seq, attempt in handed}
    assert judged_jobs(HEIR, states, deliveries) == expected


@pytest.mark.parametrize("group", [CREW, HEIR])
@pytest.mark.parametrize("outcome, stays", [(ACKED, True), (REFUSED, True), (UNKNOWN, False)])
def test_who_cannot_tell_whether_it_has_acknowledged_leaves(group, outcome, stays, monkeypatch):
    worker = Worker(group, 0, [("127.0.0.1", 1)], None, [], [], 0)
    worker.stream, worker.leaves = 1, None
    monkeypatch.setattr(worker, "_post", lambda delivery, what: outcome)
    monkeypatch.setattr(worker.random, "random", lambda: 1.0)
    assert worker._take(b"id: 7.1.a\nevent: message\ndata: {}") is stays


# -- the bytes ----------------------------------------------------------------------------

WIRE = (b":\nretry: 90\nid: 1\ndata: a\n\n:\n:\nid: 2\nevent: e\ndata: b\ndata: c\n\n"
        b"id: 3\nevent: checkpoint\ndata: \n\n:\nid: 4")


def chunks_of(data, sizes):
    out, at = b"", 0
    while at < len(data):
        size = min(next(sizes), len(data) - at)
        out += b"%x\r\n%s\r\n" % (size, data[at:at + size])
        at += size
    return out


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_frames_come_out_whole_however_the_bytes_arrive(piece):
    wire = chunks_of(WIRE, iter([5, 1, 30, 2, 11, 1000]))
    unchunker, framer, frames = Unchunker(), Framer(), []
    for at in range(0, len(wire), piece):
        frames += framer.feed(unchunker.feed(wire[at:at + piece]))
    assert frames == [b"id: 1\ndata: a", b"id: 2\nevent: e\ndata: b\ndata: c",
                      b"id: 3\nevent: checkpoint\ndata: "]
    assert not unchunker.ended
    unchunker.feed(b"0\r\n\r\n")
    assert unchunker.ended


@pytest.mark.parametrize("body", [b"data: x\n\n", b"id: 1\ndata: a\n\n\n\n", b"hello\n\n",
                                  b"retry: soon\nid: 1\ndata: a\n\n"])
def test_what_is_no_frame_is_said(body):
    with pytest.raises(WireError):
        Framer().feed(body)


def test_a_chunk_of_a_wrong_size_is_said():
    with pytest.raises(WireError):
        Unchunker().feed(b"5\r\nabc\r\n")
