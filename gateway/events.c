#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "clock.h"
#include "common.h"
#include "confirm.h"
#include "consume.h"
#include "events.h"
#include "lookup.h"
#include "opening.h"
#include "query.h"
#include "shard.h"
#include "units.h"

/* ?last=N, at the most. */
#define LAST_MAX 10000

#define IDEMPOTENCY_KEY "Idempotency-Key"
#define CLIENT_ID       "X-Client-ID"

/* -- GET /events -- */

/* What the query asks for. */
struct subscription {
    struct query query;
    struct stream_text channels[STREAM_CHANNELS_MAX];
    size_t channel_count;
    struct stream_text types[STREAM_CHANNELS_MAX];
    size_t type_count;
    struct stream_text without[STREAM_CLIENTS_MAX];
    size_t without_count;
    enum stream_place place;
    struct stream_text last_id;
    unsigned last_count;
    size_t channels_max;
    const struct relay *relay;
};

static struct subscription *subscription_of(struct query *query)
{
    return CONTAINER_OF(query, struct subscription, query);
}

/* A channel's name, or a prefix of one (which may be empty) with '*' behind it. */
static bool pattern_is_fine(const char *text, size_t len, struct err *err)
{
    if (len > 0 && text[len - 1] == '*')
        return len == 1 || event_check_name("channel", text, len - 1, err) == 0;
    return event_check_channel(text, len, err) == 0;
}

static void add_channel(struct query *query, const char *text, size_t len)
{
    struct subscription *wanted = subscription_of(query);
    struct err err;

    if (wanted->channel_count == wanted->channels_max)
        query_fails(query, MHD_HTTP_BAD_REQUEST,
                    "more than %zu channels for one subscriber", wanted->channels_max);
    else if (!pattern_is_fine(text, len, &err))
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    else
        wanted->channels[wanted->channel_count++] = (struct stream_text){text, len};
}

/* A channel whose notifications are wanted, and no stream without them. */
static void add_relay(struct query *query, const char *text, size_t len)
{
    struct err err;

    if (len > RELAY_NAME_MAX_BYTES)
        query_fails(query, MHD_HTTP_BAD_REQUEST,
                    "relay is longer than the %d bytes of a channel of NOTIFY",
                    RELAY_NAME_MAX_BYTES);
    else if (len > 0 && text[len - 1] == '*')
        query_fails(query, MHD_HTTP_BAD_REQUEST,
                    "relay ends in '*': PostgreSQL cannot LISTEN by prefix");
    else if (event_check_name("relay", text, len, &err) < 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    else if (!relay_allows(subscription_of(query)->relay, text, len))
        query_fails(query, MHD_HTTP_FORBIDDEN,
                    "channel \"%.*s\" is not relayed: [channels] relay does not allow it",
                    (int)len, text);
    else
        add_channel(query, text, len);
}

static void add_type(struct query *query, const char *text, size_t len)
{
    struct subscription *wanted = subscription_of(query);
    struct err err;

    if (wanted->type_count == ARRAY_SIZE(wanted->types))
        query_fails(query, MHD_HTTP_BAD_REQUEST, "more than %zu types for one subscriber",
                    ARRAY_SIZE(wanted->types));
    else if (event_check_type(text, len, &err) < 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    else
        wanted->types[wanted->type_count++] = (struct stream_text){text, len};
}

static void exclude_client(struct query *query, const char *text, size_t len)
{
    struct subscription *wanted = subscription_of(query);
    struct err err;

    if (wanted->without_count == ARRAY_SIZE(wanted->without))
        query_fails(query, MHD_HTTP_BAD_REQUEST,
                    "more than %zu clients to do without for one subscriber",
                    ARRAY_SIZE(wanted->without));
    else if (event_check_name("exclude_client", text, len, &err) < 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    else
        wanted->without[wanted->without_count++] = (struct stream_text){text, len};
}

/* An id, or the word for the oldest event there is. */
static void set_last_id(struct query *query, const char *text, size_t len)
{
    static const char earliest[] = "earliest";
    struct subscription *wanted = subscription_of(query);

    if (len == 0)
        return;
    wanted->place = len == strlen(earliest) && memcmp(text, earliest, len) == 0
                        ? STREAM_AT_EARLIEST
                        : STREAM_AT_ID;
    wanted->last_id = (struct stream_text){text, len};
}

static void set_last(struct query *query, const char *text, size_t len)
{
    uint64_t count;

    (void)len;
    if (units_parse_count(text, &count) < 0 || count < 1 || count > LAST_MAX)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "last is a number from 1 to %d",
                    LAST_MAX);
    else
        subscription_of(query)->last_count = (unsigned)count;
}

/* 0, or -EINVAL: query_refuse(). */
static int read_subscription(const struct exchange *exchange,
                             struct subscription *ret_wanted)
{
    static const struct query_parameter parameters[] = {
        {.name = "channel", .take = add_channel},
        {.name = "relay", .take = add_relay},
        {.name = "type", .take = add_type},
        {.name = "exclude_client", .take = exclude_client},
        {.name = "last_event_id", .take = set_last_id},
        {.name = "last", .take = set_last},
        {.name = NULL},
    };
    const char *last_id = exchange_header(exchange, "Last-Event-ID");

    *ret_wanted = (struct subscription){
        .channels_max = common_of(exchange)->channels_max,
        .relay = common_of(exchange)->relay,
    };
    const char *for_group = consume_parameter_of(exchange);
    if (for_group != NULL) {
        query_fails(&ret_wanted->query, MHD_HTTP_BAD_REQUEST,
                    "%s is for a group: the parameter group is missing", for_group);
        return -EINVAL;
    }
    if (query_read(exchange, parameters, &ret_wanted->query) < 0)
        return -EINVAL;
    if (ret_wanted->channel_count == 0)
        add_channel(&ret_wanted->query, EVENT_DEFAULT_CHANNEL,
                    strlen(EVENT_DEFAULT_CHANNEL));
    /* The header wins: it is newer than the URL of the page that made the EventSource. */
    if (last_id != NULL)
        set_last_id(&ret_wanted->query, last_id, strlen(last_id));
    /* `last` is for the first connection: who comes back with an id goes on from there. */
    if (ret_wanted->place == STREAM_AT_NOW && ret_wanted->last_count > 0)
        ret_wanted->place = STREAM_AT_LAST;
    return 0;
}

enum MHD_Result events_subscribe(struct exchange *exchange)
{
    struct subscription wanted;
    size_t len;

    if (exchange_query(exchange, "group", &len) != NULL)
        return consume_subscribe(exchange);
    const int r = read_subscription(exchange, &wanted);
    /* A connection that came for a stream has memory for one small header, not for what may
     * come next: it ends with any other answer. */
    exchange->close = strcmp(exchange->method, MHD_HTTP_METHOD_HEAD) != 0;
    if (r < 0)
        return query_refuse(exchange, &wanted.query);
    if (strcmp(exchange->method, MHD_HTTP_METHOD_HEAD) == 0)
        return opening_head(exchange);
    if (!opening_has_room(exchange))
        return opening_later(exchange);

    struct stream *stream =
        fanout_subscribe(shard_fanout(exchange->connection->shard), exchange->connection,
                         &(struct stream_wishes){
                             .channels = wanted.channels,
                             .channel_count = wanted.channel_count,
                             .types = wanted.types,
                             .type_count = wanted.type_count,
                             .without = wanted.without,
                             .without_count = wanted.without_count,
                             .chunked = !exchange->http10,
                             .place = wanted.place,
                             .last_id = wanted.last_id,
                             .last_count = wanted.last_count,
                         });
    return stream != NULL ? opening_stream(exchange, stream) : opening_later(exchange);
}

/* -- POST /events -- */

struct publication {
    struct publish publish;
    struct request request;
    struct confirm confirm;
    struct exchange *exchange;
};

static void publication_free(void *state)
{
    struct publication *publication = state;

    confirm_done(&publication->confirm);
    request_done(&publication->request);
    free(publication);
}

/* Of a POST's headers, those that may be several. */
struct post_headers {
    struct cloudevents_header cloudevents[CLOUDEVENTS_ATTRIBUTES_MAX];
    size_t cloudevents_count; /* there may be more than fit */
    unsigned keys;
    unsigned clients;
};

static enum MHD_Result take_header(void *argument, enum MHD_ValueKind kind,
                                   const char *name, size_t name_len, const char *value,
                                   size_t value_len)
{
    struct post_headers *headers = argument;

    (void)kind;
    (void)name_len;
    (void)value_len;
    headers->keys += strcasecmp(name, IDEMPOTENCY_KEY) == 0;
    headers->clients += strcasecmp(name, CLIENT_ID) == 0;
    if (strncasecmp(name, "ce-", 3) != 0)
        return MHD_YES;
    if (headers->cloudevents_count < ARRAY_SIZE(headers->cloudevents))
        headers->cloudevents[headers->cloudevents_count] =
            (struct cloudevents_header){name + 3, value != NULL ? value : ""};
    headers->cloudevents_count++;
    return MHD_YES;
}

/* The header's value, without the white space behind it, which is none of it (RFC 9110, 5.5).
 * NULL: there is none. */
static const char *read_header(const struct exchange *exchange, const char *name,
                               size_t *ret_len)
{
    const char *value = exchange_header(exchange, name);
    size_t len = value != NULL ? strlen(value) : 0;

    while (len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t'))
        len--;
    *ret_len = len;
    return value;
}

static struct form form_of(const struct exchange *exchange, struct post_headers *headers)
{
    struct form form = {
        .content_type = exchange_header(exchange, MHD_HTTP_HEADER_CONTENT_TYPE),
        .headers = headers->cloudevents,
    };

    form.idempotency_key =
        read_header(exchange, IDEMPOTENCY_KEY, &form.idempotency_key_len);
    form.client = read_header(exchange, CLIENT_ID, &form.client_len);
    *headers = (struct post_headers){.keys = 0};
    (void)MHD_get_connection_values_n(exchange->mhd, MHD_HEADER_KIND, take_header,
                                      headers);
    form.header_count = MIN(headers->cloudevents_count, ARRAY_SIZE(headers->cloudevents));
    form.channel = exchange_query(exchange, "channel", &form.channel_len);
    form.type = exchange_query(exchange, "type", &form.type_len);
    return form;
}

static enum MHD_Result refuse_unread(struct exchange *exchange, unsigned status,
                                     const char *detail)
{
    exchange->close = true; /* the body is still on its way */
    return exchange_problem(exchange, status, "%s", detail);
}

static enum MHD_Result refuse_large(struct exchange *exchange)
{
    return exchange_problem(exchange, 413, "the body is larger than %zu bytes",
                            exchange->body_max);
}

/* The parameters of a POST: each once, and no others. */
static const struct query_parameter post_parameters[] = {
    {.name = "channel", .twice = "an event has one channel and one type"},
    {.name = "type", .twice = "an event has one channel and one type"},
    {.name = "wait", .twice = "there is one wait, and one group to wait for"},
    {.name = "group", .twice = "there is one wait, and one group to wait for"},
    {.name = NULL},
};

static int check_post_headers(const struct post_headers *headers, struct err *err)
{
    if (headers->keys > 1)
        return err_set(err, -EINVAL, "there are two " IDEMPOTENCY_KEY " headers");
    if (headers->clients > 1)
        return err_set(err, -EINVAL, "there are two " CLIENT_ID " headers");
    if (headers->cloudevents_count > ARRAY_SIZE(headers->cloudevents))
        return err_set(err, -EINVAL, "there are more than %d ce- headers",
                       CLOUDEVENTS_ATTRIBUTES_MAX);
    return 0;
}

bool events_check(struct exchange *exchange, enum MHD_Result *ret_result)
{
    struct post_headers headers;
    const struct form form = form_of(exchange, &headers);
    const char *length = exchange_header(exchange, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const char *coding = exchange_header(exchange, MHD_HTTP_HEADER_TRANSFER_ENCODING);
    struct confirm confirm;
    struct problem problem;
    struct query query;
    struct err err;

    /* A POST has a body. If libmicrohttpd sees none, its bytes must not become a request. */
    if (length == NULL && coding == NULL)
        exchange->close = true;
    if (exchange->connection->surplus) {
        stats_add(exchange->common->stats, STATS_CONNECTIONS_REFUSED, 1);
        *ret_result = refuse_unread(exchange, 429, "too many connections");
    } else if (!exchange_origin_is_fine(exchange))
        *ret_result = refuse_unread(
            exchange, 403, "this origin may not publish; see [http] cors_origins");
    else if (query_read(exchange, post_parameters, &query) < 0)
        *ret_result = refuse_unread(exchange, query.status, query.err.text);
    else if (confirm_read(exchange, &confirm, &err) < 0 ||
             check_post_headers(&headers, &err) < 0)
        *ret_result = refuse_unread(exchange, 400, err.text);
    else if (form_check(&form, &problem) < 0)
        *ret_result = refuse_unread(exchange, problem.status, problem.detail.text);
    else if (length != NULL && strtoull(length, NULL, 10) > exchange->body_max) {
        exchange->close = true; /* as above */
        *ret_result = refuse_large(exchange);
    } else
        return true;
    return false;
}

static void published(struct publish *publish)
{
    exchange_wake(CONTAINER_OF(publish, struct publication, publish)->exchange);
}

static enum MHD_Result submit(struct exchange *exchange, struct publication *publication)
{
    const struct events_common *common = common_of(exchange);

    publication->publish = (struct publish){
        .events = publication->request.events,
        .count = publication->request.count,
        .units = publication->request.units,
        .unit_count = publication->request.unit_count,
        .deadline_usec = clock_usec() + common->publish_time_usec,
        .done = published,
        .outcome = PUBLISH_UNAVAILABLE,
    };
    /* Asleep before it is submitted: the answer may come before submit returns. */
    exchange_sleep(exchange);
    const int result = publisher_submit(common->publisher, &publication->publish);
    if (result < 0) {
        publication->publish.outcome = PUBLISH_UNAVAILABLE;
        (void)err_set(&publication->publish.err, result, "%s",
                      result == -EAGAIN ? "too much is waiting to be written already"
                                        : "the gateway is about to end");
        exchange_wake(exchange);
    }
    return MHD_YES;
}

/* Who is to wait for the group has a place before the event is there. */
static enum MHD_Result prepare_wait(struct exchange *exchange,
                                    struct publication *publication)
{
    struct confirm *confirm = &publication->confirm;
    struct err err;

    if (confirm_read(exchange, confirm, &err) < 0)
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    if (confirm->exchange == NULL)
        return submit(exchange, publication);
    if (publication->request.many)
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST,
                                "one event at a time can be waited for");
    const struct event *event = &publication->request.events[0];
    if (group_check_channel(event->channel, event->channel_len, &err) < 0)
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST, "%s", err.text);
    if (confirm_reserve(confirm, common_of(exchange)->groups) < 0)
        return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE,
                                "too many wait already");
    return submit(exchange, publication);
}

static enum MHD_Result begin_publication(struct exchange *exchange)
{
    struct post_headers headers;
    const struct form form = form_of(exchange, &headers);
    struct problem problem = {0};
    struct publication *publication = calloc(1, sizeof(*publication));

    if (publication == NULL)
        return exchange_problem(exchange, 503, "no memory for the request");
    publication->exchange = exchange;
    exchange->state = publication;
    exchange->state_free = publication_free;

    /* A body of no bytes has no memory, and the parser wants its NUL. */
    const int result =
        buf_add_text(&exchange->body, "") < 0
            ? -ENOMEM
            : request_parse(&publication->request, &form, exchange->body.data,
                            exchange->body.len, &problem);

    if (result == -ENOMEM)
        return exchange_problem(exchange, 503, "no memory for the request");
    if (result < 0)
        return exchange_problem(exchange, problem.status, "%s", problem.detail.text);
    return prepare_wait(exchange, publication);
}

/* 200: nothing is new, because all of it is under keys that were known. */
static unsigned status_of(const struct request *request)
{
    size_t repeated = 0;

    for (size_t i = 0; i < request->unit_count; i++)
        repeated += request->units[i].known ? request->units[i].count : 0;
    return repeated == request->count ? MHD_HTTP_OK : MHD_HTTP_CREATED;
}

static enum MHD_Result answer_created(struct exchange *exchange,
                                      const struct request *request)
{
    static const char place[] = "/events/";
    char location[sizeof(place) + EVENT_ID_MAX_BYTES];

    if (!request->many) {
        memcpy(location, place, sizeof(place));
        (void)event_id_format(request->events[0].seq, location + sizeof(place) - 1);
        exchange_say(exchange, MHD_HTTP_HEADER_LOCATION, location);
    }
    return exchange_text(exchange, status_of(request), "application/json",
                         request_answer(request));
}

static enum MHD_Result answer_confirmed(struct publication *publication)
{
    if (!publication->confirm.begun)
        return confirm_wait(&publication->confirm, publication->request.events[0].seq);
    return confirm_answer(&publication->confirm, request_answer(&publication->request));
}

static enum MHD_Result answer_conflict(struct exchange *exchange,
                                       const struct publication *publication)
{
    static const char what[] = "another event was published with its source and id";

    if (exchange_header(exchange, IDEMPOTENCY_KEY) != NULL)
        return exchange_problem(exchange, 422,
                                "this " IDEMPOTENCY_KEY " was used for other events");
    if (!publication->request.many)
        return exchange_problem(exchange, 422, "%s", what);
    return exchange_problem(exchange, 422, "event %zu: %s",
                            publication->publish.conflict + 1, what);
}

enum MHD_Result events_publish(struct exchange *exchange)
{
    struct publication *publication = exchange->state;

    if (exchange->body_status == 413)
        return refuse_large(exchange);
    if (exchange->body_status != 0)
        return exchange_problem(exchange, exchange->body_status,
                                "too many bodies are being received; try again");
    if (publication == NULL)
        return begin_publication(exchange);

    switch (publication->publish.outcome) {
    case PUBLISH_DONE:
        return publication->confirm.exchange == NULL
                   ? answer_created(exchange, &publication->request)
                   : answer_confirmed(publication);
    case PUBLISH_REFUSED:
        return exchange_problem(exchange, 400, "%s", publication->publish.err.text);
    case PUBLISH_CONFLICT:
        return answer_conflict(exchange, publication);
    case PUBLISH_UNAVAILABLE:
    case PUBLISH_UNKNOWN:
        break;
    }
    return exchange_problem(exchange, 503, "%s", publication->publish.err.text);
}

/* -- GET /events/<id> -- */

struct reading {
    struct lookup lookup;
    struct exchange *exchange;
};

static void reading_free(void *state)
{
    struct reading *reading = state;

    lookup_clear(&reading->lookup);
    free(reading);
}

static void read_done(struct lookup *lookup)
{
    exchange_wake(CONTAINER_OF(lookup, struct reading, lookup)->exchange);
}

static enum MHD_Result begin_reading(struct exchange *exchange)
{
    const struct events_common *common = common_of(exchange);
    const char *id = exchange->path + strlen("/events/");
    uint64_t seq;

    if (event_id_parse(id, strlen(id), &seq) < 0)
        return exchange_problem(exchange, 404, "there is no event of that id");

    struct reading *reading = calloc(1, sizeof(*reading));
    if (reading == NULL)
        return exchange_problem(exchange, 503, "no memory for the request");
    exchange->state = reading;
    exchange->state_free = reading_free;
    reading->exchange = exchange;
    reading->lookup = (struct lookup){
        .seq = seq,
        .deadline_usec = clock_usec() + common->publish_time_usec,
        .done = read_done,
        .outcome = LOOKUP_UNAVAILABLE,
    };

    exchange_sleep(exchange);
    const int result = lookup_ask(&reading->lookup, common->readers);
    if (result < 0) {
        reading->lookup.outcome = LOOKUP_UNAVAILABLE;
        (void)err_set(&reading->lookup.err, result,
                      "too many wait for the database already");
        exchange_wake(exchange);
    }
    return MHD_YES;
}

enum MHD_Result events_read(struct exchange *exchange)
{
    const struct reading *reading = exchange->state;

    if (reading == NULL)
        return begin_reading(exchange);

    switch (reading->lookup.outcome) {
    case LOOKUP_FOUND:
        return exchange_text(
            exchange, 200, "application/json",
            request_event_json(&reading->lookup.event, reading->lookup.created_at));
    case LOOKUP_MISSING:
        return exchange_problem(exchange, 404, "there is no event of that id");
    case LOOKUP_UNAVAILABLE:
        break;
    }
    return exchange_problem(exchange, 503, "%s", reading->lookup.err.text);
}
