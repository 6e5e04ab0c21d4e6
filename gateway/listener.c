/*
 * listener.c - every new event of the database, once, in order, into the ring.
 *
 * One turn of the thread's loop does one thing: connect, number, fetch, look whether all
 * is well, or wait. Whatever fails closes the connection, and the next turn begins again
 * from the last seq that is in the ring.
 */
#include "listener.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bell.h"
#include "clock.h"
#include "database.h"
#include "event.h"
#include "intake.h"
#include "log.h"
#include "retry.h"
#include "schema.h"
#include "thread.h"

#define CONNECT_USEC    (5 * USEC_PER_SEC)
#define QUERY_USEC      (3 * USEC_PER_SEC)
#define SWEEP_USEC      (10 * USEC_PER_SEC) /* may wait for the order lock */
#define LOOK_USEC       USEC_PER_SEC
#define STRAGGLERS_USEC (10 * USEC_PER_SEC)

/* Who subscribes to a channel waits so long at the most for everybody to ring. */
#define RELAY_PATIENCE_USEC (USEC_PER_SEC / 2)

/* A round trip older than this is no proof of life: a look comes every second and may
 * take three. */
#define ALIVE_USEC (LOOK_USEC + QUERY_USEC)

#define SWEEP_ROWS 5000

/* A ring begins with so many events at the most, if there is room for them. */
#define RECENT_EVENTS 20000

#define QUEUE_USAGE_WARNING 0.5

struct listener {
    struct listener_settings settings; /* [const] */
    struct database *database;         /* [listener] */
    struct intake *intake;             /* [listener] */
    struct thread thread;
    int stop_fd; /* [const] eventfd */

    bool prepared;      /* [listener] settings.prepare has succeeded */
    bool started;       /* [listener] the ring has its beginning */
    bool writable;      /* [listener] as of the last look */
    bool fetch_wanted;  /* [listener] a doorbell rang, or a page was full */
    struct bell bell;   /* [listener] when to sweep */
    bool sweep_first;   /* [listener] even if there is something to fetch */
    bool sweep_full;    /* [listener] the last one, and nothing fetched since */
    bool queue_warned;  /* [listener] */
    uint64_t look_usec; /* [listener] when to look again */
    char identity[128]; /* [listener] of the table's life; "" before the first look */
    uint64_t purged; /* [listener] the newest event that was deleted, at the last look */
    uint64_t base;   /* [listener] its numbers begin above */
    uint64_t straggler_usec; /* [listener] when to look for stragglers again */
    uint64_t relay_usec;     /* [listener] by then it is relayed; 0: it is not needed */
    struct retry retry;      /* [listener] */

    pthread_mutex_t lock;
    struct listener_status status; /* [lock] */
};

/* ---- status ---- */

void listener_status(struct listener *listener, struct listener_status *ret_status)
{
    struct listener_status status;

    pthread_mutex_lock(&listener->lock);
    status = listener->status;
    pthread_mutex_unlock(&listener->lock);

    uint64_t now = clock_usec();
    if (status.listening && now > status.round_trip_usec + ALIVE_USEC) {
        status.listening = false;
        (void)snprintf(
            status.reason, sizeof(status.reason),
            "the database has not answered for %llu s",
            (unsigned long long)((now - status.round_trip_usec) / USEC_PER_SEC));
    }
    *ret_status = status;
}

static void set_status(struct listener *listener, bool listening, bool writable,
                       const char *reason)
{
    struct listener_status *status = &listener->status;
    struct stats *stats = listener->settings.stats;
    char text[sizeof(status->reason)];

    (void)snprintf(text, sizeof(text), "%.*s", (int)sizeof(text) - 1, reason);
    pthread_mutex_lock(&listener->lock);
    bool change = status->listening != listening || status->writable != writable ||
                  strcmp(status->reason, text) != 0;
    status->listening = listening;
    status->writable = writable;
    memcpy(status->reason, text, sizeof(text));
    pthread_mutex_unlock(&listener->lock);

    stats_gauge_set(stats, STATS_LISTENER_CONNECTED, listening);
    stats_gauge_set(stats, STATS_DATABASE_WRITABLE, writable);
    if (change && listener->settings.changed != NULL)
        listener->settings.changed(listener->settings.argument);
}

static void note_answer(void *argument)
{
    struct listener *listener = argument;

    pthread_mutex_lock(&listener->lock);
    listener->status.round_trip_usec = clock_usec();
    listener->status.head_seq = intake_seq(listener->intake);
    pthread_mutex_unlock(&listener->lock);
}

/* ---- questions ---- */

static int ask_query(struct listener *listener, const struct database_query *query,
                     uint64_t patience_usec, PGresult **ret_result, struct err *err)
{
    const int r = database_query(listener->database, query, clock_usec() + patience_usec,
                                 ret_result, err);

    if (r == 0)
        note_answer(listener);
    return schema_explain(r, listener->database, err);
}

static int ask(struct listener *listener, const char *sql, uint64_t patience_usec,
               PGresult **ret_result, struct err *err)
{
    return ask_query(listener, &(struct database_query){.sql = sql}, patience_usec,
                     ret_result, err);
}

/* Numbers what others have committed. A full batch means that there is more. Where batches work
 * towards an older snapshot, what was committed since is left to the next. */
static int sweep(struct listener *listener, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    uint64_t now = clock_usec();
    bool stragglers = now >= listener->straggler_usec;
    const struct database_query query = {
        .sql = "SELECT gateway.sweep(5000, $1::boolean), (SELECT s.target IS NULL "
               "FROM gateway.sweeps s ORDER BY s.step DESC LIMIT 1)",
        .count = 1,
        .values = (const char *const[]){stragglers ? "true" : "false"},
        .name = "sweep",
    };

    listener->sweep_full = false;
    if (stragglers)
        listener->straggler_usec = now + STRAGGLERS_USEC;
    bell_sweeping(&listener->bell, now);
    intake_sweeping(listener->intake);
    int r = ask_query(listener, &query, SWEEP_USEC, &result, err);
    if (r < 0)
        return r;
    unsigned long numbered = strtoul(PQgetvalue(result, 0, 0), NULL, 10);
    bell_swept(&listener->bell, clock_usec(), numbered > 0);
    intake_swept(listener->intake,
                 numbered < SWEEP_ROWS && PQgetvalue(result, 0, 1)[0] == 't');
    if (numbered == 0)
        return 0;
    stats_add(listener->settings.stats, STATS_EVENTS_NUMBERED, numbered);
    listener->fetch_wanted = true; /* one's own notification is not heard */
    listener->sweep_full = numbered >= SWEEP_ROWS;
    return 0;
}

static uint64_t read_number(const PGresult *row, int column)
{
    return strtoull(PQgetvalue(row, 0, column), NULL, 10);
}

/* find_place() sees what it is, and tells. */
static int events_are_missing(struct err *err)
{
    return err_set(err, -ESTALE,
                   "events are missing from the table that have not been seen yet");
}

static int fetch(struct listener *listener, struct err *err)
{
    listener->fetch_wanted = false;
    const int r = intake_fetch(listener->intake, listener->database, err);

    if (r == -ESTALE)
        return events_are_missing(err);
    if (r < 0)
        return r;
    note_answer(listener);
    listener->fetch_wanted = listener->fetch_wanted || r > 0;
    if (intake_fetched(listener->intake) > 0 && listener->sweep_full)
        bell_sweep_soon(&listener->bell, clock_usec()); /* else somebody has locked all */
    listener->sweep_full = false;
    return 0;
}

/* PostgreSQL stops taking NOTIFYs when its queue is full, and only a session that listens
 * and asks moves the queue's end on: so this question also heals what it measures. */
static void look_at_queue(struct listener *listener, double usage)
{
    if (usage > QUEUE_USAGE_WARNING && !listener->queue_warned)
        log_warning("the database's NOTIFY queue is %.0f %% full: some session "
                    "listens in a transaction that it does not end",
                    usage * 100);
    listener->queue_warned = usage > QUEUE_USAGE_WARNING;
}

/* Another life of the table than the one known, and not a later one: the schema was dropped
 * and made anew. Nothing in this process can be right any more. */
static bool is_replaced(struct listener *listener, const char *identity, uint64_t base)
{
    const bool known = listener->identity[0] != '\0';
    const bool same = strcmp(identity, listener->identity) == 0;

    if (known && !same && base <= listener->base)
        return true;
    (void)snprintf(listener->identity, sizeof(listener->identity), "%s", identity);
    listener->base = base;
    return false;
}

static void be_replaced(struct listener *listener)
{
    pthread_mutex_lock(&listener->lock);
    listener->status.replaced = true;
    pthread_mutex_unlock(&listener->lock);
    if (listener->settings.changed != NULL)
        listener->settings.changed(listener->settings.argument);
}

#define LOOK(duty)                                                                       \
    "SELECT pg_catalog.pg_is_in_recovery(), "                                            \
    "pg_catalog.current_setting('transaction_read_only') <> 'off', "                     \
    "pg_catalog.pg_notification_queue_usage(), i.identity, i.base, "                     \
    "(SELECT coalesce(max(p.seq), 0) FROM gateway.purges p), "                           \
    "(SELECT coalesce(max(m.version), 0) FROM gateway.migrations m), "                   \
    "gateway.newest_seq(), " duty                                                        \
    " FROM gateway.incarnations i ORDER BY i.base DESC LIMIT 1"

/* Proof of life, whether the database takes writes, and whether it is still the same. After a
 * migration the next connection tells what it thinks of it. Who is off duty takes the duty
 * if nobody has it. */
static int look(struct listener *listener, const char **ret_reason, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    int r = ask(listener,
                listener->bell.state == BELL_OFF_DUTY ? LOOK(BELL_DUTY) : LOOK("'f'"),
                QUERY_USEC, &result, err);

    if (r < 0)
        return r;
    if (PQntuples(result) != 1)
        return err_set(err, -EPROTO, "the table gateway.incarnations is empty");
    if (read_number(result, 6) != (uint64_t)listener->settings.schema_version)
        return err_set(err, -ESTALE, "the database's schema was migrated meanwhile");
    if (is_replaced(listener, PQgetvalue(result, 0, 3), read_number(result, 4)))
        be_replaced(listener);
    listener->purged = read_number(result, 5);
    bool standby = PQgetvalue(result, 0, 0)[0] == 't';
    bool read_only = PQgetvalue(result, 0, 1)[0] == 't';
    look_at_queue(listener, strtod(PQgetvalue(result, 0, 2), NULL));
    listener->writable = !standby && !read_only;
    intake_looked(listener->intake, read_number(result, 7));
    if (PQgetvalue(result, 0, 8)[0] == 't')
        bell_on_duty(&listener->bell, clock_usec());
    listener->look_usec = clock_usec() + LOOK_USEC;
    *ret_reason = standby     ? "the database is a standby"
                  : read_only ? "the database is read-only"
                              : "";
    return 0;
}

/* ---- a new connection ---- */

/* How things stand in the table. */
struct ends {
    uint64_t newest; /* event there is */
    uint64_t purged; /* the newest that was deleted */
    uint64_t
        recent; /* where a ring that begins now would begin: with the newest of this life,
                        so that those who come back after a restart cost no query each */
};

static int read_ends(struct listener *listener, struct ends *ret_ends, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    char sql[200];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT gateway.newest_seq(), gateway.recent_after(%d, %zu), "
                   "(SELECT coalesce(max(p.seq), 0) FROM gateway.purges p)",
                   RECENT_EVENTS, listener->settings.recent_bytes);
    const int r = ask(listener, sql, QUERY_USEC, &result, err);
    if (r < 0)
        return r;
    *ret_ends = (struct ends){.newest = read_number(result, 0),
                              .recent = read_number(result, 1),
                              .purged = read_number(result, 2)};
    return 0;
}

/* The events seen last are not there: a disk's snapshot was restored, say. Numbers that were
 * seen must not be given again. */
static int tell_seen(struct listener *listener, struct err *err)
{
    char sql[64];

    (void)snprintf(sql, sizeof(sql), "SELECT gateway.has_seen(%llu)",
                   (unsigned long long)intake_seq(listener->intake));
    return ask(listener, sql, SWEEP_USEC, NULL, err);
}

/* Some of the events in the ring may be lost, or some after them were deleted before they were
 * seen here. The ring begins anew: all who are up to date with it go on from the table, and
 * are told there what is missing. */
static void begin_anew(struct listener *listener, uint64_t newest, const char *why)
{
    log_warning("listener: %s; the newest event seen is %llu, the newest there is %llu",
                why, (unsigned long long)intake_seq(listener->intake),
                (unsigned long long)newest);
    intake_begin_anew(listener->intake, newest);
}

/* From where this connection is to fetch. */
static int find_place(struct listener *listener, struct err *err)
{
    const uint64_t last_seq = intake_seq(listener->intake);
    struct ends ends;
    int r = read_ends(listener, &ends, err);

    if (r == 0 && listener->started && ends.newest < last_seq && listener->writable) {
        r = tell_seen(listener, err);
        if (r == 0)
            r = read_ends(listener, &ends, err);
    }
    if (r < 0)
        return r;
    if (!listener->started)
        intake_begin(listener->intake, ends.recent, ends.newest);
    else if (event_is_other_life(ends.newest, last_seq))
        begin_anew(listener, ends.newest,
                   "the table of events has begun a new life (a failover, or a restored "
                   "dump)");
    else if (ends.purged > last_seq)
        begin_anew(listener, ends.newest, "events were deleted before they were seen");
    listener->started = true;
    /* Nobody has rung on this connection for what was committed before it. */
    intake_rung(listener->intake, ends.newest);
    note_answer(listener);
    return 0;
}

/* sweep() wants READ COMMITTED, and the server's default may be another one. The plan of
 * fetch() is kept: it must be a walk along the index in any case, also if it is made while the
 * table is small, when reading all of it and sorting looks cheaper. And the server shall notice
 * soon when this gateway is gone without a word, and the duty is free. A database without an
 * encoding hands over any bytes: it would refuse to tell a notification that is not UTF-8, and
 * those behind it.
 *
 * What waits for a lock is given up when sweep() is, so that no session is left waiting at the
 * server for each try. The other deadlines are ours: a shorter one that somebody has set for the
 * role or the database would end each try at the same place, and no row would be numbered. */
#define SET_UP                                                                           \
    "SELECT pg_catalog.set_config('default_transaction_isolation', 'read committed', "   \
    "false), pg_catalog.set_config('enable_sort', 'off', false), "                       \
    "pg_catalog.set_config('lock_timeout', '10s', false), "                              \
    "pg_catalog.set_config('statement_timeout', '0', false), "                           \
    "pg_catalog.set_config('tcp_keepalives_idle', '5', false), "                         \
    "pg_catalog.set_config('tcp_keepalives_interval', '2', false), "                     \
    "pg_catalog.set_config('tcp_keepalives_count', '3', false), "                        \
    "pg_catalog.set_config('tcp_user_timeout', '9000', false), "                         \
    "CASE WHEN pg_catalog.current_setting('server_encoding') = 'SQL_ASCII' THEN "        \
    "pg_catalog.set_config('client_encoding', 'SQL_ASCII', false) END"

/* LISTEN is committed before the first snapshot of the catch-up is taken: what commits in
 * between is in the one or rings the bell, and nothing falls between them. */
static int begin_listening(struct listener *listener, struct err *err)
{
    const char *reason = "";
    struct database *database = listener->database;
    int r = schema_check(database, listener->settings.schema_version,
                         clock_usec() + QUERY_USEC, err);

    bell_reset(&listener->bell); /* the locks were the old session's */
    if (r == 0)
        r = ask(listener, SET_UP, QUERY_USEC, NULL, err);
    if (r == 0)
        r = ask(listener, "LISTEN gateway_events", QUERY_USEC, NULL, err);
    if (r == 0)
        r = ask(listener, "LISTEN gateway_wake", QUERY_USEC, NULL, err);
    if (r == 0 && listener->settings.relay != NULL)
        r = relay_restore(listener->settings.relay, database, listener->started, err);
    if (r == 0)
        r = look(listener, &reason, err);
    /* It may be another database than before: a dump restored, a standby promoted. */
    listener->straggler_usec = 0;
    if (r == 0 && listener->writable)
        r = sweep(listener, err);
    if (r == 0)
        r = find_place(listener, err);
    if (r == 0)
        set_status(listener, true, listener->writable, reason);
    return r;
}

static int open_connection(struct listener *listener, struct err *err)
{
    int r;

    if (!listener->prepared && listener->settings.prepare != NULL) {
        r = listener->settings.prepare(listener->settings.argument, err);
        if (r < 0)
            return r;
    }
    listener->prepared = true;

    r = database_connect(listener->database, clock_usec() + CONNECT_USEC, err);
    if (r == 0)
        r = begin_listening(listener, err);
    if (r < 0)
        return r;
    stats_add(listener->settings.stats, STATS_LISTENER_CONNECTS, 1);
    retry_up(&listener->retry, "listening to the database at",
             database_place(listener->database));
    listener->fetch_wanted = true;
    return 0;
}

/* ---- the thread ---- */

static void heard_bell(struct listener *listener, const char *payload)
{
    const uint64_t last_id = strtoull(payload, NULL, 10);

    if (strcmp(payload, BELL_CALL) == 0) {
        bell_called(&listener->bell);
        return;
    }
    bell_rung(&listener->bell, clock_usec());
    if (last_id > 0)
        intake_rung_for_rows(listener->intake, last_id);
}

/* After a sweep of one's own it is fetched anyway. */
static void on_notification(void *argument, const PGnotify *notification, bool own)
{
    struct listener *listener = argument;
    const char *channel = notification->relname;

    stats_add(listener->settings.stats, STATS_LISTENER_NOTIFICATIONS, 1);
    if (strcmp(channel, "gateway_wake") == 0) {
        heard_bell(listener, notification->extra);
    } else if (strcmp(channel, "gateway_events") == 0) {
        intake_rung(listener->intake, strtoull(notification->extra, NULL, 10));
        listener->fetch_wanted = listener->fetch_wanted || !own;
    } else {
        intake_note(listener->intake, notification);
    }
}

/* Returns 1 if something has been done. A sweep waits for what is to be fetched. */
static int mind_bell(struct listener *listener, struct err *err)
{
    const enum bell_step step =
        listener->writable ? bell_next(&listener->bell, clock_usec()) : BELL_WAIT;
    int r;

    if (step == BELL_WAIT ||
        (step == BELL_SWEEP && listener->fetch_wanted && !listener->sweep_first))
        return 0;
    if (step == BELL_SWEEP) {
        listener->sweep_first = false;
        r = sweep(listener, err);
    } else {
        r = bell_turn(&listener->bell, listener->database, clock_usec() + QUERY_USEC,
                      err);
    }
    return r < 0 ? r : 1;
}

/* Says whether every ring is needed. Before the first channel is listened to, everybody rings;
 * but subscribers do not wait for long, because who was told not to ring may stay. */
static void need_rings(struct listener *listener)
{
    struct relay *relay = listener->settings.relay;
    const bool needed =
        relay != NULL && listener->settings.relay_exact && relay_is_used(relay);

    bell_need(&listener->bell, needed);
    if (!needed)
        listener->relay_usec = 0;
    else if (listener->relay_usec == 0)
        listener->relay_usec = clock_usec() + RELAY_PATIENCE_USEC;
}

static bool may_relay(const struct listener *listener)
{
    return bell_is_taken(&listener->bell) || !listener->writable ||
           clock_usec() >= listener->relay_usec;
}

static int rest(struct listener *listener, struct err *err)
{
    struct relay *relay = listener->settings.relay;
    uint64_t until = listener->look_usec;

    if (listener->writable)
        until = MIN(until, bell_due(&listener->bell));
    if (relay == NULL)
        return database_wait(listener->database, -1, until, err);
    if (!may_relay(listener))
        return database_wait(listener->database, -1, MIN(until, listener->relay_usec),
                             err);
    return database_wait(listener->database, relay_fd(relay),
                         MIN(until, relay_due(relay)), err);
}

/* Sees to what relay.h and intake.h want of the database. Returns 1 if something has been
 * done. */
static int mind_relay(struct listener *listener, struct err *err)
{
    if (listener->settings.relay == NULL)
        return 0;
    if (!intake_waits(listener->intake) || listener->sweep_full)
        return may_relay(listener)
                   ? relay_tend(listener->settings.relay, listener->database, err)
                   : 0;
    listener->fetch_wanted = true;
    if (listener->writable) {
        const int r = sweep(listener, err);
        return r < 0 ? r : 1;
    }
    intake_sweeping(listener->intake);
    intake_swept(listener->intake, true);
    return 1;
}

/* Once a second everything is asked for that a lost doorbell would have asked for. What
 * was numbered is fetched to its end before more is numbered, so that a flood of rows is
 * delivered while it lasts; but for one sweep a second, which such a flood cannot starve.
 */
static int serve(struct listener *listener, struct err *err)
{
    const char *reason;

    if (clock_usec() >= listener->look_usec) {
        listener->fetch_wanted = listener->sweep_first = true;
        bell_sweep_soon(&listener->bell, clock_usec());
        int r = look(listener, &reason, err);
        if (r == 0 && listener->purged > intake_seq(listener->intake))
            return events_are_missing(err);
        if (r == 0)
            set_status(listener, true, listener->writable, reason);
        return r;
    }
    need_rings(listener);
    int r = mind_relay(listener, err);
    if (r == 0)
        r = mind_bell(listener, err);
    if (r != 0)
        return r;
    if (listener->fetch_wanted)
        return fetch(listener, err);
    return rest(listener, err);
}

static void turn(struct listener *listener)
{
    struct err err = {0};
    int r;

    if (database_connected(listener->database))
        r = serve(listener, &err);
    else if (clock_usec() >= listener->retry.due_usec)
        r = open_connection(listener, &err);
    else
        r = database_wait(listener->database, -1, listener->retry.due_usec, &err);
    if (r >= 0 || r == -ECANCELED)
        return;

    database_close(listener->database);
    intake_forget(listener->intake);
    if (listener->settings.relay != NULL)
        relay_lost(listener->settings.relay);
    retry_down(&listener->retry, "cannot listen", &err);
    set_status(listener, false, false, err.text);
}

static bool stopped(const struct listener *listener)
{
    uint64_t rung;

    /* The only reader; once it has rung, nobody asks again. */
    return read(listener->stop_fd, &rung, sizeof(rung)) > 0;
}

static void run(void *argument)
{
    struct listener *listener = argument;

    THREAD_ASSERT(THREAD_LISTENER);
    while (!stopped(listener)) {
        thread_beat();
        turn(listener);
    }
    database_close(listener->database);
    set_status(listener, false, false, "stopping");
}

/* ---- life ---- */

struct listener *listener_new(const struct listener_settings *settings)
{
    struct listener *listener = calloc(1, sizeof(*listener));

    if (listener == NULL)
        return NULL;
    listener->settings = *settings;
    listener->settings.dsn = listener->settings.password =
        NULL; /* the database's copies */
    listener->stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (listener->stop_fd < 0 || pthread_mutex_init(&listener->lock, NULL) != 0) {
        if (listener->stop_fd >= 0)
            close(listener->stop_fd);
        free(listener);
        return NULL;
    }
    (void)snprintf(listener->status.reason, sizeof(listener->status.reason),
                   "not yet connected to the database");
    listener->database = database_new(&(struct database_settings){
        .dsn = settings->dsn,
        .password = settings->password,
        .door = "listener",
        .target = "read-write",
        .stop_fd = listener->stop_fd,
        .notified = on_notification,
        .argument = listener,
    });
    listener->intake = intake_new(&(struct intake_settings){
        .ring = settings->ring,
        .relay = settings->relay,
        .exact = settings->relay_exact,
        .stats = settings->stats,
        .alive = note_answer,
        .argument = listener,
    });
    if (listener->database == NULL || listener->intake == NULL) {
        listener_free(listener);
        return NULL;
    }
    return listener;
}

int listener_start(struct listener *listener, struct err *err)
{
    return thread_start(&listener->thread, THREAD_LISTENER, 0, run, listener, err);
}

void listener_stop(struct listener *listener)
{
    uint64_t one = 1;

    if (listener == NULL || !listener->thread.started)
        return;
    if (write(listener->stop_fd, &one, sizeof(one)) < 0)
        log_error("the listener could not be told to stop: %s", strerror(errno));
    thread_join(&listener->thread);
}

void listener_free(struct listener *listener)
{
    if (listener == NULL)
        return;
    listener_stop(listener);
    database_free(listener->database);
    intake_free(listener->intake);
    pthread_mutex_destroy(&listener->lock);
    close(listener->stop_fd);
    free(listener);
}

const struct thread *listener_thread(const struct listener *listener)
{
    return &listener->thread;
}
