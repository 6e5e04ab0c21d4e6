/* test_event.c - what channel, type and data may look like. */
#include "event.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmocka_all.h"

#define TEXT(literal) (literal), (sizeof(literal) - 1)

/* The oracle: decodes one character in the plainest way, then applies RFC 3629's words. */
static bool is_utf8_by_the_book(const unsigned char *text, size_t len)
{
    while (len > 0) {
        size_t size = text[0] < 0x80             ? 1
                      : (text[0] & 0xe0) == 0xc0 ? 2
                      : (text[0] & 0xf0) == 0xe0 ? 3
                      : (text[0] & 0xf8) == 0xf0 ? 4
                                                 : 0;
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        uint32_t value = text[0] & (size == 1 ? 0x7fu : 0xffu >> (size + 1));

        if (size == 0 || size > len)
            return false;
        for (size_t i = 1; i < size; i++) {
            if ((text[i] & 0xc0) != 0x80)
                return false;
            value = value << 6 | (text[i] & 0x3f);
        }
        if (value < least[size] || value > 0x10ffff ||
            (value >= 0xd800 && value <= 0xdfff))
            return false;
        text += size;
        len -= size;
    }
    return true;
}

static void compare_with_the_book(const unsigned char *text, size_t len)
{
    bool wanted = is_utf8_by_the_book(text, len);

    if (event_text_is_utf8((const char *)text, len) != wanted)
        fail_msg("%02x %02x %02x %02x: should be %d", text[0], len > 1 ? text[1] : 0,
                 len > 2 ? text[2] : 0, len > 3 ? text[3] : 0, wanted);
}

static void every_sequence_of_up_to_three_bytes_is_judged_by_the_book(void **state)
{
    (void)state;
    for (unsigned first = 0; first < 256; first++)
        for (unsigned second = 0; second < 256; second++) {
            unsigned char text[3] = {(unsigned char)first, (unsigned char)second, 0};
            compare_with_the_book(text, 1);
            compare_with_the_book(text, 2);
            for (unsigned third = 0; third < 256; third += first < 0xc0 ? 51 : 1) {
                text[2] = (unsigned char)third;
                compare_with_the_book(text, 3);
            }
        }
}

static void sequences_of_four_bytes_are_judged_by_the_book(void **state)
{
    static const unsigned char edges[] = {0x00, 0x7f, 0x80, 0x8f, 0x90,
                                          0x9f, 0xa0, 0xbf, 0xc0, 0xff};

    (void)state;
    for (unsigned first = 0xe0; first < 256; first++)
        for (unsigned second = 0; second < 256; second++)
            for (size_t i = 0; i < ARRAY_SIZE(edges); i++)
                for (size_t j = 0; j < ARRAY_SIZE(edges); j++) {
                    unsigned char text[] = {(unsigned char)first, (unsigned char)second,
                                            edges[i], edges[j]};
                    compare_with_the_book(text, sizeof(text));
                }
}

static void a_fault_is_found_wherever_it_stands(void **state)
{
    char text[40];

    (void)state;
    assert_true(event_text_is_utf8("", 0));
    for (size_t len = 1; len <= sizeof(text); len++)
        for (size_t at = 0; at < len; at++) {
            memset(text, 'x', len);
            assert_true(event_text_is_utf8(text, len));
            text[at] = (char)0xff;
            assert_false(event_text_is_utf8(text, len));
            text[at] = (char)0xc3; /* a beginning without its end */
            assert_false(event_text_is_utf8(text, len));
            if (at + 1 < len) {
                text[at + 1] = (char)0xa4;
                assert_true(event_text_is_utf8(text, len));
            }
        }
}

static void assert_refused(int code, const struct err *err, const char *text)
{
    assert_int_equal(code, -EINVAL);
    assert_string_equal(err->text, text);
}

static void ordinary_names_are_taken(void **state)
{
    (void)state;
    assert_int_equal(event_check_channel(TEXT("orders"), NULL), 0);
    assert_int_equal(event_check_channel(TEXT("a b/c.d:e"), NULL), 0);
    assert_int_equal(event_check_channel(TEXT("*x"), NULL), 0);
    assert_int_equal(event_check_channel(TEXT("gr\xc3\xbc\xc3\x9f"), NULL), 0);
    assert_int_equal(event_check_channel(TEXT("\xc2\xa0"), NULL), 0);
    assert_int_equal(event_check_channel(TEXT("\xe2\x80\xa7\xe2\x80\xaa"), NULL), 0);
    assert_int_equal(event_check_type(TEXT("created*"), NULL), 0);
    assert_int_equal(event_check_name("word", TEXT("\xf0\x9f\x98\x80"), NULL), 0);
}

static void a_refusal_says_which_rule(void **state)
{
    struct err err;

    (void)state;
    assert_refused(event_check_channel("", 0, &err), &err, "channel is empty");
    assert_refused(event_check_type("", 0, &err), &err, "type is empty");
    assert_refused(event_check_name("subject", "", 0, &err), &err, "subject is empty");
    assert_refused(event_check_channel(TEXT("\xff"), &err), &err,
                   "channel is not valid UTF-8");
    assert_refused(event_check_channel(TEXT("orders.*"), &err), &err,
                   "channel ends in '*', which marks a pattern");
    assert_refused(event_check_type(TEXT("ab\n"), &err), &err,
                   "type contains a control character at byte 2");
}

static void no_kind_of_control_character_passes(void **state)
{
    static const char *const wrong[] = {
        "\x01", "\t", "\r", "\n", "\x1f", "\x7f", "\xc2\x80", "\xc2\x9f",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        char text[16];
        (void)snprintf(text, sizeof(text), "abc%s", wrong[i]);
        assert_int_equal(event_check_type(text, strlen(text), NULL), -EINVAL);
    }
    assert_int_equal(event_check_channel("a\0b", 3, NULL), -EINVAL);
}

static void the_length_is_counted_in_bytes(void **state)
{
    char text[256];
    struct err err;

    (void)state;
    memset(text, 'n', sizeof(text));
    assert_int_equal(event_check_channel(text, 255, NULL), 0);
    assert_int_equal(event_check_type(text, 255, NULL), 0);
    assert_refused(event_check_channel(text, 256, &err), &err,
                   "channel is longer than 255 bytes");
}

static void an_id_survives_the_way_out_and_back(void **state)
{
    static const uint64_t ids[] = {0, 1, 9, 10, 1099511627776, INT64_MAX};
    char text[EVENT_ID_MAX_BYTES + 1];

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(ids); i++) {
        uint64_t seq = 77;
        size_t len = event_id_format(ids[i], text);
        assert_int_equal(len, strlen(text));
        assert_int_equal(event_id_parse(text, len, &seq), 0);
        assert_true(seq == ids[i]);
    }
    assert_int_equal(event_id_format(UINT64_MAX, text), EVENT_ID_MAX_BYTES);
}

static void what_was_never_an_id_is_refused(void **state)
{
    static const char *const wrong[] = {"",
                                        "00",
                                        "01",
                                        "-1",
                                        "+1",
                                        " 1",
                                        "1 ",
                                        "1a",
                                        "0x1",
                                        "1.0",
                                        "earliest",
                                        "1\n",
                                        "\xd9\xa1",
                                        "9223372036854775808",
                                        "18446744073709551615",
                                        "18446744073709551616",
                                        "99999999999999999999",
                                        "100000000000000000000"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++) {
        uint64_t seq = 77;
        assert_int_equal(event_id_parse(wrong[i], strlen(wrong[i]), &seq), -EINVAL);
        assert_int_equal(seq, 77);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_sequence_of_up_to_three_bytes_is_judged_by_the_book),
        cmocka_unit_test(sequences_of_four_bytes_are_judged_by_the_book),
        cmocka_unit_test(a_fault_is_found_wherever_it_stands),
        cmocka_unit_test(ordinary_names_are_taken),
        cmocka_unit_test(a_refusal_says_which_rule),
        cmocka_unit_test(no_kind_of_control_character_passes),
        cmocka_unit_test(the_length_is_counted_in_bytes),
        cmocka_unit_test(an_id_survives_the_way_out_and_back),
        cmocka_unit_test(what_was_never_an_id_is_refused),
    };
    return cmocka_run_group_tests_name("event", tests, NULL, NULL);
}
