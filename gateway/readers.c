/*
 * readers.c - a few connections that read, and what waits for one of them.
 */
#include "readers.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "clock.h"
#include "log.h"
#include "retry.h"
#include "thread.h"

#define CONNECT_USEC (3 * USEC_PER_SEC)

/* While something waits that cannot be run yet: how often to look at deadlines. */
#define LOOK_USEC (20 * USEC_PER_MSEC)

/* The server has refused a question: when it is put again, and how often the log is told. */
#define REFUSED_USEC USEC_PER_SEC
#define TELL_USEC    (60 * USEC_PER_SEC)

#define CANNOT_READ "cannot read events"

struct reader {
    struct readers *all;       /* [const] */
    struct thread thread;      /* [main] */
    struct database *database; /* [reader] */
    struct retry retry;        /* [reader] */
    struct err away;           /* [reader] why the connection failed last */
    uint64_t told_usec;        /* [reader] when the log was last told of a refusal */
    bool up;                   /* [lock] it has a connection */
};

struct readers {
    size_t jobs_max; /* [const] */
    int bell_fd;     /* [const] eventfd: readable when there is a new job */
    int stop_fd;     /* [const] eventfd: readable to the end, once they are to stop */

    pthread_mutex_t lock;
    struct reader_job *first; /* [lock] */
    struct reader_job **tail; /* [lock] */
    size_t waiting;           /* [lock] */
    bool running;             /* [lock] jobs are taken */

    unsigned count; /* [const] */
    struct reader readers[];
};

/* ---- the queue ---- */

/* Under the lock. */
static void put_locked(struct readers *readers, struct reader_job *job)
{
    job->next = NULL;
    *readers->tail = job;
    readers->tail = &job->next;
    readers->waiting++;
}

static void put_back(struct readers *readers, struct reader_job *job)
{
    pthread_mutex_lock(&readers->lock);
    put_locked(readers, job);
    pthread_mutex_unlock(&readers->lock);
}

static void ring(struct readers *readers)
{
    static const uint64_t one = 1;

    (void)!write(readers->bell_fd, &one, sizeof(one));
}

/* The first job of which is_so() says so, or NULL. */
static struct reader_job *take_if(struct readers *readers,
                                  bool (*is_so)(const struct reader_job *job,
                                                const struct reader *reader),
                                  const struct reader *reader)
{
    struct reader_job *found = NULL;

    pthread_mutex_lock(&readers->lock);
    for (struct reader_job **link = &readers->first; *link != NULL;
         link = &(*link)->next) {
        if (!is_so(*link, reader))
            continue;
        found = *link;
        *link = found->next;
        if (*link == NULL)
            readers->tail = link;
        readers->waiting--;
        break;
    }
    const bool more = found != NULL && readers->first != NULL;
    pthread_mutex_unlock(&readers->lock);
    /* Whoever was woken for what is left may have found the bell silent already. */
    if (more)
        ring(readers);
    return found;
}

static bool is_any(const struct reader_job *job, const struct reader *reader)
{
    (void)job;
    (void)reader;
    return true;
}

static bool is_late(const struct reader_job *job, const struct reader *reader)
{
    (void)reader;
    return clock_usec() >= job->deadline_usec;
}

/* Under the lock. */
static bool anybody_up(const struct readers *readers)
{
    for (unsigned i = 0; i < readers->count; i++) {
        if (readers->readers[i].up)
            return true;
    }
    return false;
}

/* Without a connection, and before its time to be tried, there is something to do only for
 * those who will not wait, if nobody else can do it. */
static bool is_due(const struct reader_job *job, const struct reader *reader)
{
    const uint64_t now = clock_usec();
    const bool may_try =
        database_connected(reader->database) || now >= reader->retry.due_usec;

    return now >= job->not_before_usec &&
           (may_try || (job->deadline_usec != CLOCK_NEVER && !anybody_up(reader->all)));
}

/* While one job waits for PostgreSQL, the time of the others goes on. */
static void on_tick(void *argument)
{
    struct reader *reader = argument;
    struct err err;

    (void)err_set(&err, -ETIMEDOUT, "the database did not answer in time");
    for (struct reader_job *job; (job = take_if(reader->all, is_late, reader)) != NULL;)
        job->fail(job, &err);
}

/* ---- one job ---- */

/* After a failure nothing is tried before its time: who asks meanwhile is told why. */
static int open_connection(struct reader *reader, uint64_t deadline, struct err *err)
{
    if (clock_usec() < reader->retry.due_usec)
        return err_set(err, -ECONNRESET, "%s", reader->away.text);
    const int r = database_connect(reader->database,
                                   MIN(deadline, clock_usec() + CONNECT_USEC), err);
    if (r == 0)
        retry_up(&reader->retry, "reading events from the database at",
                 database_place(reader->database));
    return r;
}

static int try_job(struct reader *reader, struct reader_job *job, struct err *err)
{
    int r = 0;

    if (!database_connected(reader->database)) {
        r = open_connection(reader, job->deadline_usec, err);
        if (r < 0 && clock_usec() < reader->retry.due_usec)
            return r; /* not even tried */
    }
    if (r == 0)
        r = job->run(job, reader->database, err);
    if (r < 0 && r != -EAGAIN && r != -ECANCELED &&
        !database_connected(reader->database)) {
        reader->away = *err;
        retry_down(&reader->retry, CANNOT_READ, err);
    }
    return r;
}

/* The server said no to this one, and will say so again at once: it waits, and nobody else
 * does. */
static void postpone(struct reader *reader, struct reader_job *job, const struct err *err)
{
    const uint64_t now = clock_usec();

    if (now >= reader->told_usec + TELL_USEC || reader->told_usec == 0) {
        log_warning(CANNOT_READ ": %s; trying again", err->text);
        reader->told_usec = now;
    }
    job->not_before_usec = now + REFUSED_USEC;
}

static void do_job(struct reader *reader, struct reader_job *job)
{
    struct err err = {0};
    const bool kept = database_connected(reader->database);
    /* Read before it is run: after a success it may be gone. */
    const bool waits = job->deadline_usec == CLOCK_NEVER;
    int r = try_job(reader, job, &err);

    /* A connection that was kept may have died long ago: that costs nobody an answer. */
    if (r == -ECONNRESET && kept && !waits && clock_usec() >= reader->retry.due_usec)
        r = try_job(reader, job, &err);
    if (r == 0)
        return;
    if (waits && r != -EAGAIN && database_connected(reader->database))
        postpone(reader, job, &err);
    if (r == -EAGAIN || waits)
        put_back(reader->all, job);
    else
        job->fail(job, &err);
}

/* ---- the thread ---- */

static bool is_running(struct readers *readers)
{
    pthread_mutex_lock(&readers->lock);
    const bool running = readers->running;
    pthread_mutex_unlock(&readers->lock);
    return running;
}

static void set_up(struct reader *reader)
{
    pthread_mutex_lock(&reader->all->lock);
    reader->up = database_connected(reader->database);
    pthread_mutex_unlock(&reader->all->lock);
}

/* When to look at the queue again, though nobody rings. */
static uint64_t next_look(struct readers *readers)
{
    const uint64_t now = clock_usec();
    uint64_t look = CLOCK_NEVER;

    pthread_mutex_lock(&readers->lock);
    for (const struct reader_job *job = readers->first; job != NULL; job = job->next) {
        look = MIN(look, now + LOOK_USEC);
        if (job->not_before_usec > now)
            look = MIN(look, job->not_before_usec);
    }
    pthread_mutex_unlock(&readers->lock);
    return look;
}

/* Until there is news. The bell is silenced before the next look at the queue; it wakes all
 * readers who wait, and one of them finds the job. */
static void wait_for_job(struct reader *reader)
{
    struct err err = {0};
    uint64_t rung;
    const int r = database_wait(reader->database, reader->all->bell_fd,
                                next_look(reader->all), &err);

    if (r < 0 && r != -ECANCELED) {
        retry_down(&reader->retry, CANNOT_READ, &err);
        reader->away = err;
    }
    (void)!read(reader->all->bell_fd, &rung, sizeof(rung));
}

static void run(void *argument)
{
    struct reader *reader = argument;

    THREAD_ASSERT(THREAD_READER);
    while (is_running(reader->all)) {
        thread_beat();
        on_tick(reader);
        set_up(reader);
        struct reader_job *job = take_if(reader->all, is_due, reader);
        if (job != NULL)
            do_job(reader, job);
        else
            wait_for_job(reader);
    }
    database_close(reader->database);
}

/* ---- from other threads ---- */

int readers_ask(struct readers *readers, struct reader_job *job)
{
    int code = 0;

    pthread_mutex_lock(&readers->lock);
    if (!readers->running)
        code = -ESHUTDOWN;
    else if (readers->waiting >= readers->jobs_max && job->deadline_usec != CLOCK_NEVER)
        code = -EAGAIN;
    else
        put_locked(readers, job);
    pthread_mutex_unlock(&readers->lock);

    /* The job is in the queue before the bell rings. */
    if (code == 0)
        ring(readers);
    return code;
}

static void set_running(struct readers *readers, bool running)
{
    pthread_mutex_lock(&readers->lock);
    readers->running = running;
    pthread_mutex_unlock(&readers->lock);
}

int readers_start(struct readers *readers, struct err *err)
{
    set_running(readers, true);
    for (unsigned i = 0; i < readers->count; i++) {
        const int r = thread_start(&readers->readers[i].thread, THREAD_READER, i, run,
                                   &readers->readers[i], err);

        if (r < 0) {
            readers_stop(readers);
            return r;
        }
    }
    return 0;
}

void readers_stop(struct readers *readers)
{
    static const uint64_t one = 1;
    struct err err;

    if (readers == NULL)
        return;
    set_running(readers, false);
    if (write(readers->stop_fd, &one, sizeof(one)) < 0)
        log_error("the readers could not be told to stop: %s", strerror(errno));
    for (unsigned i = 0; i < readers->count; i++)
        thread_join(&readers->readers[i].thread);

    (void)err_set(&err, -ESHUTDOWN, "the gateway is being stopped");
    for (struct reader_job *job; (job = take_if(readers, is_any, NULL)) != NULL;)
        job->fail(job, &err);
}

/* ---- life ---- */

static bool make_readers(struct readers *readers, const struct readers_settings *settings)
{
    for (unsigned i = 0; i < settings->count; i++) {
        struct reader *reader = &readers->readers[i];

        reader->all = readers;
        reader->database = database_new(&(struct database_settings){
            .dsn = settings->dsn,
            .password = settings->password,
            .door = "reader",
            .target = "read-write",
            .stop_fd = readers->stop_fd,
            .tick = on_tick,
            .argument = reader,
        });
        if (reader->database == NULL)
            return false;
        readers->count++;
    }
    return true;
}

struct readers *readers_new(const struct readers_settings *settings)
{
    struct readers *readers =
        calloc(1, sizeof(*readers) + settings->count * sizeof(readers->readers[0]));

    if (readers == NULL)
        return NULL;
    readers->jobs_max = settings->jobs_max;
    readers->tail = &readers->first;
    readers->bell_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    readers->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    (void)pthread_mutex_init(&readers->lock, NULL);
    if (readers->bell_fd < 0 || readers->stop_fd < 0 ||
        !make_readers(readers, settings)) {
        readers_free(readers);
        return NULL;
    }
    return readers;
}

void readers_free(struct readers *readers)
{
    if (readers == NULL)
        return;
    readers_stop(readers);
    for (unsigned i = 0; i < readers->count; i++)
        database_free(readers->readers[i].database);
    pthread_mutex_destroy(&readers->lock);
    if (readers->bell_fd >= 0)
        close(readers->bell_fd);
    if (readers->stop_fd >= 0)
        close(readers->stop_fd);
    free(readers);
}

unsigned readers_count(const struct readers *readers)
{
    return readers->count;
}

const struct thread *readers_thread(const struct readers *readers, unsigned index)
{
    return &readers->readers[index].thread;
}
