/*
 * batch.c - many events in one transaction, and what became of it.
 */
#include "batch.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define ROLLBACK_USEC (3 * USEC_PER_SEC)

/* One key of the batch. */
struct known {
    uint64_t first_seq; /* of its events, if they were there already; or 0 */
    size_t count;       /* of its events */
};

/* ---- gathering ---- */

void batch_init(struct batch *batch)
{
    *batch = (struct batch){.count = 0};
    array_init(&batch->channels, ARRAY_TEXT_OID);
    array_init(&batch->types, ARRAY_TEXT_OID);
    array_init(&batch->datas, ARRAY_TEXT_OID);
    array_init(&batch->attributes, ARRAY_TEXT_OID);
    array_init(&batch->units, ARRAY_INT4_OID);
    array_init(&batch->keys, ARRAY_TEXT_OID);
    array_init(&batch->clients, ARRAY_TEXT_OID);
}

void batch_done(struct batch *batch)
{
    array_done(&batch->channels);
    array_done(&batch->types);
    array_done(&batch->datas);
    array_done(&batch->attributes);
    array_done(&batch->units);
    array_done(&batch->keys);
    array_done(&batch->clients);
    buf_done(&batch->known);
}

static void add_event(struct batch *batch, const struct event *event, size_t unit)
{
    array_add(&batch->channels, event->channel, event->channel_len);
    array_add(&batch->types, event->type, event->type_len);
    array_add(&batch->datas, event->data, event->data_len);
    array_add(&batch->attributes, event->attributes, event->attributes_len);
    array_add(&batch->clients, event->client, event->client_len);
    batch->has_attributes = batch->has_attributes || event->attributes != NULL;
    batch->has_clients = batch->has_clients || event->client != NULL;
    array_add_int4(&batch->units, (uint32_t)unit);
    batch->count++;
}

static void add_key(struct batch *batch, const struct event_unit *unit)
{
    const struct known known = {.first_seq = 0, .count = unit->count};

    array_add(&batch->keys, unit->key, unit->key_len);
    (void)buf_add(&batch->known, &known, sizeof(known));
    batch->key_count++;
}

/* Is the event of that index one of the unit's? */
static bool holds(const struct event_unit *unit, size_t index)
{
    return index >= unit->first && index - unit->first < unit->count;
}

void batch_add(struct batch *batch, const struct event *events, size_t count,
               const struct event_unit *units, size_t unit_count)
{
    size_t at = 0; /* the unit that is next, or the one we are in */

    for (size_t i = 0; i < count; i++) {
        const bool inside = at < unit_count && holds(&units[at], i);

        if (inside && units[at].first == i)
            add_key(batch, &units[at]);
        add_event(batch, &events[i], inside ? batch->key_count : 0);
        at += inside && !holds(&units[at], i + 1);
    }
}

int batch_ok(const struct batch *batch)
{
    const struct array *arrays[] = {&batch->channels,   &batch->types, &batch->datas,
                                    &batch->attributes, &batch->units, &batch->keys,
                                    &batch->clients};
    int r = buf_ok(&batch->known);

    for (size_t i = 0; i < ARRAY_SIZE(arrays) && r == 0; i++)
        r = array_ok(arrays[i]);
    return r;
}

static struct known *known_of(const struct batch *batch)
{
    return (struct known *)(void *)batch->known.data;
}

void batch_tell(struct batch *batch, struct event *events, size_t count,
                struct event_unit *units, size_t unit_count)
{
    size_t at = 0;
    uint64_t known = 0; /* of the unit we are in */

    for (size_t i = 0; i < count; i++) {
        const bool inside = at < unit_count && holds(&units[at], i);

        if (inside && units[at].first == i) {
            known = known_of(batch)[batch->told_keys++].first_seq;
            units[at].known = known != 0;
        }
        if (inside && known != 0)
            events[i].seq = known + (i - units[at].first);
        else
            events[i].seq = batch->first_seq + batch->told_inserted++;
        at += inside && !holds(&units[at], i + 1);
    }
}

/* ---- committing ---- */

/* "{0,17,0}": for each key the number of its unit's first event, if that is there already. */
static int take_known(struct batch *batch, const char *text, size_t *ret_repeated)
{
    struct known *known = known_of(batch);
    size_t repeated = 0;

    for (size_t i = 0; i < batch->key_count; i++) {
        char *end;

        if (*text != (i == 0 ? '{' : ','))
            return -EIO;
        known[i].first_seq = strtoull(text + 1, &end, 10);
        repeated += known[i].first_seq != 0 ? known[i].count : 0;
        text = end;
    }
    *ret_repeated = repeated;
    return 0;
}

static int take_answer(struct batch *batch, const PGresult *result, struct err *err)
{
    const uint64_t first = strtoull(PQgetvalue(result, 0, 0), NULL, 10);
    const uint64_t last = strtoull(PQgetvalue(result, 0, 1), NULL, 10);
    size_t repeated = 0;

    if (take_known(batch, PQgetvalue(result, 0, 3), &repeated) < 0)
        return err_set(err, -EIO, "gateway.publish_batch did not answer for all keys");
    batch->inserted = batch->count - repeated;
    if (batch->inserted != (first != 0 ? last - first + 1 : 0))
        return err_set(err, -EIO, "gateway.publish_batch did not number all events");
    batch->first_seq = first;
    (void)snprintf(batch->xid, sizeof(batch->xid), "%s", PQgetvalue(result, 0, 2));
    (void)snprintf(batch->written, sizeof(batch->written), "%s",
                   PQgetvalue(result, 0, 4));
    return 0;
}

/* An array that says nothing is left out as a whole. */
static bool is_wanted(const struct batch *batch, const struct array *array)
{
    if (array == &batch->attributes)
        return batch->has_attributes;
    if (array == &batch->clients)
        return batch->has_clients;
    return (array != &batch->units && array != &batch->keys) || batch->key_count > 0;
}

/* Everything up to the COMMIT, in one round trip. The function sets the server's share of our
 * deadlines for this transaction. Nothing is prepared: behind a pooler the session is not
 * ours. */
static int insert(struct batch *batch, struct database *database, uint64_t deadline,
                  struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    struct array *arrays[] = {&batch->channels,   &batch->types, &batch->datas,
                              &batch->attributes, &batch->units, &batch->keys,
                              &batch->clients};
    const Oid types[] = {ARRAY_TEXTS_OID, ARRAY_TEXTS_OID, ARRAY_TEXTS_OID,
                         ARRAY_TEXTS_OID, ARRAY_INT4S_OID, ARRAY_TEXTS_OID,
                         ARRAY_TEXTS_OID};
    const char *values[ARRAY_SIZE(arrays)];
    int lengths[ARRAY_SIZE(arrays)] = {0};
    const int formats[] = {1, 1, 1, 1, 1, 1, 1};
    const struct database_query queries[] = {
        {.sql = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"},
        {.sql =
             "SELECT first_seq, last_seq, xid, known, "
             "CAST(extract(epoch FROM pg_catalog.clock_timestamp()) * 1000000 AS int8) "
             "FROM gateway.publish_batch($1, $2, $3, $4, $5, $6, $7)",
         .count = ARRAY_SIZE(arrays),
         .types = types,
         .values = values,
         .lengths = lengths,
         .formats = formats},
    };

    for (size_t i = 0; i < ARRAY_SIZE(arrays); i++)
        values[i] =
            is_wanted(batch, arrays[i]) ? array_value(arrays[i], &lengths[i]) : NULL;
    const int r =
        database_pipeline(database, queries, ARRAY_SIZE(queries), deadline, &result, err);
    return r < 0 ? r : take_answer(batch, result, err);
}

/* The server said no: leaves a connection without a transaction, or none. */
static enum batch_result failed(struct batch *batch, struct database *database)
{
    (void)snprintf(batch->sqlstate, sizeof(batch->sqlstate), "%s",
                   database_sqlstate(database));
    if (strcmp(batch->sqlstate, BATCH_CONFLICT) == 0) /* counted from 1 */
        batch->conflict_key = strtoul(database_error(database)->detail, NULL, 10) - 1;
    if (database_run(database, "ROLLBACK", clock_usec() + ROLLBACK_USEC, NULL, NULL) < 0)
        database_close(database);
    return BATCH_FAILED;
}

enum batch_result batch_commit(struct batch *batch, struct database *database,
                               uint64_t deadline_usec, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;

    batch->asked_in_vain = 0;
    int r = insert(batch, database, deadline_usec, err);
    if (r == -EIO)
        return failed(batch, database);
    if (r < 0)
        return BATCH_LOST;

    /* Half of what is left stays for asking, should the answer not come. */
    uint64_t now = clock_usec();
    uint64_t time_left = deadline_usec > now ? deadline_usec - now : 0;
    r = database_run(database, "COMMIT", now + time_left / 2, &result, err);
    if (r == -EIO)
        return failed(batch, database);
    if (r < 0)
        return BATCH_UNKNOWN;
    if (strcmp(PQcmdStatus(result), "COMMIT") != 0) {
        (void)err_set(err, 0, "PostgreSQL rolled the transaction back");
        return failed(batch, database);
    }
    return BATCH_COMMITTED;
}

/* ---- its fate ---- */

/* A session of ours that waits in the batch's transaction never got the COMMIT: nobody is
 * there any more to send it, and it holds the order lock. One that is at work on the COMMIT
 * is left alone. The name and the role keep us from a stranger's transaction that got the
 * same number after a failover. */
static int end_idle(struct batch *batch, struct database *database, uint64_t deadline,
                    struct err *err)
{
    const char *values[] = {batch->xid};
    const struct database_query query = {
        .sql =
            "SELECT pg_catalog.pg_terminate_backend(a.pid) "
            "FROM pg_catalog.pg_stat_activity a "
            "WHERE a.backend_xid = CAST(CAST($1 AS pg_catalog.xid8) AS pg_catalog.xid) "
            "AND a.state = 'idle in transaction' AND a.usename = current_user "
            "AND a.datname = pg_catalog.current_database() "
            "AND a.application_name = pg_catalog.current_setting('application_name')",
        .count = 1,
        .values = values,
    };

    return database_query(database, &query, deadline, NULL, err);
}

/* A crash takes back what had not reached the disk, numbers and all: then the first who publish
 * after it may be given the same number and the same seq, but they write later. */
enum batch_result batch_ask(struct batch *batch, struct database *database,
                            uint64_t deadline_usec, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    char seq[24];
    const char *values[] = {seq, batch->xid, batch->written};
    const struct database_query query = {
        .sql =
            "SELECT EXISTS (SELECT FROM gateway.events e WHERE e.seq = CAST($1 AS int8) "
            "AND e.xid = CAST($2 AS pg_catalog.xid8) "
            "AND CAST(extract(epoch FROM e.created_at) * 1000000 AS int8) "
            "<= CAST($3 AS int8)), "
            "pg_catalog.pg_xact_status(CAST($2 AS pg_catalog.xid8))",
        .count = 3,
        .values = values,
    };

    (void)snprintf(seq, sizeof(seq), "%llu", (unsigned long long)batch->first_seq);
    int r = database_ask(database, &query, deadline_usec, &result, err);
    if (r == -EIO) /* "transaction ID is in the future": a standby that never had it */
        return BATCH_UNKNOWN;
    if (r < 0)
        return BATCH_LOST;
    if (PQgetvalue(result, 0, 0)[0] == 't')
        return BATCH_COMMITTED;

    const char *status = PQgetvalue(result, 0, 1);
    if (strcmp(status, "aborted") == 0) {
        (void)err_set(err, 0, "PostgreSQL rolled the transaction back");
        return BATCH_FAILED;
    }
    if (strcmp(status, "in progress") == 0) {
        r = end_idle(batch, database, deadline_usec, err);
        return r < 0 && r != -EIO ? BATCH_LOST : BATCH_RUNNING;
    }
    /* Committed, but the events are not there. Either it was committed between the look at
     * the table and the one at the status, and the next look finds them. Or our transaction
     * was lost, in a crash or because this is a standby promoted without it, and another has
     * been given its number. */
    if (strcmp(status, "committed") == 0 && batch->asked_in_vain++ == 0)
        return BATCH_RUNNING;
    (void)err_set(err, 0, "PostgreSQL does not know what became of the transaction");
    return BATCH_UNKNOWN;
}
