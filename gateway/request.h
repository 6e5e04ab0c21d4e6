/*
 * request.h - POST bodies in every form to events; problems to problem+json.
 *
 *   content type                          without ?channel=         with ?channel=
 *   application/json                      an event, or an array     the body is the data
 *   application/x-ndjson                  an event a line           data, one a line
 *   text/plain                            -                         the body, as a string
 *   application/<vendor>+json             -                         the body is the data
 *
 * An event is an object {"channel": …, "type": …, "data": …}; only "data" is required. The
 * data is taken as the text it came as: numbers of any size, key order, white space.
 *
 * Threads: any; pure functions. Cost: one pass over the body to check it, one for UTF-8.
 * Sources: RFC 8259 (JSON), RFC 9110 8.3 (Content-Type), RFC 9457 (problem details).
 */
#ifndef REQUEST_H
#define REQUEST_H

#include "base.h"
#include "err.h"
#include "event.h"

#define REQUEST_EVENTS_MAX 10000

/* What the body came with. Texts are borrowed and may be NULL. */
struct request_form {
    const char *content_type;
    const char *channel; /* of the query */
    size_t channel_len;
    const char *type; /* of the query */
    size_t type_len;
};

struct request {
    struct event *events; /* count of them; their texts live in `body` and `texts` */
    size_t count;
    bool many; /* asked as a list, to be answered as one */

    size_t capacity; /* request.c's own from here on */
    char **texts;
    size_t text_count;
    size_t text_capacity;
};

/* What is wrong, as it is answered (RFC 9457). */
struct request_problem {
    unsigned status; /* HTTP */
    struct err detail;
};

/* Is it a form that request_parse() will take? Known before the body has arrived. 0, or
 * -EINVAL with the problem. */
int request_check_form(const struct request_form *form,
                       struct request_problem *ret_problem) MUST_CHECK;

/* The events of the body, which stays the caller's and must stay unchanged as long as the
 * request is used. It must have a NUL behind it. 0; -EINVAL: the problem says what and
 * where; -ENOMEM. request_done() in any case. */
int request_parse(struct request *request, const struct request_form *form,
                  const char *body, size_t len,
                  struct request_problem *ret_problem) MUST_CHECK;
void request_done(struct request *request);

/* The answer to a request whose events have their seq. A heap string; NULL: no memory. */
char *request_answer(const struct request *request) MUST_CHECK;

/* One stored event. created_at may be NULL. A heap string; NULL: no memory. */
char *request_event_json(const struct event *event, const char *created_at) MUST_CHECK;

/* The problem document. A heap string; NULL: no memory. */
char *request_problem_json(const struct request_problem *problem) MUST_CHECK;

#endif
