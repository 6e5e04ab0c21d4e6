/*
 * consumer.h - a stream that is fed by a group: what is dealt to it, and what its socket has
 * not taken yet.
 *
 *     groups' thread: deal() ── letter ──> frames ──> stream_send() ──> socket
 *     shard: news of the channel, room in the socket ──────────────────> groups
 *     the stream is over ──> groups_leave() ──> what it had in hand is given back
 *
 * It is an ordinary stream in everything but where its frames come from: greeting,
 * heartbeats, idle_close, goodbye and drain are stream.h's. It has no place in history, so it
 * is told none.
 *
 * Always true: frames that wait are as many as the consumer may have in hand at the most; they
 * are counted in STATS_CONNECTION_MEMORY.
 *
 * Threads: its shard's, but for the callbacks of the groups. Locks: one mutex, held for a
 * pointer swap.
 */
#ifndef CONSUMER_H
#define CONSUMER_H

#include "base.h"
#include "groups.h"
#include "stream.h"

struct consumer;

/* What a consumer asks for. The texts are copied. */
struct consumer_wishes {
    struct stream_text channel;
    struct stream_text group;
    bool earliest;     /* where a new group begins; else after `newest` */
    bool knows_newest; /* else when the group is made */
    uint64_t newest;   /* event there is */
    unsigned max;      /* deliveries that are not acknowledged, at least 1 */
    unsigned attempts; /* for each event; 0: as it is */
    uint64_t lease_usec;
    bool exclusive;
};

struct consumer_settings {
    struct groups *groups;
    struct stats *stats;
    /* Called on any thread: the letter is to be delivered on the shard's. */
    void (*post)(void *argument, struct mail *mail);
    void *argument;
};

/* Makes the stream a consumer, which ends with it. -ENOMEM; -EAGAIN: there are too many;
 * -ESHUTDOWN. */
int consumer_join(struct stream *stream, const struct consumer_wishes *wishes,
                  const struct consumer_settings *settings) MUST_CHECK;

/* Its owner's calls: there was an event on its channel; its socket takes more; it has been
 * given the time to end; it is over. */
void consumer_news(struct consumer *consumer);
void consumer_writable(struct consumer *consumer);
void consumer_leaves(struct consumer *consumer);
void consumer_over(struct consumer *consumer);

/* Somebody may wait for its place. */
bool consumer_is_exclusive(const struct consumer *consumer) MUST_CHECK;

#endif
