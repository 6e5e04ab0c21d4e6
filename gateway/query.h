/*
 * query.h - the parameters of a request: each that the endpoint knows is taken, and the first
 * that is wrong is told.
 *
 *     "?channel=a&type=b" ──> a table of what there is ──> take() for each, in order
 *                                       └── unknown, too many, missing, take() says no: query_refuse()
 *
 * Escapes have been undone before (http.h); a '%' that is none stays what it is.
 *
 * Threads: the shards'.
 */
#ifndef QUERY_H
#define QUERY_H

#include "base.h"
#include "err.h"
#include "exchange.h"

#define QUERY_PARAMETERS_MAX 8

struct query;

/* A table of them ends with one without a name; query->values are in its order. */
struct query_parameter {
    const char *name;
    /* May call query_fails(). NULL: query->values is enough. */
    void (*take)(struct query *query, const char *text, size_t len);
    const char *twice; /* what is said of two; NULL: there may be any number */
    bool needed;       /* none is one too few */
};

/* Inside whatever the parameters are gathered in. */
struct query {
    const struct query_parameter *parameters;
    const char *values[QUERY_PARAMETERS_MAX]; /* the last of each; NULL: not given */
    size_t lengths[QUERY_PARAMETERS_MAX];

    unsigned status; /* of the refusal; 0: none */
    struct err err;
};

/* 0, or -EINVAL: query_refuse() has something to say. Values are valid until the answer. */
int query_read(const struct exchange *exchange, const struct query_parameter *parameters,
               struct query *ret_query) MUST_CHECK;

/* The first failure is the one that is told. */
void query_fails(struct query *query, unsigned status, const char *format, ...)
    PRINTF_LIKE(3, 4);

enum MHD_Result query_refuse(struct exchange *exchange, const struct query *query);

#endif
