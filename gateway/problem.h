/*
 * problem.h - what is wrong with a request, as it is answered (RFC 9457).
 *
 * Threads: any; pure functions.
 */
#ifndef PROBLEM_H
#define PROBLEM_H

#include "base.h"
#include "err.h"

struct problem {
    unsigned status; /* HTTP */
    struct err detail;
};

/* Fills it in and returns -EINVAL. */
int problem_set(struct problem *problem, unsigned status, const char *format, ...)
    PRINTF_LIKE(3, 4);

/* The problem document. A heap string; NULL: no memory. */
char *problem_json(const struct problem *problem) MUST_CHECK;

#endif
