#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "catchup.h"
#include "clock.h"

/* What one stream is sent before others have their turn. */
#define SENDS_MAX  16
#define LOOKS_MAX  4096 /* frames looked at for one send */
#define FRAMES_MAX 256  /* one send */

/* Pages sent in one turn of the shard's loop. */
#define PAGES_MAX 32

/* So close to what the ring holds, a stream takes pages with all channels: most who come back
 * are, and so they share them. */
#define NEAR_EVENTS 20000
#define EVERYTHING  "*"

/* One question of one stream, until its answer is dealt with. */
struct inquiry {
    struct replay_request request;
    struct mail mail;
    struct catchup *catchup;
    struct stream *stream; /* NULL: it is over */
    struct inquiry *next;  /* answered */
};

struct catchup {
    struct catchup_settings settings;
    struct stream *waiting; /* for the ring */
    struct inquiry *answered;
    struct inquiry **answered_tail;
    const struct sse_frame *frames[MAX(FRAMES_MAX, REPLAY_PAGE_MAX)];
};

enum step {
    STEP_MORE, /* sent some, and there may be more */
    STEP_LIVE, /* it has arrived */
    STEP_WAIT, /* for the ring */
    STEP_ASK,  /* the table */
    STEP_STOP, /* its socket is full, or it is over */
};

struct catchup *catchup_new(const struct catchup_settings *settings)
{
    struct catchup *catchup = calloc(1, sizeof(*catchup));

    if (catchup == NULL)
        return NULL;
    catchup->settings = *settings;
    catchup->answered_tail = &catchup->answered;
    return catchup;
}

static void free_inquiry(struct inquiry *inquiry)
{
    replay_page_free(inquiry->request.page);
    free(inquiry);
}

void catchup_free(struct catchup *catchup)
{
    if (catchup == NULL)
        return;
    for (struct inquiry *inquiry = catchup->answered, *next; inquiry != NULL;
         inquiry = next) {
        next = inquiry->next;
        free_inquiry(inquiry);
    }
    free(catchup);
}

/* -- what a stream takes -- */

/* What is not stored is for those who asked for the channel by its name, and were there. */
static bool takes(const struct stream *stream, const struct sse_frame *frame)
{
    const bool is_stored = frame->kind == SSE_STORED;

    if (!is_stored && (stream->ear == NULL || frame->position < stream->ear->from))
        return false;
    for (size_t i = 0; i < stream->member_count; i++) {
        const struct channels_topic *topic = stream->members[i].topic;

        if ((is_stored || !topic->is_prefix) &&
            channels_topic_takes(topic, sse_frame_channel(frame), frame->channel_len,
                                 frame->channel_hash))
            return filter_takes(&stream->filter, frame);
    }
    return false;
}

/* Do the notifications of all its relayed channels come? */
static bool stands(const struct stream *stream)
{
    for (size_t i = 0; stream->ear != NULL && i < stream->ear->count; i++) {
        if (!relay_stands(stream->ear->channels[i]))
            return false;
    }
    return true;
}

/* -- waiting for the ring -- */

static void wait_for_ring(struct catchup *catchup, struct stream *stream)
{
    stream->waiting_next = catchup->waiting;
    stream->waiting_link = &catchup->waiting;
    if (stream->waiting_next != NULL)
        stream->waiting_next->waiting_link = &stream->waiting_next;
    catchup->waiting = stream;
}

/* Off the list; whether it still waits is seen when it has had its turn. */
static void stop_waiting(struct stream *stream)
{
    if (stream->waiting_link == NULL)
        return;
    *stream->waiting_link = stream->waiting_next;
    if (stream->waiting_next != NULL)
        stream->waiting_next->waiting_link = stream->waiting_link;
    stream->waiting_link = NULL;
}

/* -- asking the table -- */

static void inquiry_delivered(struct mail *mail)
{
    struct inquiry *inquiry = CONTAINER_OF(mail, struct inquiry, mail);
    struct catchup *catchup = inquiry->catchup;

    inquiry->next = NULL;
    *catchup->answered_tail = inquiry;
    catchup->answered_tail = &inquiry->next;
}

/* On any thread. */
static void inquiry_done(struct replay_request *request)
{
    struct inquiry *inquiry = CONTAINER_OF(request, struct inquiry, request);

    inquiry->catchup->settings.post(inquiry->catchup->settings.argument, &inquiry->mail);
}

static void set_replays(struct catchup *catchup, struct stream *stream, bool replays)
{
    if (stream->replays == replays)
        return;
    stream->replays = replays;
    stats_gauge_add(catchup->settings.stats, STATS_STREAMS_REPLAYING, replays ? 1 : -1);
}

/* The stream's channels as replay.h wants them: one a line. */
static void add_patterns(struct buf *text, const struct stream *stream)
{
    for (size_t i = 0; i < stream->member_count; i++) {
        const struct channels_topic *topic = stream->members[i].topic;

        (void)buf_add_text(text, i > 0 ? "\n" : "");
        (void)buf_add(text, topic->name, topic->len);
        (void)buf_add_text(text, topic->is_prefix ? "*" : "");
    }
}

static int ask(struct catchup *catchup, struct stream *stream, struct inquiry *inquiry)
{
    struct replay_request *request = &inquiry->request;
    CLEANUP(buf_done) struct buf patterns = BUF_EMPTY;
    CLEANUP(buf_done) struct buf types = BUF_EMPTY;
    CLEANUP(buf_done) struct buf without = BUF_EMPTY;
    const bool near =
        request->question == REPLAY_AFTER && stream->seq + NEAR_EVENTS >= request->floor;

    (void)buf_add_text(&patterns, near ? EVERYTHING : "");
    (void)buf_add_text(&types, "");
    (void)buf_add_text(&without, "");
    if (!near && request->question != REPLAY_EARLIEST)
        add_patterns(&patterns, stream);
    if (request->question == REPLAY_LAST) {
        filter_add_types(&stream->filter, &types);
        filter_add_clients(&stream->filter, &without);
    }
    if (buf_ok(&patterns) < 0 || buf_ok(&types) < 0 || buf_ok(&without) < 0)
        return -ENOMEM;
    return replay_ask(catchup->settings.replay, request,
                      &(struct replay_choice){.patterns = patterns.data,
                                              .types = types.data,
                                              .without = without.data});
}

static enum replay_question question_of(const struct stream *stream)
{
    if (stream->place == STREAM_AT_EARLIEST)
        return REPLAY_EARLIEST;
    return stream->place == STREAM_AT_LAST ? REPLAY_LAST : REPLAY_AFTER;
}

/* Without memory for the question the stream ends, and its client comes back. */
static void ask_table(struct catchup *catchup, struct stream *stream)
{
    struct inquiry *inquiry = calloc(1, sizeof(*inquiry));

    if (inquiry == NULL) {
        stream_finish(stream, STREAM_END_GOODBYE);
        return;
    }
    *inquiry = (struct inquiry){
        .request = {.question = question_of(stream),
                    .after = stream->place == STREAM_AT_LAST ? 0 : stream->seq,
                    .count = stream->place == STREAM_AT_LAST ? stream->last_count : 0,
                    .floor = ring_floor(catchup->settings.reader),
                    .again = stream->in_vain,
                    .done = inquiry_done},
        .mail = {.deliver = inquiry_delivered},
        .catchup = catchup,
        .stream = stream,
    };
    stream->inquiry = inquiry;
    set_replays(catchup, stream, true);
    if (ask(catchup, stream, inquiry) < 0) {
        stream->inquiry = NULL;
        free(inquiry);
        stream_finish(stream, STREAM_END_GOODBYE);
    }
}

void catchup_forget(struct catchup *catchup, struct stream *stream)
{
    struct inquiry *inquiry = stream->inquiry;

    stop_waiting(stream);
    set_replays(catchup, stream, false);
    if (inquiry == NULL)
        return;
    stream->inquiry = NULL;
    inquiry->stream = NULL; /* whoever delivers it frees it */
    if (replay_cancel(catchup->settings.replay, &inquiry->request))
        free(inquiry);
}

/* -- from the ring -- */

/* Collects what the stream takes, from *position on and before the shard's own; *position moves
 * past the last frame looked at, and *ret_seq is that frame's. In a ring round. */
static enum ring_result collect(struct catchup *catchup, const struct stream *stream,
                                uint64_t *position, size_t *ret_count, uint64_t *ret_seq)
{
    size_t count = 0;

    for (size_t looks = 0; looks < LOOKS_MAX && count < FRAMES_MAX; looks++) {
        const struct sse_frame *frame;

        *ret_count = count;
        if (*position >= catchup->settings.owner->position)
            return RING_EMPTY;
        if (ring_read(catchup->settings.reader, position, &frame) != RING_FRAME)
            return RING_LAGGED;
        *ret_seq = frame->seq;
        if (takes(stream, frame))
            catchup->frames[count++] = frame;
    }
    *ret_count = count;
    return RING_FRAME;
}

/* Sends the frames collected; the first one goes on where it broke off, and must be the one
 * that did. false: not all are out. */
static bool send_frames(struct catchup *catchup, struct stream *stream, size_t count)
{
    if (stream->offset > 0 &&
        (count == 0 || catchup->frames[0]->seq != stream->seq + 1)) {
        stream_finish(stream, STREAM_END_ABRUPT);
        return false;
    }
    return count == 0 || stream_send(stream, catchup->frames, count, NULL, 0) == count;
}

/* Notifications, and it has not been told yet. */
static bool has_missed(const struct stream *stream)
{
    return stream->ear != NULL && stream->ear->missed;
}

/* One send from the ring. In a ring round. */
static enum step send_from(struct catchup *catchup, struct stream *stream,
                           uint64_t position)
{
    struct stream_owner *owner = catchup->settings.owner;
    uint64_t seq = stream->seq;
    size_t count = 0;

    /* The shard has yet to read so far: also when the table was ahead, and what broke off is
     * the ring's next. */
    if (position > owner->position || (position == owner->position && stream->offset > 0))
        return STEP_WAIT;
    const enum ring_result result = collect(catchup, stream, &position, &count, &seq);
    if (result == RING_LAGGED)
        return STEP_ASK;
    if ((count > 0 || stream->offset > 0) && !send_frames(catchup, stream, count))
        return STEP_STOP;
    stream->seq = seq;
    if (stream->ear != NULL)
        stream->ear->position = position;
    if (result == RING_FRAME)
        return STEP_MORE;
    if (!stands(stream))
        return STEP_WAIT;
    owner->seq = MAX(owner->seq, seq);
    /* What it has missed could not be told in the middle of the frame that is whole now. */
    return has_missed(stream) ? STEP_MORE : STEP_LIVE;
}

/* Where the stream goes on in the ring. Of what is not stored there is no other: who has lost
 * its place there may miss some. In a ring round. */
static enum ring_place find_place(const struct catchup *catchup, struct stream *stream,
                                  uint64_t *ret_position)
{
    struct ring_reader *reader = catchup->settings.reader;
    struct stream_ear *ear = stream->ear;

    if (ear != NULL && ear->position > 0) {
        *ret_position = ear->position;
        if (ring_holds(reader, ear->position))
            return RING_FOUND;
        ear->missed = ear->missed || ear->arrived;
        ear->position = 0;
    }
    const enum ring_place place = ring_find(reader, stream->seq, ret_position);
    if (ear != NULL && place == RING_FOUND)
        ear->position = *ret_position;
    return place;
}

static int say_missed(const struct catchup *catchup, struct stream *stream)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;
    struct stream_ear *ear = stream->ear;

    for (size_t i = 0; i < ear->count; i++)
        sse_add_gap(&text, &(struct sse_gap){.seq = stream->seq,
                                             .reason = "relay",
                                             .channel = relay_name(ear->channels[i])});
    ear->missed = false;
    stats_add(catchup->settings.stats, STATS_GAPS_RELAY, ear->count);
    return stream_say(stream, &text);
}

/* It is in the ring: what it has missed on its way is behind it. Not into the middle of a
 * frame. false: it is not told yet, or over. */
static bool tell_missed(const struct catchup *catchup, struct stream *stream)
{
    if (!has_missed(stream) || stream->offset > 0)
        return true;
    if (say_missed(catchup, stream) < 0) {
        stream_finish(stream, STREAM_END_GOODBYE);
        return false;
    }
    return stream_send_rest(stream);
}

static bool is_to_come(const struct ring_reader *reader, const struct stream *stream)
{
    uint64_t now;

    return stream->place == STREAM_AT_SEQ ||
           (ring_now(reader, &now) && stream->seq <= now);
}

bool catchup_note_now(const struct catchup *catchup, struct stream *stream)
{
    uint64_t now;

    if (!ring_now(catchup->settings.reader, &now))
        return false;
    if (stream->place == STREAM_AT_LAST) {
        stream->seq = MIN(stream->seq, now);
    } else if (stream->place == STREAM_AT_NOW) {
        stream->seq = now;
        stream->place = STREAM_AT_SEQ;
    }
    return true;
}

static enum step take_step(struct catchup *catchup, struct stream *stream)
{
    struct ring_reader *reader = catchup->settings.reader;
    enum step step = STEP_ASK;
    uint64_t position;

    /* Not before the ring has started: until then it has no floor for a question. */
    if (stream->place != STREAM_AT_SEQ && stream->place != STREAM_AT_ID) {
        if (!catchup_note_now(catchup, stream))
            return STEP_WAIT;
        if (stream->place != STREAM_AT_SEQ)
            return STEP_ASK;
    }

    ring_enter(reader);
    switch (find_place(catchup, stream, &position)) {
    case RING_FOUND:
        stream->place = STREAM_AT_SEQ;
        stream->in_vain = false;
        set_replays(catchup, stream, false);
        step = tell_missed(catchup, stream) ? send_from(catchup, stream, position)
                                            : STEP_STOP;
        break;
    case RING_NOT_STARTED:
        step = STEP_WAIT;
        break;
    case RING_AHEAD:
        /* On its way to the ring; or nobody has ever had that id. Or it has just come. */
        step = is_to_come(reader, stream) ? STEP_WAIT : STEP_ASK;
        if (stream->seq <= catchup->settings.owner->seq)
            step = STEP_MORE;
        break;
    case RING_TOO_OLD:
        break;
    }
    ring_leave(reader);
    return step;
}

static void arrive(struct stream *stream)
{
    const bool is_news = stream->ear != NULL && !stream->ear->arrived;

    stream_is_live(stream);
    if (stream->ear != NULL)
        stream->ear->arrived = true;
    /* Who has no id yet would miss what is committed between a loss of the connection and the
     * next one. And who wants notifications is told that they come from now on. */
    if (stream->told_seq == 0 || is_news)
        stream_tell_place(stream);
}

void catchup_go_on(struct catchup *catchup, struct stream *stream)
{
    stop_waiting(stream);
    if (!stream_send_rest(stream)) {
        /* It is its socket that it waits for now. */
        if (stream->phase != STREAM_ENDING)
            stream_set_waits(stream, false);
        return;
    }
    if (stream->inquiry != NULL)
        return;
    for (int i = 0; i < SENDS_MAX; i++) {
        const bool replays = stream->replays;
        const enum step step = take_step(catchup, stream);

        if (stream->phase != STREAM_ENDING)
            stream_set_waits(stream, step == STEP_WAIT || step == STEP_ASK);
        switch (step) {
        case STEP_MORE:
            continue;
        case STEP_LIVE:
            arrive(stream);
            return;
        case STEP_WAIT:
            wait_for_ring(catchup, stream);
            return;
        case STEP_ASK:
            if (stream->place == STREAM_AT_SEQ && !replays)
                stats_add(catchup->settings.stats, STATS_STREAMS_LAGGED, 1);
            ask_table(catchup, stream);
            return;
        case STEP_STOP:
            return;
        }
    }
    stream_yield(stream);
}

/* -- from the table -- */

static int say_gap(const struct catchup *catchup, struct stream *stream)
{
    static const struct {
        const char *reason;
        enum stats_counter counter;
    } gaps[] = {
        [STREAM_GAP_EXPIRED] = {"expired", STATS_GAPS_EXPIRED},
        [STREAM_GAP_UNKNOWN] = {"unknown", STATS_GAPS_UNKNOWN},
        [STREAM_GAP_FUTURE] = {"future", STATS_GAPS_FUTURE},
    };
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    sse_add_gap(&text, &(struct sse_gap){.seq = stream->seq,
                                         .requested = stream->requested,
                                         .reason = gaps[stream->gap].reason});
    if (stream_say(stream, &text) < 0)
        return -ENOMEM;
    stats_add(catchup->settings.stats, gaps[stream->gap].counter, 1);
    stream->gap = STREAM_NO_GAP;
    free(stream->requested);
    stream->requested = NULL;
    return 0;
}

/* Its place is known now. What cannot be had any more is told. false: it is over. */
static bool settle_place(const struct catchup *catchup, struct stream *stream,
                         const struct replay_page *page)
{
    /* After a deletion in the midst of what is kept there is more to send from its own id on
     * than from the oldest. And the last are those of when the table was asked, but nothing is
     * left out that has come since the subscriber was there, in whatever life of the table. */
    if (stream->gap == STREAM_GAP_EXPIRED)
        stream->seq = MAX(stream->seq, page->through);
    else if (stream->place == STREAM_AT_LAST)
        stream->seq = MIN(replay_place(page, stream->seq), page->through);
    else
        stream->seq = page->through;
    stream->told_purged = page->purged;
    stream->place = STREAM_AT_SEQ;
    if (stream->gap == STREAM_NO_GAP || say_gap(catchup, stream) == 0)
        return true;
    stream_finish(stream, STREAM_END_GOODBYE);
    return false;
}

/* The id is no good: where does that begin which is kept? In the middle of a frame nothing can
 * be told: then the stream ends, and its client is told when it comes back. */
static void begin_gap(struct catchup *catchup, struct stream *stream, enum stream_gap gap)
{
    char id[EVENT_ID_MAX_BYTES + 1];

    (void)event_id_format(stream->seq, id);
    stream->requested = strdup(id);
    if (stream->offset > 0 || stream->requested == NULL) {
        stream_finish(stream, STREAM_END_ABRUPT);
        return;
    }
    stream->gap = gap;
    stream->place = STREAM_AT_EARLIEST;
    ask_table(catchup, stream);
}

static void send_page(struct catchup *catchup, struct stream *stream,
                      const struct replay_page *page)
{
    size_t count = 0;

    stream->in_vain = page->through <= stream->seq;
    if (stream->in_vain) {
        catchup_go_on(catchup, stream);
        return;
    }
    for (size_t i = 0; i < page->count; i++) {
        if (page->frames[i]->seq > stream->seq && takes(stream, page->frames[i]))
            catchup->frames[count++] = page->frames[i];
    }
    if (!stream_send_rest(stream) || !send_frames(catchup, stream, count)) {
        /* What is left is asked for again, when there is room for it. */
        if (stream->phase != STREAM_ENDING)
            stream_set_waits(stream, false);
        return;
    }
    stream->seq = page->through;
    catchup_go_on(catchup, stream);
}

static void take_page(struct catchup *catchup, struct stream *stream,
                      const struct replay_page *page)
{
    if (stream->place == STREAM_AT_EARLIEST || stream->place == STREAM_AT_LAST) {
        if (settle_place(catchup, stream, page))
            catchup_go_on(catchup, stream);
        return;
    }
    switch (replay_judge(page, stream->seq, stream->told_purged)) {
    case REPLAY_EXACT:
        stream->place = STREAM_AT_SEQ;
        send_page(catchup, stream, page);
        return;
    case REPLAY_EXPIRED:
        begin_gap(catchup, stream, STREAM_GAP_EXPIRED);
        return;
    case REPLAY_FUTURE:
        begin_gap(catchup, stream, STREAM_GAP_FUTURE);
        return;
    }
}

static void take_answer(struct catchup *catchup, struct inquiry *inquiry)
{
    struct stream *stream = inquiry->stream;

    if (stream != NULL) {
        stream->inquiry = NULL;
        if (inquiry->request.page != NULL)
            take_page(catchup, stream, inquiry->request.page);
        else /* there will be none: the gateway is about to end */
            stream_finish(stream, STREAM_END_GOODBYE);
    }
    free_inquiry(inquiry);
}

bool catchup_turn(struct catchup *catchup)
{
    struct stream *waiting = catchup->waiting;

    /* Taken off the list first: who has to wait on is put there again. */
    catchup->waiting = NULL;
    if (waiting != NULL)
        waiting->waiting_link = &waiting;
    while (waiting != NULL)
        catchup_go_on(catchup, waiting); /* takes it off */

    for (int i = 0; i < PAGES_MAX && catchup->answered != NULL; i++) {
        struct inquiry *inquiry = catchup->answered;

        catchup->answered = inquiry->next;
        if (catchup->answered == NULL)
            catchup->answered_tail = &catchup->answered;
        take_answer(catchup, inquiry);
    }
    return catchup->answered != NULL;
}
