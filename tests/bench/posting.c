#include "posting.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SECOND        1000000
#define MOMENT_USEC   1000
#define ANSWERS_USEC  (30 * SECOND)
#define REQUEST_BYTES (1024 * 1024)
#define EVENT_BYTES   256 /* at the most, with a request of its own */

/* Events are 150 bytes or so on the wire, with id, chunk and all. */
#define TEXT "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghij"

const struct posting_dialect *posting_find_dialect(const char *name)
{
    static const struct posting_dialect dialects[] = {
        {"gateway", "/events?channel=%s%u", "/events?channel=%s%u", true},
        {"bare", "/events?channel=%s%u", "/events?channel=%s%u", true},
        {"node", "/events?channel=%s%u", "/events?channel=%s%u", true},
        {"nchan", "/sub/%s%u", "/pub/%s%u", false},
    };

    for (size_t i = 0; i < sizeof(dialects) / sizeof(dialects[0]); i++) {
        if (strcmp(name, dialects[i].name) == 0)
            return &dialects[i];
    }
    return NULL;
}

static int fail(const char *what)
{
    (void)fprintf(stderr, "load: the publisher: %s\n", what);
    return -1;
}

int posting_connect(struct posting *posting)
{
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)posting->port),
                                   .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};
    const int one = 1;

    if ((posting->burst + 1) * EVENT_BYTES > REQUEST_BYTES)
        return fail("so many events do not fit into one request");
    posting->request = malloc(REQUEST_BYTES);
    posting->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (posting->request == NULL || posting->fd < 0 ||
        setsockopt(posting->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
        connect(posting->fd, (const struct sockaddr *)&to, sizeof(to)) < 0)
        return fail(strerror(errno));
    return 0;
}

/* -- answers -- */

/* Counts the status lines in `bytes`; returns how many bytes at its end may be a part of one
 * more, or -1. */
static ssize_t count_answers(struct posting *posting, const char *bytes, size_t len)
{
    static const char line[] = "HTTP/1.1 ";
    const char *at = bytes, *const end = bytes + len;

    for (const char *found;
         (found = memmem(at, (size_t)(end - at), line, sizeof(line) - 1)) != NULL &&
         found + sizeof(line) <= end;
         at = found + sizeof(line)) {
        if (found[sizeof(line) - 1] != '2') {
            (void)fprintf(stderr, "load: a POST was answered: %.*s\n",
                          (int)(end - found < 300 ? end - found : 300), found);
            return -1;
        }
        posting->answers++;
    }
    const ssize_t rest = end - at;
    return rest < (ssize_t)sizeof(line) ? rest : (ssize_t)sizeof(line);
}

int posting_look(struct posting *posting)
{
    static char bytes[65536];
    static size_t kept;
    const ssize_t len =
        recv(posting->fd, bytes + kept, sizeof(bytes) - kept, MSG_DONTWAIT);

    if (len < 0 && errno == EAGAIN)
        return 0;
    if (len <= 0)
        return fail("the server closed the connection");
    const size_t all = kept + (size_t)len;
    const ssize_t rest = count_answers(posting, bytes, all);
    if (rest < 0)
        return -1;
    kept = (size_t)rest;
    memmove(bytes, bytes + all - kept, kept);
    return 0;
}

int posting_await_answers(struct posting *posting)
{
    const uint64_t due = figures_now_usec() + ANSWERS_USEC;

    while (posting->answers < posting->answers_due) {
        if (figures_now_usec() > due)
            return fail("not everything was answered");
        if (posting_look(posting) < 0)
            return -1;
        figures_sleep_until(figures_now_usec() + MOMENT_USEC);
    }
    return 0;
}

/* -- requests -- */

/* A line for one event: its data, or, where each goes to another channel, an event with its
 * channel. */
static size_t add_event(const struct posting *posting, char *text, uint64_t number,
                        unsigned long long now, bool with_channel, const char *end)
{
    size_t len = 0;

    posting->sent_usec[number] = now;
    if (with_channel)
        len = (size_t)snprintf(text, EVENT_BYTES,
                               "{\"channel\":\"%s%u\",\"data\":", posting->prefix,
                               (unsigned)(number % posting->channels));
    return len + (size_t)snprintf(text + len, EVENT_BYTES - len, CROWD_DATA "%s%s",
                                  (unsigned long long)number, now, TEXT,
                                  with_channel ? "}" : "", end);
}

/* Adds a request with `count` events, from `first` on. */
static size_t add_request(const struct posting *posting, size_t len, uint64_t first,
                          unsigned count, unsigned long long now)
{
    const bool lines = posting->dialect->batches;
    const bool spread = count > 1 && posting->channels > 1;
    static char body[REQUEST_BYTES];
    char path[128] = "/events";
    size_t body_len = 0;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (!spread)
        (void)snprintf(path, sizeof(path), posting->dialect->publish, posting->prefix,
                       (unsigned)(first % posting->channels));
#pragma GCC diagnostic pop
    for (unsigned i = 0; i < count; i++)
        body_len += add_event(posting, body + body_len, first + i, now, spread,
                              lines ? "\n" : "");
    len +=
        (size_t)snprintf(posting->request + len, REQUEST_BYTES - len,
                         "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nContent-Type: %s\r\n"
                         "Content-Length: %zu\r\n\r\n",
                         path, posting->port,
                         lines ? "application/x-ndjson" : "application/json", body_len);
    memcpy(posting->request + len, body, body_len);
    return len + body_len;
}

static int send_all(struct posting *posting, size_t len)
{
    for (size_t out = 0; out < len;) {
        const ssize_t sent = send(posting->fd, posting->request + out, len - out,
                                  MSG_NOSIGNAL | MSG_DONTWAIT);

        if (sent > 0)
            out += (size_t)sent;
        else if (errno != EAGAIN)
            return fail(strerror(errno));
        if (posting_look(posting) < 0)
            return -1;
    }
    return 0;
}

/* A moment's delay is this process's own. More is the server's, which did not read what came
 * before: then the event was sent when it was due, or waiting for the server would not count. */
static uint64_t sent_at(uint64_t due_usec)
{
    const uint64_t now = figures_now_usec();

    return now > due_usec + MOMENT_USEC ? due_usec : now;
}

static int publish(struct posting *posting, uint64_t due_usec)
{
    const uint64_t first = CROWD_GET(posting->order->published);
    const unsigned requests = posting->dialect->batches ? 1 : posting->burst;
    size_t len = 0;

    for (unsigned i = 0; i < requests; i++)
        len = add_request(posting, len, first + i, posting->burst / requests,
                          sent_at(due_usec));
    posting->answers_due += requests;
    CROWD_SET(posting->order->published, first + posting->burst);
    return send_all(posting, len);
}

void posting_await_turn(const struct posting *posting)
{
    if (posting->slots > 0)
        figures_sleep_until((figures_now_usec() / POSTING_SLOT_USEC + 1) *
                            POSTING_SLOT_USEC);
}

static bool has_its_turn(const struct posting *posting, uint64_t due_usec)
{
    return posting->slots == 0 ||
           due_usec / POSTING_SLOT_USEC % posting->slots == posting->slot;
}

int posting_run(struct posting *posting, double seconds, bool (*enough)(void *argument),
                void *argument)
{
    const uint64_t begin = figures_now_usec();
    const uint64_t end = begin + (uint64_t)(seconds * SECOND);
    const double interval = SECOND * posting->burst / posting->rate;

    for (uint64_t i = 0;; i++) {
        const uint64_t due = begin + (uint64_t)((double)i * interval);

        if (due >= end || (enough != NULL && enough(argument)) ||
            CROWD_GET(posting->order->published) + posting->burst > posting->events_max)
            return 0;
        figures_sleep_until(due);
        if (has_its_turn(posting, due) && publish(posting, due) < 0)
            return -1;
    }
}
