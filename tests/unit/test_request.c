/* test_request.c - POST bodies in every form to events; problems to problem+json. */
#include "request.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "cmocka_all.h"
#include "failing_malloc.h"

#define JSON   "application/json"
#define NDJSON "application/x-ndjson"
#define TEXT   "text/plain"
#define EVENT  "application/cloudevents+json"
#define BATCH  "application/cloudevents-batch+json"

#define REQUIRED "\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\""

/* What request.c allocates by these goes by failing_malloc.c, too. */
void *reallocarray(void *old, size_t count, size_t size)
{
    return realloc(old, count * size);
}

char *strndup(const char *text, size_t len)
{
    const size_t found = strnlen(text, len);
    char *copy = malloc(found + 1);

    if (copy != NULL) {
        memcpy(copy, text, found);
        copy[found] = '\0';
    }
    return copy;
}

static struct form form_of(const char *content_type, const char *channel,
                           const char *type)
{
    return (struct form){.content_type = content_type,
                         .channel = channel,
                         .channel_len = channel != NULL ? strlen(channel) : 0,
                         .type = type,
                         .type_len = type != NULL ? strlen(type) : 0};
}

/* As the endpoint does it: the form first, then the body. */
static int take(struct request *request, const struct form *form, const char *body,
                size_t len, struct problem *problem)
{
    const int result = form_check(form, problem);

    *request = (struct request){0};
    return result < 0 ? result : request_parse(request, form, body, len, problem);
}

static void expect_event(const struct event *event, const char *channel, const char *type,
                         const char *data)
{
    assert_string_equal(event->channel, channel);
    assert_int_equal(event->channel_len, strlen(channel));
    assert_string_equal(event->type, type);
    assert_int_equal(event->type_len, strlen(type));
    assert_int_equal(event->data_len, strlen(data));
    assert_memory_equal(event->data, data, strlen(data));
    assert_true(event->seq == 0);
}

static const struct right {
    const char *content_type;
    const char *query_channel;
    const char *query_type;
    const char *body;
    bool many;
    struct {
        const char *channel;
        const char *type;
        const char *data;
    } events[3];
} rights[] = {
    {JSON, NULL, NULL, "{\"data\":1}", false, {{"events", "message", "1"}}},
    {JSON,
     NULL,
     NULL,
     " {\t\"type\" : \"t\" ,\n\"data\" : [ 1 , 2 ] , \"channel\":\"c\" }\r\n",
     false,
     {{"c", "t", "[ 1 , 2 ]"}}},
    {JSON, NULL, NULL, "[{\"data\":1}]", true, {{"events", "message", "1"}}},
    {EVENT, NULL, NULL, " {" REQUIRED "} ", false, {{"events", "t", "null"}}},
    {EVENT, "q", NULL, "{" REQUIRED ",\"subject\":\"s*\"}", false, {{"q", "t", "null"}}},
    {BATCH "; charset=utf-8",
     NULL,
     NULL,
     "[{" REQUIRED ",\"data\": 1e400},"
     "{\"id\":\"2\",\"source\":\"/s\",\"type\":\"u\",\"specversion\":\"1.0\","
     "\"channel\":\"c\"}]",
     true,
     {{"events", "t", "1e400"}, {"c", "u", "null"}}},
    {JSON,
     NULL,
     NULL,
     "[ {\"data\":1.0e5} , "
     "{\"data\":{\"a\":1,\"a\":2},\"channel\":\"x.y\"},{\"data\":null}]",
     true,
     {{"events", "message", "1.0e5"},
      {"x.y", "message", "{\"a\":1,\"a\":2}"},
      {"events", "message", "null"}}},
    {JSON,
     NULL,
     NULL,
     "{\"data\":123456789012345678901234567890.00}",
     false,
     {{"events", "message", "123456789012345678901234567890.00"}}},
    {JSON,
     NULL,
     NULL,
     "{\"d\\u0061ta\":\"\\ud83d\\ude00\",\"channel\":\"\\u00fc \\\"\",\"type\":\"\\/\"}",
     false,
     {{"\xc3\xbc \"", "/", "\"\\ud83d\\ude00\""}}},
    {JSON,
     NULL,
     NULL,
     "{\"data\":\"\\ud800\"}",
     false,
     {{"events", "message", "\"\\ud800\""}}},
    {JSON, "q", NULL, "[1,2]", false, {{"q", "message", "[1,2]"}}},
    {JSON, "q", "t", " {\"data\":1} ", false, {{"q", "t", "{\"data\":1}"}}},
    {"Application/JSON; charset=UTF-8", "q", NULL, "1", false, {{"q", "message", "1"}}},
    {"application/json;charset=\"utf-8\"",
     "q",
     NULL,
     "1",
     false,
     {{"q", "message", "1"}}},
    {"application/vnd.github+json", "q", NULL, "{}", false, {{"q", "message", "{}"}}},
    {TEXT,
     "q",
     "t",
     "a\"\\\n\x01\xc3\xbc",
     false,
     {{"q", "t", "\"a\\\"\\\\\\n\\u0001\xc3\xbc\""}}},
    {TEXT, "q", NULL, "", false, {{"q", "message", "\"\""}}},
    {NDJSON,
     NULL,
     NULL,
     "{\"data\":1}\n\r\n  {\"data\":2} \r\n\n{\"data\":3}",
     true,
     {{"events", "message", "1"},
      {"events", "message", "2"},
      {"events", "message", "3"}}},
    {NDJSON, "q", "t", "1\n[]\n", true, {{"q", "t", "1"}, {"q", "t", "[]"}}},
};

static void every_form_makes_its_events(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(rights); i++) {
        const struct right *right = &rights[i];
        const struct form form =
            form_of(right->content_type, right->query_channel, right->query_type);
        struct request request;
        struct problem problem = {0};
        size_t count = 0;

        if (take(&request, &form, right->body, strlen(right->body), &problem) < 0)
            fail_msg("%s: %s", right->body, problem.detail.text);
        assert_int_equal(request.many, right->many);
        for (; count < 3 && right->events[count].channel != NULL; count++) {
            assert_true(count < request.count);
            expect_event(&request.events[count], right->events[count].channel,
                         right->events[count].type, right->events[count].data);
        }
        assert_int_equal(request.count, count);
        request_done(&request);
        request_done(&request); /* in any case */
    }
}

static const struct wrong {
    const char *content_type;
    const char *query_channel;
    const char *query_type;
    const char *body;
    unsigned status;
    const char *says;
} wrongs[] = {
    {NULL, NULL, NULL, "{}", 415, "no Content-Type"},
    {"", "q", NULL, "{}", 415, "no Content-Type"},
    {"application/jsonx", "q", NULL, "{}", 415, "not taken"},
    {"application/xml", "q", NULL, "{}", 415, "not taken"},
    {"application/x-www-form-urlencoded", NULL, NULL, "{}", 415, "curl -d"},
    {"application/cloudevents+avro", "q", NULL, "{}", 415, "cloudevents-batch+json"},
    {"application/cloudevents+json; charset=latin1", NULL, NULL, "{}", 415, "UTF-8"},
    {EVENT, "q", "t", "{}", 400, "?type="},
    {EVENT, NULL, NULL, "{}", 400, "\"specversion\" is missing"},
    {EVENT, NULL, NULL, "[]", 400, "an object"},
    {EVENT, NULL, NULL, "{", 400, "not JSON"},
    {EVENT, NULL, NULL, "{" REQUIRED ",\"subject\":\"a*\"}", 400, "channel ends in"},
    {EVENT, NULL, NULL,
     "{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/\",\"type\":\"gap\"}", 400,
     "type \"gap\""},
    {BATCH, NULL, NULL, "{}", 400, "an array"},
    {BATCH, NULL, NULL, "[]", 400, "no event"},
    {BATCH, NULL, NULL, "[{" REQUIRED "},{}]", 400, "event 2: \"specversion\""},
    {BATCH, NULL, NULL, "[{" REQUIRED "},{" REQUIRED "}]", 400,
     "event 1 and event 2 have the same source and id"},
    {TEXT, NULL, NULL, "x", 415, "?channel="},
    {"application/a+json", NULL, NULL, "{}", 415, "?channel="},
    {"application/json; charset=latin1", NULL, NULL, "{}", 415, "UTF-8"},
    {"text/plain; charset=utf-16", "q", NULL, "x", 415, "UTF-8"},
    {JSON, NULL, "t", "{\"data\":1}", 400, "?type= needs ?channel="},
    {JSON, "", NULL, "1", 400, "channel"},
    {JSON, "a*", NULL, "1", 400, "channel"},
    {JSON, "\x01", NULL, "1", 400, "channel"},
    {JSON, "q", "", "1", 400, "type"},
    {JSON, "q", "gap", "1", 400, "type"},
    {JSON, NULL, NULL, "", 400, "not JSON"},
    {JSON, NULL, NULL, "{\"data\":1} x", 400, "byte 11"},
    {JSON, NULL, NULL, "{\"data\":01}", 400, "not JSON"},
    {JSON, NULL, NULL, "1", 400, "object"},
    {JSON, NULL, NULL, "[1]", 400, "event 1: "},
    {JSON, NULL, NULL, "[]", 400, "no event"},
    {JSON, NULL, NULL, "{}", 400, "\"data\" is missing"},
    {JSON, NULL, NULL, "{\"channel\":\"c\"}", 400, "\"data\" is missing"},
    {JSON, NULL, NULL, "[{\"data\":1},{\"dat\":1}]", 400,
     "event 2: unknown member \"dat\""},
    {JSON, NULL, NULL, "{\"data\":1,\"id\":2}", 400, "unknown member \"id\""},
    {JSON, NULL, NULL, "{\"data\":1,\"data\":2}", 400, "\"data\" is there twice"},
    {JSON, NULL, NULL, "{\"type\":\"a\",\"data\":1,\"type\":\"a\"}", 400,
     "\"type\" is there twice"},
    {JSON, NULL, NULL, "{\"data\":1,\"channel\":7}", 400, "\"channel\" is not a string"},
    {JSON, NULL, NULL, "{\"data\":1,\"type\":null}", 400, "\"type\" is not a string"},
    {JSON, NULL, NULL, "{\"data\":1,\"type\":\"\"}", 400, "type is empty"},
    {JSON, NULL, NULL, "{\"data\":1,\"channel\":\"a*\"}", 400, "channel"},
    {JSON, NULL, NULL, "{\"data\":1,\"channel\":\"\\n\"}", 400, "channel"},
    {JSON, NULL, NULL, "{\"data\":1,\"channel\":\"\\ud800\"}", 400, "valid text"},
    {JSON, NULL, NULL, "{\"data\":\"\\u0000\"}", 400, "byte"},
    {JSON, "q", NULL, "\"\xff\"", 400, "UTF-8"},
    {TEXT, "q", NULL, "\xc0\x80", 400, "UTF-8"},
    {NDJSON, NULL, NULL, "{\"data\":1}\n\n{\"data\":}\n", 400, "line 3: not JSON"},
    {NDJSON, NULL, NULL, "{\"data\":1}\n[]\n", 400, "line 2: "},
    {NDJSON, NULL, NULL, "\n \r\n", 400, "no event"},
    {NDJSON, "q", NULL, "", 400, "no event"},
};

static void what_is_wrong_is_said_with_its_place(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrongs); i++) {
        const struct wrong *wrong = &wrongs[i];
        const struct form form =
            form_of(wrong->content_type, wrong->query_channel, wrong->query_type);
        struct request request;
        struct problem problem = {0};

        assert_int_equal(
            take(&request, &form, wrong->body, strlen(wrong->body), &problem), -EINVAL);
        if (problem.status != wrong->status ||
            strstr(problem.detail.text, wrong->says) == NULL)
            fail_msg("case %zu, %s: %u %s", i, wrong->body, problem.status,
                     problem.detail.text);
        request_done(&request);
    }
}

static void a_nul_is_refused(void **state)
{
    const struct form forms[] = {form_of(TEXT, "q", NULL), form_of(JSON, "q", NULL),
                                 form_of(NDJSON, "q", NULL)};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(forms); i++) {
        struct request request;
        struct problem problem;

        assert_int_equal(take(&request, &forms[i], "\"a\0b\"", 5, &problem), -EINVAL);
        assert_int_equal(problem.status, 400);
        request_done(&request);
    }
}

/* So many events, in an array or in lines. */
static char *many_events(size_t count, bool array)
{
    struct buf text = BUF_EMPTY;

    (void)buf_add_text(&text, array ? "[" : "");
    for (size_t i = 0; i < count; i++)
        (void)buf_add_format(&text, "%s{\"data\":%zu}%s", i > 0 && array ? "," : "", i,
                             array ? "" : "\n");
    (void)buf_add_text(&text, array ? "]" : "");
    return buf_steal(&text);
}

static void there_may_be_so_many_events_and_no_more(void **state)
{
    (void)state;
    for (int array = 0; array < 2; array++) {
        const struct form form = form_of(array ? JSON : NDJSON, NULL, NULL);
        for (size_t count = REQUEST_EVENTS_MAX; count <= REQUEST_EVENTS_MAX + 1;
             count++) {
            char *body = many_events(count, array);
            struct request request;
            struct problem problem;
            const int result = take(&request, &form, body, strlen(body), &problem);

            assert_int_equal(result, count <= REQUEST_EVENTS_MAX ? 0 : -EINVAL);
            if (result == 0)
                expect_event(&request.events[count - 1], "events", "message", "9999");
            request_done(&request);
            free(body);
        }
    }
}

/* The n-th allocation fails: it is told as that, not as a mistake of the client's, and
 * nothing leaks. Of those within jansson nobody can be sure: it does not say that it was
 * memory, so that a string may be refused as if it were no text. */
static void running_out_of_memory_is_nobodys_mistake(void **state)
{
    static const struct {
        const char *content_type;
        const char *query_channel;
        const char *body;
    } cases[] = {
        {JSON, NULL, "{\"data\":1,\"channel\":\"c\",\"type\":\"t\"}"},
        {JSON, NULL,
         "[{\"data\":1},{\"data\":1},{\"data\":1},{\"data\":1},{\"data\":1}]"},
        {NDJSON, "q", "1\n2\n3\n4\n5\n"},
        {TEXT, "q", "text"},
        {EVENT, NULL, "{" REQUIRED ",\"subject\":\"a\\/b\",\"data\":1}"},
        {BATCH, NULL,
         "[{" REQUIRED "},"
         "{\"specversion\":\"1.0\",\"id\":\"2\",\"source\":\"/\",\"type\":\"t\"}]"},
    };

    (void)state;
    json_set_alloc_funcs(malloc, free);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct form form =
            form_of(cases[i].content_type, cases[i].query_channel, NULL);
        bool failed = true;

        for (unsigned n = 1; failed; n++) {
            struct request request;
            struct problem problem = {0};

            failing_malloc_begin(n);
            const int result = request_parse(&request, &form, cases[i].body,
                                             strlen(cases[i].body), &problem);
            failed = failing_malloc_end();
            if (failed && result == -EINVAL)
                assert_non_null(strstr(problem.detail.text, "valid text"));
            else if (result != (failed ? -ENOMEM : 0))
                fail_msg("case %zu, allocation %u: %d, %u %s", i, n, result,
                         problem.status, problem.detail.text);
            request_done(&request);
        }
    }
}

/* Those that have headers, and a key. */
static const struct cloudevents_header headers[] = {
    {"specversion", "1.0"}, {"ID", "7%2f8"}, {"source", "/s"},
    {"Type", "t"},          {"ext", "a b"},
};

static void headers_and_a_body_are_a_cloudevent(void **state)
{
    struct form form = form_of("text/plain", NULL, NULL);
    struct request request;
    struct problem problem;

    (void)state;
    form.headers = headers;
    form.header_count = ARRAY_SIZE(headers);
    assert_int_equal(take(&request, &form, "a\"b", 3, &problem), 0);
    assert_false(request.many);
    expect_event(request.events, "events", "t", "\"a\\\"b\"");
    assert_int_equal(request.unit_count, 1);
    assert_string_equal(request.units[0].key, "c:2:/s7/8");
    assert_non_null(strstr(request.events[0].attributes, "\"ext\":\"a b\""));
    request_done(&request);

    form.content_type = "image/png";
    assert_int_equal(take(&request, &form, "\xff\0", 2, &problem), 0);
    expect_event(request.events, "events", "t", "\"/wA=\"");
    request_done(&request);

    form.content_type = "application/x-www-form-urlencoded";
    assert_int_equal(take(&request, &form, "{}", 2, &problem), -EINVAL);
    assert_int_equal(problem.status, 415);
    request_done(&request);
}

static void a_key_makes_one_unit_of_the_request(void **state)
{
    struct form form = form_of(NDJSON, NULL, NULL);
    struct request request;
    struct problem problem;

    (void)state;
    assert_int_equal(take(&request, &form, "{\"data\":1}\n{\"data\":2}", 21, &problem),
                     0);
    assert_int_equal(request.unit_count, 0);
    request_done(&request);

    form.idempotency_key = "~! ";
    form.idempotency_key_len = 2;
    assert_int_equal(take(&request, &form, "{\"data\":1}\n{\"data\":2}", 21, &problem),
                     0);
    assert_int_equal(request.unit_count, 1);
    assert_string_equal(request.units[0].key, "i:~!");
    assert_int_equal(request.units[0].first, 0);
    assert_int_equal(request.units[0].count, 2);
    request_done(&request);

    form.content_type = EVENT;
    assert_int_equal(
        take(&request, &form, "{" REQUIRED "}", strlen("{" REQUIRED "}"), &problem), 0);
    assert_int_equal(request.unit_count, 1);
    assert_string_equal(request.units[0].key, "i:~!");
    request_done(&request);
}

static void a_key_is_a_word_of_visible_ascii(void **state)
{
    char longest[FORM_KEY_MAX_BYTES + 2];
    const char *const bad[] = {"", "a b", "a\tb", "\x7f", "\xc3\xa4", longest};

    (void)state;
    memset(longest, 'k', sizeof(longest));
    longest[FORM_KEY_MAX_BYTES + 1] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct form form = form_of(JSON, NULL, NULL);
        struct problem problem;

        form.idempotency_key = bad[i];
        form.idempotency_key_len = strlen(bad[i]);
        assert_int_equal(form_check(&form, &problem), -EINVAL);
        assert_int_equal(problem.status, 400);
        assert_non_null(strstr(problem.detail.text, "Idempotency-Key"));
        if (bad[i] == longest) {
            form.idempotency_key_len--;
            assert_int_equal(form_check(&form, &problem), 0);
        }
    }
}

static void one_client_publishes_all_of_a_request(void **state)
{
    static const struct {
        const char *type, *body;
    } cases[] = {{JSON, "{\"data\":1}"},
                 {JSON, "[{\"data\":1},{\"data\":2}]"},
                 {NDJSON, "{\"data\":1}\n{\"data\":2}\n"},
                 {EVENT, "{" REQUIRED "}"}};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct form form = form_of(cases[i].type, NULL, NULL);
        struct request request;
        struct problem problem;

        form.client = "shop \t";
        form.client_len = 4;
        assert_int_equal(
            take(&request, &form, cases[i].body, strlen(cases[i].body), &problem), 0);
        for (size_t j = 0; j < request.count; j++) {
            assert_int_equal(request.events[j].client_len, 4);
            assert_memory_equal(request.events[j].client, "shop", 4);
        }
        request_done(&request);
        form.client = NULL;
        assert_int_equal(
            take(&request, &form, cases[i].body, strlen(cases[i].body), &problem), 0);
        assert_null(request.events[0].client);
        request_done(&request);
    }
}

static void a_client_is_a_name(void **state)
{
    char longest[257];
    const char *const bad[] = {"", "a\tb", "\x7f", "\xc2\x85", "\xff", longest};
    const char *const good[] = {"a b", "\xc3\xa4", "\"*\"", longest};

    (void)state;
    memset(longest, 'k', sizeof(longest));
    longest[256] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        struct form form = form_of(JSON, NULL, NULL);
        struct problem problem;

        form.client = bad[i];
        form.client_len = strlen(bad[i]);
        assert_int_equal(form_check(&form, &problem), -EINVAL);
        assert_int_equal(problem.status, 400);
        assert_non_null(strstr(problem.detail.text, "X-Client-ID"));
    }
    longest[255] = '\0';
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        struct form form = form_of(JSON, NULL, NULL);
        struct problem problem;

        form.client = good[i];
        form.client_len = strlen(good[i]);
        assert_int_equal(form_check(&form, &problem), 0);
    }
}

static void the_answer_names_each_event(void **state)
{
    struct event events[] = {
        {.seq = 7,
         .channel = "a\"\xc3\xbc",
         .channel_len = 4,
         .type = "t",
         .type_len = 1},
        {.seq = INT64_MAX, .channel = "b", .channel_len = 1, .type = "u", .type_len = 1},
    };
    struct request request = {.events = events, .count = 1};

    (void)state;
    char *text = request_answer(&request);
    assert_string_equal(text,
                        "{\"id\":\"7\",\"channel\":\"a\\\"\xc3\xbc\",\"type\":\"t\"}");
    free(text);

    request.many = true;
    text = request_answer(&request);
    assert_string_equal(text, "{\"events\":[{\"id\":\"7\",\"channel\":\"a\\\"\xc3\xbc\","
                              "\"type\":\"t\"}]}");
    free(text);

    events[0].channel = "\\a\\";
    events[0].channel_len = 3;
    request.many = false;
    text = request_answer(&request);
    assert_string_equal(text, "{\"id\":\"7\",\"channel\":\"\\\\a\\\\\",\"type\":\"t\"}");
    free(text);

    request.many = true;
    request.count = 2;
    text = request_answer(&request);
    assert_non_null(strstr(text, "},{\"id\":\"9223372036854775807\",\"channel\":\"b\""));
    free(text);
}

static void a_stored_event_keeps_its_data_as_it_is(void **state)
{
    const struct event event = {.seq = 7,
                                .channel = "a",
                                .channel_len = 1,
                                .type = "t",
                                .type_len = 1,
                                .data = "{\"n\": 1.00000000000000000000001}",
                                .data_len = 32};

    (void)state;
    char *text = request_event_json(&event, "2024-01-01T00:00:00Z");
    assert_string_equal(text,
                        "{\"id\":\"7\",\"channel\":\"a\",\"type\":\"t\",\"created_at\":"
                        "\"2024-01-01T00:00:00Z\",\"data\":{\"n\": "
                        "1.00000000000000000000001}}");
    free(text);
    text = request_event_json(&event, NULL);
    assert_string_equal(text,
                        "{\"id\":\"7\",\"channel\":\"a\",\"type\":\"t\",\"data\":{\"n\": "
                        "1.00000000000000000000001}}");
    free(text);
}

/* Ours fail here; of jansson's own failures we see to it that they break nothing (2.14 may
 * leave out a key when its buffer cannot grow, and tells nobody). */
static void answers_without_memory_are_null(void **state)
{
    struct event event = {.seq = 7,
                          .channel = "a",
                          .channel_len = 1,
                          .type = "t",
                          .type_len = 1,
                          .data = "1",
                          .data_len = 1};
    const struct problem problem = {.status = 400, .detail = {"what"}};

    (void)state;
    json_set_alloc_funcs(malloc, free);
    for (int which = 0; which < 4; which++) {
        const struct request request = {.events = &event, .count = 1, .many = which == 1};
        bool failed = true;

        for (unsigned n = 1; failed; n++) {
            failing_malloc_begin(n);
            char *text = which < 2    ? request_answer(&request)
                         : which == 2 ? request_event_json(&event, "now")
                                      : problem_json(&problem);
            failed = failing_malloc_end();
            assert_true(text != NULL || failed);
            if (n == 1)
                assert_null(text);
            free(text);
        }
    }
}

static void problems_are_documents(void **state)
{
    struct problem problem = {.status = 413};

    (void)state;
    (void)err_set(&problem.detail, 0, "a \"quote\"");
    char *text = problem_json(&problem);
    assert_string_equal(text, "{\"type\":\"about:blank\",\"title\":\"Content Too Large\","
                              "\"status\":413,\"detail\":\"a \\\"quote\\\"\"}");
    free(text);
    memcpy(problem.detail.text, "\xff\xfe", 3);
    text = problem_json(&problem);
    assert_non_null(strstr(text, "not UTF-8"));
    free(text);
}

/* Quoting what was wrong must not cut a letter in two: the reader would be told of bytes
 * that it has not sent. */
static void a_long_quotation_is_still_text(void **state)
{
    const struct form form = form_of(JSON, NULL, NULL);
    CLEANUP(buf_done) struct buf body = BUF_EMPTY;
    struct request request;
    struct problem problem;

    (void)state;
    (void)buf_add_text(&body, "{\"data\":1,\"x");
    for (int i = 0; i < 100; i++)
        (void)buf_add_text(&body, "\xc3\xbc");
    (void)buf_add_text(&body, "\":1}");
    assert_int_equal(take(&request, &form, body.data, body.len, &problem), -EINVAL);
    request_done(&request);
    assert_true(event_text_is_utf8(problem.detail.text, strlen(problem.detail.text)));
    char *text = problem_json(&problem);
    assert_non_null(strstr(text, "unknown member"));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_form_makes_its_events),
        cmocka_unit_test(what_is_wrong_is_said_with_its_place),
        cmocka_unit_test(a_nul_is_refused),
        cmocka_unit_test(there_may_be_so_many_events_and_no_more),
        cmocka_unit_test(running_out_of_memory_is_nobodys_mistake),
        cmocka_unit_test(headers_and_a_body_are_a_cloudevent),
        cmocka_unit_test(a_key_makes_one_unit_of_the_request),
        cmocka_unit_test(a_key_is_a_word_of_visible_ascii),
        cmocka_unit_test(one_client_publishes_all_of_a_request),
        cmocka_unit_test(a_client_is_a_name),
        cmocka_unit_test(the_answer_names_each_event),
        cmocka_unit_test(a_stored_event_keeps_its_data_as_it_is),
        cmocka_unit_test(answers_without_memory_are_null),
        cmocka_unit_test(problems_are_documents),
        cmocka_unit_test(a_long_quotation_is_still_text),
    };
    return cmocka_run_group_tests_name("request", tests, NULL, NULL);
}
