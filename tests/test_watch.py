"""gateway.watch(): what changes in a table is published, whoever changes it and however."""

import json
from decimal import Decimal

import psycopg
import pytest

INSERTED, UPDATED, DELETED, TRUNCATED = "insert", "update", "delete", "truncate"


@pytest.fixture
def changes(pg):
    """changes() -> (channel, type, data as text) of everything published since the last call,
    in the order in which each transaction inserted it."""
    seen = 0

    def new():
        nonlocal seen
        rows = pg.execute("SELECT id, channel, type, data::text FROM gateway.events"
                          " WHERE id > %s ORDER BY id", (seen,))
        seen = rows[-1][0] if rows else seen
        return [row[1:] for row in rows]

    return new


def short(changes):
    """[(operation, new, old), ...], the rows as Python has them."""
    found = []
    for _, kind, text in changes:
        data = json.loads(text)
        assert list(data) == ["table", "op", "new", "old"] and data["op"] == kind
        found.append((kind, data["new"], data["old"]))
    return found


def tables(changes):
    return [json.loads(text)["table"] for _, _, text in changes]


def test_a_subscriber_sees_each_change_of_a_watched_table(pg, gateway):
    pg.execute("CREATE TABLE things (id int PRIMARY KEY, name text)")
    assert pg.value("SELECT gateway.watch('things')") == "things"
    with gateway.subscribe("things") as stream:
        pg.execute("INSERT INTO things VALUES (1, 'a')")
        pg.execute("UPDATE things SET name = 'b'")
        pg.execute("DELETE FROM things")
        pg.execute("TRUNCATE things")
        events = stream.take(4)
    assert [(event.type, event.data) for event in events] == [
        (INSERTED, '{"table":"things","op":"insert","new":{"id":1,"name":"a"},"old":null}'),
        (UPDATED, '{"table":"things","op":"update","new":{"id":1,"name":"b"},'
                  '"old":{"id":1,"name":"a"}}'),
        (DELETED, '{"table":"things","op":"delete","new":null,"old":{"id":1,"name":"b"}}'),
        (TRUNCATED, '{"table":"things","op":"truncate","new":null,"old":null}')]


def test_the_channel_is_the_name_without_quotes_and_with_a_schema_that_is_not_public(pg, changes):
    pg.execute('CREATE SCHEMA "The Shop"')
    for table, name in (('"Mixed Case"', "Mixed Case"), ('"a""b\'c\\d.e"', 'a"b\'c\\d.e'),
                        ('"The Shop".orders', "The Shop.orders"), ('"größe"', "größe")):
        pg.execute(f'CREATE TABLE {table} ("the ""id""" int, "ключ" text)')
        assert pg.value("SELECT gateway.watch(%s)", (table,)) == name
        pg.execute(f"INSERT INTO {table} VALUES (1, 'x')")
        (channel, _, data), = changes()
        assert channel == name
        assert json.loads(data) == {"table": name, "op": "insert", "old": None,
                                    "new": {'the "id"': 1, "ключ": "x"}}


def test_a_channel_of_ones_choice_stays_when_the_table_is_renamed(pg, changes):
    pg.execute("CREATE TABLE before (a int)")
    pg.execute("SELECT gateway.watch('before', channel => 'it''s \\ mine')")
    pg.execute("ALTER TABLE before RENAME TO after")
    pg.execute("INSERT INTO after VALUES (1)")
    published = changes()
    assert published[0][0] == "it's \\ mine" and tables(published) == ["after"]
    assert pg.value('SELECT "table"::text FROM gateway.watched') == "after"


# By type: the value in SQL, and how it stands in the JSON.
VALUES = {
    "bigint": ("9007199254740993", "9007199254740993"),
    "numeric": ("123456789012345678901234567890.000000000000000000010",
                "123456789012345678901234567890.000000000000000000010"),
    "numeric(6,2)": ("1", "1.00"),
    "float8": ("0.1::float8 + 0.2::float8", "0.30000000000000004"),
    "float4": ("'NaN'", '"NaN"'),
    "boolean": ("true", "true"),
    "text": ("E'a\"b\\\\c\\n\\té\\x7f'", '"a\\"b\\\\c\\n\\té\x7f"'),
    "bytea": (r"'\x00ff'", r'"\\x00ff"'),
    "timestamptz": ("'2024-02-29 23:59:59.123456+05:30'", '"2024-02-29T18:29:59.123456+00:00"'),
    "timestamp": ("'infinity'", '"infinity"'),
    "date": ("'2024-02-29'", '"2024-02-29"'),
    "interval": ("'1 year 2 days 03:04:05'", '"1 year 2 days 03:04:05"'),
    "json": ('\'{"b": 1, "a": 1.50, "a": 2}\'', '{"b": 1, "a": 1.50, "a": 2}'),
    "jsonb": ("'[1e3, null]'", "[1000, null]"),
    "int[]": ("'{{1,2},{NULL,4}}'", "[[1,2],[null,4]]"),
    "text[]": ("ARRAY['a,b', '\"', NULL]", '["a,b","\\"",null]'),
    "daterange": ("'[2024-01-01,2024-02-01)'", '"[2024-01-01,2024-02-01)"'),
    "tstzrange": ("'[2024-01-01 00:00+00,)'", r'"[\"2024-01-01 00:00:00+00\",)"'),
    "money": ("12.5::numeric::money", '"$12.50"'),
    "uuid": ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", '"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"'),
    "inet": ("'192.0.2.1/24'", '"192.0.2.1/24"'),
    "point": ("'(1,2)'", '"(1,2)"'),
    "xml": ("'<a/>'", '"<a/>"'),
    "regclass": ("'public.target'", '"public.target"'),
    "mood": ("'so so'", '"so so"'),
    "pair": ("ROW(1, 'x')", '{"number":1,"word":"x"}'),
    "positive": ("7", "7"),
    "tsvector": ("'a b'", "\"'a' 'b'\""),
    "bit(3)": ("B'101'", '"101"'),
    "char(3)": ("'x'", '"x  "'),
}

SESSIONS = ("SET timezone = 'Asia/Kolkata'", "SET datestyle = 'German'",
            "SET intervalstyle = 'iso_8601'", "SET bytea_output = 'escape'",
            "SET extra_float_digits = -5", "SET search_path = public, gateway",
            "SET lc_monetary = 'C.UTF-8'", "SET quote_all_identifiers = off")


def test_every_type_comes_out_the_same_whatever_the_session_has_set(pg, changes):
    pg.execute("CREATE TABLE public.target (); CREATE TYPE mood AS ENUM ('so so'); CREATE TYPE pair AS (number int, word text);"
               "CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    names = [f"c{number}" for number in range(len(VALUES))]
    pg.execute("CREATE TABLE types (" + ", ".join(
        f"{name} {kind}" for name, kind in zip(names, VALUES)) + ")")
    pg.execute("SELECT gateway.watch('types')")
    row = ", ".join(value for value, _ in VALUES.values())
    expected = "{" + ",".join(f'"{name}":{text}' for name, (_, text) in zip(
        names, VALUES.values())) + "}"
    nothing = "{" + ",".join(f'"{name}":null' for name in names) + "}"

    with pg.connect(autocommit=True) as session:
        for setting in (None, *SESSIONS):
            if setting:
                session.execute(setting)
            session.execute(f"INSERT INTO types VALUES ({row})")
            for name in names:
                session.execute(f"UPDATE types SET {name} = NULL")
            (_, _, inserted), *_, (_, _, last) = changes()
            assert inserted == f'{{"table":"types","op":"insert","new":{expected},"old":null}}'
            assert f'"new":{nothing}' in last
            session.execute("DELETE FROM types")
            (_, _, deleted), = changes()
            assert deleted.endswith(f'"old":{nothing}}}')
        shown = session.execute("SHOW timezone").fetchone()[0]
    assert shown == "Asia/Kolkata", "the session keeps its settings"


def test_generated_columns_and_what_other_triggers_make_of_a_row_are_told(pg, changes):
    pg.execute("CREATE TABLE made (a int, twice int GENERATED ALWAYS AS (a * 2) STORED, b text)")
    pg.execute("CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS"
               " 'BEGIN NEW.b := ''filled''; RETURN NEW; END'")
    pg.execute("CREATE TRIGGER fill BEFORE INSERT ON made FOR EACH ROW EXECUTE FUNCTION fill()")
    pg.execute("SELECT gateway.watch('made')")
    pg.execute("INSERT INTO made (a) VALUES (21)")
    assert short(changes()) == [(INSERTED, {"a": 21, "twice": 42, "b": "filled"}, None)]


def test_large_rows_are_told_whole(pg, gateway):
    pg.execute("CREATE TABLE large (id int, body text)")
    pg.execute("SELECT gateway.watch('large')")
    sizes = (7990, 8192, 1 << 20, 5 << 20)
    with gateway.subscribe("large") as stream:
        for size in sizes:
            pg.execute("INSERT INTO large VALUES (%s, repeat('é', %s))", (size, size // 2))
            data = json.loads(stream.next_event(timeout=20).data)
            assert data["new"] == {"id": size, "body": "é" * (size // 2)}
        pg.execute("UPDATE large SET id = 0 WHERE id > 8192")  # the text stays where it is
        for event, size in zip(stream.take(2, timeout=30), sizes[2:]):
            data = json.loads(event.data)
            assert data["new"]["body"] == data["old"]["body"] == "é" * (size // 2)
            assert (data["new"]["id"], data["old"]["id"]) == (0, size)


def test_a_row_that_no_event_can_hold_is_refused_without_being_shown(pg, changes):
    pg.execute("CREATE TABLE large (id int, body text)")
    pg.execute("SELECT gateway.watch('large')")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded, match="over 64 MiB") as raised:
        pg.execute("INSERT INTO large VALUES (1, repeat('secret', 12000000))")
    assert "secret" not in str(raised.value) and "columns =>" in raised.value.diag.message_hint
    pg.execute("SELECT gateway.unwatch('large'), gateway.watch('large', columns => '{id}')")
    pg.execute("INSERT INTO large VALUES (1, repeat('secret', 12000000))")
    assert short(changes()) == [(INSERTED, {"id": 1}, None)]


def test_a_transaction_of_a_hundred_thousand_rows_is_told_in_its_order(pg, gateway):
    pg.execute("CREATE TABLE many (id int)")
    pg.execute("SELECT gateway.watch('many')")
    with gateway.subscribe("many") as stream:
        stream.keep_wire = False
        pg.execute("INSERT INTO many SELECT generate_series(1, 100000)")
        events = stream.take(100000, timeout=90)
    assert [json.loads(event.data)["new"]["id"] for event in events] == list(range(1, 100001))


def test_copy_and_on_conflict_are_told(pg, changes):
    pg.execute("CREATE TABLE things (id int PRIMARY KEY, n int)")
    pg.execute("SELECT gateway.watch('things')")
    with pg.connect() as session:
        with session.cursor().copy("COPY things FROM STDIN") as copy:
            copy.write_row((1, 0))
            copy.write_row((2, 0))
    assert [kind for kind, _, _ in short(changes())] == [INSERTED] * 2
    pg.execute("INSERT INTO things VALUES (3, 0), (1, 0), (4, 0), (2, 0)"
               " ON CONFLICT (id) DO UPDATE SET n = things.n + 1")
    assert [(kind, new["id"]) for kind, new, _ in short(changes())] == [
        (INSERTED, 3), (UPDATED, 1), (INSERTED, 4), (UPDATED, 2)]
    pg.execute("INSERT INTO things VALUES (1, 9) ON CONFLICT DO NOTHING")
    assert changes() == []


def test_a_cascade_comes_after_the_row_that_caused_it(pg, changes):
    pg.execute("CREATE TABLE parents (id int PRIMARY KEY)")
    pg.execute("CREATE TABLE children (id int, parent int REFERENCES parents"
               " ON DELETE CASCADE ON UPDATE CASCADE DEFERRABLE INITIALLY DEFERRED)")
    pg.execute("SELECT gateway.watch('parents'), gateway.watch('children')")
    with pg.connect() as session:  # children first: the constraint is deferred
        session.execute("INSERT INTO children VALUES (10, 1), (11, 1)")
        session.execute("INSERT INTO parents VALUES (1)")
        session.commit()
    assert tables(changes()) == ["children", "children", "parents"]
    pg.execute("UPDATE parents SET id = 2")
    pg.execute("DELETE FROM parents")
    published = changes()
    assert tables(published) == ["parents", "children", "children"] * 2
    assert short(published)[1] == (UPDATED, {"id": 10, "parent": 2}, {"id": 10, "parent": 1})
    pg.execute("CREATE TABLE more (parent int REFERENCES parents)")
    pg.execute("TRUNCATE parents CASCADE")
    assert tables(changes()) == ["parents", "children"], "more is not watched"


def test_what_another_trigger_does_about_a_row_comes_after_it(pg, changes):
    pg.execute("CREATE TABLE things (id int); CREATE TABLE audit (id int)")
    pg.execute("CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS"
               " 'BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NULL; END'")
    pg.execute("CREATE TRIGGER audit AFTER INSERT ON things FOR EACH ROW EXECUTE FUNCTION audit()")
    pg.execute("SELECT gateway.watch('things'), gateway.watch('audit')")
    pg.execute("INSERT INTO things VALUES (1), (2)")
    published = changes()
    assert tables(published) == ["things", "audit"] * 2
    assert [new["id"] for _, new, _ in short(published)] == [1, 1, 2, 2]


def test_what_is_rolled_back_is_not_told(pg, changes):
    pg.execute("CREATE TABLE things (id int)")
    pg.execute("SELECT gateway.watch('things')")
    with pg.connect() as session:
        for number in range(6):
            session.execute("SAVEPOINT s")
            session.execute("INSERT INTO things VALUES (%s)", (number,))
            if number % 2:
                session.execute("ROLLBACK TO SAVEPOINT s")
        session.execute("DELETE FROM things WHERE id = 2")
        session.commit()
        session.execute("TRUNCATE things")
        session.rollback()
    assert [(kind, (new or old)["id"]) for kind, new, old in short(changes())] == [
        (INSERTED, 0), (INSERTED, 2), (INSERTED, 4), (DELETED, 2)]


def test_rows_and_messages_of_one_transaction_come_in_its_order(pg, changes):
    pg.execute("CREATE TABLE things (id int)")
    pg.execute("SELECT gateway.watch('things', channel => 'c')")
    with pg.connect() as session:
        for number in range(3):
            session.execute("SELECT gateway.publish('c', to_json(%s::int))", (number,))
            session.execute("INSERT INTO things VALUES (%s)", (number,))
        session.commit()
    assert [kind for _, kind, _ in changes()] == ["message", INSERTED] * 3


def test_a_session_that_replays_what_others_did_is_told_too(pg, cluster, changes):
    pg.execute("CREATE TABLE public.things (id int) PARTITION BY RANGE (id)")
    pg.execute("CREATE TABLE public.first PARTITION OF public.things FOR VALUES FROM (0) TO (10)")
    pg.execute("SELECT gateway.watch('public.things')")
    pg.execute("CREATE TABLE public.second PARTITION OF public.things FOR VALUES FROM (10) TO (20)")
    with psycopg.connect(cluster.dsn(pg.name, "postgres"), autocommit=True) as session:
        session.execute("SET session_replication_role = replica")
        session.execute("INSERT INTO public.things VALUES (1), (11)")
        session.execute("TRUNCATE public.first")
    assert [kind for kind, _, _ in short(changes())] == [INSERTED, INSERTED, TRUNCATED]


def test_a_watched_table_can_be_written_in_a_prepared_transaction(pg, changes):
    pg.execute("CREATE TABLE things (id numeric)")
    pg.execute("SELECT gateway.watch('things')")
    with pg.connect(autocommit=True) as session:
        session.execute("BEGIN; SET LOCAL gateway.quiet = on; INSERT INTO things VALUES (1.50);"
                        " PREPARE TRANSACTION 'watched'")
        assert changes() == []
        session.execute("COMMIT PREPARED 'watched'")
    (_, _, data), = changes()
    assert json.loads(data, parse_float=Decimal)["new"] == {"id": Decimal("1.50")}
    assert '"id":1.50' in data
