/* test_queue.c - requests to publish, and which of them make a batch; keyset.c with it. */
#include "queue.h"

#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "cmocka_all.h"

#define REQUESTS 2000

struct request {
    struct publish publish;
    struct event event;
    struct event_unit unit;
    char key[16];
};

static struct request requests[REQUESTS];
static struct queue queue;
static struct keyset keys;

/* Request `i`, of that many bytes, with a key unless there is none. */
static void submit(int i, size_t bytes, const char *key)
{
    struct request *request = &requests[i];

    *request = (struct request){.event = {.data_len = bytes}};
    (void)snprintf(request->key, sizeof(request->key), "%s", key != NULL ? key : "");
    request->unit = (struct event_unit){
        .key = request->key, .key_len = strlen(request->key), .count = 1};
    request->publish = (struct publish){.events = &request->event,
                                        .count = 1,
                                        .units = &request->unit,
                                        .unit_count = key != NULL,
                                        .deadline_usec = (uint64_t)(1000 + i % 7)};
    queue_add(&queue, &request->publish);
}

/* What the queue holds is this, by number, and nothing else. */
static void holds(struct queue *list, const int *numbers, size_t count)
{
    for (size_t i = 0; i < count; i++)
        assert_ptr_equal(queue_take(list), &requests[numbers[i]].publish);
    assert_null(queue_take(list));
}

#define HOLDS(list, ...)                                                                 \
    do {                                                                                 \
        const int numbers[] = {__VA_ARGS__};                                             \
        holds((list), numbers, ARRAY_SIZE(numbers));                                     \
    } while (0)

static int set_up(void **state)
{
    (void)state;
    queue_init(&queue);
    return 0;
}

static void one_queue_goes_behind_another(void **state)
{
    struct queue other;

    (void)state;
    queue_init(&other);
    queue_move(&queue, &other);
    assert_null(queue_take(&queue));
    submit(0, 1, NULL);
    submit(1, 1, NULL);
    queue_move(&other, &queue);
    assert_null(queue.first);
    submit(2, 1, NULL);
    assert_true(queue_deadline(&other) == 1000);
    queue_move(&other, &queue);
    submit(3, 1, NULL);
    HOLDS(&queue, 3);
    HOLDS(&other, 0, 1, 2);
    assert_true(queue_deadline(&other) == CLOCK_NEVER);
}

static void a_batch_keeps_to_its_limits_but_takes_one_of_any_size(void **state)
{
    struct queue batch;

    (void)state;
    submit(0, 1000, NULL);
    for (int i = 1; i < 8; i++)
        submit(i, 10, NULL);
    queue_take_batch(&queue, 3, 100, &keys, &batch);
    HOLDS(&batch, 0);
    queue_take_batch(&queue, 3, 100, &keys, &batch);
    HOLDS(&batch, 1, 2, 3);
    queue_take_batch(&queue, 100, 25, &keys, &batch);
    HOLDS(&batch, 4, 5);
    HOLDS(&queue, 6, 7);
}

static void who_shares_a_key_waits_and_stays_the_oldest(void **state)
{
    struct queue batch;

    (void)state;
    submit(0, 1, "a");
    submit(1, 1, "b");
    submit(2, 1, "a");
    submit(3, 1, NULL);
    submit(4, 1, "a");
    submit(5, 1, "c");
    queue_take_batch(&queue, 100, 100, &keys, &batch);
    HOLDS(&batch, 0, 1, 3, 5);
    submit(6, 1, "b");
    queue_take_batch(&queue, 100, 100, &keys, &batch);
    HOLDS(&batch, 2, 6);
    queue_take_batch(&queue, 100, 100, &keys, &batch);
    HOLDS(&batch, 4);
    queue_take_batch(&queue, 100, 100, &keys, &batch);
    assert_null(batch.first);
}

static void a_crowd_with_one_key_is_not_looked_through_to_its_end(void **state)
{
    struct queue batch;

    (void)state;
    for (int i = 0; i < REQUESTS; i++)
        submit(i, 1, "same");
    submit(REQUESTS - 1, 1, "other"); /* far behind: it waits its turn */
    queue_take_batch(&queue, 100, 100, &keys, &batch);
    HOLDS(&batch, 0);
    assert_ptr_equal(queue.first, &requests[1].publish);
}

static void different_keys_seldom_look_alike(void **state)
{
    int refused = 0;

    (void)state;
    keyset_clear(&keys);
    for (int i = 0; i < 5000; i++) {
        char key[16];
        const int len = snprintf(key, sizeof(key), "i:%d", i);
        const struct event_unit unit = {.key = key, .key_len = (size_t)len, .count = 1};

        refused += !keyset_add(&keys, &unit, 1);
        assert_false(keyset_add(&keys, &unit, 1));
    }
    assert_uint_in_range(refused, 0, 150);
}

static void the_keys_of_one_request_do_not_hinder_it(void **state)
{
    const struct event_unit units[] = {{.key = "a", .key_len = 1},
                                       {.key = "a", .key_len = 1}};

    (void)state;
    keyset_clear(&keys);
    assert_true(keyset_add(&keys, units, ARRAY_SIZE(units)));
    assert_false(keyset_add(&keys, units, 1));
    assert_true(keyset_add(&keys, NULL, 0));
    keyset_clear(&keys);
    assert_true(keyset_add(&keys, units, 1));
}

static void what_a_request_weighs_is_all_of_its_texts(void **state)
{
    struct event event = {
        .channel_len = 1, .type_len = 20, .data_len = 300, .attributes_len = 4000};
    struct event_unit unit = {.key_len = 50000};
    const struct publish publish = {
        .events = &event, .count = 1, .units = &unit, .unit_count = 1};

    (void)state;
    assert_int_equal(queue_bytes(&publish), 54321);
}

int main(void)
{
#define WITH_QUEUE(test) cmocka_unit_test_setup(test, set_up)
    const struct CMUnitTest tests[] = {
        WITH_QUEUE(one_queue_goes_behind_another),
        WITH_QUEUE(a_batch_keeps_to_its_limits_but_takes_one_of_any_size),
        WITH_QUEUE(who_shares_a_key_waits_and_stays_the_oldest),
        WITH_QUEUE(a_crowd_with_one_key_is_not_looked_through_to_its_end),
        WITH_QUEUE(different_keys_seldom_look_alike),
        WITH_QUEUE(the_keys_of_one_request_do_not_hinder_it),
        WITH_QUEUE(what_a_request_weighs_is_all_of_its_texts),
    };
    return cmocka_run_group_tests_name("queue", tests, NULL, NULL);
}
