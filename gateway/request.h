/*
 * request.h - POST bodies in every form to events, and what is answered.
 *
 *   content type                          without ?channel=         with ?channel=
 *   application/json                      an event, or an array     the body is the data
 *   application/x-ndjson                  an event a line           data, one a line
 *   text/plain                            -                         the body, as a string
 *   application/<vendor>+json             -                         the body is the data
 *   application/cloudevents+json          a CloudEvent              the same, on that channel
 *   application/cloudevents-batch+json    an array of them          likewise
 *   any, beside ce- headers               a CloudEvent              likewise
 *
 * An event is an object {"channel": …, "type": …, "data": …}; only "data" is required. The
 * data is taken as the text it came as: numbers of any size, key order, white space.
 * CloudEvents are described in cloudevents.h.
 *
 * Events that are published once, however often they are sent, are units: all of a request
 * with an Idempotency-Key are one, else each CloudEvent is one.
 *
 * Threads: any; pure functions. Cost: one pass over the body to check it, one for UTF-8.
 * Source: RFC 8259 (JSON).
 */
#ifndef REQUEST_H
#define REQUEST_H

#include "base.h"
#include "event.h"
#include "form.h"
#include "problem.h"

#define REQUEST_EVENTS_MAX 10000

struct request {
    struct event *events; /* count of them; their texts live in the body, in `texts`, and
                             where those of the form do */
    size_t count;
    struct event_unit *units;
    size_t unit_count;
    bool many; /* asked as a list, to be answered as one */

    size_t capacity; /* request.c's own from here on */
    size_t unit_capacity;
    bool cloudevents;
    char **texts;
    size_t text_count;
    size_t text_capacity;
};

/* The events of the body, which stays the caller's and must stay unchanged as long as the
 * request is used. It must have a NUL behind it. 0; -EINVAL: the problem says what and
 * where; -ENOMEM. request_done() in any case. */
int request_parse(struct request *request, const struct form *form, const char *body,
                  size_t len, struct problem *ret_problem) MUST_CHECK;
void request_done(struct request *request);

/* The answer to a request whose events have their seq. A heap string; NULL: no memory. */
char *request_answer(const struct request *request) MUST_CHECK;

/* One stored event. created_at may be NULL. A heap string; NULL: no memory. */
char *request_event_json(const struct event *event, const char *created_at) MUST_CHECK;

#endif
