/*
 * keyset.h - the keys of one batch, roughly: may this one be among them already?
 *
 * A bit for each hash, and no memory for the keys. Two keys that share a bit are taken for
 * the same, so the answer "no" is certain and "yes" is not: with 5000 keys in the set, it is
 * wrong for one key in fifty.
 *
 * Threads: its owner's. Cost: 32 KiB, a hash a key.
 */
#ifndef KEYSET_H
#define KEYSET_H

#include "base.h"
#include "event.h"

#define KEYSET_BITS (1 << 18)

struct keyset {
    uint64_t bits[KEYSET_BITS / 64];
    bool used;
};

void keyset_clear(struct keyset *keyset);

/* Adds the keys of one request's units. False, and nothing is added, if one of them may be
 * there already. */
bool keyset_add(struct keyset *keyset, const struct event_unit *units,
                size_t count) MUST_CHECK;

#endif
