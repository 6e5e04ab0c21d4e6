"""gateway.watch(): which columns, operations and tables; partitions and inheritance; what is
refused."""

import psycopg
import pytest

from harness.tools import REPOSITORY
from test_watch import DELETED, INSERTED, TRUNCATED, UPDATED, changes, short, tables

__all__ = ["changes"]  # a fixture


def watched(pg):
    return pg.execute('SELECT "table"::text, channel, columns, operations, old'
                      ' FROM gateway.watched ORDER BY 1')


ALL = [INSERTED, UPDATED, DELETED, TRUNCATED]


# -- columns and operations ----------------------------------------------------------------

def test_only_the_chosen_columns_are_told_and_only_when_one_of_them_changes(pg, changes):
    pg.execute('CREATE TABLE things (secret text, "The Id" int, n numeric, j json)')
    pg.execute("SELECT gateway.watch('things', columns => '{n,\"The Id\",j}')")
    pg.execute("INSERT INTO things VALUES ('s', 1, 1.0, '{\"a\":  1}')")
    pg.execute("UPDATE things SET secret = 't'")
    pg.execute("UPDATE things SET n = 1.00")
    pg.execute("UPDATE things SET n = 1.00, secret = 'u'")
    pg.execute("DELETE FROM things")
    assert [data for _, _, data in changes()] == [
        '{"table":"things","op":"insert","new":{"The Id":1,"n":1.0,"j":{"a":  1}},"old":null}',
        '{"table":"things","op":"update","new":{"The Id":1,"n":1.00,"j":{"a":  1}},'
        '"old":{"The Id":1,"n":1.0,"j":{"a":  1}}}',
        '{"table":"things","op":"delete","new":null,"old":{"The Id":1,"n":1.00,"j":{"a":  1}}}']


def test_an_update_that_changes_nothing_is_left_out(pg, changes):
    pg.execute("CREATE TABLE things (a int, j json, p point)")
    pg.execute("SELECT gateway.watch('things')")
    pg.execute("INSERT INTO things VALUES (1, '{}', '(1,2)'), (NULL, NULL, NULL)")
    changes()
    pg.execute("UPDATE things SET a = a, j = j, p = p")
    assert changes() == []
    pg.execute("UPDATE things SET j = '{ }' WHERE a = 1")
    assert len(changes()) == 1


def test_only_the_chosen_operations_are_told(pg, changes):
    for operation in ALL:
        pg.execute("DROP TABLE IF EXISTS things; CREATE TABLE things (a int)")
        pg.execute("SELECT gateway.watch('things', operations => ARRAY[%s])", (operation,))
        pg.execute("INSERT INTO things VALUES (1)")
        pg.execute("UPDATE things SET a = 2")
        pg.execute("DELETE FROM things")
        pg.execute("TRUNCATE things")
        assert [kind for kind, _, _ in short(changes())] == [operation]
        assert watched(pg) == [("things", "things", None, [operation],
                                operation != TRUNCATED)]


def test_old_rows_of_updates_can_be_left_out(pg, changes):
    pg.execute("CREATE TABLE things (a int, b int)")
    for columns, row in ((None, {"a": 1, "b": 0}), (["a"], {"a": 1})):
        pg.execute("SELECT gateway.watch('things', old => false, columns => %s)", (columns,))
        pg.execute("INSERT INTO things VALUES (0, 0)")
        pg.execute("UPDATE things SET a = 1")
        pg.execute("DELETE FROM things")
        assert short(changes())[1:] == [(UPDATED, row, None), (DELETED, None, row)]
        pg.execute("SELECT gateway.unwatch('things')")


def test_columns_may_come_and_go_while_a_table_is_watched(pg, changes):
    pg.execute("CREATE TABLE every (a int, b int)")
    pg.execute("CREATE TABLE chosen (a int, b int)")
    pg.execute("SELECT gateway.watch('every'), gateway.watch('chosen', columns => '{a,b}')")
    with pg.connect(autocommit=True) as session:  # one, whose plans are kept
        def insert():
            session.execute("INSERT INTO every VALUES (1, 2); INSERT INTO chosen VALUES (1, 2)")
            return [new for _, new, _ in short(changes())]

        assert insert() == [{"a": 1, "b": 2}, {"a": 1, "b": 2}]
        for change, every, chosen in (
                ("ADD c text DEFAULT 'x'", {"a": 1, "b": 2, "c": "x"}, {"a": 1, "b": 2}),
                ("RENAME b TO z", {"a": 1, "z": 2, "c": "x"}, {"a": 1}),
                ("ALTER a TYPE text", {"a": "1", "z": 2, "c": "x"}, {"a": "1"}),
                ("DROP a", {"z": 1, "c": "2"}, {}),
                ("RENAME z TO a", {"a": 1, "c": "2"}, {"a": 1})):
            session.execute(f"ALTER TABLE every {change}; ALTER TABLE chosen {change}")
            assert insert() == [every, chosen], change


# -- partitions and inheritance ------------------------------------------------------------

@pytest.fixture
def parted(pg):
    """A table whose partitions have their columns in another order, one of them parted again."""
    pg.execute("CREATE TABLE parted (id int, name text) PARTITION BY RANGE (id)")
    pg.execute("CREATE TABLE low (name text, gone int, id int)")
    pg.execute("ALTER TABLE low DROP gone")
    pg.execute("ALTER TABLE parted ATTACH PARTITION low FOR VALUES FROM (0) TO (10)")
    pg.execute("CREATE TABLE high PARTITION OF parted FOR VALUES FROM (10) TO (100)"
               " PARTITION BY RANGE (id)")
    pg.execute("CREATE TABLE highest PARTITION OF high FOR VALUES FROM (50) TO (100)")


def test_rows_of_partitions_are_told_however_they_are_written(pg, parted, changes):
    pg.execute("SELECT gateway.watch('parted')")
    pg.execute("CREATE TABLE later PARTITION OF high FOR VALUES FROM (10) TO (50)")
    pg.execute("INSERT INTO parted VALUES (1, 'a'), (11, 'b'), (51, 'c')")
    pg.execute("INSERT INTO low (id, name) VALUES (2, 'direct')")
    pg.execute("UPDATE highest SET name = 'd'")
    pg.execute("DELETE FROM high WHERE id = 11")
    published = changes()
    assert short(published) == [
        (INSERTED, {"id": 1, "name": "a"}, None), (INSERTED, {"id": 11, "name": "b"}, None),
        (INSERTED, {"id": 51, "name": "c"}, None), (INSERTED, {"id": 2, "name": "direct"}, None),
        (UPDATED, {"id": 51, "name": "d"}, {"id": 51, "name": "c"}),
        (DELETED, None, {"id": 11, "name": "b"})]
    assert set(tables(published)) == {"parted"} and {c for c, _, _ in published} == {"parted"}


def test_a_row_that_moves_to_another_partition_is_deleted_and_inserted(pg, parted, changes):
    pg.execute("SELECT gateway.watch('parted')")
    pg.execute("INSERT INTO parted VALUES (1, 'a')")
    pg.execute("UPDATE parted SET id = 60")
    assert short(changes())[1:] == [(DELETED, None, {"id": 1, "name": "a"}),
                                    (INSERTED, {"id": 60, "name": "a"}, None)]


def test_truncate_is_told_of_the_table_or_of_the_partition_that_was_named(pg, parted, changes):
    pg.execute("SELECT gateway.watch('parted', operations => '{truncate}')")
    for truncate, told in (("TRUNCATE parted", ["parted"]), ("TRUNCATE high", ["high"]),
                           ("TRUNCATE low, highest", ["low", "highest"]),
                           ("TRUNCATE parted, low", ["parted"])):
        pg.execute(truncate)
        published = changes()
        assert tables(published) == told and {c for c, _, _ in published} == {"parted"}


def test_a_partition_that_was_detached_is_told_no_more(pg, parted, changes):
    pg.execute("SELECT gateway.watch('parted', operations => '{insert,update}')")
    pg.execute("ALTER TABLE parted DETACH PARTITION low")
    pg.execute("INSERT INTO low (id) VALUES (1)")
    assert changes() == []
    pg.execute("ALTER TABLE parted ATTACH PARTITION low FOR VALUES FROM (0) TO (10)")
    pg.execute("UPDATE low SET id = 2")
    assert [kind for kind, _, _ in short(changes())] == [UPDATED]


def test_one_partition_can_be_watched_alone(pg, parted, changes):
    assert pg.value("SELECT gateway.watch('low')") == "low"
    assert watched(pg) == [("low", "low", None, ALL, True)]
    pg.execute("INSERT INTO parted VALUES (1, 'a'), (51, 'c')")
    published = changes()
    assert [new["id"] for _, new, _ in short(published)] == [1]
    assert tables(published) == ["parted"] and published[0][0] == "low"
    with pytest.raises(psycopg.errors.DuplicateObject, match="low is watched already"):
        pg.execute("SELECT gateway.watch('parted')")


def test_a_watched_table_is_attached_to_another_only_when_its_own_watch_has_ended(pg, parted,
                                                                                  changes):
    pg.execute("CREATE TABLE later (id int, name text)")
    pg.execute("SELECT gateway.watch('parted'), gateway.watch('later')")
    attach = "ALTER TABLE parted ATTACH PARTITION later FOR VALUES FROM (100) TO (200)"
    with pytest.raises(psycopg.errors.DuplicateObject, match="GatewayWatch"):
        pg.execute(attach)
    pg.execute("SELECT gateway.unwatch('later')")
    pg.execute(attach)
    pg.execute("INSERT INTO later VALUES (150, 'x')")
    assert tables(changes()) == ["parted"]


def test_children_are_watched_with_their_parent_under_their_own_names(pg, changes):
    pg.execute("CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent);"
               "CREATE TABLE grandchild (c int) INHERITS (child)")
    assert pg.value("SELECT gateway.watch('parent')") == "parent"
    pg.execute("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3);"
               "INSERT INTO grandchild VALUES (4, 5, 6)")
    pg.execute("UPDATE parent SET a = a + 1 WHERE a = 4")
    pg.execute("TRUNCATE ONLY parent")
    pg.execute("TRUNCATE child")
    published = changes()
    assert tables(published) == ["parent", "child", "grandchild", "grandchild", "parent",
                                 "child", "grandchild"]
    assert {channel for channel, _, _ in published} == {"parent"}
    assert short(published)[3] == (UPDATED, {"a": 5, "b": 5, "c": 6}, {"a": 4, "b": 5, "c": 6})
    assert [row[0] for row in watched(pg)] == ["child", "grandchild", "parent"]
    pg.execute("CREATE TABLE later () INHERITS (parent)")
    pg.execute("SELECT gateway.watch('later', channel => 'parent')")
    pg.execute("INSERT INTO later VALUES (7)")
    assert [row[0] for row in changes()] == ["parent"]
    pg.execute("SELECT gateway.unwatch('parent')")
    assert watched(pg) == []


# -- watched and unwatch -------------------------------------------------------------------

def test_watched_shows_what_was_asked_for(pg, parted):
    pg.execute('CREATE TABLE "Ünder a" ("Col,1" int, "b\'\\" int)')
    pg.execute("SELECT gateway.watch('\"Ünder a\"', 'ch\\ännel', ARRAY['Col,1', 'b''\\'],"
               " '{delete,insert}', false), gateway.watch('parted')")
    assert watched(pg) == [
        ('"Ünder a"', "ch\\ännel", ["Col,1", "b'\\"], [INSERTED, DELETED], False),
        ("parted", "parted", None, ALL, True)]


def test_unwatch_leaves_nothing_behind(pg, parted, changes):
    pg.execute("CREATE TABLE things (a int)")
    pg.execute("SELECT gateway.watch('things'), gateway.watch('parted')")
    pg.execute("SELECT gateway.unwatch('things'), gateway.unwatch('parted')")
    pg.execute("INSERT INTO things VALUES (1); INSERT INTO parted VALUES (1); TRUNCATE low")
    assert changes() == [] and watched(pg) == []
    assert pg.value("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND"
                    " tgrelid <> 'gateway.events'::regclass AND tgname ILIKE '%watch%'") == 0
    pg.execute("SELECT gateway.watch('things', operations => '{insert}')")
    pg.execute("INSERT INTO things VALUES (2)")
    assert len(changes()) == 1


def test_tables_are_written_as_before_when_the_migration_is_taken_back(pg, parted):
    pg.execute("SELECT gateway.watch('parted')")
    (down,) = (REPOSITORY / "migrations").glob("*_watch.down.sql")
    pg.execute(down.read_text())
    pg.execute("INSERT INTO parted VALUES (1); TRUNCATE low")
    assert pg.value("SELECT count(*) FROM gateway.events") == 0


# -- bad input -----------------------------------------------------------------------------

BAD = [  # statement, class of the error, what it says
    ("gateway.watch('nowhere')", "UndefinedTable", "nowhere"),
    ("gateway.watch(0::oid)", "UndefinedTable", "there is no table"),
    ("gateway.watch(NULL)", "UndefinedTable", "there is no table"),
    ("gateway.watch('a_view')", "WrongObjectType", "a_view is not a table"),
    ("gateway.watch('a_matview')", "WrongObjectType", "a_matview is not a table"),
    ("gateway.watch('a_sequence')", "WrongObjectType", "a_sequence is not a table"),
    ("gateway.watch('a_temporary')", "WrongObjectType", "temporary"),
    ("gateway.watch('gateway.events')", "WrongObjectType", "not a table of an application"),
    ("gateway.watch('twice')", "DuplicateObject", "twice is watched already"),
    ("gateway.watch('things', '')", "InvalidParameterValue", "channel: ''"),
    ("gateway.watch('things', 'orders.*')", "InvalidParameterValue", r"orders\.\*"),
    ("gateway.watch('things', E'a\\nb')", "InvalidParameterValue", "channel"),
    ("gateway.watch('things', repeat('x', 256))", "InvalidParameterValue", "channel"),
    ("gateway.watch('things', columns => '{a,nope}')", "UndefinedColumn", "no column nope"),
    ("gateway.watch('things', columns => '{A}')", "UndefinedColumn", 'no column "A"'),
    ("gateway.watch('things', columns => '{ctid}')", "UndefinedColumn", "no column ctid"),
    ("gateway.watch('things', columns => '{NULL}')", "UndefinedColumn", "no column NULL"),
    ("gateway.watch('things', columns => '{}')", "UndefinedColumn", "empty"),
    ("gateway.watch('things', operations => '{insert,upsert}')", "InvalidParameterValue",
     "no operation: 'upsert'"),
    ("gateway.watch('things', operations => '{NULL}')", "InvalidParameterValue", "NULL"),
    ("gateway.watch('things', operations => '{}')", "InvalidParameterValue", "empty"),
    ("gateway.watch('things', operations => NULL)", "InvalidParameterValue", "empty"),
    ("gateway.watch('things', old => NULL)", "InvalidParameterValue", "old"),
    ("gateway.unwatch('things')", "UndefinedObject", "things is not watched"),
    ("gateway.unwatch('low')", "UndefinedObject", "low is not watched"),
    ("gateway.unwatch(0::oid)", "UndefinedTable", "there is no table"),
]


@pytest.fixture
def refused(pg, parted):
    pg.execute("CREATE TABLE things (a int, b int); CREATE VIEW a_view AS SELECT 1 AS a;"
               "CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS a; CREATE SEQUENCE a_sequence;"
               "CREATE TEMPORARY TABLE a_temporary (a int); CREATE TABLE twice (a int);"
               "SELECT gateway.watch('twice'), gateway.watch('parted')")


def test_what_cannot_be_watched_is_refused_with_a_hint(pg, refused):
    for statement, error, text in BAD:
        with pytest.raises(getattr(psycopg.errors, error), match=text) as raised:
            pg.execute(f"SELECT {statement}")
        assert raised.value.diag.message_hint or "nowhere" in statement, statement
    assert [row[0] for row in watched(pg)] == ["parted", "twice"]


def test_none_of_the_gateways_own_tables_can_be_watched(pg):
    own = pg.execute("SELECT format('%I.%I', schemaname, tablename) FROM pg_tables"
                     " WHERE schemaname = 'gateway'")
    assert ("gateway.events",) in own
    for table, in own:
        with pytest.raises(psycopg.errors.WrongObjectType, match="not a table of an application"):
            pg.execute("SELECT gateway.watch(%s)", (table,))


def test_a_foreign_table_cannot_be_watched(pg, cluster):
    cluster.admin("CREATE EXTENSION postgres_fdw", database=pg.name)
    cluster.admin("CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw", database=pg.name)
    cluster.admin("GRANT USAGE ON FOREIGN SERVER far TO gateway", database=pg.name)
    pg.execute("CREATE FOREIGN TABLE far_away (a int) SERVER far")
    with pytest.raises(psycopg.errors.WrongObjectType, match="far_away is not a table"):
        pg.execute("SELECT gateway.watch('far_away')")


def test_a_name_that_is_no_channel_is_told_at_once(pg):
    pg.execute('CREATE TABLE "star*" (a int)')
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="channel") as raised:
        pg.execute("SELECT gateway.watch('\"star*\"')")
    assert "channel =>" in raised.value.diag.message_hint
    pg.execute("SELECT gateway.watch('\"star*\"', channel => 'star')")
