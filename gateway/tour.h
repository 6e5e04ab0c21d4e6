/*
 * tour.h - a letter that goes to every shard, one after the other, and home again.
 *
 *     shard 1: tour_begin ──> 1 ──> 2 ──> 3 ──> 0 ──> home, on shard 1
 *
 * For what one shard's request must ask of all. One letter carries what it gathers, so
 * nothing is shared, and two shards never work on it at the same time.
 *
 * Always true: a tour goes where a thread is there to be visited, and comes home before the
 * first of them has stopped; tours_close() waits for that.
 *
 * Threads: see each function. Locks: one mutex, held for a comparison and an addition.
 */
#ifndef TOUR_H
#define TOUR_H

#include "base.h"
#include "fanout.h"
#include "mailbox.h"

struct tours;

/* Inside whatever it is for. */
struct tour {
    /* On each shard's thread: what it is to look at. */
    void (*visit)(struct tour *tour, struct fanout *fanout);
    /* On the first one's thread, at the end; the tour is the caller's again. */
    void (*home)(struct tour *tour);

    struct mail mail; /* the tours' own from here on */
    struct tours *tours;
    unsigned first;
    unsigned count;
    unsigned left;
};

/* For so many shards. NULL: no memory. */
struct tours *tours_new(unsigned count) MUST_CHECK;
void tours_free(struct tours *tours);

/* Before the threads are started: where the shard of that index is. */
void tours_set(struct tours *tours, unsigned index, struct mailbox *mailbox,
               struct fanout *fanout);

/* On the thread of shard `index`: it is there, and so are those of lower index, because they
 * were started before. */
void tours_join(struct tours *tours, unsigned index);

/* On main: no more tours; waits until those under way are home. */
void tours_close(struct tours *tours);

/* On the thread of shard `index`: visit() and home() will be called. -ESHUTDOWN: they will
 * not. */
int tour_begin(struct tour *tour, struct tours *tours, unsigned index) MUST_CHECK;

#endif
