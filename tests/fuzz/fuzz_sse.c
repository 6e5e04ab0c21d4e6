/*
 * fuzz_sse.c - an event that is put on the wire and read as the standard says (WHATWG HTML,
 * 9.2.6) is the same event, but for its line ends, which all become LF.
 *
 * The input: the type up to a newline, then the data.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "sse.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool truth)
{
    if (!truth)
        abort();
}

/* What a client makes of one block. */
struct reading {
    char id[32];
    char type[300];
    struct buf data;
    bool has_data;
    unsigned blocks;
};

static void take_field(struct reading *reading, const char *line, size_t len)
{
    const char *colon = memchr(line, ':', len);

    require(colon != NULL && colon + 1 < line + len && colon[1] == ' ');
    const size_t name = (size_t)(colon - line);
    const char *value = colon + 2;
    const size_t value_len = len - name - 2;

    if (name == 4 && memcmp(line, "data", 4) == 0) {
        if (reading->has_data)
            (void)buf_add(&reading->data, "\n", 1);
        (void)buf_add(&reading->data, value, value_len);
        reading->has_data = true;
    } else if (name == 2 && memcmp(line, "id", 2) == 0) {
        (void)snprintf(reading->id, sizeof(reading->id), "%.*s", (int)value_len, value);
    } else {
        require(name == 5 && memcmp(line, "event", 5) == 0 && value_len > 0);
        (void)snprintf(reading->type, sizeof(reading->type), "%.*s", (int)value_len,
                       value);
    }
}

/* Strictly: only LF may end a line, and the one blank line is the last. */
static void read_body(struct reading *reading, const char *body, size_t len)
{
    while (len > 0) {
        const char *line_end = memchr(body, '\n', len);

        require(line_end != NULL && reading->blocks == 0);
        const size_t line = (size_t)(line_end - body);
        require(memchr(body, '\r', line) == NULL);
        if (line == 0)
            reading->blocks++;
        else
            take_field(reading, body, line);
        body += line + 1;
        len -= line + 1;
    }
    require(reading->blocks == 1 && reading->has_data);
}

/* CR, LF and CRLF to LF. */
static void plain_lines(struct buf *out, const char *text, size_t len)
{
    (void)buf_add_text(out, "");
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\r' && i + 1 < len && text[i + 1] == '\n')
            continue;
        (void)buf_add(out, text[i] == '\r' ? "\n" : text + i, 1);
    }
}

static void check_chunk(const struct sse_frame *frame)
{
    char head[SSE_CHUNK_HEAD_MAX + 1];
    const size_t head_len = sse_chunk_head(frame->body_len, head);

    require(frame->body_offset == head_len && memcmp(frame->bytes, head, head_len) == 0 &&
            frame->len == head_len + frame->body_len + 2 &&
            memcmp(frame->bytes + frame->len - 2, "\r\n", 2) == 0);
}

static void check_event(const struct event *event)
{
    struct sse_frame *frame = sse_frame_new(event);
    struct reading reading = {.type = EVENT_DEFAULT_TYPE};
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;
    char id[32];

    if (frame == NULL)
        return;
    check_chunk(frame);
    (void)buf_add_text(&reading.data, "");
    read_body(&reading, frame->bytes + frame->body_offset, frame->body_len);
    plain_lines(&wanted, event->data, event->data_len);
    (void)snprintf(id, sizeof(id), "%" PRIu64, event->seq);
    require(strcmp(reading.id, id) == 0 && strcmp(reading.type, event->type) == 0);
    require(reading.data.len == wanted.len &&
            memcmp(reading.data.data, wanted.data, wanted.len) == 0);
    require(strcmp(sse_frame_type(frame), event->type) == 0 &&
            strcmp(sse_frame_channel(frame), event->channel) == 0);
    buf_done(&reading.data);
    sse_frame_free(frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    const uint8_t *line_end = len > 0 ? memchr(data, '\n', len) : NULL;
    const size_t line = line_end != NULL ? (size_t)(line_end - data) : 0;
    char type[EVENT_TYPE_MAX_BYTES + 1] = EVENT_DEFAULT_TYPE;

    /* Only what an event may be: the rest never comes so far. */
    if (line > 0 && line <= EVENT_TYPE_MAX_BYTES &&
        event_check_type((const char *)data, line, NULL) == 0) {
        memcpy(type, data, line);
        type[line] = '\0';
    }
    if (line_end != NULL) {
        data += line + 1;
        len -= line + 1;
    }
    /* A copy of exactly that size: the sanitizer sees a look behind the end. */
    char *text = malloc(len + (len == 0));
    if (text == NULL)
        return 0;
    memcpy(text, data, len);
    if (memchr(text, '\0', len) == NULL)
        check_event(&(struct event){.seq = len * UINT64_C(2654435761),
                                    .channel = "orders",
                                    .channel_len = 6,
                                    .type = type,
                                    .type_len = strlen(type),
                                    .data = text,
                                    .data_len = len});
    free(text);
    return 0;
}
