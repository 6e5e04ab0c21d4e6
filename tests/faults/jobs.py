"""The verdict on groups: what was handed out and acknowledged, against the tables."""

from collections import Counter

import psycopg

from .traffic import DEAD_CHANNEL, JOBS_CHANNEL
from .workers import ACKED, GROUPS, HEIR, UNKNOWN

# Every event of the channel, and what has become of it for each group.
STATES = """
    SELECT g.name, e.seq, d.attempt, d.lease, d.acked_at IS NOT NULL, coalesce(d.dead, false)
      FROM gateway.groups g
      JOIN gateway.events e ON e.channel = g.channel AND e.seq IS NOT NULL AND e.type <> %s
      LEFT JOIN gateway.deliveries d ON d.group_id = g.id AND d.seq = e.seq
     WHERE g.channel = %s"""
LETTERS = "SELECT data ->> 'group', (data ->> 'id')::bigint FROM gateway.events WHERE channel = %s"


class State:
    """Of one event, for one group."""

    def __init__(self, attempt, lease, acked, dead):
        self.attempt = attempt
        self.lease = lease
        self.acked = acked
        self.dead = dead

    @property
    def settled(self):
        return self.acked or self.dead


def read_states(connection, but_type=""):
    """{(group's name, seq): State}"""
    return {(name, seq): State(*rest) for name, seq, *rest
            in connection.execute(STATES, (but_type, JOBS_CHANNEL))}


def unsettled(connection):
    """How many are neither acknowledged nor dead; all, while a group is not there yet."""
    states = read_states(connection)
    if {name for name, _ in states} != set(GROUPS):
        return len(states) + 1
    return sum(not state.settled for state in states.values())


class Jobs:
    """What stands in the tables at the end."""

    def __init__(self, states, letters):
        self.states = states
        self.letters = letters  # Counter of (group's name, seq)

    @classmethod
    def read(cls, dsn, but_type):
        with psycopg.connect(dsn) as connection:
            return cls(read_states(connection, but_type),
                       Counter(connection.execute(LETTERS, (DEAD_CHANNEL,)).fetchall()))


def judge(verdict, jobs, deliveries, crashed, steady=True):
    """`crashed`: PostgreSQL was, and may have lost claims of its last moments, which do not
    wait for the disk: these events are handed out once more, as if never before. Where it
    was not `steady`, what was recalled from a holder comes late, and out of order."""
    _judge_states(verdict, jobs)
    if not verdict.exact:  # what was acknowledged may be lost, and its number another's
        return
    for group, name in enumerate(GROUPS):
        own = [each for each in deliveries if each.group == group]
        _judge_acknowledgements(verdict, name, jobs.states, own)
        _judge_handing_out(verdict, name, own, crashed)
        if group == HEIR and steady:
            _judge_order(verdict, name, own)


def _judge_states(verdict, jobs):
    for (name, seq), state in jobs.states.items():
        if not state.settled:
            verdict.count("lost", 1, f"{name}: {seq} is neither acknowledged nor dead")
        letters = jobs.letters[name, seq]
        if letters != state.dead:
            what = "lost" if letters < state.dead else "doubled"
            verdict.count(what, 1, f"{name}: {seq} is dead {state.dead:d} times and was said to be"
                                   f" so {letters} times")


def _judge_acknowledgements(verdict, name, states, deliveries):
    """What was answered 204 stands in the table, once; and nothing else stands there."""
    tried = {each.id for each in deliveries if each.outcome in (ACKED, UNKNOWN)}
    answered = Counter()
    for each in deliveries:
        if each.outcome != ACKED:
            continue
        seq, attempt, lease = each.id
        answered[seq] += 1
        state = states.get((name, seq))
        if state is None or not state.acked or (state.attempt, state.lease) != (attempt, lease):
            verdict.count("absent", 1, f"{name}: {each.id} was acknowledged")
    for seq, times in answered.items():
        verdict.count("doubled", times - 1, f"{name}: {seq} was acknowledged {times} times")
    for (of, seq), state in states.items():
        if of == name and state.acked and (seq, state.attempt, state.lease) not in tried:
            verdict.count("phantom", 1, f"{name}: nobody has acknowledged {seq}")


def _judge_handing_out(verdict, name, deliveries, crashed):
    """Each attempt is one worker's, once."""
    for id, times in Counter(each.id for each in deliveries).items():
        verdict.count("doubled", times - 1, f"{name}: {id} was handed out {times} times")
    if crashed:
        return
    for attempt, times in Counter(id[:2] for id in {each.id for each in deliveries}).items():
        verdict.count("doubled", times - 1, f"{name}: attempt {attempt} was {times} workers'")


def _judge_order(verdict, name, deliveries):
    """Each holder gets everything in order. That there was no other meanwhile is seen in this:
    of what it was the first to get, nothing is missing that another was the first to get."""
    streams = {}
    for each in deliveries:
        streams.setdefault(each.stream, []).append(each.id)
    for ids in streams.values():
        for before, after in zip(ids, ids[1:]):
            if after[0] <= before[0]:
                verdict.count("reordered", 1, f"{name}: {after} came after {before}")
    first = {id[0] for ids in streams.values() for id in ids if id[1] == 1}
    for ids in streams.values():
        own = {seq for seq, attempt, _ in ids if attempt == 1}
        if own:
            missing = {seq for seq in first if min(own) < seq < max(own)} - own
            verdict.count("reordered", len(missing), f"{name}: another had {min(missing, default=0)}"
                                                     f" while one had {min(own)} to {max(own)}")
