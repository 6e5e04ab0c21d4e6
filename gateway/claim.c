/*
 * claim.c - the statements of the groups.
 */
#include "claim.h"

#include <inttypes.h>
#include <stdio.h>

#include "statement.h"

/* No number of ours, so that it collides with nobody's: a hash of what it is for. */
#define LOCK_OF(channel, group)                                                          \
    "(pg_catalog.hashtextextended(pg_catalog.format('pg-sse-gateway group %L "           \
    "%L', " channel ", " group "), 0))"

/* Of two columns of texts that are $1 and $2. */
#define PAIRS(left, right)                                                               \
    "ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS p (" left ", " right ")"

static void format_usec(char ret_text[40], uint64_t usec)
{
    (void)snprintf(ret_text, 40, "%" PRIu64 " microseconds", usec);
}

int claim_run(const struct claim *claim, struct database *database,
              uint64_t deadline_usec, PGresult **ret_result, struct err *err)
{
    char max[16], attempts[16], lease[40], bytes[24], patience[24];
    const char *values[] = {
        claim->channel, claim->group, max,
        lease,          claim->start, claim->attempts > 0 ? attempts : NULL,
        bytes,          patience,     claim->in_order ? "on" : "off"};
    const struct database_query query = {
        /* The claim asks for the settings, and so comes after them. */
        .sql = "SELECT c.id, c.type, c.data FROM (SELECT pg_catalog.set_config("
               "'lock_timeout', $8, true) || pg_catalog.set_config("
               "'gateway.in_order', $9, true) OFFSET 0) AS l (settings), "
               "LATERAL gateway.claim($1, $2, $3::int4, $4::interval, $5, $6::int4, "
               "CASE WHEN l.settings IS NOT NULL THEN $7::int8 END) c",
        .name = "groups_claim",
        .count = 9,
        .values = values,
    };

    (void)snprintf(max, sizeof(max), "%u", claim->max);
    (void)snprintf(attempts, sizeof(attempts), "%u", claim->attempts);
    (void)snprintf(bytes, sizeof(bytes), "%zu", claim->bytes_max);
    (void)snprintf(patience, sizeof(patience), "%" PRIu64 "us", claim->patience_usec);
    format_usec(lease, claim->lease_usec);
    return database_query(database, &query, deadline_usec, ret_result, err);
}

int claim_give_back(struct pairs *deliveries, struct database *database,
                    uint64_t deadline_usec, PGresult **ret_result, struct err *err)
{
    /* The function may return nothing: that it is done loosely must not depend on it. */
    return pairs_query(
        deliveries,
        "SELECT r.id, r.group_name, l.loosely FROM (SELECT " STATEMENT_LOOSELY
        ") AS l (loosely) LEFT JOIN gateway.release($1, $2) r "
        "ON true",
        NULL, database, deadline_usec, ret_result, err);
}

int claim_bury(struct database *database, uint64_t deadline_usec, unsigned *ret_count,
               struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    char batch[16];
    const char *values[] = {batch};
    const struct database_query query = {
        .sql = "SELECT coalesce(gateway.bury_used_up($1::int4), 0)",
        .count = 1,
        .values = values,
    };

    (void)snprintf(batch, sizeof(batch), "%d", CLAIM_BURY);
    const int r = database_query(database, &query, deadline_usec, &result, err);

    if (r == 0)
        *ret_count = (unsigned)strtoul(PQgetvalue(result, 0, 0), NULL, 10);
    return r;
}

int claim_renew(struct pairs *deliveries, uint64_t lease_usec, struct database *database,
                uint64_t deadline_usec, PGresult **ret_result, struct err *err)
{
    char lease[40];

    format_usec(lease, lease_usec);
    return pairs_query(deliveries,
                       "SELECT r.id, " STATEMENT_LOOSELY
                       " FROM gateway.renew($1, $2, nullif("
                       "$3::interval, '0')) AS r (id)",
                       lease, database, deadline_usec, ret_result, err);
}

int claim_tell_freed(struct pairs *deliveries, struct database *database,
                     uint64_t deadline_usec, struct err *err)
{
    return pairs_query(deliveries,
                       "SELECT pg_catalog.pg_notify('gateway_freed', p.id || ' ' || "
                       "p.name), " STATEMENT_LOOSELY " FROM " PAIRS("id", "name"),
                       NULL, database, deadline_usec, NULL, err);
}

int claim_recall(const char *channel, const char *group, struct database *database,
                 uint64_t deadline_usec, bool *ret_more, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const char *values[] = {channel, group};
    const struct database_query query = {
        .sql = "SELECT gateway.recall($1, $2) > 0", .count = 2, .values = values};
    const int r = database_query(database, &query, deadline_usec, &result, err);

    if (r == 0)
        *ret_more = PQgetvalue(result, 0, 0)[0] == 't';
    return r;
}

int claim_try_lock(const char *channel, const char *group, struct database *database,
                   uint64_t deadline_usec, bool *ret_locked, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const char *values[] = {channel, group};
    const struct database_query query = {
        .sql = "SELECT pg_catalog.pg_try_advisory_lock" LOCK_OF("$1::text", "$2::text"),
        .count = 2,
        .values = values,
    };
    const int r = database_query(database, &query, deadline_usec, &result, err);

    if (r == 0)
        *ret_locked = PQgetvalue(result, 0, 0)[0] == 't';
    return r;
}

/* A session waits for its client (and not for a lock or the disk) between two statements, or
 * while it sends an answer that nobody takes. Whose state cannot be seen, because it is of
 * another role, is left alone. */
int claim_end_silent(struct pairs *groups, uint64_t silent_usec,
                     struct database *database, uint64_t deadline_usec,
                     unsigned *ret_count, struct err *err)
{
    static const char sql[] =
        "WITH keys (key) AS (SELECT " LOCK_OF("p.channel", "p.name") " FROM " PAIRS(
            "channel",
            "name") "), "
                    "silent (pid) AS MATERIALIZED (SELECT DISTINCT a.pid FROM keys k "
                    "JOIN pg_catalog.pg_locks l ON l.locktype = 'advisory' AND "
                    "l.objsubid = 1 AND l.granted "
                    "AND l.classid = ((k.key >> 32) & 4294967295)::oid "
                    "AND l.objid = (k.key & 4294967295)::oid "
                    "JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid "
                    "AND a.datid = l.database "
                    "WHERE l.database = (SELECT d.oid FROM pg_catalog.pg_database d "
                    "WHERE d.datname = pg_catalog.current_database()) "
                    "AND a.usename = current_user AND a.wait_event_type = 'Client' "
                    "AND a.state_change < pg_catalog.clock_timestamp() - $3::interval) "
                    "SELECT count(*) FILTER (WHERE "
                    "pg_catalog.pg_terminate_backend(s.pid)) "
                    "FROM silent s";
    CLEANUP(database_clear) PGresult *result = NULL;
    char silent[40];

    format_usec(silent, silent_usec);
    const int r = pairs_query(groups, sql, silent, database, deadline_usec, &result, err);
    if (r == 0)
        *ret_count = (unsigned)strtoul(PQgetvalue(result, 0, 0), NULL, 10);
    return r;
}

int claim_unlock(struct pairs *groups, struct database *database, uint64_t deadline_usec,
                 struct err *err)
{
    return pairs_query(groups,
                       "SELECT pg_catalog.pg_advisory_unlock" LOCK_OF(
                           "p.channel", "p.name") " FROM " PAIRS("channel", "name"),
                       NULL, database, deadline_usec, NULL, err);
}
