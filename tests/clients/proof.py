"""A check that finds nothing must be shown to find something: here the relays themselves lose
an event, double one, swap two, change one. Each must be found, as what it is, and nothing
must be found where nothing was done."""

from .burst import Burst
from .relay import CHUNK


class Sabotage:
    """Does its harm once, to whole frames in the middle of what passes by."""

    def __init__(self, harm):
        self.harm = harm
        self.done = False

    def __call__(self, data):
        frames = list(CHUNK.finditer(data))
        pairs = [pair for pair in zip(frames, frames[1:]) if pair[0].end() == pair[1].start()]
        if self.done or len(pairs) < 3:
            return data
        self.done = True
        first, second = pairs[len(pairs) // 2]
        changed = self.harm(first[0], second[0])
        return data[:first.start()] + changed + data[second.end():]


def change_a_byte(frame):
    at = frame.index(b"data: ") + len(b"data: ")
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1:]


# What is done to two frames that follow each other, and what must be found then: lost,
# doubled, reordered, foreign.
HARMS = {
    "nothing": (lambda a, b: a + b, (0, 0, 0, 0)),
    "lost": (lambda a, b: a, (1, 0, 0, 0)),
    "doubled": (lambda a, b: a + a + b, (0, 1, 0, 0)),
    "swapped": (lambda a, b: b + a, (0, 0, 1, 0)),
    "changed": (lambda a, b: a + change_a_byte(b), (1, 0, 0, 1)),
}


class Proof(Burst):
    """One curl for each harm; the streams are not cut."""

    def __init__(self, seed):
        super().__init__("direct", ["curl"] * len(HARMS), 2000, (), seed)

    def _plan(self):
        self.sabotages = [Sabotage(harm) for harm, _ in HARMS.values()]
        for relay, sabotage in zip(self.relays, self.sabotages):
            relay.changes.append(sabotage)


def run(seed):
    """Whether every harm was found; says what was not."""
    proof = Proof(seed)
    results = proof.run()
    good = True
    for (name, (_, expected)), sabotage, result in zip(HARMS.items(), proof.sabotages, results):
        verdict = result[-1]
        found = (verdict.lost, verdict.doubled, verdict.reordered, verdict.foreign)
        if not sabotage.done or found != expected or verdict.wrong or verdict.gaps:
            good = False
            print(f"the check does not work: {name} was planted, and it found {verdict}")
    if good:
        print(f"the check itself: {', '.join(HARMS)}: each was planted and found as that")
    return good
