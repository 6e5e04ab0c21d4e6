"""The rows of the table, by name, in the order in which they were made. Each has a function
that measures it and returns the lines of the table, and everything that was measured, for the
file."""

import importlib
from dataclasses import dataclass
from typing import Callable

from .programs import NotMeasured


@dataclass
class Row:
    name: str
    title: str
    how: str
    measure: Callable
    only_named: bool = False  # measured where BENCH_ROWS names it, not with all others


ROWS = {}


def row(name, title, how, only_named=False):
    """Makes a function a row of the table."""

    def add(measure):
        ROWS[name] = Row(name, title, how, measure, only_named)
        return measure

    return add


def key(*names):
    """result -> result[first][second]…"""

    def look(result):
        for name in names:
            result = result[name]
        return result

    return look


def measurement(name):
    """A module beside this one that measures something by itself."""
    try:
        return importlib.import_module(f"{__package__}.{name}")
    except ModuleNotFoundError as problem:
        raise NotMeasured(f"there is no tests/bench/{problem.name.rpartition('.')[2]}.py") from None
