/*
 * event.h - one event, as it is published and as it comes out of the database; and what its
 * channel, type, data and client may look like.
 *
 * The limits are those of interface.md, chapter 3, and the CHECK constraints of
 * migrations/ say the same: what is refused here never reaches the database, and what the
 * database lets in can always be put on the wire.
 *
 * Threads: any; pure functions.
 */
#ifndef EVENT_H
#define EVENT_H

#include "base.h"
#include "err.h"

#define EVENT_CHANNEL_MAX_BYTES 255
#define EVENT_TYPE_MAX_BYTES    255
/* What PostgreSQL can index, with something to spare. */
#define EVENT_KEY_MAX_BYTES   2200
#define EVENT_DEFAULT_CHANNEL "events"
#define EVENT_DEFAULT_TYPE    "message"

/* Each life of the table (see gateway.incarnations) has a block of so many numbers: those
 * from one life and from another are told apart by the bits above. */
#define EVENT_LIFE_BITS 40

static inline bool event_is_other_life(uint64_t seq, uint64_t other)
{
    return seq >> EVENT_LIFE_BITS != other >> EVENT_LIFE_BITS;
}

/* Texts are borrowed, UTF-8, and NUL-terminated behind their length. */
struct event {
    uint64_t seq; /* the event's place in the one order; 0 until it has one */
    const char *channel;
    size_t channel_len;
    const char *type;
    size_t type_len;
    const char *data; /* JSON text (RFC 8259), exactly as it was published */
    size_t data_len;
    const char
        *attributes; /* for publishing: a CloudEvent's, as a JSON object; or NULL */
    size_t attributes_len;
    const char *client; /* who published it; not NUL-terminated; NULL: not said */
    size_t client_len;  /* 0 if it was not said */
};

/* A key and the events it stands for, which stand together in a request. They are published
 * once, however often they are sent. */
struct event_unit {
    const char *key; /* borrowed; at most EVENT_KEY_MAX_BYTES of UTF-8 */
    size_t key_len;
    size_t first; /* index of the first of them */
    size_t count; /* at least 1 */
    bool known;   /* an outcome of publishing: they were there already */
};

/* How many bytes the UTF-8 character at the start of the text takes; 0 if it is none. */
size_t event_character_size(const char *text, size_t len);

/* Valid UTF-8 (RFC 3629: no surrogates, nothing overlong, nothing over U+10FFFF). */
bool event_text_is_utf8(const char *text, size_t len);

/* How many bytes of the text, at most `max`, can be quoted without cutting a letter in two. */
size_t event_text_cut(const char *text, size_t max);

/* A channel's, type's or client's name: 1 to 255 bytes of UTF-8 without control characters
 * (C0, DEL, C1). -EINVAL, and the text says which rule: "channel is empty". `what` is the word
 * to begin it with. */
int event_check_name(const char *what, const char *text, size_t len,
                     struct err *err) MUST_CHECK;

/* The same with its word filled in. A channel, besides, does not end in '*', which marks a
 * pattern of a subscriber; and a type is not "gap" or "checkpoint", which mark what the
 * gateway says itself in a stream. */
int event_check_channel(const char *text, size_t len, struct err *err) MUST_CHECK;
int event_check_type(const char *text, size_t len, struct err *err) MUST_CHECK;

/* The id as it stands after "id: " and in /events/<id>: decimal digits, no leading zero.
 * event_id_parse: -EINVAL for anything that event_id_format never wrote for a seq, which is
 * a bigint of the database: 0 (before everything) to 2^63 - 1. */
#define EVENT_ID_MAX_BYTES 20
size_t event_id_format(uint64_t seq, char text[EVENT_ID_MAX_BYTES + 1]);
int event_id_parse(const char *text, size_t len, uint64_t *ret_seq) MUST_CHECK;

#endif
