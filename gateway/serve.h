/*
 * serve.h - the running gateway: built bottom up, watched, taken down top first.
 *
 * Threads: main. Signals: SIGINT and SIGTERM end it (twice: at once).
 */
#ifndef SERVE_H
#define SERVE_H

#include "base.h"
#include "config.h"
#include "err.h"

/* Runs until a signal; 0 when it ended as asked, -errno with the story when it could not
 * begin, or had to end by itself. */
int serve_run(const struct config *config, struct err *err) MUST_CHECK;

#endif
