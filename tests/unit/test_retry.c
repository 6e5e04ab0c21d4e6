/* test_retry.c - when what failed is tried again. */
#include "retry.h"

#include "clock.h"
#include "cmocka_all.h"

static void pauses_grow_and_begin_anew(void **state)
{
    (void)state;
    struct retry retry = {0};
    struct err err = {.text = "away"};
    uint64_t now = 1000 * USEC_PER_SEC;
    uint64_t longest = 0;

    for (int i = 0; i < 12; i++) {
        clock_set(now);
        retry_down(&retry, "test", &err);
        assert_true(retry.due_usec > now);
        longest = MAX(longest, retry.due_usec - now);
        now = retry.due_usec;
    }
    assert_uint_in_range(longest, USEC_PER_SEC / 3, USEC_PER_SEC * 3 / 4);

    clock_set(now);
    retry_up(&retry, "test", "there"); /* broke at once: no end of the trouble */
    retry_down(&retry, "test", &err);
    assert_true(retry.due_usec > now + USEC_PER_SEC / 3);

    retry_up(&retry, "test", "there");
    now += 2 * USEC_PER_SEC;
    clock_set(now);
    retry_down(&retry, "test", &err);
    assert_int_equal(retry.due_usec, now);
    retry_down(&retry, "test", &err);
    assert_uint_in_range(retry.due_usec - now, 30000, 70000);
    clock_set(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pauses_grow_and_begin_anew),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
