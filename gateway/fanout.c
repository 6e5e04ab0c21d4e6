#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "buf.h"
#include "catchup.h"
#include "channels.h"
#include "clock.h"
#include "fanout.h"

/* A round is short, because the ring keeps what it drops until the round is over, and
 * because departures, heartbeats and requests wait for it. */
#define ROUND_FRAMES 512
#define ROUND_BYTES  MIB
#define ROUND_HITS   4096 /* frames times the topics they belong to */

/* What was committed before a drain began is still delivered, rather than left for the next
 * connection to ask for. */
#define DELIVER_FIRST_USEC (200 * USEC_PER_MSEC)

/* How often it says how far its slowest stream is behind. */
#define LAG_LOOK_USEC USEC_PER_SEC

/* What is new on one topic: a chain of hits, in order. */
struct run {
    struct channels_topic *topic;
    size_t first;
    size_t last;
};

/* One frame of one run. */
struct hit {
    const struct sse_frame *frame;
    size_t next; /* NO_HIT behind the last */
};

#define NO_HIT SIZE_MAX

struct fanout {
    struct stream_owner owner; /* what the streams see of it */
    struct fanout_settings settings;
    struct channels *channels;
    struct catchup *catchup;
    struct stream *streams;
    size_t counted_bytes; /* of the channels: their part of STATS_CONNECTION_MEMORY */
    struct relay_watcher watcher;
    struct mail stood_mail;
    _Atomic bool stood; /* [atomic] that letter is on its way */
    uint64_t lag_told_usec;

    /* This round. */
    uint64_t mark;
    struct run runs[ROUND_HITS];
    size_t run_count;
    struct hit hits[ROUND_HITS];
    size_t hit_count;
    struct stream *choosy; /* LIVE, and not taking everything of one topic */

    /* This send. */
    const struct sse_frame *frames[ROUND_FRAMES];
    struct buf bytes;
};

static void stream_writable(struct stream_owner *owner, struct stream *stream);
static void stream_over(struct stream_owner *owner, struct stream *stream);

/* After the channels have come to take more memory, or less. */
static void count_channels(struct fanout *fanout)
{
    const size_t bytes = channels_bytes(fanout->channels);

    stats_gauge_add(fanout->settings.stats, STATS_CONNECTION_MEMORY,
                    (int64_t)bytes - (int64_t)fanout->counted_bytes);
    fanout->counted_bytes = bytes;
}

/* Those who wait for their channels to be listened to have their turn in the next round, which
 * the letter brings about. */
static void stood_delivered(struct mail *mail)
{
    struct fanout *fanout = CONTAINER_OF(mail, struct fanout, stood_mail);

    atomic_store_explicit(&fanout->stood, false, memory_order_release);
}

/* On the listener's thread. */
static void channels_stood(struct relay_watcher *watcher)
{
    struct fanout *fanout = CONTAINER_OF(watcher, struct fanout, watcher);

    /* The acquire meets the release above: the letter is free again. */
    if (!atomic_exchange_explicit(&fanout->stood, true, memory_order_acq_rel))
        fanout->settings.post(fanout->settings.argument, &fanout->stood_mail);
}

struct fanout *fanout_new(const struct fanout_settings *settings)
{
    struct fanout *fanout = calloc(1, sizeof(*fanout));

    if (fanout == NULL)
        return NULL;
    fanout->owner.writable = stream_writable;
    fanout->owner.over = stream_over;
    fanout->owner.now_usec = clock_usec();
    fanout->owner.position = ring_next(settings->reader);
    fanout->settings = *settings;
    fanout->channels = channels_new();
    fanout->catchup = catchup_new(&(struct catchup_settings){
        .reader = settings->reader,
        .replay = settings->replay,
        .stats = settings->stats,
        .owner = &fanout->owner,
        .post = settings->post,
        .argument = settings->argument,
    });
    if (fanout->channels == NULL || fanout->catchup == NULL) {
        fanout_free(fanout);
        return NULL;
    }
    fanout->stood_mail.deliver = stood_delivered;
    fanout->watcher.stood = channels_stood;
    if (settings->relay != NULL)
        relay_watch(settings->relay, &fanout->watcher);
    count_channels(fanout);
    return fanout;
}

void fanout_free(struct fanout *fanout)
{
    if (fanout == NULL)
        return;
    catchup_free(fanout->catchup);
    channels_free(fanout->channels);
    buf_done(&fanout->bytes);
    free(fanout);
}

/* -- how it is doing -- */

void fanout_each(const struct fanout *fanout,
                 void (*look)(void *argument, const struct stream *stream,
                              uint64_t newest),
                 void *argument)
{
    uint64_t newest = 0;

    if (!ring_now(fanout->settings.reader, &newest))
        newest = 0; /* nobody is behind what is not there yet */
    for (const struct stream *stream = fanout->streams; stream != NULL;
         stream = stream->next)
        look(argument, stream, newest);
}

static uint64_t greatest_lag(const struct fanout *fanout)
{
    uint64_t newest, lag, max = 0;

    if (!ring_now(fanout->settings.reader, &newest))
        newest = 0; /* nobody is behind what is not there yet */
    for (const struct stream *stream = fanout->streams; stream != NULL;
         stream = stream->next) {
        if (!stream_lag(stream, newest, &lag))
            continue;
        max = MAX(max, lag);
        /* All who are LIVE have the same: with nobody BEHIND, one tells for all. */
        if (stream->phase == STREAM_LIVE && fanout->owner.behind_count == 0)
            break;
    }
    return max;
}

/* Says how far the slowest stream is behind. On the shard's own time rather than when
 * somebody asks: /metrics must be answered while a shard is stuck, and asking for it often
 * must not make the shards walk their streams often. */
static void tell_lag(const struct fanout *fanout)
{
    struct fanout_lags *lags = fanout->settings.lags;
    uint64_t max = 0;

    /* All are LIVE where the shard has read everything: there is no need to look. */
    if (fanout->owner.behind_count > 0 ||
        ring_next(fanout->settings.reader) != fanout->owner.position)
        max = greatest_lag(fanout);
    atomic_store_explicit(&lags->events[fanout->settings.index], max,
                          memory_order_relaxed);
    for (unsigned i = 0; i < lags->count; i++)
        max = MAX(max, atomic_load_explicit(&lags->events[i], memory_order_relaxed));
    stats_gauge_set(fanout->settings.stats, STATS_STREAMS_LAG_MAX, (int64_t)max);
}

void fanout_turn(struct fanout *fanout, uint64_t now_usec)
{
    fanout->owner.now_usec = now_usec;
    if (fanout->settings.lags == NULL || now_usec < fanout->lag_told_usec + LAG_LOOK_USEC)
        return;
    fanout->lag_told_usec = now_usec;
    tell_lag(fanout);
}

uint64_t fanout_position(const struct fanout *fanout)
{
    return fanout->owner.position;
}

/* -- a new subscriber, and its place -- */

static int join_channels(struct fanout *fanout, struct stream *stream,
                         const struct stream_wishes *wishes)
{
    for (size_t i = 0; i < wishes->channel_count; i++) {
        const int result = channels_join(fanout->channels, wishes->channels[i].text,
                                         wishes->channels[i].len, &stream->members[i]);

        if (result < 0)
            return result;
    }
    return 0;
}

static bool is_relayed(const struct fanout *fanout, const struct stream_text *channel)
{
    return channel->text[channel->len - 1] != '*' &&
           relay_allows(fanout->settings.relay, channel->text, channel->len);
}

/* Each once, however often it was named. */
static int join_relayed(struct fanout *fanout, struct stream_ear *ear,
                        const struct stream_text *channel)
{
    struct relay_channel *joined;
    const int result =
        relay_join(fanout->settings.relay, channel->text, channel->len, &joined);

    if (result < 0)
        return result;
    for (size_t i = 0; i < ear->count; i++) {
        if (ear->channels[i] == joined) {
            relay_leave(fanout->settings.relay, joined);
            return 0;
        }
    }
    ear->channels[ear->count++] = joined;
    return 0;
}

/* Of its channels, those that are relayed. */
static int join_relay(struct fanout *fanout, struct stream *stream,
                      const struct stream_wishes *wishes)
{
    size_t count = 0;

    for (size_t i = 0; i < wishes->channel_count; i++)
        count += is_relayed(fanout, &wishes->channels[i]);
    if (count == 0)
        return 0;
    int result = stream_hear(stream, count, ring_next(fanout->settings.reader));
    for (size_t i = 0; i < wishes->channel_count && result == 0; i++) {
        if (is_relayed(fanout, &wishes->channels[i]))
            result = join_relayed(fanout, stream->ear, &wishes->channels[i]);
    }
    return result;
}

static void leave_channels(struct fanout *fanout, struct stream *stream)
{
    for (size_t i = 0; i < stream->member_count; i++)
        channels_leave(fanout->channels, &stream->members[i]);
    while (stream->ear != NULL && stream->ear->count > 0)
        relay_leave(fanout->settings.relay, stream->ear->channels[--stream->ear->count]);
}

static void add_stream(struct fanout *fanout, struct stream *stream)
{
    stream->next = fanout->streams;
    stream->link = &fanout->streams;
    if (stream->next != NULL)
        stream->next->link = &stream->next;
    fanout->streams = stream;
    stats_gauge_add(fanout->settings.stats, STATS_STREAMS, 1);
    stats_add(fanout->settings.stats, STATS_STREAMS_OPENED, 1);
}

/* One that has not begun. */
static void drop_stream(struct fanout *fanout, struct stream *stream)
{
    leave_channels(fanout, stream);
    count_channels(fanout);
    stream_free(stream);
}

/* In all its channels; NULL: no memory. */
static struct stream *make_stream(struct fanout *fanout, struct connection *connection,
                                  const struct stream_wishes *wishes)
{
    struct stream *stream =
        stream_new(wishes, connection, fanout->settings.poller, &fanout->settings.timing,
                   fanout->settings.stats, &fanout->owner);

    if (stream == NULL)
        return NULL;

    (void)catchup_note_now(fanout->catchup, stream); /* if that can be told yet */
    const int result = join_channels(fanout, stream, wishes);
    count_channels(fanout);
    if (result == 0)
        return stream;
    drop_stream(fanout, stream);
    return NULL;
}

struct stream *fanout_subscribe(struct fanout *fanout, struct connection *connection,
                                const struct stream_wishes *wishes)
{
    struct stream *stream = make_stream(fanout, connection, wishes);

    if (stream == NULL)
        return NULL;
    if (join_relay(fanout, stream, wishes) < 0) {
        drop_stream(fanout, stream);
        return NULL;
    }
    add_stream(fanout, stream);
    return stream;
}

int fanout_consume(struct fanout *fanout, struct connection *connection,
                   const struct stream_wishes *wishes,
                   const struct consumer_wishes *group, struct stream **ret_stream)
{
    const struct consumer_settings settings = {
        .groups = fanout->settings.groups,
        .stats = fanout->settings.stats,
        .post = fanout->settings.post,
        .argument = fanout->settings.argument,
    };
    struct stream *stream = make_stream(fanout, connection, wishes);
    struct consumer_wishes wanted = *group;

    if (stream == NULL)
        return -ENOMEM;
    wanted.knows_newest = ring_now(fanout->settings.reader, &wanted.newest);
    const int r = consumer_join(stream, &wanted, &settings);
    if (r < 0) {
        drop_stream(fanout, stream);
        return r;
    }
    add_stream(fanout, stream);
    *ret_stream = stream;
    return 0;
}

static void stream_over(struct stream_owner *owner, struct stream *stream)
{
    struct fanout *fanout = CONTAINER_OF(owner, struct fanout, owner);

    catchup_forget(fanout->catchup, stream);
    if (stream->consumer != NULL)
        consumer_over(stream->consumer);
    leave_channels(fanout, stream);
    count_channels(fanout);
    *stream->link = stream->next;
    if (stream->next != NULL)
        stream->next->link = stream->link;
    stats_gauge_add(fanout->settings.stats, STATS_STREAMS, -1);
}

static void stream_writable(struct stream_owner *owner, struct stream *stream)
{
    if (stream->consumer != NULL)
        consumer_writable(stream->consumer);
    else if (stream->phase == STREAM_BEHIND)
        catchup_go_on(CONTAINER_OF(owner, struct fanout, owner)->catchup, stream);
}

/* -- a round -- */

/* The run of that topic in this round; a new one when it is the first frame for it. */
static struct run *run_of(struct fanout *fanout, struct channels_topic *topic)
{
    if (topic->mark == fanout->mark)
        return &fanout->runs[topic->place];

    topic->mark = fanout->mark;
    topic->place = fanout->run_count;
    struct run *run = &fanout->runs[fanout->run_count++];
    *run = (struct run){.topic = topic, .first = NO_HIT, .last = NO_HIT};
    return run;
}

static void add_hit(struct fanout *fanout, struct run *run, const struct sse_frame *frame)
{
    const size_t hit = fanout->hit_count++;

    fanout->hits[hit] = (struct hit){.frame = frame, .next = NO_HIT};
    if (run->first == NO_HIT)
        run->first = hit;
    else
        fanout->hits[run->last].next = hit;
    run->last = hit;
}

/* Of the topics that the frame's channel belongs to, those that it is for: what is not stored
 * is not for prefixes, which PostgreSQL cannot listen to. */
static size_t topics_of(const struct fanout *fanout, const struct sse_frame *frame,
                        struct channels_topic *topics[], size_t count)
{
    if (frame->kind == SSE_STORED || count == 0)
        return count;
    if (topics[0]->is_prefix) /* the exact one would stand first */
        return 0;
    if (frame->kind == SSE_MISSED)
        stats_add(fanout->settings.stats, STATS_GAPS_RELAY, topics[0]->member_count);
    return 1;
}

/* Reads what is new and sorts it by topic. RING_FRAME: there may be more. */
static enum ring_result gather(struct fanout *fanout)
{
    struct channels_topic *topics[CHANNELS_MATCH_MAX];
    const struct sse_frame *frame;
    size_t bytes = 0;

    fanout->mark++;
    fanout->run_count = 0;
    fanout->hit_count = 0;
    for (int i = 0; i < ROUND_FRAMES && bytes < ROUND_BYTES; i++) {
        if (fanout->hit_count + CHANNELS_MATCH_MAX > ROUND_HITS)
            break;

        const enum ring_result result =
            ring_read(fanout->settings.reader, &fanout->owner.position, &frame);
        if (result != RING_FRAME)
            return result;

        fanout->owner.seq = frame->seq;
        const size_t count =
            topics_of(fanout, frame, topics,
                      channels_match(fanout->channels, sse_frame_channel(frame),
                                     frame->channel_len, frame->channel_hash, topics));
        for (size_t j = 0; j < count; j++)
            add_hit(fanout, run_of(fanout, topics[j]), frame);
        bytes += frame->len;
    }
    return RING_FRAME;
}

/* The run's frames into fanout->frames; returns how many. */
static size_t list_frames(struct fanout *fanout, const struct run *run)
{
    size_t count = 0;

    for (size_t hit = run->first; hit != NO_HIT; hit = fanout->hits[hit].next)
        fanout->frames[count++] = fanout->hits[hit].frame;
    return count;
}

/* The frames in one piece, copied once for all members of the topic. NULL: no memory, and
 * they go out piece by piece. */
static const char *join_frames(struct fanout *fanout, size_t count, size_t *ret_len)
{
    if (count == 1) {
        *ret_len = fanout->frames[0]->len;
        return fanout->frames[0]->bytes;
    }
    buf_reset(&fanout->bytes);
    for (size_t i = 0; i < count; i++)
        (void)buf_add(&fanout->bytes, fanout->frames[i]->bytes, fanout->frames[i]->len);
    if (buf_ok(&fanout->bytes) < 0)
        return NULL;
    *ret_len = fanout->bytes.len;
    return fanout->bytes.data;
}

static void send_run(struct fanout *fanout, const struct run *run)
{
    const size_t count = list_frames(fanout, run);
    size_t len = 0;
    const char *bytes = join_frames(fanout, count, &len);

    /* A member may leave while it is being served, and the topic with the last one. */
    for (struct channels_member *member = run->topic->members, *next; member != NULL;
         member = next) {
        struct stream *stream = member->owner;

        next = member->next;
        /* Of thousands, the next one's is in no cache any more; it comes during the send. */
        __builtin_prefetch(next);
        if (stream->phase != STREAM_LIVE)
            continue;
        if (stream->everything) {
            (void)stream_send(stream, fanout->frames, count, bytes, len);
        } else if (stream->mark != fanout->mark) {
            stream->mark = fanout->mark;
            stream->touched = fanout->choosy;
            fanout->choosy = stream;
        }
    }
}

/* Where a stream is in each of its topics' runs of this round. */
static size_t next_hit(const struct fanout *fanout, const struct stream *stream,
                       const size_t *places)
{
    size_t first = NO_HIT;

    for (size_t i = 0; i < stream->member_count; i++) {
        const size_t hit = places[i];

        if (hit != NO_HIT && (first == NO_HIT || fanout->hits[hit].frame->position <
                                                     fanout->hits[first].frame->position))
            first = hit;
    }
    return first;
}

/* The frames of all the stream's topics, in order, each once, that pass its filter. */
static size_t merge_runs(struct fanout *fanout, const struct stream *stream,
                         size_t *places)
{
    size_t count = 0;

    for (size_t i = 0; i < stream->member_count; i++) {
        const struct channels_topic *topic = stream->members[i].topic;

        places[i] =
            topic->mark == fanout->mark ? fanout->runs[topic->place].first : NO_HIT;
    }
    for (size_t hit; (hit = next_hit(fanout, stream, places)) != NO_HIT;) {
        const struct sse_frame *frame = fanout->hits[hit].frame;

        /* The same frame may wait in several runs: by name and by prefix. */
        for (size_t i = 0; i < stream->member_count; i++) {
            if (places[i] != NO_HIT && fanout->hits[places[i]].frame == frame)
                places[i] = fanout->hits[places[i]].next;
        }
        if (filter_takes(&stream->filter, frame))
            fanout->frames[count++] = frame;
    }
    return count;
}

static void send_choosy(struct fanout *fanout, struct stream *stream)
{
    size_t places[STREAM_CHANNELS_MAX];

    if (stream->consumer != NULL) {
        consumer_news(stream->consumer);
        return;
    }
    const size_t count = merge_runs(fanout, stream, places);
    if (count > 0)
        (void)stream_send(stream, fanout->frames, count, NULL, 0);
}

/* The shard itself was overtaken, or the ring was emptied: so were all who were up to date
 * with it. The next round begins with the newest, and they are taken there one by one. */
static void everybody_overtaken(struct fanout *fanout)
{
    for (struct stream *stream = fanout->streams; stream != NULL; stream = stream->next) {
        if (stream->phase != STREAM_LIVE)
            continue;
        stream_is_behind(stream);
        stream_yield(stream);
    }
    fanout->owner.position = ring_next(fanout->settings.reader);
}

static void count_deliveries(struct fanout *fanout)
{
    stats_add(fanout->settings.stats, STATS_EVENTS_DELIVERED, fanout->owner.delivered);
    stats_add(fanout->settings.stats, STATS_DELIVERED_BYTES, fanout->owner.sent_bytes);
    fanout->owner.delivered = 0;
    fanout->owner.sent_bytes = 0;
}

bool fanout_round(struct fanout *fanout)
{
    ring_enter(fanout->settings.reader);
    const enum ring_result result = gather(fanout);

    fanout->choosy = NULL;
    for (size_t i = 0; i < fanout->run_count; i++)
        send_run(fanout, &fanout->runs[i]);
    for (struct stream *stream = fanout->choosy; stream != NULL; stream = stream->touched)
        send_choosy(fanout, stream);
    ring_leave(fanout->settings.reader);

    if (result == RING_LAGGED)
        everybody_overtaken(fanout);
    const bool more_pages = catchup_turn(fanout->catchup);

    count_deliveries(fanout);
    return result != RING_EMPTY || more_pages;
}

/* -- the end -- */

void fanout_drain(struct fanout *fanout, uint64_t spread_usec)
{
    const uint64_t first = clock_usec() + DELIVER_FIRST_USEC;

    for (struct stream *stream = fanout->streams; stream != NULL; stream = stream->next) {
        bool is_waited_for = false;

        if (stream->consumer != NULL) {
            consumer_leaves(stream->consumer);
            is_waited_for = consumer_is_exclusive(stream->consumer);
        }
        stream_finish_at(stream,
                         is_waited_for ? first : first + clock_random(spread_usec));
    }
}

void fanout_close(struct fanout *fanout)
{
    while (fanout->streams != NULL)
        stream_finish(fanout->streams, STREAM_END_GOODBYE);
}
