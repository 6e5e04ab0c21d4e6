/*
 * catchup.h - from where a subscriber is to where its shard is: the joint between the table
 * and the ring.
 *
 *      table   |··· 41 ··· 700 ··· 1400 ···|            pages, shared with others who want
 *                    ^                                   the same (replay.h)
 *      ring             | 901 ···················· 2000 |
 *                                                  ^ the shard's position: LIVE from here on
 *
 * A stream that is BEHIND has one number: it has everything of its own up to there. If the
 * ring holds all that comes after, it is sent from the ring; if not, from the table, until the
 * ring does. The two meet at that number and nowhere else, because both have the events in
 * the same order, by the same numbers.
 *
 * One that the ring has overtaken goes the same way, and does not notice; so does one whose
 * ring was emptied, because the table has begun a new life. What is not there any more is
 * told with a gap, before anything else.
 *
 * Always true: a stream holds no page while it waits for its socket; a page is sent, or let
 * go, and asked for again.
 *
 * Threads: its shard's. Cost: a search in the ring (O(log n)) for each group of frames.
 */
#ifndef CATCHUP_H
#define CATCHUP_H

#include "base.h"
#include "mailbox.h"
#include "replay.h"
#include "ring.h"
#include "stats.h"
#include "stream.h"

struct catchup;

struct catchup_settings {
    struct ring_reader *reader;
    struct replay *replay;
    struct stats *stats;
    struct stream_owner *owner; /* of all the streams; its position is where they go */
    /* Called on any thread: the letter is to be delivered on the shard's. */
    void (*post)(void *argument, struct mail *mail);
    void *argument;
};

struct catchup *catchup_new(const struct catchup_settings *settings)
    MUST_CHECK;                             /* NULL: no memory */
void catchup_free(struct catchup *catchup); /* every stream is over, all letters are in */

/* All that is committed from now on will come. false: it cannot be told yet where that begins. */
bool catchup_note_now(const struct catchup *catchup, struct stream *stream);

/* Its turn: a stream that is BEHIND and whose socket takes more. */
void catchup_go_on(struct catchup *catchup, struct stream *stream);

/* It is over: nothing will be done for it any more. */
void catchup_forget(struct catchup *catchup, struct stream *stream);

/* Goes on with those who wait for the ring, and with those whose pages have come; true if
 * more of them are there than have had their turn. */
bool catchup_turn(struct catchup *catchup);

#endif
