/*
 * connection.h - one HTTP connection: its deadline, and its sleep while an answer is not
 * there yet.
 *
 * libmicrohttpd calls a connection asleep "suspended": it neither polls, reads, writes
 * nor times out its socket. This room alone suspends and resumes.
 *
 * Always true:
 *   - a connection sleeps only from inside a libmicrohttpd callback of its own, and is
 *     woken exactly once for each sleep.
 *   - while it is awake it has a deadline, absolute and not moved by a byte that drips
 *     in; past it the socket is shut down, and libmicrohttpd closes it.
 *
 * Threads: its shard's.
 */
#ifndef CONNECTION_H
#define CONNECTION_H

#include <microhttpd.h>

#include "base.h"
#include "stats.h"
#include "wheel.h"

struct shard;

struct connection {
    struct MHD_Connection *mhd; /* [const] */
    int fd;                     /* [const] libmicrohttpd's to close */
    bool surplus;               /* [const] over the connection limit: to be refused */
    bool asleep;
    bool idle;           /* between two requests */
    bool answering;      /* the answer is on its way: the peer may have closed its side */
    struct shard *shard; /* [const] the one it belongs to */
    struct wheel *wheel; /* [const] */
    bool *work;          /* [const] raised when libmicrohttpd must be run */
    struct stats *stats; /* [const] */
    unsigned long requests; /* begun on it */
    size_t uri_len;         /* of the request line's URI as it came, up to a NUL in it */
    bool uri_has_nul;       /* an escaped one, which http_unescape() has to replace */
    struct wheel_timer deadline;
    uint64_t until_usec; /* the deadline itself; the timer comes by before it */

    struct connection *next; /* the shard's list */
    struct connection **link;
};

/* The connection's own struct, kept by libmicrohttpd as its socket context, with what is
 * [const] in `model`. It joins the list at *first. NULL: no memory. */
struct connection *connection_new(const struct connection *model,
                                  struct connection **first) MUST_CHECK;
void connection_free(struct connection *connection);

/* The struct of a libmicrohttpd connection; NULL if there was no memory for it. */
struct connection *connection_of(struct MHD_Connection *mhd);

/* What it is doing must be over `usec` from now, or it is shut. It is shut within a second,
 * too, when its peer has closed. */
void connection_allow(struct connection *connection, uint64_t usec);

/* Ends it if it is between two requests. */
void connection_leave(struct connection *connection);

/* Ends it from our side, whatever it is doing, unless it is asleep. */
void connection_shut(struct connection *connection);

void connection_sleep(struct connection *connection);
void connection_wake(struct connection *connection);

/* Frees the headers of a response that goes on for long, once they are out: some four hundred
 * bytes, and nearly twice as many with those for other origins. Connection is none of them. */
void connection_forget_headers(struct MHD_Response *response);

#endif
