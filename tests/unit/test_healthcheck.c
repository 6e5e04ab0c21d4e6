/* test_healthcheck.c - asks the gateway of this machine whether it is ready. */
#include "healthcheck.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "cmocka_all.h"
#include "failing_malloc.h"
#include "sockets.h"
#include "thread.h"

/* A server of one answer, in pieces; then it closes, or is silent until the client goes. */
struct server {
    struct sockets *sockets;
    struct thread thread;
    const char *pieces[4]; /* NULL ends them */
    bool silent;
    char request[512];
};

static void serve(void *argument)
{
    struct server *server = argument;
    int listening = sockets_fd(server->sockets, 0);
    struct pollfd ready = {.fd = listening, .events = POLLIN};

    poll(&ready, 1, 10000);
    int fd = accept(listening, NULL, NULL);
    if (fd < 0)
        return;
    ssize_t len = recv(fd, server->request, sizeof(server->request) - 1, 0);
    server->request[len < 0 ? 0 : len] = '\0';
    for (size_t i = 0; server->pieces[i] != NULL; i++) {
        send(fd, server->pieces[i], strlen(server->pieces[i]), MSG_NOSIGNAL);
        usleep(1000); /* so that they come in separate reads */
    }
    char rest;
    while (server->silent && recv(fd, &rest, 1, 0) > 0)
        ;
    close(fd);
}

static int ask(struct server *server, uint64_t timeout_usec, char *text, size_t size,
               struct err *err)
{
    char address[SOCKETS_TEXT_MAX];

    assert_int_equal(sockets_open("127.0.0.1:0", &server->sockets, NULL), 0);
    sockets_describe(sockets_fd(server->sockets, 0), address);
    assert_int_equal(thread_start(&server->thread, THREAD_READER, 0, serve, server, NULL),
                     0);
    int code = healthcheck_run(address, timeout_usec, text, size, err);
    thread_join(&server->thread);
    sockets_close(server->sockets);
    return code;
}

static void ready_is_ready(void **state)
{
    struct server server = {.pieces = {"HTTP/1.0 20", "0 OK\r\nA: b\r\n\r\nre", "ady\n"}};
    char text[64] = "";
    struct err err = {.text = ""};

    (void)state;
    assert_int_equal(ask(&server, 5 * USEC_PER_SEC, text, sizeof(text), &err), 0);
    assert_string_equal(text, "ready");
    assert_int_equal(strncmp(server.request, "GET /readyz HTTP/1.0\r\n", 22), 0);
    assert_non_null(strstr(server.request, "\r\n\r\n"));
}

static void not_ready_says_why(void **state)
{
    struct server server = {.pieces = {"HTTP/1.1 503 Service Unavailable\r\n\r\n",
                                       "database away\nsince 5 s\n"}};
    char text[64] = "untouched";
    struct err err;

    (void)state;
    assert_int_equal(ask(&server, 5 * USEC_PER_SEC, text, sizeof(text), &err), -EIO);
    assert_string_equal(err.text, "not ready (503): database away since 5 s");
    assert_string_equal(text, "untouched");
}

static void what_does_not_speak_http_is_not_ready(void **state)
{
    static const char *const answers[] = {"", "SSH-2.0-x\r\n\r\n", "HTTP/1.1 200 OK\r\n",
                                          "HTTP/2 200\r\n\r\n"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
        struct server server = {.pieces = {answers[i]}};
        struct err err;
        assert_int_equal(ask(&server, 5 * USEC_PER_SEC, NULL, 0, &err), -EIO);
        assert_non_null(strstr(err.text, "does not speak HTTP"));
    }
}

static void silence_ends_at_the_deadline(void **state)
{
    struct server server = {.pieces = {"HTTP/1.1 200 OK\r\n\r\nrea"}, .silent = true};
    struct err err;
    uint64_t begin = clock_usec();

    (void)state;
    assert_int_equal(ask(&server, 100000, NULL, 0, &err), -ETIMEDOUT);
    assert_true(clock_usec() - begin >= 100000);
}

static void nobody_there_is_an_error_of_its_own(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(healthcheck_run("unix:/nowhere/x", 1000000, NULL, 0, &err), -ENOENT);
    assert_non_null(strstr(err.text, "unix:/nowhere/x"));
}

static void without_memory_it_says_so(void **state)
{
    struct server server = {.pieces = {"HTTP/1.0 200 OK\r\n\r\nready"}};
    struct err err;
    char address[SOCKETS_TEXT_MAX];

    (void)state;
    assert_int_equal(sockets_open("127.0.0.1:0", &server.sockets, NULL), 0);
    sockets_describe(sockets_fd(server.sockets, 0), address);
    assert_int_equal(thread_start(&server.thread, THREAD_READER, 0, serve, &server, NULL),
                     0);
    failing_malloc_begin(1);
    int code = healthcheck_run(address, 5 * USEC_PER_SEC, NULL, 0, &err);
    assert_true(failing_malloc_end());
    assert_int_equal(code, -ENOMEM);
    thread_join(&server.thread);
    sockets_close(server.sockets);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ready_is_ready),
        cmocka_unit_test(not_ready_says_why),
        cmocka_unit_test(what_does_not_speak_http_is_not_ready),
        cmocka_unit_test(silence_ends_at_the_deadline),
        cmocka_unit_test(nobody_there_is_an_error_of_its_own),
        cmocka_unit_test(without_memory_it_says_so),
    };
    return cmocka_run_group_tests_name("healthcheck", tests, NULL, NULL);
}
