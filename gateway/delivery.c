/*
 * delivery.c - the id of a delivery, and what a group and its channel may be called.
 */
#include "delivery.h"

#include <errno.h>
#include <string.h>

#include "event.h"

#define LEASE_BYTES 12

#define DEAD ".dead"

static bool is_lease(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (!(text[i] >= '0' && text[i] <= '9') && !(text[i] >= 'a' && text[i] <= 'z'))
            return false;
    }
    return len == LEASE_BYTES;
}

int delivery_id_parse(const char *text, size_t len, uint64_t *ret_seq,
                      unsigned *ret_attempt)
{
    const char *end = text + len;
    const char *dot = memchr(text, '.', len);
    const char *second =
        dot != NULL ? memchr(dot + 1, '.', (size_t)(end - dot - 1)) : NULL;
    uint64_t seq, attempt;

    if (second == NULL || event_id_parse(text, (size_t)(dot - text), &seq) < 0 ||
        event_id_parse(dot + 1, (size_t)(second - dot - 1), &attempt) < 0 ||
        !is_lease(second + 1, (size_t)(end - second - 1)))
        return -EINVAL;
    if (seq == 0 || attempt == 0 || attempt > 999999999)
        return -EINVAL;
    *ret_seq = seq;
    *ret_attempt = (unsigned)attempt;
    return 0;
}

int group_check_name(const char *text, size_t len, struct err *err)
{
    const int r = event_check_name("group", text, len, err);

    if (r == 0 && text[len - 1] == '*')
        return err_set(err, -EINVAL, "group ends in '*', which marks a pattern");
    return r;
}

int group_check_channel(const char *text, size_t len, struct err *err)
{
    const size_t max = EVENT_CHANNEL_MAX_BYTES - strlen(DEAD);
    const int r = event_check_channel(text, len, err);

    if (r == 0 && len > max)
        return err_set(err, -EINVAL, "the channel of a group has at most %zu bytes", max);
    return r;
}
