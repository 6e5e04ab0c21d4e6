/*
 * test_listener.c - every new event of the database, once, in order, into the ring.
 */
#include "listener_world.h"

#include "failing_malloc.h"
#include "thread.h"

#define PUBLISH "SELECT gateway.publish_batch(ARRAY['c'], ARRAY['t'], ARRAY['1'])"

static bool reason_has(struct world *world, const char *text)
{
    struct listener_status status;

    listener_status(world->listener, &status);
    return strstr(status.reason, text) != NULL;
}

static void an_event_arrives_encoded_and_soon(void **state)
{
    struct world *world = *state;
    char data[200] = "";

    publish(world, "{\"old\":1}");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    publish(world, "{\"n\":1}");
    WAIT_FOR(read_ring(world, data, sizeof(data)) == 1);
    assert_string_equal(data, "id: 2\nevent: created\ndata: {\"n\":1}\n\n");
    struct listener_status status;
    listener_status(world->listener, &status);
    assert_int_equal(status.head_seq, 2);
    assert_true(status.writable);
    assert_string_equal(status.reason, "");
    assert_int_equal(stats_gauge_value(world->stats, STATS_HEAD_SEQ), 2);
    assert_uint_in_range(time_rows(world, world->pg.conn, PUBLISH, TIMES), 0, SOON_USEC);
}

static void rows_of_applications_are_numbered_and_arrive(void **state)
{
    struct world *world = *state;
    char data[200] = "";

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    PGconn *slow = pg_connect(world->pg.dsn);
    pg_run(slow, "BEGIN; INSERT INTO gateway.events (data) VALUES ('\"slow\"')");
    pg_run(world->pg.conn, "INSERT INTO gateway.events (data) VALUES ('\"quick\"')");
    WAIT_FOR(read_ring(world, data, sizeof(data)) == 1);
    assert_string_equal(data, "id: 1\ndata: \"quick\"\n\n");
    pg_run(slow, "COMMIT");
    PQfinish(slow);
    WAIT_FOR(read_ring(world, data, sizeof(data)) == 1);
    assert_string_equal(data, "id: 2\ndata: \"slow\"\n\n");
    assert_int_equal(stats_counter_value(world->stats, STATS_EVENTS_NUMBERED), 2);
}

static void many_rows_of_one_transaction_all_arrive(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(world->pg.conn, "INSERT INTO gateway.events (data) SELECT to_json(n) FROM "
                           "generate_series(1, 12345) n");
    assert_int_equal(wait_for_events(world, 12345), 12345);
}

static void whose_an_event_is_comes_with_it(void **state)
{
    static const char *const clients[] = {"shop", "", "till"};
    struct world *world = *state;
    const struct sse_frame *frame;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(
        world->pg.conn,
        "SET gateway.client_id = 'shop'; INSERT INTO gateway.events (data) VALUES ('1'); "
        "RESET gateway.client_id; INSERT INTO gateway.events (data) VALUES ('2')");
    pg_run(world->pg.conn, "SELECT gateway.publish_batch(ARRAY['c'], ARRAY['t'], "
                           "ARRAY['3'], clients => ARRAY['till'])");
    WAIT_FOR(ring_next(world->reader) >= world->position + ARRAY_SIZE(clients));
    ring_enter(world->reader);
    for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
        assert_int_equal(ring_read(world->reader, &world->position, &frame), RING_FRAME);
        assert_int_equal(frame->client_len, strlen(clients[i]));
        assert_memory_equal(sse_frame_client(frame), clients[i], frame->client_len);
    }
    ring_leave(world->reader);
}

/* The plan is kept from a time when the table was empty, and reading all of it looked cheap. */
static void a_table_that_has_grown_is_not_read_as_a_whole(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    for (int i = 0; i < 10; i++) {
        publish(world, "1");
        assert_int_equal(wait_for_events(world, 1), 1);
    }
    pg_run(world->pg.conn,
           "SELECT gateway.publish_batch(array_agg(text 'c'), array_agg(text 't'), "
           "array_agg(text '1')) FROM generate_series(1, 20000)");
    assert_int_equal(wait_for_events(world, 20000), 20000);
    /* The server counts with a delay. */
    WAIT_FOR(pg_number(world->pg.conn,
                       "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes "
                       "WHERE indexrelname = 'events_by_seq'") >= 20000);
    assert_uint_in_range(pg_number(world->pg.conn,
                                   "SELECT seq_tup_read FROM pg_stat_user_tables "
                                   "WHERE relname = 'events'"),
                         0, 20000);
}

static void a_lost_doorbell_costs_a_second(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(world->pg.conn, "ALTER TABLE gateway.events DISABLE TRIGGER ALL");
    pg_run(world->pg.conn, "INSERT INTO gateway.events (data) VALUES ('1')");
    wait_for_events(world, 1);
}

/* Publishes on a thread of its own while the connections are being killed. */
struct writer {
    struct world *world;
    _Atomic bool over;
    int count; /* of events */
};

static void *write_many(void *argument)
{
    struct writer *writer = argument;
    PGconn *conn = pg_connect(writer->world->pg.dsn);

    for (int i = 0; !atomic_load_explicit(&writer->over, memory_order_acquire); i++) {
        pg_run(conn, i % 2 ? "SELECT gateway.publish_batch(ARRAY['a','b'], "
                             "ARRAY['t','t'], ARRAY['1','2'])"
                           : "INSERT INTO gateway.events (data) VALUES ('1'), ('2')");
        writer->count += 2;
        usleep(1000);
    }
    PQfinish(conn);
    return NULL;
}

static void killed_connections_lose_and_double_nothing(void **state)
{
    struct world *world = *state;
    struct writer writer = {.world = world};
    pthread_t thread;
    int count = 0;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_int_equal(pthread_create(&thread, NULL, write_many, &writer), 0);
    for (int i = 0; i < 6; i++) {
        usleep(100000);
        WAIT_FOR(pg_kill(&world->pg, "listener") > 0);
        count += read_ring(world, NULL, 0);
    }
    atomic_store_explicit(&writer.over, true, memory_order_release);
    pthread_join(thread, NULL);
    WAIT_FOR((count += read_ring(world, NULL, 0)) >= writer.count);
    usleep(200000);
    count += read_ring(world, NULL, 0);
    assert_int_equal(count, writer.count);
}

static void a_frozen_server_is_left_and_what_was_missed_comes(void **state)
{
    struct world *world = *state;

    start(world, world->proxy.dsn);
    WAIT_FOR(is_listening(world));
    proxy_set(&world->proxy, PROXY_FREEZE);
    WAIT_FOR(!is_listening(world));
    publish(world, "1");
    WAIT_FOR(reason_has(world, "could not connect"));
    proxy_set(&world->proxy, PROXY_PASS);
    WAIT_FOR(is_listening(world));
    wait_for_events(world, 1);
}

static void stopping_while_frozen_is_quick(void **state)
{
    struct world *world = *state;

    start(world, world->proxy.dsn);
    WAIT_FOR(is_listening(world));
    proxy_set(&world->proxy, PROXY_FREEZE);
    usleep(1100000); /* a look is on its way now, and has two seconds left or more */
    uint64_t begin = clock_usec();
    listener_stop(world->listener);
    assert_uint_in_range(clock_usec() - begin, 0, 3 * USEC_PER_SEC / 2);
}

static void a_missing_schema_is_said_and_its_coming_is_noticed(void **state)
{
    struct world *world = *state;

    pg_run(world->pg.conn, "DROP SCHEMA gateway CASCADE");
    start(world, world->pg.dsn);
    WAIT_FOR(reason_has(world, "pg-sse-gateway migrate up"));
    assert_false(is_listening(world));
    pg_migrate(&world->pg);
    WAIT_FOR(is_listening(world));
    publish(world, "1");
    wait_for_events(world, 1);
}

static void a_newer_schema_is_said(void **state)
{
    struct world *world = *state;

    pg_run(world->pg.conn, "INSERT INTO gateway.migrations VALUES (99, 'later')");
    start(world, world->pg.dsn);
    WAIT_FOR(reason_has(world, "at version 99, newer than the "));
}

static void a_database_that_is_away_comes_back(void **state)
{
    struct world *world = *state;

    proxy_set(&world->proxy, PROXY_FREEZE);
    start(world, "host=127.0.0.1 port=1 dbname=nothing");
    WAIT_FOR(reason_has(world, "refused"));
    assert_false(is_listening(world));
}

static void preparing_is_repeated_until_it_succeeds(void **state)
{
    struct world *world = *state;

    world->prepare_failures = 2;
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_int_equal(world->prepare_failures, 0);
    pg_kill(&world->pg, "listener");
    WAIT_FOR(stats_counter_value(world->stats, STATS_LISTENER_CONNECTS) == 2);
    assert_true(atomic_load_explicit(&world->changes, memory_order_relaxed) >= 2);
}

static void a_read_only_database_is_told(void **state)
{
    struct world *world = *state;
    char sql[200], dsn[1200];

    snprintf(sql, sizeof(sql), "ALTER DATABASE %s SET default_transaction_read_only = on",
             world->pg.name);
    pg_run(world->pg.admin, sql);
    snprintf(dsn, sizeof(dsn), "%s target_session_attrs=any", world->pg.dsn);
    start(world, dsn);
    WAIT_FOR(reason_has(world, "read-only"));
    assert_true(is_listening(world));
    struct listener_status status;
    listener_status(world->listener, &status);
    assert_false(status.writable);
}

static void large_events_come_as_they_went_in(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(world->pg.conn,
           "INSERT INTO gateway.events (data) SELECT "
           "to_json(repeat('\xc3\xa4', 500000)) FROM generate_series(1, 20)");
    wait_for_events(world, 20);
    assert_uint_in_range(stats_counter_value(world->stats, STATS_EVENTS_RECEIVED_BYTES),
                         20000000, 20010000);
}

/* The ring begins with what there is, as far as there is room; of this life, and without
 * holes. */
static void the_ring_begins_with_the_newest(void **state)
{
    struct world *world = *state;
    uint64_t now = 0;

    for (int i = 0; i < 10; i++)
        publish(world, "1");
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq = 3");
    world->recent_bytes = MIB;
    start(world, world->pg.dsn);
    assert_int_equal(wait_for_events(world, 7), 7);
    assert_int_equal(ring_floor(world->reader), 3);
    assert_true(ring_now(world->reader, &now));
    assert_int_equal(now, 10);
    /* They were there before: their age says nothing about how quick this gateway is. */
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;
    stats_render(world->stats, &text);
    assert_non_null(strstr(text.data, "pgsse_event_age_seconds_count 0\n"));
}

static void the_ring_begins_with_no_more_than_there_is_room_for(void **state)
{
    struct world *world = *state;

    for (int i = 0; i < 50; i++)
        publish(world, "1");
    world->recent_bytes = 10 * 220;
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    const int count = wait_for_events(world, 5);
    assert_uint_in_range(count, 5, 10);
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->last_seq == 50);
}

static void the_thread_beats_while_nothing_happens(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    for (int i = 0; i < 3; i++) {
        const uint64_t beat = thread_last_beat(listener_thread(world->listener));

        WAIT_FOR(thread_last_beat(listener_thread(world->listener)) > beat);
    }
}

static void without_memory_there_is_none(void **state)
{
    struct world *world = *state;
    struct listener *listener;

    for (unsigned n = 1;; n++) {
        failing_malloc_begin(n);
        listener = listener_new(&(struct listener_settings){.dsn = "dbname=x",
                                                            .password = "p",
                                                            .ring = world->ring,
                                                            .stats = world->stats});
        if (!failing_malloc_end())
            break;
        assert_null(listener);
    }
    assert_non_null(listener);
    listener_free(listener);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_PG(an_event_arrives_encoded_and_soon),
        WITH_PG(rows_of_applications_are_numbered_and_arrive),
        WITH_PG(many_rows_of_one_transaction_all_arrive),
        WITH_PG(whose_an_event_is_comes_with_it),
        WITH_PG(a_table_that_has_grown_is_not_read_as_a_whole),
        WITH_PG(a_lost_doorbell_costs_a_second),
        WITH_PG(killed_connections_lose_and_double_nothing),
        WITH_PG(a_frozen_server_is_left_and_what_was_missed_comes),
        WITH_PG(stopping_while_frozen_is_quick),
        WITH_PG(a_missing_schema_is_said_and_its_coming_is_noticed),
        WITH_PG(a_newer_schema_is_said),
        WITH_PG(a_database_that_is_away_comes_back),
        WITH_PG(preparing_is_repeated_until_it_succeeds),
        WITH_PG(a_read_only_database_is_told),
        WITH_PG(large_events_come_as_they_went_in),
        WITH_PG(the_ring_begins_with_the_newest),
        WITH_PG(the_ring_begins_with_no_more_than_there_is_room_for),
        WITH_PG(the_thread_beats_while_nothing_happens),
        WITH_PG(without_memory_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
