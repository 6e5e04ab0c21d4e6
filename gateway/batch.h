/*
 * batch.h - many events in one transaction, and what became of it.
 *
 *     batch_add() ... ──> batch_commit(): BEGIN + publish_batch ──> COMMIT ──> answered
 *                                            not committed:         maybe:     committed
 *                                            BATCH_FAILED,          BATCH_UNKNOWN,
 *                                            BATCH_LOST             then batch_ask()
 *
 * Always true: BATCH_COMMITTED, from either, means that PostgreSQL said so. Of a batch in
 * which nothing was inserted, because all of it was known, there is nothing to ask: it had
 * been committed before.
 *
 * Threads: its owner's. Cost: two round trips a batch, and a copy of its texts.
 */
#ifndef BATCH_H
#define BATCH_H

#include "array.h"
#include "base.h"
#include "buf.h"
#include "database.h"
#include "err.h"
#include "event.h"

struct batch {
    /* One element an event, but for keys. */
    struct array channels, types, datas, attributes, units, keys, clients;
    size_t count;
    size_t key_count;
    bool has_attributes; /* any event has */
    bool has_clients;    /* likewise */

    /* Once publish_batch answered. */
    struct buf known;   /* batch.c's own: what is known of each key */
    size_t inserted;    /* events that were not there */
    uint64_t first_seq; /* of the first of them; the others follow without a hole */
    char xid[24];
    char written[24];                /* by then they were: microseconds of the epoch */
    size_t told_keys, told_inserted; /* batch_tell()'s own */

    char sqlstate[6];    /* of BATCH_FAILED */
    size_t conflict_key; /* of BATCH_CONFLICT: the index of the key among all */
    int asked_in_vain;   /* how often "committed" came without the events */
};

/* publish_batch's SQLSTATE, of a BATCH_FAILED: a key has been used for other events. */
#define BATCH_CONFLICT "GW422"

enum batch_result {
    BATCH_COMMITTED, /* batch_tell() may be called */
    BATCH_FAILED,    /* not committed; `sqlstate` and err say why */
    BATCH_LOST,      /* not committed; the connection is gone, or was never there */
    BATCH_UNKNOWN,   /* COMMIT was sent and not answered; the connection is gone */
    BATCH_RUNNING,   /* batch_ask: still under way; ask again */
};

void batch_init(struct batch *batch);
void batch_done(struct batch *batch);

/* Copies the texts of a request's events and keys. A key may be in a batch only once.
 * batch_ok(): 0, or -ENOMEM if there was no room for one. */
void batch_add(struct batch *batch, const struct event *events, size_t count,
               const struct event_unit *units, size_t unit_count);
int batch_ok(const struct batch *batch) MUST_CHECK;

/* After BATCH_COMMITTED or BATCH_UNKNOWN, for each request in the order in which they were
 * added: sets the seq of its events, and which of its units were known. */
void batch_tell(struct batch *batch, struct event *events, size_t count,
                struct event_unit *units, size_t unit_count);

/* Of the time until the deadline, some is kept for batch_ask(). */
enum batch_result batch_commit(struct batch *batch, struct database *database,
                               uint64_t deadline_usec, struct err *err) MUST_CHECK;

/* What became of an unknown one, asked on a new connection: BATCH_COMMITTED, BATCH_FAILED
 * (it has not been and will not be), BATCH_RUNNING, BATCH_LOST (this connection is gone
 * too), or BATCH_UNKNOWN: PostgreSQL does not know either, and will not. */
enum batch_result batch_ask(struct batch *batch, struct database *database,
                            uint64_t deadline_usec, struct err *err) MUST_CHECK;

#endif
