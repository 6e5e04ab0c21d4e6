/* test_intake.c - events of a real table and notifications between them, into a real ring, in
 * order. */
#include "intake.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "failing_malloc.h"
#include "pg.h"

struct world {
    struct pg pg;
    struct stats *stats;
    struct ring *ring;
    struct relay *relay;
    struct database *database;
    struct intake *intake;
    struct relay_channel *channel;
    uint64_t position;
    int alive;
};

static struct world world;

static void on_alive(void *argument)
{
    (void)argument;
    world.alive++;
}

static int set_up(void **state)
{
    struct err err = {0};

    (void)state;
    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    world.stats = stats_new();
    world.ring = ring_new(64 * MIB, 1);
    world.position = 1;
    world.relay = relay_new(&(struct relay_settings){
        .patterns = "chat", .channels_max = 10, .stats = world.stats});
    world.database = database_new(
        &(struct database_settings){.dsn = world.pg.dsn, .door = "test", .stop_fd = -1});
    world.intake = intake_new(&(struct intake_settings){.ring = world.ring,
                                                        .relay = world.relay,
                                                        .exact = true,
                                                        .stats = world.stats,
                                                        .alive = on_alive});
    assert_int_equal(
        database_connect(world.database, clock_usec() + 5 * USEC_PER_SEC, &err), 0);
    assert_int_equal(relay_join(world.relay, "chat", 4, &world.channel), 0);
    assert_int_equal(relay_restore(world.relay, world.database, false, &err), 0);
    intake_begin(world.intake, 0, 0);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    intake_free(world.intake);
    database_free(world.database);
    relay_free(world.relay);
    ring_free(world.ring);
    stats_free(world.stats);
    pg_close(&world.pg);
    return 0;
}

/* Committed to the table, as a POST does it. */
static uint64_t post(const char *data)
{
    char sql[200];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT (gateway.publish_batch(ARRAY['chat'], ARRAY['t'], "
                   "ARRAY['%s'])).last_seq",
                   data);
    return (uint64_t)pg_number(world.pg.conn, sql);
}

/* Nobody is rung for it. */
static void insert(const char *data)
{
    char sql[200];

    (void)snprintf(sql, sizeof(sql), "SELECT gateway.publish('chat', '%s')", data);
    pg_run(world.pg.conn, sql);
}

/* As an application does it, and as it is heard at its commit. */
static void insert_and_ring(const char *data)
{
    insert(data);
    intake_rung_for_rows(
        world.intake,
        (uint64_t)pg_number(world.pg.conn, "SELECT max(id) FROM gateway.events"));
}

static void note(const char *payload)
{
    char channel[] = "chat", text[64];

    (void)snprintf(text, sizeof(text), "%s", payload);
    intake_note(world.intake, &(PGnotify){.relname = channel, .extra = text});
}

/* Its doorbell has been heard when it is done. */
static void sweep(void)
{
    intake_sweeping(world.intake);
    pg_run(world.pg.conn, "SELECT gateway.sweep()");
    intake_swept(world.intake, true);
}

static void hear_all(void)
{
    intake_rung(world.intake,
                (uint64_t)pg_number(world.pg.conn, "SELECT gateway.newest_seq()"));
}

static int fetch(void)
{
    struct err err = {0};
    const int result = intake_fetch(world.intake, world.database, &err);

    if (result < 0)
        fail_msg("%s", err.text);
    return result;
}

/* "7:data" of what has come into the ring since the last look, separated by blanks. */
static void expect(const char *expected)
{
    struct ring_reader *reader = ring_reader(world.ring, 0);
    const struct sse_frame *frame;
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    (void)buf_add_text(&text, "");
    ring_enter(reader);
    while (ring_read(reader, &world.position, &frame) == RING_FRAME) {
        const char *data = strstr(frame->bytes + frame->body_offset, "data: ") + 6;

        (void)buf_add_format(&text, "%s%llu:", text.len > 0 ? " " : "",
                             (unsigned long long)(frame->seq & 0xffffffffff));
        if (frame->kind == SSE_MISSED)
            (void)buf_add_text(&text, "gap");
        else
            (void)buf_add(&text, data, strcspn(data, "\n"));
    }
    ring_leave(reader);
    assert_string_equal(text.data, expected);
}

static void nothing_is_taken_before_its_number_is_rung_for(void **state)
{
    (void)state;
    intake_rung(world.intake, post("1"));
    const uint64_t second = post("2");
    assert_int_equal(fetch(), 0);
    expect("1:1");
    insert("3");
    sweep();
    assert_int_equal(fetch(), 0);
    expect("");
    intake_rung(world.intake, second);
    assert_int_equal(fetch(), 0);
    expect("2:2");
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("3:3");
}

static void a_lost_doorbell_is_made_up_for_by_the_second_look(void **state)
{
    (void)state;
    const uint64_t seq = post("1");
    intake_looked(world.intake, seq);
    assert_int_equal(fetch(), 0);
    expect("");
    intake_looked(world.intake, post("2"));
    assert_int_equal(fetch(), 0);
    expect("1:1");
}

static void where_nothing_is_listened_to_nothing_waits(void **state)
{
    (void)state;
    relay_lost(world.relay);
    (void)post("1");
    assert_int_equal(fetch(), 0);
    expect("1:1");
}

static void a_notification_stands_where_it_was_heard(void **state)
{
    (void)state;
    intake_rung(world.intake, post("1"));
    note("a");
    intake_rung(world.intake, post("2"));
    note("b");
    note("c");
    intake_rung(world.intake, post("3"));
    assert_true(intake_waits(world.intake));
    sweep();
    assert_false(intake_waits(world.intake));
    note("d"); /* after that sweep: it waits for the next */
    assert_true(intake_waits(world.intake));
    assert_int_equal(fetch(), 0);
    expect("1:1 1:a 2:2 2:b 2:c 3:3");
    sweep();
    assert_int_equal(fetch(), 0);
    expect("3:d");
    assert_int_equal(stats_counter_value(world.stats, STATS_RELAY_NOTIFICATIONS), 4);
}

static void rows_are_before_or_behind_a_notification_as_they_were_rung_for(void **state)
{
    (void)state;
    insert_and_ring("1");
    note("a");
    insert_and_ring("2");
    note("b");
    note("c");
    insert_and_ring("3");
    sweep();
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("1:1 1:a 2:2 2:b 2:c 3:3");
}

static void a_notification_waits_for_all_rows_it_was_rung_for_before(void **state)
{
    PGconn *open = pg_connect(world.pg.dsn);

    (void)state;
    /* 2 and 3 overlap: 3 is committed first, and gets its number first. */
    insert_and_ring("1");
    pg_run(open, "BEGIN; SELECT gateway.publish('chat', '2')");
    insert_and_ring("3");
    sweep();
    pg_run(open, "COMMIT");
    PQfinish(open);
    intake_rung_for_rows(world.intake, 2);
    note("a"); /* behind 2 */
    const uint64_t seq = post("4");
    intake_rung(world.intake, seq);
    assert_int_equal(fetch(), 0);
    expect("1:1 2:3 3:2 3:a 4:4");
}

static void a_row_with_a_lower_id_that_was_rung_for_later_may_come_first(void **state)
{
    PGconn *open = pg_connect(world.pg.dsn);

    (void)state;
    pg_run(open, "BEGIN; SELECT gateway.publish('chat', '1')");
    insert_and_ring("2");
    note("a");
    pg_run(open, "COMMIT");
    PQfinish(open);
    intake_rung_for_rows(world.intake, 1);
    insert_and_ring("3");
    sweep();
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("1:1 2:2 2:a 3:3");
}

static void the_last_row_of_a_transaction_stands_for_all_of_it(void **state)
{
    (void)state;
    pg_run(world.pg.conn, "INSERT INTO gateway.events (channel, data) "
                          "SELECT 'chat', to_json(n) FROM generate_series(1, 3) n");
    intake_rung_for_rows(world.intake, 3);
    note("a");
    insert_and_ring("4");
    sweep();
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("1:1 2:2 3:3 3:a 4:4");
}

static void rows_that_do_not_come_are_waited_for_until_a_sweep_has_left_nothing(
    void **state)
{
    (void)state;
    insert_and_ring("1");
    pg_run(world.pg.conn, "DELETE FROM gateway.events");
    note("a");
    intake_sweeping(world.intake);
    intake_swept(world.intake, false); /* its batch was full */
    assert_true(intake_waits(world.intake));
    insert_and_ring("2");
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("");
    sweep();
    assert_false(intake_waits(world.intake));
    assert_int_equal(fetch(), 0);
    expect(""); /* what the sweep has numbered is not heard of yet */
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("1:2 1:a");
}

static void what_nobody_rings_for_comes_before_what_waits_for_a_sweep(void **state)
{
    (void)state;
    insert("1");
    note("a");
    sweep();
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("1:1 1:a");
    /* A POST numbers it first; but nobody has heard of that POST yet. */
    insert("2");
    note("b");
    const uint64_t seq = post("3");
    sweep();
    assert_int_equal(fetch(), 0);
    expect("");
    intake_rung(world.intake, seq);
    assert_int_equal(fetch(), 0);
    expect("2:2 2:b 3:3");
}

static void unless_it_is_to_be_exact_rows_come_first(void **state)
{
    struct intake *near = intake_new(&(struct intake_settings){.ring = world.ring,
                                                               .relay = world.relay,
                                                               .stats = world.stats,
                                                               .alive = on_alive});

    (void)state;
    intake_free(world.intake);
    world.intake = near;
    insert_and_ring("1");
    note("a");
    insert_and_ring("2");
    sweep();
    hear_all();
    assert_int_equal(fetch(), 0);
    expect("1:1 2:2 2:a");
}

static void nobody_wants_it_or_it_is_another_channels(void **state)
{
    char other[] = "other", empty[] = "";

    (void)state;
    intake_note(world.intake, &(PGnotify){.relname = other, .extra = empty});
    relay_leave(world.relay, world.channel);
    note("a");
    assert_false(intake_waits(world.intake));
}

static void bytes_that_are_not_utf8_are_replaced(void **state)
{
    (void)state;
    note("\xc3\xbc\xff\xe2\x98");
    note("");
    sweep();
    assert_int_equal(fetch(), 0);
    expect("0:\xc3\xbc\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd 0:");
}

static void many_pages_and_what_stands_between_them(void **state)
{
    (void)state;
    const uint64_t last = (uint64_t)pg_number(
        world.pg.conn,
        "SELECT (gateway.publish_batch(array_agg(text 'chat'), array_agg(text 't'), "
        "array_agg('\"' || repeat('x', 1000) || '\"'))).last_seq "
        "FROM generate_series(1, 1200)");
    intake_rung(world.intake, last);
    note("a");
    sweep();
    int pages = 1;
    while (fetch() == 1)
        pages++;
    assert_int_equal(pages, 3);
    assert_true(world.alive > 1);
    assert_int_equal(intake_seq(world.intake), last);
    world.position = 1201;
    expect("1200:a");
}

static void what_is_lost_is_told_and_what_waited_is_forgotten(void **state)
{
    (void)state;
    intake_rung(world.intake, post("1"));
    note("a");
    intake_forget(world.intake);
    relay_missed(world.relay);
    note("b");
    sweep();
    assert_int_equal(fetch(), 0);
    expect("1:1 1:gap 1:b");
}

static void without_memory_it_is_told(void **state)
{
    struct err err = {0};
    bool failed = true;

    (void)state;
    for (unsigned n = 1; failed; n++) {
        failing_malloc_begin(n);
        struct intake *intake = intake_new(&(struct intake_settings){.ring = world.ring});
        failed = failing_malloc_end();
        assert_int_equal(intake == NULL, failed);
        intake_free(intake);
    }
    failing_malloc_begin(1);
    note("a");
    assert_true(failing_malloc_end());
    assert_int_equal(fetch(), 0);
    expect("0:gap");

    intake_rung(world.intake, post("1"));
    note("b");
    sweep();
    int result = -ENOMEM;
    for (unsigned n = 1; result < 0 || failed; n++) {
        failing_malloc_begin(n);
        result = intake_fetch(world.intake, world.database, &err);
        failed = failing_malloc_end();
        if (!database_connected(world.database))
            assert_int_equal(
                database_connect(world.database, clock_usec() + 5 * USEC_PER_SEC, &err),
                0);
        if (n > 50)
            fail_msg("it never succeeds");
    }
    const struct sse_frame *frame;
    unsigned seen = 0;
    ring_enter(ring_reader(world.ring, 0));
    while (ring_read(ring_reader(world.ring, 0), &world.position, &frame) == RING_FRAME)
        seen |= 1U << frame->kind;
    ring_leave(ring_reader(world.ring, 0));
    /* The event, and the notification or that it is missing. */
    assert_true(seen & 1U << SSE_STORED);
    assert_true(seen & (1U << SSE_RELAYED | 1U << SSE_MISSED));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_is_taken_before_its_number_is_rung_for),
        TEST(a_lost_doorbell_is_made_up_for_by_the_second_look),
        TEST(where_nothing_is_listened_to_nothing_waits),
        TEST(a_notification_stands_where_it_was_heard),
        TEST(rows_are_before_or_behind_a_notification_as_they_were_rung_for),
        TEST(a_notification_waits_for_all_rows_it_was_rung_for_before),
        TEST(a_row_with_a_lower_id_that_was_rung_for_later_may_come_first),
        TEST(the_last_row_of_a_transaction_stands_for_all_of_it),
        TEST(rows_that_do_not_come_are_waited_for_until_a_sweep_has_left_nothing),
        TEST(what_nobody_rings_for_comes_before_what_waits_for_a_sweep),
        TEST(unless_it_is_to_be_exact_rows_come_first),
        TEST(nobody_wants_it_or_it_is_another_channels),
        TEST(bytes_that_are_not_utf8_are_replaced),
        TEST(many_pages_and_what_stands_between_them),
        TEST(what_is_lost_is_told_and_what_waited_is_forgotten),
        TEST(without_memory_it_is_told),
    };
    return cmocka_run_group_tests_name("intake", tests, NULL, NULL);
}
