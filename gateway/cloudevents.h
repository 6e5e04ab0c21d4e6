/*
 * cloudevents.h - CloudEvents 1.0, as JSON or as HTTP headers and a body, to events.
 *
 *     ce-* headers, Content-Type, body ── cloudevents_join ──┐
 *                                                            v
 *     application/cloudevents+json ──────────────> one JSON object ── cloudevents_read ──> event
 *
 *   type                                  the event's type
 *   channel, an extension; else subject   the event's channel
 *   data                                  the event's data, as the text it came as
 *   data_base64                           the event's data: the same string
 *   none of the two                       null
 *   all attributes, as they came          the event's attributes
 *   source and id                         its key: they are the same for no two events
 *
 * A body in binary mode is data if it is JSON (by its media type), data as a string if it is
 * text/ of any kind, else data_base64; and no data if it is empty.
 *
 * Threads: any; pure functions. Cost: one pass, a copy of the attributes, and in binary mode
 * one of the data.
 * Sources: CloudEvents 1.0.2, its JSON format and its HTTP protocol binding.
 */
#ifndef CLOUDEVENTS_H
#define CLOUDEVENTS_H

#include "base.h"
#include "err.h"
#include "event.h"

#define CLOUDEVENTS_ATTRIBUTES_MAX    64
#define CLOUDEVENTS_ID_MAX_BYTES      1024 /* of an id, and of a source */
#define CLOUDEVENTS_CONTEXT_MAX_BYTES (64 * KIB)

/* One "ce-" header. Borrowed. */
struct cloudevents_header {
    const char *name; /* without "ce-" */
    const char *value;
};

struct cloudevent {
    struct event
        event; /* channel is NULL where nothing names one; neither channel nor type
                           is held to its rules yet */
    const char *key;
    size_t key_len;
    char *memory; /* a heap block in which all of these stand but the data */
};

enum cloudevents_content {
    CLOUDEVENTS_JSON,
    CLOUDEVENTS_TEXT,
    CLOUDEVENTS_BYTES,
};

/* What a body is, by its media type, which may be NULL. */
enum cloudevents_content cloudevents_content(const char *content_type) MUST_CHECK;

/* Do these headers speak of a CloudEvent? One of those that each must have is enough: that
 * another one is missing shall be told. */
bool cloudevents_in_headers(const struct cloudevents_header *headers,
                            size_t count) MUST_CHECK;

/* Headers and body (which has a NUL behind it, and is UTF-8 unless it is CLOUDEVENTS_BYTES)
 * as one JSON object, a heap string. -EINVAL: err says what is wrong; -ENOMEM. */
int cloudevents_join(const struct cloudevents_header *headers, size_t count,
                     const char *content_type, const char *body, size_t len,
                     char **ret_text, struct err *err) MUST_CHECK;

/* The event in text[0..len), which is a JSON value and UTF-8. The data stays in it; the
 * caller frees ret_event->memory. -EINVAL: err says what is wrong; -ENOMEM. */
int cloudevents_read(const char *text, size_t len, struct cloudevent *ret_event,
                     struct err *err) MUST_CHECK;

#endif
