/*
 * array.c - many values as one parameter of a statement.
 */
#include "array.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#define NULLS_WORD 1
#define COUNT_WORD 3

/* ---- one ---- */

static void add_word(struct array *array, uint32_t value)
{
    const uint32_t network = htobe32(value);

    (void)buf_add(&array->bytes, &network, sizeof(network));
}

static void set_word(struct array *array, size_t word, uint32_t value)
{
    const uint32_t network = htobe32(value);

    memcpy(array->bytes.data + word * sizeof(network), &network, sizeof(network));
}

void array_init(struct array *array, unsigned element_oid)
{
    buf_init(&array->bytes);
    array->count = 0;
    add_word(array, 1);
    add_word(array, 0);
    add_word(array, element_oid);
    add_word(array, 0); /* see array_value() */
    add_word(array, 1);
}

void array_done(struct array *array)
{
    buf_done(&array->bytes);
}

void array_add(struct array *array, const char *text, size_t len)
{
    array->count++;
    if (text == NULL) {
        add_word(array, UINT32_MAX);
        if (buf_ok(&array->bytes) == 0)
            set_word(array, NULLS_WORD, 1);
        return;
    }
    add_word(array, (uint32_t)len);
    (void)buf_add(&array->bytes, text, len);
}

void array_add_text(struct array *array, const char *text)
{
    array_add(array, text, text != NULL ? strlen(text) : 0);
}

void array_add_int4(struct array *array, uint32_t value)
{
    array->count++;
    add_word(array, sizeof(value));
    add_word(array, value);
}

int array_ok(const struct array *array)
{
    return buf_ok(&array->bytes) == 0 && array->bytes.len <= INT_MAX ? 0 : -ENOMEM;
}

const char *array_value(struct array *array, int *ret_len)
{
    if (array_ok(array) < 0)
        return NULL;
    set_word(array, COUNT_WORD, (uint32_t)array->count);
    *ret_len = (int)array->bytes.len;
    return array->bytes.data;
}

/* ---- several ---- */

int array_query(struct array *arrays, size_t count, const char *sql, const char *text,
                struct database *database, uint64_t deadline_usec, PGresult **ret_result,
                struct err *err)
{
    Oid types[ARRAY_COUNT_MAX + 1];
    int formats[ARRAY_COUNT_MAX + 1], lengths[ARRAY_COUNT_MAX + 1];
    const char *values[ARRAY_COUNT_MAX + 1];
    const struct database_query query = {
        .sql = sql,
        .count = (int)count + (text != NULL),
        .types = types,
        .values = values,
        .lengths = lengths,
        .formats = formats,
    };

    assert(count <= ARRAY_COUNT_MAX);
    for (size_t i = 0; i < count; i++) {
        types[i] = ARRAY_TEXTS_OID;
        formats[i] = 1;
        values[i] = array_value(&arrays[i], &lengths[i]);
        if (values[i] == NULL)
            return err_set(err, -ENOMEM, "no memory for a list");
    }
    types[count] = ARRAY_TEXT_OID;
    formats[count] = lengths[count] = 0;
    values[count] = text;
    return database_query(database, &query, deadline_usec, ret_result, err);
}

void pairs_init(struct pairs *pairs)
{
    for (size_t i = 0; i < ARRAY_SIZE(pairs->columns); i++)
        array_init(&pairs->columns[i], ARRAY_TEXT_OID);
}

void pairs_done(struct pairs *pairs)
{
    for (size_t i = 0; i < ARRAY_SIZE(pairs->columns); i++)
        array_done(&pairs->columns[i]);
}

void pairs_reset(struct pairs *pairs)
{
    pairs_done(pairs);
    pairs_init(pairs);
}

void pairs_add(struct pairs *pairs, const char *left, const char *right)
{
    array_add_text(&pairs->columns[0], left);
    array_add_text(&pairs->columns[1], right);
}

size_t pairs_count(const struct pairs *pairs)
{
    return pairs->columns[0].count;
}

int pairs_query(struct pairs *pairs, const char *sql, const char *text,
                struct database *database, uint64_t deadline_usec, PGresult **ret_result,
                struct err *err)
{
    return array_query(pairs->columns, ARRAY_SIZE(pairs->columns), sql, text, database,
                       deadline_usec, ret_result, err);
}
