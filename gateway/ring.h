/*
 * ring.h - the newest events, encoded, in order, for many readers at their own pace.
 *
 *        oldest                      next
 *          v                          v
 *     | 41 | 42 | 43 | 44 | 45 |           slot = position mod capacity
 *            ^         ^
 *         shard 0   shard 1                a reader is only a number
 *
 * Nobody waits for anybody: the writer overwrites what is oldest, and a reader that was
 * overtaken learns it from the position it asks for.
 *
 * Always true:
 *   - a position is given once and never again; the first is 1.
 *   - next - oldest <= capacity, and the frames between them weigh at most the ring's
 *     bytes (one frame larger than that is kept alone); a push into a full ring drops the
 *     oldest.
 *   - seq rises with the position, or stays the same with a frame that is not stored; so do
 *     the floor (all events after it are held) and what is newest.
 *   - all of it belongs to one life of the events' table (ring_restart()).
 *   - a frame does not change once it is pushed, and lives until every reader that could
 *     hold it has left the round in which it could have found it.
 *
 * How a frame outlives its slot. A reader's round counter is odd while it is in a round
 * and even outside. The writer gathers what it drops in a batch; to close the batch it
 * notes each reader's counter; the batch is freed once every counter noted odd has moved
 * on. Whoever enters later cannot find the frame any more: it left its slot before the
 * counters were read.
 *
 *     writer:  slot = NULL    then  read counter     both sequentially consistent, so
 *     reader:  counter = odd  then  read slot        one of the two sees the other
 *
 * Threads: one pushes (ring_push, ring_wake); each reader is used by one thread.
 * Locks:   none.
 * Cost:    push O(1) amortised; read O(1) a frame; a round two atomic stores; capacity * 8
 *          bytes beside the frames.
 */
#ifndef RING_H
#define RING_H

#include "base.h"
#include "err.h"
#include "sse.h"

struct ring;
struct ring_reader;

enum ring_result {
    RING_FRAME,  /* here it is */
    RING_EMPTY,  /* nothing newer yet */
    RING_LAGGED, /* that frame is gone: the reader was overtaken */
};

/* Where history stands, seen from an event's seq. */
enum ring_place {
    RING_FOUND,
    RING_TOO_OLD,     /* some events after it are gone, or were never held */
    RING_AHEAD,       /* newer than anything pushed */
    RING_NOT_STARTED, /* ring_start() is still to come: ask again after a wake-up */
};

/* `bytes`: what the frames may weigh together. `readers`: how many there will ever be.
 * NULL: no memory. Freeing frees the frames; every reader must be out of its last round.
 */
struct ring *ring_new(size_t bytes, unsigned readers) MUST_CHECK;
void ring_free(struct ring *ring);

/* -- the writer -- */

/* Where history begins: the ring holds all events after `seq` from here on. Those up to
 * `now` exist already and are about to be pushed: they are no news. Once, before the first
 * push; ring_wake() tells those who wait for it. */
void ring_start(struct ring *ring, uint64_t seq, uint64_t now);

/* The table has begun a new life: what is held may not be there any more. Forgets all of it;
 * history begins anew after `seq`, which is larger than any before. Every reader finds that
 * it was overtaken, even if it had read everything. */
void ring_restart(struct ring *ring, uint64_t seq);

/* Takes the frame; its seq must be larger than any before, or as large if it is not
 * stored. */
void ring_push(struct ring *ring, struct sse_frame *frame);

/* Wakes the readers that sleep. After a push or a group of pushes: what was pushed is
 * seen without it too, by those who are awake. */
void ring_wake(struct ring *ring);

/* Events and bytes held now, for the gauges. */
void ring_size(const struct ring *ring, size_t *ret_events, size_t *ret_bytes);

/* -- the readers -- */

/* The reader of that index, 0 to readers - 1. Lives as long as the ring. */
struct ring_reader *ring_reader(struct ring *ring, unsigned index);

/* Between enter and leave frames may be read, and stay valid. Keep it short: what is
 * dropped meanwhile is not freed. */
void ring_enter(struct ring_reader *reader);
void ring_leave(struct ring_reader *reader);

/* The frame at *position, and *position moved past it. Valid until ring_leave().
 * RING_EMPTY, RING_LAGGED: *position stays as it was. In a round. */
enum ring_result ring_read(struct ring_reader *reader, uint64_t *position,
                           const struct sse_frame **ret_frame) MUST_CHECK;

/* The position that the next push will get: "from now on". Any time. */
uint64_t ring_next(const struct ring_reader *reader);

/* RING_FOUND: all events after `seq` are held or still to come, and the first of them has
 * *ret_position (frames that are not stored and have that seq are before it). In a round;
 * O(log n). */
enum ring_place ring_find(struct ring_reader *reader, uint64_t seq,
                          uint64_t *ret_position) MUST_CHECK;

/* Has nothing from that position on been dropped? In a round. */
bool ring_holds(const struct ring_reader *reader, uint64_t position);

/* The seq after which all is news to whoever comes now; false before ring_start(). */
bool ring_now(const struct ring_reader *reader, uint64_t *ret_seq) MUST_CHECK;

/* The seq after which all events are held. Any time after ring_start(); it only rises. */
uint64_t ring_floor(const struct ring_reader *reader);

/* The eventfd a sleeping reader is woken by, readable after ring_wake(). */
int ring_reader_fd(const struct ring_reader *reader);

/* "I lie down": clears the descriptor. true if there is nothing at or after `position`, and then
 * the next ring_wake() makes it readable. false: look again, do not sleep. */
bool ring_sleep(struct ring_reader *reader, uint64_t position) MUST_CHECK;

/* "I am up", after a ring_sleep() that said true: clears the wish to be woken. The descriptor
 * stays readable until the next ring_sleep(), so that what woke the reader need not wait for a
 * system call. A ring that is just about to come wakes that sleep for nothing, once. */
void ring_awake(struct ring_reader *reader);

#endif
