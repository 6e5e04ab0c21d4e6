/* test_replay.c - events after an id, page by page; and whether that id can be gone on from. */
#include "replay_world.h"

#include <string.h>

#include "failing_malloc.h"

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
