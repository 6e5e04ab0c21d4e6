/* test_sockets.c - the addresses of [http] listen, as listening sockets. */
#include "buf.h"
#include "sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"
#include "cmocka_all.h"
#include "failing_malloc.h"

static char folder[] = "/tmp/test_sockets.XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder); /* fails if a socket file was left behind */
}

static uint64_t soon(void)
{
    return clock_usec() + 5 * USEC_PER_SEC;
}

static struct sockets *open_one(const char *addresses, char text[SOCKETS_TEXT_MAX])
{
    struct sockets *sockets = NULL;
    struct err err = {.text = ""};

    if (sockets_open(addresses, &sockets, &err) < 0)
        fail_msg("%s", err.text);
    sockets_describe(sockets_fd(sockets, 0), text);
    return sockets;
}

static void assert_reachable(const char *address, int listening)
{
    struct err err = {.text = ""};
    int fd = sockets_connect(address, soon(), &err);

    if (fd < 0)
        fail_msg("%s", err.text);
    int peer = accept(listening, NULL, NULL);
    assert_true(peer >= 0);
    close(peer);
    close(fd);
}

static void a_free_port_is_found_described_and_reached(void **state)
{
    char text[SOCKETS_TEXT_MAX];
    struct sockets *sockets = open_one("127.0.0.1:0", text);
    unsigned port = 0;

    (void)state;
    assert_int_equal(sockets_count(sockets), 1);
    assert_int_equal(sscanf(text, "127.0.0.1:%u", &port), 1);
    assert_true(port > 0);
    assert_reachable(text, sockets_fd(sockets, 0));
    sockets_close(sockets);
}

static void every_address_is_reached_over_the_loopback(void **state)
{
    char text[SOCKETS_TEXT_MAX], all[SOCKETS_TEXT_MAX];
    struct sockets *sockets = open_one("0.0.0.0:0", text);

    (void)state;
    assert_reachable(text, sockets_fd(sockets, 0));
    snprintf(all, sizeof(all), "*%s", strrchr(text, ':'));
    assert_reachable(all, sockets_fd(sockets, 0));
    sockets_close(sockets);
}

static void a_star_listens_to_both_families(void **state)
{
    char text[SOCKETS_TEXT_MAX];
    struct sockets *sockets = open_one("*:0", text);

    (void)state;
    for (size_t i = 0; i < sockets_count(sockets); i++) {
        sockets_describe(sockets_fd(sockets, i), text);
        assert_true(strncmp(text, "0.0.0.0:", 8) == 0 || strncmp(text, "[::]:", 5) == 0);
        assert_reachable(text, sockets_fd(sockets, i));
    }
    assert_uint_in_range(sockets_count(sockets), 1, 2);
    sockets_close(sockets);
}

static void ipv6_stands_in_brackets(void **state)
{
    struct sockets *sockets = NULL;
    char text[SOCKETS_TEXT_MAX];

    (void)state;
    int code = sockets_open("[::1]:0", &sockets, NULL);
    if (code == -EADDRNOTAVAIL || code == -EAFNOSUPPORT)
        return; /* a machine without IPv6: nothing to listen to, and it was said */
    assert_int_equal(code, 0);
    sockets_describe(sockets_fd(sockets, 0), text);
    assert_int_equal(strncmp(text, "[::1]:", 6), 0);
    assert_reachable(text, sockets_fd(sockets, 0));
    sockets_close(sockets);
}

static void several_are_opened_nonblocking_and_close_on_exec(void **state)
{
    char list[256], text[SOCKETS_TEXT_MAX];

    (void)state;
    snprintf(list, sizeof(list), " 127.0.0.1:0 , unix:%s/a.sock,127.0.0.1:0,", folder);
    struct sockets *sockets = open_one(list, text);
    assert_int_equal(sockets_count(sockets), 3);
    for (size_t i = 0; i < 3; i++) {
        int fd = sockets_fd(sockets, i);
        assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
        assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        assert_int_equal(accept(fd, NULL, NULL), -1);
        assert_int_equal(errno, EAGAIN);
    }
    sockets_close(sockets);
}

static void a_port_that_is_taken_is_named(void **state)
{
    char text[SOCKETS_TEXT_MAX], wanted[256];
    struct sockets *sockets = open_one("127.0.0.1:0", text), *second = NULL;
    struct err err;

    (void)state;
    assert_int_equal(sockets_open(text, &second, &err), -EADDRINUSE);
    snprintf(
        wanted, sizeof(wanted),
        "could not listen on %s: Address already in use; is another gateway running?",
        text);
    assert_string_equal(err.text, wanted);
    assert_null(second);
    sockets_close(sockets);
    sockets = open_one(text, text); /* free again at once */
    sockets_close(sockets);
}

static void what_is_not_an_address_is_refused(void **state)
{
    static const char *const wrong[] = {
        "8080",     "localhost",     "127.0.0.1:",   "127.0.0.1:http", "a:70000",
        "a:123456", "::1:80",        "[::1]",        "[::1:80",        "[::1]80",
        "unix:",    "unix:relative", "127.0.0.1:-1", "a: 1",           "a:1:2"};
    struct sockets *sockets = NULL;
    struct err err;
    char longer[400] = "unix:/";

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        if (sockets_open(wrong[i], &sockets, &err) != -EINVAL)
            fail_msg("'%s' was taken", wrong[i]);
        assert_non_null(strstr(err.text, wrong[i]));
        assert_non_null(strstr(err.text, "write host:port, [v6]:port or unix:/path"));
    }
    assert_int_equal(sockets_open("", &sockets, &err), -EINVAL);
    assert_int_equal(sockets_open(" , ", &sockets, &err), -EINVAL);
    memset(longer + 6, 'x', 120);
    assert_int_equal(sockets_open(longer, &sockets, &err), -EINVAL);
    memset(longer + 6, 'x', sizeof(longer) - 7);
    assert_int_equal(sockets_open(longer, &sockets, &err), -EINVAL);
    assert_null(sockets);
}

static void one_bad_address_opens_none(void **state)
{
    struct sockets *sockets = NULL;
    struct err err;
    char list[256], path[128];

    (void)state;
    snprintf(path, sizeof(path), "%s/b.sock", folder);
    snprintf(list, sizeof(list), "unix:%s,192.0.2.1:80", path);
    assert_int_equal(sockets_open(list, &sockets, &err), -EADDRNOTAVAIL);
    assert_non_null(strstr(err.text, "192.0.2.1:80"));
    assert_int_equal(access(path, F_OK), -1);
}

static void a_socket_file_goes_with_its_socket(void **state)
{
    char address[128], text[SOCKETS_TEXT_MAX];

    (void)state;
    snprintf(address, sizeof(address), "unix:%s/c.sock", folder);
    struct sockets *sockets = open_one(address, text);
    assert_string_equal(text, address);
    assert_reachable(address, sockets_fd(sockets, 0));
    assert_int_equal(access(address + 5, F_OK), 0);
    sockets_close(sockets);
    assert_int_equal(access(address + 5, F_OK), -1);
}

static void a_socket_file_that_somebody_answers_behind_is_left_alone(void **state)
{
    char address[128], text[SOCKETS_TEXT_MAX];
    struct sockets *second = NULL;
    struct err err;

    (void)state;
    snprintf(address, sizeof(address), "unix:%s/d.sock", folder);
    struct sockets *sockets = open_one(address, text);
    assert_int_equal(sockets_open(address, &second, &err), -EADDRINUSE);
    assert_non_null(strstr(err.text, "is another gateway running?"));
    int peer = accept(sockets_fd(sockets, 0), NULL, NULL); /* the knock at the door */
    assert_true(peer >= 0);
    close(peer);
    assert_reachable(address, sockets_fd(sockets, 0));
    sockets_close(sockets);
}

static void a_socket_file_left_behind_is_replaced(void **state)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    char address[128], text[SOCKETS_TEXT_MAX];

    (void)state;
    snprintf(address, sizeof(address), "unix:%s/e.sock", folder);
    memcpy(to.sun_path, address + 5, strlen(address + 5));
    int dead = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(dead, (const struct sockaddr *)&to, sizeof(to)), 0);
    close(dead); /* as a crash would leave it */
    struct sockets *sockets = open_one(address, text);
    assert_reachable(address, sockets_fd(sockets, 0));
    sockets_close(sockets);
}

static void the_end_leaves_a_successors_file(void **state)
{
    char address[128], text[SOCKETS_TEXT_MAX];

    (void)state;
    snprintf(address, sizeof(address), "unix:%s/f.sock", folder);
    struct sockets *first = open_one(address, text);
    unlink(address + 5);
    struct sockets *second = open_one(address, text);
    sockets_close(first);
    assert_reachable(address, sockets_fd(second, 0));
    sockets_close(second);
}

static void any_other_file_is_never_replaced(void **state)
{
    char address[128];
    struct sockets *sockets = NULL;
    struct err err;

    (void)state;
    snprintf(address, sizeof(address), "unix:%s/g.txt", folder);
    int fd = open(address + 5, O_CREAT | O_WRONLY, 0600);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(sockets_open(address, &sockets, &err), -EEXIST);
    assert_non_null(strstr(err.text, "there is a file, not a socket"));
    assert_int_equal(unlink(address + 5), 0);
}

static void nobody_there_is_said_so(void **state)
{
    char text[SOCKETS_TEXT_MAX], address[128];
    struct sockets *sockets = open_one("127.0.0.1:0", text);
    struct err err;

    (void)state;
    sockets_close(sockets);
    assert_int_equal(sockets_connect(text, soon(), &err), -ECONNREFUSED);
    assert_non_null(strstr(err.text, text));
    snprintf(address, sizeof(address), "unix:%s/none.sock", folder);
    assert_int_equal(sockets_connect(address, soon(), &err), -ENOENT);
    assert_int_equal(sockets_connect("127.0.0.1:0", soon(), &err), -EINVAL);
    assert_int_equal(sockets_connect("", soon(), &err), -EINVAL);
}

static void too_many_are_refused(void **state)
{
    struct buf list = BUF_EMPTY;
    struct sockets *sockets = NULL;

    (void)state;
    for (int i = 0; i < SOCKETS_MAX; i++)
        (void)buf_add_text(&list, "127.0.0.1:0,");
    assert_int_equal(sockets_open(list.data, &sockets, NULL), 0);
    sockets_close(sockets);
    (void)buf_add_text(&list, "127.0.0.1:0");
    assert_int_equal(sockets_open(list.data, &sockets, NULL), -E2BIG);
    buf_done(&list);
}

static void what_is_no_socket_is_described_all_the_same(void **state)
{
    char text[SOCKETS_TEXT_MAX];

    (void)state;
    sockets_describe(-1, text);
    assert_string_equal(text, "?");
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    sockets_describe(fd, text);
    assert_int_equal(strncmp(text, "unix:", 5), 0);
    close(fd);
}

static void without_memory_nothing_is_left_behind(void **state)
{
    char address[128];
    bool failed = true;

    (void)state;
    snprintf(address, sizeof(address), "127.0.0.1:0,unix:%s/h.sock", folder);
    for (unsigned n = 1; failed; n++) {
        struct sockets *sockets = NULL;
        failing_malloc_begin(n);
        int code = sockets_open(address, &sockets, NULL);
        failed = failing_malloc_end();
        assert_int_equal(code, failed ? -ENOMEM : 0);
        sockets_close(sockets);
        assert_int_equal(access(strchr(address, '/'), F_OK), -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_free_port_is_found_described_and_reached),
        cmocka_unit_test(every_address_is_reached_over_the_loopback),
        cmocka_unit_test(a_star_listens_to_both_families),
        cmocka_unit_test(ipv6_stands_in_brackets),
        cmocka_unit_test(several_are_opened_nonblocking_and_close_on_exec),
        cmocka_unit_test(a_port_that_is_taken_is_named),
        cmocka_unit_test(what_is_not_an_address_is_refused),
        cmocka_unit_test(one_bad_address_opens_none),
        cmocka_unit_test(a_socket_file_goes_with_its_socket),
        cmocka_unit_test(a_socket_file_that_somebody_answers_behind_is_left_alone),
        cmocka_unit_test(a_socket_file_left_behind_is_replaced),
        cmocka_unit_test(the_end_leaves_a_successors_file),
        cmocka_unit_test(any_other_file_is_never_replaced),
        cmocka_unit_test(nobody_there_is_said_so),
        cmocka_unit_test(too_many_are_refused),
        cmocka_unit_test(what_is_no_socket_is_described_all_the_same),
        cmocka_unit_test(without_memory_nothing_is_left_behind),
    };
    return cmocka_run_group_tests_name("sockets", tests, make_folder, remove_folder);
}
