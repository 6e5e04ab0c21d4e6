/*
 * listener_world.h - a listener with a real PostgreSQL, and a reader of its ring that fails on
 * anything doubled or out of order, for unit tests.
 */
#ifndef LISTENER_WORLD_H
#define LISTENER_WORLD_H

#include "pg.h"

#include "listener.h"

struct world {
    struct pg pg;
    struct proxy proxy;
    struct ring *ring;
    struct ring_reader *reader;
    struct stats *stats;
    struct listener *listener;
    uint64_t position;
    uint64_t last_seq;
    int restarts, restarts_wanted; /* of the ring, as seen by its reader */
    size_t recent_bytes;
    int prepare_failures;
    _Atomic int changes;
};

PG_UNUSED static int on_prepare(void *argument, struct err *err)
{
    struct world *world = argument;

    if (world->prepare_failures > 0) {
        world->prepare_failures--;
        return err_set(err, -EIO, "not prepared");
    }
    return 0;
}

PG_UNUSED static void on_changed(void *argument)
{
    struct world *world = argument;

    atomic_fetch_add_explicit(&world->changes, 1, memory_order_relaxed);
}

PG_UNUSED static void start(struct world *world, const char *dsn)
{
    struct err err = {0};

    world->listener = listener_new(&(struct listener_settings){
        .dsn = dsn,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .ring = world->ring,
        .recent_bytes = world->recent_bytes,
        .stats = world->stats,
        .prepare = on_prepare,
        .changed = on_changed,
        .argument = world,
    });
    assert_non_null(world->listener);
    assert_int_equal(listener_start(world->listener, &err), 0);
}

PG_UNUSED static bool is_listening(struct world *world)
{
    struct listener_status status;

    listener_status(world->listener, &status);
    return status.listening;
}

/* Where the ring begins now: it has been restarted. In a round. */
PG_UNUSED static void follow_restart(struct world *world)
{
    WAIT_FOR(ring_find(world->reader, ring_floor(world->reader), &world->position) ==
             RING_FOUND);
    world->restarts++;
}

/* Reads what is there; fails on anything doubled or out of order. Returns how many. */
PG_UNUSED static int read_ring(struct world *world, char *ret_last_data, size_t size)
{
    const struct sse_frame *frame;
    enum ring_result result;
    int count = 0;

    ring_enter(world->reader);
    while ((result = ring_read(world->reader, &world->position, &frame)) != RING_EMPTY) {
        if (result == RING_LAGGED) {
            follow_restart(world);
            continue;
        }
        if (frame->seq <= world->last_seq)
            fail_msg("seq %llu after %llu", (unsigned long long)frame->seq,
                     (unsigned long long)world->last_seq);
        world->last_seq = frame->seq;
        count++;
        if (ret_last_data != NULL)
            snprintf(ret_last_data, size, "%.*s", (int)frame->body_len,
                     frame->bytes + frame->body_offset);
    }
    ring_leave(world->reader);
    return count;
}

PG_UNUSED static int wait_for_events(struct world *world, int wanted)
{
    int count = 0;

    WAIT_FOR((count += read_ring(world, NULL, 0)) >= wanted);
    assert_int_equal(world->restarts, world->restarts_wanted);
    return count;
}

PG_UNUSED static void publish(struct world *world, const char *data)
{
    char sql[300];

    snprintf(
        sql, sizeof(sql),
        "SELECT gateway.publish_batch(ARRAY['orders'], ARRAY['created'], ARRAY['%s'])",
        data);
    pg_run(world->pg.conn, sql);
}

#define INSERT "INSERT INTO gateway.events (data) VALUES ('1')"

/* Sooner than the look once a second finds half of what is written at any time. */
#define SOON_USEC (300 * USEC_PER_MSEC)
#define TIMES     9

PG_UNUSED static int compare_times(const void *left, const void *right)
{
    const uint64_t one = *(const uint64_t *)left, other = *(const uint64_t *)right;

    return one < other ? -1 : one > other;
}

/* The median: a machine that stands still now and then does not change it. */
PG_UNUSED static uint64_t median(uint64_t *times, size_t count)
{
    qsort(times, count, sizeof(*times), compare_times);
    return times[count / 2];
}

/* How long a row takes, as a rule, each written when the one before has come. */
PG_UNUSED static uint64_t time_rows(struct world *world, PGconn *conn, const char *sql,
                                    int count)
{
    uint64_t times[TIMES];

    for (int i = 0; i < count; i++) {
        usleep(37000); /* not in step with the once-a-second look */
        const uint64_t begin = clock_usec();
        pg_run(conn, sql);
        wait_for_events(world, 1);
        times[i] = clock_usec() - begin;
    }
    return median(times, (size_t)count);
}

PG_UNUSED static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    world.ring = ring_new(64 * MIB, 1);
    world.stats = stats_new();
    assert_non_null(world.ring);
    assert_non_null(world.stats);
    world.reader = ring_reader(world.ring, 0);
    world.position = 1;
    *state = &world;
    return 0;
}

PG_UNUSED static int tear_down(void **state)
{
    struct world *world = *state;

    listener_stop(world->listener);
    listener_free(world->listener);
    ring_free(world->ring);
    stats_free(world->stats);
    proxy_close(&world->proxy);
    pg_close(&world->pg);
    return 0;
}

#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

#endif
