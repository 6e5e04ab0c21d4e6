/*
 * retention.h - what is kept only for a time is deleted when the time is over.
 *
 *     every retention/20  ──>  connect ──> batch, pause, batch, pause ... ──> close
 *
 * One thread. It opens a connection of its own (to a server that takes writes) when it is
 * time to look, and closes it when all is done: in between it costs the database nothing.
 * What there is to delete is a table of steps in retention.c, each an SQL function that
 * deletes one small batch. Between two batches it leaves the database alone for as long as
 * the last one took, so that at least half of the time is everybody else's.
 *
 * Any number of gateways may do this on one database: the SQL functions let one at a time,
 * and whoever comes meanwhile leaves it to that one. Times are jittered, so that they hardly
 * ever meet.
 *
 * Always true:
 *   - a batch is deleted as a whole or not at all, together with the note of what is gone:
 *     a gateway that is killed leaves nothing half done.
 *   - no step that is not wanted is run. Events may be kept for ever; the keys of those who
 *     may send again (gateway.idempotency_keys) are kept as long as events, but at least a day;
 *     what groups were handed (gateway.deliveries) goes when its event is gone.
 *
 * It also buries what has used up its attempts in groups: where no gateway serves groups nobody
 * else would.
 *
 * Threads: new, start, stop and free on main.
 */
#ifndef RETENTION_H
#define RETENTION_H

#include "base.h"
#include "err.h"
#include "stats.h"

struct retention;

struct retention_settings {
    const char *dsn;      /* libpq connection string; NULL or "": libpq's PG* variables */
    const char *password; /* used unless the connection string has one; may be NULL */
    long schema_version;  /* the newest migration this program knows */
    uint64_t events_usec; /* how long events are kept; 0: for ever */
    struct stats *stats;
};

/* The strings are copied. NULL: no memory. */
struct retention *retention_new(const struct retention_settings *settings) MUST_CHECK;

int retention_start(struct retention *retention, struct err *err) MUST_CHECK;
void retention_stop(struct retention *retention); /* a batch in flight is abandoned */
void retention_free(struct retention *retention);

/* For the watchdog. */
struct thread;
const struct thread *retention_thread(const struct retention *retention);

#endif
