/* test_lookup.c - one stored event, read from the table by its id. */
#include "pg.h"

#include "lookup.h"
#include "thread.h"

struct world {
    struct pg pg;
    struct proxy proxy;
    struct readers *readers;
};

struct question {
    struct lookup lookup;
    _Atomic int answers;
};

static void on_done(struct lookup *lookup)
{
    struct question *question = CONTAINER_OF(lookup, struct question, lookup);

    atomic_fetch_add_explicit(&question->answers, 1, memory_order_release);
}

static void ask(struct world *world, struct question *question, uint64_t seq,
                uint64_t msec)
{
    memset(question, 0, sizeof(*question));
    question->lookup.seq = seq;
    question->lookup.deadline_usec = clock_usec() + msec * USEC_PER_MSEC;
    question->lookup.done = on_done;
    assert_int_equal(lookup_ask(&question->lookup, world->readers), 0);
}

static int answers(struct question *question)
{
    return atomic_load_explicit(&question->answers, memory_order_acquire);
}

static enum lookup_outcome wait_for(struct question *question)
{
    WAIT_FOR(answers(question) == 1);
    return question->lookup.outcome;
}

static void expect(struct world *world, uint64_t seq, enum lookup_outcome outcome)
{
    struct question question;

    ask(world, &question, seq, 5000);
    enum lookup_outcome got = wait_for(&question);
    if (got != outcome)
        fail_msg("seq %llu: outcome %d: %s", (unsigned long long)seq, (int)got,
                 question.lookup.err.text);
    lookup_clear(&question.lookup);
}

static void start(struct world *world, const char *dsn)
{
    struct err err = {0};

    world->readers =
        readers_new(&(struct readers_settings){.dsn = dsn, .count = 1, .jobs_max = 100});
    assert_non_null(world->readers);
    assert_int_equal(readers_start(world->readers, &err), 0);
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    pg_run(world.pg.conn, "SELECT gateway.publish_batch(ARRAY['orders','events'], "
                          "ARRAY['created','message'], "
                          "ARRAY['{\"n\": 1.0, \"n\":\n\"\xe2\x82\xac\"}', '2'])");
    pg_run(world.pg.conn, "UPDATE gateway.events SET created_at = "
                          "'2024-02-29 23:59:59.000001+00' WHERE seq = 1");
    *state = &world;
    return 0;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    readers_free(world->readers);
    proxy_close(&world->proxy);
    pg_close(&world->pg);
    return 0;
}

static void an_event_comes_as_it_was_published(void **state)
{
    struct world *world = *state;
    struct question question;

    start(world, world->pg.dsn);
    ask(world, &question, 1, 5000);
    assert_int_equal(wait_for(&question), LOOKUP_FOUND);
    const struct event *event = &question.lookup.event;
    assert_int_equal(event->seq, 1);
    assert_string_equal(event->channel, "orders");
    assert_int_equal(event->channel_len, 6);
    assert_string_equal(event->type, "created");
    assert_string_equal(event->data, "{\"n\": 1.0, \"n\":\n\"\xe2\x82\xac\"}");
    assert_int_equal(event->data_len, strlen(event->data));
    assert_string_equal(question.lookup.created_at, "2024-02-29T23:59:59.000001Z");
    lookup_clear(&question.lookup);
    lookup_clear(&question.lookup);
}

static void what_is_not_there_is_missing(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    expect(world, 3, LOOKUP_MISSING);
    expect(world, 0, LOOKUP_MISSING);
    expect(world, INT64_MAX, LOOKUP_MISSING);
    expect(world, UINT64_MAX, LOOKUP_MISSING);
    expect(world, 2, LOOKUP_FOUND);
}

static void a_connection_that_died_meanwhile_costs_no_answer(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    for (int i = 0; i < 3; i++) {
        expect(world, 1, LOOKUP_FOUND);
        usleep(1100000);
        assert_int_equal(pg_kill(&world->pg, "reader"), 1);
        expect(world, 2, LOOKUP_FOUND);
    }
}

static void a_frozen_server_costs_no_more_than_the_deadline(void **state)
{
    struct world *world = *state;
    struct question first, second;

    start(world, world->proxy.dsn);
    expect(world, 1, LOOKUP_FOUND);
    proxy_set(&world->proxy, PROXY_FREEZE);
    uint64_t begin = clock_usec();
    ask(world, &first, 1, 2500);
    ask(world, &second, 2, 400);
    assert_int_equal(wait_for(&second), LOOKUP_UNAVAILABLE);
    assert_true(clock_usec() - begin >= 300000);
    assert_int_equal(answers(&first), 0);
    assert_int_equal(wait_for(&first), LOOKUP_UNAVAILABLE);
    assert_true(clock_usec() - begin >= 2400000);
    proxy_set(&world->proxy, PROXY_PASS);
    expect(world, 1, LOOKUP_FOUND);
}

static void while_the_database_is_away_the_answer_comes_soon(void **state)
{
    struct world *world = *state;
    struct question question;

    start(world, "host=127.0.0.1 port=1 dbname=nothing");
    for (int i = 0; i < 10; i++) {
        ask(world, &question, 1, 30000);
        assert_int_equal(wait_for(&question), LOOKUP_UNAVAILABLE);
        assert_non_null(strstr(question.lookup.err.text, "Connection refused"));
        assert_true(clock_usec() < question.lookup.deadline_usec);
    }
}

static void a_missing_schema_is_told(void **state)
{
    struct world *world = *state;
    struct question question;

    pg_run(world->pg.conn, "DROP SCHEMA gateway CASCADE");
    start(world, world->pg.dsn);
    ask(world, &question, 1, 5000);
    assert_int_equal(wait_for(&question), LOOKUP_UNAVAILABLE);
    assert_non_null(strstr(question.lookup.err.text, "pg-sse-gateway migrate up"));
}

static void stopping_answers_what_waits(void **state)
{
    struct world *world = *state;
    struct question questions[50];
    struct question late = {.lookup = {.seq = 1}};

    start(world, world->proxy.dsn);
    expect(world, 1, LOOKUP_FOUND);
    proxy_set(&world->proxy, PROXY_FREEZE);
    for (size_t i = 0; i < ARRAY_SIZE(questions); i++)
        ask(world, &questions[i], 1, 30000);
    readers_stop(world->readers); /* before anybody's time is over */
    assert_true(clock_usec() < questions[0].lookup.deadline_usec);
    for (size_t i = 0; i < ARRAY_SIZE(questions); i++) {
        enum lookup_outcome outcome = wait_for(&questions[i]);
        assert_true(outcome == LOOKUP_UNAVAILABLE || outcome == LOOKUP_FOUND);
        lookup_clear(&questions[i].lookup);
    }
    assert_int_equal(lookup_ask(&late.lookup, world->readers), -ESHUTDOWN);
}

static void a_queue_that_is_full_says_so(void **state)
{
    struct world *world = *state;
    static struct question questions[101];
    int code = 0;

    start(world, world->proxy.dsn);
    expect(world, 1, LOOKUP_FOUND);
    proxy_set(&world->proxy, PROXY_FREEZE);
    ask(world, &questions[0], 1, 8000);
    for (size_t i = 1; i < ARRAY_SIZE(questions) && code == 0; i++) {
        memset(&questions[i], 0, sizeof(questions[i]));
        questions[i].lookup = (struct lookup){
            .seq = 1, .deadline_usec = clock_usec() + 8000000, .done = on_done};
        code = lookup_ask(&questions[i].lookup, world->readers);
    }
    struct question more = {.lookup = {.seq = 1, .done = on_done}};
    if (code == 0)
        code = lookup_ask(&more.lookup, world->readers);
    assert_int_equal(code, -EAGAIN);
    readers_stop(world->readers);
    for (size_t i = 0; i < ARRAY_SIZE(questions); i++)
        lookup_clear(&questions[i].lookup);
}

/* A role that may publish, and not read. */
static void a_right_that_is_missing_is_told(void **state)
{
    struct world *world = *state;
    struct question question;
    char dsn[1200], sql[300];

    snprintf(sql, sizeof(sql),
             "CREATE ROLE %s_r LOGIN; GRANT USAGE ON SCHEMA gateway TO %s_r",
             world->pg.name, world->pg.name);
    pg_run(world->pg.conn, sql);
    snprintf(dsn, sizeof(dsn), "%s options='-c role=%s_r'", world->pg.dsn,
             world->pg.name);
    start(world, dsn);
    ask(world, &question, 1, 5000);
    assert_int_equal(wait_for(&question), LOOKUP_UNAVAILABLE);
    assert_non_null(strstr(question.lookup.err.text, "lacks a right"));
    snprintf(sql, sizeof(sql), "GRANT SELECT ON gateway.events TO %s_r", world->pg.name);
    pg_run(world->pg.conn, sql);
    expect(world, 1, LOOKUP_FOUND);
    readers_stop(world->readers);
    snprintf(sql, sizeof(sql), "DROP OWNED BY %s_r; DROP ROLE %s_r", world->pg.name,
             world->pg.name);
    pg_run(world->pg.conn, sql);
}

static void the_thread_beats_while_nobody_asks(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    for (int i = 0; i < 3; i++) {
        const uint64_t beat = thread_last_beat(readers_thread(world->readers, 0));
        WAIT_FOR(thread_last_beat(readers_thread(world->readers, 0)) > beat);
    }
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(an_event_comes_as_it_was_published),
        WITH_PG(what_is_not_there_is_missing),
        WITH_PG(a_connection_that_died_meanwhile_costs_no_answer),
        WITH_PG(a_frozen_server_costs_no_more_than_the_deadline),
        WITH_PG(while_the_database_is_away_the_answer_comes_soon),
        WITH_PG(a_missing_schema_is_told),
        WITH_PG(a_right_that_is_missing_is_told),
        WITH_PG(stopping_answers_what_waits),
        WITH_PG(a_queue_that_is_full_says_so),
        WITH_PG(the_thread_beats_while_nobody_asks),
    };

    return cmocka_run_group_tests_name("lookup", tests, NULL, NULL);
}
