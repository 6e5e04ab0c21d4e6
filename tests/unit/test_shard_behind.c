/* test_shard_behind.c - streams that are behind: readers that are slow, and those who come back
 * with an id, while others are live. */
#include "shard.h"

#include "shard_world.h"

/* -- slow readers -- */

static void a_slow_reader_falls_behind_and_catches_up_while_others_go_on(void **state)
{
    enum { BURSTS = 100, EVENTS = 20, BYTES = 5000 }; /* 10 MB, in a ring of 64 MiB */
    static const char *const requests[] = {GET(""), GET("?channel=events&channel=x"),
                                           GET_1_0(""), GET("?type=message")};
    struct front front;
    struct client slow[ARRAY_SIZE(requests)], fast;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&slow[i], &front, SMALL_RCVBUF, requests[i]);
    client_subscribe(&fast, &front, 0, GET(""));
    for (int burst = 0; burst < BURSTS; burst++) {
        for (int i = 0; i < EVENTS; i++)
            push_bytes(&front, "events", BYTES + (size_t)i * 100, &wanted);
        ring_wake(front.ring);
        client_read_body(&fast, client_greeting_len(&fast) + wanted.len);
    }
    client_expect(&fast, &wanted);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == ARRAY_SIZE(requests));

    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_expect(&slow[i], &wanted);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == 0);
    front_publish(&front, "events", "\"and on\"", &wanted);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_expect(&slow[i], &wanted);
        client_hang_up(&slow[i]);
    }
    client_hang_up(&fast);
    assert_int_equal(counter(&front, STATS_STREAMS_LAGGED), 0);
    front_close(&front);
}

/* Some at a time, while events go on: the place where it breaks moves over every byte. */
static void a_reader_in_sips_gets_every_byte(void **state)
{
    struct front front;
    struct client clients[2];
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;
    size_t sip = 1;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&clients[0], &front, SMALL_RCVBUF, GET(""));
    client_subscribe(&clients[1], &front, SMALL_RCVBUF, GET_1_0("?channel=e*&channel=x"));
    for (int i = 0; i < 1500; i++) {
        push_bytes(&front, "events", (size_t)(i * 31) % 3000, &wanted);
        ring_wake(front.ring);
        sip = sip % 4001 + 17;
        (void)client_take(&clients[0], sip, 0);
        (void)client_take(&clients[1], sip, 0);
    }
    for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
        client_expect(&clients[i], &wanted);
        client_hang_up(&clients[i]);
    }
    front_close(&front);
}

static void a_large_event_is_broken_and_goes_on_where_it_broke(void **state)
{
    struct front front;
    struct client clients[2];
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&clients[0], &front, SMALL_RCVBUF, GET(""));
    client_subscribe(&clients[1], &front, SMALL_RCVBUF, GET_1_0(""));
    front_publish(&front, "events", "\"before\"", &wanted);
    push_bytes(&front, "events", 5 * MIB + 3, &wanted);
    push_bytes(&front, "other", MIB, NULL);
    front_publish(&front, "events", "\"behind\"", &wanted);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == 2);
    for (size_t i = 0; i < ARRAY_SIZE(clients); i++)
        client_expect(&clients[i], &wanted);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == 0);
    front_publish(&front, "events", "\"at last\"", &wanted);
    for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
        client_expect(&clients[i], &wanted);
        client_hang_up(&clients[i]);
    }
    front_close(&front);
}

/* What it waits for is in the table, and there is no table: it is not its fault. The others
 * do not notice. */
static void who_is_overtaken_waits_for_the_table_and_others_do_not(void **state)
{
    struct front front;
    struct client slow, fast;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.ring_bytes = MIB,
                                                .idle_close_usec = 3 * USEC_PER_SEC / 2});
    client_subscribe(&slow, &front, SMALL_RCVBUF, GET(""));
    client_subscribe(&fast, &front, 0, GET(""));
    for (int burst = 0; burst < 100; burst++) {
        for (int i = 0; i < 10; i++)
            push_bytes(&front, "events", 5000, &wanted);
        ring_wake(front.ring);
        client_read_body(&fast, client_greeting_len(&fast) + wanted.len);
        /* However long that takes: it never takes nothing for so long that it is closed. */
        (void)client_take(&slow, SMALL_RCVBUF, 0);
    }
    while (client_take(&slow, SIZE_MAX, 0) || gauge(&front, STATS_STREAMS_REPLAYING) == 0)
        assert_false(slow.eof);
    while (client_take(&slow, SIZE_MAX, 3200)) /* more than twice idle_close */
        assert_false(slow.eof);
    client_look(&slow);
    const size_t greeting = client_greeting_len(&slow);
    assert_memory_equal(slow.body.data + greeting, wanted.data, slow.body.len - greeting);
    assert_int_equal(counter(&front, STATS_STREAMS_LAGGED), 1);
    assert_int_equal(gauge(&front, STATS_STREAMS), 2);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == 1);
    front_publish(&front, "events", "1", &wanted);
    client_expect(&fast, &wanted);
    client_hang_up(&slow);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_REPLAYING) == 0);
    client_hang_up(&fast);
    front_close(&front);
}

/* Nobody wakes the shard while the ring goes round: everybody up to date is too late. */
static void a_shard_that_is_overtaken_keeps_its_streams_warm(void **state)
{
    struct front front;
    struct client client, fresh;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;
    const struct buf nothing = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.ring_bytes = 100000,
                                                .heartbeat_usec = USEC_PER_SEC / 5,
                                                .idle_close_usec = USEC_PER_SEC});
    client_subscribe(&client, &front, 0, GET(""));
    client_expect(&client, &nothing);
    /* A shard looks into the ring once a second by itself: that may save it, once. */
    for (int i = 0; i < 10 && counter(&front, STATS_STREAMS_LAGGED) == 0; i++) {
        for (int j = 0; j < 20000; j++)
            front_push(&front, "other", "message", "2", 1, NULL);
        ring_wake(front.ring);
        (void)poll(NULL, 0, 50);
    }
    assert_int_equal(counter(&front, STATS_STREAMS_LAGGED), 1);
    size_t beats = client_greeting_len(&client);
    client_read_body(&client, beats + 12);
    for (; client.body.len >= beats + 2; beats += 2)
        assert_memory_equal(client.body.data + beats, ":\n", 2);

    client_subscribe(&fresh, &front, 0, GET(""));
    front_publish(&front, "events", "3", &wanted);
    client_read_body(&fresh, client_greeting_len(&fresh) + wanted.len);
    client_hang_up(&fresh);
    client_hang_up(&client);
    front_close(&front);
}

static void a_reader_that_takes_nothing_for_too_long_is_closed(void **state)
{
    struct front front;
    struct client stuck, idle;

    (void)state;
    front_open(&front, &(struct front_settings){.heartbeat_usec = USEC_PER_SEC / 5,
                                                .idle_close_usec = USEC_PER_SEC / 2});
    client_subscribe(&stuck, &front, SMALL_RCVBUF, GET(""));
    client_subscribe(&idle, &front, 0, GET("?channel=quiet"));
    for (int i = 0; i < 100; i++)
        push_bytes(&front, "events", 10000, NULL);
    ring_wake(front.ring);
    FRONT_WAIT_FOR(counter(&front, STATS_STREAMS_IDLE_CLOSED) == 1);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS) == 1);
    /* Who has nothing to take is not meant. */
    (void)poll(NULL, 0, 800);
    assert_int_equal(gauge(&front, STATS_STREAMS), 1);
    client_hang_up(&stuck);
    client_hang_up(&idle);
    front_close(&front);
}

/* -- coming back -- */

static void who_comes_back_gets_what_it_missed(void **state)
{
    static const struct {
        const char *request;
        uint64_t after; /* events behind this id are to come */
    } cases[] = {
        {GET_AFTER("105"), 105},
        {GET_AFTER("100"), 100},
        {GET_AFTER("110"), 110},
        {GET("?last_event_id=107"), 107},
        {"GET /events?last_event_id=101 HTTP/1.1\r\nHost: x\r\nLast-Event-ID: "
         "108\r\n\r\n",
         108},
        {"GET /events HTTP/1.0\r\nLast-Event-ID: 103\r\n\r\n", 103},
    };
    struct front front;
    struct client clients[ARRAY_SIZE(cases)];
    struct buf wanted[ARRAY_SIZE(cases)] = {{0}};

    (void)state;
    front_open(&front, &(struct front_settings){0});
    for (uint64_t seq = 101; seq <= 112; seq++) {
        char text[64];
        (void)snprintf(text, sizeof(text), "id: %llu\ndata: 1\n\n",
                       (unsigned long long)seq);
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
            if (seq > cases[i].after && seq != 102)
                (void)buf_add_text(&wanted[i], text);
        }
    }
    for (int i = 0; i < 10; i++)
        front_publish(&front, i == 1 ? "other" : "events", "1", NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        client_subscribe(&clients[i], &front, 0, cases[i].request);
    front_publish(&front, "events", "1", NULL);
    front_publish(&front, "events", "1", NULL);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        client_expect(&clients[i], &wanted[i]);
        client_hang_up(&clients[i]);
        buf_done(&wanted[i]);
    }
    front_close(&front);
}

/* Whether an id is exact, and where the oldest or the newest events are, only the table can
 * tell. While there is none: heartbeats. */
static void who_needs_the_table_waits_for_it(void **state)
{
    static const char *const requests[] = {
        GET_AFTER("99"), /* older than the ring */
        GET_AFTER("0"),
        GET_AFTER("500"), /* newer than anything */
        GET_AFTER("x\"\\y"),
        GET("?last_event_id=0101"),
        GET("?last_event_id=earliest"),
        GET("?last=3"),
        "GET /events?last=3 HTTP/1.0\r\n\r\n",
    };
    struct front front;
    struct client clients[ARRAY_SIZE(requests)];

    (void)state;
    front_open(&front, &(struct front_settings){.heartbeat_usec = USEC_PER_SEC / 5,
                                                .idle_close_usec = USEC_PER_SEC / 2});
    front_publish(&front, "events", "1", NULL);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&clients[i], &front, 0, requests[i]);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_REPLAYING) == ARRAY_SIZE(requests));
    front_publish(&front, "events", "2", NULL);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        const size_t greeting = client_greeting_len(&clients[i]);

        expect_heartbeats(&clients[i], greeting);
        expect_heartbeats(&clients[i], greeting + 6);
    }
    assert_int_equal(counter(&front, STATS_GAPS_EXPIRED) +
                         counter(&front, STATS_GAPS_FUTURE) +
                         counter(&front, STATS_GAPS_UNKNOWN),
                     0);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_hang_up(&clients[i]);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_REPLAYING) == 0);
    assert_int_equal(gauge(&front, STATS_STREAMS_BEHIND), 0);
    front_close(&front);
}

/* And is ended with a goodbye when the gateway goes. */
static void who_waits_for_the_table_is_told_goodbye(void **state)
{
    struct front front;
    struct client drained, stopped;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&drained, &front, 0, GET("?channel=a&last=1"));
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_REPLAYING) == 1);
    shards_drain(front.shards, USEC_PER_SEC / 10);
    client_read_all(&drained);
    assert_true(drained.last_chunk);
    client_hang_up(&drained);
    front_close(&front);

    front_open(&front, &(struct front_settings){0});
    client_subscribe(&stopped, &front, 0, GET_AFTER("7"));
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_REPLAYING) == 1);
    readers_stop(front.readers);
    FRONT_WAIT_FOR(client_take(&stopped, SIZE_MAX, 10) &&
                   (client_look(&stopped), stopped.last_chunk));
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_REPLAYING) == 0);
    client_hang_up(&stopped);
    front_close(&front);
}

static void who_comes_before_the_ring_has_started_waits_for_its_place(void **state)
{
    struct front front;
    struct client exact, late, early, fresh;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY, checkpoint = BUF_EMPTY;
    const struct buf nothing = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.not_started = true});
    client_subscribe(&exact, &front, 0, GET_AFTER("100"));
    client_subscribe(&late, &front, 0,
                     "GET /events HTTP/1.0\r\nLast-Event-ID: 7\r\n\r\n");
    client_subscribe(&early, &front, 0, GET_AFTER("1000"));
    client_subscribe(&fresh, &front, 0, GET(""));
    (void)poll(NULL, 0, 50);
    client_expect(&exact, &nothing);
    client_expect(&fresh, &nothing);

    ring_start(front.ring, 100, 102);
    ring_wake(front.ring);
    /* 101 and 102 were there before: exact has missed them, for fresh they are no news. */
    (void)buf_add_text(&checkpoint, "id: 102\nevent: checkpoint\ndata:\n\n");
    front_publish(&front, "events", "1", &wanted);
    front_publish(&front, "events", "1", &wanted);
    client_expect(&exact, &wanted);
    client_expect(&fresh, &checkpoint);
    const size_t before = wanted.len;
    for (int i = 0; i < 3; i++)
        front_publish(&front, "events", "1", &wanted);
    client_expect(&exact, &wanted);
    (void)buf_add(&checkpoint, wanted.data + before, wanted.len - before);
    client_expect(&fresh, &checkpoint);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_REPLAYING) == 2);
    client_expect(&late, &nothing);
    client_expect(&early, &nothing);
    client_hang_up(&exact);
    client_hang_up(&late);
    client_hang_up(&early);
    client_hang_up(&fresh);
    front_close(&front);
}

/* An id that is on its way to the ring: the client has it from another gateway. */
static void who_is_ahead_of_the_start_waits_for_the_ring(void **state)
{
    struct front front;
    struct client client;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;
    const struct buf nothing = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.not_started = true});
    ring_start(front.ring, 100, 105);
    client_subscribe(&client, &front, 0, GET_AFTER("104"));
    for (int i = 0; i < 4; i++)
        front_publish(&front, "events", "1", NULL);
    (void)poll(NULL, 0, 50);
    client_expect(&client, &nothing);
    front_publish(&front, "events", "1", &wanted);
    front_publish(&front, "events", "1", &wanted);
    client_expect(&client, &wanted);
    assert_int_equal(gauge(&front, STATS_STREAMS_REPLAYING), 0);
    client_hang_up(&client);
    front_close(&front);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slow_reader_falls_behind_and_catches_up_while_others_go_on),
        cmocka_unit_test(a_reader_in_sips_gets_every_byte),
        cmocka_unit_test(a_large_event_is_broken_and_goes_on_where_it_broke),
        cmocka_unit_test(who_is_overtaken_waits_for_the_table_and_others_do_not),
        cmocka_unit_test(a_shard_that_is_overtaken_keeps_its_streams_warm),
        cmocka_unit_test(a_reader_that_takes_nothing_for_too_long_is_closed),
        cmocka_unit_test(who_comes_back_gets_what_it_missed),
        cmocka_unit_test(who_needs_the_table_waits_for_it),
        cmocka_unit_test(who_waits_for_the_table_is_told_goodbye),
        cmocka_unit_test(who_comes_before_the_ring_has_started_waits_for_its_place),
        cmocka_unit_test(who_is_ahead_of_the_start_waits_for_the_ring),
    };

    return cmocka_run_group_tests_name("shard_behind", tests, NULL, NULL);
}
