/*
 * catchup_world.h - real shards and a real PostgreSQL for unit tests of the joint between the
 * table and the ring, which is seen from the other end of real connections. The test is the
 * ring's writer.
 */
#ifndef CATCHUP_WORLD_H
#define CATCHUP_WORLD_H

#include "catchup.h"

#include "front.h"
#include "pg.h"

#define GET(query)     "GET /events" query " HTTP/1.1\r\nHost: x\r\n\r\n"
#define GET_AFTER(id)  "GET /events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " id "\r\n\r\n"
#define GET_1_0(query) "GET /events" query " HTTP/1.0\r\n\r\n"
#define GET_FROM(query, version, id)                                                     \
    "GET /events" query " HTTP/" version "\r\nHost: x\r\nLast-Event-ID: " id "\r\n\r\n"
#define SMALL_RCVBUF 4096
#define LIFE         ((uint64_t)1 << 40)

struct world {
    struct pg pg;
    struct front front;
};

PG_UNUSED static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    *state = &world;
    return 0;
}

PG_UNUSED static int tear_down(void **state)
{
    struct world *world = *state;

    pg_close(&world->pg);
    return 0;
}

PG_UNUSED static void open_front(struct world *world, struct front_settings settings)
{
    settings.dsn = world->pg.dsn;
    front_open(&world->front, &settings);
}

PG_UNUSED static uint64_t counter(const struct world *world, enum stats_counter which)
{
    return stats_counter_value(world->front.stats, which);
}

PG_UNUSED static int64_t gauge(const struct world *world, enum stats_gauge which)
{
    return stats_gauge_value(world->front.stats, which);
}

/* An event of that many bytes, committed to the table; what stands on the wire for it. */
PG_UNUSED static void commit_bytes(struct world *world, const char *channel, size_t len,
                                   struct buf *wanted)
{
    CLEANUP(buf_done) struct buf sql = BUF_EMPTY;

    (void)buf_add_format(&sql,
                         "SELECT (gateway.publish_batch(ARRAY['%s'], ARRAY['message'], "
                         "ARRAY['\"' || repeat('x', %zu) || '\"'])).first_seq",
                         channel, len);
    const long long seq = pg_number(world->pg.conn, sql.data);
    if (wanted == NULL)
        return;
    (void)buf_add_format(wanted, "id: %lld\ndata: \"", seq);
    for (size_t i = 0; i < len; i++)
        (void)buf_add(wanted, "x", 1);
    (void)buf_add_text(wanted, "\"\n\n");
}

/* So many events of so many bytes, in turn on "events", "orders.new" and "orders.old", of the
 * types "message", "a" and "b", from nobody, "shop" and "till"; committed together. */
PG_UNUSED static void commit_many(struct world *world, int count, size_t len)
{
    char sql[900];

    (void)snprintf(
        sql, sizeof(sql),
        "SELECT gateway.publish_batch("
        "array_agg((ARRAY['events','orders.new','orders.old'])[i %% 3 + 1] "
        "ORDER BY i), array_agg((ARRAY['message','a','b'])[i / 3 %% 3 + 1] "
        "ORDER BY i), array_agg('\"' || repeat(chr(97 + i %% 26), %zu) || '\"' "
        "ORDER BY i), clients => array_agg((ARRAY[NULL,'shop','till'])[i / 9 %% 3 + 1] "
        "ORDER BY i)) FROM generate_series(0, %d) i",
        len, count - 1);
    pg_run(world->pg.conn, sql);
}

/* What stands on the wire for the events of which the condition holds, as the table has
 * them. */
PG_UNUSED static void want(struct world *world, const char *condition, struct buf *wanted)
{
    char sql[400];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT 'id: ' || seq || CASE type WHEN 'message' THEN '' ELSE "
                   "E'\\nevent: ' || type END || E'\\ndata: ' || data || E'\\n\\n' "
                   "FROM gateway.events WHERE %s ORDER BY seq",
                   condition);
    PGresult *result = PQexec(world->pg.conn, sql);
    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        pg_fail(world->pg.conn, sql);
    for (int row = 0; row < PQntuples(result); row++)
        (void)buf_add(wanted, PQgetvalue(result, row, 0),
                      (size_t)PQgetlength(result, row, 0));
    PQclear(result);
}

PG_UNUSED static void want_gap(const char *requested, uint64_t oldest, const char *reason,
                               struct buf *wanted)
{
    (void)buf_add_format(wanted,
                         "id: %llu\nevent: gap\ndata: {\"requested\":\"%s\","
                         "\"oldest\":\"%llu\",\"reason\":\"%s\"}\n\n",
                         (unsigned long long)oldest, requested,
                         (unsigned long long)oldest, reason);
}

PG_UNUSED static void want_checkpoint(uint64_t seq, struct buf *wanted)
{
    (void)buf_add_format(wanted, "id: %llu\nevent: checkpoint\ndata:\n\n",
                         (unsigned long long)seq);
}

/* Asks for it, and gets exactly that, and nothing behind it. */
PG_UNUSED static void expect_for(struct world *world, const char *request,
                                 const struct buf *wanted)
{
    struct client client;

    client_subscribe(&client, &world->front, 0, request);
    client_expect(&client, wanted);
    client_hang_up(&client);
}

PG_UNUSED static void nobody_is_left(struct world *world)
{
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS) == 0);
    assert_int_equal(gauge(world, STATS_STREAMS_BEHIND), 0);
    assert_int_equal(gauge(world, STATS_STREAMS_REPLAYING), 0);
}

/* What is in the table and not in the ring goes there, in order, as the listener does it. */
PG_UNUSED static void ring_follows(struct world *world)
{
    struct front *front = &world->front;
    char sql[128];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT seq, channel, type, data, client FROM gateway.events "
                   "WHERE seq > %llu ORDER BY seq",
                   (unsigned long long)front->seq);
    PGresult *result = PQexec(world->pg.conn, sql);
    assert_int_equal(PQresultStatus(result), PGRES_TUPLES_OK);
    for (int row = 0; row < PQntuples(result); row++) {
        front->seq = strtoull(PQgetvalue(result, row, 0), NULL, 10) - 1;
        front_push_from(front, PQgetvalue(result, row, 4), PQgetvalue(result, row, 1),
                        PQgetvalue(result, row, 2), PQgetvalue(result, row, 3),
                        (size_t)PQgetlength(result, row, 3), NULL);
    }
    PQclear(result);
    ring_wake(front->ring);
}

PG_UNUSED static long long waiting_for_a_lock(struct world *world)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND "
                   "application_name = 'pg-sse-gateway/reader' AND "
                   "wait_event_type = 'Lock'",
                   world->pg.name);
    return pg_number(world->pg.admin, sql);
}

PG_UNUSED static uint64_t newest(struct world *world)
{
    return (uint64_t)pg_number(world->pg.conn, "SELECT gateway.newest_seq()");
}

/* What the listener does when the table has begun a new life, or events were deleted that it
 * has not seen. */
PG_UNUSED static void restart_ring(struct world *world)
{
    world->front.seq = newest(world);
    ring_restart(world->front.ring, world->front.seq);
    ring_wake(world->front.ring);
}

PG_UNUSED static void begin_new_life(struct world *world)
{
    pg_run(world->pg.conn, "UPDATE gateway.incarnations SET identity = 'elsewhere' WHERE "
                           "base = (SELECT max(base) FROM gateway.incarnations)");
}

#endif
