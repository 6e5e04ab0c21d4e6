/*
 * healthcheck.h - asks the gateway of this machine whether it is ready, as curl would.
 *
 * For containers, which have no curl: HEALTHCHECK CMD pg-sse-gateway healthcheck.
 *
 * Threads: the caller's; waits until the deadline at most.
 */
#ifndef HEALTHCHECK_H
#define HEALTHCHECK_H

#include "base.h"
#include "err.h"

/* GET /readyz from the first address of `listen` (sockets.h: the loopback for "*" and the
 * like). 0: status 200, and ret_text is the body, on one line, cut to `size`. -EIO:
 * another status, err has it and the body's text, or no HTTP at all; -ETIMEDOUT;
 * -ECONNREFUSED and other errnos: nobody answers. */
int healthcheck_run(const char *listen, uint64_t timeout_usec, char *ret_text,
                    size_t size, struct err *err) MUST_CHECK;

#endif
