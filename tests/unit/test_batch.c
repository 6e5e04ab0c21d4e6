/* test_batch.c - many events in one transaction, keyed and not, and what they are told. */
#include "batch.h"

#include "failing_malloc.h"
#include "pg.h"

#define EVENTS_MAX 16

/* A request: "a1 b2 b3" is three events with these data, the last two in a unit of key b;
 * '-' stands for no key. */
struct request {
    struct event events[EVENTS_MAX];
    size_t count;
    struct event_unit units[EVENTS_MAX];
    size_t unit_count;
    char text[80];
};

static struct request make(const char *text)
{
    struct request request = {.count = 0};

    (void)snprintf(request.text, sizeof(request.text), "%s", text);
    return request;
}

static void parse(struct request *request)
{
    for (const char *at = request->text; *at != '\0'; at += at[2] != '\0' ? 3 : 2) {
        struct event_unit *last =
            request->unit_count > 0 ? &request->units[request->unit_count - 1] : NULL;

        request->events[request->count] = (struct event){.channel = "c",
                                                         .channel_len = 1,
                                                         .type = "t",
                                                         .type_len = 1,
                                                         .data = at + 1,
                                                         .data_len = 1};
        if (*at != '-' && last != NULL && *last->key == *at)
            last->count++;
        else if (*at != '-')
            request->units[request->unit_count++] = (struct event_unit){
                .key = at, .key_len = 1, .first = request->count, .count = 1};
        request->count++;
    }
}

struct world {
    struct pg pg;
    struct database *database;
    struct batch batch;
};

static int set_up(void **state)
{
    static struct world world;

    pg_open(&world.pg, true);
    world.database = pg_database(&world.pg);
    *state = &world;
    return 0;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    database_free(world->database);
    pg_close(&world->pg);
    return 0;
}

static enum batch_result commit(struct world *world, struct request *requests,
                                size_t count)
{
    struct err err = {0};

    batch_init(&world->batch);
    for (size_t i = 0; i < count; i++) {
        parse(&requests[i]);
        batch_add(&world->batch, requests[i].events, requests[i].count, requests[i].units,
                  requests[i].unit_count);
    }
    assert_int_equal(batch_ok(&world->batch), 0);
    const enum batch_result result = batch_commit(&world->batch, world->database,
                                                  clock_usec() + 8 * USEC_PER_SEC, &err);
    if (result == BATCH_COMMITTED)
        for (size_t i = 0; i < count; i++)
            batch_tell(&world->batch, requests[i].events, requests[i].count,
                       requests[i].units, requests[i].unit_count);
    return result;
}

/* One request alone: its numbers and which units were known, as text. */
static const char *publish(struct world *world, const char *text)
{
    static char told[200];
    struct request request = make(text);
    int len = 0;

    assert_int_equal(commit(world, &request, 1), BATCH_COMMITTED);
    for (size_t i = 0; i < request.count; i++)
        len += snprintf(told + len, sizeof(told) - (size_t)len, "%llu ",
                        (unsigned long long)request.events[i].seq);
    for (size_t i = 0; i < request.unit_count; i++)
        len += snprintf(told + len, sizeof(told) - (size_t)len, "%c",
                        request.units[i].known ? 'k' : 'n');
    batch_done(&world->batch);
    return told;
}

static long long rows(struct world *world)
{
    return pg_number(world->pg.conn, "SELECT count(*) FROM gateway.events");
}

static void each_event_gets_its_number_whatever_is_known(void **state)
{
    struct world *world = *state;

    assert_string_equal(publish(world, "-1 -2"), "1 2 ");
    assert_string_equal(publish(world, "-3 a4 a5 b6 -7"), "3 4 5 6 7 nn");
    assert_string_equal(publish(world, "-3 a4 a5 b6 -7"), "8 4 5 6 9 kk");
    assert_string_equal(publish(world, "c1 a4 a5 d2 b6 e3"), "10 4 5 11 6 12 nknkn");
    assert_string_equal(publish(world, "e3 d2 c1"), "12 11 10 kkk");
    assert_string_equal(publish(world, "-1"), "13 ");
    assert_int_equal(rows(world), 13);
    assert_int_equal(
        pg_number(world->pg.conn, "SELECT count(*) FROM gateway.idempotency_keys"), 5);
}

static void several_requests_are_told_in_their_order(void **state)
{
    struct world *world = *state;
    struct request requests[] = {make("a1 a2"), make("-3"), make("b4"), make("c5 -6")};

    assert_string_equal(publish(world, "b4"), "1 n");
    assert_int_equal(commit(world, requests, ARRAY_SIZE(requests)), BATCH_COMMITTED);
    assert_int_equal(requests[0].events[0].seq, 2);
    assert_int_equal(requests[0].events[1].seq, 3);
    assert_int_equal(requests[1].events[0].seq, 4);
    assert_int_equal(requests[2].events[0].seq, 1);
    assert_true(requests[2].units[0].known);
    assert_false(requests[3].units[0].known);
    assert_int_equal(requests[3].events[0].seq, 5);
    assert_int_equal(requests[3].events[1].seq, 6);
    assert_int_equal(world->batch.inserted, 5);
    batch_done(&world->batch);
    assert_int_equal(rows(world), 6);
}

static void a_batch_of_nothing_new_inserts_nothing(void **state)
{
    struct world *world = *state;
    struct request request = make("a1 b2");

    assert_string_equal(publish(world, "a1 b2"), "1 2 nn");
    assert_int_equal(commit(world, &request, 1), BATCH_COMMITTED);
    assert_int_equal(world->batch.inserted, 0);
    assert_int_equal(world->batch.first_seq, 0);
    batch_done(&world->batch);
    assert_int_equal(rows(world), 2);
}

static void a_key_for_other_events_fails_and_says_which(void **state)
{
    static const char *const others[] = {"-9 x1 b3", "y1 y2 b2 b2", "-9 z1 b2 a9"};
    static const size_t conflicts[] = {1, 1, 2};
    struct world *world = *state;

    assert_string_equal(publish(world, "a1 b2"), "1 2 nn");
    for (size_t i = 0; i < ARRAY_SIZE(others); i++) {
        struct request request = make(others[i]);

        assert_int_equal(commit(world, &request, 1), BATCH_FAILED);
        assert_string_equal(world->batch.sqlstate, BATCH_CONFLICT);
        assert_int_equal(world->batch.conflict_key, conflicts[i]);
        batch_done(&world->batch);
    }
    assert_int_equal(rows(world), 2);
    assert_string_equal(publish(world, "b2"), "2 k");
}

/* "ab" and "c" are not "a" and "bc". */
static void no_two_events_look_alike(void **state)
{
    struct world *world = *state;
    struct event event = {.channel = "ab",
                          .channel_len = 2,
                          .type = "c",
                          .type_len = 1,
                          .data = "1",
                          .data_len = 1};
    struct event_unit unit = {.key = "k", .key_len = 1, .count = 1};
    struct err err;

    for (int i = 0; i < 2; i++) {
        batch_init(&world->batch);
        batch_add(&world->batch, &event, 1, &unit, 1);
        assert_int_equal(batch_commit(&world->batch, world->database,
                                      clock_usec() + 8 * USEC_PER_SEC, &err),
                         i == 0 ? BATCH_COMMITTED : BATCH_FAILED);
        batch_done(&world->batch);
        event.channel_len = 1;
        event.type = "bc";
        event.type_len = 2;
    }
}

static void attributes_and_clients_are_stored_for_those_that_have_them(void **state)
{
    struct world *world = *state;
    struct event events[3];
    struct err err;

    for (size_t i = 0; i < ARRAY_SIZE(events); i++)
        events[i] = (struct event){.channel = "c",
                                   .channel_len = 1,
                                   .type = "t",
                                   .type_len = 1,
                                   .data = "1",
                                   .data_len = 1};
    events[1].attributes = "{\"a\": \"\\u00fc\"}";
    events[1].attributes_len = strlen(events[1].attributes);
    events[2].client = "\xc3\xbc{,\"} x";
    events[2].client_len = 6;
    batch_init(&world->batch);
    batch_add(&world->batch, events, ARRAY_SIZE(events), NULL, 0);
    assert_int_equal(batch_commit(&world->batch, world->database,
                                  clock_usec() + 8 * USEC_PER_SEC, &err),
                     BATCH_COMMITTED);
    batch_done(&world->batch);
    assert_int_equal(pg_number(world->pg.conn,
                               "SELECT seq FROM gateway.events WHERE attributes::text = "
                               "'{\"a\": \"\\u00fc\"}'"),
                     2);
    assert_int_equal(pg_number(world->pg.conn, "SELECT count(*) FROM gateway.events "
                                               "WHERE attributes IS NULL"),
                     2);
    assert_int_equal(
        pg_number(world->pg.conn,
                  "SELECT seq FROM gateway.events WHERE client = '\xc3\xbc{,\"}'"),
        3);
    assert_int_equal(
        pg_number(world->pg.conn,
                  "SELECT count(*) FROM gateway.events WHERE client IS NULL"),
        2);
}

/* Who it was is not of the events: the same from another client is the same. */
static void a_key_is_the_same_from_any_client(void **state)
{
    static const char *const clients[] = {"shop", "till", NULL};
    struct world *world = *state;

    for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
        struct request request = make("a1 a2");
        struct err err;

        parse(&request);
        request.events[1].client = clients[i];
        request.events[1].client_len = clients[i] != NULL ? 4 : 0;
        batch_init(&world->batch);
        batch_add(&world->batch, request.events, request.count, request.units,
                  request.unit_count);
        assert_int_equal(batch_commit(&world->batch, world->database,
                                      clock_usec() + 8 * USEC_PER_SEC, &err),
                         BATCH_COMMITTED);
        batch_tell(&world->batch, request.events, request.count, request.units,
                   request.unit_count);
        batch_done(&world->batch);
        assert_int_equal(request.events[0].seq, 1);
        assert_int_equal(request.units[0].known, i > 0);
    }
    assert_int_equal(rows(world), 2);
    assert_int_equal(
        pg_number(
            world->pg.conn,
            "SELECT count(*) FROM gateway.events WHERE client = 'shop' AND seq = 2"),
        1);
}

static void keys_are_forgotten_by_age_in_batches(void **state)
{
    struct world *world = *state;

    (void)publish(world, "a1 b2 c3 d4");
    pg_run(world->pg.conn,
           "UPDATE gateway.idempotency_keys SET created_at = created_at - "
           "interval '1 day' WHERE key IN ('a', 'b', 'c')");
    assert_int_equal(pg_number(world->pg.conn, "SELECT gateway.purge_keys('25 hours')"),
                     0);
    assert_int_equal(
        pg_number(world->pg.conn, "SELECT gateway.purge_keys('23 hours', 2)"), 2);

    /* What somebody else has locked is passed over. */
    PGconn *other = pg_connect(world->pg.dsn);
    pg_run(other, "BEGIN; SELECT FROM gateway.idempotency_keys FOR UPDATE");
    assert_int_equal(
        pg_number(world->pg.conn, "SELECT gateway.purge_keys('23 hours', 2)"), 0);
    pg_run(other, "COMMIT");
    PQfinish(other);
    assert_int_equal(
        pg_number(world->pg.conn, "SELECT gateway.purge_keys('23 hours', 2)"), 1);
    assert_string_equal(publish(world, "a1 b2 c3 d4"), "5 6 7 4 nnnk");
}

static enum batch_result ask(struct world *world, struct batch *batch)
{
    struct err err = {0};

    return batch_ask(batch, world->database, clock_usec() + 5 * USEC_PER_SEC, &err);
}

/* What became of a batch, asked without having sent one. */
static enum batch_result fate(struct world *world, const char *xid, int times)
{
    struct batch batch = {.first_seq = 77, .written = "1"};
    enum batch_result result = BATCH_LOST;

    snprintf(batch.xid, sizeof(batch.xid), "%s", xid);
    for (int i = 0; i < times; i++)
        result = ask(world, &batch);
    return result;
}

static void a_number_given_to_a_stranger_proves_nothing(void **state)
{
    struct world *world = *state;
    char xid[24];

    long long known = pg_number(world->pg.conn, "SELECT pg_current_xact_id()::text");
    snprintf(xid, sizeof(xid), "%lld", known);
    assert_int_equal(fate(world, xid, 1), BATCH_RUNNING);
    assert_int_equal(fate(world, xid, 2), BATCH_UNKNOWN);
    assert_int_equal(fate(world, "999999999", 1), BATCH_UNKNOWN); /* the future */

    pg_run(world->pg.conn, "BEGIN");
    snprintf(xid, sizeof(xid), "%lld",
             pg_number(world->pg.conn, "SELECT pg_current_xact_id()::text"));
    assert_int_equal(fate(world, xid, 3), BATCH_RUNNING);
    pg_run(world->pg.conn, "ROLLBACK"); /* a stranger's session was left alone */
    assert_int_equal(fate(world, xid, 1), BATCH_FAILED);
}

/* As after a crash that has taken the batch with it. */
static void nor_does_a_number_with_its_event_that_was_written_later(void **state)
{
    struct world *world = *state;
    struct batch batch = {.asked_in_vain = 0};

    PGresult *result =
        PQexec(world->pg.conn,
               "SELECT first_seq, xid, CAST(extract(epoch FROM clock_timestamp()) * "
               "1000000 AS int8) FROM "
               "gateway.publish_batch(ARRAY['a'], ARRAY['message'], ARRAY['1'])");
    assert_int_equal(PQntuples(result), 1);
    batch.first_seq = strtoull(PQgetvalue(result, 0, 0), NULL, 10);
    snprintf(batch.xid, sizeof(batch.xid), "%s", PQgetvalue(result, 0, 1));
    snprintf(batch.written, sizeof(batch.written), "%s", PQgetvalue(result, 0, 2));
    PQclear(result);
    assert_int_equal(ask(world, &batch), BATCH_COMMITTED);
    snprintf(batch.written, sizeof(batch.written), "1");
    assert_int_equal(ask(world, &batch), BATCH_RUNNING);
    assert_int_equal(ask(world, &batch), BATCH_UNKNOWN);
}

static void without_memory_nothing_is_lost(void **state)
{
    struct world *world = *state;
    static const struct event event = {.channel = "c",
                                       .channel_len = 1,
                                       .type = "t",
                                       .type_len = 1,
                                       .data = "1",
                                       .data_len = 1,
                                       .attributes = "{}",
                                       .attributes_len = 2};
    static const struct event_unit unit = {.key = "i:k", .key_len = 3, .count = 1};
    bool failed = true;

    for (unsigned n = 1; failed; n++) {
        struct err err = {0};
        struct batch batch;
        int r = -ENOMEM;
        failing_malloc_begin(n);
        struct database *database =
            database_new(&(struct database_settings){.dsn = world->pg.dsn,
                                                     .password = "p",
                                                     .door = "test",
                                                     .target = "any",
                                                     .stop_fd = -1});
        batch_init(&batch);
        batch_add(&batch, &event, 1, &unit, 1);
        if (database != NULL)
            r = database_connect(database, clock_usec() + 3 * USEC_PER_SEC, &err);
        if (r == 0)
            r = batch_ok(&batch);
        if (r == 0)
            assert_int_equal(
                batch_commit(&batch, database, clock_usec() + 3 * USEC_PER_SEC, &err),
                BATCH_COMMITTED);
        failed = failing_malloc_end();
        assert_int_equal(r, failed ? -ENOMEM : 0);
        batch_done(&batch);
        database_free(database);
    }
    assert_int_equal(rows(world), 1);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(each_event_gets_its_number_whatever_is_known),
        WITH_PG(several_requests_are_told_in_their_order),
        WITH_PG(a_batch_of_nothing_new_inserts_nothing),
        WITH_PG(a_key_for_other_events_fails_and_says_which),
        WITH_PG(no_two_events_look_alike),
        WITH_PG(attributes_and_clients_are_stored_for_those_that_have_them),
        WITH_PG(a_key_is_the_same_from_any_client),
        WITH_PG(keys_are_forgotten_by_age_in_batches),
        WITH_PG(a_number_given_to_a_stranger_proves_nothing),
        WITH_PG(nor_does_a_number_with_its_event_that_was_written_later),
        WITH_PG(without_memory_nothing_is_lost),
    };

    return cmocka_run_group_tests_name("batch", tests, NULL, NULL);
}
