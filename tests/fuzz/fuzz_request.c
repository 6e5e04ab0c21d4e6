/*
 * fuzz_request.c - whatever is POSTed becomes events that can be stored and sent, or a
 * problem that says why not.
 *
 * The input: two bytes that choose the form, then for a form with a channel its name up to a
 * newline, then for one with headers these, a line each and an empty one, then the body.
 */
#include <errno.h>
#include <string.h>

#include <jansson.h>

#include "json.h"
#include "request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static const char *const content_types[] = {
    "application/json",
    "application/x-ndjson",
    "text/plain",
    "application/vnd.x+json",
    "application/json; charset=\"UTF-8\"",
    "text/plain;charset=utf-8",
    "application/cloudevents+json",
    "text/plain; charset=x",
    "application/cloudevents-batch+json",
    "application/cloudevents+json; charset=utf-8",
    "image/png",
    NULL,
};

#define HEADERS_MAX 8

static void require(bool truth)
{
    if (!truth)
        abort();
}

/* What a client is answered is JSON that a library understands. */
static void check_answer(char *text)
{
    json_t *value = json_loads(text != NULL ? text : "", JSON_DECODE_ANY, NULL);

    require(value != NULL);
    json_decref(value);
    free(text);
}

/* Stored events are JSON, too, but with numbers and depths that a library may not hold. */
static void check_stored(char *text)
{
    require(text != NULL && json_check(text, strlen(text), NULL, NULL, NULL) == 0);
    free(text);
}

static bool is_shallow(const struct event *event)
{
    const char *data = event->data;
    size_t depth = 0;

    for (size_t i = 0; i < event->data_len; i++)
        depth += data[i] == '[' || data[i] == '{';
    return depth < JSON_MAX_DEPTH;
}

/* Attributes can be stored, keys indexed, and each event is of one unit at the most. */
static void check_units(const struct request *request)
{
    size_t next = 0;

    require(request->unit_count <= request->count);
    for (size_t i = 0; i < request->unit_count; i++) {
        const struct event_unit *unit = &request->units[i];

        require(unit->first >= next && unit->count > 0 && !unit->known);
        next = unit->first + unit->count;
        require(next <= request->count);
        require(unit->key_len > 2 && unit->key_len <= EVENT_KEY_MAX_BYTES);
        require(unit->key[unit->key_len] == '\0' && unit->key[1] == ':');
        require(event_text_is_utf8(unit->key, unit->key_len) &&
                memchr(unit->key, '\0', unit->key_len) == NULL);
    }
    for (size_t i = 0; i < request->count; i++) {
        const struct event *event = &request->events[i];

        if (event->attributes != NULL) {
            require(event->attributes_len <= CLOUDEVENTS_CONTEXT_MAX_BYTES);
            require(json_check(event->attributes, event->attributes_len, NULL, NULL,
                               NULL) == 0);
            require(event_text_is_utf8(event->attributes, event->attributes_len));
        }
    }
}

static void check_events(struct request *request, const char *body, size_t len,
                         bool inside)
{
    check_units(request);
    require(request->count > 0 && request->count <= REQUEST_EVENTS_MAX);
    require(request->many || request->count == 1);
    for (size_t i = 0; i < request->count; i++) {
        struct event *event = &request->events[i];
        size_t begin, end;

        require(event->seq == 0 && strlen(event->channel) == event->channel_len &&
                strlen(event->type) == event->type_len);
        require(event_check_channel(event->channel, event->channel_len, NULL) == 0);
        require(event_check_type(event->type, event->type_len, NULL) == 0);
        require(event_text_is_utf8(event->data, event->data_len));
        require(json_check(event->data, event->data_len, &begin, &end, NULL) == 0);
        require(begin == 0 && end == event->data_len);
        if (inside && strcmp(event->data, "null") != 0)
            require(event->data >= body && event->data + event->data_len <= body + len);
        event->seq = i + 1;
        if (i < 3 && is_shallow(event))
            check_stored(request_event_json(event, "2024-01-01T00:00:00Z"));
    }
    check_answer(request_answer(request));
}

static void check_problem(const struct problem *problem)
{
    require(problem->status == 400 || problem->status == 415);
    require(problem->detail.text[0] != '\0');
    check_answer(problem_json(problem));
}

static void check_body(const struct form *form, const char *body, size_t len)
{
    struct problem problem = {0};
    struct request request;

    if (form_check(form, &problem) < 0) {
        check_problem(&problem);
        return;
    }
    const int result = request_parse(&request, form, body, len, &problem);
    if (result == 0)
        check_events(&request, body, len,
                     form->header_count == 0 &&
                         strncmp(form->content_type, "text", 4) != 0);
    else if (result == -EINVAL)
        check_problem(&problem);
    else
        require(result == -ENOMEM);
    request_done(&request);
}

/* "id:1\n" and so on, until an empty line; returns where the rest begins. */
static size_t take_headers(char *text, size_t len, struct cloudevents_header *headers,
                           struct form *form)
{
    size_t at = 0;

    form->headers = headers;
    while (at < len && form->header_count < HEADERS_MAX) {
        char *line = text + at;
        char *line_end = memchr(line, '\n', len - at);

        if (line_end == NULL)
            break;
        *line_end = '\0';
        at = (size_t)(line_end - text) + 1;
        char *value = strchr(line, ':');
        if (value == NULL)
            break;
        *value = '\0';
        headers[form->header_count++] = (struct cloudevents_header){line, value + 1};
    }
    return at;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct cloudevents_header headers[HEADERS_MAX];
    char channel[300];
    struct form form = {0};

    if (len < 2)
        return 0;
    if (data[1] & 1) {
        form.idempotency_key = data[1] & 2 ? "key" : "a key";
        form.idempotency_key_len = strlen(form.idempotency_key);
    }
    const bool has_headers = data[1] & 4;
    form.content_type = content_types[data[0] % ARRAY_SIZE(content_types)];
    const bool has_channel = data[0] & 0x40;
    const bool has_type = data[0] & 0x80;
    data += 2;
    len -= 2;
    if (has_channel) {
        const uint8_t *line_end = memchr(data, '\n', len);
        const size_t line = line_end != NULL ? (size_t)(line_end - data) : len;

        form.channel_len = MIN(line, sizeof(channel) - 1);
        memcpy(channel, data, form.channel_len);
        channel[form.channel_len] = '\0';
        form.channel = channel;
        len -= MIN(line + 1, len);
        data += line_end != NULL ? line + 1 : line;
    }
    if (has_type) {
        form.type = form.channel != NULL ? "created" : "x";
        form.type_len = strlen(form.type);
    }

    /* A copy of exactly that size and its NUL: the sanitizer sees a look behind it. */
    char *body = malloc(len + 1);
    if (body == NULL)
        return 0;
    memcpy(body, data, len);
    body[len] = '\0';
    const size_t begin = has_headers ? take_headers(body, len, headers, &form) : 0;
    check_body(&form, body + begin, len - begin);
    free(body);
    return 0;
}
