"""Dumps of the data alone: what becomes of them in a schema that is there already."""

import re
import subprocess

import pytest

from conftest import migrate
from harness.groups import ack, consume
from harness.tools import REPOSITORY, find_postgres_tool
from harness.waiting import scaled


def dump(database):
    return subprocess.run([find_postgres_tool("pg_dump"), "--data-only", database.dsn], check=True,
                          capture_output=True, text=True, timeout=scaled(60)).stdout


def restore(database, text):
    return subprocess.run(
        [find_postgres_tool("psql"), "-qX", "-v", "ON_ERROR_STOP=1", "--single-transaction",
         database.dsn], input=text, capture_output=True, text=True, timeout=scaled(60))


def documented():
    """What the README says is to be emptied first."""
    return re.search(r"psql -c '(TRUNCATE gateway\.[^']*)'", (REPOSITORY / "README.md").read_text())[1]


@pytest.fixture
def filled(pg, gateway_factory):
    """Its gateway has given out five ids, of which one is a group's; a row has no number yet."""
    gateway = gateway_factory(pg)
    with consume(gateway, "c") as worker:
        ids = [gateway.publish("c", str(number)) for number in range(5)]
        assert ack(gateway, worker.next_event().id).status == 204
    gateway.stop()
    pg.execute("INSERT INTO gateway.events (channel, data) VALUES ('c', '5')")
    return ids


@pytest.fixture
def fresh(empty_database, directory):
    migrate(directory / "migrate", empty_database)
    return empty_database


def test_it_is_refused_where_the_schema_has_begun_and_changes_nothing(pg, filled, fresh):
    done = restore(fresh, dump(pg))
    assert done.returncode != 0
    assert "incarnations" in done.stderr
    assert fresh.value("SELECT count(*) FROM gateway.events") == 0


def test_it_goes_on_where_room_was_made_and_gives_no_id_twice(pg, filled, fresh, gateway_factory):
    text = dump(pg)
    first = gateway_factory(pg)
    lost = [first.publish("c", '"lost"') for _ in range(3)]
    first.stop()
    fresh.execute(documented())
    done = restore(fresh, text)
    assert done.returncode == 0, done.stderr

    second = gateway_factory(fresh)
    new = second.publish("c", "6")
    assert new not in lost
    with second.subscribe("c", last_event_id=filled[1]) as stream:
        events = stream.take(5)
        assert [event.data for event in events] == ["2", "3", "4", "5", "6"]
        assert [event.id for event in events[:3]] == filled[2:]
        assert events[-1].id == new
    for id in lost:
        with second.subscribe("c", last_event_id=id) as stream:
            assert stream.next_event().type == "gap"
    with consume(second, "c", max=10) as worker:
        assert sorted(event.data for event in worker.take(6)) == ["1", "2", "3", "4", "5", "6"]
