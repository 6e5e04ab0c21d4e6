/*
 * pairs.h - two columns of texts as the first two parameters of a statement.
 *
 * Threads: its owner's.
 */
#ifndef PAIRS_H
#define PAIRS_H

#include "array.h"
#include "base.h"
#include "database.h"

struct pairs {
    struct array left;
    struct array right;
};

void pairs_init(struct pairs *pairs);
void pairs_done(struct pairs *pairs);
void pairs_reset(struct pairs *pairs);

void pairs_add(struct pairs *pairs, const char *left, const char *right);
size_t pairs_count(const struct pairs *pairs);

/* Runs `sql` with them as $1 and $2, both text[], and with `third`, a text, as $3 if it is not
 * NULL. -ENOMEM, or as database_query(). */
int pairs_query(struct pairs *pairs, const char *sql, const char *third,
                struct database *database, uint64_t deadline_usec, PGresult **ret_result,
                struct err *err) MUST_CHECK;

#endif
