/*
 * crowd.h - the subscribers of one process: they connect, read, and check every event.
 *
 *     parent ── phase, published ──> crowd (one process each) ── counts, times ──> parent
 *
 * Events are numbered from 0. Event k goes to channel k mod channels, and subscriber i
 * listens to channel i mod channels; so each subscriber knows which number comes next, and
 * one that is missing, doubled or out of order is seen at once. An event says when it was
 * sent, in a field of fixed width (CROWD_DATA).
 *
 * Where the rate is too high to read everything (`sampled`), one subscriber in CROWD_SAMPLE
 * is read and checked, and of the others the bytes are counted: they must come to exactly as
 * many as with those that were read.
 *
 * Threads: one in each process; the shared struct is written by its own crowd alone, but for
 * what the parent says.
 */
#ifndef CROWD_H
#define CROWD_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "figures.h"

#define CROWD_DATA   "{\"n\":\"%010llu\",\"t\":\"%016llu\",\"text\":\"%s\"}"
#define CROWD_SAMPLE 50
#define CROWD_ID_MAX 64

/* Between two processes. A SET is seen with all that was written before it. */
#define CROWD_GET(field) atomic_load_explicit(&(field), memory_order_acquire)
#define CROWD_SET(field, value)                                                          \
    atomic_store_explicit(&(field), (value), memory_order_release)

struct crowd_plan {
    unsigned port;
    const char *path; /* of a channel: printf with one %s, its prefix, and one %u */
    const char *prefix;
    size_t channels;
    size_t events_max; /* room in `arrivals` */
    bool sampled;
};

/* When an event had been received by how many: of all that are not sampled. */
struct crowd_arrival {
    uint64_t last_usec;
    uint32_t count;
};

/* What the latency of an event is written into, by when it was received. */
enum crowd_book { BOOK_BEFORE, BOOK_ELSEWHERE, BOOK_DURING, BOOK_COUNT };

/* What the parent says to all. */
struct crowd_order {
    _Atomic uint64_t published; /* events so far */
    _Atomic uint64_t first;     /* number of the first that is measured */
    _Atomic enum crowd_book book;
    _Atomic bool counting;  /* connected and greeted: bytes count from here */
    _Atomic bool returning; /* those who return may connect now */
    _Atomic bool over;
    char resume_id[CROWD_ID_MAX]; /* of the first measured event */
    _Atomic bool resume_id_known;
};

/* What a crowd says. */
struct crowd_report {
    _Atomic uint64_t connected;
    _Atomic bool counting;
    _Atomic uint64_t deliveries; /* sampled: only as far as all have the same */
    _Atomic uint64_t missing;
    _Atomic uint64_t doubled;
    _Atomic uint64_t gaps;    /* frames that say so */
    _Atomic size_t lost;      /* connections that ended */
    _Atomic uint64_t refused; /* who return: closed without an answer, and tried again */
    _Atomic size_t caught_up; /* of those who return: have what is published */
    _Atomic uint64_t caught_up_usec;
    struct histogram latency[BOOK_COUNT];
    struct crowd_arrival *arrivals; /* shared */
};

/* Memory that processes forked later share; the program ends if there is none. */
void *crowd_share(size_t bytes);

/* A process with the subscribers first … first + count - 1, until the order is over.
 * `returning`: they come when they are told to, with the resume id, and nobody waits until
 * another is connected. The report is shared. -1 with a line on stderr. */
pid_t crowd_start(const struct crowd_plan *plan, struct crowd_order *order, size_t first,
                  size_t count, bool returning, struct crowd_report **ret_report);

/* false, with a line on stderr: it has ended before its order was over. */
bool crowd_is_there(pid_t *crowd);

/* Waits for its end; the order is over. */
void crowd_end(pid_t *crowd);

#endif
