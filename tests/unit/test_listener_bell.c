/*
 * test_listener_bell.c - the bell that wakes the listener: rung for while it sleeps, not while
 * it is awake, and never needed for more than speed.
 */
#include "listener_world.h"

static long long locks(struct world *world, int key, const char *mode)
{
    char sql[300];

    snprintf(sql, sizeof(sql),
             "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND "
             "objid = %d AND mode = '%s' AND database = (SELECT oid FROM pg_database "
             "WHERE datname = current_database())",
             key, mode);
    return pg_number(world->pg.conn, sql);
}

static bool is_asleep(struct world *world)
{
    return locks(world, 3, "ExclusiveLock") == 1;
}

static int rings(PGconn *conn)
{
    PGnotify *notification;
    int count = 0;

    pg_run(conn, "SELECT 1");
    while ((notification = PQnotifies(conn)) != NULL) {
        count++;
        PQfreemem(notification);
    }
    return count;
}

static int rings_of_many(struct world *world, PGconn *ear)
{
    for (int i = 0; i < 100; i++)
        pg_run(world->pg.conn, INSERT);
    return rings(ear);
}

static void asleep_it_is_rung_for_and_awake_it_is_not(void **state)
{
    struct world *world = *state;
    PGconn *ear = pg_connect(world->pg.dsn);

    pg_run(ear, "LISTEN gateway_wake");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    pg_run(world->pg.conn, INSERT);
    wait_for_events(world, 1);
    assert_int_equal(rings(ear), 1);

    /* Some ring before it is up; then none of a hundred. */
    assert_true(rings_of_many(world, ear) >= 1);
    WAIT_FOR(rings_of_many(world, ear) == 0);
    WAIT_FOR(is_asleep(world));
    pg_run(world->pg.conn, INSERT);
    wait_for_events(world, 1);
    assert_true(rings(ear) >= 1);
    PQfinish(ear);
}

/* Leaves a transaction open that has been told not to ring. While the listener sleeps nobody
 * is told so: it is kept awake until it has been. */
static void hold_bell(struct world *world, PGconn *open)
{
    for (int count = 0;; count++) {
        pg_run(open, "BEGIN; SET CONSTRAINTS ALL IMMEDIATE; " INSERT);
        if (locks(world, 3, "ShareLock") == 1) {
            assert_int_equal(count > 0, world->listener != NULL);
            return;
        }
        pg_run(open, "COMMIT");
        wait_for_events(world, 1);
    }
}

/* Transactions that have been told not to ring: the sweeper does not lie down until their
 * rows can be seen. Nobody rings meanwhile; what others write comes by the poll. */
static void who_was_told_not_to_ring_does_not_wait_for_the_look(void **state)
{
    struct world *world = *state;
    PGconn *open = pg_connect(world->pg.dsn);

    hold_bell(world, open);
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    usleep(1500000); /* as slow as it ever polls */
    assert_false(is_asleep(world));
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, TIMES), 0, SOON_USEC);

    /* What it has waited for comes by the poll, and not a second after it fell asleep. */
    uint64_t times[TIMES];
    for (int i = 0; i < TIMES; i++) {
        usleep(400000);
        const uint64_t begin = clock_usec();
        pg_run(open, "COMMIT");
        wait_for_events(world, 1);
        times[i] = clock_usec() - begin;
        WAIT_FOR(is_asleep(world));
        hold_bell(world, open);
    }
    assert_uint_in_range(median(times, TIMES), 0, SOON_USEC);
    PQfinish(open);
}

/* A transaction that is open for long rings when it is committed. */
static void a_long_transaction_keeps_nobody_awake_and_comes_at_once(void **state)
{
    struct world *world = *state;
    PGconn *open[TIMES];
    uint64_t times[TIMES];

    for (int i = 0; i < TIMES; i++) {
        open[i] = pg_connect(world->pg.dsn);
        pg_run(open[i], "BEGIN; " INSERT);
    }
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    for (int i = 0; i < TIMES; i++) {
        usleep(37000);
        const uint64_t begin = clock_usec();
        pg_run(open[i], "COMMIT");
        wait_for_events(world, 1);
        times[i] = clock_usec() - begin;
        PQfinish(open[i]);
    }
    assert_uint_in_range(median(times, TIMES), 0, SOON_USEC);
}

/* Of two, one has the duty. When it is gone the other one takes it over. */
static void the_duty_passes_on(void **state)
{
    struct world *world = *state;
    struct ring *ring = world->ring;

    world->ring = ring_new(MIB, 1); /* the first one's own */
    assert_non_null(world->ring);
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    struct listener *first = world->listener;
    struct ring *first_ring = world->ring;
    world->ring = ring;
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_int_equal(locks(world, 4, "ExclusiveLock"), 1);
    listener_stop(first);
    pg_run(world->pg.conn, INSERT);
    WAIT_FOR(is_asleep(world));
    assert_int_equal(locks(world, 4, "ExclusiveLock"), 1);
    wait_for_events(world, 1);
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, TIMES), 0, SOON_USEC);
    listener_free(first);
    ring_free(first_ring);
}

/* One that has the duty, and is frozen while it sleeps, is rung for in vain: the other one
 * hears it too. */
static void off_duty_it_hears_what_the_one_on_duty_does_not(void **state)
{
    struct world *world = *state;
    PGconn *frozen = pg_connect(world->pg.dsn);

    pg_run(frozen, "SELECT pg_advisory_lock(1885827955, 3), "
                   "pg_advisory_lock(1885827955, 4)");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, TIMES), 0, SOON_USEC);
    PQfinish(frozen);
    WAIT_FOR(is_asleep(world));
}

/* The worst: frozen while it polled. Nobody rings, and the look once a second finds it. */
static void frozen_on_duty_and_awake_costs_a_second(void **state)
{
    struct world *world = *state;
    PGconn *frozen = pg_connect(world->pg.dsn);

    pg_run(frozen, "SELECT pg_advisory_lock(1885827955, 4)");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, 3), 0,
                         3 * USEC_PER_SEC / 2);
    PQfinish(frozen);
    WAIT_FOR(is_asleep(world));
}

static long long transactions(struct world *world)
{
    char sql[200];

    snprintf(
        sql, sizeof(sql),
        "SELECT pg_stat_get_db_xact_commit(oid) FROM pg_database WHERE datname = '%s'",
        world->pg.name);
    return pg_number(world->pg.admin, sql);
}

/* PostgreSQL tells it late, and some at a time: looked at when it has just told some. */
static long long told_transactions(struct world *world)
{
    const long long before = transactions(world);
    long long now;

    WAIT_FOR((now = transactions(world)) != before);
    return now;
}

/* What happens in the world's database meanwhile is the listener's alone. */
static void an_idle_database_stays_idle(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    sleep(3); /* until all of the beginning is told */
    const long long before = told_transactions(world);
    const uint64_t begin = clock_usec();
    sleep(4);
    const long long count = told_transactions(world) - before;
    const long long seconds = (long long)((clock_usec() - begin) / USEC_PER_SEC);
    assert_uint_in_range(count, 3, 3 * seconds + 5); /* three a second */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PG(asleep_it_is_rung_for_and_awake_it_is_not),
        WITH_PG(who_was_told_not_to_ring_does_not_wait_for_the_look),
        WITH_PG(a_long_transaction_keeps_nobody_awake_and_comes_at_once),
        WITH_PG(the_duty_passes_on),
        WITH_PG(off_duty_it_hears_what_the_one_on_duty_does_not),
        WITH_PG(frozen_on_duty_and_awake_costs_a_second),
        WITH_PG(an_idle_database_stays_idle),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
