/*
 * latency.c - one event at a time: how long until its bytes are at the subscriber.
 *
 * One process and one thread do all of it, so that there is one clock, and nothing to be woken
 * up but the one poll(2) that waits for the subscriber's bytes and for the answer together.
 *
 *   POST     from before the write of the request, and from its answer
 *   INSERT   from before COMMIT is sent, and from its return; the row was inserted before
 *   both     from the moment of the COMMIT that PostgreSQL itself notes for the transaction,
 *            which is before its WAL is written and flushed (track_commit_timestamp must be on)
 *
 * They take turns, with random pauses. One line of JSON: microseconds. `answered` and
 * `committed` are below zero where the event was there first.
 *
 * With a relayed channel behind the count it is NOTIFYs of that channel instead: from before
 * each is sent.
 */
#include <inttypes.h>
#include <libpq-fe.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "figures.h"

#define PATIENCE_MSEC 10000
#define WARM_UP       20

struct sample {
    int64_t sent;   /* to the event's bytes, from before it was sent */
    int64_t answer; /* to the answer, likewise */
    int64_t commit; /* to the event's bytes, from the COMMIT as PostgreSQL noted it */
    int64_t here;   /* when its bytes came, by the clock of the day */
};

struct probe {
    const char *channel;
    int stream; /* the subscriber's socket */
    int http;   /* the publisher's */
    PGconn *database;
    char text[65536]; /* of the stream, not looked through yet */
    size_t text_len;
};

static void give_up(const char *what)
{
    (void)fprintf(stderr, "latency: %s\n", what);
    exit(1);
}

static int64_t day_usec(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static int dial(unsigned port)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons((uint16_t)port),
                                        .sin_addr = {htonl(INADDR_LOOPBACK)}};
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;

    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
        give_up("could not connect");
    return fd;
}

static void say(int fd, const char *text, size_t len)
{
    if (write(fd, text, len) != (ssize_t)len)
        give_up("could not write a request");
}

/* Reads what is there; true when the word has come. */
static bool has_come(struct probe *probe, const char *word)
{
    const size_t room = sizeof(probe->text) - probe->text_len;
    const ssize_t len = recv(probe->stream, probe->text + probe->text_len, room, 0);

    if (len <= 0)
        give_up("the stream ended");
    probe->text_len += (size_t)len;

    const size_t word_len = strlen(word);
    if (memmem(probe->text, probe->text_len, word, word_len) != NULL) {
        probe->text_len = 0;
        return true;
    }
    /* It may have come in part. */
    if (probe->text_len > word_len) {
        memmove(probe->text, probe->text + probe->text_len - word_len, word_len);
        probe->text_len = word_len;
    }
    return false;
}

static bool is_posted(struct probe *probe)
{
    char answer[4096];
    const ssize_t len = recv(probe->http, answer, sizeof(answer), 0);

    if (len < 12 || memcmp(answer, "HTTP/1.1 201", 12) != 0)
        give_up("a POST was not answered with 201");
    return true;
}

static bool is_committed(struct probe *probe)
{
    if (PQconsumeInput(probe->database) == 0)
        give_up(PQerrorMessage(probe->database));
    if (PQisBusy(probe->database))
        return false;
    for (PGresult *result; (result = PQgetResult(probe->database)) != NULL;) {
        if (PQresultStatus(result) != PGRES_COMMAND_OK)
            give_up(PQerrorMessage(probe->database));
        PQclear(result);
    }
    return true;
}

/* Waits for both, in whatever order they come. */
static struct sample wait_for(struct probe *probe, uint64_t began, const char *word,
                              int answer_fd, bool (*answered)(struct probe *probe))
{
    struct sample sample = {.sent = -1, .answer = -1};

    while (sample.sent < 0 || sample.answer < 0) {
        struct pollfd fds[] = {
            {.fd = sample.sent < 0 ? probe->stream : -1, .events = POLLIN},
            {.fd = sample.answer < 0 ? answer_fd : -1, .events = POLLIN},
        };

        if (poll(fds, 2, PATIENCE_MSEC) <= 0)
            give_up("an event did not come within 10 s");
        const int64_t now = (int64_t)(figures_now_usec() - began);
        const int64_t here = day_usec();
        if (fds[0].revents != 0 && has_come(probe, word)) {
            sample.sent = now;
            sample.here = here;
        }
        if (fds[1].revents != 0 && answered(probe))
            sample.answer = now;
    }
    return sample;
}

static struct sample post(struct probe *probe, size_t number)
{
    char word[40], body[80], request[400];

    (void)snprintf(word, sizeof(word), "posted-%zu.", number);
    const int body_len =
        snprintf(body, sizeof(body), "{\"channel\":\"latency\",\"data\":\"%s\"}", word);
    const int len = snprintf(request, sizeof(request),
                             "POST /events HTTP/1.1\r\nHost: localhost\r\n"
                             "Content-Type: application/json\r\n"
                             "Content-Length: %d\r\n\r\n%s",
                             body_len, body);
    const uint64_t began = figures_now_usec();
    say(probe->http, request, (size_t)len);
    return wait_for(probe, began, word, probe->http, is_posted);
}

static void run(struct probe *probe, const char *sql)
{
    PGresult *result = PQexec(probe->database, sql);

    if (PQresultStatus(result) != PGRES_COMMAND_OK)
        give_up(PQerrorMessage(probe->database));
    PQclear(result);
}

static struct sample insert(struct probe *probe, size_t number)
{
    char word[40], sql[160];

    (void)snprintf(word, sizeof(word), "inserted-%zu.", number);
    (void)snprintf(
        sql, sizeof(sql),
        "INSERT INTO gateway.events (channel, data) VALUES ('latency', '\"%s\"')", word);
    run(probe, "BEGIN");
    run(probe, sql);
    const uint64_t began = figures_now_usec();
    if (PQsendQuery(probe->database, "COMMIT") == 0)
        give_up(PQerrorMessage(probe->database));
    return wait_for(probe, began, word, PQsocket(probe->database), is_committed);
}

static struct sample notify(struct probe *probe, size_t number)
{
    char word[40], sql[200];

    (void)snprintf(word, sizeof(word), "notified-%zu.", number);
    (void)snprintf(sql, sizeof(sql), "NOTIFY %s, '%s'", probe->channel, word);
    const uint64_t began = figures_now_usec();
    if (PQsendQuery(probe->database, sql) == 0)
        give_up(PQerrorMessage(probe->database));
    return wait_for(probe, began, word, PQsocket(probe->database), is_committed);
}

/* The newest rows are ours, a posted and an inserted one in turn. */
static void look_up_commits(struct probe *probe, struct sample *posts,
                            struct sample *inserts, size_t count)
{
    char sql[300];

    (void)snprintf(
        sql, sizeof(sql),
        "SELECT (EXTRACT(epoch FROM pg_xact_commit_timestamp(e.xid::xid)) * "
        "1000000)::int8, e.data::text LIKE '\"inserted-%%' FROM gateway.events e "
        "WHERE e.channel = 'latency' ORDER BY e.seq DESC LIMIT %zu",
        2 * count);
    PGresult *result = PQexec(probe->database, sql);
    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        give_up(PQerrorMessage(probe->database));
    if ((size_t)PQntuples(result) != 2 * count)
        give_up("not all events are in the table");
    for (size_t i = 0; i < 2 * count; i++) {
        const size_t place = count - 1 - i / 2;
        struct sample *sample = i % 2 == 0 ? &inserts[place] : &posts[place];

        if ((PQgetvalue(result, (int)i, 1)[0] == 't') != (i % 2 == 0))
            give_up(
                "the events in the table are not in the order in which they were made");
        sample->commit = sample->here - strtoll(PQgetvalue(result, (int)i, 0), NULL, 10);
    }
    PQclear(result);
}

static void subscribe(struct probe *probe, unsigned port)
{
    char request[200];
    const int len = snprintf(request, sizeof(request),
                             "GET /events?channel=%s HTTP/1.1\r\nHost: localhost\r\n\r\n",
                             probe->channel);

    probe->stream = dial(port);
    say(probe->stream, request, (size_t)len);
    /* From then on nothing is missed, of what is notified neither. */
    while (!has_come(probe, "event: checkpoint")) {
    }
}

static int ascending(const void *left, const void *right)
{
    const int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;

    return (a > b) - (a < b);
}

static void print_times(const char *name, int64_t *times, size_t count, const char *end)
{
    qsort(times, count, sizeof(*times), ascending);
    (void)printf("\"%s\":{\"p50\":%" PRId64 ",\"p90\":%" PRId64 ",\"p99\":%" PRId64
                 ",\"max\":%" PRId64 "}%s",
                 name, times[count / 2], times[count * 9 / 10], times[count * 99 / 100],
                 times[count - 1], end);
}

static void print_samples(const char *name, const char *answer,
                          const struct sample *samples, size_t count, const char *end)
{
    int64_t *times = calloc(count, sizeof(*times));

    if (times == NULL)
        give_up("no memory");
    (void)printf("\"%s\":{", name);
    for (size_t i = 0; i < count; i++)
        times[i] = samples[i].commit;
    print_times("commit", times, count, ",");
    for (size_t i = 0; i < count; i++)
        times[i] = samples[i].sent;
    print_times("sent", times, count, ",");
    for (size_t i = 0; i < count; i++)
        times[i] = samples[i].sent - samples[i].answer;
    print_times(answer, times, count, ",");
    for (size_t i = 0; i < count; i++)
        times[i] = samples[i].answer;
    print_times("answer_took", times, count, end);
    free(times);
}

static struct sample *samples_new(size_t count)
{
    struct sample *samples = calloc(count, sizeof(*samples));

    if (samples == NULL)
        give_up("no memory");
    return samples;
}

static void pause_between(unsigned least_usec, unsigned most_usec)
{
    figures_sleep_until(figures_now_usec() + least_usec +
                        (uint64_t)random() % (most_usec - least_usec));
}

static void measure_events(struct probe *probe, size_t count)
{
    struct sample *posts = samples_new(count), *inserts = samples_new(count);

    for (size_t i = 0; i < WARM_UP + count; i++) {
        const size_t place = i < WARM_UP ? 0 : i - WARM_UP;

        pause_between(10000, 50000);
        posts[place] = post(probe, i);
        pause_between(10000, 50000);
        inserts[place] = insert(probe, i);
    }
    look_up_commits(probe, posts, inserts, count);
    (void)printf("{\"count\":%zu,", count);
    print_samples("post", "answered", posts, count, "},");
    print_samples("insert", "committed", inserts, count, "}}\n");
    free(posts);
    free(inserts);
}

static void measure_notifications(struct probe *probe, size_t count)
{
    int64_t *times = calloc(count, sizeof(*times));

    if (times == NULL)
        give_up("no memory");
    for (size_t i = 0; i < WARM_UP + count; i++) {
        pause_between(1000, 5000);
        times[i < WARM_UP ? 0 : i - WARM_UP] = notify(probe, i).sent;
    }
    (void)printf("{\"count\":%zu,", count);
    print_times("notify", times, count, "}\n");
    free(times);
}

int main(int argc, char **argv)
{
    static struct probe probe;
    const size_t count = argc >= 4 ? strtoul(argv[3], NULL, 10) : 0;

    if (count == 0 || argc > 5)
        give_up("usage: latency PORT DSN COUNT [CHANNEL]");

    probe.channel = argc == 5 ? argv[4] : "latency";
    probe.database = PQconnectdb(argv[2]);
    if (PQstatus(probe.database) != CONNECTION_OK)
        give_up("could not connect to the database");
    probe.http = dial((unsigned)strtoul(argv[1], NULL, 10));
    subscribe(&probe, (unsigned)strtoul(argv[1], NULL, 10));

    srandom(1);
    if (argc == 5)
        measure_notifications(&probe, count);
    else
        measure_events(&probe, count);
    PQfinish(probe.database);
    return 0;
}
