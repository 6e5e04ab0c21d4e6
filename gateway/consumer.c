/*
 * consumer.c - a stream that is fed by a group.
 */
#include "consumer.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <string.h>

/* Frames in one stream_send(). */
#define SEND_FRAMES 64

struct consumer {
    struct enrolment enrolment;
    struct consumer_settings settings; /* [const] */
    size_t bytes;                      /* [const] its own weight */
    struct stream *stream;             /* NULL: it is over */
    struct sse_frame *first;           /* that its socket has not taken whole */
    struct sse_frame **tail;
    struct mail gone_mail;

    pthread_mutex_t lock;
    struct sse_frame *dealt; /* [lock] oldest first */
    struct sse_frame **dealt_tail;
    bool ends;   /* [lock] its stream is to end */
    bool posted; /* [lock] `mail` is on its way */
    struct mail mail;

    char start[EVENT_ID_MAX_BYTES + 1];
    char names[]; /* the channel, and the group */
};

/* ---- frames ---- */

static void count_memory(const struct consumer *consumer, int64_t bytes)
{
    stats_gauge_add(consumer->settings.stats, STATS_CONNECTION_MEMORY, bytes);
}

/* The first one has been sent, or will never be. True: with it, the groups have come to see room
 * where there was none. */
static bool drop_first(struct consumer *consumer)
{
    struct sse_frame *frame = consumer->first;
    const size_t weight = sse_frame_weight(frame);

    consumer->first = frame->next;
    if (consumer->first == NULL)
        consumer->tail = &consumer->first;
    count_memory(consumer, -(int64_t)weight);
    const size_t before = atomic_fetch_sub_explicit(
        &consumer->enrolment.member.unsent_bytes, weight, memory_order_relaxed);
    sse_frame_free(frame);
    return before >= ROSTER_UNSENT_BYTES_MAX && before - weight < ROSTER_UNSENT_BYTES_MAX;
}

static void drop_frames(struct consumer *consumer)
{
    while (consumer->first != NULL)
        (void)drop_first(consumer);
}

static void send_frames(struct consumer *consumer)
{
    struct stream *stream = consumer->stream;

    while (consumer->first != NULL) {
        const struct sse_frame *frames[SEND_FRAMES];
        size_t count = 0;

        for (const struct sse_frame *frame = consumer->first;
             frame != NULL && count < SEND_FRAMES; frame = frame->next)
            frames[count++] = frame;
        const size_t whole = stream_send(stream, frames, count, NULL, 0);
        if (consumer->stream == NULL)
            return; /* the peer is gone, and so are the frames */
        for (size_t i = 0; i < whole; i++) {
            if (drop_first(consumer))
                groups_news(&consumer->enrolment);
        }
        if (whole < count)
            return;
    }
}

/* ---- what the groups say, on their thread ---- */

static void post_locked(struct consumer *consumer)
{
    if (consumer->posted)
        return;
    consumer->posted = true;
    consumer->settings.post(consumer->settings.argument, &consumer->mail);
}

static void deal(struct enrolment *enrolment, struct sse_frame *frame)
{
    struct consumer *consumer = CONTAINER_OF(enrolment, struct consumer, enrolment);

    frame->next = NULL;
    count_memory(consumer, (int64_t)sse_frame_weight(frame));
    pthread_mutex_lock(&consumer->lock);
    *consumer->dealt_tail = frame;
    consumer->dealt_tail = &frame->next;
    post_locked(consumer);
    pthread_mutex_unlock(&consumer->lock);
}

static void end(struct enrolment *enrolment)
{
    struct consumer *consumer = CONTAINER_OF(enrolment, struct consumer, enrolment);

    pthread_mutex_lock(&consumer->lock);
    consumer->ends = true;
    post_locked(consumer);
    pthread_mutex_unlock(&consumer->lock);
}

/* The shard delivers its letters in order: none of this consumer's comes behind this one. */
static void gone(struct enrolment *enrolment)
{
    struct consumer *consumer = CONTAINER_OF(enrolment, struct consumer, enrolment);

    consumer->settings.post(consumer->settings.argument, &consumer->gone_mail);
}

/* ---- on the shard's ---- */

static void free_consumer(struct consumer *consumer)
{
    drop_frames(consumer);
    count_memory(consumer, -(int64_t)consumer->bytes);
    pthread_mutex_destroy(&consumer->lock);
    free(consumer);
}

/* Takes over what has been dealt. */
static bool take_dealt(struct consumer *consumer)
{
    pthread_mutex_lock(&consumer->lock);
    consumer->posted = false;
    *consumer->tail = consumer->dealt;
    if (consumer->dealt != NULL)
        consumer->tail = consumer->dealt_tail;
    consumer->dealt = NULL;
    consumer->dealt_tail = &consumer->dealt;
    const bool ends = consumer->ends;
    pthread_mutex_unlock(&consumer->lock);
    return ends;
}

static void mail_delivered(struct mail *mail)
{
    struct consumer *consumer = CONTAINER_OF(mail, struct consumer, mail);
    const bool ends = take_dealt(consumer);

    if (consumer->stream != NULL && consumer->stream->phase == STREAM_LIVE)
        send_frames(consumer);
    if (consumer->stream != NULL && ends)
        stream_finish(consumer->stream, STREAM_END_GOODBYE);
    if (consumer->stream == NULL)
        drop_frames(consumer);
}

static void gone_delivered(struct mail *mail)
{
    struct consumer *consumer = CONTAINER_OF(mail, struct consumer, gone_mail);

    /* Its stream is over: that is why it left, or it was told to end before. */
    assert(consumer->stream == NULL);
    free_consumer(consumer);
}

void consumer_news(struct consumer *consumer)
{
    groups_news(&consumer->enrolment);
}

/* While it was not LIVE nobody told it of news. */
void consumer_writable(struct consumer *consumer)
{
    struct stream *stream = consumer->stream;

    if (stream->phase != STREAM_BEHIND || !stream_send_rest(stream))
        return;
    send_frames(consumer);
    if (consumer->stream == NULL || consumer->first != NULL)
        return;
    stream_is_live(stream);
    groups_news(&consumer->enrolment);
}

void consumer_leaves(struct consumer *consumer)
{
    atomic_store_explicit(&consumer->enrolment.member.leaving, true,
                          memory_order_relaxed);
}

bool consumer_is_exclusive(const struct consumer *consumer)
{
    return consumer->enrolment.member.exclusive;
}

void consumer_over(struct consumer *consumer)
{
    consumer->stream = NULL;
    drop_frames(consumer);
    groups_leave(&consumer->enrolment);
}

/* ---- making ---- */

static const char *start_of(struct consumer *consumer,
                            const struct consumer_wishes *wishes)
{
    if (wishes->earliest)
        return "earliest";
    if (!wishes->knows_newest)
        return "now";
    (void)event_id_format(wishes->newest, consumer->start);
    return consumer->start;
}

static struct consumer *make(const struct consumer_wishes *wishes,
                             const struct consumer_settings *settings)
{
    const size_t channel_len = wishes->channel.len, group_len = wishes->group.len;
    const size_t bytes = sizeof(struct consumer) + channel_len + 1 + group_len + 1;
    struct consumer *consumer = calloc(1, bytes);

    if (consumer == NULL)
        return NULL;
    char *group = consumer->names + channel_len + 1;
    memcpy(consumer->names, wishes->channel.text, channel_len);
    memcpy(group, wishes->group.text, group_len);

    consumer->settings = *settings;
    consumer->bytes = bytes;
    count_memory(consumer, (int64_t)bytes);
    consumer->tail = &consumer->first;
    consumer->dealt_tail = &consumer->dealt;
    consumer->mail.deliver = mail_delivered;
    consumer->gone_mail.deliver = gone_delivered;
    consumer->enrolment.deal = deal;
    consumer->enrolment.end = end;
    consumer->enrolment.gone = gone;
    struct member *member = &consumer->enrolment.member;
    member->channel = consumer->names;
    member->name = group;
    member->start = start_of(consumer, wishes);
    member->max = wishes->max;
    member->attempts = wishes->attempts;
    member->lease_usec = wishes->lease_usec;
    member->exclusive = wishes->exclusive;
    (void)pthread_mutex_init(&consumer->lock, NULL);
    return consumer;
}

int consumer_join(struct stream *stream, const struct consumer_wishes *wishes,
                  const struct consumer_settings *settings)
{
    struct consumer *consumer = make(wishes, settings);

    if (consumer == NULL)
        return -ENOMEM;
    consumer->stream = stream;
    const int r = groups_join(settings->groups, &consumer->enrolment);
    if (r < 0) {
        free_consumer(consumer);
        return r;
    }
    stream->consumer = consumer;
    return 0;
}
