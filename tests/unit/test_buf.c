/* test_buf.c - bytes that grow. */
#include "buf.h"

#include <errno.h>
#include <string.h>

#include "cmocka_all.h"
#include "failing_malloc.h"

static void it_grows_and_stays_a_string(void **state)
{
    CLEANUP(buf_done) struct buf buf = BUF_EMPTY;

    (void)state;
    for (int i = 0; i < 10000; i++) {
        assert_int_equal(buf_add_format(&buf, "%d,", i % 10), 0);
        assert_int_equal(buf.data[buf.len], '\0');
    }
    assert_int_equal(buf.len, 20000);
    assert_int_equal(strlen(buf.data), 20000);
    assert_int_equal(buf_ok(&buf), 0);
}

static void bytes_may_be_nul_and_nothing_may_be_added(void **state)
{
    CLEANUP(buf_done) struct buf buf = BUF_EMPTY;

    (void)state;
    buf_add(&buf, NULL, 0);
    assert_string_equal(buf.data, "");
    buf_add(&buf, "a\0b", 3);
    buf_add_text(&buf, "");
    assert_int_equal(buf.len, 3);
    assert_memory_equal(buf.data, "a\0b", 4);
}

static void a_reset_keeps_the_memory(void **state)
{
    CLEANUP(buf_done) struct buf buf = BUF_EMPTY;

    (void)state;
    assert_int_equal(buf_reserve(&buf, 1000), 0);
    const char *data = buf.data;
    buf_add_text(&buf, "abc");
    buf_reset(&buf);
    assert_int_equal(buf.len, 0);
    assert_string_equal(buf.data, "");
    assert_ptr_equal(buf.data, data);
}

static void stolen_text_belongs_to_the_thief(void **state)
{
    struct buf buf = BUF_EMPTY;

    (void)state;
    buf_add_text(&buf, "mine");
    char *text = buf_steal(&buf);
    assert_string_equal(text, "mine");
    assert_null(buf.data);
    free(text);
    text = buf_steal(&buf);
    assert_string_equal(text, "");
    free(text);
}

static void a_failure_leaves_the_content_and_stays_until_the_reset(void **state)
{
    CLEANUP(buf_done) struct buf buf = BUF_EMPTY;
    char longer[500];

    (void)state;
    memset(longer, 'x', sizeof(longer));
    buf_add_text(&buf, "abc");
    failing_malloc_begin(1);
    assert_int_equal(buf_add(&buf, longer, sizeof(longer)), -ENOMEM);
    assert_true(failing_malloc_end());
    assert_string_equal(buf.data, "abc");
    assert_int_equal(buf_add_text(&buf, "d"), -ENOMEM);
    assert_int_equal(buf_add_format(&buf, "%d", 1), -ENOMEM);
    assert_string_equal(buf.data, "abc");
    assert_int_equal(buf_ok(&buf), -ENOMEM);
    buf_reset(&buf);
    assert_int_equal(buf_add(&buf, longer, sizeof(longer)), 0);
    assert_int_equal(buf_ok(&buf), 0);
}

static void what_failed_cannot_be_stolen(void **state)
{
    struct buf buf = BUF_EMPTY;

    (void)state;
    buf_add_text(&buf, "abc");
    assert_int_equal(buf_reserve(&buf, SIZE_MAX), -ENOMEM);
    assert_int_equal(buf_reserve(&buf, SIZE_MAX - 4), -ENOMEM);
    assert_null(buf_steal(&buf));
    assert_null(buf.data);
    assert_int_equal(buf_ok(&buf), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_grows_and_stays_a_string),
        cmocka_unit_test(bytes_may_be_nul_and_nothing_may_be_added),
        cmocka_unit_test(a_reset_keeps_the_memory),
        cmocka_unit_test(stolen_text_belongs_to_the_thief),
        cmocka_unit_test(a_failure_leaves_the_content_and_stays_until_the_reset),
        cmocka_unit_test(what_failed_cannot_be_stolen),
    };
    return cmocka_run_group_tests_name("buf", tests, NULL, NULL);
}
