/*
 * array.h - many values as one parameter of a statement: an array in PostgreSQL's binary
 * form.
 *
 * Nothing is quoted, so what goes in is what comes out. As array_recv() in PostgreSQL has read
 * it since 7.4, each word an int32: dimensions 1, whether there are NULLs, element type, how
 * many, lower bound 1; then length and bytes of each, or -1 for NULL.
 *
 * Threads: its owner's.
 */
#ifndef ARRAY_H
#define ARRAY_H

#include "base.h"
#include "buf.h"

#define ARRAY_TEXT_OID  25
#define ARRAY_TEXTS_OID 1009 /* of the parameter: text[] */

struct array {
    struct buf bytes;
    size_t count;
};

void array_init(struct array *array, unsigned element_oid);
void array_done(struct array *array);

/* NULL for the text: SQL NULL. */
void array_add(struct array *array, const char *text, size_t len);
void array_add_text(struct array *array, const char *text);

/* Behind the last: the parameter's bytes, which are the array's. NULL: no memory, or more than
 * libpq can count. */
const char *array_value(struct array *array, int *ret_len) MUST_CHECK;

#endif
