/* test_stats.c - counters, gauges and histograms. */
#include "stats.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "cmocka_all.h"
#include "failing_malloc.h"
#include "thread.h"

static int begin(void **state)
{
    *state = stats_new();
    return *state == NULL;
}

static int end(void **state)
{
    stats_free(*state);
    return 0;
}

static void assert_has_line(const struct buf *text, const char *line)
{
    const char *found = strstr(text->data, line);
    size_t len = strlen(line);

    while (found != NULL &&
           ((found != text->data && found[-1] != '\n') || found[len] != '\n'))
        found = strstr(found + 1, line);
    if (found == NULL)
        fail_msg("no line '%s' in:\n%s", line, text->data);
}

static size_t count_of(const char *text, const char *word)
{
    size_t count = 0;

    for (; (text = strstr(text, word)) != NULL; text++)
        count++;
    return count;
}

static void counters_and_gauges_are_rendered_with_what_was_added(void **state)
{
    struct stats *stats = *state;
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    stats_add(stats, STATS_EVENTS_RECEIVED, 3);
    stats_add(stats, STATS_EVENTS_RECEIVED, 4);
    stats_gauge_set(stats, STATS_HEAD_SEQ, 1LL << 40);
    stats_gauge_add(stats, STATS_STREAMS, 5);
    stats_gauge_add(stats, STATS_STREAMS, -2);
    stats_render(stats, &text);
    assert_int_equal(buf_ok(&text), 0);
    assert_int_equal(stats_counter_value(stats, STATS_EVENTS_RECEIVED), 7);
    assert_int_equal(stats_gauge_value(stats, STATS_STREAMS), 3);
    assert_has_line(&text, "pgsse_events_received_total 7");
    assert_has_line(&text, "pgsse_head_seq 1099511627776");
    assert_has_line(&text, "pgsse_streams 3");
    assert_has_line(&text, "pgsse_streams_opened_total 0");
}

static void responses_are_one_family_with_a_code(void **state)
{
    struct stats *stats = *state;
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    stats_add(stats, STATS_RESPONSES_4XX, 2);
    stats_render(stats, &text);
    assert_has_line(&text, "pgsse_http_responses_total{code=\"2xx\"} 0");
    assert_has_line(&text, "pgsse_http_responses_total{code=\"4xx\"} 2");
    assert_int_equal(count_of(text.data, "# TYPE pgsse_http_responses_total counter\n"),
                     1);
    assert_int_equal(count_of(text.data, "# HELP pgsse_http_responses_total "), 1);
}

static void a_histogram_counts_upwards_in_seconds(void **state)
{
    struct stats *stats = *state;
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    stats_observe_usec(stats, STATS_PUBLISH_SECONDS, 0);
    stats_observe_usec(stats, STATS_PUBLISH_SECONDS, 1000); /* a bound belongs below it */
    stats_observe_usec(stats, STATS_PUBLISH_SECONDS, 1001);
    stats_observe_usec(stats, STATS_PUBLISH_SECONDS, 9000000000);
    stats_render(stats, &text);
    assert_has_line(&text, "# TYPE pgsse_publish_duration_seconds histogram");
    assert_has_line(&text, "pgsse_publish_duration_seconds_bucket{le=\"0.0005\"} 1");
    assert_has_line(&text, "pgsse_publish_duration_seconds_bucket{le=\"0.001\"} 2");
    assert_has_line(&text, "pgsse_publish_duration_seconds_bucket{le=\"0.0025\"} 3");
    assert_has_line(&text, "pgsse_publish_duration_seconds_bucket{le=\"3600\"} 3");
    assert_has_line(&text, "pgsse_publish_duration_seconds_bucket{le=\"+Inf\"} 4");
    assert_has_line(&text, "pgsse_publish_duration_seconds_sum 9000.002001");
    assert_has_line(&text, "pgsse_publish_duration_seconds_count 4");
}

static void every_figure_has_a_name_and_a_help(void **state)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    stats_render(*state, &text);
    assert_int_equal(count_of(text.data, "(null)"), 0);
    assert_int_equal(count_of(text.data, "# HELP "), count_of(text.data, "# TYPE "));
    /* The three other response classes share a head, and the two other reasons of a gap;
     * build_info may be there as well. */
    size_t heads =
        STATS_COUNTER_COUNT - 3 - 2 + STATS_GAUGE_COUNT + STATS_HISTOGRAM_COUNT;
    assert_uint_in_range(count_of(text.data, "# TYPE "), heads, heads + 1);
    assert_int_equal(text.data[text.len - 1], '\n');
}

/* Not skipped quietly: without promtool the rules it checks are checked by hand here. */
static void promtool_has_nothing_to_say(void **state)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    stats_render(*state, &text);
    if (system("command -v promtool >/dev/null 2>&1") != 0) {
        for (const char *line = strstr(text.data, "# TYPE "); line != NULL;
             line = strstr(line + 1, "# TYPE ")) {
            char name[128], type[32];
            assert_int_equal(sscanf(line, "# TYPE %127s %31s", name, type), 2);
            bool total =
                strlen(name) > 6 && strcmp(name + strlen(name) - 6, "_total") == 0;
            assert_int_equal(total, strcmp(type, "counter") == 0);
        }
        return;
    }
    FILE *tool = popen("promtool check metrics 1>&2", "w");
    assert_non_null(tool);
    fwrite(text.data, 1, text.len, tool);
    assert_int_equal(pclose(tool), 0);
}

static void add_many(void *argument)
{
    struct stats *stats = argument;

    for (int i = 0; i < 20000; i++) {
        stats_add(stats, STATS_EVENTS_DELIVERED, 2);
        stats_gauge_add(stats, STATS_CONNECTIONS, i % 2 == 0 ? 1 : -1);
        stats_observe_usec(stats, STATS_EVENT_AGE_SECONDS, (uint64_t)i);
    }
}

static void nothing_is_lost_when_many_add_at_once(void **state)
{
    struct stats *stats = *state;
    struct thread threads[4] = {0};
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        assert_int_equal(
            thread_start(&threads[i], THREAD_SHARD, i, add_many, stats, NULL), 0);
    stats_render(stats, &text); /* while they do */
    for (unsigned i = 0; i < ARRAY_SIZE(threads); i++)
        thread_join(&threads[i]);
    assert_int_equal(stats_counter_value(stats, STATS_EVENTS_DELIVERED), 160000);
    assert_int_equal(stats_gauge_value(stats, STATS_CONNECTIONS), 0);
    buf_reset(&text);
    stats_render(stats, &text);
    assert_has_line(&text, "pgsse_event_age_seconds_count 80000");
}

static void without_memory_it_says_so(void **state)
{
    (void)state;
    failing_malloc_begin(1);
    assert_null(stats_new());
    failing_malloc_end();
    for (unsigned n = 1;; n++) {
        CLEANUP(buf_done) struct buf text = BUF_EMPTY;
        failing_malloc_begin(n);
        stats_render(*state, &text);
        if (!failing_malloc_end()) {
            assert_int_equal(buf_ok(&text), 0);
            break;
        }
        assert_true(buf_ok(&text) < 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(
            counters_and_gauges_are_rendered_with_what_was_added, begin, end),
        cmocka_unit_test_setup_teardown(responses_are_one_family_with_a_code, begin, end),
        cmocka_unit_test_setup_teardown(a_histogram_counts_upwards_in_seconds, begin,
                                        end),
        cmocka_unit_test_setup_teardown(every_figure_has_a_name_and_a_help, begin, end),
        cmocka_unit_test_setup_teardown(promtool_has_nothing_to_say, begin, end),
        cmocka_unit_test_setup_teardown(nothing_is_lost_when_many_add_at_once, begin,
                                        end),
        cmocka_unit_test_setup_teardown(without_memory_it_says_so, begin, end),
    };
    return cmocka_run_group_tests_name("stats", tests, NULL, NULL);
}
