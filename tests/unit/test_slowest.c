/* test_slowest.c - GET /streams: the slowest streams of all shards. */
#include "slowest.h"

#include <limits.h>

#include "front.h"

static void from(const char *text, bool near)
{
    struct sockaddr_storage address = {.ss_family = AF_INET6};
    struct sockaddr_in *in = (struct sockaddr_in *)&address;
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&address;

    if (inet_pton(AF_INET6, text, &in6->sin6_addr) != 1) {
        address.ss_family = AF_INET;
        assert_int_equal(inet_pton(AF_INET, text, &in->sin_addr), 1);
    }
    if (slowest_is_near(&address) != near)
        fail_msg("%s", text);
}

static void only_this_machine_is_near(void **state)
{
    (void)state;
    from("127.0.0.1", true);
    from("127.255.255.254", true);
    from("::1", true);
    from("::ffff:127.0.0.1", true);
    from("126.255.255.255", false);
    from("128.0.0.1", false);
    from("10.0.0.1", false);
    from("192.0.2.1", false);
    from("0.0.0.0", false);
    from("1.0.0.127", false);
    from("::", false);
    from("::2", false);
    from("::127.0.0.1", false);
    from("::ffff:192.0.2.1", false);
    from("2001:db8::1", false);
    from("fe80::1", false);
    assert_true(slowest_is_near(&(struct sockaddr_storage){.ss_family = AF_UNIX}));
    assert_false(slowest_is_near(&(struct sockaddr_storage){.ss_family = AF_UNSPEC}));
    assert_false(slowest_is_near(&(struct sockaddr_storage){.ss_family = AF_PACKET}));
}

/* What GET /streams says, its header included; the caller frees it. */
static char *ask(const struct front *front, const char *target)
{
    struct client client;
    char request[128];
    const int len = snprintf(request, sizeof(request), "GET %s HTTP/1.0\r\n\r\n", target);

    client_dial(&client, front, 0);
    client_say(&client, request, (size_t)len);
    client_read_all(&client);
    (void)buf_add_text(&client.raw, "");
    char *text = buf_steal(&client.raw);
    assert_non_null(text);
    client_hang_up(&client);
    return text;
}

static size_t count_of(const char *text, const char *part)
{
    size_t count = 0;

    for (const char *at = text; (at = strstr(at, part)) != NULL; at++)
        count++;
    return count;
}

#define CLIENTS 24

/* Twelve that take nothing, each a little slower than the one before, and twelve idle ones. */
static void the_slowest_of_all_shards_come_first(void **state)
{
    static char big[100000];
    struct front front;
    struct client clients[CLIENTS];

    (void)state;
    memset(big, 'x', sizeof(big) - 1);
    front_open(&front, &(struct front_settings){.shards = 3});
    for (int i = 0; i < CLIENTS; i++)
        client_subscribe(&clients[i], &front, 4096,
                         i % 2 == 0
                             ? "GET /events?channel=slow HTTP/1.1\r\nHost: a\r\n\r\n"
                             : "GET /events?channel=idle HTTP/1.1\r\nHost: a\r\n\r\n");
    for (int i = 0; i < 40; i++)
        front_publish(&front, "slow", big, NULL);
    FRONT_WAIT_FOR(stats_gauge_value(front.stats, STATS_STREAMS_BEHIND) == CLIENTS / 2);
    FRONT_WAIT_FOR(stats_gauge_value(front.stats, STATS_STREAMS_LAG_MAX) > 0);

    char *text = ask(&front, "/streams?limit=12");
    assert_non_null(strstr(text, "\"total\":24}"));
    assert_int_equal(count_of(text, "\"address\":\"127.0.0.1:"), 12);
    assert_int_equal(count_of(text, "\"channels\":[\"slow\"]"), 12);
    assert_int_equal(count_of(text, "\"state\":\"behind\""), 12);
    unsigned long before = ULONG_MAX;
    for (const char *at = text; (at = strstr(at, "\"events_behind\":")) != NULL; at++) {
        const unsigned long behind = strtoul(at + 16, NULL, 10);

        assert_uint_in_range(behind, 1, MIN(before, 40));
        before = behind;
    }
    free(text);
    text = ask(&front, "/streams?limit=1000");
    assert_int_equal(count_of(text, "\"address\":"), CLIENTS);
    free(text);
    for (int i = 0; i < CLIENTS; i++)
        client_hang_up(&clients[i]);
    FRONT_WAIT_FOR(stats_gauge_value(front.stats, STATS_STREAMS_LAG_MAX) == 0);
    front_close(&front);
}

/* The letter may be anywhere when the shards are told to stop: nobody who asks is left asleep,
 * which libmicrohttpd would not survive. */
static void who_asks_at_the_end_is_answered_or_let_go(void **state)
{
    static const char request[] = "GET /streams HTTP/1.1\r\nHost: a\r\n\r\n";
    unsigned answered = 0;

    (void)state;
    for (int round = 0; round < 50; round++) {
        struct front front;
        struct client clients[CLIENTS];

        front_open(&front, &(struct front_settings){.shards = 4});
        for (int i = 0; i < CLIENTS; i++) {
            client_dial(&clients[i], &front, 0);
            client_say(&clients[i], request, sizeof(request) - 1);
        }
        for (int i = 0; i < round % CLIENTS; i++) /* at different moments */
            assert_true(client_take(&clients[i], SIZE_MAX, 10000));
        front_close(&front);
        for (int i = 0; i < CLIENTS; i++) {
            client_read_all(&clients[i]);
            answered += clients[i].raw.len > 0;
            if (clients[i].raw.len > 0 &&
                strncmp(clients[i].raw.data, "HTTP/1.1 200 ", 13) != 0 &&
                strncmp(clients[i].raw.data, "HTTP/1.1 503 ", 13) != 0)
                fail_msg("%s", clients[i].raw.data);
            client_hang_up(&clients[i]);
        }
    }
    assert_true(answered > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_this_machine_is_near),
        cmocka_unit_test(the_slowest_of_all_shards_come_first),
        cmocka_unit_test(who_asks_at_the_end_is_answered_or_let_go),
    };
    return cmocka_run_group_tests_name("slowest", tests, NULL, NULL);
}
