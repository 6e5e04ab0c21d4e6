/*
 * test_replay.c - stored events, read from the table for those who ask for older ones.
 */
#include "pg.h"

#include "failing_malloc.h"
#include "replay.h"
#include "thread.h"

struct world {
    struct pg pg;
    struct proxy proxy;
    struct replay *replay;
};

struct question {
    struct replay_job job;
    _Atomic int answers;
};

static void on_done(struct replay_job *job)
{
    struct question *question = CONTAINER_OF(job, struct question, job);

    atomic_fetch_add_explicit(&question->answers, 1, memory_order_release);
}

static void ask(struct world *world, struct question *question, uint64_t seq,
                uint64_t msec)
{
    memset(question, 0, sizeof(*question));
    question->job.seq = seq;
    question->job.deadline_usec = clock_usec() + msec * USEC_PER_MSEC;
    question->job.done = on_done;
    assert_int_equal(replay_ask(world->replay, &question->job), 0);
}

static enum replay_outcome wait_for(struct question *question)
{
    WAIT_FOR(atomic_load_explicit(&question->answers, memory_order_acquire) == 1);
    return question->job.outcome;
}

static void expect(struct world *world, uint64_t seq, enum replay_outcome outcome)
{
    struct question question;

    ask(world, &question, seq, 5000);
    enum replay_outcome got = wait_for(&question);
    if (got != outcome)
        fail_msg("seq %llu: outcome %d: %s", (unsigned long long)seq, (int)got,
                 question.job.err.text);
    replay_job_done(&question.job);
}

static void start(struct world *world, const char *dsn)
{
    struct err err = {0};

    world->replay = replay_new(&(struct replay_settings){.dsn = dsn, .queue_jobs = 100});
    assert_non_null(world->replay);
    assert_int_equal(replay_start(world->replay, &err), 0);
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

    replay_stop(world->replay);
    replay_free(world->replay);
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
    assert_int_equal(wait_for(&question), REPLAY_FOUND);
    const struct event *event = &question.job.event;
    assert_int_equal(event->seq, 1);
    assert_string_equal(event->channel, "orders");
    assert_int_equal(event->channel_len, 6);
    assert_string_equal(event->type, "created");
    assert_string_equal(event->data, "{\"n\": 1.0, \"n\":\n\"\xe2\x82\xac\"}");
    assert_int_equal(event->data_len, strlen(event->data));
    assert_string_equal(question.job.created_at, "2024-02-29T23:59:59.000001Z");
    replay_job_done(&question.job);
    replay_job_done(&question.job);
}

static void what_is_not_there_is_missing(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    expect(world, 3, REPLAY_MISSING);
    expect(world, 0, REPLAY_MISSING);
    expect(world, INT64_MAX, REPLAY_MISSING);
    expect(world, UINT64_MAX, REPLAY_MISSING);
    expect(world, 2, REPLAY_FOUND);
}

static void a_connection_that_died_meanwhile_costs_no_answer(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    for (int i = 0; i < 3; i++) {
        expect(world, 1, REPLAY_FOUND);
        usleep(1100000);
        assert_int_equal(pg_kill(&world->pg, "replay"), 1);
        expect(world, 2, REPLAY_FOUND);
    }
}

static void a_frozen_server_costs_no_more_than_the_deadline(void **state)
{
    struct world *world = *state;
    struct question first, second;

    start(world, world->proxy.dsn);
    expect(world, 1, REPLAY_FOUND);
    proxy_set(&world->proxy, PROXY_FREEZE);
    usleep(50000);
    uint64_t begin = clock_usec();
    ask(world, &first, 1, 1500);
    ask(world, &second, 2, 400);
    assert_int_equal(wait_for(&second), REPLAY_UNAVAILABLE);
    assert_in_range(clock_usec() - begin, 300000, 1200000);
    assert_int_equal(wait_for(&first), REPLAY_UNAVAILABLE);
    assert_in_range(clock_usec() - begin, 1400000, 3000000);
    proxy_set(&world->proxy, PROXY_PASS);
    expect(world, 1, REPLAY_FOUND);
}

static void while_the_database_is_away_the_answer_comes_soon(void **state)
{
    struct world *world = *state;
    uint64_t begin = clock_usec();

    start(world, "host=127.0.0.1 port=1 dbname=nothing");
    for (int i = 0; i < 10; i++)
        expect(world, 1, REPLAY_UNAVAILABLE);
    assert_in_range(clock_usec() - begin, 0, 2 * USEC_PER_SEC);
}

static void a_missing_schema_is_told(void **state)
{
    struct world *world = *state;
    struct question question;

    pg_run(world->pg.conn, "DROP SCHEMA gateway CASCADE");
    start(world, world->pg.dsn);
    ask(world, &question, 1, 5000);
    assert_int_equal(wait_for(&question), REPLAY_UNAVAILABLE);
    assert_non_null(strstr(question.job.err.text, "pg-sse-gateway migrate up"));
}

static void stopping_answers_what_waits(void **state)
{
    struct world *world = *state;
    struct question questions[50];
    struct question late = {.job = {.seq = 1}};

    start(world, world->proxy.dsn);
    expect(world, 1, REPLAY_FOUND);
    proxy_set(&world->proxy, PROXY_FREEZE);
    for (size_t i = 0; i < ARRAY_SIZE(questions); i++)
        ask(world, &questions[i], 1, 8000);
    uint64_t begin = clock_usec();
    replay_stop(world->replay);
    assert_in_range(clock_usec() - begin, 0, USEC_PER_SEC);
    for (size_t i = 0; i < ARRAY_SIZE(questions); i++) {
        enum replay_outcome outcome = wait_for(&questions[i]);
        assert_true(outcome == REPLAY_UNAVAILABLE || outcome == REPLAY_FOUND);
        replay_job_done(&questions[i].job);
    }
    assert_int_equal(replay_ask(world->replay, &late.job), -ESHUTDOWN);
}

static void a_queue_that_is_full_says_so(void **state)
{
    struct world *world = *state;
    static struct question questions[101];
    int code = 0;

    start(world, world->proxy.dsn);
    expect(world, 1, REPLAY_FOUND);
    proxy_set(&world->proxy, PROXY_FREEZE);
    ask(world, &questions[0], 1, 8000);
    for (size_t i = 1; i < ARRAY_SIZE(questions) && code == 0; i++) {
        memset(&questions[i], 0, sizeof(questions[i]));
        questions[i].job = (struct replay_job){
            .seq = 1, .deadline_usec = clock_usec() + 8000000, .done = on_done};
        code = replay_ask(world->replay, &questions[i].job);
    }
    struct question more = {.job = {.seq = 1, .done = on_done}};
    if (code == 0)
        code = replay_ask(world->replay, &more.job);
    assert_int_equal(code, -EAGAIN);
    replay_stop(world->replay);
    for (size_t i = 0; i < ARRAY_SIZE(questions); i++)
        replay_job_done(&questions[i].job);
}

static void the_thread_beats_while_nobody_asks(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    for (int i = 0; i < 25; i++) {
        usleep(100000);
        uint64_t beat = thread_last_beat(replay_thread(world->replay));
        assert_true(clock_usec() < beat + 2 * USEC_PER_SEC);
    }
}

static void without_memory_there_is_none(void **state)
{
    struct replay *replay;

    (void)state;
    for (unsigned n = 1;; n++) {
        failing_malloc_begin(n);
        replay =
            replay_new(&(struct replay_settings){.dsn = "dbname=x", .password = "p"});
        if (!failing_malloc_end())
            break;
        assert_null(replay);
    }
    assert_non_null(replay);
    replay_free(replay);
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
        WITH_PG(stopping_answers_what_waits),
        WITH_PG(a_queue_that_is_full_says_so),
        WITH_PG(the_thread_beats_while_nobody_asks),
        WITH_PG(without_memory_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
