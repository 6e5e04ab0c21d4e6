/*
 * delivery.h - the id of a delivery: which event, for the how manyth time, and to whom; and
 * what a group and its channel may be called.
 *
 *     42.1.k3f90a2b7c1d
 *     |  | lease: twelve of 0-9 and a-z, at random; who knows it holds the event
 *     |  attempt, from 1
 *     event
 *
 * Made by gateway.claim() in the database; it is the id of a frame in a group's stream, and
 * what acknowledges.
 *
 * Threads: any; pure functions.
 */
#ifndef DELIVERY_H
#define DELIVERY_H

#include "base.h"
#include "err.h"

/* A bigint, an integer, a lease and the dots. */
#define DELIVERY_ID_MAX_BYTES 43

/* -EINVAL: no delivery ever had such an id. */
int delivery_id_parse(const char *text, size_t len, uint64_t *ret_seq,
                      unsigned *ret_attempt) MUST_CHECK;

/* A group's name: as a channel's. Its channel: with room for ".dead" behind it. -EINVAL with
 * the reason. */
int group_check_name(const char *text, size_t len, struct err *err) MUST_CHECK;
int group_check_channel(const char *text, size_t len, struct err *err) MUST_CHECK;

#endif
