/* test_catchup_gaps.c - what cannot be had any more is told where it stands; and the ring
 * that begins anew. */
#include "catchup_world.h"

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

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(what_cannot_be_had_is_told_before_anything_else),
        WITH_PG(a_gap_in_the_middle_does_not_send_again_what_was_sent),
        WITH_PG(what_is_purged_during_a_replay_is_told_where_it_stands),
        WITH_PG(a_new_life_that_lost_nothing_is_not_noticed),
        WITH_PG(who_has_seen_what_a_new_life_lost_is_told),
        WITH_PG(what_was_deleted_unseen_is_told_to_who_is_up_to_date),
    };
    return cmocka_run_group_tests_name("catchup, gaps", tests, NULL, NULL);
}
