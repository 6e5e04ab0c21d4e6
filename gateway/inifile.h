/*
 * inifile.h - a file in ini form, line by line. inih is let in here alone.
 *
 *     # comment            also with ';'; a comment has a line of its own
 *     [section]
 *     key = value          also with ':'; the value is the rest of the line, trimmed
 *
 * Lines may be of any length, be indented, and end in LF or CRLF; nothing is continued on
 * the next line. A byte order mark at the beginning is skipped.
 *
 * Threads: the caller's. Cost: one line of memory.
 */
#ifndef INIFILE_H
#define INIFILE_H

#include "base.h"
#include "err.h"

struct inifile_line {
    const char *path;
    unsigned number;     /* from 1 */
    const char *section; /* never empty */
    const char *key;     /* NULL: the section begins here */
    const char *value;   /* NULL then, too */
};

/* What happens with a line; a negative value ends the reading and is its result. */
typedef int inifile_take(void *argument, const struct inifile_line *line,
                         struct err *err);

/* -errno when the file cannot be opened or read; -EINVAL: "gateway.ini:12: ..." for a
 * line that is none of the above; -ENOMEM; or what take() returned. */
int inifile_read(const char *path, inifile_take *take, void *argument,
                 struct err *err) MUST_CHECK;

#endif
