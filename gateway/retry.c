/*
 * retry.c - when to try again what failed, and what to log meanwhile.
 */
#include "retry.h"

#include <inttypes.h>
#include <string.h>

#include "clock.h"
#include "log.h"

#define FIRST_USEC (50 * USEC_PER_MSEC)
/* With its jitter, and with the time that connecting takes, less than a second: so soon a
 * database that is back is found. A try costs a server that is not there nothing. */
#define LONGEST_USEC (500 * USEC_PER_MSEC)
#define PROVEN_USEC  USEC_PER_SEC
#define RELOG_USEC   (60 * USEC_PER_SEC)

void retry_up(struct retry *retry, const char *what, const char *where)
{
    retry->up_usec = clock_usec();
    if (!retry->told && retry->logged_usec != 0)
        return;
    log_notice("%s %s", what, where);
    retry->told = false;
    if (retry->logged_usec == 0)
        retry->logged_usec = retry->up_usec;
}

/* The pause before the next try. */
static uint64_t next_pause(struct retry *retry, uint64_t now)
{
    bool worked = retry->up_usec != 0 && now - retry->up_usec >= PROVEN_USEC;

    retry->up_usec = 0;
    if (worked) {
        retry->step_usec = 0;
        return 0;
    }
    if (retry->step_usec == 0)
        retry->step_usec = FIRST_USEC;
    else
        retry->step_usec = MIN(retry->step_usec * 2, LONGEST_USEC);
    return clock_jitter(retry->step_usec);
}

void retry_down(struct retry *retry, const char *what, const struct err *err)
{
    uint64_t now = clock_usec();
    uint64_t pause = next_pause(retry, now);
    size_t len = strnlen(err->text, sizeof(retry->reason) - 1);

    retry->due_usec = now + pause;
    bool again =
        strlen(retry->reason) == len && memcmp(retry->reason, err->text, len) == 0;
    if (again && now - retry->logged_usec < RELOG_USEC)
        return;

    if (pause == 0)
        log_warning("%s: %s; trying again at once", what, err->text);
    else
        log_warning("%s: %s; next try in %" PRIu64 " ms", what, err->text,
                    pause / USEC_PER_MSEC);
    retry->told = true;
    retry->logged_usec = now;
    memcpy(retry->reason, err->text, len);
    retry->reason[len] = '\0';
}
