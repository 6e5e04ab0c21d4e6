/*
 * groups.c - consumers of groups: who gets which event, what is acknowledged, and who waits
 * for that.
 */
#include "groups.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "database.h"
#include "log.h"
#include "retry.h"
#include "schema.h"
#include "statement.h"
#include "thread.h"

#define CONNECT_USEC (3 * USEC_PER_SEC)
#define CHECK_USEC   (3 * USEC_PER_SEC)

/* The database is away, or somebody else has something locked: how long an errand waits for
 * it all the same, and how often the latter is looked at. */
#define PATIENCE_USEC   USEC_PER_SEC
#define LOOK_AGAIN_USEC (100 * USEC_PER_MSEC)

#define CANNOT   "cannot serve groups"
#define STOPPING "the gateway is being stopped"
#define LOCKED   "an open transaction has it locked; try again when it is over"

/* Whoever has a table for longer has a transaction open. For rows nobody waits so long. */
#define PREPARE                                                                          \
    "SET gateway.groups_max = %zu; SET lock_timeout = '500ms'; LISTEN gateway_acks; "    \
    "LISTEN gateway_due; LISTEN gateway_freed; LISTEN gateway_removed"

struct errands {
    struct errand *first;
    struct errand **tail;
    size_t count;
};

struct groups {
    struct groups_settings settings; /* [const] */
    struct database *database;       /* [groups] */
    struct thread thread;
    struct mailbox mailbox;
    int stop_fd; /* [const] timerfd: readable when the grace is over */

    struct retry retry; /* [groups] from here on */
    struct err away;    /* why the last connection failed */
    struct refusals refusals;
    struct errands errands[ERRAND_KINDS]; /* not run yet */
    struct errands locked;                /* run in vain, and to be run again */
    uint64_t locked_usec;                 /* when; if there are any */
    struct dealer dealer;
    struct waits waits;

    _Atomic size_t consumer_count; /* [atomic] */
    _Atomic size_t wait_count;     /* [atomic] */
    pthread_mutex_t lock;
    bool running;  /* [lock] letters are taken */
    bool stopping; /* [lock] */
};

/* ---- the connection ---- */

static void add_errand(struct errands *list, struct errand *errand)
{
    errand->next = NULL;
    *list->tail = errand;
    list->tail = &errand->next;
    list->count++;
}

static struct errand *take_errand(struct errands *list)
{
    struct errand *errand = list->first;

    list->first = errand->next;
    if (list->first == NULL)
        list->tail = &list->first;
    list->count--;
    return errand;
}

static bool has_errands(const struct groups *groups)
{
    bool errands = false;

    for (size_t i = 0; i < ERRAND_KINDS; i++)
        errands = errands || groups->errands[i].first != NULL;
    return errands;
}

static bool is_needed(const struct groups *groups)
{
    return has_errands(groups) || groups->locked.first != NULL ||
           groups->dealer.enrolments != NULL || groups->waits.first != NULL;
}

static void lose_connection(struct groups *groups, const struct err *err)
{
    database_close(groups->database);
    groups->away = *err;
    retry_down(&groups->retry, CANNOT, err);
    dealer_is_cut_off(&groups->dealer);
}

static int prepare(struct groups *groups, struct err *err)
{
    char sql[sizeof(PREPARE) + 20];

    (void)snprintf(sql, sizeof(sql), PREPARE, groups->settings.groups_max);
    return database_script(groups->database, sql, statement_deadline(), err);
}

static int open_connection(struct groups *groups, struct err *err)
{
    int r = database_connect(groups->database, clock_usec() + CONNECT_USEC, err);

    if (r == 0)
        r = schema_check(groups->database, groups->settings.schema_version,
                         clock_usec() + CHECK_USEC, err);
    if (r == 0)
        r = prepare(groups, err);
    if (r < 0) {
        if (r != -ECANCELED)
            lose_connection(groups, err);
        return r;
    }
    retry_up(&groups->retry, "serving groups with the database at",
             database_place(groups->database));
    /* What happened meanwhile was told to nobody. */
    waits_begin_anew(&groups->waits);
    dealer_begins_anew(&groups->dealer);
    return 0;
}

static int weigh(struct groups *groups, int r, const char *what, struct err *err)
{
    return statement_weigh(&groups->refusals, r, groups->database, what, err);
}

/* ---- errands ---- */

static void answer(struct groups *groups, struct errand *errand)
{
    static const enum stats_counter counters[] = {
        [ERRAND_ACK] = STATS_GROUPS_ACKS,
        [ERRAND_NACK] = STATS_GROUPS_NACKS,
    };

    if (errand->kind != ERRAND_REMOVE && errand->outcome == ERRAND_DONE)
        stats_add(groups->settings.stats, counters[errand->kind], 1);
    errand->done(errand); /* the asker's again, and perhaps gone */
}

static void answer_unavailable(struct groups *groups, struct errand *errand,
                               const char *why)
{
    errand->outcome = ERRAND_UNAVAILABLE;
    (void)err_set(&errand->err, 0, "%s", why);
    answer(groups, errand);
}

/* Somebody else has it locked: perhaps not for long. */
static void put_aside(struct groups *groups, struct errand *errand)
{
    const uint64_t now = clock_usec();

    if (now >= errand->accepted_usec + PATIENCE_USEC) {
        answer_unavailable(groups, errand, LOCKED);
        return;
    }
    if (groups->locked.first == NULL)
        groups->locked_usec = now + LOOK_AGAIN_USEC;
    add_errand(&groups->locked, errand);
}

static void take_up_again(struct groups *groups)
{
    while (groups->locked.first != NULL) {
        struct errand *errand = take_errand(&groups->locked);

        add_errand(&groups->errands[errand->kind], errand);
    }
}

/* Those who have waited for long enough for a database that is away. */
static void answer_hopeless(struct groups *groups, bool all)
{
    const uint64_t now = clock_usec();

    take_up_again(groups);
    for (size_t i = 0; i < ERRAND_KINDS; i++) {
        struct errands *list = &groups->errands[i];

        while (list->first != NULL &&
               (all || now >= list->first->accepted_usec + PATIENCE_USEC))
            answer_unavailable(groups, take_errand(list),
                               all ? STOPPING : groups->away.text);
    }
}

static void take_refusal(struct groups *groups, struct errand *errand,
                         const struct err *err)
{
    const char *sqlstate = database_sqlstate(groups->database);
    const bool refused =
        strncmp(sqlstate, "22", 2) == 0 || strncmp(sqlstate, "23", 2) == 0;

    errand->outcome = refused ? ERRAND_BAD : ERRAND_UNAVAILABLE;
    errand->err = *err;
}

static void settle(struct groups *groups, struct errand *errand)
{
    if (errand->outcome == ERRAND_LOCKED) {
        put_aside(groups, errand);
        return;
    }
    dealer_settle(&groups->dealer, errand);
    answer(groups, errand);
}

/* The first `count` of a list; they are answered, or put aside. */
static int run_errands(struct groups *groups, struct errands *list, size_t count,
                       struct err *err)
{
    int r = errand_run(list->first, count, groups->database, statement_deadline(), err);
    /* Without an SQLSTATE it is not the server that has said no: its answer was not one of ours,
     * and it may be done. */
    const bool refused = r == -EIO && *database_sqlstate(groups->database) != '\0';

    if (refused && count > 1) { /* one of them: each alone, then */
        for (r = 0; r == 0 && count > 0; count--)
            r = run_errands(groups, list, 1, err);
        return r;
    }
    if (refused) {
        take_refusal(groups, list->first, err);
        r = weigh(groups, r, "an errand was refused", err);
    } else if (r < 0) {
        (void)err_prefix(err, 0, "whether it was done is not known");
        for (; count > 0; count--)
            answer_unavailable(groups, take_errand(list), err->text);
        return r;
    }
    for (; count > 0; count--)
        settle(groups, take_errand(list));
    return r;
}

static int run_all_errands(struct groups *groups, struct err *err)
{
    int r = 0;

    for (size_t i = 0; i < ERRAND_KINDS && r == 0; i++) {
        struct errands *list = &groups->errands[i];

        if (list->first != NULL)
            r = run_errands(groups, list,
                            MIN(list->count, errand_most(list->first->kind)), err);
    }
    return r;
}

/* ---- what others tell ---- */

static void on_notification(void *argument, const PGnotify *notification, bool own)
{
    struct groups *groups = argument;

    if (strcmp(notification->relname, "gateway_acks") == 0)
        waits_bell(&groups->waits, notification->extra);
    else if (strcmp(notification->relname, "gateway_due") == 0)
        roster_news_of_channel(groups->dealer.roster, notification->extra);
    else if (strcmp(notification->relname, "gateway_removed") == 0)
        dealer_group_is_gone(&groups->dealer, notification->extra);
    else if (!own)
        dealer_take_freed(&groups->dealer, notification->extra);
}

/* ---- letters ---- */

static void join_delivered(struct mail *mail)
{
    struct enrolment *enrolment = CONTAINER_OF(mail, struct enrolment, join_mail);
    struct groups *groups = enrolment->keeper;

    dealer_join(&groups->dealer, enrolment);
}

/* One more of those of whom there may be so many. */
static int count_in(struct groups *groups, _Atomic size_t *count, size_t max,
                    enum stats_gauge gauge)
{
    if (atomic_fetch_add_explicit(count, 1, memory_order_relaxed) >= max) {
        atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
        return -EAGAIN;
    }
    stats_gauge_add(groups->settings.stats, gauge, 1);
    return 0;
}

static void count_out(struct groups *groups, _Atomic size_t *count,
                      enum stats_gauge gauge)
{
    stats_gauge_add(groups->settings.stats, gauge, -1);
    atomic_fetch_sub_explicit(count, 1, memory_order_relaxed);
}

static void dismiss(struct groups *groups, struct enrolment *enrolment)
{
    count_out(groups, &groups->consumer_count, STATS_GROUPS_CONSUMERS);
    dealer_dismiss(&groups->dealer, enrolment);
}

static void news_delivered(struct mail *mail)
{
    struct enrolment *enrolment = CONTAINER_OF(mail, struct enrolment, news_mail);

    /* News from here on is another letter's; what it is about, is there to be claimed. */
    atomic_store_explicit(&enrolment->told, false, memory_order_release);
    if (enrolment->member.group != NULL)
        roster_news(enrolment->member.group);
}

static void leave_delivered(struct mail *mail)
{
    struct enrolment *enrolment = CONTAINER_OF(mail, struct enrolment, leave_mail);

    dismiss(enrolment->keeper, enrolment);
}

static void errand_delivered(struct mail *mail)
{
    struct errand *errand = CONTAINER_OF(mail, struct errand, mail);
    struct groups *groups = errand->keeper;

    add_errand(&groups->errands[errand->kind], errand);
}

static void wait_delivered(struct mail *mail)
{
    struct wait *wait = CONTAINER_OF(mail, struct wait, mail);
    struct groups *groups = wait->keeper;

    waits_add(&groups->waits, wait);
}

/* ---- the thread ---- */

/* Lies down until there is something to do. Letters that came before are seen: the mailbox
 * rings for each. */
static int sleep_until(struct groups *groups, uint64_t until, struct err *err)
{
    const int r =
        database_wait(groups->database, mailbox_fd(&groups->mailbox), until, err);

    (void)mailbox_deliver(&groups->mailbox);
    return r;
}

static uint64_t next_due(const struct groups *groups)
{
    if (has_errands(groups))
        return 0;
    return MIN(groups->locked.first != NULL ? groups->locked_usec : CLOCK_NEVER,
               MIN(dealer_due_usec(&groups->dealer), waits_due_usec(&groups->waits)));
}

static int wait_for_connection(struct groups *groups, struct err *err)
{
    const uint64_t now = clock_usec();

    answer_hopeless(groups, false);
    waits_expire(&groups->waits, false);
    if (!is_needed(groups))
        return sleep_until(groups, CLOCK_NEVER, err);
    if (now < groups->retry.due_usec)
        return sleep_until(groups, MIN(groups->retry.due_usec, now + PATIENCE_USEC / 10),
                           err);
    return open_connection(groups, err);
}

static int turn_waits(struct groups *groups, struct err *err)
{
    return weigh(groups,
                 waits_turn(&groups->waits, groups->database, statement_deadline(), err),
                 "could not look for acknowledgements", err);
}

static int turn(struct groups *groups, struct err *err)
{
    if (!database_connected(groups->database))
        return wait_for_connection(groups, err);

    if (groups->locked.first != NULL && clock_usec() >= groups->locked_usec)
        take_up_again(groups);
    int r = run_all_errands(groups, err);
    /* Whoever is about to be answered goes first; whoever has come just now has time. */
    if (r == 0 && waits_are_rung(&groups->waits))
        r = turn_waits(groups, err);
    if (r == 0)
        r = dealer_turn(&groups->dealer, err);
    waits_expire(&groups->waits, false);
    if (r == 0 && waits_due_usec(&groups->waits) <= clock_usec())
        r = turn_waits(groups, err);
    return r < 0 ? r : sleep_until(groups, next_due(groups), err);
}

static bool is_stopping(struct groups *groups)
{
    pthread_mutex_lock(&groups->lock);
    const bool stopping = groups->stopping;
    pthread_mutex_unlock(&groups->lock);
    return stopping;
}

/* Nobody posts any more. What was accepted is done, as far as there is time; then nothing is
 * anybody's any more. */
static void wind_up(struct groups *groups)
{
    struct err err = {0};
    int r = database_connected(groups->database) ? 0 : -ECONNRESET;

    pthread_mutex_lock(&groups->lock);
    groups->running = false;
    pthread_mutex_unlock(&groups->lock);
    (void)mailbox_deliver(&groups->mailbox);

    for (struct enrolment *enrolment = groups->dealer.enrolments; enrolment != NULL;
         enrolment = enrolment->next)
        enrolment->end(enrolment);
    while (groups->dealer.enrolments != NULL)
        dismiss(groups, groups->dealer.enrolments);
    while (r == 0 && has_errands(groups))
        r = run_all_errands(groups, &err);
    if (r == 0)
        r = returns_clear(&groups->dealer.returns, &err);
    answer_hopeless(groups, true);
    waits_expire(&groups->waits, true);
    if (r == 0)
        r = waits_turn(&groups->waits, groups->database, statement_deadline(), &err);
    if (r < 0)
        log_debug("the groups ended without the database: %s", err.text);
    database_close(groups->database);
}

static void run(void *argument)
{
    struct groups *groups = argument;

    THREAD_ASSERT(THREAD_GROUPS);
    while (!is_stopping(groups)) {
        struct err err = {0};
        thread_beat();
        /* open_connection() has told of its own failures. */
        const bool connected = database_connected(groups->database);
        const int r = turn(groups, &err);
        if (r < 0 && r != -ECANCELED && connected)
            lose_connection(groups, &err);
    }
    wind_up(groups);
}

/* ---- from other threads ---- */

/* The letter is posted under the lock: what was accepted is delivered. */
static int post(struct groups *groups, struct mail *mail)
{
    pthread_mutex_lock(&groups->lock);
    const bool running = groups->running && !groups->stopping;
    if (running)
        mailbox_post(&groups->mailbox, mail);
    pthread_mutex_unlock(&groups->lock);
    return running ? 0 : -ESHUTDOWN;
}

int groups_join(struct groups *groups, struct enrolment *enrolment)
{
    int r = count_in(groups, &groups->consumer_count, groups->settings.consumers_max,
                     STATS_GROUPS_CONSUMERS);

    if (r < 0)
        return r;
    enrolment->keeper = groups;
    enrolment->join_mail.deliver = join_delivered;
    enrolment->news_mail.deliver = news_delivered;
    enrolment->leave_mail.deliver = leave_delivered;
    r = post(groups, &enrolment->join_mail);
    if (r < 0)
        count_out(groups, &groups->consumer_count, STATS_GROUPS_CONSUMERS);
    return r;
}

/* If nobody takes letters any more, its dismissal is on its way. */
void groups_leave(struct enrolment *enrolment)
{
    (void)post(enrolment->keeper, &enrolment->leave_mail);
}

void groups_news(struct enrolment *enrolment)
{
    if (!atomic_exchange_explicit(&enrolment->told, true, memory_order_acq_rel))
        (void)post(enrolment->keeper, &enrolment->news_mail);
}

int groups_do(struct groups *groups, struct errand *errand)
{
    errand->keeper = groups;
    errand->accepted_usec = clock_usec();
    errand->mail.deliver = errand_delivered;
    return post(groups, &errand->mail);
}

int groups_reserve(struct groups *groups)
{
    return count_in(groups, &groups->wait_count, groups->settings.waits_max,
                    STATS_GROUPS_WAITS);
}

void groups_unreserve(struct groups *groups)
{
    count_out(groups, &groups->wait_count, STATS_GROUPS_WAITS);
}

int groups_wait(struct groups *groups, struct wait *wait)
{
    wait->keeper = groups;
    wait->mail.deliver = wait_delivered;
    return post(groups, &wait->mail);
}

/* ---- life ---- */

int groups_start(struct groups *groups, struct err *err)
{
    pthread_mutex_lock(&groups->lock);
    groups->running = true;
    pthread_mutex_unlock(&groups->lock);

    const int r = thread_start(&groups->thread, THREAD_GROUPS, 0, run, groups, err);
    if (r < 0) {
        pthread_mutex_lock(&groups->lock);
        groups->running = false;
        pthread_mutex_unlock(&groups->lock);
    }
    return r;
}

void groups_stop(struct groups *groups, uint64_t grace_usec)
{
    const struct itimerspec grace = {
        .it_value = {.tv_sec = (time_t)(grace_usec / USEC_PER_SEC),
                     .tv_nsec = (long)(grace_usec % USEC_PER_SEC) * 1000 + 1},
    };

    if (groups == NULL || !groups->thread.started)
        return;
    pthread_mutex_lock(&groups->lock);
    groups->stopping = true;
    pthread_mutex_unlock(&groups->lock);
    if (timerfd_settime(groups->stop_fd, 0, &grace, NULL) < 0)
        log_error("the groups' grace could not be limited: %s", strerror(errno));
    mailbox_ring(&groups->mailbox);
    thread_join(&groups->thread);
}

static int make_rooms(struct groups *groups, const struct groups_settings *settings)
{
    groups->stop_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (groups->stop_fd < 0)
        return -errno;
    groups->database = database_new(&(struct database_settings){
        .dsn = settings->dsn,
        .password = settings->password,
        .door = "groups",
        .target = "read-write",
        .stop_fd = groups->stop_fd,
        .notified = on_notification,
        .argument = groups,
    });
    return groups->database != NULL ? 0 : -ENOMEM;
}

struct groups *groups_new(const struct groups_settings *settings)
{
    struct groups *groups = calloc(1, sizeof(*groups));

    if (groups == NULL)
        return NULL;
    groups->settings = *settings;
    groups->settings.dsn = groups->settings.password = NULL; /* kept by database */
    for (size_t i = 0; i < ERRAND_KINDS; i++)
        groups->errands[i].tail = &groups->errands[i].first;
    groups->locked.tail = &groups->locked.first;
    waits_init(&groups->waits);
    (void)pthread_mutex_init(&groups->lock, NULL);
    if (mailbox_init(&groups->mailbox, NULL) < 0 || make_rooms(groups, settings) < 0 ||
        dealer_init(&groups->dealer, groups->database, settings->stats) < 0) {
        groups_free(groups);
        return NULL;
    }
    return groups;
}

void groups_free(struct groups *groups)
{
    if (groups == NULL)
        return;
    groups_stop(groups, 0);
    dealer_done(&groups->dealer);
    database_free(groups->database);
    waits_done(&groups->waits);
    pthread_mutex_destroy(&groups->lock);
    mailbox_done(&groups->mailbox);
    if (groups->stop_fd >= 0)
        close(groups->stop_fd);
    free(groups);
}

const struct thread *groups_thread(const struct groups *groups)
{
    return &groups->thread;
}
