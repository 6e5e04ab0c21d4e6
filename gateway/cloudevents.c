/*
 * cloudevents.c - CloudEvents 1.0, as JSON or as HTTP headers and a body, to events.
 */
#include "cloudevents.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <strings.h>

#include <jansson.h>

#include "buf.h"
#include "json.h"

/* Of what somebody sent, so much is repeated in a complaint about it. */
#define QUOTED_MAX 64

static bool is_word(const char *text, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

/* ---- media types and headers ---- */

enum cloudevents_content cloudevents_content(const char *content_type)
{
    const char *type = content_type != NULL ? content_type : "";
    const size_t len = strcspn(type, "; \t");

    if (len >= 5 && (strncasecmp(type + len - 5, "+json", 5) == 0 ||
                     strncasecmp(type + len - 5, "/json", 5) == 0))
        return CLOUDEVENTS_JSON;
    return strncasecmp(type, "text/", 5) == 0 ? CLOUDEVENTS_TEXT : CLOUDEVENTS_BYTES;
}

bool cloudevents_in_headers(const struct cloudevents_header *headers, size_t count)
{
    static const char *const required[] = {"specversion", "id", "source", "type"};

    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < ARRAY_SIZE(required); k++)
            if (strcasecmp(headers[i].name, required[k]) == 0)
                return true;
    return false;
}

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    digit = (char)(digit | 0x20);
    return digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

/* A value in double quotes is taken out of them, with their backslashes; then one round of
 * percent-decoding (HTTP binding, 3.1.3.2). */
static void unquote(struct buf *out, const char *value)
{
    size_t len = strlen(value);

    /* White space behind a value is none of it (RFC 9110, 5.5). */
    while (len > 0 && (value[len - 1] == ' ' || value[len - 1] == '\t'))
        len--;
    const bool quoted = len >= 2 && value[0] == '"' && value[len - 1] == '"';
    const size_t end = quoted ? len - 1 : len;

    for (size_t i = quoted; i < end; i++) {
        if (quoted && value[i] == '\\' && i + 1 < end)
            i++;
        (void)buf_add(out, &value[i], 1);
    }
}

static void percent_decode(struct buf *text)
{
    size_t to = 0;

    for (size_t from = 0; from < text->len; from++) {
        /* Behind the text is a NUL, which is no digit. */
        const int high = text->data[from] == '%' ? hex_value(text->data[from + 1]) : -1;
        const int low = high >= 0 ? hex_value(text->data[from + 2]) : -1;

        text->data[to++] = low >= 0 ? (char)(high * 16 + low) : text->data[from];
        from += low >= 0 ? 2 : 0;
    }
    text->len = to;
}

/* The text as a JSON string. */
static int add_string(struct buf *out, const char *text, size_t len)
{
    json_t *value = json_stringn(text, len);
    char *quoted = json_dumps(value, JSON_ENCODE_ANY);

    json_decref(value);
    if (quoted == NULL)
        return -ENOMEM;
    const int result = buf_add_text(out, quoted);
    free(quoted);
    return result;
}

/* Lower-case letters and digits (CloudEvents, 3.1); `data` is no attribute. */
static bool is_attribute(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!(name[i] >= 'a' && name[i] <= 'z') && !(name[i] >= '0' && name[i] <= '9'))
            return false;
    return len > 0 && !is_word(name, len, "data");
}

static int add_header(struct buf *out, const struct cloudevents_header *header,
                      struct err *err)
{
    CLEANUP(buf_done) struct buf value = BUF_EMPTY;
    CLEANUP(buf_done) struct buf name = BUF_EMPTY;

    for (const char *at = header->name; *at != '\0'; at++)
        (void)buf_add(&name, &(char){(char)tolower((unsigned char)*at)}, 1);
    (void)buf_add_text(&name, "");
    (void)buf_add_text(&value, "");
    unquote(&value, header->value);
    if (buf_ok(&name) < 0 || buf_ok(&value) < 0)
        return -ENOMEM;

    if (!is_attribute(name.data, name.len) ||
        is_word(name.data, name.len, "datacontenttype"))
        return err_set(err, -EINVAL, "there is no header \"ce-%.*s\"",
                       (int)event_text_cut(name.data, QUOTED_MAX), name.data);
    percent_decode(&value);
    if (!event_text_is_utf8(value.data, value.len) ||
        memchr(value.data, '\0', value.len) != NULL)
        return err_set(err, -EINVAL, "the header \"ce-%.*s\" is not valid UTF-8",
                       (int)event_text_cut(name.data, QUOTED_MAX), name.data);
    (void)buf_add_format(out, "%s\"%s\":", out->len > 1 ? "," : "", name.data);
    return add_string(out, value.data, value.len);
}

static void add_base64(struct buf *out, const char *bytes, size_t len)
{
    static const char digits[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *in = (const unsigned char *)bytes;

    (void)buf_reserve(out, (len + 2) / 3 * 4 + 2);
    (void)buf_add_text(out, "\"");
    for (size_t i = 0; i < len; i += 3) {
        const size_t more = MIN(len - i, 3);
        const uint32_t three = (uint32_t)in[i] << 16 |
                               (more > 1 ? (uint32_t)in[i + 1] << 8 : 0) |
                               (more > 2 ? (uint32_t)in[i + 2] : 0);
        const char four[] = {digits[three >> 18], digits[three >> 12 & 63],
                             more > 1 ? digits[three >> 6 & 63] : '=',
                             more > 2 ? digits[three & 63] : '='};

        (void)buf_add(out, four, sizeof(four));
    }
    (void)buf_add_text(out, "\"");
}

static int add_body(struct buf *out, const char *content_type, const char *body,
                    size_t len, struct err *err)
{
    size_t begin, end;

    if (len == 0)
        return 0;
    switch (cloudevents_content(content_type)) {
    case CLOUDEVENTS_JSON:
        if (json_check(body, len, &begin, &end, err) < 0)
            return err_prefix(err, -EINVAL, "not JSON");
        (void)buf_add_text(out, ",\"data\":");
        return buf_add(out, body + begin, end - begin);
    case CLOUDEVENTS_TEXT:
        (void)buf_add_text(out, ",\"data\":");
        return add_string(out, body, len);
    case CLOUDEVENTS_BYTES:
        break;
    }
    (void)buf_add_text(out, ",\"data_base64\":");
    add_base64(out, body, len);
    return 0;
}

int cloudevents_join(const struct cloudevents_header *headers, size_t count,
                     const char *content_type, const char *body, size_t len,
                     char **ret_text, struct err *err)
{
    CLEANUP(buf_done) struct buf out = BUF_EMPTY;
    int result = buf_add_text(&out, "{");

    for (size_t i = 0; i < count && result == 0; i++)
        result = add_header(&out, &headers[i], err);
    if (result == 0 && content_type != NULL && *content_type != '\0') {
        if (!event_text_is_utf8(content_type, strlen(content_type)))
            return err_set(err, -EINVAL, "the Content-Type is not valid UTF-8");
        (void)buf_add_text(&out, ",\"datacontenttype\":");
        result = add_string(&out, content_type, strlen(content_type));
    }
    if (result == 0)
        result = add_body(&out, content_type, body, len, err);
    if (result < 0)
        return result;
    (void)buf_add_text(&out, "}");
    *ret_text = buf_steal(&out);
    return *ret_text != NULL ? 0 : -ENOMEM;
}

/* ---- the object ---- */

/* A member as it stands in the text, without the quotes of its name. */
struct member {
    const char *name;
    size_t name_len;
    const char *value;
    size_t value_len;
};

struct object {
    struct member members[CLOUDEVENTS_ATTRIBUTES_MAX + 2]; /* and data, and data_base64 */
    size_t count;
};

static const struct member *find(const struct object *object, const char *name)
{
    for (size_t i = 0; i < object->count; i++)
        if (is_word(object->members[i].name, object->members[i].name_len, name))
            return &object->members[i];
    return NULL;
}

static bool is_data(const struct member *member)
{
    return is_word(member->name, member->name_len, "data") ||
           is_word(member->name, member->name_len, "data_base64");
}

static int check_member(const struct object *object, const struct member *member,
                        struct err *err)
{
    const int quoted = (int)MIN(member->name_len, QUOTED_MAX);

    if (!is_data(member) && !is_attribute(member->name, member->name_len))
        return err_set(
            err, -EINVAL,
            "\"%.*s\" is no attribute's name, which has lower-case letters and "
            "digits only",
            (int)event_text_cut(member->name, (size_t)quoted), member->name);
    for (size_t i = 0; i < object->count; i++)
        if (object->members[i].name_len == member->name_len &&
            memcmp(object->members[i].name, member->name, member->name_len) == 0)
            return err_set(err, -EINVAL, "\"%.*s\" is there twice", quoted, member->name);
    if (!is_data(member) && (member->value[0] == '{' || member->value[0] == '['))
        return err_set(err, -EINVAL, "\"%.*s\" is neither text, number nor boolean",
                       quoted, member->name);
    if (object->count == ARRAY_SIZE(object->members))
        return err_set(err, -EINVAL, "there are more than %d attributes",
                       CLOUDEVENTS_ATTRIBUTES_MAX);
    return 0;
}

/* An attribute that is null is one that is not there. */
static bool is_unset(const struct member *member)
{
    return !is_word(member->name, member->name_len, "data") && member->value[0] == 'n';
}

static int read_object(const char *text, size_t len, struct object *ret_object,
                       struct err *err)
{
    size_t end;

    if (text[0] != '{')
        return err_set(err, -EINVAL, "a CloudEvent is an object");
    for (size_t at = json_skip_space(text, len, 1); text[at] != '}';) {
        struct member member = {.name = text + at + 1};

        int result = json_scan(text, len, at, &end, err);
        if (result < 0)
            return result;
        member.name_len = end - at - 2;
        at = json_skip_space(text, len, json_skip_space(text, len, end) + 1);
        member.value = text + at;
        result = json_scan(text, len, at, &end, err);
        if (result < 0)
            return result;
        member.value_len = end - at;
        result = check_member(ret_object, &member, err);
        if (result < 0)
            return result;
        if (!is_unset(&member))
            ret_object->members[ret_object->count++] = member;
        at = json_skip_space(text, len, end);
        if (text[at] == ',')
            at = json_skip_space(text, len, at + 1);
    }
    return 0;
}

/* ---- its attributes ---- */

/* Adds what the attribute means, and how long that is. 0 bytes: it is not there. */
static int decode(const struct object *object, const char *name, struct buf *out,
                  size_t *ret_len, struct err *err)
{
    const struct member *member = find(object, name);
    const size_t before = out->len;
    json_error_t error;

    *ret_len = 0;
    if (member == NULL)
        return 0;
    if (member->value[0] != '"')
        return err_set(err, -EINVAL, "\"%s\" is not a string", name);
    if (memchr(member->value, '\\', member->value_len) == NULL) {
        (void)buf_add(out, member->value + 1, member->value_len - 2);
    } else {
        json_t *value =
            json_loadb(member->value, member->value_len, JSON_DECODE_ANY, &error);

        if (value == NULL)
            return json_error_code(&error) == json_error_out_of_memory
                       ? -ENOMEM
                       : err_set(err, -EINVAL, "\"%s\" is not a string of valid text",
                                 name);
        (void)buf_add(out, json_string_value(value), json_string_length(value));
        json_decref(value);
    }
    *ret_len = out->len - before;
    if (buf_ok(out) < 0)
        return -ENOMEM;
    return *ret_len > 0 ? 0 : err_set(err, -EINVAL, "\"%s\" is empty", name);
}

static int require(const struct object *object, const char *name, size_t max,
                   struct buf *out, size_t *ret_len, struct err *err)
{
    const int result = decode(object, name, out, ret_len, err);

    if (result < 0)
        return result;
    if (*ret_len == 0)
        return err_set(err, -EINVAL,
                       "\"%s\" is missing; a CloudEvent has specversion, id, source and "
                       "type",
                       name);
    if (*ret_len > max)
        return err_set(err, -EINVAL, "\"%s\" is longer than %zu bytes", name, max);
    return 0;
}

/* The attributes that are there to be known, and are no texts of ours. */
static int check_others(const struct object *object, struct err *err)
{
    static const char *const texts[] = {"datacontenttype", "dataschema", "subject",
                                        "time"};
    CLEANUP(buf_done) struct buf scratch = BUF_EMPTY;
    size_t len;
    int result = require(object, "specversion", SIZE_MAX, &scratch, &len, err);

    if (result < 0)
        return result;
    if (!is_word(scratch.data, len, "1.0"))
        return err_set(err, -EINVAL, "specversion is \"%.*s\"; only 1.0 is taken",
                       (int)event_text_cut(scratch.data, QUOTED_MAX), scratch.data);
    for (size_t i = 0; i < ARRAY_SIZE(texts) && result == 0; i++)
        result = decode(object, texts[i], &scratch, &len, err);
    return result;
}

/* Padded, and nothing else in between (RFC 4648, 4). Some write a slash as "\/". */
static bool is_base64(const char *text, size_t len)
{
    size_t digits = 0, padding = 0;

    for (size_t i = 0; i < len; i++) {
        const char c = text[i];

        if (c == '\\' && i + 1 < len && text[i + 1] == '/')
            continue;
        padding += c == '=';
        if (c != '=' &&
            (padding > 0 || !(isalnum((unsigned char)c) || c == '+' || c == '/')))
            return false;
        digits++;
    }
    return digits % 4 == 0 && padding <= 2;
}

static int find_data(const struct object *object, struct event *event, struct err *err)
{
    const struct member *data = find(object, "data");
    const struct member *base64 = find(object, "data_base64");

    if (data != NULL && base64 != NULL)
        return err_set(err, -EINVAL, "there are both \"data\" and \"data_base64\"");
    if (base64 != NULL &&
        (base64->value[0] != '"' || !is_base64(base64->value + 1, base64->value_len - 2)))
        return err_set(err, -EINVAL, "\"data_base64\" is not a string in Base64");
    if (data == NULL)
        data = base64;
    event->data = data != NULL ? data->value : "null";
    event->data_len = data != NULL ? data->value_len : strlen("null");
    return 0;
}

/* No attribute has an underscore in its name, so the mark is none. */
static void add_context(const struct object *object, struct buf *out)
{
    char before = '{';

    for (size_t i = 0; i < object->count; i++) {
        const struct member *member = &object->members[i];

        if (is_word(member->name, member->name_len, "data"))
            continue;
        (void)buf_add(out, &before, 1);
        (void)buf_add(out, member->name - 1, member->name_len + 2);
        (void)buf_add_text(out, ":");
        if (is_data(member))
            (void)buf_add_text(out, "true");
        else
            (void)buf_add(out, member->value, member->value_len);
        before = ',';
    }
    (void)buf_add_text(out, "}");
}

/* "c:", the length of the source, the source and the id: no two pairs look alike. */
static int make_key(const struct object *object, struct buf *out, struct err *err)
{
    CLEANUP(buf_done) struct buf source = BUF_EMPTY;
    size_t len;
    int result = require(object, "source", CLOUDEVENTS_ID_MAX_BYTES, &source, &len, err);

    if (result < 0)
        return result;
    (void)buf_add_format(out, "c:%zu:", len);
    (void)buf_add(out, source.data, len);
    return require(object, "id", CLOUDEVENTS_ID_MAX_BYTES, out, &len, err);
}

/* ---- the event ---- */

/* Texts of the memory, each with its NUL, while it may still move. */
enum text { TEXT_TYPE, TEXT_CHANNEL, TEXT_KEY, TEXT_CONTEXT, TEXT_COUNT };

static int add_text(const struct object *object, enum text text, struct buf *out,
                    struct err *err)
{
    size_t len;

    switch (text) {
    case TEXT_TYPE:
        return require(object, "type", SIZE_MAX, out, &len, err);
    case TEXT_CHANNEL:
        return decode(object, find(object, "channel") != NULL ? "channel" : "subject",
                      out, &len, err);
    case TEXT_KEY:
        return make_key(object, out, err);
    case TEXT_CONTEXT:
    case TEXT_COUNT:
        break;
    }
    const size_t before = out->len;
    add_context(object, out);
    return out->len - before <= CLOUDEVENTS_CONTEXT_MAX_BYTES
               ? 0
               : err_set(err, -EINVAL, "the attributes are longer than %zu bytes",
                         CLOUDEVENTS_CONTEXT_MAX_BYTES);
}

int cloudevents_read(const char *text, size_t len, struct cloudevent *ret_event,
                     struct err *err)
{
    CLEANUP(buf_done) struct buf memory = BUF_EMPTY;
    struct object object;
    struct event event = {0};
    size_t at[TEXT_COUNT], lens[TEXT_COUNT];

    object.count = 0;
    int result = read_object(text, len, &object, err);
    if (result == 0)
        result = check_others(&object, err);
    if (result == 0)
        result = find_data(&object, &event, err);
    for (size_t i = 0; i < TEXT_COUNT && result == 0; i++) {
        at[i] = memory.len;
        result = add_text(&object, (enum text)i, &memory, err);
        lens[i] = memory.len - at[i];
        (void)buf_add(&memory, "", 1);
    }
    if (result < 0 || buf_ok(&memory) < 0)
        return result < 0 ? result : -ENOMEM;

    char *base = buf_steal(&memory);
    if (base == NULL)
        return -ENOMEM;
    event.type = base + at[TEXT_TYPE];
    event.type_len = lens[TEXT_TYPE];
    event.channel = lens[TEXT_CHANNEL] > 0 ? base + at[TEXT_CHANNEL] : NULL;
    event.channel_len = lens[TEXT_CHANNEL];
    event.attributes = base + at[TEXT_CONTEXT];
    event.attributes_len = lens[TEXT_CONTEXT];
    *ret_event = (struct cloudevent){event, base + at[TEXT_KEY], lens[TEXT_KEY], base};
    return 0;
}
