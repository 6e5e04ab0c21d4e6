/*
 * storm.h - many subscribers who come back at once, with an old id.
 *
 * They listen to a channel of their own. While nobody but a witness is there, events go to it;
 * the witness remembers the first one's id. Then all come back with that id, and have caught
 * up when they have every event since, each once and in order. Whoever is live on another
 * channel meanwhile is not their business, but shows what they cost others. They may come more
 * than once, each time to another server of the same events.
 *
 * Threads: one. Every int is 0, or -1 with a line on stderr.
 */
#ifndef STORM_H
#define STORM_H

#include "posting.h"

struct storm;

/* So many of them; events for their channel at that rate, for so long. The witness listens
 * when this returns. */
struct storm *storm_new(const struct crowd_plan *plan, const struct posting *posting,
                        size_t count, double seconds);

/* Publishes what they will have missed, in a process of its own, and comes back at once. */
int storm_gather(struct storm *storm);

/* They come now, to this port. storm_gather()'s time must be over. */
int storm_break(struct storm *storm, unsigned port);

/* Have all caught up, and has it lasted for a moment? */
bool storm_is_over(struct storm *storm);

/* They leave. */
void storm_calm(struct storm *storm);

/* From the first one's coming until the last had caught up, when they came last. */
double storm_seconds(const struct storm *storm);

/* Ends the witness; how many events were missed or seen twice in all. */
uint64_t storm_end(struct storm *storm);

/* "returning": …, "caught_up": …, "caught_up_seconds": …, "missed_each": …, when they came last */
void storm_print(FILE *out, const struct storm *storm);

#endif
