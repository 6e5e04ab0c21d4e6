/*
 * opening.c - what is answered to who asks for a stream.
 */
#include "opening.h"

#include <stdio.h>

#include "clock.h"
#include "shard.h"

bool opening_has_room(const struct exchange *exchange)
{
    if (exchange->connection->surplus)
        stats_add(exchange->common->stats, STATS_CONNECTIONS_REFUSED, 1);
    return !exchange->connection->surplus &&
           !shard_is_draining(exchange->connection->shard);
}

static void add_stream_headers(struct exchange *exchange, struct MHD_Response *response)
{
    exchange_add(exchange, response, MHD_HTTP_HEADER_CONTENT_TYPE,
                 "text/event-stream; charset=utf-8");
    /* no-transform: proxies that compress would hold events back. X-Accel-Buffering: nginx
     * with its defaults would deliver nothing at all. */
    exchange_add(exchange, response, MHD_HTTP_HEADER_CACHE_CONTROL,
                 "no-cache, no-transform");
    exchange_add(exchange, response, "X-Accel-Buffering", "no");
}

/* What passes by itself is told to an EventSource by a 200 that ends: any other status
 * would make it give up for ever. */
enum MHD_Result opening_later(struct exchange *exchange)
{
    char text[40];
    const unsigned long long msec =
        clock_jitter(exchange->common->retry_usec) / USEC_PER_MSEC;
    const int len = snprintf(text, sizeof(text), "retry: %llu\n", msec);
    struct MHD_Response *response =
        MHD_create_response_from_buffer((size_t)len, text, MHD_RESPMEM_MUST_COPY);

    exchange->close = true;
    if (response != NULL)
        add_stream_headers(exchange, response);
    return exchange_queue(exchange, MHD_HTTP_OK, response);
}

enum MHD_Result opening_head(struct exchange *exchange)
{
    static char nothing[1];
    struct MHD_Response *response =
        MHD_create_response_from_buffer(0, nothing, MHD_RESPMEM_PERSISTENT);

    if (response != NULL)
        add_stream_headers(exchange, response);
    return exchange_queue(exchange, MHD_HTTP_OK, response);
}

enum MHD_Result opening_stream(struct exchange *exchange, struct stream *stream)
{
    struct MHD_Response *response = stream_response(stream);

    if (response == NULL) {
        stream_finish(stream, STREAM_END_ABRUPT);
        stream_free(stream);
        return opening_later(exchange);
    }
    exchange->close = false;
    add_stream_headers(exchange, response);
    return exchange_queue(exchange, MHD_HTTP_OK, response);
}
