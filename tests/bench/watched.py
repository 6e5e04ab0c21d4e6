"""What it costs who writes to a table that the table is watched: CPU time of the writer's
backend for each row, of 100 000 rows in one statement and of rows in transactions of their own.

    python3 -B -m bench.watched [--rounds N] [--rows N]     (in tests/)

The tables have the same four columns, and take turns:

    plain       not watched
    watched     gateway.watch('watched')
    columns     gateway.watch('columns', columns => '{name,price}')
    transition  the way not taken, for comparison: a statement trigger that publishes all rows of
                its transition tables at once. It misses rows written to a partition by its own
                name, and runs row_to_json(), and with it what strangers may have made of it,
                with more rights than the writer's

fsync is on. No gateway is attached: what it costs that one fetches the events is measured
elsewhere (bench.inserts). After each turn there must be one event for each row.
"""

import argparse
import json
import statistics
import time

from . import ground
from .machine import cpu_seconds
from .rounds import in_turn

TABLES = ("plain", "watched", "columns", "transition")
ROWS = 100_000
SINGLE_ROWS = 2000

SETUP = """
CREATE TABLE plain (id int PRIMARY KEY, name text, price numeric,
                    at timestamptz DEFAULT clock_timestamp());
CREATE TABLE watched (LIKE plain INCLUDING ALL);
CREATE TABLE columns (LIKE plain INCLUDING ALL);
CREATE TABLE transition (LIKE plain INCLUDING ALL);
SELECT gateway.watch('watched'), gateway.watch('columns', columns => '{name,price}');

CREATE FUNCTION publish_inserted() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO gateway.events (channel, type, data)
    SELECT TG_TABLE_NAME, 'insert', ('{"table":"transition","op":"insert","new":'
                                     || row_to_json(n) || ',"old":null}')::json FROM new_rows n;
    RETURN NULL;
END $$;
CREATE FUNCTION publish_updated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO gateway.events (channel, type, data)
    SELECT TG_TABLE_NAME, 'update', ('{"table":"transition","op":"update","new":' || n.row
                                     || ',"old":' || o.row || '}')::json
      FROM (SELECT row_number() OVER () AS place, row_to_json(n) AS row FROM new_rows n) n
      JOIN (SELECT row_number() OVER () AS place, row_to_json(o) AS row FROM old_rows o) o
     USING (place);
    RETURN NULL;
END $$;
CREATE TRIGGER inserted AFTER INSERT ON transition REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION publish_inserted();
CREATE TRIGGER updated AFTER UPDATE ON transition
    REFERENCING NEW TABLE AS new_rows OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION publish_updated();
"""


class Writer:
    """One connection, and what its backend takes."""

    def __init__(self, database):
        self.connection = database.connect(autocommit=True)
        self.connection.execute("SET search_path = public")
        self.connection.execute(SETUP)

    def timed(self, rows, work):
        """{"cpu_usec": …, "usec": …} for each row."""
        pid = self.connection.info.backend_pid
        cpu, clock = cpu_seconds(pid), time.monotonic()
        work()
        return {"cpu_usec": (cpu_seconds(pid) - cpu) / rows * 1e6,
                "usec": (time.monotonic() - clock) / rows * 1e6}

    def take_turn(self, table, rows, single_rows):
        execute = self.connection.execute
        insert = (f"INSERT INTO {table} SELECT n, 'number ' || n, n / 7.0"
                  f" FROM generate_series(1, {rows}) n")

        def one_by_one():
            for number in range(rows, rows + single_rows):
                execute(f"INSERT INTO {table} VALUES (%s, 'number', 1.5)", (number + 1,))

        found = {"insert": self.timed(rows, lambda: execute(insert)),
                 "update": self.timed(rows, lambda: execute(f"UPDATE {table} SET price = price + 1")),
                 "single": self.timed(single_rows, one_by_one)}
        self.check(0 if table == "plain" else 2 * rows + single_rows)
        execute(f"TRUNCATE {table}")
        execute("TRUNCATE gateway.events")
        return found

    def check(self, expected):
        events = self.connection.execute("SELECT count(*) FROM gateway.events").fetchone()[0]
        if events != expected:
            raise RuntimeError(f"{events} events, not {expected}")


def measure(rounds=3, rows=ROWS, single_rows=SINGLE_ROWS, say=lambda line: None):
    """For each table and kind of work {"cpu_usec": [a round each], "usec": […]}."""
    result = {}
    with ground.database() as database:
        writer = Writer(database)
        for number in range(rounds):
            for table in in_turn(TABLES, number):
                database.cluster.admin("CHECKPOINT")  # the WAL of the turn before is used again
                turn = writer.take_turn(table, rows, single_rows)
                for work, figures in turn.items():
                    for name, value in figures.items():
                        result.setdefault(table, {}).setdefault(work, {}).setdefault(
                            name, []).append(round(value, 2))
                say(f"round {number + 1}, {table}: " + ", ".join(
                    f"{work} {figures['cpu_usec']:.1f} µs" for work, figures in turn.items()))
        writer.connection.close()
    return result


def main():
    parser = argparse.ArgumentParser(prog="python3 -m bench.watched", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=ROWS)
    options = parser.parse_args()
    result = measure(options.rounds, options.rows, say=print)
    for table, works in result.items():
        print(json.dumps({"table": table, **{work: {name: statistics.median(values)
              for name, values in figures.items()} for work, figures in works.items()}}))


if __name__ == "__main__":
    main()
