/* test_relay.c - who wants which channel, and what is listened to in a real PostgreSQL. */
#include "relay.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "failing_malloc.h"
#include "pg.h"

struct world {
    struct pg pg;
    struct stats *stats;
    struct database *database;
    struct relay *relay;
    struct relay_watcher watcher;
    char heard[64][64];
    int heard_count;
    int stood;
    uint64_t now_usec;
};

static struct world world;

static void on_notified(void *argument, const PGnotify *notification, bool own)
{
    (void)argument;
    (void)own;
    if (world.heard_count < (int)ARRAY_SIZE(world.heard))
        (void)snprintf(world.heard[world.heard_count], sizeof(world.heard[0]), "%s",
                       notification->relname);
    world.heard_count++;
}

static void on_stood(struct relay_watcher *watcher)
{
    (void)watcher;
    world.stood++;
}

static struct relay *make(const char *patterns, size_t channels_max)
{
    return relay_new(&(struct relay_settings){.patterns = patterns,
                                              .channels_max = channels_max,
                                              .grace_usec = 10 * USEC_PER_SEC,
                                              .stats = world.stats});
}

static void reconnect(bool missed)
{
    struct err err = {0};

    assert_int_equal(
        database_connect(world.database, clock_usec() + 5 * USEC_PER_SEC, &err), 0);
    assert_int_equal(relay_restore(world.relay, world.database, missed, &err), 0);
}

static int set_up(void **state)
{
    (void)state;
    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, false);
    world.stats = stats_new();
    world.database = database_new(&(struct database_settings){
        .dsn = world.pg.dsn, .door = "test", .stop_fd = -1, .notified = on_notified});
    world.relay = make("chat, app_*", 100);
    world.watcher.stood = on_stood;
    relay_watch(world.relay, &world.watcher);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    clock_set(0);
    relay_free(world.relay);
    database_free(world.database);
    stats_free(world.stats);
    pg_close(&world.pg);
    return 0;
}

static struct relay_channel *join(const char *name)
{
    struct relay_channel *channel = NULL;

    assert_int_equal(relay_join(world.relay, name, strlen(name), &channel), 0);
    assert_string_equal(relay_name(channel), name);
    return channel;
}

static int tend(void)
{
    struct err err = {0};
    const int result = relay_tend(world.relay, world.database, &err);

    if (result < 0)
        fail_msg("%s", err.text);
    return result;
}

static int64_t listened(void)
{
    return stats_gauge_value(world.stats, STATS_RELAY_CHANNELS);
}

/* What of these the session hears, in order. */
static void notify_and_expect(const char *sql, const char *expected)
{
    char heard[512] = "";
    struct err err = {0};

    world.heard_count = 0;
    pg_run(world.pg.conn, sql);
    /* What was committed before has come with the second answer. */
    for (int i = 0; i < 2; i++)
        assert_int_equal(database_run(world.database, "SELECT 1",
                                      clock_usec() + 5 * USEC_PER_SEC, NULL, &err),
                         0);
    for (int i = 0; i < world.heard_count; i++)
        (void)snprintf(heard + strlen(heard), sizeof(heard) - strlen(heard), "%s%s",
                       i > 0 ? " " : "", world.heard[i]);
    assert_string_equal(heard, expected);
}

#define APP_63                                                                           \
    "app_"                                                                               \
    "12345678901234567890123456789012345678901234567890123456789"

static void patterns_allow_names_and_prefixes(void **state)
{
    static const struct {
        const char *name;
        bool allowed;
    } cases[] = {{"chat", true},  {"cha", false},     {"chatx", false}, {"app_", true},
                 {"app_1", true}, {"app", false},     {"App_1", false}, {"", false},
                 {APP_63, true},  {APP_63 "x", false}};
    struct relay *all = make(" * ", 1), *none = make("", 1);

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const size_t len = strlen(cases[i].name);

        assert_int_equal(relay_allows(world.relay, cases[i].name, len), cases[i].allowed);
        assert_int_equal(relay_allows(all, cases[i].name, len), len > 0 && len <= 63);
        assert_false(relay_allows(none, cases[i].name, len));
        assert_false(relay_allows(NULL, cases[i].name, len));
    }
    assert_false(relay_allows(all, "gateway_events", 14));
    assert_true(relay_allows(all, "gateway", 7));
    relay_free(all);
    relay_free(none);
}

static void bad_patterns_are_told(void **state)
{
    static const struct {
        const char *patterns, *reason;
    } cases[] = {{"", NULL},          {"a", NULL},
                 {"*", NULL},         {" a b , c* ,d", NULL},
                 {",", "empty"},      {"a,", "empty"},
                 {"\xff", "UTF-8"},   {"gateway_wake", "the gateway's own"},
                 {"gateway_*", "own"}};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct err err = {0};

        assert_int_equal(relay_check(cases[i].patterns, &err),
                         cases[i].reason == NULL ? 0 : -EINVAL);
        if (cases[i].reason != NULL)
            assert_non_null(strstr(err.text, cases[i].reason));
    }
}

static void what_is_wanted_is_listened_to_until_the_grace_time_is_over(void **state)
{
    (void)state;
    clock_set(1000 * USEC_PER_SEC);
    reconnect(false);
    assert_int_equal(tend(), 0);
    assert_false(relay_listens(world.relay));
    struct relay_channel *first = join("chat"), *second = join("chat");
    assert_ptr_equal(first, second);
    assert_false(relay_stands(first));
    assert_int_equal(tend(), 1);
    assert_true(relay_stands(first));
    assert_int_equal(world.stood, 1);
    assert_int_equal(tend(), 0);
    notify_and_expect("NOTIFY chat; NOTIFY app_1", "chat");

    relay_leave(world.relay, first);
    assert_true(relay_wanted(world.relay, "chat"));
    assert_int_equal(relay_due(world.relay), CLOCK_NEVER);
    relay_leave(world.relay, second);
    assert_false(relay_wanted(world.relay, "chat"));
    assert_true(relay_due(world.relay) < CLOCK_NEVER);
    clock_set(1009 * USEC_PER_SEC);
    assert_int_equal(tend(), 0);
    assert_int_equal(listened(), 1);
    /* Who comes back in time waits for nothing. */
    assert_true(relay_stands(join("chat")));
    relay_leave(world.relay, first);
    clock_set(1020 * USEC_PER_SEC);
    assert_int_equal(tend(), 1);
    assert_int_equal(listened(), 0);
    notify_and_expect("NOTIFY chat", "");
    assert_false(relay_stands(join("chat")));
    assert_int_equal(tend(), 1);
    notify_and_expect("NOTIFY chat", "chat");
}

static int note_told(void *argument, const char *name, size_t len)
{
    char *told = argument;

    assert_int_equal(strlen(name), len);
    (void)snprintf(told + strlen(told), 100 - strlen(told), "%s ", name);
    return 0;
}

static int refuse(void *argument, const char *name, size_t len)
{
    (void)argument;
    (void)name;
    (void)len;
    return -ENOMEM;
}

static void a_new_connection_listens_to_all_and_tells_what_was_missed(void **state)
{
    char told[100] = "";

    (void)state;
    reconnect(false);
    (void)join("chat");
    struct relay_channel *left = join("app_1");
    (void)tend();
    relay_leave(world.relay, left);
    database_close(world.database);
    relay_lost(world.relay);
    assert_int_equal(listened(), 0);
    /* While nobody's come, whoever comes need not wait. */
    assert_true(relay_stands(join("app_2")));
    reconnect(true);
    assert_int_equal(listened(), 2);
    assert_int_equal(tend(), 0);
    notify_and_expect("NOTIFY chat; NOTIFY app_1; NOTIFY app_2", "chat app_2");

    assert_int_equal(relay_tell_missed(world.relay, refuse, NULL), 0);
    assert_int_equal(relay_tell_missed(world.relay, note_told, told), 2);
    assert_non_null(strstr(told, "chat "));
    assert_non_null(strstr(told, "app_2 "));
    assert_int_equal(relay_tell_missed(world.relay, note_told, told), 0);
    relay_missed(world.relay);
    assert_int_equal(relay_tell_missed(world.relay, note_told, told), 2);
}

static void who_waits_when_the_connection_breaks_waits_no_longer(void **state)
{
    (void)state;
    reconnect(false);
    struct relay_channel *channel = join("chat");
    struct err err = {0};
    pg_run(world.pg.admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                           "WHERE application_name = 'pg-sse-gateway/test'");
    assert_int_equal(relay_tend(world.relay, world.database, &err), -ECONNRESET);
    assert_false(relay_stands(channel));
    relay_lost(world.relay);
    assert_true(relay_stands(channel));
    assert_int_equal(world.stood, 1);
    reconnect(true);
    notify_and_expect("NOTIFY chat", "chat");
}

/* More than go into one question, and one of them that PostgreSQL cannot have. */
static void many_are_listened_to_and_one_that_cannot_be_harms_none(void **state)
{
    struct relay_channel *channels[350];
    char name[32];

    (void)state;
    relay_free(world.relay);
    world.relay = make("*", 1000);
    pg_run(world.pg.admin, "DROP DATABASE IF EXISTS pgsse_unit_latin");
    pg_run(world.pg.admin, "CREATE DATABASE pgsse_unit_latin TEMPLATE template0 ENCODING "
                           "'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'");
    char dsn[1200];
    (void)snprintf(dsn, sizeof(dsn), "%s dbname=pgsse_unit_latin", world.pg.dsn);
    database_free(world.database);
    world.database = database_new(&(struct database_settings){
        .dsn = dsn, .door = "test", .stop_fd = -1, .notified = on_notified});
    reconnect(false);
    for (size_t i = 0; i < ARRAY_SIZE(channels); i++) {
        (void)snprintf(name, sizeof(name), i == 120 ? "\xe2\x98\x83" : "c%zu \"", i);
        channels[i] = join(name);
    }
    assert_int_equal(tend(), 1);
    for (size_t i = 0; i < ARRAY_SIZE(channels); i++)
        assert_true(relay_stands(channels[i]));
    assert_int_equal(listened(), 349);
    PGconn *conn = pg_connect(dsn);
    PQfinish(world.pg.conn);
    world.pg.conn = conn;
    notify_and_expect("NOTIFY \"c0 \"\"\"; NOTIFY \"c119 \"\"\"; NOTIFY \"c349 \"\"\"",
                      "c0 \" c119 \" c349 \"");
    database_close(world.database);
    PQfinish(world.pg.conn);
    world.pg.conn = NULL;
    pg_run(world.pg.admin, "DROP DATABASE pgsse_unit_latin WITH (FORCE)");
}

static void no_more_are_wanted_than_may_be(void **state)
{
    struct relay_channel *channel;

    (void)state;
    relay_free(world.relay);
    world.relay = make("app_*", 2);
    struct relay_channel *one = join("app_1");
    (void)join("app_2");
    assert_int_equal(relay_join(world.relay, "app_3", 5, &channel), -ENOSPC);
    assert_ptr_equal(join("app_2"), join("app_2"));
    relay_leave(world.relay, one);
    (void)join("app_3");
    assert_int_equal(relay_join(world.relay, "app_1", 5, &channel), -ENOSPC);
}

static void without_memory_it_fails_cleanly_wherever_it_happens(void **state)
{
    bool failed = true;
    struct relay_channel *channel = NULL;

    (void)state;
    for (unsigned n = 1; failed; n++) {
        failing_malloc_begin(n);
        struct relay *relay = make("a, b*", 10);
        failed = failing_malloc_end();
        assert_int_equal(relay == NULL, failed);
        relay_free(relay);
    }
    failing_malloc_begin(1);
    assert_int_equal(relay_join(world.relay, "chat", 4, &channel), -ENOMEM);
    assert_true(failing_malloc_end());
    (void)join("chat");

    struct err err = {0};
    assert_int_equal(
        database_connect(world.database, clock_usec() + 5 * USEC_PER_SEC, &err), 0);
    int result = -ENOMEM;
    for (unsigned n = 1; result < 0; n++) {
        failing_malloc_begin(n);
        result = relay_restore(world.relay, world.database, false, &err);
        (void)failing_malloc_end();
        if (result < 0)
            relay_lost(world.relay);
    }
    notify_and_expect("NOTIFY chat", "chat");
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(patterns_allow_names_and_prefixes),
        TEST(bad_patterns_are_told),
        TEST(what_is_wanted_is_listened_to_until_the_grace_time_is_over),
        TEST(a_new_connection_listens_to_all_and_tells_what_was_missed),
        TEST(who_waits_when_the_connection_breaks_waits_no_longer),
        TEST(many_are_listened_to_and_one_that_cannot_be_harms_none),
        TEST(no_more_are_wanted_than_may_be),
        TEST(without_memory_it_fails_cleanly_wherever_it_happens),
    };
    return cmocka_run_group_tests_name("relay", tests, NULL, NULL);
}
