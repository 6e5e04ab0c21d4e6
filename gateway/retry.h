/*
 * retry.h - when to try again what failed, and what to log meanwhile.
 *
 *     up ── breaks ──> at once ── fails ──> 50 ms ── fails ──> 100 ms ... 500 ms
 *      ^                                                          │
 *      └──────────────────────── works again ─────────────────────┘
 *
 * Each pause is jittered, so that what lost the same server does not come back in the
 * same millisecond. What broke within a second of coming up does not count as having
 * worked: a server that takes every connection and drops it again is not asked in a tight
 * loop.
 *
 * Log: a change at once; the same reason again once a minute.
 *
 * Threads: its owner's. Begins zeroed.
 */
#ifndef RETRY_H
#define RETRY_H

#include "base.h"
#include "err.h"

struct retry {
    uint64_t due_usec;  /* clock_usec() of the next try; 0: now */
    uint64_t step_usec; /* the last pause before its jitter; 0: none yet */
    uint64_t up_usec;   /* since when it works; 0: it does not */
    uint64_t
        logged_usec; /* when the reason was last logged; 0: nothing was ever logged */
    bool told;       /* the log's last word is that it does not work */
    char reason[256];
};

/* It works. Logs `what` `where`: "listening to the database at" "/run/postgresql". */
void retry_up(struct retry *retry, const char *what, const char *where);

/* It does not: sets due_usec. Logs `what`, why and when: "cannot listen: ...; next try in
 * 500 ms". */
void retry_down(struct retry *retry, const char *what, const struct err *err);

#endif
