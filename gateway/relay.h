/*
 * relay.h - the NOTIFYs of applications: which channels are relayed, who wants them, and what
 * is listened to.
 *
 *     shard ── join ───> channel, counted ──> LISTEN ──> it stands ──> shards are told
 *           ── leave ──> nobody is left ── after the grace time ──> UNLISTEN, and it is gone
 *
 * A channel is listened to only while somebody wants it, and a little longer, because who
 * leaves often comes back. LISTEN and UNLISTEN are the listener's, on its one connection.
 *
 * Always true:
 *   - names are quoted, never cut: what is longer than PostgreSQL's 63 bytes is not relayed.
 *   - a channel stands when its notifications come, or when nobody's do, because the
 *     listener is away: then everybody is told what is missing when it is back.
 *   - a struct relay_channel lives until the listener takes it out, after the last has left.
 *
 * Threads: the listener's where it says so, else any. Locks: one mutex, for a look-up; never
 * while PostgreSQL is asked. Cost: join, leave O(1); some 100 bytes a channel; in PostgreSQL a
 * walk over all that is listened to for each notification.
 */
#ifndef RELAY_H
#define RELAY_H

#include "base.h"
#include "database.h"
#include "err.h"
#include "stats.h"

struct relay;
struct relay_channel;

/* What PostgreSQL takes as a channel (NAMEDATALEN - 1). */
#define RELAY_NAME_MAX_BYTES 63

struct relay_settings {
    const char
        *patterns; /* names, or prefixes with '*' behind them, separated by commas */
    size_t channels_max; /* wanted at the same time */
    uint64_t grace_usec; /* listened to so long after the last has left */
    struct stats *stats;
};

/* Are the patterns fit for relay_new()? -EINVAL. */
int relay_check(const char *patterns, struct err *err) MUST_CHECK;

/* The patterns are copied. NULL: no memory. */
struct relay *relay_new(const struct relay_settings *settings) MUST_CHECK;
void relay_free(struct relay *relay); /* takes NULL; everybody has left */

/* May that channel be relayed? Never one of the gateway's own. NULL relays nothing. */
bool relay_allows(const struct relay *relay, const char *name, size_t len);

/* -- who wants them -- */

/* One that is allowed. -ENOMEM; -ENOSPC: too many channels are wanted. */
int relay_join(struct relay *relay, const char *name, size_t len,
               struct relay_channel **ret_channel) MUST_CHECK;
void relay_leave(struct relay *relay, struct relay_channel *channel);

bool relay_stands(const struct relay_channel *channel);
const char *relay_name(const struct relay_channel *channel); /* NUL-terminated */

/* Is told, on the listener's thread, when channels have come to stand. It joins before the
 * listener is started and stays as long as the relay. */
struct relay_watcher {
    void (*stood)(struct relay_watcher *watcher);
    struct relay_watcher *next; /* the relay's own */
};
void relay_watch(struct relay *relay, struct relay_watcher *watcher);

/* -- the listener's -- */

/* Readable when there is something for relay_tend(). */
int relay_fd(const struct relay *relay);

/* A new connection: listens to all that are wanted. `missed`: what was notified before is gone,
 * and those who want it are to be told. Fails as database_run() does. */
int relay_restore(struct relay *relay, struct database *database, bool missed,
                  struct err *err) MUST_CHECK;

/* The connection is lost. */
void relay_lost(struct relay *relay);

/* Listens to what has come to be wanted, or no longer to what nobody wants. 1: something has
 * been done. Otherwise fails as database_run() does. */
int relay_tend(struct relay *relay, struct database *database,
               struct err *err) MUST_CHECK;

/* When relay_tend() may have something to do by itself. */
uint64_t relay_due(struct relay *relay);

/* Does somebody want any, or is anything still listened to? */
bool relay_is_used(struct relay *relay);

/* Is anything listened to? NULL listens to nothing. */
bool relay_listens(const struct relay *relay);

/* Does somebody want it? */
bool relay_wanted(struct relay *relay, const char *name);

/* Notifications were lost: whoever wants any is to be told. */
void relay_missed(struct relay *relay);

/* Calls tell() for each channel whose subscribers are to be told that something is missing;
 * returns how many have been. A negative return: it is to be told next time. */
size_t relay_tell_missed(struct relay *relay,
                         int (*tell)(void *argument, const char *name, size_t len),
                         void *argument);

#endif
