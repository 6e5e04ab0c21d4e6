/*
 * replay.c - stored events, read from the table for those who ask for older ones.
 */
#include "replay.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "database.h"
#include "log.h"
#include "mailbox.h"
#include "retry.h"
#include "thread.h"

#define CONNECT_USEC (3 * USEC_PER_SEC)
#define QUERY_USEC   (3 * USEC_PER_SEC)

struct replay {
    size_t queue_jobs;         /* [const] */
    struct database *database; /* [replay] */
    struct retry retry;        /* [replay] */
    struct err away;           /* [replay] why the last try to connect failed */
    struct thread thread;
    struct mailbox bell; /* rung when there is a job, and to stop; carries no letters */
    int stop_fd;         /* [const] eventfd */

    pthread_mutex_t lock;
    struct replay_job *first; /* [lock] */
    struct replay_job **tail; /* [lock] */
    size_t waiting;           /* [lock] */
    bool running;             /* [lock] jobs are taken */
};

/* ---- answers ---- */

static void answer(struct replay_job *job, enum replay_outcome outcome, const char *why)
{
    job->outcome = outcome;
    (void)err_set(&job->err, 0, "%s", why);
    job->done(job); /* the asker's again, and perhaps gone */
}

static struct replay_job *take_job(struct replay *replay)
{
    pthread_mutex_lock(&replay->lock);
    struct replay_job *job = replay->first;
    if (job != NULL) {
        replay->first = job->next;
        if (replay->first == NULL)
            replay->tail = &replay->first;
        replay->waiting--;
    }
    pthread_mutex_unlock(&replay->lock);
    return job;
}

/* Takes out those whose time is up; in order, as they were. */
static struct replay_job *take_late(struct replay *replay)
{
    struct replay_job *late = NULL, **late_tail = &late;
    uint64_t now = clock_usec();

    pthread_mutex_lock(&replay->lock);
    struct replay_job **link = &replay->first;
    while (*link != NULL) {
        struct replay_job *job = *link;
        if (now < job->deadline_usec) {
            link = &job->next;
            continue;
        }
        *link = job->next;
        job->next = NULL;
        *late_tail = job;
        late_tail = &job->next;
        replay->waiting--;
    }
    replay->tail = link;
    pthread_mutex_unlock(&replay->lock);
    return late;
}

/* While one job waits for PostgreSQL, the time of the others goes on. */
static void on_tick(void *argument)
{
    for (struct replay_job *job = take_late(argument), *next; job != NULL; job = next) {
        next = job->next;
        answer(job, REPLAY_UNAVAILABLE, "the database did not answer in time");
    }
}

/* ---- one job ---- */

/* Channel, type and data into one piece of memory, each with its NUL. */
static int keep_event(struct replay_job *job, const PGresult *result)
{
    const char *texts[3];
    size_t lens[3], total = 0;

    for (int i = 0; i < 3; i++) {
        lens[i] = (size_t)PQgetlength(result, 0, i);
        total += lens[i] + 1;
    }
    char *text = malloc(total);
    if (text == NULL)
        return -ENOMEM;
    char *at = text;
    for (int i = 0; i < 3; i++) {
        memcpy(at, PQgetvalue(result, 0, i), lens[i] + 1);
        texts[i] = at;
        at += lens[i] + 1;
    }
    job->text = text;
    job->event = (struct event){
        .seq = job->seq,
        .channel = texts[0],
        .channel_len = lens[0],
        .type = texts[1],
        .type_len = lens[1],
        .data = texts[2],
        .data_len = lens[2],
    };
    (void)snprintf(job->created_at, sizeof(job->created_at), "%s",
                   PQgetvalue(result, 0, 3));
    return 0;
}

/* 1: found; 0: there is none. */
static int read_event(struct replay *replay, struct replay_job *job, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    char seq[24];
    const char *values[] = {seq};
    const struct database_query query = {
        .sql = "SELECT e.channel, e.type, e.data, pg_catalog.to_char(e.created_at "
               "AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') "
               "FROM gateway.events e WHERE e.seq = CAST($1 AS int8)",
        .count = 1,
        .values = values,
    };

    if (job->seq > INT64_MAX) /* no bigint: nobody was ever given it */
        return 0;
    (void)snprintf(seq, sizeof(seq), "%llu", (unsigned long long)job->seq);
    uint64_t deadline = MIN(job->deadline_usec, clock_usec() + QUERY_USEC);
    int r = database_query(replay->database, &query, deadline, &result, err);
    if (r == -EIO)
        (void)database_schema_missing(database_sqlstate(replay->database), err);
    if (r < 0)
        return r;
    if (PQntuples(result) == 0)
        return 0;
    r = keep_event(job, result);
    return r < 0 ? err_set(err, r, "no memory for the event") : 1;
}

/* After a failure nothing is tried before its time: who asks meanwhile is told why. */
static int open_connection(struct replay *replay, uint64_t deadline, struct err *err)
{
    if (clock_usec() < replay->retry.due_usec)
        return err_set(err, -ECONNRESET, "%s", replay->away.text);
    int r = database_connect(replay->database, MIN(deadline, clock_usec() + CONNECT_USEC),
                             err);
    if (r == 0) {
        retry_up(&replay->retry, "reading events from the database at",
                 database_place(replay->database));
        return 0;
    }
    if (r != -ECANCELED) {
        retry_down(&replay->retry, "cannot read events", err);
        replay->away = *err;
    }
    return r;
}

static int try_job(struct replay *replay, struct replay_job *job, struct err *err)
{
    int r = 0;

    if (!database_connected(replay->database))
        r = open_connection(replay, job->deadline_usec, err);
    if (r < 0)
        return r;
    r = read_event(replay, job, err);
    if (r < 0 && r != -ECANCELED && !database_connected(replay->database)) {
        replay->away = *err;
        retry_down(&replay->retry, "cannot read events", err);
    }
    return r;
}

static void do_job(struct replay *replay, struct replay_job *job)
{
    struct err err = {0};

    job->text = NULL;
    if (clock_usec() >= job->deadline_usec) {
        answer(job, REPLAY_UNAVAILABLE, "the database did not answer in time");
        return;
    }
    int r = try_job(replay, job, &err);
    /* A connection that was kept may have died long ago: that costs nobody an answer. */
    if (r == -ECONNRESET && clock_usec() >= replay->retry.due_usec)
        r = try_job(replay, job, &err);

    if (r < 0)
        answer(job, REPLAY_UNAVAILABLE, err.text);
    else
        answer(job, r == 1 ? REPLAY_FOUND : REPLAY_MISSING, "");
}

/* ---- the thread ---- */

static bool is_running(struct replay *replay)
{
    pthread_mutex_lock(&replay->lock);
    bool running = replay->running;
    pthread_mutex_unlock(&replay->lock);
    return running;
}

static void run(void *argument)
{
    struct replay *replay = argument;
    struct replay_job *job;

    THREAD_ASSERT(THREAD_REPLAY);
    while (is_running(replay)) {
        struct err err = {0};
        thread_beat();
        job = take_job(replay);
        if (job != NULL) {
            do_job(replay, job);
            continue;
        }
        /* The bell is silenced before the next look at the queue: see replay_ask(). */
        int r =
            database_wait(replay->database, mailbox_fd(&replay->bell), CLOCK_NEVER, &err);
        if (r < 0 && r != -ECANCELED)
            retry_down(&replay->retry, "cannot read events", &err);
        (void)mailbox_deliver(&replay->bell);
    }
    while ((job = take_job(replay)) != NULL)
        answer(job, REPLAY_UNAVAILABLE, "the gateway is being stopped");
    database_close(replay->database);
}

/* ---- from other threads ---- */

int replay_ask(struct replay *replay, struct replay_job *job)
{
    bool ring = false;
    int code = 0;

    pthread_mutex_lock(&replay->lock);
    if (!replay->running) {
        code = -ESHUTDOWN;
    } else if (replay->waiting >= replay->queue_jobs) {
        code = -EAGAIN;
    } else {
        ring = replay->first == NULL;
        job->next = NULL;
        *replay->tail = job;
        replay->tail = &job->next;
        replay->waiting++;
    }
    pthread_mutex_unlock(&replay->lock);

    /* The job is in the queue before the bell rings. */
    if (ring)
        mailbox_ring(&replay->bell);
    return code;
}

void replay_job_done(struct replay_job *job)
{
    free(job->text);
    job->text = NULL;
}

static void set_running(struct replay *replay, bool running)
{
    pthread_mutex_lock(&replay->lock);
    replay->running = running;
    pthread_mutex_unlock(&replay->lock);
}

int replay_start(struct replay *replay, struct err *err)
{
    set_running(replay, true);
    int r = thread_start(&replay->thread, THREAD_REPLAY, 0, run, replay, err);
    if (r < 0)
        set_running(replay, false);
    return r;
}

void replay_stop(struct replay *replay)
{
    uint64_t one = 1;

    if (replay == NULL || !replay->thread.started)
        return;
    set_running(replay, false);
    if (write(replay->stop_fd, &one, sizeof(one)) < 0)
        log_error("the replay could not be told to stop: %s", strerror(errno));
    thread_join(&replay->thread);
}

/* ---- life ---- */

struct replay *replay_new(const struct replay_settings *settings)
{
    struct replay *replay = calloc(1, sizeof(*replay));

    if (replay == NULL)
        return NULL;
    replay->queue_jobs = settings->queue_jobs;
    replay->tail = &replay->first;
    replay->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (replay->stop_fd < 0 || mailbox_init(&replay->bell, NULL) < 0 ||
        pthread_mutex_init(&replay->lock, NULL) != 0)
        goto no_lock;
    replay->database = database_new(&(struct database_settings){
        .dsn = settings->dsn,
        .password = settings->password,
        .door = "replay",
        .target = "any",
        .stop_fd = replay->stop_fd,
        .tick = on_tick,
        .argument = replay,
    });
    if (replay->database == NULL) {
        replay_free(replay);
        return NULL;
    }
    return replay;

no_lock:
    mailbox_done(&replay->bell);
    if (replay->stop_fd >= 0)
        close(replay->stop_fd);
    free(replay);
    return NULL;
}

void replay_free(struct replay *replay)
{
    if (replay == NULL)
        return;
    replay_stop(replay);
    database_free(replay->database);
    pthread_mutex_destroy(&replay->lock);
    mailbox_done(&replay->bell);
    close(replay->stop_fd);
    free(replay);
}

const struct thread *replay_thread(const struct replay *replay)
{
    return &replay->thread;
}
