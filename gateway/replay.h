/*
 * replay.h - stored events, read from the table for those who ask for older ones.
 *
 * One thread, one connection (any server of the database will do, a standby too). Jobs
 * are answered in the order asked.
 *
 * Always true: done() comes exactly once for each job accepted, within its deadline.
 *
 * Threads: ask from any; done() is called on the replay thread and must not wait.
 */
#ifndef REPLAY_H
#define REPLAY_H

#include "base.h"
#include "err.h"
#include "event.h"

struct replay;

enum replay_outcome {
    REPLAY_FOUND,
    REPLAY_MISSING,     /* there is no such event, or no longer */
    REPLAY_UNAVAILABLE, /* the database could not be asked; err says why */
};

/* One question. The asker owns it and leaves it alone until done(). */
struct replay_job {
    uint64_t seq;
    uint64_t deadline_usec;
    void (*done)(struct replay_job *job);

    enum replay_outcome outcome; /* set before done() */
    struct event event;          /* when found; the texts live in `text` */
    char created_at[40];         /* when found; RFC 3339, UTC, microseconds */
    char *text;                  /* heap; replay_job_done() frees it */
    struct err err;

    struct replay_job *next; /* the replay's own */
};

struct replay_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    size_t queue_jobs;    /* jobs waiting, over which replay_ask says -EAGAIN */
};

struct replay *replay_new(const struct replay_settings *settings) MUST_CHECK;
int replay_start(struct replay *replay, struct err *err) MUST_CHECK;
void replay_stop(struct replay *replay); /* answers what waits as unavailable */
void replay_free(struct replay *replay);

/* 0: accepted, done() will come. -EAGAIN: too many wait. -ESHUTDOWN: stopping. */
int replay_ask(struct replay *replay, struct replay_job *job) MUST_CHECK;

/* Frees what an answer holds; the job itself stays the asker's. */
void replay_job_done(struct replay_job *job);

struct thread;
const struct thread *replay_thread(const struct replay *replay);

#endif
