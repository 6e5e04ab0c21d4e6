#include <ctype.h>
#include <stdatomic.h>
#include <string.h>
#include <strings.h>

#include "clock.h"
#include "common.h"
#include "events.h"
#include "exchange.h"
#include "http.h"
#include "jobs.h"
#include "shard.h"
#include "slowest.h"

/* Of a path that leads nowhere, so much is repeated. */
#define PATH_QUOTED_MAX 200

/* Bodies being received, all together, may weigh so many times one body's limit. */
#define BODIES_MAX 64

struct http {
    struct events_common common; /* the first member: see common_of() */
    struct http_settings settings;
    char *cors_origins;
    _Atomic size_t bodies_bytes; /* [atomic] of POSTs that are not answered yet */
};

struct route {
    const char *path;
    const char *allow; /* for OPTIONS and 405 */
    exchange_endpoint *get;
    exchange_endpoint *post;
    exchange_endpoint *delete;
    /* Asked before the body is read; see events_check(). */
    bool (*check)(struct exchange *exchange, enum MHD_Result *ret_result);
};

/* Stands for the exchange of a connection that has become a stream, which needs none. */
static char stream_state;

static struct http *http_of(const struct exchange *exchange)
{
    struct exchange_common *common =
        (struct exchange_common *)(uintptr_t)exchange->common;

    return CONTAINER_OF(CONTAINER_OF(common, struct events_common, exchange), struct http,
                        common);
}

struct http *http_new(const struct http_settings *settings)
{
    struct http *http = calloc(1, sizeof(*http));

    if (http == NULL)
        return NULL;
    http->settings = *settings;
    http->cors_origins = strdup(settings->cors_origins);
    if (http->cors_origins == NULL) {
        free(http);
        return NULL;
    }
    http->common = (struct events_common){
        .exchange = {.stats = settings->stats,
                     .cors_origins = http->cors_origins,
                     .retry_usec = settings->retry_usec},
        .publisher = settings->publisher,
        .readers = settings->readers,
        .groups = settings->groups,
        .publish_time_usec = settings->publish_time_usec,
        .relay = settings->relay,
        .channels_max = settings->channels_max,
    };
    return http;
}

void http_free(struct http *http)
{
    if (http == NULL)
        return;
    free(http->cors_origins);
    free(http);
}

/* -- is it sound? -- */

struct soundness {
    unsigned hosts;
    unsigned lengths;
    unsigned codings;
    size_t bytes; /* that the header's lines take at the most, as they are known here */
    const char *fault; /* the first one found */
};

/* A token (RFC 9110, 5.6.2): "Content-Length " with a space is another header to us and may
 * be none to a proxy. */
static bool is_token(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (!isalnum((unsigned char)name[i]) &&
            strchr("!#$%&'*+-.^_`|~", name[i]) == NULL)
            return false;
    }
    return len > 0 && memchr(name, '\0', len) == NULL;
}

static bool is_number(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
    }
    return len > 0 && len < 19;
}

static const char *header_fault(struct soundness *soundness, const char *name,
                                size_t name_len, const char *value, size_t value_len)
{
    if (!is_token(name, name_len))
        return "a header's name has a character that none may have";
    if (value_len > 0 && memchr(value, '\0', value_len) != NULL)
        return "a header has a NUL in it";
    if (strcasecmp(name, MHD_HTTP_HEADER_HOST) == 0 && ++soundness->hosts > 1)
        return "there are two Host headers";
    if (strcasecmp(name, MHD_HTTP_HEADER_CONTENT_LENGTH) == 0) {
        if (++soundness->lengths > 1)
            return "there are two Content-Length headers";
        if (!is_number(value, value_len))
            return "the Content-Length is not a number";
    }
    if (strcasecmp(name, MHD_HTTP_HEADER_TRANSFER_ENCODING) == 0) {
        if (++soundness->codings > 1 || strcasecmp(value, "chunked") != 0)
            return "the only Transfer-Encoding there may be is \"chunked\"";
    }
    return NULL;
}

static enum MHD_Result look_at_header(void *argument, enum MHD_ValueKind kind,
                                      const char *name, size_t name_len,
                                      const char *value, size_t value_len)
{
    struct soundness *soundness = argument;

    (void)kind;
    soundness->bytes += name_len + strlen(": ") + value_len + strlen("\r\n");
    if (soundness->fault == NULL)
        soundness->fault = header_fault(soundness, name, name_len,
                                        value != NULL ? value : "", value_len);
    return MHD_YES;
}

/* The lobby has looked at the bytes of a connection's first header. Later ones are seen by
 * libmicrohttpd alone, which cuts a line at a NUL: then the header is longer than all that
 * is known of it. (So it is with white space that nobody needs; and lines without the usual
 * space behind the colon could hide as many bytes.) */
static bool has_hidden_bytes(const struct exchange *exchange, const char *version,
                             const struct soundness *soundness, size_t header_len)
{
    const struct connection *connection = exchange->connection;
    const size_t line = strlen(exchange->method) + connection->uri_len + strlen(version) +
                        strlen("  \r\n");

    return connection->requests > 1 &&
           header_len > line + soundness->bytes + strlen("\r\n");
}

/* NULL, or what is wrong with the request before anybody asks what it wants. */
static const char *request_fault(const struct exchange *exchange, const char *version,
                                 size_t header_len)
{
    struct soundness soundness = {0};
    const bool http11 = strcmp(version, MHD_HTTP_VERSION_1_1) == 0;

    (void)MHD_get_connection_values_n(exchange->mhd, MHD_HEADER_KIND, look_at_header,
                                      &soundness);
    if (soundness.fault != NULL)
        return soundness.fault;
    if (has_hidden_bytes(exchange, version, &soundness, header_len))
        return "the header has a NUL in it, or white space that it should not have";
    if (exchange->connection->uri_has_nul)
        return "the URL has a NUL (%00) in it";
    if (!http11 && strcmp(version, MHD_HTTP_VERSION_1_0) != 0)
        return "only HTTP/1.0 and HTTP/1.1 are spoken here";
    if (soundness.codings > 0 && soundness.lengths > 0)
        return "there is a Content-Length beside a Transfer-Encoding";
    if (soundness.codings > 0 && !http11)
        return "HTTP/1.0 has no Transfer-Encoding";
    if (soundness.hosts == 0 && http11)
        return "there is no Host header";
    return NULL;
}

void *http_begun(void *argument, const char *uri, struct MHD_Connection *mhd)
{
    struct connection *connection = connection_of(mhd);

    (void)argument;
    if (connection != NULL) {
        connection->requests++;
        connection->uri_len = uri != NULL ? strlen(uri) : 0;
        connection->uri_has_nul = uri != NULL && strstr(uri, "%00") != NULL;
    }
    return NULL; /* http_answer()'s *state at its first call */
}

static size_t header_length(struct MHD_Connection *mhd)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);

    return info != NULL ? info->header_size : 0;
}

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit = (char)(digit | 0x20);
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

size_t http_unescape(void *argument, struct MHD_Connection *mhd, char *text)
{
    char *out = text;

    (void)argument;
    (void)mhd;
    for (const char *in = text; *in != '\0'; in++) {
        const int high = in[0] == '%' ? hex_value(in[1]) : -1;
        const int low = high >= 0 ? hex_value(in[2]) : -1;

        if (low < 0) {
            *out++ = *in;
            continue;
        }
        /* A NUL would cut the text short and make it mean something else. Whatever stands in
         * its place, the request is refused before anybody looks at it. */
        *out++ = (char)(high * 16 + low != 0 ? high * 16 + low : 1);
        in += 2;
    }
    *out = '\0';
    return (size_t)(out - text);
}

/* -- the small endpoints -- */

static enum MHD_Result answer_healthz(struct exchange *exchange)
{
    return exchange_text(exchange, MHD_HTTP_OK, "text/plain; charset=utf-8",
                         strdup("ok\n"));
}

static enum MHD_Result answer_readyz(struct exchange *exchange)
{
    struct listener_status status;

    listener_status(http_of(exchange)->settings.listener, &status);
    if (!status.listening || !status.writable)
        return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "%s",
                                status.reason);
    return exchange_text(exchange, MHD_HTTP_OK, "text/plain; charset=utf-8",
                         strdup("ready\n"));
}

static enum MHD_Result answer_metrics(struct exchange *exchange)
{
    struct buf text = BUF_EMPTY;

    stats_render(http_of(exchange)->settings.stats, &text);
    return exchange_text(exchange, MHD_HTTP_OK,
                         "text/plain; version=0.0.4; charset=utf-8", buf_steal(&text));
}

static void add_page_headers(struct exchange *exchange, struct MHD_Response *response,
                             const struct page_file *file)
{
    exchange_add(exchange, response, MHD_HTTP_HEADER_CONTENT_TYPE, file->content_type);
    exchange_add(exchange, response, MHD_HTTP_HEADER_ETAG, file->etag);
    /* Kept, but asked for again each time: a new version of the gateway is seen at once. */
    exchange_add(exchange, response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    exchange_add(exchange, response, "X-Content-Type-Options", "nosniff");
    exchange_add(exchange, response, "Referrer-Policy", "no-referrer");
    exchange_add(
        exchange, response, "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
        "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'");
}

static enum MHD_Result answer_page(struct exchange *exchange)
{
    const struct page_file *file =
        page_find(http_of(exchange)->settings.page, exchange->path);
    const char *known = exchange_header(exchange, MHD_HTTP_HEADER_IF_NONE_MATCH);
    const bool unchanged = known != NULL && strstr(known, file->etag) != NULL;
    struct MHD_Response *response = MHD_create_response_from_buffer(
        unchanged ? 0 : file->len, file->content, MHD_RESPMEM_PERSISTENT);

    if (response != NULL)
        add_page_headers(exchange, response, file);
    return exchange_queue(exchange, unchanged ? MHD_HTTP_NOT_MODIFIED : MHD_HTTP_OK,
                          response);
}

/* -- routes -- */

static const struct route routes[] = {
    {"/events", "GET, HEAD, POST, OPTIONS", .get = events_subscribe,
     .post = events_publish, .check = events_check},
    {"/groups", "GET, HEAD, DELETE, OPTIONS", .get = jobs_groups, .delete = jobs_remove},
    {"/healthz", "GET, HEAD, OPTIONS", .get = answer_healthz},
    {"/readyz", "GET, HEAD, OPTIONS", .get = answer_readyz},
    {"/metrics", "GET, HEAD, OPTIONS", .get = answer_metrics},
    {"/streams", "GET, HEAD, OPTIONS", .get = slowest_list},
};

/* What stands behind an event's, or a delivery's, id. */
static const struct route event_routes[] = {
    {"", "GET, HEAD, OPTIONS", .get = events_read},
    {"/ack", "POST, OPTIONS", .post = jobs_ack, .check = jobs_check},
    {"/nack", "POST, OPTIONS", .post = jobs_nack, .check = jobs_check},
    {"/result", "GET, HEAD, OPTIONS", .get = jobs_result},
};
static const struct route page_route = {"/", "GET, HEAD, OPTIONS", .get = answer_page};

static const struct route *find_event_route(const char *id)
{
    const char *rest = id + strcspn(id, "/");

    for (size_t i = 1; i < ARRAY_SIZE(event_routes); i++) {
        if (strcmp(rest, event_routes[i].path) == 0)
            return &event_routes[i];
    }
    return &event_routes[0]; /* there is no event of such an id */
}

static const struct route *find_route(const struct http *http, const char *path)
{
    for (size_t i = 0; i < ARRAY_SIZE(routes); i++) {
        if (strcmp(path, routes[i].path) == 0)
            return &routes[i];
    }
    if (strncmp(path, "/events/", strlen("/events/")) == 0)
        return find_event_route(path + strlen("/events/"));
    return page_find(http->settings.page, path) != NULL ? &page_route : NULL;
}

static enum MHD_Result answer_options(struct exchange *exchange,
                                      const struct route *route)
{
    static char nothing[1];
    struct MHD_Response *response =
        MHD_create_response_from_buffer(0, nothing, MHD_RESPMEM_PERSISTENT);

    exchange_say(exchange, MHD_HTTP_HEADER_ALLOW, route->allow);
    if (response != NULL)
        exchange_add_preflight(exchange, response, route->allow);
    return exchange_queue(exchange, MHD_HTTP_NO_CONTENT, response);
}

static enum MHD_Result answer_not_allowed(struct exchange *exchange,
                                          const struct route *route)
{
    exchange->close = true; /* it may have a body that nobody will read */
    exchange_say(exchange, MHD_HTTP_HEADER_ALLOW, route->allow);
    return exchange_problem(exchange, MHD_HTTP_METHOD_NOT_ALLOWED, "there is %s here",
                            route->allow);
}

/* Finds the endpoint. What needs no body, or must not get one, is answered at once. */
static enum MHD_Result begin(struct http *http, struct exchange *exchange)
{
    const struct route *route = find_route(http, exchange->path);
    const char *method = exchange->method;
    enum MHD_Result result = MHD_YES;

    if (route == NULL) {
        exchange->close = strcmp(method, MHD_HTTP_METHOD_GET) != 0;
        return exchange_problem(exchange, MHD_HTTP_NOT_FOUND, "there is nothing at %.*s",
                                (int)event_text_cut(exchange->path, PATH_QUOTED_MAX),
                                exchange->path);
    }
    if (route->get != NULL && (strcmp(method, MHD_HTTP_METHOD_GET) == 0 ||
                               strcmp(method, MHD_HTTP_METHOD_HEAD) == 0))
        exchange->endpoint = route->get;
    else if (strcmp(method, MHD_HTTP_METHOD_POST) == 0 && route->post != NULL) {
        exchange->endpoint = route->post;
        exchange->takes_body = route->check(exchange, &result);
    } else if (strcmp(method, MHD_HTTP_METHOD_DELETE) == 0 && route->delete != NULL) {
        exchange->endpoint = route->delete;
        exchange->close = true; /* it may have a body that nobody will read */
    } else if (strcmp(method, MHD_HTTP_METHOD_OPTIONS) == 0)
        return answer_options(exchange, route);
    else
        return answer_not_allowed(exchange, route);
    return result;
}

/* -- libmicrohttpd's calls -- */

/* The first call of a request: its header is there. */
static enum MHD_Result open_exchange(struct http *http, struct MHD_Connection *mhd,
                                     const char *path, const char *method,
                                     const char *version, void **state)
{
    struct connection *connection = connection_of(mhd);

    if (connection == NULL) /* there was no memory for it */
        return MHD_NO;

    struct exchange *exchange =
        exchange_new(mhd, connection, &http->common.exchange, path, method, version);
    if (exchange == NULL)
        return MHD_NO;
    *state = exchange;
    exchange->body_max = http->settings.body_max;
    connection->idle = false;
    connection->answering = false;
    connection_allow(connection, http->settings.body_time_usec);

    const size_t header_len = header_length(mhd);
    const char *fault = request_fault(exchange, version, header_len);
    if (fault == NULL && header_len <= http->settings.header_max)
        return begin(http, exchange);

    stats_add(http->settings.stats, STATS_REQUESTS_BAD, 1);
    exchange->close = true;
    if (fault != NULL)
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST, "%s", fault);
    return exchange_problem(exchange, MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE,
                            "the header is larger than %zu bytes",
                            http->settings.header_max);
}

static void count_body(struct http *http, int64_t change)
{
    atomic_fetch_add_explicit(&http->bodies_bytes, (size_t)change, memory_order_relaxed);
    stats_gauge_add(http->settings.stats, STATS_CONNECTION_MEMORY, change);
}

/* More of a body. What is over a limit is read and forgotten, to be answered at its end. */
static void take_body(struct http *http, struct exchange *exchange, const char *upload,
                      size_t len)
{
    const size_t before = exchange->body.len;

    if (exchange->body_status != 0 || !exchange->takes_body)
        return;
    if (before + len > exchange->body_max)
        exchange->body_status = MHD_HTTP_CONTENT_TOO_LARGE;
    else if (atomic_load_explicit(&http->bodies_bytes, memory_order_relaxed) + len >
                 BODIES_MAX * exchange->body_max ||
             buf_add(&exchange->body, upload, len) < 0)
        exchange->body_status = MHD_HTTP_SERVICE_UNAVAILABLE;
    else
        count_body(http, (int64_t)len);
}

/* Calls the endpoint. A stream needs its exchange no longer than that: it would be the
 * larger part of what an idle subscriber costs. */
static enum MHD_Result call_endpoint(struct exchange *exchange, void **state)
{
    const bool may_stream = exchange->endpoint == events_subscribe;
    const enum MHD_Result result = exchange->endpoint(exchange);

    if (may_stream && result == MHD_YES) {
        exchange_free(exchange);
        *state = &stream_state;
    }
    return result;
}

enum MHD_Result http_answer(void *argument, struct MHD_Connection *mhd, const char *path,
                            const char *method, const char *version, const char *upload,
                            size_t *upload_len, void **state)
{
    struct http *http = argument;

    if (*state == NULL)
        return open_exchange(http, mhd, path, method, version, state);
    if (*state == &stream_state)
        return MHD_YES;

    struct exchange *exchange = *state;
    if (exchange->answered)
        return MHD_YES;
    if (*upload_len > 0) {
        take_body(http, exchange, upload, *upload_len);
        *upload_len = 0;
        return MHD_YES;
    }
    /* The answer's deadline begins when the question is complete. */
    connection_allow(exchange->connection, http->settings.body_time_usec);
    return call_endpoint(exchange, state);
}

void http_completed(void *argument, struct MHD_Connection *mhd, void **state,
                    enum MHD_RequestTerminationCode how)
{
    struct http *http = argument;
    struct connection *connection = connection_of(mhd);

    (void)how;
    if (*state != NULL && *state != &stream_state) {
        struct exchange *exchange = *state;

        count_body(http, -(int64_t)exchange->body.len);
        exchange_free(exchange);
    }
    *state = NULL;
    if (connection == NULL)
        return;
    connection->idle = true;
    connection_allow(connection, http->settings.keep_alive_usec);
    if (shard_is_draining(connection->shard))
        connection_shut(connection);
}
