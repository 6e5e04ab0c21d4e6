/*
 * healthcheck.c - asks the gateway of this machine whether it is ready.
 */
#include "healthcheck.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buf.h"
#include "clock.h"
#include "sockets.h"

#define ANSWER_MAX ((size_t)64 * KIB)

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
}

/* 0 when the socket can be used; -ETIMEDOUT. */
static int wait_for(int fd, short events, uint64_t due_usec, struct err *err)
{
    struct pollfd ready = {.fd = fd, .events = events};
    int count;

    do
        count = poll(&ready, 1, clock_timeout_msec(due_usec));
    while (count < 0 && errno == EINTR);
    if (count < 0)
        return err_set(err, -errno, "could not wait for the gateway: %s",
                       strerror(errno));
    if (count == 0)
        return err_set(err, -ETIMEDOUT, "the gateway did not answer in time");
    return 0;
}

static int send_request(int fd, uint64_t due_usec, struct err *err)
{
    /* 1.0: the answer ends with the connection and is not chunked. */
    static const char request[] = "GET /readyz HTTP/1.0\r\n"
                                  "Host: localhost\r\n"
                                  "User-Agent: pg-sse-gateway-healthcheck\r\n\r\n";
    size_t sent = 0;

    while (sent < sizeof(request) - 1) {
        ssize_t now = send(fd, request + sent, sizeof(request) - 1 - sent, MSG_NOSIGNAL);
        if (now >= 0) {
            sent += (size_t)now;
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return err_set(err, -errno, "could not ask the gateway: %s", strerror(errno));
        int code = wait_for(fd, POLLOUT, due_usec, err);
        if (code < 0)
            return code;
    }
    return 0;
}

static int read_answer(int fd, uint64_t due_usec, struct buf *answer, struct err *err)
{
    char part[4096];

    while (answer->len < ANSWER_MAX) {
        ssize_t got = recv(fd, part, sizeof(part), 0);
        if (got == 0)
            break;
        if (got > 0) {
            buf_add(answer, part, (size_t)got);
            continue;
        }
        if (errno != EAGAIN && errno != EINTR)
            return err_set(err, -errno, "could not read the answer: %s", strerror(errno));
        int code = wait_for(fd, POLLIN, due_usec, err);
        if (code < 0)
            return code;
    }
    buf_add(answer, "", 0); /* text, even if nothing came */
    return buf_ok(answer) < 0 ? err_set(err, -ENOMEM, "no memory for the answer") : 0;
}

static int judge(const char *answer, char *ret_text, size_t size, struct err *err)
{
    unsigned status;
    const char *end = strstr(answer, "\r\n\r\n");

    if (end == NULL || sscanf(answer, "HTTP/1.%*1[01] %3u", &status) != 1)
        return err_set(err, -EIO, "what answers there does not speak HTTP");

    struct err body; /* for what err_set() makes of a text: one line */
    err_set(&body, 0, "%s", end + 4);
    if (status != 200)
        return err_set(err, -EIO, "not ready (%u): %.400s", status, body.text);
    if (size > 0)
        snprintf(ret_text, size, "%s", body.text);
    return 0;
}

int healthcheck_run(const char *listen, uint64_t timeout_usec, char *ret_text,
                    size_t size, struct err *err)
{
    CLEANUP(buf_done) struct buf answer = BUF_EMPTY;
    uint64_t due_usec = clock_usec() + timeout_usec;
    CLEANUP(close_fd) int fd = sockets_connect(listen, due_usec, err);

    if (fd < 0)
        return fd;
    int code = send_request(fd, due_usec, err);
    if (code == 0)
        code = read_answer(fd, due_usec, &answer, err);
    return code < 0 ? code : judge(answer.data, ret_text, size, err);
}
