/*
 * publisher.h - what waits to be written, in batches; and who is told when it is.
 *
 *     POST ─┐                                   ┌─ done: seq of each event
 *     POST ─┼─ queue ──> one batch in flight ───┼─ done
 *     POST ─┘            (all that waits)       └─ refused: only the bad one
 *
 * One thread, one connection. While a batch is being committed the next one gathers, so
 * the more is published at once the larger the batches: no timer, no delay when idle.
 *
 * Always true:
 *   - a request's events are committed all or none, in the order given, with rising seq.
 *   - done() comes exactly once for each request accepted by publisher_submit(), after
 *     the commit is known to be durable or known not to have happened; PUBLISH_UNKNOWN is
 *     said only when PostgreSQL could not be asked for the transaction's fate in time.
 *   - a request that PostgreSQL refuses spoils no other: the batch is halved until it
 *     stands alone.
 *
 * Threads: submit from any; done() is called on the publisher's thread and must not wait.
 */
#ifndef PUBLISHER_H
#define PUBLISHER_H

#include "base.h"
#include "err.h"
#include "event.h"
#include "stats.h"

struct publisher;

enum publish_outcome {
    PUBLISH_DONE,    /* committed; events[i].seq is set */
    PUBLISH_REFUSED, /* PostgreSQL will never take it (class 22, 23, 44, P0); err says why */
    PUBLISH_UNAVAILABLE, /* not committed: away, read-only, full, slow; err says why */
    PUBLISH_UNKNOWN,     /* the connection broke at COMMIT and no answer came in time */
};

/* One request. The submitter owns it and everything it points to, and leaves all of it
 * alone from publisher_submit() until done(). */
struct publish {
    struct event *events;
    size_t count;           /* at least 1 */
    uint64_t deadline_usec; /* clock_usec() by which done() comes */
    void (*done)(struct publish *publish);

    enum publish_outcome outcome; /* set before done() */
    struct err err;

    struct publish *next;   /* the publisher's own */
    uint64_t accepted_usec; /* the publisher's own */
};

struct publisher_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    long schema_version;  /* the newest migration this program knows */
    size_t queue_bytes;   /* data not yet answered, over which publisher_submit refuses */
    struct stats *stats;
};

/* The strings are copied. NULL: no memory. */
struct publisher *publisher_new(const struct publisher_settings *settings) MUST_CHECK;
int publisher_start(struct publisher *publisher, struct err *err) MUST_CHECK;

/* Commits what was accepted (for at most grace_usec), answers the rest as unavailable,
 * waits for the thread. */
void publisher_stop(struct publisher *publisher, uint64_t grace_usec);
void publisher_free(struct publisher *publisher);

/* 0: accepted, done() will come. -EAGAIN: too much is waiting already. -ESHUTDOWN: not
 * started, stopping or stopped. On a failure nothing was kept. */
int publisher_submit(struct publisher *publisher, struct publish *publish) MUST_CHECK;

struct thread;
const struct thread *publisher_thread(const struct publisher *publisher);

#endif
