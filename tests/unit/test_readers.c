/* test_readers.c - a few connections that read, and what waits for one of them. */
#include "pg.h"

#include <assert.h>

#include "failing_malloc.h"
#include "readers.h"
#include "thread.h"

#define EVER CLOCK_NEVER

/* So long a job's query may take, unless the test says otherwise. */
#define QUERY_USEC (2 * USEC_PER_SEC)

struct world {
    struct pg pg;
    struct proxy proxy;
    struct readers *readers;
};

struct job {
    struct reader_job job;
    const char *sql; /* NULL: none */
    unsigned again;  /* so many times -EAGAIN first */
    uint64_t pause;  /* with each of them */
    uint64_t query_usec;
    struct job *meet; /* run() waits until that one is run, too */

    _Atomic unsigned begun, done, failed;
    _Atomic uint64_t ended_usec;
    char why[200];
};

static unsigned value(_Atomic unsigned *counter)
{
    return atomic_load_explicit(counter, memory_order_acquire);
}

static void add(_Atomic unsigned *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_acq_rel);
}

static void end(struct job *job, _Atomic unsigned *counter)
{
    atomic_store_explicit(&job->ended_usec, clock_usec(), memory_order_release);
    add(counter);
}

static int on_run(struct reader_job *reader_job, struct database *database,
                  struct err *err)
{
    struct job *job = CONTAINER_OF(reader_job, struct job, job);

    assert(thread_kind() == THREAD_READER);
    assert(value(&job->done) + value(&job->failed) == 0);
    add(&job->begun);
    for (uint64_t until = clock_usec() + 10 * USEC_PER_SEC;
         job->meet != NULL && value(&job->meet->begun) == 0 && clock_usec() < until;)
        usleep(100);
    if (job->again > 0) {
        job->again--;
        job->job.not_before_usec = job->pause > 0 ? clock_usec() + job->pause : 0;
        return -EAGAIN;
    }
    const uint64_t deadline = MIN(job->job.deadline_usec, clock_usec() + job->query_usec);
    const int r =
        job->sql != NULL ? database_run(database, job->sql, deadline, NULL, err) : 0;
    if (r == 0)
        end(job, &job->done);
    return r;
}

static void on_fail(struct reader_job *reader_job, const struct err *err)
{
    struct job *job = CONTAINER_OF(reader_job, struct job, job);

    (void)snprintf(job->why, sizeof(job->why), "%.*s", (int)sizeof(job->why) - 1,
                   err->text);
    end(job, &job->failed);
}

/* msec: EVER, or when it is to fail. */
static void make(struct job *job, const char *sql, uint64_t msec)
{
    memset(job, 0, sizeof(*job));
    job->sql = sql;
    job->query_usec = QUERY_USEC;
    job->job = (struct reader_job){
        .run = on_run,
        .fail = on_fail,
        .deadline_usec = msec == EVER ? EVER : clock_usec() + msec * USEC_PER_MSEC};
}

static void ask(struct world *world, struct job *job, const char *sql, uint64_t msec)
{
    make(job, sql, msec);
    assert_int_equal(readers_ask(world->readers, &job->job), 0);
}

static void expect_done(struct job *job)
{
    WAIT_FOR(value(&job->done) + value(&job->failed) > 0);
    if (value(&job->failed) > 0)
        fail_msg("%s: %s", job->sql != NULL ? job->sql : "", job->why);
    assert_int_equal(value(&job->done), 1);
}

static void expect_failed(struct job *job, const char *why)
{
    WAIT_FOR(value(&job->done) + value(&job->failed) > 0);
    assert_int_equal(value(&job->failed), 1);
    assert_int_equal(value(&job->done), 0);
    if (strstr(job->why, why) == NULL)
        fail_msg("%s", job->why);
}

static void start(struct world *world, const char *dsn, unsigned count)
{
    struct err err = {0};

    world->readers = readers_new(
        &(struct readers_settings){.dsn = dsn, .count = count, .jobs_max = 20});
    assert_non_null(world->readers);
    assert_int_equal(readers_count(world->readers), count);
    assert_int_equal(readers_start(world->readers, &err), 0);
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, false);
    proxy_open(&world.proxy, &world.pg);
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

static long long connections(struct world *world)
{
    char sql[200];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND "
                   "application_name = 'pg-sse-gateway/reader'",
                   world->pg.name);
    return pg_number(world->pg.admin, sql);
}

/* -- who runs what, when -- */

static void a_connection_is_made_for_the_first_job_and_kept(void **state)
{
    struct world *world = *state;
    struct job job;

    start(world, world->pg.dsn, 1);
    usleep(100000);
    assert_int_equal(connections(world), 0);
    for (int i = 0; i < 20; i++) {
        ask(world, &job, "SELECT 1", i % 2 == 0 ? 5000 : EVER);
        expect_done(&job);
        assert_int_equal(connections(world), 1);
    }
}

/* Each waits for the next one to be run, too: nobody may sleep through any of them. */
static void no_job_waits_while_a_reader_sleeps(void **state)
{
    enum { READERS = 4, ROUNDS = 300 };
    struct world *world = *state;
    struct job jobs[READERS];

    start(world, world->pg.dsn, READERS);
    for (int round = 0; round < ROUNDS; round++) {
        const uint64_t asked = clock_usec();

        for (int i = 0; i < READERS; i++) {
            make(&jobs[i], NULL, round % 2 == 0 ? 15000 : EVER);
            jobs[i].meet = &jobs[(i + 1) % READERS];
        }
        for (int i = 0; i < READERS; i++)
            assert_int_equal(readers_ask(world->readers, &jobs[i].job), 0);
        for (int i = 0; i < READERS; i++)
            expect_done(&jobs[i]);
        /* After 10 s run() gives up, and the job is done all the same. */
        assert_true(clock_usec() - asked < 8 * USEC_PER_SEC);
        if (round % 3 == 0)
            usleep((unsigned)round * 7); /* sometimes they are fast asleep */
    }
}

static void who_comes_again_lets_others_have_their_turn(void **state)
{
    struct world *world = *state;
    struct job busy, other;

    start(world, world->pg.dsn, 1);
    make(&busy, NULL, EVER);
    busy.again = UINT32_MAX;
    assert_int_equal(readers_ask(world->readers, &busy.job), 0);
    WAIT_FOR(value(&busy.begun) > 100);
    for (int i = 0; i < 50; i++) {
        ask(world, &other, "SELECT 1", 5000);
        expect_done(&other);
    }
    readers_stop(world->readers);
    expect_failed(&busy, "being stopped");
}

static void nothing_is_run_before_its_time(void **state)
{
    struct world *world = *state;
    struct job job;

    start(world, world->pg.dsn, 2);
    for (int i = 0; i < 3; i++) {
        make(&job, NULL, i == 0 ? 5000 : EVER);
        job.again = 3;
        job.pause = 70 * USEC_PER_MSEC;
        const uint64_t begin = clock_usec();
        job.job.not_before_usec = begin + 50 * USEC_PER_MSEC;
        assert_int_equal(readers_ask(world->readers, &job.job), 0);
        expect_done(&job);
        assert_int_equal(value(&job.begun), 4);
        assert_true(clock_usec() - begin >= 260000);
    }
}

static void the_deadlines_of_others_are_kept_while_one_is_waited_for(void **state)
{
    struct world *world = *state;
    struct job slow, other, patient;

    start(world, world->pg.dsn, 1);
    ask(world, &slow, "SELECT pg_sleep(1.8)", 10000);
    WAIT_FOR(value(&slow.begun) == 1);
    const uint64_t begin = clock_usec();
    ask(world, &other, "SELECT 1", 200);
    ask(world, &patient, "SELECT 1", EVER);
    expect_failed(&other, "did not answer in time");
    assert_int_equal(value(&other.begun), 0);
    expect_done(&slow);
    assert_uint_in_range(other.ended_usec - begin, 200000, slow.ended_usec - begin);
    expect_done(&patient);
}

static void too_many_with_a_deadline_are_refused(void **state)
{
    struct world *world = *state;
    static struct job jobs[60];
    struct job slow, one_more;
    unsigned accepted = 0;

    start(world, world->pg.dsn, 1);
    ask(world, &slow, "SELECT pg_sleep(1.8)", 10000);
    WAIT_FOR(value(&slow.begun) == 1);
    for (size_t i = 0; i < 30; i++) {
        make(&jobs[i], "SELECT 1", 8000);
        const int code = readers_ask(world->readers, &jobs[i].job);

        assert_int_equal(code, i < 20 ? 0 : -EAGAIN);
        accepted += code == 0;
    }
    for (size_t i = 30; i < 60; i++)
        ask(world, &jobs[i], "SELECT 1", EVER);
    expect_done(&slow);
    for (size_t i = 0; i < 60; i++) {
        if (i < accepted || i >= 30)
            expect_done(&jobs[i]);
    }
    ask(world, &one_more, "SELECT 1", 5000);
    expect_done(&one_more);
}

/* -- when the database is not there -- */

static void while_it_is_away_some_fail_at_once_and_others_wait(void **state)
{
    struct world *world = *state;
    struct job patient[5], hasty;

    start(world, "host=127.0.0.1 port=1 dbname=nothing", 2);
    for (size_t i = 0; i < ARRAY_SIZE(patient); i++)
        ask(world, &patient[i], "SELECT 1", EVER);
    for (int i = 0; i < 10; i++) {
        ask(world, &hasty, "SELECT 1", 30000);
        expect_failed(&hasty, "Connection refused");
        assert_true(hasty.ended_usec < hasty.job.deadline_usec);
    }
    for (size_t i = 0; i < ARRAY_SIZE(patient); i++) {
        assert_int_equal(value(&patient[i].begun) + value(&patient[i].failed), 0);
    }
    readers_stop(world->readers);
    for (size_t i = 0; i < ARRAY_SIZE(patient); i++)
        expect_failed(&patient[i], "being stopped");
}

static unsigned begun_of(struct job *jobs, size_t count)
{
    unsigned begun = 0;

    for (size_t i = 0; i < count; i++)
        begun += value(&jobs[i].begun);
    return begun;
}

static void when_it_is_back_those_who_waited_are_run(void **state)
{
    struct world *world = *state;
    struct job patient[10], hasty;

    start(world, world->proxy.dsn, 2);
    ask(world, &hasty, "SELECT 1", 5000);
    expect_done(&hasty);
    proxy_set(&world->proxy, PROXY_FREEZE);
    const uint64_t begin = clock_usec();
    for (size_t i = 0; i < ARRAY_SIZE(patient); i++)
        ask(world, &patient[i], "SELECT 1", EVER);
    ask(world, &hasty, "SELECT 1", 300);
    expect_failed(&hasty, "");
    assert_uint_in_range(hasty.ended_usec - begin, 300000, QUERY_USEC - 1);
    WAIT_FOR(begun_of(patient, ARRAY_SIZE(patient)) > 0);
    usleep(2200000); /* the query on its way has been given up, and its connection */
    proxy_set(&world->proxy, PROXY_PASS);
    for (size_t i = 0; i < ARRAY_SIZE(patient); i++)
        expect_done(&patient[i]);
}

static void a_connection_that_is_killed_costs_nobody_an_answer(void **state)
{
    struct world *world = *state;
    struct job hasty, patient, slow;

    start(world, world->pg.dsn, 1);
    ask(world, &hasty, "SELECT 1", 5000);
    expect_done(&hasty);
    for (int i = 0; i < 3; i++) {
        usleep(1100000); /* proven: the next try is made at once */
        assert_int_equal(pg_kill(&world->pg, "reader"), 1);
        ask(world, &hasty, "SELECT 1", 5000);
        ask(world, &patient, "SELECT 1", EVER);
        expect_done(&hasty);
        expect_done(&patient);
    }
    /* In the middle of it. */
    ask(world, &slow, "SELECT pg_sleep(0.5)", EVER);
    WAIT_FOR(value(&slow.begun) == 1);
    WAIT_FOR(pg_kill(&world->pg, "reader") == 1);
    expect_done(&slow);
    assert_true(value(&slow.begun) >= 2);
}

static void what_the_server_refuses_is_tried_again_or_told(void **state)
{
    struct world *world = *state;
    struct job hasty, patient;

    start(world, world->pg.dsn, 1);
    ask(world, &hasty, "SELECT * FROM not_yet", 5000);
    expect_failed(&hasty, "\"not_yet\" does not exist");
    assert_int_equal(value(&hasty.begun), 1);
    ask(world, &patient, "SELECT * FROM not_yet", EVER);
    WAIT_FOR(value(&patient.begun) >= 3);
    assert_true(value(&patient.begun) < 20); /* with pauses */
    pg_run(world->pg.conn, "CREATE TABLE not_yet ()");
    expect_done(&patient);
}

/* -- the end -- */

static void stopping_tells_everybody_once(void **state)
{
    enum { JOBS = 200 };
    struct world *world = *state;
    static struct job jobs[JOBS];
    struct job late;
    unsigned done = 0;

    start(world, world->proxy.dsn, 3);
    ask(world, &jobs[0], "SELECT 1", 5000);
    expect_done(&jobs[0]);
    for (int i = 1; i < JOBS; i++) {
        if (i == JOBS / 2)
            proxy_set(&world->proxy, PROXY_FREEZE);
        make(&jobs[i], "SELECT 1", EVER);
        jobs[i].query_usec = 30 * USEC_PER_SEC;
        if (i % 7 == 0)
            jobs[i].job.not_before_usec = clock_usec() + 20000;
        assert_int_equal(readers_ask(world->readers, &jobs[i].job), 0);
    }
    const uint64_t begin = clock_usec();
    readers_stop(world->readers);
    assert_true(clock_usec() - begin < 20 * USEC_PER_SEC); /* not for the queries */
    for (int i = 0; i < JOBS; i++) {
        assert_int_equal(value(&jobs[i].done) + value(&jobs[i].failed), 1);
        done += value(&jobs[i].done);
    }
    assert_uint_in_range(done, 1, JOBS - 1);
    make(&late, "SELECT 1", 5000);
    assert_int_equal(readers_ask(world->readers, &late.job), -ESHUTDOWN);
    make(&late, "SELECT 1", EVER);
    assert_int_equal(readers_ask(world->readers, &late.job), -ESHUTDOWN);
    assert_int_equal(value(&late.failed), 0);
    readers_stop(world->readers);
}

/* Others ask while it is being stopped: accepted means told. */
static void *ask_on(void *argument)
{
    struct world *world = argument;
    static struct job jobs[20000];
    size_t count = 0;
    uintptr_t wrong = 0;

    for (; count < ARRAY_SIZE(jobs); count++) {
        make(&jobs[count], NULL, EVER);
        if (readers_ask(world->readers, &jobs[count].job) < 0)
            break;
        if (count % 50 == 0)
            usleep(1000);
    }
    usleep(200000);
    for (size_t i = 0; i < count; i++)
        wrong += value(&jobs[i].done) + value(&jobs[i].failed) != 1;
    return (void *)wrong;
}

static void who_asks_while_it_stops_is_told(void **state)
{
    struct world *world = *state;
    pthread_t thread;
    void *wrong;

    start(world, world->pg.dsn, 2);
    assert_int_equal(pthread_create(&thread, NULL, ask_on, world), 0);
    usleep(100000);
    readers_stop(world->readers);
    pthread_join(thread, &wrong);
    assert_null(wrong);
}

static void the_threads_beat_while_nobody_asks(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn, 2);
    for (unsigned i = 0; i < 6; i++) {
        const struct thread *thread = readers_thread(world->readers, i % 2);
        const uint64_t beat = thread_last_beat(thread);

        WAIT_FOR(thread_last_beat(thread) > beat);
    }
}

static void without_memory_there_are_none(void **state)
{
    struct readers *readers;

    (void)state;
    for (unsigned n = 1;; n++) {
        failing_malloc_begin(n);
        readers = readers_new(
            &(struct readers_settings){.dsn = "dbname=x", .password = "p", .count = 3});
        if (!failing_malloc_end())
            break;
        assert_null(readers);
    }
    assert_non_null(readers);
    readers_free(readers);
    readers_free(NULL);
    readers_stop(NULL);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(a_connection_is_made_for_the_first_job_and_kept),
        WITH_PG(no_job_waits_while_a_reader_sleeps),
        WITH_PG(who_comes_again_lets_others_have_their_turn),
        WITH_PG(nothing_is_run_before_its_time),
        WITH_PG(the_deadlines_of_others_are_kept_while_one_is_waited_for),
        WITH_PG(too_many_with_a_deadline_are_refused),
        WITH_PG(while_it_is_away_some_fail_at_once_and_others_wait),
        WITH_PG(when_it_is_back_those_who_waited_are_run),
        WITH_PG(a_connection_that_is_killed_costs_nobody_an_answer),
        WITH_PG(what_the_server_refuses_is_tried_again_or_told),
        WITH_PG(stopping_tells_everybody_once),
        WITH_PG(who_asks_while_it_stops_is_told),
        WITH_PG(the_threads_beat_while_nobody_asks),
        cmocka_unit_test(without_memory_there_are_none),
    };
    return cmocka_run_group_tests_name("readers", tests, NULL, NULL);
}
