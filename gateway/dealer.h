/*
 * dealer.h - deals what it claims from the database to the consumers of groups here.
 *
 *     news, free places, time ──> wanted groups ──> claim ──> deal() to each in turn
 *     who left                ──> given back: due at once, for whoever comes
 *     exclusive               ──> lock ──> recall what was in flight ──> the holder alone
 *
 * For all consumers of a group together one claim is made, for as many deliveries as they have
 * places. Of a group with exclusive consumers one is the holder, over all gateways: one of the
 * session that has an advisory lock. A connection that is lost is a lock lost. Each gateway says
 * something every second; one that has the lock and says nothing for long is frozen, or cut
 * off. Who waits for the lock ends its session: so whatever it does when it wakes up is void.
 *
 * Always true:
 *   - a delivery that nobody has in hand here is acknowledged, given back, or comes again at
 *     the end of its lease.
 *   - while a holder is there no lease of its own ends.
 *
 * Threads: its owner's, which has the connection; news of each consumer from any.
 */
#ifndef DEALER_H
#define DEALER_H

#include "base.h"
#include "claim.h"
#include "database.h"
#include "errand.h"
#include "mailbox.h"
#include "returns.h"
#include "roster.h"
#include "sse.h"
#include "statement.h"
#include "stats.h"

/* One consumer; inside whatever it belongs to. The callbacks must not wait. */
struct enrolment {
    struct member member; /* what it asks for is filled in by who joins */
    void (*deal)(struct enrolment *enrolment, struct sse_frame *frame); /* takes it */
    void (*end)(
        struct enrolment *enrolment); /* its stream is to end, and may come back */
    void (*gone)(
        struct enrolment *enrolment); /* the last call: it is its owner's again */

    void *keeper; /* who brings it here by letter: its own from here on */
    struct mail join_mail;
    struct mail news_mail;
    struct mail leave_mail;
    _Atomic bool told; /* [atomic] news_mail is on its way */
    struct enrolment *next;
    struct enrolment **link;
};

struct dealer {
    struct stats *stats;       /* [const] */
    struct database *database; /* [const] its owner's */
    struct wheel *wheel;
    struct roster *roster;
    struct enrolment *enrolments;
    struct returns returns;
    uint64_t bury_usec;   /* when it looks for what has used up its attempts */
    uint64_t silent_usec; /* when it looks for holders that say nothing */
    struct refusals refusals;
};

/* -ENOMEM; dealer_done() in any case. */
int dealer_init(struct dealer *dealer, struct database *database,
                struct stats *stats) MUST_CHECK;
void dealer_done(struct dealer *dealer);

/* Calls end() if there is no memory for it. */
void dealer_join(struct dealer *dealer, struct enrolment *enrolment);

/* What it has in hand will be given back; calls gone(). */
void dealer_dismiss(struct dealer *dealer, struct enrolment *enrolment);

/* An errand has been answered: its place is free. */
void dealer_settle(struct dealer *dealer, const struct errand *errand);

/* gateway_freed has been notified by another gateway, with that payload. */
void dealer_take_freed(struct dealer *dealer, const char *payload);

/* gateway_removed has been notified, with that payload: end() is called for its members. */
void dealer_group_is_gone(struct dealer *dealer, const char *payload);

/* Does what there is to do, or a good part of it. As in database.h; what the server refuses is
 * told to the log, and left for later. */
int dealer_turn(struct dealer *dealer, struct err *err) MUST_CHECK;

/* When dealer_turn() has something to do. */
uint64_t dealer_due_usec(const struct dealer *dealer) MUST_CHECK;

/* The connection is lost, and with it what was locked: end() is called for holders. */
void dealer_is_cut_off(struct dealer *dealer);

/* There is a connection: what happened meanwhile was told to nobody. */
void dealer_begins_anew(struct dealer *dealer);

#endif
