/* test_cloudevents.c - CloudEvents 1.0, as JSON or as HTTP headers and a body, to events. */
#include "cloudevents.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "buf.h"
#include "cmocka_all.h"
#include "failing_malloc.h"
#include "json.h"

#define REQUIRED "\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\""

/* The text holds one value, and perhaps space around it. */
static int read_text(const char *text, struct cloudevent *ret_event, struct err *err)
{
    size_t begin, end;

    assert_int_equal(json_check(text, strlen(text), &begin, &end, err), 0);
    return cloudevents_read(text + begin, end - begin, ret_event, err);
}

static void refuses(const char *text, const char *says)
{
    struct cloudevent event;
    struct err err = {0};

    if (read_text(text, &event, &err) != -EINVAL || strstr(err.text, says) == NULL)
        fail_msg("%s: %s", text, err.text);
}

static void an_object_is_an_event_with_its_key_and_attributes(void **state)
{
    struct cloudevent event;
    struct err err;

    (void)state;
    assert_int_equal(
        read_text("{ \"specversion\" : \"1.0\",\"type\":\"com.x\",\n"
                  "\"source\":\"/a\\u00fc\",\"id\":\"i:1\",\"subject\":\"s/1\","
                  "\"time\":\"2024-01-01T00:00:00Z\",\"unset\":null,"
                  "\"data\": { \"n\" : 1e400 } ,\"num\":-5,\"flag\":true }",
                  &event, &err),
        0);
    assert_string_equal(event.event.type, "com.x");
    assert_int_equal(event.event.type_len, 5);
    assert_string_equal(event.event.channel, "s/1");
    assert_int_equal(event.event.data_len, strlen("{ \"n\" : 1e400 }"));
    assert_memory_equal(event.event.data, "{ \"n\" : 1e400 }", event.event.data_len);
    assert_string_equal(event.key, "c:4:/a\xc3\xbci:1");
    assert_int_equal(event.key_len, strlen(event.key));
    assert_string_equal(
        event.event.attributes,
        "{\"specversion\":\"1.0\",\"type\":\"com.x\",\"source\":\"/a\\u00fc\","
        "\"id\":\"i:1\",\"subject\":\"s/1\",\"time\":\"2024-01-01T00:00:00Z\","
        "\"num\":-5,\"flag\":true}");
    assert_int_equal(event.event.attributes_len, strlen(event.event.attributes));
    free(event.memory);
}

static void the_channel_is_the_extension_before_the_subject(void **state)
{
    static const struct {
        const char *text, *channel;
    } cases[] = {
        {"{" REQUIRED "}", NULL},
        {"{" REQUIRED ",\"subject\":null}", NULL},
        {"{" REQUIRED ",\"subject\":\"s\"}", "s"},
        {"{" REQUIRED ",\"channel\":\"c\"}", "c"},
        {"{" REQUIRED ",\"subject\":\"s\",\"channel\":\"c\\u002f\"}", "c/"},
        {"{" REQUIRED ",\"subject\":\"s\",\"channel\":null}", "s"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct cloudevent event;

        assert_int_equal(read_text(cases[i].text, &event, NULL), 0);
        if (cases[i].channel == NULL)
            assert_null(event.event.channel);
        else
            assert_string_equal(event.event.channel, cases[i].channel);
        free(event.memory);
    }
}

static void data_in_base64_stays_as_it_is_and_is_marked(void **state)
{
    static const char *const good[] = {"", "AA==", "AAA=", "\\/+9a"};
    static const char *const bad[] = {"A",    "AAA",  "A=AA", "AA==AAAA",
                                      "====", "A A=", "\\n"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        CLEANUP(buf_done) struct buf text = BUF_EMPTY, data = BUF_EMPTY;
        struct cloudevent event;

        (void)buf_add_format(&text, "{\"data_base64\":\"%s\"," REQUIRED "}", good[i]);
        (void)buf_add_format(&data, "\"%s\"", good[i]);
        assert_int_equal(read_text(text.data, &event, NULL), 0);
        assert_int_equal(event.event.data_len, data.len);
        assert_memory_equal(event.event.data, data.data, data.len);
        assert_string_equal(event.event.attributes,
                            "{\"data_base64\":true," REQUIRED "}");
        free(event.memory);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        CLEANUP(buf_done) struct buf text = BUF_EMPTY;

        (void)buf_add_format(&text, "{" REQUIRED ",\"data_base64\":\"%s\"}", bad[i]);
        refuses(text.data, "in Base64");
    }
    refuses("{" REQUIRED ",\"data_base64\":1}", "in Base64");
    refuses("{" REQUIRED ",\"data_base64\":\"\",\"data\":1}", "both");
}

static void what_is_wrong_is_said(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"1", "an object"},
        {"[]", "an object"},
        {"{}", "\"specversion\" is missing"},
        {"{\"specversion\":1.0}", "\"specversion\" is not a string"},
        {"{\"specversion\":\"0.3\"}", "specversion is \"0.3\""},
        {"{\"specversion\":\"1.0\"}", "\"type\" is missing"},
        {"{\"specversion\":\"1.0\",\"type\":\"t\"}", "\"source\" is missing"},
        {"{\"specversion\":\"1.0\",\"type\":\"t\",\"source\":\"\"}",
         "\"source\" is empty"},
        {"{\"specversion\":\"1.0\",\"type\":\"t\",\"source\":\"/\"}",
         "\"id\" is missing"},
        {"{\"specversion\":\"1.0\",\"type\":\"t\",\"source\":\"/\",\"id\":null}",
         "\"id\" is missing"},
        {"{\"specversion\":\"1.0\",\"type\":\"t\",\"source\":\"/\",\"id\":1}",
         "\"id\" is not a string"},
        {"{\"specversion\":\"1.0\",\"type\":\"t\",\"source\":\"/\",\"id\":\"\\ud800\"}",
         "\"id\" is not a string of valid text"},
        {"{" REQUIRED ",\"id\":\"2\"}", "\"id\" is there twice"},
        {"{" REQUIRED ",\"Ext\":1}", "\"Ext\" is no attribute's name"},
        {"{" REQUIRED ",\"a_b\":1}", "\"a_b\" is no attribute's name"},
        {"{" REQUIRED ",\"\":1}", "\"\" is no attribute's name"},
        {"{" REQUIRED ",\"\\u0065\":1}", "is no attribute's name"},
        {"{" REQUIRED ",\"ext\":{}}", "\"ext\" is neither"},
        {"{" REQUIRED ",\"ext\":[]}", "\"ext\" is neither"},
        {"{" REQUIRED ",\"time\":1}", "\"time\" is not a string"},
        {"{" REQUIRED ",\"dataschema\":true}", "\"dataschema\" is not a string"},
        {"{" REQUIRED ",\"datacontenttype\":\"\"}", "\"datacontenttype\" is empty"},
        {"{" REQUIRED ",\"subject\":\"\"}", "\"subject\" is empty"},
        {"{" REQUIRED ",\"channel\":7}", "\"channel\" is not a string"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        refuses(cases[i].text, cases[i].says);
}

static void there_is_a_limit_to_everything(void **state)
{
    struct buf text = BUF_EMPTY;
    struct cloudevent event;

    (void)state;
    for (size_t len = CLOUDEVENTS_ID_MAX_BYTES; len <= CLOUDEVENTS_ID_MAX_BYTES + 1;
         len++) {
        (void)buf_add_format(
            &text,
            "{\"specversion\":\"1.0\",\"type\":\"t\",\"source\":\"%0*d\","
            "\"id\":\"%0*d\"}",
            CLOUDEVENTS_ID_MAX_BYTES, 1, (int)len, 1);
        if (len > CLOUDEVENTS_ID_MAX_BYTES) {
            refuses(text.data, "\"id\" is longer than 1024 bytes");
        } else {
            assert_int_equal(read_text(text.data, &event, NULL), 0);
            assert_uint_in_range(event.key_len, 2048, EVENT_KEY_MAX_BYTES);
            free(event.memory);
        }
        buf_reset(&text);
    }

    (void)buf_add_text(&text, "{" REQUIRED);
    for (int i = 5; i <= CLOUDEVENTS_ATTRIBUTES_MAX; i++)
        (void)buf_add_format(&text, ",\"x%d\":%d", i, i);
    const size_t most = text.len;
    (void)buf_add_text(&text, "}");
    assert_int_equal(read_text(text.data, &event, NULL), 0);
    free(event.memory);
    text.len = most;
    (void)buf_add_text(&text, ",\"y1\":1,\"y2\":1,\"y3\":1}");
    refuses(text.data, "more than 64 attributes");

    buf_reset(&text);
    (void)buf_add_format(&text, "{" REQUIRED ",\"x\":\"%0*d\"}",
                         (int)CLOUDEVENTS_CONTEXT_MAX_BYTES, 1);
    refuses(text.data, "longer than 65536 bytes");
    buf_done(&text);
}

/* ---- headers ---- */

static char *join(const char *content_type, const char *body, size_t len,
                  const struct cloudevents_header *header, struct err *err)
{
    struct cloudevents_header headers[] = {{"specversion", "1.0"},
                                           {"Id", "1"},
                                           {"SOURCE", "/s"},
                                           {"type", "t"},
                                           {NULL, NULL}};
    char *text = NULL;

    if (header != NULL)
        headers[4] = *header;
    const int result = cloudevents_join(headers, header != NULL ? 5 : 4, content_type,
                                        body, len, &text, err);
    assert_true(result == (text != NULL ? 0 : -EINVAL));
    return text;
}

static void a_body_is_data_by_its_media_type(void **state)
{
    static const struct {
        const char *type, *body;
        size_t len;
        const char *text;
    } cases[] = {
        {NULL, "", 0, "{" REQUIRED "}"},
        {NULL, "a", 1, "{" REQUIRED ",\"data_base64\":\"YQ==\"}"},
        {"a/b", "", 0, "{" REQUIRED ",\"datacontenttype\":\"a/b\"}"},
        {"a/b", "\0\xff\x10", 3,
         "{" REQUIRED ",\"datacontenttype\":\"a/b\",\"data_base64\":\"AP8Q\"}"},
        {"a/b", "abcd", 4,
         "{" REQUIRED ",\"datacontenttype\":\"a/b\",\"data_base64\":\"YWJjZA==\"}"},
        {"a/b", "abcde", 5,
         "{" REQUIRED ",\"datacontenttype\":\"a/b\",\"data_base64\":\"YWJjZGU=\"}"},
        {"A/JSON;x", " [ 1 ] ", 7,
         "{" REQUIRED ",\"datacontenttype\":\"A/JSON;x\",\"data\":[ 1 ]}"},
        {"a/b+json", "1", 1,
         "{" REQUIRED ",\"datacontenttype\":\"a/b+json\",\"data\":1}"},
        {"Text/\"x", "a\n\"", 3,
         "{" REQUIRED ",\"datacontenttype\":\"Text/\\\"x\",\"data\":\"a\\n\\\"\"}"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct err err = {0};
        struct cloudevent event;
        char *text = join(cases[i].type, cases[i].body, cases[i].len, NULL, &err);

        if (text == NULL)
            fail_msg("%s", err.text);
        assert_string_equal(text, cases[i].text);
        assert_int_equal(read_text(text, &event, &err), 0);
        free(event.memory);
        free(text);
    }
}

static void a_header_is_unquoted_and_percent_decoded_once(void **state)
{
    static const struct {
        const char *value, *means;
    } cases[] = {
        {"Euro%20%E2%82%AC%20%f0%9f%98%80",
         "\"x\":\"Euro \xe2\x82\xac \xf0\x9f\x98\x80\""},
        {"%2541", "\"x\":\"%41\""},
        {"100%", "\"x\":\"100%\""},
        {"%4", "\"x\":\"%4\""},
        {"%zz", "\"x\":\"%zz\""},
        {"a \t", "\"x\":\"a\""},
        {"\"a \" ", "\"x\":\"a \""},
        {" ", "\"x\":\"\""},
        {"\"a \\\"b\\\" %22\"", "\"x\":\"a \\\"b\\\" \\\"\""},
        {"\"", "\"x\":\"\\\"\""},
        {"\"\"", "\"x\":\"\""},
        {"\xc3\xa4", "\"x\":\"\xc3\xa4\""},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct err err = {0};
        char *text =
            join(NULL, "", 0, &(struct cloudevents_header){"x", cases[i].value}, &err);

        if (text == NULL || strstr(text, cases[i].means) == NULL)
            fail_msg("%s: %s %s", cases[i].value, text, err.text);
        free(text);
    }
}

static void a_bad_header_is_refused_by_its_name(void **state)
{
    static const struct {
        struct cloudevents_header header;
        const char *says;
    } cases[] = {
        {{"x", "%C0%A0"}, "\"ce-x\" is not valid UTF-8"},
        {{"x", "%00"}, "\"ce-x\" is not valid UTF-8"},
        {{"x", "\xff"}, "\"ce-x\" is not valid UTF-8"},
        {{"", "1"}, "no header \"ce-\""},
        {{"data", "1"}, "no header \"ce-data\""},
        {{"DataContentType", "1"}, "no header \"ce-datacontenttype\""},
        {{"a_b", "1"}, "no header \"ce-a_b\""},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct err err = {0};

        assert_null(join(NULL, "", 0, &cases[i].header, &err));
        if (strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s", err.text);
    }
    struct err err = {0};
    assert_null(join("application/json", "{", 1, NULL, &err));
    assert_non_null(strstr(err.text, "not JSON: byte 1"));
    assert_null(join("a/\xff", "", 0, NULL, &err));
    assert_non_null(strstr(err.text, "Content-Type"));
    char *text = join(NULL, "", 0, &(struct cloudevents_header){"iD", "2"}, &err);
    refuses(text, "\"id\" is there twice");
    free(text);
}

static void one_required_header_is_enough_to_be_one(void **state)
{
    const struct cloudevents_header stray[] = {{"x", "1"}, {"subject", "s"}};
    const struct cloudevents_header one[] = {{"x", "1"}, {"Source", "s"}};

    (void)state;
    assert_false(cloudevents_in_headers(NULL, 0));
    assert_false(cloudevents_in_headers(stray, ARRAY_SIZE(stray)));
    assert_true(cloudevents_in_headers(one, ARRAY_SIZE(one)));
}

/* jansson does not always say that it was memory. */
static void without_memory_nothing_leaks(void **state)
{
    const struct cloudevents_header headers[] = {
        {"specversion", "1.0"}, {"id", "\"1\""}, {"source", "/s"}, {"type", "t%22"}};
    bool failed = true;

    (void)state;
    json_set_alloc_funcs(malloc, free);
    for (unsigned n = 1; failed; n++) {
        struct cloudevent event = {.memory = NULL};
        struct err err = {0};
        char *text = NULL;

        failing_malloc_begin(n);
        int result = cloudevents_join(headers, ARRAY_SIZE(headers), "text/plain", "text",
                                      4, &text, &err);
        if (result == 0)
            result = cloudevents_read(text, strlen(text), &event, &err);
        failed = failing_malloc_end();
        if (result == -EINVAL)
            assert_non_null(strstr(err.text, "valid text"));
        else
            assert_true(result == -ENOMEM || result == 0);
        assert_true(failed || result == 0);
        free(event.memory);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_object_is_an_event_with_its_key_and_attributes),
        cmocka_unit_test(the_channel_is_the_extension_before_the_subject),
        cmocka_unit_test(data_in_base64_stays_as_it_is_and_is_marked),
        cmocka_unit_test(what_is_wrong_is_said),
        cmocka_unit_test(there_is_a_limit_to_everything),
        cmocka_unit_test(a_body_is_data_by_its_media_type),
        cmocka_unit_test(a_header_is_unquoted_and_percent_decoded_once),
        cmocka_unit_test(a_bad_header_is_refused_by_its_name),
        cmocka_unit_test(one_required_header_is_enough_to_be_one),
        cmocka_unit_test(without_memory_nothing_leaks),
    };
    return cmocka_run_group_tests_name("cloudevents", tests, NULL, NULL);
}
