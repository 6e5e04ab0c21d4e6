/*
 * database.h - one connection to PostgreSQL that never hangs.
 *
 *     door ── database_query(..., deadline) ──> libpq, non-blocking ──> PostgreSQL
 *                                  ^
 *                                  └── stop_fd: the owner wants to end, now
 *
 * The doors are written as if every call blocked; each one ends at its deadline, or as
 * soon as `stop_fd` is readable, whatever the server, the network or a proxy between them
 * does. The one thing that can take longer is the look-up of a host's name, which the C
 * library does inside PQconnectPoll(); an address, or hostaddr, needs none.
 *
 * Failures:
 *   -EIO         the server said no; database_error() tells what; the connection stands
 *   -ETIMEDOUT   the deadline passed                        }
 *   -ECANCELED   stop_fd became readable                    }  the connection
 *   -ECONNRESET  the connection is lost, or there was none  }  is closed
 *   -ENOMEM                                                 }
 *
 * An answer that libpq has no memory for is a connection lost, too: what was asked may be done, and
 * the session have a lock or a prepared statement that nobody knows of. It ends with them.
 *
 * The connection string is the user's and wins over everything that is set here, but for
 * client_encoding: every text of the gateway is UTF-8. No text made here shows any of it.
 *
 * Always true: a notification is reported in the call that took it off the socket, so a
 * caller that looks at what `notified` noted before it waits misses none.
 *
 * Threads: its owner's. Long calls beat (thread.h) and call `tick` a few times a second,
 * so that waiting for a slow server does not look like hanging. Sources: libpq 15,
 * chapters 34.1 to 34.9 of the PostgreSQL documentation.
 */
#ifndef DATABASE_H
#define DATABASE_H

#include <libpq-fe.h>

#include "base.h"
#include "clock.h"
#include "err.h"

struct database;

struct database_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    const char *door;     /* "listener": application_name is pg-sse-gateway/listener */
    const char *target;   /* target_session_attrs unless the user chose; "any" */
    int stop_fd;          /* readable: give up; -1: never */

    /* `own`: this very session has notified. May be NULL. */
    void (*notified)(void *argument, const PGnotify *notification, bool own);
    /* Every 100 ms while an answer is awaited; may be NULL. Not to use the connection. */
    void (*tick)(void *argument);
    void *argument;
};

/* What the server said when a call returned -EIO; empty when it said nothing. One line
 * each, cut to fit. Details may quote data: show them only to whom the data belongs. */
struct database_error {
    char sqlstate[6];
    char severity[16];
    char message[400];
    char detail[400];
    char hint[300];
    long position; /* in characters from the start of the text sent, from 1; 0: unknown */
    long statement; /* database_script(): how many statements had succeeded before */
};

/* For CLEANUP(database_clear) PGresult *result = NULL. */
static inline void database_clear(PGresult **result)
{
    PQclear(*result);
}

/* The strings are copied. NULL: no memory. */
struct database *database_new(const struct database_settings *settings) MUST_CHECK;
void database_free(struct database *database);

/* Opens the connection anew. Of several hosts each gets its own share of the time that is
 * left, so one that swallows packets does not hide the next. -EINVAL: the connection
 * string cannot be read. */
int database_connect(struct database *database, uint64_t deadline_usec,
                     struct err *err) MUST_CHECK;
void database_close(struct database *database);
bool database_connected(const struct database *database);

/* "host:port" or the socket's path, of the current connection, for the log. */
const char *database_place(const struct database *database);

const struct database_error *database_error(const struct database *database);
const char *database_sqlstate(const struct database *database);

/* One statement with its parameters, as PQsendQueryParams() takes them. */
struct database_query {
    const char *sql;
    int count;
    const Oid *types;          /* NULL: the server finds out */
    const char *const *values; /* NULL in it: SQL NULL */
    const int *lengths;        /* NULL: all are texts */
    const int *formats;        /* NULL: all are texts; 1: binary */
    bool binary;               /* of the result */
    /* Prepared under that name at its first use on a connection, and from then on not parsed,
     * and soon not planned, again; NULL: not. A literal; two at the most. Only where the session is
     * ours, which it is not behind a transaction pooler. Not for database_pipeline(). */
    const char *name;
};

/* Runs it. The caller clears *ret_result; NULL for ret_result: it is not wanted. */
int database_query(struct database *database, const struct database_query *query,
                   uint64_t deadline_usec, PGresult **ret_result,
                   struct err *err) MUST_CHECK;

/* The same for a statement without parameters, the result as text. */
int database_run(struct database *database, const char *sql, uint64_t deadline_usec,
                 PGresult **ret_result, struct err *err) MUST_CHECK;

/* Sends them together and waits for all: one round trip. The result is the last one's.
 * After an -EIO the transaction they opened, if any, waits for its ROLLBACK. */
int database_pipeline(struct database *database, const struct database_query *queries,
                      size_t count, uint64_t deadline_usec, PGresult **ret_result,
                      struct err *err) MUST_CHECK;

/* Asks what may have to wait for a lock, outside a transaction; still one round trip. A little
 * before the deadline the server gives up waiting (-EIO): a session that was closed while it
 * waits would stay at the server until the lock is free, and each new try leave another one,
 * until there is no room for anybody. Also behind a pooler, where the session is not ours. */
int database_ask(struct database *database, const struct database_query *query,
                 uint64_t deadline_usec, PGresult **ret_result,
                 struct err *err) MUST_CHECK;

/* Row by row, so that a large answer never stands in memory at once. The time allowed is
 * that without a byte from the server. A negative return of row() ends it, closes the
 * connection and is returned. */
typedef int database_row(void *argument, const PGresult *row);
int database_each(struct database *database, const struct database_query *query,
                  uint64_t silence_usec, database_row *row, void *argument,
                  struct err *err) MUST_CHECK;

/* Several statements in one text. */
int database_script(struct database *database, const char *sql, uint64_t deadline_usec,
                    struct err *err) MUST_CHECK;

/* Adds the name as an identifier, quoted; the connection stands. */
struct buf;
void database_quote(struct database *database, const char *name, size_t len,
                    struct buf *ret_sql);

/* True inside a transaction that has not failed. */
bool database_in_transaction(const struct database *database);

/* Waits until something comes from the server, `other_fd` (-1: none) is readable, or the
 * time has come; takes in what came. Without a connection it waits for the others.
 * Returns 1 if other_fd is readable, else 0. */
int database_wait(struct database *database, int other_fd, uint64_t until_usec,
                  struct err *err) MUST_CHECK;

#endif
