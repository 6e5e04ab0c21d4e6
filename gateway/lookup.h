/*
 * lookup.h - one stored event, read from the table by its id.
 *
 * Threads: ask from any; done() is called on a reader's thread and must not wait.
 */
#ifndef LOOKUP_H
#define LOOKUP_H

#include "base.h"
#include "err.h"
#include "event.h"
#include "readers.h"

enum lookup_outcome {
    LOOKUP_FOUND,
    LOOKUP_MISSING,     /* there is no such event, or no longer */
    LOOKUP_UNAVAILABLE, /* the database could not be asked; err says why */
};

/* One question. The asker owns it and leaves it alone until done(). */
struct lookup {
    uint64_t seq;
    uint64_t deadline_usec; /* done() comes by then */
    void (*done)(struct lookup *lookup);

    enum lookup_outcome outcome; /* set before done() */
    struct event event;          /* when found; the texts live in `text` */
    char created_at[40];         /* when found; RFC 3339, UTC, microseconds */
    char *text;                  /* heap; lookup_clear() frees it */
    struct err err;

    struct reader_job job; /* the readers' */
};

/* 0: accepted, done() will come, once. -EAGAIN: too many wait. -ESHUTDOWN: stopping. */
int lookup_ask(struct lookup *lookup, struct readers *readers) MUST_CHECK;

/* Frees what an answer holds; the lookup itself stays the asker's. */
void lookup_clear(struct lookup *lookup);

#endif
