/*
 * returns.c - what consumers leave behind.
 */
#include "returns.h"

#include <errno.h>

#include "claim.h"
#include "clock.h"

/* Given back in one statement: well within its time, however many leave at once. */
#define BATCH_MAX 1000

/* What was refused, or locked, is tried again after so long. */
#define AGAIN_USEC USEC_PER_SEC

struct returns_batch {
    struct pairs pairs;
    struct returns_batch *next;
};

/* ---- what is given back ---- */

static void init_list(struct returns_list *list)
{
    *list = (struct returns_list){.tail = &list->first};
}

static void add_batch(struct returns_list *list, struct returns_batch *batch)
{
    batch->next = NULL;
    *list->tail = batch;
    list->tail = &batch->next;
}

static struct returns_batch *take_batch(struct returns_list *list)
{
    struct returns_batch *batch = list->first;

    list->first = batch->next;
    if (list->first == NULL)
        list->tail = &list->first;
    return batch;
}

static void free_batch(struct returns_batch *batch)
{
    pairs_done(&batch->pairs);
    free(batch);
}

static void done_list(struct returns_list *list)
{
    while (list->first != NULL)
        free_batch(take_batch(list));
}

/* NULL: no memory; their leases will end. */
static struct returns_batch *make_batch(struct returns_list *list)
{
    struct returns_batch *batch = malloc(sizeof(*batch));

    if (batch == NULL)
        return NULL;
    pairs_init(&batch->pairs);
    add_batch(list, batch);
    return batch;
}

static void add_delivery(struct returns_list *list, const char *id, const char *name)
{
    struct returns_batch *last =
        list->first != NULL ? CONTAINER_OF(list->tail, struct returns_batch, next) : NULL;

    if (last == NULL || pairs_count(&last->pairs) >= BATCH_MAX)
        last = make_batch(list);
    if (last != NULL)
        pairs_add(&last->pairs, id, name);
}

void returns_give_back(struct returns *returns, const char *id, const char *name)
{
    add_delivery(&returns->batches, id, name);
}

static void put_aside(struct returns *returns, const PGresult *result)
{
    if (returns->locked.first == NULL)
        returns->locked_usec = clock_usec() + AGAIN_USEC;
    for (int row = 0; row < PQntuples(result); row++) {
        if (!PQgetisnull(result, row, 0))
            add_delivery(&returns->locked, PQgetvalue(result, row, 0),
                         PQgetvalue(result, row, 1));
    }
}

static void take_up_locked(struct returns *returns)
{
    if (clock_usec() < returns->locked_usec)
        return;
    while (returns->locked.first != NULL)
        add_batch(&returns->batches, take_batch(&returns->locked));
}

/* ---- the others ---- */

void returns_tell_freed(struct returns *returns, const char *id, const char *name)
{
    pairs_add(&returns->freed, id, name);
}

void returns_unlock(struct returns *returns, const char *channel, const char *name)
{
    pairs_add(&returns->unlock, channel, name);
}

/* ---- in the database ---- */

/* After they were run. What is not done stays. Without memory there is no list any more, and the
 * connection that ends for it takes with it what was locked. */
static int end_pairs(struct returns *returns, struct pairs *pairs, int r,
                     const char *what, struct err *err)
{
    if (r == 0 || r == -ENOMEM)
        pairs_reset(pairs);
    else
        returns->due_usec = clock_usec() + AGAIN_USEC;
    return statement_weigh(&returns->refusals, r, returns->database, what, err);
}

static int run_pairs(struct returns *returns, struct pairs *pairs, const char *what,
                     int (*run)(struct pairs *pairs, struct database *database,
                                uint64_t deadline_usec, struct err *err),
                     struct err *err)
{
    if (pairs_count(pairs) == 0)
        return 0;
    return end_pairs(returns, pairs,
                     run(pairs, returns->database, statement_deadline(), err), what, err);
}

static int run_batch(struct returns *returns, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;

    if (returns->batches.first == NULL)
        return 0;
    struct returns_batch *batch = take_batch(&returns->batches);
    const int r = end_pairs(returns, &batch->pairs,
                            claim_give_back(&batch->pairs, returns->database,
                                            statement_deadline(), &result, err),
                            "could not give deliveries back", err);

    put_aside(returns, result);
    if (pairs_count(&batch->pairs) == 0)
        free_batch(batch);
    else
        add_batch(&returns->batches, batch); /* the others first */
    return r;
}

static int run_some(struct returns *returns, struct err *err)
{
    take_up_locked(returns);
    int r = run_batch(returns, err);

    if (r == 0)
        r = run_pairs(returns, &returns->unlock, "could not unlock a group", claim_unlock,
                      err);
    if (r == 0)
        r = run_pairs(returns, &returns->freed, "could not tell the other gateways",
                      claim_tell_freed, err);
    return r;
}

int returns_turn(struct returns *returns, struct err *err)
{
    return clock_usec() >= returns->due_usec ? run_some(returns, err) : 0;
}

static bool has_some(const struct returns *returns)
{
    return returns->batches.first != NULL || pairs_count(&returns->unlock) > 0 ||
           pairs_count(&returns->freed) > 0;
}

int returns_clear(struct returns *returns, struct err *err)
{
    int r = 0;

    returns->due_usec = 0;
    while (r == 0 && has_some(returns) && returns->due_usec == 0)
        r = run_some(returns, err);
    return r;
}

uint64_t returns_due_usec(const struct returns *returns)
{
    const uint64_t locked =
        returns->locked.first != NULL ? returns->locked_usec : CLOCK_NEVER;

    return MAX(returns->due_usec, has_some(returns) ? 0 : locked);
}

/* ---- the connection ---- */

void returns_are_cut_off(struct returns *returns)
{
    pairs_reset(&returns->unlock);
}

void returns_begin_anew(struct returns *returns)
{
    returns->due_usec = 0;
}

/* ---- life ---- */

void returns_init(struct returns *returns, struct database *database)
{
    *returns = (struct returns){.database = database};
    init_list(&returns->batches);
    init_list(&returns->locked);
    pairs_init(&returns->freed);
    pairs_init(&returns->unlock);
}

void returns_done(struct returns *returns)
{
    done_list(&returns->batches);
    done_list(&returns->locked);
    pairs_done(&returns->freed);
    pairs_done(&returns->unlock);
}
