/*
 * opening.h - what is answered to who asks for a stream: the stream, or when to come back.
 *
 * Threads: the shards'.
 */
#ifndef OPENING_H
#define OPENING_H

#include "base.h"
#include "exchange.h"
#include "stream.h"

/* May there be one more stream now? If not: opening_later(). */
bool opening_has_room(const struct exchange *exchange);

/* A 200 that ends at once and says when to try again. */
enum MHD_Result opening_later(struct exchange *exchange);

/* Only the headers of a stream. */
enum MHD_Result opening_head(struct exchange *exchange);

/* The stream, which is taken. */
enum MHD_Result opening_stream(struct exchange *exchange, struct stream *stream);

#endif
