/*
 * thread.h - the threads' names, "am I on it?" assertions, and signs of life.
 *
 *   thread      runs                                       may wait for
 *   main        start, signals, stop                       signals
 *   listener    the LISTEN connection, the sweep           PostgreSQL
 *   publisher   the batch in flight                        PostgreSQL
 *   reader/N    stored events, one by one or in pages      PostgreSQL
 *   retention   deletes what is old, in batches            PostgreSQL
 *   groups      claims, acknowledgements, who waits        PostgreSQL
 *   shard/N     its connections, its epoll, its index      its epoll only
 *
 * Between threads: the ring (listener to shards), one mailbox a thread (everything else).
 * A connection is touched by its shard alone.
 *
 * Signals: every thread but main blocks all of them, so a signal always arrives at main.
 */
#ifndef THREAD_H
#define THREAD_H

#include <assert.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base.h"
#include "err.h"

enum thread_kind {
    THREAD_MAIN,
    THREAD_LISTENER,
    THREAD_PUBLISHER,
    THREAD_READER,
    THREAD_RETENTION,
    THREAD_GROUPS,
    THREAD_SHARD,
};

struct thread {
    pthread_t id;                /* [const] valid while started */
    enum thread_kind kind;       /* [const] */
    unsigned index;              /* [const] N of shard/N */
    bool started;                /* [main] */
    void (*run)(void *argument); /* [const] */
    void *argument;              /* [const] */
    _Atomic uint64_t beat_usec;  /* [atomic] clock_usec() of the last sign of life */
};

/* Starts run(argument) on a thread of that kind, named for top(1) and the log. `thread`
 * must stay where it is until thread_join(). -errno when there can be no more threads. */
int thread_start(struct thread *thread, enum thread_kind kind, unsigned index,
                 void (*run)(void *argument), void *argument, struct err *err) MUST_CHECK;

/* Waits for its end. Nothing happens if it was never started. */
void thread_join(struct thread *thread);

/* "I am alive": called by a thread once each turn of its loop. Anyone may read the last
 * one, in clock_usec(); a thread never started has beaten at 0. */
void thread_beat(void);
uint64_t thread_last_beat(const struct thread *thread);

/* The calling thread's kind and name ("shard/1"); main's if it was not started here. */
enum thread_kind thread_kind(void);
const char *thread_name(void);

#define THREAD_ASSERT(wanted) assert(thread_kind() == (wanted))

#endif
