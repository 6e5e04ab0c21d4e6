/*
 * intake.c - what comes from the database goes into the ring, in order.
 */
#include "intake.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "buf.h"
#include "clock.h"
#include "event.h"
#include "schema.h"
#include "sse.h"
#include "tally.h"

#define FETCH_USEC (10 * USEC_PER_SEC) /* 64 MiB over a slow network */
#define FETCH_ROWS 500

/* Long fetches reach the readers while they last, and count as a sign of life. Short ones go
 * out in one piece, with one send to each subscriber. */
#define WAKE_BYTES (256 * KIB)

/* What notifications that wait may weigh together. */
#define NOTES_BYTES_MAX (16 * MIB)

/* What stands for a byte that is not UTF-8: U+FFFD. */
#define REPLACEMENT "\xef\xbf\xbd"

/* A notification that waits for its place. */
struct note {
    struct note *next;
    uint64_t number;     /* in the order in which they are heard */
    uint64_t after_seq;  /* it was rung for up to here before it came, */
    uint64_t after_ring; /* and so often for rows without a number */
    size_t bytes;
    size_t channel_len;
    size_t payload_len;
    char text[]; /* channel, then payload, each with a NUL */
};

/* How much has been heard. */
struct heard {
    uint64_t notes;
    uint64_t rings;
};

struct intake {
    struct intake_settings settings;
    uint64_t last_seq;        /* the newest frame in the ring */
    uint64_t begun_seq;       /* the newest event when the ring began */
    size_t fetched;           /* rows of this fetch */
    size_t unannounced_bytes; /* pushed since the readers were woken */

    uint64_t heard_seq;  /* rung for so far */
    uint64_t looked_seq; /* the newest at the last look */
    bool held;           /* this fetch has met what must wait */

    struct tally *tally; /* rows that were rung for and have not been pushed */
    struct note *first;  /* notifications that wait */
    struct note **tail;
    size_t notes_bytes;
    uint64_t newest_note; /* number */
    struct heard begun;   /* before the last sweep began */
    struct heard swept;   /* before one began that has left nothing to number */
};

/* ---- notifications that wait ---- */

static void add_note(struct intake *intake, struct note *note)
{
    note->next = NULL;
    *intake->tail = note;
    intake->tail = &note->next;
    intake->notes_bytes += note->bytes;
}

static struct note *take_note(struct intake *intake)
{
    struct note *note = intake->first;

    intake->first = note->next;
    if (intake->first == NULL)
        intake->tail = &intake->first;
    intake->notes_bytes -= note->bytes;
    return note;
}

/* ---- life ---- */

struct intake *intake_new(const struct intake_settings *settings)
{
    struct intake *intake = calloc(1, sizeof(*intake));

    if (intake == NULL)
        return NULL;
    intake->settings = *settings;
    intake->tail = &intake->first;
    intake->tally = tally_new();
    if (intake->tally == NULL) {
        free(intake);
        return NULL;
    }
    return intake;
}

void intake_free(struct intake *intake)
{
    if (intake == NULL)
        return;
    intake_forget(intake);
    tally_free(intake->tally);
    free(intake);
}

uint64_t intake_seq(const struct intake *intake)
{
    return intake->last_seq;
}

size_t intake_fetched(const struct intake *intake)
{
    return intake->fetched;
}

void intake_begin(struct intake *intake, uint64_t recent, uint64_t newest)
{
    intake->last_seq = recent;
    intake->begun_seq = newest;
    ring_start(intake->settings.ring, recent, newest);
    ring_wake(intake->settings.ring);
    stats_gauge_set(intake->settings.stats, STATS_HEAD_SEQ, (int64_t)recent);
}

void intake_begin_anew(struct intake *intake, uint64_t newest)
{
    intake->last_seq = newest;
    ring_restart(intake->settings.ring, newest);
    ring_wake(intake->settings.ring);
}

/* ---- what is heard ---- */

void intake_rung(struct intake *intake, uint64_t seq)
{
    intake->heard_seq = MAX(intake->heard_seq, seq);
}

void intake_rung_for_rows(struct intake *intake, uint64_t last_id)
{
    if (!relay_listens(intake->settings.relay))
        tally_clear(intake->tally);
    else if (intake->settings.exact)
        tally_add(intake->tally, last_id);
}

void intake_looked(struct intake *intake, uint64_t newest)
{
    intake_rung(intake, intake->looked_seq);
    intake->looked_seq = newest;
}

/* The payload as text. A database without an encoding (SQL_ASCII) hands over any bytes. */
static size_t copy_payload(char *to, const char *from, size_t len)
{
    size_t count = 0;

    for (size_t at = 0, size; at < len; at += size) {
        size = event_character_size(from + at, len - at);
        const size_t width = size > 0 ? size : sizeof(REPLACEMENT) - 1;

        if (to != NULL)
            memcpy(to + count, size > 0 ? from + at : REPLACEMENT, width);
        count += width;
        size = MAX(size, 1);
    }
    return count;
}

static struct note *note_new(const PGnotify *notification)
{
    const size_t len = strlen(notification->extra);
    const size_t channel_len = strlen(notification->relname);
    const size_t payload_len = copy_payload(NULL, notification->extra, len);
    const size_t bytes = sizeof(struct note) + channel_len + payload_len + 2;
    struct note *note = malloc(bytes);

    if (note == NULL)
        return NULL;
    *note = (struct note){
        .bytes = bytes, .channel_len = channel_len, .payload_len = payload_len};
    memcpy(note->text, notification->relname, channel_len + 1);
    (void)copy_payload(note->text + channel_len + 1, notification->extra, len);
    note->text[channel_len + 1 + payload_len] = '\0';
    return note;
}

void intake_note(struct intake *intake, const PGnotify *notification)
{
    struct relay *relay = intake->settings.relay;

    if (relay == NULL || !relay_wanted(relay, notification->relname))
        return;
    struct note *note =
        intake->notes_bytes < NOTES_BYTES_MAX ? note_new(notification) : NULL;
    if (note == NULL) {
        relay_missed(relay);
        return;
    }
    note->number = ++intake->newest_note;
    note->after_seq = intake->heard_seq;
    note->after_ring = tally_newest(intake->tally);
    add_note(intake, note);
}

void intake_forget(struct intake *intake)
{
    while (intake->first != NULL)
        free(take_note(intake));
    tally_clear(intake->tally);
}

bool intake_waits(const struct intake *intake)
{
    return intake->first != NULL && intake->newest_note > intake->begun.notes;
}

void intake_sweeping(struct intake *intake)
{
    intake->begun = (struct heard){intake->newest_note, tally_newest(intake->tally)};
}

void intake_swept(struct intake *intake, bool all)
{
    if (all)
        intake->swept = intake->begun;
    else
        intake->begun = intake->swept;
}

/* ---- what goes in ---- */

static void push(struct intake *intake, struct sse_frame *frame)
{
    intake->unannounced_bytes += frame->len;
    ring_push(intake->settings.ring, frame);
    if (intake->unannounced_bytes < WAKE_BYTES)
        return;
    ring_wake(intake->settings.ring);
    intake->settings.alive(intake->settings.argument);
    intake->unannounced_bytes = 0;
}

/* A frame that is not stored has the id of the newest event before it. */
static int push_unstored(struct intake *intake, enum sse_kind kind,
                         const struct event *event)
{
    struct sse_frame *frame = sse_frame_new(event);

    if (frame == NULL)
        return -ENOMEM;
    frame->kind = kind;
    push(intake, frame);
    return 0;
}

static int push_missed(void *argument, const char *name, size_t len)
{
    struct intake *intake = argument;
    CLEANUP(buf_done) struct buf data = BUF_EMPTY;

    sse_add_gap_data(
        &data,
        &(struct sse_gap){.seq = intake->last_seq, .reason = "relay", .channel = name});
    if (buf_ok(&data) < 0)
        return -ENOMEM;
    return push_unstored(intake, SSE_MISSED,
                         &(struct event){.seq = intake->last_seq,
                                         .channel = name,
                                         .channel_len = len,
                                         .type = "gap",
                                         .type_len = strlen("gap"),
                                         .data = data.data,
                                         .data_len = data.len});
}

/* True if there was something to tell. */
static bool tell_missed(struct intake *intake)
{
    struct relay *relay = intake->settings.relay;

    return relay != NULL && relay_tell_missed(relay, push_missed, intake) > 0;
}

static void push_note(struct intake *intake, struct note *note)
{
    /* What is missing was before it. */
    (void)tell_missed(intake);
    const int result =
        push_unstored(intake, SSE_RELAYED,
                      &(struct event){.seq = intake->last_seq,
                                      .channel = note->text,
                                      .channel_len = note->channel_len,
                                      .type = EVENT_DEFAULT_TYPE,
                                      .type_len = strlen(EVENT_DEFAULT_TYPE),
                                      .data = note->text + note->channel_len + 1,
                                      .data_len = note->payload_len});

    if (result < 0)
        relay_missed(intake->settings.relay);
    else
        stats_add(intake->settings.stats, STATS_RELAY_NOTIFICATIONS, 1);
    free(note);
}

/* Has all been pushed that was rung for before that notification? Of what has a number, all
 * below the next one has. */
static bool is_due(const struct intake *intake, const struct note *note,
                   uint64_t next_seq)
{
    return note->after_seq < next_seq && tally_settled(intake->tally, note->after_ring);
}

/* An event that was rung for comes next. All that was rung for before those that are due is in
 * the ring, so this one was after them. */
static void push_notes_before(struct intake *intake, uint64_t seq)
{
    while (intake->first != NULL && is_due(intake, intake->first, seq))
        push_note(intake, take_note(intake));
}

/* All events there are for now have been pushed. What was rung for before a sweep and is not
 * there was deleted meanwhile, or is locked. True if that made anything more. */
static bool push_rest(struct intake *intake)
{
    bool some = false;

    tally_void(intake->tally, intake->swept.rings);
    while (intake->first != NULL && intake->first->number <= intake->swept.notes) {
        push_note(intake, take_note(intake));
        some = true;
    }
    return tell_missed(intake) || some;
}

/* Has the doorbell of whoever numbered it not been heard? Then there may be other things that
 * have not, and have their place before it. */
static bool must_wait(const struct intake *intake, uint64_t seq)
{
    return seq > intake->heard_seq && relay_listens(intake->settings.relay);
}

static int64_t read_int64(const PGresult *row, int column)
{
    uint64_t network;

    memcpy(&network, PQgetvalue(row, 0, column), sizeof(network));
    return (int64_t)be64toh(network);
}

static int push_event(struct intake *intake, const struct event *event, int64_t age_usec)
{
    struct stats *stats = intake->settings.stats;
    /* An event that has no room now is asked for again, never left out. */
    struct sse_frame *frame = sse_frame_new(event);

    if (frame == NULL)
        return -ENOMEM;
    stats_add(stats, STATS_EVENTS_RECEIVED, 1);
    stats_add(stats, STATS_EVENTS_RECEIVED_BYTES, frame->len);
    if (event->seq > intake->begun_seq) /* the others are no news */
        stats_observe_usec(stats, STATS_EVENT_AGE_SECONDS,
                           age_usec > 0 ? (uint64_t)age_usec : 0);
    intake->last_seq = event->seq;
    intake->fetched++;
    push(intake, frame);
    return 0;
}

static int take_row(void *argument, const PGresult *row)
{
    struct intake *intake = argument;
    const struct event event = {
        .seq = (uint64_t)read_int64(row, 0),
        .channel = PQgetvalue(row, 0, 1),
        .channel_len = (size_t)PQgetlength(row, 0, 1),
        .type = PQgetvalue(row, 0, 2),
        .type_len = (size_t)PQgetlength(row, 0, 2),
        .data = PQgetvalue(row, 0, 3),
        .data_len = (size_t)PQgetlength(row, 0, 3),
        .client = PQgetvalue(row, 0, 7),
        .client_len = (size_t)PQgetlength(row, 0, 7),
    };
    const int64_t age_usec = read_int64(row, 4);
    const uint64_t purged = (uint64_t)read_int64(row, 5);
    const uint64_t id = (uint64_t)read_int64(row, 6); /* 0: it was POSTed */

    /* What was deleted may have been between what was seen last and this one. */
    if (event_is_other_life(event.seq, intake->last_seq) ||
        (intake->fetched == 0 && purged > intake->last_seq))
        return -ESTALE;
    intake->held = intake->held || must_wait(intake, event.seq);
    if (intake->held)
        return 0;
    if (tally_reaches(intake->tally, id))
        push_notes_before(intake, event.seq);
    const int result = push_event(intake, &event, age_usec);
    if (result == 0 && id != 0)
        tally_settle(intake->tally, id);
    return result;
}

static void tell_figures(const struct intake *intake)
{
    struct stats *stats = intake->settings.stats;
    size_t events, bytes;

    ring_size(intake->settings.ring, &events, &bytes);
    stats_gauge_set(stats, STATS_RING_EVENTS, (int64_t)events);
    stats_gauge_set(stats, STATS_RING_BYTES, (int64_t)bytes);
    stats_gauge_set(stats, STATS_HEAD_SEQ, (int64_t)intake->last_seq);
    stats_add(stats, STATS_LISTENER_FETCHES, 1);
}

/* A row that was numbered by its own insertion (see 0007_publish) was POSTed. */
static int ask(struct intake *intake, struct database *database, struct err *err)
{
    const uint64_t after = htobe64(intake->last_seq);
    const Oid types[] = {20}; /* int8 */
    const char *values[] = {(const char *)&after};
    const int lengths[] = {sizeof(after)}, formats[] = {1};
    const struct database_query query = {
        .sql = "SELECT e.seq, e.channel, e.type, e.data, CAST(1000000 * "
               "pg_catalog.date_part("
               "'epoch', pg_catalog.clock_timestamp() - e.created_at) AS int8), "
               "(SELECT coalesce(max(p.seq), 0) FROM gateway.purges p), e.id, "
               "e.client "
               "FROM gateway.events e WHERE e.seq > $1 ORDER BY e.seq LIMIT 500",
        .count = 1,
        .types = types,
        .values = values,
        .lengths = lengths,
        .formats = formats,
        .binary = true,
        .name = "fetch",
    };

    return database_each(database, &query, FETCH_USEC, take_row, intake, err);
}

int intake_fetch(struct intake *intake, struct database *database, struct err *err)
{
    intake->held = false;
    intake->fetched = intake->unannounced_bytes = 0;
    const int result = ask(intake, database, err);
    const bool is_all = result == 0 && intake->fetched < FETCH_ROWS;
    const bool more = is_all && !intake->held && push_rest(intake);

    /* What was pushed before a failure is as good as any. */
    if (intake->fetched > 0 || more)
        ring_wake(intake->settings.ring);
    tell_figures(intake);
    if (result == -ENOMEM)
        return err_set(err, result, "no memory for event %llu",
                       (unsigned long long)intake->last_seq + 1);
    if (schema_explain(result, database, err) < 0)
        return result;
    return !is_all;
}
