/*
 * array.h - many values as one parameter of a statement: an array in PostgreSQL's binary form;
 * and two of them side by side.
 *
 *     array_add() ... ──> array_value(): one parameter
 *     pairs_add() ... ──> pairs_query(): two of the same length, $1 and $2
 *
 * Nothing is quoted, so what goes in is what comes out. As array_recv() in PostgreSQL has read
 * it since 7.4, each word an int32: dimensions 1, whether there are NULLs, element type, how
 * many, lower bound 1; then length and bytes of each, or -1 for NULL.
 *
 * Without memory the adding goes on, and it is told at the end.
 *
 * Threads: its owner's.
 */
#ifndef ARRAY_H
#define ARRAY_H

#include "base.h"
#include "buf.h"
#include "database.h"

/* Of the elements. */
#define ARRAY_INT4_OID 23
#define ARRAY_TEXT_OID 25

/* Of the parameters: int4[], text[]. */
#define ARRAY_INT4S_OID 1007
#define ARRAY_TEXTS_OID 1009

/* Arrays that array_query() takes. */
#define ARRAY_COUNT_MAX 4

struct array {
    struct buf bytes;
    size_t count;
};

void array_init(struct array *array, unsigned element_oid);
void array_done(struct array *array);

/* NULL for the text: SQL NULL. */
void array_add(struct array *array, const char *text, size_t len);
void array_add_text(struct array *array, const char *text);
void array_add_int4(struct array *array, uint32_t value);

/* 0, or -ENOMEM: no memory, or more than libpq can count. */
int array_ok(const struct array *array) MUST_CHECK;

/* Behind the last: the parameter's bytes, which are the array's. NULL: not array_ok(). */
const char *array_value(struct array *array, int *ret_len) MUST_CHECK;

/* Runs `sql` with `count` arrays of texts as $1, $2, ..., and with `text` behind them if it is
 * not NULL. -ENOMEM, or as database_query(). */
int array_query(struct array *arrays, size_t count, const char *sql, const char *text,
                struct database *database, uint64_t deadline_usec, PGresult **ret_result,
                struct err *err) MUST_CHECK;

/* Two columns of texts. */
struct pairs {
    struct array columns[2];
};

void pairs_init(struct pairs *pairs);
void pairs_done(struct pairs *pairs);
void pairs_reset(struct pairs *pairs);

void pairs_add(struct pairs *pairs, const char *left, const char *right);
size_t pairs_count(const struct pairs *pairs);

/* As array_query(). */
int pairs_query(struct pairs *pairs, const char *sql, const char *text,
                struct database *database, uint64_t deadline_usec, PGresult **ret_result,
                struct err *err) MUST_CHECK;

#endif
