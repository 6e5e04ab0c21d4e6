/* test_units.c - durations and sizes as people write them. */
#include "units.h"

#include <errno.h>

#include "cmocka_all.h"

static void durations_are_read(void **state)
{
    static const struct {
        const char *text;
        uint64_t usec;
    } cases[] = {{"0", 0},
                 {"0s", 0},
                 {"1ms", 1000},
                 {"200ms", 200000},
                 {"15s", 15000000},
                 {"15 s", 15000000},
                 {"2min", 120000000},
                 {"1h", 3600000000},
                 {"30d", 2592000000000},
                 {"007s", 7000000}};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        uint64_t usec = 1;
        assert_int_equal(units_parse_usec(cases[i].text, &usec), 0);
        assert_true(usec == cases[i].usec);
    }
}

static void sizes_and_counts_are_read(void **state)
{
    uint64_t value = 1;

    (void)state;
    assert_int_equal(units_parse_bytes("0", &value), 0);
    assert_int_equal(value, 0);
    assert_int_equal(units_parse_bytes("512", &value), 0);
    assert_int_equal(value, 512);
    assert_int_equal(units_parse_bytes("16KiB", &value), 0);
    assert_int_equal(value, 16384);
    assert_int_equal(units_parse_bytes("4\tMiB", &value), 0);
    assert_int_equal(value, 4194304);
    assert_int_equal(units_parse_bytes("2GiB", &value), 0);
    assert_true(value == 2147483648);
    assert_int_equal(units_parse_count("64", &value), 0);
    assert_int_equal(value, 64);
}

static void what_is_not_a_value_is_refused(void **state)
{
    static const char *const wrong[] = {
        "",    " ",   "s",  "-1s", "+1s", "1.5s", "1s1ms", " 1s", "1s ",
        "0x1", "1e3", "1S", "1kB", "1M",  "1sec", "1 s s", "one", "\xc2\xb9s"};
    uint64_t value = 77;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        assert_int_equal(units_parse_usec(wrong[i], &value), -EINVAL);
        assert_int_equal(units_parse_bytes(wrong[i], &value), -EINVAL);
        assert_int_equal(units_parse_count(wrong[i], &value), -EINVAL);
    }
    assert_int_equal(units_parse_usec("15", &value), -EINVAL); /* 15 of what? */
    assert_int_equal(units_parse_count("1KiB", &value), -EINVAL);
    assert_int_equal(units_parse_usec("1KiB", &value), -EINVAL);
    assert_int_equal(units_parse_bytes("1s", &value), -EINVAL);
    assert_int_equal(value, 77);
}

static void what_does_not_fit_is_out_of_range(void **state)
{
    uint64_t value = 77;

    (void)state;
    assert_int_equal(units_parse_count("18446744073709551615", &value), 0);
    assert_true(value == UINT64_MAX);
    assert_int_equal(units_parse_count("18446744073709551616", &value), -ERANGE);
    assert_int_equal(units_parse_usec("300000000d", &value), -ERANGE);
    assert_int_equal(units_parse_bytes("17179869184GiB", &value), -ERANGE);
}

static void what_is_written_reads_back(void **state)
{
    static const uint64_t usecs[] = {0, 1000, 15000000, 60000000, 90000000, 86400000000};
    static const char *const texts[] = {"0", "1ms", "15s", "1min", "90s", "1d"};
    char text[UNITS_TEXT_MAX];
    uint64_t value;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(usecs); i++) {
        units_format_usec(usecs[i], text);
        assert_string_equal(text, texts[i]);
        assert_int_equal(units_parse_usec(text, &value), 0);
        assert_true(value == usecs[i]);
    }
    for (uint64_t bytes = 1; bytes < UINT64_MAX / 3; bytes *= 3) {
        units_format_bytes(bytes << 10 >> 10, text);
        assert_int_equal(units_parse_bytes(text, &value), 0);
        assert_true(value == bytes << 10 >> 10);
    }
    units_format_bytes(64 * MIB, text);
    assert_string_equal(text, "64MiB");
    units_format_bytes(UINT64_MAX, text);
    assert_int_equal(units_parse_bytes(text, &value), 0);
    assert_true(value == UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(durations_are_read),
        cmocka_unit_test(sizes_and_counts_are_read),
        cmocka_unit_test(what_is_not_a_value_is_refused),
        cmocka_unit_test(what_does_not_fit_is_out_of_range),
        cmocka_unit_test(what_is_written_reads_back),
    };
    return cmocka_run_group_tests_name("units", tests, NULL, NULL);
}
