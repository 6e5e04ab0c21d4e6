#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "sse.h"

/* Length of the line at the start of the text, without its end; *ret_end_len is what ends
 * it: 2 for CRLF, 1 for CR or LF, 0 at the end of the text. */
static size_t line_length(const char *text, size_t len, size_t *ret_end_len)
{
    size_t line = 0;

    while (line < len && text[line] != '\r' && text[line] != '\n')
        line++;

    if (line == len)
        *ret_end_len = 0;
    else
        *ret_end_len =
            text[line] == '\r' && line + 1 < len && text[line + 1] == '\n' ? 2 : 1;
    return line;
}

static char *put(char *out, const char *bytes, size_t len)
{
    memcpy(out, bytes, len);
    return out + len;
}

#define PUT_LITERAL(out, literal) put((out), (literal), sizeof(literal) - 1)

/* The data as "data: " lines, each ended by LF. With out NULL only counts. */
static size_t put_data(char *out, const char *data, size_t len)
{
    char *const begin = out;
    size_t counted = 0;
    size_t end_len;

    do {
        const size_t line = line_length(data, len, &end_len);

        counted += sizeof("data: \n") - 1 + line;
        if (begin != NULL) {
            out = PUT_LITERAL(out, "data: ");
            out = put(out, data, line);
            out = PUT_LITERAL(out, "\n");
        }
        data += line + end_len;
        len -= line + end_len;
    } while (end_len > 0);
    return counted;
}

static bool is_default_type(const struct event *event)
{
    return event->type_len == sizeof(EVENT_DEFAULT_TYPE) - 1 &&
           memcmp(event->type, EVENT_DEFAULT_TYPE, event->type_len) == 0;
}

static char *put_body(char *out, const struct event *event, const char *id, size_t id_len)
{
    out = PUT_LITERAL(out, "id: ");
    out = put(out, id, id_len);
    out = PUT_LITERAL(out, "\n");
    if (!is_default_type(event)) {
        out = PUT_LITERAL(out, "event: ");
        out = put(out, event->type, event->type_len);
        out = PUT_LITERAL(out, "\n");
    }
    out += put_data(out, event->data, event->data_len);
    return PUT_LITERAL(out, "\n");
}

static size_t body_length(const struct event *event, size_t id_len)
{
    size_t len = sizeof("id: \n") - 1 + id_len + sizeof("\n") - 1;

    if (!is_default_type(event))
        len += sizeof("event: \n") - 1 + event->type_len;
    return len + put_data(NULL, event->data, event->data_len);
}

struct sse_frame *sse_frame_new(const struct event *event)
{
    char id[EVENT_ID_MAX_BYTES + 1];

    return sse_frame_new_as(event, id, event_id_format(event->seq, id));
}

struct sse_frame *sse_frame_new_as(const struct event *event, const char *id,
                                   size_t id_len)
{
    char head[SSE_CHUNK_HEAD_MAX + 1];
    const size_t body_len = body_length(event, id_len);
    const size_t head_len = sse_chunk_head(body_len, head);
    const size_t len = head_len + body_len + 2;
    const size_t names_len =
        event->channel_len + 1 + event->type_len + 1 + event->client_len;

    if (len + names_len > UINT32_MAX)
        return NULL;

    struct sse_frame *frame = malloc(sizeof(*frame) + len + names_len);
    if (frame == NULL)
        return NULL;

    *frame = (struct sse_frame){
        .seq = event->seq,
        .channel_hash = sse_hash(event->channel, event->channel_len),
        .channel_offset = (uint32_t)len,
        .channel_len = (uint32_t)event->channel_len,
        .type_offset = (uint32_t)(len + event->channel_len + 1),
        .type_len = (uint32_t)event->type_len,
        .client_len = (uint32_t)event->client_len,
        .body_offset = (uint32_t)head_len,
        .body_len = (uint32_t)body_len,
        .len = (uint32_t)len,
    };

    char *out = put(frame->bytes, head, head_len);
    out = put_body(out, event, id, id_len);
    out = PUT_LITERAL(out, "\r\n");
    out = put(out, event->channel, event->channel_len);
    *out++ = '\0';
    out = put(out, event->type, event->type_len);
    *out++ = '\0';
    if (event->client_len > 0)
        (void)put(out, event->client, event->client_len);
    return frame;
}

void sse_frame_free(struct sse_frame *frame)
{
    free(frame);
}

size_t sse_frame_weight(const struct sse_frame *frame)
{
    return sizeof(*frame) + frame->len + frame->channel_len + frame->type_len + 2 +
           frame->client_len;
}

const char *sse_frame_channel(const struct sse_frame *frame)
{
    return frame->bytes + frame->channel_offset;
}

const char *sse_frame_type(const struct sse_frame *frame)
{
    return frame->bytes + frame->type_offset;
}

const char *sse_frame_client(const struct sse_frame *frame)
{
    return sse_frame_type(frame) + frame->type_len + 1;
}

/* It may be anything a client sent: JSON-escaped; what is not even text, byte by byte. */
static void add_string(struct buf *text, const char *string)
{
    const bool utf8 = event_text_is_utf8(string, strlen(string));

    (void)buf_add_text(text, "\"");
    for (; *string != '\0'; string++) {
        const char byte = *string;

        if ((byte >= ' ' && byte < 0x7f && byte != '"' && byte != '\\') ||
            (utf8 && (byte & 0x80) != 0))
            (void)buf_add(text, &byte, 1);
        else
            (void)buf_add_format(text, "\\u%04x", (unsigned char)byte);
    }
    (void)buf_add_text(text, "\"");
}

void sse_add_gap_data(struct buf *ret_text, const struct sse_gap *gap)
{
    char id[EVENT_ID_MAX_BYTES + 1];

    (void)event_id_format(gap->seq, id);
    (void)buf_add_text(ret_text, "{\"requested\":");
    add_string(ret_text, gap->requested != NULL ? gap->requested : id);
    (void)buf_add_format(ret_text, ",\"oldest\":\"%s\",\"reason\":\"%s\"", id,
                         gap->reason);
    if (gap->channel != NULL) {
        (void)buf_add_text(ret_text, ",\"channel\":");
        add_string(ret_text, gap->channel);
    }
    (void)buf_add_text(ret_text, "}");
}

void sse_add_gap(struct buf *ret_text, const struct sse_gap *gap)
{
    (void)buf_add_format(ret_text, "id: %" PRIu64 "\nevent: gap\ndata: ", gap->seq);
    sse_add_gap_data(ret_text, gap);
    (void)buf_add_text(ret_text, "\n\n");
}

uint64_t sse_hash(const char *text, size_t len)
{
    uint64_t hash = sse_hash_begin();

    for (size_t i = 0; i < len; i++)
        hash = sse_hash_add(hash, text[i]);
    return hash;
}

size_t sse_chunk_head(size_t body_len, char head[SSE_CHUNK_HEAD_MAX + 1])
{
    return (size_t)snprintf(head, SSE_CHUNK_HEAD_MAX + 1, "%x\r\n", (unsigned)body_len);
}
