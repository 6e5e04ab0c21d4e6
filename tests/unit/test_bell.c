/*
 * test_bell.c - when the sweeper polls, and when it sleeps until it is rung for.
 */
#include "pg.h"

#include "bell.h"
#include "database.h"

#define START (1000 * USEC_PER_SEC)
#define MSEC  USEC_PER_MSEC

static void sweep(struct bell *bell, uint64_t now_usec, bool found)
{
    assert_int_equal(bell_next(bell, now_usec), BELL_SWEEP);
    bell_sweeping(bell, now_usec);
    bell_swept(bell, now_usec, found);
}

/* On duty, and fallen asleep, and nothing due. */
struct sleeper {
    struct pg pg;
    struct database *database;
    struct bell bell;
};

static int turn(struct sleeper *sleeper)
{
    struct err err = {0};

    return bell_turn(&sleeper->bell, sleeper->database, clock_usec() + 5 * USEC_PER_SEC,
                     &err);
}

static int set_up(void **state)
{
    static struct sleeper sleeper;
    struct err err = {0};

    memset(&sleeper, 0, sizeof(sleeper));
    pg_open(&sleeper.pg, true);
    sleeper.database = database_new(&(struct database_settings){
        .dsn = sleeper.pg.dsn, .door = "test", .target = "any", .stop_fd = -1});
    assert_non_null(sleeper.database);
    assert_int_equal(
        database_connect(sleeper.database, clock_usec() + 5 * USEC_PER_SEC, &err), 0);
    bell_reset(&sleeper.bell);
    bell_on_duty(&sleeper.bell, clock_usec());
    *state = &sleeper;
    return 0;
}

static int tear_down(void **state)
{
    struct sleeper *sleeper = *state;

    database_free(sleeper->database);
    pg_close(&sleeper->pg);
    return 0;
}

static void fall_asleep(struct sleeper *sleeper)
{
    assert_int_equal(bell_next(&sleeper->bell, clock_usec()), BELL_TURN);
    assert_int_equal(turn(sleeper), 0);
    assert_int_equal(sleeper->bell.state, BELL_ASLEEP);
    sweep(&sleeper->bell, clock_usec(), false);
    assert_int_equal(bell_due(&sleeper->bell), CLOCK_NEVER);
}

static long long bells_held(struct sleeper *sleeper)
{
    return pg_number(sleeper->pg.conn,
                     "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND "
                     "objid = 3 AND mode = 'ExclusiveLock' AND granted AND database = "
                     "(SELECT oid FROM pg_database WHERE datname = current_database())");
}

static void off_duty_a_ring_is_left_to_the_other_first(void **state)
{
    struct bell bell;

    (void)state;
    bell_reset(&bell);
    assert_int_equal(bell_next(&bell, START), BELL_WAIT);
    assert_int_equal(bell_due(&bell), CLOCK_NEVER);
    for (int i = 0; i < 100; i++)
        bell_rung(&bell, START + (uint64_t)i * MSEC / 10);
    assert_int_equal(bell_due(&bell), START + 50 * MSEC);
    assert_int_equal(bell_next(&bell, START + 49 * MSEC), BELL_WAIT);
    sweep(&bell, START + 50 * MSEC, true);
    assert_int_equal(bell_next(&bell, START + 10 * USEC_PER_SEC), BELL_WAIT);
    bell_sweep_soon(&bell, START + 10 * USEC_PER_SEC);
    assert_int_equal(bell_next(&bell, START + 10 * USEC_PER_SEC), BELL_SWEEP);
}

/* What rang after the sweep's snapshot and before its answer is not lost. */
static void what_rings_during_a_sweep_makes_another_one_due(void **state)
{
    struct sleeper *sleeper = *state;

    fall_asleep(sleeper);
    bell_rung(&sleeper->bell, START);
    assert_int_equal(bell_next(&sleeper->bell, START), BELL_SWEEP);
    bell_sweeping(&sleeper->bell, START);
    bell_rung(&sleeper->bell, START + 1);
    bell_swept(&sleeper->bell, START + 2, true);
    sweep(&sleeper->bell, START + 2, true);
    assert_int_equal(bell_next(&sleeper->bell, START + 2), BELL_WAIT);

    bell_reset(&sleeper->bell);
    bell_sweep_soon(&sleeper->bell, START);
    assert_int_equal(bell_next(&sleeper->bell, START), BELL_SWEEP);
    bell_sweeping(&sleeper->bell, START);
    bell_rung(&sleeper->bell, START + 1);
    bell_swept(&sleeper->bell, START + 2, false);
    assert_int_equal(bell_due(&sleeper->bell), START + 1 + 50 * MSEC);
}

static void asleep_and_rung_now_and_then_it_stays_asleep(void **state)
{
    struct sleeper *sleeper = *state;

    fall_asleep(sleeper);
    uint64_t now = clock_usec();
    for (const uint64_t end = now + 2 * USEC_PER_SEC; now < end; now += 40 * MSEC) {
        bell_rung(&sleeper->bell, now);
        sweep(&sleeper->bell, now, true);
        assert_int_equal(bell_next(&sleeper->bell, now), BELL_WAIT);
    }
    assert_int_equal(bells_held(sleeper), 1);
}

static void asleep_and_rung_often_it_gets_up(void **state)
{
    struct sleeper *sleeper = *state;

    fall_asleep(sleeper);
    uint64_t now = clock_usec();
    assert_int_equal(bells_held(sleeper), 1);
    for (int i = 0; i < 8; i++)
        bell_rung(&sleeper->bell, now += 10 * MSEC);
    assert_int_equal(bell_next(&sleeper->bell, now), BELL_TURN);
    assert_int_equal(turn(sleeper), 0);
    assert_int_equal(sleeper->bell.state, BELL_AWAKE);
    assert_int_equal(bells_held(sleeper), 0);
    assert_int_equal(bell_next(&sleeper->bell, clock_usec()), BELL_SWEEP);
}

static void awake_it_polls_while_much_comes_and_lies_down_when_little_does(void **state)
{
    struct sleeper *sleeper = *state;
    struct bell *bell = &sleeper->bell;
    uint64_t now, end;

    fall_asleep(sleeper);
    for (int i = 0; i < 8; i++)
        bell_rung(bell, clock_usec());
    assert_int_equal(turn(sleeper), 0);
    now = bell_due(bell);
    for (end = now + USEC_PER_SEC; now < end; now = bell_due(bell)) {
        assert_int_equal(bell_next(bell, now), BELL_SWEEP);
        bell_sweeping(bell, now);
        bell_swept(bell, now + MSEC, true);
        assert_uint_in_range(bell_due(bell) - now, 2 * MSEC, 9 * MSEC);
        assert_int_equal(bell_next(bell, now + MSEC), BELL_WAIT);
    }
    for (end = now + 310 * MSEC; now < end && bell_next(bell, now) != BELL_TURN;
         now = bell_due(bell))
        sweep(bell, now, false);
    assert_int_equal(bell_next(bell, now), BELL_TURN);
}

static void step(struct sleeper *sleeper)
{
    assert_int_equal(bell_next(&sleeper->bell, clock_usec()), BELL_TURN);
    assert_int_equal(turn(sleeper), 0);
}

static void ring_often(struct bell *bell)
{
    for (int i = 0; i < 8; i++)
        bell_rung(bell, clock_usec());
}

static void whoever_needs_every_ring_lies_down_and_does_not_get_up(void **state)
{
    struct sleeper *sleeper = *state;
    struct bell *bell = &sleeper->bell;

    fall_asleep(sleeper);
    ring_often(bell);
    step(sleeper);
    assert_int_equal(bell->state, BELL_AWAKE);
    for (int i = 0; i < 4; i++)
        sweep(bell, bell_due(bell), true); /* it would stay so */
    bell_need(bell, true);
    assert_false(bell_is_taken(bell));
    step(sleeper); /* says so */
    step(sleeper);
    assert_true(bell_is_taken(bell));
    sweep(bell, clock_usec(), true);
    ring_often(bell);
    assert_int_not_equal(bell_next(bell, clock_usec()), BELL_TURN);
    bell_need(bell, false);
    step(sleeper);
    step(sleeper);
    assert_int_equal(bell->state, BELL_AWAKE);
}

static void called_it_lies_down_and_stays_so_while_somebody_needs_it(void **state)
{
    struct sleeper *sleeper = *state;
    struct bell *bell = &sleeper->bell;
    PGconn *other = pg_connect(sleeper->pg.dsn);

    fall_asleep(sleeper);
    ring_often(bell);
    step(sleeper);
    for (int i = 0; i < 4; i++)
        sweep(bell, bell_due(bell), true);
    pg_run(other, "SELECT pg_advisory_lock_shared(1885827955, 5)");
    bell_called(bell);
    step(sleeper);
    assert_int_equal(bell->state, BELL_ASLEEP);
    sweep(bell, clock_usec(), true);
    ring_often(bell);
    step(sleeper); /* asks, and may not */
    assert_int_equal(bell->state, BELL_ASLEEP);
    assert_int_equal(bells_held(sleeper), 1);
    ring_often(bell);
    assert_int_not_equal(bell_next(bell, clock_usec()), BELL_TURN); /* nor asks at once */
    PQfinish(other);
    WAIT_FOR(pg_number(sleeper->pg.conn,
                       "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
                       "AND objid = 5 AND database = (SELECT oid FROM pg_database "
                       "WHERE datname = current_database())") == 0);
    WAIT_FOR(bell_next(bell, clock_usec()) == BELL_TURN);
    assert_int_equal(turn(sleeper), 0);
    assert_int_equal(bell->state, BELL_AWAKE);
}

static void rung_for_often_it_rests_between_sweeps(void **state)
{
    struct sleeper *sleeper = *state;
    struct bell *bell = &sleeper->bell;

    fall_asleep(sleeper);
    bell_need(bell, true);
    step(sleeper);
    uint64_t now = clock_usec();
    for (int i = 0; i < 7; i++) {
        bell_rung(bell, now);
        sweep(bell, now, true);
    }
    bell_rung(bell, now);
    assert_int_equal(bell_next(bell, now), BELL_WAIT);
    assert_in_range(bell_due(bell), now + MSEC, now + 9 * MSEC);
    sweep(bell, bell_due(bell), true);
}

/* Who was told not to ring does not end: it is tried again and again, and not for nothing. */
static void called_it_waits_for_who_does_not_let_go_with_growing_pauses(void **state)
{
    struct sleeper *sleeper = *state;
    struct bell *bell = &sleeper->bell;
    PGconn *writer = pg_connect(sleeper->pg.dsn);

    pg_run(writer, "BEGIN; SET CONSTRAINTS ALL IMMEDIATE; "
                   "INSERT INTO gateway.events (data) VALUES ('1')");
    bell_need(bell, true);
    step(sleeper);
    uint64_t window = 0;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(turn(sleeper), 0);
        assert_int_equal(bell->state, BELL_AWAKE);
        assert_true(bell->window_usec > window);
        window = bell->window_usec;
        sweep(bell, MAX(bell_due(bell), bell->begun_usec), false);
    }
    pg_run(writer, "COMMIT");
    PQfinish(writer);
    assert_int_equal(turn(sleeper), 0);
    assert_true(bell_is_taken(bell));
}

static void off_duty_it_calls_until_somebody_sleeps(void **state)
{
    struct sleeper *sleeper = *state;
    struct bell *bell = &sleeper->bell;

    bell_reset(bell);
    bell_need(bell, true);
    pg_run(sleeper->pg.conn, "LISTEN gateway_wake");
    step(sleeper);
    step(sleeper);
    assert_false(bell_is_taken(bell));
    assert_true(bell_due(bell) < CLOCK_NEVER);
    pg_run(sleeper->pg.conn, "SELECT 1");
    PGnotify *heard = PQnotifies(sleeper->pg.conn);
    assert_non_null(heard);
    assert_string_equal(heard->extra, BELL_CALL);
    PQfreemem(heard);
    pg_run(sleeper->pg.conn, "SELECT pg_advisory_lock(1885827955, 3)");
    WAIT_FOR(bell_next(bell, clock_usec()) == BELL_TURN);
    assert_int_equal(turn(sleeper), 0);
    assert_true(bell_is_taken(bell));
    pg_run(sleeper->pg.conn, "SELECT 1");
    assert_null(PQnotifies(sleeper->pg.conn));
}

/* However long a sweep takes, the next is not long in coming. */
static void a_pause_is_short_after_a_long_sweep_too(void **state)
{
    struct bell bell;

    (void)state;
    bell_reset(&bell);
    bell_on_duty(&bell, START);
    bell_sweeping(&bell, START);
    bell_swept(&bell, START + 3 * USEC_PER_SEC, true);
    assert_uint_in_range(bell_due(&bell) - (START + 3 * USEC_PER_SEC), MSEC, 10 * MSEC);
}

/* A transaction that has been told not to ring, and stays open, costs a few looks a second;
 * what it brings, and what others bring meanwhile, waits for no more than the pause. */
static void who_does_not_let_go_of_the_bell_is_waited_for_with_growing_pauses(
    void **state)
{
    struct sleeper *sleeper = *state;
    struct bell *bell = &sleeper->bell;
    PGconn *writer = pg_connect(sleeper->pg.dsn);
    unsigned sweeps = 0;

    pg_run(writer, "BEGIN; SET CONSTRAINTS ALL IMMEDIATE; "
                   "INSERT INTO gateway.events (data) VALUES ('1')");
    uint64_t now = clock_usec();
    for (uint64_t end = now + 10 * USEC_PER_SEC; now < end;) {
        const enum bell_step step = bell_next(bell, now);
        if (step == BELL_TURN) {
            assert_int_equal(turn(sleeper), 0);
            assert_int_equal(bell->state, BELL_AWAKE);
            bell->begun_usec = now; /* the test's time, not the real one */
        } else if (step == BELL_SWEEP) {
            sweep(bell, now, false);
            sweeps++;
        } else {
            now = MIN(bell_due(bell), now + 10 * MSEC);
        }
    }
    assert_uint_in_range(sweeps, 70, 200);
    pg_run(writer, "COMMIT");
    PQfinish(writer);
    assert_int_equal(turn(sleeper), 0);
    assert_int_equal(bell->state, BELL_ASLEEP);
    assert_int_equal(bell_next(bell, clock_usec()),
                     BELL_SWEEP); /* once more, after that */
}

/* The bell and the duty are the session's: without it they are nobody's. */
static void a_session_that_is_gone_leaves_nothing_behind(void **state)
{
    struct sleeper *sleeper = *state;
    struct err err = {0};

    for (int i = 0; i < 2; i++) {
        CLEANUP(database_clear) PGresult *result = NULL;
        assert_int_equal(database_run(sleeper->database, "SELECT " BELL_DUTY,
                                      clock_usec() + 5 * USEC_PER_SEC, &result, &err),
                         0);
        assert_string_equal(PQgetvalue(result, 0, 0), "t");
        fall_asleep(sleeper);
        pg_kill(&sleeper->pg, "test");
        WAIT_FOR(bells_held(sleeper) == 0);
        assert_int_equal(
            database_connect(sleeper->database, clock_usec() + 5 * USEC_PER_SEC, &err),
            0);
        bell_reset(&sleeper->bell);
        bell_on_duty(&sleeper->bell, clock_usec());
    }
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(off_duty_a_ring_is_left_to_the_other_first),
        cmocka_unit_test(a_pause_is_short_after_a_long_sweep_too),
        WITH_PG(what_rings_during_a_sweep_makes_another_one_due),
        WITH_PG(asleep_and_rung_now_and_then_it_stays_asleep),
        WITH_PG(asleep_and_rung_often_it_gets_up),
        WITH_PG(awake_it_polls_while_much_comes_and_lies_down_when_little_does),
        WITH_PG(who_does_not_let_go_of_the_bell_is_waited_for_with_growing_pauses),
        WITH_PG(a_session_that_is_gone_leaves_nothing_behind),
        WITH_PG(whoever_needs_every_ring_lies_down_and_does_not_get_up),
        WITH_PG(called_it_lies_down_and_stays_so_while_somebody_needs_it),
        WITH_PG(rung_for_often_it_rests_between_sweeps),
        WITH_PG(called_it_waits_for_who_does_not_let_go_with_growing_pauses),
        WITH_PG(off_duty_it_calls_until_somebody_sleeps),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
