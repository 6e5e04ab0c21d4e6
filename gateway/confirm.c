/*
 * confirm.c - POST /events?wait=10s&group=workers
 */
#include "confirm.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "buf.h"
#include "clock.h"
#include "common.h"
#include "delivery.h"
#include "units.h"

#define WAIT_MIN_USEC USEC_PER_MSEC
#define WAIT_MAX_USEC (60 * USEC_PER_SEC)

static void wait_done(struct wait *wait)
{
    exchange_wake(CONTAINER_OF(wait, struct confirm, wait)->exchange);
}

int confirm_read(struct exchange *exchange, struct confirm *ret_confirm, struct err *err)
{
    size_t wait_len = 0, group_len = 0;
    const char *wait = exchange_query(exchange, "wait", &wait_len);
    const char *group = exchange_query(exchange, "group", &group_len);
    uint64_t usec;

    *ret_confirm = (struct confirm){.exchange = NULL};
    if (wait == NULL && group == NULL)
        return 0;
    if (wait == NULL || group == NULL)
        return err_set(err, -EINVAL,
                       "wait and group belong together: for how long, and for whom");
    if (units_parse_usec(wait, &usec) < 0 || usec < WAIT_MIN_USEC || usec > WAIT_MAX_USEC)
        return err_set(err, -EINVAL, "wait is a time from 1ms to 60s, as in 10s");
    if (group_check_name(group, group_len, err) < 0)
        return -EINVAL;
    ret_confirm->exchange = exchange;
    ret_confirm->usec = usec;
    ret_confirm->wait.group = group;
    return 0;
}

int confirm_reserve(struct confirm *confirm, struct groups *groups)
{
    const int r = groups_reserve(groups);

    if (r == 0)
        confirm->groups = groups;
    return r;
}

void confirm_done(struct confirm *confirm)
{
    if (confirm->groups != NULL)
        groups_unreserve(confirm->groups);
    free(confirm->wait.result);
    *confirm = (struct confirm){.exchange = NULL};
}

enum MHD_Result confirm_wait(struct confirm *confirm, uint64_t seq)
{
    confirm->begun = true;
    confirm->wait.seq = seq;
    confirm->wait.outcome = WAIT_LATE;
    confirm->wait.deadline_usec = clock_usec() + confirm->usec;
    confirm->wait.done = wait_done;
    /* Asleep before: the answer may come before groups_wait() returns. */
    exchange_sleep(confirm->exchange);
    if (groups_wait(confirm->groups, &confirm->wait) < 0)
        exchange_wake(confirm->exchange);
    return MHD_YES;
}

static void add_escaped(struct buf *text, const char *name)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyz0123456789"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ-._~";

    for (; *name != '\0'; name++) {
        if (strchr(plain, *name) != NULL)
            (void)buf_add(text, name, 1);
        else
            (void)buf_add_format(text, "%%%02X", (unsigned char)*name);
    }
}

static void say_location(const struct confirm *confirm)
{
    CLEANUP(buf_done) struct buf text = BUF_EMPTY;

    (void)buf_add_format(&text, "/events/%" PRIu64 "/result?group=", confirm->wait.seq);
    add_escaped(&text, confirm->wait.group);
    if (buf_ok(&text) == 0)
        exchange_say(confirm->exchange, MHD_HTTP_HEADER_LOCATION, text.data);
}

/* One more member for the object. */
static char *with_member(char *object, const char *name, const char *json)
{
    struct buf text = BUF_EMPTY;

    if (object == NULL)
        return NULL;
    (void)buf_add(&text, object, strlen(object) - strlen("}"));
    (void)buf_add_format(&text, ",\"%s\":%s}", name, json);
    free(object);
    return buf_steal(&text);
}

enum MHD_Result confirm_answer(struct confirm *confirm, char *text)
{
    const struct wait *wait = &confirm->wait;
    unsigned status = MHD_HTTP_ACCEPTED;

    switch (wait->outcome) {
    case WAIT_ACKNOWLEDGED:
        status = MHD_HTTP_OK;
        text = with_member(text, "state", "\"acknowledged\"");
        text = with_member(text, "result", wait->result != NULL ? wait->result : "null");
        break;
    case WAIT_DEAD:
        text = with_member(text, "state", "\"dead\"");
        break;
    case WAIT_LATE:
        text = with_member(text, "state", "\"waiting\"");
        break;
    }
    if (status == MHD_HTTP_ACCEPTED)
        say_location(confirm);
    return exchange_text(confirm->exchange, status, "application/json", text);
}
