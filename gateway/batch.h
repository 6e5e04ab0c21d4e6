/*
 * batch.h - many events in one transaction, and what became of it.
 *
 *     batch_add() ... ──> batch_commit(): BEGIN + publish_batch ──> COMMIT ──> answered
 *                                            not committed:         maybe:     committed
 *                                            BATCH_FAILED,          BATCH_UNKNOWN,
 *                                            BATCH_LOST             then batch_ask()
 *
 * Always true: BATCH_COMMITTED, from either, means that PostgreSQL said so.
 *
 * Threads: its owner's. Cost: two round trips a batch, and a copy of its texts.
 */
#ifndef BATCH_H
#define BATCH_H

#include "base.h"
#include "buf.h"
#include "database.h"
#include "err.h"
#include "event.h"

struct batch {
    struct buf channels, types,
        datas; /* text[] each, as PostgreSQL takes them in binary */
    size_t count;
    uint64_t first_seq; /* the number of the first event, once publish_batch answered; the
                           others follow without a hole */
    char xid[24];       /* likewise */
    char sqlstate[6];   /* of BATCH_FAILED */
    int asked_in_vain;  /* how often "committed" came without the events */
};

enum batch_result {
    BATCH_COMMITTED, /* first_seq is set */
    BATCH_FAILED,    /* not committed; `sqlstate` and err say why */
    BATCH_LOST,      /* not committed; the connection is gone, or was never there */
    BATCH_UNKNOWN,   /* COMMIT was sent and not answered; the connection is gone */
    BATCH_RUNNING,   /* batch_ask: still under way; ask again */
};

void batch_init(struct batch *batch);
void batch_done(struct batch *batch);

/* Copies the event's texts. batch_ok(): 0, or -ENOMEM if there was no room for one. */
void batch_add(struct batch *batch, const struct event *event);
int batch_ok(const struct batch *batch) MUST_CHECK;

/* Of the time until the deadline, some is kept for batch_ask(). */
enum batch_result batch_commit(struct batch *batch, struct database *database,
                               uint64_t deadline_usec, struct err *err) MUST_CHECK;

/* What became of an unknown one, asked on a new connection: BATCH_COMMITTED, BATCH_FAILED
 * (it has not been and will not be), BATCH_RUNNING, BATCH_LOST (this connection is gone
 * too), or BATCH_UNKNOWN: PostgreSQL does not know either, and will not. */
enum batch_result batch_ask(struct batch *batch, struct database *database,
                            uint64_t deadline_usec, struct err *err) MUST_CHECK;

#endif
