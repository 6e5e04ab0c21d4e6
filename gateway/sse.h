/*
 * sse.h - an event as bytes on the wire (WHATWG HTML, 9.2 Server-sent events).
 *
 *     id: 42\n
 *     event: created\n          only if the type is not "message"
 *     data: {"n":\n             one for each line of the data: CR, LF and CRLF all split
 *     data: 1}\n
 *     \n
 *
 * A frame is encoded once and sent to every subscriber from the same memory. It is stored
 * as one HTTP/1.1 chunk (RFC 9112, 7.1), so that the same bytes serve an HTTP/1.1 client
 * whole; an HTTP/1.0 client gets the part between the chunk's brackets.
 *
 *     | hex length CRLF | id: ... blank line | CRLF |
 *       ^ bytes           ^ bytes + body_offset
 *
 * Threads: any; a frame does not change once it is made.
 */
#ifndef SSE_H
#define SSE_H

#include "base.h"
#include "event.h"

/* What a frame is. Those that are not stored stand behind an event, and have its number. */
enum sse_kind {
    SSE_STORED,  /* an event of the table */
    SSE_RELAYED, /* a notification of an application */
    SSE_MISSED,  /* a gap: such notifications are missing */
};

struct sse_frame {
    struct sse_frame *next; /* the ring's own, once the frame has left its slot */
    uint64_t position;      /* in the ring; set by ring_push */
    uint64_t seq;
    uint64_t channel_hash; /* sse_hash() of the channel */
    uint32_t channel_offset, channel_len;
    uint32_t type_offset, type_len;
    uint32_t client_len;            /* 0: without one */
    uint32_t body_offset, body_len; /* the event without the chunk's brackets */
    uint32_t len;                   /* the whole chunk */
    uint32_t kind;                  /* enum sse_kind; SSE_STORED when it is made */
    char bytes[]; /* the chunk; channel and type, NUL-terminated; the client */
};

/* Encodes the event. NULL: no memory, or larger than 4 GiB once encoded. */
struct sse_frame *sse_frame_new(const struct event *event) MUST_CHECK;

/* The same with another id than the event's own. */
struct sse_frame *sse_frame_new_as(const struct event *event, const char *id,
                                   size_t id_len) MUST_CHECK;
void sse_frame_free(struct sse_frame *frame);

/* What the frame weighs, for the ring's accounts. */
size_t sse_frame_weight(const struct sse_frame *frame);

const char *sse_frame_channel(const struct sse_frame *frame);
const char *sse_frame_type(const struct sse_frame *frame);

/* Who published it: client_len bytes. */
const char *sse_frame_client(const struct sse_frame *frame);

/* What is told with a gap. */
struct sse_gap {
    uint64_t seq;          /* the stream goes on after it */
    const char *requested; /* the id that was asked for; NULL: seq */
    const char *reason;
    const char *channel; /* NULL: of all channels */
};

/* Adds its data, a JSON object; or the whole frame, without a chunk's brackets. */
struct buf;
void sse_add_gap_data(struct buf *ret_text, const struct sse_gap *gap);
void sse_add_gap(struct buf *ret_text, const struct sse_gap *gap);

/* 64-bit FNV-1a, for channels; and byte by byte, for whoever wants the hash of every prefix in
 * one pass. */
uint64_t sse_hash(const char *text, size_t len);

static inline uint64_t sse_hash_begin(void)
{
    return UINT64_C(0xcbf29ce484222325);
}

static inline uint64_t sse_hash_add(uint64_t hash, char byte)
{
    return (hash ^ (unsigned char)byte) * UINT64_C(0x100000001b3);
}

/* Puts one HTTP/1.1 chunk's brackets around `body_len` bytes: writes "hex CRLF" to `head`
 * and returns its length; the chunk ends with "\r\n". */
#define SSE_CHUNK_HEAD_MAX 10
size_t sse_chunk_head(size_t body_len, char head[SSE_CHUNK_HEAD_MAX + 1]);

#endif
