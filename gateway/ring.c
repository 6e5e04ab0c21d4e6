#include <errno.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ring.h"

/* A frame rarely weighs less: with a slot for every so many bytes, the ring is bounded by
 * its bytes and hardly ever by its slots. */
#define BYTES_PER_SLOT 256
#define MIN_SLOTS      ((size_t)1024)
#define MAX_SLOTS      ((size_t)1 << 22)

/* floor_seq before ring_start(). */
#define NOT_STARTED UINT64_MAX

/* Readers live on cache lines of their own: each writes its counter twice a round. */
struct ring_reader {
    _Alignas(
        64) _Atomic uint64_t round; /* [atomic] odd while in a round; its own to write */
    _Atomic bool asleep;            /* [atomic] it wants ring_wake() to ring */
    int fd;                         /* [const] eventfd */
    struct ring *ring;              /* [const] */
    uint64_t owed;                  /* its own: rings that are still to come */
    uint64_t noted;                 /* [writer] `round` when the batch was closed */
};

/* Frames that have left their slots. */
struct limbo {
    struct sse_frame *first;
    struct sse_frame **tail;
};

struct ring {
    size_t capacity;       /* [const] slots, a power of two */
    size_t bytes_max;      /* [const] */
    unsigned reader_count; /* [const] */

    _Alignas(64) _Atomic uint64_t next; /* [atomic] the writer's to write */
    _Atomic uint64_t oldest;            /* [atomic] the writer's to write */
    _Atomic uint64_t floor_seq;         /* [atomic] all events after it are held */
    _Atomic uint64_t newest_seq;        /* [atomic] of the newest event pushed */
    _Atomic uint64_t begun_seq; /* [atomic] of the newest event when history began */

    size_t bytes;        /* [writer] of the frames in slots */
    struct limbo open;   /* [writer] being gathered */
    struct limbo closed; /* [writer] waiting for the readers noted */

    struct ring_reader *readers;         /* [const] */
    _Atomic(struct sse_frame *) slots[]; /* [atomic] */
};

static size_t slots_for(size_t bytes)
{
    size_t slots = MIN_SLOTS;

    while (slots < MAX_SLOTS && slots < bytes / BYTES_PER_SLOT)
        slots *= 2;
    return slots;
}

static bool readers_init(struct ring *ring, unsigned readers)
{
    const size_t size = sizeof(struct ring_reader) * (readers > 0 ? readers : 1);

    ring->readers = aligned_alloc(_Alignof(struct ring_reader), size);
    if (ring->readers == NULL)
        return false;

    for (unsigned i = 0; i < readers; i++) {
        struct ring_reader *reader = &ring->readers[i];

        atomic_init(&reader->round, 0);
        atomic_init(&reader->asleep, false);
        reader->ring = ring;
        reader->noted = 0;
        reader->owed = 0;
        reader->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (reader->fd < 0)
            return false;
        ring->reader_count++;
    }
    return true;
}

struct ring *ring_new(size_t bytes, unsigned readers)
{
    const size_t capacity = slots_for(bytes);
    const size_t size = sizeof(struct ring) + capacity * sizeof(struct sse_frame *);
    struct ring *ring = aligned_alloc(_Alignof(struct ring), (size + 63) & ~(size_t)63);

    if (ring == NULL)
        return NULL;

    ring->capacity = capacity;
    ring->bytes_max = bytes;
    ring->reader_count = 0;
    ring->bytes = 0;
    ring->readers = NULL;
    ring->open = (struct limbo){.tail = &ring->open.first};
    ring->closed = (struct limbo){.tail = &ring->closed.first};
    atomic_init(&ring->next, 1);
    atomic_init(&ring->oldest, 1);
    atomic_init(&ring->floor_seq, NOT_STARTED);
    atomic_init(&ring->newest_seq, 0);
    atomic_init(&ring->begun_seq, 0);
    for (size_t i = 0; i < capacity; i++)
        atomic_init(&ring->slots[i], NULL);

    if (!readers_init(ring, readers)) {
        ring_free(ring);
        return NULL;
    }
    return ring;
}

static void limbo_free(struct limbo *limbo)
{
    struct sse_frame *frame = limbo->first;

    while (frame != NULL) {
        struct sse_frame *next = frame->next;

        sse_frame_free(frame);
        frame = next;
    }
    *limbo = (struct limbo){.tail = &limbo->first};
}

void ring_free(struct ring *ring)
{
    if (ring == NULL)
        return;
    for (size_t i = 0; i < ring->capacity; i++)
        sse_frame_free(atomic_load_explicit(&ring->slots[i], memory_order_relaxed));
    limbo_free(&ring->open);
    limbo_free(&ring->closed);
    for (unsigned i = 0; i < ring->reader_count; i++)
        close(ring->readers[i].fd);
    free(ring->readers);
    free(ring);
}

static _Atomic(struct sse_frame *) *slot_of(struct ring *ring, uint64_t position)
{
    return &ring->slots[position & (ring->capacity - 1)];
}

/* -- the writer -- */

void ring_start(struct ring *ring, uint64_t seq, uint64_t now)
{
    atomic_store_explicit(&ring->begun_seq, now, memory_order_relaxed);
    atomic_store_explicit(&ring->newest_seq, seq, memory_order_relaxed);
    /* Meets the acquire in ring_find(): who sees the floor sees what is newest. */
    atomic_store_explicit(&ring->floor_seq, seq, memory_order_release);
}

static void limbo_add(struct limbo *limbo, struct sse_frame *frame)
{
    frame->next = NULL;
    *limbo->tail = frame;
    limbo->tail = &frame->next;
}

/* Nobody can hold a frame of the closed batch any more: every reader that was in a round
 * when it was closed has left that round since. */
static bool closed_is_free(const struct ring *ring)
{
    for (unsigned i = 0; i < ring->reader_count; i++) {
        const struct ring_reader *reader = &ring->readers[i];

        if (reader->noted % 2 == 0)
            continue;
        /* The acquire meets the release in ring_leave(): what the reader did with the
         * frame is over before we free it. */
        if (atomic_load_explicit(&reader->round, memory_order_acquire) == reader->noted)
            return false;
    }
    return true;
}

/* Frees the closed batch if it can, and closes the open one in its place. */
static void limbo_turn(struct ring *ring)
{
    if (!closed_is_free(ring))
        return;
    limbo_free(&ring->closed);
    if (ring->open.first == NULL)
        return;

    ring->closed.first = ring->open.first;
    ring->closed.tail = ring->open.tail;
    ring->open = (struct limbo){.tail = &ring->open.first};

    /* After the slots were cleared: see the picture in ring.h. Sequentially consistent,
     * like ring_enter() and the clearing in drop_oldest(). */
    for (unsigned i = 0; i < ring->reader_count; i++)
        ring->readers[i].noted =
            atomic_load_explicit(&ring->readers[i].round, memory_order_seq_cst);
}

static void drop_oldest(struct ring *ring)
{
    const uint64_t oldest = atomic_load_explicit(&ring->oldest, memory_order_relaxed);
    struct sse_frame *frame =
        atomic_exchange_explicit(slot_of(ring, oldest), NULL, memory_order_seq_cst);

    /* The floor rises before the position does: who still sees the old position finds an
     * empty slot, and who sees the new one sees the new floor. */
    atomic_store_explicit(&ring->floor_seq, frame->seq, memory_order_release);
    atomic_store_explicit(&ring->oldest, oldest + 1, memory_order_release);
    ring->bytes -= sse_frame_weight(frame);
    limbo_add(&ring->open, frame);
}

void ring_restart(struct ring *ring, uint64_t seq)
{
    const uint64_t next = atomic_load_explicit(&ring->next, memory_order_relaxed);

    while (atomic_load_explicit(&ring->oldest, memory_order_relaxed) != next)
        drop_oldest(ring);

    /* The floor first: who sees the new position sees it, too. */
    atomic_store_explicit(&ring->floor_seq, seq, memory_order_release);
    /* One position stays empty for ever: who waits for it was overtaken. */
    atomic_store_explicit(&ring->oldest, next + 1, memory_order_release);
    atomic_store_explicit(&ring->next, next + 1, memory_order_seq_cst);
    atomic_store_explicit(&ring->newest_seq, seq, memory_order_release);
    limbo_turn(ring);
}

void ring_push(struct ring *ring, struct sse_frame *frame)
{
    const uint64_t next = atomic_load_explicit(&ring->next, memory_order_relaxed);
    const size_t weight = sse_frame_weight(frame);

    for (;;) {
        const uint64_t oldest = atomic_load_explicit(&ring->oldest, memory_order_relaxed);
        const bool fits = ring->bytes + weight <= ring->bytes_max;

        if (oldest == next || (fits && next - oldest < ring->capacity))
            break;
        drop_oldest(ring);
    }

    frame->position = next;
    ring->bytes += weight;
    /* Both releases meet the acquires in ring_read(). */
    atomic_store_explicit(slot_of(ring, next), frame, memory_order_release);
    /* Sequentially consistent for the sleepers: see ring_sleep(). */
    atomic_store_explicit(&ring->next, next + 1, memory_order_seq_cst);
    /* After the position: who sees the seq in ring_find() sees its event too. */
    atomic_store_explicit(&ring->newest_seq, frame->seq, memory_order_release);
    limbo_turn(ring);
}

void ring_wake(struct ring *ring)
{
    static const uint64_t one = 1;

    for (unsigned i = 0; i < ring->reader_count; i++) {
        struct ring_reader *reader = &ring->readers[i];

        /* Publish first (the store of `next` in ring_push), then look for sleepers. The
         * other end of the race is ring_sleep(). */
        if (atomic_load_explicit(&reader->asleep, memory_order_seq_cst) &&
            atomic_exchange_explicit(&reader->asleep, false, memory_order_seq_cst))
            /* Fails only if the counter is full, and then the descriptor is readable. */
            (void)!write(reader->fd, &one, sizeof(one));
    }
    limbo_turn(ring);
}

void ring_size(const struct ring *ring, size_t *ret_events, size_t *ret_bytes)
{
    *ret_events = (size_t)(atomic_load_explicit(&ring->next, memory_order_relaxed) -
                           atomic_load_explicit(&ring->oldest, memory_order_relaxed));
    *ret_bytes = ring->bytes;
}

/* -- the readers -- */

struct ring_reader *ring_reader(struct ring *ring, unsigned index)
{
    return &ring->readers[index];
}

void ring_enter(struct ring_reader *reader)
{
    const uint64_t round = atomic_load_explicit(&reader->round, memory_order_relaxed);

    /* Sequentially consistent: the writer must see the odd counter, or we must see the
     * slots it has cleared. The other end is limbo_turn(). */
    atomic_store_explicit(&reader->round, round + 1, memory_order_seq_cst);
}

void ring_leave(struct ring_reader *reader)
{
    const uint64_t round = atomic_load_explicit(&reader->round, memory_order_relaxed);

    atomic_store_explicit(&reader->round, round + 1, memory_order_release);
}

/* The frame at that position, or NULL if it has been dropped. */
static const struct sse_frame *frame_at(struct ring *ring, uint64_t position)
{
    /* Acquire for the frame's content; sequentially consistent for its life, against the
     * exchange in drop_oldest(). */
    const struct sse_frame *frame =
        atomic_load_explicit(slot_of(ring, position), memory_order_seq_cst);

    /* The slot may hold a younger frame already. */
    return frame != NULL && frame->position == position ? frame : NULL;
}

enum ring_result ring_read(struct ring_reader *reader, uint64_t *position,
                           const struct sse_frame **ret_frame)
{
    if (*position >= ring_next(reader))
        return RING_EMPTY;

    const struct sse_frame *frame = frame_at(reader->ring, *position);
    if (frame == NULL)
        return RING_LAGGED;

    *ret_frame = frame;
    (*position)++;
    return RING_FRAME;
}

uint64_t ring_next(const struct ring_reader *reader)
{
    return atomic_load_explicit(&reader->ring->next, memory_order_acquire);
}

/* The first position in [low, high) whose seq is larger; `high` if there is none, 0 if
 * the search was overtaken. */
static uint64_t search(struct ring *ring, uint64_t low, uint64_t high, uint64_t seq)
{
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        const struct sse_frame *frame = frame_at(ring, middle);

        if (frame == NULL)
            return 0;
        if (frame->seq > seq)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

enum ring_place ring_find(struct ring_reader *reader, uint64_t seq,
                          uint64_t *ret_position)
{
    struct ring *ring = reader->ring;

    for (;;) {
        /* The position before the floor, as drop_oldest() stores them the other way
         * round. */
        const uint64_t low = atomic_load_explicit(&ring->oldest, memory_order_acquire);
        const uint64_t floor =
            atomic_load_explicit(&ring->floor_seq, memory_order_acquire);

        if (floor == NOT_STARTED)
            return RING_NOT_STARTED;
        if (seq < floor)
            return RING_TOO_OLD;
        if (seq > atomic_load_explicit(&ring->newest_seq, memory_order_acquire))
            return RING_AHEAD;

        /* Overtaken means that the floor has risen: look again where it is now. */
        const uint64_t position = search(ring, low, ring_next(reader), seq);
        if (position == 0)
            continue;
        *ret_position = position;
        return RING_FOUND;
    }
}

bool ring_holds(const struct ring_reader *reader, uint64_t position)
{
    return position >= atomic_load_explicit(&reader->ring->oldest, memory_order_acquire);
}

bool ring_now(const struct ring_reader *reader, uint64_t *ret_seq)
{
    const struct ring *ring = reader->ring;

    /* The acquire meets the release in ring_start(): the others are set by then. */
    if (atomic_load_explicit(&ring->floor_seq, memory_order_acquire) == NOT_STARTED)
        return false;
    const uint64_t newest = atomic_load_explicit(&ring->newest_seq, memory_order_acquire);
    *ret_seq = MAX(newest, atomic_load_explicit(&ring->begun_seq, memory_order_relaxed));
    return true;
}

uint64_t ring_floor(const struct ring_reader *reader)
{
    return atomic_load_explicit(&reader->ring->floor_seq, memory_order_acquire);
}

int ring_reader_fd(const struct ring_reader *reader)
{
    return reader->fd;
}

/* What has not come yet will wake a sleep for nothing, and be taken before the next. */
static void take_rings(struct ring_reader *reader)
{
    uint64_t count;

    if (reader->owed > 0 && read(reader->fd, &count, sizeof(count)) == sizeof(count))
        reader->owed -= MIN(reader->owed, count);
}

bool ring_sleep(struct ring_reader *reader, uint64_t position)
{
    take_rings(reader);
    atomic_store_explicit(&reader->asleep, true, memory_order_seq_cst);

    /* Look again after lying down: a push before the line above was made for someone
     * awake. The other end of the race is ring_wake(). */
    if (atomic_load_explicit(&reader->ring->next, memory_order_seq_cst) == position)
        return true;
    /* Cleared already: ring_wake() was quicker, and has rung or is about to. */
    if (!atomic_exchange_explicit(&reader->asleep, false, memory_order_seq_cst))
        reader->owed++;
    return false;
}

void ring_awake(struct ring_reader *reader)
{
    /* Cleared already: ring_wake() was here, and has rung or is about to. */
    if (!atomic_exchange_explicit(&reader->asleep, false, memory_order_seq_cst))
        reader->owed++;
}
