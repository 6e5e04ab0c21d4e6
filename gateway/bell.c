/*
 * bell.c - when the sweeper polls, and when it sleeps until it is rung for.
 */
#include "bell.h"

#include <errno.h>
#include <string.h>

#include "clock.h"

/* Asleep, so many rings within a window are many. Writers that wait for one another ring as
 * often as the disk makes something durable; this is below that of a slow one. */
#define WINDOW_USEC (150 * USEC_PER_MSEC)
#define MANY_RINGS  8
/* Awake, fewer sweeps than this that find something, within a window, are few. */
#define MANY_FINDS 4

/* A sweep rests as long as it has worked, within these bounds: half of one CPU at the most,
 * and the more comes the more is numbered at a time. */
#define PAUSE_MIN_USEC   (2 * USEC_PER_MSEC)
#define PAUSE_USEC       (4 * USEC_PER_MSEC)
#define PAUSE_MAX_USEC   (8 * USEC_PER_MSEC)
#define PAUSE_LIMIT_USEC (128 * USEC_PER_MSEC)

/* Called, it waits a little for those who were told not to ring, because on a busy database
 * there is always one. Whoever comes meanwhile rings already. */
#define CALLED_WINDOW_MAX_USEC (4 * USEC_PER_SEC)

/* How soon it is asked again whether somebody sleeps, and how often at the least; and how
 * often, rung for often, whether it may get up. */
#define PATIENCE_MIN_USEC (2 * USEC_PER_MSEC)
#define PATIENCE_MAX_USEC USEC_PER_SEC

/* What the gateway on duty is left to do first. */
#define START_USEC (50 * USEC_PER_MSEC)

static void count_anew(struct bell *bell, uint64_t now_usec)
{
    bell->begun_usec = now_usec;
    bell->count = 0;
}

void bell_reset(struct bell *bell)
{
    *bell = (struct bell){.state = BELL_OFF_DUTY, .due_usec = CLOCK_NEVER};
}

static void be_awake(struct bell *bell, uint64_t now_usec)
{
    bell->state = BELL_AWAKE;
    bell->due_usec = now_usec;
    bell->pause_usec = PAUSE_USEC;
    bell->window_usec = WINDOW_USEC;
    count_anew(bell, now_usec);
}

void bell_on_duty(struct bell *bell, uint64_t now_usec)
{
    be_awake(bell, now_usec);
    bell->window_usec = 0;
}

static void be_asleep(struct bell *bell, uint64_t now_usec)
{
    bell->state = BELL_ASLEEP;
    bell->called = false;
    bell->ask_usec = 0;
    bell->due_usec = now_usec; /* whoever did not ring can be seen now */
    count_anew(bell, now_usec);
}

static bool must_sleep(const struct bell *bell)
{
    return bell->called || bell->said;
}

/* Somebody who was told not to ring is not done yet. Usually he will be in a moment. */
static void be_refused(struct bell *bell, uint64_t now_usec)
{
    bell->pause_usec = MIN(bell->pause_usec * 2, PAUSE_LIMIT_USEC);
    bell->window_usec = must_sleep(bell) ? MIN(MAX(bell->window_usec * 2, WINDOW_USEC),
                                               CALLED_WINDOW_MAX_USEC)
                                         : WINDOW_USEC;
    count_anew(bell, now_usec);
}

static bool wants_to_get_up(const struct bell *bell, uint64_t now_usec)
{
    return bell->count >= MANY_RINGS && !bell->said && now_usec >= bell->ask_usec;
}

enum bell_step bell_next(struct bell *bell, uint64_t now_usec)
{
    if (bell->needed != bell->said)
        return BELL_TURN;
    if (bell->state == BELL_OFF_DUTY && bell->said && now_usec >= bell->ask_usec)
        return BELL_TURN;
    if (bell->state == BELL_ASLEEP && wants_to_get_up(bell, now_usec))
        return BELL_TURN;
    if (bell->state == BELL_AWAKE && now_usec >= bell->begun_usec + bell->window_usec) {
        if (bell->count < MANY_FINDS || must_sleep(bell))
            return BELL_TURN;
        bell->pause_usec = PAUSE_USEC;
        count_anew(bell, now_usec);
    }
    return now_usec >= bell->due_usec ? BELL_SWEEP : BELL_WAIT;
}

/* ---- turns ---- */

static bool is_true(const PGresult *result)
{
    return PQgetvalue(result, 0, 0)[0] == 't';
}

/* Waits only for who tries just now whether it may get up. */
static int say(struct bell *bell, struct database *database, uint64_t deadline_usec,
               struct err *err)
{
    const int r = database_run(
        database,
        bell->needed ? "SELECT pg_catalog.pg_advisory_lock_shared(1885827955, 5)"
                     : "SELECT pg_catalog.pg_advisory_unlock_shared(1885827955, 5)",
        deadline_usec, NULL, err);

    if (r < 0)
        return r;
    bell->said = bell->needed;
    bell->taken = false;
    bell->patience_usec = PATIENCE_MIN_USEC;
    bell->ask_usec = clock_usec();
    if (bell->said)
        bell->window_usec = 0;
    return 0;
}

/* Off duty: does somebody sleep? If not, calls. */
static int call(struct bell *bell, struct database *database, uint64_t deadline_usec,
                struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const int r = database_run(
        database,
        "SELECT NOT pg_catalog.pg_try_advisory_lock_shared(1885827955, 3) OR "
        "(pg_catalog.pg_advisory_unlock_shared(1885827955, 3) AND "
        "pg_catalog.pg_notify('gateway_wake', '" BELL_CALL "') IS NULL)",
        deadline_usec, &result, err);

    if (r < 0)
        return r;
    bell->taken = is_true(result);
    bell->patience_usec =
        bell->taken ? PATIENCE_MAX_USEC : MIN(bell->patience_usec * 2, PATIENCE_MAX_USEC);
    bell->ask_usec = clock_usec() + bell->patience_usec;
    return 0;
}

static int lie_down(struct bell *bell, struct database *database, uint64_t deadline_usec,
                    struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const bool waits = must_sleep(bell);
    const int r = database_run(
        database,
        waits ? "SELECT pg_catalog.set_config('lock_timeout', '20ms', true) IS NOT NULL, "
                "pg_catalog.pg_advisory_lock(1885827955, 3)"
              : "SELECT pg_catalog.pg_try_advisory_lock(1885827955, 3)",
        deadline_usec, &result, err);

    if (r == -EIO && waits && strcmp(database_sqlstate(database), "55P03") == 0)
        be_refused(bell, clock_usec());
    else if (r < 0)
        return r;
    else if (is_true(result))
        be_asleep(bell, clock_usec());
    else
        be_refused(bell, clock_usec());
    return 0;
}

/* Not while somebody needs every ring. */
static int get_up(struct bell *bell, struct database *database, uint64_t deadline_usec,
                  struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const int r = database_run(
        database,
        "SELECT CASE WHEN pg_catalog.pg_try_advisory_lock(1885827955, 5) THEN "
        "pg_catalog.pg_advisory_unlock(1885827955, 5) AND "
        "pg_catalog.pg_advisory_unlock(1885827955, 3) ELSE false END",
        deadline_usec, &result, err);

    if (r < 0)
        return r;
    if (is_true(result))
        be_awake(bell, clock_usec());
    else
        bell->ask_usec = clock_usec() + PATIENCE_MAX_USEC;
    return 0;
}

int bell_turn(struct bell *bell, struct database *database, uint64_t deadline_usec,
              struct err *err)
{
    if (bell->needed != bell->said)
        return say(bell, database, deadline_usec, err);
    if (bell->state == BELL_OFF_DUTY)
        return call(bell, database, deadline_usec, err);
    if (bell->state == BELL_AWAKE)
        return lie_down(bell, database, deadline_usec, err);
    return get_up(bell, database, deadline_usec, err);
}

/* ---- what is heard, and what is done ---- */

uint64_t bell_due(const struct bell *bell)
{
    const bool asks = bell->state == BELL_OFF_DUTY && bell->said;

    return asks ? MIN(bell->due_usec, bell->ask_usec) : bell->due_usec;
}

void bell_need(struct bell *bell, bool needed)
{
    bell->needed = needed;
}

bool bell_is_taken(const struct bell *bell)
{
    return bell->state == BELL_ASLEEP || (bell->state == BELL_OFF_DUTY && bell->taken);
}

void bell_called(struct bell *bell)
{
    if (bell->state != BELL_AWAKE || bell->called)
        return;
    bell->called = true;
    bell->window_usec = 0;
}

void bell_sweep_soon(struct bell *bell, uint64_t now_usec)
{
    bell->due_usec = MIN(bell->due_usec, now_usec);
}

void bell_rung(struct bell *bell, uint64_t now_usec)
{
    if (bell->state == BELL_OFF_DUTY) {
        bell_sweep_soon(bell, now_usec + START_USEC);
        return;
    }
    if (bell->state == BELL_AWAKE) /* from when it slept */
        return;
    if (now_usec >= bell->begun_usec + WINDOW_USEC)
        count_anew(bell, now_usec);
    bell->count++;
    bell_sweep_soon(bell, bell->count < MANY_RINGS ? now_usec
                                                   : MAX(now_usec, bell->rested_usec));
}

void bell_sweeping(struct bell *bell, uint64_t now_usec)
{
    bell->due_usec = CLOCK_NEVER;
    bell->swept_usec = now_usec;
}

void bell_swept(struct bell *bell, uint64_t now_usec, bool found)
{
    const uint64_t worked = now_usec - bell->swept_usec;
    const uint64_t rest = MIN(MAX(worked, PAUSE_MIN_USEC), PAUSE_MAX_USEC);

    bell->rested_usec = now_usec + rest;
    if (bell->state != BELL_AWAKE)
        return;
    bell->count += found;
    bell->due_usec = now_usec + (found ? rest : bell->pause_usec);
}
