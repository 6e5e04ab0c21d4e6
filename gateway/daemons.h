/*
 * daemons.h - libmicrohttpd's daemons of one shard: who has come, in the smallest that its request
 * fits in.
 *
 *                       ┌─> streams, 1 KiB     ┐
 *                       ├─> streams, 2 KiB     ├─ memory per idle subscriber
 *     lobby ── take ────┼─> streams, ...       ┘
 *                       ├─> everything else    ┐  waking a POST walks a daemon's whole list of
 *                       └─> ..., large         ┘  sleepers, so streams sleep in other daemons
 *
 * libmicrohttpd has the same memory, a pool, for each connection of a daemon: so there are
 * several. They have neither threads nor listening sockets; the shard's loop runs them.
 *
 * Always true:
 *   - a connection stays in the daemon that it came to, and is counted until it is closed.
 *   - a daemon that has something to do is known for it until it has been run.
 *
 * Threads: its shard's, but for daemons_connections(). Cost: a run touches only daemons that have
 * something to do.
 */
#ifndef DAEMONS_H
#define DAEMONS_H

#include <microhttpd.h>

#include "base.h"
#include "connection.h"
#include "err.h"
#include "lobby.h"
#include "poller.h"
#include "stats.h"
#include "wheel.h"

struct daemons;

/* The front's callbacks, on the shard's thread; see libmicrohttpd. */
struct daemons_front {
    MHD_AccessHandlerCallback answer;
    MHD_RequestCompletedCallback completed;
    size_t (*unescape)(void *argument, struct MHD_Connection *mhd, char *text);
    void *(*begun)(void *argument, const char *uri, struct MHD_Connection *mhd);
    void *argument;
};

struct daemons_settings {
    struct poller *poller;
    struct wheel *wheel;
    struct stats *stats;
    struct shard *shard;         /* whose the connections are */
    _Atomic size_t *connections; /* over all shards; each counts its own in it */
    size_t connections_max;      /* over all shards; more are marked surplus */
    size_t surplus_max;          /* so many of these; the rest is closed at once */
    size_t header_max;           /* bytes; what the lobby lets through */
    uint64_t header_time_usec;   /* for the first request, once it is here */
    size_t answer_extra_bytes; /* headers of a stream's answer that not all have (CORS) */
    struct daemons_front front;
};

/* All of them, started. NULL: err says why. */
struct daemons *daemons_new(const struct daemons_settings *settings,
                            struct err *err) MUST_CHECK;
void daemons_free(struct daemons *daemons); /* takes NULL; stops them, too */

/* Takes the descriptor: it is closed here, or libmicrohttpd's from now on. */
void daemons_take(struct daemons *daemons, const struct lobby_arrival *arrival);

/* One of them has something to do. */
bool daemons_have_work(const struct daemons *daemons);

/* Lets each that has something do it; true if one of them still has. */
bool daemons_run(struct daemons *daemons);

/* Runs each, whether or not it says that it has something to do. */
void daemons_run_all(struct daemons *daemons);

/* Ends the connections that are between two requests. */
void daemons_leave(struct daemons *daemons);

/* Ends all connections, none of which may be asleep: nothing is taken, and none is run, any
 * more. They can still be counted. */
void daemons_stop(struct daemons *daemons);

/* How many connections there are. From any thread. */
size_t daemons_connections(const struct daemons *daemons);

#endif
