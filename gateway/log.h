/*
 * log.h - levelled lines to stderr, in the form the journal reads.
 *
 * Under systemd (stderr is the journal) a line begins with its syslog priority, "<4>";
 * elsewhere with the time, the level and the thread's name. A sink can be put in its
 * place: the room that knows libsystemd sends structured fields this way.
 *
 * Error: an operator must act. Warning: something failed and was handled. Notice: the
 * state changed. Debug: anything about one client. Never a password, token or payload.
 *
 * Threads: any. One line is one write(2), so lines never mix. The level is the one
 * global.
 */
#ifndef LOG_H
#define LOG_H

#include "base.h"

/* The values are the syslog priorities (RFC 5424, 6.2.1). */
enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_NOTICE = 5,
    LOG_LEVEL_DEBUG = 7,
};

typedef void log_sink(enum log_level level, const char *line);

/* Set both before the first thread starts. A NULL sink is stderr. */
void log_set_level(enum log_level level);
void log_set_sink(log_sink *sink);

/* "error", "warning", "notice", "debug" to its level; -EINVAL for anything else. */
int log_level_parse(const char *word, enum log_level *ret_level) MUST_CHECK;

const char *log_level_word(enum log_level level); /* and back */

/* What a NULL sink is: the line to stderr, in one write. A sink that fails falls back on
 * it. */
void log_to_stderr(enum log_level level, const char *line);

/* Whether systemd connected stderr to the journal (JOURNAL_STREAM) and it still is. */
bool log_stderr_is_journal(void);

void log_error(const char *format, ...) PRINTF_LIKE(1, 2);
void log_warning(const char *format, ...) PRINTF_LIKE(1, 2);
void log_notice(const char *format, ...) PRINTF_LIKE(1, 2);
void log_debug(const char *format, ...) PRINTF_LIKE(1, 2);

#endif
