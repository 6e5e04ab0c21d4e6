/*
 * waits.c - who waits for an event to be acknowledged, until it is or the time is over.
 */
#include "waits.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "statement.h"

#define FIRST_PAUSE_USEC USEC_PER_MSEC
#define PAUSE_FACTOR     4
#define LOOK_USEC        USEC_PER_SEC

static void add_pair(struct pairs *pairs, const struct wait *wait)
{
    char seq[24];

    (void)snprintf(seq, sizeof(seq), "%" PRIu64, wait->seq);
    pairs_add(pairs, seq, wait->group);
}

/* ---- those who wait ---- */

void waits_init(struct waits *waits)
{
    *waits = (struct waits){.first = NULL};
    array_init(&waits->over, ARRAY_TEXT_OID);
}

void waits_done(struct waits *waits)
{
    array_done(&waits->over);
}

void waits_add(struct waits *waits, struct wait *wait)
{
    wait->row = 0;
    wait->look_usec = 0;
    wait->pause_usec = FIRST_PAUSE_USEC;
    wait->result = NULL;
    wait->next = waits->first;
    wait->link = &waits->first;
    if (wait->next != NULL)
        wait->next->link = &wait->next;
    waits->first = wait;
}

static void tell(struct waits *waits, struct wait *wait, enum wait_outcome outcome)
{
    char row[24];

    (void)snprintf(row, sizeof(row), "%" PRIu64, wait->row);
    if (wait->row != 0)
        array_add_text(&waits->over, row);
    *wait->link = wait->next;
    if (wait->next != NULL)
        wait->next->link = wait->link;
    wait->outcome = outcome;
    wait->done(wait); /* the waiter's again, and perhaps gone */
}

void waits_bell(struct waits *waits, const char *payload)
{
    char *group;
    const uint64_t seq = strtoull(payload, &group, 10);

    if (*group++ != ' ')
        return;
    for (struct wait *wait = waits->first; wait != NULL; wait = wait->next) {
        if (wait->seq == seq && strcmp(wait->group, group) == 0)
            wait->look_usec = 0;
    }
}

void waits_begin_anew(struct waits *waits)
{
    waits->not_before_usec = 0;
    for (struct wait *wait = waits->first; wait != NULL; wait = wait->next)
        wait->look_usec = 0;
}

void waits_expire(struct waits *waits, bool all)
{
    const uint64_t now = clock_usec();

    for (struct wait *wait = waits->first, *next; wait != NULL; wait = next) {
        next = wait->next;
        if (all || now >= wait->deadline_usec)
            tell(waits, wait, WAIT_LATE);
    }
}

bool waits_are_rung(const struct waits *waits)
{
    for (const struct wait *wait = waits->first; wait != NULL; wait = wait->next) {
        if (wait->look_usec == 0 && wait->row != 0)
            return clock_usec() >= waits->not_before_usec;
    }
    return false;
}

uint64_t waits_due_usec(const struct waits *waits)
{
    uint64_t due = waits->over.count > 0 ? 0 : CLOCK_NEVER;
    uint64_t deadline = CLOCK_NEVER;

    for (const struct wait *wait = waits->first; wait != NULL; wait = wait->next) {
        due = MIN(due, wait->look_usec);
        deadline = MIN(deadline, wait->deadline_usec);
    }
    return MIN(deadline, MAX(due, waits->not_before_usec));
}

/* ---- in the database ---- */

static int take_over_away(struct waits *waits, struct database *database,
                          uint64_t deadline_usec, struct err *err)
{
    static const char sql[] =
        "WITH over AS (DELETE FROM gateway.waits w USING pg_catalog.unnest($1) "
        "AS o (id) WHERE w.id = o.id::int8) SELECT " STATEMENT_LOOSELY;
    int r = 0;

    if (waits->over.count == 0)
        return 0;
    if (array_ok(&waits->over) == 0)
        r = array_query(&waits->over, 1, sql, NULL, database, deadline_usec, NULL, err);
    /* What was not done is left to retention. */
    array_done(&waits->over);
    array_init(&waits->over, ARRAY_TEXT_OID);
    return r;
}

/* The rows' ids come in the order in which the new ones stand in the list. */
static void take_rows(struct waits *waits, const PGresult *result)
{
    int row = 0;

    for (struct wait *wait = waits->first; wait != NULL; wait = wait->next) {
        if (wait->row != 0 || row == PQntuples(result))
            continue;
        wait->row = strtoull(PQgetvalue(result, row++, 0), NULL, 10);
    }
}

/* A row that is lost with the power costs its waiter a second. */
static int register_new(struct waits *waits, struct database *database,
                        uint64_t deadline_usec, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    struct pairs pairs;
    int r = 0;

    pairs_init(&pairs);
    for (struct wait *wait = waits->first; wait != NULL; wait = wait->next) {
        if (wait->row == 0)
            add_pair(&pairs, wait);
    }
    if (pairs_count(&pairs) > 0)
        r = pairs_query(
            &pairs,
            "INSERT INTO gateway.waits (seq, group_name) "
            "SELECT w.seq::int8, w.name FROM ROWS FROM (pg_catalog.unnest($1), "
            "pg_catalog.unnest($2)) WITH ORDINALITY AS w (seq, name, place) "
            "ORDER BY w.place RETURNING id, " STATEMENT_LOOSELY,
            NULL, database, deadline_usec, &result, err);
    pairs_done(&pairs);
    if (r == 0)
        take_rows(waits, result);
    return r;
}

/* Rows: the place among those who were asked for, what became of it, and its result. */
static void take_answers(struct waits *waits, struct wait *const *asked,
                         const PGresult *result)
{
    for (int i = 0; i < PQntuples(result); i++) {
        struct wait *wait = asked[strtoull(PQgetvalue(result, i, 0), NULL, 10) - 1];
        const bool dead = strcmp(PQgetvalue(result, i, 1), "dead") == 0;

        if (!PQgetisnull(result, i, 2)) {
            wait->result = strdup(PQgetvalue(result, i, 2));
            if (wait->result == NULL)
                continue; /* the next look may find memory */
        }
        tell(waits, wait, dead ? WAIT_DEAD : WAIT_ACKNOWLEDGED);
    }
}

/* The next look; all that have the same pause have it at the same time. */
static void put_off(struct wait *wait, uint64_t now)
{
    wait->look_usec = (now / wait->pause_usec + 1) * wait->pause_usec;
    wait->pause_usec = MIN(wait->pause_usec * PAUSE_FACTOR, LOOK_USEC);
}

static size_t list_looks(struct waits *waits, uint64_t now, struct wait **ret_asked,
                         struct pairs *ret_pairs)
{
    size_t count = 0;

    for (struct wait *wait = waits->first; wait != NULL; wait = wait->next) {
        if (now < wait->look_usec)
            continue;
        if (ret_asked != NULL) {
            ret_asked[count] = wait;
            add_pair(ret_pairs, wait);
            put_off(wait, now);
        }
        count++;
    }
    return count;
}

static int look(struct waits *waits, struct database *database, uint64_t deadline_usec,
                struct err *err)
{
    const uint64_t now = clock_usec();
    const size_t count = list_looks(waits, now, NULL, NULL);
    CLEANUP(database_clear) PGresult *result = NULL;
    struct pairs pairs;

    if (count == 0)
        return 0;
    struct wait **asked = calloc(count, sizeof(struct wait *));
    if (asked == NULL)
        return err_set(err, -ENOMEM, "no memory for those who wait");
    pairs_init(&pairs);
    (void)list_looks(waits, now, asked, &pairs);
    const int r =
        pairs_query(&pairs,
                    "SELECT w.place, r.state, r.result FROM ROWS FROM "
                    "(pg_catalog.unnest($1::int8[]), "
                    "pg_catalog.unnest($2)) WITH ORDINALITY AS w (seq, name, place) "
                    "CROSS JOIN LATERAL gateway.result(w.seq, w.name) r "
                    "WHERE r.state IN ('acknowledged', 'dead')",
                    NULL, database, deadline_usec, &result, err);
    pairs_done(&pairs);
    if (r == 0)
        take_answers(waits, asked, result);
    free(asked);
    return r;
}

int waits_turn(struct waits *waits, struct database *database, uint64_t deadline_usec,
               struct err *err)
{
    if (clock_usec() < waits->not_before_usec)
        return 0;
    int r = register_new(waits, database, deadline_usec, err);

    if (r == 0)
        r = look(waits, database, deadline_usec, err);
    /* Last: nobody waits for that. */
    if (r == 0)
        r = take_over_away(waits, database, deadline_usec, err);
    if (r < 0)
        waits->not_before_usec = clock_usec() + LOOK_USEC;
    return r;
}
