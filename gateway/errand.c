/*
 * errand.c - what is asked of a group, many in one transaction.
 */
#include "errand.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "array.h"

#define PARAMETERS_MAX 4

static const struct {
    const char *sql;
    int count;
} statements[ERRAND_KINDS] = {
    [ERRAND_ACK] = {"SELECT a.code FROM ROWS FROM (pg_catalog.unnest("
                    "gateway.ack_many($1, $2, $3))) WITH ORDINALITY AS a (code, place) "
                    "ORDER BY a.place",
                    3},
    [ERRAND_NACK] = {"SELECT a.code FROM ROWS FROM (pg_catalog.unnest("
                     "gateway.nack_many($1, $2, $3::interval[], $4))) "
                     "WITH ORDINALITY AS a (code, place) ORDER BY a.place",
                     4},
    [ERRAND_REMOVE] =
        {"SELECT CASE WHEN gateway.remove_group(r.channel, r.name) THEN 0 "
         "ELSE 404 END FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) "
         "WITH ORDINALITY AS r (channel, name, place) ORDER BY r.place",
         2},
};

static void add_parameters(struct array arrays[PARAMETERS_MAX],
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

static int run(struct errand *first, size_t count, struct array arrays[PARAMETERS_MAX],
               struct database *database, uint64_t deadline_usec, struct err *err)
{
    static const Oid types[PARAMETERS_MAX] = {ARRAY_TEXTS_OID, ARRAY_TEXTS_OID,
                                              ARRAY_TEXTS_OID, ARRAY_TEXTS_OID};
    static const int binary[PARAMETERS_MAX] = {1, 1, 1, 1};
    CLEANUP(database_clear) PGresult *result = NULL;
    const char *values[PARAMETERS_MAX];
    int lengths[PARAMETERS_MAX];
    const struct errand *errand = first;

    for (size_t i = 0; i < count; i++, errand = errand->next)
        add_parameters(arrays, errand);
    for (int i = 0; i < PARAMETERS_MAX; i++) {
        values[i] = array_value(&arrays[i], &lengths[i]);
        if (values[i] == NULL)
            return err_set(err, -ENOMEM, "no memory for a batch");
    }
    const struct database_query query = {
        .sql = statements[first->kind].sql,
        .count = statements[first->kind].count,
        .types = types,
        .values = values,
        .lengths = lengths,
        .formats = binary,
    };
    const int r = database_query(database, &query, deadline_usec, &result, err);
    return r < 0 ? r : take_answer(first, count, result, err);
}

int errand_run(struct errand *first, size_t count, struct database *database,
               uint64_t deadline_usec, struct err *err)
{
    struct array arrays[PARAMETERS_MAX];

    for (size_t i = 0; i < PARAMETERS_MAX; i++)
        array_init(&arrays[i], ARRAY_TEXT_OID);
    const int r = run(first, count, arrays, database, deadline_usec, err);
    for (size_t i = 0; i < PARAMETERS_MAX; i++)
        array_done(&arrays[i]);
    return r;
}
