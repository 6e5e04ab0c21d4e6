/*
 * tally.c - what has been rung for and has not come yet, in the order of the rings.
 */
#include "tally.h"

#define BUCKETS 8192 /* a power of two: ids that follow one another share none */

struct rung {
    uint64_t id;
    uint64_t number;
    struct rung *previous, *next; /* in the order of the numbers */
    struct rung *beside;          /* in its bucket */
};

struct tally {
    uint64_t newest;     /* number */
    uint64_t highest_id; /* since it was cleared */
    size_t count;
    struct rung *first, *last;
    struct rung *buckets[BUCKETS];
};

struct tally *tally_new(void)
{
    return calloc(1, sizeof(struct tally));
}

void tally_free(struct tally *tally)
{
    if (tally == NULL)
        return;
    tally_clear(tally);
    free(tally);
}

static struct rung **bucket_of(struct tally *tally, uint64_t id)
{
    return &tally->buckets[id % BUCKETS];
}

/* Takes out what *place points to. */
static void take_out(struct tally *tally, struct rung **place)
{
    struct rung *rung = *place;

    *place = rung->beside;
    *(rung->previous != NULL ? &rung->previous->next : &tally->first) = rung->next;
    *(rung->next != NULL ? &rung->next->previous : &tally->last) = rung->previous;
    tally->count--;
    free(rung);
}

static void take_first(struct tally *tally)
{
    struct rung **place = bucket_of(tally, tally->first->id);

    while (*place != tally->first)
        place = &(*place)->beside;
    take_out(tally, place);
}

void tally_add(struct tally *tally, uint64_t id)
{
    struct rung *rung = malloc(sizeof(*rung));

    tally->newest++;
    tally->highest_id = MAX(tally->highest_id, id);
    if (rung == NULL)
        return;
    if (tally->count >= TALLY_MAX)
        take_first(tally);
    struct rung **place = bucket_of(tally, id);
    *rung = (struct rung){
        .id = id, .number = tally->newest, .previous = tally->last, .beside = *place};
    *place = rung;
    *(tally->last != NULL ? &tally->last->next : &tally->first) = rung;
    tally->last = rung;
    tally->count++;
}

void tally_settle(struct tally *tally, uint64_t id)
{
    struct rung **place = bucket_of(tally, id);

    while (*place != NULL) {
        if ((*place)->id == id)
            take_out(tally, place);
        else
            place = &(*place)->beside;
    }
}

void tally_void(struct tally *tally, uint64_t number)
{
    while (!tally_settled(tally, number))
        take_first(tally);
}

uint64_t tally_newest(const struct tally *tally)
{
    return tally->newest;
}

bool tally_settled(const struct tally *tally, uint64_t number)
{
    return tally->first == NULL || tally->first->number > number;
}

bool tally_reaches(const struct tally *tally, uint64_t id)
{
    return id <= tally->highest_id;
}

void tally_clear(struct tally *tally)
{
    while (tally->first != NULL)
        take_first(tally);
    tally->highest_id = 0;
}
