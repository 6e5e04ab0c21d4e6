/* test_array.c - many values as parameters of a statement: what goes in is what
 * PostgreSQL sees. */
#include "pg.h"

#include "array.h"
#include "failing_malloc.h"

static void texts_come_out_as_they_went_in(void **state)
{
    static const char *const texts[] = {"",        "a",    "\"", "\\", "{a,b}",
                                        "NULL",    "a\nb", "'",  ",",  "\xe2\x82\xac",
                                        " spaces "};
    struct pg pg;
    struct pairs pairs;
    struct err err = {0};
    CLEANUP(database_clear) PGresult *result = NULL;

    (void)state;
    pg_open(&pg, false);
    struct database *database = pg_database(&pg);
    pairs_init(&pairs);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
        pairs_add(&pairs, texts[i], texts[ARRAY_SIZE(texts) - 1 - i]);
    pairs_add(&pairs, NULL, "x");
    assert_int_equal(pairs_count(&pairs), ARRAY_SIZE(texts) + 1);
    if (pairs_query(&pairs, "SELECT p.a, p.b, $3 FROM unnest($1, $2) AS p (a, b)",
                    "third", database, clock_usec() + 10 * USEC_PER_SEC, &result,
                    &err) < 0)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
        assert_string_equal(PQgetvalue(result, (int)i, 0), texts[i]);
        assert_string_equal(PQgetvalue(result, (int)i, 1),
                            texts[ARRAY_SIZE(texts) - 1 - i]);
    }
    assert_true(PQgetisnull(result, (int)ARRAY_SIZE(texts), 0));
    assert_string_equal(PQgetvalue(result, 0, 2), "third");
    pairs_reset(&pairs);
    assert_int_equal(pairs_count(&pairs), 0);
    pairs_done(&pairs);
    database_free(database);
    pg_close(&pg);
}

static void without_memory_it_is_said_at_the_end(void **state)
{
    struct err err = {0};

    (void)state;
    for (unsigned nth = 1;; nth++) {
        struct pairs pairs;

        failing_malloc_begin(nth);
        pairs_init(&pairs);
        for (int i = 0; i < 10; i++)
            pairs_add(&pairs, "a long enough text, so that it grows", NULL);
        const bool failed = failing_malloc_end();
        if (failed)
            assert_int_equal(pairs_query(&pairs, "", NULL, NULL, 0, NULL, &err), -ENOMEM);
        pairs_done(&pairs);
        if (!failed)
            break;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_come_out_as_they_went_in),
        cmocka_unit_test(without_memory_it_is_said_at_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
