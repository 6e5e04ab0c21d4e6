/*
 * publisher.c - the room `publisher` alone, without HTTP, beside INSERTs of single rows.
 *
 *     publisher --dsn TEXT [--waiting 256] [--seconds 3] [--rounds 3]
 *
 * In each round first the publisher, with so many requests of one event always on their way,
 * submitted and taken back by one thread; then one connection that INSERTs a row with each
 * prepared statement, committed by itself, as an application would. Both into gateway.events
 * of the database, which must be migrated, durable (fsync, synchronous_commit), and without a
 * gateway: then nothing but the writing is measured.
 *
 * Prints one line of JSON: medians over the rounds, and the median of the rounds' ratios.
 * Status 1, and a text on stderr, when anything was not committed.
 */
#include <getopt.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "base.h"
#include "clock.h"
#include "mailbox.h"
#include "migrate.h"
#include "publisher.h"

#define ROUNDS_MAX  99
#define WARMUP_USEC (USEC_PER_SEC / 4)
#define DATA        "{\"n\":1000000000001}"

struct bench {
    const char *dsn;
    size_t waiting;
    uint64_t usec;
    size_t rounds;

    struct publisher *publisher;
    struct mailbox mailbox; /* where the requests come back */
    uint64_t answers;
    uint64_t failures;
    bool ending; /* what comes back is not submitted again */
    size_t on_their_way;
};

/* One request of one event. */
struct request {
    struct publish publish;
    struct event event;
    struct mail mail;
    struct bench *bench;
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "publisher: %s: %s\n", what, why);
    exit(1);
}

/* -- the publisher -- */

static void submit(struct request *request)
{
    request->publish.deadline_usec = clock_usec() + 10 * USEC_PER_SEC;
    if (publisher_submit(request->bench->publisher, &request->publish) < 0)
        die("the publisher", "did not take a request");
    request->bench->on_their_way++;
}

static void came_back(struct mail *mail)
{
    struct request *request = CONTAINER_OF(mail, struct request, mail);
    struct bench *bench = request->bench;

    bench->on_their_way--;
    bench->answers++;
    bench->failures += request->publish.outcome != PUBLISH_DONE;
    if (!bench->ending)
        submit(request);
}

/* On the publisher's thread. */
static void published(struct publish *publish)
{
    struct request *request = CONTAINER_OF(publish, struct request, publish);

    mailbox_post(&request->bench->mailbox, &request->mail);
}

static void deliver_until(struct bench *bench, uint64_t end_usec)
{
    struct pollfd bell = {.fd = mailbox_fd(&bench->mailbox), .events = POLLIN};

    while (clock_usec() < end_usec && bench->on_their_way > 0) {
        (void)poll(&bell, 1, 100);
        (void)mailbox_deliver(&bench->mailbox);
    }
}

static struct request *make_requests(struct bench *bench)
{
    struct request *requests = calloc(bench->waiting, sizeof(*requests));

    if (requests == NULL)
        die("the requests", "no memory");
    for (size_t i = 0; i < bench->waiting; i++) {
        struct request *request = &requests[i];

        request->bench = bench;
        request->mail.deliver = came_back;
        request->event = (struct event){.channel = "c",
                                        .channel_len = 1,
                                        .type = EVENT_DEFAULT_TYPE,
                                        .type_len = strlen(EVENT_DEFAULT_TYPE),
                                        .data = DATA,
                                        .data_len = strlen(DATA)};
        request->publish =
            (struct publish){.events = &request->event, .count = 1, .done = published};
    }
    return requests;
}

/* Events a second. */
static double measure_publisher(struct bench *bench)
{
    struct request *requests = make_requests(bench);

    bench->ending = false;
    for (size_t i = 0; i < bench->waiting; i++)
        submit(&requests[i]);
    deliver_until(bench, clock_usec() + WARMUP_USEC);

    const uint64_t begin = clock_usec();
    const uint64_t before = bench->answers;
    deliver_until(bench, begin + bench->usec);
    const double seconds = (double)(clock_usec() - begin) / 1e6;
    const double rate = (double)(bench->answers - before) / seconds;

    bench->ending = true;
    deliver_until(bench, clock_usec() + 10 * USEC_PER_SEC);
    if (bench->failures > 0 || bench->on_their_way > 0)
        die("the publisher", "not everything was committed");
    free(requests);
    return rate;
}

/* -- INSERTs -- */

static void insert_until(PGconn *conn, uint64_t end_usec, uint64_t *ret_count)
{
    const char *const values[] = {"c", DATA};

    for (*ret_count = 0; clock_usec() < end_usec; ++*ret_count) {
        PGresult *result = PQexecPrepared(conn, "one", 2, values, NULL, NULL, 0);

        if (PQresultStatus(result) != PGRES_COMMAND_OK)
            die("INSERT", PQerrorMessage(conn));
        PQclear(result);
    }
}

/* Rows a second. */
static double measure_inserts(const struct bench *bench)
{
    PGconn *conn = PQconnectdb(bench->dsn);
    uint64_t count;

    if (PQstatus(conn) != CONNECTION_OK)
        die("could not connect", PQerrorMessage(conn));
    PQclear(PQprepare(conn, "one",
                      "INSERT INTO gateway.events (channel, data) VALUES ($1, $2)", 0,
                      NULL));
    insert_until(conn, clock_usec() + WARMUP_USEC, &count);

    const uint64_t begin = clock_usec();
    insert_until(conn, begin + bench->usec, &count);
    const double seconds = (double)(clock_usec() - begin) / 1e6;

    /* Numbered now, so that the publisher need not do it in its time. */
    PQclear(PQexec(conn, "SELECT gateway.sweep(1000000)"));
    PQfinish(conn);
    return (double)count / seconds;
}

/* -- the whole -- */

static int compare(const void *left, const void *right)
{
    const double a = *(const double *)left;
    const double b = *(const double *)right;

    return (a > b) - (a < b);
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), compare);
    return values[count / 2];
}

static void start(struct bench *bench, struct stats *stats)
{
    struct err err = {0};

    bench->publisher = publisher_new(&(struct publisher_settings){
        .dsn = bench->dsn,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .queue_bytes = 64 * MIB,
        .stats = stats,
    });
    if (bench->publisher == NULL || mailbox_init(&bench->mailbox, &err) < 0 ||
        publisher_start(bench->publisher, &err) < 0)
        die("could not start the publisher", err.text);
}

static void read_options(struct bench *bench, int argc, char **argv)
{
    static const struct option options[] = {
        {"dsn", required_argument, NULL, 'd'},
        {"waiting", required_argument, NULL, 'w'},
        {"seconds", required_argument, NULL, 's'},
        {"rounds", required_argument, NULL, 'r'},
        {NULL, 0, NULL, 0},
    };

    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'd')
            bench->dsn = optarg;
        else if (option == 'w')
            bench->waiting = strtoul(optarg, NULL, 10);
        else if (option == 's')
            bench->usec = (uint64_t)(strtod(optarg, NULL) * 1e6);
        else if (option == 'r')
            bench->rounds = strtoul(optarg, NULL, 10);
        else
            exit(2);
    }
    if (bench->dsn == NULL || bench->waiting == 0 || bench->rounds == 0 ||
        bench->rounds > ROUNDS_MAX) {
        fprintf(stderr, "publisher: --dsn TEXT is needed; --rounds is 1 to %d\n",
                ROUNDS_MAX);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    struct bench bench = {.waiting = 256, .usec = 3 * USEC_PER_SEC, .rounds = 3};
    double published[ROUNDS_MAX], inserted[ROUNDS_MAX], ratios[ROUNDS_MAX];
    struct stats *stats = stats_new();

    read_options(&bench, argc, argv);
    if (stats == NULL)
        die("the counters", "no memory");
    start(&bench, stats);
    for (size_t i = 0; i < bench.rounds; i++) {
        published[i] = measure_publisher(&bench);
        inserted[i] = measure_inserts(&bench);
        ratios[i] = published[i] / inserted[i];
    }
    printf("{\"waiting\":%zu,\"rounds\":%zu,\"events_per_second\":%.0f,"
           "\"inserts_per_second\":%.0f,\"ratio\":%.2f,\"events_per_batch\":%.1f}\n",
           bench.waiting, bench.rounds, median(published, bench.rounds),
           median(inserted, bench.rounds), median(ratios, bench.rounds),
           (double)stats_counter_value(stats, STATS_EVENTS_PUBLISHED) /
               (double)stats_counter_value(stats, STATS_PUBLISH_BATCHES));
    publisher_stop(bench.publisher, USEC_PER_SEC);
    publisher_free(bench.publisher);
    mailbox_done(&bench.mailbox);
    stats_free(stats);
    return 0;
}
