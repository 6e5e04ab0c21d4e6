/*
 * schema.c - is schema `gateway` there, and the one this program was written for.
 */
#include "schema.h"

#include <errno.h>
#include <string.h>

bool schema_is_missing(const char *sqlstate, struct err *err)
{
    if (strcmp(sqlstate, "3F000") == 0 || strcmp(sqlstate, "42P01") == 0 ||
        strcmp(sqlstate, "42883") == 0) {
        (void)err_set(err, 0,
                      "the database has no schema `gateway`, or only a part of it; run: "
                      "pg-sse-gateway migrate up");
        return true;
    }
    if (strcmp(sqlstate, "42501") == 0) {
        (void)err_prefix(err, 0,
                         "the database role lacks a right; grant it, or connect as the "
                         "owner of schema `gateway`");
        return true;
    }
    return false;
}

int schema_explain(int r, const struct database *database, struct err *err)
{
    if (r == -EIO)
        (void)schema_is_missing(database_sqlstate(database), err);
    return r;
}

int schema_check(struct database *database, long version, uint64_t deadline_usec,
                 struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    int r = database_run(database,
                         "SELECT pg_catalog.max(m.version) FROM gateway.migrations m",
                         deadline_usec, &result, err);

    if (schema_explain(r, database, err) < 0)
        return r;
    if (PQgetisnull(result, 0, 0))
        return err_set(err, -EIO,
                       "no migration has been applied to the database; run: "
                       "pg-sse-gateway migrate up");

    long found = strtol(PQgetvalue(result, 0, 0), NULL, 10);
    if (found < version)
        return err_set(err, -EIO,
                       "the database's schema is at version %ld, this program needs %ld; "
                       "run: pg-sse-gateway migrate up",
                       found, version);
    if (found > version)
        return err_set(err, -EIO,
                       "the database's schema is at version %ld, newer than the %ld that "
                       "this program knows; install the newer pg-sse-gateway",
                       found, version);
    return 0;
}
