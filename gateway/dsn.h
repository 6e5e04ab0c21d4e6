/*
 * dsn.h - a libpq connection string, host by host.
 *
 *     "host=a,b port=1,2 ..."  ──>  attempt 0: a:1,  attempt 1: b:2
 *
 * libpq tries several hosts by itself, but in its non-blocking form without any time
 * limit: the first host that swallows packets would use up the whole deadline. So each
 * host is tried by itself, with its own share of the time. What libpq does besides
 * (several addresses of one name, encryption, target_session_attrs) stays its business.
 *
 * The connection string is the user's and wins over the settings here, which in turn win
 * over the service file and the PG* variables; but for client_encoding, which is always
 * UTF8. The startup parameter `options` is not used: connection poolers refuse it.
 *
 * Always true: no text made here shows any part of the connection string but host names.
 *
 * Threads: its owner's. Sources: PostgreSQL 15 documentation, 34.1.
 */
#ifndef DSN_H
#define DSN_H

#include <libpq-fe.h>

#include "base.h"
#include "err.h"

struct dsn;

struct dsn_settings {
    const char *text;        /* connection string, URI, or a database's name; NULL: PG* */
    const char *password;    /* used unless the text has one; may be NULL */
    const char *application; /* application_name unless the user chose one */
    const char *target;      /* target_session_attrs unless the user chose */
};

/* Can the connection string be read? Looks at nothing else. -EINVAL; the text shows nothing
 * of it. */
int dsn_check(const char *text, struct err *err) MUST_CHECK;

/* Reads the string, the service file and the environment, as they are now. The settings
 * are borrowed until dsn_free(). -EINVAL: cannot be read. -ENOMEM. */
int dsn_resolve(const struct dsn_settings *settings, struct dsn **ret_dsn,
                struct err *err) MUST_CHECK;
void dsn_free(struct dsn *dsn);

/* How many attempts there are, at least one: one a host; with prefer-standby two rounds.
 */
size_t dsn_attempts(const struct dsn *dsn);

/* The host of that attempt, NULL when it is the only one. */
const char *dsn_host(const struct dsn *dsn, size_t attempt);

/* Begins to connect, as PQconnectStartParams() does. The caller owns the connection.
 * NULL: no memory. */
PGconn *dsn_start(const struct dsn *dsn, size_t attempt) MUST_CHECK;

#endif
