"""gateway.watch(): who may, what nobody gains by it, and what a dump keeps of it."""

import json
import subprocess

import psycopg
import pytest

from harness.tools import find_postgres_tool
from harness.waiting import scaled
from test_watch import changes

__all__ = ["changes"]  # a fixture


@pytest.fixture
def roles(pg, cluster):
    """roles(name) -> a connection as shop (owns things), writer (may write them) or stranger."""
    connections = {}
    for name in ("shop", "writer", "stranger"):
        cluster.admin(f"DO $$ BEGIN CREATE ROLE {name} LOGIN; EXCEPTION"
                      " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
        connections[name] = psycopg.connect(cluster.dsn(pg.name, name), autocommit=True)
    pg.execute("GRANT USAGE ON SCHEMA gateway TO shop")
    pg.execute("CREATE SCHEMA shop; GRANT ALL ON SCHEMA shop TO shop;"
               "GRANT USAGE ON SCHEMA shop TO writer, stranger")
    connections["shop"].execute("CREATE TABLE shop.things (id int, secret text DEFAULT 'hidden');"
                                "GRANT INSERT (id), DELETE, TRUNCATE ON shop.things TO writer")
    yield connections.get
    for connection in connections.values():
        connection.close()


def test_an_owner_needs_nothing_but_the_schema_and_writers_need_nothing(roles, changes):
    assert roles("shop").execute("SELECT gateway.watch('shop.things')").fetchone() == (
        "shop.things",)
    roles("writer").execute("INSERT INTO shop.things (id) VALUES (1)")
    roles("writer").execute("DELETE FROM shop.things")
    roles("writer").execute("TRUNCATE shop.things")
    assert [(channel, kind) for channel, kind, _ in changes()] == [
        ("shop.things", kind) for kind in ("insert", "delete", "truncate")]
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles("writer").execute("INSERT INTO gateway.events (data) VALUES ('1')")


def test_nobody_watches_or_unwatches_the_table_of_another(pg, roles):
    pg.execute("GRANT USAGE ON SCHEMA gateway TO stranger")
    roles("shop").execute("GRANT TRIGGER, SELECT ON shop.things TO stranger")
    for statement in ("watch", "unwatch"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as raised:
            roles("stranger").execute(f"SELECT gateway.{statement}('shop.things')")
        assert "must be owner" in str(raised.value) and "shop" in raised.value.diag.message_hint


def test_a_partition_of_another_owner_is_named_in_the_refusal(pg, roles):
    roles("shop").execute("CREATE TABLE shop.parted (id int) PARTITION BY LIST (id);"
                          "CREATE TABLE shop.part PARTITION OF shop.parted DEFAULT")
    pg.cluster.admin("ALTER TABLE shop.part OWNER TO stranger", database=pg.name)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="shop.part"):
        roles("shop").execute("SELECT gateway.watch('shop.parted')")


def test_code_of_a_tables_owner_never_runs_with_the_rights_of_the_gateway(roles, changes):
    """A cast to json is such code: row_to_json() calls it."""
    shop = roles("shop")
    shop.execute("CREATE TYPE shop.bait AS ENUM ('x')")
    shop.execute("CREATE FUNCTION shop.who(shop.bait) RETURNS json LANGUAGE sql AS"
                 " 'SELECT to_json(current_user::text)'")
    shop.execute("CREATE CAST (shop.bait AS json) WITH FUNCTION shop.who(shop.bait)")
    shop.execute("ALTER TABLE shop.things ADD bait shop.bait DEFAULT 'x'")
    for choice in ("NULL", "'{bait}'"):
        shop.execute(f"SELECT gateway.watch('shop.things', columns => {choice})")
        roles("writer").execute("INSERT INTO shop.things (id) VALUES (1)")
        roles("writer").execute("DELETE FROM shop.things")
        inserted, deleted = (json.loads(data) for _, _, data in changes())
        assert inserted["new"]["bait"] == deleted["old"]["bait"] == "writer"
        shop.execute("SELECT gateway.unwatch('shop.things')")


def test_a_search_path_full_of_traps_is_not_used(pg, roles, changes):
    roles("shop").execute("SELECT gateway.watch('shop.things')")
    pg.execute("CREATE SCHEMA traps; GRANT ALL ON SCHEMA traps TO writer")
    writer = roles("writer")
    for function in ("row_to_json(shop.things) RETURNS json", "to_json(text) RETURNS json",
                     "set_config(text, text, boolean) RETURNS text", "lower(text) RETURNS text"):
        writer.execute(f"CREATE FUNCTION traps.{function} LANGUAGE plpgsql AS"
                       " 'BEGIN RAISE ''trapped''; END'")
    writer.execute("SET search_path = traps, pg_catalog, shop")
    writer.execute("INSERT INTO things (id) VALUES (1)")
    assert len(changes()) == 1


def test_a_writer_does_not_read_in_the_session_what_it_may_not_read_in_the_table(roles):
    roles("shop").execute("SELECT gateway.watch('shop.things')")
    writer = roles("writer")
    with writer.transaction():
        writer.execute("INSERT INTO shop.things (id) VALUES (1)")
        writer.execute("DELETE FROM shop.things")
        assert writer.execute("SELECT current_setting('gateway.change')").fetchone() == ("",)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        writer.execute("SELECT secret FROM shop.things")


def forge(connection, table, change):
    connection.execute(
        f"CREATE FUNCTION {table}_forge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" PERFORM set_config('gateway.change', $change${change}$change$, true);"
        " RETURN NULL; END $$")
    for name, function in (("a", f"{table}_forge()"), ("b", "gateway.publish_change('victim')")):
        connection.execute(f"CREATE TRIGGER {name} AFTER INSERT ON {table} FOR EACH ROW"
                           f" EXECUTE FUNCTION {function}")


def test_the_name_of_the_table_cannot_be_forged(roles, changes):
    forge(roles("shop"), "shop.things", '1,"table":"victim"\x01null')
    with pytest.raises(psycopg.errors.InvalidTextRepresentation):
        roles("shop").execute("INSERT INTO shop.things VALUES (1)")
    assert changes() == []


def test_a_temporary_table_publishes_nothing_even_with_triggers_made_by_hand(roles, changes):
    roles("shop").execute("CREATE TEMPORARY TABLE things (id int);"
                          "CREATE TRIGGER a AFTER TRUNCATE ON things"
                          " EXECUTE FUNCTION gateway.publish_change('victim')")
    with pytest.raises(psycopg.errors.WrongObjectType, match="temporary"):
        roles("shop").execute("TRUNCATE things")
    assert changes() == []


def test_an_operator_can_keep_watching_to_a_few(pg, roles):
    pg.execute("REVOKE EXECUTE ON FUNCTION gateway.publish_change() FROM PUBLIC")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        roles("shop").execute("SELECT gateway.watch('shop.things')")
    pg.execute("GRANT EXECUTE ON FUNCTION gateway.publish_change() TO shop")
    roles("shop").execute("SELECT gateway.watch('shop.things')")


# -- dumps ---------------------------------------------------------------------------------

def dump(database, *options):
    done = subprocess.run([find_postgres_tool("pg_dump"), *options, "--dbname",
                           database.cluster.dsn(database.name, "postgres")],
                          capture_output=True, text=True, timeout=scaled(60))
    assert done.returncode == 0, done.stderr
    return done.stdout


def restore(database, text, user="postgres"):
    done = subprocess.run([find_postgres_tool("psql"), "-q", "-v", "ON_ERROR_STOP=1", "--dbname",
                           database.cluster.dsn(database.name, user)],
                          input=text, capture_output=True, text=True, timeout=scaled(60))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def application(pg):
    pg.execute('CREATE SCHEMA app; CREATE TABLE app."My Things" (a int, "B" numeric);'
               "CREATE TABLE app.parted (a int) PARTITION BY LIST (a);"
               "CREATE TABLE app.part PARTITION OF app.parted DEFAULT")
    pg.execute("SELECT gateway.watch('app.\"My Things\"', columns => '{B}', old => false),"
               " gateway.watch('app.parted', channel => 'it''s')")
    pg.execute('INSERT INTO app."My Things" VALUES (1, 2); INSERT INTO app.parted VALUES (1)')
    return pg.execute('SELECT w.*::text FROM gateway.watched w ORDER BY 1')


def check_restored(database, expected):
    assert database.execute("SELECT w.*::text FROM gateway.watched w ORDER BY 1") == expected
    before = database.value("SELECT count(*) FROM gateway.events")
    database.execute('UPDATE app."My Things" SET a = 5')
    database.execute('UPDATE app."My Things" SET "B" = 2.0')
    database.execute("INSERT INTO app.part VALUES (2); TRUNCATE app.parted")
    rows = database.execute("SELECT channel, data::text FROM gateway.events ORDER BY id")[before:]
    assert [(channel, json.loads(data)["op"]) for channel, data in rows] == [
        ("app.My Things", "update"), ("it's", "insert"), ("it's", "truncate")]


def test_a_dump_of_the_database_restores_watches_and_publishes_nothing(pg, cluster, application):
    copy = cluster.create_database()
    try:
        restore(copy, dump(pg))
        assert copy.value("SELECT count(*) FROM gateway.events") == 2
        check_restored(copy, application)
    finally:
        copy.drop()


def test_a_dump_of_the_applications_schema_restores_watches_where_a_gateway_is(
        pg, cluster, application):
    copy = cluster.create_database(template="gateway_template")
    try:
        restore(copy, dump(pg, "--schema=app"), user="gateway")
        assert copy.value("SELECT count(*) FROM gateway.events") == 0
        check_restored(copy, application)
    finally:
        copy.drop()
