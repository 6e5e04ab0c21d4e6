/*
 * batch.c - many events in one transaction, and what became of it.
 */
#include "batch.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define TEXT_OID       25
#define TEXT_ARRAY_OID 1009

#define ROLLBACK_USEC (3 * USEC_PER_SEC)

/* A text[] in binary, as array_recv() in PostgreSQL has read it since 7.4, each word an
 * int32: dimensions 1, no NULLs, element type, how many, lower bound 1; then length and
 * bytes of each. Nothing is quoted, so what goes in is what comes out. */
#define COUNT_WORD 3

/* ---- encoding ---- */

static void add_word(struct buf *array, size_t value)
{
    uint32_t network = htobe32((uint32_t)value);

    (void)buf_add(array, &network, sizeof(network));
}

static void begin_array(struct buf *array)
{
    buf_init(array);
    add_word(array, 1);
    add_word(array, 0);
    add_word(array, TEXT_OID);
    add_word(array, 0); /* see set_count() */
    add_word(array, 1);
}

static void set_count(struct buf *array, size_t count)
{
    uint32_t network = htobe32((uint32_t)count);

    memcpy(array->data + COUNT_WORD * sizeof(network), &network, sizeof(network));
}

static void add_element(struct buf *array, const char *text, size_t len)
{
    add_word(array, len);
    (void)buf_add(array, text, len);
}

void batch_init(struct batch *batch)
{
    *batch = (struct batch){.count = 0};
    begin_array(&batch->channels);
    begin_array(&batch->types);
    begin_array(&batch->datas);
}

void batch_done(struct batch *batch)
{
    buf_done(&batch->channels);
    buf_done(&batch->types);
    buf_done(&batch->datas);
}

void batch_add(struct batch *batch, const struct event *event)
{
    add_element(&batch->channels, event->channel, event->channel_len);
    add_element(&batch->types, event->type, event->type_len);
    add_element(&batch->datas, event->data, event->data_len);
    batch->count++;
}

int batch_ok(const struct batch *batch)
{
    /* libpq counts in int. */
    bool fits = batch->channels.len <= INT_MAX && batch->types.len <= INT_MAX &&
                batch->datas.len <= INT_MAX;

    return !fits || buf_ok(&batch->channels) < 0 || buf_ok(&batch->types) < 0 ||
                   buf_ok(&batch->datas) < 0
               ? -ENOMEM
               : 0;
}

/* ---- committing ---- */

/* Everything up to the COMMIT, in one round trip.
 *
 * The two limits are the server's share of our deadlines: a gateway that froze here, or
 * lost its network, would otherwise hold the order lock, and so every other gateway, until
 * the server's own keepalives notice. Not statement_timeout: that would also cut short a
 * COMMIT's wait for a synchronous standby, which PostgreSQL then reports as done. SET LOCAL,
 * because behind a pooler the session is not ours. */
static int insert(struct batch *batch, struct database *database, uint64_t deadline,
                  struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const Oid types[] = {TEXT_ARRAY_OID, TEXT_ARRAY_OID, TEXT_ARRAY_OID};
    const char *values[] = {batch->channels.data, batch->types.data, batch->datas.data};
    const int lengths[] = {(int)batch->channels.len, (int)batch->types.len,
                           (int)batch->datas.len};
    const int formats[] = {1, 1, 1};
    const struct database_query queries[] = {
        {.sql = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"},
        {.sql = "SET LOCAL lock_timeout = '10s'"},
        {.sql = "SET LOCAL idle_in_transaction_session_timeout = '10s'"},
        {.sql = "SELECT first_seq, last_seq, xid FROM gateway.publish_batch($1, $2, $3)",
         .count = 3,
         .types = types,
         .values = values,
         .lengths = lengths,
         .formats = formats},
    };

    set_count(&batch->channels, batch->count);
    set_count(&batch->types, batch->count);
    set_count(&batch->datas, batch->count);
    int r =
        database_pipeline(database, queries, ARRAY_SIZE(queries), deadline, &result, err);
    if (r < 0)
        return r;

    uint64_t first = strtoull(PQgetvalue(result, 0, 0), NULL, 10);
    uint64_t last = strtoull(PQgetvalue(result, 0, 1), NULL, 10);
    if (first == 0 || last - first + 1 != batch->count)
        return err_set(err, -EIO, "gateway.publish_batch did not number all events");
    batch->first_seq = first;
    (void)snprintf(batch->xid, sizeof(batch->xid), "%s", PQgetvalue(result, 0, 2));
    return 0;
}

/* The server said no: leaves a connection without a transaction, or none. */
static enum batch_result failed(struct batch *batch, struct database *database)
{
    (void)snprintf(batch->sqlstate, sizeof(batch->sqlstate), "%s",
                   database_sqlstate(database));
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

enum batch_result batch_ask(struct batch *batch, struct database *database,
                            uint64_t deadline_usec, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    char seq[24];
    const char *values[] = {seq, batch->xid};
    const struct database_query query = {
        .sql =
            "SELECT EXISTS (SELECT FROM gateway.events e WHERE e.seq = CAST($1 AS int8) "
            "AND e.xid = CAST($2 AS pg_catalog.xid8)), "
            "pg_catalog.pg_xact_status(CAST($2 AS pg_catalog.xid8))",
        .count = 2,
        .values = values,
    };

    (void)snprintf(seq, sizeof(seq), "%llu", (unsigned long long)batch->first_seq);
    int r = database_query(database, &query, deadline_usec, &result, err);
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
     * the table and the one at the status, and the next look finds them. Or this is a
     * standby promoted without our transaction, which has given its number to another. */
    if (strcmp(status, "committed") == 0 && batch->asked_in_vain++ == 0)
        return BATCH_RUNNING;
    (void)err_set(err, 0, "PostgreSQL does not know what became of the transaction");
    return BATCH_UNKNOWN;
}
