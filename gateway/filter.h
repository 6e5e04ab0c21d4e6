/*
 * filter.h - what a subscriber takes of what its channels bring: some types, and not its own.
 *
 *     event ──> of a type that it wants? ──> of a client that it does without? ──> taken
 *                 none named: of any           none named: of nobody
 *
 * Always true: what nobody asked for costs one comparison; an event without a client is
 * nobody's own.
 *
 * Threads: its owner's. Cost: a comparison of lengths for each name, and of texts where they
 * are the same.
 */
#ifndef FILTER_H
#define FILTER_H

#include "base.h"
#include "buf.h"
#include "sse.h"

struct filter_names {
    struct filter_name *names; /* filter.c's own */
    size_t count;
};

/* All zero: takes everything. */
struct filter {
    struct filter_names types;   /* none: all */
    struct filter_names without; /* clients */
};

void filter_done(struct filter *filter);

/* The name is copied. -ENOMEM. */
int filter_want_type(struct filter *filter, const char *type, size_t len) MUST_CHECK;
int filter_do_without(struct filter *filter, const char *client, size_t len) MUST_CHECK;

bool filter_takes_everything(const struct filter *filter);
bool filter_takes(const struct filter *filter, const struct sse_frame *frame);

/* The name of that type, NUL-terminated; NULL if it wants fewer. */
const char *filter_type(const struct filter *filter, size_t index, size_t *ret_len);

/* The names, one a line. */
void filter_add_types(const struct filter *filter, struct buf *ret_text);
void filter_add_clients(const struct filter *filter, struct buf *ret_text);

/* Memory that the names take. */
size_t filter_bytes(const struct filter *filter);

#endif
