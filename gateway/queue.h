/*
 * queue.h - requests to publish, oldest first; and which of them make a batch.
 *
 * Always true: a request is in one queue at the most; the queue owns none of them.
 *
 * Threads: its owner's, or under the owner's lock. Cost: O(1), but for what says otherwise.
 */
#ifndef QUEUE_H
#define QUEUE_H

#include "base.h"
#include "err.h"
#include "event.h"
#include "keyset.h"

enum publish_outcome {
    PUBLISH_DONE,    /* committed; events[i].seq and units[i].known are set */
    PUBLISH_REFUSED, /* PostgreSQL will never take it (class 22, 23, 44, P0); err says why */
    PUBLISH_CONFLICT,    /* the key of units[conflict] was used for other events */
    PUBLISH_UNAVAILABLE, /* not committed: away, read-only, full, slow; err says why */
    PUBLISH_UNKNOWN,     /* the connection broke at COMMIT and no answer came in time */
};

/* One request. The submitter owns it and everything it points to, and leaves all of it
 * alone from publisher_submit() until done(). */
struct publish {
    struct event *events;
    size_t count;             /* at least 1 */
    struct event_unit *units; /* in the order of their events; no key twice */
    size_t unit_count;        /* may be 0 */
    uint64_t deadline_usec;   /* clock_usec() by which done() comes */
    void (*done)(struct publish *publish);

    enum publish_outcome outcome; /* set before done() */
    struct err err;
    size_t conflict; /* of PUBLISH_CONFLICT: an index of units */

    struct publish *next;   /* the queue's own */
    uint64_t accepted_usec; /* the publisher's own */
};

struct queue {
    struct publish *first; /* NULL: empty */
    struct publish **tail;
};

void queue_init(struct queue *queue);
void queue_add(struct queue *queue, struct publish *publish);

/* The oldest, or NULL. */
struct publish *queue_take(struct queue *queue) MUST_CHECK;

/* All of `from` behind what is in `to`; `from` is empty afterwards. */
void queue_move(struct queue *to, struct queue *from);

/* The earliest there is in it, or CLOCK_NEVER. O(n). */
uint64_t queue_deadline(const struct queue *queue) MUST_CHECK;

/* What a request weighs: the bytes of its texts. */
size_t queue_bytes(const struct publish *publish) MUST_CHECK;

/* Takes a batch: the oldest request, and of the others, in their order, what goes along
 * within the two limits and shares no key with it. Who shares one stays, as the oldest, for
 * the next batch, and finds what this one leaves behind. `keys` is room for the keys. */
void queue_take_batch(struct queue *queue, size_t events_max, size_t bytes_max,
                      struct keyset *keys, struct queue *ret_batch);

#endif
