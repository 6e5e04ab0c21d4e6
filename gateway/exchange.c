#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "clock.h"
#include "exchange.h"
#include "shard.h"

static void mail_delivered(struct mail *mail)
{
    connection_wake(CONTAINER_OF(mail, struct exchange, mail)->connection);
}

/* A client that takes us for a proxy names us in the request line (RFC 9112, 3.2.2). */
static const char *path_of(const char *target)
{
    static const char scheme[] = "http://";

    if (strncasecmp(target, scheme, sizeof(scheme) - 1) != 0)
        return target;
    const char *path = strchr(target + sizeof(scheme) - 1, '/');
    return path != NULL ? path : "/";
}

struct exchange *exchange_new(struct MHD_Connection *mhd, struct connection *connection,
                              const struct exchange_common *common, const char *path,
                              const char *method, const char *version)
{
    struct exchange *exchange = calloc(1, sizeof(*exchange));

    if (exchange == NULL)
        return NULL;
    exchange->mhd = mhd;
    exchange->connection = connection;
    exchange->common = common;
    exchange->path = path_of(path);
    exchange->method = method;
    exchange->http10 = strcmp(version, MHD_HTTP_VERSION_1_1) != 0;
    exchange->close = connection->surplus;
    exchange->mail.deliver = mail_delivered;
    return exchange;
}

void exchange_free(struct exchange *exchange)
{
    if (exchange == NULL)
        return;
    if (exchange->state_free != NULL)
        exchange->state_free(exchange->state);
    buf_done(&exchange->body);
    free(exchange->header_long);
    free(exchange);
}

const char *exchange_header(const struct exchange *exchange, const char *name)
{
    return MHD_lookup_connection_value(exchange->mhd, MHD_HEADER_KIND, name);
}

const char *exchange_query(const struct exchange *exchange, const char *name,
                           size_t *ret_len)
{
    const char *value = NULL;
    size_t len = 0;

    if (MHD_lookup_connection_value_n(exchange->mhd, MHD_GET_ARGUMENT_KIND, name,
                                      strlen(name), &value, &len) != MHD_YES)
        return NULL;
    *ret_len = value != NULL ? len : 0;
    return value != NULL ? value : "";
}

void exchange_sleep(struct exchange *exchange)
{
    connection_sleep(exchange->connection);
}

void exchange_wake(struct exchange *exchange)
{
    shard_post(exchange->connection->shard, &exchange->mail);
}

/* -- other origins -- */

/* Is the origin in the list? */
static bool list_has(const char *list, const char *origin)
{
    const size_t len = strlen(origin);

    for (const char *at = list; *at != '\0';) {
        at += strspn(at, ", \t");
        const size_t entry = strcspn(at, ", \t");

        if ((entry == 1 && *at == '*') ||
            (entry == len && strncasecmp(at, origin, len) == 0))
            return true;
        at += entry;
    }
    return false;
}

/* "https://example.org:8443" is the page's own origin if the Host is "example.org:8443". */
static bool is_own_origin(const struct exchange *exchange, const char *origin)
{
    const char *host = exchange_header(exchange, MHD_HTTP_HEADER_HOST);
    const char *authority = strstr(origin, "://");

    return host != NULL && authority != NULL && strcasecmp(authority + 3, host) == 0;
}

bool exchange_origin_is_fine(const struct exchange *exchange)
{
    const char *origin = exchange_header(exchange, MHD_HTTP_HEADER_ORIGIN);

    return origin == NULL || is_own_origin(exchange, origin) ||
           list_has(exchange->common->cors_origins, origin);
}

static void add_cors(struct exchange *exchange, struct MHD_Response *response)
{
    const char *origin = exchange_header(exchange, MHD_HTTP_HEADER_ORIGIN);

    if (exchange->common->cors_origins[0] == '\0')
        return;
    exchange_add(exchange, response, MHD_HTTP_HEADER_VARY, "Origin");
    if (origin == NULL || !list_has(exchange->common->cors_origins, origin))
        return;
    exchange_add(exchange, response, "Access-Control-Allow-Origin", origin);
    exchange_add(exchange, response, "Access-Control-Expose-Headers",
                 "Location, Retry-After");
}

/* CloudEvents bring headers of any name behind "ce-", and there is no wildcard for that: those
 * that are asked for are named. */
static void add_ce_headers(struct buf *list, const char *asked)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789"
                                  "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

    for (const char *at = asked; *at != '\0';) {
        at += strspn(at, ", \t");
        const size_t len = strcspn(at, ", \t");

        if (len > 3 && strncasecmp(at, "ce-", 3) == 0 &&
            strspn(at + 3, letters) >= len - 3)
            (void)buf_add_format(list, ", %.*s", (int)len, at);
        at += len;
    }
}

static void add_allowed_headers(struct exchange *exchange, struct MHD_Response *response)
{
    CLEANUP(buf_done) struct buf list = BUF_EMPTY;
    const char *asked = exchange_header(exchange, "Access-Control-Request-Headers");

    (void)buf_add_text(&list,
                       "Content-Type, Last-Event-ID, Cache-Control, Idempotency-Key, "
                       "X-Client-ID");
    add_ce_headers(&list, asked != NULL ? asked : "");
    if (buf_ok(&list) == 0)
        exchange_add(exchange, response, "Access-Control-Allow-Headers", list.data);
}

void exchange_add_preflight(struct exchange *exchange, struct MHD_Response *response,
                            const char *methods)
{
    const char *origin = exchange_header(exchange, MHD_HTTP_HEADER_ORIGIN);

    if (origin == NULL || !list_has(exchange->common->cors_origins, origin))
        return;
    exchange_add(exchange, response, "Access-Control-Allow-Methods", methods);
    add_allowed_headers(exchange, response);
    exchange_add(exchange, response, "Access-Control-Max-Age", "86400");
}

/* -- answers -- */

void exchange_add(struct exchange *exchange, struct MHD_Response *response,
                  const char *header, const char *value)
{
    if (MHD_add_response_header(response, header, value) != MHD_YES)
        exchange->incomplete = true;
}

static void count_answer(const struct exchange *exchange, unsigned status)
{
    static const enum stats_counter classes[] = {
        STATS_RESPONSES_2XX,
        STATS_RESPONSES_3XX,
        STATS_RESPONSES_4XX,
        STATS_RESPONSES_5XX,
    };

    stats_add(exchange->common->stats, classes[status / 100 - 2], 1);
}

enum MHD_Result exchange_queue(struct exchange *exchange, unsigned status,
                               struct MHD_Response *response)
{
    if (response == NULL)
        return MHD_NO;

    exchange->answered = true;
    exchange->connection->answering = true;
    add_cors(exchange, response);
    if (exchange->close || shard_is_draining(exchange->connection->shard))
        exchange_add(exchange, response, MHD_HTTP_HEADER_CONNECTION, "close");
    if (exchange->header != NULL)
        exchange_add(exchange, response, exchange->header,
                     exchange->header_long != NULL ? exchange->header_long
                                                   : exchange->header_value);
    count_answer(exchange, status);

    const enum MHD_Result result =
        exchange->incomplete ? MHD_NO
                             : MHD_queue_response(exchange->mhd, status, response);
    MHD_destroy_response(response);
    return result;
}

void exchange_say(struct exchange *exchange, const char *header, const char *value)
{
    const size_t len = strlen(value);

    free(exchange->header_long);
    exchange->header_long = len < sizeof(exchange->header_value) ? NULL : strdup(value);
    exchange->header = header;
    if (len < sizeof(exchange->header_value))
        memcpy(exchange->header_value, value, len + 1);
    else if (exchange->header_long == NULL)
        exchange->incomplete = true;
}

/* When waiting helps: in how many seconds, spread so that not all come back at once. */
static void say_retry_after(struct exchange *exchange)
{
    char seconds[24];

    (void)snprintf(seconds, sizeof(seconds), "%llu",
                   1ULL + clock_random(2 * exchange->common->retry_usec) / USEC_PER_SEC);
    exchange_say(exchange, MHD_HTTP_HEADER_RETRY_AFTER, seconds);
}

/* Who looks at an answer in a terminal has the next prompt on a line of its own. */
static char *end_line(char *text)
{
    const size_t len = strlen(text);

    if (len > 0 && text[len - 1] == '\n')
        return text;

    char *line = realloc(text, len + 2);
    if (line == NULL) {
        free(text);
        return NULL;
    }
    memcpy(line + len, "\n", 2);
    return line;
}

static struct MHD_Response *text_response(struct exchange *exchange,
                                          const char *content_type, char *text)
{
    if (text != NULL)
        text = end_line(text);
    if (text == NULL)
        return NULL;

    struct MHD_Response *response =
        MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
    if (response == NULL) {
        free(text);
        return NULL;
    }
    exchange_add(exchange, response, MHD_HTTP_HEADER_CONTENT_TYPE, content_type);
    exchange_add(exchange, response, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store");
    exchange_add(exchange, response, "X-Content-Type-Options", "nosniff");
    return response;
}

enum MHD_Result exchange_text(struct exchange *exchange, unsigned status,
                              const char *content_type, char *text)
{
    return exchange_queue(exchange, status, text_response(exchange, content_type, text));
}

enum MHD_Result exchange_problem(struct exchange *exchange, unsigned status,
                                 const char *format, ...)
{
    struct problem problem = {.status = status};
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(problem.detail.text, sizeof(problem.detail.text), format, arguments);
    va_end(arguments);

    if (status == MHD_HTTP_TOO_MANY_REQUESTS || status == MHD_HTTP_SERVICE_UNAVAILABLE)
        say_retry_after(exchange);
    return exchange_text(exchange, status, "application/problem+json",
                         problem_json(&problem));
}
