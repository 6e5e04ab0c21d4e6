/* test_dsn.c - a connection string, host by host. */
#include "dsn.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/resource.h>

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

/* A sanitizer's own memory would run out, too. */
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

struct piece {
    struct piece *next;
};

/* libpq's memory, not only the gateway's own: nothing more is to be had from malloc(). */
static struct piece *take_all_memory(void)
{
    struct piece *pieces = NULL;

    for (size_t size = MIB; size >= sizeof(*pieces); size /= 2) {
        for (struct piece *piece; (piece = malloc(size)) != NULL; pieces = piece)
            piece->next = pieces;
    }
    return pieces;
}

static void without_memory_it_is_not_called_unreadable(void **state)
{
    (void)state;
    struct rlimit before;
    struct err err = {0};

    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    const struct rlimit none = {.rlim_cur = 1, .rlim_max = before.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_AS, &none), 0);
    struct piece *pieces = take_all_memory();
    const int result = dsn_check("host=/nowhere user=u", &err);
    while (pieces != NULL) {
        struct piece *next = pieces->next;
        free(pieces);
        pieces = next;
    }
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_int_equal(result, -ENOMEM);
    assert_int_equal(dsn_check("host=/nowhere user=u", &err), 0);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_host_is_an_attempt),
        cmocka_unit_test(the_password_is_used_unless_there_is_one),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
        cmocka_unit_test(without_memory_it_is_not_called_unreadable),
#endif
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
