/*
 * question.h - one question to the database whose answer is one text.
 *
 * Threads: ask from any; done() is called on a reader's thread and must not wait.
 */
#ifndef QUESTION_H
#define QUESTION_H

#include "base.h"
#include "err.h"
#include "readers.h"

#define QUESTION_VALUES_MAX 2

enum question_outcome {
    QUESTION_ANSWERED,
    QUESTION_MISSING,     /* there is no row */
    QUESTION_UNAVAILABLE, /* the database could not be asked; err says why */
};

/* One. The asker owns it and what it points to, and leaves all of it alone until done(). */
struct question {
    const char *sql; /* a row at the most: the text, and a word about it */
    int count;       /* of values */
    const char *values[QUESTION_VALUES_MAX];
    uint64_t deadline_usec; /* done() comes by then */
    void (*done)(struct question *question);

    enum question_outcome outcome; /* set before done() */
    char *text;                    /* heap; the asker's to free */
    char word[24];
    struct err err;

    struct reader_job job; /* the readers' */
};

/* 0: accepted, done() will come, once. -EAGAIN: too many wait. -ESHUTDOWN: stopping. */
int question_ask(struct question *question, struct readers *readers) MUST_CHECK;

#endif
