/*
 * statement.h - what all statements of the groups have in common: their time, how much they
 * care about the disk, and what is made of it when the server says no.
 *
 * Threads: its owner's.
 */
#ifndef STATEMENT_H
#define STATEMENT_H

#include "base.h"
#include "database.h"

/* In the list of a SELECT or a RETURNING: the commit does not wait for the disk. For what can
 * be done without if it is lost with the power. */
#define STATEMENT_LOOSELY "pg_catalog.set_config('synchronous_commit', 'off', true)"

/* Of one that begins now. */
uint64_t statement_deadline(void) MUST_CHECK;

/* Begins zeroed. */
struct refusals {
    uint64_t told_usec; /* when the log was last told; 0: never */
};

/* `r` is what a statement returned. 0 if the connection can be kept though the server said no:
 * then the log is told `what`, and why, once a minute. Else r: the connection is lost, or a new
 * one is to look for a primary, or at the schema. */
int statement_weigh(struct refusals *refusals, int r, struct database *database,
                    const char *what, struct err *err) MUST_CHECK;

#endif
