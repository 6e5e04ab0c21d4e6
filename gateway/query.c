/*
 * query.c - the parameters of a request.
 */
#include "query.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "common.h"

void query_fails(struct query *query, unsigned status, const char *format, ...)
{
    va_list arguments;

    if (query->status != 0)
        return;
    va_start(arguments, format);
    (void)vsnprintf(query->err.text, sizeof(query->err.text), format, arguments);
    va_end(arguments);
    query->status = status;
}

/* "; there are channel, type and wait" */
static void fails_unknown(struct query *query, const char *name)
{
    const struct query_parameter *known = query->parameters;
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    for (size_t i = 0; known[i].name != NULL; i++) {
        const bool last = known[i + 1].name == NULL;

        (void)buf_add_format(&text, "%s%s",
                             i == 0 ? ""
                             : last ? " and "
                                    : ", ",
                             known[i].name);
    }
    query_fails(query, MHD_HTTP_BAD_REQUEST, "unknown parameter \"%.*s\"; there %s %s",
                (int)event_text_cut(name, QUOTED_MAX), name,
                known[1].name == NULL ? "is only" : "are",
                buf_ok(&text) == 0 ? text.data : "others");
}

static enum MHD_Result take_parameter(void *argument, enum MHD_ValueKind kind,
                                      const char *name, size_t name_len,
                                      const char *value, size_t value_len)
{
    struct query *query = argument;
    const struct query_parameter *known = query->parameters;
    size_t i = 0;

    (void)kind;
    (void)name_len;
    if (query->status != 0)
        return MHD_YES;
    while (known[i].name != NULL && strcmp(known[i].name, name) != 0)
        i++;
    if (known[i].name == NULL) {
        fails_unknown(query, name);
        return MHD_YES;
    }
    assert(i < QUERY_PARAMETERS_MAX);
    if (known[i].twice != NULL && query->values[i] != NULL)
        query_fails(query, MHD_HTTP_BAD_REQUEST, "%s", known[i].twice);
    query->values[i] = value != NULL ? value : "";
    query->lengths[i] = value != NULL ? value_len : 0;
    if (known[i].take != NULL)
        known[i].take(query, query->values[i], query->lengths[i]);
    return MHD_YES;
}

int query_read(const struct exchange *exchange, const struct query_parameter *parameters,
               struct query *ret_query)
{
    *ret_query = (struct query){.parameters = parameters};
    (void)MHD_get_connection_values_n(exchange->mhd, MHD_GET_ARGUMENT_KIND,
                                      take_parameter, ret_query);
    for (size_t i = 0; parameters[i].name != NULL; i++) {
        if (parameters[i].needed && ret_query->values[i] == NULL)
            query_fails(ret_query, MHD_HTTP_BAD_REQUEST, "the parameter %s is missing",
                        parameters[i].name);
    }
    return ret_query->status != 0 ? -EINVAL : 0;
}

enum MHD_Result query_refuse(struct exchange *exchange, const struct query *query)
{
    return exchange_problem(exchange, query->status, "%s", query->err.text);
}
