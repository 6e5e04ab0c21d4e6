/*
 * wheel.h - many deadlines on one clock.
 *
 *       slot    0   1   2   3  ...  1023            a slot is 16 ms wide;
 *             [   |   | * |   |    |    ]           a timer further away than one turn
 *                   ^ now                           waits in its slot for a later turn
 *
 * A timer is a struct inside whatever it is for; the wheel allocates nothing per timer.
 *
 * Always true: a timer fires once, not before it is due and at most one slot (16 ms) and
 * one wheel_advance() later. It may be set again, or another removed, while it fires.
 *
 * Threads: its owner's. Cost: set and remove O(1); advance O(slots passed + timers seen).
 */
#ifndef WHEEL_H
#define WHEEL_H

#include "base.h"

struct wheel_timer {
    struct wheel_timer *next; /* NULL while not set */
    struct wheel_timer *prev;
    uint64_t due_usec;
    void (*fire)(struct wheel_timer *timer);
};

struct wheel;

struct wheel *wheel_new(uint64_t now_usec) MUST_CHECK; /* NULL: no memory */
void wheel_free(struct wheel *wheel);                  /* forgets what is still set */

/* fire() is called at due_usec, in clock_usec(); CLOCK_NEVER: it is only removed. A timer
 * that is set already is moved. A new one must be zeroed but for fire. */
void wheel_set(struct wheel *wheel, struct wheel_timer *timer, uint64_t due_usec);
void wheel_remove(struct wheel *wheel, struct wheel_timer *timer); /* may be unset */
bool wheel_timer_is_set(const struct wheel_timer *timer);

/* Fires all that is due at now_usec, which must not go back. */
void wheel_advance(struct wheel *wheel, uint64_t now_usec);

/* When wheel_advance() should be called next at the latest; CLOCK_NEVER if nothing is set.
 * Early, once a turn, when the next slot holds only timers of a later turn. */
uint64_t wheel_next_usec(const struct wheel *wheel);

#endif
