/* test_replay_sharing.c - many who ask for pages at the same time, and who take it back. */
#include "replay_world.h"

#include <string.h>

/* -- sharing -- */

static void who_asks_for_the_same_shares_the_query(void **state)
{
    enum { ASKERS = 300 };
    struct world *world = *state;
    struct question first, questions[ASKERS], others[3];

    publish(world, 400, "text 'a'", "text '1'");
    start(world);
    hold(world);
    ask(world, &first, 0, "x");
    wait_for_held(world, 1);
    for (int i = 0; i < ASKERS; i++)
        ask(world, &questions[i], (uint64_t)i, "a");
    ask(world, &others[0], 0, "b");
    ask(world, &others[1], 0, "a\nb");
    ask(world, &others[2], 0, "a*");
    release(world);
    replay_page_free(wait_for(&first));
    for (int i = 0; i < ASKERS; i++) {
        struct replay_page *page = wait_for(&questions[i]);

        assert_ptr_equal(page, questions[0].request.page);
        assert_int_equal(page->frames[i]->seq, i + 1);
    }
    for (int i = 0; i < ASKERS; i++)
        replay_page_free(questions[i].request.page);
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        replay_page_free(wait_for(&others[i]));
    assert_int_equal(pages(world), 5);
}

/* Many who ride from where they are to the end, each from page to page. */
struct rider {
    struct question question;
    struct world *world;
    uint64_t at;
    unsigned events; /* seen */
    unsigned stops;
    bool wrong;
    _Atomic bool arrived;
    struct waiter *waiter; /* or NULL */
};

/* One who asks at the low end, while the rider rides on and on from stop to stop. */
struct waiter {
    struct question question;
    struct rider *rider;
    unsigned stops; /* of the rider until the answer came */
};

static void waiter_answered(struct question *question)
{
    struct waiter *waiter = question->owner;

    clock_set(0);
    waiter->stops = waiter->rider->stops;
    atomic_fetch_add_explicit(&question->answers, 1, memory_order_release);
}

/* The rider's stops are the waiter's time: he asks at the second, in a clock that stands
 * still from there on, and at the fifth he has waited for a second. */
static void wait_at_stop(struct waiter *waiter, unsigned stop)
{
    struct world *world = waiter->rider->world;

    if (stop == 2) {
        clock_set(clock_usec());
        make(&waiter->question, 0);
        waiter->question.answered = waiter_answered;
        waiter->question.owner = waiter;
        if (try_ask(world->replay, &waiter->question, "*") < 0)
            waiter->rider->wrong = true;
    }
    if (stop == 5)
        clock_set(clock_usec() + USEC_PER_SEC);
}

static void ride_on(struct question *question)
{
    struct rider *rider = question->owner;
    struct replay_page *page = question->request.page;
    uint64_t at = rider->at;

    rider->stops++;
    if (rider->waiter != NULL)
        wait_at_stop(rider->waiter, rider->stops);
    for (size_t i = 0; i < page->count; i++) {
        if (page->frames[i]->seq <= rider->at)
            continue;
        rider->wrong = rider->wrong || page->frames[i]->seq != at + 1;
        at = page->frames[i]->seq;
        rider->events++;
    }
    rider->wrong = rider->wrong || page->after > rider->at || at != page->through;
    rider->at = at;
    const bool arrived = page->through >= page->newest || rider->wrong;
    replay_page_free(page);
    if (!arrived) {
        rider->question.request.after = at;
        if (try_ask(rider->world->replay, &rider->question, "*") == 0)
            return;
    }
    atomic_store_explicit(&rider->arrived, true, memory_order_release);
}

static void begin_ride(struct world *world, struct rider *rider, uint64_t after,
                       struct waiter *waiter)
{
    memset(rider, 0, sizeof(*rider));
    rider->world = world;
    rider->at = after;
    rider->waiter = waiter;
    make(&rider->question, after);
    rider->question.answered = ride_on;
    rider->question.owner = rider;
    assert_int_equal(try_ask(world->replay, &rider->question, "*"), 0);
}

static bool has_arrived(struct rider *rider)
{
    return atomic_load_explicit(&rider->arrived, memory_order_acquire);
}

static void many_ride_over_a_stretch_and_it_is_read_once(void **state)
{
    enum { RIDERS = 500, EVENTS = 10000 };
    struct world *world = *state;
    static struct rider riders[RIDERS];

    publish(world, EVENTS, "text 'a'", "text '1'");
    start_with(world, world->pg.dsn, 2, 64 * MIB);
    hold(world); /* until all stand there */
    for (int i = 0; i < RIDERS; i++)
        begin_ride(world, &riders[i], (uint64_t)(i * 37 % EVENTS), NULL);
    release(world);
    for (int i = 0; i < RIDERS; i++) {
        WAIT_FOR(has_arrived(&riders[i]));
        assert_false(riders[i].wrong);
        assert_int_equal(riders[i].events, EVENTS - i * 37 % EVENTS);
    }
    /* 20 pages are all there is; each for itself would have needed some 5 000. */
    print_message("%d riders, %llu pages\n", RIDERS, (unsigned long long)pages(world));
    assert_uint_in_range(pages(world), 20, 200);
}

static void who_waits_at_the_low_end_has_his_turn(void **state)
{
    enum { EVENTS = 5010 }; /* ten stops */
    struct world *world = *state;
    struct rider rider;
    struct waiter waiter = {.rider = &rider};

    publish(world, EVENTS, "text 'a'", "text '1'");
    start(world);
    begin_ride(world, &rider, 10, &waiter);
    WAIT_FOR(has_arrived(&rider));
    struct replay_page *page = wait_for(&waiter.question);
    assert_int_equal(page->after, 0);
    replay_page_free(page);
    assert_false(rider.wrong);
    assert_int_equal(rider.stops, 10);
    /* Not while the lift was on its way up; but not only when it was there. */
    assert_int_equal(waiter.stops, 5);
}

/* -- taking back -- */

static void a_question_can_be_taken_back_at_any_time(void **state)
{
    struct world *world = *state;
    struct question first, waiting, asked;

    publish(world, 10, "text 'a'", "text '1'");
    start(world);
    hold(world);
    ask(world, &first, 0, "x");
    wait_for_held(world, 1);
    ask(world, &waiting, 0, "a"); /* its query has not begun */
    ask(world, &asked, 5, "a");
    assert_true(replay_cancel(world->replay, &waiting.request));
    assert_true(replay_cancel(world->replay, &first.request)); /* is under way */
    release(world);
    struct replay_page *page = wait_for(&asked);
    assert_false(replay_cancel(world->replay, &asked.request)); /* has been answered */
    replay_page_free(page);
    /* Nobody stands there any more: their queues are gone, and are made anew. */
    replay_page_free(fetch(world, 0, "x"));
    replay_page_free(fetch(world, 0, "a"));
    assert_int_equal(answers(&first) + answers(&waiting), 0);

    hold(world);
    for (int i = 0; i < 50; i++) {
        ask(world, &waiting, (uint64_t)i, i % 2 == 0 ? "c" : "b");
        assert_true(replay_cancel(world->replay, &waiting.request));
    }
    release(world);
    replay_page_free(fetch(world, 3, "b"));
    assert_int_equal(answers(&waiting), 0);
}

/* Lets the page go as it comes: 2 answers mean that there was none. */
static void let_go(struct question *question)
{
    const unsigned count = question->request.page != NULL ? 1 : 2;

    replay_page_free(question->request.page);
    atomic_fetch_add_explicit(&question->answers, count, memory_order_release);
}

/* Threads that ask and take back, against two readers. */
struct changeable {
    pthread_t thread;
    struct world *world;
    unsigned seed, asked, cancelled;
    bool wrong;
};

static void *change_mind(void *argument)
{
    struct changeable *changeable = argument;
    struct replay *replay = changeable->world->replay;
    const uint64_t end = clock_usec() + USEC_PER_SEC;

    while (clock_usec() < end && !changeable->wrong) {
        static const char *const patterns[] = {"a", "*", "b", "a\nb"};
        struct question questions[4];
        bool accepted[4];

        for (int i = 0; i < 4; i++) {
            make(&questions[i], (uint64_t)rand_r(&changeable->seed) % 3000);
            questions[i].answered = let_go;
            accepted[i] = try_ask(replay, &questions[i],
                                  patterns[rand_r(&changeable->seed) % 4]) == 0;
            changeable->asked += accepted[i];
        }
        usleep((unsigned)rand_r(&changeable->seed) % 3000);
        for (int i = 0; i < 4; i++) {
            if (!accepted[i])
                continue;
            if (rand_r(&changeable->seed) % 2 == 0 &&
                replay_cancel(replay, &questions[i].request)) {
                changeable->cancelled++;
                continue;
            }
            const uint64_t give_up = clock_usec() + 20 * USEC_PER_SEC;
            while (answers(&questions[i]) == 0 && clock_usec() < give_up)
                usleep(100);
            if (answers(&questions[i]) != 1) {
                changeable->wrong = true;
                return NULL;
            }
        }
    }
    return NULL;
}

static void who_changes_his_mind_disturbs_nobody(void **state)
{
    enum { THREADS = 4 };
    struct world *world = *state;
    struct changeable changeables[THREADS];

    publish(world, 3000, "CASE WHEN i % 3 = 0 THEN 'a' ELSE 'b' END", "text '1'");
    start_with(world, world->pg.dsn, 2, 200000);
    for (unsigned i = 0; i < THREADS; i++) {
        changeables[i] = (struct changeable){.world = world, .seed = i + 1};
        assert_int_equal(
            pthread_create(&changeables[i].thread, NULL, change_mind, &changeables[i]),
            0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(changeables[i].thread, NULL);
        assert_false(changeables[i].wrong);
        assert_true(changeables[i].asked > 0);
    }
}

/* -- limits -- */

static void pages_that_nobody_lets_go_hold_up_the_next(void **state)
{
    struct world *world = *state;
    struct question question;

    publish(world, 40, "text 'a'", NOISE(640));
    start_with(world, world->pg.dsn, 2, 300000);
    struct replay_page *first = fetch(world, 0, "a");
    struct replay_page *second = fetch(world, 12, "a"); /* the last that goes over it */
    ask(world, &question, 0, "*");
    usleep(300000);
    assert_int_equal(answers(&question), 0);
    assert_int_equal(pages(world), 2);
    replay_page_free(first);
    replay_page_free(wait_for(&question));
    replay_page_free(second);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(who_asks_for_the_same_shares_the_query),
        WITH_PG(many_ride_over_a_stretch_and_it_is_read_once),
        WITH_PG(who_waits_at_the_low_end_has_his_turn),
        WITH_PG(a_question_can_be_taken_back_at_any_time),
        WITH_PG(who_changes_his_mind_disturbs_nobody),
        WITH_PG(pages_that_nobody_lets_go_hold_up_the_next),
    };
    return cmocka_run_group_tests_name("replay, shared", tests, NULL, NULL);
}
