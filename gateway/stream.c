#include <errno.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "buf.h"
#include "clock.h"
#include "stream.h"

/* libmicrohttpd allocates so much with each response: a greeting or a goodbye. It writes chunks
 * in the connection's own memory, and needs none of that for them. */
#define READ_BLOCK_BYTES  ((size_t)96)
#define CHUNK_BLOCK_BYTES ((size_t)1)

/* Frames in one sendmsg(2). */
#define SEND_FRAMES 256

/* What libmicrohttpd allocates for a stream's response, without its block: counted on 0.9.75. */
#define RESPONSE_BYTES ((size_t)208)

#define SOCKET_EVENTS (EPOLLOUT | EPOLLRDHUP | EPOLLET)

/* The time libmicrohttpd has for writing a goodbye. */
#define GOODBYE_USEC (5 * USEC_PER_SEC)

/* A lone colon: no blank line behind it, because some clients take that for a message. */
#define HEARTBEAT ":\n"

/* Moves the client's id and is no event to it. Not without a data: line: most clients would
 * not see the id. */
#define CHECKPOINT "id: %" PRIu64 "\nevent: checkpoint\ndata:\n\n"

/* A line or a frame of ours; a gap is longer. */
#define OWN_MAX 64

/* Of an id that was never given, so much is repeated to its client. */
#define REQUESTED_MAX ((size_t)128)

static void source_ready(struct poller_source *source, uint32_t events);
static void timer_fired(struct wheel_timer *timer);
static void set_timer(struct stream *stream);

/* -- what it costs -- */

static size_t block_of(const struct stream *stream)
{
    return stream->chunked ? CHUNK_BLOCK_BYTES : READ_BLOCK_BYTES;
}

static size_t memory_of(const struct stream *stream)
{
    size_t bytes = sizeof(*stream) + RESPONSE_BYTES + block_of(stream) +
                   stream->member_count * sizeof(*stream->members) +
                   filter_bytes(&stream->filter) + stream->rest_len;

    if (stream->ear != NULL)
        bytes += sizeof(*stream->ear) + stream->ear->count * sizeof(stream->ear);
    return bytes;
}

/* Whenever it has come to hold more or less. */
static void count_memory(struct stream *stream, size_t bytes)
{
    stats_gauge_add(stream->stats, STATS_CONNECTION_MEMORY,
                    (int64_t)bytes - (int64_t)stream->counted_bytes);
    stream->counted_bytes = bytes;
}

/* -- making -- */

static uint64_t retry_msec(const struct stream *stream)
{
    return clock_jitter(stream->timing->retry_usec) / USEC_PER_MSEC;
}

/* An id that nobody was ever given is kept as it came, to be told with the gap. */
static int take_last_id(struct stream *stream, struct stream_text last_id)
{
    if (event_id_parse(last_id.text, last_id.len, &stream->seq) == 0) {
        stream->told_seq = stream->seq;
        return 0;
    }
    stream->place = STREAM_AT_EARLIEST;
    stream->gap = STREAM_GAP_UNKNOWN;
    stream->requested = strndup(last_id.text, MIN(last_id.len, REQUESTED_MAX));
    return stream->requested != NULL ? 0 : -ENOMEM;
}

static int copy_filter(struct stream *stream, const struct stream_wishes *wishes)
{
    int result = 0;

    for (size_t i = 0; i < wishes->type_count && result == 0; i++)
        result = filter_want_type(&stream->filter, wishes->types[i].text,
                                  wishes->types[i].len);
    for (size_t i = 0; i < wishes->without_count && result == 0; i++)
        result = filter_do_without(&stream->filter, wishes->without[i].text,
                                   wishes->without[i].len);
    return result;
}

struct stream *stream_new(const struct stream_wishes *wishes,
                          struct connection *connection, struct poller *poller,
                          const struct stream_timing *timing, struct stats *stats,
                          struct stream_owner *owner)
{
    struct stream *stream =
        calloc(1, sizeof(*stream) + wishes->channel_count * sizeof(*stream->members));

    if (stream == NULL)
        return NULL;
    stream->connection = connection;
    stream->owner = owner;
    stream->timing = timing;
    stream->poller = poller;
    stream->stats = stats;
    stream->source = POLLER_SOURCE(source_ready);
    stream->timer.fire = timer_fired;
    stream->chunked = wishes->chunked;
    stream->place = wishes->place;
    stream->seq = wishes->place == STREAM_AT_LAST ? UINT64_MAX : 0;
    stream->last_count = wishes->last_count;
    stream->begun_usec = clock_usec();
    stream->last_sent_usec = stream->begun_usec;
    stream->ends_usec = timing->max_age_usec == CLOCK_NEVER
                            ? CLOCK_NEVER
                            : clock_usec() + clock_jitter(timing->max_age_usec);
    stream->member_count = wishes->channel_count;

    for (size_t i = 0; i < stream->member_count; i++)
        stream->members[i].owner = stream;
    if (copy_filter(stream, wishes) < 0 ||
        (wishes->place == STREAM_AT_ID && take_last_id(stream, wishes->last_id) < 0)) {
        stream_free(stream);
        return NULL;
    }
    stream->everything = wishes->chunked && wishes->channel_count == 1 &&
                         wishes->place != STREAM_AT_NOWHERE &&
                         filter_takes_everything(&stream->filter);
    count_memory(stream, memory_of(stream));
    return stream;
}

void stream_free(struct stream *stream)
{
    if (stream == NULL)
        return;
    filter_done(&stream->filter);
    free(stream->requested);
    free(stream->rest);
    free(stream->ear);
    count_memory(stream, 0);
    free(stream);
}

static void set_phase(struct stream *stream, enum stream_phase phase)
{
    const int behind = (phase == STREAM_BEHIND) - (stream->phase == STREAM_BEHIND);

    if (behind != 0)
        stats_gauge_add(stream->stats, STATS_STREAMS_BEHIND, behind);
    stream->owner->behind_count += (size_t)behind;
    stream->phase = phase;
}

bool stream_lag(const struct stream *stream, uint64_t newest, uint64_t *ret_events)
{
    const bool is_live = stream->phase == STREAM_LIVE;
    const uint64_t seq = is_live ? stream->owner->seq : stream->seq;

    if (stream->place == STREAM_AT_NOWHERE ||
        (!is_live && stream->place != STREAM_AT_SEQ && stream->place != STREAM_AT_ID))
        return false;
    *ret_events = newest - MIN(seq, newest);
    return true;
}

/* -- bytes of our own -- */

/* Takes the bytes (heap). */
static void set_rest(struct stream *stream, char *rest, size_t len, size_t out)
{
    free(stream->rest);
    stream->rest = rest;
    stream->rest_len = len;
    stream->rest_out = out;
    count_memory(stream, memory_of(stream));
}

/* Leaves bytes of ours to be sent before anything else; as one chunk if need be. */
static int leave_rest(struct stream *stream, const char *bytes, size_t len, size_t out)
{
    char head[SSE_CHUNK_HEAD_MAX + 1] = "";
    const size_t head_len = stream->chunked ? sse_chunk_head(len, head) : 0;
    struct buf rest = BUF_EMPTY;

    (void)buf_add(&rest, stream->rest + stream->rest_out,
                  stream->rest_len - stream->rest_out);
    (void)buf_add(&rest, head, head_len);
    (void)buf_add(&rest, bytes, len);
    (void)buf_add_text(&rest, stream->chunked ? "\r\n" : "");
    if (buf_ok(&rest) < 0) {
        buf_done(&rest);
        return -ENOMEM;
    }
    const size_t rest_len = rest.len;
    set_rest(stream, buf_steal(&rest), rest_len, out);
    return 0;
}

int stream_say(struct stream *stream, const struct buf *text)
{
    if (buf_ok(text) < 0 || leave_rest(stream, text->data, text->len, 0) < 0)
        return -ENOMEM;
    stream->told_seq = stream->seq;
    return 0;
}

int stream_hear(struct stream *stream, size_t count, uint64_t from)
{
    stream->ear = calloc(1, sizeof(*stream->ear) + count * sizeof(stream->ear));
    if (stream->ear == NULL)
        return -ENOMEM;
    stream->ear->from = from;
    count_memory(stream, memory_of(stream));
    return 0;
}

/* -- libmicrohttpd's side: greet, sleep, say goodbye -- */

/* Makes libmicrohttpd's next write fail. Told of an end with an error, or of the end of an
 * HTTP/1.0 body, 0.9.75 closes the connection but leaves it lying about for as long as an
 * older one is awake; a failed write is cleared away at once. */
static ssize_t break_off(const struct stream *stream, char *out)
{
    (void)shutdown(stream->connection->fd, SHUT_RDWR);
    *out = '\n';
    return 1;
}

static ssize_t say_goodbye(struct stream *stream, char *out, size_t max)
{
    if (stream->end == STREAM_END_ABRUPT || (stream->goodbye_out && !stream->chunked))
        return break_off(stream, out);
    if (stream->goodbye_out)
        return MHD_CONTENT_READER_END_OF_STREAM;

    char text[OWN_MAX + 24];
    int len = snprintf(text, sizeof(text), "retry: %" PRIu64 "\n", retry_msec(stream));

    /* It comes back with the youngest id there is for it. */
    if (stream->place == STREAM_AT_SEQ && stream->seq > stream->told_seq)
        len += snprintf(text + len, sizeof(text) - (size_t)len, CHECKPOINT, stream->seq);
    if ((size_t)len > max)
        return MHD_CONTENT_READER_END_OF_STREAM;
    stream->goodbye_out = true;
    memcpy(out, text, (size_t)len);
    return len;
}

/* The first bytes. The retry: line is not a block of its own: it belongs to the first frame,
 * because some clients take a block with nothing else in it for a message. */
static ssize_t greet(const struct stream *stream, char *out, size_t max)
{
    const int len =
        snprintf(out, max, HEARTBEAT "retry: %" PRIu64 "\n", retry_msec(stream));

    return (size_t)len < max ? len : MHD_CONTENT_READER_END_WITH_ERROR;
}

/* `sent` counts the bytes libmicrohttpd has sent itself, which is the greeting alone. */
static ssize_t read_content(void *argument, uint64_t sent, char *out, size_t max)
{
    struct stream *stream = argument;

    if (stream->phase == STREAM_ENDING)
        return say_goodbye(stream, out, max);
    if (stream->phase != STREAM_GREETING)
        return 0; /* called once more while falling asleep */

    if (sent == 0)
        return greet(stream, out, max);

    connection_forget_headers(stream->response);
    connection_sleep(stream->connection);
    set_phase(stream, STREAM_BEHIND);
    set_timer(stream);
    /* Edge-triggered, and writable now: the first event comes at once, and takes the
     * stream to its position. A peer that goes away is noticed at once as well, which
     * libmicrohttpd cannot do for a suspended connection. */
    if (poller_add(stream->poller, &stream->source, stream->connection->fd,
                   SOCKET_EVENTS) < 0)
        stream_finish(stream, STREAM_END_ABRUPT);
    return 0;
}

static void response_over(void *argument)
{
    struct stream *stream = argument;

    stream_finish(stream, STREAM_END_ABRUPT); /* if the peer left before it fell asleep */
    stream_free(stream);
}

struct MHD_Response *stream_response(struct stream *stream)
{
    stream->response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, block_of(stream), read_content, stream, response_over);
    return stream->response;
}

void stream_finish(struct stream *stream, enum stream_end end)
{
    if (stream->phase == STREAM_ENDING)
        return;

    const bool was_asleep = stream->phase != STREAM_GREETING;
    /* In the middle of a chunk there is no proper end. */
    const bool broken = stream->offset > 0 || stream->rest != NULL;

    if (stream->phase == STREAM_LIVE)
        stream->seq = stream->owner->seq;
    set_phase(stream, STREAM_ENDING);
    stream->end = broken ? STREAM_END_ABRUPT : end;
    poller_remove(stream->poller, &stream->source);
    wheel_remove(stream->connection->wheel, &stream->timer);
    stream->owner->over(stream->owner, stream);
    if (was_asleep) {
        connection_wake(stream->connection);
        /* libmicrohttpd has the end to write, to a peer that may not read it. */
        connection_allow(stream->connection, GOODBYE_USEC);
    }
}

void stream_finish_at(struct stream *stream, uint64_t usec)
{
    stream->ends_usec = MIN(stream->ends_usec, usec);
    if (wheel_timer_is_set(&stream->timer))
        set_timer(stream);
}

/* -- our side: the socket -- */

static void source_ready(struct poller_source *source, uint32_t events)
{
    struct stream *stream = CONTAINER_OF(source, struct stream, source);

    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        stream_finish(stream, STREAM_END_ABRUPT);
    else
        stream->owner->writable(stream->owner, stream);
}

void stream_yield(struct stream *stream)
{
    poller_rearm(stream->poller, &stream->source, SOCKET_EVENTS);
}

/* `position`: in the ring, where it goes on; 0: unknown. */
static void fall_behind(struct stream *stream, uint64_t seq, uint32_t offset,
                        uint64_t position)
{
    const bool was_live = stream->phase == STREAM_LIVE;

    set_phase(stream, STREAM_BEHIND);
    stream->unsent_bytes = 0;
    stream->seq = seq;
    stream->offset = offset;
    if (stream->ear != NULL)
        stream->ear->position = position;
    if (was_live)
        set_timer(stream);
}

void stream_is_live(struct stream *stream)
{
    set_phase(stream, STREAM_LIVE);
    set_timer(stream);
}

void stream_is_behind(struct stream *stream)
{
    fall_behind(stream, stream->owner->seq, 0, stream->owner->position);
}

void stream_set_waits(struct stream *stream, bool waits)
{
    if (stream->waits == waits)
        return;
    stream->waits = waits;
    set_timer(stream);
}

/* The part of a frame that this stream's client gets. */
static const char *frame_part(const struct stream *stream, const struct sse_frame *frame,
                              size_t *ret_len)
{
    *ret_len = stream->chunked ? frame->len : frame->body_len;
    return frame->bytes + (stream->chunked ? 0 : frame->body_offset);
}

/* What the socket took; -1 when the peer is gone (and the stream is finished). */
static ssize_t took(struct stream *stream, ssize_t result)
{
    if (result >= 0) {
        if (result > 0)
            stream->last_sent_usec = stream->owner->now_usec;
        stream->owner->sent_bytes += (uint64_t)result;
        return result;
    }
    if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS || errno == ENOMEM)
        return 0;
    stream_finish(stream, STREAM_END_ABRUPT);
    return -1;
}

/* Frames [0, count) in one sendmsg(2), the first from stream->offset on. */
static ssize_t send_parts(struct stream *stream, const struct sse_frame *const *frames,
                          size_t count)
{
    struct iovec parts[SEND_FRAMES];

    for (size_t i = 0; i < count; i++) {
        size_t len;
        const char *part = frame_part(stream, frames[i], &len);
        const size_t skip = i == 0 ? stream->offset : 0;

        parts[i] = (struct iovec){(void *)(uintptr_t)(part + skip), len - skip};
    }
    const struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
    return sendmsg(stream->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* So much of the frame is out. What is not stored cannot be had again: the rest is kept. */
static void stop_within(struct stream *stream, const struct sse_frame *frame, size_t sent)
{
    size_t len;
    const char *part = frame_part(stream, frame, &len);

    if (frame->kind == SSE_STORED) {
        fall_behind(stream, frame->seq - 1, (uint32_t)sent, frame->position);
        return;
    }
    fall_behind(stream, frame->seq, 0, frame->position + (sent > 0));
    if (sent == 0)
        return;
    char *rest = malloc(len - sent);
    if (rest == NULL) {
        stream->offset = 1; /* a chunk that is broken off */
        stream_finish(stream, STREAM_END_ABRUPT);
        return;
    }
    memcpy(rest, part + sent, len - sent);
    set_rest(stream, rest, len - sent, 0);
}

/* Notes that `sent` bytes of the frames are out; returns how many that completes. */
static size_t settle(struct stream *stream, const struct sse_frame *const *frames,
                     size_t count, size_t sent)
{
    sent += stream->offset;
    stream->offset = 0;
    for (size_t i = 0; i < count; i++) {
        size_t len;

        (void)frame_part(stream, frames[i], &len);
        if (sent < len) {
            stop_within(stream, frames[i], sent);
            return i;
        }
        sent -= len;
        stream->told_seq = frames[i]->seq;
        stream->owner->delivered++;
    }
    return count;
}

size_t stream_send(struct stream *stream, const struct sse_frame *const *frames,
                   size_t count, const char *bytes, size_t len)
{
    size_t done = 0;

    if (bytes != NULL) {
        const ssize_t sent = took(
            stream, send(stream->source.fd, bytes, len, MSG_NOSIGNAL | MSG_DONTWAIT));

        if (sent < 0)
            return 0;
        if ((size_t)sent < len)
            return settle(stream, frames, count, (size_t)sent);
        stream->told_seq = frames[count - 1]->seq;
        stream->owner->delivered += count;
        return count;
    }

    while (done < count) {
        const size_t group = MIN(count - done, (size_t)SEND_FRAMES);
        const ssize_t sent = took(stream, send_parts(stream, frames + done, group));

        if (sent < 0)
            return done;
        const size_t whole = settle(stream, frames + done, group, (size_t)sent);
        done += whole;
        if (whole < group)
            break;
    }
    return done;
}

bool stream_send_rest(struct stream *stream)
{
    if (stream->rest == NULL)
        return true;

    const ssize_t sent = took(
        stream, send(stream->source.fd, stream->rest + stream->rest_out,
                     stream->rest_len - stream->rest_out, MSG_NOSIGNAL | MSG_DONTWAIT));

    if (sent < 0)
        return false;
    stream->rest_out += (size_t)sent;
    if (stream->rest_out < stream->rest_len)
        return false;
    set_rest(stream, NULL, 0, 0);
    return true;
}

/* -- signs of life -- */

/* Sends a line or a frame of ours. false: nothing was taken, because there is something in
 * the pipe as it is. What is taken in part is left as the rest. */
static bool send_own(struct stream *stream, const char *text, size_t len)
{
    char chunk[SSE_CHUNK_HEAD_MAX + OWN_MAX + 3] = "";
    size_t chunk_len = stream->chunked ? sse_chunk_head(len, chunk) : 0;

    memcpy(chunk + chunk_len, text, len);
    chunk_len += len;
    if (stream->chunked) {
        memcpy(chunk + chunk_len, "\r\n", 2);
        chunk_len += 2;
    }
    const ssize_t sent = took(
        stream, send(stream->source.fd, chunk, chunk_len, MSG_NOSIGNAL | MSG_DONTWAIT));
    if (sent <= 0)
        return false;
    if ((size_t)sent == chunk_len)
        return true;
    if (leave_rest(stream, text, len, (size_t)sent) < 0) {
        stream->offset = 1; /* a chunk that is broken off */
        stream_finish(stream, STREAM_END_ABRUPT);
    } else if (stream->phase == STREAM_LIVE) {
        stream_is_behind(stream);
    }
    return true;
}

void stream_tell_place(struct stream *stream)
{
    char text[OWN_MAX];
    const uint64_t seq = stream->owner->seq;
    const int len = snprintf(text, sizeof(text), CHECKPOINT, seq);

    if (send_own(stream, text, (size_t)len))
        stream->told_seq = seq;
}

/* A sign of life, and a young id if it has an old one. Not into the middle of a frame, and not
 * when something of ours is on its way as it is. */
static void send_heartbeat(struct stream *stream)
{
    if (stream->rest != NULL || stream->offset > 0)
        return;
    if (stream->phase == STREAM_LIVE && stream->place != STREAM_AT_NOWHERE &&
        stream->told_seq < stream->owner->seq)
        stream_tell_place(stream);
    else
        (void)send_own(stream, HEARTBEAT, strlen(HEARTBEAT));
}

/* Nothing is on its way to it: it is up to date, or waits for something else. */
static bool is_waiting(const struct stream *stream)
{
    return stream->phase == STREAM_LIVE || stream->waits;
}

/* A slow peer is looked at so often in the time after which it is closed. */
#define LOOKS_AT_PEER 4

/* The next time to look. The heartbeat comes earlier than it is due by up to two fifths,
 * at random: those who were last sent the same event do not get it all at once. */
static void set_timer(struct stream *stream)
{
    const uint64_t heartbeat = stream->timing->heartbeat_usec;
    const uint64_t idle_close = stream->timing->idle_close_usec;
    uint64_t due = MIN(stream->last_sent_usec + idle_close,
                       stream->owner->now_usec + idle_close / LOOKS_AT_PEER);

    /* Where a heartbeat cannot go out, it is not tried again at once. */
    if (is_waiting(stream))
        due = MAX(stream->last_sent_usec + clock_jitter(heartbeat * 4 / 5),
                  stream->owner->now_usec + heartbeat / 8);
    wheel_set(stream->connection->wheel, &stream->timer, MIN(due, stream->ends_usec));
}

/* A socket that is full says nothing until much of it has drained: whoever takes it in sips is
 * seen by what is left in it. */
static void look_at_peer(struct stream *stream)
{
    int unsent = 0;

    if (ioctl(stream->source.fd, SIOCOUTQ, &unsent) < 0)
        return;
    if (unsent < stream->unsent_bytes)
        stream->last_sent_usec = stream->owner->now_usec;
    stream->unsent_bytes = unsent;
}

static void timer_fired(struct wheel_timer *timer)
{
    struct stream *stream = CONTAINER_OF(timer, struct stream, timer);
    const uint64_t now = stream->owner->now_usec;

    if (now >= stream->ends_usec) {
        stream_finish(stream, STREAM_END_GOODBYE);
        return;
    }
    if (!is_waiting(stream))
        look_at_peer(stream);
    const uint64_t silent = now - MIN(stream->last_sent_usec, now);
    if (is_waiting(stream)) {
        if (silent >= stream->timing->heartbeat_usec / 2)
            send_heartbeat(stream);
    } else if (silent >= stream->timing->idle_close_usec) {
        stats_add(stream->stats, STATS_STREAMS_IDLE_CLOSED, 1);
        stream_finish(stream, STREAM_END_ABRUPT);
    }
    if (stream->phase != STREAM_ENDING)
        set_timer(stream);
}
