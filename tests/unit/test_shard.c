/* test_shard.c - from the ring to the sockets: shards, streams and the fan-out, seen from the
 * other end of real connections. */
#include "shard.h"

#include "shard_world.h"

/* -- who gets what -- */

static void a_subscriber_gets_its_channel_and_nothing_else(void **state)
{
    struct front front;
    struct client one, two, none;
    CLEANUP(buf_done)
    struct buf events = BUF_EMPTY, orders = BUF_EMPTY, nothing = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&one, &front, 0, GET(""));
    client_subscribe(&two, &front, 0, GET("?channel=orders"));
    client_subscribe(&none, &front, 0, GET("?channel=order"));
    for (int i = 0; i < 50; i++) {
        front_publish(&front, "events", "{\"a\":\n1}", &events);
        front_publish(&front, "orders", "[1,\r\n2,\r3]", &orders);
        front_publish(&front, "others", "3", NULL);
    }
    client_expect(&one, &events);
    client_expect(&two, &orders);
    client_expect(&none, &nothing);
    assert_int_equal(gauge(&front, STATS_STREAMS), 3);
    client_hang_up(&one);
    client_hang_up(&two);
    client_hang_up(&none);
    front_close(&front);
}

static void overlapping_channels_deliver_once_in_order(void **state)
{
    static const char *const requests[] = {
        GET("?channel=orders.new&channel=orders.*&channel=*&channel=orders.old"),
        GET("?channel=orders.new&channel=orders.new&channel=orders.old"),
        GET("?channel=*&channel=*"),
        GET("?channel=orders.*"),
        GET_1_0("?channel=orders.old&channel=orders.n*&channel=o*"),
    };
    struct front front;
    struct client clients[ARRAY_SIZE(requests)];
    CLEANUP(buf_done) struct buf orders = BUF_EMPTY;
    const struct buf nothing = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_subscribe(&clients[i], &front, 0, requests[i]);
        client_expect(&clients[i], &nothing);
    }
    for (int burst = 0; burst < 20; burst++) {
        for (int i = 0; i < 40; i++)
            front_push(&front, i % 3 == 0 ? "orders.new" : "orders.old", "t", "1", 1,
                       &orders);
        ring_wake(front.ring);
        for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
            client_expect(&clients[i], &orders);
    }
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_hang_up(&clients[i]);
    front_close(&front);
}

static void types_are_filtered(void **state)
{
    struct front front;
    struct client choosy, many, plain;
    CLEANUP(buf_done) struct buf created = BUF_EMPTY, both = BUF_EMPTY, all = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&choosy, &front, 0, GET("?type=created"));
    client_subscribe(&many, &front, 0, GET("?channel=e*&type=created&type=message"));
    client_subscribe(&plain, &front, 0, GET(""));
    for (int i = 0; i < 30; i++) {
        struct buf *const wanted[] = {&created, &both, &all};
        const uint64_t seq = front.seq;

        /* The same event for each of the three that want it. */
        for (size_t j = 0; j < ARRAY_SIZE(wanted); j++) {
            CLEANUP(buf_done) struct buf text = BUF_EMPTY;
            (void)buf_add_format(&text, "id: %llu\nevent: created\ndata: 1\n\n",
                                 (unsigned long long)seq + 1);
            (void)buf_add(wanted[j], text.data, text.len);
        }
        front_push(&front, "events", "created", "1", 1, NULL);
        (void)buf_add_format(&both, "id: %llu\ndata: 2\n\n", (unsigned long long)seq + 2);
        front_push(&front, "events", "message", "2", 1, &all);
        front_push(&front, "events", "deleted", "3", 1, &all);
        front_push(&front, "events", "create", "4", 1, &all);
        ring_wake(front.ring);
    }
    client_expect(&choosy, &created);
    client_expect(&many, &both);
    client_expect(&plain, &all);
    client_hang_up(&choosy);
    client_hang_up(&many);
    client_hang_up(&plain);
    front_close(&front);
}

static void nobody_gets_his_own_if_he_does_without(void **state)
{
    static const char *const requests[] = {GET("?exclude_client=shop"),
                                           GET_1_0("?exclude_client=shop"),
                                           GET("?channel=e*&exclude_client=x"
                                               "&exclude_client=shop&type=created")};
    struct front front;
    struct client clients[ARRAY_SIZE(requests)], plain;
    CLEANUP(buf_done) struct buf all = BUF_EMPTY, others = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&clients[i], &front, 0, requests[i]);
    client_subscribe(&plain, &front, 0, GET(""));
    for (int i = 0; i < 30; i++) {
        static const char *const from[] = {"shop", NULL, "shops", "till", "shop"};

        for (size_t j = 0; j < ARRAY_SIZE(from); j++) {
            const size_t before = all.len;
            const bool own = from[j] != NULL && strcmp(from[j], "shop") == 0;

            front_push_from(&front, from[j], "events", "created", "1", 1, &all);
            if (!own)
                (void)buf_add(&others, all.data + before, all.len - before);
        }
        ring_wake(front.ring);
    }
    client_expect(&plain, &all);
    client_hang_up(&plain);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        client_expect(&clients[i], &others);
        client_hang_up(&clients[i]);
    }
    front_close(&front);
}

static void http_1_0_gets_no_chunks(void **state)
{
    struct front front;
    struct client client;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&client, &front, SMALL_RCVBUF, GET_1_0(""));
    assert_false(client.chunked);
    for (int i = 0; i < 500; i++)
        push_bytes(&front, "events", 3000, &wanted);
    ring_wake(front.ring);
    client_expect(&client, &wanted);
    shards_drain(front.shards, 0);
    client_read_all(&client);
    client_hang_up(&client);
    front_close(&front);
}

static void several_shards_share_the_work(void **state)
{
    enum { CLIENTS = 30, EVENTS = 200 };
    struct front front;
    struct client clients[CLIENTS];
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.shards = 3});
    for (int i = 0; i < CLIENTS; i++)
        client_subscribe(&clients[i], &front, 0, i % 2 == 0 ? GET("") : GET_1_0(""));
    for (int i = 0; i < EVENTS; i++)
        front_publish(&front, "events", "\"shared\"", &wanted);
    for (int i = 0; i < CLIENTS; i++) {
        client_expect(&clients[i], &wanted);
        client_hang_up(&clients[i]);
    }
    FRONT_WAIT_FOR(counter(&front, STATS_EVENTS_DELIVERED) == CLIENTS * EVENTS);
    front_close(&front);
}

/* The header's length chooses the daemon; all of them make streams. */
static void long_headers_make_streams_too(void **state)
{
    static const size_t lengths[] = {10, 500, 560, 600, 1500, 2900, 3200, 8000, 15000};
    struct front front;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    for (size_t i = 0; i < ARRAY_SIZE(lengths); i++) {
        struct client client;
        CLEANUP(buf_done) struct buf wanted = BUF_EMPTY, request = BUF_EMPTY;

        (void)buf_add_text(&request, "GET /events HTTP/1.1\r\nHost: x\r\n");
        for (size_t left = lengths[i]; left > 0; left -= MIN(left, (size_t)100))
            (void)buf_add_format(&request, "X-%zu: %0*d\r\n", left,
                                 (int)MIN(left, (size_t)90), 0);
        (void)buf_add_text(&request, "\r\n");
        client_subscribe(&client, &front, 0, request.data);
        front_publish(&front, "events", "1", &wanted);
        client_expect(&client, &wanted);
        client_hang_up(&client);
    }
    front_close(&front);
}

/* -- time and departures -- */

static void a_quiet_stream_is_kept_warm(void **state)
{
    struct front front;
    struct client one, two;

    (void)state;
    front_open(&front, &(struct front_settings){.heartbeat_usec = USEC_PER_SEC / 5,
                                                .idle_close_usec = 10 * USEC_PER_SEC});
    client_subscribe(&one, &front, 0, GET(""));
    client_subscribe(&two, &front, 0, GET_1_0(""));
    expect_heartbeats(&one, client_greeting_len(&one));
    expect_heartbeats(&two, client_greeting_len(&two));
    client_hang_up(&one);
    client_hang_up(&two);
    front_close(&front);
}

/* Whose channel is quiet while others are not gets a young id with the heartbeats, and with
 * the goodbye. */
static void a_quiet_stream_gets_young_ids(void **state)
{
    static const char *const requests[] = {GET("?channel=quiet"),
                                           GET_1_0("?channel=quiet&channel=q*")};
    struct front front;
    struct client clients[ARRAY_SIZE(requests)];
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.heartbeat_usec = USEC_PER_SEC / 5,
                                                .idle_close_usec = 10 * USEC_PER_SEC});
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++)
        client_subscribe(&clients[i], &front, 0, requests[i]);
    for (int i = 0; i < 10; i++)
        front_publish(&front, "loud", "1", NULL);
    (void)buf_add_text(&wanted, "id: 110\nevent: checkpoint\ndata:\n\n:\n:\n");
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        struct client *client = &clients[i];
        size_t at = client_greeting_len(client);

        client_read_body(client, at + 2);
        for (; memcmp(client->body.data + at, ":\n", 2) == 0; at += 2)
            client_read_body(client, at + 4);
        client_read_body(client, at + wanted.len);
        assert_memory_equal(client->body.data + at, wanted.data, wanted.len);
    }
    front_publish(&front, "loud", "1", NULL);
    shards_drain(front.shards, 0);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        static const char last[] = "id: 111\nevent: checkpoint\ndata:\n\n";
        struct client *client = &clients[i];

        client_read_all(client);
        const char *goodbye =
            strstr(client->body.data + client_greeting_len(client), "retry: ");
        const char *id = strstr(client->body.data, last);
        assert_non_null(goodbye);
        assert_non_null(id);
        assert_null(strstr(id + 1, last)); /* once: then its id is young */
        client_hang_up(client);
    }
    front_close(&front);
}

static void who_has_caught_up_is_kept_warm_again(void **state)
{
    struct front front;
    struct client client;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.heartbeat_usec = USEC_PER_SEC / 5,
                                                .idle_close_usec = 10 * USEC_PER_SEC});
    client_subscribe(&client, &front, SMALL_RCVBUF, GET(""));
    push_bytes(&front, "events", 2 * MIB, &wanted);
    ring_wake(front.ring);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == 1);
    (void)poll(NULL, 0, 600); /* its timer has come round and knows that it is behind */
    size_t begin = client_greeting_len(&client);
    client_read_body(&client, begin + wanted.len);
    while (memcmp(client.body.data + begin, ":\n", 2) == 0)
        begin += 2; /* before it fell behind */
    client_read_body(&client, begin + wanted.len);
    assert_memory_equal(client.body.data + begin, wanted.data, wanted.len);
    expect_heartbeats(&client, begin + wanted.len);
    client_hang_up(&client);
    front_close(&front);
}

static void a_stream_ends_when_it_is_old(void **state)
{
    struct front front;
    struct client client;

    (void)state;
    front_open(&front, &(struct front_settings){.max_age_usec = USEC_PER_SEC / 4});
    client_subscribe(&client, &front, 0, GET(""));
    client_read_all(&client);
    assert_true(client.last_chunk);
    assert_non_null(strstr(client.body.data + client_greeting_len(&client), "retry: "));
    client_hang_up(&client);
    front_close(&front);
}

static void a_drain_says_goodbye(void **state)
{
    enum { CLIENTS = 20 };
    struct front front;
    struct client clients[CLIENTS], newcomer;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){.shards = 2});
    for (int i = 0; i < CLIENTS; i++)
        client_subscribe(&clients[i], &front, 0, i % 4 == 0 ? GET_1_0("") : GET(""));
    front_publish(&front, "events", "1", &wanted);
    for (int i = 0; i < CLIENTS; i++)
        client_expect(&clients[i], &wanted);
    shards_drain(front.shards, USEC_PER_SEC / 5);
    for (int i = 0; i < CLIENTS; i++) {
        client_read_all(&clients[i]);
        assert_true(clients[i].last_chunk == clients[i].chunked);
        const char *last = clients[i].body.data + client_greeting_len(&clients[i]);
        assert_memory_equal(last, wanted.data, wanted.len);
        assert_memory_equal(last + wanted.len, "retry: ", 7);
        assert_int_equal(strspn(last + wanted.len + 7, "0123456789"), 4);
        client_hang_up(&clients[i]);
    }
    FRONT_WAIT_FOR(shards_connections(front.shards) == 0);
    assert_int_equal(gauge(&front, STATS_STREAMS), 0);

    client_dial(&newcomer, &front, 0); /* into the backlog: the next process's */
    client_say(&newcomer, GET(""), strlen(GET("")));
    assert_false(client_take(&newcomer, 100, 50));
    client_hang_up(&newcomer);
    front_close(&front);
}

static void streams_that_are_behind_end_with_the_shards(void **state)
{
    struct front front;
    struct client broken, quiet;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&broken, &front, SMALL_RCVBUF, GET(""));
    client_subscribe(&quiet, &front, 0, GET("?channel=quiet"));
    push_bytes(&front, "events", MIB, &wanted);
    ring_wake(front.ring);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == 1);
    shards_stop(front.shards);
    expect_broken_off(&broken, &wanted);
    assert_false(broken.last_chunk);
    client_read_all(&quiet);
    assert_true(quiet.last_chunk);
    client_hang_up(&broken);
    client_hang_up(&quiet);
    front_close(&front);
}

static void who_leaves_is_noticed_though_nothing_is_published(void **state)
{
    struct front front;
    struct client gone, reset, behind;
    const struct linger at_once = {.l_onoff = 1};

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_subscribe(&gone, &front, 0, GET(""));
    client_subscribe(&reset, &front, 0, GET_1_0("?channel=a&channel=b"));
    client_subscribe(&behind, &front, SMALL_RCVBUF, GET("?channel=c"));
    push_bytes(&front, "c", MIB, NULL);
    ring_wake(front.ring);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS_BEHIND) == 1);
    client_hang_up(&gone);
    (void)setsockopt(reset.fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    client_hang_up(&reset);
    client_hang_up(&behind);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS) == 0);
    FRONT_WAIT_FOR(shards_connections(front.shards) == 0);
    assert_int_equal(gauge(&front, STATS_STREAMS_BEHIND), 0);
    front_close(&front);
}

/* libmicrohttpd looks after those that have been closed from the oldest it has awake, and
 * only up to the first that is not: one that takes its time must not keep the dead. */
static void who_leaves_is_cleared_away_behind_one_that_stays(void **state)
{
    static const char *const requests[] = {GET(""), GET_1_0(""), GET("?channel=a")};
    static const char slow[] =
        "GET /events HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n";
    struct front front;
    struct client stays;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_dial(&stays, &front, 0);
    client_say(&stays, slow, strlen(slow));
    FRONT_WAIT_FOR(shards_connections(front.shards) == 1);
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        struct client client;

        client_subscribe(&client, &front, 0, requests[i]);
        assert_int_equal(shards_connections(front.shards), 2);
        client_hang_up(&client);
        FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS) == 0);
        FRONT_WAIT_FOR(shards_connections(front.shards) == 1);
    }
    assert_int_equal(counter(&front, STATS_CONNECTIONS_EXPIRED), 0); /* it did stay */
    client_hang_up(&stays);
    front_close(&front);
}

/* Clients come and go in the middle of everything; nothing is freed too early or never. */
static void comings_and_goings_under_load(void **state)
{
    enum { CLIENTS = 24 };
    static const char *const requests[] = {
        GET("?channel=a"), GET("?channel=b"),     GET("?channel=a&channel=b"),
        GET("?channel=*"), GET_1_0("?channel=a"), GET("?channel=b&type=x"),
        GET_AFTER("100")};
    struct front front;
    struct client clients[CLIENTS];
    const uint64_t end = clock_usec() + USEC_PER_SEC;
    int turn = 0;

    (void)state;
    front_open(&front, &(struct front_settings){.shards = 2, .ring_bytes = MIB});
    for (int i = 0; i < CLIENTS; i++)
        clients[i] = (struct client){.fd = -1};
    for (; clock_usec() < end || turn <= 10; turn++) {
        struct client *client = &clients[turn % CLIENTS];
        const char *request = requests[turn % (int)ARRAY_SIZE(requests)];

        client_hang_up(client);
        client_dial(client, &front, turn % 3 == 0 ? SMALL_RCVBUF : 0);
        client_say(client, request, strlen(request));
        for (int i = 0; i < 20; i++)
            push_bytes(&front, i % 2 == 0 ? "a" : "b", 2000, NULL);
        ring_wake(front.ring);
    }
    for (int i = 0; i < CLIENTS; i++)
        client_hang_up(&clients[i]);
    FRONT_WAIT_FOR(gauge(&front, STATS_STREAMS) == 0);
    FRONT_WAIT_FOR(shards_connections(front.shards) == 0);
    assert_int_equal(gauge(&front, STATS_STREAMS_BEHIND), 0);
    front_close(&front);
}

/* -- limits -- */

static void over_the_limit_a_stream_is_told_to_come_back(void **state)
{
    struct front front;
    struct client clients[3];

    (void)state;
    front_open(&front, &(struct front_settings){.connections_max = 2});
    for (int i = 0; i < 2; i++)
        client_subscribe(&clients[i], &front, 0, GET(""));
    client_dial(&clients[2], &front, 0);
    client_say(&clients[2], GET(""), strlen(GET("")));
    client_read_all(&clients[2]);
    assert_memory_equal(clients[2].raw.data, "HTTP/1.1 200 OK\r\n", 17);
    assert_memory_equal(clients[2].body.data, "retry: ", 7);
    client_hang_up(&clients[0]);
    client_hang_up(&clients[2]);
    FRONT_WAIT_FOR(shards_connections(front.shards) == 1);
    client_subscribe(&clients[0], &front, 0, GET(""));
    client_hang_up(&clients[0]);
    client_hang_up(&clients[1]);
    front_close(&front);
}

/* Its place must not stay taken when nobody waits for what it would be told. */
static void who_is_refused_and_gone_leaves_no_trace(void **state)
{
    struct front front;
    struct client stays;

    (void)state;
    front_open(&front, &(struct front_settings){.connections_max = 1});
    client_subscribe(&stays, &front, 0, GET(""));
    for (int i = 0; i < 100; i++) {
        struct client client;

        client_dial(&client, &front, 0);
        client_say(&client, GET(""), strlen(GET("")));
        client_hang_up(&client);
    }
    FRONT_WAIT_FOR(counter(&front, STATS_CONNECTIONS_ACCEPTED) == 101);
    FRONT_WAIT_FOR(shards_connections(front.shards) == 1);
    client_hang_up(&stays);
    front_close(&front);
}

/* Whatever is not a whole request is not a connection, and goes after its time. */
static void who_asks_nothing_does_not_stay(void **state)
{
    static const char *const openings[] = {
        "",         "G",    "GET /events HTTP/1.1\r\nHost: x\r\n", "\r\n",
        "\r\n\r\n", "\n\n", "\r\n\r\nGET /events HTTP/1.1\r\n",
    };
    struct front front;

    (void)state;
    front_open(&front, &(struct front_settings){.header_time_usec = USEC_PER_SEC / 4});
    for (size_t i = 0; i < ARRAY_SIZE(openings); i++) {
        struct client client;
        const uint64_t end = clock_usec() + FRONT_PATIENCE_USEC;

        client_dial(&client, &front, 0);
        client_say(&client, openings[i], strlen(openings[i]));
        while (!client.eof) {
            if (clock_usec() > end)
                fail_msg("opening %zu: the connection is still open", i);
            (void)client_take(&client, 100, 100);
        }
        client_hang_up(&client);
    }
    front_close(&front);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_subscriber_gets_its_channel_and_nothing_else),
        cmocka_unit_test(overlapping_channels_deliver_once_in_order),
        cmocka_unit_test(types_are_filtered),
        cmocka_unit_test(nobody_gets_his_own_if_he_does_without),
        cmocka_unit_test(http_1_0_gets_no_chunks),
        cmocka_unit_test(several_shards_share_the_work),
        cmocka_unit_test(long_headers_make_streams_too),
        cmocka_unit_test(a_quiet_stream_is_kept_warm),
        cmocka_unit_test(a_quiet_stream_gets_young_ids),
        cmocka_unit_test(who_has_caught_up_is_kept_warm_again),
        cmocka_unit_test(a_stream_ends_when_it_is_old),
        cmocka_unit_test(a_drain_says_goodbye),
        cmocka_unit_test(streams_that_are_behind_end_with_the_shards),
        cmocka_unit_test(who_leaves_is_noticed_though_nothing_is_published),
        cmocka_unit_test(who_leaves_is_cleared_away_behind_one_that_stays),
        cmocka_unit_test(comings_and_goings_under_load),
        cmocka_unit_test(over_the_limit_a_stream_is_told_to_come_back),
        cmocka_unit_test(who_is_refused_and_gone_leaves_no_trace),
        cmocka_unit_test(who_asks_nothing_does_not_stay),
    };

    return cmocka_run_group_tests_name("shard", tests, NULL, NULL);
}
