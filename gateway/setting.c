/*
 * setting.c - one setting: what its text may be, and where the value goes.
 */
#include "setting.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "log.h"
#include "secret.h"
#include "units.h"

bool setting_is_text(const struct setting *setting)
{
    return setting->type == SETTING_TEXT || setting->type == SETTING_SECRET;
}

int setting_replace_text(char **place, const char *text, struct err *err)
{
    char *copy = strdup(text);

    if (copy == NULL)
        return err_set(err, -ENOMEM, "no memory for the configuration");
    free(*place);
    *place = copy;
    return 0;
}

static int parse_flag(const char *text, uint64_t *ret_flag)
{
    static const char *const words[] = {"no",  "yes", "false", "true",
                                        "off", "on",  "0",     "1"};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strcmp(text, words[i]) == 0) {
            *ret_flag = i % 2;
            return 0;
        }
    return -EINVAL;
}

static int parse_level(const char *text, uint64_t *ret_level)
{
    enum log_level level;
    int code = log_level_parse(text, &level);

    if (code == 0)
        *ret_level = (uint64_t)level;
    return code;
}

static int parse_order(const char *text, uint64_t *ret_exact)
{
    if (strcmp(text, "commit") != 0 && strcmp(text, "near") != 0)
        return -EINVAL;
    *ret_exact = text[0] == 'c';
    return 0;
}

static int check_text(const char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return -EINVAL;
    return 0;
}

int setting_parse(const struct setting *setting, const char *text, uint64_t *ret_number)
{
    int code = -EINVAL;
    uint64_t number = 0;

    switch (setting->type) {
    case SETTING_TEXT:
    case SETTING_SECRET:
        return check_text(text);
    case SETTING_FLAG:
        return parse_flag(text, ret_number);
    case SETTING_LEVEL:
        return parse_level(text, ret_number);
    case SETTING_ORDER:
        return parse_order(text, ret_number);
    case SETTING_COUNT:
        code = units_parse_count(text, &number);
        break;
    case SETTING_BYTES:
        code = units_parse_bytes(text, &number);
        break;
    case SETTING_USEC:
    case SETTING_USEC_0:
        code = units_parse_usec(text, &number);
        break;
    }
    bool zero = setting->type == SETTING_USEC_0 && number == 0;
    if (code == 0 && !zero && (number < setting->min || number > setting->max))
        code = -ERANGE;
    if (code == 0)
        *ret_number = number;
    return code;
}

static void describe_allowed(const struct setting *setting, char *text, size_t size)
{
    char min[UNITS_TEXT_MAX], max[UNITS_TEXT_MAX];

    switch (setting->type) {
    case SETTING_TEXT:
    case SETTING_SECRET:
        snprintf(text, size, "text without control characters");
        break;
    case SETTING_FLAG:
        snprintf(text, size, "yes, no, true, false, on, off, 1 or 0");
        break;
    case SETTING_LEVEL:
        snprintf(text, size, "error, warning, notice or debug");
        break;
    case SETTING_ORDER:
        snprintf(text, size, "commit or near");
        break;
    case SETTING_COUNT:
        snprintf(text, size, "a number from %" PRIu64 " to %" PRIu64, setting->min,
                 setting->max);
        break;
    case SETTING_BYTES:
        units_format_bytes(setting->min, min);
        units_format_bytes(setting->max, max);
        snprintf(text, size, "a size from %s to %s, in KiB, MiB or GiB", min, max);
        break;
    case SETTING_USEC:
    case SETTING_USEC_0:
        units_format_usec(setting->min, min);
        units_format_usec(setting->max, max);
        snprintf(text, size, "%sa duration from %s to %s, in ms, s, min, h or d",
                 setting->type == SETTING_USEC_0 ? "0, or " : "", min, max);
        break;
    }
}

int setting_refuse(const struct setting *setting, const char *text, const char *where,
                   struct err *err)
{
    char allowed[128];

    describe_allowed(setting, allowed, sizeof(allowed));
    if (setting->type == SETTING_SECRET)
        return err_set(err, -EINVAL, "%s: [%s] %s: must be %s", where, setting->section,
                       setting->key, allowed);
    return err_set(err, -EINVAL, "%s: [%s] %s = '%.60s': must be %s", where,
                   setting->section, setting->key, text, allowed);
}

int setting_store(const struct setting *setting, void *place, const char *text,
                  uint64_t number, struct err *err)
{
    switch (setting->type) {
    case SETTING_TEXT:
    case SETTING_SECRET:
        return setting_replace_text(place, text, err);
    case SETTING_FLAG:
    case SETTING_ORDER:
        *(bool *)place = number != 0;
        break;
    case SETTING_COUNT:
    case SETTING_BYTES:
    case SETTING_USEC:
    case SETTING_USEC_0:
        *(uint64_t *)place = number;
        break;
    case SETTING_LEVEL:
        *(enum log_level *)place = (enum log_level)number;
        break;
    }
    return 0;
}

void setting_print(const struct setting *setting, const void *place, struct buf *text)
{
    char with_unit[UNITS_TEXT_MAX];

    switch (setting->type) {
    case SETTING_TEXT:
        buf_add_text(text, *(char *const *)place);
        break;
    case SETTING_SECRET:
        secret_mask_dsn(*(char *const *)place, text);
        break;
    case SETTING_FLAG:
        buf_add_text(text, *(const bool *)place ? "yes" : "no");
        break;
    case SETTING_ORDER:
        buf_add_text(text, *(const bool *)place ? "commit" : "near");
        break;
    case SETTING_COUNT:
        buf_add_format(text, "%" PRIu64, *(const uint64_t *)place);
        break;
    case SETTING_BYTES:
        units_format_bytes(*(const uint64_t *)place, with_unit);
        buf_add_text(text, with_unit);
        break;
    case SETTING_USEC:
    case SETTING_USEC_0:
        units_format_usec(*(const uint64_t *)place, with_unit);
        buf_add_text(text, with_unit);
        break;
    case SETTING_LEVEL:
        buf_add_text(text, log_level_word(*(const enum log_level *)place));
        break;
    }
}
