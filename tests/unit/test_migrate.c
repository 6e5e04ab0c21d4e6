/*
 * test_migrate.c - the files of migrations/: up, down, status.
 */
#include "pg.h"

#include <sys/stat.h>

#include "database.h"
#include "failing_malloc.h"
#include "sqlfile.h"

struct folder {
    struct pg pg;
    char dir[64];
    char files[8][96]; /* what was written, to be removed */
    int count;
    struct migrate_settings settings;
};

static void write_file(struct folder *folder, const char *name, const char *text)
{
    char *path = folder->files[folder->count++];

    snprintf(path, sizeof(folder->files[0]), "%s/%s", folder->dir, name);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static int set_up(void **state)
{
    static struct folder folder;

    memset(&folder, 0, sizeof(folder));
    snprintf(folder.dir, sizeof(folder.dir), "/tmp/pgsse-migrate-XXXXXX");
    assert_non_null(mkdtemp(folder.dir));
    pg_open(&folder.pg, false);
    folder.settings =
        (struct migrate_settings){.dsn = folder.pg.dsn, .dir = folder.dir, .stop_fd = -1};
    *state = &folder;
    return 0;
}

static int tear_down(void **state)
{
    struct folder *folder = *state;

    for (int i = 0; i < folder->count; i++)
        unlink(folder->files[i]);
    rmdir(folder->dir);
    pg_close(&folder->pg);
    return 0;
}

static void write_two(struct folder *folder)
{
    write_file(folder, "0001_one.up.sql", "CREATE TABLE gateway.one (n int);\n");
    write_file(folder, "0001_one.down.sql", "DROP TABLE gateway.one;\n");
    write_file(folder, "0002_two.up.sql", "CREATE TABLE gateway.two (n int);\n");
    write_file(folder, "0002_two.down.sql", "DROP TABLE gateway.two;\n");
}

static long long leftovers(struct folder *folder)
{
    return pg_number(folder->pg.conn,
                     "SELECT count(*) FROM pg_namespace WHERE nspname = 'gateway'");
}

/* Fails with this text, the folder's name before it, and leaves nothing. */
static void refuses(struct folder *folder, int code, const char *text)
{
    struct err err = {0};
    char wanted[600];

    assert_int_equal(migrate_up(&folder->settings, NULL, &err), code);
    snprintf(wanted, sizeof(wanted), "%s%s", folder->dir, text);
    assert_string_equal(err.text, wanted);
    assert_int_equal(leftovers(folder), 0);
}

static void up_down_and_status_tell_what_they_did(void **state)
{
    struct folder *folder = *state;
    char *text = NULL;
    size_t len;
    struct err err = {0};

    write_two(folder);
    FILE *out = open_memstream(&text, &len);
    assert_int_equal(migrate_status(&folder->settings, out, &err), 0);
    assert_int_equal(migrate_up(&folder->settings, out, &err), 0);
    assert_int_equal(migrate_up(&folder->settings, out, &err), 0);
    assert_int_equal(migrate_down(&folder->settings, out, &err), 0);
    assert_int_equal(migrate_down(&folder->settings, out, &err), 0);
    assert_int_equal(migrate_down(&folder->settings, out, &err), -ENOENT);
    fclose(out);
    assert_string_equal(text, "0001  one                       not applied\n"
                              "0002  two                       not applied\n"
                              "applied 0001_one\n"
                              "applied 0002_two\n"
                              "the database is up to date, at version 2\n"
                              "took back 0002_two\n"
                              "took back 0001_one\n");
    free(text);
    assert_int_equal(leftovers(folder), 0);
}

static void status_shows_when_each_was_applied(void **state)
{
    struct folder *folder = *state;
    char *text = NULL;
    size_t len;

    write_two(folder);
    assert_int_equal(migrate_up(&folder->settings, NULL, NULL), 0);
    FILE *out = open_memstream(&text, &len);
    assert_int_equal(migrate_status(&folder->settings, out, NULL), 0);
    fclose(out);
    assert_int_equal(strncmp(text, "0001  one                       applied 20", 42), 0);
    free(text);
}

static void a_failing_file_names_its_line_and_leaves_nothing(void **state)
{
    struct folder *folder = *state;

    write_file(folder, "0001_one.down.sql", "SELECT 1;\n");
    write_file(folder, "0001_one.up.sql",
               "-- \xc3\xa4\xc3\xb6\xc3\xbc \xe2\x82\xac, a comment; with a semicolon\n"
               "CREATE TABLE gateway.one (n int);\n"
               "\n"
               "CREATE TABLE gateway.two (\n"
               "    n int,\n"
               "    m nosuchtype\n"
               ");\n");
    refuses(folder, -EIO,
            "/0001_one.up.sql:6: ERROR: type \"nosuchtype\" does not exist");
}

static void a_syntax_error_names_its_line(void **state)
{
    struct folder *folder = *state;

    write_file(folder, "0001_one.down.sql", "SELECT 1;\n");
    write_file(folder, "0001_one.up.sql", "SELECT 1;\nSELECT 2;\n\nSELEKT 3;\n");
    refuses(folder, -EIO,
            "/0001_one.up.sql:4: ERROR: syntax error at or near \"SELEKT\"");
}

static void a_failure_at_run_time_names_its_statement(void **state)
{
    struct folder *folder = *state;

    write_file(folder, "0001_one.down.sql", "SELECT 1;\n");
    write_file(folder, "0001_one.up.sql",
               "CREATE TABLE gateway.one (n int PRIMARY KEY);\n"
               "CREATE FUNCTION gateway.f() RETURNS int LANGUAGE plpgsql AS $$\n"
               "BEGIN\n"
               "    RETURN 1;\n"
               "END;\n"
               "$$;\n"
               ";;\n"
               "INSERT INTO gateway.one VALUES (1);\n"
               "/* again */ INSERT INTO gateway.one\n"
               "    VALUES (1);\n");
    refuses(folder, -EIO,
            "/0001_one.up.sql:9: ERROR: duplicate key value violates unique constraint "
            "\"one_pkey\" (Key (n)=(1) already exists.)");
}

static void a_failing_second_file_leaves_the_first(void **state)
{
    struct folder *folder = *state;
    struct err err = {0};

    write_file(folder, "0001_one.up.sql", "CREATE TABLE gateway.one (n int);\n");
    write_file(folder, "0001_one.down.sql", "DROP TABLE gateway.one;\n");
    write_file(folder, "0002_two.up.sql",
               "CREATE TABLE gateway.two (n int);\nSELECT 1/0;\n");
    write_file(folder, "0002_two.down.sql", "DROP TABLE gateway.two;\n");
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), -EIO);
    assert_non_null(strstr(err.text, "/0002_two.up.sql:2: ERROR: division by zero"));
    assert_int_equal(
        pg_number(folder->pg.conn, "SELECT max(version) FROM gateway.migrations"), 1);
    assert_int_equal(
        pg_number(folder->pg.conn, "SELECT (to_regclass('gateway.two') IS NULL)::int"),
        1);
}

static void transaction_control_is_refused(void **state)
{
    struct folder *folder = *state;

    write_file(folder, "0001_one.down.sql", "SELECT 1;\n");
    write_file(folder, "0001_one.up.sql", "SELECT 1;\n\ncommit;\nSELECT 2;\n");
    refuses(
        folder, -EINVAL,
        "/0001_one.up.sql:3: a migration may not begin or end a transaction: it runs in "
        "one as a whole");
}

static void a_hole_a_missing_half_and_a_strange_name_are_refused(void **state)
{
    struct folder *folder = *state;

    refuses(folder, -EINVAL, ": there are no migrations");
    write_file(folder, "0001_one.up.sql", "SELECT 1;\n");
    write_file(folder, "README", "ignored");
    refuses(folder, -EINVAL, ": 0001_one.down.sql is missing");
    write_file(folder, "0001_one.down.sql", "SELECT 1;\n");
    write_file(folder, "0003_three.up.sql", "SELECT 1;\n");
    refuses(folder, -EINVAL, ": number 0002 is missing");
    write_file(folder, "0001_uno.up.sql", "SELECT 1;\n");
    struct err err = {0};
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), -EINVAL);
    assert_non_null(strstr(err.text, "number 0001 is given twice"));
    unlink(folder->files[--folder->count]);
    write_file(folder, "4_four.up.sql", "SELECT 1;\n");
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), -EINVAL);
    assert_non_null(strstr(err.text, "a migration is called NNNN_name.up.sql"));
}

static void a_newer_database_is_refused(void **state)
{
    struct folder *folder = *state;
    struct err err = {0};

    write_two(folder);
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), 0);
    pg_run(folder->pg.conn, "INSERT INTO gateway.migrations VALUES (3, 'later')");
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), -EINVAL);
    assert_non_null(strstr(err.text, "the database is at version 3, newer than"));
    assert_int_equal(migrate_down(&folder->settings, NULL, &err), -EINVAL);
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    assert_int_equal(migrate_status(&folder->settings, out, &err), 0);
    fclose(out);
    assert_non_null(strstr(text, "by a newer pg-sse-gateway"));
    free(text);
}

static void *migrate_thread(void *argument)
{
    struct migrate_settings settings = *(struct migrate_settings *)argument;
    static struct err err;

    return migrate_up(&settings, NULL, &err) == 0 ? NULL : err.text;
}

static void many_at_once_do_it_once(void **state)
{
    struct folder *folder = *state;
    pthread_t threads[6];

    write_file(folder, "0001_one.up.sql",
               "CREATE TABLE gateway.one (n int);\nSELECT pg_sleep(0.2);\n");
    write_file(folder, "0001_one.down.sql", "DROP TABLE gateway.one;\n");
    write_file(folder, "0002_two.up.sql", "INSERT INTO gateway.one VALUES (1);\n");
    write_file(folder, "0002_two.down.sql", "SELECT 1;\n");
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
        assert_int_equal(
            pthread_create(&threads[i], NULL, migrate_thread, &folder->settings), 0);
    for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
        void *text = NULL;
        pthread_join(threads[i], &text);
        if (text != NULL)
            fail_msg("%s", (char *)text);
    }
    assert_int_equal(pg_number(folder->pg.conn, "SELECT count(*) FROM gateway.one"), 1);
    assert_int_equal(
        pg_number(folder->pg.conn, "SELECT count(*) FROM gateway.migrations"), 2);
}

static void a_lock_that_is_held_too_long_is_told(void **state)
{
    struct folder *folder = *state;
    struct err err = {0};

    write_two(folder);
    folder->settings.lock_usec = 300 * USEC_PER_MSEC;
    pg_run(folder->pg.conn, "SELECT pg_advisory_lock(5459782, 1)");
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), -EIO);
    assert_non_null(strstr(err.text, "another migration of this database"));
    pg_run(folder->pg.conn, "SELECT pg_advisory_unlock(5459782, 1)");
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), 0);
}

static void stopping_leaves_nothing_half_done(void **state)
{
    struct folder *folder = *state;
    struct err err = {0};

    write_file(folder, "0001_one.up.sql",
               "CREATE TABLE gateway.one (n int);\nSELECT pg_sleep(20);\n");
    write_file(folder, "0001_one.down.sql", "DROP TABLE gateway.one;\n");
    folder->settings.stop_fd = eventfd(1, EFD_CLOEXEC);
    assert_int_equal(migrate_up(&folder->settings, NULL, &err), -ECANCELED);
    close(folder->settings.stop_fd);
    assert_int_equal(leftovers(folder), 0);
}

static void a_schema_made_by_someone_else_is_used_and_left(void **state)
{
    struct folder *folder = *state;
    struct err err = {0};
    char sql[400], dsn[1200];

    write_file(folder, "0001_one.up.sql", "CREATE TABLE gateway.one (n int);\n");
    write_file(folder, "0001_one.down.sql", "DROP TABLE gateway.one;\n");
    snprintf(sql, sizeof(sql),
             "DROP ROLE IF EXISTS pgsse_unit_small; CREATE ROLE pgsse_unit_small LOGIN "
             "PASSWORD 'small'");
    pg_run(folder->pg.conn, sql);
    pg_run(folder->pg.conn, "CREATE SCHEMA gateway");
    pg_run(folder->pg.conn, "GRANT ALL ON SCHEMA gateway TO pgsse_unit_small");
    snprintf(dsn, sizeof(dsn), "%s user=pgsse_unit_small", folder->pg.dsn);
    folder->settings.dsn = dsn;
    folder->settings.password = "small";
    if (migrate_up(&folder->settings, NULL, &err) < 0 ||
        migrate_down(&folder->settings, NULL, &err) < 0)
        fail_msg("%s", err.text);
    assert_int_equal(leftovers(folder), 1);
    assert_int_equal(pg_number(folder->pg.conn,
                               "SELECT count(*) FROM pg_class c JOIN pg_namespace n ON "
                               "n.oid = c.relnamespace WHERE n.nspname = 'gateway'"),
                     0);
    pg_run(folder->pg.conn, "DROP OWNED BY pgsse_unit_small; DROP ROLE pgsse_unit_small");
}

static void our_own_files_go_up_and_down_and_up(void **state)
{
    struct folder *folder = *state;
    struct err err = {0};

    folder->settings.dir = pg_migrations();
    for (int i = 0; i < 2; i++) {
        if (migrate_up(&folder->settings, NULL, &err) < 0)
            fail_msg("%s", err.text);
        assert_int_equal(
            pg_number(folder->pg.conn, "SELECT max(version) FROM gateway.migrations"),
            MIGRATE_SCHEMA_VERSION);
        for (int j = 0; j < MIGRATE_SCHEMA_VERSION; j++)
            if (migrate_down(&folder->settings, NULL, &err) < 0)
                fail_msg("%s", err.text);
        assert_int_equal(leftovers(folder), 0);
    }
}

static void without_memory_it_is_refused_or_done_in_whole(void **state)
{
    struct folder *folder = *state;

    write_two(folder);
    for (unsigned n = 1;; n++) {
        struct err err = {0};
        failing_malloc_begin(n);
        int r = migrate_up(&folder->settings, NULL, &err);
        bool failed = failing_malloc_end();
        if (!failed) {
            assert_int_equal(r, 0);
            break;
        }
        assert_true(r < 0);
        assert_true(err.text[0] != '\0');
    }
    assert_int_equal(
        pg_number(folder->pg.conn, "SELECT count(*) FROM gateway.migrations"), 2);
}

/* ---- the reader of SQL ---- */

static int count_statements(const char *text, long *ret_last_line, int *ret_control)
{
    struct sqlfile file = {.at = text, .line = 1};
    struct sqlfile_statement statement;
    int count = 0;

    *ret_control = 0;
    while (sqlfile_next(&file, &statement)) {
        count++;
        *ret_last_line = statement.line;
        *ret_control += statement.ends_transaction;
    }
    return count;
}

static void statements_are_told_apart(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int count;
        long last_line;
        int control;
    } cases[] = {
        {"", 0, 0, 0},
        {" -- nothing\n/* at /* all */ ; */ ;;", 0, 0, 0},
        {"SELECT 1", 1, 1, 0},
        {"SELECT ';' , \";\";\nSELECT 'it''s; ';", 2, 2, 0},
        {"SELECT E'\\';';\nSELECT '\\';\nSELECT 3", 3, 3, 0},
        {"DO $$ BEGIN; END; COMMIT; $$;\nDO $x$ $$ ; $y$ ; $x$; SELECT a$b$c;\nSELECT 1",
         4, 3, 0},
        {"CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2);\nSELECT 3", 2, 2, 0},
        {"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 "
         "END;\n"
         "SELECT 2; END;\nSELECT 1",
         2, 3, 0},
        {"BEGIN", 1, 1, 1},
        {"/* x */ Start\nTRANSACTION;COMMIT;rollback; END;ABORT; PREPARE TRANSACTION 'x'",
         6, 2, 6},
        {"PREPARE p AS SELECT 1; SAVEPOINT s; SELECT begin; (SELECT 1);", 4, 1, 0},
        {"SELECT $1; SELECT $a; SELECT 'open", 3, 1, 0},
    };

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        long line = 0;
        int control = 0;
        int count = count_statements(cases[i].text, &line, &control);
        if (count != cases[i].count || line != cases[i].last_line ||
            control != cases[i].control)
            fail_msg("%s: %d statements, line %ld, control %d", cases[i].text, count,
                     line, control);
    }
    assert_int_equal(sqlfile_line("\xc3\xa4\n\xe2\x82\xac\nx", 1), 1);
    assert_int_equal(sqlfile_line("\xc3\xa4\n\xe2\x82\xac\nx", 3), 2);
    assert_int_equal(sqlfile_line("\xc3\xa4\n\xe2\x82\xac\nx", 5), 3);
    assert_int_equal(sqlfile_line("x", 99), 1);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(up_down_and_status_tell_what_they_did),
        WITH_PG(status_shows_when_each_was_applied),
        WITH_PG(a_failing_file_names_its_line_and_leaves_nothing),
        WITH_PG(a_syntax_error_names_its_line),
        WITH_PG(a_failure_at_run_time_names_its_statement),
        WITH_PG(a_failing_second_file_leaves_the_first),
        WITH_PG(transaction_control_is_refused),
        WITH_PG(a_hole_a_missing_half_and_a_strange_name_are_refused),
        WITH_PG(a_newer_database_is_refused),
        WITH_PG(many_at_once_do_it_once),
        WITH_PG(a_lock_that_is_held_too_long_is_told),
        WITH_PG(stopping_leaves_nothing_half_done),
        WITH_PG(a_schema_made_by_someone_else_is_used_and_left),
        WITH_PG(our_own_files_go_up_and_down_and_up),
        WITH_PG(without_memory_it_is_refused_or_done_in_whole),
        cmocka_unit_test(statements_are_told_apart),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
