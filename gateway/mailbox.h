/*
 * mailbox.h - how one thread tells another something: everything that is not an event.
 *
 *     any thread                          the owner
 *     mailbox_post(mail)  ── list ──>     epoll/poll on mailbox_fd()
 *                         ── eventfd ─>   mailbox_deliver() calls mail->deliver(mail)
 *
 * A letter is a struct mail inside whatever it carries; the mailbox owns it from
 * mailbox_post() until its deliver() is called, and allocates nothing, so posting cannot
 * fail. A letter is in one mailbox at a time.
 *
 * Threads: post from any; deliver, init and done from the owner's (done after every
 * poster has stopped). Locks: one mutex, held for a pointer swap; never while delivering.
 */
#ifndef MAILBOX_H
#define MAILBOX_H

#include <pthread.h>

#include "base.h"
#include "err.h"

struct mail {
    struct mail *next; /* [lock] */
    void (*deliver)(struct mail *mail);
};

struct mailbox {
    pthread_mutex_t lock;
    struct mail *first; /* [lock] */
    struct mail **tail; /* [lock] */
    int fd;             /* [const] eventfd: readable while there may be mail */
};

int mailbox_init(struct mailbox *mailbox, struct err *err) MUST_CHECK;
void mailbox_done(struct mailbox *mailbox);

void mailbox_post(struct mailbox *mailbox, struct mail *mail);

/* The descriptor to wait on for POLLIN. */
int mailbox_fd(const struct mailbox *mailbox);

/* Takes all that is there and calls each letter's deliver(), oldest first; returns how
 * many. What is posted meanwhile waits for the next call. */
size_t mailbox_deliver(struct mailbox *mailbox);

/* Wakes the owner without a letter (to look at a stop flag, say). */
void mailbox_ring(struct mailbox *mailbox);

#endif
