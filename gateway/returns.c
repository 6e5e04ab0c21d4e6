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

static void add_batch(struct returns *returns, struct returns_batch *batch)
{
    batch->next = NULL;
    *returns->tail = batch;
    returns->tail = &batch->next;
}

static struct returns_batch *take_batch(struct returns *returns)
{
    struct returns_batch *batch = returns->first;

    returns->first = batch->next;
    if (returns->first == NULL)
        returns->tail = &returns->first;
    return batch;
}

static void free_batch(struct returns_batch *batch)
{
    pairs_done(&batch->pairs);
    free(batch);
}

/* NULL: no memory; their leases will end. */
static struct returns_batch *make_batch(struct returns *returns)
{
    struct returns_batch *batch = malloc(sizeof(*batch));

    if (batch == NULL)
        return NULL;
    pairs_init(&batch->pairs);
    add_batch(returns, batch);
    return batch;
}

void returns_give_back(struct returns *returns, const char *id, const char *name)
{
    struct returns_batch *last =
        returns->first != NULL ? CONTAINER_OF(returns->tail, struct returns_batch, next)
                               : NULL;

    if (last == NULL || pairs_count(&last->pairs) >= BATCH_MAX)
        last = make_batch(returns);
    if (last != NULL)
        pairs_add(&last->pairs, id, name);
}

static void take_up_locked(struct returns *returns)
{
    struct returns_batch *batch = NULL;

    if (pairs_count(&returns->locked) == 0 || clock_usec() < returns->locked_usec)
        return;
    batch = make_batch(returns);
    if (batch != NULL) {
        batch->pairs = returns->locked;
        pairs_init(&returns->locked);
    } else {
        pairs_reset(&returns->locked);
    }
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
    if (returns->first == NULL)
        return 0;
    struct returns_batch *batch = take_batch(returns);
    if (pairs_count(&returns->locked) == 0)
        returns->locked_usec = clock_usec() + AGAIN_USEC;
    const int r = end_pairs(returns, &batch->pairs,
                            claim_give_back(&batch->pairs, returns->database,
                                            statement_deadline(), &returns->locked, err),
                            "could not give deliveries back", err);

    if (pairs_count(&batch->pairs) == 0)
        free_batch(batch);
    else
        add_batch(returns, batch); /* the others first */
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
    return returns->first != NULL || pairs_count(&returns->unlock) > 0 ||
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
        pairs_count(&returns->locked) > 0 ? returns->locked_usec : CLOCK_NEVER;

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
    returns->tail = &returns->first;
    pairs_init(&returns->locked);
    pairs_init(&returns->freed);
    pairs_init(&returns->unlock);
}

void returns_done(struct returns *returns)
{
    while (returns->first != NULL)
        free_batch(take_batch(returns));
    pairs_done(&returns->locked);
    pairs_done(&returns->freed);
    pairs_done(&returns->unlock);
}
