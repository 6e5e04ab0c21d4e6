/* test_secret.c - passwords, masked and read. */
#include "secret.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "failing_malloc.h"

static void assert_masked(const char *dsn, const char *wanted)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    secret_mask_dsn(dsn, &text);
    assert_int_equal(buf_ok(&text), 0);
    assert_string_equal(text.data == NULL ? "" : text.data, wanted);
}

static void what_holds_no_password_is_shown_as_it_is(void **state)
{
    static const char *const dsns[] = {
        "",
        "host=db",
        "host=db dbname='my app' user=x",
        "service = app",
        "  host=db",
        "passfile=/etc/pgpass",
        "postgresql://",
        "postgresql:///app",
        "postgres://me@db:5432,db2/app?target_session_attrs=read-write",
        "postgresql://%2Frun%2Fpg/app",
        "postgresql://[::1]:5432/app?sslmode=require"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(dsns); i++)
        assert_masked(dsns[i], dsns[i]);
}

static void passwords_in_pairs_are_hidden(void **state)
{
    (void)state;
    assert_masked("password=x", "password=***");
    assert_masked("host=db password=geheim user=me", "host=db password=*** user=me");
    assert_masked("password = 'a b\\'c' user=me", "password = *** user=me");
    assert_masked("password=a\\ b user=me", "password=*** user=me");
    assert_masked("password=", "password=***");
    assert_masked("PASSWORD=x", "PASSWORD=***");
    assert_masked("sslpassword=x host=db", "sslpassword=*** host=db");
    assert_masked("password='a' password=b", "password=*** password=***");
    assert_masked("password='a'host=b", "password=***host=b");
}

static void passwords_in_uris_are_hidden(void **state)
{
    (void)state;
    assert_masked("postgresql://me:geheim@db/app", "postgresql://me:***@db/app");
    assert_masked("postgres://me:geheim@db:5432/app?x=y",
                  "postgres://me:***@db:5432/app?x=y");
    assert_masked("postgresql://:p@db", "postgresql://:***@db");
    assert_masked("postgresql://db/app?password=geheim",
                  "postgresql://db/app?password=***");
    assert_masked("postgresql://me@db/app?user=x&password=a&sslpassword=b&z=1",
                  "postgresql://me@db/app?user=x&password=***&sslpassword=***&z=1");
    assert_masked("postgresql://me:a@db?p%61ssword=b",
                  "postgresql://me:***@db?p%61ssword=***");
}

static void a_password_that_should_have_been_escaped_is_hidden_whole(void **state)
{
    (void)state;
    assert_masked("postgresql://me:a@b@db/app", "postgresql://me:***@db/app");
    assert_masked("postgresql://me:a/b@db/app", "postgresql://me:***@db/app");
    assert_masked("postgresql://me:a?b@db/app?x=y", "postgresql://me:***@db/app?x=y");
    assert_masked("postgresql://me:a:b@db", "postgresql://me:***@db");
}

static void what_cannot_be_understood_is_hidden_whole(void **state)
{
    (void)state;
    assert_masked("geheim", "***");
    assert_masked("password='never ends", "***");
    assert_masked("host=db geheim", "***");
    assert_masked("=geheim", "***");
    assert_masked("mysql://me:geheim@db", "***");
}

/* A file with that content; the name is in `path`. */
static void write_file(char path[64], const char *content, size_t len)
{
    (void)snprintf(path, 64, "/tmp/test_secret.XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, content, len), len);
    close(fd);
}

static int read_back(const char *content, size_t len, char **ret_secret, struct err *err)
{
    char path[64];

    write_file(path, content, len);
    int code = secret_read(path, ret_secret, err);
    unlink(path);
    return code;
}

static void the_line_break_at_the_end_is_not_part_of_the_password(void **state)
{
    static const char *const files[] = {" ge heim ", " ge heim \n", " ge heim \r\n"};
    char *secret;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        assert_int_equal(read_back(files[i], strlen(files[i]), &secret, NULL), 0);
        assert_string_equal(secret, " ge heim ");
        secret_free(secret);
    }
    secret_free(NULL);
}

static void what_is_no_password_file_is_refused(void **state)
{
    static char longer[5000];
    char *secret = NULL;
    struct err err;

    (void)state;
    memset(longer, 'x', sizeof(longer));
    assert_int_equal(read_back("", 0, &secret, &err), -EINVAL);
    assert_non_null(strstr(err.text, "is empty"));
    assert_int_equal(read_back("\n", 1, &secret, &err), -EINVAL);
    assert_int_equal(read_back("a\0b", 3, &secret, &err), -EINVAL);
    assert_non_null(strstr(err.text, "NUL"));
    assert_int_equal(read_back(longer, sizeof(longer), &secret, &err), -EINVAL);
    assert_int_equal(read_back(longer, 4096, &secret, &err), 0);
    secret_free(secret);
    secret = NULL;
    assert_int_equal(secret_read("/nowhere/at/all", &secret, &err), -ENOENT);
    assert_non_null(strstr(err.text, "/nowhere/at/all"));
    assert_int_equal(secret_read("/tmp", &secret, &err), -EISDIR);
    failing_malloc_begin(1);
    assert_int_equal(read_back("x", 1, &secret, &err), -ENOMEM);
    assert_true(failing_malloc_end());
    assert_null(secret);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_holds_no_password_is_shown_as_it_is),
        cmocka_unit_test(passwords_in_pairs_are_hidden),
        cmocka_unit_test(passwords_in_uris_are_hidden),
        cmocka_unit_test(a_password_that_should_have_been_escaped_is_hidden_whole),
        cmocka_unit_test(what_cannot_be_understood_is_hidden_whole),
        cmocka_unit_test(the_line_break_at_the_end_is_not_part_of_the_password),
        cmocka_unit_test(what_is_no_password_file_is_refused),
    };
    return cmocka_run_group_tests_name("secret", tests, NULL, NULL);
}
