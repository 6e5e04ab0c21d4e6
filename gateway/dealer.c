/*
 * dealer.c - deals what it claims from the database to the consumers of groups here.
 */
#include "dealer.h"

#include <errno.h>
#include <string.h>

#include "clock.h"

/* Groups asked for in one turn, before errands have theirs again. */
#define CLAIMS_MAX 16

/* In one claim; the data of a delivery besides. */
#define CLAIM_DELIVERIES 1000
#define CLAIM_BYTES      MIB

/* A group is looked at so often, though there is no news of it; or, when there are many, so
 * much later for each of them: all together do not cost more than a hundred looks a second. */
#define LOOK_USEC      USEC_PER_SEC
#define LOOK_EACH_USEC (10 * USEC_PER_MSEC)

/* Given back in one statement: well within its time, however many leave at once. */
#define RETURNS_MAX 1000

/* What was refused is tried again after so long. */
#define AGAIN_USEC USEC_PER_SEC

/* How often the place of an exclusive group's holder is tried for. */
#define TRY_USEC (400 * USEC_PER_MSEC)

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

/* Nothing more is dealt to it. */
static void end_holder(struct member *holder)
{
    atomic_store_explicit(&holder->leaving, true, memory_order_relaxed);
    enrolment_of(holder)->end(enrolment_of(holder));
}

/* ---- the connection ---- */

void dealer_is_cut_off(struct dealer *dealer)
{
    pairs_reset(&dealer->unlock);
    for (struct group *group = roster_first(dealer->roster); group != NULL;
         group = group->next) {
        struct member *holder = group->holder;

        group->locked = false;
        group->holder = NULL;
        group->ticked = true; /* the next one's turn, as soon as there is a connection */
        if (holder != NULL)
            end_holder(holder);
    }
}

void dealer_begins_anew(struct dealer *dealer)
{
    dealer->clear_usec = 0;
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
        pairs_add(&dealer->freed, errand->id, errand->group);
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

/* ---- what is given back, or told to others ---- */

static void add_returns(struct dealer *dealer, struct returns *returns)
{
    returns->next = NULL;
    *dealer->back_tail = returns;
    dealer->back_tail = &returns->next;
}

static struct returns *take_returns(struct dealer *dealer)
{
    struct returns *first = dealer->back;

    dealer->back = first->next;
    if (dealer->back == NULL)
        dealer->back_tail = &dealer->back;
    return first;
}

static void free_returns(struct returns *returns)
{
    pairs_done(&returns->pairs);
    free(returns);
}

static void give_back(struct dealer *dealer, const char *id, const char *name)
{
    struct returns *last = dealer->back != NULL
                               ? CONTAINER_OF(dealer->back_tail, struct returns, next)
                               : NULL;

    if (last == NULL || pairs_count(&last->pairs) >= RETURNS_MAX) {
        last = malloc(sizeof(*last));
        if (last == NULL)
            return; /* its lease will end */
        pairs_init(&last->pairs);
        add_returns(dealer, last);
    }
    pairs_add(&last->pairs, id, name);
}

/* What is not done stays. Without memory there is no list any more, and the connection that
 * ends for it takes with it what was locked. */
static int run_pairs(struct dealer *dealer, struct pairs *pairs, const char *what,
                     int (*run)(struct pairs *pairs, struct database *database,
                                uint64_t deadline_usec, struct err *err),
                     struct err *err)
{
    if (pairs_count(pairs) == 0)
        return 0;
    const int r = run(pairs, dealer->database, statement_deadline(), err);
    if (r == 0 || r == -ENOMEM)
        pairs_reset(pairs);
    else
        dealer->clear_usec = clock_usec() + AGAIN_USEC;
    return weigh(dealer, r, what, err);
}

static int run_returns(struct dealer *dealer, struct err *err)
{
    if (dealer->back == NULL)
        return 0;
    struct returns *first = take_returns(dealer);
    const int r = run_pairs(dealer, &first->pairs, "could not give deliveries back",
                            claim_give_back, err);

    if (pairs_count(&first->pairs) == 0)
        free_returns(first);
    else
        add_returns(dealer, first); /* the others first */
    return r;
}

static int clear_some(struct dealer *dealer, struct err *err)
{
    int r = run_returns(dealer, err);

    if (r == 0)
        r = run_pairs(dealer, &dealer->unlock, "could not unlock a group", claim_unlock,
                      err);
    if (r == 0)
        r = run_pairs(dealer, &dealer->freed, "could not tell the other gateways",
                      claim_tell_freed, err);
    return r;
}

static bool has_to_clear(const struct dealer *dealer)
{
    return dealer->back != NULL || pairs_count(&dealer->unlock) > 0 ||
           pairs_count(&dealer->freed) > 0;
}

int dealer_clear(struct dealer *dealer, struct err *err)
{
    int r = 0;

    dealer->clear_usec = 0;
    while (r == 0 && has_to_clear(dealer) && dealer->clear_usec == 0)
        r = clear_some(dealer, err);
    return r;
}

/* ---- handing out ---- */

static void let_go(void *argument, const struct group *group, const char *id)
{
    give_back(argument, id, group->name);
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
        give_back(dealer, id, group->name);
        /* To a holder it would come behind later ones: the next one begins with it. */
        if (group->holder != NULL && !is_leaving(group->holder))
            end_holder(group->holder);
        return;
    }
    atomic_fetch_add_explicit(&member->unsent_bytes, sse_frame_weight(frame),
                              memory_order_relaxed);
    stats_add(dealer->stats, STATS_GROUPS_DELIVERIES, 1);
    stats_add(dealer->stats, STATS_GROUPS_REDELIVERIES, attempt > 1);
    enrolment_of(member)->deal(enrolment_of(member), frame);
}

static int claim_for(struct dealer *dealer, struct group *group, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    const struct claim claim = {
        .channel = group->channel,
        .group = group->name,
        .start = group->begun ? "now" : group->members->start,
        .max = MIN(roster_places(group), CLAIM_DELIVERIES),
        .attempts = group->attempts,
        .lease_usec = roster_lease_usec(group),
        .bytes_max = CLAIM_BYTES,
    };

    if (claim.max == 0)
        return 0;
    int r = claim_run(&claim, dealer->database, statement_deadline(), &result, err);
    if (r < 0) {
        roster_is_dry(group); /* until the next look */
        return weigh(dealer, r, "could not claim deliveries", err);
    }
    stats_add(dealer->stats, STATS_GROUPS_CLAIMS, 1);
    group->begun = true;
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

/* Begins the leases of what its members have in hand anew, or (0) only asks; what they do not
 * hold any more, because it was acknowledged by SQL, say, leaves their hands. */
static int renew(struct dealer *dealer, struct group *group, uint64_t lease_usec,
                 struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    CLEANUP(pairs_done) struct pairs pairs;
    unsigned attempt;
    uint64_t seq;

    pairs_init(&pairs);
    for (const struct member *member = group->members; member != NULL;
         member = member->next) {
        for (const struct hand *hand = member->hands; hand != NULL; hand = hand->next)
            pairs_add(&pairs, hand->id, group->name);
    }
    if (pairs_count(&pairs) == 0)
        return 0;
    const int r = weigh(dealer,
                        claim_renew(&pairs, lease_usec, dealer->database,
                                    statement_deadline(), &result, err),
                        "could not renew leases", err);
    for (int row = 0; row < PQntuples(result); row++) {
        const char *id = PQgetvalue(result, row, 0);

        if (delivery_id_parse(id, strlen(id), &seq, &attempt) == 0)
            (void)roster_take(dealer->roster, group->name, seq, id);
    }
    return r;
}

/* No lease ends while its holder is there. */
static int keep_holder(struct dealer *dealer, struct group *group, struct err *err)
{
    const uint64_t lease_usec = group->holder->lease_usec;

    group->ticked = false;
    wheel_set(dealer->wheel, &group->tick, clock_usec() + lease_usec / 3);
    return renew(dealer, group, lease_usec, err);
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
            r = renew(dealer, group, 0, err);
        group->full = false;
    }
    return r;
}

/* ---- coming and going ---- */

void dealer_dismiss(struct dealer *dealer, struct enrolment *enrolment)
{
    struct group *group = enrolment->member.group;

    if (group != NULL && group->locked && group->exclusive_count == 1 &&
        enrolment->member.exclusive) {
        pairs_add(&dealer->unlock, group->channel, group->name);
        group->locked = false;
    }
    if (group != NULL && group->holder == &enrolment->member)
        group->ticked = true;
    roster_leave(dealer->roster, &enrolment->member, let_go, dealer);
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
    int r = clock_usec() >= dealer->clear_usec ? clear_some(dealer, err) : 0;

    if (r == 0)
        r = mind_groups(dealer, err);
    if (r == 0)
        r = claim_all(dealer, err);
    stats_gauge_set(dealer->stats, STATS_GROUPS_IN_HAND,
                    (int64_t)roster_in_hand(dealer->roster));
    return r;
}

uint64_t dealer_due_usec(const struct dealer *dealer)
{
    if (roster_has_wanted(dealer->roster))
        return 0;
    return MIN(has_to_clear(dealer) ? dealer->clear_usec : CLOCK_NEVER,
               wheel_next_usec(dealer->wheel));
}

/* ---- life ---- */

int dealer_init(struct dealer *dealer, struct database *database, struct stats *stats)
{
    *dealer = (struct dealer){.stats = stats, .database = database};
    dealer->back_tail = &dealer->back;
    pairs_init(&dealer->freed);
    pairs_init(&dealer->unlock);
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
    while (dealer->back != NULL)
        free_returns(take_returns(dealer));
    pairs_done(&dealer->freed);
    pairs_done(&dealer->unlock);
}
