/*
 * errand.h - what is asked of a group: to acknowledge a delivery, to give it back, to remove
 * the group; many in one transaction.
 *
 * Threads: its owner's, which has the connection.
 */
#ifndef ERRAND_H
#define ERRAND_H

#include "base.h"
#include "buf.h"
#include "database.h"
#include "err.h"
#include "mailbox.h"

enum errand_kind { ERRAND_ACK, ERRAND_NACK, ERRAND_REMOVE, ERRAND_KINDS };

enum errand_outcome {
    ERRAND_DONE,
    ERRAND_BAD,         /* PostgreSQL will never take it; err says why */
    ERRAND_MISSING,     /* never delivered to that group; no such group */
    ERRAND_CONFLICT,    /* not held any more: given to another, acknowledged, dead */
    ERRAND_LOCKED,      /* by somebody else, it or its table; to be run again */
    ERRAND_UNAVAILABLE, /* away, slow, or nobody knows; err says why */
};

/* One. The asker owns it and what it points to, and leaves all of it alone until done(). */
struct errand {
    enum errand_kind kind;
    const char *group;
    const char *channel; /* of a removal */
    const char *id;      /* of a delivery */
    uint64_t seq;        /* which event's it is */
    const char *text;    /* an ack's result, as JSON; a nack's reason; or NULL */
    uint64_t delay_usec; /* a nack's */
    void (*done)(struct errand *errand); /* must not wait */

    enum errand_outcome outcome; /* set before done() */
    struct err err;

    uint64_t accepted_usec; /* from here on its keeper's own, who will have it run */
    void *keeper;
    struct mail mail;
    struct errand *next;
};

/* Of that kind so many are run together, and no more. */
size_t errand_most(enum errand_kind kind) MUST_CHECK;

/* Runs `count` errands of one kind, from `first` on, in one transaction, and sets their
 * outcomes. Less than 0: as in database.h, and none of them was run, or with -ETIMEDOUT and
 * -ECONNRESET nobody knows. */
int errand_run(struct errand *first, size_t count, struct database *database,
               uint64_t deadline_usec, struct err *err) MUST_CHECK;

#endif
