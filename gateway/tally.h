/*
 * tally.h - what has been rung for and has not come yet, in the order of the rings.
 *
 *     rung for      7    9    8         each gets the next number: 1, 2, 3
 *     come               9
 *     pending       7         8         "have all up to 2 come?" No: 7 has not.
 *
 * Always true: numbers rise and are never given again. At the most TALLY_MAX are pending: a
 * new one beyond that makes the oldest be forgotten, as if it had come.
 *
 * Threads: its owner's. Cost: O(1) each, 64 KiB, and one allocation for what is pending.
 */
#ifndef TALLY_H
#define TALLY_H

#include "base.h"

#define TALLY_MAX 65536

struct tally;

struct tally *tally_new(void) MUST_CHECK; /* NULL: no memory */
void tally_free(struct tally *tally);

/* Without memory it is forgotten at once. */
void tally_add(struct tally *tally, uint64_t id);

/* That one has come. */
void tally_settle(struct tally *tally, uint64_t id);

/* Those up to that number will not come any more. */
void tally_void(struct tally *tally, uint64_t number);

/* The number of the newest; 0: there was none yet. */
uint64_t tally_newest(const struct tally *tally);

/* Is none of those up to that number pending? */
bool tally_settled(const struct tally *tally, uint64_t number);

/* May that id have been rung for? Not if it is above all that have been. */
bool tally_reaches(const struct tally *tally, uint64_t id);

/* As if nothing had been rung for; only the numbers go on. */
void tally_clear(struct tally *tally);

#endif
