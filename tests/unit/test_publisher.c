/*
 * test_publisher.c - what waits to be written, in batches; and who is told when it is.
 */
#include "pg.h"

#include "failing_malloc.h"
#include "publisher.h"
#include "thread.h"

#define GRACE (5 * USEC_PER_SEC)

struct world {
    struct pg pg;
    struct proxy proxy;
    struct stats *stats;
    struct publisher *publisher;
};

/* A request of up to a few events that a test waits for. */
struct request {
    struct publish publish;
    struct event events[4];
    struct event_unit unit;
    _Atomic int answers;
};

static void on_done(struct publish *publish)
{
    struct request *request = CONTAINER_OF(publish, struct request, publish);

    atomic_fetch_add_explicit(&request->answers, 1, memory_order_release);
}

static bool answered(struct request *request)
{
    return atomic_load_explicit(&request->answers, memory_order_acquire) != 0;
}

static void make(struct request *request, size_t count, const char *data, uint64_t msec)
{
    memset(request, 0, sizeof(*request));
    for (size_t i = 0; i < count; i++)
        request->events[i] = (struct event){.channel = "orders",
                                            .channel_len = 6,
                                            .type = "created",
                                            .type_len = 7,
                                            .data = data,
                                            .data_len = strlen(data)};
    request->publish =
        (struct publish){.events = request->events,
                         .count = count,
                         .deadline_usec = clock_usec() + msec * USEC_PER_MSEC,
                         .done = on_done};
}

/* All of the request under that key. */
static void make_keyed(struct request *request, const char *key, size_t count,
                       const char *data, uint64_t msec)
{
    make(request, count, data, msec);
    request->unit =
        (struct event_unit){.key = key, .key_len = strlen(key), .count = count};
    request->publish.units = &request->unit;
    request->publish.unit_count = 1;
}

static void submit(struct world *world, struct request *request)
{
    assert_int_equal(publisher_submit(world->publisher, &request->publish), 0);
}

static enum publish_outcome wait_for(struct request *request)
{
    WAIT_FOR(answered(request));
    return request->publish.outcome;
}

/* One event; fails unless it is committed. */
static uint64_t publish_one(struct world *world)
{
    struct request request;

    make(&request, 1, "1", 8000);
    submit(world, &request);
    if (wait_for(&request) != PUBLISH_DONE)
        fail_msg("%s", request.publish.err.text);
    return request.events[0].seq;
}

/* The same, but the database may still be thought to be away. */
static void publish_eventually(struct world *world)
{
    struct request request;

    do {
        make(&request, 1, "1", 3000);
        submit(world, &request);
    } while (wait_for(&request) == PUBLISH_UNAVAILABLE);
    assert_int_equal(request.publish.outcome, PUBLISH_DONE);
}

static long long rows(struct world *world)
{
    return pg_number(world->pg.conn, "SELECT count(*) FROM gateway.events");
}

static void start_with(struct world *world, const char *dsn, size_t queue_bytes)
{
    struct err err = {0};

    world->publisher = publisher_new(&(struct publisher_settings){
        .dsn = dsn,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .queue_bytes = queue_bytes,
        .stats = world->stats,
    });
    assert_non_null(world->publisher);
    assert_int_equal(publisher_start(world->publisher, &err), 0);
}

static void start(struct world *world, const char *dsn)
{
    start_with(world, dsn, 64 * MIB);
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    world.stats = stats_new();
    assert_non_null(world.stats);
    *state = &world;
    return 0;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    publisher_stop(world->publisher, 0);
    publisher_free(world->publisher);
    assert_int_equal(stats_gauge_value(world->stats, STATS_PUBLISH_WAITING), 0);
    stats_free(world->stats);
    proxy_close(&world->proxy);
    pg_close(&world->pg);
    return 0;
}

static void a_request_is_committed_and_numbered(void **state)
{
    struct world *world = *state;
    struct request request;

    start(world, world->pg.dsn);
    make(&request, 3, "{\"n\": 1.10, \"\xc3\xa4\": \"\\\\ ' \\\" $1\"}", 8000);
    submit(world, &request);
    assert_int_equal(wait_for(&request), PUBLISH_DONE);
    for (uint64_t i = 0; i < 3; i++)
        assert_int_equal(request.events[i].seq, i + 1);
    assert_int_equal(rows(world), 3);
    assert_int_equal(pg_number(world->pg.conn,
                               "SELECT count(*) FROM gateway.events WHERE data::text = "
                               "'{\"n\": 1.10, \"\xc3\xa4\": \"\\\\ '' \\\" $1\"}'"),
                     3);
    assert_int_equal(stats_counter_value(world->stats, STATS_EVENTS_PUBLISHED), 3);
}

static void requests_that_wait_share_a_batch(void **state)
{
    struct world *world = *state;
    struct request *requests = calloc(2000, sizeof(*requests));
    uint64_t last = 0;

    assert_non_null(requests);
    start(world, world->pg.dsn);
    publish_one(world);
    pg_run(world->pg.conn, "BEGIN; SELECT gateway.lock_order()");
    for (int i = 0; i < 2000; i++) {
        make(&requests[i], 2, "{\"n\":1}", 60000);
        submit(world, &requests[i]);
    }
    pg_run(world->pg.conn, "COMMIT");
    for (int i = 0; i < 2000; i++) {
        assert_int_equal(wait_for(&requests[i]), PUBLISH_DONE);
        assert_true(requests[i].events[0].seq > last);
        assert_int_equal(requests[i].events[1].seq, requests[i].events[0].seq + 1);
        last = requests[i].events[1].seq;
        assert_int_equal(atomic_load_explicit(&requests[i].answers, memory_order_acquire),
                         1);
    }
    assert_int_equal(rows(world), 4001);
    assert_uint_in_range(stats_counter_value(world->stats, STATS_PUBLISH_BATCHES), 2,
                         200);
    free(requests);
}

static void a_refused_request_spoils_no_other(void **state)
{
    struct world *world = *state;
    struct request requests[64];

    start(world, world->pg.dsn);
    publish_one(world);
    for (int i = 0; i < 64; i++) {
        make(&requests[i], 2, i % 16 == 5 ? "not json" : "{}", 8000);
        submit(world, &requests[i]);
    }
    for (int i = 0; i < 64; i++) {
        assert_int_equal(wait_for(&requests[i]),
                         i % 16 == 5 ? PUBLISH_REFUSED : PUBLISH_DONE);
        if (i % 16 == 5)
            assert_non_null(strstr(requests[i].publish.err.text, "invalid input syntax"));
    }
    assert_int_equal(rows(world), 1 + 2 * 60);
    assert_int_equal(stats_counter_value(world->stats, STATS_PUBLISH_REFUSED), 8);
}

static void a_check_constraint_refuses(void **state)
{
    struct world *world = *state;
    struct request request;

    start(world, world->pg.dsn);
    make(&request, 1, "1", 8000);
    request.events[0].channel = "a\nb";
    request.events[0].channel_len = 3;
    submit(world, &request);
    assert_int_equal(wait_for(&request), PUBLISH_REFUSED);
    assert_non_null(strstr(request.publish.err.text, "channel_characters"));
}

static void a_key_is_published_once_however_often_it_waits(void **state)
{
    struct world *world = *state;
    struct request requests[40];
    size_t known = 0;

    start(world, world->pg.dsn);
    publish_one(world);
    for (int i = 0; i < 40; i++) {
        make_keyed(&requests[i], i % 2 ? "i:odd" : "i:even", 2, "1", 8000);
        submit(world, &requests[i]);
    }
    for (int i = 0; i < 40; i++) {
        assert_int_equal(wait_for(&requests[i]), PUBLISH_DONE);
        assert_int_equal(requests[i].events[0].seq, requests[i % 2].events[0].seq);
        assert_int_equal(requests[i].events[1].seq, requests[i].events[0].seq + 1);
        known += requests[i].unit.known;
    }
    assert_int_equal(known, 38);
    assert_int_equal(rows(world), 5);
    assert_int_equal(stats_counter_value(world->stats, STATS_EVENTS_PUBLISHED), 5);
    assert_int_equal(stats_counter_value(world->stats, STATS_PUBLISH_REPEATED), 38);
}

static void a_key_used_otherwise_spoils_no_other(void **state)
{
    struct world *world = *state;
    struct request first, requests[64];

    start(world, world->pg.dsn);
    make_keyed(&first, "i:taken", 1, "1", 8000);
    submit(world, &first);
    assert_int_equal(wait_for(&first), PUBLISH_DONE);
    pg_run(world->pg.conn,
           "BEGIN; SELECT gateway.lock_order()"); /* so that they gather */
    for (int i = 0; i < 64; i++) {
        if (i % 16 == 5)
            make_keyed(&requests[i], "i:taken", 2, "2", 8000);
        else
            make(&requests[i], 2, "{}", 8000);
        submit(world, &requests[i]);
    }
    pg_run(world->pg.conn, "COMMIT");
    for (int i = 0; i < 64; i++)
        assert_int_equal(wait_for(&requests[i]),
                         i % 16 == 5 ? PUBLISH_CONFLICT : PUBLISH_DONE);
    assert_int_equal(requests[5].publish.conflict, 0);
    assert_int_equal(rows(world), 1 + 2 * 60);
    assert_int_equal(stats_counter_value(world->stats, STATS_PUBLISH_REFUSED), 8);
}

static void a_queue_that_is_full_says_so(void **state)
{
    struct world *world = *state;
    struct request first, second;

    start_with(world, world->pg.dsn, 20);
    publish_one(world);
    pg_run(world->pg.conn, "BEGIN; SELECT gateway.lock_order()");
    make(&first, 1, "{\"larger\": \"than the queue\"}", 8000);
    submit(world, &first); /* alone, it may be as large as it likes */
    make(&second, 1, "1", 8000);
    assert_int_equal(publisher_submit(world->publisher, &second.publish), -EAGAIN);
    pg_run(world->pg.conn, "COMMIT");
    assert_int_equal(wait_for(&first), PUBLISH_DONE);
    submit(world, &second);
    assert_int_equal(wait_for(&second), PUBLISH_DONE);
}

static void a_large_request_is_one_unit(void **state)
{
    struct world *world = *state;
    struct request request;
    char *data = malloc(4 * MIB);

    assert_non_null(data);
    memset(data, 'x', 4 * MIB);
    data[0] = data[4 * MIB - 2] = '"';
    data[4 * MIB - 1] = '\0';
    start(world, world->pg.dsn);
    make(&request, 3, data, 15000);
    submit(world, &request);
    assert_int_equal(wait_for(&request), PUBLISH_DONE);
    assert_int_equal(request.events[2].seq, 3);
    assert_int_equal(
        pg_number(world->pg.conn,
                  "SELECT max(octet_length(data::text)) FROM gateway.events"),
        4 * MIB - 1);
    free(data);
}

static void *publish_many(void *argument)
{
    struct world *world = argument;

    for (int i = 0; i < 200; i++)
        publish_one(world);
    return NULL;
}

static void killed_connections_lose_and_double_nothing(void **state)
{
    struct world *world = *state;
    pthread_t threads[4];
    long long killed = 0;

    start(world, world->pg.dsn);
    publish_one(world);
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, publish_many, world), 0);
    for (int i = 0; i < 12; i++) {
        killed += pg_kill(&world->pg, "publisher");
        usleep(60000);
    }
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
        pthread_join(threads[i], NULL);
    assert_true(killed >= 1);
    assert_int_equal(rows(world), 801);
    assert_int_equal(stats_counter_value(world->stats, STATS_EVENTS_PUBLISHED), 801);
}

static void an_answer_lost_after_the_commit_is_found_out(void **state)
{
    struct world *world = *state;

    start(world, world->proxy.dsn);
    publish_one(world);
    for (int i = 0; i < 5; i++) {
        proxy_set(&world->proxy, PROXY_SWALLOW);
        assert_int_equal(publish_one(world), 2 + i);
    }
    assert_int_equal(proxy_hits(&world->proxy), 5);
    assert_int_equal(rows(world), 6);
}

/* The same, when the lost COMMIT is one of nothing: all was known. And when some was. */
static void a_retry_whose_answer_is_lost_is_answered(void **state)
{
    struct world *world = *state;
    struct request first, again, mixed, other;

    start(world, world->proxy.dsn);
    make_keyed(&first, "i:k", 2, "1", 8000);
    submit(world, &first);
    assert_int_equal(wait_for(&first), PUBLISH_DONE);

    proxy_set(&world->proxy, PROXY_SWALLOW);
    make_keyed(&again, "i:k", 2, "1", 8000);
    submit(world, &again);
    assert_int_equal(wait_for(&again), PUBLISH_DONE);
    assert_true(again.unit.known);
    assert_int_equal(again.events[1].seq, 2);

    pg_run(world->pg.conn, "BEGIN; SELECT gateway.lock_order()");
    make(&other, 1, "1", 8000);
    submit(world, &other); /* waits for the lock, and the next two behind it */
    make_keyed(&mixed, "i:k", 2, "1", 8000);
    submit(world, &mixed);
    make_keyed(&first, "i:l", 2, "1", 8000);
    submit(world, &first);
    proxy_set(&world->proxy, PROXY_SWALLOW);
    pg_run(world->pg.conn, "COMMIT");
    assert_int_equal(wait_for(&other), PUBLISH_DONE);
    assert_int_equal(wait_for(&mixed), PUBLISH_DONE);
    assert_int_equal(wait_for(&first), PUBLISH_DONE);
    assert_int_equal(mixed.events[0].seq, 1);
    assert_false(first.unit.known);
    assert_int_equal(first.events[1].seq, first.events[0].seq + 1);
    assert_int_equal(proxy_hits(&world->proxy), 2);
    assert_int_equal(rows(world), 5);
}

static void a_keyed_commit_that_never_arrived_is_done_again(void **state)
{
    struct world *world = *state;
    struct request request;

    start(world, world->proxy.dsn);
    publish_one(world);
    proxy_set(&world->proxy, PROXY_CUT_AT_COMMIT);
    make_keyed(&request, "i:k", 2, "1", 8000);
    submit(world, &request);
    assert_int_equal(wait_for(&request), PUBLISH_DONE);
    assert_false(request.unit.known);
    assert_int_equal(rows(world), 3);
}

static void a_commit_that_never_arrived_is_done_again(void **state)
{
    struct world *world = *state;

    start(world, world->proxy.dsn);
    publish_one(world);
    proxy_set(&world->proxy, PROXY_CUT_AT_COMMIT);
    publish_one(world);
    assert_int_equal(proxy_hits(&world->proxy), 1);
    assert_int_equal(rows(world), 2);
}

static void a_session_left_behind_is_ended(void **state)
{
    struct world *world = *state;

    start(world, world->proxy.dsn);
    publish_one(world);
    proxy_set(&world->proxy, PROXY_STALL_COMMIT);
    const uint64_t begin = clock_usec();
    publish_one(world); /* not after the server's own ten seconds */
    assert_true(clock_usec() - begin < 9 * USEC_PER_SEC);
    assert_int_equal(proxy_hits(&world->proxy), 1);
    assert_int_equal(rows(world), 2);
}

static void a_frozen_server_at_the_commit_is_unknown_in_time(void **state)
{
    struct world *world = *state;
    struct request request;

    start(world, world->proxy.dsn);
    publish_one(world);
    proxy_set(&world->proxy, PROXY_SWALLOW);
    make(&request, 1, "1", 1500);
    submit(world, &request);
    WAIT_FOR(proxy_hits(&world->proxy) == 1);
    proxy_set(&world->proxy, PROXY_FREEZE);
    enum publish_outcome outcome = wait_for(&request);
    assert_true(outcome == PUBLISH_UNKNOWN || outcome == PUBLISH_DONE);
    proxy_set(&world->proxy, PROXY_PASS);
    publish_eventually(world);
    assert_int_equal(rows(world), 3);
}

static void a_frozen_server_is_noticed_by_the_deadline(void **state)
{
    struct world *world = *state;
    struct request request;
    uint64_t begin = clock_usec();

    start(world, world->proxy.dsn);
    publish_one(world);
    proxy_set(&world->proxy, PROXY_FREEZE);
    make(&request, 1, "1", 1000);
    submit(world, &request);
    assert_int_equal(wait_for(&request), PUBLISH_UNAVAILABLE);
    assert_true(clock_usec() - begin >= USEC_PER_SEC);
    proxy_set(&world->proxy, PROXY_PASS);
    publish_eventually(world);
    WAIT_FOR(rows(world) == 2);
}

static bool waits_for_the_order(struct world *world)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND "
                   "application_name = 'pg-sse-gateway/publisher' AND wait_event_type = "
                   "'Lock'",
                   world->pg.name);
    return pg_number(world->pg.admin, sql) == 1;
}

static void who_waits_behind_a_slow_batch_keeps_its_deadline(void **state)
{
    struct world *world = *state;
    struct request first, second;

    start(world, world->pg.dsn);
    publish_one(world);
    pg_run(world->pg.conn, "BEGIN; SELECT gateway.lock_order()");
    make(&first, 1, "1", 9000);
    submit(world, &first);
    WAIT_FOR(waits_for_the_order(world));
    make(&second, 1, "1", 500);
    uint64_t begin = clock_usec();
    submit(world, &second);
    assert_int_equal(wait_for(&second), PUBLISH_UNAVAILABLE);
    assert_true(clock_usec() - begin >= 400000);
    assert_false(answered(&first));
    pg_run(world->pg.conn, "COMMIT");
    assert_int_equal(wait_for(&first), PUBLISH_DONE);
    assert_int_equal(rows(world), 2);
}

static void while_the_database_is_away_the_answer_comes_soon(void **state)
{
    struct world *world = *state;
    struct request first, requests[20];

    start(world, "host=127.0.0.1 port=1 dbname=nothing");
    make(&first, 1, "1", 1000);
    submit(world, &first);
    assert_int_equal(wait_for(&first), PUBLISH_UNAVAILABLE);
    uint64_t begin = clock_usec();
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        make(&requests[i], 1, "1", 20000);
        submit(world, &requests[i]);
    }
    for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
        assert_int_equal(wait_for(&requests[i]), PUBLISH_UNAVAILABLE);
        assert_non_null(strstr(requests[i].publish.err.text, "could not connect"));
    }
    /* A second of patience, far from the deadline. */
    assert_uint_in_range(clock_usec() - begin, USEC_PER_SEC / 2, 15 * USEC_PER_SEC);
}

static void a_missing_schema_is_told_and_its_coming_is_noticed(void **state)
{
    struct world *world = *state;
    struct request request;

    start(world, world->pg.dsn);
    publish_one(world);
    pg_run(world->pg.conn, "DROP SCHEMA gateway CASCADE");
    make(&request, 1, "1", 3000);
    submit(world, &request);
    assert_int_equal(wait_for(&request), PUBLISH_UNAVAILABLE);
    assert_non_null(strstr(request.publish.err.text, "pg-sse-gateway migrate up"));
    pg_migrate(&world->pg);
    publish_eventually(world);
}

static void a_read_only_database_is_told(void **state)
{
    struct world *world = *state;
    struct request request;

    start(world, world->pg.dsn);
    publish_one(world);
    pg_run(world->pg.conn, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
                           "$$ BEGIN RAISE SQLSTATE '25006' USING MESSAGE = 'read-only'; "
                           "END $$");
    pg_run(world->pg.conn,
           "CREATE TRIGGER refuse BEFORE INSERT ON gateway.events EXECUTE "
           "FUNCTION refuse()");
    make(&request, 1, "1", 3000);
    submit(world, &request);
    assert_int_equal(wait_for(&request), PUBLISH_UNAVAILABLE);
    pg_run(world->pg.conn, "DROP TRIGGER refuse ON gateway.events");
    publish_eventually(world);
}

static void stopping_commits_what_was_accepted(void **state)
{
    struct world *world = *state;
    struct request *requests = calloc(500, sizeof(*requests));

    assert_non_null(requests);
    start(world, world->pg.dsn);
    for (int i = 0; i < 500; i++) {
        make(&requests[i], 1, "1", 8000);
        submit(world, &requests[i]);
    }
    publisher_stop(world->publisher, GRACE);
    for (int i = 0; i < 500; i++) {
        assert_true(answered(&requests[i]));
        assert_int_equal(requests[i].publish.outcome, PUBLISH_DONE);
    }
    assert_int_equal(publisher_submit(world->publisher, &requests[0].publish),
                     -ESHUTDOWN);
    free(requests);
}

static void stopping_waits_no_longer_than_its_grace(void **state)
{
    struct world *world = *state;
    struct request request;

    start(world, world->proxy.dsn);
    publish_one(world);
    proxy_set(&world->proxy, PROXY_FREEZE);
    make(&request, 1, "1", 8000);
    submit(world, &request);
    uint64_t begin = clock_usec();
    publisher_stop(world->publisher, 300000);
    assert_uint_in_range(clock_usec() - begin, 250000, 7 * USEC_PER_SEC);
    assert_int_equal(wait_for(&request), PUBLISH_UNAVAILABLE);
}

static void nothing_is_taken_before_the_start(void **state)
{
    struct world *world = *state;
    struct request request;

    world->publisher = publisher_new(
        &(struct publisher_settings){.stats = world->stats, .queue_bytes = 100});
    make(&request, 1, "1", 100);
    assert_int_equal(publisher_submit(world->publisher, &request.publish), -ESHUTDOWN);
}

static void without_memory_there_is_none(void **state)
{
    struct world *world = *state;
    struct publisher *publisher;

    for (unsigned n = 1;; n++) {
        failing_malloc_begin(n);
        publisher = publisher_new(&(struct publisher_settings){
            .dsn = "dbname=x", .password = "p", .stats = world->stats});
        if (!failing_malloc_end())
            break;
        assert_null(publisher);
    }
    assert_non_null(publisher);
    publisher_free(publisher);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(a_request_is_committed_and_numbered),
        WITH_PG(requests_that_wait_share_a_batch),
        WITH_PG(a_refused_request_spoils_no_other),
        WITH_PG(a_check_constraint_refuses),
        WITH_PG(a_key_is_published_once_however_often_it_waits),
        WITH_PG(a_key_used_otherwise_spoils_no_other),
        WITH_PG(a_queue_that_is_full_says_so),
        WITH_PG(a_large_request_is_one_unit),
        WITH_PG(killed_connections_lose_and_double_nothing),
        WITH_PG(an_answer_lost_after_the_commit_is_found_out),
        WITH_PG(a_commit_that_never_arrived_is_done_again),
        WITH_PG(a_retry_whose_answer_is_lost_is_answered),
        WITH_PG(a_keyed_commit_that_never_arrived_is_done_again),
        WITH_PG(a_session_left_behind_is_ended),
        WITH_PG(a_frozen_server_at_the_commit_is_unknown_in_time),
        WITH_PG(a_frozen_server_is_noticed_by_the_deadline),
        WITH_PG(who_waits_behind_a_slow_batch_keeps_its_deadline),
        WITH_PG(while_the_database_is_away_the_answer_comes_soon),
        WITH_PG(a_missing_schema_is_told_and_its_coming_is_noticed),
        WITH_PG(a_read_only_database_is_told),
        WITH_PG(stopping_commits_what_was_accepted),
        WITH_PG(stopping_waits_no_longer_than_its_grace),
        WITH_PG(nothing_is_taken_before_the_start),
        WITH_PG(without_memory_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
