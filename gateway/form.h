/*
 * form.h - what the body of a POST is, by what it comes with: its headers and the query.
 *
 * Threads: any; pure functions. Source: RFC 9110 8.3 (Content-Type).
 */
#ifndef FORM_H
#define FORM_H

#include "base.h"
#include "cloudevents.h"
#include "event.h"
#include "problem.h"

#define FORM_KEY_MAX_BYTES 255

/* What the body came with. Texts are borrowed and may be NULL. */
struct form {
    const char *content_type;
    const char *channel; /* of the query */
    size_t channel_len;
    const char *type; /* of the query */
    size_t type_len;
    const char *idempotency_key;
    size_t idempotency_key_len;
    const char *client; /* who publishes; not NUL-terminated */
    size_t client_len;
    const struct cloudevents_header *headers;
    size_t header_count;
};

enum form_kind {
    FORM_JSON,
    FORM_NDJSON,
    FORM_TEXT,
    FORM_EVENT, /* CloudEvents from here on: one, as JSON */
    FORM_BATCH,
    FORM_BINARY, /* one, in headers and body */
};

/* Which form it is. 0, or -EINVAL with the problem. */
int form_find(const struct form *form, enum form_kind *ret_kind,
              struct problem *ret_problem) MUST_CHECK;

/* Is it a form that request_parse() will take, and are key, client, channel and type in
 * order? Known
 * before the body has arrived. 0, or -EINVAL with the problem. */
int form_check(const struct form *form, struct problem *ret_problem) MUST_CHECK;

#endif
