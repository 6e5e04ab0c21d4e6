/* test_dealer.c - what is claimed is dealt to the consumers here, and what they leave behind is
 * given back. */
#include "pg.h"

#include "dealer.h"
#include "failing_malloc.h"
#include "lost_answers.h"

#define EVENTS 2500

struct world {
    struct pg pg;
    struct database *database;
    struct stats *stats;
    struct dealer dealer;
};

static void on_deal(struct enrolment *enrolment, struct sse_frame *frame)
{
    atomic_fetch_sub_explicit(&enrolment->member.unsent_bytes, sse_frame_weight(frame),
                              memory_order_relaxed);
    sse_frame_free(frame);
}

static void on_end(struct enrolment *enrolment)
{
    (void)enrolment;
}

static void join(struct world *world, struct enrolment *enrolment, bool exclusive)
{
    *enrolment = (struct enrolment){
        .member = {.channel = "jobs",
                   .name = "workers",
                   .start = "earliest",
                   .max = 1000,
                   .lease_usec = 3600 * USEC_PER_SEC,
                   .exclusive = exclusive},
        .deal = on_deal,
        .end = on_end,
        .gone = on_end,
    };
    dealer_join(&world->dealer, enrolment);
}

static void connect_anew(struct world *world)
{
    struct err err = {0};

    assert_int_equal(
        database_connect(world->database, clock_usec() + 10 * USEC_PER_SEC, &err), 0);
    dealer_begins_anew(&world->dealer);
}

static void turn_until_dealt(struct world *world, size_t count)
{
    struct err err = {0};

    WAIT_FOR(dealer_turn(&world->dealer, &err) == 0 &&
             roster_in_hand(world->dealer.roster) == count);
}

static long count_due(struct world *world)
{
    return pg_number(world->pg.conn, "SELECT count(*) FROM gateway.deliveries WHERE "
                                     "due_at <= clock_timestamp()");
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    world.stats = stats_new();
    world.database = database_new(&(struct database_settings){
        .dsn = world.pg.dsn, .door = "test", .target = "any", .stop_fd = -1});
    assert_int_equal(dealer_init(&world.dealer, world.database, world.stats), 0);
    connect_anew(&world);
    *state = &world;
    return 0;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    dealer_done(&world->dealer);
    database_free(world->database);
    stats_free(world->stats);
    pg_close(&world->pg);
    return 0;
}

static void publish(struct world *world, int count)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT gateway.publish_batch(array_fill('jobs'::text, ARRAY[%d]), "
                   "array_fill('message'::text, ARRAY[%d]), array_fill('1'::text, "
                   "ARRAY[%d]))",
                   count, count, count);
    pg_run(world->pg.conn, sql);
}

static void however_many_leave_at_once_all_is_given_back(void **state)
{
    struct world *world = *state;
    struct enrolment workers[3];
    struct err err = {0};

    publish(world, EVENTS);
    for (size_t i = 0; i < ARRAY_SIZE(workers); i++)
        join(world, &workers[i], false);
    turn_until_dealt(world, EVENTS);
    for (size_t i = 0; i < ARRAY_SIZE(workers); i++)
        dealer_dismiss(&world->dealer, &workers[i]);
    assert_int_equal(returns_clear(&world->dealer.returns, &err), 0);
    assert_int_equal(count_due(world), EVENTS);
}

static void what_somebody_else_has_locked_is_given_back_when_it_is_free(void **state)
{
    struct world *world = *state;
    struct enrolment workers[3];
    struct err err = {0};

    publish(world, EVENTS);
    for (size_t i = 0; i < ARRAY_SIZE(workers); i++)
        join(world, &workers[i], false);
    turn_until_dealt(world, EVENTS);
    pg_run(world->pg.conn, "BEGIN; SELECT FROM gateway.deliveries FOR UPDATE");
    for (size_t i = 0; i < ARRAY_SIZE(workers); i++)
        dealer_dismiss(&world->dealer, &workers[i]);
    assert_int_equal(returns_clear(&world->dealer.returns, &err), 0);
    assert_int_equal(count_due(world), 0);
    assert_int_not_equal(returns_due_usec(&world->dealer.returns), CLOCK_NEVER);
    pg_run(world->pg.conn, "COMMIT");
    WAIT_FOR(returns_turn(&world->dealer.returns, &err) == 0 &&
             count_due(world) == EVENTS);
    WAIT_FOR(returns_due_usec(&world->dealer.returns) == CLOCK_NEVER);
}

static void a_holder_has_all_called_back_before_it_begins(void **state)
{
    struct world *world = *state;
    struct enrolment worker;

    publish(world, EVENTS);
    for (int i = 0; i < EVENTS; i += 1000)
        pg_run(world->pg.conn,
               "SELECT count(*) FROM gateway.claim('jobs', 'workers', 1000, "
               "'1 h', 'earliest')");
    join(world, &worker, true);
    turn_until_dealt(world, 1000);
    assert_int_equal(pg_number(world->pg.conn, "SELECT max(seq) FROM gateway.deliveries "
                                               "WHERE attempt = 2"),
                     1000);
    assert_int_equal(count_due(world), EVENTS - 1000);
    dealer_dismiss(&world->dealer, &worker);
}

/* By SQL it was claimed from, in a transaction that is open: nobody waits for its end. */
static void a_group_that_somebody_else_has_is_asked_for_at_looks_alone(void **state)
{
    struct world *world = *state;
    struct enrolment worker;
    struct err err = {0};

    publish(world, 1);
    pg_run(world->pg.conn,
           "SELECT gateway.claim('jobs', 'workers', start => 'earliest')");
    publish(world, 1);
    pg_run(world->pg.conn, "BEGIN; SELECT FROM gateway.groups FOR NO KEY UPDATE");
    join(world, &worker, false);
    assert_int_equal(dealer_turn(&world->dealer, &err), 0);
    assert_true(worker.member.group->busy);
    roster_news_of_channel(world->dealer.roster, "jobs");
    assert_false(roster_has_wanted(world->dealer.roster));
    pg_run(world->pg.conn, "COMMIT");
    turn_until_dealt(world, 1);
    roster_news_of_channel(world->dealer.roster, "jobs");
    assert_true(roster_has_wanted(world->dealer.roster));
    dealer_dismiss(&world->dealer, &worker);
}

/* The n-th allocation of who leaves fails: what is not given back is left to its lease, and
 * everything goes on. */
static void without_memory_who_leaves_is_no_obstacle(void **state)
{
    struct world *world = *state;
    struct enrolment worker;
    struct err err = {0};
    bool failed = true;

    for (unsigned nth = 1; failed; nth++) {
        publish(world, 20);
        join(world, &worker, false);
        turn_until_dealt(world, 20);
        failing_malloc_begin(nth);
        dealer_dismiss(&world->dealer, &worker);
        failed = failing_malloc_end();
        if (returns_clear(&world->dealer.returns, &err) < 0) {
            dealer_is_cut_off(&world->dealer);
            connect_anew(world);
        }
        assert_int_equal(returns_clear(&world->dealer.returns, &err), 0);
        pg_run(world->pg.conn,
               "DELETE FROM gateway.deliveries; DELETE FROM gateway.events");
    }
}

struct heir {
    struct enrolment enrolment;
    uint64_t last;
    bool disordered;
    bool ended;
};

static void on_heir_deal(struct enrolment *enrolment, struct sse_frame *frame)
{
    struct heir *heir = CONTAINER_OF(enrolment, struct heir, enrolment);

    heir->disordered = heir->disordered || frame->seq <= heir->last;
    heir->last = frame->seq;
    on_deal(enrolment, frame);
}

static void on_heir_end(struct enrolment *enrolment)
{
    CONTAINER_OF(enrolment, struct heir, enrolment)->ended = true;
}

static void come(struct world *world, struct heir *heir)
{
    *heir = (struct heir){.last = 0};
    join(world, &heir->enrolment, true);
    heir->enrolment.deal = on_heir_deal;
    heir->enrolment.end = on_heir_end;
}

/* Whose stream ends leaves, and comes back. */
static bool turn_until_in_hand(struct world *world, struct heir *heir, size_t count)
{
    struct err err = {0};

    if (heir->ended) {
        dealer_dismiss(&world->dealer, &heir->enrolment);
        come(world, heir);
    }
    if (dealer_turn(&world->dealer, &err) < 0) {
        dealer_is_cut_off(&world->dealer);
        connect_anew(world);
    }
    return !heir->ended && roster_in_hand(world->dealer.roster) == count;
}

/* The n-th allocation of a turn in which twenty are claimed fails: what cannot be dealt does not
 * come to the holder behind later ones. */
static void without_memory_a_holder_still_has_all_in_order(void **state)
{
    struct world *world = *state;
    struct heir heir;
    struct err err = {0};
    bool failed = true;

    for (unsigned nth = 1; failed; nth++) {
        come(world, &heir);
        WAIT_FOR(turn_until_in_hand(world, &heir, 0) &&
                 heir.enrolment.member.group->holder != NULL);
        publish(world, 20);
        dealer_begins_anew(&world->dealer);
        failing_malloc_begin(nth);
        const int r = dealer_turn(&world->dealer, &err);
        failed = failing_malloc_end();
        if (r < 0) {
            dealer_is_cut_off(&world->dealer);
            connect_anew(world);
        }
        WAIT_FOR(turn_until_in_hand(world, &heir, 20));
        assert_false(heir.disordered);
        dealer_dismiss(&world->dealer, &heir.enrolment);
        WAIT_FOR(dealer_turn(&world->dealer, &err) == 0);
        pg_run(world->pg.conn,
               "DELETE FROM gateway.deliveries; DELETE FROM gateway.events");
    }
}

/* Who has it is the holder's session. */
static long count_locks(struct world *world)
{
    return pg_number(world->pg.conn,
                     "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = "
                     "l.database WHERE l.locktype = 'advisory' AND d.datname = "
                     "current_database()");
}

static bool turn_until_the_lock_is_free(struct world *world)
{
    struct err err = {0};

    if (dealer_turn(&world->dealer, &err) < 0) {
        dealer_is_cut_off(&world->dealer);
        connect_anew(world);
    }
    return count_locks(world) == 0;
}

/* The n-th answer is lost, from the holder's coming to its going: the next one has everything, and
 * the last one's lock is not kept by a session that knows nothing of it. */
static void whatever_answer_is_lost_a_holder_has_all_and_leaves_no_lock(void **state)
{
    struct world *world = *state;
    struct heir heir;
    bool lost = true;

    for (unsigned nth = 1; lost; nth++) {
        publish(world, 20);
        come(world, &heir);
        lost_answers_begin(nth);
        WAIT_FOR(turn_until_in_hand(world, &heir, 20));
        assert_false(heir.disordered);
        dealer_dismiss(&world->dealer, &heir.enrolment);
        WAIT_FOR(turn_until_the_lock_is_free(world));
        lost = lost_answers_end();
        pg_run(world->pg.conn,
               "DELETE FROM gateway.deliveries; DELETE FROM gateway.events");
    }
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(however_many_leave_at_once_all_is_given_back),
        TEST(what_somebody_else_has_locked_is_given_back_when_it_is_free),
        TEST(a_holder_has_all_called_back_before_it_begins),
        TEST(a_group_that_somebody_else_has_is_asked_for_at_looks_alone),
        TEST(without_memory_who_leaves_is_no_obstacle),
        TEST(without_memory_a_holder_still_has_all_in_order),
        TEST(whatever_answer_is_lost_a_holder_has_all_and_leaves_no_lock),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
