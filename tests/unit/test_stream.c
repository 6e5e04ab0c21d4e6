/* test_stream.c - one subscriber: what it wants, where it is, what its socket has taken. The
 * parts that libmicrohttpd has to do with are tested in test_shard.c. */
#include "stream.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buf.h"
#include "clock.h"
#include "cmocka_all.h"
#include "failing_malloc.h"

/* What stream.c allocates by these goes by failing_malloc.c, too. */
void *reallocarray(void *old, size_t count, size_t size)
{
    return realloc(old, count * size);
}

char *strndup(const char *text, size_t len)
{
    char *copy = malloc(len + 1);

    if (copy != NULL) {
        memcpy(copy, text, len);
        copy[len] = '\0';
    }
    return copy;
}

#define TEXT(literal)                                                                    \
    {                                                                                    \
        (literal), sizeof(literal) - 1                                                   \
    }

static const struct stream_text channels[] = {TEXT("events"), TEXT("orders.*")};
static const struct stream_text types[] = {TEXT("created"), TEXT("a")};
static const struct stream_timing timing = {.heartbeat_usec = 15 * USEC_PER_SEC,
                                            .retry_usec = 2 * USEC_PER_SEC,
                                            .max_age_usec = CLOCK_NEVER,
                                            .idle_close_usec = 60 * USEC_PER_SEC};

static const struct stream_text no_id = {NULL, 0};

/* A stream on one end of a socket pair, as it is while its connection sleeps. */
struct house {
    struct stats *stats;
    struct wheel *wheel;
    struct stream_owner owner;
    struct connection connection;
    struct stream *stream;
    int other_fd;
    struct buf got;
};

static struct stream *make(struct house *house, bool chunked, size_t type_count,
                           struct stream_text last_id)
{
    const struct stream_wishes wishes = {.channels = channels,
                                         .channel_count = ARRAY_SIZE(channels),
                                         .types = types,
                                         .type_count = type_count,
                                         .chunked = chunked,
                                         .place = last_id.text == NULL ? STREAM_AT_NOW
                                                                       : STREAM_AT_ID,
                                         .last_id = last_id};

    return stream_new(&wishes, &house->connection, NULL, &timing, house->stats,
                      &house->owner);
}

/* As it is added to a poller, which none of these tests runs. */
static void fall_asleep(struct house *house)
{
    house->stream->source.fd = house->connection.fd;
}

static void house_open(struct house *house, bool chunked, size_t type_count)
{
    const int small = 4096;
    int ends[2];

    memset(house, 0, sizeof(*house));
    house->stats = stats_new();
    house->wheel = wheel_new(clock_usec());
    assert_int_equal(
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    (void)setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    house->connection.fd = ends[0];
    house->connection.wheel = house->wheel;
    house->connection.stats = house->stats;
    house->other_fd = ends[1];
    house->stream = make(house, chunked, type_count, no_id);
    assert_non_null(house->stream);
    fall_asleep(house);
    house->stream->phase = STREAM_LIVE;
    house->stream->place = STREAM_AT_SEQ;
}

static void house_close(struct house *house)
{
    wheel_remove(house->wheel, &house->stream->timer);
    stream_free(house->stream);
    stats_free(house->stats);
    wheel_free(house->wheel);
    buf_done(&house->got);
    (void)close(house->connection.fd);
    (void)close(house->other_fd);
}

static void take(struct house *house, size_t max)
{
    char bytes[4096];
    const ssize_t len =
        recv(house->other_fd, bytes, MIN(max, sizeof(bytes)), MSG_DONTWAIT);

    if (len > 0)
        (void)buf_add(&house->got, bytes, (size_t)len);
}

#define FRAMES 600

static struct sse_frame *frame_new(uint64_t position, const char *type, size_t data_len)
{
    static char data[8192];

    memset(data, (int)('a' + position % 26), sizeof(data));
    struct sse_frame *frame = sse_frame_new(&(struct event){.seq = position,
                                                            .channel = "events",
                                                            .channel_len = 6,
                                                            .type = type,
                                                            .type_len = strlen(type),
                                                            .data = data,
                                                            .data_len = data_len});
    assert_non_null(frame);
    frame->position = position;
    return frame;
}

/* -- sending -- */

/* All frames, again and again from where the socket broke off, until they are out. */
static void send_all(struct house *house, const struct sse_frame *const *frames,
                     size_t count, bool in_one_piece)
{
    struct stream *stream = house->stream;
    CLEANUP(buf_done) struct buf bytes = BUF_EMPTY;
    size_t sip = 1, broken = 0;

    for (size_t i = 0; i < count; i++)
        (void)buf_add(&bytes, frames[i]->bytes, frames[i]->len);
    size_t done = stream_send(stream, frames, count, in_one_piece ? bytes.data : NULL,
                              in_one_piece ? bytes.len : 0);
    while (done < count) {
        assert_int_equal(stream->phase, STREAM_BEHIND);
        assert_true(stream->seq + 1 == frames[done]->seq);
        assert_true(stream->offset < frames[done]->len);
        broken += stream->offset > 0;
        sip = sip % 3001 + 13;
        take(house, sip);
        done += stream_send(stream, frames + done, count - done, NULL, 0);
    }
    assert_int_equal(stream->offset, 0);
    assert_true(broken > 10);
}

static void send_and_compare(bool chunked, bool in_one_piece)
{
    struct sse_frame *frames[FRAMES];
    struct house house;
    CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;

    house_open(&house, chunked, 0);
    for (size_t i = 0; i < FRAMES; i++) {
        frames[i] = frame_new(i + 1, "message", i * 37 % 5000);
        if (chunked)
            (void)buf_add(&wanted, frames[i]->bytes, frames[i]->len);
        else
            (void)buf_add(&wanted, frames[i]->bytes + frames[i]->body_offset,
                          frames[i]->body_len);
    }
    send_all(&house, (const struct sse_frame *const *)frames, FRAMES, in_one_piece);
    for (size_t before = SIZE_MAX; house.got.len != before;) {
        before = house.got.len;
        take(&house, SIZE_MAX);
    }
    assert_int_equal(house.got.len, wanted.len);
    assert_memory_equal(house.got.data, wanted.data, wanted.len);
    assert_true(house.owner.sent_bytes == wanted.len);
    assert_int_equal(stats_gauge_value(house.stats, STATS_STREAMS_BEHIND), 1);
    stream_is_live(house.stream);
    assert_int_equal(stats_gauge_value(house.stats, STATS_STREAMS_BEHIND), 0);
    for (size_t i = 0; i < FRAMES; i++)
        sse_frame_free(frames[i]);
    house_close(&house);
}

static void what_breaks_goes_on_at_the_same_byte(void **state)
{
    (void)state;
    send_and_compare(true, true);
    send_and_compare(true, false);
    send_and_compare(false, false);
}

static void nothing_taken_is_not_a_loss(void **state)
{
    const struct sse_frame *frames[1];
    struct house house;

    (void)state;
    house_open(&house, true, 0);
    struct sse_frame *frame = frame_new(9, "message", 5000);
    frames[0] = frame;
    while (stream_send(house.stream, frames, 1, NULL, 0) == 1)
        continue;
    while (house.stream->offset < frame->len && house.stream->offset > 0 &&
           house.owner.sent_bytes > 0) {
        house.owner.sent_bytes = 0;
        assert_int_equal(stream_send(house.stream, frames, 1, NULL, 0), 0);
    }
    const uint32_t offset = house.stream->offset;
    assert_int_equal(stream_send(house.stream, frames, 1, NULL, 0), 0);
    assert_int_equal(house.stream->offset, offset);
    assert_true(house.stream->seq == 8);
    sse_frame_free(frame);
    house_close(&house);
}

static void a_frame_of_ours_goes_before_anything_else(void **state)
{
    (void)state;
    for (int chunked = 0; chunked < 2; chunked++) {
        struct house house;
        char wanted[256];
        char head[SSE_CHUNK_HEAD_MAX + 1] = "";
        CLEANUP(buf_done) struct buf text = BUF_EMPTY;

        house_open(&house, chunked, 0);
        house.stream->seq = 100;
        sse_add_gap(&text, &(struct sse_gap){.seq = 100, .reason = "expired"});
        assert_int_equal(stream_say(house.stream, &text), 0);
        assert_int_equal(house.stream->told_seq, 100);
        assert_true(stream_send_rest(house.stream));
        assert_true(stream_send_rest(house.stream)); /* nothing is left */
        take(&house, SIZE_MAX);
        if (chunked)
            (void)sse_chunk_head(text.len, head);
        const int len = snprintf(wanted, sizeof(wanted), "%s%s%s", head, text.data,
                                 chunked ? "\r\n" : "");
        assert_int_equal(house.got.len, len);
        assert_memory_equal(house.got.data, wanted, (size_t)len);
        house_close(&house);
    }
}

/* The table does not have it: what the socket has not taken of it is kept, and comes first. */
static void what_is_not_stored_breaks_and_goes_on_from_what_is_kept(void **state)
{
    enum { COUNT = 64 };

    (void)state;
    for (int chunked = 0; chunked < 2; chunked++) {
        struct sse_frame *frames[COUNT];
        CLEANUP(buf_done) struct buf wanted = BUF_EMPTY;
        struct house house;
        int breaks = 0;

        house_open(&house, chunked, 0);
        assert_int_equal(stream_hear(house.stream, 1, 3), 0);
        for (size_t i = 0; i < COUNT; i++) {
            frames[i] = frame_new(i, "message", 8000);
            frames[i]->kind = SSE_RELAYED;
            (void)buf_add(&wanted,
                          frames[i]->bytes + (chunked ? 0 : frames[i]->body_offset),
                          chunked ? frames[i]->len : frames[i]->body_len);
        }
        for (size_t next = 0; next < COUNT;) {
            const size_t done =
                stream_send(house.stream, (const struct sse_frame *const *)frames + next,
                            COUNT - next, NULL, 0);

            next += done;
            if (next == COUNT)
                break;
            assert_int_equal(house.stream->seq, next);
            assert_int_equal(house.stream->offset, 0);
            breaks += house.stream->rest != NULL;
            assert_int_equal(house.stream->ear->position,
                             next + (house.stream->rest != NULL));
            next = house.stream->ear->position;
            while (!stream_send_rest(house.stream))
                take(&house, 3000);
            take(&house, 3000);
        }
        while (house.got.len < wanted.len)
            take(&house, SIZE_MAX);
        assert_true(breaks > 0);
        assert_int_equal(house.got.len, wanted.len);
        assert_memory_equal(house.got.data, wanted.data, wanted.len);
        for (size_t i = 0; i < COUNT; i++)
            sse_frame_free(frames[i]);
        house_close(&house);
    }
}

/* -- wishes -- */

/* Where runs of bytes may go out as they are, nothing looks at their frames. */
static void who_filters_takes_no_runs(void **state)
{
    static const struct {
        size_t channels, types, without;
        bool chunked, everything;
    } cases[] = {
        {1, 0, 0, true, true},  {2, 0, 0, true, false},  {1, 1, 0, true, false},
        {1, 0, 1, true, false}, {1, 0, 0, false, false},
    };
    struct house house;

    (void)state;
    house_open(&house, true, 0);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const struct stream_wishes wishes = {.channels = channels,
                                             .channel_count = cases[i].channels,
                                             .types = types,
                                             .type_count = cases[i].types,
                                             .without = types,
                                             .without_count = cases[i].without,
                                             .chunked = cases[i].chunked};
        struct stream *stream = stream_new(&wishes, &house.connection, NULL, &timing,
                                           house.stats, &house.owner);

        assert_non_null(stream);
        assert_int_equal(stream->everything, cases[i].everything);
        stream_free(stream);
    }
    house_close(&house);
}

static void an_id_is_a_place_and_what_is_none_is_a_gap(void **state)
{
    static const struct {
        struct stream_text id;
        uint64_t seq; /* 0: it is none */
    } cases[] = {{TEXT("1"), 1},
                 {TEXT("9223372036854775807"), INT64_MAX},
                 {TEXT("9223372036854775808"), 0},
                 {TEXT("01"), 0},
                 {TEXT("-1"), 0},
                 {TEXT("1 "), 0},
                 {TEXT("earliest"), 0},
                 {TEXT(""), 0}};
    struct house house;

    (void)state;
    house_open(&house, true, 0);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct stream *stream = make(&house, true, 0, cases[i].id);

        assert_non_null(stream);
        assert_true(stream->seq == cases[i].seq && stream->told_seq == cases[i].seq);
        assert_int_equal(stream->place,
                         cases[i].seq > 0 ? STREAM_AT_ID : STREAM_AT_EARLIEST);
        assert_int_equal(stream->gap,
                         cases[i].seq > 0 ? STREAM_NO_GAP : STREAM_GAP_UNKNOWN);
        if (cases[i].seq == 0)
            assert_string_equal(stream->requested, cases[i].id.text);
        stream_free(stream);
    }
    house_close(&house);
}

/* -- its place -- */

#define PLACE "id: 42\nevent: checkpoint\ndata:\n\n"

static void a_checkpoint_tells_the_place(void **state)
{
    (void)state;
    for (int chunked = 0; chunked < 2; chunked++) {
        const char *wanted = chunked ? "20\r\n" PLACE "\r\n" : PLACE;
        struct house house;

        house_open(&house, chunked, 0);
        house.owner.seq = 42;
        stream_tell_place(house.stream);
        assert_int_equal(house.stream->told_seq, 42);
        take(&house, SIZE_MAX);
        assert_int_equal(house.got.len, strlen(wanted));
        assert_memory_equal(house.got.data, wanted, strlen(wanted));
        house_close(&house);
    }
}

/* A TCP connection instead of the socket pair: it takes a message in part, too. */
static void house_use_tcp(struct house *house)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);
    const int small = 4096;
    const int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)close(house->connection.fd);
    (void)close(house->other_fd);
    house->other_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)setsockopt(listening, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    (void)setsockopt(house->other_fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof(small));
    assert_int_equal(bind(listening, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(listening, 1), 0);
    assert_int_equal(getsockname(listening, (struct sockaddr *)&address, &len), 0);
    assert_int_equal(connect(house->other_fd, (struct sockaddr *)&address, len), 0);
    house->connection.fd = accept4(listening, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    assert_true(house->connection.fd >= 0);
    fall_asleep(house);
    (void)close(listening);
}

/* Byte by byte, at most so many; returns how many it takes. */
static size_t fill(const struct house *house, size_t max)
{
    size_t count = 0;

    while (count < max && send(house->connection.fd, "x", 1, MSG_NOSIGNAL) == 1)
        count++;
    return count;
}

/* The pipe is full but for so many bytes, or about: it goes in whole, in part, or not at
 * all; and then there is all of it, or nothing. */
static void a_checkpoint_that_does_not_fit_is_not_broken(void **state)
{
    static const char wanted[] = "20\r\n" PLACE "\r\n";
    int parts = 0, whole = 0, none = 0;
    size_t full = 0;

    (void)state;
    for (size_t turn = 0; turn < 120; turn++) {
        struct house house;

        house_open(&house, true, 0);
        house_use_tcp(&house);
        house.owner.seq = 42;
        const size_t filled = fill(&house, turn % 40 == 0 ? SIZE_MAX : full - turn % 40);
        full = turn % 40 == 0 ? filled : full;
        stream_tell_place(house.stream);
        const bool told = house.stream->told_seq == 42;
        const bool broken = house.stream->rest != NULL;
        parts += broken;
        whole += told && !broken;
        none += !told;
        assert_true(told || !broken);
        assert_int_equal(house.stream->phase, broken ? STREAM_BEHIND : STREAM_LIVE);
        while (!stream_send_rest(house.stream) ||
               house.got.len < filled + (told ? strlen(wanted) : 0))
            take(&house, SIZE_MAX);
        take(&house, SIZE_MAX);
        assert_int_equal(house.got.len - filled, told ? strlen(wanted) : 0);
        if (told)
            assert_memory_equal(house.got.data + filled, wanted, strlen(wanted));
        house_close(&house);
    }
    print_message("whole %d, in part %d, not at all %d\n", whole, parts, none);
    assert_true(whole > 0 && none > 0);
}

/* -- memory -- */

static void without_memory_there_is_no_stream(void **state)
{
    struct house house;
    bool failed = true;

    (void)state;
    house_open(&house, true, 0);
    for (unsigned n = 1; failed; n++) {
        failing_malloc_begin(n);
        struct stream *stream = make(&house, true, ARRAY_SIZE(types), no_id);
        failed = failing_malloc_end();
        assert_int_equal(stream == NULL, failed);
        stream_free(stream);
    }
    failed = true;
    for (unsigned n = 1; failed; n++) {
        failing_malloc_begin(n);
        struct stream *stream =
            make(&house, true, 0, (struct stream_text){"\x01\x02\x03", 3});
        failed = failing_malloc_end();
        assert_int_equal(stream == NULL, failed);
        stream_free(stream);
    }
    stream_free(NULL);
    house_close(&house);
}

static void a_frame_of_ours_that_has_no_room_changes_nothing(void **state)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;
    struct house house;
    bool failed = true;

    (void)state;
    (void)buf_add_text(&text, "id: 100\nevent: gap\ndata: {}\n\n");
    house_open(&house, true, 0);
    for (unsigned n = 1; failed; n++) {
        failing_malloc_begin(n);
        const int result = stream_say(house.stream, &text);
        failed = failing_malloc_end();
        assert_int_equal(result, failed ? -ENOMEM : 0);
        assert_int_equal(house.stream->rest == NULL, failed);
    }
    house_close(&house);
}

static void without_memory_there_is_no_ear(void **state)
{
    struct house house;

    (void)state;
    house_open(&house, true, 0);
    failing_malloc_begin(1);
    assert_int_equal(stream_hear(house.stream, 1, 3), -ENOMEM);
    assert_true(failing_malloc_end());
    assert_null(house.stream->ear);
    house_close(&house);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_breaks_goes_on_at_the_same_byte),
        cmocka_unit_test(nothing_taken_is_not_a_loss),
        cmocka_unit_test(a_frame_of_ours_goes_before_anything_else),
        cmocka_unit_test(what_is_not_stored_breaks_and_goes_on_from_what_is_kept),
        cmocka_unit_test(who_filters_takes_no_runs),
        cmocka_unit_test(an_id_is_a_place_and_what_is_none_is_a_gap),
        cmocka_unit_test(a_checkpoint_tells_the_place),
        cmocka_unit_test(a_checkpoint_that_does_not_fit_is_not_broken),
        cmocka_unit_test(without_memory_there_is_no_stream),
        cmocka_unit_test(a_frame_of_ours_that_has_no_room_changes_nothing),
        cmocka_unit_test(without_memory_there_is_no_ear),
    };
    return cmocka_run_group_tests_name("stream", tests, NULL, NULL);
}
