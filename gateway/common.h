/*
 * common.h - what the endpoints share.
 */
#ifndef COMMON_H
#define COMMON_H

#include "base.h"
#include "exchange.h"
#include "groups.h"
#include "publisher.h"
#include "readers.h"
#include "relay.h"

/* [const] */
struct events_common {
    struct exchange_common
        exchange; /* the first member: exchange->common is one of these */
    struct publisher *publisher;
    struct readers *readers;
    struct groups *groups;
    const struct relay *relay;  /* NULL: nothing is relayed */
    uint64_t publish_time_usec; /* from the last byte of a body to its answer */
    size_t channels_max;        /* channels one subscriber may ask for */
};

static inline const struct events_common *common_of(const struct exchange *exchange)
{
    return CONTAINER_OF((struct exchange_common *)(uintptr_t)exchange->common,
                        struct events_common, exchange);
}

/* Of what somebody sent, so much is repeated in a complaint about it. */
#define QUOTED_MAX 64

#endif
