/* test_porch.c - who knocks is let in, and not forgotten when the house is closed. */
#include "porch.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_was_accepted_before_a_drain_is_answered),
        cmocka_unit_test(nobody_is_gone_before_everybody_has_been_asked_to_go),
    };
    return cmocka_run_group_tests_name("porch", tests, NULL, NULL);
}
