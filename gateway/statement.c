/*
 * statement.c - what all statements of the groups have in common.
 */
#include "statement.h"

#include <errno.h>
#include <string.h>

#include "clock.h"
#include "log.h"
#include "schema.h"

#define STATEMENT_USEC (5 * USEC_PER_SEC)
#define TELL_USEC      (60 * USEC_PER_SEC)

#define READ_ONLY "25006"

uint64_t statement_deadline(void)
{
    return clock_usec() + STATEMENT_USEC;
}

int statement_weigh(struct refusals *refusals, int r, struct database *database,
                    const char *what, struct err *err)
{
    const uint64_t now = clock_usec();

    if (r != -EIO)
        return r;
    if (schema_is_missing(database_sqlstate(database), err) ||
        strcmp(database_sqlstate(database), READ_ONLY) == 0)
        return r;
    if (now >= refusals->told_usec + TELL_USEC || refusals->told_usec == 0) {
        log_warning("%s: %s", what, err->text);
        refusals->told_usec = now;
    }
    return 0;
}
