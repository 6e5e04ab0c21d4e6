"""X-Client-ID, gateway.client_id and exclude_client: a subscriber does without what it, or
whoever it names, has published; live, resumed from memory or from the table, and with last=N."""

import threading

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from harness.waiting import scaled, wait_until

JSON = "application/json"

# So little that most of what these tests publish is out of the ring at once.
SMALL = {"ring.bytes": "64KiB"}


def post(gateway, client, data, channel="c", **options):
    """One event of that client's, which must be taken; its id."""
    headers = [] if client is None else [("X-Client-ID", client)]
    answer = gateway.post(data, channel=channel, headers=headers, **options)
    assert answer.status == 201, answer
    return answer.json()["id"]


def without(gateway, *clients, channels=("c",), parameters=(), **options):
    parameters = [("exclude_client", client) for client in clients] + list(parameters)
    return gateway.subscribe(*channels, parameters=parameters, **options)


def fill(pg, count):
    """So many rows, in turn of nobody, "a" and "b", on "c", "d.x" and "d.y", of three types; data
    is the running number. Returns when all have their place."""
    pg.execute("INSERT INTO gateway.events (channel, type, data, client)"
               " SELECT (ARRAY['c', 'd.x', 'd.y'])[n %% 3 + 1], (ARRAY['r', 's', 't'])[n / 3 %% 3 + 1],"
               " to_json(n), (ARRAY[NULL, 'a', 'b'])[n / 9 %% 3 + 1] FROM generate_series(1, %s) n",
               (count,))
    wait_until(lambda: pg.value("SELECT count(*) FROM gateway.events WHERE seq IS NULL") == 0,
               "every event has its number", timeout=60)


def rows(pg, where, after=0, newest=None):
    """Ids of what the condition holds for; of the newest only, if a number is given."""
    where = where.replace("%", "%%")
    found = pg.execute(f"SELECT seq FROM gateway.events WHERE seq > %s AND {where}"
                       " ORDER BY seq DESC LIMIT %s", (after, newest))
    return [str(seq) for seq, in reversed(found)]


def data_until(stream, end):
    return [event.data for event in stream.until(lambda event: event.data == end, timeout=60)]


def ids_of(stream, count):
    return [event.id for event in stream.take(count, timeout=60)]


# -- live ------------------------------------------------------------------------------------


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
def test_a_subscriber_does_without_its_own(gateway, http10):
    with without(gateway, "a", http10=http10) as a, without(gateway, "b", http10=http10) as b, \
            without(gateway, "a", "b", http10=http10) as neither, gateway.subscribe("c") as plain:
        for data, client in (("1", "a"), ("2", "b"), ("3", None), ("4", "A"), ("5", "a"), ("6", "aa"),
                             ("7", None)):
            post(gateway, client, data)
        assert data_until(a, "7") == ["2", "3", "4", "6", "7"]
        assert data_until(b, "7") == ["1", "3", "4", "5", "6", "7"]
        assert data_until(neither, "7") == ["3", "4", "6", "7"]
        assert data_until(plain, "7") == ["1", "2", "3", "4", "5", "6", "7"]


BODIES = {
    "an event": ('{"channel":"c","data":1}', JSON, {}),
    "an array": ('[{"channel":"c","data":1},{"channel":"c","data":2}]', JSON, {}),
    "lines": ('{"channel":"c","data":1}\n{"channel":"c","data":2}\n', "application/x-ndjson", {}),
    "text": ("shipped", "text/plain", {"channel": "c"}),
    "a CloudEvent": ('{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"c"}',
                     "application/cloudevents+json", {}),
    "CloudEvents": ('[{"specversion":"1.0","id":"1","source":"/s","type":"t","subject":"c"},'
                    '{"specversion":"1.0","id":"2","source":"/s","type":"t","subject":"c"}]',
                    "application/cloudevents-batch+json", {}),
}


@pytest.mark.parametrize("what", BODIES)
def test_all_of_a_request_is_of_one_client(gateway, pg, what):
    body, content_type, query = BODIES[what]
    with without(gateway, "a") as stream:
        assert gateway.post(body, content_type, headers=[("X-Client-ID", "a")], **query).status == 201
        post(gateway, None, '"end"')
        assert data_until(stream, '"end"') == ['"end"']
    assert pg.execute("SELECT DISTINCT client FROM gateway.events ORDER BY 1") == [("a",), (None,)]


def test_requests_of_several_clients_share_a_batch(gateway, pg):
    with without(gateway, "1") as stream:
        clients = [str(number % 4) if number % 4 else None for number in range(80)]
        threads = [threading.Thread(target=post, args=(gateway, client, f'"{client}"'))
                   for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(scaled(30))
        post(gateway, None, '"end"')
        seen = data_until(stream, '"end"')
    assert sorted(seen) == sorted(['"end"', *(f'"{client}"' for client in clients if client != "1")])
    assert pg.value("SELECT count(*) FROM gateway.events WHERE client IS DISTINCT FROM"
                    " nullif(nullif(data #>> '{}', 'None'), 'end')") == 0


def test_prefixes_types_and_clients_go_together(gateway):
    with without(gateway, "a", channels=("d.*", "d.x", "c"), types=("s", "t")) as stream, \
            without(gateway, "nobody", channels=("d.*",)) as all_of_d:
        for channel, type, client, data in (
                ("d.x", "s", "a", "1"), ("d.x", "s", "b", "2"), ("d.x", "r", "b", "3"),
                ("d.y", "t", None, "4"), ("c", "t", "a", "5"), ("c", "t", "b", "6"),
                ("e", "t", "b", "7"), ("d", "t", "b", "8"), ("d.", "t", None, "9")):
            post(gateway, client, data, channel=channel, type=type)
        assert data_until(stream, "9") == ["2", "4", "6", "9"]
        assert data_until(all_of_d, "9") == ["1", "2", "3", "4", "9"]


def test_two_gateways_know_the_same_clients(pg, gateway_factory):
    one, two = gateway_factory(pg), gateway_factory(pg)
    with without(one, "a") as at_one, without(two, "a") as at_two:
        for number in range(1, 10):
            post((one, two)[number % 2], "a" if number % 3 == 0 else "b", str(number))
        last = post(one, None, "10")
        for stream in (at_one, at_two):
            assert data_until(stream, "10") == ["1", "2", "4", "5", "7", "8", "10"]
        assert at_one.last_id == at_two.last_id == last


def test_nothing_in_a_stream_or_an_event_tells_who_it_was(gateway):
    with gateway.subscribe("c") as stream, without(gateway, "other-one") as choosy:
        id = post(gateway, "some-one", "1")
        for each in (stream, choosy):
            assert each.next_event().id == id
            assert b"some-one" not in each.wire and b"other-one" not in each.wire
    answer = gateway.get(f"/events/{id}")
    assert answer.status == 200 and "client" not in answer.text and "some-one" not in answer.text


def test_who_hears_only_itself_has_a_young_id(pg, gateway_factory):
    def moved_on(stream):
        with pytest.raises(TimeoutError):
            stream.next_event(timeout=0.05)
        return stream.last_id == last

    gateway = gateway_factory(pg, {"stream.heartbeat": "200ms"})
    with without(gateway, "a") as stream:
        last = post(gateway, "a", "1")
        wait_until(lambda: moved_on(stream), "its id is that of its own event")


# -- from memory, from the table, and the newest ones ----------------------------------------

WISHES = [
    (("a",), ("c",), (), "channel = 'c' AND client IS DISTINCT FROM 'a'"),
    (("a", "b"), ("d.*",), (), "channel LIKE 'd.%' AND client IS NULL"),
    (("b",), ("*", "c"), ("r", "t"), "type IN ('r', 't') AND client IS DISTINCT FROM 'b'"),
    (("c",), ("c", "d.x"), (), "channel IN ('c', 'd.x') AND client IS DISTINCT FROM 'c'"),
]


@pytest.mark.parametrize("http10", [False, True], ids=["1.1", "1.0"])
@pytest.mark.parametrize("settings, restart", [({}, False), (SMALL, False), ({}, True), (SMALL, True)],
                         ids=["ring", "table", "restarted", "restarted-table"])
def test_who_comes_back_misses_others_and_not_its_own(pg, gateway_factory, settings, restart, http10):
    gateway = gateway_factory(pg, settings)
    fill(pg, 6000)
    if restart:
        gateway.stop()
        gateway = gateway_factory(pg, settings)
    first = int(rows(pg, "true")[0])
    for clients, channels, types, where in WISHES:
        for after in (first, first + 3000, first + 5900):
            expected = rows(pg, where, after)
            with without(gateway, *clients, channels=channels, types=types, last_event_id=str(after),
                         http10=http10) as stream:
                assert ids_of(stream, len(expected)) == expected
                post(gateway, clients[0], '"own"', type="r")
                end = post(gateway, None, '"end"', type="r", channel=channels[0].replace("*", "z"))
                assert stream.next_event().id == end


def test_who_was_far_away_does_too(pg, gateway_factory):
    """Farther than pages are shared for: these are of its own channels."""
    gateway = gateway_factory(pg, SMALL)
    fill(pg, 40000)
    first = rows(pg, "true")[0]
    for clients, channels, types, where in WISHES[:2]:
        expected = rows(pg, where, first)
        with without(gateway, *clients, channels=channels, types=types, last_event_id=first) as stream:
            assert ids_of(stream, len(expected)) == expected


def test_a_slow_reader_is_overtaken_and_does_without_its_own_all_the_same(pg, gateway_factory):
    gateway = gateway_factory(pg, SMALL)
    with without(gateway, "a", receive_buffer=4096) as stream:
        stream.keep_wire = False
        pg.execute("INSERT INTO gateway.events (channel, data, client)"
                   " SELECT 'c', to_json(repeat('x', 4000)), (ARRAY[NULL, 'a', 'b'])[n % 3 + 1]"
                   " FROM generate_series(1, 3000) n")
        gateway.wait_metric("pgsse_events_received_total", 3000, timeout=60)
        expected = rows(pg, "client IS DISTINCT FROM 'a'")
        assert len(expected) == 2000
        assert ids_of(stream, 2000) == expected
    assert gateway.metric("pgsse_streams_lagged_total") >= 1


@pytest.mark.parametrize("settings", [{}, SMALL], ids=["ring", "table"])
@pytest.mark.parametrize("count", [1, 5, 700])
def test_the_last_ones_are_those_it_would_get(pg, gateway_factory, settings, count):
    gateway = gateway_factory(pg, settings)
    fill(pg, 9000)
    # What this gateway has not seen yet comes in any case, be it more than the last.
    gateway.wait_metric("pgsse_head_seq", pg.value("SELECT max(seq) FROM gateway.events"))
    for clients, channels, types, where in WISHES:
        expected = rows(pg, where, newest=count)
        assert len(expected) == count
        with without(gateway, *clients, channels=channels, types=types,
                     parameters=[("last", str(count))]) as stream:
            assert ids_of(stream, count) == expected


def test_the_last_ones_of_which_all_are_its_own_are_none(gateway):
    for data in ("1", "2", "3"):
        post(gateway, "a", data)
    with without(gateway, "a", parameters=[("last", "3")]) as stream:
        post(gateway, "a", "4")
        post(gateway, "b", "5")
        assert stream.next_event().data == "5"


# -- published with SQL ----------------------------------------------------------------------


def clients_of(pg):
    """{data: client} of all events."""
    return dict(pg.execute("SELECT data::text, client FROM gateway.events"))


def test_a_session_says_who_it_is(gateway, pg):
    with without(gateway, "a") as stream, pg.connect(autocommit=True) as session:
        insert = "INSERT INTO gateway.events (channel, data) VALUES ('c', '{}')"
        session.execute(insert.format(1))
        session.execute("SET gateway.client_id = 'a'")
        session.execute(insert.format(2))
        session.execute("SELECT gateway.publish('c', '3')")
        with session.cursor().copy("COPY gateway.events (channel, data) FROM STDIN") as copy:
            copy.write_row(("c", "4"))
        session.execute("SET gateway.client_id = 'b'")
        session.execute(insert.format(5))
        session.execute("SET gateway.client_id = ''")
        session.execute(insert.format(6))
        session.execute("SELECT set_config('gateway.client_id', 'a', false)")
        session.execute(insert.format(7))
        session.execute("RESET gateway.client_id")
        session.execute(insert.format(8))
        assert data_until(stream, "8") == ["1", "5", "6", "8"]
    assert clients_of(pg) == {"1": None, "2": "a", "3": "a", "4": "a", "5": "b", "6": None, "7": "a",
                              "8": None}


def test_a_transaction_says_who_it_is_for_itself(pg):
    """What counts is what holds at the INSERT; a savepoint that is gone back to takes it back."""
    with pg.connect(autocommit=True) as session:
        insert = "INSERT INTO gateway.events (data) VALUES ('{}')"
        session.execute("SET gateway.client_id = 'a'")
        with session.transaction():
            session.execute("SET LOCAL gateway.client_id = 'b'")
            session.execute(insert.format(1))
            with session.transaction(force_rollback=True):
                session.execute("SET LOCAL gateway.client_id = 'c'")
            session.execute(insert.format(2))
            session.execute("SET LOCAL gateway.client_id = ''")
            session.execute(insert.format(3))
        session.execute(insert.format(4))
        with session.transaction(force_rollback=True):
            session.execute("SET gateway.client_id = 'd'")
        session.execute(insert.format(5))
    assert clients_of(pg) == {"1": "b", "2": "b", "3": None, "4": "a", "5": "a"}


def test_a_pooled_session_hands_nothing_on(pg):
    """As poolers leave a session for the next one: of transactions, or of whole sessions."""
    with pg.connect(autocommit=True) as session:
        insert = "INSERT INTO gateway.events (data) VALUES ('{}')"
        for number, reset in enumerate(("RESET ALL", "DISCARD ALL", "RESET gateway.client_id")):
            session.execute("SET gateway.client_id = 'a'")
            session.execute(insert.format(2 * number))
            session.execute(reset)
            session.execute(insert.format(2 * number + 1))
        with session.transaction():
            session.execute("SET LOCAL gateway.client_id = 'a'")
            session.execute(insert.format(6))
        session.execute(insert.format(7))
    assert clients_of(pg) == {str(number): "a" if number % 2 == 0 else None for number in range(8)}


def test_a_role_needs_no_right_to_say_who_it_is(cluster, pg):
    role = f"teller_{pg.name}"
    cluster.admin(f"CREATE ROLE {role} LOGIN")
    try:
        pg.execute(f"GRANT USAGE ON SCHEMA gateway TO {role}")
        pg.execute(f"GRANT INSERT (channel, type, data) ON gateway.events TO {role}")
        with psycopg.connect(cluster.dsn(pg.name, role), autocommit=True) as session:
            session.execute("INSERT INTO gateway.events (channel, type, data) VALUES ('c', 't', '1')")
            session.execute("SET gateway.client_id = 'a'")
            session.execute("INSERT INTO gateway.events (channel, type, data) VALUES ('c', 't', '2')")
            session.execute("SELECT gateway.publish('c', '3')")
            with pytest.raises(errors.InsufficientPrivilege):
                session.execute("INSERT INTO gateway.events (data, client) VALUES ('4', 'b')")
        assert clients_of(pg) == {"1": None, "2": "a", "3": "a"}
    finally:
        pg.execute(f"REVOKE ALL (channel, type, data) ON gateway.events FROM {role};"
                   f" REVOKE ALL ON SCHEMA gateway FROM {role}")
        cluster.admin(f"DROP ROLE {role}")


def test_what_a_gateways_own_session_says_is_nobodys_client(pg, gateway_factory):
    """Its connection string may be anybody's: who sends no header has no client."""
    pg.dsn = make_conninfo(pg.dsn, options="-c gateway.client_id=a")
    gateway = gateway_factory(pg)
    post(gateway, None, "1")
    post(gateway, "b", "2")
    pg.dsn = pg.cluster.dsn(pg.name)
    assert clients_of(pg) == {"1": None, "2": "b"}


def test_what_was_there_before_is_nobodys(pg, command):
    def migrate(direction):
        done = command("migrate", direction, settings={
            "database.dsn": make_conninfo(pg.dsn, options="-c gateway.client_id=a")})
        assert done.returncode == 0, done.stderr
        pg.close()

    pg.publish("c", "1")
    version = pg.value("SELECT version FROM gateway.migrations WHERE name LIKE '%client'")
    while pg.value("SELECT max(version) FROM gateway.migrations") >= version:
        migrate("down")
    pg.publish("c", "2")
    migrate("up")
    pg.publish("c", "3")
    assert clients_of(pg) == {"1": None, "2": None, "3": None}


# -- the same under a key ---------------------------------------------------------------------


def test_a_key_is_the_same_from_any_client(gateway, pg):
    def send(client):
        headers = [("Idempotency-Key", "k"), ("X-Client-ID", client)]
        return gateway.post("1", channel="c", headers=headers)

    with without(gateway, "a") as stream:
        first, again = send("a"), send("b")
        assert (first.status, again.status) == (201, 200)
        assert again.body == first.body
        post(gateway, None, "2")
        assert data_until(stream, "2") == ["2"]
    assert clients_of(pg) == {"1": "a", "2": None}


# -- what is not taken ------------------------------------------------------------------------

LONGEST = "ü" * 127 + "x"  # 255 bytes


@pytest.mark.parametrize("client", ["x", "a b", LONGEST, "*", '"quoted",{}', "日本"])
def test_a_client_may_be_any_name(gateway, client):
    with without(gateway, client) as stream:
        post(gateway, client, "1")
        post(gateway, None, "2")
        assert stream.next_event().data == "2"


def test_white_space_around_a_client_is_none_of_it(gateway, pg):
    post(gateway, " a \t", "1")
    assert clients_of(pg) == {"1": "a"}


@pytest.mark.parametrize("headers, what", [
    ([("X-Client-ID", "")], "X-Client-ID is empty"),
    ([("X-Client-ID", " ")], "X-Client-ID is empty"),
    ([("X-Client-ID", "x" * 256)], "X-Client-ID is longer than 255 bytes"),
    ([("X-Client-ID", "a\tb")], "X-Client-ID contains a control character"),
    ([("X-Client-ID", "a\x01")], "X-Client-ID contains a control character"),
    ([("X-Client-ID", "a\x7f")], "X-Client-ID contains a control character"),
    ([("X-Client-ID", "\x85")], "X-Client-ID contains a control character"),
    ([("X-Client-ID", b"\xff")], "X-Client-ID is not valid UTF-8"),
    ([("X-Client-ID", "a"), ("x-client-id", "a")], "two X-Client-ID headers"),
], ids=["empty", "blank", "long", "tab", "control", "delete", "c1", "not-utf8", "twice"])
def test_a_malformed_client_is_400(gateway, pg, headers, what):
    answer = gateway.post("1", channel="c", headers=headers)
    assert answer.status == 400, answer
    assert what in answer.problem(400)["detail"]
    assert clients_of(pg) == {}


@pytest.mark.parametrize("query, what", [
    ("exclude_client=", "exclude_client is empty"),
    ("exclude_client", "exclude_client is empty"),
    ("exclude_client=" + "x" * 256, "exclude_client is longer than 255 bytes"),
    ("exclude_client=a%09b", "exclude_client contains a control character"),
    ("exclude_client=a%0Ab", "exclude_client contains a control character"),
    ("exclude_client=%C2%80", "exclude_client contains a control character"),
    ("exclude_client=%FF", "exclude_client is not valid UTF-8"),
    ("&".join(f"exclude_client={number}" for number in range(17)), "more than 16 clients"),
    ("exclude_clients=a", "exclude_client"),
], ids=["empty", "no-value", "long", "tab", "newline", "c1", "not-utf8", "seventeen", "misspelt"])
def test_a_malformed_exclusion_is_400(gateway, query, what):
    assert what in gateway.get(f"/events?{query}").problem(400)["detail"]


def test_sixteen_clients_can_be_done_without(gateway):
    with without(gateway, *map(str, range(15)), LONGEST) as stream:
        for number in (0, 7, 14, 15):
            post(gateway, str(number), str(number))
        assert stream.next_event().data == "15"


@pytest.mark.parametrize("client", ["x" * 256, "ü" * 128, "a\nb", "a\x01", "\x7f", "\x85"])
def test_a_malformed_client_is_an_sql_error(pg, client):
    with pg.connect(autocommit=True) as session:
        session.execute("SELECT set_config('gateway.client_id', %s, false)", (client,))
        with pytest.raises(errors.CheckViolation, match="client_"):
            session.execute("INSERT INTO gateway.events (data) VALUES ('1')")
        session.execute("SELECT set_config('gateway.client_id', %s, false)", (LONGEST,))
        session.execute("INSERT INTO gateway.events (data) VALUES ('2')")
    assert clients_of(pg) == {"2": LONGEST}


def test_a_page_of_another_origin_may_say_who_it_is(pg, gateway_factory):
    gateway = gateway_factory(pg, {"http.cors_origins": "https://a.example"})
    answer = gateway.request("OPTIONS", "/events", [
        ("Origin", "https://a.example"), ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "content-type,x-client-id")])
    assert "x-client-id" in answer.headers.names_in("Access-Control-Allow-Headers")
