/*
 * buf.c - bytes that grow.
 */
#include "buf.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define FIRST_CAPACITY ((size_t)64)

void buf_init(struct buf *buf)
{
    *buf = BUF_EMPTY;
}

void buf_done(struct buf *buf)
{
    if (buf == NULL)
        return;
    free(buf->data);
    *buf = BUF_EMPTY;
}

void buf_reset(struct buf *buf)
{
    buf->len = 0;
    buf->failed = false;
    if (buf->data != NULL)
        buf->data[0] = '\0';
}

static int fail(struct buf *buf)
{
    buf->failed = true;
    return -ENOMEM;
}

int buf_reserve(struct buf *buf, size_t more)
{
    size_t wanted; /* one more than asked for: the NUL */

    /* After a failure nothing is added any more, or the content would have a hole. */
    if (buf->failed || __builtin_add_overflow(buf->len, more, &wanted) ||
        wanted >= SIZE_MAX / 2)
        return fail(buf);
    wanted++;
    if (wanted <= buf->capacity)
        return 0;

    size_t capacity = MAX(MAX(wanted, buf->capacity * 2), FIRST_CAPACITY);
    char *data = realloc(buf->data, capacity);
    if (data == NULL)
        return fail(buf);
    data[buf->len] = '\0';
    buf->data = data;
    buf->capacity = capacity;
    return 0;
}

int buf_add(struct buf *buf, const void *bytes, size_t len)
{
    int code = buf_reserve(buf, len);
    if (code < 0)
        return code;

    if (len != 0)
        memcpy(buf->data + buf->len, bytes, len);
    buf->len += len;
    buf->data[buf->len] = '\0';
    return 0;
}

int buf_add_text(struct buf *buf, const char *text)
{
    return buf_add(buf, text, strlen(text));
}

int buf_add_format(struct buf *buf, const char *format, ...)
{
    va_list arguments;
    char none;

    /* Measured first, because a failed addition must not touch the content. */
    va_start(arguments, format);
    int len = vsnprintf(&none, 0, format, arguments);
    va_end(arguments);
    if (len < 0)
        return fail(buf);
    int code = buf_reserve(buf, (size_t)len);
    if (code < 0)
        return code;

    va_start(arguments, format);
    vsnprintf(buf->data + buf->len, (size_t)len + 1, format, arguments);
    va_end(arguments);
    buf->len += (size_t)len;
    return 0;
}

int buf_ok(const struct buf *buf)
{
    return buf->failed ? -ENOMEM : 0;
}

char *buf_steal(struct buf *buf)
{
    char *text = NULL;

    if (buf_reserve(buf, 0) == 0) { /* gives an empty buf its NUL */
        text = buf->data;
        buf->data = NULL;
    }
    buf_done(buf);
    return text;
}
