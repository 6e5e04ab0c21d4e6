/*
 * err.c - one line of text about a failure.
 */
#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CUT_MARK "..."

static bool is_control(char c)
{
    return (unsigned char)c < 0x20 || c == 0x7f;
}

/* Other people's messages (libpq's above all) come with line breaks, indentation and a
 * final newline: a run of control characters becomes one space, none at the ends. */
static void make_one_line(char *text)
{
    char *to = text;
    bool gap = false;

    for (const char *from = text; *from != '\0'; from++) {
        if (is_control(*from)) {
            gap = true;
            continue;
        }
        if (gap && to != text && to[-1] != ' ' && *from != ' ')
            *to++ = ' ';
        gap = false;
        *to++ = *from;
    }
    while (to != text && to[-1] == ' ')
        to--;
    *to = '\0';
}

/* Ends a text that did not fit with "...", not in the middle of a UTF-8 character. */
static void mark_cut(char *text, size_t size)
{
    size_t end = size - sizeof(CUT_MARK);

    while (end > 0 && ((unsigned char)text[end] & 0xc0) == 0x80)
        end--;
    memcpy(text + end, CUT_MARK, sizeof(CUT_MARK));
}

int err_set(struct err *err, int code, const char *format, ...)
{
    if (err == NULL)
        return code;

    /* Into a text of its own first: an argument may well be err->text. */
    struct err fresh;
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(fresh.text, sizeof(fresh.text), format, arguments);
    va_end(arguments);

    if (len < 0)
        fresh.text[0] = '\0';
    else if ((size_t)len >= sizeof(fresh.text))
        mark_cut(fresh.text, sizeof(fresh.text));
    make_one_line(fresh.text);
    *err = fresh;
    return code;
}

int err_prefix(struct err *err, int code, const char *format, ...)
{
    if (err == NULL)
        return code;

    struct err prefix;
    va_list arguments;
    va_start(arguments, format);
    int len = vsnprintf(prefix.text, sizeof(prefix.text), format, arguments);
    va_end(arguments);

    if (len < 0)
        prefix.text[0] = '\0';
    return err_set(err, code, "%s: %s", prefix.text, err->text);
}

void err_copy_line(char *to, size_t size, const char *from)
{
    size_t len = 0;

    if (from == NULL)
        from = "";
    for (; *from != '\0' && len + 1 < size; from++) {
        while (from[0] == '\n' && from[1] == '\t')
            from += 1 + strcspn(from + 1, "\n");
        bool space = (unsigned char)*from <= ' ';
        if (*from == '\0')
            break;
        if (space && (len == 0 || to[len - 1] == ' '))
            continue;
        to[len++] = *from;
        if (space)
            to[len - 1] = ' ';
    }
    while (len > 0 && to[len - 1] == ' ')
        len--;
    to[len] = '\0';
}
