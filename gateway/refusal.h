/*
 * refusal.h - the server said no to a statement: what to make of it.
 *
 * Threads: its owner's. Begins zeroed.
 */
#ifndef REFUSAL_H
#define REFUSAL_H

#include "base.h"
#include "database.h"

struct refusal {
    uint64_t told_usec; /* when the log was last told; 0: never */
};

/* `r` is what a statement returned. 0 if the connection can be kept though the server said no:
 * then the log is told `what`, and why, once a minute. Else r: the connection is lost, or a new
 * one is to look for a primary, or at the schema. */
int refusal_weigh(struct refusal *refusal, int r, struct database *database,
                  const char *what, struct err *err) MUST_CHECK;

#endif
