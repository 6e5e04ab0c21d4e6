/* test_groups.c - the thread of the groups: who gets which event, what is acknowledged, and who
 * waits for that. */
#include "pg.h"

#include "groups.h"
#include "thread.h"

struct world {
    struct pg pg;
    struct proxy proxy;
    struct stats *stats;
    struct groups *groups;
};

/* A consumer that only remembers what it was dealt. */
struct worker {
    struct enrolment enrolment;
    struct sse_frame *frames[20];
    _Atomic int dealt;
    _Atomic int ended;
    _Atomic int gone;
};

static int load(_Atomic int *number)
{
    return atomic_load_explicit(number, memory_order_acquire);
}

static void on_deal(struct enrolment *enrolment, struct sse_frame *frame)
{
    struct worker *worker = CONTAINER_OF(enrolment, struct worker, enrolment);
    const int at = load(&worker->dealt);

    assert_uint_in_range(at, 0, (int)ARRAY_SIZE(worker->frames) - 1);
    worker->frames[at] = frame;
    atomic_store_explicit(&worker->dealt, at + 1, memory_order_release);
}

static void on_end(struct enrolment *enrolment)
{
    struct worker *worker = CONTAINER_OF(enrolment, struct worker, enrolment);

    atomic_fetch_add_explicit(&worker->ended, 1, memory_order_release);
}

static void on_gone(struct enrolment *enrolment)
{
    struct worker *worker = CONTAINER_OF(enrolment, struct worker, enrolment);

    atomic_fetch_add_explicit(&worker->gone, 1, memory_order_release);
}

static int join(struct world *world, struct worker *worker, unsigned max, bool exclusive)
{
    memset(worker, 0, sizeof(*worker));
    worker->enrolment = (struct enrolment){
        .member = {.channel = "jobs",
                   .name = "workers",
                   .start = "earliest",
                   .max = max,
                   /* Nothing is to come because a lease is over, or is renewed. */
                   .lease_usec = 24 * 3600 * USEC_PER_SEC,
                   .exclusive = exclusive},
        .deal = on_deal,
        .end = on_end,
        .gone = on_gone,
    };
    return groups_join(world->groups, &worker->enrolment);
}

static void drop_frames(struct worker *worker)
{
    for (int i = 0; i < load(&worker->dealt); i++)
        sse_frame_free(worker->frames[i]);
}

static void leave(struct worker *worker)
{
    groups_leave(&worker->enrolment);
    WAIT_FOR(load(&worker->gone) == 1);
    drop_frames(worker);
}

/* The id of the frame of that index, as it stands on the wire. */
static void read_id(struct worker *worker, int index, char ret_id[64], uint64_t *ret_seq)
{
    unsigned attempt;

    WAIT_FOR(load(&worker->dealt) > index);
    const struct sse_frame *frame = worker->frames[index];
    const char *id = frame->bytes + frame->body_offset + strlen("id: ");
    const size_t len = strcspn(id, "\n");

    assert_uint_in_range(len, 1, 63);
    memcpy(ret_id, id, len);
    ret_id[len] = '\0';
    assert_int_equal(delivery_id_parse(ret_id, len, ret_seq, &attempt), 0);
    assert_int_equal(*ret_seq, frame->seq);
}

struct task {
    struct errand errand;
    char id[64];
    _Atomic int answers;
};

static void on_done(struct errand *errand)
{
    struct task *task = CONTAINER_OF(errand, struct task, errand);

    atomic_fetch_add_explicit(&task->answers, 1, memory_order_release);
}

static void begin_ack(struct world *world, struct task *task, struct worker *worker,
                      int index, const char *result)
{
    uint64_t seq;

    memset(task, 0, sizeof(*task));
    read_id(worker, index, task->id, &seq);
    task->errand = (struct errand){.kind = ERRAND_ACK,
                                   .group = "workers",
                                   .id = task->id,
                                   .seq = seq,
                                   .text = result,
                                   .done = on_done};
    assert_int_equal(groups_do(world->groups, &task->errand), 0);
}

static enum errand_outcome end_task(struct task *task)
{
    WAIT_FOR(load(&task->answers) == 1);
    return task->errand.outcome;
}

struct waiter {
    struct wait wait;
    _Atomic int answers;
};

static void on_heard(struct wait *wait)
{
    struct waiter *waiter = CONTAINER_OF(wait, struct waiter, wait);

    atomic_fetch_add_explicit(&waiter->answers, 1, memory_order_release);
}

static void begin_wait(struct world *world, struct waiter *waiter, uint64_t seq,
                       uint64_t usec)
{
    memset(waiter, 0, sizeof(*waiter));
    waiter->wait = (struct wait){.seq = seq,
                                 .group = "workers",
                                 .deadline_usec = clock_usec() + usec,
                                 .done = on_heard};
    assert_int_equal(groups_wait(world->groups, &waiter->wait), 0);
}

static void publish(struct world *world, int count)
{
    for (int i = 0; i < count; i++)
        pg_run(world->pg.conn, "SELECT gateway.publish_batch(ARRAY['jobs'], "
                               "ARRAY['message'], ARRAY['{\"n\":1}'])");
}

static void start(struct world *world, const char *dsn)
{
    struct err err = {0};

    world->groups = groups_new(&(struct groups_settings){
        .dsn = dsn,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .consumers_max = 3,
        .waits_max = 2,
        .groups_max = 100,
        .stats = world->stats,
    });
    assert_non_null(world->groups);
    assert_int_equal(groups_start(world->groups, &err), 0);
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    world.stats = stats_new();
    *state = &world;
    return 0;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    groups_free(world->groups);
    stats_free(world->stats);
    proxy_close(&world->proxy);
    pg_close(&world->pg);
    return 0;
}

static void nothing_is_connected_before_it_is_needed(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    usleep(200000);
    assert_int_equal(pg_kill(&world->pg, "groups"), 0);
}

static void an_event_is_dealt_and_acknowledged_once(void **state)
{
    struct world *world = *state;
    struct worker worker;
    struct task first, second;

    start(world, world->pg.dsn);
    assert_int_equal(join(world, &worker, 1, false), 0);
    publish(world, 2);
    groups_news(&worker.enrolment);
    begin_ack(world, &first, &worker, 0, "{\"sum\":1.0}");
    assert_int_equal(end_task(&first), ERRAND_DONE);
    begin_ack(world, &second, &worker, 0, NULL);
    assert_int_equal(end_task(&second), ERRAND_CONFLICT);
    WAIT_FOR(load(&worker.dealt) == 2);
    assert_int_equal(pg_number(world->pg.conn, "SELECT count(*) FROM gateway.deliveries "
                                               "WHERE acked_at IS NOT NULL AND "
                                               "result::text = '{\"sum\":1.0}'"),
                     1);
    assert_int_equal(stats_counter_value(world->stats, STATS_GROUPS_ACKS), 1);
    leave(&worker);
}

static void what_a_consumer_held_is_given_back_when_it_leaves(void **state)
{
    struct world *world = *state;
    struct worker first, second;

    start(world, world->pg.dsn);
    publish(world, 3);
    assert_int_equal(join(world, &first, 3, false), 0);
    WAIT_FOR(load(&first.dealt) == 3);
    leave(&first);
    assert_int_equal(join(world, &second, 3, false), 0);
    WAIT_FOR(load(&second.dealt) == 3);
    assert_int_equal(stats_counter_value(world->stats, STATS_GROUPS_REDELIVERIES), 3);
    leave(&second);
}

static void there_are_so_many_consumers_and_waits_and_no_more(void **state)
{
    struct world *world = *state;
    struct worker workers[4];

    start(world, world->pg.dsn);
    for (int i = 0; i < 3; i++)
        assert_int_equal(join(world, &workers[i], 1, false), 0);
    assert_int_equal(join(world, &workers[3], 1, false), -EAGAIN);
    leave(&workers[0]);
    assert_int_equal(join(world, &workers[3], 1, false), 0);
    for (int i = 1; i < 4; i++)
        leave(&workers[i]);
    assert_int_equal(groups_reserve(world->groups), 0);
    assert_int_equal(groups_reserve(world->groups), 0);
    assert_int_equal(groups_reserve(world->groups), -EAGAIN);
    groups_unreserve(world->groups);
    assert_int_equal(groups_reserve(world->groups), 0);
    assert_int_equal(stats_gauge_value(world->stats, STATS_GROUPS_WAITS), 2);
}

static void who_waits_is_told_of_the_acknowledgement(void **state)
{
    struct world *world = *state;
    struct worker worker;
    struct waiter early, late;
    struct task task;

    start(world, world->pg.dsn);
    publish(world, 1);
    assert_int_equal(join(world, &worker, 1, false), 0);
    WAIT_FOR(load(&worker.dealt) == 1);
    begin_wait(world, &early, worker.frames[0]->seq, 60 * USEC_PER_SEC);
    WAIT_FOR(pg_number(world->pg.conn, "SELECT count(*) FROM gateway.waits") == 1);
    begin_ack(world, &task, &worker, 0, "[1, 2]");
    assert_int_equal(end_task(&task), ERRAND_DONE);
    WAIT_FOR(load(&early.answers) == 1);
    assert_int_equal(early.wait.outcome, WAIT_ACKNOWLEDGED);
    assert_string_equal(early.wait.result, "[1, 2]");
    begin_wait(world, &late, worker.frames[0]->seq, 60 * USEC_PER_SEC);
    WAIT_FOR(load(&late.answers) == 1);
    assert_string_equal(late.wait.result, "[1, 2]");
    WAIT_FOR(pg_number(world->pg.conn, "SELECT count(*) FROM gateway.waits") == 0);
    free(early.wait.result);
    free(late.wait.result);
    leave(&worker);
}

/* Whoever acknowledges has found nobody who waits, and who waits has looked before the commit: no
 * bell rings. */
static void an_acknowledgement_in_the_middle_of_its_commit_is_seen_soon(void **state)
{
    struct world *world = *state;
    static struct waiter waiter; /* outlives a test that fails */
    PGconn *other = pg_connect(world->pg.dsn);

    start(world, world->pg.dsn);
    publish(world, 1);
    pg_run(other, "BEGIN; SELECT gateway.ack(id, 'workers') FROM "
                  "gateway.claim('jobs', 'workers', start => 'earliest')");
    const uint64_t now = clock_usec();
    clock_set(now);
    begin_wait(world, &waiter, 1, 60 * USEC_PER_SEC);
    WAIT_FOR(pg_number(world->pg.conn, "SELECT count(*) FROM pg_stat_activity WHERE "
                                       "datname = current_database() AND state = 'idle' "
                                       "AND query LIKE '%gateway.result(%'") == 1);
    pg_run(other, "COMMIT");
    clock_set(now + USEC_PER_SEC / 4);
    for (int i = 0; i < 5000 && load(&waiter.answers) == 0; i++)
        usleep(2000);
    clock_set(0);
    assert_int_equal(load(&waiter.answers), 1);
    assert_int_equal(waiter.wait.outcome, WAIT_ACKNOWLEDGED);
    PQfinish(other);
}

static void who_waits_in_vain_is_told_so_also_without_a_database(void **state)
{
    struct world *world = *state;
    struct waiter waiter;
    const uint64_t begin = clock_usec();

    start(world, "host=127.0.0.1 port=1 dbname=nothing");
    begin_wait(world, &waiter, 1, USEC_PER_SEC / 2);
    WAIT_FOR(load(&waiter.answers) == 1);
    assert_int_equal(waiter.wait.outcome, WAIT_LATE);
    assert_true(clock_usec() - begin >= USEC_PER_SEC / 2);
}

static void without_a_database_an_errand_is_answered_soon(void **state)
{
    struct world *world = *state;
    struct task task = {.id = "1.1.aaaaaaaaaaaa"};

    start(world, "host=127.0.0.1 port=1 dbname=nothing");
    task.errand = (struct errand){.kind = ERRAND_NACK,
                                  .group = "workers",
                                  .id = task.id,
                                  .seq = 1,
                                  .done = on_done};
    assert_int_equal(groups_do(world->groups, &task.errand), 0);
    assert_int_equal(end_task(&task), ERRAND_UNAVAILABLE);
    assert_true(strlen(task.errand.err.text) > 0);
}

static void an_errand_whose_answer_is_lost_is_told_so(void **state)
{
    struct world *world = *state;
    struct worker worker;
    struct task task;

    start(world, world->proxy.dsn);
    publish(world, 1);
    assert_int_equal(join(world, &worker, 1, false), 0);
    WAIT_FOR(load(&worker.dealt) == 1);
    proxy_set(&world->proxy, PROXY_FREEZE);
    begin_ack(world, &task, &worker, 0, NULL);
    assert_int_equal(end_task(&task), ERRAND_UNAVAILABLE);
    proxy_set(&world->proxy, PROXY_PASS);
    leave(&worker);
}

static void the_holder_ends_with_the_connection(void **state)
{
    struct world *world = *state;
    struct worker holder, next;

    start(world, world->pg.dsn);
    publish(world, 1);
    assert_int_equal(join(world, &holder, 5, true), 0);
    WAIT_FOR(load(&holder.dealt) == 1);
    assert_int_equal(join(world, &next, 5, true), 0);
    assert_int_equal(pg_kill(&world->pg, "groups"), 1);
    WAIT_FOR(load(&holder.ended) == 1);
    WAIT_FOR(load(&next.dealt) == 1);
    assert_int_equal(load(&next.ended), 0);
    leave(&holder);
    leave(&next);
}

static void stopping_gives_back_and_ends_everybody(void **state)
{
    struct world *world = *state;
    struct worker worker, late;
    struct waiter waiter;
    struct task task = {.errand = {.kind = ERRAND_ACK}};

    start(world, world->pg.dsn);
    publish(world, 1);
    assert_int_equal(join(world, &worker, 1, false), 0);
    WAIT_FOR(load(&worker.dealt) == 1);
    begin_wait(world, &waiter, 1, 60 * USEC_PER_SEC);
    groups_stop(world->groups, 5 * USEC_PER_SEC);
    assert_int_equal(load(&worker.ended), 1);
    assert_int_equal(load(&worker.gone), 1);
    assert_int_equal(load(&waiter.answers), 1);
    assert_int_equal(waiter.wait.outcome, WAIT_LATE);
    assert_int_equal(pg_number(world->pg.conn, "SELECT count(*) FROM gateway.deliveries "
                                               "WHERE due_at <= clock_timestamp()"),
                     1);
    assert_int_equal(join(world, &late, 1, false), -ESHUTDOWN);
    assert_int_equal(groups_do(world->groups, &task.errand), -ESHUTDOWN);
    groups_leave(&worker.enrolment);
    drop_frames(&worker);
}

/* No row of gateway.deliveries is to be had until thaw(). */
static void freeze(struct world *world)
{
    pg_run(world->pg.conn, "BEGIN; SELECT FROM gateway.deliveries FOR UPDATE");
}

static void thaw(struct world *world)
{
    pg_run(world->pg.conn, "ROLLBACK");
}

/* The groups have asked for that, and been answered. */
static bool is_answered(struct world *world, const char *function)
{
    char asked[300];

    (void)snprintf(asked, sizeof(asked),
                   "SELECT count(*) FROM pg_stat_activity WHERE datname = "
                   "current_database() AND application_name LIKE '%%/groups' AND "
                   "state = 'idle' AND query LIKE '%%gateway.%s(%%'",
                   function);
    /* In a transaction the view stands still. */
    pg_run(world->pg.conn, "SELECT pg_stat_clear_snapshot()");
    return pg_number(world->pg.conn, asked) == 1;
}

static void what_could_not_be_given_back_is_given_back_later(void **state)
{
    struct world *world = *state;
    struct worker first, second;

    start(world, world->pg.dsn);
    publish(world, 1);
    assert_int_equal(join(world, &first, 1, false), 0);
    WAIT_FOR(load(&first.dealt) == 1);
    freeze(world);
    leave(&first);
    WAIT_FOR(is_answered(world, "release"));
    thaw(world);
    assert_int_equal(join(world, &second, 1, false), 0);
    WAIT_FOR(load(&second.dealt) == 1);
    leave(&second);
}

static void a_delivery_that_could_not_be_acknowledged_keeps_its_place(void **state)
{
    struct world *world = *state;
    struct worker worker;
    struct task task, other = {.id = "99.1.aaaaaaaaaaaa"};

    start(world, world->pg.dsn);
    publish(world, 2);
    assert_int_equal(join(world, &worker, 1, false), 0);
    WAIT_FOR(load(&worker.dealt) == 1);
    freeze(world);
    begin_ack(world, &task, &worker, 0, NULL);
    assert_int_equal(end_task(&task), ERRAND_UNAVAILABLE);
    thaw(world);
    /* When this is answered, whoever had a free place has been dealt to. */
    other.errand = (struct errand){.kind = ERRAND_ACK,
                                   .group = "workers",
                                   .id = other.id,
                                   .seq = 99,
                                   .done = on_done};
    assert_int_equal(groups_do(world->groups, &other.errand), 0);
    assert_int_equal(end_task(&other), ERRAND_MISSING);
    assert_int_equal(load(&worker.dealt), 1);
    leave(&worker);
}

static void a_new_holder_begins_with_what_was_in_flight(void **state)
{
    struct world *world = *state;
    struct worker holder, next;
    uint64_t seq;

    start(world, world->pg.dsn);
    publish(world, 2);
    assert_int_equal(join(world, &holder, 1, true), 0);
    WAIT_FOR(load(&holder.dealt) == 1);
    seq = holder.frames[0]->seq;
    assert_int_equal(join(world, &next, 1, true), 0);
    freeze(world);
    leave(&holder);
    WAIT_FOR(is_answered(world, "recall"));
    thaw(world);
    WAIT_FOR(load(&next.dealt) == 1);
    assert_int_equal(next.frames[0]->seq, seq);
    leave(&next);
}

static void a_group_that_cannot_be_removed_now_disturbs_no_other(void **state)
{
    struct world *world = *state;
    struct worker holder;
    struct task task = {
        .errand = {
            .kind = ERRAND_REMOVE, .channel = "other", .group = "busy", .done = on_done}};

    start(world, world->pg.dsn);
    publish(world, 1);
    assert_int_equal(join(world, &holder, 1, true), 0);
    WAIT_FOR(load(&holder.dealt) == 1);
    pg_run(world->pg.conn, "SELECT gateway.claim('other', 'busy')");
    pg_run(world->pg.conn, "BEGIN; SELECT FROM gateway.groups WHERE name = 'busy' "
                           "FOR NO KEY UPDATE");
    assert_int_equal(groups_do(world->groups, &task.errand), 0);
    assert_int_equal(end_task(&task), ERRAND_UNAVAILABLE);
    thaw(world);
    assert_int_equal(load(&holder.ended), 0);
    leave(&holder);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_is_connected_before_it_is_needed),
        TEST(an_event_is_dealt_and_acknowledged_once),
        TEST(what_a_consumer_held_is_given_back_when_it_leaves),
        TEST(there_are_so_many_consumers_and_waits_and_no_more),
        TEST(who_waits_is_told_of_the_acknowledgement),
        TEST(an_acknowledgement_in_the_middle_of_its_commit_is_seen_soon),
        TEST(who_waits_in_vain_is_told_so_also_without_a_database),
        TEST(without_a_database_an_errand_is_answered_soon),
        TEST(an_errand_whose_answer_is_lost_is_told_so),
        TEST(the_holder_ends_with_the_connection),
        TEST(stopping_gives_back_and_ends_everybody),
        TEST(what_could_not_be_given_back_is_given_back_later),
        TEST(a_delivery_that_could_not_be_acknowledged_keeps_its_place),
        TEST(a_new_holder_begins_with_what_was_in_flight),
        TEST(a_group_that_cannot_be_removed_now_disturbs_no_other),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
