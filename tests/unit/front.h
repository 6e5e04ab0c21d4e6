/*
 * front.h - shards with the real HTTP front for unit tests, and clients on the loopback that
 * read bytes strictly.
 *
 * The publisher and the listener are there and never started: the test is the ring's writer
 * itself. The readers run; without a `dsn` they never find a database, and whoever needs the
 * table waits.
 */
#ifndef FRONT_H
#define FRONT_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmocka_all.h"

#include "buf.h"
#include "clock.h"
#include "http.h"
#include "relay.h"
#include "ring.h"
#include "shard.h"
#include "sse.h"

#define FRONT_UNUSED __attribute__((unused))

/* Whoever waits longer than this waits in vain. */
#define FRONT_PATIENCE_USEC (60 * USEC_PER_SEC)

/* Between two requests of a connection; a test that takes its time has its own. */
#ifndef FRONT_KEEP_ALIVE_USEC
#define FRONT_KEEP_ALIVE_USEC (10 * USEC_PER_SEC)
#endif

/* FRONT_WAIT_FOR(condition): looks until it holds. */
#define FRONT_WAIT_FOR(condition)                                                        \
    do {                                                                                 \
        uint64_t front_end_usec = clock_usec() + FRONT_PATIENCE_USEC;                    \
        while (!(condition)) {                                                           \
            if (clock_usec() > front_end_usec)                                           \
                fail_msg("waited in vain for: %s", #condition);                          \
            usleep(1000);                                                                \
        }                                                                                \
    } while (0)

struct front_settings {
    size_t ring_bytes;                /* 0: 64 MiB */
    uint64_t heartbeat_usec;          /* 0: never, to all intents */
    uint64_t idle_close_usec;         /* 0: likewise */
    uint64_t max_age_usec;            /* 0: never */
    uint64_t header_time_usec;        /* 0: 10 s */
    size_t connections_max;           /* 0: 100 */
    size_t guests_max;                /* 0: 64 */
    unsigned shards;                  /* 0: 1 */
    bool not_started;                 /* ring_start() is the test's */
    const char *dsn;                  /* of the readers; NULL: there is no database */
    MHD_AccessHandlerCallback answer; /* NULL: http_answer() */
    uint64_t seq;                     /* where the ring begins; 0: 100 */
    const char *relay;                /* channels that are relayed; NULL: none */
};

struct front {
    struct stats *stats;
    struct ring *ring;
    struct relay *relay; /* NULL: nothing is relayed */
    struct listener *listener;
    struct publisher *publisher;
    struct readers *readers;
    struct replay *replay;
    struct page *page;
    struct http *http;
    struct shards *shards;
    int listen_fd;
    uint16_t port;
    uint64_t seq; /* of the newest event */
    bool started; /* the ring, before anybody came */
};

FRONT_UNUSED static int front_listen(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const int small = 16384; /* accepted sockets inherit it: a slow reader is soon full */

    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    assert_int_equal(bind(fd, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(fd, 128), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &len), 0);
    *ret_port = ntohs(address.sin_port);
    return fd;
}

/* A folder with a page in it, read and removed again. */
FRONT_UNUSED static struct page *front_page(void)
{
    char dir[] = "/tmp/pgsse-front-XXXXXX";
    char path[64];
    struct err err = {0};

    assert_non_null(mkdtemp(dir));
    (void)snprintf(path, sizeof(path), "%s/index.html", dir);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs("<!doctype html>hello\n", file) >= 0);
    assert_int_equal(fclose(file), 0);
    struct page *page = page_new(dir, &err);
    if (page == NULL)
        fail_msg("%s", err.text);
    (void)unlink(path);
    (void)rmdir(dir);
    return page;
}

/* Nobody LISTENs: it is as if the listener were away. */
FRONT_UNUSED static struct relay *front_relay(const struct front *front,
                                              const char *patterns)
{
    struct relay *relay = relay_new(&(struct relay_settings){
        .patterns = patterns, .channels_max = 100, .stats = front->stats});

    assert_non_null(relay);
    return relay;
}

FRONT_UNUSED static void front_make_doors(struct front *front, const char *dsn)
{
    front->listener = listener_new(&(struct listener_settings){.dsn = "host=/nonexistent",
                                                               .schema_version = 1,
                                                               .ring = front->ring,
                                                               .stats = front->stats});
    front->publisher =
        publisher_new(&(struct publisher_settings){.dsn = "host=/nonexistent",
                                                   .schema_version = 1,
                                                   .queue_bytes = MIB,
                                                   .stats = front->stats});
    front->readers =
        readers_new(&(struct readers_settings){.dsn = dsn, .count = 2, .jobs_max = 10});
    front->replay = replay_new(&(struct replay_settings){
        .readers = front->readers, .stats = front->stats, .bytes_max = 16 * MIB});
    front->page = front_page();
    front->http = http_new(&(struct http_settings){
        .stats = front->stats,
        .listener = front->listener,
        .publisher = front->publisher,
        .readers = front->readers,
        .page = front->page,
        .cors_origins = "https://friend.example",
        .retry_usec = 2 * USEC_PER_SEC,
        .header_max = 16 * KIB,
        .body_max = 100000,
        .body_time_usec = 10 * USEC_PER_SEC,
        .keep_alive_usec = FRONT_KEEP_ALIVE_USEC,
        .publish_time_usec = USEC_PER_SEC,
        .channels_max = 64,
    });
    assert_non_null(front->http);
}

/* The clients are in this process, too: each connection takes two descriptors of it. What
 * a shell begins with, 1024 most often, may be raised. */
FRONT_UNUSED static void front_allow_files(size_t connections)
{
    const rlim_t wanted = 2 * connections + 200;
    struct rlimit files;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    if (files.rlim_cur >= wanted)
        return;
    if (files.rlim_max < wanted)
        fail_msg("%ju file descriptors are not enough for %zu connections",
                 (uintmax_t)files.rlim_max, connections);
    files.rlim_cur = wanted;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
}

FRONT_UNUSED static void front_open(struct front *front,
                                    const struct front_settings *settings)
{
    const uint64_t long_usec = 3600 * USEC_PER_SEC;
    const unsigned count = settings->shards > 0 ? settings->shards : 1;
    struct err err = {0};

    front_allow_files(settings->connections_max);
    memset(front, 0, sizeof(*front));
    front->stats = stats_new();
    front->ring =
        ring_new(settings->ring_bytes > 0 ? settings->ring_bytes : 64 * MIB, count);
    front->seq = settings->seq > 0 ? settings->seq : 100;
    front->started = !settings->not_started;
    if (front->started)
        ring_start(front->ring, front->seq, front->seq);
    if (settings->relay != NULL)
        front->relay = front_relay(front, settings->relay);
    front_make_doors(front, settings->dsn != NULL ? settings->dsn : "host=/nonexistent");
    front->listen_fd = front_listen(&front->port);
#define OR(value, instead) ((value) > 0 ? (value) : (instead))
    front->shards = shards_new(
        &(struct shard_settings){
            .count = count,
            .listen_fds = &front->listen_fd,
            .listen_fd_count = 1,
            .ring = front->ring,
            .replay = front->replay,
            .relay = front->relay,
            .stats = front->stats,
            .timing = {.heartbeat_usec = OR(settings->heartbeat_usec, long_usec),
                       .retry_usec = 2 * USEC_PER_SEC,
                       .max_age_usec = OR(settings->max_age_usec, CLOCK_NEVER),
                       .idle_close_usec = OR(settings->idle_close_usec, long_usec)},
            .header_max = 16 * KIB,
            .guests_max = OR(settings->guests_max, 64),
            .header_time_usec = OR(settings->header_time_usec, 10 * USEC_PER_SEC),
            .connections_max = OR(settings->connections_max, 100),
            .front = {.answer = settings->answer != NULL ? settings->answer : http_answer,
                      .completed = http_completed,
                      .unescape = http_unescape,
                      .begun = http_begun,
                      .argument = front->http},
        },
        &err);
#undef OR
    if (front->shards == NULL || readers_start(front->readers, &err) < 0 ||
        shards_start(front->shards, &err) < 0)
        fail_msg("%s", err.text);
}

FRONT_UNUSED static void front_close(struct front *front)
{
    readers_stop(front->readers);
    shards_stop(front->shards);
    shards_free(front->shards);
    http_free(front->http);
    page_free(front->page);
    replay_free(front->replay);
    readers_free(front->readers);
    publisher_free(front->publisher);
    listener_free(front->listener);
    relay_free(front->relay);
    ring_free(front->ring);
    stats_free(front->stats);
    (void)close(front->listen_fd);
}

/* Pushes one event, and adds what stands on the wire for it to *wanted, unless NULL. */
/* `client`: who published it; NULL: nobody said. `wanted`: gets its bytes, or NULL. */
FRONT_UNUSED static void front_push_from(struct front *front, const char *client,
                                         const char *channel, const char *type,
                                         const char *data, size_t data_len,
                                         struct buf *wanted)
{
    struct sse_frame *frame =
        sse_frame_new(&(struct event){.seq = ++front->seq,
                                      .channel = channel,
                                      .channel_len = strlen(channel),
                                      .type = type,
                                      .type_len = strlen(type),
                                      .data = data,
                                      .data_len = data_len,
                                      .client = client,
                                      .client_len = client != NULL ? strlen(client) : 0});

    assert_non_null(frame);
    if (wanted != NULL)
        (void)buf_add(wanted, frame->bytes + frame->body_offset, frame->body_len);
    ring_push(front->ring, frame);
}

FRONT_UNUSED static void front_push(struct front *front, const char *channel,
                                    const char *type, const char *data, size_t data_len,
                                    struct buf *wanted)
{
    front_push_from(front, NULL, channel, type, data, data_len, wanted);
}

FRONT_UNUSED static void front_publish(struct front *front, const char *channel,
                                       const char *data, struct buf *wanted)
{
    front_push(front, channel, "message", data, strlen(data), wanted);
    ring_wake(front->ring);
}

/* -- a client -- */

struct client {
    int fd;
    struct buf raw;  /* as it came */
    size_t body_at;  /* behind the header; 0 while it is not all there */
    size_t at;       /* in raw: what has been looked at */
    struct buf body; /* without the chunks' brackets */
    bool chunked;
    bool in_chunk;
    size_t chunk_left; /* bytes of it still to come, but for its CRLF */
    bool last_chunk;   /* the body has come to its proper end, and nothing behind it */
    bool eof;          /* the connection has been closed, or reset */
    bool checkpoint;   /* one follows the greeting: it came without an id */
};

/* A receive buffer of so many bytes makes a slow reader of it; 0: as the system has it. */
FRONT_UNUSED static void client_dial(struct client *client, const struct front *front,
                                     int rcvbuf)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(front->port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    memset(client, 0, sizeof(*client));
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (rcvbuf > 0)
        assert_int_equal(
            setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &rcvbuf, sizeof(rcvbuf)), 0);
    assert_int_equal(connect(client->fd, (struct sockaddr *)&address, sizeof(address)),
                     0);
}

FRONT_UNUSED static void client_hang_up(struct client *client)
{
    if (client->fd >= 0)
        (void)close(client->fd);
    client->fd = -1;
    buf_done(&client->raw);
    buf_done(&client->body);
}

FRONT_UNUSED static void client_say(struct client *client, const char *bytes, size_t len)
{
    assert_int_equal(send(client->fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

/* The next chunk's head: false if it is not all there, or the last one. */
FRONT_UNUSED static bool client_next_chunk(struct client *client)
{
    const char *at = client->raw.data + client->at;
    const size_t left = client->raw.len - client->at;
    const char *line = left > 0 ? memmem(at, left, "\r\n", 2) : NULL;

    if (line == NULL || client->last_chunk)
        return false;
    const size_t digits = strspn(at, "0123456789abcdefABCDEF");
    if (at + digits != line || digits == 0 || (at[0] == '0' && digits > 1))
        fail_msg("not a chunk's head: %.20s", at);
    client->chunk_left = strtoul(at, NULL, 16);
    if (client->chunk_left == 0) {
        client->last_chunk = left == 5 && memcmp(at, "0\r\n\r\n", 5) == 0;
        return false;
    }
    client->at += digits + 2;
    client->in_chunk = true;
    return true;
}

/* The chunks that are there, and what there is of the one that is coming. */
FRONT_UNUSED static void client_dechunk(struct client *client)
{
    do {
        if (!client->in_chunk)
            continue;
        const size_t len = MIN(client->chunk_left, client->raw.len - client->at);
        (void)buf_add(&client->body, client->raw.data + client->at, len);
        client->at += len;
        client->chunk_left -= len;
        if (client->chunk_left > 0 || client->raw.len - client->at < 2)
            return;
        if (memcmp(client->raw.data + client->at, "\r\n", 2) != 0)
            fail_msg("a chunk does not end where it should");
        client->at += 2;
        client->in_chunk = false;
    } while (client_next_chunk(client));
}

FRONT_UNUSED static void client_look(struct client *client)
{
    const char *end = NULL;

    if (client->body_at == 0 && client->raw.len > 0)
        end = memmem(client->raw.data, client->raw.len, "\r\n\r\n", 4);
    if (end != NULL) {
        client->at = client->body_at = (size_t)(end + 4 - client->raw.data);
        client->chunked = memmem(client->raw.data, client->body_at,
                                 "Transfer-Encoding: chunked", 26) != NULL;
    }
    if (client->body_at == 0)
        return;
    if (client->chunked) {
        client_dechunk(client);
        return;
    }
    (void)buf_add(&client->body, client->raw.data + client->at,
                  client->raw.len - client->at);
    client->at = client->raw.len;
}

/* Takes what comes within timeout_msec, at most `max` bytes; false: nothing came. */
FRONT_UNUSED static bool client_take(struct client *client, size_t max, int timeout_msec)
{
    char bytes[65536];
    struct pollfd set = {.fd = client->fd, .events = POLLIN};

    if (client->eof || poll(&set, 1, timeout_msec) != 1)
        return false;
    const ssize_t len = recv(client->fd, bytes, MIN(max, sizeof(bytes)), 0);
    if (len <= 0) {
        client->eof = true;
        return true;
    }
    (void)buf_add(&client->raw, bytes, (size_t)len);
    return true;
}

/* Reads until the body (without chunks) has that many bytes. */
FRONT_UNUSED static void client_read_body(struct client *client, size_t len)
{
    const uint64_t end = clock_usec() + FRONT_PATIENCE_USEC;

    for (;;) {
        client_look(client);
        if (client->body_at > 0 && client->body.len >= len)
            return;
        if (client->eof || clock_usec() > end)
            fail_msg("%s after %zu bytes of a body of %zu",
                     client->eof ? "end" : "silence", client->body.len, len);
        if (!client_take(client, SIZE_MAX, 0))
            (void)client_take(client, SIZE_MAX, 1000);
    }
}

/* Reads until the connection is closed. */
FRONT_UNUSED static void client_read_all(struct client *client)
{
    const uint64_t end = clock_usec() + FRONT_PATIENCE_USEC;

    while (!client->eof) {
        if (clock_usec() > end)
            fail_msg("not closed; %zu bytes: %.300s", client->raw.len,
                     client->raw.len > 0 ? client->raw.data : "");
        (void)client_take(client, SIZE_MAX, 1000);
    }
    client_look(client);
}

/* How long the greeting is: ":\nretry: 2000\n", and the checkpoint behind it; 0 while it is
 * not all there. */
FRONT_UNUSED static size_t client_greeting_len(const struct client *client)
{
    static const char end[] = "\nevent: checkpoint\ndata:\n\n";
    const char *body = client->body.data;

    assert_memory_equal(body, ":\nretry: ", MIN(client->body.len, (size_t)9));
    if (client->body.len <= 9 || strchr(body + 9, '\n') == NULL)
        return 0;
    const size_t digits = strspn(body + 9, "0123456789");
    assert_true(digits == 4 && body[9 + digits] == '\n');
    if (!client->checkpoint)
        return 9 + digits + 1;

    const char *id = body + 9 + digits + 1;
    const size_t left = client->body.len - (size_t)(id - body);
    assert_memory_equal(id, "id: ", MIN(left, (size_t)4));
    const size_t id_len = left > 4 ? 4 + strspn(id + 4, "0123456789") : left;
    assert_memory_equal(id + id_len, end, MIN(left - id_len, strlen(end)));
    return left < id_len + strlen(end) ? 0 : (size_t)(id - body) + id_len + strlen(end);
}

/* Subscribes, and reads until the greeting is there. Who has no id gets one with it, as soon
 * as it is known where it is. */
FRONT_UNUSED static void client_subscribe(struct client *client,
                                          const struct front *front, int rcvbuf,
                                          const char *request)
{
    client_dial(client, front, rcvbuf);
    client->checkpoint = front->started && strcasestr(request, "last") == NULL;
    client_say(client, request, strlen(request));
    client_read_body(client, 1);
    while (client_greeting_len(client) == 0)
        client_read_body(client, client->body.len + 1);
    if (strncmp(client->raw.data, "HTTP/1.1 200 OK\r\n", 17) != 0)
        fail_msg("%s", client->raw.data);
}

/* Reads so much as is wanted, and compares byte by byte; nothing may have come behind it. */
FRONT_UNUSED static void client_expect(struct client *client, const struct buf *wanted)
{
    const size_t greeting = client_greeting_len(client);

    client_read_body(client, greeting + wanted->len);
    if (client->body.len > greeting + wanted->len)
        fail_msg("%zu bytes too many: %.300s", client->body.len - greeting - wanted->len,
                 client->body.data + greeting);
    if (wanted->len == 0)
        return;
    if (memcmp(client->body.data + greeting, wanted->data, wanted->len) != 0)
        fail_msg("other bytes: %.300s\ninstead of: %.300s", client->body.data + greeting,
                 wanted->data);
}

#endif
