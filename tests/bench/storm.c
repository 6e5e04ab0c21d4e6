#include "storm.h"

#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND       1000000
#define MOMENT_USEC  (2 * SECOND) /* what a storm lasts at the least */
#define WITNESS_USEC (30 * SECOND)

struct storm {
    struct crowd_plan plan;
    struct posting posting;
    struct crowd_order *order; /* to the witness */
    struct crowd_report *seen; /* by him */
    struct crowd_order *call;  /* to those who come back, and what they say */
    struct crowd_report *report;
    pid_t witness;
    pid_t crowd;
    pid_t publisher;
    size_t count;
    double seconds;
    uint64_t begun_usec;
    uint64_t wrong;
};

static int await(const _Atomic uint64_t *count, uint64_t wanted, const char *what)
{
    const uint64_t due = figures_now_usec() + WITNESS_USEC;

    while (CROWD_GET(*count) < wanted) {
        if (figures_now_usec() > due) {
            (void)fprintf(stderr, "load: the storm: %s\n", what);
            return -1;
        }
        figures_sleep_until(figures_now_usec() + 1000);
    }
    return 0;
}

struct storm *storm_new(const struct crowd_plan *plan, const struct posting *posting,
                        size_t count, double seconds)
{
    struct storm *storm = calloc(1, sizeof(*storm));

    if (storm == NULL)
        return NULL;
    storm->plan = *plan;
    storm->plan.channels = 1;
    storm->plan.prefix = "r";
    storm->plan.events_max = (size_t)(seconds * posting->rate) + 1;
    storm->order = crowd_share(sizeof(*storm->order));
    storm->posting = *posting;
    storm->posting.channels = 1;
    storm->posting.prefix = storm->plan.prefix;
    storm->posting.events_max = storm->plan.events_max;
    storm->posting.order = storm->order;
    storm->posting.sent_usec =
        crowd_share(storm->plan.events_max * sizeof(*storm->posting.sent_usec));
    storm->count = count;
    storm->seconds = seconds;
    storm->witness = crowd_start(&storm->plan, storm->order, 0, 1, false, &storm->seen);
    if (storm->witness < 0 ||
        await(&storm->seen->connected, 1, "the witness cannot connect") < 0) {
        free(storm);
        return NULL;
    }
    return storm;
}

int storm_gather(struct storm *storm)
{
    storm->publisher = fork();
    if (storm->publisher != 0)
        return storm->publisher > 0 ? 0 : -1;

    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    exit(posting_connect(&storm->posting) < 0 ||
         posting_run(&storm->posting, storm->seconds, NULL, NULL) < 0 ||
         posting_await_answers(&storm->posting) < 0);
}

static bool all_published(struct storm *storm)
{
    int status = 0;

    if (storm->publisher > 0)
        (void)waitpid(storm->publisher, &status, 0);
    storm->publisher = 0;
    return status == 0;
}

/* A crowd that waits for the word to come, and knows what the witness knows. */
static int call_together(struct storm *storm, unsigned port)
{
    storm->plan.port = port;
    storm->call = crowd_share(sizeof(*storm->call));
    storm->call->published = CROWD_GET(storm->order->published);
    memcpy(storm->call->resume_id, storm->order->resume_id,
           sizeof(storm->call->resume_id));
    storm->crowd =
        crowd_start(&storm->plan, storm->call, 0, storm->count, true, &storm->report);
    return storm->crowd < 0 ? -1 : 0;
}

int storm_break(struct storm *storm, unsigned port)
{
    if (!all_published(storm) ||
        await(&storm->seen->deliveries, CROWD_GET(storm->order->published),
              "the witness has not seen everything") < 0 ||
        call_together(storm, port) < 0)
        return -1;
    storm->begun_usec = figures_now_usec();
    CROWD_SET(storm->call->returning, true);
    return 0;
}

bool storm_is_over(struct storm *storm)
{
    return CROWD_GET(storm->report->caught_up) >= storm->count &&
           figures_now_usec() > storm->begun_usec + MOMENT_USEC;
}

void storm_calm(struct storm *storm)
{
    const struct crowd_report *report = storm->report;

    CROWD_SET(storm->call->over, true);
    crowd_end(&storm->crowd);
    storm->wrong += report->missing + report->doubled + report->gaps + report->lost +
                    (storm->count - report->caught_up);
}

double storm_seconds(const struct storm *storm)
{
    return (double)(storm->report->caught_up_usec - storm->begun_usec) / SECOND;
}

uint64_t storm_end(struct storm *storm)
{
    CROWD_SET(storm->order->over, true);
    crowd_end(&storm->witness);
    return storm->wrong + storm->seen->missing + storm->seen->doubled;
}

void storm_print(FILE *out, const struct storm *storm)
{
    (void)fprintf(out,
                  "\"returning\":%zu,\"caught_up\":%zu,\"caught_up_seconds\":%.3f,"
                  "\"refused\":%" PRIu64 ",\"missed_each\":%" PRIu64,
                  storm->count, CROWD_GET(storm->report->caught_up), storm_seconds(storm),
                  CROWD_GET(storm->report->refused),
                  CROWD_GET(storm->order->published) - 1);
}
