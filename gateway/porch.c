#include <errno.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "porch.h"

/* One turn of the loop takes no more from each listening socket, and no more once so much time has
 * gone by. Enough that thousands who come at once find a place in the kernel's queue: who finds
 * none tries again a second later, and then three. */
#define ACCEPT_BATCH 128
#define ACCEPT_USEC  USEC_PER_MSEC

/* Out of descriptors: the time until accepting is tried again, and until the log is told
 * again. */
#define ACCEPT_PAUSE_USEC (100 * USEC_PER_MSEC)
#define ACCEPT_TELL_USEC  (60 * USEC_PER_SEC)

struct listening {
    struct poller_source source;
    struct porch *porch;
    int fd;
};

struct porch {
    struct porch_settings settings;
    struct wheel_timer accept_again;
    uint64_t told_usec; /* when the log was last told that accepting fails */
    bool closed;
    struct listening listening[];
};

static void stop_listening(struct porch *porch)
{
    for (size_t i = 0; i < porch->settings.listen_fd_count; i++)
        poller_remove(porch->settings.poller, &porch->listening[i].source);
}

static int start_listening(struct porch *porch)
{
    for (size_t i = 0; i < porch->settings.listen_fd_count; i++) {
        struct listening *listening = &porch->listening[i];
        /* Exclusive: one newcomer wakes one shard, not all of them. */
        const int result = poller_add(porch->settings.poller, &listening->source,
                                      listening->fd, EPOLLIN | EPOLLEXCLUSIVE);

        if (result < 0)
            return result;
    }
    return 0;
}

static void accept_again(struct wheel_timer *timer)
{
    struct porch *porch = CONTAINER_OF(timer, struct porch, accept_again);

    if (porch->closed)
        return;
    stop_listening(porch); /* after half a success */
    if (start_listening(porch) < 0)
        wheel_set(porch->settings.wheel, timer, clock_usec() + ACCEPT_PAUSE_USEC);
}

/* Out of descriptors or memory. Who waits in the backlog waits a little longer. */
static void pause_accepting(struct porch *porch, int error)
{
    const uint64_t now = clock_usec();

    if (now >= porch->told_usec + ACCEPT_TELL_USEC || porch->told_usec == 0) {
        log_warning("could not accept connections: %s; trying again", strerror(error));
        porch->told_usec = now;
    }
    stop_listening(porch);
    wheel_set(porch->settings.wheel, &porch->accept_again, now + ACCEPT_PAUSE_USEC);
}

static void listening_ready(struct poller_source *source, uint32_t events)
{
    struct listening *listening = CONTAINER_OF(source, struct listening, source);
    struct porch *porch = listening->porch;
    const uint64_t until = clock_usec() + ACCEPT_USEC;

    (void)events;
    for (int i = 0; i < ACCEPT_BATCH && clock_usec() < until; i++) {
        struct sockaddr_storage address = {0};
        socklen_t address_len = sizeof(address);
        const int fd = accept4(listening->fd, (struct sockaddr *)&address, &address_len,
                               SOCK_NONBLOCK | SOCK_CLOEXEC);

        const int error = fd < 0 ? errno : 0;

        if (fd >= 0)
            porch->settings.came(porch->settings.argument, fd, &address, address_len);
        else if (error == EMFILE || error == ENFILE || error == ENOBUFS ||
                 error == ENOMEM)
            pause_accepting(porch, error);
        /* Other errors are one peer's bad luck (accept(2)), or nobody is left. */
        if (fd < 0 && error != ECONNABORTED && error != EINTR)
            return;
    }
}

struct porch *porch_new(const struct porch_settings *settings)
{
    struct porch *porch = calloc(1, sizeof(*porch) + settings->listen_fd_count *
                                                         sizeof(porch->listening[0]));

    if (porch == NULL)
        return NULL;
    porch->settings = *settings;
    porch->accept_again.fire = accept_again;
    for (size_t i = 0; i < settings->listen_fd_count; i++)
        porch->listening[i] = (struct listening){
            .source = POLLER_SOURCE(listening_ready),
            .porch = porch,
            .fd = settings->listen_fds[i],
        };
    porch->settings.listen_fds = NULL; /* copied */
    return porch;
}

void porch_free(struct porch *porch)
{
    free(porch);
}

int porch_open(struct porch *porch)
{
    return start_listening(porch);
}

void porch_close(struct porch *porch)
{
    porch->closed = true;
    stop_listening(porch);
    wheel_remove(porch->settings.wheel, &porch->accept_again);
}
