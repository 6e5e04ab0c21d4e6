/* test_http.c - the front door: what is HTTP enough to be let in, and who answers it. */
#include "http.h"

#include "front.h"

static void unescaped(const char *text, const char *wanted)
{
    char copy[64];

    (void)snprintf(copy, sizeof(copy), "%s", text);
    const size_t len = http_unescape(NULL, NULL, copy);
    assert_string_equal(copy, wanted);
    assert_int_equal(len, strlen(wanted));
}

static void percent_signs_are_decoded_once_and_never_to_nul(void **state)
{
    (void)state;
    unescaped("", "");
    unescaped("abc", "abc");
    unescaped("a%20b", "a b");
    unescaped("%41%4a%4A", "AJJ");
    unescaped("%c3%BC", "\xc3\xbc");
    unescaped("%2541", "%41");
    unescaped("a+b", "a+b");
    unescaped("%00", "\x01");
    unescaped("a%00b", "a\x01"
                       "b");
    unescaped("%", "%");
    unescaped("%4", "%4");
    unescaped("%4g%g4%%41", "%4g%g4%A");
    unescaped("%-1%+1% 1", "%-1%+1% 1");
    unescaped("%0", "%0");
    unescaped("%\x01\x11%1\x10", "%\x01\x11%1\x10"); /* no digits, though near them */
}

/* The status of the answer to those bytes, which must close the connection if so said. */
static int status_of(struct front *front, const char *bytes, size_t len, bool closes)
{
    struct client client;
    const uint64_t end = clock_usec() + FRONT_PATIENCE_USEC;

    client_dial(&client, front, 0);
    client_say(&client, bytes, len);
    if (!closes)
        (void)shutdown(client.fd, SHUT_WR);
    client_read_all(&client);
    assert_true(clock_usec() < end);
    if (client.raw.len < 12 || memcmp(client.raw.data, "HTTP/1.1 ", 9) != 0)
        fail_msg("no answer to: %s", bytes);
    const int status = (int)strtol(client.raw.data + 9, NULL, 10);
    if (status >= 400 && client.body_at > 0)
        assert_non_null(
            memmem(client.raw.data, client.raw.len, "\r\nConnection: close\r\n", 21));
    client_hang_up(&client);
    return status;
}

#define BYTES(literal) (literal), sizeof(literal) - 1

/* Two parties could see two requests in each of these: answered 400, closed, counted. */
static void what_is_unsound_is_refused(void **state)
{
    static const struct {
        const char *bytes;
        size_t len;
    } cases[] = {
        {BYTES("GET /healthz HTTP/1.1\r\n\r\n")},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n")},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n")},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: a\r\nX y: z\r\n\r\n")},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: a\r\nX\x01: z\r\n\r\n")},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length : 0\r\n\r\n")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Transfer-Encoding: identity\r\n\r\n")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Transfer-Encoding: chunked, gzip\r\n\r\n")},
        {BYTES(
            "POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")},
        {BYTES("POST /events HTTP/1.0\r\nContent-Type: application/json\r\n"
               "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Content-Length: +2\r\n\r\n{}")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Content-Length: 0x2\r\n\r\n{}")},
        {BYTES("POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
               "Content-Length: 2, 2\r\n\r\n{}")},
        {BYTES("GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n")},
    };
    struct front front;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const int status = status_of(&front, cases[i].bytes, cases[i].len, true);
        if (status != 400)
            fail_msg("case %zu: %d", i, status);
    }
    front_close(&front);
}

static void each_path_has_its_answer(void **state)
{
    static const struct {
        const char *request;
        int status;
    } cases[] = {
        {"GET /healthz HTTP/1.0\r\n\r\n", 200},
        {"HEAD /healthz HTTP/1.0\r\n\r\n", 200},
        {"GET /readyz HTTP/1.0\r\n\r\n", 503},
        {"GET /metrics HTTP/1.0\r\n\r\n", 200},
        {"GET / HTTP/1.0\r\n\r\n", 200},
        {"GET /nothing HTTP/1.0\r\n\r\n", 404},
        {"GET /events/abc HTTP/1.0\r\n\r\n", 404},
        {"GET /events/0x1 HTTP/1.0\r\n\r\n", 404},
        {"HEAD /events HTTP/1.0\r\n\r\n", 200},
        {"GET /events?channel= HTTP/1.0\r\n\r\n", 400},
        {"GET /events?chanel=x HTTP/1.0\r\n\r\n", 400},
        {"GET /events?channel=a%00b HTTP/1.0\r\n\r\n", 400},
        {"GET /events?channel=%ff HTTP/1.0\r\n\r\n", 400},
        {"GET /events?type=gap HTTP/1.0\r\n\r\n", 400},
        {"DELETE /events HTTP/1.0\r\n\r\n", 405},
        {"POST /healthz HTTP/1.0\r\nContent-Length: 0\r\n\r\n", 405},
        {"OPTIONS /events HTTP/1.0\r\n\r\n", 204},
        {"POST /events HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}", 415},
        {"POST /events HTTP/1.0\r\nContent-Type: application/json\r\n"
         "Content-Length: 2\r\n\r\n{}",
         400},
        {"POST /events HTTP/1.0\r\nContent-Type: application/json\r\n"
         "Content-Length: 10\r\n\r\n{\"data\":1}",
         503}, /* the publisher was never started */
        {"POST /events HTTP/1.0\r\nContent-Type: application/json\r\n"
         "Content-Length: 100001\r\n\r\n",
         413},
        {"POST /events HTTP/1.0\r\nOrigin: https://evil.example\r\n"
         "Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"data\":1}",
         403},
        {"POST /events HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
         "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
         "5\r\n{\"dat\r\n5\r\na\":1}\r\n0\r\n\r\n",
         503},
    };
    struct front front;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct client client;

        client_dial(&client, &front, 0);
        client_say(&client, cases[i].request, strlen(cases[i].request));
        client_read_all(&client);
        const int status =
            client.raw.len > 12 ? (int)strtol(client.raw.data + 9, NULL, 10) : 0;
        if (status != cases[i].status)
            fail_msg("%s: %.*s", cases[i].request, (int)client.raw.len, client.raw.data);
        client_hang_up(&client);
    }
    FRONT_WAIT_FOR(shards_connections(front.shards) == 0);
    front_close(&front);
}

/* Several requests on one connection, the second in the same packet as the first. */
static void a_connection_is_used_again(void **state)
{
    static const char requests[] = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
                                   "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    struct front front;
    struct client client;

    (void)state;
    front_open(&front, &(struct front_settings){0});
    client_dial(&client, &front, 0);
    for (int i = 1; i <= 20; i++) {
        client_say(&client, requests, sizeof(requests) - 1);
        for (int answers = 0; answers < 2 * i;) {
            assert_true(client_take(&client, SIZE_MAX, 10000) && !client.eof);
            answers = 0;
            for (const char *at = client.raw.data;
                 (at = strstr(at, "\r\n\r\nok\n")) != NULL; at++)
                answers++;
        }
    }
    assert_int_equal(shards_connections(front.shards), 1);
    client_hang_up(&client);
    front_close(&front);
}

/* Answered at its end, all of it read: a client that only looks for the answer when it has
 * sent everything sees it. */
static void a_body_without_a_length_has_its_limit(void **state)
{
    static const char head[] = "POST /events HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: "
                               "chunked\r\nContent-Type: application/json\r\n"
                               "Connection: close\r\n\r\n";
    struct front front;
    struct client client;
    char chunk[4 + 4096 + 2 + 1 + 1];

    (void)state;
    memset(chunk, ' ', sizeof(chunk));
    memcpy(chunk, "1000\r\n", 6);
    memcpy(chunk + 6 + 4096, "\r\n", 2);
    front_open(&front, &(struct front_settings){0});
    client_dial(&client, &front, 0);
    client_say(&client, head, sizeof(head) - 1);
    for (int i = 0; i < 30; i++)
        client_say(&client, chunk, sizeof(chunk));
    client_say(&client, "0\r\n\r\n", 5);
    client_read_all(&client);
    assert_memory_equal(client.raw.data, "HTTP/1.1 413 ", 13);
    client_hang_up(&client);
    front_close(&front);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(percent_signs_are_decoded_once_and_never_to_nul),
        cmocka_unit_test(what_is_unsound_is_refused),
        cmocka_unit_test(each_path_has_its_answer),
        cmocka_unit_test(a_connection_is_used_again),
        cmocka_unit_test(a_body_without_a_length_has_its_limit),
    };
    return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
