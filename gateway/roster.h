/*
 * roster.h - the consumers of groups at this gateway, what each has in hand, and whose turn
 * it is.
 *
 *     group "workers" of "jobs"
 *       ├─ member   max 3   42.1.…  43.1.…          one free place
 *       ├─ member   max 1   44.2.…                  none
 *       └─ member   max 1                           one; and the next turn
 *
 * A delivery is in its member's hand until it is acknowledged, its lease is over, or the
 * member leaves. A group is "wanted" when it is worth asking the database for more: there may
 * be something, and there is a free place.
 *
 * An exclusive member has places only while it is the holder of its group.
 *
 * Always true:
 *   - a group is here as long as it has members.
 *   - an event is in one hand of a group at the most.
 *   - no member has more in hand than its max.
 *
 * Threads: its owner's, but for what is [atomic]. Cost: O(log n) a delivery.
 */
#ifndef ROSTER_H
#define ROSTER_H

#include <stdatomic.h>

#include "base.h"
#include "delivery.h"
#include "wheel.h"

struct roster;
struct group;

/* Frames that a member's socket has not taken: with more than this no more are dealt to it. */
#define ROSTER_UNSENT_BYTES_MAX MIB

/* One consumer; inside whatever it belongs to. What it asks for is [const]. */
struct member {
    const char
        *channel; /* NUL-terminated, as is the name; they live as long as the member */
    const char *name;  /* of the group */
    const char *start; /* of a new group: "earliest", "now", or an event's id */
    unsigned max;      /* deliveries in hand, at least 1 */
    unsigned attempts; /* for each event of the group; 0: as it is */
    uint64_t lease_usec;
    bool exclusive;
    _Atomic size_t unsent_bytes; /* [atomic] of frames dealt to it; kept by its owner */
    _Atomic bool leaving;        /* [atomic] it is given no more */

    struct group *group; /* the roster's own from here on; NULL: it is in none */
    struct hand *hands;
    unsigned hand_count;
    struct member *next;
    struct member **link;
};

/* One delivery that is in somebody's hand. */
struct hand {
    char id[DELIVERY_ID_MAX_BYTES + 1];
    uint64_t seq;
    struct group *group;
    struct member *member;
    struct wheel_timer lease_over;
    struct hand *next;
    struct hand **link;
};

struct group {
    char *channel;
    char *name;
    struct roster *roster;
    struct member *members; /* whose turn it is first */
    struct member **tail;
    struct member *holder; /* of an exclusive group */
    size_t exclusive_count;
    bool locked;       /* its owner's: the holder is one of this gateway */
    unsigned attempts; /* to be told with the next claim; 0: nothing */
    bool full; /* no place was free at the last look, or it is being checked; until its
                * owner sees it */
    bool checking;        /* its owner's: it goes on with that at the next look */
    size_t checked_count; /* its owner's: so many hands have been checked */
    bool dry;  /* nothing was there at the last look, and there was no news since */
    bool busy; /* its owner's: somebody else has it, and no news counts before a look */
    bool wanted;
    struct group *wanted_next;
    struct wheel_timer look; /* at the latest */
    struct wheel_timer tick; /* its owner's; it sets `ticked` */
    bool ticked;
    bool begun; /* its owner's: the database knows it */
    struct group *next;
    struct group **link;
};

struct roster_settings {
    struct wheel *wheel;
    uint64_t
        look_usec; /* how often a group is wanted, though there is no news of it; and */
    uint64_t look_each_usec; /* so much for each of them, if that is more */
};

struct roster *roster_new(const struct roster_settings *settings) MUST_CHECK; /* NULL */
void roster_free(struct roster *roster); /* every member has left */

/* -ENOMEM: it is not in. A group that has a member more is wanted. */
int roster_join(struct roster *roster, struct member *member) MUST_CHECK;

/* let_go() is told the ids it had in hand, one by one. Its group may be gone afterwards. */
void roster_leave(struct roster *roster, struct member *member,
                  void (*let_go)(void *argument, const struct group *group,
                                 const char *id),
                  void *argument);

/* The first of all groups, or NULL; the next one is group->next. */
struct group *roster_first(struct roster *roster);

/* There may be something: wanted, as soon as there is a place. */
void roster_news(struct group *group);
void roster_news_of_channel(struct roster *roster, const char *channel);

/* Nothing was there; or nobody could tell, because somebody else has it locked. */
void roster_is_dry(struct group *group);
void roster_is_busy(struct group *group);

/* Takes a group off those that are wanted; NULL: there is none. */
struct group *roster_next_wanted(struct roster *roster) MUST_CHECK;
bool roster_has_wanted(const struct roster *roster) MUST_CHECK;

/* Deliveries in all hands. */
size_t roster_in_hand(const struct roster *roster) MUST_CHECK;

/* Free places of its members. */
unsigned roster_places(const struct group *group) MUST_CHECK;

/* The longest lease of those who have places, or of all. */
uint64_t roster_lease_usec(const struct group *group) MUST_CHECK;

/* Puts it into the hand of whose turn it is; an earlier delivery of the same event is
 * forgotten. NULL: no memory, or no place. */
struct member *roster_deal(struct group *group, const char *id, uint64_t seq) MUST_CHECK;

/* Acknowledged, or given back: its place is free. Its group, or NULL: it is in nobody's hand
 * here. */
struct group *roster_take(struct roster *roster, const char *name, uint64_t seq,
                          const char *id);

#endif
