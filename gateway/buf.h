/*
 * buf.h - bytes that grow.
 *
 * Always true: data[0..len) is the content; while nothing failed, data[len] is NUL once
 * anything was added, so that text can be read as a C string. A failed addition leaves
 * the content as it was and sets `failed`, which stays until buf_reset(): a long chain of
 * additions needs one check at its end (buf_ok()).
 *
 * Threads: its owner's. Cost: doubling growth, amortised O(1) a byte.
 */
#ifndef BUF_H
#define BUF_H

#include <stdarg.h>

#include "base.h"

struct buf {
    char *data; /* NULL until the first addition; owned */
    size_t len;
    size_t capacity;
    bool failed; /* an addition ran out of memory */
};

#define BUF_EMPTY ((struct buf){0})

void buf_init(struct buf *buf);
void buf_done(struct buf *buf);  /* takes NULL; fits CLEANUP(buf_done) */
void buf_reset(struct buf *buf); /* empties, keeps the memory */

/* Room for `more` bytes behind the content; -ENOMEM (and failed). */
int buf_reserve(struct buf *buf, size_t more);

/* Each returns 0, or -ENOMEM and sets failed; the result may be ignored for buf_ok(). */
int buf_add(struct buf *buf, const void *bytes, size_t len);
int buf_add_text(struct buf *buf, const char *text);
int buf_add_format(struct buf *buf, const char *format, ...) PRINTF_LIKE(2, 3);

/* 0, or -ENOMEM if any addition since buf_reset() failed. */
int buf_ok(const struct buf *buf) MUST_CHECK;

/* The text as a heap string that the caller frees; the buf is empty afterwards. NULL if
 * it failed. */
char *buf_steal(struct buf *buf) MUST_CHECK;

#endif
