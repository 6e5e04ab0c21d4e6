#include <string.h>

#include "buf.h"
#include "channels.h"
#include "clock.h"
#include "fanout.h"

/* A round is short, because the ring keeps what it drops until the round is over, and
 * because departures, heartbeats and requests wait for it. */
#define ROUND_FRAMES 512
#define ROUND_BYTES  MIB
#define ROUND_HITS   4096 /* frames times the topics they belong to */

/* What one stream that is BEHIND is sent before others have their turn. */
#define CATCH_UP_SENDS  16
#define CATCH_UP_FRAMES 256  /* one send */
#define CATCH_UP_LOOKS  4096 /* frames looked at for one send */

/* An id that is newer than anything in the ring may be on its way: committed by a POST to
 * this gateway, or delivered by another one, a moment ago. */
#define FUTURE_USEC (3 * USEC_PER_SEC)

/* What was committed before a drain began is still delivered, rather than left for the next
 * connection to ask for. */
#define DELIVER_FIRST_USEC (200 * USEC_PER_MSEC)

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
    struct stream *streams;
    size_t unplaced; /* streams that wait for ring_start(), or for the event they name */
    uint64_t delivered; /* frames handed to sockets whole, for the counters */

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
    if (fanout->channels == NULL) {
        free(fanout);
        return NULL;
    }
    return fanout;
}

void fanout_free(struct fanout *fanout)
{
    if (fanout == NULL)
        return;
    channels_free(fanout->channels);
    buf_done(&fanout->bytes);
    free(fanout);
}

void fanout_turn(struct fanout *fanout, uint64_t now_usec)
{
    fanout->owner.now_usec = now_usec;
}

uint64_t fanout_due(const struct fanout *fanout)
{
    return fanout->unplaced > 0 ? fanout->owner.now_usec + FUTURE_USEC / 4 : CLOCK_NEVER;
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

static void leave_channels(struct fanout *fanout, struct stream *stream)
{
    for (size_t i = 0; i < stream->member_count; i++)
        channels_leave(fanout->channels, &stream->members[i]);
}

/* The stream goes on with everything that is held, and is told what that misses. */
static enum stream_gap place_at_oldest(struct fanout *fanout, struct stream *stream,
                                       enum stream_gap gap, uint64_t *ret_oldest)
{
    ring_oldest(fanout->settings.reader, &stream->position, ret_oldest);
    stream->placed = true;
    return gap;
}

/* Gives the stream its first position, after last_id, if it can be known yet. *ret_oldest
 * is set with a gap. */
static enum stream_gap place(struct fanout *fanout, struct stream *stream,
                             uint64_t *ret_oldest)
{
    ring_enter(fanout->settings.reader);
    const enum ring_place found =
        ring_find(fanout->settings.reader, stream->last_id, &stream->position);
    ring_leave(fanout->settings.reader);

    switch (found) {
    case RING_FOUND:
        stream->placed = true;
        return STREAM_NO_GAP;
    case RING_NOT_STARTED:
        return STREAM_NO_GAP;
    case RING_AHEAD:
        if (fanout->owner.now_usec < stream->asked_usec + FUTURE_USEC)
            return STREAM_NO_GAP;
        return place_at_oldest(fanout, stream, STREAM_GAP_FUTURE, ret_oldest);
    case RING_TOO_OLD:
        break;
    }
    return place_at_oldest(fanout, stream, STREAM_GAP_EXPIRED, ret_oldest);
}

static enum stream_gap place_first(struct fanout *fanout, struct stream *stream,
                                   struct stream_text last_id, uint64_t *ret_oldest)
{
    if (last_id.text == NULL) {
        stream->position = fanout->owner.position;
        stream->placed = true;
        return STREAM_NO_GAP;
    }
    if (event_id_parse(last_id.text, last_id.len, &stream->last_id) < 0)
        return place_at_oldest(fanout, stream, STREAM_GAP_UNKNOWN, ret_oldest);

    const enum stream_gap gap = place(fanout, stream, ret_oldest);
    if (!stream->placed)
        fanout->unplaced++;
    return gap;
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

struct stream *fanout_subscribe(struct fanout *fanout, struct connection *connection,
                                const struct stream_wishes *wishes)
{
    uint64_t oldest = 0;
    struct stream *stream =
        stream_new(wishes, connection, fanout->settings.poller, &fanout->settings.timing,
                   fanout->settings.stats, &fanout->owner);

    if (stream == NULL)
        return NULL;

    const enum stream_gap gap = place_first(fanout, stream, wishes->last_id, &oldest);
    if (join_channels(fanout, stream, wishes) < 0 ||
        stream_greet(stream, gap, wishes->last_id, oldest) < 0) {
        fanout->unplaced -= !stream->placed;
        leave_channels(fanout, stream);
        stream_free(stream);
        return NULL;
    }
    add_stream(fanout, stream);
    return stream;
}

static void stream_over(struct stream_owner *owner, struct stream *stream)
{
    struct fanout *fanout = CONTAINER_OF(owner, struct fanout, owner);

    leave_channels(fanout, stream);
    fanout->unplaced -= !stream->placed;
    *stream->link = stream->next;
    if (stream->next != NULL)
        stream->next->link = stream->link;
    stats_gauge_add(fanout->settings.stats, STATS_STREAMS, -1);
}

/* Those whose place could not be known when they came may learn it now. */
static void place_the_waiting(struct fanout *fanout)
{
    for (struct stream *stream = fanout->streams, *next; stream != NULL; stream = next) {
        uint64_t oldest = 0;

        next = stream->next;
        if (stream->placed)
            continue;

        const enum stream_gap gap = place(fanout, stream, &oldest);
        if (!stream->placed)
            continue;
        fanout->unplaced--;
        if (stream->phase == STREAM_GREETING && gap != STREAM_NO_GAP)
            stream_finish(stream, STREAM_END_ABRUPT); /* too late to greet it otherwise */
        else if (gap != STREAM_NO_GAP &&
                 stream_tell_gap(stream, gap, stream->last_id, oldest) < 0)
            stream_finish(stream, STREAM_END_ABRUPT);
        else if (stream->phase != STREAM_GREETING)
            stream_yield(stream);
    }
}

/* -- behind -- */

/* The ring has overtaken it. It is closed, and comes back with the id of the last event
 * that it has whole. */
static void overtaken(struct fanout *fanout, struct stream *stream)
{
    stats_add(fanout->settings.stats, STATS_STREAMS_LAGGED, 1);
    stream_finish(stream, STREAM_END_ABRUPT);
}

static bool takes(const struct stream *stream, const struct sse_frame *frame)
{
    for (size_t i = 0; i < stream->member_count; i++) {
        if (channels_topic_takes(stream->members[i].topic, sse_frame_channel(frame),
                                 frame->channel_len, frame->channel_hash))
            return stream_takes_type(stream, frame);
    }
    return false;
}

/* Collects what the stream takes, from *position on and before the shard's own position.
 * RING_FRAME: there may be more. In a ring round. */
static enum ring_result collect(struct fanout *fanout, const struct stream *stream,
                                uint64_t *position, size_t *ret_count)
{
    size_t count = 0;

    for (size_t looks = 0; looks < CATCH_UP_LOOKS && count < CATCH_UP_FRAMES; looks++) {
        const struct sse_frame *frame;

        if (*position >= fanout->owner.position) {
            *ret_count = count;
            return RING_EMPTY;
        }
        if (ring_read(fanout->settings.reader, position, &frame) != RING_FRAME)
            return RING_LAGGED;
        if (takes(stream, frame))
            fanout->frames[count++] = frame;
    }
    *ret_count = count;
    return RING_FRAME;
}

/* One send from the stream's position on. false: the socket is full, or it is over. */
static bool catch_up_once(struct fanout *fanout, struct stream *stream, bool *ret_arrived)
{
    uint64_t position = stream->position;
    size_t count = 0;
    const enum ring_result result = collect(fanout, stream, &position, &count);

    if (result == RING_LAGGED) {
        overtaken(fanout, stream);
        return false;
    }
    if (count > 0) {
        const size_t sent = stream_send(stream, fanout->frames, count, NULL, 0);

        fanout->delivered += sent;
        if (sent < count)
            return false;
    }
    stream->position = position;
    *ret_arrived = result == RING_EMPTY;
    return true;
}

static void catch_up(struct fanout *fanout, struct stream *stream)
{
    if (!stream_send_rest(stream))
        return;

    for (int i = 0; i < CATCH_UP_SENDS; i++) {
        bool arrived = false;

        ring_enter(fanout->settings.reader);
        const bool taken = catch_up_once(fanout, stream, &arrived);
        ring_leave(fanout->settings.reader);

        if (!taken)
            return;
        /* Placed after what this shard has read, it waits there for the shard. */
        if (stream->position > fanout->owner.position)
            break;
        if (arrived) {
            stream_is_live(stream);
            return;
        }
    }
    stream_yield(stream);
}

static void stream_writable(struct stream_owner *owner, struct stream *stream)
{
    struct fanout *fanout = CONTAINER_OF(owner, struct fanout, owner);

    if (stream->phase != STREAM_BEHIND)
        return;
    if (stream->placed)
        catch_up(fanout, stream);
    else
        (void)!stream_send_rest(stream); /* the rest of a heartbeat */
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

        const size_t count =
            channels_match(fanout->channels, sse_frame_channel(frame), frame->channel_len,
                           frame->channel_hash, topics);
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
        if (stream->phase != STREAM_LIVE)
            continue;
        if (stream->everything) {
            fanout->delivered += stream_send(stream, fanout->frames, count, bytes, len);
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

/* The frames of all the stream's topics, in order, each once, of the types it wants. */
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
        if (stream_takes_type(stream, frame))
            fanout->frames[count++] = frame;
    }
    return count;
}

static void send_choosy(struct fanout *fanout, struct stream *stream)
{
    size_t places[STREAM_CHANNELS_MAX];
    const size_t count = merge_runs(fanout, stream, places);

    if (count > 0)
        fanout->delivered += stream_send(stream, fanout->frames, count, NULL, 0);
}

/* The shard itself was overtaken: so were all who are up to date with it. */
static void everybody_overtaken(struct fanout *fanout)
{
    for (struct stream *stream = fanout->streams, *next; stream != NULL; stream = next) {
        next = stream->next;
        if (stream->phase == STREAM_LIVE)
            overtaken(fanout, stream);
    }
    fanout->owner.position = ring_next(fanout->settings.reader);
}

static void count_deliveries(struct fanout *fanout)
{
    stats_add(fanout->settings.stats, STATS_EVENTS_DELIVERED, fanout->delivered);
    stats_add(fanout->settings.stats, STATS_DELIVERED_BYTES, fanout->owner.sent_bytes);
    fanout->delivered = 0;
    fanout->owner.sent_bytes = 0;
}

bool fanout_round(struct fanout *fanout)
{
    if (fanout->unplaced > 0)
        place_the_waiting(fanout);

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
    count_deliveries(fanout);
    return result != RING_EMPTY;
}

/* -- the end -- */

void fanout_drain(struct fanout *fanout, uint64_t spread_usec)
{
    const uint64_t first = clock_usec() + DELIVER_FIRST_USEC;

    for (struct stream *stream = fanout->streams; stream != NULL; stream = stream->next)
        stream_finish_at(stream, first + clock_random(spread_usec));
}

void fanout_close(struct fanout *fanout)
{
    while (fanout->streams != NULL)
        stream_finish(fanout->streams, STREAM_END_GOODBYE);
}
