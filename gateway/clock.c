/*
 * clock.c - monotonic time in microseconds.
 */
#include "clock.h"

#include <limits.h>
#include <stdatomic.h>
#include <sys/random.h>
#include <time.h>

/* 0: the real clock. Only tests write it. */
static _Atomic uint64_t fixed_usec;

uint64_t clock_usec(void)
{
    uint64_t fixed = atomic_load_explicit(&fixed_usec, memory_order_relaxed);
    if (fixed != 0)
        return fixed;

    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail with this clock */
    return (uint64_t)now.tv_sec * USEC_PER_SEC + (uint64_t)now.tv_nsec / 1000;
}

void clock_set(uint64_t now_usec)
{
    atomic_store_explicit(&fixed_usec, now_usec, memory_order_relaxed);
}

int clock_timeout_msec(uint64_t due_usec)
{
    if (due_usec == CLOCK_NEVER)
        return -1;

    uint64_t now = clock_usec();
    if (due_usec <= now)
        return 0;

    uint64_t left = due_usec - now;
    uint64_t msec = left / USEC_PER_MSEC + (left % USEC_PER_MSEC != 0);
    return msec > INT_MAX ? INT_MAX : (int)msec;
}

/* The kernel's random numbers: no seed, no state, nothing for threads to share. It is
 * called once a connection, a heartbeat or a retry, not once an event. */
uint64_t clock_random(uint64_t below)
{
    uint64_t random;

    if (below == 0)
        return 0;
    if (getrandom(&random, sizeof(random), GRND_NONBLOCK) != (ssize_t)sizeof(random))
        random = clock_usec() * UINT64_C(0x9e3779b97f4a7c15) >> 20;
    return random % below;
}

uint64_t clock_jitter(uint64_t usec)
{
    if (usec == CLOCK_NEVER)
        return usec;
    return usec - usec / 4 + clock_random(usec / 2);
}
