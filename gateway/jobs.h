/*
 * jobs.h - the endpoints around a group: acknowledge, give back, what became of an event, the
 * groups there are.
 *
 *   POST   /events/<delivery>/ack?group=     the body, if there is one: a result, as JSON
 *   POST   /events/<delivery>/nack?group=    &delay= &reason=
 *   GET    /events/<id>/result?group=
 *   GET    /groups                           ?channel=
 *   DELETE /groups?channel=&group=
 *
 * Threads: the shards'.
 */
#ifndef JOBS_H
#define JOBS_H

#include "base.h"
#include "exchange.h"

/* Before the body is read: may it be? Answers, and then there is no need for the body. */
bool jobs_check(struct exchange *exchange, enum MHD_Result *ret_result);

exchange_endpoint jobs_ack;
exchange_endpoint jobs_nack;
exchange_endpoint jobs_result;
exchange_endpoint jobs_groups;
exchange_endpoint jobs_remove;

#endif
