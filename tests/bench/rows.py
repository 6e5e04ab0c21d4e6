"""All rows: the modules that make them are read, in the order of the table."""

from . import rows_load, rows_alone, rows_groups, rows_cores
from .row import ROWS

__all__ = ["ROWS", "rows_load", "rows_alone", "rows_groups", "rows_cores"]
