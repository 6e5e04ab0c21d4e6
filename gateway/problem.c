/*
 * problem.c - what is wrong with a request, as it is answered.
 */
#include "problem.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <jansson.h>

#include "event.h"

int problem_set(struct problem *problem, unsigned status, const char *format, ...)
{
    char text[sizeof(problem->detail.text)];
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    problem->status = status;
    return err_set(&problem->detail, -EINVAL, "%s", text);
}

/* "Bad Request" for 400, and so on (RFC 9110, 15). */
static const char *status_text(unsigned status)
{
    switch (status) {
    case 400:
        return "Bad Request";
    case 403:
        return "Forbidden";
    case 404:
        return "Not Found";
    case 405:
        return "Method Not Allowed";
    case 409:
        return "Conflict";
    case 413:
        return "Content Too Large";
    case 415:
        return "Unsupported Media Type";
    case 417:
        return "Expectation Failed";
    case 431:
        return "Request Header Fields Too Large";
    case 422:
        return "Unprocessable Content";
    case 429:
        return "Too Many Requests";
    case 503:
        return "Service Unavailable";
    default:
        return "Internal Server Error";
    }
}

char *problem_json(const struct problem *problem)
{
    const size_t len = strlen(problem->detail.text);
    /* What is wrong may quote bytes that are not text. */
    const char *detail = event_text_is_utf8(problem->detail.text, len)
                             ? problem->detail.text
                             : "the request has bytes that are not UTF-8";
    json_t *document = json_pack("{s:s, s:s, s:i, s:s}", "type", "about:blank", "title",
                                 status_text(problem->status), "status",
                                 (int)problem->status, "detail", detail);
    char *text = json_dumps(document, JSON_COMPACT);

    json_decref(document);
    return text;
}
