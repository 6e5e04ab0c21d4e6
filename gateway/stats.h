/*
 * stats.h - counters, gauges and histograms: raised anywhere, rendered in one place.
 *
 * One table in stats.c gives each its Prometheus name (prefix pgsse_), labels and help.
 * A new figure is one word in an enum here and one line in that table.
 *
 * Threads: any; relaxed atomics, so figures of one moment may be a moment apart. Cost:
 * one atomic addition; the path of an event adds once a round, not once a subscriber.
 * Source of the format: Prometheus text exposition format 0.0.4.
 */
#ifndef STATS_H
#define STATS_H

#include "base.h"
#include "buf.h"

enum stats_counter {
    STATS_EVENTS_RECEIVED,       /* fetched by the listener and put into the ring */
    STATS_EVENTS_RECEIVED_BYTES, /* their bytes as encoded */
    STATS_EVENTS_DELIVERED,      /* frames handed to sockets, once a subscriber */
    STATS_DELIVERED_BYTES,       /* bytes handed to sockets by streams */
    STATS_EVENTS_PUBLISHED,      /* committed by POST */
    STATS_PUBLISH_BATCHES,       /* commits they took */
    STATS_PUBLISH_REPEATED,      /* requests answered, all or in part, from a known key */
    STATS_PUBLISH_REFUSED,     /* events whose request was answered 4xx by the database */
    STATS_PUBLISH_UNAVAILABLE, /* events whose request was answered 503 */
    STATS_EVENTS_NUMBERED,     /* rows of others numbered by this gateway's sweeps */
    STATS_STREAMS_OPENED,
    STATS_STREAMS_LAGGED, /* overtaken by the ring: they go on from the table */
    STATS_STREAMS_IDLE_CLOSED,
    STATS_GAPS_EXPIRED, /* streams told that something is missing, by reason */
    STATS_GAPS_UNKNOWN,
    STATS_GAPS_FUTURE,
    STATS_GAPS_RELAY,
    STATS_REPLAY_PAGES,  /* queries for events after an id */
    STATS_REPLAY_EVENTS, /* events they read */
    STATS_CONNECTIONS_ACCEPTED,
    STATS_CONNECTIONS_REFUSED, /* over the connection limit */
    STATS_CONNECTIONS_EXPIRED, /* too slow with a header, a body or a read */
    STATS_REQUESTS_BAD,        /* refused before routing: malformed or smuggling */
    STATS_RESPONSES_2XX,
    STATS_RESPONSES_3XX,
    STATS_RESPONSES_4XX,
    STATS_RESPONSES_5XX,
    STATS_LISTENER_CONNECTS,
    STATS_LISTENER_NOTIFICATIONS,
    STATS_RELAY_NOTIFICATIONS, /* of applications, put into the ring */
    STATS_LISTENER_FETCHES,
    STATS_EVENTS_PURGED,       /* deleted by this gateway because of their age */
    STATS_KEYS_PURGED,         /* likewise, of those that make sending again safe */
    STATS_DELIVERIES_PURGED,   /* likewise, of what groups were handed */
    STATS_GROUPS_CLAIMS,       /* questions for deliveries that were answered */
    STATS_GROUPS_DELIVERIES,   /* handed to consumers of groups */
    STATS_GROUPS_REDELIVERIES, /* of these, not the event's first to its group */
    STATS_GROUPS_ACKS,         /* taken by POST */
    STATS_GROUPS_NACKS,        /* likewise */
    STATS_GROUPS_BURIED,       /* found without a claim: their attempts were used up */
    STATS_COUNTER_COUNT
};

enum stats_gauge {
    STATS_LISTENER_CONNECTED, /* 1 while notifications are being listened to */
    STATS_DATABASE_WRITABLE,  /* 1 while the last look said so */
    STATS_HEAD_SEQ,           /* newest event put into the ring */
    STATS_RING_EVENTS,
    STATS_RING_BYTES,
    STATS_CONNECTIONS,       /* raised and lowered with stats_gauge_add */
    STATS_STREAMS,           /* likewise */
    STATS_STREAMS_BEHIND,    /* likewise: not up to date */
    STATS_STREAMS_REPLAYING, /* likewise: of these, going on from the table */
    STATS_STREAMS_LAG_MAX,   /* events that the slowest stream has yet to be sent */
    STATS_CONNECTION_MEMORY, /* bytes, by what connections and streams ask for */
    STATS_REPLAY_BYTES,      /* pages of events on their way to streams */
    STATS_PUBLISH_WAITING,   /* events waiting for their batch */
    STATS_RELAY_CHANNELS,    /* listened to for subscribers */
    STATS_PURGED_SEQ,        /* ids below it can no longer be resumed from exactly */
    STATS_GROUPS_CONSUMERS,  /* raised and lowered with stats_gauge_add */
    STATS_GROUPS_IN_HAND,    /* deliveries at consumers, not acknowledged */
    STATS_GROUPS_WAITS,      /* raised and lowered: POSTs with ?wait= */
    STATS_GAUGE_COUNT
};

enum stats_histogram {
    STATS_PUBLISH_SECONDS,   /* from a POST's last byte to its commit */
    STATS_EVENT_AGE_SECONDS, /* from created_at, the database's clock, to the ring */
    STATS_HISTOGRAM_COUNT
};

struct stats;

struct stats *stats_new(void) MUST_CHECK; /* NULL: no memory */
void stats_free(struct stats *stats);

void stats_add(struct stats *stats, enum stats_counter counter, uint64_t amount);
void stats_gauge_set(struct stats *stats, enum stats_gauge gauge, int64_t value);
void stats_gauge_add(struct stats *stats, enum stats_gauge gauge, int64_t amount);
void stats_observe_usec(struct stats *stats, enum stats_histogram histogram,
                        uint64_t usec);

uint64_t stats_counter_value(const struct stats *stats, enum stats_counter counter);
int64_t stats_gauge_value(const struct stats *stats, enum stats_gauge gauge);

/* Adds the whole /metrics text. buf_ok() tells whether there was memory for it. */
void stats_render(const struct stats *stats, struct buf *ret_text);

#endif
