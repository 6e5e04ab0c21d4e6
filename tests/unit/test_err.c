/* test_err.c - one line of text about a failure. */
#include "err.h"

#include <errno.h>
#include <string.h>

#include "cmocka_all.h"

static void the_code_comes_back_and_the_text_is_formatted(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(err_set(&err, -EIO, "could not read %s: %d", "x", 7), -EIO);
    assert_string_equal(err.text, "could not read x: 7");
}

static void nobody_has_to_listen(void **state)
{
    (void)state;
    assert_int_equal(err_set(NULL, -EIO, "text"), -EIO);
    assert_int_equal(err_prefix(NULL, -EIO, "text"), -EIO);
}

static void other_peoples_line_breaks_become_one_space(void **state)
{
    struct err err;

    (void)state;
    err_set(&err, -1, "connection failed:\n\tis the server running?\r\n\x1b[31m\x7f");
    assert_string_equal(err.text, "connection failed: is the server running? [31m");
    err_set(&err, -1, "\n\n");
    assert_string_equal(err.text, "");
}

static void a_text_that_does_not_fit_is_cut_and_says_so(void **state)
{
    struct err err;
    char longer[1000];

    (void)state;
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    err_set(&err, -1, "%s", longer);
    assert_int_equal(strlen(err.text), sizeof(err.text) - 1);
    assert_string_equal(err.text + sizeof(err.text) - 5, "x...");
}

static void no_character_is_cut_in_two(void **state)
{
    struct err err;
    char longer[1000] = "";

    (void)state;
    for (size_t shift = 0; shift < 4; shift++) {
        memset(longer, 'x', shift);
        for (size_t i = shift; i + 4 < sizeof(longer); i += 4)
            memcpy(longer + i, "\xf0\x9f\x98\x80", 5);
        err_set(&err, -1, "%s", longer);
        size_t len = strlen(err.text);
        assert_string_equal(err.text + len - 3, "...");
        assert_int_equal((len - 3 - shift) % 4, 0);
    }
}

static void the_old_text_may_be_part_of_the_new_one(void **state)
{
    struct err err;

    (void)state;
    err_set(&err, -1, "no such file");
    assert_int_equal(err_prefix(&err, -2, "line %d", 3), -2);
    assert_string_equal(err.text, "line 3: no such file");
    err_set(&err, -1, "(%s)", err.text);
    assert_string_equal(err.text, "(line 3: no such file)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_code_comes_back_and_the_text_is_formatted),
        cmocka_unit_test(nobody_has_to_listen),
        cmocka_unit_test(other_peoples_line_breaks_become_one_space),
        cmocka_unit_test(a_text_that_does_not_fit_is_cut_and_says_so),
        cmocka_unit_test(no_character_is_cut_in_two),
        cmocka_unit_test(the_old_text_may_be_part_of_the_new_one),
    };
    return cmocka_run_group_tests_name("err", tests, NULL, NULL);
}
