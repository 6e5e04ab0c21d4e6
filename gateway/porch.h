/*
 * porch.h - the listening sockets of one shard: who knocks is let in.
 *
 *     listening sockets (shared by all shards) ──> accept ──> came(): descriptor, address
 *
 * Out of descriptors or memory it pauses, and who waits in the backlog waits a little longer.
 *
 * Always true: nobody is accepted once it is closed; they stay in the backlog, for the next
 * gateway if the socket outlives this one.
 *
 * Threads: its shard's.
 */
#ifndef PORCH_H
#define PORCH_H

#include <sys/socket.h>

#include "base.h"
#include "poller.h"
#include "wheel.h"

struct porch;

struct porch_settings {
    struct poller *poller;
    struct wheel *wheel;
    const int *listen_fds; /* copied; non-blocking; the caller's to close, after free */
    size_t listen_fd_count;
    void (*came)(void *argument, int fd, const struct sockaddr_storage *address,
                 socklen_t address_len); /* the descriptor is the receiver's to close */
    void *argument;
};

struct porch *porch_new(const struct porch_settings *settings)
    MUST_CHECK;                       /* NULL: no memory */
void porch_free(struct porch *porch); /* takes NULL */

int porch_open(struct porch *porch) MUST_CHECK; /* -errno of epoll_ctl(2) */
void porch_close(struct porch *porch);

#endif
