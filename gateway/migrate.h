/*
 * migrate.h - the files of migrations/: up, down, status.
 *
 * A migration is NNNN_name.up.sql with its NNNN_name.down.sql; NNNN counts from 0001
 * without holes. Each file runs in one transaction together with its line in
 * gateway.migrations, under an advisory lock, so that two hosts at once apply it once and
 * a failing one leaves nothing half done. A file may not begin or end a transaction.
 *
 * The first `up` makes the schema gateway and the table gateway.migrations; taking back
 * the last migration removes both.
 *
 * Threads: the caller's; blocks until done. There is a deadline for the lock and the
 * connection, not for the work of a migration: it may take its time.
 */
#ifndef MIGRATE_H
#define MIGRATE_H

#include <stdio.h>

#include "base.h"
#include "err.h"

/* The newest migration this program was written for; `make lint` compares it with the
 * files. */
#define MIGRATE_SCHEMA_VERSION 17

struct migrate_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    const char *dir;      /* the folder of the files */
    int stop_fd;        /* readable: give up (-ECANCELED), nothing half done; -1: never */
    uint64_t lock_usec; /* how long to wait for another migration; 0: 60 s */
};

/* Applies what is missing, oldest first; says each on `out` (NULL: silent). 0 also when
 * there was nothing to do. -EINVAL: the folder is not as above, or the database is newer
 * than the folder; else as in database.h: PostgreSQL refused or was away. The text names
 * file, line and PostgreSQL's message. */
int migrate_up(const struct migrate_settings *settings, FILE *out,
               struct err *err) MUST_CHECK;

/* Takes the newest applied one back. -ENOENT: none is applied. */
int migrate_down(const struct migrate_settings *settings, FILE *out,
                 struct err *err) MUST_CHECK;

/* Lists them on `out`, a line each: number, name, applied when or "not applied". */
int migrate_status(const struct migrate_settings *settings, FILE *out,
                   struct err *err) MUST_CHECK;

#endif
