/*
 * consume.c - GET /events?group=
 */
#include "consume.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "common.h"
#include "consumer.h"
#include "fanout.h"
#include "opening.h"
#include "query.h"
#include "shard.h"
#include "units.h"

#define LEASE_DEFAULT_USEC (30 * USEC_PER_SEC)
#define LEASE_MIN_USEC     (USEC_PER_SEC)
#define LEASE_MAX_USEC     (24 * 3600 * USEC_PER_SEC)
#define MAX_DEFAULT        1
#define MAX_MAX            1000
#define ATTEMPTS_MAX       1000000

/* What the query asks for. */
struct subscription {
    struct query query;
    struct consumer_wishes wishes;
};

static struct consumer_wishes *wishes_of(struct query *query)
{
    return &CONTAINER_OF(query, struct subscription, query)->wishes;
}

static void set_channel(struct query *query, const char *text, size_t len)
{
    struct err err;

    if (group_check_channel(text, len, &err) < 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    wishes_of(query)->channel = (struct stream_text){text, len};
}

static void set_group(struct query *query, const char *text, size_t len)
{
    struct err err;

    if (group_check_name(text, len, &err) < 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    wishes_of(query)->group = (struct stream_text){text, len};
}

static void set_lease(struct query *query, const char *text, size_t len)
{
    uint64_t usec;

    (void)len;
    if (units_parse_usec(text, &usec) < 0 || usec < LEASE_MIN_USEC ||
        usec > LEASE_MAX_USEC)
        query_fails(query, MHD_HTTP_BAD_REQUEST,
                    "lease is a time from 1s to 1d, as in 30s");
    else
        wishes_of(query)->lease_usec = usec;
}

static void set_count(struct query *query, const char *name, const char *text,
                      unsigned max, unsigned *ret_count)
{
    uint64_t count;

    if (units_parse_count(text, &count) < 0 || count < 1 || count > max)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s is a number from 1 to %u", name,
                    max);
    else
        *ret_count = (unsigned)count;
}

static void set_max(struct query *query, const char *text, size_t len)
{
    (void)len;
    set_count(query, "max", text, MAX_MAX, &wishes_of(query)->max);
}

const char *consume_parameter_of(const struct exchange *exchange)
{
    static const char *const names[] = {"lease", "max", "max_attempts", "exclusive"};

    for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
        size_t len;

        if (exchange_query(exchange, names[i], &len) != NULL)
            return names[i];
    }
    return NULL;
}

static void set_attempts(struct query *query, const char *text, size_t len)
{
    (void)len;
    set_count(query, "max_attempts", text, ATTEMPTS_MAX, &wishes_of(query)->attempts);
}

static void set_exclusive(struct query *query, const char *text, size_t len)
{
    (void)len;
    wishes_of(query)->exclusive = strcmp(text, "true") == 0;
    if (!wishes_of(query)->exclusive && strcmp(text, "false") != 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "exclusive is true or false");
}

static void set_earliest(struct query *query, const char *text, size_t len)
{
    (void)len;
    wishes_of(query)->earliest = strcmp(text, "earliest") == 0;
    if (!wishes_of(query)->earliest)
        query_fails(query, MHD_HTTP_BAD_REQUEST,
                    "a group knows where it is: for last_event_id there is only "
                    "earliest, where a new group begins");
}

/* 0, or -EINVAL: query_refuse(). */
static int read_subscription(const struct exchange *exchange,
                             struct subscription *ret_wanted)
{
    static const struct query_parameter parameters[] = {
        {.name = "channel", .take = set_channel, .twice = "a group has one channel"},
        {.name = "group", .take = set_group, .twice = "there are two groups"},
        {.name = "lease", .take = set_lease},
        {.name = "max", .take = set_max},
        {.name = "max_attempts", .take = set_attempts},
        {.name = "last_event_id", .take = set_earliest},
        {.name = "exclusive", .take = set_exclusive},
        {.name = NULL},
    };

    *ret_wanted = (struct subscription){
        .wishes = {.channel = {EVENT_DEFAULT_CHANNEL, strlen(EVENT_DEFAULT_CHANNEL)},
                   .lease_usec = LEASE_DEFAULT_USEC,
                   .max = MAX_DEFAULT}};
    return query_read(exchange, parameters, &ret_wanted->query);
}

enum MHD_Result consume_subscribe(struct exchange *exchange)
{
    const bool is_head = strcmp(exchange->method, MHD_HTTP_METHOD_HEAD) == 0;
    struct subscription wanted;
    struct stream *stream;

    int r = read_subscription(exchange, &wanted);
    exchange->close = !is_head; /* it has memory for one small header, not for another */
    if (r < 0)
        return query_refuse(exchange, &wanted.query);
    if (is_head)
        return opening_head(exchange);
    if (!opening_has_room(exchange))
        return opening_later(exchange);

    r = fanout_consume(shard_fanout(exchange->connection->shard), exchange->connection,
                       &(struct stream_wishes){
                           .channels = &wanted.wishes.channel,
                           .channel_count = 1,
                           .chunked = !exchange->http10,
                           .place = STREAM_AT_NOWHERE,
                       },
                       &wanted.wishes, &stream);
    return r < 0 ? opening_later(exchange) : opening_stream(exchange, stream);
}
