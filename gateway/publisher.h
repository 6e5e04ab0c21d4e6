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
 *   - events that stand under a key (struct event_unit) are committed once, however often
 *     and to however many gateways they are submitted.
 *
 * Threads: submit from any; done() is called on the publisher's thread and must not wait.
 */
#ifndef PUBLISHER_H
#define PUBLISHER_H

#include "base.h"
#include "err.h"
#include "queue.h"
#include "stats.h"

struct publisher;

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
