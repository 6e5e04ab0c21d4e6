/*
 * waits.h - who waits for an event to be acknowledged, until it is or the time is over.
 *
 *     fresh ──(wait row committed)──> looks ──> lies down ──(bell, or a while)──> looks …
 *                                       └── acknowledged, dead, or late ──> done()
 *
 * The row in gateway.waits makes an acknowledgement anywhere ring for it. It is committed
 * before the first look at the result, so what is acknowledged before is seen and what is
 * acknowledged after rings. An acknowledgement that is being committed meanwhile does neither:
 * it has found no row, and is not seen yet. It is the usual case where the worker is at another
 * gateway, and so the next looks follow soon, after 1, 4, 16 ms; then there is one a second, for
 * a lost bell. Looks that are due at about the same time are one.
 *
 * Threads: its owner's, which has the connection; done() is called there and must not wait.
 */
#ifndef WAITS_H
#define WAITS_H

#include "array.h"
#include "base.h"
#include "database.h"
#include "mailbox.h"

enum wait_outcome {
    WAIT_ACKNOWLEDGED, /* `result` is what came with it, or NULL */
    WAIT_DEAD,         /* it never will be */
    WAIT_LATE,         /* the time is over */
};

/* One. The waiter owns it and leaves it alone until done(). */
struct wait {
    uint64_t seq;
    const char *group;
    uint64_t deadline_usec;
    void (*done)(struct wait *wait);

    enum wait_outcome outcome; /* set before done() */
    char *result;              /* JSON text, heap; the waiter's to free */

    void *keeper; /* who brings it here, by letter: its own */
    struct mail mail;

    uint64_t row; /* the waits' own from here on; the row's id, or 0 */
    uint64_t look_usec;
    uint64_t pause_usec; /* before the look after that */
    struct wait *next;
    struct wait **link;
};

struct waits {
    struct wait *first;
    struct array over;        /* ids of rows that are to be taken away */
    uint64_t not_before_usec; /* after a failure */
};

void waits_init(struct waits *waits);
void waits_done(struct waits *waits); /* nobody waits any more */

void waits_add(struct waits *waits, struct wait *wait);

/* gateway_acks has been notified with that payload. */
void waits_bell(struct waits *waits, const char *payload);

/* On a new connection: nothing is known. */
void waits_begin_anew(struct waits *waits);

/* Tells those whose time is over; with `all` everybody. */
void waits_expire(struct waits *waits, bool all);

/* Has a bell been rung for somebody, so that there is an answer to be had? */
bool waits_are_rung(const struct waits *waits) MUST_CHECK;

/* When waits_turn() or waits_expire() has something to do. */
uint64_t waits_due_usec(const struct waits *waits) MUST_CHECK;

/* Does what there is to do in the database. As in database.h. */
int waits_turn(struct waits *waits, struct database *database, uint64_t deadline_usec,
               struct err *err) MUST_CHECK;

#endif
