/*
 * claim.h - the statements of the groups: more deliveries, and what becomes of them.
 *
 * Threads: its owner's, which has the connection. Failures: as in database.h.
 */
#ifndef CLAIM_H
#define CLAIM_H

#include "array.h"
#include "base.h"
#include "database.h"

struct claim {
    const char *channel;
    const char *group;
    const char
        *start;   /* if it is a new group: "now", "earliest", or an event's id; NULL: it
                        * is to be there */
    unsigned max; /* deliveries */
    unsigned attempts; /* for each event of the group; 0: as it is */
    uint64_t lease_usec;
    size_t bytes_max;       /* of data, but for the first delivery */
    bool in_order;          /* what somebody else has locked is not passed over */
    uint64_t patience_usec; /* while somebody else has the group; then CLAIM_BUSY */
};

/* The columns of a claim. */
enum { CLAIM_ID, CLAIM_TYPE, CLAIM_DATA };

/* SQLSTATEs of a claim: there is no such group; there may be no more of them; somebody else has
 * it, or its tables. */
#define CLAIM_NO_GROUP        "GW404"
#define CLAIM_TOO_MANY_GROUPS "53400"
#define CLAIM_BUSY            "55P03"

int claim_run(const struct claim *claim, struct database *database,
              uint64_t deadline_usec, PGresult **ret_result, struct err *err) MUST_CHECK;

/* Deliveries and their groups: they are due at once. The result's first two columns: those that
 * are not, because somebody else has them locked; NULL: none. */
int claim_give_back(struct pairs *deliveries, struct database *database,
                    uint64_t deadline_usec, PGresult **ret_result,
                    struct err *err) MUST_CHECK;

/* What has used up its attempts, in whatever group, is dead: some CLAIM_BURY of it; how many. */
#define CLAIM_BURY 1000
int claim_bury(struct database *database, uint64_t deadline_usec, unsigned *ret_count,
               struct err *err) MUST_CHECK;

/* Their leases begin anew; 0: they stay as they are. The result's first column: the ids of those
 * that are not held any more. */
int claim_renew(struct pairs *deliveries, uint64_t lease_usec, struct database *database,
                uint64_t deadline_usec, PGresult **ret_result,
                struct err *err) MUST_CHECK;

/* Tells the other gateways that they were acknowledged. */
int claim_tell_freed(struct pairs *deliveries, struct database *database,
                     uint64_t deadline_usec, struct err *err) MUST_CHECK;

/* What is in flight of the group is due at once, the lowest numbers first; or a good part of it,
 * and there is more. */
int claim_recall(const char *channel, const char *group, struct database *database,
                 uint64_t deadline_usec, bool *ret_more, struct err *err) MUST_CHECK;

/* The lock of the group's holder, which this session has until claim_unlock(), or its end. */
int claim_try_lock(const char *channel, const char *group, struct database *database,
                   uint64_t deadline_usec, bool *ret_locked, struct err *err) MUST_CHECK;

/* Channels and groups: ends the sessions that have these locks and whose gateways have said
 * nothing for so long, as far as the database lets us. How many. */
int claim_end_silent(struct pairs *groups, uint64_t silent_usec,
                     struct database *database, uint64_t deadline_usec,
                     unsigned *ret_count, struct err *err) MUST_CHECK;

/* Channels and groups. */
int claim_unlock(struct pairs *groups, struct database *database, uint64_t deadline_usec,
                 struct err *err) MUST_CHECK;

#endif
