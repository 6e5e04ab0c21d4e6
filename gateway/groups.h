/*
 * groups.h - the thread of the groups: who gets which event, what is acknowledged, and who
 * waits for that.
 *
 *     join, leave, news ─┐                  ┌─ deal: a delivery for one consumer
 *     ack, nack, remove ─┼── one thread ────┼─ done: of an errand
 *     waits for an ack ──┘   │              └─ done: of a wait
 *                            └── one connection: claims, acknowledgements, notifications
 *
 * What comes to be acknowledged meanwhile is acknowledged together, in one transaction; what is
 * handed out is dealer.h's.
 *
 * The connection is made when it is first needed.
 *
 * Always true:
 *   - an errand accepted is answered exactly once; so is a wait, by its deadline.
 *   - a delivery that is not acknowledged comes again: at the end of its lease, at once when
 *     its consumer left, or when another gateway's consumers are there to take it.
 *   - an enrolment that was accepted is the groups' until gone() is called.
 *
 * Threads: groups_* from any; the callbacks are called on the groups' thread, and must not
 * wait.
 */
#ifndef GROUPS_H
#define GROUPS_H

#include "base.h"
#include "dealer.h"
#include "err.h"
#include "errand.h"
#include "stats.h"
#include "waits.h"

struct groups_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    long schema_version;  /* the newest migration this program knows */
    size_t consumers_max;
    size_t waits_max;
    size_t groups_max; /* of all gateways together, in the database */
    struct stats *stats;
};

/* The strings are copied. NULL: no memory. */
struct groups *groups_new(const struct groups_settings *settings) MUST_CHECK;
int groups_start(struct groups *groups, struct err *err) MUST_CHECK;

/* Runs the errands that were accepted and gives back what consumers have in hand (for at most
 * grace_usec), ends all consumers, answers the rest, waits for the thread. */
void groups_stop(struct groups *groups, uint64_t grace_usec);
void groups_free(struct groups *groups);

/* 0: gone() will come, at the latest when the groups are stopped. -EAGAIN: there are too many
 * consumers. -ESHUTDOWN: not started, or stopping. */
int groups_join(struct groups *groups, struct enrolment *enrolment) MUST_CHECK;

/* Once; what it has in hand is given back. */
void groups_leave(struct enrolment *enrolment);

/* There may be something for it: an event of its channel, or room in its socket. Any number
 * of times before groups_leave(). */
void groups_news(struct enrolment *enrolment);

/* 0: done() will come, once. -ESHUTDOWN. */
int groups_do(struct groups *groups, struct errand *errand) MUST_CHECK;

/* A place for one who is to wait, before the event is published. -EAGAIN: too many wait. */
int groups_reserve(struct groups *groups) MUST_CHECK;
void groups_unreserve(struct groups *groups);

/* With a reservation, which stays the caller's: done() will come by the deadline.
 * -ESHUTDOWN. */
int groups_wait(struct groups *groups, struct wait *wait) MUST_CHECK;

struct thread;
const struct thread *groups_thread(const struct groups *groups);

#endif
