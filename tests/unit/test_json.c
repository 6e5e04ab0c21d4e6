/* test_json.c - where a JSON value begins and ends. */
#include "json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmocka_all.h"

#define CASE(literal)                                                                    \
    {                                                                                    \
        (literal), sizeof(literal) - 1                                                   \
    }

struct sample {
    const char *text;
    size_t len;
};

/* Each accepted by RFC 8259. */
static const struct sample right[] = {
    CASE("null"),
    CASE("true"),
    CASE("false"),
    CASE("0"),
    CASE("-0"),
    CASE("1"),
    CASE("-1"),
    CASE("10"),
    CASE("123456789012345678901234567890"),
    CASE("0.1"),
    CASE("-0.00"),
    CASE("1e5"),
    CASE("1E5"),
    CASE("1e+5"),
    CASE("1e-5"),
    CASE("0e0"),
    CASE("0E+00"),
    CASE("1.5e300"),
    CASE("123e99999"),
    CASE("\"\""),
    CASE("\"a\""),
    CASE("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\""),
    CASE("\"\\u0001\""),
    CASE("\"\\uABcd\""),
    CASE("\"\\uD83D\\uDE00\""),
    CASE("\"\\ud800\""),
    CASE("\"\\udc00\\ud800\""),
    CASE("\"\\u000a\""),
    CASE("\"\x7f\""),
    CASE("\"\xe2\x80\xa8\""),
    CASE("\"\xff\""),
    CASE("\"/\""),
    CASE("\"\\\\u0000\""),
    CASE("[]"),
    CASE("[ ]"),
    CASE("[1]"),
    CASE("[1,2]"),
    CASE("[1 , 2 ]"),
    CASE("[[]]"),
    CASE("[[],[[]]]"),
    CASE("[null,true,false]"),
    CASE("[\"a\",1,{}]"),
    CASE("[1\n,2\t,\r3]"),
    CASE("{}"),
    CASE("{ }"),
    CASE("{\"a\":1}"),
    CASE("{\"a\" : 1 }"),
    CASE("{\"\":0}"),
    CASE("{\"a\":1,\"a\":2}"),
    CASE("{\"a\":{\"b\":[{}]},\"c\":[]}"),
    CASE(" {} "),
    CASE("\t\r\n 1 \n"),
    CASE("[-0.5e-7]"),
    CASE("{\"a\\u0062\":[]}"),
};

/* Each refused, by RFC 8259 or because PostgreSQL cannot store it. */
static const struct sample wrong[] = {
    CASE(""),
    CASE(" "),
    CASE("nul"),
    CASE("nulll"),
    CASE("NULL"),
    CASE("True"),
    CASE("tru"),
    CASE("fals"),
    CASE("nan"),
    CASE("NaN"),
    CASE("Infinity"),
    CASE("-Infinity"),
    CASE("undefined"),
    CASE("-"),
    CASE("+1"),
    CASE("01"),
    CASE("-01"),
    CASE("00"),
    CASE("1."),
    CASE(".5"),
    CASE("-.5"),
    CASE("1.e5"),
    CASE("1e"),
    CASE("1e+"),
    CASE("1e-"),
    CASE("1e5.5"),
    CASE("0x1"),
    CASE("1_000"),
    CASE("--1"),
    CASE("1 2"),
    CASE("0e"),
    CASE("1eE2"),
    CASE("\""),
    CASE("\"a"),
    CASE("\"\\\""),
    CASE("\"\\"),
    CASE("\"\\a\""),
    CASE("\"\\x41\""),
    CASE("\"\\'\""),
    CASE("\"\\U0041\""),
    CASE("\"\\u\""),
    CASE("\"\\u1\""),
    CASE("\"\\u12\""),
    CASE("\"\\u123\""),
    CASE("\"\\u123g\""),
    CASE("\"\\u123"),
    CASE("\"\\u000"),
    CASE("\"\\u 123\""),
    CASE("\"\\u0000\""),
    CASE("{\"\\u0000\":1}"),
    CASE("\"\\u00000\""),
    CASE("\"\n\""),
    CASE("\"\t\""),
    CASE("\"\0\""),
    CASE("\"\x1f\""),
    CASE("\"\r\""),
    CASE("'a'"),
    CASE("a"),
    CASE("["),
    CASE("]"),
    CASE("[1"),
    CASE("[1,"),
    CASE("[1,]"),
    CASE("[,1]"),
    CASE("[,]"),
    CASE("[1 2]"),
    CASE("[1,,2]"),
    CASE("[1}"),
    CASE("[}"),
    CASE("[1]]"),
    CASE("[01]"),
    CASE("[1.]"),
    CASE("[a"),
    CASE("[\"a\":1]"),
    CASE("{"),
    CASE("}"),
    CASE("{]"),
    CASE("{\"a\"}"),
    CASE("{\"a\":}"),
    CASE("{\"a\":1,}"),
    CASE("{,}"),
    CASE("{\"a\" 1}"),
    CASE("{a:1}"),
    CASE("{1:1}"),
    CASE("{null:1}"),
    CASE("{'a':1}"),
    CASE("{\"a\"::1}"),
    CASE("{\"a\":1 \"b\":2}"),
    CASE("{\"a\":1]"),
    CASE("{\"a\":1"),
    CASE("{\"a\":"),
    CASE("{\"a\""),
    CASE("{\"a"),
    CASE("{\"a\":1}}"),
    CASE("{}{}"),
    CASE("{\"a\":1,,\"b\":2}"),
    CASE("{[]:1}"),
    CASE("{\"a\",\"b\"}"),
    CASE("[]1"),
    CASE("/* */1"),
    CASE("1//"),
    CASE("[1]#"),
    CASE("\xef\xbb\xbf"
         "1"),
    CASE("\f1"),
    CASE("\v1"),
    CASE("\xc2\xa0"
         "1"),
    CASE("1\0"),
    CASE("\0"),
    CASE("[\0]"),
    CASE("null\0"),
    CASE("<"),
    CASE("*"),
    CASE("@"),
    CASE("[\"a\",\n4\n,1,"),
};

static void what_is_json_is_taken(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(right); i++) {
        struct err err = {.text = ""};
        const struct sample *sample = &right[i];
        int code = json_check(sample->text, sample->len, NULL, NULL, &err);
        if (code != 0)
            fail_msg("%s: %d %s", sample->text, code, err.text);
    }
}

static void what_is_not_json_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        struct err err = {.text = ""};
        size_t begin = 77, end = 77;
        if (json_check(wrong[i].text, wrong[i].len, &begin, &end, &err) != -EINVAL)
            fail_msg("'%s' was taken", wrong[i].text);
        unsigned offset;
        assert_int_equal(sscanf(err.text, "byte %u: ", &offset), 1);
        assert_true(offset <= wrong[i].len);
        assert_int_equal(begin + end, 154);
    }
}

/* Copied so that the sanitizer sees a look behind the end; no prefix may do harm, and no
 * beginning of something that ends with a bracket or quote is a value of its own. */
static void a_text_that_stops_anywhere_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(right); i++) {
        const struct sample *sample = &right[i];
        for (size_t len = 0; len <= sample->len; len++) {
            char *copy = malloc(len + (len == 0));
            assert_non_null(copy);
            memcpy(copy, sample->text, len);
            int code = json_check(copy, len, NULL, NULL, NULL);
            free(copy);
            if (len < sample->len && strchr("[{\"", sample->text[0]) != NULL)
                assert_int_equal(code, -EINVAL);
        }
    }
}

static void assert_error(const char *text, const char *wanted)
{
    struct err err;

    assert_int_equal(json_check(text, strlen(text), NULL, NULL, &err), -EINVAL);
    assert_string_equal(err.text, wanted);
}

static void the_error_says_what_and_where(void **state)
{
    (void)state;
    assert_error("", "byte 0: ends where a JSON value was expected");
    assert_error("{\"a\":1 \"b\":2}", "byte 7: expected ',' or '}'");
    assert_error("[1 2]", "byte 3: expected ',' or ']'");
    assert_error("{\"a\" 1}", "byte 5: expected ':'");
    assert_error("{a:1}", "byte 1: expected a member's name in double quotes");
    assert_error("[1,]", "byte 3: expected a JSON value");
    assert_error("[1.x]", "byte 3: expected a digit");
    assert_error("\"ab\\u0000\"", "byte 3: \\u0000 cannot be stored");
    assert_error("\"ab\\q\"",
                 "byte 4: expected one of \" \\ / b f n r t u after a backslash");
    assert_error("\"ab\\u12x4\"", "byte 7: expected four hexadecimal digits after \\u");
    assert_error("\"ab\n\"", "byte 3: control character in a string");
    assert_error("\"ab", "byte 3: ends inside a string");
    assert_error("1 x", "byte 2: more text behind the JSON value");
}

static void a_value_is_found_in_the_middle_of_a_text(void **state)
{
    const char *text = "{\"data\": [1, \"]\", {}] , \"x\": 1}";
    size_t end = 0;

    (void)state;
    assert_int_equal(json_skip_space(text, strlen(text), 8), 9);
    assert_int_equal(json_scan(text, strlen(text), 9, &end, NULL), 0);
    assert_int_equal(end, 21);
    assert_int_equal(json_scan("12,3", 4, 0, &end, NULL), 0);
    assert_int_equal(end, 2);
    assert_int_equal(json_scan("{}{}", 4, 2, &end, NULL), 0);
    assert_int_equal(end, 4);
    assert_int_equal(json_scan("1", 1, 1, &end, NULL), -EINVAL);
    assert_int_equal(end, 4);
    assert_int_equal(json_skip_space("  ", 2, 0), 2);
    assert_int_equal(json_skip_space("  ", 2, 2), 2);
}

static void the_whole_texts_value_is_shown_without_the_space(void **state)
{
    size_t begin, end;

    (void)state;
    assert_int_equal(json_check(" \n[1] ", 6, &begin, &end, NULL), 0);
    assert_int_equal(begin, 2);
    assert_int_equal(end, 5);
}

static void nesting_is_taken_to_the_limit_and_refused_behind_it(void **state)
{
    static char text[4 * JSON_MAX_DEPTH + 64];
    struct err err;

    (void)state;
    memset(text, '[', JSON_MAX_DEPTH);
    memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    assert_int_equal(json_check(text, 2 * JSON_MAX_DEPTH, NULL, NULL, NULL), 0);
    memset(text, '[', JSON_MAX_DEPTH + 1);
    memset(text + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
    assert_int_equal(json_check(text, 2 * JSON_MAX_DEPTH + 2, NULL, NULL, &err), -EINVAL);
    assert_string_equal(err.text, "byte 512: nested too deeply");
}

static void arrays_and_objects_are_told_apart_at_every_depth(void **state)
{
    char text[4 * JSON_MAX_DEPTH + 64];
    char closers[JSON_MAX_DEPTH];

    (void)state;
    for (unsigned seed = 1; seed < 50; seed++) {
        size_t len = 0;
        uint32_t random = seed * 2654435761u;
        for (size_t depth = 0; depth < JSON_MAX_DEPTH; depth++) {
            random = random * 1664525u + 1013904223u;
            bool object = random >> 31;
            closers[depth] = object ? '}' : ']';
            bool last = depth == JSON_MAX_DEPTH - 1;
            const char *piece = object ? (last ? "{" : "{\"\":") : "[";
            memcpy(text + len, piece, strlen(piece));
            len += strlen(piece);
        }
        for (size_t depth = JSON_MAX_DEPTH; depth-- > 0;)
            text[len++] = closers[depth];
        assert_int_equal(json_check(text, len, NULL, NULL, NULL), 0);
        size_t at = len - 1 - (random >> 8) % JSON_MAX_DEPTH;
        text[at] = text[at] == ']' ? '}' : ']';
        assert_int_equal(json_check(text, len, NULL, NULL, NULL), -EINVAL);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_json_is_taken),
        cmocka_unit_test(what_is_not_json_is_refused),
        cmocka_unit_test(a_text_that_stops_anywhere_is_refused),
        cmocka_unit_test(the_error_says_what_and_where),
        cmocka_unit_test(a_value_is_found_in_the_middle_of_a_text),
        cmocka_unit_test(the_whole_texts_value_is_shown_without_the_space),
        cmocka_unit_test(nesting_is_taken_to_the_limit_and_refused_behind_it),
        cmocka_unit_test(arrays_and_objects_are_told_apart_at_every_depth),
    };
    return cmocka_run_group_tests_name("json", tests, NULL, NULL);
}
