#include <errno.h>
#include <string.h>
#include <strings.h>

#include <jansson.h>

#include "buf.h"
#include "json.h"
#include "request.h"

/* Of what somebody sent, so much is repeated in a complaint about it. */
#define QUOTED_MAX 64

/* -- memory -- */

/* Twice the room, for one of the request's two arrays. */
static int grow(void **array, size_t *capacity, size_t size)
{
    const size_t more = *capacity > 0 ? *capacity * 2 : 4;
    void *bigger = reallocarray(*array, more, size);

    if (bigger == NULL)
        return -ENOMEM;
    *array = bigger;
    *capacity = more;
    return 0;
}

/* The request frees the text with itself; at once if there is no room to remember it. */
static int keep_text(struct request *request, char *text)
{
    if (text == NULL)
        return -ENOMEM;
    if (request->text_count == request->text_capacity) {
        void *texts = request->texts;
        const int result = grow(&texts, &request->text_capacity, sizeof(*request->texts));

        request->texts = texts;
        if (result < 0) {
            free(text);
            return result;
        }
    }
    request->texts[request->text_count++] = text;
    return 0;
}

static int add_event(struct request *request, const struct event *event)
{
    if (request->count == request->capacity) {
        void *events = request->events;
        const int result = grow(&events, &request->capacity, sizeof(*request->events));

        request->events = events;
        if (result < 0)
            return result;
    }
    request->events[request->count++] = *event;
    return 0;
}

static int add_unit(struct request *request, const struct event_unit *unit)
{
    if (request->unit_count == request->unit_capacity) {
        void *units = request->units;
        const int result = grow(&units, &request->unit_capacity, sizeof(*request->units));

        request->units = units;
        if (result < 0)
            return result;
    }
    request->units[request->unit_count++] = *unit;
    return 0;
}

void request_done(struct request *request)
{
    for (size_t i = 0; i < request->text_count; i++)
        free(request->texts[i]);
    free(request->texts);
    free(request->events);
    free(request->units);
    *request = (struct request){0};
}

/* -- one event object -- */

/* A walk over one value's text. */
struct walk {
    const char *text;
    size_t len;
    size_t at;
    const char *where; /* "event 3: " or "" */
    struct problem *problem;
};

static int bad(struct walk *walk, const char *what)
{
    return problem_set(walk->problem, 400, "%s%s", walk->where, what);
}

/* The value that begins here, and the walk moved behind it. */
static int walk_value(struct walk *walk, size_t *ret_begin, size_t *ret_end)
{
    struct err err;

    if (json_scan(walk->text, walk->len, walk->at, ret_end, &err) < 0)
        return bad(walk, err.text);
    *ret_begin = walk->at;
    walk->at = json_skip_space(walk->text, walk->len, *ret_end);
    return 0;
}

/* What a JSON string means, as a text of the request's. */
static int decode_string(struct request *request, struct walk *walk, const char *what,
                         size_t begin, size_t end, const char **ret_text, size_t *ret_len)
{
    /* Most strings mean what stands between their quotes. */
    if (walk->text[begin] == '"' &&
        memchr(walk->text + begin, '\\', end - begin) == NULL) {
        char *plain = strndup(walk->text + begin + 1, end - begin - 2);

        *ret_len = end - begin - 2;
        *ret_text = plain;
        return keep_text(request, plain);
    }

    json_error_t error;
    json_t *value = json_loadb(walk->text + begin, end - begin, JSON_DECODE_ANY, &error);

    if (value == NULL || !json_is_string(value)) {
        json_decref(value);
        return problem_set(walk->problem, 400, "%s\"%s\" is not a string of valid text",
                           walk->where, what);
    }
    char *text = strndup(json_string_value(value), json_string_length(value));
    *ret_len = json_string_length(value);
    *ret_text = text;
    json_decref(value);
    return keep_text(request, text);
}

/* The member's name. Most mean what stands between their quotes, and need no copy. */
static int parse_key(struct request *request, struct walk *walk, const char **ret_key,
                     size_t *ret_len)
{
    size_t begin, end;
    const int result = walk_value(walk, &begin, &end);

    if (result < 0)
        return result;
    walk->at = json_skip_space(walk->text, walk->len, walk->at + 1); /* the colon */
    if (memchr(walk->text + begin, '\\', end - begin) != NULL)
        return decode_string(request, walk, "member", begin, end, ret_key, ret_len);
    *ret_key = walk->text + begin + 1;
    *ret_len = end - begin - 2;
    return 0;
}

static bool is_word(const char *text, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

/* One member: "key": value. The key is one of three. */
static int parse_member(struct request *request, struct walk *walk, struct event *event)
{
    size_t value_begin, value_end, key_len;
    const char *key;
    int result = parse_key(request, walk, &key, &key_len);

    if (result == 0)
        result = walk_value(walk, &value_begin, &value_end);
    if (result < 0)
        return result;

    const bool is_channel = is_word(key, key_len, "channel");
    const bool is_type = is_word(key, key_len, "type");
    const bool is_data = is_word(key, key_len, "data");
    if (!is_channel && !is_type && !is_data)
        return problem_set(
            walk->problem, 400,
            "%sunknown member \"%.*s\"; an event has \"channel\", \"type\" "
            "and \"data\"",
            walk->where, (int)event_text_cut(key, MIN(key_len, QUOTED_MAX)), key);
    if ((is_channel && event->channel != NULL) || (is_type && event->type != NULL) ||
        (is_data && event->data != NULL))
        return problem_set(walk->problem, 400, "%s\"%.*s\" is there twice", walk->where,
                           (int)key_len, key);

    if (is_channel)
        return decode_string(request, walk, "channel", value_begin, value_end,
                             &event->channel, &event->channel_len);
    if (is_type)
        return decode_string(request, walk, "type", value_begin, value_end, &event->type,
                             &event->type_len);
    event->data = walk->text + value_begin;
    event->data_len = value_end - value_begin;
    return 0;
}

/* Fills in what was not said, and holds the names to their rules. */
static int complete_event(struct walk *walk, struct event *event)
{
    struct err err;

    if (event->data == NULL)
        return bad(walk, "\"data\" is missing");
    if (event->channel == NULL) {
        event->channel = EVENT_DEFAULT_CHANNEL;
        event->channel_len = strlen(EVENT_DEFAULT_CHANNEL);
    }
    if (event->type == NULL) {
        event->type = EVENT_DEFAULT_TYPE;
        event->type_len = strlen(EVENT_DEFAULT_TYPE);
    }
    if (event_check_channel(event->channel, event->channel_len, &err) < 0 ||
        event_check_type(event->type, event->type_len, &err) < 0)
        return bad(walk, err.text);
    return 0;
}

/* The object in text[0..len), already known to be JSON. */
static int parse_object(struct request *request, const char *text, size_t len,
                        const char *where, struct problem *problem)
{
    struct walk walk = {text, len, 0, where, problem};
    struct event event = {0};

    if (text[0] != '{')
        return bad(&walk, "an event is an object with \"data\"; with ?channel= in the "
                          "query the whole body is the data");

    walk.at = json_skip_space(text, len, 1);
    while (text[walk.at] != '}') {
        const int result = parse_member(request, &walk, &event);

        if (result < 0)
            return result;
        if (text[walk.at] == ',')
            walk.at = json_skip_space(text, len, walk.at + 1);
    }
    const int result = complete_event(&walk, &event);
    return result < 0 ? result : add_event(request, &event);
}

/* A CloudEvent in text[0..len), already known to be JSON; a unit of its own. */
static int parse_cloudevent(struct request *request, const struct form *form,
                            const char *text, size_t len, const char *where,
                            struct problem *problem)
{
    struct walk walk = {text, len, 0, where, problem};
    struct cloudevent found;
    struct err err;
    int result = cloudevents_read(text, len, &found, &err);

    if (result == -EINVAL)
        return bad(&walk, err.text);
    if (result == 0)
        result = keep_text(request, found.memory);
    if (result < 0)
        return result;
    if (form->channel != NULL) {
        found.event.channel = form->channel;
        found.event.channel_len = form->channel_len;
    }
    result = complete_event(&walk, &found.event);
    if (result == 0)
        result = add_unit(request, &(struct event_unit){.key = found.key,
                                                        .key_len = found.key_len,
                                                        .first = request->count,
                                                        .count = 1});
    return result < 0 ? result : add_event(request, &found.event);
}

/* One value of the body: an event, or with ?channel= the data of one. */
static int parse_value(struct request *request, const struct form *form, const char *text,
                       size_t len, const char *where, struct problem *problem)
{
    if (request->count >= REQUEST_EVENTS_MAX)
        return problem_set(problem, 400, "more than %d events in one request",
                           REQUEST_EVENTS_MAX);
    if (request->cloudevents)
        return parse_cloudevent(request, form, text, len, where, problem);
    if (form->channel == NULL)
        return parse_object(request, text, len, where, problem);

    const bool typed = form->type != NULL;
    return add_event(request,
                     &(struct event){
                         .channel = form->channel,
                         .channel_len = form->channel_len,
                         .type = typed ? form->type : EVENT_DEFAULT_TYPE,
                         .type_len = typed ? form->type_len : strlen(EVENT_DEFAULT_TYPE),
                         .data = text,
                         .data_len = len,
                     });
}

/* -- the forms -- */

static int parse_array(struct request *request, const struct form *form, const char *text,
                       size_t len, struct problem *problem)
{
    struct walk walk = {text, len, json_skip_space(text, len, 1), "", problem};
    char where[40];

    request->many = true;
    while (text[walk.at] != ']') {
        size_t begin, end;

        (void)snprintf(where, sizeof(where), "event %zu: ", request->count + 1);
        int result = walk_value(&walk, &begin, &end);
        if (result == 0)
            result =
                parse_value(request, form, text + begin, end - begin, where, problem);
        if (result < 0)
            return result;
        if (text[walk.at] == ',')
            walk.at = json_skip_space(text, len, walk.at + 1);
    }
    return 0;
}

static int parse_json(struct request *request, const struct form *form, const char *body,
                      size_t len, struct problem *problem)
{
    struct err err;
    size_t begin, end;

    if (json_check(body, len, &begin, &end, &err) < 0)
        return problem_set(problem, 400, "not JSON: %s", err.text);
    if (form->channel == NULL && body[begin] == '[' && !request->cloudevents)
        return parse_array(request, form, body + begin, end - begin, problem);
    return parse_value(request, form, body + begin, end - begin, "", problem);
}

static int parse_lines(struct request *request, const struct form *form, const char *body,
                       size_t len, struct problem *problem)
{
    size_t number = 0;

    request->many = true;
    for (size_t at = 0; at < len;) {
        const char *line = body + at;
        const char *line_end = memchr(line, '\n', len - at);
        const size_t line_len = line_end != NULL ? (size_t)(line_end - line) : len - at;
        char where[40];
        struct err err;
        size_t begin, end;

        at += line_len + 1;
        number++;
        if (json_skip_space(line, line_len, 0) == line_len)
            continue; /* an empty line is no event */
        (void)snprintf(where, sizeof(where), "line %zu: ", number);
        if (json_check(line, line_len, &begin, &end, &err) < 0)
            return problem_set(problem, 400, "%snot JSON: %s", where, err.text);

        const int result =
            parse_value(request, form, line + begin, end - begin, where, problem);
        if (result < 0)
            return result;
    }
    return 0;
}

static int parse_text(struct request *request, const struct form *form, const char *body,
                      size_t len, struct problem *problem)
{
    json_t *value = json_stringn(body, len);
    char *text = json_dumps(value, JSON_ENCODE_ANY);

    json_decref(value);
    const int result = keep_text(request, text);
    return result < 0 ? result
                      : parse_value(request, form, text, strlen(text), "", problem);
}

static int parse_batch(struct request *request, const struct form *form, const char *body,
                       size_t len, struct problem *problem)
{
    struct err err;
    size_t begin, end;

    if (json_check(body, len, &begin, &end, &err) < 0)
        return problem_set(problem, 400, "not JSON: %s", err.text);
    if (body[begin] != '[')
        return problem_set(problem, 400, "a batch is an array of CloudEvents");
    return parse_array(request, form, body + begin, end - begin, problem);
}

static int parse_binary(struct request *request, const struct form *form,
                        const char *body, size_t len, struct problem *problem)
{
    struct err err;
    char *text = NULL;
    int result = cloudevents_join(form->headers, form->header_count, form->content_type,
                                  body, len, &text, &err);

    if (result == -EINVAL)
        return problem_set(problem, 400, "%s", err.text);
    if (result == 0)
        result = keep_text(request, text);
    return result < 0 ? result
                      : parse_value(request, form, text, strlen(text), "", problem);
}

/* -- units -- */

static int compare_keys(const void *left, const void *right)
{
    const struct event_unit *a = *(const struct event_unit *const *)left;
    const struct event_unit *b = *(const struct event_unit *const *)right;
    const int order = memcmp(a->key, b->key, MIN(a->key_len, b->key_len));

    return order != 0 ? order : (a->key_len > b->key_len) - (a->key_len < b->key_len);
}

/* Two that are the same would have to be told apart by whoever asks for one of them. */
static int check_units(const struct request *request, struct problem *problem)
{
    if (request->unit_count < 2)
        return 0;

    const struct event_unit **sorted = calloc(request->unit_count, sizeof(const void *));
    int result = 0;

    if (sorted == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < request->unit_count; i++)
        sorted[i] = &request->units[i];
    qsort(sorted, request->unit_count, sizeof(const void *), compare_keys);
    for (size_t i = 1; i < request->unit_count && result == 0; i++)
        if (compare_keys(&sorted[i - 1], &sorted[i]) == 0)
            result = problem_set(problem, 400,
                                 "event %zu and event %zu have the same source and id",
                                 MIN(sorted[i - 1]->first, sorted[i]->first) + 1,
                                 MAX(sorted[i - 1]->first, sorted[i]->first) + 1);
    free(sorted);
    return result;
}

/* "i:" and the key: no CloudEvent's key looks like it. */
static int use_key(struct request *request, const char *key, size_t len)
{
    char *text = malloc(len + 3);

    if (text != NULL)
        (void)snprintf(text, len + 3, "i:%.*s", (int)len, key);
    const int result = keep_text(request, text);
    if (result < 0)
        return result;
    request->unit_count = 0;
    return add_unit(request, &(struct event_unit){.key = text,
                                                  .key_len = strlen(text),
                                                  .first = 0,
                                                  .count = request->count});
}

/* One client publishes all of it. */
static void set_client(struct request *request, const struct form *form)
{
    for (size_t i = 0; form->client != NULL && i < request->count; i++) {
        request->events[i].client = form->client;
        request->events[i].client_len = form->client_len;
    }
}

/* -- the body -- */

static int check_bytes(const char *body, size_t len, struct problem *problem)
{
    if (!event_text_is_utf8(body, len))
        return problem_set(problem, 400, "the body is not valid UTF-8");
    if (memchr(body, '\0', len) != NULL)
        return problem_set(problem, 400, "the body has a NUL in it");
    return 0;
}

static int parse_form(struct request *request, const struct form *form,
                      enum form_kind kind, const char *body, size_t len,
                      struct problem *problem)
{
    const bool bytes = kind == FORM_BINARY &&
                       cloudevents_content(form->content_type) == CLOUDEVENTS_BYTES;
    int result = bytes ? 0 : check_bytes(body, len, problem);

    if (result < 0)
        return result;
    request->cloudevents = kind >= FORM_EVENT;
    switch (kind) {
    case FORM_JSON:
    case FORM_EVENT:
        result = parse_json(request, form, body, len, problem);
        break;
    case FORM_NDJSON:
        result = parse_lines(request, form, body, len, problem);
        break;
    case FORM_TEXT:
        result = parse_text(request, form, body, len, problem);
        break;
    case FORM_BATCH:
        result = parse_batch(request, form, body, len, problem);
        break;
    case FORM_BINARY:
        result = parse_binary(request, form, body, len, problem);
        break;
    }
    return result;
}

int request_parse(struct request *request, const struct form *form, const char *body,
                  size_t len, struct problem *ret_problem)
{
    enum form_kind kind;
    int result = form_find(form, &kind, ret_problem);

    *request = (struct request){0};
    if (result == 0)
        result = parse_form(request, form, kind, body, len, ret_problem);
    if (result == 0 && request->count == 0)
        return problem_set(ret_problem, 400, "there is no event in the body");
    set_client(request, form);
    if (result == 0)
        result = check_units(request, ret_problem);
    if (result == 0 && form->idempotency_key != NULL)
        result = use_key(request, form->idempotency_key, form->idempotency_key_len);
    return result;
}

/* -- what is answered -- */

/* A name as a JSON string. Nothing else in it has to be escaped: names have no control
 * characters. */
static void add_name(struct buf *text, const char *name, size_t len)
{
    (void)buf_add(text, "\"", 1);
    for (size_t at = 0; at < len;) {
        size_t plain = at;

        while (plain < len && name[plain] != '"' && name[plain] != '\\')
            plain++;
        (void)buf_add(text, name + at, plain - at);
        if (plain < len)
            (void)buf_add(text, (const char[]){'\\', name[plain]}, 2);
        at = plain + 1;
    }
    (void)buf_add(text, "\"", 1);
}

/* {"id":"17","channel":"orders","type":"created", and the brace that ends it is the caller's.
 * Written by hand, since every POST is answered with one. */
static void begin_summary(struct buf *text, const struct event *event)
{
    char id[EVENT_ID_MAX_BYTES + 1];
    const size_t id_len = event_id_format(event->seq, id);

    (void)buf_add_text(text, "{\"id\":\"");
    (void)buf_add(text, id, id_len);
    (void)buf_add_text(text, "\",\"channel\":");
    add_name(text, event->channel, event->channel_len);
    (void)buf_add_text(text, ",\"type\":");
    add_name(text, event->type, event->type_len);
}

char *request_answer(const struct request *request)
{
    struct buf text = BUF_EMPTY;

    (void)buf_reserve(&text, request->count * 64);
    if (request->many)
        (void)buf_add_text(&text, "{\"events\":[");
    for (size_t i = 0; i < request->count; i++) {
        if (i > 0)
            (void)buf_add_text(&text, ",");
        begin_summary(&text, &request->events[i]);
        (void)buf_add_text(&text, "}");
    }
    if (request->many)
        (void)buf_add_text(&text, "]}");
    return buf_steal(&text);
}

char *request_event_json(const struct event *event, const char *created_at)
{
    struct buf text = BUF_EMPTY;

    begin_summary(&text, event);
    if (created_at != NULL)
        (void)buf_add_format(&text, ",\"created_at\":\"%s\"", created_at);
    /* The data goes in as the text it is; whatever a library makes of it is not it. */
    (void)buf_add_text(&text, ",\"data\":");
    (void)buf_add(&text, event->data, event->data_len);
    (void)buf_add_text(&text, "}");
    return buf_steal(&text);
}
