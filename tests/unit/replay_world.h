/*
 * replay_world.h - a replay with readers and a real PostgreSQL, and questions to it, for unit
 * tests.
 */
#ifndef REPLAY_WORLD_H
#define REPLAY_WORLD_H

#include "pg.h"

#include "replay.h"

#define LIFE ((uint64_t)1 << 40)

struct world {
    struct pg pg;
    struct proxy proxy;
    struct stats *stats;
    struct readers *readers;
    struct replay *replay;
    PGconn *locker;
};

struct question {
    struct replay_request request;
    _Atomic unsigned answers;
    void (*answered)(struct question *question); /* on the reader's thread; may be NULL */
    void *owner;
};

PG_UNUSED static unsigned answers(struct question *question)
{
    return atomic_load_explicit(&question->answers, memory_order_acquire);
}

PG_UNUSED static void on_done(struct replay_request *request)
{
    struct question *question = CONTAINER_OF(request, struct question, request);

    if (question->answered != NULL)
        question->answered(question);
    else
        atomic_fetch_add_explicit(&question->answers, 1, memory_order_release);
}

PG_UNUSED static void make(struct question *question, uint64_t after)
{
    memset(question, 0, sizeof(*question));
    question->request = (struct replay_request){
        .question = REPLAY_AFTER, .after = after, .done = on_done};
}

/* All types, all clients. */
PG_UNUSED static int try_ask(struct replay *replay, struct question *question,
                             const char *patterns)
{
    return replay_ask(
        replay, &question->request,
        &(struct replay_choice){.patterns = patterns, .types = "", .without = ""});
}

PG_UNUSED static void ask(struct world *world, struct question *question, uint64_t after,
                          const char *patterns)
{
    make(question, after);
    assert_int_equal(try_ask(world->replay, question, patterns), 0);
}

/* The caller lets it go. */
PG_UNUSED static struct replay_page *wait_for(struct question *question)
{
    WAIT_FOR(answers(question) == 1);
    assert_non_null(question->request.page);
    return question->request.page;
}

PG_UNUSED static struct replay_page *fetch(struct world *world, uint64_t after,
                                           const char *patterns)
{
    struct question question;

    ask(world, &question, after, patterns);
    return wait_for(&question);
}

/* The id that an answer without events is. */
PG_UNUSED static uint64_t place_of(struct world *world, enum replay_question kind,
                                   unsigned count, const struct replay_choice *choice)
{
    struct question question;

    make(&question, 0);
    question.request.question = kind;
    question.request.count = count;
    assert_int_equal(replay_ask(world->replay, &question.request, choice), 0);
    struct replay_page *page = wait_for(&question);
    const uint64_t through = page->through;
    assert_int_equal(page->count, 0);
    replay_page_free(page);
    return through;
}

PG_UNUSED static uint64_t place(struct world *world, enum replay_question kind,
                                unsigned count, const char *patterns, const char *types)
{
    return place_of(
        world, kind, count,
        &(struct replay_choice){.patterns = patterns, .types = types, .without = ""});
}

PG_UNUSED static uint64_t pages(struct world *world)
{
    return stats_counter_value(world->stats, STATS_REPLAY_PAGES);
}

PG_UNUSED static void start_with(struct world *world, const char *dsn, unsigned count,
                                 size_t bytes_max)
{
    struct err err = {0};

    world->readers = readers_new(
        &(struct readers_settings){.dsn = dsn, .count = count, .jobs_max = 9});
    assert_non_null(world->readers);
    assert_int_equal(readers_start(world->readers, &err), 0);
    world->replay = replay_new(&(struct replay_settings){
        .readers = world->readers, .stats = world->stats, .bytes_max = bytes_max});
    assert_non_null(world->replay);
}

PG_UNUSED static void start(struct world *world)
{
    start_with(world, world->pg.dsn, 1, 64 * MIB);
}

PG_UNUSED static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    world.stats = stats_new();
    *state = &world;
    return 0;
}

PG_UNUSED static int tear_down(void **state)
{
    struct world *world = *state;

    readers_stop(world->readers);
    replay_free(world->replay);
    readers_free(world->readers);
    stats_free(world->stats);
    PQfinish(world->locker);
    proxy_close(&world->proxy);
    pg_close(&world->pg);
    return 0;
}

/* So many events; the channel and the data as SQL says, with the number `i` from 1 on. */
PG_UNUSED static void publish(struct world *world, int count, const char *channel,
                              const char *data)
{
    char sql[600];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT gateway.publish_batch(array_agg(%s ORDER BY i), "
                   "array_agg(text 'message'), array_agg(%s ORDER BY i)) "
                   "FROM generate_series(1, %d) i",
                   channel, data, count);
    pg_run(world->pg.conn, sql);
}

/* Questions wait, with their snapshot taken, until release(). */
PG_UNUSED static void hold(struct world *world)
{
    world->locker = pg_connect(world->pg.dsn);
    pg_run(world->locker, "BEGIN; LOCK TABLE gateway.purges");
}

PG_UNUSED static void wait_for_held(struct world *world, int count)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND "
                   "application_name = 'pg-sse-gateway/reader' AND wait_event_type = "
                   "'Lock'",
                   world->pg.name);
    WAIT_FOR(pg_number(world->pg.admin, sql) == count);
}

PG_UNUSED static void release(struct world *world)
{
    PQfinish(world->locker);
    world->locker = NULL;
}

/* Random texts do not get smaller in the table. */
#define NOISE(times)                                                                     \
    "(SELECT '\"' || string_agg(md5((i * 100000 + j)::text), '') || '\"' FROM "          \
    "generate_series(1, " #times ") j)"

#endif
