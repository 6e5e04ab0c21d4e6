/*
 * pairs.c - two columns of texts as the first two parameters of a statement.
 */
#include "pairs.h"

#include <errno.h>

void pairs_init(struct pairs *pairs)
{
    array_init(&pairs->left, ARRAY_TEXT_OID);
    array_init(&pairs->right, ARRAY_TEXT_OID);
}

void pairs_done(struct pairs *pairs)
{
    array_done(&pairs->left);
    array_done(&pairs->right);
}

void pairs_reset(struct pairs *pairs)
{
    pairs_done(pairs);
    pairs_init(pairs);
}

void pairs_add(struct pairs *pairs, const char *left, const char *right)
{
    array_add_text(&pairs->left, left);
    array_add_text(&pairs->right, right);
}

size_t pairs_count(const struct pairs *pairs)
{
    return pairs->left.count;
}

int pairs_query(struct pairs *pairs, const char *sql, const char *third,
                struct database *database, uint64_t deadline_usec, PGresult **ret_result,
                struct err *err)
{
    static const Oid types[] = {ARRAY_TEXTS_OID, ARRAY_TEXTS_OID, ARRAY_TEXT_OID};
    static const int formats[] = {1, 1, 0};
    int lengths[3] = {0};
    const char *values[] = {array_value(&pairs->left, &lengths[0]),
                            array_value(&pairs->right, &lengths[1]), third};
    const struct database_query query = {
        .sql = sql,
        .count = third != NULL ? 3 : 2,
        .types = types,
        .values = values,
        .lengths = lengths,
        .formats = formats,
    };

    if (values[0] == NULL || values[1] == NULL)
        return err_set(err, -ENOMEM, "no memory for a list");
    return database_query(database, &query, deadline_usec, ret_result, err);
}
