/*
 * test_database.c - one connection to PostgreSQL that never hangs.
 */
#include "pg.h"

#include "database.h"
#include "lost_answers.h"

static char heard[8][32];
static int heard_count;
static int heard_own; /* of these, from the session itself */

static void on_heard(void *argument, const PGnotify *notification, bool own)
{
    (void)argument;
    heard_own += own;
    if (heard_count < (int)ARRAY_SIZE(heard))
        snprintf(heard[heard_count], sizeof(heard[0]), "%s", notification->relname);
    heard_count++;
}

static struct database *make(const char *dsn, int stop_fd)
{
    struct database *database = database_new(&(struct database_settings){
        .dsn = dsn,
        .door = "test",
        .target = "read-write",
        .stop_fd = stop_fd,
        .notified = on_heard,
    });

    assert_non_null(database);
    heard_count = heard_own = 0;
    return database;
}

static uint64_t in_msec(uint64_t msec)
{
    return clock_usec() + msec * USEC_PER_MSEC;
}

static struct database *make_connected(const char *dsn, int stop_fd)
{
    struct database *database = make(dsn, stop_fd);
    struct err err = {0};

    if (database_connect(database, in_msec(5000), &err) < 0)
        fail_msg("%s", err.text);
    return database;
}

static int count_row(void *argument, const PGresult *row)
{
    int *count = argument;

    assert_int_equal(PQntuples(row), 1);
    return ++*count == 7 ? -ENOMEM : 0;
}

static void a_query_gives_its_answer(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    CLEANUP(database_clear) PGresult *result = NULL;
    const char *values[] = {"41", NULL};
    struct database_query query = {
        .sql = "SELECT $1::int + 1, $2::text", .count = 2, .values = values};

    assert_int_equal(database_query(database, &query, in_msec(3000), &result, NULL), 0);
    assert_string_equal(PQgetvalue(result, 0, 0), "42");
    assert_true(PQgetisnull(result, 0, 1));
    database_free(database);
}

static void what_the_server_refuses_leaves_the_connection_usable(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    struct err err = {0};

    assert_int_equal(database_run(database, "SELECT 1/0", in_msec(3000), NULL, &err),
                     -EIO);
    assert_string_equal(database_sqlstate(database), "22012");
    assert_string_equal(err.text, "division by zero");
    assert_true(database_connected(database));
    assert_int_equal(database_run(database, "SELECT 1", in_msec(3000), NULL, &err), 0);
    assert_string_equal(database_sqlstate(database), "");
    database_free(database);
}

static void the_deadline_ends_a_slow_query(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    struct err err = {0};
    uint64_t begin = clock_usec();

    assert_int_equal(
        database_run(database, "SELECT pg_sleep(20)", in_msec(300), NULL, &err),
        -ETIMEDOUT);
    assert_true(clock_usec() - begin >= 300000);
    assert_false(database_connected(database));
    assert_int_equal(database_run(database, "SELECT 1", in_msec(300), NULL, &err),
                     -ECONNRESET);
    database_free(database);
}

static void *ring_soon(void *argument)
{
    uint64_t one = 1;

    usleep(200000);
    assert_int_equal(write(*(int *)argument, &one, sizeof(one)), sizeof(one));
    return NULL;
}

static void stopping_ends_a_query_in_flight(void **state)
{
    struct pg *pg = *state;
    int stop_fd = eventfd(0, EFD_CLOEXEC);
    struct database *database = make_connected(pg->dsn, stop_fd);
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, ring_soon, &stop_fd), 0);
    assert_int_equal(
        database_run(database, "SELECT pg_sleep(20)", CLOCK_NEVER, NULL, NULL),
        -ECANCELED);
    pthread_join(thread, NULL);
    assert_int_equal(database_connect(database, in_msec(3000), NULL), -ECANCELED);
    database_free(database);
    close(stop_fd);
}

static void a_lost_connection_says_why(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    struct err err = {0};

    assert_int_equal(pg_kill(pg, "test"), 1);
    int r;
    while ((r = database_wait(database, -1, in_msec(5000), &err)) == 0)
        ;
    assert_int_equal(r, -ECONNRESET);
    assert_non_null(strstr(err.text, "administrator command"));
    database_free(database);
}

static void a_frozen_server_is_noticed(void **state)
{
    struct pg *pg = *state;
    struct proxy proxy;

    proxy_open(&proxy, pg);
    struct database *database = make_connected(proxy.dsn, -1);
    proxy_set(&proxy, PROXY_FREEZE);
    assert_int_equal(database_run(database, "SELECT 1", in_msec(300), NULL, NULL),
                     -ETIMEDOUT);
    assert_int_equal(database_connect(database, in_msec(300), NULL), -ETIMEDOUT);
    proxy_set(&proxy, PROXY_PASS);
    assert_int_equal(database_connect(database, in_msec(3000), NULL), 0);
    database_free(database);
    proxy_close(&proxy);
}

static void a_trickle_does_not_outlast_the_deadline(void **state)
{
    struct pg *pg = *state;
    struct proxy proxy;

    proxy_open(&proxy, pg);
    struct database *database = make_connected(proxy.dsn, -1);
    proxy_set(&proxy, PROXY_TRICKLE);
    uint64_t begin = clock_usec();
    assert_int_equal(
        database_run(database, "SELECT repeat('x', 10000000)", in_msec(400), NULL, NULL),
        -ETIMEDOUT);
    assert_true(clock_usec() - begin >= 400000);

    /* Row by row it may take as long as it goes on. */
    struct database_query query = {.sql = "SELECT repeat('x', 20000) FROM "
                                          "generate_series(1, 6)"};
    int count = 0;
    assert_int_equal(database_connect(database, in_msec(60000), NULL), 0);
    begin = clock_usec();
    assert_int_equal(
        database_each(database, &query, USEC_PER_SEC, count_row, &count, NULL), 0);
    assert_true(clock_usec() - begin > USEC_PER_SEC);
    assert_int_equal(count, 6);
    database_free(database);
    proxy_close(&proxy);
}

static void a_first_host_that_swallows_packets_does_not_hide_the_second(void **state)
{
    struct pg *pg = *state;
    struct proxy dead;
    struct proxy good;
    char dsn[1400];
    struct err err = {0};

    proxy_open(&dead, pg);
    proxy_open(&good, pg);
    proxy_set(&dead, PROXY_FREEZE);
    snprintf(dsn, sizeof(dsn),
             "%shost=127.0.0.1,127.0.0.1 port=%d,%d dbname='%s' sslmode=disable",
             pg->base, dead.port, good.port, pg->name);
    struct database *database = make(dsn, -1);
    assert_int_equal(database_connect(database, in_msec(2000), &err), 0);
    char place[64];
    snprintf(place, sizeof(place), "127.0.0.1:%d", good.port);
    assert_string_equal(database_place(database), place);

    proxy_set(&good, PROXY_FREEZE);
    assert_int_equal(database_connect(database, in_msec(400), &err), -ETIMEDOUT);
    database_free(database);
    proxy_close(&dead);
    proxy_close(&good);
}

static void a_read_only_server_is_passed_by(void **state)
{
    struct pg *pg = *state;
    struct database *database = make(pg->dsn, -1);
    struct err err = {0};
    char sql[200];

    snprintf(sql, sizeof(sql), "ALTER DATABASE %s SET default_transaction_read_only = on",
             pg->name);
    pg_run(pg->admin, sql);
    assert_int_equal(database_connect(database, in_msec(3000), &err), -ECONNRESET);
    assert_non_null(strstr(err.text, "read-only"));
    database_free(database);

    char dsn[1200]; /* but the user's choice counts */
    snprintf(dsn, sizeof(dsn), "%s target_session_attrs=any", pg->dsn);
    database = make_connected(dsn, -1);
    database_free(database);
    snprintf(sql, sizeof(sql), "ALTER DATABASE %s RESET default_transaction_read_only",
             pg->name);
    pg_run(pg->admin, sql);
}

static void the_connection_string_wins_over_our_settings(void **state)
{
    struct pg *pg = *state;
    char dsn[1200];
    CLEANUP(database_clear) PGresult *result = NULL;

    snprintf(dsn, sizeof(dsn), "%s application_name=mine client_encoding=LATIN1",
             pg->dsn);
    struct database *database = make_connected(dsn, -1);
    assert_int_equal(database_run(database,
                                  "SELECT current_setting('application_name'), "
                                  "current_setting('client_encoding')",
                                  in_msec(3000), &result, NULL),
                     0);
    assert_string_equal(PQgetvalue(result, 0, 0), "mine");
    assert_string_equal(PQgetvalue(result, 0, 1), "UTF8");
    database_free(database);
}

static void an_unreadable_connection_string_is_not_repeated(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "host=db password=hunter2 secretoption=1",
        "postgresql://me:hunter2@[::1/db",
        "host=db password='hunter2",
        "password=a hunter2",
    };

    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        struct err err = {0};
        struct database *database = make(wrong[i], -1);
        assert_int_equal(database_connect(database, in_msec(300), &err), -EINVAL);
        assert_null(strstr(err.text, "hunter2"));
        assert_null(strstr(err.text, "secretoption"));
        assert_non_null(strstr(err.text, "connection string"));
        database_free(database);
    }
}

static void notifications_that_come_with_an_answer_are_heard(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    int r;

    assert_int_equal(database_run(database, "LISTEN bell", in_msec(3000), NULL, NULL), 0);
    assert_int_equal(database_run(database, "NOTIFY bell", in_msec(3000), NULL, NULL), 0);
    assert_int_equal(heard_count, 1);
    assert_string_equal(heard[0], "bell");
    assert_int_equal(heard_own, 1);

    pg_run(pg->conn, "NOTIFY bell");
    while (heard_count < 2) {
        r = database_wait(database, -1, in_msec(5000), NULL);
        assert_int_equal(r, 0);
    }
    assert_int_equal(heard_own, 1);
    database_free(database);
}

static void a_wait_ends_when_the_other_descriptor_is_ready(void **state)
{
    struct pg *pg = *state;
    int other = eventfd(1, EFD_CLOEXEC);
    struct database *database = make(pg->dsn, -1);
    struct err err = {0};

    assert_int_equal(database_wait(database, other, in_msec(5000), &err), 1);
    assert_int_equal(database_connect(database, in_msec(3000), &err), 0);
    assert_int_equal(database_wait(database, other, in_msec(5000), &err), 1);
    uint64_t begin = clock_usec();
    assert_int_equal(database_wait(database, -1, in_msec(50), &err), 0);
    assert_true(clock_usec() - begin >= 50000);
    database_free(database);
    close(other);
}

static void rows_come_one_by_one(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    struct database_query query = {.sql = "SELECT repeat('x', 100000) FROM "
                                          "generate_series(1, 5)"};
    int count = 0;

    assert_int_equal(database_each(database, &query, 3000000, count_row, &count, NULL),
                     0);
    assert_int_equal(count, 5);
    assert_int_equal(database_each(database, &query, 3000000, count_row, &count, NULL),
                     -ENOMEM);
    assert_false(database_connected(database));
    database_free(database);
}

static void an_error_after_some_rows_is_an_error(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    struct database_query query = {.sql =
                                       "SELECT 1 / (3 - n) FROM generate_series(1, 5) n"};
    int count = 0;

    assert_int_equal(database_each(database, &query, 3000000, count_row, &count, NULL),
                     -EIO);
    assert_string_equal(database_sqlstate(database), "22012");
    assert_true(database_connected(database));
    database_free(database);
}

static void a_pipeline_gives_the_last_answer_or_the_first_error(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    CLEANUP(database_clear) PGresult *result = NULL;
    struct err err = {0};
    const struct database_query good[] = {
        {.sql = "BEGIN"}, {.sql = "SELECT 7"}, {.sql = "SELECT 8"}};
    const struct database_query bad[] = {
        {.sql = "BEGIN"}, {.sql = "SELECT nothing"}, {.sql = "SELECT 1/0"}};

    assert_int_equal(database_pipeline(database, good, 3, in_msec(3000), &result, &err),
                     0);
    assert_string_equal(PQgetvalue(result, 0, 0), "8");
    assert_true(database_in_transaction(database));
    assert_int_equal(database_run(database, "ROLLBACK", in_msec(3000), NULL, &err), 0);

    PGresult *untouched = NULL;
    assert_int_equal(database_pipeline(database, bad, 3, in_msec(3000), &untouched, &err),
                     -EIO);
    assert_null(untouched);
    assert_string_equal(database_sqlstate(database), "42703");
    assert_int_equal(database_run(database, "ROLLBACK", in_msec(3000), NULL, &err), 0);
    database_free(database);
}

static void who_asks_leaves_nobody_waiting_for_a_lock(void **state)
{
    struct pg *pg = *state;
    struct database *holder = make_connected(pg->dsn, -1);
    struct database *database = make_connected(pg->dsn, -1);
    CLEANUP(database_clear) PGresult *result = NULL, *setting = NULL;
    const struct database_query query = {.sql = "SELECT count(*) FROM locked"};
    struct err err = {0};

    assert_int_equal(
        database_run(holder, "CREATE TABLE locked ()", in_msec(3000), NULL, &err), 0);
    assert_int_equal(
        database_script(holder, "BEGIN; LOCK TABLE locked", in_msec(3000), &err), 0);
    assert_int_equal(database_ask(database, &query, in_msec(800), NULL, &err), -EIO);
    assert_string_equal(database_sqlstate(database), "55P03");
    assert_true(database_connected(database));

    assert_int_equal(database_run(holder, "COMMIT", in_msec(3000), NULL, &err), 0);
    assert_int_equal(database_ask(database, &query, in_msec(3000), &result, &err), 0);
    assert_string_equal(PQgetvalue(result, 0, 0), "0");
    assert_int_equal(
        database_run(database, "SHOW lock_timeout", in_msec(3000), &setting, &err), 0);
    assert_string_equal(PQgetvalue(setting, 0, 0), "0");
    assert_int_equal(database_run(holder, "DROP TABLE locked", in_msec(3000), NULL, &err),
                     0);
    database_free(database);
    database_free(holder);
}

static void named_statements_are_prepared_once_a_connection(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    struct err err = {0};
    const char *values[] = {"7"};
    const struct database_query named = {
        .sql = "SELECT 100 / $1::int", .count = 1, .values = values, .name = "quotient"};
    const struct database_query other = {.sql = "SELECT 5", .name = "five"};

    for (int connection = 0; connection < 2; connection++) {
        for (int i = 0; i < 3; i++) {
            CLEANUP(database_clear) PGresult *result = NULL;
            values[0] = i == 1 ? "0" : "7";
            assert_int_equal(
                database_query(database, &named, in_msec(3000), &result, &err),
                i == 1 ? -EIO : 0);
            if (i != 1)
                assert_string_equal(PQgetvalue(result, 0, 0), "14");
            CLEANUP(database_clear) PGresult *five = NULL;
            assert_int_equal(database_query(database, &other, in_msec(3000), &five, &err),
                             0);
            assert_string_equal(PQgetvalue(five, 0, 0), "5");
        }
        CLEANUP(database_clear) PGresult *count = NULL;
        assert_int_equal(database_run(database,
                                      "SELECT count(*) FROM pg_prepared_statements "
                                      "WHERE name IN ('quotient', 'five')",
                                      in_msec(3000), &count, &err),
                         0);
        assert_string_equal(PQgetvalue(count, 0, 0), "2");
        assert_int_equal(database_connect(database, in_msec(3000), &err), 0);
    }
    database_free(database);
}

static void a_named_statement_that_cannot_be_prepared_is_refused_each_time(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    struct err err = {0};
    const struct database_query named = {.sql = "SELECT * FROM nothing", .name = "none"};

    for (int i = 0; i < 2; i++) {
        assert_int_equal(database_query(database, &named, in_msec(3000), NULL, &err),
                         -EIO);
        assert_string_equal(database_sqlstate(database), "42P01");
    }
    assert_int_equal(database_run(database, "SELECT 1", in_msec(3000), NULL, &err), 0);
    database_free(database);
}

static void a_connection_lost_at_any_byte_is_only_an_error(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);

    for (int i = 0; i < 20; i++) {
        struct err err = {0};
        if (!database_connected(database))
            assert_int_equal(database_connect(database, in_msec(3000), &err), 0);
        PQsetnonblocking(pg->conn, 0);
        int r = database_run(database, "SELECT pg_terminate_backend(pg_backend_pid())",
                             in_msec(3000), NULL, &err);
        assert_int_equal(r, -ECONNRESET);
        assert_int_equal(strncmp(err.text, "the connection to the database was lost", 39),
                         0);
    }
    database_free(database);
}

static int set_up(void **state)
{
    static struct pg pg;

    pg_open(&pg, false);
    *state = &pg;
    return 0;
}

static int tear_down(void **state)
{
    pg_close(*state);
    return 0;
}

/* It may be done, and what the session has of it must not stay with nobody knowing. */
static void an_answer_that_is_lost_is_a_connection_lost(void **state)
{
    struct pg *pg = *state;
    struct database *database = make_connected(pg->dsn, -1);
    const struct database_query named = {.sql = "SELECT 1", .name = "one"};
    const struct database_query two[] = {{.sql = "SELECT 1"}, {.sql = "SELECT 2"}};
    bool lost = true;

    for (unsigned nth = 1; lost; nth++) {
        struct err err = {0};
        int r[4];

        lost_answers_begin(nth);
        r[0] = database_run(database, "SELECT 1", in_msec(3000), NULL, &err);
        r[1] = database_query(database, &named, in_msec(3000), NULL, &err);
        r[2] = database_pipeline(database, two, 2, in_msec(3000), NULL, &err);
        r[3] = database_script(database, "SELECT 1; SELECT 2", in_msec(3000), &err);
        lost = lost_answers_end();
        assert_int_equal(database_connected(database), !lost);
        for (size_t i = 0; i < ARRAY_SIZE(r); i++)
            assert_true(r[i] == 0 || (lost && r[i] == -ECONNRESET));
        assert_int_equal(r[3], lost ? -ECONNRESET : 0);
        if (lost)
            assert_int_equal(database_connect(database, in_msec(3000), NULL), 0);
        assert_int_equal(database_query(database, &named, in_msec(3000), NULL, &err), 0);
    }
    database_free(database);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(a_query_gives_its_answer),
        WITH_PG(what_the_server_refuses_leaves_the_connection_usable),
        WITH_PG(the_deadline_ends_a_slow_query),
        WITH_PG(stopping_ends_a_query_in_flight),
        WITH_PG(a_lost_connection_says_why),
        WITH_PG(a_frozen_server_is_noticed),
        WITH_PG(a_trickle_does_not_outlast_the_deadline),
        WITH_PG(a_first_host_that_swallows_packets_does_not_hide_the_second),
        WITH_PG(a_read_only_server_is_passed_by),
        WITH_PG(the_connection_string_wins_over_our_settings),
        cmocka_unit_test(an_unreadable_connection_string_is_not_repeated),
        WITH_PG(notifications_that_come_with_an_answer_are_heard),
        WITH_PG(a_wait_ends_when_the_other_descriptor_is_ready),
        WITH_PG(rows_come_one_by_one),
        WITH_PG(an_error_after_some_rows_is_an_error),
        WITH_PG(a_pipeline_gives_the_last_answer_or_the_first_error),
        WITH_PG(who_asks_leaves_nobody_waiting_for_a_lock),
        WITH_PG(named_statements_are_prepared_once_a_connection),
        WITH_PG(a_named_statement_that_cannot_be_prepared_is_refused_each_time),
        WITH_PG(a_connection_lost_at_any_byte_is_only_an_error),
        WITH_PG(an_answer_that_is_lost_is_a_connection_lost),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
