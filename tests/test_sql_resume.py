"""Migration 0003: pages, places and lives, asked of the functions themselves, with the rights
that the documentation asks for and on tables that are large."""

import itertools
import threading

import psycopg
import pytest
from psycopg import errors

from harness.waiting import scaled

LIFE = 2 ** 40

# What the gateway's question looks like, so that its plan is looked at, too.
PAGE = ("SELECT p.through, h.newest, h.purged, h.oldest, h.lost, h.standby, e.seq, e.channel, e.type, e.data, e.client"
        " FROM gateway.horizon($1) h, gateway.replay_page($2, $1, 500, 262144, 20000) p"
        " LEFT JOIN gateway.events e ON e.seq = ANY (p.seqs) ORDER BY e.seq")


@pytest.fixture
def pg(pg):
    """Numbers begin at 1: the copy of a database would begin a block of its own. And each life
    begins with the next block, not with one farther on."""
    pg.execute("UPDATE gateway.incarnations SET identity = gateway.identity()")
    pg.execute("CREATE OR REPLACE FUNCTION gateway.leap_ahead() RETURNS void"
               " LANGUAGE sql AS 'SELECT'")
    return pg


def publish(database, count, channel="'c'", data="to_json(n)::text", type="'message'",
            client=None):
    """Numbered events, all of one commit; channel, data, type and client as SQL says, with `n`."""
    clients = f", clients => array_agg(({client})::text ORDER BY n)" if client else ""
    return database.value(
        f"SELECT (gateway.publish_batch(array_agg(({channel})::text ORDER BY n),"
        f" array_agg(({type})::text ORDER BY n), array_agg(({data})::text ORDER BY n){clients})"
        ").first_seq FROM generate_series(1, %s) n", (count,))


def begin_life(database):
    """As after a promotion or from a restored dump: the next to number begins a new block."""
    database.execute("UPDATE gateway.incarnations SET identity = 'elsewhere' WHERE base ="
                     " (SELECT max(base) FROM gateway.incarnations)")
    database.execute("SELECT gateway.lock_order()")


def page(database, patterns, after, rows=500, size=262144, stretch=20000):
    seqs, through = database.execute(
        "SELECT * FROM gateway.replay_page(%s, %s, %s, %s, %s)",
        ("\n".join(patterns), after, rows, size, stretch))[0]
    return seqs, through


def newest_after(database, patterns, wanted, types=(), stretch=100000, without=()):
    return database.value("SELECT gateway.newest_after(%s, %s, %s, %s, %s)",
                          ("\n".join(patterns), "\n".join(types), wanted, stretch,
                           "\n".join(without)))


def horizon(database, after=0):
    return database.execute("SELECT * FROM gateway.horizon(%s)", (after,))[0]


# -- pages ----------------------------------------------------------------------------------


def test_a_page_has_all_events_up_to_where_it_says(pg):
    publish(pg, 1000, "(ARRAY['a', 'b', 'b.c', 'x'])[n %% 4 + 1]")
    wanted = {patterns: [seq for seq, channel in pg.execute(
        "SELECT seq, channel FROM gateway.events ORDER BY seq")
        if any(channel == p or p.endswith("*") and channel.startswith(p[:-1])
               for p in patterns)]
        for patterns in (("a",), ("b*",), ("a", "b.*"), ("*",), ("none",), ("none*", "x"), ("",),
                         ("a", "a", "x"))}
    for patterns, all_seqs in wanted.items():
        for rows, stretch in ((1, 1), (7, 10), (100, 33), (500, 20000), (1000, 1000), (2000, 5000)):
            seen, after = [], 0
            while after < 1000:
                seqs, through = page(pg, patterns, after, rows=rows, stretch=stretch)
                assert through > after and len(seqs) <= rows
                assert seqs == [s for s in all_seqs if after < s <= through], (patterns, rows)
                seen += seqs
                after = through
                if rows == 1 and after > 60:
                    break
            assert seen == [s for s in all_seqs if s <= after]
        assert page(pg, patterns, 1000) == ([], 1000)
        assert page(pg, patterns, 2 ** 62) == ([], 1000)


def test_names_are_names_and_not_patterns(pg):
    channels = ["a*b", "a%", "a_", "a\\", "ab", "a", "ä.ö", "ä", "A", "a ", "'", "a'b"]
    for channel in channels:
        pg.execute("SELECT gateway.publish_batch(ARRAY[%s], ARRAY['t'], ARRAY['1'])", (channel,))
    for number, channel in enumerate(channels, 1):
        assert page(pg, [channel], 0)[0] == [number], channel
        starting = [n for n, other in enumerate(channels, 1) if other.startswith(channel)]
        assert page(pg, [channel + "*"], 0)[0] == starting, channel
    assert newest_after(pg, ["a%*"], 5) == 1
    assert newest_after(pg, ["ä*"], 5) == 6


def test_a_page_is_bounded_by_what_its_data_weigh(pg):
    noise = "(SELECT to_json(string_agg(md5((n * 1000 + i)::text), '')) FROM generate_series(1, 32) i)"
    publish(pg, 50, data=noise)  # 1026 bytes each, and a word of length
    weight = pg.value("SELECT pg_column_size(data) FROM gateway.events LIMIT 1")
    for patterns in (["c"], ["*"]):
        assert page(pg, patterns, 0, size=10 * weight) == (list(range(1, 11)), 10)
        assert page(pg, patterns, 0, size=10 * weight - 1) == (list(range(1, 10)), 9)
        assert page(pg, patterns, 7, size=1) == ([8], 8)
        assert page(pg, patterns, 45, size=6 * weight) == (list(range(46, 51)), 50)


def test_what_is_committed_meanwhile_is_in_no_page_by_half(pg):
    """Pages one after the other, while others publish and number: together they are all."""
    stop = threading.Event()
    failures = []

    def write(number):
        try:
            with pg.connect(autocommit=True) as connection:
                while not stop.is_set():
                    if number % 2:
                        connection.execute("INSERT INTO gateway.events (channel, data) SELECT"
                                           " 'c', to_json(n) FROM generate_series(1, 5) n")
                        connection.execute("SELECT gateway.sweep()")
                    else:
                        connection.execute("SELECT gateway.publish_batch(ARRAY['c', 'd'],"
                                           " ARRAY['t', 't'], ARRAY['1', '2'])")
        except Exception as failure:  # shown below
            failures.append(failure)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    seen, after, turns = {"c": [], "c*": []}, {"c": 0, "c*": 0}, 0
    try:
        while len(seen["c"]) < 1500 and turns < 100000 and not failures:
            for patterns in seen:
                seqs, through = page(pg, [patterns], after[patterns], rows=20, stretch=30)
                seen[patterns] += seqs
                after[patterns] = through
            turns += 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(scaled(30))
    assert not failures
    for patterns in seen:
        assert len(seen[patterns]) > 500
        assert seen[patterns] == [seq for seq, in pg.execute(
            "SELECT seq FROM gateway.events WHERE channel = 'c' AND seq <= %s ORDER BY seq",
            (after[patterns],))]


# -- places ---------------------------------------------------------------------------------


def test_the_newest_begin_where_they_should(pg):
    publish(pg, 300, "(ARRAY['a', 'b', 'b.c'])[n %% 3 + 1]", type="(ARRAY['t', 'u'])[n %% 2 + 1]",
            client="(ARRAY[NULL, 'k', 'l'])[n / 5 %% 3 + 1]")
    rows = pg.execute("SELECT seq, channel, type, client FROM gateway.events ORDER BY seq DESC")
    for patterns, types, without in itertools.product(
            (["a"], ["b*"], ["a", "b.*"], ["*"], ["none"], ["none*"]),
            ((), ("t",), ("u", "x"), ("x",)), ((), ("k",), ("l", "k"), ("x",))):
        found = [seq for seq, channel, type, client in rows
                 if any(channel == p or p.endswith("*") and channel.startswith(p[:-1])
                        for p in patterns)
                 and (not types or type in types) and client not in without]
        for wanted in (1, 2, 10, 1000):
            first = found[:wanted][-1] - 1 if found else 300
            assert newest_after(pg, patterns, wanted, types, without=without) == first, \
                (patterns, types, without)


def test_a_type_is_looked_for_in_a_stretch_only(pg):
    publish(pg, 1000, type="CASE WHEN n IN (100, 950) THEN 'rare' ELSE 'often' END")
    assert newest_after(pg, ["c"], 2, ["rare"], stretch=100) == 949
    assert newest_after(pg, ["c"], 2, ["rare"], stretch=1000) == 99
    assert newest_after(pg, ["*"], 2, ["rare"], stretch=100) == 949
    assert newest_after(pg, ["c"], 2, ["rare"], stretch=10) == 1000


def test_who_is_not_excluded_is_looked_for_in_a_stretch_only(pg):
    publish(pg, 1000, client="CASE WHEN n NOT IN (100, 950) THEN 'k' END")
    assert newest_after(pg, ["c"], 2, without=["k"], stretch=100) == 949
    assert newest_after(pg, ["c"], 2, without=["k"], stretch=1000) == 99
    assert newest_after(pg, ["*"], 2, without=["k"], stretch=100) == 949
    assert newest_after(pg, ["c"], 2, without=["k"], stretch=10) == 1000


def test_oldest_newest_and_horizon_know_what_was_deleted(pg):
    def all_of_it():
        return (pg.value("SELECT gateway.oldest_seq()"), pg.value("SELECT gateway.newest_seq()"),
                horizon(pg)[:2])

    assert all_of_it() == (0, 0, (0, 0))
    publish(pg, 10)
    assert all_of_it() == (0, 10, (10, 0))
    pg.execute("DELETE FROM gateway.events WHERE seq <= 4")
    assert all_of_it() == (4, 10, (10, 4))
    pg.execute("DELETE FROM gateway.events WHERE seq = 10")
    assert all_of_it() == (4, 10, (10, 10))
    pg.execute("DELETE FROM gateway.events")
    assert all_of_it() == (10, 10, (10, 10))
    begin_life(pg)
    assert all_of_it() == (LIFE, LIFE, (LIFE, 10))
    publish(pg, 1)
    assert all_of_it() == (LIFE, LIFE + 1, (LIFE + 1, 10))


def test_a_gateway_begins_with_the_newest_of_this_life_without_holes(pg):
    def recent(rows=1000, size=2 ** 40):
        return pg.value("SELECT gateway.recent_after(%s, %s)", (rows, size))

    assert recent() == 0
    publish(pg, 100)
    assert recent() == 0
    assert recent(rows=10) == 90
    assert recent(size=0) == 100
    weight = 200 + pg.value("SELECT pg_column_size(data) FROM gateway.events WHERE seq = 100")
    assert recent(size=weight) == 99
    assert recent(size=weight - 1) == 100
    pg.execute("DELETE FROM gateway.events WHERE seq = 60")
    assert recent() == 60
    begin_life(pg)
    assert recent() == LIFE
    publish(pg, 3)
    assert recent() == LIFE
    assert recent(rows=1) == LIFE + 2


# -- lives ----------------------------------------------------------------------------------


def test_the_horizon_tells_what_lies_between_lives(pg):
    assert horizon(pg) == (0, 0, 0, "", False)
    publish(pg, 7)
    begin_life(pg)
    begin_life(pg)  # one in which nothing was published
    publish(pg, 2)
    begin_life(pg)
    assert horizon(pg)[3] == f"7 {LIFE} {LIFE} {2 * LIFE} {2 * LIFE + 2} {3 * LIFE}"
    assert horizon(pg, LIFE)[3] == f"{LIFE} {2 * LIFE} {2 * LIFE + 2} {3 * LIFE}"
    assert horizon(pg, 3 * LIFE)[3] == ""


def test_an_id_that_was_seen_and_is_not_there_begins_a_new_life(pg):
    publish(pg, 10)
    for seen in (1, 10):
        pg.execute("SELECT gateway.has_seen(%s)", (seen,))
    assert pg.value("SELECT count(*) FROM gateway.incarnations") == 1
    pg.execute("SELECT gateway.has_seen(12)")
    assert publish(pg, 1) == LIFE + 1
    assert horizon(pg)[3] == f"10 {LIFE}"
    # Of a later life than any that this database knows.
    pg.execute("SELECT gateway.has_seen(%s)", (5 * LIFE + 3,))
    assert publish(pg, 1) == 6 * LIFE + 1
    assert horizon(pg, 11)[3] == f"10 {LIFE} {LIFE + 1} {6 * LIFE}"


def test_gateways_that_have_seen_the_same_begin_one_life(pg):
    publish(pg, 10)
    with pg.connect() as first, pg.connect() as second:
        first.execute("SELECT gateway.has_seen(12)")
        late = threading.Thread(target=lambda: (
            second.execute("SELECT gateway.has_seen(15)"), second.commit()))
        late.start()
        first.commit()
        late.join(scaled(30))
        assert not late.is_alive()
    assert pg.value("SELECT count(*) FROM gateway.incarnations") == 2
    assert publish(pg, 1) == LIFE + 1


# -- rights ---------------------------------------------------------------------------------

CALLS = ["gateway.newest_seq()", "gateway.has_seen(5)", "gateway.horizon(0)",
         "gateway.replay_page('c', 0, 10, 10, 10)", "gateway.oldest_seq()",
         "gateway.newest_after('c', '', 5, 10)", "gateway.recent_after(10, 10)"]


@pytest.fixture
def role(cluster, pg):
    """make(grants...) -> a connection of a role that has just these rights."""
    made = []

    def make(name, *grants):
        name = f"{name}_{pg.name}"
        cluster.admin(f"CREATE ROLE {name} LOGIN")
        made.append(name)
        for grant in grants:
            pg.execute(f"GRANT {grant} TO {name}")
        return psycopg.connect(cluster.dsn(pg.name, name), autocommit=True)

    yield make
    for name in made:
        pg.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA gateway FROM {name};"
                   f" REVOKE ALL ON ALL SEQUENCES IN SCHEMA gateway FROM {name};"
                   f" REVOKE ALL ON ALL FUNCTIONS IN SCHEMA gateway FROM {name};"
                   f" REVOKE ALL (channel, type, data) ON gateway.events FROM {name};"
                   f" REVOKE ALL ON SCHEMA gateway FROM {name}")
        cluster.admin(f"DROP ROLE {name}")


def test_a_gateway_that_owns_nothing_can_do_it_all(pg, role):
    publish(pg, 3)
    with role("porter", "USAGE ON SCHEMA gateway", "ALL ON ALL TABLES IN SCHEMA gateway",
              "ALL ON ALL SEQUENCES IN SCHEMA gateway",
              "EXECUTE ON ALL FUNCTIONS IN SCHEMA gateway") as porter:
        assert porter.execute("SELECT * FROM gateway.replay_page('c', 0, 10, 999, 10)").fetchall() \
            == [([1, 2, 3], 3)]
        for call in CALLS:  # has_seen() begins a new life
            porter.execute(f"SELECT {call}")
        assert pg.value("SELECT gateway.newest_seq()") == LIFE


def test_who_may_publish_may_not_read(pg, role):
    publish(pg, 3)
    with role("application", "USAGE ON SCHEMA gateway",
              "INSERT (channel, type, data) ON gateway.events") as application:
        application.execute("SELECT gateway.publish('c', '1')")
        for call in CALLS:
            with pytest.raises(errors.InsufficientPrivilege):
                application.execute(f"SELECT {call}")


def test_a_server_that_takes_no_writes_answers(pg):
    publish(pg, 3)
    with pg.connect(autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = on")
        for call in CALLS:
            if "has_seen" not in call:
                connection.execute(f"SELECT {call}")
        with pytest.raises(errors.ReadOnlySqlTransaction):
            connection.execute("SELECT gateway.has_seen(5)")


# -- there and back -------------------------------------------------------------------------


def test_the_migration_goes_down_and_up_with_lives_and_events(pg, command):
    def migrate(*arguments):
        done = command("migrate", *arguments, settings={"database.dsn": pg.dsn})
        assert done.returncode == 0, done.stderr

    publish(pg, 7)
    begin_life(pg)
    publish(pg, 2)
    pg.close()
    while pg.value("SELECT max(version) FROM gateway.migrations") > 2:
        pg.close()
        migrate("down")
    assert not pg.value("SELECT EXISTS (SELECT FROM pg_proc WHERE proname IN ('newest_seq',"
                        " 'has_seen', 'horizon', 'replay_page', 'oldest_seq', 'newest_after',"
                        " 'recent_after'))")
    begin_life(pg)  # as it was done before
    assert publish(pg, 1) == 2 * LIFE + 1
    pg.close()
    migrate("up")
    assert horizon(pg) == (2 * LIFE + 1, 0, 0, f"7 {LIFE} {LIFE + 2} {2 * LIFE}", False)
    assert page(pg, ["c"], 5) == ([6, 7, LIFE + 1, LIFE + 2, 2 * LIFE + 1], 2 * LIFE + 1)
    begin_life(pg)
    assert horizon(pg, 2 * LIFE)[3].startswith(f"{2 * LIFE + 1} ")


# -- what it costs --------------------------------------------------------------------------

ROWS = 300_000


def blocks(connection, sql):
    """Blocks that the statement touches, in the cache or not, with all it calls."""
    plan = connection.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}").fetchone()[0][0]
    return plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]


@pytest.mark.timeout(scaled(300))
def test_a_rare_channel_is_found_without_walking_over_the_others(pg):
    """Three events among 300 000, at both ends and in the middle."""
    pg.execute("ALTER TABLE gateway.events SET (autovacuum_enabled = off)")
    publish(pg, ROWS, "CASE WHEN n IN (5, 150000, 299990) THEN 'rare' ELSE 'c' || n %% 10 END",
            "'1'")
    rare = [5, 150000, 299990]
    with pg.connect(autocommit=True) as connection:
        connection.prepare_threshold = None  # what is prepared, the test prepares
        for analyzed in (False, True):
            if analyzed:
                connection.execute("ANALYZE gateway.events")
            for mode in ("auto", "force_custom_plan", "force_generic_plan"):
                connection.execute("DISCARD ALL")
                connection.execute(f"SET plan_cache_mode = {mode}")
                connection.execute(f"PREPARE page (bigint, text) AS {PAGE}")
                for turn in range(8):  # from the sixth on `auto` takes a generic plan, too
                    found = connection.execute("EXECUTE page (1, 'rare')").fetchall()
                    assert [row[6] for row in found] == rare
                    costs = {sql: blocks(connection, sql) for sql in (
                        "EXECUTE page (1, 'rare')",
                        "EXECUTE page (200000, E'none\\nrare')",
                        "EXECUTE page (299999, '*')",
                        "SELECT gateway.newest_after('rare', '', 5, 100000)",
                        "SELECT gateway.newest_after(E'rare\\nnone', 'message', 2, 100000)",
                        "SELECT gateway.newest_after('*', '', 5, 100000)",
                        "SELECT gateway.newest_after(E'rare\\nnone', '', 2, 100000, 'nobody')",
                        "SELECT gateway.newest_after('*', '', 5, 100000, 'nobody')",
                        "SELECT gateway.oldest_seq()",
                        "SELECT gateway.recent_after(10, 100000)",
                        "SELECT * FROM gateway.horizon(1)")}
                    # The table and its indexes are some 5 000 blocks.
                    assert max(costs.values()) < 400, (analyzed, mode, turn, costs)
                # Five hundred rows are looked up one by one, by a path of a few blocks each.
                assert blocks(connection, "EXECUTE page (100, 'c1')") < 8000
