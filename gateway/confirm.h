/*
 * confirm.h - POST /events?wait=10s&group=workers: answered when the group has acknowledged
 * the event, or when the time is over.
 *
 *     published ──> asleep ──> acknowledged    200, with the result
 *                          └── late, or dead   202, with the place to ask later
 *
 * Who waits has no thread and no connection to the database: a place in a list, and one row.
 *
 * Threads: the shards'.
 */
#ifndef CONFIRM_H
#define CONFIRM_H

#include "base.h"
#include "err.h"
#include "exchange.h"
#include "groups.h"

struct confirm {
    struct exchange *exchange; /* NULL: nobody waits */
    struct groups *groups;     /* NULL: no place was reserved */
    uint64_t usec;
    bool begun;
    struct wait wait;
};

/* Reads wait and group, which must both be there or neither. -EINVAL with the problem. */
int confirm_read(struct exchange *exchange, struct confirm *ret_confirm,
                 struct err *err) MUST_CHECK;

/* A place, before the event is published; confirm_done() gives it back. -EAGAIN. */
int confirm_reserve(struct confirm *confirm, struct groups *groups) MUST_CHECK;
void confirm_done(struct confirm *confirm);

/* The event is there: falls asleep. */
enum MHD_Result confirm_wait(struct confirm *confirm, uint64_t seq);

/* The answer after that. `text`, a heap string that is taken, is the JSON object of what was
 * published; NULL: there was no memory for it. */
enum MHD_Result confirm_answer(struct confirm *confirm, char *text);

#endif
