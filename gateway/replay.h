/*
 * replay.h - events after an id, page by page; and whether that id can be gone on from.
 *
 *     stream ── "after 41" ──┐
 *     stream ── "after 47" ──┼── queue of one kind of page ──> one query ──> page (41, 800]
 *     stream ── "after 90" ──┘   (these channels)                              │
 *        ^                                                                     │
 *        └────────────── done(): everybody whose id the page covers ───────────┘
 *
 * However many come back at once: those who want the same channels share their queries, and
 * what their pages weigh together is bounded. The last few pages are kept, for those who want
 * them a little later, or whose sockets take them in sips.
 *
 * Always true:
 *   - a page has all events of its channels after `after` and up to `through`, in order, as
 *     of one snapshot of the database; `newest` and `purged` are of the same snapshot.
 *   - done() comes exactly once for each request accepted, unless it was cancelled. While
 *     the database is away it does not come.
 *
 * Threads: ask and cancel from any; done() is called on a reader's thread, or within
 * replay_ask() when the page is there already or the readers are being stopped, and must not
 * wait.
 */
#ifndef REPLAY_H
#define REPLAY_H

#include "base.h"
#include "err.h"
#include "readers.h"
#include "sse.h"
#include "stats.h"

struct replay;

enum replay_question {
    REPLAY_AFTER, /* the events after an id */
    REPLAY_EARLIEST, /* where that begins which is kept: `through` of a page without events */
    REPLAY_LAST,     /* likewise: where the newest `count` begin */
};

/* Events in one page, at the most. */
#define REPLAY_PAGE_MAX 500

/* For reading; lives until its last holder lets it go. */
struct replay_page {
    uint64_t after;
    uint64_t through;
    uint64_t newest; /* the newest id there is */
    uint64_t purged; /* the newest that has been deleted */
    uint64_t
        oldest; /* after it all begins that is kept; 0 where nothing can be missing */
    size_t count;
    struct sse_frame **frames;

    const uint64_t *lost; /* the replay's own from here on */
    size_t lost_count;
    char *patterns;
    uint64_t hash;
    size_t bytes;
    _Atomic unsigned holders;
    struct replay *replay;
};

/* Of which events; names, one a line. */
struct replay_choice {
    const char *patterns; /* channels, and prefixes of channels with '*' behind them */
    const char *types;    /* for REPLAY_LAST: "" for all */
    const char *without;  /* for REPLAY_LAST: clients whose events do not count */
};

/* One question. From replay_ask() until done() it is the replay's, but for `owner`. */
struct replay_request {
    enum replay_question question;
    uint64_t after; /* REPLAY_AFTER */
    unsigned count; /* REPLAY_LAST */
    uint64_t floor; /* an id the asker has seen: an older server is not asked, nor one of
                       another life of the table */
    bool again;     /* the last answer to the same question was of no use */
    void (*done)(struct replay_request *request);

    struct replay_page
        *page; /* set before done(); the asker's to let go. NULL: stopping */

    uint64_t asked_usec; /* the replay's own from here on */
    struct replay_queue *queue;
    struct replay_request *next;
    struct replay_request **link;
};

struct replay_settings {
    struct readers *readers; /* outlives the replay */
    struct stats *stats;
    size_t bytes_max; /* of all pages that are held, about */
};

struct replay *replay_new(const struct replay_settings *settings) MUST_CHECK;
void replay_free(struct replay *replay); /* after readers_stop(), and all pages let go */

/* The texts are copied. -ENOMEM: not asked. */
int replay_ask(struct replay *replay, struct replay_request *request,
               const struct replay_choice *choice) MUST_CHECK;

/* True: the request is the asker's again, and done() will not come. False: it has come, or is
 * about to. */
bool replay_cancel(struct replay *replay, struct replay_request *request) MUST_CHECK;

void replay_page_free(struct replay_page *page); /* takes NULL */

/* Can one go on after this id, at or behind the page's `after`, with what the page's database
 * has? The one rule; see migrations/0003_resume.up.sql. `told`: what was purged up to that is
 * known to the asker. */
enum replay_verdict {
    REPLAY_EXACT,
    REPLAY_EXPIRED, /* something after it has been deleted, and not all of that was told */
    REPLAY_FUTURE,  /* there is no such event: not yet, or not any more */
};
enum replay_verdict replay_judge(const struct replay_page *page, uint64_t id,
                                 uint64_t told) MUST_CHECK;

/* The id itself, likewise; or, where the page's database has lost it or does not have it yet,
 * the one after which everything is newer. */
uint64_t replay_place(const struct replay_page *page, uint64_t id) MUST_CHECK;

#endif
