/*
 * stats.c - counters, gauges and histograms.
 */
#include "stats.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#define PREFIX "pgsse_"

/* Neighbours of one name differ in their labels and share one HELP and TYPE. */
struct figure {
    const char *name;
    const char *labels; /* NULL: none */
    const char *help;
};

static const struct figure counters[STATS_COUNTER_COUNT] = {
    [STATS_EVENTS_RECEIVED] = {"events_received_total", NULL,
                               "Events fetched from the database."},
    [STATS_EVENTS_RECEIVED_BYTES] = {"events_received_bytes_total", NULL,
                                     "Bytes of the events fetched, as encoded."},
    [STATS_EVENTS_DELIVERED] = {"events_delivered_total", NULL,
                                "Events handed to sockets, once for each subscriber."},
    [STATS_DELIVERED_BYTES] = {"delivered_bytes_total", NULL,
                               "Bytes handed to sockets by streams."},
    [STATS_EVENTS_PUBLISHED] = {"events_published_total", NULL,
                                "Events committed for POST requests."},
    [STATS_PUBLISH_BATCHES] = {"publish_batches_total", NULL,
                               "Commits that the published events took."},
    [STATS_PUBLISH_REPEATED] = {"publish_repeated_requests_total", NULL,
                                "Requests with a key that was known already."},
    [STATS_PUBLISH_REFUSED] = {"publish_refused_events_total", NULL,
                               "Events refused for good: by the database, or "
                               "because their key was used for others."},
    [STATS_PUBLISH_UNAVAILABLE] = {"publish_unavailable_events_total", NULL,
                                   "Events answered 503: the database was away or slow."},
    [STATS_EVENTS_NUMBERED] = {"events_numbered_total", NULL,
                               "Rows of other writers numbered by this gateway."},
    [STATS_STREAMS_OPENED] = {"streams_opened_total", NULL, "Streams begun."},
    [STATS_STREAMS_LAGGED] = {"streams_lagged_total", NULL,
                              "Times a stream was overtaken by the ring, and went on "
                              "from the table."},
    [STATS_STREAMS_IDLE_CLOSED] = {"streams_idle_closed_total", NULL,
                                   "Streams closed because they took nothing."},
    [STATS_GAPS_EXPIRED] = {"streams_gaps_total", "reason=\"expired\"",
                            "Streams told that something is missing."},
    [STATS_GAPS_UNKNOWN] = {"streams_gaps_total", "reason=\"unknown\"", NULL},
    [STATS_GAPS_FUTURE] = {"streams_gaps_total", "reason=\"future\"", NULL},
    [STATS_GAPS_RELAY] = {"streams_gaps_total", "reason=\"relay\"", NULL},
    [STATS_REPLAY_PAGES] = {"replay_pages_total", NULL,
                            "Queries for the events after an id."},
    [STATS_REPLAY_EVENTS] = {"replay_events_total", NULL, "Events that they read."},
    [STATS_CONNECTIONS_ACCEPTED] = {"connections_accepted_total", NULL,
                                    "Connections accepted."},
    [STATS_CONNECTIONS_REFUSED] = {"connections_refused_total", NULL,
                                   "Connections over the limit."},
    [STATS_CONNECTIONS_EXPIRED] = {"connections_expired_total", NULL,
                                   "Connections too slow with a header, body or read."},
    [STATS_REQUESTS_BAD] = {"requests_bad_total", NULL,
                            "Requests refused before routing: malformed or smuggling."},
    [STATS_RESPONSES_2XX] = {"http_responses_total", "code=\"2xx\"",
                             "Responses by class of their status."},
    [STATS_RESPONSES_3XX] = {"http_responses_total", "code=\"3xx\"", NULL},
    [STATS_RESPONSES_4XX] = {"http_responses_total", "code=\"4xx\"", NULL},
    [STATS_RESPONSES_5XX] = {"http_responses_total", "code=\"5xx\"", NULL},
    [STATS_LISTENER_CONNECTS] = {"listener_connects_total", NULL,
                                 "Connections that the listener made to the database."},
    [STATS_LISTENER_NOTIFICATIONS] = {"listener_notifications_total", NULL,
                                      "Notifications received."},
    [STATS_RELAY_NOTIFICATIONS] = {"relay_notifications_total", NULL,
                                   "Notifications of applications that were relayed."},
    [STATS_LISTENER_FETCHES] = {"listener_fetches_total", NULL,
                                "Queries for new events."},
    [STATS_EVENTS_PURGED] = {"events_purged_total", NULL,
                             "Events deleted by this gateway because of their age."},
    [STATS_KEYS_PURGED] =
        {"keys_purged_total", NULL,
         "Idempotency keys deleted by this gateway because of their age."},
    [STATS_DELIVERIES_PURGED] =
        {"deliveries_purged_total", NULL,
         "Deliveries to groups deleted by this gateway because their events are gone."},
    [STATS_GROUPS_CLAIMS] = {"groups_claims_total", NULL,
                             "Questions to the database for deliveries."},
    [STATS_GROUPS_DELIVERIES] = {"groups_deliveries_total", NULL,
                                 "Events handed to consumers of groups."},
    [STATS_GROUPS_REDELIVERIES] = {"groups_redeliveries_total", NULL,
                                   "Of these, those that were not the first attempt."},
    [STATS_GROUPS_ACKS] = {"groups_acks_total", NULL, "Deliveries acknowledged by POST."},
    [STATS_GROUPS_NACKS] = {"groups_nacks_total", NULL, "Deliveries given back by POST."},
    [STATS_GROUPS_BURIED] = {"groups_buried_total", NULL,
                             "Deliveries that had used up their attempts, found by this "
                             "gateway without a claim."},
};

static const struct figure gauges[STATS_GAUGE_COUNT] = {
    [STATS_LISTENER_CONNECTED] = {"listener_connected", NULL,
                                  "1 while notifications are being listened to."},
    [STATS_DATABASE_WRITABLE] = {"database_writable", NULL,
                                 "1 while the database takes writes."},
    [STATS_HEAD_SEQ] = {"head_seq", NULL, "Number of the newest event in the ring."},
    [STATS_RING_EVENTS] = {"ring_events", NULL, "Events in the ring."},
    [STATS_RING_BYTES] = {"ring_bytes", NULL, "Bytes of the events in the ring."},
    [STATS_CONNECTIONS] = {"connections", NULL, "Open connections."},
    [STATS_STREAMS] = {"streams", NULL, "Open streams."},
    [STATS_STREAMS_BEHIND] = {"streams_behind", NULL, "Streams that are not up to date."},
    [STATS_STREAMS_REPLAYING] = {"streams_replaying", NULL,
                                 "Streams that go on from the table."},
    [STATS_STREAMS_LAG_MAX] = {"streams_lag_max_events", NULL,
                               "Events that the slowest stream is behind, looked at "
                               "once a second."},
    [STATS_CONNECTION_MEMORY] = {"connection_memory_bytes", NULL,
                                 "Memory set aside for connections and streams: pools, "
                                 "records, channel names, bodies being received."},
    [STATS_REPLAY_BYTES] = {"replay_bytes", NULL,
                            "Bytes of the pages that are on their way to streams."},
    [STATS_PUBLISH_WAITING] = {"publish_waiting_events", NULL,
                               "Events that wait for their batch."},
    [STATS_RELAY_CHANNELS] = {"relay_channels", NULL,
                              "Relayed channels that are listened to."},
    [STATS_PURGED_SEQ] = {"purged_seq", NULL,
                          "Highest number deleted, as of the last look of retention."},
    [STATS_GROUPS_CONSUMERS] = {"groups_consumers", NULL, "Open streams of groups."},
    [STATS_GROUPS_IN_HAND] = {"groups_in_hand", NULL,
                              "Deliveries that consumers have not acknowledged yet."},
    [STATS_GROUPS_WAITS] = {"groups_waits", NULL,
                            "POSTs that wait for an acknowledgement, or will."},
};

static const struct figure histograms[STATS_HISTOGRAM_COUNT] = {
    [STATS_PUBLISH_SECONDS] = {"publish_duration_seconds", NULL,
                               "From a request's last byte to its commit."},
    [STATS_EVENT_AGE_SECONDS] = {"event_age_seconds", NULL,
                                 "From an event's creation to its place in the ring."},
};

/* As text too: a floating-point number is written differently in some locales. */
static const struct bucket {
    uint64_t upto_usec;
    const char *text;
} buckets[] = {{500, "0.0005"},      {1000, "0.001"},     {2500, "0.0025"},
               {5000, "0.005"},      {10000, "0.01"},     {25000, "0.025"},
               {50000, "0.05"},      {100000, "0.1"},     {250000, "0.25"},
               {500000, "0.5"},      {1000000, "1"},      {2500000, "2.5"},
               {5000000, "5"},       {10000000, "10"},    {60000000, "60"},
               {3600000000, "3600"}, {UINT64_MAX, "+Inf"}};

struct histogram {
    _Atomic uint64_t
        in_bucket[ARRAY_SIZE(buckets)]; /* each alone; summed up on the way out */
    _Atomic uint64_t sum_usec;
};

struct stats {
    _Atomic uint64_t counters[STATS_COUNTER_COUNT];
    _Atomic int64_t gauges[STATS_GAUGE_COUNT];
    struct histogram histograms[STATS_HISTOGRAM_COUNT];
};

struct stats *stats_new(void)
{
    return calloc(1, sizeof(struct stats));
}

void stats_free(struct stats *stats)
{
    free(stats);
}

void stats_add(struct stats *stats, enum stats_counter counter, uint64_t amount)
{
    atomic_fetch_add_explicit(&stats->counters[counter], amount, memory_order_relaxed);
}

void stats_gauge_set(struct stats *stats, enum stats_gauge gauge, int64_t value)
{
    atomic_store_explicit(&stats->gauges[gauge], value, memory_order_relaxed);
}

void stats_gauge_add(struct stats *stats, enum stats_gauge gauge, int64_t amount)
{
    atomic_fetch_add_explicit(&stats->gauges[gauge], amount, memory_order_relaxed);
}

void stats_observe_usec(struct stats *stats, enum stats_histogram histogram,
                        uint64_t usec)
{
    struct histogram *into = &stats->histograms[histogram];
    size_t i = 0;

    while (usec > buckets[i].upto_usec)
        i++;
    atomic_fetch_add_explicit(&into->in_bucket[i], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&into->sum_usec, usec, memory_order_relaxed);
}

uint64_t stats_counter_value(const struct stats *stats, enum stats_counter counter)
{
    return atomic_load_explicit(&stats->counters[counter], memory_order_relaxed);
}

int64_t stats_gauge_value(const struct stats *stats, enum stats_gauge gauge)
{
    return atomic_load_explicit(&stats->gauges[gauge], memory_order_relaxed);
}

static void render_head(struct buf *text, const struct figure *figure, const char *type)
{
    if (figure->help == NULL)
        return; /* the one before has said it */
    buf_add_format(text, "# HELP " PREFIX "%s %s\n", figure->name, figure->help);
    buf_add_format(text, "# TYPE " PREFIX "%s %s\n", figure->name, type);
}

static void render_name(struct buf *text, const struct figure *figure)
{
    if (figure->labels == NULL)
        buf_add_format(text, PREFIX "%s ", figure->name);
    else
        buf_add_format(text, PREFIX "%s{%s} ", figure->name, figure->labels);
}

static void render_histogram(const struct histogram *histogram,
                             const struct figure *figure, struct buf *text)
{
    uint64_t count = 0;

    render_head(text, figure, "histogram");
    for (size_t i = 0; i < ARRAY_SIZE(buckets); i++) {
        count += atomic_load_explicit(&histogram->in_bucket[i], memory_order_relaxed);
        buf_add_format(text, PREFIX "%s_bucket{le=\"%s\"} %" PRIu64 "\n", figure->name,
                       buckets[i].text, count);
    }
    uint64_t sum = atomic_load_explicit(&histogram->sum_usec, memory_order_relaxed);
    buf_add_format(text, PREFIX "%s_sum %" PRIu64 ".%06" PRIu64 "\n", figure->name,
                   sum / USEC_PER_SEC, sum % USEC_PER_SEC);
    /* The sum of the buckets, not a count of its own: the two could not be read at once.
     */
    buf_add_format(text, PREFIX "%s_count %" PRIu64 "\n", figure->name, count);
}

void stats_render(const struct stats *stats, struct buf *ret_text)
{
#ifdef PGSSE_VERSION
    static const struct figure build = {"build_info", "version=\"" PGSSE_VERSION "\"",
                                        "The running program; always 1."};
    render_head(ret_text, &build, "gauge");
    render_name(ret_text, &build);
    buf_add_text(ret_text, "1\n");
#endif
    for (size_t i = 0; i < STATS_COUNTER_COUNT; i++) {
        render_head(ret_text, &counters[i], "counter");
        render_name(ret_text, &counters[i]);
        buf_add_format(ret_text, "%" PRIu64 "\n",
                       stats_counter_value(stats, (enum stats_counter)i));
    }
    for (size_t i = 0; i < STATS_GAUGE_COUNT; i++) {
        render_head(ret_text, &gauges[i], "gauge");
        render_name(ret_text, &gauges[i]);
        buf_add_format(ret_text, "%" PRId64 "\n",
                       stats_gauge_value(stats, (enum stats_gauge)i));
    }
    for (size_t i = 0; i < STATS_HISTOGRAM_COUNT; i++)
        render_histogram(&stats->histograms[i], &histograms[i], ret_text);
}
