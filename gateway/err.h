/*
 * err.h - one line of text about a failure, beside its negative errno.
 *
 * The callee that knows the story fills it and returns in one line:
 *
 *     return err_set(err, -EIO, "could not read %s: %s", path, strerror(errno));
 *
 * The text is one line, lower case, without a full stop and without a secret; whoever
 * decides what happens next logs it or shows it. Threads: a struct err belongs to its
 * function. Cost: 512 bytes on the stack.
 */
#ifndef ERR_H
#define ERR_H

#include "base.h"

struct err {
    char text[512];
};

/* Writes the text (cut to fit, line breaks and control characters made spaces, so that it
 * stays one line in a log) and returns `code`. `err` may be NULL. */
int err_set(struct err *err, int code, const char *format, ...) PRINTF_LIKE(3, 4);

/* Puts "prefix: " before the text that is there and returns `code`. `err` may be NULL. */
int err_prefix(struct err *err, int code, const char *format, ...) PRINTF_LIKE(3, 4);

/* Several lines of libpq's to one, cut to fit, without the line break at the end, and without
 * its advice ("Is the server running on that host ..."), which stands on lines of its own behind
 * a tab. NULL is "". */
void err_copy_line(char *to, size_t size, const char *from);

#endif
