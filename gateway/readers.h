/*
 * readers.h - a few connections that read, and what waits for one of them.
 *
 *     lookup ──┐                     ┌── reader/0 ── connection ──┐
 *     replay ──┼── queue of jobs ──> ┤                            ├──> PostgreSQL
 *     replay ──┘                     └── reader/1 ── connection ──┘
 *
 * Any server of the database will do that knows the newest events, or will know them soon.
 * A connection is made when there is a job for it, and kept.
 *
 * Always true:
 *   - a job accepted is run to its end, or told that it failed, exactly once.
 *   - a job with a deadline ends by then; while the database is away it fails at once, with
 *     the reason. One without waits until the database is there again.
 *
 * Threads: ask from any; run() and fail() are called on a reader's thread (fail() also on
 * the one that stops).
 */
#ifndef READERS_H
#define READERS_H

#include "base.h"
#include "database.h"
#include "err.h"

struct readers;

/* One thing to be read; a struct inside whatever asks. The readers own it from readers_ask()
 * until run() has returned 0 or fail() is called: neither may find it touched after that. */
struct reader_job {
    /* 0: done. -EAGAIN: not now; it is run again at not_before_usec or later. Others as in
     * database.h: tried again, or failed, as the deadline says. */
    int (*run)(struct reader_job *job, struct database *database, struct err *err);
    void (*fail)(struct reader_job *job, const struct err *err);
    uint64_t deadline_usec;   /* CLOCK_NEVER: none */
    uint64_t not_before_usec; /* 0: at once */

    struct reader_job *next; /* the readers' own */
};

struct readers_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    unsigned count;       /* connections, at least 1 */
    size_t jobs_max;      /* waiting, over which a job with a deadline is not accepted */
};

/* The strings are copied. NULL: no memory. */
struct readers *readers_new(const struct readers_settings *settings) MUST_CHECK;
int readers_start(struct readers *readers, struct err *err) MUST_CHECK;
void readers_stop(struct readers *readers); /* waits; what waits is told that it failed */
void readers_free(struct readers *readers);

/* 0: accepted. -EAGAIN: too many wait. -ESHUTDOWN: not started, or stopping. */
int readers_ask(struct readers *readers, struct reader_job *job) MUST_CHECK;

/* The thread of that index, for the watchdog. */
struct thread;
unsigned readers_count(const struct readers *readers);
const struct thread *readers_thread(const struct readers *readers, unsigned index);

#endif
