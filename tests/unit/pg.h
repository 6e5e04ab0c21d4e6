/*
 * pg.h - a real PostgreSQL for unit tests: a database of one's own, and a proxy in front of
 * it that can freeze, lose an answer, or break.
 *
 * PGSSE_TEST_DSN says where the server is; without it a test fails and says so.
 */
#ifndef PG_H
#define PG_H

#include <errno.h>
#include <libpq-fe.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "cmocka_all.h"

#include "base.h"
#include "clock.h"
#include "database.h"
#include "migrate.h"

#define PG_UNUSED __attribute__((unused))

struct pg {
    char name[64];  /* of the database */
    char dsn[1024]; /* to it */
    char host[256]; /* where the server is; a socket's folder or an address */
    char port[16];
    char base[512]; /* everything but host, port and database */
    PGconn *admin;  /* to PGSSE_TEST_DSN itself */
    PGconn *conn;   /* to the new database */
};

PG_UNUSED static void pg_fail(PGconn *conn, const char *sql)
{
    fail_msg("%s: %s", sql, PQerrorMessage(conn));
}

PG_UNUSED static void pg_run(PGconn *conn, const char *sql)
{
    PGresult *result = PQexec(conn, sql);
    ExecStatusType status = PQresultStatus(result);

    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
        pg_fail(conn, sql);
    PQclear(result);
}

/* The one value of the answer, as a number. */
PG_UNUSED static long long pg_number(PGconn *conn, const char *sql)
{
    PGresult *result = PQexec(conn, sql);

    if (PQresultStatus(result) != PGRES_TUPLES_OK)
        pg_fail(conn, sql);
    long long number =
        PQntuples(result) > 0 ? strtoll(PQgetvalue(result, 0, 0), NULL, 10) : -1;
    PQclear(result);
    return number;
}

PG_UNUSED static PGconn *pg_connect(const char *dsn)
{
    PGconn *conn = PQconnectdb(dsn);

    if (PQstatus(conn) != CONNECTION_OK)
        pg_fail(conn, "connecting");
    return conn;
}

PG_UNUSED static const char *pg_migrations(void)
{
    const char *dir = getenv("PGSSE_MIGRATIONS");

    return dir != NULL ? dir : "migrations";
}

/* With the schema, in which each life begins with the next block of numbers, and not, as
 * otherwise, with one farther on. */
PG_UNUSED static void pg_migrate(const struct pg *pg)
{
    struct migrate_settings settings = {
        .dsn = pg->dsn, .dir = pg_migrations(), .stop_fd = -1};
    struct err err = {0};

    if (migrate_up(&settings, NULL, &err) < 0)
        fail_msg("migrate_up: %s", err.text);
    PGconn *conn = pg_connect(pg->dsn);
    pg_run(conn, "CREATE OR REPLACE FUNCTION gateway.leap_ahead() RETURNS void "
                 "LANGUAGE sql AS 'SELECT'");
    PQfinish(conn);
}

/* A database of the test's own; with the schema if wanted. */
PG_UNUSED static void pg_open(struct pg *pg, bool migrated)
{
    static int count;
    const char *dsn = getenv("PGSSE_TEST_DSN");
    char sql[160];

    if (dsn == NULL || dsn[0] == '\0')
        fail_msg("PGSSE_TEST_DSN is not set: this test needs a PostgreSQL; `make unit` "
                 "starts one");
    memset(pg, 0, sizeof(*pg));
    pg->admin = pg_connect(dsn);
    pg_run(pg->admin, "SET client_min_messages = warning");
    snprintf(pg->name, sizeof(pg->name), "pgsse_unit_%d_%d", (int)getpid(), ++count);
    snprintf(sql, sizeof(sql), "CREATE DATABASE %s TEMPLATE template0 ENCODING 'UTF8'",
             pg->name);
    pg_run(pg->admin, sql);

    PQconninfoOption *options = PQconninfo(pg->admin);
    for (PQconninfoOption *option = options; option->keyword != NULL; option++)
        if (option->val != NULL && (strcmp(option->keyword, "user") == 0 ||
                                    strcmp(option->keyword, "password") == 0)) {
            size_t len = strlen(pg->base);
            snprintf(pg->base + len, sizeof(pg->base) - len, "%s='%s' ", option->keyword,
                     option->val);
        }
    PQconninfoFree(options);
    snprintf(pg->host, sizeof(pg->host), "%s", PQhost(pg->admin));
    snprintf(pg->port, sizeof(pg->port), "%s", PQport(pg->admin));
    snprintf(pg->dsn, sizeof(pg->dsn), "%shost='%s' port='%s' dbname='%s'", pg->base,
             pg->host, pg->port, pg->name);
    if (migrated)
        pg_migrate(pg);
    pg->conn = pg_connect(pg->dsn);
    pg_run(pg->conn, "SET client_min_messages = warning");
}

PG_UNUSED static void pg_close(struct pg *pg)
{
    char sql[160];

    PQfinish(pg->conn);
    snprintf(sql, sizeof(sql), "DROP DATABASE IF EXISTS %s WITH (FORCE)", pg->name);
    pg_run(pg->admin, sql);
    PQfinish(pg->admin);
}

/* A connection of the gateway's kind; the test's to free. */
PG_UNUSED static struct database *pg_database(const struct pg *pg)
{
    struct database *database = database_new(&(struct database_settings){
        .dsn = pg->dsn, .door = "test", .target = "any", .stop_fd = -1});
    struct err err = {0};

    assert_non_null(database);
    if (database_connect(database, clock_usec() + 10 * USEC_PER_SEC, &err) < 0)
        fail_msg("%s", err.text);
    return database;
}

/* Ends the sessions of that door ("listener"); returns how many there were. */
PG_UNUSED static long long pg_kill(const struct pg *pg, const char *door)
{
    char sql[300];

    snprintf(sql, sizeof(sql),
             "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "
             "datname = '%s' AND application_name = 'pg-sse-gateway/%s'",
             pg->name, door);
    return pg_number(pg->admin, sql);
}

/* WAIT_FOR(condition): looks until it holds; fails after a minute. */
#define WAIT_FOR(condition)                                                              \
    do {                                                                                 \
        uint64_t wait_end_usec = clock_usec() + 60 * USEC_PER_SEC;                       \
        while (!(condition)) {                                                           \
            if (clock_usec() > wait_end_usec)                                            \
                fail_msg("waited in vain for: %s", #condition);                          \
            usleep(2000);                                                                \
        }                                                                                \
    } while (0)

/* ---- the proxy ---- */

enum proxy_mode {
    PROXY_PASS,
    PROXY_FREEZE,        /* takes connections, forwards nothing */
    PROXY_TRICKLE,       /* never stops, never gets anywhere */
    PROXY_SWALLOW,       /* once COMMIT has passed: its answer is lost, then PASS again */
    PROXY_CUT_AT_COMMIT, /* once COMMIT is seen: it is not passed on, the line is cut */
    PROXY_STALL_COMMIT,  /* once COMMIT is seen: it is not passed on, the server's side
                            stays open and hears nothing more */
};

#define PROXY_PAIRS 32

struct proxy {
    int listen_fd;
    int stop_fd;
    int port;
    char dsn[1024]; /* through the proxy */
    struct pg *pg;
    pthread_t thread;
    _Atomic int mode;
    _Atomic unsigned rounds;
    _Atomic int hits; /* how often a COMMIT was dealt with */
    struct {
        int client, server; /* -1: closed */
        bool deaf; /* what the server says is thrown away, then the client is cut */
    } pairs[PROXY_PAIRS];
};

/* Returns when all that goes on is done in that mode: a round has begun since. */
PG_UNUSED static void proxy_set(struct proxy *proxy, enum proxy_mode mode)
{
    atomic_store_explicit(&proxy->mode, (int)mode, memory_order_seq_cst);
    const unsigned round = atomic_load_explicit(&proxy->rounds, memory_order_seq_cst);
    WAIT_FOR(atomic_load_explicit(&proxy->rounds, memory_order_seq_cst) != round);
}

PG_UNUSED static int proxy_mode(struct proxy *proxy)
{
    return atomic_load_explicit(&proxy->mode, memory_order_seq_cst);
}

PG_UNUSED static int proxy_hits(struct proxy *proxy)
{
    return atomic_load_explicit(&proxy->hits, memory_order_acquire);
}

PG_UNUSED static int proxy_dial(const struct pg *pg)
{
    if (pg->host[0] == '/') {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        snprintf(address.sun_path, sizeof(address.sun_path), "%.80s/.s.PGSQL.%.10s",
                 pg->host, pg->port);
        if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
            return fd;
        close(fd);
        return -1;
    }
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)strtol(pg->port, NULL, 10)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    close(fd);
    return -1;
}

PG_UNUSED static void proxy_cut(struct proxy *proxy, int i)
{
    close(proxy->pairs[i].client);
    if (proxy->pairs[i].server >= 0)
        close(proxy->pairs[i].server);
    proxy->pairs[i].client = proxy->pairs[i].server = -1;
}

PG_UNUSED static void proxy_accept(struct proxy *proxy)
{
    int client = accept4(proxy->listen_fd, NULL, NULL, SOCK_CLOEXEC);

    for (int i = 0; i < PROXY_PAIRS && client >= 0; i++)
        if (proxy->pairs[i].client < 0 && proxy->pairs[i].server < 0) {
            proxy->pairs[i].client = client;
            proxy->pairs[i].server = proxy_dial(proxy->pg);
            proxy->pairs[i].deaf = false;
            return;
        }
    if (client >= 0)
        close(client);
}

PG_UNUSED static void proxy_forward(struct proxy *proxy, int i, bool to_server)
{
    static char bytes[65536];
    int from = to_server ? proxy->pairs[i].client : proxy->pairs[i].server;
    int to = to_server ? proxy->pairs[i].server : proxy->pairs[i].client;
    bool trickle = proxy_mode(proxy) == PROXY_TRICKLE;
    ssize_t len = recv(from, bytes, trickle ? 64 : sizeof(bytes), 0);

    if (trickle)
        usleep(1000);

    if (len <= 0) {
        proxy_cut(proxy, i);
        return;
    }
    if (!to_server && proxy->pairs[i].deaf) {
        proxy_cut(proxy, i); /* the answer was on its way when the line broke */
        return;
    }
    if (to_server && memmem(bytes, (size_t)len, "COMMIT", 7) != NULL) {
        int mode = proxy_mode(proxy);
        if (mode == PROXY_CUT_AT_COMMIT || mode == PROXY_SWALLOW ||
            mode == PROXY_STALL_COMMIT) {
            atomic_store_explicit(&proxy->mode, PROXY_PASS, memory_order_seq_cst);
            atomic_fetch_add_explicit(&proxy->hits, 1, memory_order_acq_rel);
        }
        if (mode == PROXY_SWALLOW)
            proxy->pairs[i].deaf = true;
        if (mode == PROXY_CUT_AT_COMMIT) {
            proxy_cut(proxy, i);
            return;
        }
        if (mode == PROXY_STALL_COMMIT) {
            close(proxy->pairs[i].client);
            proxy->pairs[i].client = -1;
            return;
        }
    }
    for (ssize_t sent = 0, n; sent < len; sent += n)
        if ((n = send(to, bytes + sent, (size_t)(len - sent), MSG_NOSIGNAL)) <= 0) {
            proxy_cut(proxy, i);
            return;
        }
}

PG_UNUSED static void *proxy_run(void *argument)
{
    struct proxy *proxy = argument;

    for (;;) {
        struct pollfd set[2 + 2 * PROXY_PAIRS];
        atomic_fetch_add_explicit(&proxy->rounds, 1, memory_order_seq_cst);
        bool frozen = proxy_mode(proxy) == PROXY_FREEZE;
        set[0] = (struct pollfd){.fd = proxy->stop_fd, .events = POLLIN};
        set[1] = (struct pollfd){.fd = proxy->listen_fd, .events = POLLIN};
        for (int i = 0; i < PROXY_PAIRS; i++) {
            bool whole = proxy->pairs[i].client >= 0;
            set[2 + 2 * i].fd = frozen || !whole ? -1 : proxy->pairs[i].client;
            set[3 + 2 * i].fd = frozen || !whole ? -1 : proxy->pairs[i].server;
            set[2 + 2 * i].events = set[3 + 2 * i].events = POLLIN;
        }
        if (poll(set, ARRAY_SIZE(set), 20) <= 0)
            continue;
        if (set[0].revents != 0)
            break;
        for (int i = 0; i < PROXY_PAIRS; i++) {
            if (set[2 + 2 * i].fd >= 0 && set[2 + 2 * i].revents != 0)
                proxy_forward(proxy, i, true);
            else if (set[3 + 2 * i].fd >= 0 && set[3 + 2 * i].revents != 0)
                proxy_forward(proxy, i, false);
        }
        if (set[1].revents != 0)
            proxy_accept(proxy);
    }
    return NULL;
}

PG_UNUSED static void proxy_open(struct proxy *proxy, struct pg *pg)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(address);

    memset(proxy, 0, sizeof(*proxy));
    for (int i = 0; i < PROXY_PAIRS; i++)
        proxy->pairs[i].client = proxy->pairs[i].server = -1;
    proxy->pg = pg;
    proxy->stop_fd = eventfd(0, EFD_CLOEXEC);
    proxy->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(proxy->listen_fd, (struct sockaddr *)&address, len), 0);
    assert_int_equal(listen(proxy->listen_fd, 16), 0);
    assert_int_equal(getsockname(proxy->listen_fd, (struct sockaddr *)&address, &len), 0);
    proxy->port = ntohs(address.sin_port);
    snprintf(proxy->dsn, sizeof(proxy->dsn),
             "%shost=127.0.0.1 port=%d dbname='%s' sslmode=disable gssencmode=disable",
             pg->base, proxy->port, pg->name);
    assert_int_equal(pthread_create(&proxy->thread, NULL, proxy_run, proxy), 0);
}

PG_UNUSED static void proxy_close(struct proxy *proxy)
{
    uint64_t one = 1;

    assert_int_equal(write(proxy->stop_fd, &one, sizeof(one)), sizeof(one));
    pthread_join(proxy->thread, NULL);
    for (int i = 0; i < PROXY_PAIRS; i++) {
        if (proxy->pairs[i].client >= 0)
            close(proxy->pairs[i].client);
        if (proxy->pairs[i].server >= 0)
            close(proxy->pairs[i].server);
    }
    close(proxy->listen_fd);
    close(proxy->stop_fd);
}

#endif
