/* test_dsn.c - a connection string, host by host. */
#include "dsn.h"

#include <stdlib.h>

#include "cmocka_all.h"

static size_t attempts(const char *text)
{
    struct dsn *dsn = NULL;

    assert_int_equal(dsn_resolve(&(struct dsn_settings){.text = text}, &dsn, NULL), 0);
    size_t count = dsn_attempts(dsn);
    dsn_free(dsn);
    return count;
}

static void each_host_is_an_attempt(void **state)
{
    (void)state;
    assert_int_equal(attempts("host=a"), 1);
    assert_int_equal(attempts("host=a,b,c"), 3);
    assert_int_equal(attempts("host=a,b port=1,2"), 2);
    assert_int_equal(attempts("postgresql://a:1,b:2,[::1]:3/db"), 3);
    assert_int_equal(attempts("hostaddr=127.0.0.1,127.0.0.2"), 2);
    assert_int_equal(attempts("host=a,b target_session_attrs=prefer-standby"), 4);
    assert_int_equal(attempts("somedatabase"), 1);
    /* What does not fit together is libpq's to complain about. */
    assert_int_equal(attempts("host=a,b port=1,2,3"), 1);
    assert_int_equal(attempts("host=a,b hostaddr=127.0.0.1"), 1);
    assert_int_equal(attempts("host=a,,b"), 1);

    setenv("PGHOST", "x,y", 1);
    assert_int_equal(attempts(NULL), 2);
    assert_int_equal(attempts("dbname=z"), 2);
    assert_int_equal(attempts("host=a"), 1);
    unsetenv("PGHOST");
}

static void the_password_is_used_unless_there_is_one(void **state)
{
    (void)state;
    static const struct {
        const char *text, *password;
    } cases[] = {{"host=/nowhere user=u", "ours"},
                 {"host=/nowhere user=u password=theirs", "theirs"},
                 {"postgresql://u:theirs@127.0.0.1:1/d", "theirs"}};

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct dsn *dsn = NULL;
        struct dsn_settings settings = {.text = cases[i].text, .password = "ours"};
        assert_int_equal(dsn_resolve(&settings, &dsn, NULL), 0);
        PGconn *conn = dsn_start(dsn, 0);
        assert_non_null(conn);
        assert_string_equal(PQpass(conn), cases[i].password);
        PQfinish(conn);
        dsn_free(dsn);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_host_is_an_attempt),
        cmocka_unit_test(the_password_is_used_unless_there_is_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
