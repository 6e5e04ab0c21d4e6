/*
 * queue.c - requests to publish, oldest first; and which of them make a batch.
 */
#include "queue.h"

#include "clock.h"

/* So many requests that share a key with the batch are passed by, and no more: whoever holds
 * a lock meanwhile does not hold it for long. */
#define PASSED_BY_MAX 1000

void queue_init(struct queue *queue)
{
    queue->first = NULL;
    queue->tail = &queue->first;
}

void queue_add(struct queue *queue, struct publish *publish)
{
    publish->next = NULL;
    *queue->tail = publish;
    queue->tail = &publish->next;
}

struct publish *queue_take(struct queue *queue)
{
    struct publish *publish = queue->first;

    if (publish == NULL)
        return NULL;
    queue->first = publish->next;
    if (queue->first == NULL)
        queue->tail = &queue->first;
    publish->next = NULL;
    return publish;
}

void queue_move(struct queue *to, struct queue *from)
{
    if (from->first == NULL)
        return;
    *to->tail = from->first;
    to->tail = from->tail;
    queue_init(from);
}

uint64_t queue_deadline(const struct queue *queue)
{
    uint64_t earliest = CLOCK_NEVER;

    for (const struct publish *publish = queue->first; publish != NULL;
         publish = publish->next)
        earliest = MIN(earliest, publish->deadline_usec);
    return earliest;
}

size_t queue_bytes(const struct publish *publish)
{
    size_t bytes = 0;

    for (size_t i = 0; i < publish->count; i++) {
        const struct event *event = &publish->events[i];
        bytes += event->data_len + event->channel_len + event->type_len +
                 event->attributes_len + event->client_len;
    }
    for (size_t i = 0; i < publish->unit_count; i++)
        bytes += publish->units[i].key_len;
    return bytes;
}

void queue_take_batch(struct queue *queue, size_t events_max, size_t bytes_max,
                      struct keyset *keys, struct queue *ret_batch)
{
    struct queue passed_by;
    size_t events = 0, bytes = 0, passed = 0;

    queue_init(ret_batch);
    queue_init(&passed_by);
    keyset_clear(keys);
    while (queue->first != NULL && passed < PASSED_BY_MAX) {
        const struct publish *publish = queue->first;
        const size_t more = queue_bytes(publish);

        if (ret_batch->first != NULL &&
            (events + publish->count > events_max || bytes + more > bytes_max))
            break;
        if (!keyset_add(keys, publish->units, publish->unit_count)) {
            queue_add(&passed_by, queue_take(queue));
            passed++;
            continue;
        }
        events += publish->count;
        bytes += more;
        queue_add(ret_batch, queue_take(queue));
    }
    queue_move(&passed_by, queue);
    queue_move(queue, &passed_by);
}
