/*
 * test_listener.c - every new event of the database, once, in order, into the ring.
 */
#include "pg.h"

#include "failing_malloc.h"
#include "listener.h"
#include "log.h"
#include "thread.h"

struct world {
    struct pg pg;
    struct proxy proxy;
    struct ring *ring;
    struct ring_reader *reader;
    struct stats *stats;
    struct listener *listener;
    uint64_t position;
    uint64_t last_seq;
    int restarts, restarts_wanted; /* of the ring, as seen by its reader */
    size_t recent_bytes;
    int prepare_failures;
    _Atomic int changes;
};

static int on_prepare(void *argument, struct err *err)
{
    struct world *world = argument;

    if (world->prepare_failures > 0) {
        world->prepare_failures--;
        return err_set(err, -EIO, "not prepared");
    }
    return 0;
}

static void on_changed(void *argument)
{
    struct world *world = argument;

    atomic_fetch_add_explicit(&world->changes, 1, memory_order_relaxed);
}

static void start(struct world *world, const char *dsn)
{
    struct err err = {0};

    world->listener = listener_new(&(struct listener_settings){
        .dsn = dsn,
        .schema_version = MIGRATE_SCHEMA_VERSION,
        .ring = world->ring,
        .recent_bytes = world->recent_bytes,
        .stats = world->stats,
        .prepare = on_prepare,
        .changed = on_changed,
        .argument = world,
    });
    assert_non_null(world->listener);
    assert_int_equal(listener_start(world->listener, &err), 0);
}

static bool is_listening(struct world *world)
{
    struct listener_status status;

    listener_status(world->listener, &status);
    return status.listening;
}

static bool reason_has(struct world *world, const char *text)
{
    struct listener_status status;

    listener_status(world->listener, &status);
    return strstr(status.reason, text) != NULL;
}

/* Where the ring begins now: it has been restarted. In a round. */
static void follow_restart(struct world *world)
{
    WAIT_FOR(ring_find(world->reader, ring_floor(world->reader), &world->position) ==
             RING_FOUND);
    world->restarts++;
}

/* Reads what is there; fails on anything doubled or out of order. Returns how many. */
static int read_ring(struct world *world, char *ret_last_data, size_t size)
{
    const struct sse_frame *frame;
    enum ring_result result;
    int count = 0;

    ring_enter(world->reader);
    while ((result = ring_read(world->reader, &world->position, &frame)) != RING_EMPTY) {
        if (result == RING_LAGGED) {
            follow_restart(world);
            continue;
        }
        if (frame->seq <= world->last_seq)
            fail_msg("seq %llu after %llu", (unsigned long long)frame->seq,
                     (unsigned long long)world->last_seq);
        world->last_seq = frame->seq;
        count++;
        if (ret_last_data != NULL)
            snprintf(ret_last_data, size, "%.*s", (int)frame->body_len,
                     frame->bytes + frame->body_offset);
    }
    ring_leave(world->reader);
    return count;
}

static int wait_for_events(struct world *world, int wanted)
{
    int count = 0;

    WAIT_FOR((count += read_ring(world, NULL, 0)) >= wanted);
    assert_int_equal(world->restarts, world->restarts_wanted);
    return count;
}

static void publish(struct world *world, const char *data)
{
    char sql[300];

    snprintf(
        sql, sizeof(sql),
        "SELECT gateway.publish_batch(ARRAY['orders'], ARRAY['created'], ARRAY['%s'])",
        data);
    pg_run(world->pg.conn, sql);
}

#define INSERT  "INSERT INTO gateway.events (data) VALUES ('1')"
#define PUBLISH "SELECT gateway.publish_batch(ARRAY['c'], ARRAY['t'], ARRAY['1'])"

/* Sooner than the look once a second finds half of what is written at any time. */
#define SOON_USEC (300 * USEC_PER_MSEC)
#define TIMES     9

static int compare_times(const void *left, const void *right)
{
    const uint64_t one = *(const uint64_t *)left, other = *(const uint64_t *)right;

    return one < other ? -1 : one > other;
}

/* The median: a machine that stands still now and then does not change it. */
static uint64_t median(uint64_t *times, size_t count)
{
    qsort(times, count, sizeof(*times), compare_times);
    return times[count / 2];
}

/* How long a row takes, as a rule, each written when the one before has come. */
static uint64_t time_rows(struct world *world, PGconn *conn, const char *sql, int count)
{
    uint64_t times[TIMES];

    for (int i = 0; i < count; i++) {
        usleep(37000); /* not in step with the once-a-second look */
        const uint64_t begin = clock_usec();
        pg_run(conn, sql);
        wait_for_events(world, 1);
        times[i] = clock_usec() - begin;
    }
    return median(times, (size_t)count);
}

static int set_up(void **state)
{
    static struct world world;

    memset(&world, 0, sizeof(world));
    pg_open(&world.pg, true);
    proxy_open(&world.proxy, &world.pg);
    world.ring = ring_new(64 * MIB, 1);
    world.stats = stats_new();
    assert_non_null(world.ring);
    assert_non_null(world.stats);
    world.reader = ring_reader(world.ring, 0);
    world.position = 1;
    *state = &world;
    return 0;
}

static int tear_down(void **state)
{
    struct world *world = *state;

    listener_stop(world->listener);
    listener_free(world->listener);
    ring_free(world->ring);
    stats_free(world->stats);
    proxy_close(&world->proxy);
    pg_close(&world->pg);
    return 0;
}

static void an_event_arrives_encoded_and_soon(void **state)
{
    struct world *world = *state;
    char data[200] = "";

    publish(world, "{\"old\":1}");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    publish(world, "{\"n\":1}");
    WAIT_FOR(read_ring(world, data, sizeof(data)) == 1);
    assert_string_equal(data, "id: 2\nevent: created\ndata: {\"n\":1}\n\n");
    struct listener_status status;
    listener_status(world->listener, &status);
    assert_int_equal(status.head_seq, 2);
    assert_true(status.writable);
    assert_string_equal(status.reason, "");
    assert_int_equal(stats_gauge_value(world->stats, STATS_HEAD_SEQ), 2);
    assert_uint_in_range(time_rows(world, world->pg.conn, PUBLISH, TIMES), 0, SOON_USEC);
}

static void rows_of_applications_are_numbered_and_arrive(void **state)
{
    struct world *world = *state;
    char data[200] = "";

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    PGconn *slow = pg_connect(world->pg.dsn);
    pg_run(slow, "BEGIN; INSERT INTO gateway.events (data) VALUES ('\"slow\"')");
    pg_run(world->pg.conn, "INSERT INTO gateway.events (data) VALUES ('\"quick\"')");
    WAIT_FOR(read_ring(world, data, sizeof(data)) == 1);
    assert_string_equal(data, "id: 1\ndata: \"quick\"\n\n");
    pg_run(slow, "COMMIT");
    PQfinish(slow);
    WAIT_FOR(read_ring(world, data, sizeof(data)) == 1);
    assert_string_equal(data, "id: 2\ndata: \"slow\"\n\n");
    assert_int_equal(stats_counter_value(world->stats, STATS_EVENTS_NUMBERED), 2);
}

static void many_rows_of_one_transaction_all_arrive(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(world->pg.conn, "INSERT INTO gateway.events (data) SELECT to_json(n) FROM "
                           "generate_series(1, 12345) n");
    assert_int_equal(wait_for_events(world, 12345), 12345);
}

static void whose_an_event_is_comes_with_it(void **state)
{
    static const char *const clients[] = {"shop", "", "till"};
    struct world *world = *state;
    const struct sse_frame *frame;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(
        world->pg.conn,
        "SET gateway.client_id = 'shop'; INSERT INTO gateway.events (data) VALUES ('1'); "
        "RESET gateway.client_id; INSERT INTO gateway.events (data) VALUES ('2')");
    pg_run(world->pg.conn, "SELECT gateway.publish_batch(ARRAY['c'], ARRAY['t'], "
                           "ARRAY['3'], clients => ARRAY['till'])");
    WAIT_FOR(ring_next(world->reader) >= world->position + ARRAY_SIZE(clients));
    ring_enter(world->reader);
    for (size_t i = 0; i < ARRAY_SIZE(clients); i++) {
        assert_int_equal(ring_read(world->reader, &world->position, &frame), RING_FRAME);
        assert_int_equal(frame->client_len, strlen(clients[i]));
        assert_memory_equal(sse_frame_client(frame), clients[i], frame->client_len);
    }
    ring_leave(world->reader);
}

/* The plan is kept from a time when the table was empty, and reading all of it looked cheap. */
static void a_table_that_has_grown_is_not_read_as_a_whole(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    for (int i = 0; i < 10; i++) {
        publish(world, "1");
        assert_int_equal(wait_for_events(world, 1), 1);
    }
    pg_run(world->pg.conn,
           "SELECT gateway.publish_batch(array_agg(text 'c'), array_agg(text 't'), "
           "array_agg(text '1')) FROM generate_series(1, 20000)");
    assert_int_equal(wait_for_events(world, 20000), 20000);
    /* The server counts with a delay. */
    WAIT_FOR(pg_number(world->pg.conn,
                       "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes "
                       "WHERE indexrelname = 'events_by_seq'") >= 20000);
    assert_uint_in_range(pg_number(world->pg.conn,
                                   "SELECT seq_tup_read FROM pg_stat_user_tables "
                                   "WHERE relname = 'events'"),
                         0, 20000);
}

static void a_lost_doorbell_costs_a_second(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(world->pg.conn, "ALTER TABLE gateway.events DISABLE TRIGGER ALL");
    pg_run(world->pg.conn, "INSERT INTO gateway.events (data) VALUES ('1')");
    wait_for_events(world, 1);
}

/* ---- the bell ---- */

static long long locks(struct world *world, int key, const char *mode)
{
    char sql[300];

    snprintf(sql, sizeof(sql),
             "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND "
             "objid = %d AND mode = '%s' AND database = (SELECT oid FROM pg_database "
             "WHERE datname = current_database())",
             key, mode);
    return pg_number(world->pg.conn, sql);
}

static bool is_asleep(struct world *world)
{
    return locks(world, 3, "ExclusiveLock") == 1;
}

static int rings(PGconn *conn)
{
    PGnotify *notification;
    int count = 0;

    pg_run(conn, "SELECT 1");
    while ((notification = PQnotifies(conn)) != NULL) {
        count++;
        PQfreemem(notification);
    }
    return count;
}

static int rings_of_many(struct world *world, PGconn *ear)
{
    for (int i = 0; i < 100; i++)
        pg_run(world->pg.conn, INSERT);
    return rings(ear);
}

static void asleep_it_is_rung_for_and_awake_it_is_not(void **state)
{
    struct world *world = *state;
    PGconn *ear = pg_connect(world->pg.dsn);

    pg_run(ear, "LISTEN gateway_wake");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    pg_run(world->pg.conn, INSERT);
    wait_for_events(world, 1);
    assert_int_equal(rings(ear), 1);

    /* Some ring before it is up; then none of a hundred. */
    assert_true(rings_of_many(world, ear) >= 1);
    WAIT_FOR(rings_of_many(world, ear) == 0);
    WAIT_FOR(is_asleep(world));
    pg_run(world->pg.conn, INSERT);
    wait_for_events(world, 1);
    assert_true(rings(ear) >= 1);
    PQfinish(ear);
}

/* Leaves a transaction open that has been told not to ring. While the listener sleeps nobody
 * is told so: it is kept awake until it has been. */
static void hold_bell(struct world *world, PGconn *open)
{
    for (int count = 0;; count++) {
        pg_run(open, "BEGIN; SET CONSTRAINTS ALL IMMEDIATE; " INSERT);
        if (locks(world, 3, "ShareLock") == 1) {
            assert_int_equal(count > 0, world->listener != NULL);
            return;
        }
        pg_run(open, "COMMIT");
        wait_for_events(world, 1);
    }
}

/* Transactions that have been told not to ring: the sweeper does not lie down until their
 * rows can be seen. Nobody rings meanwhile; what others write comes by the poll. */
static void who_was_told_not_to_ring_does_not_wait_for_the_look(void **state)
{
    struct world *world = *state;
    PGconn *open = pg_connect(world->pg.dsn);

    hold_bell(world, open);
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    usleep(1500000); /* as slow as it ever polls */
    assert_false(is_asleep(world));
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, TIMES), 0, SOON_USEC);

    /* What it has waited for comes by the poll, and not a second after it fell asleep. */
    uint64_t times[TIMES];
    for (int i = 0; i < TIMES; i++) {
        usleep(400000);
        const uint64_t begin = clock_usec();
        pg_run(open, "COMMIT");
        wait_for_events(world, 1);
        times[i] = clock_usec() - begin;
        WAIT_FOR(is_asleep(world));
        hold_bell(world, open);
    }
    assert_uint_in_range(median(times, TIMES), 0, SOON_USEC);
    PQfinish(open);
}

/* A transaction that is open for long rings when it is committed. */
static void a_long_transaction_keeps_nobody_awake_and_comes_at_once(void **state)
{
    struct world *world = *state;
    PGconn *open[TIMES];
    uint64_t times[TIMES];

    for (int i = 0; i < TIMES; i++) {
        open[i] = pg_connect(world->pg.dsn);
        pg_run(open[i], "BEGIN; " INSERT);
    }
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    for (int i = 0; i < TIMES; i++) {
        usleep(37000);
        const uint64_t begin = clock_usec();
        pg_run(open[i], "COMMIT");
        wait_for_events(world, 1);
        times[i] = clock_usec() - begin;
        PQfinish(open[i]);
    }
    assert_uint_in_range(median(times, TIMES), 0, SOON_USEC);
}

/* Of two, one has the duty. When it is gone the other one takes it over. */
static void the_duty_passes_on(void **state)
{
    struct world *world = *state;
    struct ring *ring = world->ring;

    world->ring = ring_new(MIB, 1); /* the first one's own */
    assert_non_null(world->ring);
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    struct listener *first = world->listener;
    struct ring *first_ring = world->ring;
    world->ring = ring;
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_int_equal(locks(world, 4, "ExclusiveLock"), 1);
    listener_stop(first);
    pg_run(world->pg.conn, INSERT);
    WAIT_FOR(is_asleep(world));
    assert_int_equal(locks(world, 4, "ExclusiveLock"), 1);
    wait_for_events(world, 1);
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, TIMES), 0, SOON_USEC);
    listener_free(first);
    ring_free(first_ring);
}

/* One that has the duty, and is frozen while it sleeps, is rung for in vain: the other one
 * hears it too. */
static void off_duty_it_hears_what_the_one_on_duty_does_not(void **state)
{
    struct world *world = *state;
    PGconn *frozen = pg_connect(world->pg.dsn);

    pg_run(frozen, "SELECT pg_advisory_lock(1885827955, 3), "
                   "pg_advisory_lock(1885827955, 4)");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, TIMES), 0, SOON_USEC);
    PQfinish(frozen);
    WAIT_FOR(is_asleep(world));
}

/* The worst: frozen while it polled. Nobody rings, and the look once a second finds it. */
static void frozen_on_duty_and_awake_costs_a_second(void **state)
{
    struct world *world = *state;
    PGconn *frozen = pg_connect(world->pg.dsn);

    pg_run(frozen, "SELECT pg_advisory_lock(1885827955, 4)");
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_uint_in_range(time_rows(world, world->pg.conn, INSERT, 3), 0,
                         3 * USEC_PER_SEC / 2);
    PQfinish(frozen);
    WAIT_FOR(is_asleep(world));
}

static long long transactions(struct world *world)
{
    char sql[200];

    snprintf(
        sql, sizeof(sql),
        "SELECT pg_stat_get_db_xact_commit(oid) FROM pg_database WHERE datname = '%s'",
        world->pg.name);
    return pg_number(world->pg.admin, sql);
}

/* PostgreSQL tells it late, and some at a time: looked at when it has just told some. */
static long long told_transactions(struct world *world)
{
    const long long before = transactions(world);
    long long now;

    WAIT_FOR((now = transactions(world)) != before);
    return now;
}

/* What happens in the world's database meanwhile is the listener's alone. */
static void an_idle_database_stays_idle(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world) && is_asleep(world));
    sleep(3); /* until all of the beginning is told */
    const long long before = told_transactions(world);
    const uint64_t begin = clock_usec();
    sleep(4);
    const long long count = told_transactions(world) - before;
    const long long seconds = (long long)((clock_usec() - begin) / USEC_PER_SEC);
    assert_uint_in_range(count, 3, 3 * seconds + 5); /* three a second */
}

/* Publishes on a thread of its own while the connections are being killed. */
struct writer {
    struct world *world;
    _Atomic bool over;
    int count; /* of events */
};

static void *write_many(void *argument)
{
    struct writer *writer = argument;
    PGconn *conn = pg_connect(writer->world->pg.dsn);

    for (int i = 0; !atomic_load_explicit(&writer->over, memory_order_acquire); i++) {
        pg_run(conn, i % 2 ? "SELECT gateway.publish_batch(ARRAY['a','b'], "
                             "ARRAY['t','t'], ARRAY['1','2'])"
                           : "INSERT INTO gateway.events (data) VALUES ('1'), ('2')");
        writer->count += 2;
        usleep(1000);
    }
    PQfinish(conn);
    return NULL;
}

static void killed_connections_lose_and_double_nothing(void **state)
{
    struct world *world = *state;
    struct writer writer = {.world = world};
    pthread_t thread;
    int count = 0;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_int_equal(pthread_create(&thread, NULL, write_many, &writer), 0);
    for (int i = 0; i < 6; i++) {
        usleep(100000);
        WAIT_FOR(pg_kill(&world->pg, "listener") > 0);
        count += read_ring(world, NULL, 0);
    }
    atomic_store_explicit(&writer.over, true, memory_order_release);
    pthread_join(thread, NULL);
    WAIT_FOR((count += read_ring(world, NULL, 0)) >= writer.count);
    usleep(200000);
    count += read_ring(world, NULL, 0);
    assert_int_equal(count, writer.count);
}

static void a_frozen_server_is_left_and_what_was_missed_comes(void **state)
{
    struct world *world = *state;

    start(world, world->proxy.dsn);
    WAIT_FOR(is_listening(world));
    proxy_set(&world->proxy, PROXY_FREEZE);
    WAIT_FOR(!is_listening(world));
    publish(world, "1");
    WAIT_FOR(reason_has(world, "could not connect"));
    proxy_set(&world->proxy, PROXY_PASS);
    WAIT_FOR(is_listening(world));
    wait_for_events(world, 1);
}

static void stopping_while_frozen_is_quick(void **state)
{
    struct world *world = *state;

    start(world, world->proxy.dsn);
    WAIT_FOR(is_listening(world));
    proxy_set(&world->proxy, PROXY_FREEZE);
    usleep(1100000); /* a look is on its way now, and has two seconds left or more */
    uint64_t begin = clock_usec();
    listener_stop(world->listener);
    assert_uint_in_range(clock_usec() - begin, 0, 3 * USEC_PER_SEC / 2);
}

static void a_missing_schema_is_said_and_its_coming_is_noticed(void **state)
{
    struct world *world = *state;

    pg_run(world->pg.conn, "DROP SCHEMA gateway CASCADE");
    start(world, world->pg.dsn);
    WAIT_FOR(reason_has(world, "pg-sse-gateway migrate up"));
    assert_false(is_listening(world));
    pg_migrate(&world->pg);
    WAIT_FOR(is_listening(world));
    publish(world, "1");
    wait_for_events(world, 1);
}

static void a_newer_schema_is_said(void **state)
{
    struct world *world = *state;

    pg_run(world->pg.conn, "INSERT INTO gateway.migrations VALUES (99, 'later')");
    start(world, world->pg.dsn);
    WAIT_FOR(reason_has(world, "at version 99, newer than the "));
}

static void a_database_that_is_away_comes_back(void **state)
{
    struct world *world = *state;

    proxy_set(&world->proxy, PROXY_FREEZE);
    start(world, "host=127.0.0.1 port=1 dbname=nothing");
    WAIT_FOR(reason_has(world, "refused"));
    assert_false(is_listening(world));
}

static void preparing_is_repeated_until_it_succeeds(void **state)
{
    struct world *world = *state;

    world->prepare_failures = 2;
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    assert_int_equal(world->prepare_failures, 0);
    pg_kill(&world->pg, "listener");
    WAIT_FOR(stats_counter_value(world->stats, STATS_LISTENER_CONNECTS) == 2);
    assert_true(atomic_load_explicit(&world->changes, memory_order_relaxed) >= 2);
}

static void a_read_only_database_is_told(void **state)
{
    struct world *world = *state;
    char sql[200], dsn[1200];

    snprintf(sql, sizeof(sql), "ALTER DATABASE %s SET default_transaction_read_only = on",
             world->pg.name);
    pg_run(world->pg.admin, sql);
    snprintf(dsn, sizeof(dsn), "%s target_session_attrs=any", world->pg.dsn);
    start(world, dsn);
    WAIT_FOR(reason_has(world, "read-only"));
    assert_true(is_listening(world));
    struct listener_status status;
    listener_status(world->listener, &status);
    assert_false(status.writable);
}

static void large_events_come_as_they_went_in(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    pg_run(world->pg.conn,
           "INSERT INTO gateway.events (data) SELECT "
           "to_json(repeat('\xc3\xa4', 500000)) FROM generate_series(1, 20)");
    wait_for_events(world, 20);
    assert_uint_in_range(stats_counter_value(world->stats, STATS_EVENTS_RECEIVED_BYTES),
                         20000000, 20010000);
}

/* -- events that are not there any more -- */

#define LIFE ((uint64_t)1 << 40)

static _Atomic int lives_told, deletions_told;

static void look_for_losses(enum log_level level, const char *line)
{
    if (level != LOG_LEVEL_WARNING)
        return;
    if (strstr(line, "has begun a new life") != NULL)
        atomic_fetch_add_explicit(&lives_told, 1, memory_order_relaxed);
    if (strstr(line, "deleted before they were seen") != NULL)
        atomic_fetch_add_explicit(&deletions_told, 1, memory_order_relaxed);
}

static void expect_told(int lives, int deletions)
{
    assert_int_equal(atomic_load_explicit(&lives_told, memory_order_relaxed), lives);
    assert_int_equal(atomic_load_explicit(&deletions_told, memory_order_relaxed),
                     deletions);
}

/* With two events seen. */
static void start_and_see_two(struct world *world, const char *dsn)
{
    atomic_store_explicit(&lives_told, 0, memory_order_relaxed);
    atomic_store_explicit(&deletions_told, 0, memory_order_relaxed);
    log_set_sink(look_for_losses);
    start(world, dsn);
    WAIT_FOR(is_listening(world));
    publish(world, "1");
    publish(world, "2");
    wait_for_events(world, 2);
}

static void stop_looking(struct world *world)
{
    listener_stop(world->listener);
    log_set_sink(NULL);
}

/* A disk's snapshot was restored, say: nothing in the database tells of it. */
static void a_database_that_went_back_begins_a_new_life(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn,
           "DELETE FROM gateway.events WHERE seq = 2; DELETE FROM gateway.purges; "
           "SELECT setval('gateway.events_seq', 1)");
    pg_kill(&world->pg, "listener");
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), LIFE);
    publish(world, "3");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, LIFE + 1);
    expect_told(1, 0);
    assert_int_equal(pg_number(world->pg.conn,
                               "SELECT previous_end FROM gateway.incarnations WHERE "
                               "base > 0"),
                     1);
    stop_looking(world);
}

/* As after a promotion behind a pooler: the connection stands. The first events of the new
 * life may not come before those of the old are told to be lost. */
static void a_new_life_under_a_standing_connection_restarts_the_ring(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn, "UPDATE gateway.incarnations SET identity = 'elsewhere'");
    publish(world, "3");
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), LIFE + 1);
    publish(world, "4");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, LIFE + 2);
    expect_told(1, 0);
    stop_looking(world);
}

/* The schema is another one: what this process knows is no part of it. */
static void a_schema_made_anew_is_told(void **state)
{
    struct world *world = *state;
    struct listener_status status;

    start_and_see_two(world, world->pg.dsn);
    listener_status(world->listener, &status);
    assert_false(status.replaced);
    const int changes = atomic_load_explicit(&world->changes, memory_order_relaxed);
    pg_run(world->pg.conn, "DROP SCHEMA gateway CASCADE");
    pg_migrate(&world->pg);
    WAIT_FOR((listener_status(world->listener, &status), status.replaced));
    assert_true(atomic_load_explicit(&world->changes, memory_order_relaxed) > changes);
    stop_looking(world);
}

static void what_was_seen_may_be_deleted(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn, "DELETE FROM gateway.events");
    pg_kill(&world->pg, "listener");
    WAIT_FOR(stats_counter_value(world->stats, STATS_LISTENER_CONNECTS) == 2);
    publish(world, "3");
    assert_int_equal(wait_for_events(world, 1), 1);
    pg_run(world->pg.conn, "TRUNCATE gateway.events");
    publish(world, "4");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, 4);
    expect_told(0, 0);
    stop_looking(world);
}

/* Some of what one transaction brings is gone with its commit: the rest does not come as if
 * it were all. `sql` is run between event 2 and event `seen`. */
static void expect_restart(struct world *world, const char *sql, uint64_t floor)
{
    start_and_see_two(world, world->pg.dsn);
    pg_run(world->pg.conn, sql);
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), floor);
    publish(world, "9");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, floor + 1);
    expect_told(0, 1);
    stop_looking(world);
}

#define THREE                                                                            \
    "BEGIN; SELECT gateway.publish_batch(ARRAY['a','b','c'], ARRAY['t','t','t'], "       \
    "ARRAY['1','2','3']); "

static void what_is_deleted_unseen_among_others_restarts_the_ring(void **state)
{
    expect_restart(*state, THREE "DELETE FROM gateway.events WHERE seq = 4; COMMIT", 5);
}

static void what_is_deleted_unseen_and_leaves_nothing_restarts_the_ring(void **state)
{
    expect_restart(*state, THREE "DELETE FROM gateway.events WHERE seq > 2; COMMIT", 5);
}

static void a_truncate_before_events_are_seen_restarts_the_ring(void **state)
{
    expect_restart(*state, THREE "TRUNCATE gateway.events; COMMIT", 5);
}

static void what_is_deleted_while_the_listener_is_away_restarts_the_ring(void **state)
{
    struct world *world = *state;

    start_and_see_two(world, world->proxy.dsn);
    proxy_set(&world->proxy, PROXY_FREEZE);
    for (int i = 0; i < 10; i++)
        publish(world, "3");
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq < 8");
    WAIT_FOR(!is_listening(world));
    proxy_set(&world->proxy, PROXY_PASS);
    world->restarts_wanted = 1;
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->restarts == 1);
    assert_int_equal(ring_floor(world->reader), 12);
    publish(world, "4");
    assert_int_equal(wait_for_events(world, 1), 1);
    assert_int_equal(world->last_seq, 13);
    expect_told(0, 1);
    stop_looking(world);
}

/* The ring begins with what there is, as far as there is room; of this life, and without
 * holes. */
static void the_ring_begins_with_the_newest(void **state)
{
    struct world *world = *state;
    uint64_t now = 0;

    for (int i = 0; i < 10; i++)
        publish(world, "1");
    pg_run(world->pg.conn, "DELETE FROM gateway.events WHERE seq = 3");
    world->recent_bytes = MIB;
    start(world, world->pg.dsn);
    assert_int_equal(wait_for_events(world, 7), 7);
    assert_int_equal(ring_floor(world->reader), 3);
    assert_true(ring_now(world->reader, &now));
    assert_int_equal(now, 10);
    /* They were there before: their age says nothing about how quick this gateway is. */
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;
    stats_render(world->stats, &text);
    assert_non_null(strstr(text.data, "pgsse_event_age_seconds_count 0\n"));
}

static void the_ring_begins_with_no_more_than_there_is_room_for(void **state)
{
    struct world *world = *state;

    for (int i = 0; i < 50; i++)
        publish(world, "1");
    world->recent_bytes = 10 * 220;
    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    const int count = wait_for_events(world, 5);
    assert_uint_in_range(count, 5, 10);
    WAIT_FOR(read_ring(world, NULL, 0) == 0 && world->last_seq == 50);
}

static void the_thread_beats_while_nothing_happens(void **state)
{
    struct world *world = *state;

    start(world, world->pg.dsn);
    WAIT_FOR(is_listening(world));
    for (int i = 0; i < 3; i++) {
        const uint64_t beat = thread_last_beat(listener_thread(world->listener));

        WAIT_FOR(thread_last_beat(listener_thread(world->listener)) > beat);
    }
}

static void without_memory_there_is_none(void **state)
{
    struct world *world = *state;
    struct listener *listener;

    for (unsigned n = 1;; n++) {
        failing_malloc_begin(n);
        listener = listener_new(&(struct listener_settings){.dsn = "dbname=x",
                                                            .password = "p",
                                                            .ring = world->ring,
                                                            .stats = world->stats});
        if (!failing_malloc_end())
            break;
        assert_null(listener);
    }
    assert_non_null(listener);
    listener_free(listener);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(an_event_arrives_encoded_and_soon),
        WITH_PG(rows_of_applications_are_numbered_and_arrive),
        WITH_PG(many_rows_of_one_transaction_all_arrive),
        WITH_PG(whose_an_event_is_comes_with_it),
        WITH_PG(a_table_that_has_grown_is_not_read_as_a_whole),
        WITH_PG(a_lost_doorbell_costs_a_second),
        WITH_PG(asleep_it_is_rung_for_and_awake_it_is_not),
        WITH_PG(who_was_told_not_to_ring_does_not_wait_for_the_look),
        WITH_PG(a_long_transaction_keeps_nobody_awake_and_comes_at_once),
        WITH_PG(the_duty_passes_on),
        WITH_PG(off_duty_it_hears_what_the_one_on_duty_does_not),
        WITH_PG(frozen_on_duty_and_awake_costs_a_second),
        WITH_PG(an_idle_database_stays_idle),
        WITH_PG(killed_connections_lose_and_double_nothing),
        WITH_PG(a_frozen_server_is_left_and_what_was_missed_comes),
        WITH_PG(stopping_while_frozen_is_quick),
        WITH_PG(a_missing_schema_is_said_and_its_coming_is_noticed),
        WITH_PG(a_newer_schema_is_said),
        WITH_PG(a_database_that_is_away_comes_back),
        WITH_PG(preparing_is_repeated_until_it_succeeds),
        WITH_PG(a_read_only_database_is_told),
        WITH_PG(large_events_come_as_they_went_in),
        WITH_PG(a_database_that_went_back_begins_a_new_life),
        WITH_PG(a_new_life_under_a_standing_connection_restarts_the_ring),
        WITH_PG(a_schema_made_anew_is_told),
        WITH_PG(what_was_seen_may_be_deleted),
        WITH_PG(what_is_deleted_unseen_among_others_restarts_the_ring),
        WITH_PG(what_is_deleted_unseen_and_leaves_nothing_restarts_the_ring),
        WITH_PG(a_truncate_before_events_are_seen_restarts_the_ring),
        WITH_PG(what_is_deleted_while_the_listener_is_away_restarts_the_ring),
        WITH_PG(the_ring_begins_with_the_newest),
        WITH_PG(the_ring_begins_with_no_more_than_there_is_room_for),
        WITH_PG(the_thread_beats_while_nothing_happens),
        WITH_PG(without_memory_there_is_none),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
