/* test_replay.c - events after an id, page by page; and whether that id can be gone on from. */
#include "pg.h"

#include <string.h>

#include "failing_malloc.h"
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

static unsigned answers(struct question *question)
{
    return atomic_load_explicit(&question->answers, memory_order_acquire);
}

static void on_done(struct replay_request *request)
{
    struct question *question = CONTAINER_OF(request, struct question, request);

    if (question->answered != NULL)
        question->answered(question);
    else
        atomic_fetch_add_explicit(&question->answers, 1, memory_order_release);
}

static void make(struct question *question, uint64_t after)
{
    memset(question, 0, sizeof(*question));
    question->request = (struct replay_request){
        .question = REPLAY_AFTER, .after = after, .done = on_done};
}

/* All types, all clients. */
static int try_ask(struct replay *replay, struct question *question, const char *patterns)
{
    return replay_ask(
        replay, &question->request,
        &(struct replay_choice){.patterns = patterns, .types = "", .without = ""});
}

static void ask(struct world *world, struct question *question, uint64_t after,
                const char *patterns)
{
    make(question, after);
    assert_int_equal(try_ask(world->replay, question, patterns), 0);
}

/* The caller lets it go. */
static struct replay_page *wait_for(struct question *question)
{
    WAIT_FOR(answers(question) == 1);
    assert_non_null(question->request.page);
    return question->request.page;
}

static struct replay_page *fetch(struct world *world, uint64_t after,
                                 const char *patterns)
{
    struct question question;

    ask(world, &question, after, patterns);
    return wait_for(&question);
}

/* The id that an answer without events is. */
static uint64_t place_of(struct world *world, enum replay_question kind, unsigned count,
                         const struct replay_choice *choice)
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

static uint64_t place(struct world *world, enum replay_question kind, unsigned count,
                      const char *patterns, const char *types)
{
    return place_of(
        world, kind, count,
        &(struct replay_choice){.patterns = patterns, .types = types, .without = ""});
}

static uint64_t pages(struct world *world)
{
    return stats_counter_value(world->stats, STATS_REPLAY_PAGES);
}

static void start_with(struct world *world, const char *dsn, unsigned count,
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

static void start(struct world *world)
{
    start_with(world, world->pg.dsn, 1, 64 * MIB);
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    world.stats = stats_new();
    *state = &world;
    return 0;
}

static int tear_down(void **state)
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
static void publish(struct world *world, int count, const char *channel, const char *data)
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
static void hold(struct world *world)
{
    world->locker = pg_connect(world->pg.dsn);
    pg_run(world->locker, "BEGIN; LOCK TABLE gateway.purges");
}

static void wait_for_held(struct world *world, int count)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND "
                   "application_name = 'pg-sse-gateway/reader' AND wait_event_type = "
                   "'Lock'",
                   world->pg.name);
    WAIT_FOR(pg_number(world->pg.admin, sql) == count);
}

static void release(struct world *world)
{
    PQfinish(world->locker);
    world->locker = NULL;
}

/* -- pages -- */

static void expect_page(struct world *world, uint64_t after, const char *patterns,
                        uint64_t through, size_t count)
{
    struct replay_page *page = fetch(world, after, patterns);

    if (page->through != through || page->count != count)
        fail_msg("after %llu: %zu events through %llu", (unsigned long long)after,
                 page->count, (unsigned long long)page->through);
    for (size_t i = 0; i < count; i++) {
        assert_true(page->frames[i]->seq > after && page->frames[i]->seq <= through);
        assert_true(i == 0 || page->frames[i]->seq > page->frames[i - 1]->seq);
    }
    replay_page_free(page);
}

static void a_page_has_so_many_events_at_the_most(void **state)
{
    struct world *world = *state;

    publish(world, 1200, "CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END",
            "to_json(i)::text");
    start(world);
    expect_page(world, 0, "*", 500, 500);
    expect_page(world, 500, "*", 1000, 500);
    expect_page(world, 1000, "*", 1200, 200);
    expect_page(world, 1200, "*", 1200, 0);
    expect_page(world, 0, "even", 1000, 500);
    expect_page(world, 1000, "even", 1200, 100);
    expect_page(world, 700, "odd", 1200, 250);
    expect_page(world, 0, "odd\neven", 500, 500);
    expect_page(world, 0, "even\neven", 1000, 500);
    expect_page(world, 0, "ev*\nodd", 500, 500);
    expect_page(world, 0, "none", 1200, 0);
    expect_page(world, 0, "none\nod*", 999, 500);
    expect_page(world, 0, "no*", 1200, 0);

    struct replay_page *page = fetch(world, 699, "odd");
    assert_int_equal(page->newest, 1200);
    assert_int_equal(page->purged, 0);
    assert_string_equal(sse_frame_channel(page->frames[0]), "odd");
    assert_memory_equal(page->frames[0]->bytes + page->frames[0]->body_offset,
                        "id: 701\ndata: 701\n\n", page->frames[0]->body_len);
    replay_page_free(page);
    replay_page_free(NULL);
    assert_int_equal(pages(world), 14);
}

/* Random texts do not get smaller in the table. */
#define NOISE(times)                                                                     \
    "(SELECT '\"' || string_agg(md5((i * 100000 + j)::text), '') || '\"' FROM "          \
    "generate_series(1, " #times ") j)"

static void a_page_has_so_many_bytes_at_the_most(void **state)
{
    struct world *world = *state;

    publish(world, 40, "text 'a'", NOISE(640)); /* 20 482 bytes each */
    publish(world, 1, "text 'a'", NOISE(30000));
    publish(world, 3, "text 'a'", "text '1'");
    start(world);
    expect_page(world, 0, "a", 12, 12);
    expect_page(world, 12, "*", 24, 12);
    expect_page(world, 39, "a", 40, 1); /* the next is larger than a page */
    expect_page(world, 40, "a", 41, 1); /* and comes alone */
    expect_page(world, 41, "a", 44, 3);
    struct replay_page *page = fetch(world, 40, "a");
    assert_true(page->frames[0]->body_len > 960000);
    replay_page_free(page);
}

/* A prefix walks over a stretch of all there is, and says how far it has come. */
static void a_page_for_prefixes_goes_a_stretch_at_a_time(void **state)
{
    struct world *world = *state;

    publish(world, 45000,
            "CASE WHEN i IN (10, 20001, 44999) THEN 'rare.' || i ELSE 'often' END",
            "text '1'");
    start(world);
    expect_page(world, 0, "rare.*", 20000, 1);
    expect_page(world, 10, "rare.*\nrare.*", 20010, 1); /* not the page just kept */
    expect_page(world, 20010, "rare.*", 40010, 0);
    expect_page(world, 40010, "rare.*", 45000, 1);
    expect_page(world, 25000, "rare.*\nrare.*", 45000, 1);
    expect_page(world, 0, "rare.10", 45000, 1); /* a name does not walk */
}

static void a_page_knows_what_is_not_there_any_more(void **state)
{
    struct world *world = *state;

    publish(world, 100, "text 'a'", "text '1'");
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq < 50");
    start(world);
    struct replay_page *page = fetch(world, 20, "a");
    assert_int_equal(page->purged, 49);
    assert_int_equal(page->frames[0]->seq, 50);
    assert_int_equal(replay_judge(page, 48, 0), REPLAY_EXPIRED);
    assert_int_equal(page->oldest, 49);
    assert_int_equal(replay_judge(page, 48, 49),
                     REPLAY_EXPIRED); /* gone since it was told */
    assert_int_equal(replay_judge(page, 49, 0), REPLAY_EXACT);
    replay_page_free(page);
    pg_run(world->pg.conn, "DELETE FROM gateway.events");
    page = fetch(world, 100, "a");
    assert_int_equal(page->newest, 100); /* though it is not there */
    assert_int_equal(page->purged, 100);
    assert_int_equal(page->through, 100);
    assert_int_equal(replay_judge(page, 100, 0), REPLAY_EXACT);
    assert_int_equal(replay_judge(page, 99, 49), REPLAY_EXPIRED);
    assert_int_equal(replay_judge(page, 101, 0), REPLAY_FUTURE);
    replay_page_free(page);
}

static void places_are_told_without_events(void **state)
{
    struct world *world = *state;

    start(world);
    assert_int_equal(place(world, REPLAY_EARLIEST, 0, "", ""), 0);
    assert_int_equal(place(world, REPLAY_LAST, 5, "*", ""), 0);
    publish(world, 100, "CASE WHEN i % 10 = 0 THEN 'tens' ELSE 'others' END", "text '1'");
    assert_int_equal(place(world, REPLAY_EARLIEST, 0, "", ""), 0);
    assert_int_equal(place(world, REPLAY_LAST, 5, "*", ""), 95);
    assert_int_equal(place(world, REPLAY_LAST, 5, "tens", ""), 59);
    assert_int_equal(place(world, REPLAY_LAST, 50, "te*", ""), 9);
    assert_int_equal(place(world, REPLAY_LAST, 3, "tens\nothers", ""), 97);
    assert_int_equal(place(world, REPLAY_LAST, 3, "tens\nothers", "x\ny"), 100);
    assert_int_equal(place(world, REPLAY_LAST, 3, "others", "x\nmessage"), 96);
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq <= 98");
    assert_int_equal(place(world, REPLAY_EARLIEST, 0, "", ""), 98);
    assert_int_equal(place(world, REPLAY_LAST, 5, "tens", ""), 99);
    pg_run(world->pg.conn, "DELETE FROM gateway.events");
    assert_int_equal(place(world, REPLAY_EARLIEST, 0, "", ""), 100);
    assert_int_equal(place(world, REPLAY_LAST, 5, "tens", ""), 100);
}

/* Ten events on "c": the even ones of "shop", 1, 5 and 9 of "till", 3 and 7 of nobody. */
static void publish_from_clients(struct world *world)
{
    pg_run(world->pg.conn,
           "SELECT gateway.publish_batch(array_agg(text 'c'), array_agg(text 'message'), "
           "array_agg(text '1'), clients => array_agg((ARRAY['till', 'shop', NULL, "
           "'shop'])[(i - 1) % 4 + 1] ORDER BY i)) FROM generate_series(1, 10) i");
}

static void a_page_tells_of_each_event_whose_it_is(void **state)
{
    static const char *const clients[] = {"till", "shop", "", "shop"};
    struct world *world = *state;

    publish_from_clients(world);
    start(world);
    struct replay_page *page = fetch(world, 0, "c");
    assert_int_equal(page->count, 10);
    for (size_t i = 0; i < page->count; i++) {
        const char *client = clients[i % ARRAY_SIZE(clients)];

        assert_int_equal(page->frames[i]->client_len, strlen(client));
        assert_memory_equal(sse_frame_client(page->frames[i]), client, strlen(client));
    }
    replay_page_free(page);
}

/* Also at the same time: what they ask for is not the same. */
static void the_newest_without_ones_own_begin_elsewhere(void **state)
{
    static const struct {
        const char *patterns, *without;
        uint64_t place;
    } cases[] = {{"c", "", 8},
                 {"c", "shop", 6},
                 {"c", "till", 7},
                 {"c", "shop\ntill", 2},
                 {"c", "till\nshop\nnobody", 2},
                 {"c", "sho\nshops\nSHOP", 8},
                 {"*", "shop", 6},
                 {"*\nc", "shop\ntill", 2},
                 {"d", "shop", 10}};
    struct world *world = *state;
    struct question questions[ARRAY_SIZE(cases)];

    publish_from_clients(world);
    start(world);
    hold(world);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        make(&questions[i], 0);
        questions[i].request.question = REPLAY_LAST;
        questions[i].request.count = 2;
        assert_int_equal(replay_ask(world->replay, &questions[i].request,
                                    &(struct replay_choice){.patterns = cases[i].patterns,
                                                            .types = "",
                                                            .without = cases[i].without}),
                         0);
    }
    release(world);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct replay_page *page = wait_for(&questions[i]);

        assert_int_equal(page->through, cases[i].place);
        replay_page_free(page);
    }
}

/* -- the one rule -- */

static void an_id_is_judged_by_one_rule(void **state)
{
    static const uint64_t lost[] = {10, LIFE, LIFE + 5, 2 * LIFE};
    static const struct {
        uint64_t id, purged, told;
        enum replay_verdict verdict;
    } cases[] = {
        {0, 0, 0, REPLAY_EXACT},
        {0, 1, 0, REPLAY_EXPIRED},
        {1, 1, 0, REPLAY_EXACT},
        {10, 0, 0, REPLAY_EXACT},
        {11, 0, 0, REPLAY_FUTURE},
        {11, 20, 0, REPLAY_FUTURE}, /* it is nobody's: that counts more */
        {LIFE - 1, 0, 0, REPLAY_FUTURE},
        {LIFE, 0, 0, REPLAY_EXACT},
        {LIFE + 5, 0, 0, REPLAY_EXACT},
        {LIFE + 6, 0, 0, REPLAY_FUTURE},
        {2 * LIFE - 1, 0, 2 * LIFE, REPLAY_FUTURE},
        {2 * LIFE, 0, 0, REPLAY_EXACT},
        {2 * LIFE + 100, 0, 0, REPLAY_EXACT},
        {2 * LIFE + 101, 0, 0, REPLAY_FUTURE},
        {INT64_MAX, 0, 0, REPLAY_FUTURE},
        {5, LIFE + 2, LIFE + 1, REPLAY_EXPIRED}, /* more than it was told */
        {5, LIFE + 2, LIFE + 2, REPLAY_EXACT},
        {LIFE + 2, LIFE + 2, 0, REPLAY_EXACT},
        {2 * LIFE + 100, 2 * LIFE + 100, 0, REPLAY_EXACT},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct replay_page page = {.newest = 2 * LIFE + 100,
                                         .purged = cases[i].purged,
                                         .lost = lost,
                                         .lost_count = ARRAY_SIZE(lost)};
        const enum replay_verdict verdict =
            replay_judge(&page, cases[i].id, cases[i].told);

        if (verdict != cases[i].verdict)
            fail_msg("case %zu: %d", i, (int)verdict);
    }

    /* A hole that was told, and what has gone below it since. */
    const struct replay_page page = {.newest = 100, .purged = 60, .oldest = 50};
    assert_int_equal(replay_judge(&page, 49, 60), REPLAY_EXPIRED);
    assert_int_equal(replay_judge(&page, 50, 60), REPLAY_EXACT);
    assert_int_equal(replay_judge(&page, 50, 59), REPLAY_EXPIRED);
}

static void lives_are_read_from_the_table(void **state)
{
    struct world *world = *state;

    publish(world, 10, "text 'a'", "text '1'");
    start(world);
    for (int life = 1; life <= 3; life++) {
        pg_run(world->pg.conn,
               "UPDATE gateway.incarnations SET identity = 'elsewhere' WHERE base = "
               "(SELECT max(base) FROM gateway.incarnations)");
        publish(world, 5, "text 'a'", "text '1'");
    }
    struct replay_page *page = fetch(world, 3, "a");
    const uint64_t wanted[] = {10, LIFE, LIFE + 5, 2 * LIFE, 2 * LIFE + 5, 3 * LIFE};
    assert_int_equal(page->lost_count, ARRAY_SIZE(wanted));
    assert_memory_equal(page->lost, wanted, sizeof(wanted));
    assert_int_equal(page->count, 22);
    assert_int_equal(page->through, 3 * LIFE + 5);
    assert_int_equal(replay_judge(page, 2 * LIFE + 6, 0), REPLAY_FUTURE);
    assert_int_equal(replay_judge(page, 2 * LIFE + 5, 0), REPLAY_EXACT);
    replay_page_free(page);
    /* Only what somebody who is there could need. */
    page = fetch(world, 2 * LIFE + 7, "a");
    assert_int_equal(page->lost_count, 2);
    assert_int_equal(replay_judge(page, 2 * LIFE + 7, 0), REPLAY_FUTURE);
    replay_page_free(page);
}

/* -- sharing -- */

static void who_asks_for_the_same_shares_the_query(void **state)
{
    enum { ASKERS = 300 };
    struct world *world = *state;
    struct question first, questions[ASKERS], others[3];

    publish(world, 400, "text 'a'", "text '1'");
    start(world);
    hold(world);
    ask(world, &first, 0, "x");
    wait_for_held(world, 1);
    for (int i = 0; i < ASKERS; i++)
        ask(world, &questions[i], (uint64_t)i, "a");
    ask(world, &others[0], 0, "b");
    ask(world, &others[1], 0, "a\nb");
    ask(world, &others[2], 0, "a*");
    release(world);
    replay_page_free(wait_for(&first));
    for (int i = 0; i < ASKERS; i++) {
        struct replay_page *page = wait_for(&questions[i]);

        assert_ptr_equal(page, questions[0].request.page);
        assert_int_equal(page->frames[i]->seq, i + 1);
    }
    for (int i = 0; i < ASKERS; i++)
        replay_page_free(questions[i].request.page);
    for (size_t i = 0; i < ARRAY_SIZE(others); i++)
        replay_page_free(wait_for(&others[i]));
    assert_int_equal(pages(world), 5);
}

/* Many who ride from where they are to the end, each from page to page. */
struct rider {
    struct question question;
    struct world *world;
    uint64_t at;
    unsigned events; /* seen */
    unsigned stops;
    bool wrong;
    _Atomic bool arrived;
    struct waiter *waiter; /* or NULL */
};

/* One who asks at the low end, while the rider rides on and on from stop to stop. */
struct waiter {
    struct question question;
    struct rider *rider;
    unsigned stops; /* of the rider until the answer came */
};

static void waiter_answered(struct question *question)
{
    struct waiter *waiter = question->owner;

    clock_set(0);
    waiter->stops = waiter->rider->stops;
    atomic_fetch_add_explicit(&question->answers, 1, memory_order_release);
}

/* The rider's stops are the waiter's time: he asks at the second, in a clock that stands
 * still from there on, and at the fifth he has waited for a second. */
static void wait_at_stop(struct waiter *waiter, unsigned stop)
{
    struct world *world = waiter->rider->world;

    if (stop == 2) {
        clock_set(clock_usec());
        make(&waiter->question, 0);
        waiter->question.answered = waiter_answered;
        waiter->question.owner = waiter;
        if (try_ask(world->replay, &waiter->question, "*") < 0)
            waiter->rider->wrong = true;
    }
    if (stop == 5)
        clock_set(clock_usec() + USEC_PER_SEC);
}

static void ride_on(struct question *question)
{
    struct rider *rider = question->owner;
    struct replay_page *page = question->request.page;
    uint64_t at = rider->at;

    rider->stops++;
    if (rider->waiter != NULL)
        wait_at_stop(rider->waiter, rider->stops);
    for (size_t i = 0; i < page->count; i++) {
        if (page->frames[i]->seq <= rider->at)
            continue;
        rider->wrong = rider->wrong || page->frames[i]->seq != at + 1;
        at = page->frames[i]->seq;
        rider->events++;
    }
    rider->wrong = rider->wrong || page->after > rider->at || at != page->through;
    rider->at = at;
    const bool arrived = page->through >= page->newest || rider->wrong;
    replay_page_free(page);
    if (!arrived) {
        rider->question.request.after = at;
        if (try_ask(rider->world->replay, &rider->question, "*") == 0)
            return;
    }
    atomic_store_explicit(&rider->arrived, true, memory_order_release);
}

static void begin_ride(struct world *world, struct rider *rider, uint64_t after,
                       struct waiter *waiter)
{
    memset(rider, 0, sizeof(*rider));
    rider->world = world;
    rider->at = after;
    rider->waiter = waiter;
    make(&rider->question, after);
    rider->question.answered = ride_on;
    rider->question.owner = rider;
    assert_int_equal(try_ask(world->replay, &rider->question, "*"), 0);
}

static bool has_arrived(struct rider *rider)
{
    return atomic_load_explicit(&rider->arrived, memory_order_acquire);
}

static void many_ride_over_a_stretch_and_it_is_read_once(void **state)
{
    enum { RIDERS = 500, EVENTS = 10000 };
    struct world *world = *state;
    static struct rider riders[RIDERS];

    publish(world, EVENTS, "text 'a'", "text '1'");
    start_with(world, world->pg.dsn, 2, 64 * MIB);
    hold(world); /* until all stand there */
    for (int i = 0; i < RIDERS; i++)
        begin_ride(world, &riders[i], (uint64_t)(i * 37 % EVENTS), NULL);
    release(world);
    for (int i = 0; i < RIDERS; i++) {
        WAIT_FOR(has_arrived(&riders[i]));
        assert_false(riders[i].wrong);
        assert_int_equal(riders[i].events, EVENTS - i * 37 % EVENTS);
    }
    /* 20 pages are all there is; each for itself would have needed some 5 000. */
    print_message("%d riders, %llu pages\n", RIDERS, (unsigned long long)pages(world));
    assert_in_range(pages(world), 20, 200);
}

static void who_waits_at_the_low_end_has_his_turn(void **state)
{
    enum { EVENTS = 5010 }; /* ten stops */
    struct world *world = *state;
    struct rider rider;
    struct waiter waiter = {.rider = &rider};

    publish(world, EVENTS, "text 'a'", "text '1'");
    start(world);
    begin_ride(world, &rider, 10, &waiter);
    WAIT_FOR(has_arrived(&rider));
    struct replay_page *page = wait_for(&waiter.question);
    assert_int_equal(page->after, 0);
    replay_page_free(page);
    assert_false(rider.wrong);
    assert_int_equal(rider.stops, 10);
    /* Not while the lift was on its way up; but not only when it was there. */
    assert_int_equal(waiter.stops, 5);
}

/* -- taking back -- */

static void a_question_can_be_taken_back_at_any_time(void **state)
{
    struct world *world = *state;
    struct question first, waiting, asked;

    publish(world, 10, "text 'a'", "text '1'");
    start(world);
    hold(world);
    ask(world, &first, 0, "x");
    wait_for_held(world, 1);
    ask(world, &waiting, 0, "a"); /* its query has not begun */
    ask(world, &asked, 5, "a");
    assert_true(replay_cancel(world->replay, &waiting.request));
    assert_true(replay_cancel(world->replay, &first.request)); /* is under way */
    release(world);
    struct replay_page *page = wait_for(&asked);
    assert_false(replay_cancel(world->replay, &asked.request)); /* has been answered */
    replay_page_free(page);
    /* Nobody stands there any more: their queues are gone, and are made anew. */
    replay_page_free(fetch(world, 0, "x"));
    replay_page_free(fetch(world, 0, "a"));
    assert_int_equal(answers(&first) + answers(&waiting), 0);

    hold(world);
    for (int i = 0; i < 50; i++) {
        ask(world, &waiting, (uint64_t)i, i % 2 == 0 ? "c" : "b");
        assert_true(replay_cancel(world->replay, &waiting.request));
    }
    release(world);
    replay_page_free(fetch(world, 3, "b"));
    assert_int_equal(answers(&waiting), 0);
}

/* Lets the page go as it comes: 2 answers mean that there was none. */
static void let_go(struct question *question)
{
    const unsigned count = question->request.page != NULL ? 1 : 2;

    replay_page_free(question->request.page);
    atomic_fetch_add_explicit(&question->answers, count, memory_order_release);
}

/* Threads that ask and take back, against two readers. */
struct changeable {
    pthread_t thread;
    struct world *world;
    unsigned seed, asked, cancelled;
    bool wrong;
};

static void *change_mind(void *argument)
{
    struct changeable *changeable = argument;
    struct replay *replay = changeable->world->replay;
    const uint64_t end = clock_usec() + USEC_PER_SEC;

    while (clock_usec() < end && !changeable->wrong) {
        static const char *const patterns[] = {"a", "*", "b", "a\nb"};
        struct question questions[4];
        bool accepted[4];

        for (int i = 0; i < 4; i++) {
            make(&questions[i], (uint64_t)rand_r(&changeable->seed) % 3000);
            questions[i].answered = let_go;
            accepted[i] = try_ask(replay, &questions[i],
                                  patterns[rand_r(&changeable->seed) % 4]) == 0;
            changeable->asked += accepted[i];
        }
        usleep((unsigned)rand_r(&changeable->seed) % 3000);
        for (int i = 0; i < 4; i++) {
            if (!accepted[i])
                continue;
            if (rand_r(&changeable->seed) % 2 == 0 &&
                replay_cancel(replay, &questions[i].request)) {
                changeable->cancelled++;
                continue;
            }
            const uint64_t give_up = clock_usec() + 20 * USEC_PER_SEC;
            while (answers(&questions[i]) == 0 && clock_usec() < give_up)
                usleep(100);
            if (answers(&questions[i]) != 1) {
                changeable->wrong = true;
                return NULL;
            }
        }
    }
    return NULL;
}

static void who_changes_his_mind_disturbs_nobody(void **state)
{
    enum { THREADS = 4 };
    struct world *world = *state;
    struct changeable changeables[THREADS];

    publish(world, 3000, "CASE WHEN i % 3 = 0 THEN 'a' ELSE 'b' END", "text '1'");
    start_with(world, world->pg.dsn, 2, 200000);
    for (unsigned i = 0; i < THREADS; i++) {
        changeables[i] = (struct changeable){.world = world, .seed = i + 1};
        assert_int_equal(
            pthread_create(&changeables[i].thread, NULL, change_mind, &changeables[i]),
            0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(changeables[i].thread, NULL);
        assert_false(changeables[i].wrong);
        assert_true(changeables[i].asked > 0);
    }
}

/* -- limits -- */

static void pages_that_nobody_lets_go_hold_up_the_next(void **state)
{
    struct world *world = *state;
    struct question question;

    publish(world, 40, "text 'a'", NOISE(640));
    start_with(world, world->pg.dsn, 2, 300000);
    struct replay_page *first = fetch(world, 0, "a");
    struct replay_page *second = fetch(world, 12, "a"); /* the last that goes over it */
    ask(world, &question, 0, "*");
    usleep(300000);
    assert_int_equal(answers(&question), 0);
    assert_int_equal(pages(world), 2);
    replay_page_free(first);
    replay_page_free(wait_for(&question));
    replay_page_free(second);
}

/* -- servers that know less -- */

/* It has seen an id of a later life than the server has: that cannot be the same database,
 * or is not it yet. */
static void an_answer_from_another_life_is_none(void **state)
{
    struct world *world = *state;
    struct question question, place_asked;

    publish(world, 10, "text 'a'", "text '1'");
    start(world);
    make(&question, 5);
    question.request.floor = LIFE + 3;
    assert_int_equal(try_ask(world->replay, &question, "a"), 0);
    make(&place_asked, 0);
    place_asked.request.question = REPLAY_EARLIEST;
    place_asked.request.floor = LIFE + 3;
    assert_int_equal(try_ask(world->replay, &place_asked, ""), 0);
    WAIT_FOR(pages(world) >= 6); /* looked for again and again */
    assert_int_equal(answers(&question) + answers(&place_asked), 0);
    pg_run(world->pg.conn, "UPDATE gateway.incarnations SET identity = 'elsewhere'");
    publish(world, 1, "text 'a'", "text '1'");
    struct replay_page *page = wait_for(&question);
    assert_int_equal(page->newest, LIFE + 1);
    assert_int_equal(page->count, 6);
    replay_page_free(page);
    replay_page_free(wait_for(&place_asked));
}

static void who_asked_in_vain_is_not_answered_at_once(void **state)
{
    struct world *world = *state;
    struct question question;

    publish(world, 10, "text 'a'", "text '1'");
    start(world);
    for (int i = 0; i < 3; i++) {
        const uint64_t begin = clock_usec();

        make(&question, 10);
        question.request.again = true;
        assert_int_equal(try_ask(world->replay, &question, "a"), 0);
        replay_page_free(wait_for(&question));
        assert_true(clock_usec() - begin >= 90000);
    }
}

/* -- what can go wrong -- */

static void a_channel_that_the_database_cannot_name_has_no_page(void **state)
{
    struct world *world = *state;
    char sql[300], dsn[1200];
    struct question question, other;

    (void)snprintf(sql, sizeof(sql),
                   "CREATE DATABASE %s_l TEMPLATE template0 ENCODING 'LATIN1' "
                   "LC_COLLATE 'C' LC_CTYPE 'C'",
                   world->pg.name);
    pg_run(world->pg.admin, sql);
    (void)snprintf(dsn, sizeof(dsn), "%shost='%s' port='%s' dbname='%s_l'",
                   world->pg.base, world->pg.host, world->pg.port, world->pg.name);
    struct pg latin = world->pg;
    (void)snprintf(latin.dsn, sizeof(latin.dsn), "%.1000s", dsn);
    pg_migrate(&latin);
    PGconn *conn = pg_connect(dsn);
    pg_run(conn, "SET client_encoding = UTF8");
    pg_run(conn, "SELECT gateway.publish_batch(ARRAY['\xc3\xa4'], ARRAY['message'], "
                 "ARRAY['\"\xc3\xb6\"'])");
    PQfinish(conn);

    start_with(world, dsn, 1, 64 * MIB);
    for (int i = 0; i < 3; i++) {
        ask(world, &question, 0, "\xc3\xa4\n\xe2\x82\xac"); /* one of both is not there */
        ask(world, &other, 0, "\xc3\xa4");
        WAIT_FOR(answers(&question) == 1);
        assert_null(question.request.page);
        struct replay_page *page = wait_for(&other);
        assert_int_equal(page->count, 1);
        assert_memory_equal(page->frames[0]->bytes + page->frames[0]->body_offset,
                            "id: 1\ndata: \"\xc3\xb6\"\n\n", page->frames[0]->body_len);
        replay_page_free(page);
    }
    readers_stop(world->readers);
    (void)snprintf(sql, sizeof(sql), "DROP DATABASE %s_l WITH (FORCE)", world->pg.name);
    pg_run(world->pg.admin, sql);
}

static void what_breaks_on_the_way_is_asked_again(void **state)
{
    struct world *world = *state;
    struct question question;

    publish(world, 3000, "text 'a'", NOISE(10));
    start_with(world, world->proxy.dsn, 1, 64 * MIB);
    replay_page_free(fetch(world, 0, "a"));
    for (int i = 0; i < 3; i++) {
        proxy_set(&world->proxy, PROXY_TRICKLE);
        ask(world, &question, 600 + 600 * (uint64_t)i, "a"); /* none that is kept */
        usleep(100000); /* a part of the answer is there */
        pg_kill(&world->pg, "reader");
        proxy_set(&world->proxy, PROXY_PASS);
        struct replay_page *page = wait_for(&question);
        assert_int_equal(page->count, 500);
        assert_int_equal(page->frames[0]->seq, 601 + 600 * i);
        replay_page_free(page);
    }
    pg_run(world->pg.conn, "ALTER FUNCTION gateway.horizon RENAME TO elsewhere");
    ask(world, &question, 2400, "a");
    usleep(200000);
    assert_int_equal(answers(&question), 0);
    pg_run(world->pg.conn, "ALTER FUNCTION gateway.elsewhere RENAME TO horizon");
    replay_page_free(wait_for(&question));
}

static void stopping_answers_everybody_without_a_page(void **state)
{
    enum { ASKERS = 60 };
    struct world *world = *state;
    struct question questions[ASKERS], late;
    unsigned without = 0;

    start(world);
    hold(world);
    for (int i = 0; i < ASKERS; i++)
        ask(world, &questions[i], (uint64_t)i, i % 3 == 0 ? "a" : i % 3 == 1 ? "b" : "c");
    wait_for_held(world, 1);
    readers_stop(world->readers);
    for (int i = 0; i < ASKERS; i++) {
        assert_int_equal(answers(&questions[i]), 1);
        without += questions[i].request.page == NULL;
        replay_page_free(questions[i].request.page);
    }
    assert_int_equal(without, ASKERS);
    ask(world, &late, 0, "a");
    assert_int_equal(answers(&late), 1);
    assert_null(late.request.page);
    assert_false(replay_cancel(world->replay, &late.request));
}

static void without_memory_nothing_is_asked(void **state)
{
    struct world *world = *state;
    struct question question;
    struct replay *replay;
    bool failed = true;

    for (unsigned n = 1; failed; n++) {
        failing_malloc_begin(n);
        replay = replay_new(&(struct replay_settings){.stats = world->stats});
        failed = failing_malloc_end();
        assert_int_equal(replay == NULL, failed);
        replay_free(replay);
    }
    replay_free(NULL);

    publish(world, 10, "text 'a'", "text '1'");
    start(world);
    failed = true;
    for (unsigned n = 1; failed; n++) {
        make(&question, 0);
        failing_malloc_begin(n);
        const int code = try_ask(world->replay, &question, "a");
        failed = failing_malloc_end();
        assert_int_equal(code, failed ? -ENOMEM : 0);
        if (!failed)
            replay_page_free(wait_for(&question));
    }
    assert_int_equal(pages(world), 1);
}

/* The n-th allocation of the reader's thread fails from here on. */
struct shortage {
    struct reader_job job;
    unsigned nth; /* 0: ends it */
    bool failed;
    _Atomic bool over;
};

static int run_shortage(struct reader_job *job, struct database *database,
                        struct err *err)
{
    struct shortage *shortage = CONTAINER_OF(job, struct shortage, job);

    (void)database;
    (void)err;
    if (shortage->nth > 0)
        failing_malloc_begin(shortage->nth);
    else
        shortage->failed = failing_malloc_end();
    atomic_store_explicit(&shortage->over, true, memory_order_release);
    return 0;
}

static void fail_shortage(struct reader_job *job, const struct err *err)
{
    (void)job;
    (void)err;
}

static bool have_shortage(struct world *world, unsigned nth)
{
    struct shortage shortage = {
        .job = {.run = run_shortage, .fail = fail_shortage, .deadline_usec = CLOCK_NEVER},
        .nth = nth};

    assert_int_equal(readers_ask(world->readers, &shortage.job), 0);
    WAIT_FOR(atomic_load_explicit(&shortage.over, memory_order_acquire));
    return shortage.failed;
}

static void without_memory_a_page_comes_later(void **state)
{
    struct world *world = *state;
    unsigned shortages = 0;

    publish(world, 5, "text 'a'", "text '1'");
    pg_run(world->pg.conn, "UPDATE gateway.incarnations SET identity = 'elsewhere'");
    publish(world, 1, "text 'a'", "text '1'");
    start(world);
    for (unsigned n = 1;; n++) {
        (void)have_shortage(world, n);
        struct replay_page *page = fetch(world, 0, "a");
        assert_int_equal(page->count, 6);
        assert_int_equal(page->lost_count, 2);
        replay_page_free(page);
        if (!have_shortage(world, 0))
            break;
        shortages++;
    }
    assert_true(shortages >= 9); /* a page, its list, what is lost, six frames */
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(a_page_has_so_many_events_at_the_most),
        WITH_PG(a_page_has_so_many_bytes_at_the_most),
        WITH_PG(a_page_for_prefixes_goes_a_stretch_at_a_time),
        WITH_PG(a_page_knows_what_is_not_there_any_more),
        WITH_PG(places_are_told_without_events),
        WITH_PG(a_page_tells_of_each_event_whose_it_is),
        WITH_PG(the_newest_without_ones_own_begin_elsewhere),
        cmocka_unit_test(an_id_is_judged_by_one_rule),
        WITH_PG(lives_are_read_from_the_table),
        WITH_PG(who_asks_for_the_same_shares_the_query),
        WITH_PG(many_ride_over_a_stretch_and_it_is_read_once),
        WITH_PG(who_waits_at_the_low_end_has_his_turn),
        WITH_PG(a_question_can_be_taken_back_at_any_time),
        WITH_PG(who_changes_his_mind_disturbs_nobody),
        WITH_PG(pages_that_nobody_lets_go_hold_up_the_next),
        WITH_PG(an_answer_from_another_life_is_none),
        WITH_PG(who_asked_in_vain_is_not_answered_at_once),
        WITH_PG(a_channel_that_the_database_cannot_name_has_no_page),
        WITH_PG(what_breaks_on_the_way_is_asked_again),
        WITH_PG(stopping_answers_everybody_without_a_page),
        WITH_PG(without_memory_nothing_is_asked),
        WITH_PG(without_memory_a_page_comes_later),
    };
    return cmocka_run_group_tests_name("replay", tests, NULL, NULL);
}
