/*
 * stream.h - one subscriber: what it wants, where it is, what its socket has taken.
 *
 *   GREETING ──(header and first bytes are out)──> LIVE <──> BEHIND ──────> ENDING
 *      libmicrohttpd writes                    asleep: we write         libmicrohttpd closes
 *
 * LIVE: everything up to its shard's position has been handed to the socket. BEHIND: the
 * socket would not take all of it, or the subscriber came back for older events; the number
 * up to which it has everything, and how many bytes of the next frame are out already, say
 * where it goes on: from the ring, or from the table, whose frames are the same byte by byte.
 * No bytes of an event are ever copied for a subscriber: a slow one costs two numbers. (But for
 * the rest of a notification: the table does not have it.)
 *
 * Frames go straight from the ring's memory to the socket: an HTTP/1.1 client gets them
 * with their chunk's brackets, an HTTP/1.0 client without.
 *
 * Always true: the socket is touched by us only while the connection is asleep, and by
 * libmicrohttpd only while it is not.
 *
 * Threads: its shard's. Cost: one send(2) for a run of frames.
 */
#ifndef STREAM_H
#define STREAM_H

#include "base.h"
#include "channels.h"
#include "connection.h"
#include "filter.h"
#include "poller.h"
#include "relay.h"
#include "sse.h"
#include "stats.h"
#include "wheel.h"

/* Channels one subscriber may ask for, at the most. */
#define STREAM_CHANNELS_MAX 256

/* Clients it may do without, likewise. */
#define STREAM_CLIENTS_MAX 16

/* Why a stream did not begin at the id asked for. */
enum stream_gap {
    STREAM_NO_GAP,
    STREAM_GAP_EXPIRED, /* older than what is kept */
    STREAM_GAP_UNKNOWN, /* not an id of ours */
    STREAM_GAP_FUTURE,  /* newer than anything there is */
};

struct stream_text {
    const char *text; /* borrowed */
    size_t len;
};

/* Where a stream is to begin; later, where it is. */
enum stream_place {
    STREAM_AT_NOW,      /* with what is committed from now on */
    STREAM_AT_EARLIEST, /* with the oldest event that is kept */
    STREAM_AT_LAST,     /* with the newest `last_count` of its events, and all to come */
    STREAM_AT_ID,       /* after an id that the client claims to have */
    STREAM_AT_SEQ,      /* after `seq`, which is known to be of this database */
    STREAM_AT_NOWHERE,  /* it is fed by a group, and never told an event's id */
};

/* Of a subscriber to channels that are relayed (relay.h): what is not stored comes from the
 * ring alone. */
struct stream_ear {
    uint64_t from;     /* [const] only what stands in the ring from there on */
    uint64_t position; /* BEHIND: where it goes on; 0: after its seq */
    bool arrived;      /* it has been LIVE once */
    bool missed;       /* some may have been: to be told when it is in the ring again */
    size_t count;
    struct relay_channel *channels[];
};

/* What a subscriber asks for. */
struct stream_wishes {
    const struct stream_text *channels; /* names, or prefixes with '*' behind them */
    size_t channel_count;               /* 1 to STREAM_CHANNELS_MAX */
    const struct stream_text *types;
    size_t type_count;                 /* 0: all types */
    const struct stream_text *without; /* clients whose events it does without */
    size_t without_count;
    bool chunked; /* HTTP/1.1 */
    enum stream_place place;
    struct stream_text last_id; /* STREAM_AT_ID */
    unsigned last_count;        /* STREAM_AT_LAST */
};

struct stream_timing {
    uint64_t heartbeat_usec;
    uint64_t retry_usec;      /* what the client is told to wait; jittered for each */
    uint64_t max_age_usec;    /* CLOCK_NEVER: no end */
    uint64_t idle_close_usec; /* a reader that takes nothing for so long is closed */
};

enum stream_phase { STREAM_GREETING, STREAM_LIVE, STREAM_BEHIND, STREAM_ENDING };

enum stream_end {
    STREAM_END_ABRUPT,  /* the peer is gone, or the last chunk is broken */
    STREAM_END_GOODBYE, /* with a last retry:, and a proper end of the body */
};

struct stream;

/* The room that feeds streams, seen from them: what they tell it, and what they share. */
struct stream_owner {
    void (*writable)(struct stream_owner *owner, struct stream *stream);
    void (*over)(struct stream_owner *owner,
                 struct stream *stream); /* leave everything */

    uint64_t position; /* LIVE streams have been sent everything before it in the ring */
    uint64_t seq;      /* and everything up to it; exact while a stream is LIVE */
    uint64_t now_usec; /* clock_usec() of this turn of the shard's loop */
    uint64_t sent_bytes; /* what all streams' sockets took; for the counters */
    uint64_t delivered;  /* frames they took whole, likewise */
    size_t behind_count; /* streams that are BEHIND */
};

struct stream {
    struct connection *connection;      /* [const] */
    const struct stream_timing *timing; /* [const] */
    struct poller *poller;              /* [const] */
    struct stats *stats;                /* [const] */
    struct wheel_timer timer;

    enum stream_end end;
    enum stream_place place;
    enum stream_gap gap;  /* to be told as soon as it is known what is kept */
    uint64_t seq;         /* BEHIND: it has everything of its own up to here. AT_LAST: all
                             behind it is yet to come, be it more than the last */
    uint32_t offset;      /* BEHIND: bytes that are out of the frame of seq + 1 */
    unsigned last_count;  /* [const] of STREAM_AT_LAST */
    uint64_t told_purged; /* what is not there any more, as far as it was told */
    char *requested;      /* heap: the id that a gap is told about, or NULL */
    char *rest;           /* BEHIND: bytes of ours that go first (heap), or NULL */
    size_t rest_len;
    size_t rest_out;

    size_t counted_bytes; /* its part of STATS_CONNECTION_MEMORY */
    uint64_t begun_usec;  /* [const] */
    int unsent_bytes;     /* BEHIND: that its peer had not taken at the last look */
    uint64_t ends_usec;   /* maximum age, or the goodbye of a drain */

    struct MHD_Response *response; /* [const] borrowed: it has the stream */
    bool goodbye_out;

    size_t member_count;  /* [const] */
    struct filter filter; /* [const] */

    struct stream_ear *ear; /* heap; NULL: nothing is relayed to it */

    /* The owner's own. */
    struct consumer *consumer; /* of STREAM_AT_NOWHERE */
    struct inquiry *inquiry;
    bool replays;
    bool in_vain;
    struct stream *waiting_next;
    struct stream **waiting_link;
    struct stream *touched;
    uint64_t mark;
    struct stream *next;
    struct stream **link;

    /* What a delivery touches stands together, with the first member: two cache lines, and
     * none of another struct. */
    struct stream_owner *owner;  /* [const] */
    struct poller_source source; /* its fd is the socket's, while we may touch that */
    uint64_t told_seq;           /* the last id it was sent, or came with */
    uint64_t last_sent_usec;     /* when the socket, or its peer, last took something */
    enum stream_phase phase;
    bool chunked;    /* [const] */
    bool everything; /* [const] one topic, no filter, chunked: takes runs as they are */
    bool waits;      /* BEHIND, and not for its socket: for the ring, or for a page */
    struct channels_member members[]; /* member_count of them */
};

/* The members have joined nothing yet; the texts are copied. NULL: no memory. */
struct stream *stream_new(const struct stream_wishes *wishes,
                          struct connection *connection, struct poller *poller,
                          const struct stream_timing *timing, struct stats *stats,
                          struct stream_owner *owner) MUST_CHECK;
void stream_free(struct stream *stream);

/* A whole frame of ours, without a chunk's brackets, goes out before anything else that it is
 * sent; its id is stream->seq. -ENOMEM, also if there was none for the text. */
struct buf;
int stream_say(struct stream *stream, const struct buf *text) MUST_CHECK;

/* It takes what is relayed: gives it an ear with room for so many channels. -ENOMEM. */
int stream_hear(struct stream *stream, size_t count, uint64_t from) MUST_CHECK;

/* Tells its client the id up to which there was nothing for it, so that it comes back with a
 * young one. A LIVE stream. */
void stream_tell_place(struct stream *stream);

/* The response that greets, sleeps and says goodbye; the stream is freed when
 * libmicrohttpd is through with it. NULL: no memory; the stream stays the caller's. */
struct MHD_Response *stream_response(struct stream *stream) MUST_CHECK;

/* How many events, wanted or not, there are up to `newest` that it has not been past. false:
 * it is not known yet where it begins. */
bool stream_lag(const struct stream *stream, uint64_t newest,
                uint64_t *ret_events) MUST_CHECK;

/* Sends frames, the first one from stream->offset on. `bytes`: the same frames whole, in
 * one piece, or NULL. Returns how many went out whole; fewer than `count`: the stream is
 * BEHIND, with seq and offset where it broke, or ENDING if the peer is gone. */
size_t stream_send(struct stream *stream, const struct sse_frame *const *frames,
                   size_t count, const char *bytes, size_t len);

/* It has been sent everything up to its owner's position. */
void stream_is_live(struct stream *stream);

/* LIVE no more: it goes on after the owner's seq when its turn comes. */
void stream_is_behind(struct stream *stream);

/* Whether it is BEHIND for want of something else than room in its socket. */
void stream_set_waits(struct stream *stream, bool waits);

/* Its socket would take more, but others have their turn first: writable() comes again.
 */
void stream_yield(struct stream *stream);

/* Sends what is left of our own bytes. false: not all of it went out, or it is ending. */
bool stream_send_rest(struct stream *stream) MUST_CHECK;

/* Ends it: takes it from its owner and gives the connection back to libmicrohttpd. Once
 * or several times. */
void stream_finish(struct stream *stream, enum stream_end end);

/* It says goodbye at that time, or earlier if that was to be so. */
void stream_finish_at(struct stream *stream, uint64_t usec);

#endif
