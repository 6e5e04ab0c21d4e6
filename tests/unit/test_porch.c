/* test_porch.c - who knocks is let in, and not forgotten when the house is closed. */
#include "porch.h"

#include <semaphore.h>
#include <sys/resource.h>

/* Thousands are dialled meanwhile. */
#define FRONT_KEEP_ALIVE_USEC (3600 * USEC_PER_SEC)
#include "front.h"

#define CLIENTS 40

/* Those who have not been accepted: they are for the next who listens. */
static unsigned count_backlog(int listen_fd)
{
    unsigned count = 0;
    int fd;

    while ((fd = accept(listen_fd, NULL, NULL)) >= 0) {
        count++;
        (void)close(fd);
    }
    return count;
}

/* A drain that begins at once, without a moment's waiting: who has been accepted, or is on the
 * way from one shard to another, is somebody, and gets an answer. */
static void who_was_accepted_before_a_drain_is_answered(void **state)
{
    static const char request[] = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";

    (void)state;
    for (int round = 0; round < 40; round++) {
        struct front front;
        struct client clients[CLIENTS];
        unsigned answered = 0;

        front_open(&front, &(struct front_settings){.shards = 4});
        for (int i = 0; i < CLIENTS; i++) {
            client_dial(&clients[i], &front, 0);
            client_say(&clients[i], request, sizeof(request) - 1);
        }
        shards_drain(front.shards, 0);
        FRONT_WAIT_FOR(shards_are_empty(front.shards));
        const int listen_fd = dup(front.listen_fd);
        front_close(&front);
        const unsigned waiting = count_backlog(listen_fd);
        (void)close(listen_fd);
        for (int i = 0; i < CLIENTS; i++) {
            client_read_all(&clients[i]);
            answered += clients[i].raw.len > 13 &&
                        strncmp(clients[i].raw.data, "HTTP/1.1 200 ", 13) == 0;
            client_hang_up(&clients[i]);
        }
        if (answered + waiting != CLIENTS)
            fail_msg("%u answered, %u still waiting, of %d", answered, waiting, CLIENTS);
    }
}

static void nobody_is_gone_before_everybody_has_been_asked_to_go(void **state)
{
    struct front front;

    (void)state;
    front_open(&front, &(struct front_settings){.shards = 4});
    assert_false(shards_are_empty(front.shards));
    shards_drain(front.shards, 0);
    FRONT_WAIT_FOR(shards_are_empty(front.shards));
    front_close(&front);
}

/* -- a crowd -- */

#define CROWD 2000

static struct front crowded;
static sem_t busy, may_go_on, looked;
static uint64_t opened = UINT64_MAX; /* streams, when one asked for something else */

static enum MHD_Result answer(void *argument, struct MHD_Connection *mhd, const char *url,
                              const char *method, const char *version, const char *body,
                              size_t *body_len, void **context)
{
    if (strcmp(url, "/stand") == 0) {
        (void)sem_post(&busy);
        (void)sem_wait(&may_go_on);
    } else if (strcmp(url, "/look") == 0 && opened == UINT64_MAX) {
        opened = stats_counter_value(crowded.stats, STATS_STREAMS_OPENED);
        (void)sem_post(&looked);
    }
    return http_answer(argument, mhd, url, method, version, body, body_len, context);
}

static void say(struct client *client, const char *path)
{
    char request[100];
    const int len =
        snprintf(request, sizeof(request), "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path);

    client_say(client, request, (size_t)len);
}

/* The shard stands still while all of them ask for a stream, and then one for something else: it
 * finds them all, and him as the last. */
static void a_request_does_not_wait_behind_a_crowd(void **state)
{
    static struct client crowd[CROWD];
    struct client one, other;
    struct rlimit files;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &files), 0);
    files.rlim_cur = files.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &files), 0);
    (void)sem_init(&busy, 0, 0);
    (void)sem_init(&may_go_on, 0, 0);
    (void)sem_init(&looked, 0, 0);
    front_open(&crowded, &(struct front_settings){.connections_max = CROWD + 10,
                                                  .guests_max = CROWD + 10,
                                                  .header_time_usec = 3600 * USEC_PER_SEC,
                                                  .answer = answer});
    client_dial(&one, &crowded, 0);
    say(&one, "/healthz");
    FRONT_WAIT_FOR(client_take(&one, SIZE_MAX, 0));
    for (int i = 0; i < CROWD; i++)
        client_dial(&crowd[i], &crowded, 0);
    client_dial(&other, &crowded, 0);
    FRONT_WAIT_FOR(stats_counter_value(crowded.stats, STATS_CONNECTIONS_ACCEPTED) ==
                   CROWD + 2);
    say(&other, "/stand");
    FRONT_WAIT_FOR(sem_trywait(&busy) == 0);
    for (int i = 0; i < CROWD; i++)
        say(&crowd[i], "/events");
    say(&one, "/look");
    (void)sem_post(&may_go_on);
    (void)sem_post(&may_go_on); /* libmicrohttpd asks twice */
    FRONT_WAIT_FOR(sem_trywait(&looked) == 0);
    if (opened > CROWD / 2)
        fail_msg("%llu of %d came first", (unsigned long long)opened, CROWD);
    FRONT_WAIT_FOR(stats_counter_value(crowded.stats, STATS_STREAMS_OPENED) == CROWD);
    for (int i = 0; i < CROWD; i++)
        client_hang_up(&crowd[i]);
    client_hang_up(&one);
    client_hang_up(&other);
    front_close(&crowded);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_was_accepted_before_a_drain_is_answered),
        cmocka_unit_test(nobody_is_gone_before_everybody_has_been_asked_to_go),
        cmocka_unit_test(a_request_does_not_wait_behind_a_crowd),
    };
    return cmocka_run_group_tests_name("porch", tests, NULL, NULL);
}
