"""migrate up, down, status: once, whole or not at all, and back again."""

import re
import shutil
import subprocess
import threading

import pytest

from harness.tools import REPOSITORY, find_postgres_tool
from harness.waiting import scaled

MIGRATIONS = REPOSITORY / "migrations"


def schema(database):
    """The schema as pg_dump writes it, without what differs from dump to dump."""
    done = subprocess.run([find_postgres_tool("pg_dump"), "--schema-only", database.dsn],
                          capture_output=True, text=True, timeout=scaled(60))
    assert done.returncode == 0, done.stderr
    return re.sub(r"^\\(un)?restrict .*$", "", done.stdout, flags=re.MULTILINE)


@pytest.fixture
def migrate(command, empty_database):
    def run(*arguments, **settings):
        return command("migrate", *arguments, settings={
            "database.dsn": empty_database.dsn,
            **{name.replace("__", "."): value for name, value in settings.items()}})

    return run


@pytest.fixture
def own_migrations(directory):
    """A copy of the migrations that a test may add to: add(sql, down) -> its number."""
    folder = directory / "migrations"
    shutil.copytree(MIGRATIONS, folder)

    def add(up, down="", name="test"):
        number = f"{len(list(folder.glob('*.up.sql'))) + 1:04}"
        (folder / f"{number}_{name}.up.sql").write_text(up)
        (folder / f"{number}_{name}.down.sql").write_text(down)
        return number

    add.folder = folder
    return add


def count_migrations():
    return len(list(MIGRATIONS.glob("*.up.sql")))


def test_up_brings_all_and_says_so(migrate, empty_database):
    done = migrate("up")
    assert done.returncode == 0, done.stderr
    assert "0001_events" in done.stdout
    empty_database.publish("c", "1")


def test_migrate_alone_is_up(migrate, empty_database):
    assert migrate().returncode == 0
    empty_database.publish("c", "1")


def test_up_again_does_nothing(migrate, empty_database):
    assert migrate("up").returncode == 0
    before = schema(empty_database)
    assert migrate("up").returncode == 0
    assert schema(empty_database) == before


def test_down_to_nothing_and_up_again_is_the_same_schema(migrate, empty_database):
    nothing = schema(empty_database)
    assert migrate("up").returncode == 0
    first = schema(empty_database)
    assert first != nothing
    for _ in range(count_migrations()):
        assert migrate("down").returncode == 0
    assert not re.search(r"CREATE (TABLE|FUNCTION|TRIGGER|VIEW) gateway\.(?!migrations)",
                         schema(empty_database))
    assert migrate("up").returncode == 0
    assert schema(empty_database) == first


def test_each_step_down_and_up_is_the_same_schema(migrate, empty_database):
    assert migrate("up").returncode == 0
    last = schema(empty_database)
    assert migrate("down").returncode == 0
    assert migrate("up").returncode == 0
    assert schema(empty_database) == last


def test_down_with_nothing_applied_fails_and_says_so(migrate):
    done = migrate("down")
    assert done.returncode == 1
    assert done.stderr.strip()


def test_status_lists_what_is_applied(migrate):
    before = migrate("status")
    assert before.returncode == 0, before.stderr
    assert re.search(r"0*1\b.*events.*not applied", before.stdout), before.stdout
    migrate("up")
    after = migrate("status")
    assert re.search(r"0*1\b.*events", after.stdout) and "not applied" not in after.stdout
    assert len(after.stdout.strip().splitlines()) >= count_migrations()


def test_status_changes_nothing(migrate, empty_database):
    before = schema(empty_database)
    migrate("status")
    assert schema(empty_database) == before


def test_many_at_once_do_it_once(migrate, empty_database):
    results = []
    threads = [threading.Thread(target=lambda: results.append(migrate("up"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [done.returncode for done in results] == [0] * 6, [done.stderr for done in results]
    applied = [done for done in results if "0001_events" in done.stdout]
    assert len(applied) == 1, "one of them did it"
    empty_database.publish("c", "1")


def test_a_failing_migration_leaves_nothing_and_says_where(migrate, empty_database, own_migrations):
    number = own_migrations("CREATE TABLE gateway.half (a int);\n\n"
                            "-- the next one fails\n"
                            "INSERT INTO gateway.half VALUES ('not a number');\n")
    done = migrate("up", database__migrations_dir=str(own_migrations.folder))
    assert done.returncode == 1
    assert f"{number}_test.up.sql:4" in done.stderr, done.stderr
    assert "invalid input syntax for type integer" in done.stderr
    assert empty_database.value("SELECT to_regclass('gateway.half')") is None
    empty_database.publish("c", "1")  # the ones before it stand
    status = migrate("status", database__migrations_dir=str(own_migrations.folder)).stdout
    assert len(re.findall("not applied", status)) == 1, status


def test_a_syntax_error_is_named_with_its_line(migrate, own_migrations):
    number = own_migrations("SELECT 1;\nSELECT 2;\nSELEKT 3;\n")
    done = migrate("up", database__migrations_dir=str(own_migrations.folder))
    assert done.returncode == 1
    assert f"{number}_test.up.sql:3" in done.stderr and "syntax error" in done.stderr


def test_a_failing_down_leaves_everything(migrate, empty_database, own_migrations):
    own_migrations("CREATE TABLE gateway.more (a int);",
                   "DROP TABLE gateway.more;\nDROP TABLE gateway.nowhere;\n")
    folder = str(own_migrations.folder)
    assert migrate("up", database__migrations_dir=folder).returncode == 0
    done = migrate("down", database__migrations_dir=folder)
    assert done.returncode == 1
    assert "_test.down.sql:2" in done.stderr and "nowhere" in done.stderr
    assert empty_database.value("SELECT to_regclass('gateway.more')") is not None


def test_a_folder_with_a_hole_is_refused(migrate, own_migrations):
    own_migrations("SELECT 1;")
    number = own_migrations("SELECT 1;", name="last")
    for path in own_migrations.folder.glob(f"{int(number) - 1:04}_*"):
        path.unlink()
    done = migrate("up", database__migrations_dir=str(own_migrations.folder))
    assert done.returncode == 1 and done.stderr.strip()


def test_a_missing_folder_is_named(migrate, directory):
    done = migrate("up", database__migrations_dir=str(directory / "nowhere"))
    assert done.returncode in (1, 2)
    assert "nowhere" in done.stderr


def test_an_unreachable_database_is_a_failure_that_says_so(command, directory):
    done = command("migrate", "up", settings={
        "database.dsn": f"host={directory} user=gateway dbname=none password=s3cret"})
    assert done.returncode == 1
    assert str(directory) in done.stderr, done.stderr
    assert "s3cret" not in done.stderr


def test_an_unknown_direction_is_a_usage_error(migrate):
    done = migrate("sideways")
    assert done.returncode == 2
    assert "sideways" in done.stderr
