/*
 * poller.h - one epoll set: descriptors, and what to call when they are ready.
 *
 * An epoll set reports in the order in which they became ready, so behind thousands who come at
 * once others wait long. Sets can be nested: a source of one is the whole of another
 * (poller_fd()), which then is one among few.
 *
 * A source is a struct inside whatever owns the descriptor. It may be removed, and its
 * memory freed, from any ready() function, its own or another's: what the kernel had
 * already reported for it in this batch is forgotten.
 *
 * Threads: its owner's. Cost: add and remove one system call; remove also looks through
 * the rest of the batch under way (at most 16 entries).
 */
#ifndef POLLER_H
#define POLLER_H

#include <sys/epoll.h>

#include "base.h"
#include "err.h"

struct poller;

struct poller_source {
    int fd; /* -1 while not added */
    void (*ready)(struct poller_source *source, uint32_t events);
};

#define POLLER_SOURCE(function) ((struct poller_source){.fd = -1, .ready = (function)})

struct poller *poller_new(struct err *err) MUST_CHECK; /* NULL: err says why */
void poller_free(struct poller *poller);

/* `events` as for epoll_ctl(2). -errno. The descriptor stays the caller's. */
int poller_add(struct poller *poller, struct poller_source *source, int fd,
               uint32_t events) MUST_CHECK;

/* An edge-triggered source that is still ready is reported once more. */
void poller_rearm(struct poller *poller, struct poller_source *source, uint32_t events);

/* Before the descriptor is closed. Nothing happens to a source that was not added. */
void poller_remove(struct poller *poller, struct poller_source *source);

/* Waits up to timeout_msec (-1: for ever) and calls ready() of sources that are: a batch of them.
 * true: the batch was full, so there may be more. */
bool poller_wait(struct poller *poller, int timeout_msec);

/* Readable while a source is ready. The poller's own. */
int poller_fd(const struct poller *poller);

#endif
