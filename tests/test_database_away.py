"""The database is away, comes, goes, freezes: the gateway serves on and recovers by itself."""

import re
import shutil
import time

import pytest

from harness.postgres import OWNER
from harness.raw_http import build_request
from harness.waiting import scaled, wait_until

QUICK = {"stream.heartbeat": "200ms", "limits.publish_time": "2s"}
TEMPLATE = "gateway_template"


def wait_not_ready(gateway, timeout=15):
    answer = wait_until(lambda: (lambda answer: answer if answer.status == 503 else None)(
        gateway.get("/readyz")), "/readyz says 503", timeout)
    assert len(answer.text.strip()) > 10, f"the reason: {answer!r}"
    return answer


def assert_unavailable(gateway):
    answer = gateway.post('{"data":"lost"}', timeout=scaled(10))
    answer.problem(503)
    assert int(answer.headers["Retry-After"]) >= 1


def publish_soon(gateway, data):
    """Publishes it as soon as it is taken: the publisher finds the way back by itself, a
    moment before or after the listener, whom /readyz asks. Its id."""
    def published():
        answer = gateway.post(data, channel="c")
        assert answer.status in (201, 503), repr(answer)
        return answer.json()["id"] if answer.status == 201 else None

    return wait_until(published, "it can be published", timeout=20)


def assert_flows(gateway, stream, data):
    """Published now, it comes out of the stream; what came until then, and it."""
    id = publish_soon(gateway, data)
    return stream.until(lambda event: event.id == id)


def test_a_database_that_is_absent_at_the_start_may_come_later(postgres, gateway_factory):
    database = postgres.create_database(template=TEMPLATE)
    postgres.stop()
    gateway = gateway_factory(database, QUICK, ready=False)
    wait_not_ready(gateway)
    assert gateway.get("/healthz").status == 200
    assert gateway.metric("pgsse_listener_connected") == 0
    gateway.wait_log("could not connect|connection to server")
    assert_unavailable(gateway)
    with gateway.subscribe("c") as stream, gateway.subscribe("c", http10=True) as old:
        assert stream.status == 200
        for _ in range(3):
            stream.next_comment()
            old.next_comment()
        postgres.start()
        gateway.wait_ready(timeout=20)
        id = publish_soon(gateway, '"here"')
        assert stream.next_event().id == old.next_event().id == id
    assert gateway.metric("pgsse_listener_connected") == 1


def test_a_database_that_does_not_exist_yet_may_come_later(cluster, gateway_factory):
    name = "comes_later"
    gateway = gateway_factory(None, {**QUICK, "database.dsn": cluster.dsn(name)}, ready=False)
    wait_until(lambda: name in wait_not_ready(gateway).text, "the reason is said")
    with gateway.subscribe("c") as stream:
        database = cluster.create_database(name, TEMPLATE)
        try:
            gateway.wait_ready(timeout=20)
            assert_flows(gateway, stream, "1")
            gateway.stop()
        finally:
            database.drop()


def test_every_connection_cut_is_made_again(gateway, pg):
    with gateway.subscribe("c") as stream:
        for number in range(5):
            pg.publish("c", f'"before {number}"')
            assert stream.next_event().data == f'"before {number}"'
            assert pg.cut_gateways() >= 2
            pg.publish("c", f'"cut {number}"')
            assert stream.next_event(timeout=20).data == f'"cut {number}"'
            assert_flows(gateway, stream, str(number))
    wait_until(lambda: gateway.get("/readyz").status == 200, "ready again")


def test_nothing_acknowledged_is_lost_when_connections_are_cut(gateway, pg):
    """POSTs go on while their connection is cut under them: what was acknowledged is there
    once, and the stream has all of what is there, in order."""
    acknowledged, unsure = [], []
    with gateway.subscribe("c") as stream, gateway.connection(timeout=60) as connection:
        for number in range(200):
            if number % 50 == 10:
                pg.cut_gateways()
            connection.send(build_request("POST", "/events?channel=c", [
                ("Content-Type", "application/json")], str(number).encode()))
            answer = connection.read_response(60)
            assert answer.status in (201, 503), repr(answer)
            (acknowledged if answer.status == 201 else unsure).append(number)
        assert_flows_to_end(gateway, pg, stream, acknowledged, unsure)


def assert_flows_to_end(gateway, pg, stream, acknowledged, unsure):
    seen = [int(event.data) for event in assert_flows(gateway, stream, "-1")]
    stored = [int(data) for _, _, data in pg.events("c")]
    assert seen == stored, "the stream has what the table has"
    assert len(set(stored)) == len(stored), "nothing twice"
    assert set(acknowledged) <= set(stored), "nothing acknowledged is lost"
    assert set(stored) - {-1} <= set(acknowledged) | set(unsure)
    assert len(acknowledged) >= 100, "a cut costs a moment, not the service"


def test_a_crash_of_postgresql_under_streams_is_survived(postgres, gateway_factory):
    database = postgres.create_database(template=TEMPLATE)
    gateway = gateway_factory(database, QUICK)
    streams = [gateway.subscribe("c") for _ in range(20)]
    try:
        gateway.publish("c", '"before"')
        assert [stream.next_event().data for stream in streams] == ['"before"'] * 20
        for round in range(2):
            postgres.crash()
            wait_not_ready(gateway)
            assert_unavailable(gateway)
            for stream in streams:
                stream.next_comment()
            postgres.start()
            gateway.wait_ready(timeout=20)
            database.close()
            database.publish("c", f'"sql {round}"')
            id = publish_soon(gateway, f'"after {round}"')
            for stream in streams:
                data = [event.data for event in stream.until(lambda event: event.id == id)]
                assert sorted(data) == [f'"after {round}"', f'"sql {round}"']
    finally:
        for stream in streams:
            stream.close()


def test_a_frozen_postgresql_is_noticed_and_survived(postgres, gateway_factory):
    gateway = gateway_factory(postgres.create_database(template=TEMPLATE), QUICK)
    with gateway.subscribe("c") as stream:
        gateway.publish("c", "1")
        stream.next_event()
        postgres.freeze()
        try:
            begin = time.monotonic()
            assert_unavailable(gateway)
            assert time.monotonic() - begin < scaled(2 + 8), "within publish_time"
            wait_not_ready(gateway, timeout=10)
            stream.next_comment()
        finally:
            postgres.thaw()
        gateway.wait_ready(timeout=20)
        assert_flows(gateway, stream, "2")


def test_a_writer_that_locks_the_table_costs_a_503_and_no_more(gateway_factory, pg):
    gateway = gateway_factory(pg, {**QUICK, "limits.publish_time": "500ms"})
    with gateway.subscribe("c") as stream, pg.connect() as blocker:
        blocker.execute("LOCK TABLE gateway.events IN SHARE MODE")
        assert_unavailable(gateway)
        blocker.rollback()
        assert_flows(gateway, stream, "1")
    assert ("events", "message", '"lost"') not in pg.events(), "a 503 said it is not there"


def test_a_table_that_is_locked_for_long_leaves_no_session_waiting_for_each_try(gateway_factory,
                                                                                pg):
    """VACUUM FULL, say. What a gateway has given up must not go on waiting at the server."""
    gateway = gateway_factory(pg, {**QUICK, "limits.publish_time": "200ms"})
    waiting = ("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
               " AND application_name LIKE 'pg-sse-gateway%' AND wait_event_type = 'Lock'")
    with gateway.subscribe("c") as stream, pg.connect() as blocker:
        blocker.execute("LOCK TABLE gateway.events IN ACCESS EXCLUSIVE MODE")
        for _ in range(20):
            gateway.get("/events/1").problem(503)
        # The listener, the publisher and two readers have a session each.
        assert pg.value(waiting) <= 4
        blocker.rollback()
        gateway.wait_ready()
        assert_flows(gateway, stream, "1")


def test_a_short_statement_timeout_keeps_no_row_from_its_number(gateway_factory, pg):
    """As a database or a role has it, for its applications. What is tried again for ever in
    vain is never numbered."""
    dsn = f"{pg.dsn} options='-c statement_timeout=15ms'"
    gateway = gateway_factory(pg, {**QUICK, "database.dsn": dsn})
    with gateway.subscribe("c") as stream:
        pg.execute("INSERT INTO gateway.events (channel, data)"
                   " SELECT 'c', to_json(n) FROM generate_series(1, 20000) n")
        assert [int(event.data) for event in stream.take(20000)] == list(range(1, 20001))


def test_a_database_that_is_read_only_is_told_so(gateway_factory, cluster, pg):
    gateway = gateway_factory(pg, QUICK)
    cluster.admin(f'ALTER DATABASE "{pg.name}" SET default_transaction_read_only = on')
    pg.cut_gateways()
    wait_not_ready(gateway)
    assert_unavailable(gateway)
    cluster.admin(f'ALTER DATABASE "{pg.name}" RESET default_transaction_read_only')
    with gateway.subscribe("c") as stream:
        pg.cut_gateways()
        gateway.wait_ready(timeout=20)
        assert_flows(gateway, stream, "1")


# -- schema -------------------------------------------------------------------------------


def test_a_missing_schema_is_told_and_may_come_later(empty_database, gateway_factory, command):
    gateway = gateway_factory(empty_database, QUICK, ready=False)
    wait_not_ready(gateway)
    wait_until(lambda: "migrate up" in gateway.get("/readyz").text, "what to do is said")
    gateway.wait_log("migrate up")
    assert_unavailable(gateway)
    with gateway.subscribe("c") as stream:
        done = command("migrate", "up", settings={"database.dsn": empty_database.dsn})
        assert done.returncode == 0, done.stderr
        gateway.wait_ready(timeout=20)
        assert_flows(gateway, stream, "1")


def test_migrate_on_start_brings_the_schema(empty_database, gateway_factory):
    gateway = gateway_factory(empty_database, {"database.migrate_on_start": "yes"})
    with gateway.subscribe("c") as stream:
        assert_flows(gateway, stream, "1")


def test_a_schema_newer_than_the_program_is_told(gateway_factory, command, pg, directory):
    """As left behind by a newer release that was rolled back."""
    newer = directory / "migrations"
    shutil.copytree(migrations_folder(), newer)
    number = len(list(newer.glob("*.up.sql"))) + 1
    (newer / f"{number:04}_future.up.sql").write_text("CREATE TABLE gateway.future (a int);\n")
    (newer / f"{number:04}_future.down.sql").write_text("DROP TABLE gateway.future;\n")
    settings = {"database.dsn": pg.dsn, "database.migrations_dir": str(newer)}
    assert command("migrate", "up", settings=settings).returncode == 0
    gateway = gateway_factory(pg, QUICK, ready=False)
    wait_until(lambda: "newer" in wait_not_ready(gateway).text, "the reason is said")
    gateway.wait_log("newer")
    assert command("migrate", "down", settings=settings).returncode == 0
    gateway.wait_ready(timeout=20)


def test_a_schema_made_anew_ends_the_gateway(gateway_factory, command, pg):
    """Its ids begin again where clients have been before: there is no going on from that."""
    gateway = gateway_factory(pg, QUICK)
    gateway.publish("c", "1")
    pg.execute("DROP SCHEMA gateway CASCADE")
    assert command("migrate", "up", settings={"database.dsn": pg.dsn}).returncode == 0
    gateway.stopped = True
    assert gateway.wait_exit(20) == 1
    gateway.check()
    assert "made anew" in gateway.log()


def migrations_folder():
    from harness.tools import REPOSITORY

    return REPOSITORY / "migrations"


@pytest.mark.parametrize("right", ["USAGE ON SCHEMA gateway", "INSERT ON gateway.events"])
def test_missing_rights_are_told(gateway_factory, pg, cluster, right):
    """A gateway whose role may connect and nothing else; then it is made the owner."""
    cluster.admin("DO $$ BEGIN CREATE ROLE stranger LOGIN; EXCEPTION"
                  " WHEN duplicate_object OR unique_violation THEN NULL; END $$")
    dsn = pg.dsn.replace(f"user={OWNER}", "user=stranger")
    if right.startswith("INSERT"):
        pg.execute("GRANT USAGE ON SCHEMA gateway TO stranger")
    gateway = gateway_factory(None, {**QUICK, "database.dsn": dsn}, ready=False)
    wait_not_ready(gateway)
    wait_until(lambda: re.search("permission|right|migrate", gateway.get("/readyz").text),
               "the reason is said")
    assert_unavailable(gateway)
