/* test_catchup.c - the joint between the table and the ring: who comes back gets every byte
 * once. */
#include "catchup_world.h"

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
        WITH_PG(while_the_database_is_away_they_wait_with_heartbeats),
    };
    return cmocka_run_group_tests_name("catchup", tests, NULL, NULL);
}
