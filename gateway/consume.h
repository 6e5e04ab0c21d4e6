/*
 * consume.h - GET /events?group=: a stream that shares the events of one channel with the
 * other consumers of its group.
 *
 *   channel         one, by its name
 *   group           its name
 *   lease           how long a delivery is held without being acknowledged
 *   max             how many are held at the same time
 *   max_attempts    after so many an event is published on <channel>.dead
 *   last_event_id   "earliest": where a new group begins
 *   exclusive       "true": one consumer of the group at a time
 *
 * Threads: the shards'.
 */
#ifndef CONSUME_H
#define CONSUME_H

#include "base.h"
#include "exchange.h"

exchange_endpoint consume_subscribe;

/* One that means something beside group only; NULL: there is none. */
const char *consume_parameter_of(const struct exchange *exchange) MUST_CHECK;

#endif
