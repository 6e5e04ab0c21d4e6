/* test_wheel.c - many deadlines on one clock. */
#include "wheel.h"

#include <string.h>

#include "clock.h"
#include "cmocka_all.h"
#include "failing_malloc.h"

#define SLOT (16 * USEC_PER_MSEC)
#define TURN (1024 * SLOT)

struct alarm {
    struct wheel_timer timer;
    struct wheel *wheel;
    struct wheel_timer *removes; /* while it fires; NULL: none */
    uint64_t again_usec;         /* sets itself to that; 0: not */
    unsigned fired;
};

static void ring(struct wheel_timer *timer)
{
    struct alarm *alarm = CONTAINER_OF(timer, struct alarm, timer);

    assert_false(wheel_timer_is_set(timer));
    alarm->fired++;
    if (alarm->removes != NULL)
        wheel_remove(alarm->wheel, alarm->removes);
    if (alarm->again_usec != 0)
        wheel_set(alarm->wheel, timer, alarm->again_usec);
}

static struct alarm alarm_for(struct wheel *wheel)
{
    return (struct alarm){.timer.fire = ring, .wheel = wheel};
}

#define START (1000 * SLOT + 5)

static int begin(void **state)
{
    *state = wheel_new(START);
    return *state == NULL;
}

static int end(void **state)
{
    wheel_free(*state);
    return 0;
}

static void a_timer_fires_once_not_early_and_within_a_slot(void **state)
{
    struct wheel *wheel = *state;

    for (uint64_t delay = 0; delay < 3 * SLOT; delay += 1777) {
        struct alarm alarm = alarm_for(wheel);
        uint64_t now = START + 100 * delay, due = now + delay;
        wheel_advance(wheel, now);
        wheel_set(wheel, &alarm.timer, due);
        while (alarm.fired == 0) {
            now += 500;
            wheel_advance(wheel, now);
            assert_true(alarm.fired == 0 || now >= due);
        }
        assert_true(now <= due + SLOT + 500);
        wheel_advance(wheel, now + 3 * SLOT);
        assert_int_equal(alarm.fired, 1);
    }
}

static void what_is_due_already_fires_at_the_next_slot(void **state)
{
    struct wheel *wheel = *state;
    struct alarm alarm = alarm_for(wheel);

    wheel_set(wheel, &alarm.timer, 1);
    assert_true(wheel_next_usec(wheel) <= START + SLOT);
    wheel_advance(wheel, START + SLOT);
    assert_int_equal(alarm.fired, 1);
}

static void a_timer_of_a_later_turn_waits_for_it(void **state)
{
    struct wheel *wheel = *state;
    struct alarm alarm = alarm_for(wheel);
    uint64_t due = START + 5 * TURN + 3 * SLOT;

    wheel_set(wheel, &alarm.timer, due);
    for (uint64_t now = START; now < due; now += SLOT) {
        wheel_advance(wheel, now);
        assert_int_equal(alarm.fired, 0);
    }
    wheel_advance(wheel, due + SLOT);
    assert_int_equal(alarm.fired, 1);
}

static void after_a_long_sleep_all_that_is_due_fires(void **state)
{
    struct wheel *wheel = *state;
    struct alarm alarms[200];

    for (size_t i = 0; i < ARRAY_SIZE(alarms); i++) {
        alarms[i] = alarm_for(wheel);
        wheel_set(wheel, &alarms[i].timer, START + i * TURN / 40);
    }
    wheel_advance(wheel, START + 4 * TURN);
    for (size_t i = 0; i < ARRAY_SIZE(alarms); i++)
        if (i != 160) /* that one is due in the very slot that is not over yet */
            assert_int_equal(alarms[i].fired, i < 160);
    wheel_advance(wheel, START + 40 * TURN);
    for (size_t i = 0; i < ARRAY_SIZE(alarms); i++)
        assert_int_equal(alarms[i].fired, 1);
    assert_true(wheel_next_usec(wheel) == CLOCK_NEVER);
}

static void a_timer_can_be_moved_and_removed(void **state)
{
    struct wheel *wheel = *state;
    struct alarm alarm = alarm_for(wheel);

    assert_false(wheel_timer_is_set(&alarm.timer));
    wheel_remove(wheel, &alarm.timer);
    wheel_set(wheel, &alarm.timer, START + SLOT);
    assert_true(wheel_timer_is_set(&alarm.timer));
    wheel_set(wheel, &alarm.timer, START + 100 * SLOT);
    wheel_advance(wheel, START + 50 * SLOT);
    assert_int_equal(alarm.fired, 0);
    wheel_remove(wheel, &alarm.timer);
    assert_false(wheel_timer_is_set(&alarm.timer));
    assert_true(wheel_next_usec(wheel) == CLOCK_NEVER);
    wheel_advance(wheel, START + 200 * SLOT);
    assert_int_equal(alarm.fired, 0);
    wheel_set(wheel, &alarm.timer, CLOCK_NEVER);
    assert_false(wheel_timer_is_set(&alarm.timer));
}

static void a_timer_that_fires_may_remove_its_neighbours_and_set_itself(void **state)
{
    struct wheel *wheel = *state;
    struct alarm alarms[3];

    for (size_t i = 0; i < 3; i++) {
        alarms[i] = alarm_for(wheel);
        wheel_set(wheel, &alarms[i].timer, START + SLOT);
    }
    alarms[0].removes = &alarms[1].timer;
    alarms[2].again_usec = START; /* the past: must not keep the advance busy for ever */
    wheel_advance(wheel, START + 2 * SLOT);
    assert_int_equal(alarms[0].fired, 1);
    assert_int_equal(alarms[1].fired, 0);
    assert_int_equal(alarms[2].fired, 1);
    alarms[2].again_usec = 0;
    wheel_advance(wheel, START + 3 * SLOT);
    assert_int_equal(alarms[2].fired, 2);
    assert_true(wheel_next_usec(wheel) == CLOCK_NEVER);
}

static void time_does_not_go_back(void **state)
{
    struct wheel *wheel = *state;
    struct alarm alarm = alarm_for(wheel);

    wheel_advance(wheel, START + 10 * SLOT);
    wheel_set(wheel, &alarm.timer, START + 12 * SLOT);
    wheel_advance(wheel, START);
    wheel_advance(wheel, START + 10 * SLOT);
    assert_int_equal(alarm.fired, 0);
    wheel_advance(wheel, START + 13 * SLOT);
    assert_int_equal(alarm.fired, 1);
}

/* The sleeper's loop: it wakes only when told to, misses nothing and does not spin. */
static void sleeping_until_the_next_deadline_is_enough(void **state)
{
    struct wheel *wheel = *state;
    uint64_t now = START, random = 1;
    unsigned wakes = 0;

    for (unsigned round = 0; round < 300; round++) {
        struct alarm alarm = alarm_for(wheel);
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint64_t due = now + (random >> 33) % (3 * TURN);
        wheel_set(wheel, &alarm.timer, due);
        while (alarm.fired == 0) {
            uint64_t next = wheel_next_usec(wheel);
            assert_true(next > now && next <= due + SLOT);
            now = next;
            wheel_advance(wheel, now);
            wakes++;
        }
        assert_true(now >= due && now <= due + SLOT);
        assert_true(wheel_next_usec(wheel) == CLOCK_NEVER);
    }
    assert_true(wakes < 300 * 4); /* one a turn, and the last */
}

/* The oracle: a plain array that is looked through from end to end. */
static void a_thousand_random_moves_agree_with_a_plain_list(void **state)
{
    static struct alarm alarms[500];
    static uint64_t due[500]; /* 0: not set */
    struct wheel *wheel = *state;
    uint64_t now = START, random = 42;

    for (size_t i = 0; i < ARRAY_SIZE(alarms); i++)
        alarms[i] = alarm_for(wheel);
    memset(due, 0, sizeof(due));
    for (unsigned move = 0; move < 50000; move++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        size_t i = (random >> 33) % ARRAY_SIZE(alarms);
        switch ((random >> 20) % 8) {
        case 0:
            wheel_remove(wheel, &alarms[i].timer);
            due[i] = 0;
            break;
        case 1:
            now += (random >> 40) % (random % 50 == 0 ? 2 * TURN : SLOT);
            wheel_advance(wheel, now);
            for (size_t k = 0; k < ARRAY_SIZE(alarms); k++) {
                if (alarms[k].fired != 0) {
                    assert_int_equal(alarms[k].fired, 1);
                    assert_true(due[k] != 0 && due[k] <= now);
                    alarms[k].fired = 0;
                    due[k] = 0;
                }
                assert_true(due[k] == 0 || due[k] + SLOT > now);
                assert_int_equal(due[k] != 0, wheel_timer_is_set(&alarms[k].timer));
            }
            break;
        default:
            due[i] = now + (random >> 35) % TURN;
            wheel_set(wheel, &alarms[i].timer, due[i]);
            break;
        }
    }
}

static void a_freed_wheel_forgets_its_timers(void **state)
{
    struct wheel *wheel = wheel_new(0);
    struct alarm alarm = alarm_for(wheel);

    (void)state;
    wheel_set(wheel, &alarm.timer, 100);
    wheel_free(wheel);
    assert_false(wheel_timer_is_set(&alarm.timer));
    wheel_free(NULL);
}

static void without_memory_there_is_no_wheel(void **state)
{
    (void)state;
    failing_malloc_begin(1);
    assert_null(wheel_new(0));
    assert_true(failing_malloc_end());
}

int main(void)
{
#define WHEEL_TEST(name) cmocka_unit_test_setup_teardown(name, begin, end)
    const struct CMUnitTest tests[] = {
        WHEEL_TEST(a_timer_fires_once_not_early_and_within_a_slot),
        WHEEL_TEST(what_is_due_already_fires_at_the_next_slot),
        WHEEL_TEST(a_timer_of_a_later_turn_waits_for_it),
        WHEEL_TEST(after_a_long_sleep_all_that_is_due_fires),
        WHEEL_TEST(a_timer_can_be_moved_and_removed),
        WHEEL_TEST(a_timer_that_fires_may_remove_its_neighbours_and_set_itself),
        WHEEL_TEST(time_does_not_go_back),
        WHEEL_TEST(sleeping_until_the_next_deadline_is_enough),
        WHEEL_TEST(a_thousand_random_moves_agree_with_a_plain_list),
        cmocka_unit_test(a_freed_wheel_forgets_its_timers),
        cmocka_unit_test(without_memory_there_is_no_wheel),
    };
    return cmocka_run_group_tests_name("wheel", tests, NULL, NULL);
}
