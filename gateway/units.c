/*
 * units.c - durations and sizes as people write them.
 */
#include "units.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct unit {
    const char *name;
    uint64_t factor;
};

/* Largest first, for the way out. */
static const struct unit durations[] = {
    {"d", 86400 * USEC_PER_SEC}, {"h", 3600 * USEC_PER_SEC}, {"min", 60 * USEC_PER_SEC},
    {"s", USEC_PER_SEC},         {"ms", USEC_PER_MSEC},
};

static const struct unit sizes[] = {
    {"GiB", UINT64_C(1) << 30},
    {"MiB", UINT64_C(1) << 20},
    {"KiB", UINT64_C(1) << 10},
};

/* The digits at the beginning; *ret_rest is what stands behind them and white space. */
static int parse_number(const char *text, uint64_t *ret_number, const char **ret_rest)
{
    uint64_t number = 0;

    if (*text < '0' || *text > '9')
        return -EINVAL;
    for (; *text >= '0' && *text <= '9'; text++)
        if (__builtin_mul_overflow(number, 10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*text - '0'), &number))
            return -ERANGE;
    while (*text == ' ' || *text == '\t')
        text++;
    *ret_number = number;
    *ret_rest = text;
    return 0;
}

static int parse_with_unit(const char *text, const struct unit *units, size_t count,
                           bool bare, uint64_t *ret_value)
{
    const char *rest;
    uint64_t number;

    int code = parse_number(text, &number, &rest);
    if (code < 0)
        return code;
    if (*rest == '\0') {
        if (!bare && number != 0)
            return -EINVAL;
        *ret_value = number;
        return 0;
    }
    for (size_t i = 0; i < count; i++)
        if (strcmp(rest, units[i].name) == 0)
            return __builtin_mul_overflow(number, units[i].factor, ret_value) ? -ERANGE
                                                                              : 0;
    return -EINVAL;
}

int units_parse_count(const char *text, uint64_t *ret_count)
{
    return parse_with_unit(text, NULL, 0, true, ret_count);
}

int units_parse_usec(const char *text, uint64_t *ret_usec)
{
    return parse_with_unit(text, durations, ARRAY_SIZE(durations), false, ret_usec);
}

int units_parse_bytes(const char *text, uint64_t *ret_bytes)
{
    return parse_with_unit(text, sizes, ARRAY_SIZE(sizes), true, ret_bytes);
}

static void format(uint64_t value, const struct unit *units, size_t count,
                   char ret_text[UNITS_TEXT_MAX])
{
    for (size_t i = 0; i < count && value != 0; i++)
        if (value % units[i].factor == 0) {
            snprintf(ret_text, UNITS_TEXT_MAX, "%" PRIu64 "%s", value / units[i].factor,
                     units[i].name);
            return;
        }
    snprintf(ret_text, UNITS_TEXT_MAX, "%" PRIu64, value);
}

void units_format_usec(uint64_t usec, char ret_text[UNITS_TEXT_MAX])
{
    /* Nothing finer than a millisecond can be written. */
    format(usec - usec % USEC_PER_MSEC, durations, ARRAY_SIZE(durations), ret_text);
}

void units_format_bytes(uint64_t bytes, char ret_text[UNITS_TEXT_MAX])
{
    format(bytes, sizes, ARRAY_SIZE(sizes), ret_text);
}
