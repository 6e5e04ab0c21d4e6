/*
 * failing_malloc.h - memory that runs out when a test says so.
 *
 * The tests are linked with -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc, so every
 * allocation of the gateway's own objects (not of libraries) comes by here.
 *
 *     for (unsigned n = 1; ; n++) {
 *         failing_malloc_begin(n);          the n-th allocation from here on fails
 *         result = what_is_tested();
 *         if (!failing_malloc_end())        it was not reached: all of them succeeded
 *             break;
 *         ... the failure was told, nothing is lost ...
 *     }
 *
 * Threads: counts those of the calling thread only.
 */
#ifndef FAILING_MALLOC_H
#define FAILING_MALLOC_H

#include "base.h"

/* The nth allocation from now on returns NULL, once; those behind it succeed again. */
void failing_malloc_begin(unsigned nth);

/* Whether it came to that. Nothing fails any more. */
bool failing_malloc_end(void);

#endif
