/*
 * retention.c - what is kept only for a time is deleted when the time is over.
 */
#include "retention.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "database.h"
#include "log.h"
#include "retry.h"
#include "schema.h"
#include "thread.h"

#define CONNECT_USEC (5 * USEC_PER_SEC)
#define QUERY_USEC   (5 * USEC_PER_SEC)
#define BATCH_USEC   (30 * USEC_PER_SEC)

/* Some milliseconds' work: whoever has to wait for a batch does not notice. */
#define BATCH_ROWS 1000

#define PAUSE_MIN_USEC (5 * USEC_PER_MSEC)
#define PAUSE_MAX_USEC USEC_PER_SEC

/* How often to look: what is deleted a twentieth of its time late is not missed. */
#define LOOKS_A_LIFE  20
#define LOOK_MIN_USEC USEC_PER_SEC
#define LOOK_MAX_USEC (60 * USEC_PER_SEC)

/* So long a client may take to send again what it was not answered. */
#define DAY_USEC (24 * 3600 * USEC_PER_SEC)

/* One kind of thing that grows old, or is over. Its SQL runs one batch and answers two columns: how
 * many were deleted, NULL when another gateway is at it; and where the next batch goes on, NULL for
 * where this one began. $1 is the age as an interval, $2 the rows of a batch, $3 where to go
 * on, 0 at first; it uses all three. */
struct step {
    const char *sql;
    uint64_t least_usec; /* kept at least so long, also when events are kept for ever */
    enum stats_counter counter;
};

/* In this order, each time. One that is not to run (age 0) is passed over. */
static const struct step steps[] = {
    {"SELECT p.purged, p.last_seq FROM gateway.purge(CAST($1 AS interval), "
     "CAST($2 AS int4), CAST($3 AS int8)) p",
     0, STATS_EVENTS_PURGED},
    {"SELECT gateway.purge_keys(CAST($1 AS interval), CAST($2 AS int4)), "
     "CAST(nullif($3, '0') AS int8)",
     DAY_USEC, STATS_KEYS_PURGED},
    {"SELECT p.purged, p.last_seq FROM gateway.purge_deliveries(CAST($1 AS interval), "
     "CAST($2 AS int4), CAST($3 AS int8)) p",
     DAY_USEC, STATS_DELIVERIES_PURGED},
    {"SELECT gateway.bury_used_up(CAST($2 AS int4)), CAST(nullif($3, '0') AS int8) "
     "WHERE CAST($1 AS interval) > '0'",
     DAY_USEC, STATS_GROUPS_BURIED},
};

struct retention {
    struct database *database; /* [retention] */
    struct stats *stats;       /* [const] */
    long schema_version;       /* [const] */
    uint64_t events_usec;      /* [const] */
    struct retry retry;        /* [retention] */
    struct thread thread;
    int stop_fd; /* [const] eventfd */
};

/* ---- what there is to do ---- */

/* How old what the step deletes must be; 0: it deletes nothing. */
static uint64_t step_age(const struct retention *retention, const struct step *step)
{
    return MAX(retention->events_usec, step->least_usec);
}

/* How often to look. */
static uint64_t look_interval(const struct retention *retention)
{
    uint64_t interval = LOOK_MAX_USEC;

    for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
        uint64_t every = step_age(retention, &steps[i]) / LOOKS_A_LIFE;
        if (every != 0)
            interval = MIN(interval, MAX(every, LOOK_MIN_USEC));
    }
    return interval;
}

/* ---- batches ---- */

/* The functions want READ COMMITTED, and the server's default may be another one. A crash that
 * undoes a batch does no harm, so nobody waits for the disk. The server gives up a wait for a
 * lock before we do, so that no session is left waiting there; and it ends us if we are frozen
 * in between, so that another gateway can go on. All of it for the transaction alone: behind a
 * pooler the session is not ours. */
static int begin_batch(struct retention *retention, struct err *err)
{
    const struct database_query queries[] = {
        {.sql = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"},
        {.sql = "SET LOCAL synchronous_commit = off"},
        {.sql = "SET LOCAL lock_timeout = '5s'"},
        {.sql = "SET LOCAL idle_in_transaction_session_timeout = '30s'"},
    };

    return database_pipeline(retention->database, queries, ARRAY_SIZE(queries),
                             clock_usec() + QUERY_USEC, NULL, err);
}

/* One batch; 1: there may be more. */
static int run_batch(struct retention *retention, const struct step *step,
                     char after[static 24], struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    char age[48], rows[16];
    const char *values[] = {age, rows, after};
    const struct database_query query = {.sql = step->sql, .count = 3, .values = values};
    uint64_t age_usec = step_age(retention, step);

    (void)snprintf(age, sizeof(age), "%llu.%06llu seconds",
                   (unsigned long long)(age_usec / USEC_PER_SEC),
                   (unsigned long long)(age_usec % USEC_PER_SEC));
    (void)snprintf(rows, sizeof(rows), "%d", BATCH_ROWS);
    int r = begin_batch(retention, err);
    if (r == 0)
        r = database_query(retention->database, &query, clock_usec() + BATCH_USEC,
                           &result, err);
    if (schema_explain(r, retention->database, err) == 0)
        r = database_run(retention->database, "COMMIT", clock_usec() + BATCH_USEC, NULL,
                         err);
    if (r < 0) /* and the connection is closed: no ROLLBACK is needed */
        return r;
    if (PQgetisnull(result, 0, 0)) /* another gateway is at it */
        return 0;
    unsigned long deleted = strtoul(PQgetvalue(result, 0, 0), NULL, 10);
    stats_add(retention->stats, step->counter, deleted);
    if (!PQgetisnull(result, 0, 1))
        (void)snprintf(after, 24, "%.23s", PQgetvalue(result, 0, 1));
    return deleted >= BATCH_ROWS;
}

static int run_step(struct retention *retention, const struct step *step, struct err *err)
{
    char after[24] = "0";

    for (;;) {
        uint64_t begun = clock_usec();
        int r = run_batch(retention, step, after, err);
        if (r <= 0)
            return r;

        uint64_t now = clock_usec();
        uint64_t until = now + MIN(MAX(now - begun, PAUSE_MIN_USEC), PAUSE_MAX_USEC);
        while (r >= 0 && clock_usec() < until)
            r = database_wait(retention->database, -1, until, err);
        if (r < 0)
            return r;
    }
}

/* What is gone, whoever deleted it, for the figures. */
static int look_at_purges(struct retention *retention, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    int r = database_run(retention->database,
                         "SELECT coalesce(pg_catalog.max(p.seq), 0) "
                         "FROM gateway.purges p",
                         clock_usec() + QUERY_USEC, &result, err);

    if (r == 0)
        stats_gauge_set(retention->stats, STATS_PURGED_SEQ,
                        strtoll(PQgetvalue(result, 0, 0), NULL, 10));
    return r;
}

static int prepare(struct retention *retention, struct err *err)
{
    int r = database_connect(retention->database, clock_usec() + CONNECT_USEC, err);

    if (r == 0)
        r = schema_check(retention->database, retention->schema_version,
                         clock_usec() + QUERY_USEC, err);
    return r;
}

static int work(struct retention *retention, struct err *err)
{
    int r = prepare(retention, err);

    for (size_t i = 0; i < ARRAY_SIZE(steps) && r == 0; i++)
        if (step_age(retention, &steps[i]) != 0)
            r = run_step(retention, &steps[i], err);
    if (r == 0)
        r = look_at_purges(retention, err);
    database_close(retention->database);
    return r;
}

/* ---- the thread ---- */

/* Until the time has come: 0. -ECANCELED: to end. */
static int rest(struct retention *retention, uint64_t until)
{
    int r = 0;

    while (r != -ECANCELED && clock_usec() < until) {
        struct err err;
        thread_beat();
        r = database_wait(retention->database, -1, until, &err);
    }
    return r;
}

static void run(void *argument)
{
    struct retention *retention = argument;
    const uint64_t interval = look_interval(retention);
    uint64_t due = clock_usec() + clock_jitter(interval);

    THREAD_ASSERT(THREAD_RETENTION);
    while (rest(retention, due) != -ECANCELED) {
        struct err err = {0};
        int r = work(retention, &err);
        if (r == -ECANCELED)
            return;
        if (r < 0) {
            retry_down(&retention->retry, "cannot delete what is old", &err);
            due = retention->retry.due_usec;
        } else {
            retry_up(&retention->retry, "looking for what is old at",
                     database_place(retention->database));
            due = clock_usec() + clock_jitter(interval);
        }
    }
}

/* ---- life ---- */

int retention_start(struct retention *retention, struct err *err)
{
    return thread_start(&retention->thread, THREAD_RETENTION, 0, run, retention, err);
}

void retention_stop(struct retention *retention)
{
    uint64_t one = 1;

    if (retention == NULL || !retention->thread.started)
        return;
    if (write(retention->stop_fd, &one, sizeof(one)) < 0)
        log_error("the retention could not be told to stop: %s", strerror(errno));
    thread_join(&retention->thread);
}

struct retention *retention_new(const struct retention_settings *settings)
{
    struct retention *retention = calloc(1, sizeof(*retention));

    if (retention == NULL)
        return NULL;
    retention->stats = settings->stats;
    retention->schema_version = settings->schema_version;
    retention->events_usec = settings->events_usec;
    retention->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (retention->stop_fd >= 0)
        retention->database = database_new(&(struct database_settings){
            .dsn = settings->dsn,
            .password = settings->password,
            .door = "retention",
            .target = "read-write",
            .stop_fd = retention->stop_fd,
        });
    if (retention->database == NULL) {
        retention_free(retention);
        return NULL;
    }
    return retention;
}

void retention_free(struct retention *retention)
{
    if (retention == NULL)
        return;
    retention_stop(retention);
    database_free(retention->database);
    if (retention->stop_fd >= 0)
        close(retention->stop_fd);
    free(retention);
}

const struct thread *retention_thread(const struct retention *retention)
{
    return &retention->thread;
}
