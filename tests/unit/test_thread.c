/* test_thread.c - the threads' names and signs of life. */
#include "thread.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "clock.h"
#include "cmocka_all.h"

struct seen {
    enum thread_kind kind;
    char name[32];
    char kernel_name[16];
    sigset_t mask;
};

static void look(void *argument)
{
    struct seen *seen = argument;

    seen->kind = thread_kind();
    strncpy(seen->name, thread_name(), sizeof(seen->name) - 1);
    pthread_getname_np(pthread_self(), seen->kernel_name, sizeof(seen->kernel_name));
    pthread_sigmask(SIG_SETMASK, NULL, &seen->mask);
}

static void run(enum thread_kind kind, unsigned index, struct seen *seen)
{
    struct thread thread = {0};

    memset(seen, 0, sizeof(*seen));
    assert_int_equal(thread_start(&thread, kind, index, look, seen, NULL), 0);
    assert_true(thread.started);
    thread_join(&thread);
    assert_false(thread.started);
}

static void a_thread_knows_its_kind_and_name(void **state)
{
    struct seen seen;

    (void)state;
    run(THREAD_LISTENER, 0, &seen);
    assert_int_equal(seen.kind, THREAD_LISTENER);
    assert_string_equal(seen.name, "listener");
    assert_string_equal(seen.kernel_name, "listener");
    run(THREAD_SHARD, 12, &seen);
    assert_int_equal(seen.kind, THREAD_SHARD);
    assert_string_equal(seen.name, "shard/12");
    assert_string_equal(seen.kernel_name, "shard/12");
}

static void whoever_was_not_started_here_is_main(void **state)
{
    (void)state;
    assert_int_equal(thread_kind(), THREAD_MAIN);
    assert_string_equal(thread_name(), "main");
    thread_beat(); /* and may beat without harm */
}

static void a_thread_blocks_every_signal_and_main_does_not(void **state)
{
    struct seen seen;
    sigset_t mask;

    (void)state;
    run(THREAD_PUBLISHER, 0, &seen);
    assert_int_equal(sigismember(&seen.mask, SIGTERM), 1);
    assert_int_equal(sigismember(&seen.mask, SIGHUP), 1);
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    assert_int_equal(sigismember(&mask, SIGTERM), 0);
}

struct beating {
    struct thread thread;
    atomic_int turn;
};

static void beat_twice(void *argument)
{
    struct beating *beating = argument;

    while (atomic_load_explicit(&beating->turn, memory_order_acquire) == 0)
        ;
    thread_beat();
    atomic_store_explicit(&beating->turn, 2, memory_order_release);
}

static void a_beat_is_seen_from_outside(void **state)
{
    struct beating beating = {0};

    (void)state;
    assert_int_equal(thread_last_beat(&beating.thread), 0);
    clock_set(1000);
    assert_int_equal(
        thread_start(&beating.thread, THREAD_READER, 0, beat_twice, &beating, NULL), 0);
    assert_int_equal(thread_last_beat(&beating.thread), 1000);
    clock_set(2000);
    atomic_store_explicit(&beating.turn, 1, memory_order_release);
    while (atomic_load_explicit(&beating.turn, memory_order_acquire) != 2)
        ;
    assert_int_equal(thread_last_beat(&beating.thread), 2000);
    thread_join(&beating.thread);
    clock_set(0);
}

static void joining_what_was_never_started_does_nothing(void **state)
{
    struct thread thread = {0};

    (void)state;
    thread_join(&thread);
    thread_join(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_thread_knows_its_kind_and_name),
        cmocka_unit_test(whoever_was_not_started_here_is_main),
        cmocka_unit_test(a_thread_blocks_every_signal_and_main_does_not),
        cmocka_unit_test(a_beat_is_seen_from_outside),
        cmocka_unit_test(joining_what_was_never_started_does_nothing),
    };
    return cmocka_run_group_tests_name("thread", tests, NULL, NULL);
}
