/*
 * slowest.h - GET /streams: the slowest streams of all shards, for who looks after the
 * gateway.
 *
 *     {"streams": [{"address": "192.0.2.1:4711", "channels": ["orders"], "types": [],
 *                   "state": "behind", "events_behind": 40, "unsent_bytes": 87380,
 *                   "silent_seconds": 12.5, "open_seconds": 3600.1,
 *                   "http_version": "1.1"}],
 *      "total": 1000}
 *
 * Always true: only a peer on the loopback or a Unix socket gets it, and not through a proxy
 * that says that it is one: addresses and channels are nobody else's business.
 *
 * Threads: the shards'. Cost: each shard looks at all its streams once; only those that are
 * listed are asked for more, and take memory.
 */
#ifndef SLOWEST_H
#define SLOWEST_H

#include "base.h"
#include "exchange.h"

/* Streams that are listed: unless ?limit=N says otherwise, and at the most. */
#define SLOWEST_LIMIT_DEFAULT 20
#define SLOWEST_LIMIT_MAX     1000

exchange_endpoint slowest_list;

/* Whether a peer of that address is on this machine. */
struct sockaddr_storage;
bool slowest_is_near(const struct sockaddr_storage *address);

#endif
