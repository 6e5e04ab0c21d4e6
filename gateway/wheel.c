/*
 * wheel.c - many deadlines on one clock.
 *
 * Not a heap: setting and removing a timer happens for every heartbeat of every stream,
 * and is four pointer writes here. Not several wheels in a hierarchy: nearly all
 * deadlines are within one turn (16.4 s); a farther one is looked at once a turn.
 */
#include "wheel.h"

#include "clock.h"

#define SLOT_COUNT ((size_t)1024)
#define SLOT_USEC  (16 * USEC_PER_MSEC)
#define FIRING     SLOT_COUNT /* the list that is being fired, behind the slots */
#define WORD_BITS  ((size_t)64)

struct wheel {
    uint64_t tick; /* slots passed since the clock's 0: everything due at it has fired */
    uint64_t occupied[SLOT_COUNT / WORD_BITS]; /* a bit a slot: its list is not empty */
    struct wheel_timer heads[SLOT_COUNT + 1];  /* circular lists; heads carry no timer */
};

static void list_init(struct wheel_timer *head)
{
    head->next = head;
    head->prev = head;
}

struct wheel *wheel_new(uint64_t now_usec)
{
    struct wheel *wheel = calloc(1, sizeof(*wheel));
    if (wheel == NULL)
        return NULL;

    wheel->tick = now_usec / SLOT_USEC;
    for (size_t i = 0; i < ARRAY_SIZE(wheel->heads); i++)
        list_init(&wheel->heads[i]);
    return wheel;
}

void wheel_free(struct wheel *wheel)
{
    if (wheel == NULL)
        return;
    for (size_t i = 0; i < ARRAY_SIZE(wheel->heads); i++) {
        struct wheel_timer *head = &wheel->heads[i];
        while (head->next != head)
            wheel_remove(wheel, head->next);
    }
    free(wheel);
}

/* The first tick that is not before the deadline: rounded up, so that nothing fires
 * early. */
static uint64_t due_tick(uint64_t due_usec)
{
    return due_usec / SLOT_USEC + (due_usec % SLOT_USEC != 0);
}

static void insert(struct wheel *wheel, struct wheel_timer *timer)
{
    /* What is due already goes into the next slot, not into one that has been passed. */
    uint64_t tick = MAX(due_tick(timer->due_usec), wheel->tick + 1);
    size_t slot = (size_t)(tick % SLOT_COUNT);
    struct wheel_timer *head = &wheel->heads[slot];

    timer->next = head;
    timer->prev = head->prev;
    head->prev->next = timer;
    head->prev = timer;
    wheel->occupied[slot / WORD_BITS] |= UINT64_C(1) << (slot % WORD_BITS);
}

void wheel_remove(struct wheel *wheel, struct wheel_timer *timer)
{
    if (!wheel_timer_is_set(timer))
        return;

    struct wheel_timer *next = timer->next, *prev = timer->prev;
    prev->next = next;
    next->prev = prev;
    timer->next = NULL;
    timer->prev = NULL;
    if (next != prev)
        return;
    /* It may have been the last of its slot: then both neighbours are the slot's head.
     * With one timer left beside the head they differ. */
    size_t slot = (size_t)(next - wheel->heads);
    if (slot < SLOT_COUNT)
        wheel->occupied[slot / WORD_BITS] &= ~(UINT64_C(1) << (slot % WORD_BITS));
}

void wheel_set(struct wheel *wheel, struct wheel_timer *timer, uint64_t due_usec)
{
    wheel_remove(wheel, timer);
    timer->due_usec = due_usec;
    if (due_usec != CLOCK_NEVER)
        insert(wheel, timer);
}

bool wheel_timer_is_set(const struct wheel_timer *timer)
{
    return timer->next != NULL;
}

/* Moves the slot's timers to the firing list; false if there are none. */
static bool take_slot(struct wheel *wheel, size_t slot)
{
    struct wheel_timer *head = &wheel->heads[slot], *firing = &wheel->heads[FIRING];

    if (head->next == head)
        return false;
    firing->next = head->next;
    firing->prev = head->prev;
    firing->next->prev = firing;
    firing->prev->next = firing;
    list_init(head);
    wheel->occupied[slot / WORD_BITS] &= ~(UINT64_C(1) << (slot % WORD_BITS));
    return true;
}

void wheel_advance(struct wheel *wheel, uint64_t now_usec)
{
    uint64_t from = wheel->tick, to = now_usec / SLOT_USEC;
    struct wheel_timer *firing = &wheel->heads[FIRING];

    if (to <= from)
        return;
    /* Moved on before anything fires: a timer that sets itself again, even for now, goes
     * into a slot to come and cannot keep this loop alive. */
    wheel->tick = to;
    uint64_t count = MIN(to - from, (uint64_t)SLOT_COUNT);
    for (uint64_t step = 1; step <= count; step++) {
        if (!take_slot(wheel, (size_t)((from + step) % SLOT_COUNT)))
            continue;
        /* Always the first of what is left: fire() may remove any of the others. */
        while (firing->next != firing) {
            struct wheel_timer *timer = firing->next;
            wheel_remove(wheel, timer);
            if (due_tick(timer->due_usec) <= to)
                timer->fire(timer);
            else
                insert(wheel, timer); /* a later turn's */
        }
    }
}

uint64_t wheel_next_usec(const struct wheel *wheel)
{
    size_t start = (size_t)((wheel->tick + 1) % SLOT_COUNT);

    /* The slot may hold only timers of a later turn: then this is early, once a turn. */
    for (size_t passed = 0; passed < SLOT_COUNT;) {
        size_t slot = (start + passed) % SLOT_COUNT;
        uint64_t word = wheel->occupied[slot / WORD_BITS] >> (slot % WORD_BITS);
        if (word != 0) {
            passed += (size_t)__builtin_ctzll(word);
            if (passed >= SLOT_COUNT) /* came around to the slots before the start */
                break;
            return (wheel->tick + 1 + passed) * SLOT_USEC;
        }
        passed += WORD_BITS - slot % WORD_BITS;
    }
    return CLOCK_NEVER;
}
