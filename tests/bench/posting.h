/*
 * posting.h - the publisher: numbered, stamped events, POSTed at a fixed rate.
 *
 * The rate is kept whether or not the server keeps up, and answers are read on the way: a
 * server that is late is seen to be late, not waited for. One connection, so that the order of
 * the events is the order of their numbers.
 *
 * Threads: one. Every int is 0, or -1 with a line on stderr.
 */
#ifndef POSTING_H
#define POSTING_H

#include "crowd.h"

#define POSTING_SLOT_USEC 1000000

/* How a server is spoken to. The paths are printf formats with the channel as %s%u. */
struct posting_dialect {
    const char *name;
    const char *subscribe;
    const char *publish;
    bool batches; /* takes several events in one POST, one a line */
};

/* NULL: there is none of that name. */
const struct posting_dialect *posting_find_dialect(const char *name);

struct posting {
    const struct posting_dialect *dialect;
    unsigned port;
    size_t channels;
    const char *prefix; /* of their names */
    unsigned burst;     /* events at once */
    double rate;        /* events a second */
    /* Of each POSTING_SLOT_USEC on the machine's clock, one in `slots` is this publisher's, the
     * one that leaves `slot` over: several can take turns. 0: all are. */
    unsigned slots;
    unsigned slot;
    size_t events_max;
    uint64_t *sent_usec;       /* of each event */
    struct crowd_order *order; /* `published` is counted here */

    int fd;
    char *request;
    uint64_t answers;
    uint64_t answers_due;
};

/* With all above `fd` filled in. The memory and the connection end with the process. */
int posting_connect(struct posting *posting);

/* Where several take turns: until the next turn begins, whosever it is. */
void posting_await_turn(const struct posting *posting);

/* For so long, or until `enough` (may be NULL) says so, or until there is no room for more. */
int posting_run(struct posting *posting, double seconds, bool (*enough)(void *argument),
                void *argument);

/* Reads what has been answered. */
int posting_look(struct posting *posting);

/* Until all is answered. Who leaves before has the kernel reset the connection, and takes back
 * what the server has not read yet. */
int posting_await_answers(struct posting *posting);

#endif
