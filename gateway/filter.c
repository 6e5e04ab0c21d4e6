#include <errno.h>
#include <string.h>

#include "filter.h"

struct filter_name {
    char *text;
    size_t len;
};

/* -- names -- */

static void names_done(struct filter_names *names)
{
    for (size_t i = 0; i < names->count; i++)
        free(names->names[i].text);
    free(names->names);
}

static int add_name(struct filter_names *names, const char *text, size_t len)
{
    struct filter_name *more =
        reallocarray(names->names, names->count + 1, sizeof(*names->names));

    if (more == NULL)
        return -ENOMEM;
    names->names = more;
    char *copy = strndup(text, len);
    if (copy == NULL)
        return -ENOMEM;
    names->names[names->count++] = (struct filter_name){.text = copy, .len = len};
    return 0;
}

/* Without a hash: the lengths tell most names apart, and the first bytes the others. */
static bool is_among(const struct filter_names *names, const char *text, size_t len)
{
    for (size_t i = 0; i < names->count; i++) {
        if (names->names[i].len == len && memcmp(names->names[i].text, text, len) == 0)
            return true;
    }
    return false;
}

static void add_lines(const struct filter_names *names, struct buf *text)
{
    for (size_t i = 0; i < names->count; i++) {
        (void)buf_add_text(text, i > 0 ? "\n" : "");
        (void)buf_add(text, names->names[i].text, names->names[i].len);
    }
}

static size_t names_bytes(const struct filter_names *names)
{
    size_t bytes = names->count * sizeof(*names->names);

    for (size_t i = 0; i < names->count; i++)
        bytes += names->names[i].len + 1;
    return bytes;
}

/* -- the filter -- */

void filter_done(struct filter *filter)
{
    names_done(&filter->types);
    names_done(&filter->without);
}

int filter_want_type(struct filter *filter, const char *type, size_t len)
{
    return add_name(&filter->types, type, len);
}

int filter_do_without(struct filter *filter, const char *client, size_t len)
{
    return add_name(&filter->without, client, len);
}

bool filter_takes_everything(const struct filter *filter)
{
    return filter->types.count == 0 && filter->without.count == 0;
}

bool filter_takes(const struct filter *filter, const struct sse_frame *frame)
{
    if (frame->kind ==
        SSE_MISSED) /* whoever hears the channel is told, whatever it wants */
        return true;
    if (filter->types.count > 0 &&
        !is_among(&filter->types, sse_frame_type(frame), frame->type_len))
        return false;
    return filter->without.count == 0 || frame->client_len == 0 ||
           !is_among(&filter->without, sse_frame_client(frame), frame->client_len);
}

const char *filter_type(const struct filter *filter, size_t index, size_t *ret_len)
{
    if (index >= filter->types.count)
        return NULL;
    *ret_len = filter->types.names[index].len;
    return filter->types.names[index].text;
}

void filter_add_types(const struct filter *filter, struct buf *ret_text)
{
    add_lines(&filter->types, ret_text);
}

void filter_add_clients(const struct filter *filter, struct buf *ret_text)
{
    add_lines(&filter->without, ret_text);
}

size_t filter_bytes(const struct filter *filter)
{
    return names_bytes(&filter->types) + names_bytes(&filter->without);
}
