/*
 * bell.h - when the sweeper polls, and when it sleeps until it is rung for.
 *
 *     OFF DUTY ── has the duty ──> AWAKE ── little comes ──> ASLEEP
 *                                    ^                          │
 *                                    └──── rung for often ──────┘
 *
 * A writer that rings (NOTIFY) makes all others that ring wait for its commit. So nobody
 * rings while the sweeper is awake: it looks by itself every few milliseconds. Asleep it is
 * rung for by each commit that brings rows. Of several gateways one has the duty; off duty
 * one sweeps once a second, and, in case the one on duty does not hear, 50 ms after a ring.
 *
 * Who relays notifications needs every ring, for their order (intake.h), whoever has the duty:
 * it takes a lock of its own and calls. The one on duty lies down then, however much comes,
 * and does not get up while somebody has that lock; rung for often, it rests between sweeps as
 * if it were awake.
 *
 * The advisory locks behind this, and why no wake-up is lost, are explained in
 * migrations/0006_bell.up.sql and 0015_rung.up.sql.
 *
 * Always true: once the bell is taken, a sweep is due before any wait.
 *
 * Where a transaction keeps the bell from being taken, the pauses grow up to 128 ms; and those
 * between two tries of who was called, each of which waits for it a little, up to 4 s.
 *
 * Threads: its owner's. Cost: O(1), no memory.
 */
#ifndef BELL_H
#define BELL_H

#include "base.h"
#include "database.h"
#include "err.h"

enum bell_state { BELL_OFF_DUTY, BELL_AWAKE, BELL_ASLEEP };

enum bell_step {
    BELL_WAIT,  /* until bell_due() */
    BELL_SWEEP, /* between bell_sweeping() and bell_swept() */
    BELL_TURN,  /* bell_turn(): lie down, get up, or say that every ring is needed */
};

struct bell {
    enum bell_state state;
    uint64_t due_usec;    /* of the next sweep; CLOCK_NEVER: when it is rung for */
    uint64_t swept_usec;  /* when the last sweep was sent */
    uint64_t begun_usec;  /* since when `count` counts */
    unsigned count;       /* asleep: rings; awake: sweeps that found something */
    uint64_t pause_usec;  /* awake: between two sweeps that find nothing */
    uint64_t window_usec; /* awake: after which it is considered whether to sleep */
    uint64_t rested_usec; /* asleep: rung for often, no sweep before that */
    bool needed;          /* every ring, here */
    bool said;            /* so, by the lock */
    bool called;          /* awake: it is, somewhere else */
    bool taken;        /* off duty: somebody sleeps, as of the last time it was asked */
    uint64_t ask_usec; /* off duty: when to ask again; asleep: not before, to get up */
    uint64_t patience_usec; /* off duty: between two questions */
};

/* Off duty, nothing due: for a new connection, which holds no locks. */
void bell_reset(struct bell *bell);

/* An SQL expression: true if the session, which must not have it, has got the duty. */
#define BELL_DUTY                                                                        \
    "(SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery() AND "                          \
    "pg_catalog.current_setting('transaction_read_only') = 'off' "                       \
    "THEN pg_catalog.pg_try_advisory_lock(1885827955, 4) ELSE false END)"

/* It has. It tries to sleep at once. */
void bell_on_duty(struct bell *bell, uint64_t now_usec);

/* What to do now. */
enum bell_step bell_next(struct bell *bell, uint64_t now_usec) MUST_CHECK;

/* Until when there is nothing to do unless it rings. */
uint64_t bell_due(const struct bell *bell);

/* Every ring is needed here, or no longer. */
void bell_need(struct bell *bell, bool needed);

/* Does everybody ring? */
bool bell_is_taken(const struct bell *bell);

/* Heard on gateway_wake: rows to number; or BELL_CALL, somebody needs every ring. */
#define BELL_CALL "relay"
void bell_called(struct bell *bell);
void bell_rung(struct bell *bell, uint64_t now_usec);
void bell_sweep_soon(struct bell *bell, uint64_t now_usec); /* in any state */

/* A sweep is sent; then, when its answer is there: it has numbered something, or not. What
 * rings in between may have come too late for it, and makes another one due. */
void bell_sweeping(struct bell *bell, uint64_t now_usec);
void bell_swept(struct bell *bell, uint64_t now_usec, bool found);

/* Takes the bell, or gives it back; or sees to it that somebody takes it. That somebody keeps it
 * from being taken is no failure. Otherwise fails as database_run() does. */
int bell_turn(struct bell *bell, struct database *database, uint64_t deadline_usec,
              struct err *err) MUST_CHECK;

#endif
