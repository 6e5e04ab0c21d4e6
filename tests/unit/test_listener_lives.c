/*
 * test_listener_lives.c - events that are not there any more: deleted unseen, or of a life of
 * the database that is over. Readers of the ring are told; nothing comes as if it were all.
 */
#include "listener_world.h"

#include "log.h"

#define LIFE ((uint64_t)1 << 40)

static _Atomic int lives_told, deletions_told;

static void look_for_losses(enum log_level level, const char *line)
{
    if (level != LOG_LEVEL_WARNING)
        return;
    if (strstr(line, "has begun a new life") != NULL)
        atomic_fetch_add_explicit(&lives_told, 1, memory_order_relaxed);
    if (strstr(line, "deleted before they were seen") != NULL)
        atomic_fetch_add_explicit(&deletions_told, 1, memory_order_relaxed);
}

static void expect_told(int lives, int deletions)
{
    assert_int_equal(atomic_load_explicit(&lives_told, memory_order_relaxed), lives);
    assert_int_equal(atomic_load_explicit(&deletions_told, memory_order_relaxed),
                     deletions);
}

/* With two events seen. */
static void start_and_see_two(struct world *world, const char *dsn)
{
    atomic_store_explicit(&lives_told, 0, memory_order_relaxed);
    atomic_store_explicit(&deletions_told, 0, memory_order_relaxed);
    log_set_sink(look_for_losses);
    start(world, dsn);
    WAIT_FOR(is_listening(world));
    publish(world, "1");
    publish(world, "2");
    wait_for_events(world, 2);
}

static void stop_looking(struct world *world)
{
    listener_stop(world->listener);
    log_set_sink(NULL);
}

/* A disk's snapshot was restored, say: nothing in the database tells of it. */
static void a_database_that_went_back_begins_a_new_life(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn,
           "DELETE FROM gateway.events WHERE seq = 2; DELETE FROM gateway.purges; "
           "SELECT setval('gateway.events_seq', 1)");
    pg_kill(&world->pg, "listener");
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), LIFE);
    publish(world, "3");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, LIFE + 1);
    expect_told(1, 0);
    assert_int_equal(pg_number(world->pg.conn,
                               "SELECT previous_end FROM gateway.incarnations WHERE "
                               "base > 0"),
                     1);
    stop_looking(world);
}

/* As after a promotion behind a pooler: the connection stands. The first events of the new
 * life may not come before those of the old are told to be lost. */
static void a_new_life_under_a_standing_connection_restarts_the_ring(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn, "UPDATE gateway.incarnations SET identity = 'elsewhere'");
    publish(world, "3");
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), LIFE + 1);
    publish(world, "4");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, LIFE + 2);
    expect_told(1, 0);
    stop_looking(world);
}

/* The schema is another one: what this process knows is no part of it. */
static void a_schema_made_anew_is_told(void **state)
{
    struct world *world = *state;
    struct listener_status status;

    start_and_see_two(world, world->pg.dsn);
    listener_status(world->listener, &status);
    assert_false(status.replaced);
    const int changes = atomic_load_explicit(&world->changes, memory_order_relaxed);
    pg_run(world->pg.conn, "DROP SCHEMA gateway CASCADE");
    pg_migrate(&world->pg);
    WAIT_FOR((listener_status(world->listener, &status), status.replaced));
    assert_true(atomic_load_explicit(&world->changes, memory_order_relaxed) > changes);
    stop_looking(world);
}

static void what_was_seen_may_be_deleted(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn, "DELETE FROM gateway.events");
    pg_kill(&world->pg, "listener");
    WAIT_FOR(stats_counter_value(world->stats, STATS_LISTENER_CONNECTS) == 2);
    publish(world, "3");
    assert_int_equal(wait_for_events(world, 1), 1);
    pg_run(world->pg.conn, "TRUNCATE gateway.events");
    publish(world, "4");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, 4);
    expect_told(0, 0);
    stop_looking(world);
}

/* Some of what one transaction brings is gone with its commit: the rest does not come as if
 * it were all. `sql` is run between event 2 and event `seen`. */
static void expect_restart(struct world *world, const char *sql, uint64_t floor)
{
    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn, sql);
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), floor);
    publish(world, "9");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, floor + 1);
    expect_told(0, 1);
    stop_looking(world);
}

#define THREE                                                                            \
    "BEGIN; SELECT gateway.publish_batch(ARRAY['a','b','c'], ARRAY['t','t','t'], "       \
    "ARRAY['1','2','3']); "

static void what_is_deleted_unseen_among_others_restarts_the_ring(void **state)
{
    expect_restart(*state, THREE "DELETE FROM gateway.events WHERE seq = 4; COMMIT", 5);
}

static void what_is_deleted_unseen_and_leaves_nothing_restarts_the_ring(void **state)
{
    expect_restart(*state, THREE "DELETE FROM gateway.events WHERE seq > 2; COMMIT", 5);
}

static void a_truncate_before_events_are_seen_restarts_the_ring(void **state)
{
    expect_restart(*state, THREE "TRUNCATE gateway.events; COMMIT", 5);
}

static void what_is_deleted_while_the_listener_is_away_restarts_the_ring(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->proxy.dsn);
    proxy_set(&world->proxy, PROXY_FREEZE);
    for (int i = 0; i < 10; i++)
        publish(world, "3");
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq < 8");
    WAIT_FOR(!is_listening(world));
    proxy_set(&world->proxy, PROXY_PASS);
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), 12);
    publish(world, "4");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, 13);
    expect_told(0, 1);
    stop_looking(world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PG(a_database_that_went_back_begins_a_new_life),
        WITH_PG(a_new_life_under_a_standing_connection_restarts_the_ring),
        WITH_PG(a_schema_made_anew_is_told),
        WITH_PG(what_was_seen_may_be_deleted),
        WITH_PG(what_is_deleted_unseen_among_others_restarts_the_ring),
        WITH_PG(what_is_deleted_unseen_and_leaves_nothing_restarts_the_ring),
        WITH_PG(a_truncate_before_events_are_seen_restarts_the_ring),
        WITH_PG(what_is_deleted_while_the_listener_is_away_restarts_the_ring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
