/* test_sse.c - an event as bytes on the wire. */
#include "sse.h"

#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "cmocka_all.h"
#include "failing_malloc.h"

static struct event event_of(const char *type, const char *data, size_t data_len)
{
    return (struct event){.seq = 42,
                          .channel = "orders",
                          .channel_len = 6,
                          .type = type,
                          .type_len = strlen(type),
                          .data = data,
                          .data_len = data_len};
}

static void the_frame_is_one_chunk_around_the_event(void **state)
{
    static const struct {
        const char *type;
        const char *data;
        const char *body;
    } cases[] = {
        {"message", "1", "id: 42\ndata: 1\n\n"},
        {"created", "{\"n\":\n1}", "id: 42\nevent: created\ndata: {\"n\":\ndata: 1}\n\n"},
        {"messag", "1", "id: 42\nevent: messag\ndata: 1\n\n"},
        {"messages", "1", "id: 42\nevent: messages\ndata: 1\n\n"},
        {"Message", "1", "id: 42\nevent: Message\ndata: 1\n\n"},
        {"message", "", "id: 42\ndata: \n\n"},
        {"message", "\n", "id: 42\ndata: \ndata: \n\n"},
        {"message", "\r\n", "id: 42\ndata: \ndata: \n\n"},
        {"message", "\n\r", "id: 42\ndata: \ndata: \ndata: \n\n"},
        {"message", "\r\r\n\n", "id: 42\ndata: \ndata: \ndata: \ndata: \n\n"},
        {"message", "a\rb\nc\r\nd", "id: 42\ndata: a\ndata: b\ndata: c\ndata: d\n\n"},
        {"message", " x", "id: 42\ndata:  x\n\n"},
        {"message", "x\r", "id: 42\ndata: x\ndata: \n\n"},
        {"message", "\xf0\x9f\x98\x80", "id: 42\ndata: \xf0\x9f\x98\x80\n\n"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct event event =
            event_of(cases[i].type, cases[i].data, strlen(cases[i].data));
        struct sse_frame *frame = sse_frame_new(&event);
        char chunk[100];
        const size_t len = (size_t)snprintf(chunk, sizeof(chunk), "%zx\r\n%s\r\n",
                                            strlen(cases[i].body), cases[i].body);

        assert_non_null(frame);
        if (frame->len != len || memcmp(frame->bytes, chunk, len) != 0)
            fail_msg("case %zu: %.*s", i, (int)frame->len, frame->bytes);
        assert_int_equal(frame->body_offset + frame->body_len + 2, frame->len);
        assert_int_equal(strtoul(frame->bytes, NULL, 16), frame->body_len);
        assert_memory_equal(frame->bytes + frame->body_offset, "id: ", 4);
        sse_frame_free(frame);
    }
}

static void the_names_stand_behind_the_chunk(void **state)
{
    struct event event = event_of("created", "1", 1);
    struct sse_frame *frame = sse_frame_new(&event);

    (void)state;
    assert_non_null(frame);
    assert_string_equal(sse_frame_channel(frame), "orders");
    assert_string_equal(sse_frame_type(frame), "created");
    assert_int_equal(frame->channel_len, 6);
    assert_int_equal(frame->type_len, 7);
    assert_true(frame->channel_hash == sse_hash("orders", 6));
    assert_int_equal(frame->seq, 42);
    assert_int_equal(frame->client_len, 0);
    assert_int_equal(sse_frame_weight(frame), sizeof(*frame) + frame->len + 6 + 7 + 2);
    sse_frame_free(frame);

    event.client = "shop-1 and more";
    event.client_len = 6;
    frame = sse_frame_new(&event);
    assert_non_null(frame);
    assert_string_equal(sse_frame_type(frame), "created");
    assert_int_equal(frame->client_len, 6);
    assert_memory_equal(sse_frame_client(frame), "shop-1", 6);
    assert_int_equal(sse_frame_weight(frame),
                     sizeof(*frame) + frame->len + 6 + 7 + 2 + 6);
    assert_null(
        memmem(frame->bytes, frame->len, "shop", 4)); /* nothing of it in the chunk */
    sse_frame_free(frame);
    sse_frame_free(NULL);

    /* Only so much of the text as its length says. */
    event.channel_len = 3;
    event.type_len = 1;
    frame = sse_frame_new(&event);
    assert_string_equal(sse_frame_channel(frame), "ord");
    assert_string_equal(sse_frame_type(frame), "c");
    sse_frame_free(frame);
}

static void ids_are_the_seq(void **state)
{
    static const uint64_t seqs[] = {0, 1, 9, 10, UINT64_C(1) << 40, INT64_MAX};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(seqs); i++) {
        struct event event = event_of("message", "1", 1);
        char wanted[64];

        event.seq = seqs[i];
        struct sse_frame *frame = sse_frame_new(&event);
        const int len = snprintf(wanted, sizeof(wanted), "id: %llu\ndata: 1\n\n",
                                 (unsigned long long)seqs[i]);
        assert_non_null(frame);
        assert_int_equal(frame->body_len, len);
        assert_memory_equal(frame->bytes + frame->body_offset, wanted, (size_t)len);
        sse_frame_free(frame);
    }
}

static void large_data_with_many_lines_comes_out_whole(void **state)
{
    enum { LINES = 100000 };
    char *data = malloc(2 * LINES);

    (void)state;
    assert_non_null(data);
    for (size_t i = 0; i < LINES; i++)
        memcpy(data + 2 * i, i % 2 == 0 ? "x\n" : "y\r", 2);
    const struct event event = event_of("message", data, 2 * LINES);
    struct sse_frame *frame = sse_frame_new(&event);
    assert_non_null(frame);
    const char *line = frame->bytes + frame->body_offset + strlen("id: 42\n");
    for (size_t i = 0; i < LINES; i++, line += 8)
        assert_memory_equal(line, i % 2 == 0 ? "data: x\n" : "data: y\n", 8);
    assert_memory_equal(line, "data: \n\n\r\n", 10);
    sse_frame_free(frame);
    free(data);
}

static void without_memory_there_is_no_frame(void **state)
{
    const struct event event = event_of("created", "1\n2", 3);

    (void)state;
    for (unsigned n = 1;; n++) {
        failing_malloc_begin(n);
        struct sse_frame *frame = sse_frame_new(&event);
        if (!failing_malloc_end()) {
            assert_non_null(frame);
            sse_frame_free(frame);
            assert_true(n > 1);
            break;
        }
        assert_null(frame);
    }
}

static void hashes_are_fnv_1a(void **state)
{
    uint64_t hash = sse_hash_begin();

    (void)state;
    /* Test vectors of the algorithm's authors. */
    assert_true(sse_hash("", 0) == UINT64_C(0xcbf29ce484222325));
    assert_true(sse_hash("a", 1) == UINT64_C(0xaf63dc4c8601ec8c));
    assert_true(sse_hash("foobar", 6) == UINT64_C(0x85944171f73967e8));
    for (size_t i = 0; i < 6; i++) {
        assert_true(hash == sse_hash("foobar", i));
        hash = sse_hash_add(hash, "foobar"[i]);
    }
    assert_true(hash == sse_hash("foobar", 6));
    assert_true(sse_hash("\xff", 1) ==
                ((UINT64_C(0xcbf29ce484222325) ^ 0xff) * UINT64_C(0x100000001b3)));
}

static void chunk_heads_are_hexadecimal(void **state)
{
    char head[SSE_CHUNK_HEAD_MAX + 1];

    (void)state;
    assert_int_equal(sse_chunk_head(1, head), 3);
    assert_string_equal(head, "1\r\n");
    assert_int_equal(sse_chunk_head(255, head), 4);
    assert_string_equal(head, "ff\r\n");
    assert_int_equal(sse_chunk_head(UINT32_MAX, head), SSE_CHUNK_HEAD_MAX);
    assert_string_equal(head, "ffffffff\r\n");
}

/* Anything may have been asked for; what is told of it is JSON on one line. */
static void what_was_asked_for_is_quoted(void **state)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;
    char asked[301];

    (void)state;
    for (size_t i = 0; i < sizeof(asked) - 1; i++)
        asked[i] = (char)(i == 0 ? 10 : i % 256 == 0 ? 1 : i);
    asked[sizeof(asked) - 1] = '\0';
    sse_add_gap(&text,
                &(struct sse_gap){.seq = 5, .requested = asked, .reason = "unknown"});
    assert_int_equal(buf_ok(&text), 0);
    assert_memory_equal(
        text.data, "id: 5\nevent: gap\ndata: {\"requested\":\"\\u000a\\u0001",
        strlen("id: 5\nevent: gap\ndata: {\"requested\":\"\\u000a\\u0001"));
    const char *line_end = strchr(text.data + strlen("id: 5\nevent: gap\n"), '\n');
    assert_string_equal(line_end, "\n\n");
    assert_non_null(strstr(text.data, "\\u0022"));
    assert_non_null(strstr(text.data, "\\u005c"));
    assert_non_null(strstr(text.data, "\\u007f\\u0080"));
    assert_non_null(strstr(text.data, "\",\"oldest\":\"5\",\"reason\":\"unknown\"}"));
}

static void a_gap_of_a_channel_names_it(void **state)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    (void)state;
    sse_add_gap(&text, &(struct sse_gap){.seq = 7, .reason = "relay", .channel = "a\"ü"});
    assert_int_equal(buf_ok(&text), 0);
    assert_string_equal(text.data,
                        "id: 7\nevent: gap\ndata: {\"requested\":\"7\",\"oldest\":\"7\","
                        "\"reason\":\"relay\",\"channel\":\"a\\u0022ü\"}\n\n");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_frame_is_one_chunk_around_the_event),
        cmocka_unit_test(the_names_stand_behind_the_chunk),
        cmocka_unit_test(ids_are_the_seq),
        cmocka_unit_test(large_data_with_many_lines_comes_out_whole),
        cmocka_unit_test(without_memory_there_is_no_frame),
        cmocka_unit_test(what_was_asked_for_is_quoted),
        cmocka_unit_test(a_gap_of_a_channel_names_it),
        cmocka_unit_test(hashes_are_fnv_1a),
        cmocka_unit_test(chunk_heads_are_hexadecimal),
    };
    return cmocka_run_group_tests_name("sse", tests, NULL, NULL);
}
