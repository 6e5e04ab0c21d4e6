/* test_catchup_many.c - many who come back at once, and everything at once. */
#include "catchup_world.h"

#include <malloc.h>

/* -- many -- */

static void many_who_come_back_at_once_share_a_handful_of_queries(void **state)
{
    enum { CLIENTS = 2000, EVENTS = 4000 };
    struct world *world = *state;
    struct client *clients = calloc(CLIENTS, sizeof(*clients));
    CLEANUP(buf_done) struct buf all = BUF_EMPTY;
    size_t *starts = calloc(EVENTS + 1, sizeof(*starts));
    PGconn *locker = pg_connect(world->pg.dsn);

    assert_non_null(clients);
    assert_non_null(starts);
    pg_run(world->pg.conn,
           "SELECT gateway.publish_batch(array_agg(text 'events'), "
           "array_agg(text 'message'), array_agg(to_json(i)::text ORDER BY i)) "
           "FROM generate_series(1, 4000) i");
    want(world, "true", &all);
    for (size_t seq = 1, at = 0; seq <= EVENTS; seq++) {
        starts[seq] = at; /* of event seq + 1 */
        at = (size_t)(strstr(all.data + at, "\n\n") + 2 - all.data);
        starts[seq] = at;
    }
    open_front(world, (struct front_settings){
                          .seq = EVENTS, .shards = 2, .connections_max = CLIENTS + 10});
    pg_run(locker, "BEGIN; LOCK TABLE gateway.purges");
    const size_t before = mallinfo2().uordblks;
    for (int i = 0; i < CLIENTS; i++) {
        char request[200];

        (void)snprintf(request, sizeof(request),
                       "GET /events%s HTTP/1.1\r\nHost: x\r\nLast-Event-ID: %d\r\n\r\n",
                       i % 2 == 0 ? "" : "?channel=events&channel=other",
                       EVENTS / 2 + i * 7 % (EVENTS / 2) + 1);
        client_subscribe(&clients[i], &world->front, 0, request);
    }
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_REPLAYING) == CLIENTS - 1);
    pg_run(locker, "COMMIT");
    PQfinish(locker);
    FRONT_WAIT_FOR(gauge(world, STATS_STREAMS_BEHIND) == 0);
    const size_t after = mallinfo2().uordblks;
    for (int i = 0; i < CLIENTS; i++) {
        const int id = EVENTS / 2 + i * 7 % (EVENTS / 2) + 1;
        const struct buf wanted = {.data = all.data + starts[id],
                                   .len = all.len - starts[id]};

        client_expect(&clients[i], &wanted);
        client_hang_up(&clients[i]);
    }
    const uint64_t pages = counter(world, STATS_REPLAY_PAGES);
    print_message("%d came back by %llu pages; %zu bytes each\n", CLIENTS,
                  (unsigned long long)pages, (after - MIN(after, before)) / CLIENTS);
    /* Some twenty; more if the shards are slower than the database. Each for itself would
     * have cost two or more. */
    assert_uint_in_range(pages, 4, CLIENTS / 4);
    nobody_is_left(world);
    front_close(&world->front);
    free(clients);
    free(starts);
}

/* In each state: asked and not answered, answered and not sent, half sent. Nothing leaks, and
 * nobody is called who is gone. */
static void all_ends_while_replays_run(void **state)
{
    enum { CLIENTS = 40 };
    struct world *world = *state;
    struct client clients[CLIENTS];

    commit_many(world, 3000, 3000);
    for (int turn = 0; turn < 6; turn++) {
        open_front(world, (struct front_settings){.seq = 3000, .shards = 2});
        for (int i = 0; i < CLIENTS; i++) {
            char request[200];

            (void)snprintf(request, sizeof(request),
                           "GET /events?channel=%s HTTP/1.1\r\nHost: x\r\n"
                           "Last-Event-ID: %d\r\n\r\n",
                           i % 2 == 0 ? "events" : "orders.*", i * 70 + 1);
            client_subscribe(&clients[i], &world->front, SMALL_RCVBUF, request);
            if (i % 3 == 0)
                client_hang_up(&clients[i]);
        }
        if (turn % 2 == 0)
            usleep(20000 * (unsigned)turn);
        if (turn % 3 == 0)
            shards_drain(world->front.shards, 20000);
        front_close(&world->front);
        for (int i = 0; i < CLIENTS; i++)
            client_hang_up(&clients[i]);
    }
}

/* -- everything at once -- */

struct walker {
    struct client client;
    bool connected;
    int kind;
    uint64_t last_id;
    size_t next; /* of its own events: the one that is to come */
};

static const struct {
    const char *query, *condition;
} walks[] = {
    {"channel=events", "channel = 'events'"},
    {"channel=orders.*", "channel LIKE 'orders.%'"},
    {"channel=events&channel=orders.old", "channel IN ('events', 'orders.old')"},
    {"channel=*&type=a", "type = 'a'"},
};

struct own_events {
    uint64_t *seqs;
    size_t count;
};

static void load_own(struct world *world, struct own_events *own, const char *condition)
{
    char sql[300];

    (void)snprintf(sql, sizeof(sql),
                   "SELECT seq FROM gateway.events WHERE seq > %llu AND %s ORDER BY seq",
                   (unsigned long long)(own->count > 0 ? own->seqs[own->count - 1] : 1),
                   condition);
    PGresult *result = PQexec(world->pg.conn, sql);
    assert_int_equal(PQresultStatus(result), PGRES_TUPLES_OK);
    const size_t more = (size_t)PQntuples(result);
    own->seqs = realloc(own->seqs, (own->count + more + 1) * sizeof(*own->seqs));
    assert_non_null(own->seqs);
    for (size_t i = 0; i < more; i++)
        own->seqs[own->count + i] = strtoull(PQgetvalue(result, (int)i, 0), NULL, 10);
    own->count += more;
    PQclear(result);
}

/* Takes what came whole: each of its own events, the next one always, and no other. */
static void digest(struct walker *walker, const struct own_events *own)
{
    struct client *client = &walker->client;

    client_look(client);
    if (client->body.len == 0)
        return;
    const char *at = client->body.data + 1; /* behind the first heartbeat's colon */
    for (const char *end; (end = strstr(at, "\n\n")) != NULL; at = end + 2) {
        const char *id = strstr(at, "\nid: ");

        if (strncmp(at, "id: ", 4) == 0)
            id = at - 1;
        if (id == NULL || id > end)
            fail_msg("a frame without an id: %.100s", at);
        const uint64_t seq = strtoull(id + 5, NULL, 10);
        const char *event = strstr(at, "\nevent: ");
        if (event != NULL && event < end && strncmp(event + 8, "gap", 3) == 0)
            fail_msg("a gap: %.200s", at);
        if (event == NULL || event > end || strncmp(event + 8, "checkpoint", 10) != 0) {
            if (walker->next >= own->count || own->seqs[walker->next] != seq)
                fail_msg("%s got %llu instead of %llu", walks[walker->kind].query,
                         (unsigned long long)seq,
                         (unsigned long long)(walker->next < own->count
                                                  ? own->seqs[walker->next]
                                                  : 0));
            walker->next++;
        }
        walker->last_id = seq;
    }
    /* What is not whole yet begins the next time; the first bytes are gone. */
    const size_t left = (size_t)(client->body.data + client->body.len - at);
    memmove(client->body.data + 1, at, left);
    client->body.len = left + 1;
    client->body.data[client->body.len] = '\0';
}

static void walk_connect(struct world *world, struct walker *walker, unsigned dice)
{
    char request[200];

    (void)snprintf(request, sizeof(request),
                   "GET /events?%s HTTP/1.%d\r\nHost: x\r\nLast-Event-ID: %llu\r\n\r\n",
                   walks[walker->kind].query, dice % 4 > 0,
                   (unsigned long long)walker->last_id);
    client_subscribe(&walker->client, &world->front, dice % 2 == 0 ? SMALL_RCVBUF : 0,
                     request);
    walker->connected = true;
}

static void walk_disconnect(struct walker *walker)
{
    client_hang_up(&walker->client);
    walker->connected = false;
}

/* All that it has yet to get. */
static void walk_to_the_end(struct world *world, struct walker *walker,
                            struct own_events *own)
{
    const uint64_t end = clock_usec() + FRONT_PATIENCE_USEC;

    if (!walker->connected)
        walk_connect(world, walker, 1);
    load_own(world, own, walks[walker->kind].condition);
    while (walker->next < own->count) {
        if (clock_usec() > end || walker->client.eof)
            fail_msg("%s has %zu of %zu", walks[walker->kind].query, walker->next,
                     own->count);
        (void)client_take(&walker->client, SIZE_MAX, 100);
        digest(walker, own);
    }
    walk_disconnect(walker);
}

/* A ring that is small, readers that are slow, leave and come back, a table that begins new
 * lives, a ring that begins anew without one, connections that are killed. */
static void walks_lose_and_double_nothing(void **state)
{
    enum { WALKERS = 16, STEPS = 200 };
    struct world *world = *state;
    struct walker walkers[WALKERS] = {{.connected = false}};
    struct own_events own[ARRAY_SIZE(walks)] = {{0}};
    unsigned seed = 42;
    const char *given = getenv("PGSSE_TEST_SEED");

    if (given != NULL)
        seed = (unsigned)strtoul(given, NULL, 10);
    commit_bytes(world, "none", 10, NULL);
    open_front(world, (struct front_settings){.seq = 1,
                                              .ring_bytes = 200000,
                                              .shards = 2,
                                              .heartbeat_usec = USEC_PER_SEC / 20});
    for (int i = 0; i < WALKERS; i++) {
        walkers[i].kind = i % (int)ARRAY_SIZE(walks);
        walkers[i].last_id = 1;
    }
    for (int step = 0; step < STEPS; step++) {
        struct walker *walker = &walkers[(unsigned)rand_r(&seed) % WALKERS];
        const unsigned dice = (unsigned)rand_r(&seed);

        commit_many(world, 1 + (int)(dice % 20), dice % 50 == 0 ? 100000 : dice % 2000);
        for (size_t i = 0; i < ARRAY_SIZE(walks); i++)
            load_own(world, &own[i], walks[i].condition);
        if (dice % 101 == 0)
            begin_new_life(world);
        if (dice % 101 == 0 || dice % 67 == 0)
            restart_ring(world);
        else if (dice % 5 > 0) /* the table may be ahead */
            ring_follows(world);
        if (dice % 43 == 0)
            pg_kill(&world->pg, "reader");
        if (!walker->connected)
            walk_connect(world, walker, dice / 7);
        else if (dice % 3 == 0)
            walk_disconnect(walker);
        for (int i = 0; i < WALKERS; i++) {
            /* Half of them are slow. */
            const size_t sip = i % 8 < 4 ? 100 + dice % 20000 : SIZE_MAX;

            if (walkers[i].connected && client_take(&walkers[i].client, sip, 0))
                digest(&walkers[i], &own[walkers[i].kind]);
        }
    }
    restart_ring(world); /* whatever the ring was not given */
    for (int i = 0; i < WALKERS; i++)
        walk_to_the_end(world, &walkers[i], &own[walkers[i].kind]);
    print_message("overtaken %llu times, %llu pages\n",
                  (unsigned long long)counter(world, STATS_STREAMS_LAGGED),
                  (unsigned long long)counter(world, STATS_REPLAY_PAGES));
    assert_true(counter(world, STATS_STREAMS_LAGGED) > 0);
    assert_true(counter(world, STATS_REPLAY_PAGES) > 50);
    nobody_is_left(world);
    front_close(&world->front);
    for (size_t i = 0; i < ARRAY_SIZE(walks); i++)
        free(own[i].seqs);
}

int main(void)
{
#define WITH_PG(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_PG(many_who_come_back_at_once_share_a_handful_of_queries),
        WITH_PG(all_ends_while_replays_run),
        WITH_PG(walks_lose_and_double_nothing),
    };
    return cmocka_run_group_tests_name("catchup, many", tests, NULL, NULL);
}
