/* test_schema.c - a schema that is not there, or not the one that is needed. */
#include "schema.h"

#include "pg.h"

static uint64_t in_time(void)
{
    return clock_usec() + 5 * USEC_PER_SEC;
}

static void a_missing_schema_says_what_to_do(void **state)
{
    const long newest = MIGRATE_SCHEMA_VERSION;
    struct err err = {0};
    char wanted[200];
    struct pg pg;

    (void)state;
    pg_open(&pg, false);
    struct database *database = pg_database(&pg);
    assert_int_equal(schema_check(database, newest, in_time(), &err), -EIO);
    assert_non_null(strstr(err.text, "pg-sse-gateway migrate up"));
    pg_migrate(&pg);
    assert_int_equal(schema_check(database, newest, in_time(), &err), 0);
    assert_int_equal(schema_check(database, newest + 1, in_time(), &err), -EIO);
    (void)snprintf(
        wanted, sizeof(wanted),
        "the database's schema is at version %ld, this program needs %ld; run: "
        "pg-sse-gateway migrate up",
        newest, newest + 1);
    assert_string_equal(err.text, wanted);
    assert_int_equal(schema_check(database, 0, in_time(), &err), -EIO);
    assert_non_null(strstr(err.text, "newer than the 0 that this program knows"));
    database_free(database);
    pg_close(&pg);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_missing_schema_says_what_to_do),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
