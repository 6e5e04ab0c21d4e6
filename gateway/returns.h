/*
 * returns.h - what consumers leave behind: deliveries that are given back, locks that are let
 * go, free places that other gateways are told of.
 *
 *     give back ──> batches ──> due at once
 *                     ^  └── somebody else has it locked ──> a second later ─┐
 *                     └─────────────────────────────────────────────────────┘
 *     unlock, freed ──> one statement each
 *
 * Always true: what the server refuses stays, and is tried again a second later; what is lost
 * for want of memory is made good by the end of its lease, or by the end of the connection,
 * which follows.
 *
 * Threads: its owner's, which has the connection.
 */
#ifndef RETURNS_H
#define RETURNS_H

#include "array.h"
#include "base.h"
#include "database.h"
#include "statement.h"

/* Batches, each of which one statement gives back. */
struct returns_list {
    struct returns_batch *first;
    struct returns_batch **tail;
};

struct returns {
    struct database *database; /* [const] its owner's */
    struct returns_list batches;
    struct returns_list locked; /* by somebody else: to be given back, too */
    uint64_t locked_usec;       /* when they are tried again */
    struct pairs freed;         /* acknowledged, and in nobody's hand here */
    struct pairs unlock;        /* groups whose last exclusive member has left */
    uint64_t due_usec;          /* not before: something has been refused */
    struct refusals refusals;
};

void returns_init(struct returns *returns, struct database *database);
void returns_done(struct returns *returns);

/* A delivery and its group. */
void returns_give_back(struct returns *returns, const char *id, const char *name);
void returns_tell_freed(struct returns *returns, const char *id, const char *name);

/* A channel and its group. */
void returns_unlock(struct returns *returns, const char *channel, const char *name);

/* The connection is lost, and with it what was locked; there is one again. */
void returns_are_cut_off(struct returns *returns);
void returns_begin_anew(struct returns *returns);

/* Does a good part of what there is to do, if it is time. As in database.h; what the server
 * refuses is told to the log. */
int returns_turn(struct returns *returns, struct err *err) MUST_CHECK;

/* All of it, as far as it is not refused or locked. */
int returns_clear(struct returns *returns, struct err *err) MUST_CHECK;

/* When returns_turn() has something to do. */
uint64_t returns_due_usec(const struct returns *returns) MUST_CHECK;

#endif
