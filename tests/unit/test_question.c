/* test_question.c - one question to the database whose answer is one text. */
#include "pg.h"

#include "question.h"

struct asking {
    struct question question;
    _Atomic int answers;
};

static void on_done(struct question *question)
{
    struct asking *asking = CONTAINER_OF(question, struct asking, question);

    atomic_fetch_add_explicit(&asking->answers, 1, memory_order_release);
}

static struct readers *start(const char *dsn)
{
    struct err err = {0};
    struct readers *readers =
        readers_new(&(struct readers_settings){.dsn = dsn, .count = 1, .jobs_max = 100});

    assert_non_null(readers);
    assert_int_equal(readers_start(readers, &err), 0);
    return readers;
}

static enum question_outcome ask(struct readers *readers, struct asking *asking,
                                 const char *sql)
{
    memset(asking, 0, sizeof(*asking));
    asking->question = (struct question){
        .sql = sql,
        .count = 2,
        .values = {"first", NULL},
        .deadline_usec = clock_usec() + 10 * USEC_PER_SEC,
        .done = on_done,
    };
    assert_int_equal(question_ask(&asking->question, readers), 0);
    WAIT_FOR(atomic_load_explicit(&asking->answers, memory_order_acquire) == 1);
    return asking->question.outcome;
}

static void an_answer_is_a_text_and_a_word(void **state)
{
    struct pg pg;
    struct asking asking;

    (void)state;
    pg_open(&pg, false);
    struct readers *readers = start(pg.dsn);
    assert_int_equal(
        ask(readers, &asking, "SELECT $1::text || 'ly', coalesce($2, 'word')"),
        QUESTION_ANSWERED);
    assert_string_equal(asking.question.text, "firstly");
    assert_string_equal(asking.question.word, "word");
    free(asking.question.text);
    assert_int_equal(ask(readers, &asking, "SELECT $1::text WHERE $2::text IS NOT NULL"),
                     QUESTION_MISSING);
    assert_null(asking.question.text);
    assert_int_equal(ask(readers, &asking, "SELECT 1 / 0, $1::text, $2::text"),
                     QUESTION_UNAVAILABLE);
    assert_non_null(strstr(asking.question.err.text, "division by zero"));
    readers_free(readers);
    pg_close(&pg);
}

static void without_a_database_the_reason_comes_soon(void **state)
{
    struct asking asking;

    (void)state;
    struct readers *readers = start("host=127.0.0.1 port=1 dbname=nothing");
    assert_int_equal(ask(readers, &asking, "SELECT $1::text, $2::text"),
                     QUESTION_UNAVAILABLE);
    assert_true(strlen(asking.question.err.text) > 0);
    readers_stop(readers);
    assert_int_equal(question_ask(&asking.question, readers), -ESHUTDOWN);
    readers_free(readers);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_answer_is_a_text_and_a_word),
        cmocka_unit_test(without_a_database_the_reason_comes_soon),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
