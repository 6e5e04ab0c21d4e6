/*
 * test_retention.c - what is kept only for a time is deleted when the time is over.
 */
#include "pg.h"

#include "failing_malloc.h"
#include "retention.h"
#include "thread.h"

struct world {
    struct pg pg;
    struct proxy proxy;
    struct stats *stats;
    struct retention *retention;
};

static void start(struct world *world, const char *dsn, uint64_t events_usec)
{
    struct err err = {0};

    world->retention = retention_new(&(struct retention_settings){
        .dsn = dsn,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .events_usec = events_usec,
        .stats = world->stats,
    });
    assert_non_null(world->retention);
    assert_int_equal(retention_start(world->retention, &err), 0);
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    world.stats = stats_new();
    *state = &world;
    return world.stats == NULL;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    retention_free(world->retention);
    stats_free(world->stats);
    proxy_close(&world->proxy);
    pg_close(&world->pg);
    return 0;
}

/* Numbered events that were published so long ago. */
static void add_events(struct world *world, int count, const char *age)
{
    char sql[300];

    snprintf(sql, sizeof(sql),
             "INSERT INTO gateway.events (seq, data, created_at) "
             "SELECT nextval('gateway.events_seq'), to_json(n), "
             "clock_timestamp() - interval '%s' FROM generate_series(1, %d) n",
             age, count);
    pg_run(world->pg.conn, sql);
}

static long long count_events(struct world *world)
{
    return pg_number(world->pg.conn, "SELECT count(*) FROM gateway.events");
}

static long long purged_seq(struct world *world)
{
    return pg_number(world->pg.conn, "SELECT max(seq) FROM gateway.purges");
}

static long long connections(struct world *world)
{
    return pg_number(world->pg.conn,
                     "SELECT count(*) FROM pg_stat_activity WHERE datname = "
                     "current_database() AND application_name = "
                     "'pg-sse-gateway/retention'");
}

static uint64_t purged(struct world *world)
{
    return stats_counter_value(world->stats, STATS_EVENTS_PURGED);
}

static void old_events_go_and_young_ones_stay(void **state)
{
    struct world *world = *state;

    add_events(world, 2500, "1 hour");
    add_events(world, 5, "1 minute");
    start(world, world->pg.dsn, 20 * USEC_PER_SEC);
    WAIT_FOR(purged(world) == 2505);
    add_events(world, 3, "0 s");
    WAIT_FOR(stats_gauge_value(world->stats, STATS_PURGED_SEQ) == 2505);
    assert_int_equal(count_events(world), 3);
    assert_int_equal(purged_seq(world), 2505);
}

static void what_becomes_old_later_goes_later(void **state)
{
    struct world *world = *state;

    add_events(world, 10, "1 hour");
    start(world, world->pg.dsn, 2 * USEC_PER_SEC);
    add_events(world, 10, "0 s");
    WAIT_FOR(purged(world) >= 10);
    WAIT_FOR(purged(world) == 20);
    assert_int_equal(count_events(world), 0);
}

static void keys_are_kept_as_long_as_events_but_at_least_a_day(void **state)
{
    struct world *world = *state;

    pg_run(world->pg.conn,
           "INSERT INTO gateway.idempotency_keys (key, digest, first_seq, created_at) "
           "SELECT n, '', n, pg_catalog.now() - n * interval '1 hour' "
           "FROM generate_series(1, 3000) n");
    add_events(world, 10, "1 hour");
    start(world, world->pg.dsn, USEC_PER_SEC);
    WAIT_FOR(purged(world) == 10);
    WAIT_FOR(stats_counter_value(world->stats, STATS_KEYS_PURGED) == 3000 - 23);
}

static void what_groups_were_handed_goes_with_its_events(void **state)
{
    struct world *world = *state;

    add_events(world, 2400, "1 hour");
    add_events(world, 100, "0 s");
    for (int i = 0; i < 3; i++)
        pg_run(world->pg.conn, "SELECT gateway.claim('events', 'workers', 1000, "
                               "start => 'earliest', max_bytes => 1 << 30)");
    start(world, world->pg.dsn, 60 * USEC_PER_SEC);
    WAIT_FOR(stats_counter_value(world->stats, STATS_DELIVERIES_PURGED) == 2400);
    assert_int_equal(pg_number(world->pg.conn, "SELECT min(seq) FROM gateway.deliveries"),
                     2401);
}

static void between_two_looks_there_is_no_connection(void **state)
{
    struct world *world = *state;

    add_events(world, 10, "1 hour");
    start(world, world->pg.dsn, 200 * USEC_PER_SEC); /* a look every 10 s */
    WAIT_FOR(purged(world) == 10);
    WAIT_FOR(connections(world) == 0);
    for (int i = 0; i < 3; i++) {
        const uint64_t beat = thread_last_beat(retention_thread(world->retention));

        WAIT_FOR(thread_last_beat(retention_thread(world->retention)) > beat);
        assert_int_equal(connections(world), 0);
    }
}

static void while_another_is_at_it_nothing_is_done_nor_waited_for(void **state)
{
    struct world *world = *state;
    PGconn *other = pg_connect(world->pg.dsn);

    add_events(world, 10, "1 hour");
    pg_run(other, "SELECT pg_advisory_lock(1885827955, 2)");
    start(world, world->pg.dsn, 2 * USEC_PER_SEC);
    add_events(world, 1, "0 s");
    for (int looks = 0; looks < 3; looks++) { /* it comes and goes */
        WAIT_FOR(connections(world) == 1);
        WAIT_FOR(connections(world) == 0);
    }
    assert_int_equal(count_events(world), 11);
    PQfinish(other);
    WAIT_FOR(count_events(world) == 0);
}

static void a_database_that_is_away_is_tried_again(void **state)
{
    struct world *world = *state;
    char sql[160];

    add_events(world, 10, "1 hour");
    snprintf(sql, sizeof(sql), "ALTER DATABASE %s ALLOW_CONNECTIONS false",
             world->pg.name);
    pg_run(world->pg.admin, sql);
    start(world, world->pg.dsn, 2 * USEC_PER_SEC);
    usleep(2500000);
    assert_int_equal(purged(world), 0);
    snprintf(sql, sizeof(sql), "ALTER DATABASE %s ALLOW_CONNECTIONS true",
             world->pg.name);
    pg_run(world->pg.admin, sql);
    WAIT_FOR(purged(world) == 10);
}

static void a_read_only_database_is_left_alone(void **state)
{
    struct world *world = *state;
    char sql[160];

    add_events(world, 10, "1 hour");
    snprintf(sql, sizeof(sql), "ALTER DATABASE %s SET default_transaction_read_only = on",
             world->pg.name);
    pg_run(world->pg.admin, sql);
    start(world, world->pg.dsn, 2 * USEC_PER_SEC);
    usleep(2500000);
    assert_int_equal(count_events(world), 10);
    snprintf(sql, sizeof(sql), "ALTER DATABASE %s RESET default_transaction_read_only",
             world->pg.name);
    pg_run(world->pg.admin, sql);
    WAIT_FOR(count_events(world) == 0);
}

static void a_newer_schema_is_left_alone(void **state)
{
    struct world *world = *state;

    add_events(world, 10, "1 hour");
    pg_run(world->pg.conn, "INSERT INTO gateway.migrations VALUES (99, 'later')");
    start(world, world->pg.dsn, 2 * USEC_PER_SEC);
    WAIT_FOR(connections(world) == 1);
    WAIT_FOR(connections(world) == 0);
    usleep(500000);
    assert_int_equal(count_events(world), 10);
    pg_run(world->pg.conn, "DELETE FROM gateway.migrations WHERE version = 99");
    WAIT_FOR(count_events(world) == 0);
}

static void stopping_does_not_wait_for_a_frozen_server(void **state)
{
    struct world *world = *state;

    add_events(world, 20000, "1 hour");
    start(world, world->proxy.dsn, 2 * USEC_PER_SEC);
    WAIT_FOR(purged(world) >= 1000);
    proxy_set(&world->proxy, PROXY_FREEZE);
    uint64_t begin = clock_usec();
    retention_stop(world->retention);
    assert_true(clock_usec() - begin <
                4 * USEC_PER_SEC); /* no query is given so little */
    retention_stop(world->retention);

    /* What it has counted is gone, in whole batches, and the rest is there. */
    long long left = count_events(world);
    assert_int_equal(left % 1000, 0);
    assert_true(left <= 20000 - (long long)purged(world));
    WAIT_FOR(purged_seq(world) == 20000 - count_events(world));
}

static void a_cut_connection_is_made_again(void **state)
{
    struct world *world = *state;

    add_events(world, 30000, "1 hour");
    start(world, world->pg.dsn, 2 * USEC_PER_SEC);
    WAIT_FOR(purged(world) >= 1000);
    WAIT_FOR(pg_kill(&world->pg, "retention") == 1);
    WAIT_FOR(count_events(world) == 0);
    assert_int_equal(purged_seq(world), 30000);
}

static void without_memory_there_is_none(void **state)
{
    struct retention *retention;

    (void)state;
    for (unsigned n = 1;; n++) {
        failing_malloc_begin(n);
        retention = retention_new(
            &(struct retention_settings){.dsn = "dbname=x", .password = "p"});
        if (!failing_malloc_end())
            break;
        assert_null(retention);
    }
    assert_non_null(retention);
    retention_free(retention);
    retention_free(NULL);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(old_events_go_and_young_ones_stay),
        WITH_PG(what_becomes_old_later_goes_later),
        WITH_PG(keys_are_kept_as_long_as_events_but_at_least_a_day),
        WITH_PG(what_groups_were_handed_goes_with_its_events),
        WITH_PG(between_two_looks_there_is_no_connection),
        WITH_PG(while_another_is_at_it_nothing_is_done_nor_waited_for),
        WITH_PG(a_database_that_is_away_is_tried_again),
        WITH_PG(a_read_only_database_is_left_alone),
        WITH_PG(a_newer_schema_is_left_alone),
        WITH_PG(stopping_does_not_wait_for_a_frozen_server),
        WITH_PG(a_cut_connection_is_made_again),
        cmocka_unit_test(without_memory_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
