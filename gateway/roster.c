/*
 * roster.c - the consumers of groups at this gateway, what each has in hand, and whose turn
 * it is.
 */
#include "roster.h"

#include <errno.h>
#include <search.h>
#include <string.h>

#include "clock.h"

struct roster {
    struct roster_settings settings;
    struct group *groups;
    struct group *wanted;
    struct group **wanted_tail;
    void *hands; /* tsearch(3) */
    size_t hand_count;
    size_t group_count;
};

/* ---- what is in hand, by event and group ---- */

static int compare(const void *a, const void *b)
{
    const struct hand *left = a, *right = b;

    if (left->seq != right->seq)
        return left->seq < right->seq ? -1 : 1;
    return strcmp(left->group->name, right->group->name);
}

static struct hand *find_hand(const struct roster *roster, const char *name, uint64_t seq)
{
    struct group group = {.name = (char *)(uintptr_t)name};
    const struct hand key = {.seq = seq, .group = &group};
    struct hand *const *found = tfind(&key, &roster->hands, compare);

    return found != NULL ? *found : NULL;
}

static void remove_hand(struct roster *roster, struct hand *hand)
{
    (void)tdelete(hand, &roster->hands, compare);
    wheel_remove(roster->settings.wheel, &hand->lease_over);
    *hand->link = hand->next;
    if (hand->next != NULL)
        hand->next->link = hand->link;
    hand->member->hand_count--;
    roster->hand_count--;
    free(hand);
}

static void lease_over(struct wheel_timer *timer)
{
    struct hand *hand = CONTAINER_OF(timer, struct hand, lease_over);
    struct group *group = hand->group;

    remove_hand(group->roster, hand);
    roster_news(group);
}

/* ---- which groups are worth a question ---- */

static void want(struct group *group)
{
    struct roster *roster = group->roster;

    if (group->wanted || group->dry || roster_places(group) == 0)
        return;
    group->wanted = true;
    group->wanted_next = NULL;
    *roster->wanted_tail = group;
    roster->wanted_tail = &group->wanted_next;
}

struct group *roster_next_wanted(struct roster *roster)
{
    struct group *group = roster->wanted;

    if (group == NULL)
        return NULL;
    roster->wanted = group->wanted_next;
    if (roster->wanted == NULL)
        roster->wanted_tail = &roster->wanted;
    group->wanted = false;
    return group;
}

bool roster_has_wanted(const struct roster *roster)
{
    return roster->wanted != NULL;
}

static void forget_wanted(struct group *group)
{
    struct roster *roster = group->roster;
    struct group **link = &roster->wanted;

    if (!group->wanted)
        return;
    while (*link != group)
        link = &(*link)->wanted_next;
    *link = group->wanted_next;
    if (*link == NULL)
        roster->wanted_tail = link;
}

static void want_again(struct group *group)
{
    group->dry = false;
    want(group);
}

void roster_news(struct group *group)
{
    if (!group->busy)
        want_again(group);
}

void roster_news_of_channel(struct roster *roster, const char *channel)
{
    for (struct group *group = roster->groups; group != NULL; group = group->next) {
        if (strcmp(group->channel, channel) == 0)
            roster_news(group);
    }
}

void roster_is_dry(struct group *group)
{
    group->dry = true;
}

void roster_is_busy(struct group *group)
{
    group->dry = group->busy = true;
}

static void set_look(struct group *group)
{
    const struct roster *roster = group->roster;
    const struct roster_settings *settings = &roster->settings;

    wheel_set(settings->wheel, &group->look,
              clock_usec() + MAX(settings->look_usec,
                                 roster->group_count * settings->look_each_usec));
}

static void look_again(struct wheel_timer *timer)
{
    struct group *group = CONTAINER_OF(timer, struct group, look);
    set_look(group);
    group->full = group->checking || roster_places(group) == 0;
    want_again(group);
}

static void ticked(struct wheel_timer *timer)
{
    struct group *group = CONTAINER_OF(timer, struct group, tick);

    group->ticked = true;
}

/* ---- groups ---- */

struct group *roster_first(struct roster *roster)
{
    return roster->groups;
}

static struct group *find_group(struct roster *roster, const struct member *member)
{
    for (struct group *group = roster->groups; group != NULL; group = group->next) {
        if (strcmp(group->name, member->name) == 0 &&
            strcmp(group->channel, member->channel) == 0)
            return group;
    }
    return NULL;
}

static void free_group(struct group *group)
{
    if (group == NULL)
        return;
    free(group->channel);
    free(group->name);
    free(group);
}

static struct group *add_group(struct roster *roster, const struct member *member)
{
    struct group *group = calloc(1, sizeof(*group));

    if (group == NULL)
        return NULL;
    group->channel = strdup(member->channel);
    group->name = strdup(member->name);
    if (group->channel == NULL || group->name == NULL) {
        free_group(group);
        return NULL;
    }
    group->roster = roster;
    group->tail = &group->members;
    group->look.fire = look_again;
    group->tick.fire = ticked;
    roster->group_count++;
    set_look(group);

    group->next = roster->groups;
    group->link = &roster->groups;
    if (group->next != NULL)
        group->next->link = &group->next;
    roster->groups = group;
    return group;
}

static void remove_group(struct group *group)
{
    struct wheel *wheel = group->roster->settings.wheel;

    forget_wanted(group);
    wheel_remove(wheel, &group->look);
    wheel_remove(wheel, &group->tick);
    *group->link = group->next;
    if (group->next != NULL)
        group->next->link = group->link;
    group->roster->group_count--;
    free_group(group);
}

/* ---- members ---- */

/* Behind all others. */
static void add_member(struct group *group, struct member *member)
{
    member->next = NULL;
    member->link = group->tail;
    *group->tail = member;
    group->tail = &member->next;
}

static void take_member(struct group *group, struct member *member)
{
    *member->link = member->next;
    if (member->next != NULL)
        member->next->link = member->link;
    else
        group->tail = member->link;
}

int roster_join(struct roster *roster, struct member *member)
{
    struct group *group = find_group(roster, member);

    if (group == NULL)
        group = add_group(roster, member);
    if (group == NULL)
        return -ENOMEM;
    member->group = group;
    member->hands = NULL;
    member->hand_count = 0;
    add_member(group, member);
    group->exclusive_count += member->exclusive;
    if (member->attempts != 0)
        group->attempts = member->attempts;
    roster_news(group);
    return 0;
}

void roster_leave(struct roster *roster, struct member *member,
                  void (*let_go)(void *argument, const struct group *group,
                                 const char *id),
                  void *argument)
{
    struct group *group = member->group;

    if (group == NULL)
        return;
    while (member->hands != NULL) {
        let_go(argument, group, member->hands->id);
        remove_hand(roster, member->hands);
    }
    take_member(group, member);
    member->group = NULL;
    group->exclusive_count -= member->exclusive;
    if (group->holder == member)
        group->holder = NULL;
    if (group->members == NULL)
        remove_group(group);
    else
        roster_news(group);
}

static unsigned free_places(const struct member *member)
{
    const struct group *group = member->group;

    if ((member->exclusive && group->holder != member) ||
        member->hand_count >= member->max ||
        atomic_load_explicit(&member->leaving, memory_order_relaxed))
        return 0;
    return member->max - member->hand_count;
}

/* Its socket takes what it is sent. */
static bool is_quick(const struct member *member)
{
    return atomic_load_explicit(&member->unsent_bytes, memory_order_relaxed) <
           ROSTER_UNSENT_BYTES_MAX;
}

unsigned roster_places(const struct group *group)
{
    unsigned places = 0;

    for (const struct member *member = group->members; member != NULL;
         member = member->next)
        places += is_quick(member) ? free_places(member) : 0;
    return places;
}

uint64_t roster_lease_usec(const struct group *group)
{
    uint64_t longest = 0;

    for (const struct member *member = group->members; member != NULL;
         member = member->next)
        longest = MAX(longest, member->lease_usec);
    return longest;
}

/* What came in one answer may be more than a socket should have waiting: so be it. */
static struct member *choose(const struct group *group)
{
    struct member *slow = NULL;

    for (struct member *member = group->members; member != NULL; member = member->next) {
        if (free_places(member) == 0)
            continue;
        if (is_quick(member))
            return member;
        slow = slow != NULL ? slow : member;
    }
    return slow;
}

struct member *roster_deal(struct group *group, const char *id, uint64_t seq)
{
    struct roster *roster = group->roster;
    struct hand *old = find_hand(roster, group->name, seq);

    if (old != NULL)
        remove_hand(roster, old);
    struct member *member = choose(group);
    struct hand *hand = member != NULL ? calloc(1, sizeof(*hand)) : NULL;
    if (hand == NULL)
        return NULL;

    memcpy(hand->id, id, MIN(strlen(id), sizeof(hand->id) - 1));
    hand->seq = seq;
    hand->group = group;
    hand->member = member;
    hand->lease_over.fire = lease_over;
    if (tsearch(hand, &roster->hands, compare) == NULL) {
        free(hand);
        return NULL;
    }
    hand->next = member->hands;
    hand->link = &member->hands;
    if (hand->next != NULL)
        hand->next->link = &hand->next;
    member->hands = hand;
    member->hand_count++;
    roster->hand_count++;
    /* The holder's leases are renewed for as long as it is there. */
    if (group->holder != member)
        wheel_set(roster->settings.wheel, &hand->lease_over,
                  clock_usec() + roster_lease_usec(group));

    take_member(group, member);
    add_member(group, member);
    return member;
}

struct group *roster_take(struct roster *roster, const char *name, uint64_t seq,
                          const char *id)
{
    struct hand *hand = find_hand(roster, name, seq);

    if (hand == NULL || strcmp(hand->id, id) != 0)
        return NULL;
    struct group *group = hand->group;
    remove_hand(roster, hand);
    want(group);
    return group;
}

size_t roster_in_hand(const struct roster *roster)
{
    return roster->hand_count;
}

/* ---- life ---- */

struct roster *roster_new(const struct roster_settings *settings)
{
    struct roster *roster = calloc(1, sizeof(*roster));

    if (roster == NULL)
        return NULL;
    roster->settings = *settings;
    roster->wanted_tail = &roster->wanted;
    return roster;
}

void roster_free(struct roster *roster)
{
    free(roster);
}
