/*
 * clock.h - monotonic time in microseconds; a test may set it.
 *
 * Deadlines are kept as absolute values of this clock, so a jump of the wall clock moves
 * none of them. Threads: any.
 */
#ifndef CLOCK_H
#define CLOCK_H

#include "base.h"

#define CLOCK_NEVER UINT64_MAX

/* Microseconds since an arbitrary start (CLOCK_MONOTONIC); never goes back. */
uint64_t clock_usec(void);

/* For tests: from now on clock_usec() returns `now_usec`; 0 gives the real clock back. */
void clock_set(uint64_t now_usec);

/* Milliseconds from now until `due_usec`, as poll(2) and epoll_wait(2) take them: rounded
 * up so that a sleeper never wakes early; 0 when it is past, -1 for CLOCK_NEVER. */
int clock_timeout_msec(uint64_t due_usec);

/* A value in [0, below), evenly spread; 0 for 0. */
uint64_t clock_random(uint64_t below);

/* A value in [usec * 3/4, usec * 5/4), evenly spread: so that what began together does
 * not come back together. */
uint64_t clock_jitter(uint64_t usec);

#endif
