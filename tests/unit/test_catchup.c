/* test_catchup.c - the joint between the table and the ring: real shards, a real PostgreSQL,
 * seen from the other end of real connections. The test is the ring's writer. */
#include "catchup.h"

#include <malloc.h>

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

/* So many events of so many bytes, in turn on "events", "orders.new" and "orders.old", of the
 * types "message", "a" and "b", from nobody, "shop" and "till"; committed together. */
static void commit_many(struct world *world, int count, size_t len)
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
static void want(struct world *world, const char *condition, struct buf *wanted)
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

static void want_gap(const char *requested, uint64_t oldest, const char *reason,
                     struct buf *wanted)
{
    (void)buf_add_format(wanted,
                         "id: %llu\nevent: gap\ndata: {\"requested\":\"%s\","
                         "\"oldest\":\"%llu\",\"reason\":\"%s\"}\n\n",
                         (unsigned long long)oldest, requested,
                         (unsigned long long)oldest, reason);
}

static void want_checkpoint(uint64_t seq, struct buf *wanted)
{
    (void)buf_add_format(wanted, "id: %llu\nevent: checkpoint\ndata:\n\n",
                         (unsigned long long)seq);
}

/* Asks for it, and gets exactly that, and nothing behind it. */
static void expect_for(struct world *world, const char *request, const struct buf *wanted)
{
    struct client client;

    client_subscribe(&client, &world->front, 0, request);
    client_expect(&client, wanted);
    client_hang_up(&client);
}

static void nobody_is_left(struct world *world)
{
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS) == 0);
    assert_int_equal(gauge(world, STATS_STREAMS_BEHIND), 0);
    assert_int_equal(gauge(world, STATS_STREAMS_REPLAYING), 0);
}

/* What is in the table and not in the ring goes there, in order, as the listener does it. */
static void ring_follows(struct world *world)
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

static long long waiting_for_a_lock(struct world *world)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND "
                   "application_name = 'pg-sse-gateway/reader' AND "
                   "wait_event_type = 'Lock'",
                   world->pg.name);
    return pg_number(world->pg.admin, sql);
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

/* -- where the table ends and the ring begins -- */

/* Every id, against every place of the joint that is anything special. */
static void every_id_is_gone_on_from_wherever_the_ring_begins(void **state)
{
    enum { EVENTS = 30 };
    static const uint64_t floors[] = {0, 1, 14, 15, EVENTS - 1, EVENTS};
    static const struct {
        const char *query, *condition;
    } kinds[] = {
        {"?channel=events", "channel = 'events'"},
        {"?channel=orders.*", "channel LIKE 'orders.%'"},
        {"?channel=events&channel=orders.old&channel=none",
         "channel IN ('events', 'orders.old')"},
        {"?channel=*&type=a&type=message", "type IN ('a', 'message')"},
        {"?channel=events&exclude_client=shop",
         "channel = 'events' AND (client = 'shop') IS NOT TRUE"},
        {"?channel=*&type=a&exclude_client=shop&exclude_client=till",
         "type = 'a' AND client IS NULL"},
    };
    struct world *world = *state;

    commit_many(world, EVENTS, 20);
    for (size_t i = 0; i < ARRAY_SIZE(floors); i++) {
        open_front(world,
                   (struct front_settings){.not_started = true, .connections_max = 200});
        ring_start(world->front.ring, floors[i], EVENTS);
        world->front.seq = floors[i];
        ring_follows(world);
        for (unsigned id = 1; id <= EVENTS; id++) {
            CLEANUP(buf_done) struct buf wanted = BUF_EMPTY, request = BUF_EMPTY;
            char condition[200];
            const size_t kind = id % ARRAY_SIZE(kinds);

            (void)buf_add_format(&request,
                                 "GET /events%s HTTP/1.%d\r\nHost: x\r\n"
                                 "Last-Event-ID: %u\r\n\r\n",
                                 kinds[kind].query, id % 3 > 0, id);
            (void)snprintf(condition, sizeof(condition), "seq > %u AND %s", id,
                           kinds[kind].condition);
            want(world, condition, &wanted);
            expect_for(world, request.data, &wanted);
        }
        nobody_is_left(world);
        front_close(&world->front);
    }
}

/* While it goes on by pages and by the ring, more is committed. */
static void a_long_way_back_is_gone_without_a_loss(void **state)
{
    static const char *const requests[] = {
        GET_AFTER("1"), GET_FROM("", "1.0", "1"),
        GET_FROM("?channel=events&channel=none", "1.1", "1"),
        GET_FROM("?channel=even*", "1.1", "1")};
    struct world *world = *state;
    struct client clients[ARRAY_SIZE(requests)];
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    for (int i = 0; i < 10; i++)
        commit_many(world, 3000, 100); /* more than is near: pages of their own */
    open_front(world, (struct front_settings){.seq = 29000, .shards = 2});
    world->front.seq = 29000;
    ring_follows(world);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&clients[i], &world->front, SMALL_RCVBUF, requests[i]);
    for (int i = 0; i < 20; i++) {
        commit_many(world, 30, 100);
        ring_follows(world);
        for (size_t j = 0; j < ARRAY_SIZE(requests); j++)
            (void)client_take(&clients[j], SIZE_MAX, 5);
    }
    want(world, "seq > 1 AND channel = 'events'", &wanted);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_expect(&clients[i], &wanted);
        client_hang_up(&clients[i]);
    }
    nobody_is_left(world);
    front_close(&world->front);
}

/* -- slow readers -- */

/* The ring goes round them many times. Nobody notices: what they get is the same, byte by
 * byte, also in the middle of a frame that is larger than the whole ring. */
static void who_is_overtaken_gets_every_byte_once(void **state)
{
    static const char *const requests[] = {
        GET(""), GET_1_0(""), GET("?channel=events&channel=none"),
        GET("?channel=event*&type=message"), GET_1_0("?channel=events&channel=none")};
    struct world *world = *state;
    struct client slow[ARRAY_SIZE(requests)], fast;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    commit_bytes(world, "other", 10, NULL);
    open_front(world, (struct front_settings){.ring_bytes = 200000, .seq = 1});
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&slow[i], &world->front, SMALL_RCVBUF, requests[i]);
    client_subscribe(&fast, &world->front, 0, GET(""));
    for (int burst = 0; burst < 12; burst++) {
        for (int i = 0; i < 10; i++)
            commit_bytes(world, "events", burst == 6 && i == 5 ? MIB : 5000, &wanted);
        commit_bytes(world, "other", 150000, NULL);
        ring_follows(world);
        client_read_body(&fast, client_greeting_len(&fast) + wanted.len);
        for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
            (void)client_take(&slow[i], 5000, 0);
    }
    client_expect(&fast, &wanted);
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_BEHIND) == ARRAY_SIZE(requests));
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_expect(&slow[i], &wanted);
    assert_true(counter(world, STATS_STREAMS_LAGGED) >= ARRAY_SIZE(requests));
    commit_bytes(world, "events", 10, &wanted);
    ring_follows(world);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_expect(&slow[i], &wanted);
        client_hang_up(&slow[i]);
    }
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_BEHIND) == 0);
    client_hang_up(&fast);
    nobody_is_left(world);
    front_close(&world->front);
}

/* The ring has gone round it, and the last that the ring has is a frame that the client takes
 * in two parts: from the table, and from the ring. What it may have missed of what is notified
 * is told behind that frame, though nothing comes any more that would make anybody look. */
static void what_was_missed_is_told_behind_a_last_frame_that_broke_off(void **state)
{
    struct world *world = *state;
    struct client client;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    commit_bytes(world, "other", 10, NULL);
    open_front(world, (struct front_settings){
                          .ring_bytes = 400000, .seq = 1, .relay = "events"});
    client_subscribe(&client, &world->front, SMALL_RCVBUF, GET(""));
    for (int i = 0; i < 3; i++)
        commit_bytes(world, "other", 150000, NULL);
    commit_bytes(world, "events", 300000, &wanted);
    ring_follows(world);
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_BEHIND) == 1);
    (void)buf_add_format(&wanted,
                         "id: %llu\nevent: gap\ndata: {\"requested\":\"%llu\","
                         "\"oldest\":\"%llu\",\"reason\":\"relay\","
                         "\"channel\":\"events\"}\n\n",
                         (unsigned long long)world->front.seq,
                         (unsigned long long)world->front.seq,
                         (unsigned long long)world->front.seq);
    client_expect(&client, &wanted);
    assert_int_equal(counter(world, STATS_GAPS_RELAY), 1);
    client_hang_up(&client);
    nobody_is_left(world);
    front_close(&world->front);
}

/* -- earliest, and the last N -- */

static void earliest_is_all_there_is(void **state)
{
    struct world *world = *state;
    CLEANUP(buf_done)
    struct buf all = BUF_EMPTY, orders = BUF_EMPTY, kept = BUF_EMPTY, none = BUF_EMPTY;

    commit_many(world, 1300, 10);
    open_front(world, (struct front_settings){.seq = 1290});
    ring_follows(world);
    want(world, "channel = 'events'", &all);
    expect_for(world, GET("?last_event_id=earliest"), &all);
    want(world, "channel LIKE 'orders.%'", &orders);
    expect_for(world, GET_1_0("?last_event_id=earliest&channel=orders.*"), &orders);
    /* Who asked for what is kept misses nothing: no gap. */
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq <= 700");
    want(world, "channel = 'events'", &kept);
    expect_for(world, GET("?last_event_id=earliest"), &kept);
    want_checkpoint(1300, &none);
    expect_for(world, GET("?last_event_id=earliest&channel=none"), &none);
    front_close(&world->front);
}

static void of_an_empty_table_all_is_nothing(void **state)
{
    struct world *world = *state;
    struct client clients[3];
    static const char *const requests[] = {GET("?last_event_id=earliest"), GET("?last=7"),
                                           GET("?last_event_id=0")};
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    open_front(world, (struct front_settings){.not_started = true});
    ring_start(world->front.ring, 0, 0);
    world->front.seq = 0;
    want_checkpoint(0, &wanted);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_subscribe(&clients[i], &world->front, 0, requests[i]);
        client_expect(&clients[i], &wanted);
    }
    commit_bytes(world, "events", 10, &wanted);
    ring_follows(world);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_expect(&clients[i], &wanted);
        client_hang_up(&clients[i]);
    }
    front_close(&world->front);
}

static void the_last_ones_are_the_newest_of_all_that_is_asked_for(void **state)
{
    static const struct {
        const char *request, *condition;
        int count;
    } cases[] = {
        {GET("?last=5"), "channel = 'events'", 5},
        {GET("?last=1&channel=orders.old"), "channel = 'orders.old'", 1},
        {GET("?last=7&channel=orders.old&channel=events"),
         "channel IN ('events', 'orders.old')", 7},
        {GET("?last=9&channel=orders.*"), "channel LIKE 'orders.%'", 9},
        {GET("?last=9&channel=orders.*&channel=events"), "true", 9},
        {GET("?last=4&type=a&type=b"), "channel = 'events' AND type IN ('a', 'b')", 4},
        {GET("?last=4&channel=*&type=b"), "type = 'b'", 4},
        {GET("?last=5&exclude_client=shop"),
         "channel = 'events' AND (client = 'shop') IS NOT TRUE", 5},
        {GET("?last=9&type=a&channel=orders.*&exclude_client=till&exclude_client=shop"),
         "channel LIKE 'orders.%' AND type = 'a' AND client IS NULL", 9},
        {GET_1_0("?last=9&channel=orders.*&channel=events&exclude_client=till"),
         "(client = 'till') IS NOT TRUE", 9},
        {GET_1_0("?last=6&channel=*"), "true", 6},
        {GET("?last=1000&channel=orders.new"), "channel = 'orders.new'", 1000},
    };
    struct world *world = *state;

    commit_many(world, 900, 10);
    open_front(world, (struct front_settings){.seq = 890});
    ring_follows(world);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;
        char condition[300];

        (void)snprintf(condition, sizeof(condition),
                       "seq IN (SELECT seq FROM gateway.events WHERE %s ORDER BY seq "
                       "DESC LIMIT %d)",
                       cases[i].condition, cases[i].count);
        want(world, condition, &wanted);
        expect_for(world, cases[i].request, &wanted);
    }
    front_close(&world->front);
}

/* -- gaps -- */

static void what_cannot_be_had_is_told_before_anything_else(void **state)
{
    static const struct {
        const char *request, *requested, *reason;
    } cases[] = {
        {GET_AFTER("5"), "5", "expired"},
        {GET_AFTER("699"), "699", "expired"},
        {GET_AFTER("1001"), "1001", "future"},
        {GET_AFTER("9223372036854775807"), "9223372036854775807", "future"},
        {GET_AFTER("x\"\\y"), "x\\u0022\\u005cy", "unknown"},
        {GET("?last_event_id=0007"), "0007", "unknown"},
        {"GET /events HTTP/1.0\r\nLast-Event-ID: 3\r\n\r\n", "3", "expired"},
    };
    struct world *world = *state;
    CLEANUP(buf_done) struct buf exact = BUF_EMPTY;

    commit_many(world, 1000, 10);
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq <= 700");
    open_front(world, (struct front_settings){.seq = 990});
    ring_follows(world);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

        want_gap(cases[i].requested, 700, cases[i].reason, &wanted);
        want(world, "channel = 'events'", &wanted);
        expect_for(world, cases[i].request, &wanted);
    }
    want(world, "channel = 'events'", &exact);
    expect_for(world, GET_AFTER("700"), &exact);
    assert_int_equal(counter(world, STATS_GAPS_EXPIRED), 3);
    assert_int_equal(counter(world, STATS_GAPS_FUTURE), 2);
    assert_int_equal(counter(world, STATS_GAPS_UNKNOWN), 2);
    front_close(&world->front);
}

/* A deletion in the midst of what is kept: what comes after the id and is there is sent. */
static void a_gap_in_the_middle_does_not_send_again_what_was_sent(void **state)
{
    struct world *world = *state;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    commit_many(world, 90, 10);
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq = 60");
    open_front(world, (struct front_settings){.seq = 90});
    want_gap("30", 30, "expired", &wanted);
    want(world, "channel = 'events' AND seq > 30", &wanted);
    expect_for(world, GET_AFTER("30"), &wanted);
    front_close(&world->front);
}

/* Page by page over a slow line: what it has yet to ask for is deleted meanwhile. Told where
 * it is, and only once. */
static void what_is_purged_during_a_replay_is_told_where_it_stands(void **state)
{
    struct world *world = *state;
    struct proxy proxy;
    struct client client;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;
    char requested[24];

    proxy_open(&proxy, &world->pg);
    pg_run(world->pg.conn, "SELECT gateway.publish_batch(array_agg(text 'events'), "
                           "array_agg(text 'message'), array_agg(text '1')) FROM "
                           "generate_series(1, 5000)");
    front_open(&world->front, &(struct front_settings){.seq = 5000, .dsn = proxy.dsn});
    proxy_set(&proxy, PROXY_TRICKLE);
    client_subscribe(&client, &world->front, 0, GET_AFTER("1"));
    client_read_body(&client, client_greeting_len(&client) + 1);
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq <= 4900");
    proxy_set(&proxy, PROXY_PASS);

    const size_t at = client_greeting_len(&client);
    while (memmem(client.body.data + at, client.body.len - at, "id: 5000\n", 9) == NULL)
        client_read_body(&client, client.body.len + 1);
    const char *gap = strstr(client.body.data + at, "event: gap\n");
    assert_non_null(gap);
    const char *from = strstr(gap, "\"requested\":\"");
    const unsigned long last = strtoul(from + strlen("\"requested\":\""), NULL, 10);
    assert_true(last % 500 == 1 && last > 1 && last < 4900);
    for (unsigned long seq = 2; seq <= last; seq++)
        (void)buf_add_format(&wanted, "id: %lu\ndata: 1\n\n", seq);
    (void)snprintf(requested, sizeof(requested), "%lu", last);
    want_gap(requested, 4900, "expired", &wanted);
    want(world, "seq > 4900", &wanted);
    client_expect(&client, &wanted);
    assert_int_equal(counter(world, STATS_GAPS_EXPIRED), 1);
    client_hang_up(&client);
    front_close(&world->front);
    proxy_close(&proxy);
}

/* -- the ring begins anew -- */

static uint64_t newest(struct world *world)
{
    return (uint64_t)pg_number(world->pg.conn, "SELECT gateway.newest_seq()");
}

/* What the listener does when the table has begun a new life, or events were deleted that it
 * has not seen. */
static void restart_ring(struct world *world)
{
    world->front.seq = newest(world);
    ring_restart(world->front.ring, world->front.seq);
    ring_wake(world->front.ring);
}

static void begin_new_life(struct world *world)
{
    pg_run(world->pg.conn, "UPDATE gateway.incarnations SET identity = 'elsewhere' WHERE "
                           "base = (SELECT max(base) FROM gateway.incarnations)");
}

/* A promotion that lost nothing: nobody notices, slow ones neither. */
static void a_new_life_that_lost_nothing_is_not_noticed(void **state)
{
    static const char *const requests[] = {
        GET_AFTER("20"), GET_AFTER("3"),
        GET_FROM("?channel=events&channel=x", "1.0", "3")};
    struct world *world = *state;
    struct client clients[ARRAY_SIZE(requests)], slow;
    CLEANUP(buf_done) struct buf rest = BUF_EMPTY, all = BUF_EMPTY;

    for (int i = 0; i < 20; i++)
        commit_bytes(world, "events", i == 15 ? MIB : 10, NULL);
    open_front(world, (struct front_settings){.seq = 10});
    ring_follows(world);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&clients[i], &world->front, 0, requests[i]);
    client_subscribe(&slow, &world->front, SMALL_RCVBUF, GET_AFTER("3"));
    want(world, "seq > 3", &all);
    for (size_t i = 1; i < ARRAY_SIZE(requests); i++)
        client_expect(&clients[i], &all);

    begin_new_life(world);
    for (int i = 0; i < 5; i++)
        commit_bytes(world, "events", 10, NULL);
    restart_ring(world);
    commit_bytes(world, "events", 10, NULL);
    ring_follows(world);
    all.len = 0;
    want(world, "seq > 3", &all);
    want(world, "seq > 20", &rest);
    assert_true(world->front.seq == LIFE + 6);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_expect(&clients[i], i == 0 ? &rest : &all);
        client_hang_up(&clients[i]);
    }
    client_expect(&slow, &all);
    client_hang_up(&slow);
    assert_int_equal(counter(world, STATS_GAPS_FUTURE), 0);
    front_close(&world->front);
}

/* A promotion that lost events which some have seen: they are told, others are not. */
static void who_has_seen_what_a_new_life_lost_is_told(void **state)
{
    struct world *world = *state;
    struct client seen, not_seen, broken;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY, rest = BUF_EMPTY, lost = BUF_EMPTY;
    char *data = malloc(2 * MIB);

    for (int i = 0; i < 10; i++)
        commit_bytes(world, "events", 10, NULL);
    open_front(world, (struct front_settings){.seq = 5});
    ring_follows(world);
    client_subscribe(&seen, &world->front, 0, GET_AFTER("10"));
    client_subscribe(&broken, &world->front, SMALL_RCVBUF, GET_AFTER("10"));
    /* 11 to 13 were never anywhere else than here. */
    assert_non_null(data);
    memset(data, 'y', 2 * MIB);
    front_push(&world->front, "events", "message", data, 2 * MIB, &lost);
    free(data);
    front_publish(&world->front, "events", "1", &lost);
    front_publish(&world->front, "events", "2", &lost);
    client_expect(&seen, &lost);
    client_read_body(&broken, client_greeting_len(&broken) + 1000);

    begin_new_life(world);
    commit_bytes(world, "events", 10, NULL);
    restart_ring(world);
    commit_bytes(world, "events", 10, NULL);
    ring_follows(world);
    (void)buf_add(&wanted, lost.data, lost.len);
    want_gap("13", 0, "future", &wanted);
    want(world, "true", &wanted);
    client_expect(&seen, &wanted);

    /* The rest of what it has half of does not exist any more. */
    client_read_all(&broken);
    assert_false(broken.last_chunk);
    client_hang_up(&broken);
    client_subscribe(&not_seen, &world->front, 0, GET_AFTER("10"));
    want(world, "seq > 10", &rest);
    client_expect(&not_seen, &rest);
    client_hang_up(&not_seen);
    client_hang_up(&seen);

    /* And any id between the lives. */
    wanted.len = 0;
    want_gap("11", 0, "future", &wanted);
    want(world, "true", &wanted);
    expect_for(world, GET_AFTER("11"), &wanted);
    wanted.len = 0;
    want_gap("1099511627775", 0, "future", &wanted);
    want(world, "true", &wanted);
    expect_for(world, GET_AFTER("1099511627775"), &wanted);
    expect_for(world, GET_AFTER("1099511627776"), &rest);
    assert_int_equal(counter(world, STATS_GAPS_FUTURE), 3);
    front_close(&world->front);
}

/* Events were deleted before the listener had seen them: those who are up to date are told. */
static void what_was_deleted_unseen_is_told_to_who_is_up_to_date(void **state)
{
    struct world *world = *state;
    struct client client;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    for (int i = 0; i < 10; i++)
        commit_bytes(world, "events", 10, NULL);
    open_front(world, (struct front_settings){.seq = 10});
    client_subscribe(&client, &world->front, 0, GET_AFTER("10"));
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_BEHIND) == 0);
    for (int i = 0; i < 10; i++)
        commit_bytes(world, "events", 10, NULL);
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq <= 15");
    restart_ring(world);
    want_gap("10", 15, "expired", &wanted);
    want(world, "seq > 15", &wanted);
    client_expect(&client, &wanted);
    commit_bytes(world, "events", 10, &wanted);
    ring_follows(world);
    client_expect(&client, &wanted);
    client_hang_up(&client);
    front_close(&world->front);
}

/* -- the database goes and comes -- */

static void while_the_database_is_away_they_wait_with_heartbeats(void **state)
{
    static const char *const requests[] = {GET_AFTER("2"), GET("?last_event_id=earliest"),
                                           GET("?last=3"), GET_AFTER("77"),
                                           GET_FROM("", "1.0", "2")};
    struct world *world = *state;
    struct proxy proxy;
    struct client clients[ARRAY_SIZE(requests)];
    CLEANUP(buf_done)
    struct buf after = BUF_EMPTY, all = BUF_EMPTY, last = BUF_EMPTY, gap = BUF_EMPTY;
    const struct buf *const wanted[] = {&after, &all, &last, &gap, &after};

    proxy_open(&proxy, &world->pg);
    commit_many(world, 30, 10);
    front_open(&world->front,
               &(struct front_settings){.seq = 30,
                                        .dsn = proxy.dsn,
                                        .heartbeat_usec = USEC_PER_SEC / 5,
                                        .idle_close_usec = USEC_PER_SEC / 2});
    proxy_set(&proxy, PROXY_FREEZE);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&clients[i], &world->front, 0, requests[i]);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        const size_t greeting = client_greeting_len(&clients[i]);

        client_read_body(&clients[i], greeting + 12); /* six heartbeats: over a second */
    }
    proxy_set(&proxy, PROXY_PASS);
    pg_kill(&world->pg, "reader");
    want(world, "seq > 2 AND channel = 'events'", &after);
    want(world, "channel = 'events'", &all);
    want(world, "channel = 'events' AND seq > 21", &last);
    want_gap("77", 0, "future", &gap);
    want(world, "channel = 'events'", &gap);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        size_t at = client_greeting_len(&clients[i]);

        while (client_read_body(&clients[i], at + 2),
               memcmp(clients[i].body.data + at, ":\n", 2) == 0)
            at += 2;
        client_read_body(&clients[i], at + wanted[i]->len);
        assert_memory_equal(clients[i].body.data + at, wanted[i]->data, wanted[i]->len);
        client_hang_up(&clients[i]);
    }
    nobody_is_left(world);
    front_close(&world->front);
    proxy_close(&proxy);
}

/* -- many -- */

static void many_who_come_back_at_once_share_a_handful_of_queries(void **state)
{
    enum { CLIENTS = 2000, EVENTS = 4000 };
    struct world *world = *state;
    struct client *clients = calloc(CLIENTS, sizeof(*clients));
    CLEANUP(buf_done) struct buf all = BUF_EMPTY;
    size_t *starts = calloc(EVENTS + 1, sizeof(*starts));
    PGconn *locker = pg_connect(world->pg.dsn);

    assert_non_null(clients);
    assert_non_null(starts);
    pg_run(world->pg.conn,
           "SELECT gateway.publish_batch(array_agg(text 'events'), "
           "array_agg(text 'message'), array_agg(to_json(i)::text ORDER BY i)) "
           "FROM generate_series(1, 4000) i");
    want(world, "true", &all);
    for (size_t seq = 1, at = 0; seq <= EVENTS; seq++) {
        starts[seq] = at; /* of event seq + 1 */
        at = (size_t)(strstr(all.data + at, "\n\n") + 2 - all.data);
        starts[seq] = at;
    }
    open_front(world, (struct front_settings){
                          .seq = EVENTS, .shards = 2, .connections_max = CLIENTS + 10});
    pg_run(locker, "BEGIN; LOCK TABLE gateway.purges");
    const size_t before = mallinfo2().uordblks;
    for (int i = 0; i < CLIENTS; i++) {
        char request[200];

        (void)snprintf(request, sizeof(request),
                       "GET /events%s HTTP/1.1\r\nHost: x\r\nLast-Event-ID: %d\r\n\r\n",
                       i % 2 == 0 ? "" : "?channel=events&channel=other",
                       EVENTS / 2 + i * 7 % (EVENTS / 2) + 1);
        client_subscribe(&clients[i], &world->front, 0, request);
    }
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_REPLAYING) == CLIENTS - 1);
    pg_run(locker, "COMMIT");
    PQfinish(locker);
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_BEHIND) == 0);
    const size_t after = mallinfo2().uordblks;
    for (int i = 0; i < CLIENTS; i++) {
        const int id = EVENTS / 2 + i * 7 % (EVENTS / 2) + 1;
        const struct buf wanted = {.data = all.data + starts[id],
                                   .len = all.len - starts[id]};

        client_expect(&clients[i], &wanted);
        client_hang_up(&clients[i]);
    }
    const uint64_t pages = counter(world, STATS_REPLAY_PAGES);
    print_message("%d came back by %llu pages; %zu bytes each\n", CLIENTS,
                  (unsigned long long)pages, (after - MIN(after, before)) / CLIENTS);
    /* Some twenty; more if the shards are slower than the database. Each for itself would
     * have cost two or more. */
    assert_in_range(pages, 4, CLIENTS / 4);
    nobody_is_left(world);
    front_close(&world->front);
    free(clients);
    free(starts);
}

/* In each state: asked and not answered, answered and not sent, half sent. Nothing leaks, and
 * nobody is called who is gone. */
static void all_ends_while_replays_run(void **state)
{
    enum { CLIENTS = 40 };
    struct world *world = *state;
    struct client clients[CLIENTS];

    commit_many(world, 3000, 3000);
    for (int turn = 0; turn < 6; turn++) {
        open_front(world, (struct front_settings){.seq = 3000, .shards = 2});
        for (int i = 0; i < CLIENTS; i++) {
            char request[200];

            (void)snprintf(request, sizeof(request),
                           "GET /events?channel=%s HTTP/1.1\r\nHost: x\r\n"
                           "Last-Event-ID: %d\r\n\r\n",
                           i % 2 == 0 ? "events" : "orders.*", i * 70 + 1);
            client_subscribe(&clients[i], &world->front, SMALL_RCVBUF, request);
            if (i % 3 == 0)
                client_hang_up(&clients[i]);
        }
        if (turn % 2 == 0)
            usleep(20000 * (unsigned)turn);
        if (turn % 3 == 0)
            shards_drain(world->front.shards, 20000);
        front_close(&world->front);
        for (int i = 0; i < CLIENTS; i++)
            client_hang_up(&clients[i]);
    }
}

/* -- everything at once -- */

struct walker {
    struct client client;
    bool connected;
    int kind;
    uint64_t last_id;
    size_t next; /* of its own events: the one that is to come */
};

static const struct {
    const char *query, *condition;
} walks[] = {
    {"channel=events", "channel = 'events'"},
    {"channel=orders.*", "channel LIKE 'orders.%'"},
    {"channel=events&channel=orders.old", "channel IN ('events', 'orders.old')"},
    {"channel=*&type=a", "type = 'a'"},
};

struct own_events {
    uint64_t *seqs;
    size_t count;
};

static void load_own(struct world *world, struct own_events *own, const char *condition)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT seq FROM gateway.events WHERE seq > %llu AND %s ORDER BY seq",
                   (unsigned long long)(own->count > 0 ? own->seqs[own->count - 1] : 1),
                   condition);
    PGresult *result = PQexec(world->pg.conn, sql);
    assert_int_equal(PQresultStatus(result), PGRES_TUPLES_OK);
    const size_t more = (size_t)PQntuples(result);
    own->seqs = realloc(own->seqs, (own->count + more + 1) * sizeof(*own->seqs));
    assert_non_null(own->seqs);
    for (size_t i = 0; i < more; i++)
        own->seqs[own->count + i] = strtoull(PQgetvalue(result, (int)i, 0), NULL, 10);
    own->count += more;
    PQclear(result);
}

/* Takes what came whole: each of its own events, the next one always, and no other. */
static void digest(struct walker *walker, const struct own_events *own)
{
    struct client *client = &walker->client;

    client_look(client);
    if (client->body.len == 0)
        return;
    const char *at = client->body.data + 1; /* behind the first heartbeat's colon */
    for (const char *end; (end = strstr(at, "\n\n")) != NULL; at = end + 2) {
        const char *id = strstr(at, "\nid: ");

        if (strncmp(at, "id: ", 4) == 0)
            id = at - 1;
        if (id == NULL || id > end)
            fail_msg("a frame without an id: %.100s", at);
        const uint64_t seq = strtoull(id + 5, NULL, 10);
        const char *event = strstr(at, "\nevent: ");
        if (event != NULL && event < end && strncmp(event + 8, "gap", 3) == 0)
            fail_msg("a gap: %.200s", at);
        if (event == NULL || event > end || strncmp(event + 8, "checkpoint", 10) != 0) {
            if (walker->next >= own->count || own->seqs[walker->next] != seq)
                fail_msg("%s got %llu instead of %llu", walks[walker->kind].query,
                         (unsigned long long)seq,
                         (unsigned long long)(walker->next < own->count
                                                  ? own->seqs[walker->next]
                                                  : 0));
            walker->next++;
        }
        walker->last_id = seq;
    }
    /* What is not whole yet begins the next time; the first bytes are gone. */
    const size_t left = (size_t)(client->body.data + client->body.len - at);
    memmove(client->body.data + 1, at, left);
    client->body.len = left + 1;
    client->body.data[client->body.len] = '\0';
}

static void walk_connect(struct world *world, struct walker *walker, unsigned dice)
{
    char request[200];

    (void)snprintf(request, sizeof(request),
                   "GET /events?%s HTTP/1.%d\r\nHost: x\r\nLast-Event-ID: %llu\r\n\r\n",
                   walks[walker->kind].query, dice % 4 > 0,
                   (unsigned long long)walker->last_id);
    client_subscribe(&walker->client, &world->front, dice % 2 == 0 ? SMALL_RCVBUF : 0,
                     request);
    walker->connected = true;
}

static void walk_disconnect(struct walker *walker)
{
    client_hang_up(&walker->client);
    walker->connected = false;
}

/* All that it has yet to get. */
static void walk_to_the_end(struct world *world, struct walker *walker,
                            struct own_events *own)
{
    const uint64_t end = clock_usec() + FRONT_PATIENCE_USEC;

    if (!walker->connected)
        walk_connect(world, walker, 1);
    load_own(world, own, walks[walker->kind].condition);
    while (walker->next < own->count) {
        if (clock_usec() > end || walker->client.eof)
            fail_msg("%s has %zu of %zu", walks[walker->kind].query, walker->next,
                     own->count);
        (void)client_take(&walker->client, SIZE_MAX, 100);
        digest(walker, own);
    }
    walk_disconnect(walker);
}

/* A ring that is small, readers that are slow, leave and come back, a table that begins new
 * lives, a ring that begins anew without one, connections that are killed. */
static void walks_lose_and_double_nothing(void **state)
{
    enum { WALKERS = 16, STEPS = 200 };
    struct world *world = *state;
    struct walker walkers[WALKERS] = {{.connected = false}};
    struct own_events own[ARRAY_SIZE(walks)] = {{0}};
    unsigned seed = 42;
    const char *given = getenv("PGSSE_TEST_SEED");

    if (given != NULL)
        seed = (unsigned)strtoul(given, NULL, 10);
    commit_bytes(world, "none", 10, NULL);
    open_front(world, (struct front_settings){.seq = 1,
                                              .ring_bytes = 200000,
                                              .shards = 2,
                                              .heartbeat_usec = USEC_PER_SEC / 20});
    for (int i = 0; i < WALKERS; i++) {
        walkers[i].kind = i % (int)ARRAY_SIZE(walks);
        walkers[i].last_id = 1;
    }
    for (int step = 0; step < STEPS; step++) {
        struct walker *walker = &walkers[(unsigned)rand_r(&seed) % WALKERS];
        const unsigned dice = (unsigned)rand_r(&seed);

        commit_many(world, 1 + (int)(dice % 20), dice % 50 == 0 ? 100000 : dice % 2000);
        for (size_t i = 0; i < ARRAY_SIZE(walks); i++)
            load_own(world, &own[i], walks[i].condition);
        if (dice % 101 == 0)
            begin_new_life(world);
        if (dice % 101 == 0 || dice % 67 == 0)
            restart_ring(world);
        else if (dice % 5 > 0) /* the table may be ahead */
            ring_follows(world);
        if (dice % 43 == 0)
            pg_kill(&world->pg, "reader");
        if (!walker->connected)
            walk_connect(world, walker, dice / 7);
        else if (dice % 3 == 0)
            walk_disconnect(walker);
        for (int i = 0; i < WALKERS; i++) {
            /* Half of them are slow. */
            const size_t sip = i % 8 < 4 ? 100 + dice % 20000 : SIZE_MAX;

            if (walkers[i].connected && client_take(&walkers[i].client, sip, 0))
                digest(&walkers[i], &own[walkers[i].kind]);
        }
    }
    restart_ring(world); /* whatever the ring was not given */
    for (int i = 0; i < WALKERS; i++)
        walk_to_the_end(world, &walkers[i], &own[walkers[i].kind]);
    print_message("overtaken %llu times, %llu pages\n",
                  (unsigned long long)counter(world, STATS_STREAMS_LAGGED),
                  (unsigned long long)counter(world, STATS_REPLAY_PAGES));
    assert_true(counter(world, STATS_STREAMS_LAGGED) > 0);
    assert_true(counter(world, STATS_REPLAY_PAGES) > 50);
    nobody_is_left(world);
    front_close(&world->front);
    for (size_t i = 0; i < ARRAY_SIZE(walks); i++)
        free(own[i].seqs);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(an_id_younger_than_a_question_is_not_of_the_future),
        WITH_PG(who_comes_before_the_ring_has_started_gets_what_it_asked_for),
        WITH_PG(a_frame_broken_ahead_of_the_ring_goes_on),
        WITH_PG(every_id_is_gone_on_from_wherever_the_ring_begins),
        WITH_PG(a_long_way_back_is_gone_without_a_loss),
        WITH_PG(who_is_overtaken_gets_every_byte_once),
        WITH_PG(what_was_missed_is_told_behind_a_last_frame_that_broke_off),
        WITH_PG(earliest_is_all_there_is),
        WITH_PG(of_an_empty_table_all_is_nothing),
        WITH_PG(the_last_ones_are_the_newest_of_all_that_is_asked_for),
        WITH_PG(what_cannot_be_had_is_told_before_anything_else),
        WITH_PG(a_gap_in_the_middle_does_not_send_again_what_was_sent),
        WITH_PG(what_is_purged_during_a_replay_is_told_where_it_stands),
        WITH_PG(a_new_life_that_lost_nothing_is_not_noticed),
        WITH_PG(who_has_seen_what_a_new_life_lost_is_told),
        WITH_PG(what_was_deleted_unseen_is_told_to_who_is_up_to_date),
        WITH_PG(while_the_database_is_away_they_wait_with_heartbeats),
        WITH_PG(many_who_come_back_at_once_share_a_handful_of_queries),
        WITH_PG(all_ends_while_replays_run),
        WITH_PG(walks_lose_and_double_nothing),
    };
    return cmocka_run_group_tests_name("catchup", tests, NULL, NULL);
}
