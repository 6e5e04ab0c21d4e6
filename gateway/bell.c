/*
 * bell.c - when the sweeper polls, and when it sleeps until it is rung for.
 */
#include "bell.h"

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
    bell->due_usec = now_usec; /* whoever did not ring can be seen now */
    count_anew(bell, now_usec);
}

/* Somebody who was told not to ring is not done yet. Usually he will be in a moment. */
static void be_refused(struct bell *bell, uint64_t now_usec)
{
    bell->pause_usec = MIN(bell->pause_usec * 2, PAUSE_LIMIT_USEC);
    bell->window_usec = WINDOW_USEC;
    count_anew(bell, now_usec);
}

enum bell_step bell_next(struct bell *bell, uint64_t now_usec)
{
    if (bell->state == BELL_ASLEEP && bell->count >= MANY_RINGS)
        return BELL_TURN;
    if (bell->state == BELL_AWAKE && now_usec >= bell->begun_usec + bell->window_usec) {
        if (bell->count < MANY_FINDS)
            return BELL_TURN;
        bell->pause_usec = PAUSE_USEC;
        count_anew(bell, now_usec);
    }
    return now_usec >= bell->due_usec ? BELL_SWEEP : BELL_WAIT;
}

int bell_turn(struct bell *bell, struct database *database, uint64_t deadline_usec,
              struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const bool awake = bell->state == BELL_AWAKE;
    int r = database_run(database,
                         awake ? "SELECT pg_catalog.pg_try_advisory_lock(1885827955, 3)"
                               : "SELECT pg_catalog.pg_advisory_unlock(1885827955, 3)",
                         deadline_usec, &result, err);

    if (r < 0)
        return r;
    if (!awake)
        be_awake(bell, clock_usec());
    else if (PQgetvalue(result, 0, 0)[0] == 't')
        be_asleep(bell, clock_usec());
    else
        be_refused(bell, clock_usec());
    return 0;
}

uint64_t bell_due(const struct bell *bell)
{
    return bell->due_usec;
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
    bell_sweep_soon(bell, now_usec);
}

void bell_sweeping(struct bell *bell, uint64_t now_usec)
{
    bell->due_usec = CLOCK_NEVER;
    bell->swept_usec = now_usec;
}

void bell_swept(struct bell *bell, uint64_t now_usec, bool found)
{
    const uint64_t worked = now_usec - bell->swept_usec;

    if (bell->state != BELL_AWAKE)
        return;
    if (found)
        bell->count++;
    const uint64_t pause =
        found ? MIN(MAX(worked, PAUSE_MIN_USEC), PAUSE_MAX_USEC) : bell->pause_usec;
    bell->due_usec = now_usec + pause;
}
