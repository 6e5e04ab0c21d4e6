/*
 * question.c - one question to the database whose answer is one text.
 */
#include "question.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "schema.h"

#define QUERY_USEC (5 * USEC_PER_SEC)

static void answer(struct question *question, enum question_outcome outcome,
                   const char *why)
{
    question->outcome = outcome;
    (void)err_set(&question->err, 0, "%s", why);
    question->done(question); /* the asker's again, and perhaps gone */
}

static int run(struct reader_job *job, struct database *database, struct err *err)
{
    struct question *question = CONTAINER_OF(job, struct question, job);
    CLEANUP(database_clear) PGresult *result = NULL;
    const struct database_query query = {
        .sql = question->sql, .count = question->count, .values = question->values};
    const int r =
        database_ask(database, &query, MIN(job->deadline_usec, clock_usec() + QUERY_USEC),
                     &result, err);

    if (schema_explain(r, database, err) < 0)
        return r;
    if (PQntuples(result) == 0) {
        answer(question, QUESTION_MISSING, "");
        return 0;
    }
    question->text = strdup(PQgetvalue(result, 0, 0));
    if (question->text == NULL)
        return err_set(err, -ENOMEM, "no memory for the answer");
    if (PQnfields(result) > 1)
        (void)snprintf(question->word, sizeof(question->word), "%s",
                       PQgetvalue(result, 0, 1));
    answer(question, QUESTION_ANSWERED, "");
    return 0;
}

static void fail(struct reader_job *job, const struct err *err)
{
    answer(CONTAINER_OF(job, struct question, job), QUESTION_UNAVAILABLE, err->text);
}

int question_ask(struct question *question, struct readers *readers)
{
    question->text = NULL;
    question->word[0] = '\0';
    question->job = (struct reader_job){
        .run = run, .fail = fail, .deadline_usec = question->deadline_usec};
    return readers_ask(readers, &question->job);
}
