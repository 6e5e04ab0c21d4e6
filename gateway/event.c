/*
 * event.c - what channel, type and data may look like.
 */
#include "event.h"

#include <errno.h>
#include <string.h>

/* The second byte's range carries all the rules beside the bit patterns: Unicode, table
 * 3-7. */
size_t event_character_size(const char *character, size_t len)
{
    const unsigned char *text = (const unsigned char *)character;
    unsigned char first = text[0], low = 0x80, high = 0xbf;
    size_t size;

    if (first < 0x80)
        return 1;
    if (first >= 0xc2 && first <= 0xdf) {
        size = 2;
    } else if (first >= 0xe0 && first <= 0xef) {
        size = 3;
        if (first == 0xe0)
            low = 0xa0; /* less would be overlong */
        if (first == 0xed)
            high = 0x9f; /* more would be a surrogate */
    } else if (first >= 0xf0 && first <= 0xf4) {
        size = 4;
        if (first == 0xf0)
            low = 0x90; /* less would be overlong */
        if (first == 0xf4)
            high = 0x8f; /* more would be over U+10FFFF */
    } else {
        return 0;
    }

    if (len < size || text[1] < low || text[1] > high)
        return 0;
    for (size_t i = 2; i < size; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    return size;
}

bool event_text_is_utf8(const char *text, size_t len)
{
    size_t at = 0;

    while (at < len) {
        /* Most of what is published is ASCII: eight bytes at a look. */
        uint64_t eight;
        if (len - at >= sizeof(eight)) {
            memcpy(&eight, text + at, sizeof(eight));
            if ((eight & UINT64_C(0x8080808080808080)) == 0) {
                at += sizeof(eight);
                continue;
            }
        }
        size_t size = event_character_size(text + at, len - at);
        if (size == 0)
            return false;
        at += size;
    }
    return true;
}

size_t event_text_cut(const char *text, size_t max)
{
    size_t len = strnlen(text, max + 1);

    if (len <= max)
        return len;
    /* Back over the bytes that continue a letter (10xxxxxx), to where one begins. */
    for (len = max; len > 0 && ((unsigned char)text[len] & 0xc0) == 0x80;)
        len--;
    return len;
}

/* C0, DEL and C1 (U+0080 to U+009F, C2 80 to C2 9F). `text` is valid UTF-8. */
static bool is_control(const unsigned char *text, size_t len)
{
    if (text[0] == 0xc2)
        return len > 1 && text[1] <= 0x9f;
    return text[0] < 0x20 || text[0] == 0x7f;
}

static int check_name(const char *what, const char *text, size_t len, size_t max,
                      struct err *err)
{
    const unsigned char *bytes = (const unsigned char *)text;

    if (len == 0)
        return err_set(err, -EINVAL, "%s is empty", what);
    if (len > max)
        return err_set(err, -EINVAL, "%s is longer than %zu bytes", what, max);
    if (!event_text_is_utf8(text, len))
        return err_set(err, -EINVAL, "%s is not valid UTF-8", what);
    for (size_t i = 0; i < len; i++)
        if (is_control(bytes + i, len - i))
            return err_set(err, -EINVAL, "%s contains a control character at byte %zu",
                           what, i);
    return 0;
}

int event_check_name(const char *what, const char *text, size_t len, struct err *err)
{
    return check_name(what, text, len, MIN(EVENT_CHANNEL_MAX_BYTES, EVENT_TYPE_MAX_BYTES),
                      err);
}

int event_check_channel(const char *text, size_t len, struct err *err)
{
    int code = check_name("channel", text, len, EVENT_CHANNEL_MAX_BYTES, err);

    if (code == 0 && text[len - 1] == '*')
        return err_set(err, -EINVAL, "channel ends in '*', which marks a pattern");
    return code;
}

static bool is_word(const char *text, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

int event_check_type(const char *text, size_t len, struct err *err)
{
    const int result = check_name("type", text, len, EVENT_TYPE_MAX_BYTES, err);

    if (result == 0 && (is_word(text, len, "gap") || is_word(text, len, "checkpoint")))
        return err_set(err, -EINVAL, "type \"%.*s\" is one that only the gateway sends",
                       (int)len, text);
    return result;
}

size_t event_id_format(uint64_t seq, char text[EVENT_ID_MAX_BYTES + 1])
{
    char digits[EVENT_ID_MAX_BYTES];
    size_t len = 0;

    do {
        digits[sizeof(digits) - ++len] = (char)('0' + seq % 10);
        seq /= 10;
    } while (seq > 0);
    memcpy(text, digits + sizeof(digits) - len, len);
    text[len] = '\0';
    return len;
}

int event_id_parse(const char *text, size_t len, uint64_t *ret_seq)
{
    uint64_t seq = 0;

    if (len == 0 || len > EVENT_ID_MAX_BYTES || (len > 1 && text[0] == '0'))
        return -EINVAL;
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9' || __builtin_mul_overflow(seq, 10, &seq) ||
            __builtin_add_overflow(seq, (uint64_t)(text[i] - '0'), &seq))
            return -EINVAL;
    }
    if (seq > INT64_MAX)
        return -EINVAL;
    *ret_seq = seq;
    return 0;
}
