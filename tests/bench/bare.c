/*
 * bare.c - the limit: an epoll server that does nothing but send.
 *
 *     bare PORT
 *
 * GET /events?channel=NAME subscribes; POST /events?channel=NAME is a body whose every line is
 * the data of one event, POST /events one whose lines are {"channel":"NAME","data":DATA}. An
 * event becomes the same bytes that the gateway sends, once, and one send(2) takes all events of
 * a POST to each subscriber of its channel. What a socket does not take is kept for it. No
 * checks, no heartbeat, no resume, no database, no limits: nobody would run this, and nobody can
 * do much better than it on one thread with sockets.
 *
 * Trusts its only client, which is load.c. Ends with SIGTERM.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buf.h"

#define TOPICS        65536 /* slots of the table of channels: more than there ever are */
#define NAME_MAX      32
#define REQUEST_BYTES (256 * 1024)
#define ANSWER        "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
#define GREETING                                                                         \
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"                             \
    "Transfer-Encoding: chunked\r\nCache-Control: no-cache\r\n\r\n2\r\n:\n\r\n"

struct client;

struct topic {
    char name[NAME_MAX];
    struct client *first;
};

struct client {
    int fd;
    struct client *next; /* of the same channel */
    struct client **link;
    char *bytes; /* a request that is not whole; or what the socket did not take */
    size_t len;
    size_t out;  /* of these, sent */
    size_t room; /* allocated */
};

static struct topic topics[TOPICS];
static uint64_t last_id;
static int epoll_fd;
static struct buf frames;

static void die(const char *what)
{
    (void)fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct topic *find_topic(const char *name, size_t len)
{
    uint32_t hash = 2166136261u;

    for (size_t i = 0; i < len; i++)
        hash = (hash ^ (unsigned char)name[i]) * 16777619u;
    for (uint32_t slot = hash % TOPICS;; slot = (slot + 1) % TOPICS) {
        struct topic *topic = &topics[slot];

        if (topic->name[0] == '\0')
            memcpy(topic->name, name, len);
        if (strncmp(topic->name, name, len) == 0 && topic->name[len] == '\0')
            return topic;
    }
}

static void leave(struct client *client)
{
    if (client->link != NULL) {
        *client->link = client->next;
        if (client->next != NULL)
            client->next->link = client->link;
    }
    close(client->fd);
    free(client->bytes);
    free(client);
}

static void keep(struct client *client, const char *bytes, size_t len)
{
    if (client->len + len > client->room) {
        client->room = 2 * (client->len + len);
        client->bytes = realloc(client->bytes, client->room);
        if (client->bytes == NULL)
            die("memory");
    }
    memcpy(client->bytes + client->len, bytes, len);
    client->len += len;
}

/* -- sending -- */

static void deliver(struct client *client, const char *bytes, size_t len)
{
    ssize_t sent = 0;

    if (client->len == 0) {
        sent = send(client->fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN)
            return; /* its end is reported by epoll */
        if (sent < 0)
            sent = 0;
    }
    if ((size_t)sent < len)
        keep(client, bytes + sent, len - (size_t)sent);
}

static void flush(struct client *client)
{
    if (client->len == 0)
        return;
    const ssize_t sent = send(client->fd, client->bytes + client->out,
                              client->len - client->out, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent > 0)
        client->out += (size_t)sent;
    if (client->out < client->len)
        return;
    free(client->bytes);
    client->bytes = NULL;
    client->len = client->out = client->room = 0;
}

/* Lines for one channel. */
static void publish(struct topic *topic, const char *body, size_t len)
{
    buf_reset(&frames);
    for (const char *end = body + len; body < end;) {
        const char *stop = memchr(body, '\n', (size_t)(end - body));
        const int data_len = (int)((stop != NULL ? stop : end) - body);
        char id[32];
        const int id_len = snprintf(id, sizeof(id), "id: %" PRIu64 "\n", ++last_id);

        (void)buf_add_format(&frames, "%x\r\n%sdata: %.*s\n\n\r\n", id_len + data_len + 8,
                             id, data_len, body);
        body += data_len + 1;
    }
    if (buf_ok(&frames) < 0)
        die("memory");
    for (struct client *client = topic->first; client != NULL; client = client->next)
        deliver(client, frames.data, frames.len);
}

/* A line for each channel. */
static void publish_each(const char *body, size_t len)
{
    static const char channel[] = "{\"channel\":\"", data[] = "\",\"data\":";

    for (const char *const end = body + len; body < end;) {
        const char *stop = memchr(body, '\n', (size_t)(end - body));
        const char *name = body + sizeof(channel) - 1;
        const size_t name_len = strcspn(name, "\"");
        const char *value = name + name_len + sizeof(data) - 1;

        stop = stop != NULL ? stop : end;
        publish(find_topic(name, name_len), value, (size_t)(stop - value) - 1);
        body = stop + 1;
    }
}

/* -- requests -- */

static void subscribe(struct client *client, struct topic *topic)
{
    client->next = topic->first;
    client->link = &topic->first;
    if (client->next != NULL)
        client->next->link = &client->next;
    topic->first = client;
    client->len = 0;
    deliver(client, GREETING, strlen(GREETING));
}

/* One request from the front of the client's bytes; false: it is not whole yet, or it was the
 * client's last. */
static bool take_request(struct client *client)
{
    static const char query[] = "/events?channel=";
    static const char length[] = "\r\nContent-Length: ";
    char *head_end =
        client->len > 0 ? memmem(client->bytes, client->len, "\r\n\r\n", 4) : NULL;

    if (head_end == NULL)
        return false;
    *head_end = '\0';
    const char *name = strstr(client->bytes, query);
    struct topic *topic = NULL;
    if (name != NULL) {
        name += strlen(query);
        topic = find_topic(name, strcspn(name, " "));
    }
    if (client->bytes[0] == 'G' && topic != NULL) {
        subscribe(client, topic);
        return false;
    }
    const char *value = strstr(client->bytes, length);
    const size_t body_len = value != NULL ? strtoul(value + strlen(length), NULL, 10) : 0;
    const size_t head_len = (size_t)(head_end - client->bytes) + 4;
    if (client->len < head_len + body_len) {
        *head_end = '\r';
        return false;
    }
    if (topic != NULL)
        publish(topic, client->bytes + head_len, body_len);
    else
        publish_each(client->bytes + head_len, body_len);
    client->len -= head_len + body_len;
    memmove(client->bytes, client->bytes + head_len + body_len, client->len);
    if (send(client->fd, ANSWER, strlen(ANSWER), MSG_NOSIGNAL) < 0)
        die("answer");
    return true;
}

static void ready(struct client *client, uint32_t events)
{
    static char bytes[REQUEST_BYTES];

    if (client->link != NULL &&
        (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) {
        leave(client);
        return;
    }
    if (client->link != NULL) {
        flush(client);
        return;
    }
    for (;;) {
        const ssize_t len = recv(client->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

        if (len < 0 && errno == EAGAIN)
            return;
        if (len <= 0) {
            leave(client);
            return;
        }
        keep(client, bytes, (size_t)len);
        while (take_request(client))
            ;
        if (client->link != NULL)
            return;
    }
}

/* -- life -- */

static int listen_on(const char *port)
{
    const int one = 1;
    const struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)strtoul(port, NULL, 10)),
        .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)},
    };
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        listen(fd, 4096) < 0)
        die("listen");
    return fd;
}

static void watch(int fd, uint32_t events, void *owner)
{
    struct epoll_event event = {.events = events, .data = {.ptr = owner}};

    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll");
}

static void welcome(int listen_fd)
{
    const int one = 1;

    for (int fd;
         (fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct client *client = calloc(1, sizeof(*client));

        if (client == NULL)
            die("memory");
        client->fd = fd;
        (void)setsockopt(fd, IPPROTO_TCP, 1 /* TCP_NODELAY */, &one, sizeof(one));
        watch(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, client);
    }
}

int main(int argc, char **argv)
{
    struct rlimit files;

    if (argc != 2) {
        (void)fprintf(stderr, "usage: bare PORT\n");
        return 2;
    }
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    const int listen_fd = listen_on(argv[1]);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(listen_fd, EPOLLIN, NULL);
    for (;;) {
        struct epoll_event events[256];
        const int count = epoll_wait(epoll_fd, events, 256, -1);

        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == NULL)
                welcome(listen_fd);
            else
                ready(events[i].data.ptr, events[i].events);
        }
    }
}
