"""Databases in other encodings than UTF-8: what comes out is UTF-8, and what cannot come out
does not get in."""

import psycopg
import pytest

from conftest import migrate
from harness.groups import consume

# A byte, or two, that mean nothing in UTF-8.
ENCODINGS = {"SQL_ASCII": b"\x81", "LATIN1": None, "WIN1252": b"\x81", "EUC_JP": b"\xa9\xa9"}


@pytest.fixture(params=ENCODINGS)
def encoding(request):
    return request.param


@pytest.fixture
def database(cluster, directory, encoding):
    made = cluster.create_database(
        options=f"ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'")
    migrate(directory / "migrate", made)
    yield made
    made.drop()


def insert(database, encoding, text):
    """As an application would that speaks the database's own encoding. `text`: bytes."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute(f"SET client_encoding = '{encoding}'")
        connection.pgconn.exec_(b"INSERT INTO gateway.events (channel, data)"
                                b" VALUES ('c', '\"" + text + b"\"')")


def in_its_bytes(encoding, text):
    return text.encode({"SQL_ASCII": "utf-8", "EUC_JP": "euc_jp",
                        "WIN1252": "cp1252"}.get(encoding, "latin-1"))


def test_text_comes_out_as_utf_8(database, encoding, gateway_factory):
    gateway = gateway_factory(database)
    with gateway.subscribe("c") as stream:
        gateway.publish("c", '"\u00fc"')
        insert(database, encoding, in_its_bytes(encoding, "\u00fc"))
        assert [event.data for event in stream.take(2)] == ['"\u00fc"'] * 2


def test_it_does_so_whichever_way_it_is_fetched(database, encoding, gateway_factory):
    """From the table at the start, page by page, by its id, and by a group."""
    data = f'"\u00fc{"x" * 3000}"'
    gateway = gateway_factory(database)
    with consume(gateway, "c") as worker:
        insert(database, encoding, in_its_bytes(encoding, data[1:-1]))
        first = worker.next_event()
        assert first.data == data
    for number in range(40):
        gateway.publish("c", data)
    gateway.stop()
    for ring in ("64KiB", "64MiB"):
        gateway = gateway_factory(database, {"ring.bytes": ring})
        with gateway.subscribe("c", last_event_id="earliest") as stream:
            events = stream.take(41)
        assert [event.data for event in events] == [data] * 41
        assert gateway.get(f"/events/{events[0].id}").json()["data"] == data[1:-1]
        gateway.stop()


def test_what_has_no_place_in_utf_8_is_refused_and_stops_nobody(database, encoding,
                                                                gateway_factory):
    gateway = gateway_factory(database)
    with gateway.subscribe("c") as stream:
        if ENCODINGS[encoding] is not None:
            insert(database, encoding, ENCODINGS[encoding])
        id = gateway.publish("c", "1")
        assert [(event.id, event.data) for event in stream.take(1)] == [(id, "1")]
    assert database.value("SELECT count(*) FROM gateway.events") == 1
