/* test_catchup.c - the joint between the table and the ring: real shards, a real PostgreSQL,
 * seen from the other end of real connections. The test is the ring's writer. */
#include "catchup.h"

#include "front.h"
#include "pg.h"

#define GET(query)    "GET /events" query " HTTP/1.1\r\nHost: x\r\n\r\n"
#define GET_AFTER(id) "GET /events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " id "\r\n\r\n"
#define SMALL_RCVBUF  4096

struct world {
    struct pg pg;
    struct front front;
};

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    *state = &world;
    return 0;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    pg_close(&world->pg);
    return 0;
}

static void open_front(struct world *world, struct front_settings settings)
{
    settings.dsn = world->pg.dsn;
    front_open(&world->front, &settings);
}

static uint64_t counter(const struct world *world, enum stats_counter which)
{
    return stats_counter_value(world->front.stats, which);
}

static int64_t gauge(const struct world *world, enum stats_gauge which)
{
    return stats_gauge_value(world->front.stats, which);
}

/* An event of that many bytes, committed to the table; what stands on the wire for it. */
static void commit_bytes(struct world *world, const char *channel, size_t len,
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

/* What is in the table and not in the ring goes there, in order, as the listener does it. */
static void ring_follows(struct world *world)
{
    struct front *front = &world->front;
    char sql[128];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT seq, channel, type, data FROM gateway.events WHERE seq > %llu "
                   "ORDER BY seq",
                   (unsigned long long)front->seq);
    PGresult *result = PQexec(world->pg.conn, sql);
    assert_int_equal(PQresultStatus(result), PGRES_TUPLES_OK);
    for (int row = 0; row < PQntuples(result); row++) {
        front->seq = strtoull(PQgetvalue(result, row, 0), NULL, 10) - 1;
        front_push(front, PQgetvalue(result, row, 1), PQgetvalue(result, row, 2),
                   PQgetvalue(result, row, 3), (size_t)PQgetlength(result, row, 3), NULL);
    }
    PQclear(result);
    ring_wake(front->ring);
}

static long long waiting_for_a_lock(struct world *world)
{
    return pg_number(world->pg.admin, "SELECT count(*) FROM pg_stat_activity WHERE "
                                      "application_name = 'pg-sse-gateway/reader' AND "
                                      "wait_event_type = 'Lock'");
}

/* -- */

/* An id that another gateway gave out is newer than a question that is on its way for others:
 * that answer knows nothing of it. */
static void an_id_younger_than_a_question_is_not_of_the_future(void **state)
{
    struct world *world = *state;
    struct client first, second;
    CLEANUP(buf_done) struct buf all = BUF_EMPTY, rest = BUF_EMPTY;
    PGconn *locker = pg_connect(world->pg.dsn);

    for (int i = 0; i < 5; i++)
        commit_bytes(world, "events", 10, i < 2 ? NULL : &all);
    open_front(world, (struct front_settings){.seq = 1});
    /* The question for the first has its snapshot, and waits there. */
    pg_run(locker, "BEGIN; LOCK TABLE gateway.purges");
    client_subscribe(&first, &world->front, 0, GET_AFTER("2"));
    WAIT_FOR(waiting_for_a_lock(world) == 1);
    commit_bytes(world, "events", 10, &all);
    client_subscribe(&second, &world->front, 0, GET_AFTER("6"));
    WAIT_FOR(gauge(world, STATS_STREAMS_REPLAYING) == 2);
    pg_run(locker, "COMMIT");
    PQfinish(locker);

    commit_bytes(world, "events", 10, &rest);
    (void)buf_add(&all, rest.data, rest.len);
    ring_follows(world);
    client_expect(&first, &all);
    client_expect(&second, &rest);
    client_hang_up(&first);
    client_hang_up(&second);
    front_close(&world->front);
}

/* Before the listener has been there: nothing is known yet, but there is a table. */
static void who_comes_before_the_ring_has_started_gets_what_it_asked_for(void **state)
{
    static const char *const requests[] = {GET("?last_event_id=earliest"), GET("?last=5"),
                                           "GET /events?last=4 HTTP/1.0\r\n\r\n",
                                           GET_AFTER("1")};
    struct world *world = *state;
    struct client clients[ARRAY_SIZE(requests)];
    CLEANUP(buf_done) struct buf five = BUF_EMPTY, four = BUF_EMPTY;

    commit_bytes(world, "events", 10, &five);
    for (int i = 0; i < 4; i++)
        commit_bytes(world, "events", 10, &four);
    (void)buf_add(&five, four.data, four.len);
    open_front(world, (struct front_settings){.not_started = true});
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&clients[i], &world->front, 0, requests[i]);
    usleep(300000);
    ring_start(world->front.ring, 5, 5);
    ring_wake(world->front.ring);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_expect(&clients[i], i < 2 ? &five : &four);
        client_hang_up(&clients[i]);
    }
    front_close(&world->front);
}

/* The table is ahead of the ring, whose next event is the one that broke off. */
static void a_frame_broken_ahead_of_the_ring_goes_on(void **state)
{
    struct world *world = *state;
    struct client slow;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    commit_bytes(world, "events", 10, NULL);
    commit_bytes(world, "events", 10, NULL);
    commit_bytes(world, "events", 5 * MIB, &wanted);
    open_front(world, (struct front_settings){.seq = 1});
    client_subscribe(&slow, &world->front, SMALL_RCVBUF, GET_AFTER("2"));
    WAIT_FOR(counter(world, STATS_REPLAY_EVENTS) == 1);
    client_read_body(&slow, 1000);
    /* Event 2 into the ring: 3 is where it breaks off. */
    front_push(&world->front, "events", "message", "\"xxxxxxxxxx\"", 12, NULL);
    ring_wake(world->front.ring);
    while (client_take(&slow, SIZE_MAX, 100))
        assert_false(slow.eof);
    commit_bytes(world, "events", 10, &wanted);
    ring_follows(world);
    client_expect(&slow, &wanted);
    client_hang_up(&slow);
    front_close(&world->front);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(an_id_younger_than_a_question_is_not_of_the_future),
        WITH_PG(who_comes_before_the_ring_has_started_gets_what_it_asked_for),
        WITH_PG(a_frame_broken_ahead_of_the_ring_goes_on),
    };
    return cmocka_run_group_tests_name("catchup", tests, NULL, NULL);
}
