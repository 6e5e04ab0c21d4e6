/*
 * errand.c - what is asked of a group, many in one transaction.
 */
#include "errand.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "array.h"

#define LOCK_TIMED_OUT "55P03"

/* A removal waits for whoever has its group, and so no other goes with it. Claims have a group
 * for moments; after more than that it is better tried again, and the others have their turn. */
static const struct {
    const char *sql;
    size_t count; /* of parameters */
    size_t most;  /* errands in one transaction */
} statements[ERRAND_KINDS] = {
    [ERRAND_ACK] = {"SELECT a.code FROM ROWS FROM (pg_catalog.unnest("
                    "gateway.ack_many($1, $2, $3))) WITH ORDINALITY AS a (code, place) "
                    "ORDER BY a.place",
                    3, 1000},
    [ERRAND_NACK] = {"SELECT a.code FROM ROWS FROM (pg_catalog.unnest("
                     "gateway.nack_many($1, $2, $3::interval[], $4))) "
                     "WITH ORDINALITY AS a (code, place) ORDER BY a.place",
                     4, 1000},
    [ERRAND_REMOVE] =
        {"SELECT CASE WHEN pg_catalog.set_config('lock_timeout', '20ms', true) IS NULL "
         "THEN NULL WHEN gateway.remove_group(r.channel, r.name) THEN 0 ELSE 404 END "
         "FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) "
         "AS r (channel, name)",
         2, 1},
};

size_t errand_most(enum errand_kind kind)
{
    return statements[kind].most;
}

static void add_parameters(struct array arrays[ARRAY_COUNT_MAX],
                           const struct errand *errand)
{
    char delay[40];

    (void)snprintf(delay, sizeof(delay), "%" PRIu64 " microseconds", errand->delay_usec);
    array_add_text(&arrays[0],
                   errand->kind == ERRAND_REMOVE ? errand->channel : errand->id);
    array_add_text(&arrays[1], errand->group);
    array_add_text(&arrays[2], errand->kind == ERRAND_NACK ? delay : errand->text);
    array_add_text(&arrays[3], errand->text);
}

static enum errand_outcome outcome_of(const char *code)
{
    switch (strtol(code, NULL, 10)) {
    case 0:
        return ERRAND_DONE;
    case 404:
        return ERRAND_MISSING;
    case 409:
        return ERRAND_CONFLICT;
    case 423:
        return ERRAND_LOCKED;
    default:
        return ERRAND_BAD;
    }
}

static int take_answer(struct errand *first, size_t count, const PGresult *result,
                       struct err *err)
{
    if ((size_t)PQntuples(result) != count)
        return err_set(err, -EIO, "the database answered %d of %zu", PQntuples(result),
                       count);
    for (size_t i = 0; i < count; i++, first = first->next) {
        first->outcome = outcome_of(PQgetvalue(result, (int)i, 0));
        first->err.text[0] = '\0';
    }
    return 0;
}

/* Rows that are locked were passed over: it is the table. Alone they would not fare better, and
 * each would wait as long again. */
static int take_locked(struct errand *first, size_t count)
{
    for (; count > 0; count--, first = first->next)
        first->outcome = ERRAND_LOCKED;
    return 0;
}

int errand_run(struct errand *first, size_t count, struct database *database,
               uint64_t deadline_usec, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    struct array arrays[ARRAY_COUNT_MAX];
    const struct errand *errand = first;

    for (size_t i = 0; i < ARRAY_SIZE(arrays); i++)
        array_init(&arrays[i], ARRAY_TEXT_OID);
    for (size_t i = 0; i < count; i++, errand = errand->next)
        add_parameters(arrays, errand);
    const int r =
        array_query(arrays, statements[first->kind].count, statements[first->kind].sql,
                    NULL, database, deadline_usec, &result, err);
    for (size_t i = 0; i < ARRAY_SIZE(arrays); i++)
        array_done(&arrays[i]);
    if (r == -EIO && strcmp(database_sqlstate(database), LOCK_TIMED_OUT) == 0)
        return take_locked(first, count);
    return r < 0 ? r : take_answer(first, count, result, err);
}
