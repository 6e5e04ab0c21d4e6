/* test_tally.c - what has been rung for and has not come yet, in the order of the rings. */
#include "tally.h"

#include "cmocka_all.h"
#include "failing_malloc.h"

static int set_up(void **state)
{
    *state = tally_new();
    return *state == NULL;
}

static int tear_down(void **state)
{
    tally_free(*state);
    return 0;
}

static void what_was_rung_for_is_pending_until_it_comes(void **state)
{
    struct tally *tally = *state;

    assert_int_equal(tally_newest(tally), 0);
    assert_true(tally_settled(tally, 0));
    tally_add(tally, 7);
    tally_add(tally, 9);
    tally_add(tally, 8);
    assert_int_equal(tally_newest(tally), 3);
    tally_settle(tally, 9);
    assert_true(tally_settled(tally, 0));
    assert_false(tally_settled(tally, 1));
    tally_settle(tally, 6); /* never rung for */
    tally_settle(tally, 7);
    assert_true(tally_settled(tally, 2));
    assert_false(tally_settled(tally, 3));
    tally_settle(tally, 8);
    assert_true(tally_settled(tally, 3));
}

static void what_will_not_come_is_void(void **state)
{
    struct tally *tally = *state;

    for (uint64_t id = 1; id <= 5; id++)
        tally_add(tally, id);
    tally_settle(tally, 2);
    tally_void(tally, 3);
    assert_true(tally_settled(tally, 3));
    assert_false(tally_settled(tally, 4));
    tally_void(tally, 100);
    assert_true(tally_settled(tally, 100));
    tally_add(tally, 6);
    assert_false(tally_settled(tally, 6));
}

static void ids_in_one_bucket_and_the_same_twice_are_told_apart(void **state)
{
    struct tally *tally = *state;

    for (uint64_t n = 0; n < 4; n++)
        tally_add(tally, n << 40);
    tally_add(tally, UINT64_C(2) << 40);
    tally_settle(tally, 0);
    tally_settle(tally, UINT64_C(2) << 40); /* both */
    assert_true(tally_settled(tally, 1));
    assert_false(tally_settled(tally, 2));
    tally_settle(tally, UINT64_C(1) << 40);
    assert_true(tally_settled(tally, 3));
    tally_settle(tally, UINT64_C(3) << 40);
    assert_true(tally_settled(tally, 5));
}

static void an_id_above_all_that_were_rung_for_was_not(void **state)
{
    struct tally *tally = *state;

    assert_true(tally_reaches(tally, 0));
    assert_false(tally_reaches(tally, 1));
    tally_add(tally, 9);
    tally_add(tally, 8);
    assert_true(tally_reaches(tally, 9));
    assert_false(tally_reaches(tally, 10));
    tally_clear(tally);
    assert_false(tally_reaches(tally, 1));
    assert_true(tally_settled(tally, 2));
    tally_add(tally, 1);
    assert_int_equal(tally_newest(tally), 3); /* numbers go on */
}

static void too_many_make_the_oldest_be_forgotten(void **state)
{
    struct tally *tally = *state;

    for (uint64_t id = 1; id <= TALLY_MAX; id++)
        tally_add(tally, id);
    assert_false(tally_settled(tally, 1));
    tally_add(tally, TALLY_MAX + 1);
    assert_true(tally_settled(tally, 1));
    assert_false(tally_settled(tally, 2));
}

static void without_memory_it_is_forgotten_at_once(void **state)
{
    struct tally *tally = *state;

    failing_malloc_begin(1);
    tally_add(tally, 7);
    assert_true(failing_malloc_end());
    assert_int_equal(tally_newest(tally), 1);
    assert_true(tally_settled(tally, 1));
    assert_true(tally_reaches(tally, 7));
    tally_settle(tally, 7);
    failing_malloc_begin(1);
    assert_null(tally_new());
    assert_true(failing_malloc_end());
    tally_free(NULL);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_was_rung_for_is_pending_until_it_comes),
        TEST(what_will_not_come_is_void),
        TEST(ids_in_one_bucket_and_the_same_twice_are_told_apart),
        TEST(an_id_above_all_that_were_rung_for_was_not),
        TEST(too_many_make_the_oldest_be_forgotten),
        TEST(without_memory_it_is_forgotten_at_once),
    };
    return cmocka_run_group_tests_name("tally", tests, NULL, NULL);
}
