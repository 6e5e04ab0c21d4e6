"""What a client got, held against the table: exactly its rows, each once, in order."""

from dataclasses import dataclass


@dataclass
class Verdict:
    events: int = 0      # rows that it should have got
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    foreign: int = 0     # what no row says: empty messages, changed data, ids of nothing
    gaps: int = 0        # the gateway said that it could not be exact
    wrong: str = ""      # what became of the client itself

    def is_clean(self):
        return not (self.lost or self.doubled or self.reordered or self.foreign or self.gaps
                    or self.wrong)


def as_handed_out(data):
    """The data of a row as a client has it: its lines joined by LF."""
    return data.replace("\r\n", "\n").replace("\r", "\n")


def judge(rows, recording):
    """rows: (seq, type, data) of the client's channel, in order. It owes us everything from
    the first that it got; that one must have come before the first cut."""
    verdict = Verdict(gaps=len(recording.gaps))
    seen, newest = set(), 0
    table = {str(seq): (type, as_handed_out(data)) for seq, type, data in rows}
    for event_id, type, data in recording.events:
        if table.get(event_id) != (type, data):
            verdict.foreign += 1
            continue
        if event_id in seen:
            verdict.doubled += 1
        elif int(event_id) < newest:
            verdict.reordered += 1
        seen.add(event_id)
        newest = max(newest, int(event_id))
    first = min(map(int, seen), default=0)
    owed = [seq for seq, _, _ in rows if seq >= first]
    verdict.events = len(owed)
    verdict.lost = sum(str(seq) not in seen for seq in owed)
    return verdict
