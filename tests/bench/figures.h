/*
 * figures.h - what the bench's programs count with: a histogram, and what /proc says.
 *
 * A histogram holds times in microseconds in buckets that are less than 1 % wide, so a
 * quantile is off by less than that. It is plain memory: it can lie in a shared mapping.
 *
 * Threads: a histogram belongs to one at a time.
 */
#ifndef FIGURES_H
#define FIGURES_H

#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define HISTOGRAM_STEPS   128 /* buckets to a power of two */
#define HISTOGRAM_BUCKETS (HISTOGRAM_STEPS * 32)

struct histogram {
    uint64_t count;
    uint64_t max_usec;
    uint64_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_add(struct histogram *histogram, uint64_t usec);
void histogram_merge(struct histogram *into, const struct histogram *other);

/* share: 0 to 1. 0 when there is nothing in it. */
uint64_t histogram_quantile(const struct histogram *histogram, double share);

/* {"p50":…,"p99":…,"p999":…,"max":…} */
void histogram_print(FILE *out, const struct histogram *histogram);

/* CLOCK_MONOTONIC, the same in all processes. */
uint64_t figures_now_usec(void);
void figures_sleep_until(uint64_t usec);

/* The most files this process may have. */
void figures_raise_file_limit(void);

/* Processor time of all threads of the processes, in seconds. Precise to the nanosecond
 * (schedstat), unlike the ticks of stat. */
double figures_cpu_seconds(const pid_t *pids, size_t count);

/* Calls back with each thread of the process. */
void figures_each_thread(pid_t pid,
                         void (*look)(void *argument, const char *name,
                                      double cpu_seconds),
                         void *argument);

#endif
