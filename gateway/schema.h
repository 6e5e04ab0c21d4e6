/*
 * schema.h - is schema `gateway` there, and the one this program was written for; and what to
 * do when it is not.
 *
 * Threads: the connection's owner's.
 */
#ifndef SCHEMA_H
#define SCHEMA_H

#include "base.h"
#include "database.h"

/* 0, or as in database.h; -EIO with a text that says what to do when it is not. */
int schema_check(struct database *database, long version, uint64_t deadline_usec,
                 struct err *err) MUST_CHECK;

/* True if the SQLSTATE says that our tables or functions are not there, or may not be used;
 * then the text says what to do about it. */
bool schema_is_missing(const char *sqlstate, struct err *err);

/* `r` is what a statement returned, and what this returns. If the server said no for want of
 * the schema, the text says so. */
int schema_explain(int r, const struct database *database, struct err *err) MUST_CHECK;

#endif
