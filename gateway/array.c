/*
 * array.c - many values as one parameter of a statement.
 */
#include "array.h"

#include <endian.h>
#include <limits.h>
#include <string.h>

#define NULLS_WORD 1
#define COUNT_WORD 3

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

const char *array_value(struct array *array, int *ret_len)
{
    if (buf_ok(&array->bytes) < 0 || array->bytes.len > INT_MAX)
        return NULL;
    set_word(array, COUNT_WORD, (uint32_t)array->count);
    *ret_len = (int)array->bytes.len;
    return array->bytes.data;
}
