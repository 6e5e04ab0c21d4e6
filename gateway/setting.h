/*
 * setting.h - one setting: what its text may be, and where the value goes.
 *
 *     "15s" ── setting_parse() ──> 15000000 ── setting_store() ──> uint64_t in a struct
 *                                                                    │
 *     "15s" <──────────────────── setting_print() ───────────────────┘
 *
 * Which settings there are is config.c's table.
 *
 * Threads: any; no state.
 */
#ifndef SETTING_H
#define SETTING_H

#include "base.h"
#include "buf.h"
#include "err.h"

enum setting_type {
    SETTING_TEXT,   /* char * */
    SETTING_SECRET, /* char *, a connection string: never shown with its passwords */
    SETTING_FLAG,   /* bool */
    SETTING_COUNT,  /* uint64_t */
    SETTING_BYTES,  /* uint64_t */
    SETTING_USEC,   /* uint64_t */
    SETTING_USEC_0, /* uint64_t; 0 is allowed beside what is between the limits */
    SETTING_LEVEL,  /* enum log_level */
    SETTING_ORDER,  /* bool: exact */
};

struct setting {
    const char *section;
    const char *key;
    enum setting_type type;
    size_t offset;        /* in struct config */
    const char *fallback; /* the default, as it would stand in the ini file */
    uint64_t min, max;    /* of numbers, in the type's unit */
};

/* Is its value a text, on the heap? */
bool setting_is_text(const struct setting *setting);

/* The value as a number; a text has none, its number is 0. -EINVAL, -ERANGE:
 * setting_refuse(). */
int setting_parse(const struct setting *setting, const char *text,
                  uint64_t *ret_number) MUST_CHECK;

/* Says what was set `where`, and what is allowed; a secret is not shown. -EINVAL. */
int setting_refuse(const struct setting *setting, const char *text, const char *where,
                   struct err *err) MUST_CHECK;

/* What was parsed goes to its place; a text is copied. -ENOMEM. */
int setting_store(const struct setting *setting, void *place, const char *text,
                  uint64_t number, struct err *err) MUST_CHECK;

/* Adds the value as it would stand in the ini file, secrets masked. */
void setting_print(const struct setting *setting, const void *place,
                   struct buf *ret_text);

/* Puts a copy in the place of a text that is owned. -ENOMEM. */
int setting_replace_text(char **place, const char *text, struct err *err) MUST_CHECK;

#endif
