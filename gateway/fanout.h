/*
 * fanout.h - from the ring to the sockets of one shard's subscribers.
 *
 *        ring ──> round: what is new, grouped by channel
 *                   ├─ "orders"   ──> one run of bytes ──> send(2) to each member
 *                   ├─ "users.7"  ──> one run of bytes ──> send(2) to each member
 *                   └─ of several channels, or with a filter: sendmsg(2) of just
 *                      their frames, in order, each once
 *
 * A subscriber who is BEHIND is passed by in rounds; catchup.h takes it to where the shard
 * is.
 *
 * Always true: every subscriber is sent the events of its channels that pass its filter in the order
 * of the ring, each once, from its first place on.
 *
 * Threads: its shard's. Locks: none. Cost: a round looks only at channels that have
 * something new; one system call a member. Once a second, while somebody is BEHIND, it looks
 * at all streams.
 */
#ifndef FANOUT_H
#define FANOUT_H

#include "base.h"
#include "consumer.h"
#include "mailbox.h"
#include "poller.h"
#include "relay.h"
#include "replay.h"
#include "ring.h"
#include "stats.h"
#include "stream.h"

struct fanout;

struct fanout_settings {
    struct ring_reader *reader;
    struct poller *poller;
    struct stats *stats;
    struct stream_timing timing;
    struct replay *replay;
    struct relay *relay; /* NULL: nothing is relayed */
    struct groups *groups;
    /* Called on any thread: the letter is to be delivered on the shard's. */
    void (*post)(void *argument, struct mail *mail);
    void *argument;
    /* Where each shard says how many events its slowest stream is behind, and which of them
     * is this one's. NULL: nowhere. */
    struct fanout_lags *lags;
    unsigned index;
};

/* STATS_STREAMS_LAG_MAX is the greatest of them. [atomic] */
struct fanout_lags {
    unsigned count;
    _Atomic uint64_t events[];
};

struct fanout *fanout_new(const struct fanout_settings *settings)
    MUST_CHECK;                          /* NULL: no memory */
void fanout_free(struct fanout *fanout); /* every stream is over */

/* A new subscriber on that connection. Its place is what the ring says now: an event that
 * is committed after the answer's header has been seen will come. NULL: no memory, or too
 * many channels are relayed. */
struct stream *fanout_subscribe(struct fanout *fanout, struct connection *connection,
                                const struct stream_wishes *wishes) MUST_CHECK;

/* A new consumer of a group: a stream of wishes->channels' one channel, which is
 * STREAM_AT_NOWHERE. An event that is committed after the answer's header has been seen is the
 * group's, even if it is a new one. -ENOMEM, -EAGAIN, -ESHUTDOWN: as consumer_join(). */
int fanout_consume(struct fanout *fanout, struct connection *connection,
                   const struct stream_wishes *wishes,
                   const struct consumer_wishes *group,
                   struct stream **ret_stream) MUST_CHECK;

/* Begins a turn of the shard's loop at that time. */
void fanout_turn(struct fanout *fanout, uint64_t now_usec);

/* Sends what is new, or a good part of it; true if there is more. */
bool fanout_round(struct fanout *fanout);

/* The next position it will read: for ring_sleep(). */
uint64_t fanout_position(const struct fanout *fanout);

/* Calls look() for every stream that is not over, in no order. `newest` is the newest event
 * there is: for stream_lag(). */
void fanout_each(const struct fanout *fanout,
                 void (*look)(void *argument, const struct stream *stream,
                              uint64_t newest),
                 void *argument);

/* Every stream says goodbye at a random time within `spread_usec`. */
void fanout_drain(struct fanout *fanout, uint64_t spread_usec);

/* Ends every stream now. */
void fanout_close(struct fanout *fanout);

#endif
