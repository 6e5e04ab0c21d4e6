#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "poller.h"

/* Small, so that its owner can look at the clock while many are ready. */
#define BATCH 16

struct poller {
    int fd;
    struct epoll_event events[BATCH];
    int event_count; /* in the batch under way */
};

struct poller *poller_new(struct err *err)
{
    struct poller *poller = calloc(1, sizeof(*poller));

    if (poller == NULL) {
        (void)err_set(err, -ENOMEM, "no memory for an epoll set");
        return NULL;
    }
    poller->fd = epoll_create1(EPOLL_CLOEXEC);
    if (poller->fd < 0) {
        (void)err_set(err, -errno, "could not make an epoll set: %s", strerror(errno));
        free(poller);
        return NULL;
    }
    return poller;
}

void poller_free(struct poller *poller)
{
    if (poller == NULL)
        return;
    close(poller->fd);
    free(poller);
}

int poller_add(struct poller *poller, struct poller_source *source, int fd,
               uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};

    if (epoll_ctl(poller->fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return -errno;
    source->fd = fd;
    return 0;
}

void poller_rearm(struct poller *poller, struct poller_source *source, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = source};

    (void)epoll_ctl(poller->fd, EPOLL_CTL_MOD, source->fd, &event);
}

void poller_remove(struct poller *poller, struct poller_source *source)
{
    if (source->fd < 0)
        return;
    (void)epoll_ctl(poller->fd, EPOLL_CTL_DEL, source->fd, NULL);
    source->fd = -1;

    for (int i = 0; i < poller->event_count; i++) {
        if (poller->events[i].data.ptr == source)
            poller->events[i].data.ptr = NULL;
    }
}

bool poller_wait(struct poller *poller, int timeout_msec)
{
    const int count = epoll_wait(poller->fd, poller->events, BATCH, timeout_msec);

    poller->event_count = MAX(count, 0); /* EINTR is an empty batch */
    for (int i = 0; i < poller->event_count; i++) {
        struct poller_source *source = poller->events[i].data.ptr;

        if (source != NULL)
            source->ready(source, poller->events[i].events);
    }
    poller->event_count = 0;
    return count == BATCH;
}

int poller_fd(const struct poller *poller)
{
    return poller->fd;
}
