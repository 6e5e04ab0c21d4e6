/*
 * refusal.c - the server said no to a statement: what to make of it.
 */
#include "refusal.h"

#include <errno.h>
#include <string.h>

#include "clock.h"
#include "log.h"

#define TELL_USEC (60 * USEC_PER_SEC)

#define READ_ONLY "25006"

int refusal_weigh(struct refusal *refusal, int r, struct database *database,
                  const char *what, struct err *err)
{
    const uint64_t now = clock_usec();

    if (r != -EIO)
        return r;
    if (database_schema_missing(database_sqlstate(database), err) ||
        strcmp(database_sqlstate(database), READ_ONLY) == 0)
        return r;
    if (now >= refusal->told_usec + TELL_USEC || refusal->told_usec == 0) {
        log_warning("%s: %s", what, err->text);
        refusal->told_usec = now;
    }
    return 0;
}
