#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "daemons.h"
#include "log.h"

/* libmicrohttpd is run until it has nothing to do, but for others' sake not for ever. */
#define RUNS_MAX 16

/* The largest memory that libmicrohttpd has for a connection is this at the least, which is
 * its own default. */
#define POOL_LARGE (32 * KIB)

/* And what it allocates besides: counted on 0.9.75. */
#define MHD_CONNECTION_BYTES ((size_t)560)

/* Several for streams, and several for all other requests, the smallest pool first. */
enum daemon_kind { STREAMS = 0, WORK = 5, DAEMON_COUNT = 7 };

struct daemon {
    struct poller_source source;
    struct daemons *all; /* [const] */
    struct MHD_Daemon *mhd;
    size_t pool_bytes; /* [const] of each connection */
    bool pending;      /* it has something to do */
};

struct daemons {
    struct daemons_settings settings; /* [const] */
    _Atomic size_t count;             /* [atomic] connections */
    struct connection *connections;
    struct daemon daemons[DAEMON_COUNT];
};

/* -- connections come and go -- */

/* The smallest pool that the request fits in, with what libmicrohttpd makes of it: the
 * header as it came, its cookies once more, a record for each of its fields (the request line
 * and the blank one are none), and the answer's header. On 0.9.75 no request was found that
 * needs more than by this account. Chrome's come to about 1870. */
static struct daemon *pick_daemon(struct daemons *daemons,
                                  const struct lobby_arrival *arrival)
{
    const size_t need = arrival->header_len + arrival->cookie_len +
                        64 * (arrival->field_count - 2) + 224 +
                        daemons->settings.answer_extra_bytes;
    const size_t last = arrival->wants_stream ? WORK - 1 : DAEMON_COUNT - 1;
    size_t kind = arrival->wants_stream ? STREAMS : WORK;

    while (kind < last && daemons->daemons[kind].pool_bytes < need)
        kind++;
    return &daemons->daemons[kind];
}

static size_t connections_of_all_shards(const struct daemons *daemons)
{
    return atomic_load_explicit(daemons->settings.connections, memory_order_relaxed);
}

void daemons_take(struct daemons *daemons, const struct lobby_arrival *arrival)
{
    struct daemon *daemon = pick_daemon(daemons, arrival);
    const struct daemons_settings *settings = &daemons->settings;

    if (connections_of_all_shards(daemons) >=
        settings->connections_max + settings->surplus_max) {
        stats_add(settings->stats, STATS_CONNECTIONS_REFUSED, 1);
        close(arrival->fd);
        return;
    }
    /* It closes the descriptor itself when it fails. */
    (void)MHD_add_connection(daemon->mhd, arrival->fd,
                             (const struct sockaddr *)&arrival->address,
                             arrival->address_len);
    daemon->pending = true;
}

static void count_connection(const struct daemon *daemon, int change)
{
    struct daemons *daemons = daemon->all;
    struct stats *stats = daemons->settings.stats;
    const size_t bytes =
        daemon->pool_bytes + MHD_CONNECTION_BYTES + sizeof(struct connection);

    atomic_fetch_add_explicit(daemons->settings.connections, (size_t)change,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&daemons->count, (size_t)change, memory_order_relaxed);
    /* The number last: whoever sees it sees the memory with it. */
    stats_gauge_add(stats, STATS_CONNECTION_MEMORY, change * (int64_t)bytes);
    stats_gauge_add(stats, STATS_CONNECTIONS, change);
}

/* libmicrohttpd tells of a connection: within MHD_add_connection(), or when it is run. */
static void connection_changed(void *argument, struct MHD_Connection *mhd, void **context,
                               enum MHD_ConnectionNotificationCode change)
{
    struct daemon *daemon = argument;
    struct daemons *daemons = daemon->all;
    const struct daemons_settings *settings = &daemons->settings;

    if (change != MHD_CONNECTION_NOTIFY_STARTED) {
        connection_free(*context);
        *context = NULL;
        count_connection(daemon, -1);
        return;
    }
    *context = connection_new(
        &(struct connection){
            .mhd = mhd,
            .shard = settings->shard,
            .wheel = settings->wheel,
            .work = &daemon->pending,
            .stats = settings->stats,
            .surplus = connections_of_all_shards(daemons) >= settings->connections_max,
        },
        &daemons->connections);
    /* Its header is there; but it may be nothing but empty lines. */
    if (*context != NULL)
        connection_allow(*context, settings->header_time_usec);
    count_connection(daemon, 1);
}

void daemons_leave(struct daemons *daemons)
{
    for (struct connection *connection = daemons->connections; connection != NULL;
         connection = connection->next)
        connection_leave(connection);
}

size_t daemons_connections(const struct daemons *daemons)
{
    return atomic_load_explicit(&daemons->count, memory_order_relaxed);
}

/* -- work -- */

static void daemon_ready(struct poller_source *source, uint32_t events)
{
    (void)events;
    CONTAINER_OF(source, struct daemon, source)->pending = true;
}

bool daemons_have_work(const struct daemons *daemons)
{
    for (size_t kind = 0; kind < DAEMON_COUNT; kind++) {
        if (daemons->daemons[kind].pending)
            return true;
    }
    return false;
}

static bool has_more(struct daemon *daemon)
{
    MHD_UNSIGNED_LONG_LONG msec;

    return MHD_get_timeout(daemon->mhd, &msec) == MHD_YES && msec == 0;
}

bool daemons_run(struct daemons *daemons)
{
    bool more = false;

    for (size_t kind = 0; kind < DAEMON_COUNT; kind++) {
        struct daemon *daemon = &daemons->daemons[kind];

        for (int i = 0; i < RUNS_MAX && daemon->pending; i++) {
            (void)MHD_run(daemon->mhd);
            daemon->pending = has_more(daemon);
        }
        more = more || daemon->pending;
    }
    return more;
}

void daemons_run_all(struct daemons *daemons)
{
    for (size_t kind = 0; kind < DAEMON_COUNT; kind++)
        daemons->daemons[kind].pending = true;
    (void)daemons_run(daemons);
}

/* -- starting and stopping -- */

PRINTF_LIKE(2, 0)
static void daemon_logs(void *argument, const char *format, va_list arguments)
{
    char line[256];

    (void)argument;
    if (vsnprintf(line, sizeof(line), format, arguments) > 0) {
        line[strcspn(line, "\r\n")] = '\0';
        log_debug("libmicrohttpd: %s", line);
    }
}

static int daemon_start(struct daemon *daemon)
{
    const struct daemons_settings *settings = &daemon->all->settings;
    const struct daemons_front *front = &settings->front;
    const size_t limit = settings->connections_max + settings->surplus_max;

    daemon->source = POLLER_SOURCE(daemon_ready);
    daemon->mhd = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET |
            MHD_USE_TURBO | MHD_USE_ERROR_LOG,
        0, NULL, NULL, front->answer, front->argument, MHD_OPTION_EXTERNAL_LOGGER,
        daemon_logs, NULL, MHD_OPTION_CONNECTION_LIMIT, (unsigned)limit,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, daemon->pool_bytes,
        MHD_OPTION_CONNECTION_TIMEOUT, 0U, MHD_OPTION_UNESCAPE_CALLBACK, front->unescape,
        NULL, MHD_OPTION_URI_LOG_CALLBACK, front->begun, front->argument,
        MHD_OPTION_NOTIFY_CONNECTION, connection_changed, daemon,
        MHD_OPTION_NOTIFY_COMPLETED, front->completed, front->argument, MHD_OPTION_END);
    if (daemon->mhd == NULL)
        return -ENOMEM;

    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(daemon->mhd, MHD_DAEMON_INFO_EPOLL_FD);
    if (info == NULL)
        return -ENOTSUP;
    return poller_add(settings->poller, &daemon->source, info->epoll_fd, EPOLLIN);
}

static int daemons_start(struct daemons *daemons)
{
    const size_t header_max = daemons->settings.header_max;
    /* By the account of pick_daemon(), and with what the lobby lets through. */
    const size_t large = MAX(POOL_LARGE, 5 * header_max);
    /* A kept connection has the pool that its first request needed, and others may need
     * more: so there is room for the largest header, if not for as many fields and cookies
     * as may be in it (those libmicrohttpd answers 431). No more than that, because it wipes
     * the whole pool after each request: 80 KiB would be a quarter of what a POST costs a
     * shard. */
    const size_t work = MAX(POOL_LARGE, 2 * header_max);
    /* A stream keeps its pool for as long as it lasts: programs fit into the first, browsers
     * into the second, browsers with cookies into the third. */
    const size_t pools[DAEMON_COUNT] = {1 * KIB, 2 * KIB, 4 * KIB, 8 * KIB,
                                        large,   work,    large};

    for (size_t kind = 0; kind < DAEMON_COUNT; kind++) {
        struct daemon *daemon = &daemons->daemons[kind];

        daemon->all = daemons;
        daemon->pool_bytes = pools[kind];
        const int result = daemon_start(daemon);
        if (result < 0)
            return result;
    }
    return 0;
}

struct daemons *daemons_new(const struct daemons_settings *settings, struct err *err)
{
    struct daemons *daemons = calloc(1, sizeof(*daemons));
    int result = -ENOMEM;

    if (daemons != NULL) {
        daemons->settings = *settings;
        result = daemons_start(daemons);
    }
    if (result < 0) {
        (void)err_set(err, result, "could not start libmicrohttpd: %s",
                      strerror(-result));
        daemons_free(daemons);
        return NULL;
    }
    return daemons;
}

void daemons_stop(struct daemons *daemons)
{
    for (size_t kind = 0; kind < DAEMON_COUNT; kind++) {
        struct daemon *daemon = &daemons->daemons[kind];

        if (daemon->mhd == NULL)
            continue;
        poller_remove(daemons->settings.poller, &daemon->source);
        MHD_stop_daemon(daemon->mhd);
        daemon->mhd = NULL;
    }
}

void daemons_free(struct daemons *daemons)
{
    if (daemons == NULL)
        return;
    daemons_stop(daemons);
    free(daemons);
}
