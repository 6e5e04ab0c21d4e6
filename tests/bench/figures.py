"""One line of the table: a figure, what it is held against, and whether that was reached."""

from dataclasses import asdict, dataclass
from math import ceil
from statistics import median


@dataclass
class Check:
    what: str
    value: float = None       # of the gateway, unless `what` says otherwise
    unit: str = ""
    against: str = ""         # the other server's title
    other: float = None       # its figure, in the same unit
    ratio: float = None       # median of the ratios of all rounds
    relation: str = "<="
    target: float = None      # of the ratio if there is one, else of the value
    rounds: int = 1           # how many there are of it
    missing: str = None       # why it could not be measured

    @property
    def verdict(self):
        """met, missed, not measured; nothing where no target is set."""
        if self.missing:
            return "not measured"
        if self.target is None:
            return ""
        reached = self.value if self.ratio is None else self.ratio
        below = reached <= self.target if self.relation == "<=" else reached >= self.target
        return "met" if below else "missed"

    def as_json(self):
        return {**asdict(self), "verdict": self.verdict}


def limit(what, value, unit, target=None, relation="<="):
    """A figure that is held against a number."""
    return Check(what, value, unit, relation=relation, target=target)


def middle(what, values, unit, target=None, relation="<="):
    """The median of one figure for each round, likewise."""
    return Check(what, median(values), unit, relation=relation, target=target, rounds=len(values))


def compare(what, ours, theirs, unit, against, target=None, relation="<="):
    """Two lists of figures, one for each round that both took part in."""
    both = [(a, b) for a, b in zip(ours, theirs) if b]
    if not both:
        return Check(what, against=against, missing="no round in which both were measured")
    return Check(what, median(a for a, _ in both), unit, against, median(b for _, b in both),
                 median(a / b for a, b in both), relation, target, len(both))


def quantile(values, share):
    """The least of them that so large a share of them does not exceed."""
    return sorted(values)[max(ceil(share * len(values)), 1) - 1]
