/*
 * listener.h - every new event of the database, once, in order, into the ring.
 *
 *     PostgreSQL ── NOTIFY gateway_events ("there is more") ──> fetch seq > last ──> ring
 *                ── NOTIFY gateway_wake ("rows to number") ───> gateway.sweep(), and intake.h
 *                ── every few ms while rows flow, unrung ─────> gateway.sweep()
 *                ── NOTIFY of an application, if relayed ──────> ring, in its place (intake.h)
 *
 * One thread, one connection of its own (never through a transaction pooler: those
 * deliver no notifications). A notification is only a doorbell; what counts is the query
 * behind it, and a query a second asks anyway, so a lost doorbell costs a second, not an
 * event. When it is rung for rows of applications, and when it polls instead, bell.h tells.
 *
 * Always true:
 *   - frames go into the ring in the order of seq, each once, whatever happened to the
 *     connection: the position is the last seq pushed, and it outlives reconnects.
 *   - LISTEN is committed before the first catch-up query of a connection.
 *   - no query waits longer than its deadline: a frozen server or a silently dropped
 *     network is noticed within 10 s, the connection dropped and opened anew, the first
 *     time at once, then backing off with jitter up to a second.
 *
 * Threads: new, start, stop and free on main; listener_status() from any.
 */
#ifndef LISTENER_H
#define LISTENER_H

#include "base.h"
#include "err.h"
#include "relay.h"
#include "ring.h"
#include "stats.h"

struct listener;

struct listener_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    long schema_version;  /* the newest migration this program knows */
    struct ring *ring;
    struct relay *relay; /* outlives the listener; NULL: nothing is relayed */
    bool relay_exact;    /* in commit order with the rows of applications, see intake.h */
    size_t recent_bytes; /* of events stored before, to begin the ring with */
    struct stats *stats;

    /* News, on the listener's thread. prepare: before a connection is tried, until it has
     * returned 0 once (migrate_on_start); may be NULL. changed: listener_status() would
     * now say something else; may be NULL. */
    int (*prepare)(void *argument, struct err *err);
    void (*changed)(void *argument);
    void *argument;
};

struct listener_status {
    bool listening;           /* LISTEN stands, and a round trip answered within 3 s */
    bool writable;            /* not a standby, not read-only */
    bool replaced;            /* the events seen are no part of it: end, and begin anew */
    uint64_t head_seq;        /* newest event pushed; 0 before the first connection */
    uint64_t round_trip_usec; /* when (clock_usec) the last query was answered; 0 never */
    char reason[256];         /* why it is not listening or not writable; "" when both */
};

/* The strings are copied. NULL: no memory. */
struct listener *listener_new(const struct listener_settings *settings) MUST_CHECK;
int listener_start(struct listener *listener, struct err *err) MUST_CHECK;
void listener_stop(struct listener *listener); /* waits; a query in flight is abandoned */
void listener_free(struct listener *listener);

void listener_status(struct listener *listener, struct listener_status *ret_status);

/* The listener's thread, for the watchdog. */
struct thread;
const struct thread *listener_thread(const struct listener *listener);

#endif
