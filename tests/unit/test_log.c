/* test_log.c - levelled lines to stderr. */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "thread.h"

/* What log lines go to meanwhile: a file in place of stderr, read back at the end. */
struct capture {
    int saved;
    FILE *file;
    char text[8192];
};

static void capture_begin(struct capture *capture)
{
    capture->file = tmpfile();
    assert_non_null(capture->file);
    capture->saved = dup(STDERR_FILENO);
    assert_true(dup2(fileno(capture->file), STDERR_FILENO) >= 0);
}

static void capture_end(struct capture *capture)
{
    dup2(capture->saved, STDERR_FILENO);
    close(capture->saved);
    rewind(capture->file);
    size_t len = fread(capture->text, 1, sizeof(capture->text) - 1, capture->file);
    capture->text[len] = '\0';
    fclose(capture->file);
}

static char last_line[256];
static enum log_level last_level;

static void remember(enum log_level level, const char *line)
{
    last_level = level;
    snprintf(last_line, sizeof(last_line), "%s", line);
}

static int begin(void **state)
{
    (void)state;
    log_set_sink(NULL);
    log_set_level(LOG_LEVEL_NOTICE);
    unsetenv("JOURNAL_STREAM");
    last_line[0] = '\0';
    return 0;
}

static void a_line_has_time_level_and_thread(void **state)
{
    struct capture capture;
    char level[16], thread[16];
    int rest = 0;

    (void)state;
    capture_begin(&capture);
    log_warning("it is %d", 5);
    capture_end(&capture);
    assert_int_equal(sscanf(capture.text,
                            "%*4d-%*2d-%*2dT%*2d:%*2d:%*d.%*3dZ %15s %15s %n", level,
                            thread, &rest),
                     2);
    assert_string_equal(level, "warning");
    assert_string_equal(thread, "main:");
    assert_string_equal(capture.text + rest, "it is 5\n");
}

static void log_from_thread(void *argument)
{
    (void)argument;
    log_notice("hello");
}

static void a_thread_is_named_in_its_lines(void **state)
{
    struct capture capture;
    struct thread thread = {0};

    (void)state;
    capture_begin(&capture);
    int code = thread_start(&thread, THREAD_SHARD, 3, log_from_thread, NULL, NULL);
    thread_join(&thread);
    capture_end(&capture);
    assert_int_equal(code, 0);
    assert_non_null(strstr(capture.text, " notice shard/3: hello\n"));
}

static void under_the_journal_a_line_begins_with_its_priority(void **state)
{
    struct capture capture;
    struct stat status;
    char stream[64];

    (void)state;
    capture_begin(&capture);
    fstat(STDERR_FILENO, &status);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    bool journal = log_stderr_is_journal();
    log_error("bad");
    log_notice("good");
    capture_end(&capture);
    assert_true(journal);
    assert_string_equal(capture.text, "<3>bad\n<5>good\n");
}

static void a_journal_that_stderr_no_longer_leads_to_is_none(void **state)
{
    static const char *const wrong[] = {"1:1", "", "x", "12", "7:"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        setenv("JOURNAL_STREAM", wrong[i], 1);
        assert_false(log_stderr_is_journal());
    }
}

static void what_is_below_the_level_is_not_written(void **state)
{
    (void)state;
    log_set_sink(remember);
    log_debug("one");
    assert_string_equal(last_line, "");
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("two");
    assert_string_equal(last_line, "two");
    assert_int_equal(last_level, LOG_LEVEL_DEBUG);
    log_set_level(LOG_LEVEL_ERROR);
    log_warning("three");
    assert_string_equal(last_line, "two");
    log_error("four");
    assert_string_equal(last_line, "four");
    assert_int_equal(last_level, LOG_LEVEL_ERROR);
}

static void a_strangers_text_cannot_forge_a_line(void **state)
{
    (void)state;
    log_set_sink(remember);
    log_notice("from %s", "x\n<3>forged\x1b[2J\r");
    assert_string_equal(last_line, "from x <3>forged [2J ");
}

static void a_very_long_line_is_cut(void **state)
{
    struct capture capture;
    char longer[5000];

    (void)state;
    memset(longer, 'y', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    capture_begin(&capture);
    log_error("%s", longer);
    capture_end(&capture);
    size_t len = strlen(capture.text);
    assert_uint_in_range(len, 2048, 2200);
    assert_string_equal(capture.text + len - 5, "y...\n");
}

static void logging_leaves_errno_alone(void **state)
{
    struct capture capture;

    (void)state;
    capture_begin(&capture);
    errno = EDOM;
    log_error("x");
    int after = errno;
    capture_end(&capture);
    assert_int_equal(after, EDOM);
}

static void level_words_are_read_and_written(void **state)
{
    static const char *const words[] = {"error", "warning", "notice", "debug"};
    enum log_level level = LOG_LEVEL_ERROR;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        assert_int_equal(log_level_parse(words[i], &level), 0);
        assert_string_equal(log_level_word(level), words[i]);
    }
    assert_int_equal(log_level_parse("Error", &level), -EINVAL);
    assert_int_equal(log_level_parse("", &level), -EINVAL);
    assert_int_equal(level, LOG_LEVEL_DEBUG);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_line_has_time_level_and_thread, begin),
        cmocka_unit_test_setup(a_thread_is_named_in_its_lines, begin),
        cmocka_unit_test_setup(under_the_journal_a_line_begins_with_its_priority, begin),
        cmocka_unit_test_setup(a_journal_that_stderr_no_longer_leads_to_is_none, begin),
        cmocka_unit_test_setup(what_is_below_the_level_is_not_written, begin),
        cmocka_unit_test_setup(a_strangers_text_cannot_forge_a_line, begin),
        cmocka_unit_test_setup(a_very_long_line_is_cut, begin),
        cmocka_unit_test_setup(logging_leaves_errno_alone, begin),
        cmocka_unit_test_setup(level_words_are_read_and_written, begin),
    };
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
