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
#include "shard.h"
#include "units.h"

#define LEASE_DEFAULT_USEC (30 * USEC_PER_SEC)
#define LEASE_MIN_USEC     (USEC_PER_SEC)
#define LEASE_MAX_USEC     (24 * 3600 * USEC_PER_SEC)
#define MAX_DEFAULT        1
#define MAX_MAX            1000
#define ATTEMPTS_MAX       1000000

/* The query, gathered parameter by parameter. */
struct query {
    struct consumer_wishes wishes;
    unsigned channels;
    unsigned groups;
    bool failed;
    struct err err;
};

static void query_fails(struct query *query, const char *format, ...) PRINTF_LIKE(2, 3);

static void query_fails(struct query *query, const char *format, ...)
{
    va_list arguments;

    if (query->failed)
        return;
    va_start(arguments, format);
    (void)vsnprintf(query->err.text, sizeof(query->err.text), format, arguments);
    va_end(arguments);
    query->failed = true;
}

static void set_channel(struct query *query, const char *text, size_t len)
{
    struct err err;

    if (query->channels++ > 0)
        query_fails(query, "a group has one channel");
    else if (group_check_channel(text, len, &err) < 0)
        query_fails(query, "%s", err.text);
    query->wishes.channel = (struct stream_text){text, len};
}

static void set_group(struct query *query, const char *text, size_t len)
{
    struct err err;

    if (query->groups++ > 0)
        query_fails(query, "there are two groups");
    else if (group_check_name(text, len, &err) < 0)
        query_fails(query, "%s", err.text);
    query->wishes.group = (struct stream_text){text, len};
}

static void set_lease(struct query *query, const char *text)
{
    uint64_t usec;

    if (units_parse_usec(text, &usec) < 0 || usec < LEASE_MIN_USEC ||
        usec > LEASE_MAX_USEC)
        query_fails(query, "lease is a time from 1s to 1d, as in 30s");
    else
        query->wishes.lease_usec = usec;
}

static void set_count(struct query *query, const char *name, const char *text,
                      unsigned max, unsigned *ret_count)
{
    uint64_t count;

    if (units_parse_count(text, &count) < 0 || count < 1 || count > max)
        query_fails(query, "%s is a number from 1 to %u", name, max);
    else
        *ret_count = (unsigned)count;
}

static void set_exclusive(struct query *query, const char *text)
{
    query->wishes.exclusive = strcmp(text, "true") == 0;
    if (!query->wishes.exclusive && strcmp(text, "false") != 0)
        query_fails(query, "exclusive is true or false");
}

static enum MHD_Result take_parameter(void *argument, enum MHD_ValueKind kind,
                                      const char *name, size_t name_len,
                                      const char *value, size_t value_len)
{
    struct query *query = argument;
    const char *text = value != NULL ? value : "";

    (void)kind;
    (void)name_len;
    if (strcmp(name, "channel") == 0)
        set_channel(query, text, value_len);
    else if (strcmp(name, "group") == 0)
        set_group(query, text, value_len);
    else if (strcmp(name, "lease") == 0)
        set_lease(query, text);
    else if (strcmp(name, "max") == 0)
        set_count(query, name, text, MAX_MAX, &query->wishes.max);
    else if (strcmp(name, "max_attempts") == 0)
        set_count(query, name, text, ATTEMPTS_MAX, &query->wishes.attempts);
    else if (strcmp(name, "exclusive") == 0)
        set_exclusive(query, text);
    else if (strcmp(name, "last_event_id") == 0 && strcmp(text, "earliest") == 0)
        query->wishes.earliest = true;
    else if (strcmp(name, "last_event_id") == 0)
        query_fails(query, "a group knows where it is: for last_event_id there is only "
                           "earliest, where a new group begins");
    else
        query_fails(query,
                    "unknown parameter \"%.*s\"; beside group there are channel, lease, "
                    "max, max_attempts, last_event_id and exclusive",
                    (int)event_text_cut(name, QUOTED_MAX), name);
    return MHD_YES;
}

static void read_query(const struct exchange *exchange, struct query *query)
{
    *query =
        (struct query){.wishes = {.lease_usec = LEASE_DEFAULT_USEC, .max = MAX_DEFAULT}};
    (void)MHD_get_connection_values_n(exchange->mhd, MHD_GET_ARGUMENT_KIND,
                                      take_parameter, query);
    if (query->channels == 0)
        set_channel(query, EVENT_DEFAULT_CHANNEL, strlen(EVENT_DEFAULT_CHANNEL));
}

enum MHD_Result consume_subscribe(struct exchange *exchange)
{
    const bool is_head = strcmp(exchange->method, MHD_HTTP_METHOD_HEAD) == 0;
    struct query query;
    struct stream *stream;

    read_query(exchange, &query);
    exchange->close = !is_head; /* it has memory for one small header, not for another */
    if (query.failed)
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST, "%s", query.err.text);
    if (is_head)
        return opening_head(exchange);
    if (!opening_has_room(exchange))
        return opening_later(exchange);

    const int r =
        fanout_consume(shard_fanout(exchange->connection->shard), exchange->connection,
                       &(struct stream_wishes){
                           .channels = &query.wishes.channel,
                           .channel_count = 1,
                           .chunked = !exchange->http10,
                           .place = STREAM_AT_NOWHERE,
                       },
                       &query.wishes, &stream);
    return r < 0 ? opening_later(exchange) : opening_stream(exchange, stream);
}
