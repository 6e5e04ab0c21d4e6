/*
 * ring.c - the gateway without its database: what does it cost apart from PostgreSQL?
 *
 *     POST /events?channel=orders ──> feeder ──> ring ──> shard ──> subscribers
 *       (publish port; a line is        (here)   └─── the gateway's own rooms ───┘
 *        one event's data)
 *
 * The time that an event says it was sent is set to that of its push: what a subscriber makes of
 * it is the way from the ring.
 *
 * Everything of the gateway is here and wired as serve.c does it, with the same defaults:
 * limits, heartbeats, maximum age, metrics, resuming from the ring. Only the threads that talk
 * to PostgreSQL are not started. In the listener's place a feeder fills the ring: the lines
 * of one POST are pushed together and the shards woken once, as for one fetch.
 *
 *     ring --port N --publish-port N [--set SECTION.KEY=VALUE]...
 *
 * One shard, unless [server] shards is set. SIGTERM ends it.
 */
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "buf.h"
#include "clock.h"
#include "config.h"
#include "figures.h"
#include "http.h"
#include "listener.h"
#include "page.h"
#include "publisher.h"
#include "readers.h"
#include "replay.h"
#include "ring.h"
#include "shard.h"
#include "sockets.h"
#include "stats.h"

/* Descriptors that are no subscribers'. */
#define OTHER_FDS ((size_t)400)

/* The number of the newest event when it starts. */
#define FIRST_SEQ 1000

struct bench {
    struct config *config;
    struct stats *stats;
    struct sockets *sockets;
    struct ring *ring;
    struct listener *listener;
    struct publisher *publisher;
    struct readers *readers;
    struct replay *replay;
    struct page *page;
    struct http *http;
    struct shards *shards;
    struct MHD_Daemon *feeder;
    uint64_t seq; /* the feeder's own */
};

/* -- the feeder: in the listener's place -- */

/* Digits for digits; see CROWD_DATA. */
static void stamp(char *data, size_t len)
{
    static const char field[] = "\"t\":\"";
    char *at = memmem(data, len, field, sizeof(field) - 1), digits[17];

    if (at == NULL || at + sizeof(field) - 1 + 16 > data + len)
        return;
    (void)snprintf(digits, sizeof(digits), "%016llu",
                   (unsigned long long)figures_now_usec());
    memcpy(at + sizeof(field) - 1, digits, 16);
}

static void push_line(struct bench *bench, const char *channel, char *data, size_t len)
{
    stamp(data, len);
    struct sse_frame *frame =
        sse_frame_new(&(struct event){.seq = ++bench->seq,
                                      .channel = channel,
                                      .channel_len = strlen(channel),
                                      .type = EVENT_DEFAULT_TYPE,
                                      .type_len = strlen(EVENT_DEFAULT_TYPE),
                                      .data = data,
                                      .data_len = len});

    if (frame == NULL)
        return;
    stats_add(bench->stats, STATS_EVENTS_RECEIVED, 1);
    stats_add(bench->stats, STATS_EVENTS_RECEIVED_BYTES, frame->body_len);
    ring_push(bench->ring, frame);
}

static void push_lines(struct bench *bench, const char *channel, const struct buf *body)
{
    char *end = body->data + body->len;

    for (char *line = body->data, *next; line < end; line = next + 1) {
        next = memchr(line, '\n', (size_t)(end - line));
        if (next == NULL)
            next = end;
        if (next > line)
            push_line(bench, channel, line, (size_t)(next - line));
    }
    ring_wake(bench->ring);
}

static enum MHD_Result answer_feed(void *argument, struct MHD_Connection *mhd,
                                   const char *path, const char *method,
                                   const char *version, const char *upload,
                                   size_t *upload_len, void **state)
{
    struct bench *bench = argument;
    struct buf *body = *state;
    const char *channel =
        MHD_lookup_connection_value(mhd, MHD_GET_ARGUMENT_KIND, "channel");

    (void)path;
    (void)method;
    (void)version;
    if (body == NULL) {
        *state = calloc(1, sizeof(struct buf));
        return *state != NULL ? MHD_YES : MHD_NO;
    }
    if (*upload_len > 0) {
        (void)buf_add(body, upload, *upload_len);
        *upload_len = 0;
        return MHD_YES;
    }
    if (buf_ok(body) == 0 && body->len > 0)
        push_lines(bench, channel != NULL ? channel : EVENT_DEFAULT_CHANNEL, body);

    struct MHD_Response *response =
        MHD_create_response_from_buffer(0, NULL, MHD_RESPMEM_PERSISTENT);
    const enum MHD_Result result = MHD_queue_response(mhd, MHD_HTTP_ACCEPTED, response);
    MHD_destroy_response(response);
    return result;
}

static void feed_over(void *argument, struct MHD_Connection *mhd, void **state,
                      enum MHD_RequestTerminationCode how)
{
    (void)argument;
    (void)mhd;
    (void)how;
    if (*state != NULL)
        buf_done(*state);
    free(*state);
}

static int start_feeder(struct bench *bench, uint16_t port, struct err *err)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons(port),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    bench->feeder =
        MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, port, NULL, NULL, answer_feed,
                         bench, MHD_OPTION_SOCK_ADDR, (const struct sockaddr *)&address,
                         MHD_OPTION_NOTIFY_COMPLETED, feed_over, NULL, MHD_OPTION_END);
    if (bench->feeder == NULL)
        return err_set(err, -EIO, "could not listen on port %u for events", port);
    return 0;
}

/* -- the gateway -- */

/* There, because the front wants them, and never started. */
static void make_doors(struct bench *bench)
{
    const struct config *config = bench->config;

    bench->listener = listener_new(
        &(struct listener_settings){.ring = bench->ring, .stats = bench->stats});
    bench->publisher = publisher_new(&(struct publisher_settings){
        .queue_bytes = config->limits.publish_queue_bytes, .stats = bench->stats});
    bench->readers =
        readers_new(&(struct readers_settings){.count = 1, .jobs_max = 1000});
    bench->replay = replay_new(&(struct replay_settings){
        .readers = bench->readers, .stats = bench->stats, .bytes_max = MIB});
}

static int make_front(struct bench *bench, struct err *err)
{
    const struct config *config = bench->config;

    bench->page = page_new(config->http.static_dir, err);
    if (bench->page == NULL)
        return -ENOENT;
    bench->http = http_new(&(struct http_settings){
        .stats = bench->stats,
        .listener = bench->listener,
        .publisher = bench->publisher,
        .readers = bench->readers,
        .page = bench->page,
        .cors_origins = config->http.cors_origins,
        .retry_usec = config->stream.retry_usec,
        .header_max = config->limits.header_bytes,
        .body_max = config->limits.body_bytes,
        .body_time_usec = config->limits.body_time_usec,
        .keep_alive_usec = config->limits.keep_alive_usec,
        .publish_time_usec = config->limits.publish_time_usec,
        .channels_max = config->stream.channels_count,
    });
    return bench->http != NULL ? 0 : err_set(err, -ENOMEM, "no memory");
}

/* As many connections as there can be descriptors. */
static size_t places(void)
{
    struct rlimit limit = {0};

    (void)getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    return MAX(limit.rlim_max, OTHER_FDS + 16) - OTHER_FDS;
}

static int make_shards(struct bench *bench, struct err *err)
{
    const struct config *config = bench->config;
    const uint64_t max_age = config->stream.max_age_usec;
    const int listen_fd = sockets_fd(bench->sockets, 0);

    bench->shards = shards_new(
        &(struct shard_settings){
            .count = config_shards(config),
            .listen_fds = &listen_fd,
            .listen_fd_count = 1,
            .ring = bench->ring,
            .replay = bench->replay,
            .stats = bench->stats,
            .timing = {.heartbeat_usec = config->stream.heartbeat_usec,
                       .retry_usec = config->stream.retry_usec,
                       .max_age_usec = max_age > 0 ? max_age : CLOCK_NEVER,
                       .idle_close_usec = config->stream.idle_close_usec},
            .header_max = config->limits.header_bytes,
            .header_time_usec = config->limits.header_time_usec,
            .connections_max = places(),
            .guests_max = OTHER_FDS / 2,
            .front = {.answer = http_answer,
                      .completed = http_completed,
                      .unescape = http_unescape,
                      .begun = http_begun,
                      .argument = bench->http},
        },
        err);
    return bench->shards != NULL ? 0 : -ENOMEM;
}

static int start(struct bench *bench, uint16_t publish_port, struct err *err)
{
    int result = sockets_open(bench->config->http.listen, &bench->sockets, err);

    if (result < 0)
        return result;
    bench->stats = stats_new();
    bench->ring = ring_new(bench->config->ring.bytes, config_shards(bench->config));
    if (bench->stats == NULL || bench->ring == NULL)
        return err_set(err, -ENOMEM, "no memory for the ring");
    bench->seq = FIRST_SEQ;
    ring_start(bench->ring, FIRST_SEQ, FIRST_SEQ);
    make_doors(bench);
    if (bench->listener == NULL || bench->publisher == NULL || bench->replay == NULL)
        return err_set(err, -ENOMEM, "no memory");
    result = make_front(bench, err);
    if (result == 0)
        result = make_shards(bench, err);
    if (result == 0)
        result = shards_start(bench->shards, err);
    if (result == 0)
        result = start_feeder(bench, publish_port, err);
    return result;
}

static void stop(struct bench *bench)
{
    if (bench->feeder != NULL)
        MHD_stop_daemon(bench->feeder);
    if (bench->shards != NULL)
        shards_stop(bench->shards);
    shards_free(bench->shards);
    http_free(bench->http);
    page_free(bench->page);
    replay_free(bench->replay);
    readers_free(bench->readers);
    publisher_free(bench->publisher);
    listener_free(bench->listener);
    ring_free(bench->ring);
    stats_free(bench->stats);
    sockets_close(bench->sockets);
    config_free(bench->config);
}

/* -- the command line -- */

static void tell_and_wait(const struct bench *bench)
{
    char address[SOCKETS_TEXT_MAX];
    sigset_t signals;
    int came;

    sockets_describe(sockets_fd(bench->sockets, 0), address);
    (void)printf("listening on %s, for events on port %u\n", address,
                 MHD_get_daemon_info(bench->feeder, MHD_DAEMON_INFO_BIND_PORT)->port);
    (void)fflush(stdout);
    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigwait(&signals, &came);
}

static void block_signals(void)
{
    sigset_t signals;

    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
}

static int read_options(int argc, char *argv[], struct config *config,
                        uint16_t *ret_publish_port, struct err *err)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},
        {"publish-port", required_argument, NULL, 'e'},
        {"set", required_argument, NULL, 's'},
        {NULL, 0, NULL, 0}};
    char text[64];
    int result = config_set(config, "server.shards=1", err);

    for (int option;
         result == 0 && (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'p') {
            (void)snprintf(text, sizeof(text), "http.listen=127.0.0.1:%s", optarg);
            result = config_set(config, text, err);
        } else if (option == 'e') {
            *ret_publish_port = (uint16_t)strtoul(optarg, NULL, 10);
        } else if (option == 's') {
            result = config_set(config, optarg, err);
        } else {
            result = err_set(err, -EINVAL,
                             "ring --port N --publish-port N [--set "
                             "SECTION.KEY=VALUE]...");
        }
    }
    return result;
}

int main(int argc, char *argv[])
{
    char *const no_environment[] = {NULL};
    struct bench bench = {.config = config_new()};
    uint16_t publish_port = 0;
    struct err err;

    if (bench.config == NULL)
        return 1;
    block_signals();
    int result = read_options(argc, argv, bench.config, &publish_port, &err);
    if (result == 0)
        result = config_load(bench.config, "/dev/null", no_environment, &err);
    if (result == 0)
        result = start(&bench, publish_port, &err);
    if (result == 0)
        tell_and_wait(&bench);
    else
        (void)fprintf(stderr, "ring: %s\n", err.text);
    stop(&bench);
    return result == 0 ? 0 : 1;
}
