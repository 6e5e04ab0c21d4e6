/*
 * dealer.c - deals what it claims from the database to the consumers of groups here.
 */
#include "dealer.h"

#include <errno.h>
#include <string.h>

#include "clock.h"
#include "log.h"

/* Groups asked for in one turn, before errands have theirs again. */
#define CLAIMS_MAX 16

/* In one claim; the data of a delivery besides. */
#define CLAIM_DELIVERIES 1000
#define CLAIM_BYTES      MIB

/* A claim waits so long for a group that somebody else has, since the other gateways have it
 * only for moments; while he goes on having it, not even that. */
#define PATIENCE_USEC      (100 * USEC_PER_MSEC)
#define PATIENCE_BUSY_USEC USEC_PER_MSEC

/* A group is looked at so often, though there is no news of it; or, when there are many, so
 * much later for each of them: all together do not cost more than a hundred looks a second. */
#define LOOK_USEC      USEC_PER_SEC
#define LOOK_EACH_USEC (10 * USEC_PER_MSEC)

/* How often the place of an exclusive group's holder is tried for; for how long the session of
 * a holder may say nothing, which has something to say at each BURY_USEC; and how often that is
 * looked at. */
#define TRY_USEC         (400 * USEC_PER_MSEC)
#define SILENT_USEC      (10 * USEC_PER_SEC)
#define SILENT_LOOK_USEC (2 * USEC_PER_SEC)

/* How often somebody looks for what has used up its attempts in groups that nobody claims from. */
#define BURY_USEC USEC_PER_SEC

/* Deliveries that are asked about in one statement. */
#define RENEW_MAX 1000

static struct enrolment *enrolment_of(struct member *member)
{
    return CONTAINER_OF(member, struct enrolment, member);
}

static int weigh(struct dealer *dealer, int r, const char *what, struct err *err)
{
    return statement_weigh(&dealer->refusals, r, dealer->database, what, err);
}

static bool is_leaving(const struct member *member)
{
    return atomic_load_explicit(&member->leaving, memory_order_relaxed);
}

/* Its stream is to end; until it has left it is given no more. */
static void end_member(struct member *member)
{
    atomic_store_explicit(&member->leaving, true, memory_order_relaxed);
    enrolment_of(member)->end(enrolment_of(member));
}

/* The group is not there. Whoever comes from now on may make it anew. */
static void end_members(struct group *group)
{
    group->begun = false;
    for (struct member *member = group->members; member != NULL; member = member->next)
        end_member(member);
}

/* ---- the connection ---- */

void dealer_is_cut_off(struct dealer *dealer)
{
    returns_are_cut_off(&dealer->returns);
    for (struct group *group = roster_first(dealer->roster); group != NULL;
         group = group->next) {
        struct member *holder = group->holder;

        group->locked = false;
        group->holder = NULL;
        group->ticked = true; /* the next one's turn, as soon as there is a connection */
        if (holder != NULL)
            end_member(holder);
    }
}

void dealer_begins_anew(struct dealer *dealer)
{
    returns_begin_anew(&dealer->returns);
    dealer->bury_usec = 0;
    for (struct group *group = roster_first(dealer->roster); group != NULL;
         group = group->next)
        roster_news(group);
}

/* ---- what others tell ---- */

void dealer_settle(struct dealer *dealer, const struct errand *errand)
{
    /* Not done is still in hand: so no more is dealt for it, and its lease is seen to. */
    if (errand->kind == ERRAND_REMOVE || errand->outcome == ERRAND_BAD ||
        errand->outcome == ERRAND_UNAVAILABLE)
        return;
    struct group *group =
        roster_take(dealer->roster, errand->group, errand->seq, errand->id);
    if (group != NULL && errand->kind == ERRAND_NACK)
        roster_news(group);
    /* It is in the hand of another gateway's consumer, perhaps, who has a free place now. */
    if (group == NULL && errand->outcome == ERRAND_DONE)
        returns_tell_freed(&dealer->returns, errand->id, errand->group);
}

/* "42.1.k3f90a2b7c1d workers" */
void dealer_take_freed(struct dealer *dealer, const char *payload)
{
    const char *space = strchr(payload, ' ');
    char id[DELIVERY_ID_MAX_BYTES + 1];
    unsigned attempt;
    uint64_t seq;

    if (space == NULL || (size_t)(space - payload) >= sizeof(id))
        return;
    memcpy(id, payload, (size_t)(space - payload));
    id[space - payload] = '\0';
    if (delivery_id_parse(id, strlen(id), &seq, &attempt) == 0)
        (void)roster_take(dealer->roster, space + 1, seq, id);
}

/* "jobs\nworkers" */
void dealer_group_is_gone(struct dealer *dealer, const char *payload)
{
    for (struct group *group = roster_first(dealer->roster); group != NULL;
         group = group->next) {
        const size_t len = strlen(group->channel);

        if (strncmp(payload, group->channel, len) == 0 && payload[len] == '\n' &&
            strcmp(payload + len + 1, group->name) == 0)
            end_members(group);
    }
}

/* ---- handing out ---- */

static void let_go(void *argument, const struct group *group, const char *id)
{
    returns_give_back(argument, id, group->name);
}

static struct sse_frame *frame_of(const struct group *group, const PGresult *result,
                                  int row, uint64_t seq)
{
    const struct event event = {
        .seq = seq,
        .channel = group->channel,
        .channel_len = strlen(group->channel),
        .type = PQgetvalue(result, row, CLAIM_TYPE),
        .type_len = (size_t)PQgetlength(result, row, CLAIM_TYPE),
        .data = PQgetvalue(result, row, CLAIM_DATA),
        .data_len = (size_t)PQgetlength(result, row, CLAIM_DATA),
    };

    return sse_frame_new_as(&event, PQgetvalue(result, row, CLAIM_ID),
                            (size_t)PQgetlength(result, row, CLAIM_ID));
}

static void deal(struct dealer *dealer, struct group *group, const PGresult *result,
                 int row)
{
    const char *id = PQgetvalue(result, row, CLAIM_ID);
    unsigned attempt;
    uint64_t seq;

    if (delivery_id_parse(id, strlen(id), &seq, &attempt) < 0)
        return; /* nobody could acknowledge it: its lease will end */
    struct sse_frame *frame = frame_of(group, result, row, seq);
    struct member *member = frame != NULL ? roster_deal(group, id, seq) : NULL;

    if (member == NULL) {
        sse_frame_free(frame);
        returns_give_back(&dealer->returns, id, group->name);
        /* To a holder it would come behind later ones: the next one begins with it. */
        if (group->holder != NULL && !is_leaving(group->holder))
            end_member(group->holder);
        return;
    }
    atomic_fetch_add_explicit(&member->unsent_bytes, sse_frame_weight(frame),
                              memory_order_relaxed);
    stats_add(dealer->stats, STATS_GROUPS_DELIVERIES, 1);
    stats_add(dealer->stats, STATS_GROUPS_REDELIVERIES, attempt > 1);
    enrolment_of(member)->deal(enrolment_of(member), frame);
}

/* Nothing until the next look; nor after that where the group was removed, or where there are
 * so many that it was not made: its consumers are told to come back. */
static int take_claim_refusal(struct dealer *dealer, struct group *group, int r,
                              struct err *err)
{
    const char *sqlstate = database_sqlstate(dealer->database);
    const bool removed = strcmp(sqlstate, CLAIM_NO_GROUP) == 0;

    roster_is_dry(group);
    if (r == -EIO && strcmp(sqlstate, CLAIM_BUSY) == 0)
        roster_is_busy(group);
    if (r == -EIO && (removed || strcmp(sqlstate, CLAIM_TOO_MANY_GROUPS) == 0))
        end_members(group);
    return removed ? 0 : weigh(dealer, r, "could not claim deliveries", err);
}

/* Of a group that is to be made: one of those who are to get something. */
static const char *start_of(const struct group *group)
{
    const struct member *member = group->members;

    while (member->next != NULL &&
           atomic_load_explicit(&member->leaving, memory_order_relaxed))
        member = member->next;
    return member->start;
}

static int claim_for(struct dealer *dealer, struct group *group, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const struct claim claim = {
        .channel = group->channel,
        .group = group->name,
        .start = group->begun ? NULL : start_of(group),
        .max = MIN(roster_places(group), CLAIM_DELIVERIES),
        .attempts = group->attempts,
        .lease_usec = roster_lease_usec(group),
        .bytes_max = CLAIM_BYTES,
        .in_order = group->holder != NULL,
        .patience_usec = group->busy ? PATIENCE_BUSY_USEC : PATIENCE_USEC,
    };

    if (claim.max == 0)
        return 0;
    int r = claim_run(&claim, dealer->database, statement_deadline(), &result, err);
    if (r < 0)
        return take_claim_refusal(dealer, group, r, err);
    stats_add(dealer->stats, STATS_GROUPS_CLAIMS, 1);
    group->begun = true;
    group->busy = false;
    group->attempts = 0;
    const int count = PQntuples(result);
    for (int row = 0; row < count; row++)
        deal(dealer, group, result, row);
    if (count == 0)
        roster_is_dry(group);
    else
        roster_news(group); /* there may be more */
    return 0;
}

static int claim_all(struct dealer *dealer, struct err *err)
{
    int r = 0;

    for (int i = 0; i < CLAIMS_MAX && r == 0; i++) {
        struct group *group = roster_next_wanted(dealer->roster);

        if (group == NULL)
            break;
        r = claim_for(dealer, group, err);
    }
    return r;
}

/* ---- exclusive groups ---- */

static struct member *next_holder(const struct group *group)
{
    for (struct member *member = group->members; member != NULL; member = member->next) {
        if (member->exclusive && !is_leaving(member))
            return member;
    }
    return NULL;
}

/* The lock is ours: what was in flight comes first, and in order; else there is no holder
 * yet. */
static int install(struct dealer *dealer, struct group *group, struct member *holder,
                   struct err *err)
{
    bool more = false;
    const int r = claim_recall(group->channel, group->name, dealer->database,
                               statement_deadline(), &more, err);

    if (r < 0)
        return weigh(dealer, r, "could not recall deliveries", err);
    if (more) {
        wheel_set(dealer->wheel, &group->tick,
                  clock_usec()); /* errands have their turn */
        return 0;
    }
    group->holder = holder;
    group->ticked = false;
    wheel_set(dealer->wheel, &group->tick, clock_usec() + holder->lease_usec / 3);
    roster_news(group);
    return 0;
}

static int try_lock(struct dealer *dealer, struct group *group, struct err *err)
{
    return weigh(dealer,
                 claim_try_lock(group->channel, group->name, dealer->database,
                                statement_deadline(), &group->locked, err),
                 "could not try for a lock", err);
}

/* Begins the leases of these deliveries anew, or (0) only asks; what is not held any more, because
 * it was acknowledged by SQL, say, leaves its member's hand. */
static int renew(struct dealer *dealer, struct group *group, struct pairs *pairs,
                 uint64_t lease_usec, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    unsigned attempt;
    uint64_t seq;

    if (pairs_count(pairs) == 0)
        return 0;
    const int r = weigh(dealer,
                        claim_renew(pairs, lease_usec, dealer->database,
                                    statement_deadline(), &result, err),
                        "could not renew leases", err);
    for (int row = 0; row < PQntuples(result); row++) {
        const char *id = PQgetvalue(result, row, 0);

        if (delivery_id_parse(id, strlen(id), &seq, &attempt) == 0)
            (void)roster_take(dealer->roster, group->name, seq, id);
    }
    return r;
}

/* No lease ends while its holder is there, which has at most as many as are in one statement. */
static int keep_holder(struct dealer *dealer, struct group *group, struct err *err)
{
    CLEANUP(pairs_done) struct pairs pairs;
    const uint64_t lease_usec = group->holder->lease_usec;

    group->ticked = false;
    wheel_set(dealer->wheel, &group->tick, clock_usec() + lease_usec / 3);
    pairs_init(&pairs);
    for (const struct hand *hand = group->holder->hands; hand != NULL; hand = hand->next)
        pairs_add(&pairs, hand->id, group->name);
    return renew(dealer, group, &pairs, lease_usec, err);
}

/* All places of a group were taken: is what its members have in hand still theirs? Some of it at
 * each look, so that a look costs the same however much they have. */
static int check_hands(struct dealer *dealer, struct group *group, struct err *err)
{
    CLEANUP(pairs_done) struct pairs pairs;
    size_t at = 0;

    pairs_init(&pairs);
    for (const struct member *member = group->members; member != NULL;
         member = member->next) {
        for (const struct hand *hand = member->hands; hand != NULL; hand = hand->next) {
            if (at++ >= group->checked_count && pairs_count(&pairs) < RENEW_MAX)
                pairs_add(&pairs, hand->id, group->name);
        }
    }
    const size_t asked = pairs_count(&pairs);
    const size_t before = roster_in_hand(dealer->roster);
    const int r = renew(dealer, group, &pairs, 0, err);
    const size_t taken = before - roster_in_hand(dealer->roster);
    group->checking = group->checked_count + asked < at;
    group->checked_count = group->checking ? group->checked_count + asked - taken : 0;
    return r;
}

static int mind_group(struct dealer *dealer, struct group *group, struct err *err)
{
    const bool is_time = group->ticked || !wheel_timer_is_set(&group->tick);
    struct member *next = group->holder == NULL ? next_holder(group) : NULL;
    int r = 0;

    if (group->holder != NULL)
        return group->ticked ? keep_holder(dealer, group, err) : 0;
    if (next == NULL || !is_time)
        return 0;
    group->ticked = false;
    wheel_set(dealer->wheel, &group->tick, clock_usec() + TRY_USEC);
    if (!group->locked)
        r = try_lock(dealer, group, err);
    return r == 0 && group->locked ? install(dealer, group, next, err) : r;
}

static int mind_groups(struct dealer *dealer, struct err *err)
{
    int r = 0;

    for (struct group *group = roster_first(dealer->roster); group != NULL && r == 0;
         group = group->next) {
        if (group->exclusive_count > 0)
            r = mind_group(dealer, group, err);
        if (r == 0 && group->full)
            r = check_hands(dealer, group, err);
        group->full = false;
    }
    return r;
}

/* Somebody has the lock of groups whose holder could be one of ours: is it still alive? */
static int mind_silent(struct dealer *dealer, struct err *err)
{
    CLEANUP(pairs_done) struct pairs pairs;
    unsigned count = 0;

    pairs_init(&pairs);
    if (clock_usec() < dealer->silent_usec)
        return 0;
    dealer->silent_usec = clock_usec() + SILENT_LOOK_USEC;
    for (const struct group *group = roster_first(dealer->roster); group != NULL;
         group = group->next) {
        if (!group->locked && next_holder(group) != NULL)
            pairs_add(&pairs, group->channel, group->name);
    }
    if (pairs_count(&pairs) == 0)
        return 0;
    const int r = claim_end_silent(&pairs, SILENT_USEC, dealer->database,
                                   statement_deadline(), &count, err);
    if (count > 0)
        log_notice(
            "ended %u sessions of gateways that had the lock of an exclusive group "
            "and had said nothing for %d s",
            count, (int)(SILENT_USEC / USEC_PER_SEC));
    return weigh(dealer, r, "could not look for silent gateways", err);
}

/* ---- what has used up its attempts ---- */

static int bury(struct dealer *dealer, struct err *err)
{
    unsigned count = 0;

    if (clock_usec() < dealer->bury_usec)
        return 0;
    const int r = claim_bury(dealer->database, statement_deadline(), &count, err);
    stats_add(dealer->stats, STATS_GROUPS_BURIED, count);
    dealer->bury_usec = count >= CLAIM_BURY ? 0 : clock_usec() + BURY_USEC;
    return weigh(dealer, r, "could not look for used up attempts", err);
}

/* ---- coming and going ---- */

void dealer_dismiss(struct dealer *dealer, struct enrolment *enrolment)
{
    struct group *group = enrolment->member.group;

    if (group != NULL && group->locked && group->exclusive_count == 1 &&
        enrolment->member.exclusive) {
        returns_unlock(&dealer->returns, group->channel, group->name);
        group->locked = false;
    }
    if (group != NULL && group->holder == &enrolment->member)
        group->ticked = true;
    roster_leave(dealer->roster, &enrolment->member, let_go, &dealer->returns);
    *enrolment->link = enrolment->next;
    if (enrolment->next != NULL)
        enrolment->next->link = enrolment->link;
    enrolment->gone(enrolment); /* its owner's again, and perhaps gone */
}

void dealer_join(struct dealer *dealer, struct enrolment *enrolment)
{
    enrolment->next = dealer->enrolments;
    enrolment->link = &dealer->enrolments;
    if (enrolment->next != NULL)
        enrolment->next->link = &enrolment->next;
    dealer->enrolments = enrolment;
    if (roster_join(dealer->roster, &enrolment->member) < 0)
        enrolment->end(enrolment);
}

/* ---- its turn ---- */

int dealer_turn(struct dealer *dealer, struct err *err)
{
    wheel_advance(dealer->wheel, clock_usec());
    int r = returns_turn(&dealer->returns, err);

    if (r == 0)
        r = mind_groups(dealer, err);
    if (r == 0)
        r = mind_silent(dealer, err);
    if (r == 0)
        r = claim_all(dealer, err);
    if (r == 0)
        r = bury(dealer, err);
    stats_gauge_set(dealer->stats, STATS_GROUPS_IN_HAND,
                    (int64_t)roster_in_hand(dealer->roster));
    return r;
}

uint64_t dealer_due_usec(const struct dealer *dealer)
{
    if (roster_has_wanted(dealer->roster))
        return 0;
    return MIN(returns_due_usec(&dealer->returns),
               MIN(dealer->bury_usec, wheel_next_usec(dealer->wheel)));
}

/* ---- life ---- */

int dealer_init(struct dealer *dealer, struct database *database, struct stats *stats)
{
    *dealer = (struct dealer){.stats = stats, .database = database};
    returns_init(&dealer->returns, database);
    dealer->wheel = wheel_new(clock_usec());
    dealer->roster = roster_new(&(struct roster_settings){
        .wheel = dealer->wheel,
        .look_usec = LOOK_USEC,
        .look_each_usec = LOOK_EACH_USEC,
    });
    return dealer->wheel != NULL && dealer->roster != NULL ? 0 : -ENOMEM;
}

void dealer_done(struct dealer *dealer)
{
    roster_free(dealer->roster);
    wheel_free(dealer->wheel);
    returns_done(&dealer->returns);
}
