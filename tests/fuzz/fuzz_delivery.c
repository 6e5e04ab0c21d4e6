/*
 * fuzz_delivery.c - the id of a delivery is taken exactly when it is what would be written of
 * the event and the attempt that were read from it, with a lease behind them; and it is read
 * as a part of what it stands in, never beyond its end.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "delivery.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool truth)
{
    if (!truth)
        abort();
}

#define LEASE_BYTES 12
#define ATTEMPT_MAX 999999999

static bool is_lease(const char *text)
{
    for (size_t i = 0; i < LEASE_BYTES; i++) {
        if (!(text[i] >= '0' && text[i] <= '9') && !(text[i] >= 'a' && text[i] <= 'z'))
            return false;
    }
    return true;
}

/* Written again it is the same: no sign, no blank, no zero in front, nothing too large. */
static void check_taken(const char *text, size_t len, uint64_t seq, unsigned attempt)
{
    char again[64];
    const int numbers = snprintf(again, sizeof(again), "%" PRIu64 ".%u.", seq, attempt);

    require(seq > 0 && seq <= INT64_MAX && attempt > 0 && attempt <= ATTEMPT_MAX);
    require(len <= DELIVERY_ID_MAX_BYTES && len == (size_t)numbers + LEASE_BYTES);
    require(memcmp(text, again, (size_t)numbers) == 0 && is_lease(text + numbers));
}

/* The other way round: made of any two numbers and twelve characters, most of which may be in
 * a lease. */
static void check_made(const uint8_t *data, size_t len)
{
    static const char characters[] = "0123456789abcdefghijklmnopqrstuvwxyz.Z-";
    char text[64];
    uint64_t seq, found_seq = 0;
    unsigned attempt, found_attempt = 0;

    if (len < sizeof(seq) + sizeof(attempt) + LEASE_BYTES)
        return;
    memcpy(&seq, data, sizeof(seq));
    memcpy(&attempt, data + sizeof(seq), sizeof(attempt));
    data += sizeof(seq) + sizeof(attempt);
    const int numbers = snprintf(text, sizeof(text), "%" PRIu64 ".%u.", seq, attempt);
    for (size_t i = 0; i < LEASE_BYTES; i++)
        text[(size_t)numbers + i] = characters[data[i] % (sizeof(characters) - 1)];

    const bool good = seq > 0 && seq <= INT64_MAX && attempt > 0 &&
                      attempt <= ATTEMPT_MAX && is_lease(text + numbers);
    const int r = delivery_id_parse(text, (size_t)numbers + LEASE_BYTES, &found_seq,
                                    &found_attempt);
    require(r == (good ? 0 : -EINVAL));
    require(!good || (found_seq == seq && found_attempt == attempt));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    uint64_t seq = 7;
    unsigned attempt = 7;
    /* A copy of exactly that size: the sanitizer sees a look behind the end. */
    char *text = malloc(len + (len == 0));

    if (text == NULL)
        return 0;
    memcpy(text, data, len);
    const int r = delivery_id_parse(text, len, &seq, &attempt);
    if (r == 0)
        check_taken(text, len, seq, attempt);
    else
        require(r == -EINVAL && seq == 7 && attempt == 7);
    free(text);
    check_made(data, len);
    return 0;
}
