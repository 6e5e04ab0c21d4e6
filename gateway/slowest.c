#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "clock.h"
#include "common.h"
#include "shard.h"
#include "slowest.h"
#include "units.h"

/* "[0000:...]:65535" */
#define ADDRESS_MAX (INET6_ADDRSTRLEN + sizeof("[]:65535"))

/* Seconds to the microsecond, whatever the double makes of them. */
#define JSON_FORM (JSON_COMPACT | JSON_REAL_PRECISION(15))

struct entry {
    bool behind; /* it does not have all that there is for it */
    uint64_t lag;
    uint64_t silent_usec;
    const struct stream *stream; /* of the shard that is visited; NULL: written down */
    json_t *json;
};

/* What is gathered from shard to shard. */
struct survey {
    struct tour tour;
    struct exchange *exchange;
    bool failed; /* there was no memory */
    size_t total;
    size_t limit;
    size_t count;
    struct entry entries[]; /* count of them, a heap: the least slow is the first */
};

/* -- who may ask -- */

static bool is_loopback(const struct in_addr *address)
{
    return ntohl(address->s_addr) >> 24 == IN_LOOPBACKNET;
}

bool slowest_is_near(const struct sockaddr_storage *address)
{
    const struct sockaddr_in *in = (const struct sockaddr_in *)address;
    const struct in6_addr *in6 = &((const struct sockaddr_in6 *)address)->sin6_addr;
    struct in_addr mapped;

    if (address->ss_family == AF_UNIX)
        return true;
    if (address->ss_family == AF_INET)
        return is_loopback(&in->sin_addr);
    if (address->ss_family != AF_INET6)
        return false;
    memcpy(&mapped, &in6->s6_addr[12], sizeof(mapped));
    return IN6_IS_ADDR_LOOPBACK(in6) ||
           (IN6_IS_ADDR_V4MAPPED(in6) && is_loopback(&mapped));
}

static bool peer_is_near(const struct exchange *exchange)
{
    struct sockaddr_storage peer = {0};
    socklen_t len = sizeof(peer);

    return getpeername(exchange->connection->fd, (struct sockaddr *)&peer, &len) == 0 &&
           slowest_is_near(&peer);
}

/* NULL, or the header that tells of somebody farther away: a proxy's, or that of a browser
 * with a page of another origin. A page whose name was pointed to this machine (DNS rebinding)
 * is of the same origin to its browser, which tells all the same that it is a page that asks
 * (Fetch Metadata). */
static const char *stranger_header(const struct exchange *exchange)
{
    static const char *const headers[] = {"Forwarded", "X-Forwarded-For", "X-Real-IP",
                                          "Via", "Origin"};
    const char *site = exchange_header(exchange, "Sec-Fetch-Site");

    for (size_t i = 0; i < ARRAY_SIZE(headers); i++) {
        if (exchange_header(exchange, headers[i]) != NULL)
            return headers[i];
    }
    return site != NULL && strcmp(site, "none") != 0 ? "Sec-Fetch-Site" : NULL;
}

/* -- the slowest so far -- */

static bool is_slower(const struct entry *a, const struct entry *b)
{
    if (a->lag != b->lag)
        return a->lag > b->lag;
    if (a->behind != b->behind)
        return a->behind;
    return a->silent_usec > b->silent_usec;
}

static void swap(struct entry *a, struct entry *b)
{
    const struct entry was = *a;

    *a = *b;
    *b = was;
}

static void sift_up(struct survey *survey, size_t at)
{
    while (at > 0 && is_slower(&survey->entries[(at - 1) / 2], &survey->entries[at])) {
        swap(&survey->entries[(at - 1) / 2], &survey->entries[at]);
        at = (at - 1) / 2;
    }
}

static void sift_down(struct survey *survey, size_t at)
{
    struct entry *entries = survey->entries;

    for (;;) {
        size_t least = at;

        for (size_t child = 2 * at + 1; child <= 2 * at + 2; child++) {
            if (child < survey->count && is_slower(&entries[least], &entries[child]))
                least = child;
        }
        if (least == at)
            return;
        swap(&entries[at], &entries[least]);
        at = least;
    }
}

static void look_at(void *argument, const struct stream *stream, uint64_t newest)
{
    struct survey *survey = argument;
    const uint64_t now = stream->owner->now_usec;
    struct entry entry = {
        .behind = stream->phase != STREAM_LIVE,
        .silent_usec = now - MIN(now, stream->last_sent_usec),
        .stream = stream,
    };

    survey->total++;
    if (!stream_lag(stream, newest, &entry.lag))
        entry.lag = 0;
    if (survey->count < survey->limit) {
        survey->entries[survey->count] = entry;
        sift_up(survey, survey->count++);
    } else if (is_slower(&entry, &survey->entries[0])) {
        json_decref(survey->entries[0].json);
        survey->entries[0] = entry;
        sift_down(survey, 0);
    }
}

/* -- writing them down -- */

static void describe_peer(int fd, char ret_text[ADDRESS_MAX])
{
    struct sockaddr_storage peer = {0};
    socklen_t len = sizeof(peer);
    char host[INET6_ADDRSTRLEN] = "";

    (void)getpeername(fd, (struct sockaddr *)&peer, &len);
    const struct sockaddr_in *in = (const struct sockaddr_in *)&peer;
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&peer;

    (void)snprintf(ret_text, ADDRESS_MAX, "%s",
                   peer.ss_family == AF_UNIX ? "unix" : "gone");
    if (peer.ss_family == AF_INET &&
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host)) != NULL)
        (void)snprintf(ret_text, ADDRESS_MAX, "%s:%u", host, ntohs(in->sin_port));
    if (peer.ss_family == AF_INET6 &&
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host)) != NULL)
        (void)snprintf(ret_text, ADDRESS_MAX, "[%s]:%u", host, ntohs(in6->sin6_port));
}

static json_t *channels_json(const struct stream *stream)
{
    json_t *list = json_array();

    for (size_t i = 0; i < stream->member_count; i++) {
        const struct channels_topic *topic = stream->members[i].topic;

        if (json_array_append_new(list, json_sprintf("%s%s", topic->name,
                                                     topic->is_prefix ? "*" : "")) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_t *types_json(const struct stream *stream)
{
    json_t *list = json_array();
    size_t len;
    const char *name;

    for (size_t i = 0; (name = filter_type(&stream->filter, i, &len)) != NULL; i++) {
        if (json_array_append_new(list, json_stringn(name, len)) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static const char *state_of(const struct stream *stream)
{
    if (stream->phase == STREAM_LIVE)
        return "live";
    return stream->replays ? "replaying" : "behind";
}

/* On its shard's thread. NULL: no memory. */
static json_t *stream_json(const struct entry *entry)
{
    const struct stream *stream = entry->stream;
    const uint64_t now = stream->owner->now_usec;
    const uint64_t open_usec = now - MIN(now, stream->begun_usec);
    char address[ADDRESS_MAX];
    int unsent = 0;

    describe_peer(stream->connection->fd, address);
    (void)ioctl(stream->connection->fd, SIOCOUTQ, &unsent);
    const struct {
        const char *name;
        json_t *value;
    } members[] = {
        {"address", json_string(address)},
        {"channels", channels_json(stream)},
        {"types", types_json(stream)},
        {"state", json_string(state_of(stream))},
        {"events_behind", json_integer((json_int_t)entry->lag)},
        {"unsent_bytes", json_integer(unsent)},
        {"silent_seconds", json_real((double)entry->silent_usec / USEC_PER_SEC)},
        {"open_seconds", json_real((double)open_usec / USEC_PER_SEC)},
        {"http_version", json_string(stream->chunked ? "1.1" : "1.0")},
    };
    json_t *object = json_object();
    int result = 0;

    /* Takes the value whether it succeeds or not, and fails for NULL. */
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        result |= json_object_set_new(object, members[i].name, members[i].value);
    if (result == 0)
        return object;
    json_decref(object);
    return NULL;
}

static void visit(struct tour *tour, struct fanout *fanout)
{
    struct survey *survey = CONTAINER_OF(tour, struct survey, tour);

    fanout_each(fanout, look_at, survey);
    for (size_t i = 0; i < survey->count; i++) {
        struct entry *entry = &survey->entries[i];

        if (entry->stream == NULL)
            continue;
        entry->json = stream_json(entry);
        entry->stream = NULL;
        survey->failed = survey->failed || entry->json == NULL;
    }
}

/* -- the endpoint -- */

static void home(struct tour *tour)
{
    connection_wake(CONTAINER_OF(tour, struct survey, tour)->exchange->connection);
}

static void survey_free(void *state)
{
    struct survey *survey = state;

    for (size_t i = 0; i < survey->count; i++)
        json_decref(survey->entries[i].json);
    free(survey);
}

static enum MHD_Result begin(struct exchange *exchange, size_t limit)
{
    struct survey *survey =
        calloc(1, sizeof(*survey) + limit * sizeof(survey->entries[0]));

    if (survey == NULL)
        return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE,
                                "no memory for the request");
    exchange->state = survey;
    exchange->state_free = survey_free;
    survey->tour = (struct tour){.visit = visit, .home = home};
    survey->exchange = exchange;
    survey->limit = limit;
    if (shard_tour(exchange->connection->shard, &survey->tour) < 0)
        return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE,
                                "the gateway is about to end");
    /* home() comes to this thread: not before it has fallen asleep. */
    exchange_sleep(exchange);
    return MHD_YES;
}

static int slower_first(const void *a, const void *b)
{
    return is_slower(a, b) ? -1 : is_slower(b, a);
}

static enum MHD_Result answer(struct exchange *exchange, struct survey *survey)
{
    json_t *list = json_array();
    json_t *object = json_object();
    int result = survey->failed ? -1 : 0;

    qsort(survey->entries, survey->count, sizeof(survey->entries[0]), slower_first);
    for (size_t i = 0; i < survey->count; i++)
        result |= json_array_append(list, survey->entries[i].json);
    result |= json_object_set_new(object, "streams", list);
    result |=
        json_object_set_new(object, "total", json_integer((json_int_t)survey->total));

    char *text = result == 0 ? json_dumps(object, JSON_FORM) : NULL;
    json_decref(object);
    if (text == NULL)
        return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE,
                                "no memory for the answer");
    return exchange_text(exchange, MHD_HTTP_OK, "application/json", text);
}

/* *argument is made the name of a parameter that there is not. */
static enum MHD_Result find_unknown(void *argument, enum MHD_ValueKind kind,
                                    const char *name, const char *value)
{
    const char **unknown = argument;

    (void)kind;
    (void)value;
    if (strcmp(name, "limit") != 0)
        *unknown = name;
    return MHD_YES;
}

enum MHD_Result slowest_list(struct exchange *exchange)
{
    const char *header = stranger_header(exchange);
    const char *unknown = NULL;
    uint64_t limit = SLOWEST_LIMIT_DEFAULT;
    size_t len;
    const char *wanted = exchange_query(exchange, "limit", &len);

    if (exchange->state != NULL)
        return answer(exchange, exchange->state);
    if (!peer_is_near(exchange))
        return exchange_problem(
            exchange, MHD_HTTP_FORBIDDEN,
            "the streams are shown to peers on the loopback or a Unix "
            "socket only");
    if (header != NULL)
        return exchange_problem(
            exchange, MHD_HTTP_FORBIDDEN,
            "the streams are not shown to others: the request has the "
            "header %s",
            header);
    (void)MHD_get_connection_values(exchange->mhd, MHD_GET_ARGUMENT_KIND, find_unknown,
                                    &unknown);
    if (unknown != NULL)
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST,
                                "unknown parameter \"%.*s\"; there is limit",
                                (int)event_text_cut(unknown, QUOTED_MAX), unknown);
    if (wanted != NULL &&
        (units_parse_count(wanted, &limit) < 0 || limit < 1 || limit > SLOWEST_LIMIT_MAX))
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST,
                                "limit is a number from 1 to %d", SLOWEST_LIMIT_MAX);
    return begin(exchange, (size_t)limit);
}
