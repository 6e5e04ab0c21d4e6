/*
 * intake.h - what comes from the database goes into the ring, in order: events, and between
 * them the notifications of applications.
 *
 *     rung for 7 │ NOTIFY a │ rung for 9 │ NOTIFY b          as the listener hears them
 *     rows       ... 6  7  8  9                              as the table has them
 *     ring       ... 6  7  a  8  9  b
 *
 * PostgreSQL tells notifications in the order of their commits, the gateways' doorbells among
 * them. So a notification stands behind the events it was rung for before it, and before
 * those that are POSTed after it: these are not taken before they have been rung for. Rows of
 * applications ring for nothing that has a number yet. A sweep that begins when the
 * notification is there numbers those committed before it, and they are taken first, with
 * those that come in the moment until then.
 *
 * Always true:
 *   - frames go into the ring in the order of seq, each once; the position is the last seq
 *     pushed, and it outlives connections.
 *   - a notification is pushed once, or whoever wants it is told that some are missing.
 *
 * Threads: the listener's. Cost: one allocation a frame, two a notification; those that wait
 * weigh 16 MiB at the most.
 */
#ifndef INTAKE_H
#define INTAKE_H

#include "base.h"
#include "database.h"
#include "err.h"
#include "relay.h"
#include "ring.h"
#include "stats.h"

struct intake;

struct intake_settings {
    struct ring *ring;
    struct relay *relay; /* NULL: nothing is relayed */
    struct stats *stats;
    void (*alive)(void *argument); /* now and then during a long fetch */
    void *argument;
};

struct intake *intake_new(const struct intake_settings *settings) MUST_CHECK; /* NULL */
void intake_free(struct intake *intake);

/* The newest event in the ring; 0 before intake_begin(). */
uint64_t intake_seq(const struct intake *intake);

/* Where the ring begins: after `recent`. Those up to `newest` are no news. */
void intake_begin(struct intake *intake, uint64_t recent, uint64_t newest);

/* Events may be missing: the ring begins anew after `newest`. */
void intake_begin_anew(struct intake *intake, uint64_t newest);

/* -- what is heard -- */

/* The doorbell: for all events up to that. */
void intake_rung(struct intake *intake, uint64_t seq);

/* So far the table goes now. What a look finds again a second later without having been rung
 * for will not be: the doorbell was lost. */
void intake_looked(struct intake *intake, uint64_t newest);

/* An application's notification. */
void intake_note(struct intake *intake, const PGnotify *notification);

/* The connection is lost, and with it what is still waiting. */
void intake_forget(struct intake *intake);

/* -- what goes in -- */

/* Does a notification wait for a sweep? Every sweep is told: it begins, and it is done. */
bool intake_waits(const struct intake *intake);
void intake_sweeping(struct intake *intake);
void intake_swept(struct intake *intake);

/* One page of the events that are newer than the newest in the ring, and the notifications
 * whose place is there. 1: there are more; 0: that was all. -ESTALE: events are missing from
 * the table; otherwise fails as database_each() does. What was pushed before a failure
 * stays. */
int intake_fetch(struct intake *intake, struct database *database,
                 struct err *err) MUST_CHECK;

/* How many events the last fetch has brought. */
size_t intake_fetched(const struct intake *intake);

#endif
