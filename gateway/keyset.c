/*
 * keyset.c - the keys of one batch, roughly.
 */
#include "keyset.h"

#include <string.h>

#include "sse.h"

static size_t bit_of(const struct event_unit *unit)
{
    const uint64_t hash = sse_hash(unit->key, unit->key_len);

    return (hash ^ hash >> 32) % KEYSET_BITS;
}

void keyset_clear(struct keyset *keyset)
{
    if (keyset->used)
        memset(keyset, 0, sizeof(*keyset));
}

bool keyset_add(struct keyset *keyset, const struct event_unit *units, size_t count)
{
    /* All are looked for before one is added: two of one request may share a bit. */
    for (size_t i = 0; i < count; i++) {
        const size_t bit = bit_of(&units[i]);

        if ((keyset->bits[bit / 64] >> bit % 64 & 1) != 0)
            return false;
    }
    for (size_t i = 0; i < count; i++) {
        const size_t bit = bit_of(&units[i]);

        keyset->bits[bit / 64] |= UINT64_C(1) << bit % 64;
        keyset->used = true;
    }
    return true;
}
