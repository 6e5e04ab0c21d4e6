#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "lobby.h"
#include "porch.h"
#include "shard.h"
#include "thread.h"
#include "wheel.h"

/* A drain begins: the time that those in the lobby have for their first header. */
#define LOBBY_GRACE_USEC (500 * USEC_PER_MSEC)

/* In one turn its connections have no more time than this, however many of them are ready: those
 * who come in a crowd wait for the next event, not the next event for them. */
#define CROWD_USEC USEC_PER_MSEC

/* A shard shows that it is alive at least so often. */
#define SLEEP_MAX_MSEC 1000

/* At the end mail is delivered, and libmicrohttpd run, so many times. */
#define LAST_ROUNDS 16

struct shard {
    struct shards *all;     /* [const] */
    struct thread thread;   /* [main] */
    struct mailbox mailbox; /* any thread may post */
    struct mail drain_mail; /* [main] until posted */
    struct mail stop_mail;  /* [main] until posted */
    _Atomic size_t guests;  /* [atomic] in the lobby; lowered once a turn */
    _Atomic size_t parcels; /* [atomic] descriptors on their way to it */
    struct ring_reader *reader;
    struct poller
        *poller; /* what nobody's crowd keeps waiting, and the crowd as one of it */
    struct poller *crowd; /* guests and streams */
    struct wheel *wheel;
    struct porch *porch;
    struct lobby *lobby;
    struct fanout *fanout;
    struct daemons *daemons; /* [const] */
    struct wheel_timer lobby_closes;
    struct poller_source mailbox_source;
    struct poller_source ring_source;
    struct poller_source crowd_source;
    bool crowd_is_ready;
    bool draining;
    bool stopping;
};

struct shards {
    struct shard_settings settings; /* [const] */
    _Atomic size_t connections;     /* [atomic] over all shards */
    _Atomic unsigned closed_count;  /* [atomic] shards that accept nobody any more */
    _Atomic uint64_t spread_usec;   /* [atomic] written before drain_mail is posted */
    struct shard *shards;           /* [const] */
    struct tours *tours;            /* [const] */
    struct fanout_lags *lags;       /* [const] */
    unsigned count;                 /* [const] */
};

/* A descriptor on its way to another shard. */
struct parcel {
    struct mail mail;
    struct shard *shard;
    int fd;
    socklen_t address_len;
    struct sockaddr_storage address;
};

static unsigned index_of(const struct shard *shard)
{
    return (unsigned)(shard - shard->all->shards);
}

/* -- connections arrive -- */

/* Counted before anybody can think that nobody is there; see shards_are_empty(). */
static void let_in(struct shard *shard, int fd, const struct sockaddr_storage *address,
                   socklen_t address_len)
{
    atomic_fetch_add_explicit(&shard->guests, 1, memory_order_relaxed);
    lobby_enter(shard->lobby, fd, (const struct sockaddr *)address, address_len);
}

static void parcel_delivered(struct mail *mail)
{
    struct parcel *parcel = CONTAINER_OF(mail, struct parcel, mail);
    struct shard *shard = parcel->shard;

    let_in(shard, parcel->fd, &parcel->address, parcel->address_len);
    free(parcel);
    atomic_fetch_sub_explicit(&shard->parcels, 1, memory_order_release);
}

/* Who is there, and who is on the way. */
static size_t load_of(const struct shard *shard)
{
    return daemons_connections(shard->daemons) +
           atomic_load_explicit(&shard->guests, memory_order_relaxed) +
           atomic_load_explicit(&shard->parcels, memory_order_relaxed);
}

/* Long-lived connections stay where they first come to, so each goes to the shard that
 * has the fewest: the kernel's own choice among those who wait for one socket is not
 * even. */
static struct shard *least_loaded(struct shard *self)
{
    struct shard *best = self;
    size_t best_load = load_of(self);

    for (unsigned i = 0; i < self->all->count; i++) {
        struct shard *shard = &self->all->shards[i];
        const size_t load = load_of(shard);

        if (load < best_load) {
            best = shard;
            best_load = load;
        }
    }
    return best;
}

static void somebody_came(void *argument, int fd, const struct sockaddr_storage *address,
                          socklen_t address_len)
{
    struct shard *self = argument;
    struct shard *shard = least_loaded(self);

    stats_add(self->all->settings.stats, STATS_CONNECTIONS_ACCEPTED, 1);
    if (shard == self) {
        let_in(self, fd, address, address_len);
        return;
    }

    struct parcel *parcel = malloc(sizeof(*parcel));
    if (parcel == NULL) {
        close(fd);
        return;
    }
    *parcel = (struct parcel){
        .mail.deliver = parcel_delivered,
        .shard = shard,
        .fd = fd,
        .address_len = address_len,
        .address = *address,
    };
    atomic_fetch_add_explicit(&shard->parcels, 1, memory_order_relaxed);
    mailbox_post(&shard->mailbox, &parcel->mail);
}

static void arrived(void *argument, const struct lobby_arrival *arrival)
{
    struct shard *shard = argument;

    daemons_take(shard->daemons, arrival);
}

/* -- the loop -- */

static void crowd_ready(struct poller_source *source, uint32_t events)
{
    (void)events;
    CONTAINER_OF(source, struct shard, crowd_source)->crowd_is_ready = true;
}

/* Those who are left over are reported in the next turn, behind news, mail and newcomers. A guest
 * who is handed on has cost little yet, and will cost libmicrohttpd much: that counts, too. */
static void serve_crowd(struct shard *shard)
{
    if (!shard->crowd_is_ready)
        return;
    shard->crowd_is_ready = false;
    const uint64_t until = clock_usec() + CROWD_USEC;
    while (poller_wait(shard->crowd, 0) && !daemons_have_work(shard->daemons) &&
           clock_usec() < until) {
    }
}

static void sleep_until_something(struct shard *shard)
{
    if (!ring_sleep(shard->reader, fanout_position(shard->fanout)))
        return;
    const int timeout = clock_timeout_msec(wheel_next_usec(shard->wheel));
    (void)poller_wait(shard->poller,
                      timeout < 0 ? SLEEP_MAX_MSEC : MIN(timeout, SLEEP_MAX_MSEC));
    ring_awake(shard->reader);
}

static void take_turn(struct shard *shard)
{
    const uint64_t now = clock_usec();

    thread_beat();
    fanout_turn(shard->fanout, now);
    wheel_advance(shard->wheel, now);

    const bool more_events = fanout_round(shard->fanout);
    const bool more_work = daemons_run(shard->daemons);

    /* Those who have left the lobby are connections by now, for whoever sees this. */
    atomic_store_explicit(&shard->guests, lobby_count(shard->lobby),
                          memory_order_release);

    if (more_events || more_work)
        (void)poller_wait(shard->poller, 0);
    else
        sleep_until_something(shard);
    serve_crowd(shard);
}

static void lobby_closes(struct wheel_timer *timer)
{
    lobby_clear(CONTAINER_OF(timer, struct shard, lobby_closes)->lobby);
}

static void drain_delivered(struct mail *mail)
{
    struct shard *shard = CONTAINER_OF(mail, struct shard, drain_mail);

    shard->draining = true;
    porch_close(shard->porch);
    atomic_fetch_add_explicit(&shard->all->closed_count, 1, memory_order_release);
    /* Who has been let in may still say what it wants, if it is quick. */
    wheel_set(shard->wheel, &shard->lobby_closes, clock_usec() + LOBBY_GRACE_USEC);
    daemons_leave(shard->daemons);
    fanout_drain(shard->fanout,
                 atomic_load_explicit(&shard->all->spread_usec, memory_order_relaxed));
}

static void stop_delivered(struct mail *mail)
{
    CONTAINER_OF(mail, struct shard, stop_mail)->stopping = true;
}

/* A daemon must not be stopped while a connection of its own sleeps. Streams are ended.
 * Requests have their answer by now, or get it at once, as a letter: also those that
 * libmicrohttpd reads to their end only here. */
static void wake_everybody(struct shard *shard)
{
    fanout_close(shard->fanout);
    for (int i = 0; i < LAST_ROUNDS; i++) {
        (void)mailbox_deliver(&shard->mailbox);
        daemons_run_all(shard->daemons);
    }
    (void)mailbox_deliver(&shard->mailbox);
}

static void shard_run(void *argument)
{
    struct shard *shard = argument;

    THREAD_ASSERT(THREAD_SHARD);
    tours_join(shard->all->tours, index_of(shard));
    while (!shard->stopping)
        take_turn(shard);

    porch_close(shard->porch);
    lobby_clear(shard->lobby);
    wake_everybody(shard);
    daemons_stop(shard->daemons);
}

/* -- building and taking down -- */

static void mail_came(struct poller_source *source, uint32_t events)
{
    (void)events;
    (void)mailbox_deliver(&CONTAINER_OF(source, struct shard, mailbox_source)->mailbox);
}

static void ring_rang(struct poller_source *source, uint32_t events)
{
    /* Waking up is all it is for: take_turn() looks into the ring. */
    (void)source;
    (void)events;
}

static void post(void *argument, struct mail *mail)
{
    shard_post(argument, mail);
}

static int make_rooms(struct shard *shard, struct err *err)
{
    const struct shard_settings *settings = &shard->all->settings;

    shard->poller = poller_new(err);
    if (shard->poller == NULL)
        return -ENOMEM;
    shard->crowd = poller_new(err);
    if (shard->crowd == NULL)
        return -ENOMEM;
    shard->wheel = wheel_new(clock_usec());
    shard->fanout = fanout_new(&(struct fanout_settings){
        .reader = shard->reader,
        .poller = shard->crowd,
        .stats = settings->stats,
        .timing = settings->timing,
        .replay = settings->replay,
        .relay = settings->relay,
        .groups = settings->groups,
        .post = post,
        .argument = shard,
        .lags = shard->all->lags,
        .index = index_of(shard),
    });
    if (shard->wheel == NULL || shard->fanout == NULL)
        return err_set(err, -ENOMEM, "no memory for a shard");
    shard->lobby = lobby_new(&(struct lobby_settings){
        .poller = shard->crowd,
        .wheel = shard->wheel,
        .stats = settings->stats,
        .header_max = settings->header_max,
        .header_time_usec = settings->header_time_usec,
        .guests_max = settings->guests_max,
        .arrived = arrived,
        .argument = shard,
    });
    shard->porch = porch_new(&(struct porch_settings){
        .poller = shard->poller,
        .wheel = shard->wheel,
        .listen_fds = settings->listen_fds,
        .listen_fd_count = settings->listen_fd_count,
        .came = somebody_came,
        .argument = shard,
    });
    if (shard->lobby == NULL || shard->porch == NULL)
        return err_set(err, -ENOMEM, "no memory for a shard");
    tours_set(shard->all->tours, index_of(shard), &shard->mailbox, shard->fanout);
    return 0;
}

static int make_daemons(struct shard *shard, struct err *err)
{
    const struct shard_settings *settings = &shard->all->settings;

    shard->daemons = daemons_new(
        &(struct daemons_settings){
            .poller = shard->poller,
            .wheel = shard->wheel,
            .stats = settings->stats,
            .shard = shard,
            .connections = &shard->all->connections,
            .connections_max = settings->connections_max,
            .surplus_max = SHARD_SURPLUS_MAX,
            .header_max = settings->header_max,
            .header_time_usec = settings->header_time_usec,
            .answer_extra_bytes = settings->answer_extra_bytes,
            .front = settings->front,
        },
        err);
    return shard->daemons != NULL ? 0 : -ENOMEM;
}

static int watch_sources(struct shard *shard, struct err *err)
{
    shard->lobby_closes.fire = lobby_closes;
    shard->mailbox_source = POLLER_SOURCE(mail_came);
    shard->ring_source = POLLER_SOURCE(ring_rang);
    shard->crowd_source = POLLER_SOURCE(crowd_ready);

    int result = poller_add(shard->poller, &shard->mailbox_source,
                            mailbox_fd(&shard->mailbox), EPOLLIN);
    if (result == 0)
        result = poller_add(shard->poller, &shard->ring_source,
                            ring_reader_fd(shard->reader), EPOLLIN);
    if (result == 0)
        result = poller_add(shard->poller, &shard->crowd_source, poller_fd(shard->crowd),
                            EPOLLIN);
    if (result == 0)
        result = porch_open(shard->porch);
    if (result < 0)
        return err_set(err, result, "could not watch a shard's sockets: %s",
                       strerror(-result));
    return 0;
}

static int shard_init(struct shard *shard, struct shards *all, unsigned index,
                      struct err *err)
{
    shard->all = all;
    shard->drain_mail.deliver = drain_delivered;
    shard->stop_mail.deliver = stop_delivered;
    shard->reader = ring_reader(all->settings.ring, index);

    int result = mailbox_init(&shard->mailbox, err);
    if (result < 0)
        return result;
    result = make_rooms(shard, err);
    if (result < 0)
        return result;
    result = make_daemons(shard, err);
    if (result < 0)
        return result;
    return watch_sources(shard, err);
}

static void shard_done(struct shard *shard)
{
    if (shard->all == NULL)
        return;
    daemons_free(shard->daemons);
    lobby_free(shard->lobby);
    fanout_free(shard->fanout);
    porch_free(shard->porch);
    wheel_free(shard->wheel);
    poller_free(shard->crowd);
    poller_free(shard->poller);
    mailbox_done(&shard->mailbox);
}

struct shards *shards_new(const struct shard_settings *settings, struct err *err)
{
    struct shards *shards = calloc(1, sizeof(*shards));

    if (shards == NULL) {
        (void)err_set(err, -ENOMEM, "no memory for the shards");
        return NULL;
    }
    shards->settings = *settings;
    shards->count = settings->count;
    shards->shards = calloc(settings->count, sizeof(*shards->shards));
    shards->tours = tours_new(settings->count);
    shards->lags = calloc(1, sizeof(*shards->lags) +
                                 settings->count * sizeof(shards->lags->events[0]));
    if (shards->shards == NULL || shards->tours == NULL || shards->lags == NULL) {
        (void)err_set(err, -ENOMEM, "no memory for the shards");
        shards_free(shards);
        return NULL;
    }
    shards->lags->count = settings->count;
    for (unsigned i = 0; i < shards->count; i++) {
        if (shard_init(&shards->shards[i], shards, i, err) < 0) {
            shards_free(shards);
            return NULL;
        }
    }
    return shards;
}

int shards_start(struct shards *shards, struct err *err)
{
    for (unsigned i = 0; i < shards->count; i++) {
        struct shard *shard = &shards->shards[i];
        const int result =
            thread_start(&shard->thread, THREAD_SHARD, i, shard_run, shard, err);

        if (result < 0)
            return result;
    }
    return 0;
}

void shards_drain(struct shards *shards, uint64_t spread_usec)
{
    atomic_store_explicit(&shards->spread_usec, spread_usec, memory_order_relaxed);
    for (unsigned i = 0; i < shards->count; i++)
        mailbox_post(&shards->shards[i].mailbox, &shards->shards[i].drain_mail);
}

size_t shards_connections(const struct shards *shards)
{
    return atomic_load_explicit(&shards->connections, memory_order_relaxed);
}

/* Looks in the order in which they move on: a shard that has closed its porch has made parcels
 * and guests of all it accepted, a parcel becomes a guest before it is taken off, and a guest a
 * connection likewise. Each acquire meets the release of that step. */
bool shards_are_empty(const struct shards *shards)
{
    size_t parcels = 0, guests = 0;

    if (atomic_load_explicit(&shards->closed_count, memory_order_acquire) < shards->count)
        return false;
    for (unsigned i = 0; i < shards->count; i++)
        parcels += atomic_load_explicit(&shards->shards[i].parcels, memory_order_acquire);
    if (parcels > 0)
        return false;
    for (unsigned i = 0; i < shards->count; i++)
        guests += atomic_load_explicit(&shards->shards[i].guests, memory_order_acquire);
    return guests == 0 && shards_connections(shards) == 0;
}

void shards_stop(struct shards *shards)
{
    tours_close(shards->tours);
    for (unsigned i = 0; i < shards->count; i++)
        mailbox_post(&shards->shards[i].mailbox, &shards->shards[i].stop_mail);
    for (unsigned i = 0; i < shards->count; i++)
        thread_join(&shards->shards[i].thread);
}

void shards_free(struct shards *shards)
{
    if (shards == NULL)
        return;
    for (unsigned i = 0; shards->shards != NULL && i < shards->count; i++)
        shard_done(&shards->shards[i]);
    tours_free(shards->tours);
    free(shards->lags);
    free(shards->shards);
    free(shards);
}

const struct thread *shards_thread(const struct shards *shards, unsigned index)
{
    return &shards->shards[index].thread;
}

struct fanout *shard_fanout(struct shard *shard)
{
    return shard->fanout;
}

bool shard_is_draining(const struct shard *shard)
{
    return shard->draining;
}

int shard_tour(struct shard *shard, struct tour *tour)
{
    return tour_begin(tour, shard->all->tours, index_of(shard));
}

void shard_post(struct shard *shard, struct mail *mail)
{
    mailbox_post(&shard->mailbox, mail);
}
