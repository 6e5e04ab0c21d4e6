/*
 * sqlfile.h - an SQL text, statement by statement: as much of its grammar as it takes to
 * see where each one begins, and whether it begins or ends a transaction.
 *
 * Knows comments (nested too), 'strings' with their E'escapes', "identifiers", $tag$
 * bodies $tag$, parentheses (CREATE RULE ... DO (a; b)) and BEGIN ATOMIC ... END bodies.
 *
 * Threads: any; pure functions. Sources: PostgreSQL 15 documentation, chapter 4.1.
 */
#ifndef SQLFILE_H
#define SQLFILE_H

#include "base.h"

struct sqlfile {
    const char *at; /* set to the text before the first call; then the reader's own */
    long line;      /* likewise, to 1 */
};

struct sqlfile_statement {
    long line;             /* where its first word stands, from 1 */
    bool ends_transaction; /* or begins one: BEGIN, COMMIT, ROLLBACK and their kin */
};

/* The next statement that is not empty; false at the end of the text. */
bool sqlfile_next(struct sqlfile *file, struct sqlfile_statement *ret_statement);

/* The line in which the character `position` (from 1) of a UTF-8 text stands. */
long sqlfile_line(const char *text, long position);

#endif
