/*
 * failing_malloc.c - memory that runs out when a test says so.
 */
#include "failing_malloc.h"

#include <errno.h>

static _Thread_local unsigned
    left; /* allocations until the one that fails; 0: none does */
static _Thread_local bool failed;

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);

void failing_malloc_begin(unsigned nth)
{
    left = nth;
    failed = false;
}

bool failing_malloc_end(void)
{
    left = 0;
    return failed;
}

static bool fails_now(void)
{
    if (left == 0 || --left != 0)
        return false;
    failed = true;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return fails_now() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails_now() ? NULL : __real_realloc(old, size);
}
