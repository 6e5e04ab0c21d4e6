/*
 * shard_world.h - what the unit tests of shards ask of a front, and look at in it.
 */
#ifndef SHARD_WORLD_H
#define SHARD_WORLD_H

#include "front.h"

#define GET(query)     "GET /events" query " HTTP/1.1\r\nHost: x\r\n\r\n"
#define GET_1_0(query) "GET /events" query " HTTP/1.0\r\n\r\n"
#define GET_AFTER(id)  "GET /events HTTP/1.1\r\nHost: x\r\nLast-Event-ID: " id "\r\n\r\n"
#define SMALL_RCVBUF   4096

/* An event of that many bytes that can be told from others. */
FRONT_UNUSED static void push_bytes(struct front *front, const char *channel, size_t len,
                                    struct buf *wanted)
{
    char *data = malloc(len);

    assert_non_null(data);
    for (size_t i = 0; i < len; i++)
        data[i] = (char)('a' + (front->seq + i / 7) % 26);
    front_push(front, channel, "message", data, len, wanted);
    free(data);
}

FRONT_UNUSED static int64_t gauge(const struct front *front, enum stats_gauge which)
{
    return stats_gauge_value(front->stats, which);
}

FRONT_UNUSED static uint64_t counter(const struct front *front, enum stats_counter which)
{
    return stats_counter_value(front->stats, which);
}

/* A quiet stream gets its heartbeats from the beginning, whatever idle_close is. */
FRONT_UNUSED static void expect_heartbeats(struct client *client, size_t behind)
{
    const uint64_t begin = clock_usec();

    client_read_body(client, behind + 6);
    assert_memory_equal(client->body.data + behind, ":\n:\n:\n", 6);
    assert_true(clock_usec() - begin < 9 * USEC_PER_SEC);
}

/* What came is a beginning of what was to come, and breaks off without a proper end. */
FRONT_UNUSED static void expect_broken_off(struct client *client,
                                           const struct buf *wanted)
{
    client_read_all(client);
    const size_t greeting = client_greeting_len(client);

    assert_true(client->body.len < greeting + wanted->len);
    assert_memory_equal(client->body.data + greeting, wanted->data,
                        client->body.len - greeting);
}

#endif
