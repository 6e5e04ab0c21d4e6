/*
 * shard.h - one thread: its connections, its epoll, its subscribers.
 *
 *   listening sockets (shared) ──> accept ──> the shard with the fewest ──> lobby
 *                                                                             │
 *        ┌───────────────────────(header complete)────────────────────────────┘
 *        v
 *   libmicrohttpd's daemons of this shard (daemons.h), driven by its loop
 *
 * The loop: time, a round of the fan-out, libmicrohttpd, mail, newcomers, and a while for the
 * sockets that are ready; with nothing left to do it sleeps on its epoll set alone. Guests and
 * streams are an epoll set of their own within it, and are served for a millisecond a turn: when
 * thousands come at once, neither an event nor a request waits behind them all.
 *
 * Always true: nothing of a connection is ever touched by another thread than its shard's.
 *
 * Threads: shards_* on main; shard_* on the shard's own, but for shard_post().
 */
#ifndef SHARD_H
#define SHARD_H

#include "base.h"
#include "daemons.h"
#include "err.h"
#include "fanout.h"
#include "mailbox.h"
#include "ring.h"
#include "stats.h"
#include "stream.h"
#include "tour.h"

struct shards;
struct shard;
struct thread;

/* Connections over the limit that are still told so, rather than just closed. */
#define SHARD_SURPLUS_MAX 256

struct shard_settings {
    unsigned count; /* shards; the ring has a reader for each */
    const int
        *listen_fds; /* listening, non-blocking; the caller's to close, after free */
    size_t listen_fd_count;
    struct ring *ring;
    struct replay *replay; /* outlives the shards */
    struct relay *relay;   /* likewise; NULL: nothing is relayed */
    struct groups *groups; /* likewise */
    struct stats *stats;
    struct stream_timing timing;
    size_t header_max;         /* bytes */
    uint64_t header_time_usec; /* from accept to the end of the first header */
    size_t connections_max;    /* over all shards; more are marked surplus */
    size_t answer_extra_bytes; /* headers of a stream's answer that not all have (CORS) */
    size_t guests_max;         /* silent ones that one shard puts up with */
    struct daemons_front front;
};

/* NULL: err says why. The arrays are copied. */
struct shards *shards_new(const struct shard_settings *settings,
                          struct err *err) MUST_CHECK;
int shards_start(struct shards *shards, struct err *err) MUST_CHECK;

/* Stops accepting, closes idle connections; streams say goodbye at random times within
 * spread_usec; what was begun is answered. Returns at once. */
void shards_drain(struct shards *shards, uint64_t spread_usec);

/* Connections there are; those in the lobby do not count. */
size_t shards_connections(const struct shards *shards);

/* After shards_drain(): nobody is there any more, in the lobby neither. */
bool shards_are_empty(const struct shards *shards);

/* Ends everything that is left, and the threads. Whoever answers sleeping requests must
 * have done so: publisher and readers are stopped first. */
void shards_stop(struct shards *shards);
void shards_free(struct shards *shards);

/* The thread of that index, for the watchdog. */
const struct thread *shards_thread(const struct shards *shards, unsigned index);

struct fanout *shard_fanout(struct shard *shard);
bool shard_is_draining(const struct shard *shard);

/* Sends it to all shards, beginning with this one; see tour.h. -ESHUTDOWN. */
int shard_tour(struct shard *shard, struct tour *tour) MUST_CHECK;

/* From any thread: mail->deliver() is called on the shard's. */
void shard_post(struct shard *shard, struct mail *mail);

#endif
