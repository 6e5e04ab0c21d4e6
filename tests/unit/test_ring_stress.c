/* test_ring_stress.c - the ring under threads that push, read, sleep and fall behind. */
#include "ring_frames.h"

#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "clock.h"

/* Whoever waits longer than this waits in vain. */
#define PATIENCE_MSEC 20000

#define DATA_MAX 2000

#define FOR_NOTHING_MAX 10

/* -- under stress -- */

#define READERS 3
#define NO_LAST UINT64_MAX

struct stress {
    struct ring *ring;
    _Atomic bool over;
    _Atomic uint64_t last; /* position of the last push; none, while there will be more */
    _Atomic(const char *) fault; /* the first one seen by any reader */
    struct runner {
        pthread_t thread;
        struct stress *stress;
        struct ring_reader *reader;
        unsigned index;
        uint64_t position;
        uint64_t dice;
        uint64_t read, lost, sleeps;
        unsigned for_nothing;     /* wake-ups in a row that brought nothing */
        _Atomic uint64_t reached; /* everything before it has been read */
    } runners[READERS];
};

static void fault(struct runner *runner, const char *text)
{
    const char *none = NULL;

    (void)atomic_compare_exchange_strong_explicit(
        &runner->stress->fault, &none, text, memory_order_acq_rel, memory_order_acquire);
}

static const char *seen_fault(struct stress *stress)
{
    return atomic_load_explicit(&stress->fault, memory_order_acquire);
}

/* The oldest position held, or 0: it is just being moved. In a round. */
static uint64_t find_oldest(struct ring_reader *reader)
{
    uint64_t position = 0;

    return ring_find(reader, ring_floor(reader), &position) == RING_FOUND ? position : 0;
}

/* The reader was told that it is too late: then the frame never comes back, and the oldest
 * position is behind it in a moment. */
static void skip_lost(struct runner *runner)
{
    const uint64_t end = clock_usec() + PATIENCE_MSEC * USEC_PER_MSEC;
    uint64_t oldest = 0;

    while (oldest <= runner->position) {
        const struct sse_frame *frame;
        uint64_t position = runner->position;

        ring_enter(runner->reader);
        const enum ring_result again = ring_read(runner->reader, &position, &frame);
        oldest = find_oldest(runner->reader);
        ring_leave(runner->reader);
        if (again != RING_LAGGED || clock_usec() > end) {
            fault(runner, "LAGGED, and was not overtaken");
            return;
        }
    }
    runner->lost += oldest - runner->position;
    runner->position = oldest;
}

static void check_find_under_way(struct runner *runner)
{
    const uint64_t back = dice(&runner->dice) % 200;
    const uint64_t seq =
        seq_of(runner->position - MIN(back, runner->position)) + back % 3;
    uint64_t position = 0;

    switch (ring_find(runner->reader, seq, &position)) {
    case RING_FOUND:
        if (position != seq / 3 + 1)
            fault(runner, "found at a wrong place");
        break;
    case RING_TOO_OLD:
        break;
    case RING_AHEAD:
        if (seq < seq_of(runner->position - 1))
            fault(runner, "an id that was there is AHEAD");
        break;
    case RING_NOT_STARTED:
        fault(runner, "not started");
        break;
    }
}

/* One round: reads a few, holds them all for a while, looks at them again. */
static enum ring_result run_round(struct runner *runner)
{
    const struct sse_frame *held[HELD_MAX];
    const size_t wanted = 1 + dice(&runner->dice) % HELD_MAX;
    enum ring_result result = RING_FRAME;
    size_t count = 0;

    ring_enter(runner->reader);
    while (count < wanted && result == RING_FRAME) {
        result = ring_read(runner->reader, &runner->position, &held[count]);
        if (result == RING_FRAME && !frame_is(held[count++], runner->position - 1))
            fault(runner, "not the frame of its position");
    }
    if (dice(&runner->dice) % 64 == 0)
        check_find_under_way(runner);
    /* The slowest reader lingers, and is overtaken again and again. */
    if (runner->index == 2 && dice(&runner->dice) % 32 == 0)
        (void)poll(NULL, 0, 1);
    for (size_t i = 0; i < count; i++) {
        if (!frame_is(held[i], runner->position - count + i))
            fault(runner, "a frame changed while it was held");
    }
    ring_leave(runner->reader);
    runner->read += count;
    return result;
}

/* Now and then something else wakes the reader, perhaps while a ring is on its way. */
static bool run_sleep(struct runner *runner)
{
    const bool restless = dice(&runner->dice) % 4 == 0;

    if (!ring_sleep(runner->reader, runner->position))
        return true;
    runner->sleeps++;
    const bool rung = is_ringing(runner->reader, restless ? 0 : PATIENCE_MSEC);
    if (!rung && !restless) {
        fault(runner, "nobody woke the reader");
        return false;
    }
    ring_awake(runner->reader);
    /* A ring that comes late may wake it for nothing, but not again and again. */
    if (ring_next(runner->reader) > runner->position)
        runner->for_nothing = 0;
    else if (rung && ++runner->for_nothing > FOR_NOTHING_MAX)
        fault(runner, "the reader is woken again and again for nothing");
    return true;
}

static void *run_reader(void *argument)
{
    struct runner *runner = argument;
    struct stress *stress = runner->stress;

    while (seen_fault(stress) == NULL) {
        const enum ring_result result = run_round(runner);

        if (result == RING_LAGGED)
            skip_lost(runner);
        atomic_store_explicit(&runner->reached, runner->position, memory_order_release);
        if (runner->position ==
            atomic_load_explicit(&stress->last, memory_order_acquire) + 1)
            break;
        if (result == RING_EMPTY && !run_sleep(runner))
            break;
    }
    return NULL;
}

static void stress_begin(struct stress *stress, size_t bytes, void *(*run)(void *))
{
    memset(stress, 0, sizeof(*stress));
    atomic_init(&stress->last, NO_LAST);
    stress->ring = ring_new(bytes, READERS);
    assert_non_null(stress->ring);
    ring_start(stress->ring, 0, 0);
    for (unsigned i = 0; i < READERS; i++) {
        struct runner *runner = &stress->runners[i];

        runner->stress = stress;
        runner->reader = ring_reader(stress->ring, i);
        runner->index = i;
        runner->position = 1;
        runner->dice = i + 1;
        assert_int_equal(pthread_create(&runner->thread, NULL, run, runner), 0);
    }
}

static void stress_end(struct stress *stress)
{
    for (unsigned i = 0; i < READERS; i++)
        (void)pthread_join(stress->runners[i].thread, NULL);
    if (seen_fault(stress) != NULL)
        fail_msg("%s", seen_fault(stress));
    ring_free(stress->ring);
}

/* Lets the last reader know that there is nothing behind this push. */
static void push_last(struct stress *stress, uint64_t position)
{
    atomic_store_explicit(&stress->last, position, memory_order_release);
    ring_push(stress->ring, frame_new(position, 10));
    ring_wake(stress->ring);
}

/* An event, or now and then a new life: its position belongs to nobody, and counts as lost. */
static void push_or_restart(struct stress *stress, struct sse_frame *frame,
                            uint64_t *seed, uint64_t position)
{
    if (dice(seed) % 500 != 0) {
        ring_push(stress->ring, frame);
        return;
    }
    ring_restart(stress->ring, seq_of(position));
    sse_frame_free(frame);
}

/* Bursts, so that the readers fall back; and pauses, so that they catch up and sleep. */
static void readers_see_each_event_once_in_order_and_whole(void **state)
{
    static struct stress stress;
    const uint64_t end = clock_usec() + 2 * USEC_PER_SEC;
    uint64_t seed = 99, position = 0;

    (void)state;
    stress_begin(&stress, 100000, run_reader);
    while (clock_usec() < end && seen_fault(&stress) == NULL) {
        const uint64_t burst = 1 + dice(&seed) % (dice(&seed) % 20 == 0 ? 2000 : 30);

        for (uint64_t i = 0; i < burst; i++) {
            position++;
            push_or_restart(&stress, frame_new(position, data_len_of(position, DATA_MAX)),
                            &seed, position);
        }
        ring_wake(stress.ring);
        if (dice(&seed) % 4 == 0)
            (void)poll(NULL, 0, (int)(dice(&seed) % 2));
    }
    push_last(&stress, ++position);
    stress_end(&stress);
    for (unsigned i = 0; i < READERS; i++) {
        const struct runner *runner = &stress.runners[i];

        print_message("reader %u: %llu read, %llu lost, slept %llu times\n", i,
                      (unsigned long long)runner->read, (unsigned long long)runner->lost,
                      (unsigned long long)runner->sleeps);
        assert_int_equal(runner->read + runner->lost, position);
        assert_true(runner->read > 0);
    }
    assert_true(stress.runners[2].lost > 0);
}

/* One event at a time, the next only when everybody has it: a wake-up that gets lost is
 * made good by nobody. */
static void nobody_sleeps_through_an_event(void **state)
{
    static struct stress stress;
    const uint64_t end = clock_usec() + USEC_PER_SEC;
    uint64_t seed = 5, position = 0;

    (void)state;
    stress_begin(&stress, 100000, run_reader);
    while ((clock_usec() < end || position < 10) && seen_fault(&stress) == NULL) {
        position++;
        push_or_restart(&stress, frame_new(position, 10), &seed, position);
        ring_wake(stress.ring);
        for (unsigned i = 0; i < READERS; i++) {
            while (atomic_load_explicit(&stress.runners[i].reached,
                                        memory_order_acquire) <= position &&
                   seen_fault(&stress) == NULL)
                sched_yield();
        }
        /* Sometimes they are just lying down, sometimes fast asleep. */
        for (volatile uint64_t spin = dice(&seed) % 2000; spin > 0;)
            spin = spin - 1;
    }
    push_last(&stress, ++position);
    stress_end(&stress);
}

/* Long enough for the writer to drop the frame, close the batch and free it, if it did not
 * know of the round; short enough for many rounds. */
#define CLING_LOOKS 300

/* Reads only what is about to be dropped, one frame a round, and clings to it. */
static void *run_clinger(void *argument)
{
    struct runner *runner = argument;

    while (!atomic_load_explicit(&runner->stress->over, memory_order_acquire) &&
           runner->index == 0 && seen_fault(runner->stress) == NULL) {
        const struct sse_frame *frame;

        ring_enter(runner->reader);
        const uint64_t oldest = find_oldest(runner->reader);
        uint64_t position = oldest;
        if (oldest > 0 && ring_read(runner->reader, &position, &frame) == RING_FRAME) {
            const volatile struct sse_frame *held = frame;

            runner->read++;
            for (int i = 0; i < CLING_LOOKS; i++) {
                if (held->position != oldest || held->seq != seq_of(oldest))
                    fault(runner, "the frame died in its reader's hands");
            }
        }
        ring_leave(runner->reader);
    }
    return NULL;
}

/* Made faster than by encoding it: the writer has to be quick. */
static struct sse_frame *frame_like(const struct sse_frame *model, uint64_t position)
{
    struct sse_frame *frame = malloc(sse_frame_weight(model));

    assert_non_null(frame);
    memcpy(frame, model, sse_frame_weight(model));
    frame->seq = seq_of(position);
    return frame;
}

/* The ring holds one frame, which leaves its slot with the next push: the race between
 * "I am in a round" and "it has left its slot", over and over. */
static void a_frame_found_at_the_last_moment_stays(void **state)
{
    static struct stress stress;
    const uint64_t end = clock_usec() + 3 * USEC_PER_SEC;
    struct sse_frame *model = frame_new(1, 20);
    uint64_t seed = 3, position = 0;

    (void)state;
    stress_begin(&stress, 1, run_clinger);
    while (clock_usec() < end && seen_fault(&stress) == NULL) {
        for (int i = 0; i < 100; i++) {
            position++;
            push_or_restart(&stress, frame_like(model, position), &seed, position);
        }
    }
    atomic_store_explicit(&stress.over, true, memory_order_release);
    stress_end(&stress);
    sse_frame_free(model);
    assert_true(stress.runners[0].read > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(readers_see_each_event_once_in_order_and_whole),
        cmocka_unit_test(nobody_sleeps_through_an_event),
        cmocka_unit_test(a_frame_found_at_the_last_moment_stays),
    };

    /* What is freed does not look alive for a moment longer. */
    (void)mallopt(M_PERTURB, 0x5a);
    return cmocka_run_group_tests_name("ring, under stress", tests, NULL, NULL);
}
