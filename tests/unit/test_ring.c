/* test_ring.c - the newest events, in order, for many readers at their own pace. */
#include "ring_frames.h"

#include <malloc.h>
#include <poll.h>

#include "clock.h"

/* -- a ring and its plain model, driven together -- */

#define MODEL_READERS 2
#define MODEL_SLOTS   1024

struct model {
    struct ring *ring;
    size_t bytes_max;
    uint64_t next;
    uint64_t oldest;
    size_t bytes;
    size_t *weights; /* by position */
    struct {
        bool in_round;
        uint64_t position;
        const struct sse_frame *held[HELD_MAX];
        size_t held_count;
    } readers[MODEL_READERS];
};

static void model_begin(struct model *model, size_t bytes_max, size_t pushes_max)
{
    memset(model, 0, sizeof(*model));
    model->ring = ring_new(bytes_max, MODEL_READERS);
    model->weights = calloc(2 * pushes_max + 1, sizeof(*model->weights));
    assert_non_null(model->ring);
    assert_non_null(model->weights);
    model->bytes_max = bytes_max;
    model->next = model->oldest = 1;
    for (unsigned i = 0; i < MODEL_READERS; i++)
        model->readers[i].position = 1;
    ring_start(model->ring, 0, 0);
}

static void model_push(struct model *model, size_t data_len)
{
    struct sse_frame *frame = frame_new(model->next, data_len);
    const size_t weight = sse_frame_weight(frame);

    while (model->oldest < model->next && (model->bytes + weight > model->bytes_max ||
                                           model->next - model->oldest == MODEL_SLOTS))
        model->bytes -= model->weights[model->oldest++];
    model->weights[model->next] = weight;
    model->bytes += weight;
    model->next++;
    ring_push(model->ring, frame);
}

/* The seq is that of the position left empty, so that all others keep theirs. */
static void model_restart(struct model *model)
{
    ring_restart(model->ring, seq_of(model->next));
    model->oldest = ++model->next;
    model->bytes = 0;
}

static void model_turn_round(struct model *model, unsigned index)
{
    struct ring_reader *reader = ring_reader(model->ring, index);

    if (!model->readers[index].in_round) {
        ring_enter(reader);
    } else {
        for (size_t i = 0; i < model->readers[index].held_count; i++) {
            const struct sse_frame *frame = model->readers[index].held[i];
            assert_true(frame_is(frame, frame->position));
        }
        model->readers[index].held_count = 0;
        ring_leave(reader);
    }
    model->readers[index].in_round = !model->readers[index].in_round;
}

static void model_read(struct model *model, unsigned index)
{
    struct ring_reader *reader = ring_reader(model->ring, index);
    const uint64_t before = model->readers[index].position;
    uint64_t position = before;
    const struct sse_frame *frame = NULL;

    if (!model->readers[index].in_round || model->readers[index].held_count == HELD_MAX)
        return;
    const enum ring_result result = ring_read(reader, &position, &frame);
    if (before == model->next) {
        assert_int_equal(result, RING_EMPTY);
        assert_int_equal(position, before);
    } else if (before < model->oldest) {
        assert_int_equal(result, RING_LAGGED);
        assert_int_equal(position, before);
        position = model->oldest;
    } else {
        assert_int_equal(result, RING_FRAME);
        assert_int_equal(position, before + 1);
        assert_true(frame_is(frame, before));
        model->readers[index].held[model->readers[index].held_count++] = frame;
    }
    model->readers[index].position = position;
}

static void check_find(struct model *model, uint64_t seq)
{
    struct ring_reader *reader = ring_reader(model->ring, 0);
    uint64_t position = 0;
    const enum ring_place place = ring_find(reader, seq, &position);

    if (seq < seq_of(model->oldest - 1)) {
        assert_int_equal(place, RING_TOO_OLD);
    } else if (seq > seq_of(model->next - 1)) {
        assert_int_equal(place, RING_AHEAD);
    } else {
        assert_int_equal(place, RING_FOUND);
        assert_int_equal(position, seq / 3 + 1);
    }
}

static void model_compare(struct model *model)
{
    struct ring_reader *reader = ring_reader(model->ring, 0);
    size_t events, bytes;
    uint64_t now = 0;

    ring_size(model->ring, &events, &bytes);
    assert_int_equal(events, model->next - model->oldest);
    assert_int_equal(bytes, model->bytes);
    assert_int_equal(ring_next(reader), model->next);
    assert_int_equal(ring_floor(reader), seq_of(model->oldest - 1));
    assert_true(ring_now(reader, &now));
    assert_int_equal(now, seq_of(model->next - 1));
}

static void model_end(struct model *model)
{
    for (unsigned i = 0; i < MODEL_READERS; i++) {
        if (model->readers[i].in_round)
            model_turn_round(model, i);
    }
    ring_free(model->ring);
    free(model->weights);
}

/* -- against the model -- */

static void step(struct model *model, unsigned operation)
{
    switch (operation) {
    case 0:
        model_push(model, 10);
        break;
    case 1:
        model_push(model, 1000); /* drops all that is there, and is kept alone */
        break;
    case 2:
    case 3:
        model_turn_round(model, operation - 2);
        break;
    case 4:
    case 5:
        model_read(model, operation - 4);
        break;
    default:
        model_restart(model);
        break;
    }
}

/* Every sequence of six operations, after a beginning in which the ring has filled. */
static void every_short_history_is_that_of_a_plain_list(void **state)
{
    enum { LENGTH = 6, OPERATIONS = 7 };
    unsigned history[LENGTH] = {0};
    unsigned digit = 0;

    (void)state;
    while (digit < LENGTH) {
        struct model model;

        model_begin(&model, 350, 16); /* room for two small frames */
        for (int i = 0; i < 3; i++)
            model_push(&model, 10);
        for (unsigned i = 0; i < LENGTH; i++)
            step(&model, history[i]);
        model_compare(&model);
        ring_enter(ring_reader(model.ring, 1));
        ring_leave(ring_reader(model.ring, 1));
        model_end(&model);
        for (digit = 0; digit < LENGTH && ++history[digit] == OPERATIONS; digit++)
            history[digit] = 0;
    }
}

/* The same over long histories, in which slots are used again many times. */
static void walk(size_t bytes_max, size_t data_max, uint64_t seed)
{
    enum { STEPS = 40000 };
    struct model model;

    model_begin(&model, bytes_max, STEPS);
    for (int i = 0; i < STEPS; i++) {
        const uint64_t what = dice(&seed) % 16;

        if (what < 7)
            model_push(&model, data_len_of(model.next, data_max) + dice(&seed) % 20);
        else if (what < 12)
            model_read(&model, dice(&seed) % MODEL_READERS);
        else if (what < 15)
            model_turn_round(&model, dice(&seed) % MODEL_READERS);
        else if (dice(&seed) % 100 == 0)
            model_restart(&model);
        else if (model.readers[0].in_round)
            check_find(&model, dice(&seed) % (seq_of(model.next) + 3));
        if (i % 16 == 0)
            model_compare(&model);
        if (i % 4096 == 0 && !model.readers[0].in_round)
            model_turn_round(&model, 0);
    }
    for (uint64_t near = 0; near < 3000 && model.readers[0].in_round; near++)
        check_find(&model, seq_of(model.next) + 2 - MIN(near, seq_of(model.next)));
    model_end(&model);
}

static void long_histories_are_those_of_a_plain_list(void **state)
{
    (void)state;
    walk(200, 100, 1);     /* hardly more than one frame */
    walk(4000, 300, 2);    /* bounded by bytes */
    walk(256000, 3000, 3); /* by bytes, often */
    walk(1 << 18, 30, 4);  /* by its 1024 slots */
    walk(0, 10, 5);        /* by nothing but the rule that the newest stays */
}

/* -- small truths -- */

static void before_the_start_nothing_is_found(void **state)
{
    struct ring *ring = ring_new(1000, 1);
    struct ring_reader *reader = ring_reader(ring, 0);
    uint64_t position = 77, now = 77;

    (void)state;
    ring_enter(reader);
    assert_int_equal(ring_find(reader, 0, &position), RING_NOT_STARTED);
    assert_int_equal(ring_find(reader, UINT64_MAX, &position), RING_NOT_STARTED);
    assert_int_equal(position, 77);
    ring_leave(reader);
    assert_false(ring_now(reader, &now));
    assert_int_equal(now, 77);

    ring_start(ring, 41, 43);
    ring_enter(reader);
    assert_int_equal(ring_find(reader, 40, &position), RING_TOO_OLD);
    assert_int_equal(ring_find(reader, 42, &position), RING_AHEAD);
    assert_int_equal(ring_find(reader, 41, &position), RING_FOUND);
    assert_int_equal(position, 1);
    ring_leave(reader);
    assert_int_equal(ring_floor(reader), 41);
    ring_free(ring);
}

/* What was committed before the ring began is no news, though it is pushed only now. */
static void now_is_behind_what_was_there_at_the_start(void **state)
{
    struct ring *ring = ring_new(10000, 1);
    struct ring_reader *reader = ring_reader(ring, 0);
    uint64_t now = 0;

    (void)state;
    ring_start(ring, 2, 7);
    for (uint64_t position = 1; position <= 4; position++) {
        assert_true(ring_now(reader, &now));
        assert_int_equal(now, MAX(seq_of(position - 1), (uint64_t)7));
        ring_push(ring, frame_new(position, 10)); /* 3, 6, 9, 12 */
    }
    ring_free(ring);
}

static void only_who_sleeps_is_woken(void **state)
{
    struct ring *ring = ring_new(10000, 2);
    struct ring_reader *sleeper = ring_reader(ring, 0);
    struct ring_reader *other = ring_reader(ring, 1);

    (void)state;
    ring_start(ring, 0, 0);
    assert_true(ring_sleep(sleeper, 1));
    ring_push(ring, frame_new(1, 10));
    assert_false(is_ringing(sleeper, 0)); /* not before ring_wake() */
    ring_wake(ring);
    assert_true(is_ringing(sleeper, 0));
    assert_false(is_ringing(other, 0));
    ring_awake(sleeper);
    assert_false(ring_sleep(sleeper, 1)); /* there is something to read */
    assert_false(is_ringing(sleeper, 0));
    ring_wake(ring);
    assert_false(is_ringing(sleeper, 0)); /* it is awake */
    assert_false(ring_sleep(sleeper, 1)); /* there still is */
    ring_wake(ring);
    assert_false(is_ringing(sleeper, 0));
    assert_true(ring_sleep(sleeper, 2));
    ring_awake(sleeper); /* something else woke it */
    ring_wake(ring);
    assert_false(is_ringing(sleeper, 0));
    ring_free(ring);
    ring_free(NULL);
}

/* Also who had read everything: what comes next is not what it waited for. */
static void a_restart_overtakes_everybody(void **state)
{
    static const uint64_t life = (uint64_t)1 << 40;
    struct ring *ring = ring_new(10000, 2);
    struct ring_reader *awake = ring_reader(ring, 0), *sleeper = ring_reader(ring, 1);
    const struct sse_frame *held = NULL, *other;
    uint64_t position = 1, now = 0, end = 3;
    size_t events, bytes;

    (void)state;
    ring_start(ring, 0, 0);
    ring_push(ring, frame_new(1, 10));
    ring_push(ring, frame_new(2, 10));
    assert_true(ring_sleep(sleeper, end));
    ring_enter(awake);
    assert_int_equal(ring_read(awake, &position, &held), RING_FRAME);
    ring_restart(ring, life);
    ring_wake(ring);
    assert_true(frame_is(held, 1));
    assert_int_equal(ring_read(awake, &position, &other), RING_LAGGED);
    assert_int_equal(ring_find(awake, seq_of(2), &position), RING_TOO_OLD);
    assert_int_equal(ring_find(awake, life - 1, &position), RING_TOO_OLD);
    assert_int_equal(ring_find(awake, life + 1, &position), RING_AHEAD);
    assert_int_equal(ring_find(awake, life, &position), RING_FOUND);
    assert_int_equal(ring_read(awake, &position, &other), RING_EMPTY);
    ring_leave(awake);
    assert_true(ring_now(awake, &now));
    assert_int_equal(now, life);
    assert_int_equal(ring_floor(awake), life);
    ring_size(ring, &events, &bytes);
    assert_int_equal(events + bytes, 0);

    assert_true(is_ringing(sleeper, 0));
    ring_awake(sleeper);
    assert_false(ring_sleep(sleeper, end));
    ring_enter(sleeper);
    assert_int_equal(ring_read(sleeper, &end, &other), RING_LAGGED);
    ring_push(ring, frame_new(position, 10));
    assert_int_equal(ring_read(sleeper, &end, &other), RING_LAGGED);
    assert_int_equal(ring_read(sleeper, &position, &other), RING_FRAME);
    assert_true(frame_is(other, position - 1));
    ring_leave(sleeper);
    ring_free(ring);
}

/* A reader that never leaves its round keeps what it could hold; once it has left, what was
 * dropped is freed. (The sanitizers' malloc counts nothing: they see the rest.) */
static void what_nobody_can_hold_is_freed(void **state)
{
    enum { PUSHES = 20000 };
    struct ring *ring = ring_new(20000, 2);
    struct ring_reader *reader = ring_reader(ring, 0);
    uint64_t next = 1;

    (void)state;
    const size_t before = mallinfo2().uordblks;
    for (; next <= PUSHES; next++) {
        ring_push(ring, frame_new(next, 300));
        ring_enter(reader);
        ring_leave(reader);
    }
    assert_true(mallinfo2().uordblks < before + 40000);

    ring_enter(reader);
    for (; next <= 2 * PUSHES; next++)
        ring_push(ring, frame_new(next, 300));
    ring_leave(reader);
    for (int i = 0; i < 3; i++)
        ring_wake(ring); /* it frees too: the last ones do not wait for the next event */
    assert_true(mallinfo2().uordblks < before + 40000);
    for (int i = 0; i < 20; i++, next++) {
        ring_restart(ring, seq_of(next));
        for (int j = 0; j < 30; j++)
            ring_push(ring, frame_new(++next, 300));
    }
    assert_true(mallinfo2().uordblks < before + 40000);
    ring_free(ring);
}

/* Frames that are not stored have the seq of the event before them. */
static void frames_of_one_seq_are_behind_its_event(void **state)
{
    struct ring *ring = ring_new(MIB, 1);
    struct ring_reader *reader = ring_reader(ring, 0);
    uint64_t position;

    (void)state;
    assert_non_null(ring);
    ring_start(ring, 5, 5);
    /* 5 7 7 7 9, at the positions 1 to 5. */
    static const uint64_t seqs[] = {5, 7, 7, 7, 9};
    size_t weight = 0;
    for (size_t i = 0; i < ARRAY_SIZE(seqs); i++) {
        struct sse_frame *frame = frame_new(1, 10);
        frame->seq = seqs[i];
        weight = sse_frame_weight(frame);
        ring_push(ring, frame);
    }
    ring_enter(reader);
    assert_int_equal(ring_find(reader, 5, &position), RING_FOUND);
    assert_int_equal(position, 2);
    assert_int_equal(ring_find(reader, 7, &position), RING_FOUND);
    assert_int_equal(position, 5);
    assert_int_equal(ring_find(reader, 9, &position), RING_FOUND);
    assert_int_equal(position, 6);
    assert_true(ring_holds(reader, 1));
    ring_leave(reader);
    /* All but the last are dropped: no event after 7 is. */
    ring_push(ring, frame_new(11, MIB - weight * 5 / 2));
    ring_enter(reader);
    assert_int_equal(ring_floor(reader), 7);
    assert_int_equal(ring_find(reader, 7, &position), RING_FOUND);
    assert_int_equal(position, 5);
    assert_false(ring_holds(reader, 4));
    assert_true(ring_holds(reader, 5));
    assert_true(ring_holds(reader, 7));
    ring_leave(reader);
    ring_restart(ring, 100);
    ring_enter(reader);
    assert_false(ring_holds(reader, 7));
    assert_true(ring_holds(reader, 8));
    ring_leave(reader);
    ring_free(ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_of_one_seq_are_behind_its_event),
        cmocka_unit_test(every_short_history_is_that_of_a_plain_list),
        cmocka_unit_test(long_histories_are_those_of_a_plain_list),
        cmocka_unit_test(before_the_start_nothing_is_found),
        cmocka_unit_test(now_is_behind_what_was_there_at_the_start),
        cmocka_unit_test(only_who_sleeps_is_woken),
        cmocka_unit_test(a_restart_overtakes_everybody),
        cmocka_unit_test(what_nobody_can_hold_is_freed),
    };

    /* What is freed does not look alive for a moment longer. */
    (void)mallopt(M_PERTURB, 0x5a);
    return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
