/* test_clock.c - monotonic time in microseconds. */
#include "clock.h"

#include <limits.h>

#include "cmocka_all.h"

static int real_clock(void **state)
{
    (void)state;
    clock_set(0);
    return 0;
}

static void the_clock_never_goes_back(void **state)
{
    uint64_t last = clock_usec();

    (void)state;
    for (int i = 0; i < 10000; i++) {
        uint64_t now = clock_usec();
        assert_true(now >= last);
        last = now;
    }
    assert_true(last > 0);
}

static void a_test_sets_the_clock_and_gives_it_back(void **state)
{
    (void)state;
    uint64_t before = clock_usec();
    clock_set(42);
    assert_int_equal(clock_usec(), 42);
    clock_set(0);
    assert_true(clock_usec() >= before);
}

static void a_timeout_is_rounded_up_so_that_nobody_wakes_early(void **state)
{
    (void)state;
    clock_set(5000000);
    assert_int_equal(clock_timeout_msec(0), 0);
    assert_int_equal(clock_timeout_msec(4999999), 0);
    assert_int_equal(clock_timeout_msec(5000000), 0);
    assert_int_equal(clock_timeout_msec(5000001), 1);
    assert_int_equal(clock_timeout_msec(5001000), 1);
    assert_int_equal(clock_timeout_msec(5001001), 2);
    assert_int_equal(clock_timeout_msec(CLOCK_NEVER), -1);
    assert_int_equal(clock_timeout_msec(CLOCK_NEVER - 1), INT_MAX);
}

static void jitter_is_within_a_quarter_and_spread(void **state)
{
    unsigned quarters[4] = {0};

    (void)state;
    for (int i = 0; i < 4000; i++) {
        uint64_t value = clock_jitter(1000000);
        assert_uint_in_range(value, 750000, 1249999);
        quarters[(value - 750000) / 125000]++;
    }
    for (size_t i = 0; i < ARRAY_SIZE(quarters); i++)
        assert_uint_in_range(quarters[i], 800, 1200);
}

static void jitter_of_little_or_never_is_itself(void **state)
{
    (void)state;
    assert_int_equal(clock_jitter(0), 0);
    assert_int_equal(clock_jitter(1), 1);
    assert_true(clock_jitter(CLOCK_NEVER) == CLOCK_NEVER);
    for (uint64_t usec = 2; usec < 20; usec++)
        for (int i = 0; i < 50; i++) {
            uint64_t value = clock_jitter(usec);
            assert_true(value * 4 >= usec * 3 && value * 4 < usec * 5);
        }
}

static void a_random_value_stays_below_its_bound(void **state)
{
    unsigned seen = 0;

    (void)state;
    assert_int_equal(clock_random(0), 0);
    assert_int_equal(clock_random(1), 0);
    for (int i = 0; i < 500; i++) {
        uint64_t value = clock_random(5);
        assert_uint_in_range(value, 0, 4);
        seen |= 1u << value;
    }
    assert_int_equal(seen, 31);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(the_clock_never_goes_back, real_clock),
        cmocka_unit_test_setup(a_test_sets_the_clock_and_gives_it_back, real_clock),
        cmocka_unit_test_setup(a_timeout_is_rounded_up_so_that_nobody_wakes_early,
                               real_clock),
        cmocka_unit_test_setup(jitter_is_within_a_quarter_and_spread, real_clock),
        cmocka_unit_test_setup(a_random_value_stays_below_its_bound, real_clock),
        cmocka_unit_test_setup(jitter_of_little_or_never_is_itself, real_clock),
    };
    return cmocka_run_group_tests_name("clock", tests, NULL, NULL);
}
