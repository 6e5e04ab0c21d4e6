/* test_tour.c - a letter that goes to every shard, one after the other, and home again. */
#include "tour.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>

#include "cmocka_all.h"

#include "failing_malloc.h"

#define SHARDS 4

static struct mailbox boxes[SHARDS];
static char places[SHARDS]; /* stand for the fan-outs */

struct walk {
    struct tour tour;
    unsigned visited[SHARDS + 1];
    unsigned count;
    bool home;
};

static void note_visit(struct tour *tour, struct fanout *fanout)
{
    struct walk *walk = CONTAINER_OF(tour, struct walk, tour);

    assert_uint_in_range(walk->count, 0, SHARDS - 1);
    walk->visited[walk->count++] = (unsigned)((char *)fanout - places);
}

static void note_home(struct tour *tour)
{
    CONTAINER_OF(tour, struct walk, tour)->home = true;
}

static struct tours *make_tours(unsigned joined)
{
    struct tours *tours = tours_new(SHARDS);
    struct err err;

    assert_non_null(tours);
    for (unsigned i = 0; i < SHARDS; i++) {
        assert_int_equal(mailbox_init(&boxes[i], &err), 0);
        tours_set(tours, i, &boxes[i], (struct fanout *)(void *)&places[i]);
    }
    for (unsigned i = 0; i < joined; i++)
        tours_join(tours, i);
    return tours;
}

static void free_tours(struct tours *tours)
{
    for (unsigned i = 0; i < SHARDS; i++)
        mailbox_done(&boxes[i]);
    tours_free(tours);
}

/* Which box has a letter; they are delivered one by one. */
static unsigned deliver_next(void)
{
    for (unsigned i = 0; i < SHARDS; i++) {
        if (mailbox_deliver(&boxes[i]) > 0)
            return i;
    }
    fail_msg("the letter is nowhere");
    return 0;
}

static void every_shard_is_visited_once_and_the_first_is_home(void **state)
{
    (void)state;
    for (unsigned first = 0; first < SHARDS; first++) {
        struct tours *tours = make_tours(SHARDS);
        struct walk walk = {.tour = {.visit = note_visit, .home = note_home}};

        assert_int_equal(tour_begin(&walk.tour, tours, first), 0);
        assert_int_equal(walk.count, 0);
        for (unsigned i = 0; i < SHARDS; i++) {
            assert_false(walk.home);
            assert_int_equal(deliver_next(), (first + i) % SHARDS);
            assert_int_equal(walk.count, i + 1);
            assert_int_equal(walk.visited[i], (first + i) % SHARDS);
        }
        assert_int_equal(deliver_next(), first);
        assert_true(walk.home);
        assert_int_equal(walk.count, SHARDS);
        tours_close(tours);
        free_tours(tours);
    }
}

/* No thread would ever take the letter out of the others' boxes. */
static void only_shards_that_have_a_thread_are_visited(void **state)
{
    struct tours *tours = make_tours(2);
    struct walk walk = {.tour = {.visit = note_visit, .home = note_home}};

    (void)state;
    assert_int_equal(tour_begin(&walk.tour, tours, 1), 0);
    tours_join(tours, 2); /* too late for this one */
    assert_int_equal(deliver_next(), 1);
    assert_int_equal(deliver_next(), 0);
    assert_int_equal(deliver_next(), 1);
    assert_true(walk.home);
    assert_int_equal(walk.count, 2);
    tours_close(tours);
    free_tours(tours);
}

static void *deliver_until_home(void *argument)
{
    struct walk *walk = argument;

    while (!walk->home)
        (void)deliver_next();
    return NULL;
}

static void closing_waits_for_those_under_way_and_lets_no_more_begin(void **state)
{
    struct tours *tours = make_tours(SHARDS);
    struct walk walk = {.tour = {.visit = note_visit, .home = note_home}};
    struct walk late = walk;
    pthread_t thread;

    (void)state;
    assert_int_equal(tour_begin(&walk.tour, tours, 2), 0);
    assert_int_equal(pthread_create(&thread, NULL, deliver_until_home, &walk), 0);
    tours_close(tours);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(walk.home);
    assert_int_equal(walk.count, SHARDS);
    assert_int_equal(tour_begin(&late.tour, tours, 2), -ESHUTDOWN);
    for (unsigned i = 0; i < SHARDS; i++)
        assert_int_equal(mailbox_deliver(&boxes[i]), 0);
    free_tours(tours);
}

static void without_memory_there_are_none(void **state)
{
    (void)state;
    failing_malloc_begin(1);
    assert_null(tours_new(SHARDS));
    assert_true(failing_malloc_end());
    tours_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_shard_is_visited_once_and_the_first_is_home),
        cmocka_unit_test(only_shards_that_have_a_thread_are_visited),
        cmocka_unit_test(closing_waits_for_those_under_way_and_lets_no_more_begin),
        cmocka_unit_test(without_memory_there_are_none),
    };
    return cmocka_run_group_tests_name("tour", tests, NULL, NULL);
}
