/*
 * thread.c - the threads' names and signs of life.
 */
#include "thread.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"

#define NAME_MAX_BYTES 16 /* what the kernel keeps, with the NUL */

/* Of the calling thread; NULL on main and on threads of libraries. */
static _Thread_local struct thread *self;
static _Thread_local char self_name[NAME_MAX_BYTES];

static const char *kind_word(enum thread_kind kind)
{
    switch (kind) {
    case THREAD_MAIN:
        return "main";
    case THREAD_LISTENER:
        return "listener";
    case THREAD_PUBLISHER:
        return "publisher";
    case THREAD_READER:
        return "reader";
    case THREAD_RETENTION:
        return "retention";
    case THREAD_GROUPS:
        return "groups";
    case THREAD_SHARD:
        return "shard";
    }
    return "?";
}

static void *thread_main(void *argument)
{
    struct thread *thread = argument;

    self = thread;
    if (thread->kind == THREAD_SHARD || thread->kind == THREAD_READER)
        snprintf(self_name, sizeof(self_name), "%s/%u", kind_word(thread->kind),
                 thread->index);
    else
        snprintf(self_name, sizeof(self_name), "%s", kind_word(thread->kind));
    pthread_setname_np(pthread_self(), self_name);
    thread->run(thread->argument);
    return NULL;
}

int thread_start(struct thread *thread, enum thread_kind kind, unsigned index,
                 void (*run)(void *argument), void *argument, struct err *err)
{
    sigset_t all, before;

    thread->kind = kind;
    thread->index = index;
    thread->run = run;
    thread->argument = argument;
    thread->started = false;
    /* Born alive: a watchdog that looks before the first turn sees no dead thread. */
    atomic_store_explicit(&thread->beat_usec, clock_usec(), memory_order_relaxed);

    /* The mask is inherited, so it is right from the thread's first instruction on. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int code = pthread_create(&thread->id, NULL, thread_main, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (code != 0) {
        atomic_store_explicit(&thread->beat_usec, 0, memory_order_relaxed);
        return err_set(err, -code, "could not start the %s thread: %s", kind_word(kind),
                       strerror(code));
    }
    thread->started = true;
    return 0;
}

void thread_join(struct thread *thread)
{
    if (thread == NULL || !thread->started)
        return;
    pthread_join(thread->id, NULL);
    thread->started = false;
}

void thread_beat(void)
{
    if (self != NULL)
        atomic_store_explicit(&self->beat_usec, clock_usec(), memory_order_relaxed);
}

uint64_t thread_last_beat(const struct thread *thread)
{
    return atomic_load_explicit(&thread->beat_usec, memory_order_relaxed);
}

enum thread_kind thread_kind(void)
{
    return self == NULL ? THREAD_MAIN : self->kind;
}

const char *thread_name(void)
{
    return self == NULL ? kind_word(THREAD_MAIN) : self_name;
}
