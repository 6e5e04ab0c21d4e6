/*
 * lost_answers.h - answers that libpq has no memory for when a test says so.
 *
 * Here libpq is asked for results in between: what it does when it has no memory for one is to
 * give an error of its own in its place, without an SQLSTATE. What was asked is done.
 *
 *     for (unsigned n = 1; ; n++) {
 *         lost_answers_begin(n);            the n-th answer from here on is lost
 *         result = what_is_tested();
 *         if (!lost_answers_end())          it was not reached: all of them came
 *             break;
 *         ... it was told, and what was done for nobody is undone ...
 *     }
 *
 * Included by one file of a test. Counts those of the gateway's connections alone, and not the
 * test's. Threads: of the calling thread only.
 */
#ifndef LOST_ANSWERS_H
#define LOST_ANSWERS_H

#include <dlfcn.h>
#include <libpq-fe.h>
#include <string.h>

#include "base.h"

static _Thread_local unsigned answers_left; /* until the one that is lost; 0: none is */
static _Thread_local bool answer_lost;

/* The nth answer from now on is lost, once; those behind it come again. */
static void lost_answers_begin(unsigned nth)
{
    answers_left = nth;
    answer_lost = false;
}

/* Whether it came to that. Nothing is lost any more. */
static bool lost_answers_end(void)
{
    answers_left = 0;
    return answer_lost;
}

static bool is_lost_now(const PGconn *conn, const PGresult *result)
{
    const ExecStatusType status = PQresultStatus(result);

    if (answers_left == 0 || strncmp(PQparameterStatus(conn, "application_name"),
                                     "pg-sse-gateway/", strlen("pg-sse-gateway/")) != 0)
        return false;
    if ((status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK) || --answers_left != 0)
        return false;
    answer_lost = true;
    return true;
}

/* In front of libpq's own. */
PGresult *PQgetResult(PGconn *conn)
{
    static PGresult *(*real)(PGconn *);

    if (real == NULL) {
        void *symbol = dlsym(RTLD_NEXT, "PQgetResult");
        memcpy(&real, &symbol, sizeof(real));
    }
    PGresult *result = real(conn);
    if (!is_lost_now(conn, result))
        return result;
    PQclear(result);
    return PQmakeEmptyPGresult(conn, PGRES_FATAL_ERROR);
}

#endif
