/*
 * database.c - one connection to PostgreSQL that never hangs.
 */
#include "database.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "buf.h"
#include "dsn.h"
#include "log.h"
#include "thread.h"

/* How long a wait goes on without a sign of life and a look at the owner's own deadlines.
 */
#define TICK_USEC (100 * USEC_PER_MSEC)
#define REST_USEC USEC_PER_SEC

struct database {
    PGconn *conn;                 /* NULL: not connected */
    const char *prepared[2];      /* the names of the statements that are; NULL: free */
    struct dsn_settings settings; /* its texts are copies in `texts` */
    char *texts[4];
    int stop_fd;
    void (*notified)(void *argument, const PGnotify *notification, bool own);
    void (*tick)(void *argument);
    void *argument;
    uint64_t ticked_usec;
    struct database_error error;
    char place[160];
    char last_words[300]; /* what the server said as it closed the connection */
};

/* When a wait ends. With `silence_usec` every byte from the server starts it anew. */
struct patience {
    uint64_t deadline_usec;
    uint64_t silence_usec;
};

/* ---- small helpers ---- */

static void copy_field(char *to, size_t size, const PGresult *result, int field)
{
    err_copy_line(to, size, PQresultErrorField(result, field));
}

/* A copy that database_free() frees; NULL stays NULL, and so does no memory. */
static const char *keep_text(struct database *database, size_t slot, const char *text)
{
    database->texts[slot] = text != NULL ? strdup(text) : NULL;
    return database->texts[slot];
}

static int keep_settings(struct database *database, const struct database_settings *from)
{
    CLEANUP(buf_done) struct buf application = BUF_EMPTY;

    (void)buf_add_format(&application, "pg-sse-gateway/%s", from->door);
    database->settings = (struct dsn_settings){
        .text = keep_text(database, 0, from->dsn),
        .password = keep_text(database, 1, from->password),
        .application = keep_text(database, 2, application.data),
        .target = keep_text(database, 3, from->target),
    };
    bool lacking = (from->dsn != NULL && database->settings.text == NULL) ||
                   (from->password != NULL && database->settings.password == NULL) ||
                   database->settings.application == NULL ||
                   (from->target != NULL && database->settings.target == NULL);
    return lacking ? -ENOMEM : 0;
}

struct database *database_new(const struct database_settings *settings)
{
    struct database *database = calloc(1, sizeof(*database));

    if (database == NULL)
        return NULL;
    database->stop_fd = settings->stop_fd;
    database->notified = settings->notified;
    database->tick = settings->tick;
    database->argument = settings->argument;
    if (keep_settings(database, settings) < 0) {
        database_free(database);
        return NULL;
    }
    return database;
}

void database_free(struct database *database)
{
    if (database == NULL)
        return;
    database_close(database);
    for (size_t i = 0; i < ARRAY_SIZE(database->texts); i++)
        free(database->texts[i]);
    free(database);
}

void database_close(struct database *database)
{
    PQfinish(database->conn);
    database->conn = NULL;
    memset(database->prepared, 0, sizeof(database->prepared));
}

bool database_connected(const struct database *database)
{
    return database->conn != NULL;
}

const char *database_place(const struct database *database)
{
    return database->place;
}

const struct database_error *database_error(const struct database *database)
{
    return &database->error;
}

const char *database_sqlstate(const struct database *database)
{
    return database->error.sqlstate;
}

/* ---- waiting ---- */

/* Until the socket is ready for `events`: 0; other_fd is readable: 1. Touches nothing. */
static int await(struct database *database, short events, int other_fd, uint64_t deadline,
                 uint64_t slice_usec)
{
    for (;;) {
        struct pollfd set[] = {
            {.fd = PQsocket(database->conn), .events = events}, /* -1 without a conn */
            {.fd = database->stop_fd, .events = POLLIN},
            {.fd = other_fd, .events = POLLIN},
        };
        uint64_t now = clock_usec();
        if (now - database->ticked_usec >= TICK_USEC) {
            database->ticked_usec = now;
            thread_beat();
            if (database->tick != NULL)
                database->tick(database->argument);
        }

        uint64_t wake = MIN(deadline, now + slice_usec);
        int ready = poll(set, ARRAY_SIZE(set), clock_timeout_msec(wake));
        if (ready < 0 && errno != EINTR)
            return -errno;
        if (ready > 0 && set[1].revents != 0)
            return -ECANCELED;
        if (ready > 0 && set[0].revents != 0)
            return 0;
        if (ready > 0 && set[2].revents != 0)
            return 1;
        if (ready == 0 && clock_usec() >= deadline)
            return -ETIMEDOUT;
    }
}

static int lost(struct database *database, struct err *err)
{
    const bool told = database->last_words[0] != '\0';
    char words[300];

    err_copy_line(words, sizeof(words),
                  told ? database->last_words : PQerrorMessage(database->conn));
    database_close(database);
    return err_set(err, -ECONNRESET, "the connection to the database was lost: %s",
                   words);
}

/* An await() that failed: a query is on its way, so the connection is of no more use. */
static int give_up(struct database *database, int code, struct err *err)
{
    database_close(database);
    if (code == -ETIMEDOUT)
        return err_set(err, code, "the database did not answer in time");
    if (code == -ECANCELED)
        return err_set(err, code, "stopped");
    return err_set(err, code, "could not wait for the database: %s", strerror(-code));
}

/* A notification that arrived together with a result does not make the socket readable
 * again: hence after every consume and after every result. */
static void drain_notifications(struct database *database)
{
    PGnotify *notification;

    while ((notification = PQnotifies(database->conn)) != NULL) {
        if (database->notified != NULL)
            database->notified(database->argument, notification,
                               notification->be_pid == PQbackendPID(database->conn));
        PQfreemem(notification);
    }
}

static int consume(struct database *database, struct err *err)
{
    if (PQconsumeInput(database->conn) == 0)
        return lost(database, err);
    drain_notifications(database);
    return 0;
}

/* The next result of what was sent; NULL at a statement's end. */
static int next_result(struct database *database, struct patience *patience,
                       PGresult **ret_result, struct err *err)
{
    for (;;) {
        int unsent = PQflush(database->conn);
        if (unsent < 0)
            return lost(database, err);
        if (PQisBusy(database->conn) == 0)
            break;

        /* Also while bytes come and go: a trickle must not outlast the deadline. */
        if (clock_usec() >= patience->deadline_usec)
            return give_up(database, -ETIMEDOUT, err);
        short events = (short)(unsent > 0 ? POLLIN | POLLOUT : POLLIN);
        int ready = await(database, events, -1, patience->deadline_usec, TICK_USEC);
        if (ready < 0)
            return give_up(database, ready, err);
        int r = consume(database, err);
        if (r < 0)
            return r;
        if (patience->silence_usec != 0)
            patience->deadline_usec = clock_usec() + patience->silence_usec;
    }

    *ret_result = PQgetResult(database->conn);
    drain_notifications(database);
    return 0;
}

int database_wait(struct database *database, int other_fd, uint64_t until_usec,
                  struct err *err)
{
    int ready = await(database, POLLIN, other_fd, until_usec, REST_USEC);

    if (ready == -ETIMEDOUT)
        return 0;
    if (ready < 0)
        return give_up(database, ready, err);
    if (ready == 1)
        return 1;
    return consume(database, err);
}

/* ---- what the server says ---- */

/* Errors too arrive here while no query is running: then they are the server's last words
 * ("terminating connection due to administrator command"; or a notification could not be put
 * into our encoding). */
static void on_notice(void *argument, const PGresult *result)
{
    struct database *database = argument;
    char severity[16];
    char message[300];

    copy_field(severity, sizeof(severity), result, PG_DIAG_SEVERITY_NONLOCALIZED);
    copy_field(message, sizeof(message), result, PG_DIAG_MESSAGE_PRIMARY);
    if (strcmp(severity, "FATAL") == 0 || strcmp(severity, "PANIC") == 0)
        err_copy_line(database->last_words, sizeof(database->last_words), message);
    log_debug("the database says: %s: %s", severity, message);
}

static void forget_error(struct database *database)
{
    database->error = (struct database_error){0};
    database->last_words[0] = '\0';
}

/* Notes a result that is an error; returns -EIO with its text. The first error of a call
 * is the one that counts. Without an SQLSTATE it is not the server's but libpq's own, which
 * had no memory for an answer: see database.h. */
static int refused(struct database *database, const PGresult *result, struct err *err)
{
    struct database_error *error = &database->error;

    if (error->sqlstate[0] != '\0')
        return -EIO;
    copy_field(error->sqlstate, sizeof(error->sqlstate), result, PG_DIAG_SQLSTATE);
    copy_field(error->severity, sizeof(error->severity), result,
               PG_DIAG_SEVERITY_NONLOCALIZED);
    copy_field(error->message, sizeof(error->message), result, PG_DIAG_MESSAGE_PRIMARY);
    copy_field(error->detail, sizeof(error->detail), result, PG_DIAG_MESSAGE_DETAIL);
    copy_field(error->hint, sizeof(error->hint), result, PG_DIAG_MESSAGE_HINT);

    const char *position = PQresultErrorField(result, PG_DIAG_STATEMENT_POSITION);
    error->position = position != NULL ? strtol(position, NULL, 10) : 0;
    if (error->message[0] == '\0') /* libpq's own, without fields */
        err_copy_line(error->message, sizeof(error->message),
                      PQresultErrorMessage(result));
    if (error->sqlstate[0] == '\0')
        return lost(database, err);
    if (strcmp(error->severity, "FATAL") == 0 || strcmp(error->severity, "PANIC") == 0)
        err_copy_line(database->last_words, sizeof(database->last_words), error->message);
    return err_set(err, -EIO, "%s", error->message);
}

/* 0 for what a statement of ours may answer. */
static int check_result(struct database *database, const PGresult *result,
                        struct err *err)
{
    /* Not a switch: newer libraries have more of them. */
    const ExecStatusType status = PQresultStatus(result);

    if (status == PGRES_COMMAND_OK || status == PGRES_TUPLES_OK ||
        status == PGRES_SINGLE_TUPLE || status == PGRES_EMPTY_QUERY ||
        status == PGRES_PIPELINE_SYNC)
        return 0;
    if (status == PGRES_PIPELINE_ABORTED) /* the error was an earlier statement's */
        return -EIO;
    if (status == PGRES_NONFATAL_ERROR || status == PGRES_FATAL_ERROR)
        return refused(database, result, err);
    return err_set(err, -EPROTO, "the database gave an answer that nobody asked for");
}

/* Results up to the statement's end; the last good one is kept for the caller. */
static int finish_statement(struct database *database, struct patience *patience,
                            PGresult **ret_result, long *ret_count, struct err *err)
{
    PGresult *kept = NULL;
    long count = 0;
    int code = 0;

    for (;;) {
        PGresult *result = NULL;
        int r = next_result(database, patience, &result, err);
        if (r < 0) {
            PQclear(kept);
            return r;
        }
        if (result == NULL)
            break;
        r = check_result(database, result, err);
        if (r < 0 && r != -EIO) {
            /* A COPY would never end by itself. */
            PQclear(result);
            PQclear(kept);
            database_close(database);
            return r;
        }
        if (r < 0) {
            code = r;
            PQclear(result);
            continue;
        }
        count++;
        PQclear(kept);
        kept = result;
    }

    if (ret_count != NULL)
        *ret_count = count;
    if (code == 0 && ret_result != NULL)
        *ret_result = kept;
    else
        PQclear(kept);
    return code;
}

/* ---- asking ---- */

static int not_connected(struct err *err)
{
    return err_set(err, -ECONNRESET, "there is no connection to the database");
}

static int send_query(struct database *database, const struct database_query *query,
                      struct err *err)
{
    const int sent = query->name != NULL
                         ? PQsendQueryPrepared(database->conn, query->name, query->count,
                                               query->values, query->lengths,
                                               query->formats, query->binary)
                         : PQsendQueryParams(database->conn, query->sql, query->count,
                                             query->types, query->values, query->lengths,
                                             query->formats, query->binary);

    return sent == 0 ? lost(database, err) : 0;
}

/* Prepares it, unless that was done before. */
static int prepare(struct database *database, const struct database_query *query,
                   struct patience *patience, struct err *err)
{
    size_t place;

    for (place = 0; place < ARRAY_SIZE(database->prepared); place++) {
        if (database->prepared[place] == NULL)
            break;
        if (strcmp(database->prepared[place], query->name) == 0)
            return 0;
    }
    assert(place < ARRAY_SIZE(database->prepared));
    if (PQsendPrepare(database->conn, query->name, query->sql, query->count,
                      query->types) == 0)
        return lost(database, err);
    const int r = finish_statement(database, patience, NULL, NULL, err);
    if (r == 0)
        database->prepared[place] = query->name;
    return r;
}

static int begin_query(struct database *database, const struct database_query *query,
                       struct patience *patience, struct err *err)
{
    forget_error(database);
    if (database->conn == NULL)
        return not_connected(err);
    if (query->name != NULL) {
        const int r = prepare(database, query, patience, err);
        if (r < 0)
            return r;
    }
    return send_query(database, query, err);
}

int database_query(struct database *database, const struct database_query *query,
                   uint64_t deadline_usec, PGresult **ret_result, struct err *err)
{
    struct patience patience = {.deadline_usec = deadline_usec};
    const int r = begin_query(database, query, &patience, err);

    return r < 0 ? r : finish_statement(database, &patience, ret_result, NULL, err);
}

int database_run(struct database *database, const char *sql, uint64_t deadline_usec,
                 PGresult **ret_result, struct err *err)
{
    return database_query(database, &(struct database_query){.sql = sql}, deadline_usec,
                          ret_result, err);
}

static int send_pipeline(struct database *database, const struct database_query *queries,
                         size_t count, struct err *err)
{
    if (PQenterPipelineMode(database->conn) == 0)
        return lost(database, err);
    for (size_t i = 0; i < count; i++) {
        int r = send_query(database, &queries[i], err);
        if (r < 0)
            return r;
    }
    if (PQpipelineSync(database->conn) == 0)
        return lost(database, err);
    return 0;
}

int database_pipeline(struct database *database, const struct database_query *queries,
                      size_t count, uint64_t deadline_usec, PGresult **ret_result,
                      struct err *err)
{
    struct patience patience = {.deadline_usec = deadline_usec};
    CLEANUP(database_clear) PGresult *last = NULL;
    CLEANUP(database_clear) PGresult *sync = NULL;
    int code = 0;

    forget_error(database);
    if (database->conn == NULL)
        return not_connected(err);
    int r = send_pipeline(database, queries, count, err);
    if (r < 0)
        return r;

    for (size_t i = 0; i < count; i++) {
        bool wanted = i + 1 == count;
        r = finish_statement(database, &patience, wanted ? &last : NULL, NULL, err);
        if (r < 0 && r != -EIO)
            return r;
        code = MIN(code, r);
    }
    r = next_result(database, &patience, &sync, err);
    if (r < 0)
        return r;
    if (PQexitPipelineMode(database->conn) == 0)
        return lost(database, err);

    if (code == 0 && ret_result != NULL) {
        *ret_result = last;
        last = NULL;
    }
    return code;
}

int database_ask(struct database *database, const struct database_query *query,
                 uint64_t deadline_usec, PGresult **ret_result, struct err *err)
{
    const uint64_t now = clock_usec();
    const uint64_t time_left = deadline_usec > now ? deadline_usec - now : 0;
    char msec[24];
    const char *values[] = {msec};
    static const char set[] = "SELECT pg_catalog.set_config('lock_timeout', $1, true)";
    const struct database_query queries[] = {{.sql = set, .count = 1, .values = values},
                                             *query};

    /* A little before us, so that the connection stands; 0 would be for ever. Without a BEGIN
     * the two are one transaction all the same. */
    (void)snprintf(msec, sizeof(msec), "%d",
                   (int)MIN(time_left / USEC_PER_MSEC * 7 / 8 + 1, (uint64_t)INT_MAX));
    return database_pipeline(database, queries, ARRAY_SIZE(queries), deadline_usec,
                             ret_result, err);
}

int database_each(struct database *database, const struct database_query *query,
                  uint64_t silence_usec, database_row *row, void *argument,
                  struct err *err)
{
    struct patience patience = {.deadline_usec = clock_usec() + silence_usec,
                                .silence_usec = silence_usec};
    int code = 0;
    int r = begin_query(database, query, &patience, err);

    if (r < 0)
        return r;
    if (PQsetSingleRowMode(database->conn) == 0)
        return lost(database, err);

    for (;;) {
        CLEANUP(database_clear) PGresult *result = NULL;
        r = next_result(database, &patience, &result, err);
        if (r < 0)
            return r;
        if (result == NULL)
            return code;
        r = check_result(database, result, err);
        if (r < 0)
            code = r;
        else if (PQresultStatus(result) == PGRES_SINGLE_TUPLE)
            r = row(argument, result);
        if (r < 0 && r != -EIO) {
            database_close(database);
            return r;
        }
    }
}

int database_script(struct database *database, const char *sql, uint64_t deadline_usec,
                    struct err *err)
{
    struct patience patience = {.deadline_usec = deadline_usec};
    long done = 0;

    forget_error(database);
    if (database->conn == NULL)
        return not_connected(err);
    if (PQsendQuery(database->conn, sql) == 0)
        return lost(database, err);
    int r = finish_statement(database, &patience, NULL, &done, err);
    database->error.statement = done;
    return r;
}

void database_quote(struct database *database, const char *name, size_t len,
                    struct buf *ret_sql)
{
    char *quoted = PQescapeIdentifier(database->conn, name, len);

    if (quoted == NULL || buf_add_text(ret_sql, quoted) < 0)
        ret_sql->failed = true;
    PQfreemem(quoted);
}

bool database_in_transaction(const struct database *database)
{
    return database->conn != NULL &&
           PQtransactionStatus(database->conn) == PQTRANS_INTRANS;
}

/* ---- connecting ---- */

static int poll_connection(struct database *database, uint64_t deadline, struct err *err)
{
    PostgresPollingStatusType status = PGRES_POLLING_WRITING;
    char words[300];

    while (PQstatus(database->conn) != CONNECTION_BAD && status != PGRES_POLLING_OK &&
           status != PGRES_POLLING_FAILED) {
        /* The socket is another one after a change of address or of encryption. */
        short events = status == PGRES_POLLING_READING ? POLLIN : POLLOUT;
        int ready = clock_usec() >= deadline
                        ? -ETIMEDOUT
                        : await(database, events, -1, deadline, TICK_USEC);
        if (ready == -ETIMEDOUT)
            return err_set(err, ready, "no answer in time");
        if (ready == -ECANCELED)
            return err_set(err, ready, "stopped");
        if (ready < 0)
            return err_set(err, ready, "%s", strerror(-ready));
        status = PQconnectPoll(database->conn);
    }
    if (status == PGRES_POLLING_OK)
        return 0;
    err_copy_line(words, sizeof(words), PQerrorMessage(database->conn));
    return err_set(err, -ECONNRESET, "%s", words);
}

static void note_place(struct database *database)
{
    const char *host = PQhost(database->conn);
    const char *port = PQport(database->conn);
    bool bare = host[0] == '/' || strchr(host, ':') == NULL; /* no [v6] */

    (void)snprintf(database->place, sizeof(database->place), "%s%s%s%s%s",
                   bare ? "" : "[", host, bare ? "" : "]",
                   host[0] == '/' ? " port " : ":", port);
}

static int connect_host(struct database *database, const struct dsn *dsn, size_t attempt,
                        uint64_t deadline, struct err *err)
{
    forget_error(database);
    database->conn = dsn_start(dsn, attempt);
    if (database->conn == NULL)
        return err_set(err, -ENOMEM, "no memory for a connection");
    PQsetNoticeReceiver(database->conn, on_notice, database);

    int r = poll_connection(database, deadline, err);
    if (r == 0 && PQsetnonblocking(database->conn, 1) != 0)
        r = err_set(err, -ENOMEM, "no memory for a connection");
    if (r < 0) {
        database_close(database);
        return r;
    }
    note_place(database);
    return 0;
}

static void free_dsn(struct dsn **dsn)
{
    dsn_free(*dsn);
}

int database_connect(struct database *database, uint64_t deadline_usec, struct err *err)
{
    CLEANUP(free_dsn) struct dsn *dsn = NULL;
    CLEANUP(buf_done) struct buf reasons = BUF_EMPTY;

    database_close(database);
    int r = dsn_resolve(&database->settings, &dsn, err);
    if (r < 0)
        return r;

    size_t attempts = dsn_attempts(dsn);
    for (size_t i = 0; i < attempts; i++) {
        struct err reason;
        uint64_t now = clock_usec();
        uint64_t time_left = deadline_usec > now ? deadline_usec - now : 0;

        r = connect_host(database, dsn, i, now + time_left / (attempts - i), &reason);
        if (r == 0)
            return 0;
        if (r == -ETIMEDOUT && dsn_host(dsn, i) != NULL)
            r = err_prefix(&reason, r, "%s", dsn_host(dsn, i));
        (void)buf_add_format(&reasons, "%s%s", i > 0 ? "; " : "", reason.text);
        if (r == -ECANCELED || r == -ENOMEM)
            break;
    }
    return err_set(err, r, "could not connect to the database: %s",
                   reasons.data != NULL ? reasons.data : "no memory");
}
