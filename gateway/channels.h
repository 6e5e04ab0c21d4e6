/*
 * channels.h - who listens to which channel, exact or by prefix.
 *
 *     "orders"    ──> topic ──> member, member, member
 *     "orders.*"  ──> topic ──> member                  a pattern ends in '*'
 *
 * A topic exists while it has members. A member is a struct inside whatever listens; the
 * index allocates one topic for each pattern in use and nothing for each member.
 *
 * Threads: its owner's. Cost: join, leave O(1); match O(1) for the name, and one look-up
 * for each different length of prefix in use (at most 256, mostly none).
 */
#ifndef CHANNELS_H
#define CHANNELS_H

#include "base.h"

struct channels;

struct channels_member {
    void *owner;                  /* the caller's own */
    struct channels_topic *topic; /* NULL while it has not joined */
    struct channels_member *next;
    struct channels_member *prev;
};

struct channels_topic {
    struct channels_member *members; /* newest first */
    size_t member_count;
    uint64_t mark; /* the caller's own: 0 in a new topic */
    size_t place;  /* the caller's own */

    struct channels_topic *next; /* the index's own from here on */
    uint64_t hash;
    bool is_prefix;
    size_t len;  /* of the name, without the '*' */
    char name[]; /* without the '*' */
};

/* One name matches its own topic, and prefixes of 0 to 255 bytes. */
#define CHANNELS_MATCH_MAX 257

struct channels *channels_new(void) MUST_CHECK; /* NULL: no memory */
void channels_free(struct channels *channels);  /* everybody has left */

/* The pattern is a channel's name, or a prefix of one with '*' behind it. -ENOMEM. */
int channels_join(struct channels *channels, const char *pattern, size_t len,
                  struct channels_member *member) MUST_CHECK;

/* Nothing happens to a member that has not joined. */
void channels_leave(struct channels *channels, struct channels_member *member);

/* The topics that an event of that channel belongs to, the exact one first; returns how many. `hash` is
 * sse_hash() of the name. They stay valid until a member leaves. */
size_t channels_match(const struct channels *channels, const char *name, size_t len,
                      uint64_t hash,
                      struct channels_topic *ret_topics[CHANNELS_MATCH_MAX]);

/* Memory that the topics take. */
size_t channels_bytes(const struct channels *channels);

/* Does the pattern take events of that channel? For one reader on its own. */
bool channels_topic_takes(const struct channels_topic *topic, const char *name,
                          size_t len, uint64_t hash);

#endif
