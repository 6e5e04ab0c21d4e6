/*
 * jobs.c - the endpoints around a group.
 */
#include "jobs.h"

#include <errno.h>
#include <string.h>

#include "clock.h"
#include "common.h"
#include "delivery.h"
#include "event.h"
#include "json.h"
#include "query.h"
#include "question.h"
#include "units.h"

#define RESULT_MAX_BYTES MIB
#define REASON_MAX_BYTES 1024
#define DELAY_MAX_USEC   (30 * 24 * 3600 * USEC_PER_SEC)

/* Groups in one list, and how much is counted of lag and deliveries for all of them together:
 * the more groups, the less of each. */
#define LIST_MAX  "1000"
#define COUNT_MAX "100000"

#define UNAVAILABLE "the gateway is about to end"

/* -- what is asked -- */

static void check_group(struct query *query, const char *text, size_t len)
{
    struct err err;

    if (group_check_name(text, len, &err) < 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
}

static void check_channel(struct query *query, const char *text, size_t len)
{
    struct err err;

    if (group_check_channel(text, len, &err) < 0)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", err.text);
}

/* Each of the parameters stands once. */
#define ONE(parameter)                                                                   \
    .name = (parameter), .twice = "there are two of the parameter \"" parameter "\""

static enum MHD_Result refuse(struct exchange *exchange, const struct err *err)
{
    return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST, "%s", err->text);
}

static enum MHD_Result answer_nothing(struct exchange *exchange)
{
    static char nothing[1];

    return exchange_queue(
        exchange, MHD_HTTP_NO_CONTENT,
        MHD_create_response_from_buffer(0, nothing, MHD_RESPMEM_PERSISTENT));
}

bool jobs_check(struct exchange *exchange, enum MHD_Result *ret_result)
{
    const char *length = exchange_header(exchange, MHD_HTTP_HEADER_CONTENT_LENGTH);
    const char *coding = exchange_header(exchange, MHD_HTTP_HEADER_TRANSFER_ENCODING);
    unsigned status = 0;
    const char *why = "";

    exchange->body_max = MIN(exchange->body_max, RESULT_MAX_BYTES);
    if (exchange->connection->surplus) {
        stats_add(exchange->common->stats, STATS_CONNECTIONS_REFUSED, 1);
        status = MHD_HTTP_TOO_MANY_REQUESTS;
        why = "too many connections";
    } else if (!exchange_origin_is_fine(exchange)) {
        status = MHD_HTTP_FORBIDDEN;
        why = "this origin may not do that; see [http] cors_origins";
    } else if (length != NULL && strtoull(length, NULL, 10) > exchange->body_max) {
        status = MHD_HTTP_CONTENT_TOO_LARGE;
        why = "the body is too large";
    }
    /* Without a body that libmicrohttpd sees, its bytes must not become a request. */
    exchange->close =
        exchange->close || status != 0 || (length == NULL && coding == NULL);
    if (status != 0)
        *ret_result = exchange_problem(exchange, status, "%s", why);
    return status == 0;
}

/* -- errands: ack, nack, remove -- */

struct job {
    struct errand errand;
    struct exchange *exchange;
    char id[DELIVERY_ID_MAX_BYTES + 1];
};

static void errand_done(struct errand *errand)
{
    exchange_wake(CONTAINER_OF(errand, struct job, errand)->exchange);
}

static struct job *make_job(struct exchange *exchange, enum errand_kind kind,
                            const char *group)
{
    struct job *job = calloc(1, sizeof(*job));

    if (job == NULL)
        return NULL;
    job->exchange = exchange;
    job->errand = (struct errand){.kind = kind, .group = group, .done = errand_done};
    exchange->state = job;
    exchange->state_free = free;
    return job;
}

static enum MHD_Result submit(struct exchange *exchange, struct job *job)
{
    /* Asleep before: the answer may come before groups_do() returns. */
    exchange_sleep(exchange);
    const int r = groups_do(common_of(exchange)->groups, &job->errand);

    if (r < 0) {
        job->errand.outcome = ERRAND_UNAVAILABLE;
        (void)err_set(&job->errand.err, r, UNAVAILABLE);
        exchange_wake(exchange);
    }
    return MHD_YES;
}

static enum MHD_Result answer_errand(struct exchange *exchange, const struct job *job)
{
    const bool removal = job->errand.kind == ERRAND_REMOVE;

    switch (job->errand.outcome) {
    case ERRAND_DONE:
        return answer_nothing(exchange);
    case ERRAND_BAD:
        return exchange_problem(exchange, MHD_HTTP_BAD_REQUEST, "%s",
                                job->errand.err.text[0] != '\0'
                                    ? job->errand.err.text
                                    : "the database will not have it");
    case ERRAND_MISSING:
        return exchange_problem(exchange, MHD_HTTP_NOT_FOUND, "%s",
                                removal ? "there is no such group"
                                        : "this event was never delivered to this group");
    case ERRAND_CONFLICT:
        return exchange_problem(exchange, MHD_HTTP_CONFLICT,
                                "this delivery is not held any more: it was acknowledged "
                                "or given back, or its lease was over and it has gone to "
                                "another");
    case ERRAND_LOCKED: /* is no answer */
    case ERRAND_UNAVAILABLE:
        break;
    }
    return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "%s",
                            job->errand.err.text);
}

/* "/events/<id>/ack": the id of a delivery. */
static int take_id(const struct exchange *exchange, struct job *job, struct err *err)
{
    const char *id = exchange->path + strlen("/events/");
    const size_t len = strcspn(id, "/");
    unsigned attempt;

    if (len > DELIVERY_ID_MAX_BYTES ||
        delivery_id_parse(id, len, &job->errand.seq, &attempt) < 0)
        return err_set(err, -EINVAL,
                       "\"%.*s\" is not the id of a delivery, as in 42.1.k3f90a2b7c1d",
                       (int)MIN(event_text_cut(id, QUOTED_MAX), len), id);
    memcpy(job->id, id, len);
    job->errand.id = job->id;
    return 0;
}

/* A body of white space is none. */
static int take_result(struct exchange *exchange, struct job *job, struct err *err)
{
    size_t begin, end;

    if (buf_add_text(&exchange->body, "") < 0)
        return err_set(err, -ENOMEM, "no memory for the request");
    char *text = exchange->body.data;
    const size_t len = exchange->body.len;
    if (json_skip_space(text, len, 0) == len)
        return 0;
    if (!event_text_is_utf8(text, len))
        return err_set(err, -EINVAL, "the result is not valid UTF-8");
    if (json_check(text, len, &begin, &end, err) < 0)
        return err_prefix(err, -EINVAL, "the result is not JSON");
    text[end] = '\0';
    job->errand.text = text + begin;
    return 0;
}

enum MHD_Result jobs_ack(struct exchange *exchange)
{
    static const struct query_parameter parameters[] = {
        {ONE("group"), .take = check_group, .needed = true},
        {.name = NULL},
    };
    struct query query;
    struct err err;

    if (exchange->body_status == MHD_HTTP_CONTENT_TOO_LARGE)
        return exchange_problem(exchange, exchange->body_status,
                                "a result has at most %zu bytes", exchange->body_max);
    if (exchange->body_status != 0)
        return exchange_problem(exchange, exchange->body_status,
                                "too many bodies are being received; try again");
    if (exchange->state != NULL)
        return answer_errand(exchange, exchange->state);

    if (query_read(exchange, parameters, &query) < 0)
        return query_refuse(exchange, &query);
    struct job *job = make_job(exchange, ERRAND_ACK, query.values[0]);
    if (job == NULL)
        return exchange_problem(exchange, 503, "no memory for the request");
    int r = take_id(exchange, job, &err);
    if (r == 0)
        r = take_result(exchange, job, &err);
    if (r == -ENOMEM)
        return exchange_problem(exchange, 503, "%s", err.text);
    return r < 0 ? refuse(exchange, &err) : submit(exchange, job);
}

/* Of a nack. */
enum { GROUP, DELAY, REASON };

static int take_nack(const struct query *query, struct job *job, struct err *err)
{
    const char *delay = query->values[DELAY], *reason = query->values[REASON];

    if (delay != NULL && (units_parse_usec(delay, &job->errand.delay_usec) < 0 ||
                          job->errand.delay_usec > DELAY_MAX_USEC))
        return err_set(err, -EINVAL, "delay is a time from 0 to 30d, as in 10s");
    if (reason != NULL && (query->lengths[REASON] > REASON_MAX_BYTES ||
                           !event_text_is_utf8(reason, query->lengths[REASON])))
        return err_set(err, -EINVAL, "reason is UTF-8 of at most %d bytes",
                       REASON_MAX_BYTES);
    job->errand.text = reason;
    return 0;
}

enum MHD_Result jobs_nack(struct exchange *exchange)
{
    static const struct query_parameter parameters[] = {
        [GROUP] = {ONE("group"), .take = check_group, .needed = true},
        [DELAY] = {ONE("delay")},
        [REASON] = {ONE("reason")},
        {.name = NULL},
    };
    struct query query;
    struct err err;

    if (exchange->state != NULL)
        return answer_errand(exchange, exchange->state);
    if (query_read(exchange, parameters, &query) < 0)
        return query_refuse(exchange, &query);
    struct job *job = make_job(exchange, ERRAND_NACK, query.values[0]);
    if (job == NULL)
        return exchange_problem(exchange, 503, "no memory for the request");
    if (take_id(exchange, job, &err) < 0 || take_nack(&query, job, &err) < 0)
        return refuse(exchange, &err);
    return submit(exchange, job);
}

enum MHD_Result jobs_remove(struct exchange *exchange)
{
    static const struct query_parameter parameters[] = {
        {ONE("group"), .take = check_group, .needed = true},
        {ONE("channel"), .take = check_channel, .needed = true},
        {.name = NULL},
    };
    struct query query;

    if (exchange->state != NULL)
        return answer_errand(exchange, exchange->state);
    if (!exchange_origin_is_fine(exchange))
        return exchange_problem(exchange, MHD_HTTP_FORBIDDEN,
                                "this origin may not do that; see [http] cors_origins");
    if (query_read(exchange, parameters, &query) < 0)
        return query_refuse(exchange, &query);
    struct job *job = make_job(exchange, ERRAND_REMOVE, query.values[0]);
    if (job == NULL)
        return exchange_problem(exchange, 503, "no memory for the request");
    job->errand.channel = query.values[1];
    return submit(exchange, job);
}

/* -- questions: result, groups -- */

struct asking {
    struct question question;
    struct exchange *exchange;
    char seq[EVENT_ID_MAX_BYTES + 1];
};

static void asking_free(void *state)
{
    struct asking *asking = state;

    free(asking->question.text);
    free(asking);
}

static void question_done(struct question *question)
{
    exchange_wake(CONTAINER_OF(question, struct asking, question)->exchange);
}

static struct asking *make_asking(struct exchange *exchange, const char *sql)
{
    struct asking *asking = calloc(1, sizeof(*asking));

    if (asking == NULL)
        return NULL;
    asking->exchange = exchange;
    asking->question = (struct question){
        .sql = sql,
        .deadline_usec = clock_usec() + common_of(exchange)->publish_time_usec,
        .done = question_done,
    };
    exchange->state = asking;
    exchange->state_free = asking_free;
    return asking;
}

static enum MHD_Result ask(struct exchange *exchange, struct asking *asking)
{
    exchange_sleep(exchange);
    const int r = question_ask(&asking->question, common_of(exchange)->readers);

    if (r < 0) {
        asking->question.outcome = QUESTION_UNAVAILABLE;
        (void)err_set(&asking->question.err, r, "too many wait for the database already");
        exchange_wake(exchange);
    }
    return MHD_YES;
}

static enum MHD_Result answer_text(struct exchange *exchange, unsigned status,
                                   struct asking *asking)
{
    char *text = asking->question.text;

    asking->question.text = NULL;
    return exchange_text(exchange, status, "application/json", text);
}

static enum MHD_Result answer_result(struct exchange *exchange, struct asking *asking)
{
    const char *state = asking->question.word;

    switch (asking->question.outcome) {
    case QUESTION_ANSWERED: /* acknowledged and dead are for good */
        return answer_text(exchange,
                           strcmp(state, "waiting") == 0 ||
                                   strcmp(state, "delivered") == 0
                               ? MHD_HTTP_ACCEPTED
                               : MHD_HTTP_OK,
                           asking);
    case QUESTION_MISSING:
        return exchange_problem(exchange, MHD_HTTP_NOT_FOUND,
                                "there is no such event, or it is none of this group's");
    case QUESTION_UNAVAILABLE:
        break;
    }
    return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "%s",
                            asking->question.err.text);
}

#define UTC(column)                                                                      \
    "pg_catalog.to_char(" column                                                         \
    " AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"

enum MHD_Result jobs_result(struct exchange *exchange)
{
    static const struct query_parameter parameters[] = {
        {ONE("group"), .take = check_group, .needed = true},
        {.name = NULL},
    };
    static const char sql[] =
        "SELECT pg_catalog.row_to_json(a), a.state FROM (SELECT $1::text AS id, "
        "$2::text AS \"group\", r.state, r.attempt, " UTC(
            "r.acked_at") " AS acked_at, "
                          "r.result FROM gateway.result($1::int8, $2) r) a";
    const char *id = exchange->path + strlen("/events/");
    struct query query;
    uint64_t seq;

    if (exchange->state != NULL)
        return answer_result(exchange, exchange->state);
    if (query_read(exchange, parameters, &query) < 0)
        return query_refuse(exchange, &query);
    if (event_id_parse(id, strcspn(id, "/"), &seq) < 0)
        return exchange_problem(exchange, MHD_HTTP_NOT_FOUND,
                                "there is no event of that id");
    struct asking *asking = make_asking(exchange, sql);
    if (asking == NULL)
        return exchange_problem(exchange, 503, "no memory for the request");
    (void)event_id_format(seq, asking->seq);
    asking->question.values[0] = asking->seq;
    asking->question.values[1] = query.values[0];
    asking->question.count = 2;
    return ask(exchange, asking);
}

enum MHD_Result jobs_groups(struct exchange *exchange)
{
    static const struct query_parameter parameters[] = {
        {ONE("channel"), .take = check_channel},
        {.name = NULL},
    };
    static const char sql[] =
        "WITH chosen AS MATERIALIZED (SELECT g FROM gateway.groups g "
        "WHERE $1::text IS NULL OR g.channel = $1 "
        "ORDER BY g.channel, g.name LIMIT " LIST_MAX "), "
        "most (most) AS MATERIALIZED (SELECT greatest(100, least(10000, " COUNT_MAX
        " / greatest(1, count(*))))::int4 FROM chosen), "
        "listed AS MATERIALIZED (SELECT (s.g).channel, (s.g).name AS \"group\", l.lag, "
        "l.in_flight, l.due, l.dead, l.lost, l.\"position\"::text, "
        "(s.g).max_attempts, " UTC(
            "(s.g).created_at") " AS created_at, "
                                "pg_catalog.round(extract(epoch FROM "
                                "l.oldest_unacked)::numeric, 3) "
                                "AS oldest_unacked_seconds FROM chosen s CROSS JOIN most "
                                "m "
                                "CROSS JOIN LATERAL gateway.group_state(s.g, m.most) l) "
                                "SELECT pg_catalog.json_build_object('groups', "
                                "coalesce((SELECT "
                                "pg_catalog.json_agg(pg_catalog.row_to_json(l) ORDER BY "
                                "l.channel, l.\"group\") "
                                "FROM listed l), '[]'), 'counted_to', m.most) FROM most "
                                "m";
    struct asking *asking = exchange->state;
    struct query query;

    if (asking != NULL && asking->question.outcome == QUESTION_ANSWERED)
        return answer_text(exchange, MHD_HTTP_OK, asking);
    if (asking != NULL)
        return exchange_problem(exchange, MHD_HTTP_SERVICE_UNAVAILABLE, "%s",
                                asking->question.err.text);
    if (query_read(exchange, parameters, &query) < 0)
        return query_refuse(exchange, &query);
    asking = make_asking(exchange, sql);
    if (asking == NULL)
        return exchange_problem(exchange, 503, "no memory for the request");
    asking->question.values[0] = query.values[0];
    asking->question.count = 1;
    return ask(exchange, asking);
}
