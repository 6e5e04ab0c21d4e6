#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>

#include "clock.h"
#include "connection.h"
#include "thread.h"

/* While something is awaited of the peer: how often to look whether it is still there. */
#define LOOK_USEC USEC_PER_SEC

/* libmicrohttpd can miss the end of input that comes right behind a lot of it. Who has asked
 * may close its sending side, though, and still read. */
static bool peer_has_left(const struct connection *connection)
{
    const short end_of_input = connection->answering ? 0 : POLLRDHUP;
    struct pollfd socket = {.fd = connection->fd, .events = end_of_input};

    return poll(&socket, 1, 0) > 0;
}

static void look_again(struct connection *connection, uint64_t now_usec)
{
    wheel_set(connection->wheel, &connection->deadline,
              MIN(connection->until_usec, now_usec + LOOK_USEC));
}

static void time_passed(struct wheel_timer *timer)
{
    struct connection *connection = CONTAINER_OF(timer, struct connection, deadline);
    const uint64_t now = clock_usec();

    if (now < connection->until_usec && !peer_has_left(connection)) {
        look_again(connection, now);
        return;
    }
    if (now >= connection->until_usec && !connection->idle)
        stats_add(connection->stats, STATS_CONNECTIONS_EXPIRED, 1);
    connection_shut(connection);
}

struct connection *connection_new(const struct connection *model,
                                  struct connection **first)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(model->mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct connection *connection = malloc(sizeof(*connection));

    if (connection == NULL || info == NULL) {
        free(connection);
        return NULL;
    }
    *connection = *model;
    connection->fd = info->connect_fd;
    connection->deadline.fire = time_passed;

    connection->next = *first;
    connection->link = first;
    if (*first != NULL)
        (*first)->link = &connection->next;
    *first = connection;
    return connection;
}

void connection_free(struct connection *connection)
{
    if (connection == NULL)
        return;
    wheel_remove(connection->wheel, &connection->deadline);
    *connection->link = connection->next;
    if (connection->next != NULL)
        connection->next->link = connection->link;
    free(connection);
}

struct connection *connection_of(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

    return info != NULL ? info->socket_context : NULL;
}

void connection_allow(struct connection *connection, uint64_t usec)
{
    const uint64_t now = clock_usec();

    connection->until_usec = now + usec;
    look_again(connection, now);
}

void connection_leave(struct connection *connection)
{
    char byte;

    /* A request that is there already is still answered. */
    if (connection->idle && recv(connection->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0)
        connection_shut(connection);
}

void connection_shut(struct connection *connection)
{
    /* The descriptor is libmicrohttpd's to close. It sees the end of input, and closes.
     */
    if (!connection->asleep)
        (void)shutdown(connection->fd, SHUT_RDWR);
}

void connection_sleep(struct connection *connection)
{
    THREAD_ASSERT(THREAD_SHARD);
    assert(!connection->asleep);
    connection->asleep = true;
    wheel_remove(connection->wheel, &connection->deadline);
    MHD_suspend_connection(connection->mhd);
}

void connection_wake(struct connection *connection)
{
    THREAD_ASSERT(THREAD_SHARD);
    assert(connection->asleep);
    connection->asleep = false;
    MHD_resume_connection(connection->mhd);
    /* Without threads of its own libmicrohttpd tells nobody that it has something to do. */
    *connection->work = true;
}

struct header {
    char name[64];
    const char *value;
};

static enum MHD_Result take_header(void *argument, enum MHD_ValueKind kind,
                                   const char *name, const char *value)
{
    struct header *header = argument;

    (void)kind;
    (void)snprintf(header->name, sizeof(header->name), "%s", name);
    header->value = value;
    return MHD_NO; /* one is enough */
}

/* One after the other, as none may be taken away while they are shown. The name is a copy:
 * libmicrohttpd looks at the one it is given once more when the header is gone. */
void connection_forget_headers(struct MHD_Response *response)
{
    struct header header;

    while (MHD_get_response_headers(response, take_header, &header) > 0 &&
           MHD_del_response_header(response, header.name, header.value) == MHD_YES) {
    }
}
