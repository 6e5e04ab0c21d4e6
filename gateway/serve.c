#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "clock.h"
#include "groups.h"
#include "http.h"
#include "listener.h"
#include "log.h"
#include "migrate.h"
#include "page.h"
#include "publisher.h"
#include "readers.h"
#include "relay.h"
#include "replay.h"
#include "retention.h"
#include "ring.h"
#include "serve.h"
#include "service.h"
#include "shard.h"
#include "sockets.h"
#include "stats.h"
#include "thread.h"

/* Descriptors that are no places: sockets, epoll sets, eventfds, the database's, and those of
 * connections over the limit. */
#define OTHER_FDS(shards) (64 + 16 * (shards) + SHARD_SURPLUS_MAX)

/* Connections that have not said anything yet. */
#define GUESTS_MAX ((size_t)8192)

/* Connections that read, and who may wait for one with a question about one event. */
#define READERS          2
#define READERS_JOBS_MAX 10000

/* Pages of events that are on their way to returning subscribers, all together. */
#define REPLAY_BYTES_MAX (16 * MIB)

/* How long a relayed channel is listened to after the last has left: who leaves often comes
 * back, because a page is read anew or a connection breaks. */
#define RELAY_GRACE_USEC (10 * USEC_PER_SEC)

/* A few streams are sent away at this pace, so that nobody waits the whole drain time for
 * them; many at the pace that fills it. */
#define GOODBYE_SPACING_USEC (50 * USEC_PER_MSEC)

/* While it drains: how often to look whether everybody has gone. */
#define DRAIN_LOOK_MSEC 20

/* Without a sign of life for so long a thread is stuck, whatever the watchdog's time. Those
 * that talk to PostgreSQL may wait for a name server for the better part of a minute. */
#define SHARD_STUCK_USEC (10 * USEC_PER_SEC)
#define DOOR_STUCK_USEC  (60 * USEC_PER_SEC)

struct serve {
    const struct config *config;
    unsigned shard_count;
    int signal_fd;
    int news_fd; /* eventfd: listener_status() has changed */
    int stop_fd; /* eventfd: whoever waits for the database gives up */
    struct stats *stats;
    struct sockets *sockets; /* opened here; NULL when systemd handed them over */
    int listen_fds[SERVICE_SOCKETS_MAX];
    size_t listen_fd_count;
    struct ring *ring;
    struct relay *relay; /* NULL: no channel is relayed */
    struct listener *listener;
    struct publisher *publisher;
    struct readers *readers;
    struct replay *replay;
    struct retention *retention;
    struct groups *groups;
    struct page *page;
    struct http *http;
    struct shards *shards;
    bool ready;
    bool replaced; /* the database is another one now */
};

/* -- building -- */

/* Signals come as reads; and none of the threads started later takes one. */
static int take_signals(struct serve *serve, struct err *err)
{
    sigset_t signals;

    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGHUP);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)pthread_sigmask(SIG_BLOCK, &signals, NULL);

    serve->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    serve->news_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    serve->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (serve->signal_fd < 0 || serve->news_fd < 0 || serve->stop_fd < 0)
        return err_set(err, -errno, "could not prepare for signals: %s", strerror(errno));
    return 0;
}

/* How many connections there may be, and how many silent ones beside them. */
struct places {
    size_t connections;
    size_t guests;
};

/* As many file descriptors as may be had, and no more places than there are descriptors.
 * What is left over is for those who have not said anything yet, but one in 32 at least. */
static struct places count_places(const struct serve *serve)
{
    const size_t wanted = serve->config->limits.connections_count;
    const size_t others = OTHER_FDS(serve->shard_count);
    struct places places = {.connections = wanted, .guests = GUESTS_MAX};
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return places;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max >= wanted + GUESTS_MAX + others) /* or RLIM_INFINITY */
        return places;

    const size_t possible = limit.rlim_max > others + 16 ? limit.rlim_max - others : 16;
    places.guests = MIN(possible - MIN(wanted, possible), GUESTS_MAX);
    places.guests = MAX(places.guests, MIN(possible / 32, GUESTS_MAX));
    places.connections = MIN(possible - places.guests, wanted);
    if (places.connections < wanted)
        log_warning(
            "[limits] connections is %zu, but with %zu file descriptors there can "
            "be %zu; raise LimitNOFILE= or ulimit -n",
            wanted, (size_t)limit.rlim_max, places.connections);
    return places;
}

static int open_sockets(struct serve *serve, struct err *err)
{
    const int handed = service_listen_fds(serve->listen_fds, err);

    if (handed < 0)
        return handed;
    serve->listen_fd_count = (size_t)handed;
    if (handed > 0)
        return 0;

    const int result = sockets_open(serve->config->http.listen, &serve->sockets, err);
    if (result == -EINVAL)
        return config_blame(serve->config, "http", "listen", result, err);
    if (result < 0)
        return result;
    serve->listen_fd_count = sockets_count(serve->sockets);
    for (size_t i = 0; i < serve->listen_fd_count; i++)
        serve->listen_fds[i] = sockets_fd(serve->sockets, i);
    return 0;
}

static int migrate_first(void *argument, struct err *err)
{
    const struct serve *serve = argument;
    const int result = migrate_up(
        &(struct migrate_settings){
            .dsn = serve->config->database.dsn,
            .password = serve->config->database.password,
            .dir = serve->config->database.migrations_dir,
            .stop_fd = serve->stop_fd,
        },
        NULL, err);

    if (result == 0)
        log_notice("the database's schema is up to date");
    return result;
}

/* libpq's defaults are hardly ever meant by somebody who has set nothing at all. */
static void tell_missing_dsn(const struct config *config)
{
    static const char *const variables[] = {"PGHOST", "PGHOSTADDR", "PGSERVICE",
                                            "PGDATABASE", "PGPORT"};

    for (size_t i = 0; i < ARRAY_SIZE(variables); i++) {
        if (getenv(variables[i]) != NULL)
            return;
    }
    if (config->database.dsn[0] == '\0')
        log_warning(
            "no database is configured: trying libpq's defaults; set DATABASE_URL, "
            "or dsn in section [database] of the ini file");
}

static void listener_changed(void *argument)
{
    static const uint64_t one = 1;
    const struct serve *serve = argument;

    (void)!write(serve->news_fd, &one, sizeof(one));
}

static int build_relay(struct serve *serve, struct err *err)
{
    const struct config *config = serve->config;

    if (config->channels.relay[0] == '\0')
        return 0;
    const int result = relay_check(config->channels.relay, err);
    if (result < 0)
        return config_blame(config, "channels", "relay", result, err);
    serve->relay = relay_new(&(struct relay_settings){
        .patterns = config->channels.relay,
        .channels_max = config->channels.relay_max_count,
        .grace_usec = RELAY_GRACE_USEC,
        .stats = serve->stats,
    });
    return serve->relay != NULL ? 0 : err_set(err, -ENOMEM, "no memory for the relay");
}

static int build_doors(struct serve *serve, struct err *err)
{
    const struct config *config = serve->config;

    serve->stats = stats_new();
    serve->ring = ring_new(config->ring.bytes, serve->shard_count);
    if (serve->stats == NULL || serve->ring == NULL)
        return err_set(err, -ENOMEM, "no memory for the ring");
    const int result = build_relay(serve, err);
    if (result < 0)
        return result;

    serve->listener = listener_new(&(struct listener_settings){
        .dsn = config->database.listen_dsn,
        .password = config->database.password,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .ring = serve->ring,
        .relay = serve->relay,
        .relay_exact = config->channels.relay_exact,
        .recent_bytes = config->ring.bytes / 2,
        .stats = serve->stats,
        .prepare = config->database.migrate_on_start ? migrate_first : NULL,
        .changed = listener_changed,
        .argument = serve,
    });
    serve->publisher = publisher_new(&(struct publisher_settings){
        .dsn = config->database.dsn,
        .password = config->database.password,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .queue_bytes = config->limits.publish_queue_bytes,
        .stats = serve->stats,
    });
    serve->readers = readers_new(&(struct readers_settings){
        .dsn = config->database.dsn,
        .password = config->database.password,
        .count = READERS,
        .jobs_max = READERS_JOBS_MAX,
    });
    serve->replay = replay_new(&(struct replay_settings){
        .readers = serve->readers,
        .stats = serve->stats,
        .bytes_max = REPLAY_BYTES_MAX,
    });
    serve->retention = retention_new(&(struct retention_settings){
        .dsn = config->database.dsn,
        .password = config->database.password,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .events_usec = config->events.retention_usec,
        .stats = serve->stats,
    });
    serve->groups = groups_new(&(struct groups_settings){
        .dsn = config->database.listen_dsn,
        .password = config->database.password,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .consumers_max = config->limits.consumers_count,
        .waits_max = config->limits.waits_count,
        .groups_max = config->limits.groups_count,
        .stats = serve->stats,
    });
    if (serve->listener == NULL || serve->publisher == NULL || serve->readers == NULL ||
        serve->replay == NULL || serve->retention == NULL || serve->groups == NULL)
        return err_set(err, -ENOMEM, "no memory for the database's threads");
    return 0;
}

static int build_front(struct serve *serve, struct err *err)
{
    const struct config *config = serve->config;

    serve->page = page_new(config->http.static_dir, err);
    if (serve->page == NULL)
        return -ENOENT;
    serve->http = http_new(&(struct http_settings){
        .stats = serve->stats,
        .listener = serve->listener,
        .publisher = serve->publisher,
        .readers = serve->readers,
        .relay = serve->relay,
        .groups = serve->groups,
        .page = serve->page,
        .cors_origins = config->http.cors_origins,
        .retry_usec = config->stream.retry_usec,
        .header_max = config->limits.header_bytes,
        .body_max = config->limits.body_bytes,
        .body_time_usec = config->limits.body_time_usec,
        .keep_alive_usec = config->limits.keep_alive_usec,
        .publish_time_usec = config->limits.publish_time_usec,
        .channels_max = config->stream.channels_count,
    });
    if (serve->http == NULL)
        return err_set(err, -ENOMEM, "no memory for the HTTP front");
    return 0;
}

static int build_shards(struct serve *serve, struct err *err)
{
    const struct config *config = serve->config;
    const uint64_t max_age = config->stream.max_age_usec;
    const struct places places = count_places(serve);

    serve->shards = shards_new(
        &(struct shard_settings){
            .count = serve->shard_count,
            .listen_fds = serve->listen_fds,
            .listen_fd_count = serve->listen_fd_count,
            .ring = serve->ring,
            .replay = serve->replay,
            .relay = serve->relay,
            .groups = serve->groups,
            .stats = serve->stats,
            .timing = {.heartbeat_usec = config->stream.heartbeat_usec,
                       .retry_usec = config->stream.retry_usec,
                       .max_age_usec = max_age > 0 ? max_age : CLOCK_NEVER,
                       .idle_close_usec = config->stream.idle_close_usec},
            .header_max = config->limits.header_bytes,
            .header_time_usec = config->limits.header_time_usec,
            .connections_max = places.connections,
            .answer_extra_bytes = config->http.cors_origins[0] != '\0' ? 256 : 0,
            .guests_max = MAX(places.guests / serve->shard_count, 1),
            .front = {.answer = http_answer,
                      .completed = http_completed,
                      .unescape = http_unescape,
                      .begun = http_begun,
                      .argument = serve->http},
        },
        err);
    return serve->shards != NULL ? 0 : -ENOMEM;
}

/* The sockets first: a port that is taken ends the start before anything has begun. */
static int build(struct serve *serve, struct err *err)
{
    int result = take_signals(serve, err);

    if (result == 0)
        result = open_sockets(serve, err);
    if (result == 0)
        result = build_doors(serve, err);
    if (result == 0)
        result = build_front(serve, err);
    if (result == 0)
        result = build_shards(serve, err);
    return result;
}

static int start(struct serve *serve, struct err *err)
{
    tell_missing_dsn(serve->config);
    int result = publisher_start(serve->publisher, err);

    if (result == 0)
        result = readers_start(serve->readers, err);
    if (result == 0)
        result = listener_start(serve->listener, err);
    if (result == 0)
        result = retention_start(serve->retention, err);
    if (result == 0)
        result = groups_start(serve->groups, err);
    if (result == 0)
        result = shards_start(serve->shards, err);
    if (result < 0)
        return result;

    for (size_t i = 0; i < serve->listen_fd_count; i++) {
        char address[SOCKETS_TEXT_MAX];

        sockets_describe(serve->listen_fds[i], address);
        log_notice("listening on %s", address);
    }
    return 0;
}

/* -- watching -- */

/* Ready is said once, when notifications are listened to; the status says how it is now. */
static void tell_state(struct serve *serve)
{
    struct listener_status status;
    uint64_t news;

    (void)!read(serve->news_fd, &news, sizeof(news));
    listener_status(serve->listener, &status);
    serve->replaced = status.replaced;
    if (status.listening && !serve->ready) {
        service_ready();
        serve->ready = true;
    }
    if (status.listening && status.writable)
        service_status("serving");
    else
        service_status("%s", status.reason);
}

static bool is_alive(const struct thread *thread, uint64_t since_usec)
{
    return thread_last_beat(thread) >= since_usec;
}

static void feed_watchdog(const struct serve *serve)
{
    const uint64_t now = clock_usec();
    const uint64_t doors_since = now - MIN(now, DOOR_STUCK_USEC);
    const uint64_t shards_since = now - MIN(now, SHARD_STUCK_USEC);
    bool alive = is_alive(listener_thread(serve->listener), doors_since) &&
                 is_alive(publisher_thread(serve->publisher), doors_since) &&
                 is_alive(retention_thread(serve->retention), doors_since) &&
                 is_alive(groups_thread(serve->groups), doors_since);

    for (unsigned i = 0; i < readers_count(serve->readers); i++)
        alive = alive && is_alive(readers_thread(serve->readers, i), doors_since);
    for (unsigned i = 0; i < serve->shard_count; i++)
        alive = alive && is_alive(shards_thread(serve->shards, i), shards_since);
    if (alive)
        service_watchdog();
    else
        log_error("a thread shows no sign of life; the watchdog is not fed");
}

/* Waits for a signal that ends the program, or for a reason to end. */
static void watch(struct serve *serve)
{
    const uint64_t watchdog_usec = service_watchdog_usec();
    const uint64_t interval = watchdog_usec > 0 ? watchdog_usec / 2 : CLOCK_NEVER;
    uint64_t due = watchdog_usec > 0 ? 0 : CLOCK_NEVER;

    for (;;) {
        struct pollfd fds[] = {{.fd = serve->signal_fd, .events = POLLIN},
                               {.fd = serve->news_fd, .events = POLLIN}};
        struct signalfd_siginfo info;

        if (clock_usec() >= due) {
            feed_watchdog(serve);
            due = clock_usec() + interval;
        }
        (void)poll(fds, ARRAY_SIZE(fds), clock_timeout_msec(due));
        if (fds[1].revents != 0)
            tell_state(serve);
        if (serve->replaced)
            return;
        if (read(serve->signal_fd, &info, sizeof(info)) != sizeof(info))
            continue;
        if (info.ssi_signo != SIGHUP)
            return;
        log_notice("SIGHUP: settings are read at the start only; restart to change them");
    }
}

/* -- taking down -- */

static bool signal_came(const struct serve *serve)
{
    struct signalfd_siginfo info;

    return read(serve->signal_fd, &info, sizeof(info)) == sizeof(info);
}

/* Nobody new comes in; those who are there are given the time to leave. */
static void drain(struct serve *serve)
{
    const uint64_t drain_usec = serve->config->server.drain_usec;
    const uint64_t due = clock_usec() + drain_usec;
    const int64_t streams = stats_gauge_value(serve->stats, STATS_STREAMS);
    const uint64_t spread = (uint64_t)MAX(streams, 0) * GOODBYE_SPACING_USEC;

    log_notice("ending: %zu connections have up to %.1f s",
               shards_connections(serve->shards), (double)drain_usec / USEC_PER_SEC);
    service_stopping();
    service_status("ending");
    shards_drain(serve->shards, MIN(spread, drain_usec * 4 / 5));
    while (!shards_are_empty(serve->shards) && clock_usec() < due) {
        if (signal_came(serve)) {
            log_notice("asked again: ending at once");
            return;
        }
        (void)poll(NULL, 0, DRAIN_LOOK_MSEC);
    }
}

/* Those who answer go first, so that no sleeping request is left without an answer. */
static void stop(struct serve *serve)
{
    static const uint64_t one = 1;

    (void)!write(serve->stop_fd, &one, sizeof(one));
    publisher_stop(serve->publisher, USEC_PER_SEC);
    readers_stop(serve->readers);
    groups_stop(serve->groups, USEC_PER_SEC);
    retention_stop(serve->retention);
    listener_stop(serve->listener);
    shards_stop(serve->shards);
}

static void take_down(struct serve *serve)
{
    shards_free(serve->shards);
    http_free(serve->http);
    page_free(serve->page);
    groups_free(serve->groups);
    retention_free(serve->retention);
    replay_free(serve->replay);
    readers_free(serve->readers);
    publisher_free(serve->publisher);
    listener_free(serve->listener);
    relay_free(serve->relay);
    ring_free(serve->ring);
    sockets_close(serve->sockets);
    stats_free(serve->stats);
    close(serve->signal_fd);
    close(serve->news_fd);
    close(serve->stop_fd);
}

int serve_run(const struct config *config, struct err *err)
{
    struct serve serve = {
        .config = config,
        .shard_count = config_shards(config),
        .signal_fd = -1,
        .news_fd = -1,
        .stop_fd = -1,
    };
    int result = build(&serve, err);

    if (result == 0) {
        result = start(&serve, err);
        if (result == 0) {
            watch(&serve);
            drain(&serve);
        }
        if (serve.replaced)
            result = err_set(err, -ESTALE,
                             "the database's schema was made anew, and its "
                             "events begin with low numbers again; start the "
                             "gateway anew, too");
        stop(&serve);
    }
    take_down(&serve);
    if (result == 0)
        log_notice("ended");
    return result;
}
