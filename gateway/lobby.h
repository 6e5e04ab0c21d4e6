/*
 * lobby.h - fresh connections, until the whole header of their first request is there.
 *
 *     accept ──> lobby ──(header complete)──> arrived(): descriptor, header's length
 *                  └──(silent, endless, malformed)──> short answer, closed
 *
 * Only what has said something meaningful costs a place among the connections: who opens
 * a socket and keeps silent, or drips a header byte by byte, waits here, has an absolute
 * deadline, and makes room for newcomers when the lobby is full (the one who has waited
 * longest goes first). The bytes are only looked at (MSG_PEEK), so that libmicrohttpd can
 * read them again.
 *
 * Threads: its shard's. Cost: one small struct a guest.
 */
#ifndef LOBBY_H
#define LOBBY_H

#include <sys/socket.h>

#include "base.h"
#include "poller.h"
#include "stats.h"
#include "wheel.h"

struct lobby;

struct lobby_arrival {
    int fd; /* the receiver's to close */
    struct sockaddr_storage address;
    socklen_t address_len;
    size_t header_len; /* request line to blank line */
    size_t
        field_count; /* header lines, the first and the blank one too; parameters of the query
                         * and cookies, at the most */
    size_t cookie_len; /* of the Cookie lines */
    bool wants_stream; /* GET /events */
};

struct lobby_settings {
    struct poller *poller;
    struct wheel *wheel;
    struct stats *stats;
    size_t header_max;         /* bytes, request line included */
    uint64_t header_time_usec; /* from accept to the blank line */
    size_t guests_max;
    void (*arrived)(void *argument, const struct lobby_arrival *arrival);
    void *argument;
};

struct lobby *lobby_new(const struct lobby_settings *settings)
    MUST_CHECK;                       /* NULL: no memory */
void lobby_free(struct lobby *lobby); /* closes who is there */

/* Takes the descriptor: it is closed here, or handed on by arrived(), now or later. */
void lobby_enter(struct lobby *lobby, int fd, const struct sockaddr *address,
                 socklen_t address_len);

/* How many are there. */
size_t lobby_count(const struct lobby *lobby);

/* Closes everybody who is there. */
void lobby_clear(struct lobby *lobby);

#endif
