/*
 * intake.h - what comes from the database goes into the ring, in order: events, and between
 * them the notifications of applications.
 *
 *     POST 7 │ rows to id 31 │ NOTIFY a │ rows to id 33 │ POST 10      as the listener hears it
 *     7  8 (id 31)  9 (id 33)  10                                      as the table has it
 *     7  8  a  9  10                                                   as it goes into the ring
 *
 * PostgreSQL tells notifications in the order of their commits, and every transaction that
 * brings events rings: a POST with its number, an application with the id of its last row,
 * which is given a number later. A notification goes in when all that was rung for before it
 * is in the ring, and before what was rung for after it. It finds such a place: of what began
 * after it was committed everything has a higher number than what was committed before it
 * began (migrations/0005_order.up.sql), and between those that overlapped it any place will do.
 *
 * So nothing is taken that could have been rung for and was not heard yet: a number is, when the
 * doorbell of the transaction that gave it is. What was rung for and never comes (it was deleted,
 * or somebody has locked it) is waited for no longer when a sweep that began after the ring has
 * left nothing, and all there is has been taken. What nobody rings for is taken before the
 * notifications that wait for such a sweep; unless `exact`, that is all that applications insert.
 *
 * Always true:
 *   - frames go into the ring in the order of seq, each once; the position is the last seq
 *     pushed, and it outlives connections.
 *   - a notification is pushed once, or whoever wants it is told that some are missing.
 *
 * Threads: the listener's. Cost: one allocation a frame, two a notification, and one a ring
 * while something is relayed; notifications that wait weigh 16 MiB at the most, rings 4.
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
    bool exact; /* notifications have their place among the rows of applications, too */
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

/* The bell: for rows that an application has inserted, up to that id. */
void intake_rung_for_rows(struct intake *intake, uint64_t last_id);

/* So far the table goes now. What a look finds again a second later without having been rung
 * for will not be: the doorbell was lost. */
void intake_looked(struct intake *intake, uint64_t newest);

/* An application's notification. */
void intake_note(struct intake *intake, const PGnotify *notification);

/* The connection is lost, and with it what is still waiting. */
void intake_forget(struct intake *intake);

/* -- what goes in -- */

/* Does a notification wait for a sweep? Every sweep is told: it begins, and it is done; `all`:
 * it has left nothing without a number of what was committed before it began. */
bool intake_waits(const struct intake *intake);
void intake_sweeping(struct intake *intake);
void intake_swept(struct intake *intake, bool all);

/* One page of the events that are newer than the newest in the ring, and the notifications
 * whose place is there. 1: there are more; 0: that was all. -ESTALE: events are missing from
 * the table; otherwise fails as database_each() does. What was pushed before a failure
 * stays. */
int intake_fetch(struct intake *intake, struct database *database,
                 struct err *err) MUST_CHECK;

/* How many events the last fetch has brought. */
size_t intake_fetched(const struct intake *intake);

#endif
