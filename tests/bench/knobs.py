"""How long it is measured, and on what WAL, as the environment says. What is no number, or would measure nothing, ends the
program before anything is measured."""

import os
import sys


def knob(name, default, kind, least, most):
    """The number in this variable."""
    text = os.environ.get(name) or default
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most:
        what = "a whole number" if kind is int else "a number"
        sys.exit(f"{name} is {text!r}: it has to be {what} from {least:g} to {most:g}")
    return value


def choice(name, *values):
    """One of these words; the first, unless it is given."""
    text = os.environ.get(name) or values[0]
    if text not in values:
        sys.exit(f"{name} is {text!r}: it has to be {' or '.join(values)}")
    return text


# publisher.c has room for no more.
ROUNDS_MAX = 99

ROUNDS = knob("BENCH_ROUNDS", "3", int, 1, ROUNDS_MAX)
SECONDS = knob("BENCH_SECONDS", "2", float, 0.1, 3600)

# It takes some seconds to have enough samples for a slope.
CHURN_SECONDS = knob("BENCH_CHURN_SECONDS", "30", int, 8, 7 * 24 * 3600)

# Whether PostgreSQL writes into segments of its WAL that it has used before, as it does when it has
# run for a while, or has to make each.
WAL = choice("BENCH_WAL", "used", "new")
