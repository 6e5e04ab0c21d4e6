/* test_delivery.c - the id of a delivery, and what a group and its channel may be called. */
#include "delivery.h"

#include <errno.h>
#include <string.h>

#include "cmocka_all.h"

static int parse(const char *text, uint64_t *ret_seq, unsigned *ret_attempt)
{
    return delivery_id_parse(text, strlen(text), ret_seq, ret_attempt);
}

static void an_id_says_which_event_and_for_the_how_manyth_time(void **state)
{
    uint64_t seq = 0;
    unsigned attempt = 0;

    (void)state;
    assert_int_equal(parse("42.1.k3f90a2b7c1d", &seq, &attempt), 0);
    assert_int_equal(seq, 42);
    assert_int_equal(attempt, 1);
    assert_int_equal(parse("9223372036854775807.999999999.zzzzzzzzzzzz", &seq, &attempt),
                     0);
    assert_true(seq == INT64_MAX);
    assert_int_equal(attempt, 999999999);
}

static void the_longest_id_fits(void **state)
{
    (void)state;
    assert_true(strlen("9223372036854775807.999999999.zzzzzzzzzzzz") <=
                DELIVERY_ID_MAX_BYTES);
}

/* As it stands in a path, with more behind it. */
static void an_id_is_as_long_as_is_said(void **state)
{
    static const char path[] = "42.1.k3f90a2b7c1d/ack";
    uint64_t seq;
    unsigned attempt;

    (void)state;
    assert_int_equal(delivery_id_parse(path, strcspn(path, "/"), &seq, &attempt), 0);
    assert_int_equal(delivery_id_parse(path, strlen(path), &seq, &attempt), -EINVAL);
    assert_int_equal(delivery_id_parse(path, 16, &seq, &attempt), -EINVAL);
}

static void what_no_delivery_ever_had_is_none(void **state)
{
    static const char *const wrong[] = {
        "",
        "42",
        "42.",
        "42.1",
        "42.1.",
        ".1.k3f90a2b7c1d",
        "42..k3f90a2b7c1d",
        "42.1.k3f90a2b7c1",
        "42.1.k3f90a2b7c1dd",
        "42.1.K3F90A2B7C1D",
        "42.1.k3f90a2b7c1-",
        "042.1.k3f90a2b7c1d",
        "42.01.k3f90a2b7c1d",
        "-42.1.k3f90a2b7c1d",
        "42.1.k3f90.2b7c1d",
        "0.1.k3f90a2b7c1d",
        "42.0.k3f90a2b7c1d",
        "42.1000000000.k3f90a2b7c1d",
        "9223372036854775808.1.k3f90a2b7c1d",
        "42.99999999999999999999.k3f90a2b7c1d",
    };
    uint64_t seq;
    unsigned attempt;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        if (parse(wrong[i], &seq, &attempt) != -EINVAL)
            fail_msg("taken: %s", wrong[i]);
    }
}

static void a_groups_name_is_as_a_channels(void **state)
{
    char text[300];
    struct err err;

    (void)state;
    memset(text, 'x', sizeof(text));
    assert_int_equal(group_check_name(text, 255, &err), 0);
    assert_int_equal(group_check_name(text, 256, &err), -EINVAL);
    assert_int_equal(group_check_name("", 0, &err), -EINVAL);
    assert_int_equal(group_check_name("a\nb", 3, &err), -EINVAL);
    assert_int_equal(group_check_name("a*", 2, &err), -EINVAL);
    assert_int_equal(group_check_name("*a", 2, &err), 0);
    assert_int_equal(group_check_name("\xe2\x82\xac", 3, &err), 0);
    assert_int_equal(group_check_name("\xe2\x82", 2, &err), -EINVAL);
    assert_int_equal(group_check_channel(text, 250, &err), 0);
    assert_int_equal(group_check_channel(text, 251, &err), -EINVAL);
    assert_int_equal(group_check_channel("a*", 2, &err), -EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_id_says_which_event_and_for_the_how_manyth_time),
        cmocka_unit_test(the_longest_id_fits),
        cmocka_unit_test(an_id_is_as_long_as_is_said),
        cmocka_unit_test(what_no_delivery_ever_had_is_none),
        cmocka_unit_test(a_groups_name_is_as_a_channels),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
