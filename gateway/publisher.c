/*
 * publisher.c - what waits to be written, in batches; and who is told when it is.
 */
#include "publisher.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "batch.h"
#include "clock.h"
#include "database.h"
#include "log.h"
#include "mailbox.h"
#include "retry.h"
#include "schema.h"
#include "thread.h"

#define BATCH_EVENTS 5000
#define BATCH_BYTES  (8 * MIB)

#define CONNECT_USEC   (3 * USEC_PER_SEC)
#define CHECK_USEC     (3 * USEC_PER_SEC)
#define STATEMENT_USEC (10 * USEC_PER_SEC)
#define ASK_USEC       (3 * USEC_PER_SEC)
#define ASK_AGAIN_USEC (50 * USEC_PER_MSEC)

/* The database is away: how long a new request waits for it all the same, and how often it
 * is tried while somebody waits. */
#define PATIENCE_USEC USEC_PER_SEC
#define EAGER_USEC    (100 * USEC_PER_MSEC)

#define SCAN_USEC (50 * USEC_PER_MSEC)

#define STOPPING "the gateway is being stopped"

struct publisher {
    struct publisher_settings settings; /* [const] */
    struct database *database;          /* [publisher] */
    struct thread thread;
    struct mailbox bell; /* rung for a sleeping publisher; carries no letters */
    int stop_fd;         /* [const] timerfd: readable when the grace is over */

    struct retry retry;    /* [publisher] */
    uint64_t scanned_usec; /* [publisher] when the queue was last looked through */
    uint64_t away_usec;    /* [publisher] since when connecting fails; 0: it does not */
    struct err away;       /* [publisher] why */
    uint64_t tried_usec;   /* [publisher] when connecting failed last */
    struct keyset keys;    /* [publisher] of the batch that is being put together */

    pthread_mutex_t lock;
    struct queue queue;    /* [lock] */
    size_t accepted_bytes; /* [lock] of all that is accepted and not yet answered */
    bool asleep;           /* [lock] wants the bell */
    bool running;          /* [lock] */
    bool stopping;         /* [lock] */
};

/* ---- answers ---- */

static void count_done(struct stats *stats, const struct publish *publish)
{
    size_t repeated = 0, known = 0;

    for (size_t i = 0; i < publish->unit_count; i++) {
        repeated += publish->units[i].known ? publish->units[i].count : 0;
        known += publish->units[i].known;
    }
    stats_add(stats, STATS_EVENTS_PUBLISHED, publish->count - repeated);
    stats_add(stats, STATS_PUBLISH_REPEATED, known > 0);
    stats_observe_usec(stats, STATS_PUBLISH_SECONDS,
                       clock_usec() - publish->accepted_usec);
}

static void count_answer(struct publisher *publisher, const struct publish *publish)
{
    struct stats *stats = publisher->settings.stats;

    stats_gauge_add(stats, STATS_PUBLISH_WAITING, -(int64_t)publish->count);
    switch (publish->outcome) {
    case PUBLISH_DONE:
        count_done(stats, publish);
        break;
    case PUBLISH_REFUSED:
    case PUBLISH_CONFLICT:
        stats_add(stats, STATS_PUBLISH_REFUSED, publish->count);
        break;
    case PUBLISH_UNAVAILABLE:
    case PUBLISH_UNKNOWN:
        stats_add(stats, STATS_PUBLISH_UNAVAILABLE, publish->count);
        break;
    }
}

/* All of the list. No lock is taken for each: a batch has hundreds. */
static void answer_all(struct publisher *publisher, struct queue *list,
                       enum publish_outcome outcome, const char *why)
{
    size_t bytes = 0;

    for (struct publish *publish = list->first; publish != NULL; publish = publish->next)
        bytes += queue_bytes(publish);
    pthread_mutex_lock(&publisher->lock);
    publisher->accepted_bytes -= bytes;
    pthread_mutex_unlock(&publisher->lock);

    for (struct publish *publish; (publish = queue_take(list)) != NULL;) {
        publish->outcome = outcome;
        publish->err.text[0] = '\0';
        if (why[0] != '\0')
            (void)err_set(&publish->err, 0, "%s", why);
        count_answer(publisher, publish);
        publish->done(publish); /* the submitter's again, and perhaps gone */
    }
}

static bool is_late(const struct publisher *publisher, const struct publish *publish)
{
    (void)publisher;
    return clock_usec() >= publish->deadline_usec;
}

/* Who comes while the database is known to be away waits a moment, because a restart takes
 * no longer than that. Who came before waits as long as there is time. */
static bool is_hopeless(const struct publisher *publisher, const struct publish *publish)
{
    return publisher->away_usec != 0 && publish->accepted_usec >= publisher->away_usec &&
           clock_usec() >= publish->accepted_usec + PATIENCE_USEC;
}

/* Moves those of `list` that are so to `ret_taken`. */
static void take_if(const struct publisher *publisher, struct queue *list,
                    bool (*is_so)(const struct publisher *, const struct publish *),
                    struct queue *ret_taken)
{
    struct queue rest;

    queue_init(&rest);
    queue_init(ret_taken);
    for (struct publish *publish; (publish = queue_take(list)) != NULL;)
        queue_add(is_so(publisher, publish) ? ret_taken : &rest, publish);
    queue_move(list, &rest);
}

static void answer_hopeless(struct publisher *publisher)
{
    struct queue late, hopeless;

    publisher->scanned_usec = clock_usec();
    pthread_mutex_lock(&publisher->lock);
    take_if(publisher, &publisher->queue, is_late, &late);
    take_if(publisher, &publisher->queue, is_hopeless, &hopeless);
    pthread_mutex_unlock(&publisher->lock);

    answer_all(publisher, &late, PUBLISH_UNAVAILABLE,
               publisher->away_usec != 0 ? publisher->away.text
                                         : "the database did not commit in time");
    answer_all(publisher, &hopeless, PUBLISH_UNAVAILABLE, publisher->away.text);
}

/* While a call waits for PostgreSQL, the time of those in the queue goes on. */
static void on_tick(void *argument)
{
    answer_hopeless(argument);
}

/* ---- the connection ---- */

static bool grace_is_over(const struct publisher *publisher)
{
    struct pollfd grace = {.fd = publisher->stop_fd, .events = POLLIN};

    return poll(&grace, 1, 0) > 0;
}

static void lose_connection(struct publisher *publisher, const struct err *err)
{
    database_close(publisher->database);
    if (!grace_is_over(publisher))
        retry_down(&publisher->retry, "cannot publish", err);
}

static int open_connection(struct publisher *publisher, uint64_t deadline,
                           struct err *err)
{
    int r = database_connect(publisher->database,
                             MIN(deadline, clock_usec() + CONNECT_USEC), err);

    if (r == 0)
        r = schema_check(publisher->database, publisher->settings.schema_version,
                         MIN(deadline, clock_usec() + CHECK_USEC), err);
    if (r == -ECANCELED)
        return r;
    if (r < 0) {
        if (publisher->away_usec == 0)
            publisher->away_usec = clock_usec();
        publisher->away = *err;
        publisher->tried_usec = clock_usec();
        lose_connection(publisher, err);
        return r;
    }
    publisher->away_usec = 0;
    retry_up(&publisher->retry, "publishing to the database at",
             database_place(publisher->database));
    return 0;
}

/* ---- one batch ---- */

/* Back to the front of the queue, for the next connection. */
static void put_back(struct publisher *publisher, struct queue *list)
{
    pthread_mutex_lock(&publisher->lock);
    queue_move(list, &publisher->queue);
    queue_move(&publisher->queue, list);
    pthread_mutex_unlock(&publisher->lock);
}

/* Before anybody is answered: who gives up waiting leaves the others their numbers. */
static void set_numbers(struct batch *batch, struct queue *list)
{
    for (struct publish *publish = list->first; publish != NULL; publish = publish->next)
        batch_tell(batch, publish->events, publish->count, publish->units,
                   publish->unit_count);
}

static enum batch_result ask_once(struct publisher *publisher, struct batch *batch,
                                  uint64_t deadline, struct err *err)
{
    struct database *database = publisher->database;

    if (!database_connected(database)) {
        if (database_wait(database, -1, MIN(publisher->retry.due_usec, deadline), err) <
                0 ||
            open_connection(publisher, deadline, err) < 0)
            return BATCH_LOST;
    }
    enum batch_result result =
        batch_ask(batch, database, MIN(deadline, clock_usec() + ASK_USEC), err);
    if (result == BATCH_RUNNING &&
        database_wait(database, -1, MIN(deadline, clock_usec() + ASK_AGAIN_USEC), err) <
            0)
        result = BATCH_LOST;
    if (result == BATCH_LOST)
        lose_connection(publisher, err);
    return result;
}

/* The COMMIT was not answered. Asks until it is known what became of it, or nobody waits
 * for the answer any more. */
static enum batch_result find_fate(struct publisher *publisher, struct batch *batch,
                                   struct queue *list, struct err *err)
{
    while (list->first != NULL && !grace_is_over(publisher)) {
        struct queue late;
        enum batch_result result = ask_once(publisher, batch, queue_deadline(list), err);
        if (result == BATCH_COMMITTED || result == BATCH_FAILED ||
            result == BATCH_UNKNOWN)
            return result;
        take_if(publisher, list, is_late, &late);
        answer_all(publisher, &late, PUBLISH_UNKNOWN,
                   "the connection to the database broke at the commit");
        answer_hopeless(publisher);
    }
    (void)err_set(err, 0, "the connection to the database broke at the commit");
    return BATCH_UNKNOWN;
}

static void run_list(struct publisher *publisher, struct queue *list);

/* PostgreSQL will not have one of them: halved until it stands alone. */
static void run_halves(struct publisher *publisher, struct queue *list)
{
    struct queue half;
    size_t count = 0;

    for (const struct publish *publish = list->first; publish != NULL;
         publish = publish->next)
        count++;
    queue_init(&half);
    for (size_t i = 0; i < count / 2; i++)
        queue_add(&half, queue_take(list));
    run_list(publisher, &half);
    run_list(publisher, list);
}

/* Data that will never be taken: class 22, 23, 44 (WITH CHECK OPTION), and what somebody's
 * trigger raises (P0). */
static bool is_refusal(const char *sqlstate)
{
    static const char *const classes[] = {"22", "23", "44", "P0"};

    for (size_t i = 0; i < ARRAY_SIZE(classes); i++) {
        if (strncmp(sqlstate, classes[i], 2) == 0)
            return true;
    }
    return false;
}

static void handle_failure(struct publisher *publisher, struct queue *list,
                           const char *sqlstate, struct err *err)
{
    bool conflict = strcmp(sqlstate, BATCH_CONFLICT) == 0;
    bool refused = conflict || is_refusal(sqlstate);
    bool missing = schema_is_missing(sqlstate, err);
    bool read_only = strcmp(sqlstate, "25006") == 0;
    bool unprivileged = strcmp(sqlstate, "42501") == 0;

    /* Insufficient privilege: the gateway's, or by a row's policy that row's alone. */
    if ((refused || unprivileged) && list->first->next != NULL) {
        run_halves(publisher, list);
        return;
    }
    /* A new connection looks for a primary, and at the schema. */
    if ((missing && !unprivileged) || read_only)
        lose_connection(publisher, err);
    if (!refused && !missing)
        (void)err_prefix(err, 0, "the database did not commit");
    answer_all(publisher, list,
               conflict  ? PUBLISH_CONFLICT
               : refused ? PUBLISH_REFUSED
                         : PUBLISH_UNAVAILABLE,
               err->text);
}

static enum batch_result commit_list(struct publisher *publisher, struct queue *list,
                                     char ret_sqlstate[6], struct err *err)
{
    CLEANUP(batch_done) struct batch batch;
    uint64_t deadline = MIN(queue_deadline(list), clock_usec() + STATEMENT_USEC);

    batch_init(&batch);
    for (const struct publish *publish = list->first; publish != NULL;
         publish = publish->next)
        batch_add(&batch, publish->events, publish->count, publish->units,
                  publish->unit_count);
    ret_sqlstate[0] = '\0';
    if (batch_ok(&batch) < 0) {
        memcpy(ret_sqlstate, "53200",
               sizeof("53200")); /* out of memory, theirs or ours */
        (void)err_set(err, 0, "no memory for a batch");
        return BATCH_FAILED;
    }

    enum batch_result result = batch_commit(&batch, publisher->database, deadline, err);
    if (result == BATCH_COMMITTED || result == BATCH_UNKNOWN)
        set_numbers(&batch, list);
    if (result == BATCH_LOST || result == BATCH_UNKNOWN)
        lose_connection(publisher, err);
    if (result == BATCH_UNKNOWN && batch.inserted == 0)
        return BATCH_COMMITTED; /* all of it was, before */
    if (result == BATCH_UNKNOWN) {
        result = find_fate(publisher, &batch, list, err);
        return result == BATCH_FAILED ? BATCH_LOST : result; /* once more, then */
    }
    if (result == BATCH_FAILED) {
        memcpy(ret_sqlstate, batch.sqlstate, sizeof(batch.sqlstate));
        list->first->conflict = batch.conflict_key; /* if it stands alone */
    }
    return result;
}

/* One transaction, or with bad luck some more; `list` is empty afterwards: answered, or
 * back in the queue. */
static void run_list(struct publisher *publisher, struct queue *list)
{
    enum batch_result result = BATCH_LOST;
    struct err err = {0};
    char sqlstate[6];

    if (database_connected(publisher->database) && list->first != NULL)
        result = commit_list(publisher, list, sqlstate, &err);
    switch (result) {
    case BATCH_COMMITTED:
        stats_add(publisher->settings.stats, STATS_PUBLISH_BATCHES, 1);
        answer_all(publisher, list, PUBLISH_DONE, "");
        break;
    case BATCH_FAILED:
        handle_failure(publisher, list, sqlstate, &err);
        break;
    case BATCH_UNKNOWN:
        answer_all(publisher, list, PUBLISH_UNKNOWN, err.text);
        break;
    case BATCH_LOST:
    case BATCH_RUNNING:
        put_back(publisher, list);
        break;
    }
}

/* ---- the thread ---- */

/* What waits, up to a batch's size. */
static void take_batch(struct publisher *publisher, struct queue *ret_list)
{
    struct queue late;

    queue_init(ret_list);
    pthread_mutex_lock(&publisher->lock);
    queue_take_batch(&publisher->queue, BATCH_EVENTS, BATCH_BYTES, &publisher->keys,
                     ret_list);
    pthread_mutex_unlock(&publisher->lock);

    take_if(publisher, ret_list, is_late, &late);
    answer_all(publisher, &late, PUBLISH_UNAVAILABLE,
               "the database did not commit in time");
}

/* Lies down until there is something to do. Who submits after `asleep` is set rings; what
 * was submitted before is seen by the look at the queue behind it, under the same lock. */
static int sleep_until(struct publisher *publisher, uint64_t until, struct err *err)
{
    bool connected = database_connected(publisher->database);

    pthread_mutex_lock(&publisher->lock);
    publisher->asleep = true;
    until = MIN(until, queue_deadline(&publisher->queue));
    if ((connected && publisher->queue.first != NULL) || publisher->stopping)
        until = 0;
    pthread_mutex_unlock(&publisher->lock);

    int r = database_wait(publisher->database, mailbox_fd(&publisher->bell), until, err);
    pthread_mutex_lock(&publisher->lock);
    publisher->asleep = false;
    pthread_mutex_unlock(&publisher->lock);
    (void)mailbox_deliver(&publisher->bell); /* silences it */
    return r;
}

static int turn(struct publisher *publisher, struct err *err)
{
    struct queue list;
    uint64_t deadline;

    if (publisher->away_usec != 0 || clock_usec() >= publisher->scanned_usec + SCAN_USEC)
        answer_hopeless(publisher);
    if (!database_connected(publisher->database)) {
        pthread_mutex_lock(&publisher->lock);
        deadline = queue_deadline(&publisher->queue);
        pthread_mutex_unlock(&publisher->lock);

        const uint64_t due =
            deadline == CLOCK_NEVER
                ? publisher->retry.due_usec
                : MIN(publisher->retry.due_usec, publisher->tried_usec + EAGER_USEC);
        return clock_usec() < due ? sleep_until(publisher, due, err)
                                  : open_connection(publisher, deadline, err);
    }
    take_batch(publisher, &list);
    if (list.first == NULL)
        return sleep_until(publisher, CLOCK_NEVER, err);
    run_list(publisher, &list);
    return 0;
}

/* Stopping goes on until all is answered, the grace is over, or there is no database to
 * write to. */
static bool is_done(struct publisher *publisher)
{
    pthread_mutex_lock(&publisher->lock);
    bool stopping = publisher->stopping;
    bool empty = publisher->queue.first == NULL;
    pthread_mutex_unlock(&publisher->lock);
    return stopping && (empty || publisher->away_usec != 0 || grace_is_over(publisher));
}

static void run(void *argument)
{
    struct publisher *publisher = argument;
    struct queue rest;

    THREAD_ASSERT(THREAD_PUBLISHER);
    while (!is_done(publisher)) {
        struct err err = {0};
        thread_beat();
        /* open_connection() has told of its own failures. */
        bool connected = database_connected(publisher->database);
        int r = turn(publisher, &err);
        if (r < 0 && r != -ECANCELED && connected)
            lose_connection(publisher, &err);
    }

    queue_init(&rest);
    pthread_mutex_lock(&publisher->lock);
    publisher->running = false;
    queue_move(&rest, &publisher->queue);
    pthread_mutex_unlock(&publisher->lock);
    answer_all(publisher, &rest, PUBLISH_UNAVAILABLE, STOPPING);
    database_close(publisher->database);
}

/* ---- from other threads ---- */

int publisher_submit(struct publisher *publisher, struct publish *publish)
{
    size_t bytes = queue_bytes(publish);
    bool ring = false;
    int code = 0;

    publish->accepted_usec = clock_usec();
    pthread_mutex_lock(&publisher->lock);
    size_t accepted = publisher->accepted_bytes;
    if (!publisher->running || publisher->stopping) {
        code = -ESHUTDOWN;
    } else if (accepted > 0 && accepted + bytes > publisher->settings.queue_bytes) {
        code = -EAGAIN;
    } else {
        publisher->accepted_bytes += bytes;
        stats_gauge_add(publisher->settings.stats, STATS_PUBLISH_WAITING,
                        (int64_t)publish->count);
        queue_add(&publisher->queue, publish);
        ring = publisher->asleep;
        publisher->asleep = false; /* one ring is enough */
    }
    pthread_mutex_unlock(&publisher->lock);

    if (ring)
        mailbox_ring(&publisher->bell);
    return code;
}

int publisher_start(struct publisher *publisher, struct err *err)
{
    pthread_mutex_lock(&publisher->lock);
    publisher->running = true;
    pthread_mutex_unlock(&publisher->lock);

    int r = thread_start(&publisher->thread, THREAD_PUBLISHER, 0, run, publisher, err);
    if (r < 0) {
        pthread_mutex_lock(&publisher->lock);
        publisher->running = false;
        pthread_mutex_unlock(&publisher->lock);
    }
    return r;
}

void publisher_stop(struct publisher *publisher, uint64_t grace_usec)
{
    struct itimerspec grace = {
        .it_value = {.tv_sec = (time_t)(grace_usec / USEC_PER_SEC),
                     .tv_nsec = (long)(grace_usec % USEC_PER_SEC) * 1000 + 1},
    };

    if (publisher == NULL || !publisher->thread.started)
        return;
    pthread_mutex_lock(&publisher->lock);
    publisher->stopping = true;
    pthread_mutex_unlock(&publisher->lock);
    if (timerfd_settime(publisher->stop_fd, 0, &grace, NULL) < 0)
        log_error("the publisher's grace could not be limited: %s", strerror(errno));
    mailbox_ring(&publisher->bell);
    thread_join(&publisher->thread);
}

/* ---- life ---- */

struct publisher *publisher_new(const struct publisher_settings *settings)
{
    struct publisher *publisher = calloc(1, sizeof(*publisher));

    if (publisher == NULL)
        return NULL;
    publisher->settings = *settings;
    publisher->settings.dsn = publisher->settings.password = NULL; /* kept by database */
    queue_init(&publisher->queue);
    publisher->stop_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (publisher->stop_fd < 0 || mailbox_init(&publisher->bell, NULL) < 0 ||
        pthread_mutex_init(&publisher->lock, NULL) != 0)
        goto no_lock;
    publisher->database = database_new(&(struct database_settings){
        .dsn = settings->dsn,
        .password = settings->password,
        .door = "publisher",
        .target = "read-write",
        .stop_fd = publisher->stop_fd,
        .tick = on_tick,
        .argument = publisher,
    });
    if (publisher->database == NULL) {
        publisher_free(publisher);
        return NULL;
    }
    return publisher;

no_lock:
    mailbox_done(&publisher->bell);
    if (publisher->stop_fd >= 0)
        close(publisher->stop_fd);
    free(publisher);
    return NULL;
}

void publisher_free(struct publisher *publisher)
{
    if (publisher == NULL)
        return;
    publisher_stop(publisher, 0);
    database_free(publisher->database);
    pthread_mutex_destroy(&publisher->lock);
    mailbox_done(&publisher->bell);
    close(publisher->stop_fd);
    free(publisher);
}

const struct thread *publisher_thread(const struct publisher *publisher)
{
    return &publisher->thread;
}
