/*
 * events.h - the endpoints under /events: subscribe, publish, read one.
 *
 * Threads: the shards'.
 */
#ifndef EVENTS_H
#define EVENTS_H

#include "base.h"
#include "exchange.h"
#include "publisher.h"
#include "readers.h"
#include "relay.h"

/* What the endpoints need. [const] */
struct events_common {
    struct exchange_common
        exchange; /* the first member: exchange->common is one of these */
    struct publisher *publisher;
    struct readers *readers;
    const struct relay *relay;  /* NULL: nothing is relayed */
    uint64_t publish_time_usec; /* from the last byte of a body to its answer */
    size_t channels_max;        /* channels one subscriber may ask for */
};

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
