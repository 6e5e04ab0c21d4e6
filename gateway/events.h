/*
 * events.h - the endpoints under /events: subscribe, publish, read one.
 *
 * Threads: the shards'.
 */
#ifndef EVENTS_H
#define EVENTS_H

#include "base.h"
#include "exchange.h"

/* GET /events: the stream (and HEAD: its headers). After it has been answered the exchange
 * is needed no longer: the stream lives with the connection. */
exchange_endpoint events_subscribe;

/* POST /events. events_check() is asked before the body is read: may it be? Answers, and
 * then there is no need for the body. */
bool events_check(struct exchange *exchange, enum MHD_Result *ret_result);
exchange_endpoint events_publish;

/* GET /events/<id>. */
exchange_endpoint events_read;

#endif
