#include "figures.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

/* -- histogram -- */

/* Below two steps each value has a bucket of its own; above, each power of two has as many
 * buckets as there are steps. */
static size_t bucket_of(uint64_t usec)
{
    if (usec < 2 * HISTOGRAM_STEPS)
        return (size_t)usec;
    const int shift = 63 - __builtin_clzll(usec) - 7;
    const size_t bucket = (size_t)(shift + 1) * HISTOGRAM_STEPS +
                          (size_t)((usec >> shift) - HISTOGRAM_STEPS);

    return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

static uint64_t value_of(size_t bucket)
{
    if (bucket < 2 * HISTOGRAM_STEPS)
        return bucket;
    const size_t shift = bucket / HISTOGRAM_STEPS - 1;

    return (uint64_t)(bucket % HISTOGRAM_STEPS + HISTOGRAM_STEPS) << shift;
}

void histogram_add(struct histogram *histogram, uint64_t usec)
{
    histogram->count++;
    histogram->buckets[bucket_of(usec)]++;
    if (usec > histogram->max_usec)
        histogram->max_usec = usec;
}

void histogram_merge(struct histogram *into, const struct histogram *other)
{
    into->count += other->count;
    if (other->max_usec > into->max_usec)
        into->max_usec = other->max_usec;
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++)
        into->buckets[i] += other->buckets[i];
}

uint64_t histogram_quantile(const struct histogram *histogram, double share)
{
    const uint64_t wanted = (uint64_t)(share * (double)histogram->count);
    uint64_t seen = 0;

    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += histogram->buckets[i];
        if (seen > wanted)
            return value_of(i);
    }
    return histogram->max_usec;
}

void histogram_print(FILE *out, const struct histogram *histogram)
{
    (void)fprintf(out,
                  "{\"p50\":%" PRIu64 ",\"p99\":%" PRIu64 ",\"p999\":%" PRIu64
                  ",\"max\":%" PRIu64 "}",
                  histogram_quantile(histogram, 0.5), histogram_quantile(histogram, 0.99),
                  histogram_quantile(histogram, 0.999), histogram->max_usec);
}

/* -- the clock -- */

uint64_t figures_now_usec(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void figures_sleep_until(uint64_t usec)
{
    const struct timespec due = {.tv_sec = (time_t)(usec / 1000000),
                                 .tv_nsec = (long)(usec % 1000000) * 1000};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) == EINTR)
        ;
}

/* -- /proc -- */

void figures_raise_file_limit(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
}

static int read_line(const char *path, char *line, int size)
{
    FILE *file = fopen(path, "re");

    if (file == NULL)
        return -errno;
    if (fgets(line, size, file) == NULL)
        line[0] = '\0';
    (void)fclose(file);
    line[strcspn(line, "\n")] = '\0';
    return 0;
}

void figures_each_thread(pid_t pid,
                         void (*look)(void *argument, const char *name,
                                      double cpu_seconds),
                         void *argument)
{
    char path[300], name[64], line[128];

    (void)snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
    DIR *dir = opendir(path);
    if (dir == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(path, sizeof(path), "/proc/%d/task/%s/schedstat", (int)pid,
                       entry->d_name);
        const int has_time = read_line(path, line, sizeof(line));
        (void)snprintf(path, sizeof(path), "/proc/%d/task/%s/comm", (int)pid,
                       entry->d_name);
        if (has_time == 0 && read_line(path, name, sizeof(name)) == 0)
            look(argument, name, strtod(line, NULL) / 1e9);
    }
    (void)closedir(dir);
}

static void add_seconds(void *argument, const char *name, double cpu_seconds)
{
    double *sum = argument;

    (void)name;
    *sum += cpu_seconds;
}

double figures_cpu_seconds(const pid_t *pids, size_t count)
{
    double sum = 0;

    for (size_t i = 0; i < count; i++)
        figures_each_thread(pids[i], add_seconds, &sum);
    return sum;
}
