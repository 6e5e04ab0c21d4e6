/*
 * lookup.c - one stored event, read from the table by its id.
 */
#include "lookup.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "schema.h"

#define QUERY_USEC (3 * USEC_PER_SEC)

/* Channel, type and data into one piece of memory, each with its NUL. */
static int keep_event(struct lookup *lookup, const PGresult *result)
{
    const char *texts[3];
    size_t lens[3], total = 0;

    for (int i = 0; i < 3; i++) {
        lens[i] = (size_t)PQgetlength(result, 0, i);
        total += lens[i] + 1;
    }
    char *text = malloc(total);
    if (text == NULL)
        return -ENOMEM;
    char *at = text;
    for (int i = 0; i < 3; i++) {
        memcpy(at, PQgetvalue(result, 0, i), lens[i] + 1);
        texts[i] = at;
        at += lens[i] + 1;
    }
    lookup->text = text;
    lookup->event = (struct event){
        .seq = lookup->seq,
        .channel = texts[0],
        .channel_len = lens[0],
        .type = texts[1],
        .type_len = lens[1],
        .data = texts[2],
        .data_len = lens[2],
    };
    (void)snprintf(lookup->created_at, sizeof(lookup->created_at), "%s",
                   PQgetvalue(result, 0, 3));
    return 0;
}

static void answer(struct lookup *lookup, enum lookup_outcome outcome, const char *why)
{
    lookup->outcome = outcome;
    (void)err_set(&lookup->err, 0, "%s", why);
    lookup->done(lookup); /* the asker's again, and perhaps gone */
}

static int run(struct reader_job *job, struct database *database, struct err *err)
{
    struct lookup *lookup = CONTAINER_OF(job, struct lookup, job);
    CLEANUP(database_clear) PGresult *result = NULL;
    char seq[24];
    const char *values[] = {seq};
    const struct database_query query = {
        .sql = "SELECT e.channel, e.type, e.data, pg_catalog.to_char(e.created_at "
               "AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') "
               "FROM gateway.events e WHERE e.seq = CAST($1 AS int8)",
        .count = 1,
        .values = values,
    };

    if (lookup->seq > INT64_MAX) { /* no bigint: nobody was ever given it */
        answer(lookup, LOOKUP_MISSING, "");
        return 0;
    }
    (void)snprintf(seq, sizeof(seq), "%llu", (unsigned long long)lookup->seq);
    int r =
        database_ask(database, &query, MIN(job->deadline_usec, clock_usec() + QUERY_USEC),
                     &result, err);
    if (schema_explain(r, database, err) < 0)
        return r;

    const bool found = PQntuples(result) == 1;
    r = found ? keep_event(lookup, result) : 0;
    if (r < 0)
        return err_set(err, r, "no memory for the event");
    answer(lookup, found ? LOOKUP_FOUND : LOOKUP_MISSING, "");
    return 0;
}

static void fail(struct reader_job *job, const struct err *err)
{
    answer(CONTAINER_OF(job, struct lookup, job), LOOKUP_UNAVAILABLE, err->text);
}

int lookup_ask(struct lookup *lookup, struct readers *readers)
{
    lookup->text = NULL;
    lookup->job = (struct reader_job){
        .run = run, .fail = fail, .deadline_usec = lookup->deadline_usec};
    return readers_ask(readers, &lookup->job);
}

void lookup_clear(struct lookup *lookup)
{
    free(lookup->text);
    lookup->text = NULL;
}
