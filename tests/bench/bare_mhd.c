/*
 * bare_mhd.c - the limit for POSTs: libmicrohttpd, and nothing behind it.
 *
 *     bare_mhd [--port N] [--internal]
 *
 * Takes POST /events, gathers the body, and answers at once with the status, the headers and
 * the body that the gateway would answer with. No database, no check of anything, no
 * waiting: what is left is what HTTP costs. One thread with epoll, which runs libmicrohttpd
 * itself: the library's own thread (--internal) hangs when exactly 128 or 256 connections have
 * something at once (0.9.75), which 256 in a closed loop do at once. Where both work they are
 * equally fast.
 *
 * Prints "listening on 127.0.0.1:PORT" and runs until SIGINT or SIGTERM.
 */
#include <arpa/inet.h>
#include <microhttpd.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base.h"

#define BODY_MAX 65536

struct post {
    size_t len;
    char body[BODY_MAX];
};

static enum MHD_Result refuse(struct MHD_Connection *mhd, unsigned status)
{
    static char nothing[1];
    struct MHD_Response *response =
        MHD_create_response_from_buffer(0, nothing, MHD_RESPMEM_PERSISTENT);
    const enum MHD_Result result = MHD_queue_response(mhd, status, response);

    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer_created(struct MHD_Connection *mhd)
{
    static unsigned long long number; /* there is one thread */
    char location[48];
    char text[128];
    const int len =
        snprintf(text, sizeof(text),
                 "{\"id\":\"%llu\",\"channel\":\"c\",\"type\":\"message\"}", ++number);
    struct MHD_Response *response =
        MHD_create_response_from_buffer((size_t)len, text, MHD_RESPMEM_MUST_COPY);

    (void)snprintf(location, sizeof(location), "/events/%llu", number);
    (void)MHD_add_response_header(response, "Content-Type", "application/json");
    (void)MHD_add_response_header(response, "Cache-Control", "no-store");
    (void)MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    (void)MHD_add_response_header(response, "Location", location);
    const enum MHD_Result result = MHD_queue_response(mhd, MHD_HTTP_CREATED, response);
    MHD_destroy_response(response);
    return result;
}

static enum MHD_Result answer(void *argument, struct MHD_Connection *mhd,
                              const char *path, const char *method, const char *version,
                              const char *upload, size_t *upload_len, void **state)
{
    struct post *post = *state;

    (void)argument;
    (void)version;
    if (strcmp(path, "/events") != 0 || strcmp(method, "POST") != 0)
        return refuse(mhd, MHD_HTTP_NOT_FOUND);
    if (post == NULL) {
        *state = post = malloc(sizeof(*post));
        if (post == NULL)
            return MHD_NO;
        post->len = 0;
        return MHD_YES;
    }
    if (*upload_len == 0)
        return answer_created(mhd);
    if (post->len + *upload_len > BODY_MAX)
        return MHD_NO;
    memcpy(post->body + post->len, upload, *upload_len);
    post->len += *upload_len;
    *upload_len = 0;
    return MHD_YES;
}

static void completed(void *argument, struct MHD_Connection *mhd, void **state,
                      enum MHD_RequestTerminationCode how)
{
    (void)argument;
    (void)mhd;
    (void)how;
    free(*state);
    *state = NULL;
}

static volatile sig_atomic_t ended;

static void on_signal(int number)
{
    (void)number;
    ended = 1;
}

/* What libmicrohttpd's own thread does, but with a look at the sockets that never waits
 * while there is something to do. */
static void run_until_signal(struct MHD_Daemon *daemon)
{
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_EPOLL_FD);
    struct pollfd sockets = {.fd = info->epoll_fd, .events = POLLIN};
    MHD_UNSIGNED_LONG_LONG msec;

    while (!ended) {
        const bool more = MHD_get_timeout(daemon, &msec) == MHD_YES && msec == 0;

        (void)poll(&sockets, 1, more ? 0 : 1000);
        (void)MHD_run(daemon);
    }
}

static struct MHD_Daemon *start(unsigned flags, const struct sockaddr_in *address)
{
    return MHD_start_daemon(flags | MHD_USE_TURBO | MHD_USE_ERROR_LOG, 0, NULL, NULL,
                            answer, NULL, MHD_OPTION_SOCK_ADDR,
                            (const struct sockaddr *)address, MHD_OPTION_CONNECTION_LIMIT,
                            20000U, MHD_OPTION_NOTIFY_COMPLETED, completed, NULL,
                            MHD_OPTION_END);
}

int main(int argc, char **argv)
{
    const bool internal = argc > 1 && strcmp(argv[argc - 1], "--internal") == 0;
    const bool chosen = argc > 2 && strcmp(argv[1], "--port") == 0;
    const struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(chosen ? (uint16_t)strtoul(argv[2], NULL, 10) : 0),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    (void)signal(SIGINT, on_signal);
    (void)signal(SIGTERM, on_signal);
    struct MHD_Daemon *daemon =
        start(internal ? MHD_USE_EPOLL_INTERNAL_THREAD : MHD_USE_EPOLL, &address);
    const union MHD_DaemonInfo *info =
        daemon != NULL ? MHD_get_daemon_info(daemon, MHD_DAEMON_INFO_BIND_PORT) : NULL;

    if (info == NULL) {
        fprintf(stderr, "bare_mhd: could not listen\n");
        return 1;
    }
    printf("listening on 127.0.0.1:%u\n", info->port);
    (void)fflush(stdout);
    while (internal && !ended)
        (void)poll(NULL, 0, 1000);
    if (!internal)
        run_until_signal(daemon);
    MHD_stop_daemon(daemon);
    return 0;
}
