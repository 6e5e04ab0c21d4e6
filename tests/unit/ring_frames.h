/*
 * ring_frames.h - frames whose content can be told from their position, and dice, for unit
 * tests of the ring.
 */
#ifndef RING_FRAMES_H
#define RING_FRAMES_H

#include "ring.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "cmocka_all.h"

#define RING_UNUSED __attribute__((unused))

/* Frames a reader holds in a round, at the most. */
#define HELD_MAX 64

/* -- frames whose content can be told from their position -- */

/* The seq rises by more than one, so that there are ids between two events. */
RING_UNUSED static uint64_t seq_of(uint64_t position)
{
    return position * 3;
}

RING_UNUSED static size_t data_len_of(uint64_t position, size_t max)
{
    return (size_t)(position * 2654435761U >> 7) % max;
}

RING_UNUSED static char byte_of(uint64_t position, size_t i)
{
    return (char)('a' + (position + i * 7) % 23);
}

RING_UNUSED static struct sse_frame *frame_new(uint64_t position, size_t data_len)
{
    char *data = malloc(data_len + 1);
    assert_non_null(data);
    for (size_t i = 0; i < data_len; i++)
        data[i] = byte_of(position, i);
    data[data_len] = '\0';
    struct sse_frame *frame = sse_frame_new(&(struct event){.seq = seq_of(position),
                                                            .channel = "c",
                                                            .channel_len = 1,
                                                            .type = "message",
                                                            .type_len = 7,
                                                            .data = data,
                                                            .data_len = data_len});
    free(data);
    assert_non_null(frame);
    return frame;
}

/* Whole, and what was pushed at that position. Says so without cmocka, for the threads. */
RING_UNUSED static bool frame_is(const struct sse_frame *frame, uint64_t position)
{
    char id[32];
    const size_t head = (size_t)snprintf(
        id, sizeof(id), "id: %llu\ndata: ", (unsigned long long)seq_of(position));
    const char *body = frame->bytes + frame->body_offset;

    if (frame->position != position || frame->seq != seq_of(position) ||
        frame->channel_hash != sse_hash("c", 1) || frame->channel_len != 1 ||
        strcmp(sse_frame_channel(frame), "c") != 0)
        return false;
    if (frame->body_len < head + 2 || memcmp(body, id, head) != 0)
        return false;
    for (size_t i = 0; i < frame->body_len - head - 2; i++) {
        if (body[head + i] != byte_of(position, i))
            return false;
    }
    return memcmp(body + frame->body_len - 2, "\n\n\r\n", 4) == 0;
}

RING_UNUSED static uint64_t dice(uint64_t *state)
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return *state >> 33;
}

RING_UNUSED static bool is_ringing(const struct ring_reader *reader, int timeout_msec)
{
    struct pollfd bell = {.fd = ring_reader_fd(reader), .events = POLLIN};

    return poll(&bell, 1, timeout_msec) == 1;
}

#endif
