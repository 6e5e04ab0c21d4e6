/* test_lobby.c - fresh connections, until the whole header of their first request is there. */
#include "lobby.h"

#include <netinet/in.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "cmocka_all.h"
#include "failing_malloc.h"

#define HEADER_MAX  256
#define GUESTS_MAX  3
#define HEADER_USEC (10 * USEC_PER_SEC)
#define BEGIN_USEC  (1000 * USEC_PER_SEC)

struct house {
    struct poller *poller;
    struct wheel *wheel;
    struct stats *stats;
    struct lobby *lobby;
    int arrivals;
    struct lobby_arrival last; /* its descriptor is closed */
    char first[HEADER_MAX];    /* what the last arrival has still to say */
    ssize_t first_len;
};

static void arrived(void *argument, const struct lobby_arrival *arrival)
{
    struct house *house = argument;

    house->arrivals++;
    house->last = *arrival;
    house->first_len =
        recv(arrival->fd, house->first, sizeof(house->first), MSG_DONTWAIT);
    (void)close(arrival->fd);
}

static struct lobby_settings settings_of(struct house *house)
{
    return (struct lobby_settings){.poller = house->poller,
                                   .wheel = house->wheel,
                                   .stats = house->stats,
                                   .header_max = HEADER_MAX,
                                   .header_time_usec = HEADER_USEC,
                                   .guests_max = GUESTS_MAX,
                                   .arrived = arrived,
                                   .argument = house};
}

static int open_house(void **state)
{
    struct house *house = calloc(1, sizeof(*house));

    clock_set(BEGIN_USEC);
    house->poller = poller_new(NULL);
    house->wheel = wheel_new(BEGIN_USEC);
    house->stats = stats_new();
    const struct lobby_settings settings = settings_of(house);
    house->lobby = lobby_new(&settings);
    *state = house;
    return house->lobby == NULL ? -1 : 0;
}

static int close_house(void **state)
{
    struct house *house = *state;

    lobby_free(house->lobby);
    stats_free(house->stats);
    wheel_free(house->wheel);
    poller_free(house->poller);
    free(house);
    clock_set(0);
    return 0;
}

/* The other end of a guest that has just come in. */
static int enter(struct house *house)
{
    const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(77)};
    int ends[2];

    assert_int_equal(
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    lobby_enter(house->lobby, ends[0], (const struct sockaddr *)&address,
                sizeof(address));
    return ends[1];
}

static void say(struct house *house, int fd, const char *bytes, size_t len)
{
    assert_int_equal(send(fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
    (void)poller_wait(house->poller, 0);
}

/* Its connection has been closed, after this answer ("" for none). */
static bool was_closed(int fd, const char *answer)
{
    char bytes[256] = "";
    const ssize_t len = recv(fd, bytes, sizeof(bytes) - 1, MSG_DONTWAIT);

    if (len < 0)
        return false;
    if (strncmp(bytes, answer, strlen(answer)) != 0 || (len > 0 && *answer == '\0'))
        fail_msg("answered: %s", bytes);
    return len == 0 || recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT) == 0;
}

static void whole_headers_are_handed_on_untouched(void **state)
{
    static const struct {
        const char *text;
        size_t header_len;
        bool wants_stream;
    } cases[] = {
        {"GET /events HTTP/1.1\r\nHost: x\r\n\r\n", 33, true},
        {"GET /events?channel=a HTTP/1.1\r\n\r\n", 34, true},
        {"GET /events HTTP/1.0\n\n", 22, true},
        {"GET /events HTTP/1.0\n\r\n", 23, true},
        {"GET /events HTTP/1.0\r\n\nrest", 23, true},
        {"GET /eventsy HTTP/1.1\r\n\r\n", 25, false},
        {"GET /events/1 HTTP/1.1\r\n\r\n", 26, false},
        {"HEAD /events HTTP/1.1\r\n\r\n", 25, false},
        {"POST /events HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 44, false},
        {"\r\nGET / HTTP/1.1\r\nA: b\r\n\r\n", 26, false},
        {"patch / HTTP/1.1\r\n\r\n", 20, false},
    };
    struct house *house = *state;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const size_t len = strlen(cases[i].text);
        const int fd = enter(house);

        say(house, fd, cases[i].text, len);
        assert_int_equal(house->arrivals, i + 1);
        assert_int_equal(house->last.header_len, cases[i].header_len);
        assert_int_equal(house->last.wants_stream, cases[i].wants_stream);
        assert_int_equal(house->first_len, len);
        assert_memory_equal(house->first, cases[i].text, len);
        assert_int_equal(house->last.address_len, sizeof(struct sockaddr_in));
        assert_int_equal(((struct sockaddr_in *)&house->last.address)->sin_port,
                         htons(77));
        (void)close(fd);
    }
}

static void a_header_may_come_byte_by_byte(void **state)
{
    static const char text[] = "GET /events HTTP/1.1\r\nHost: x\r\n\r\n";
    struct house *house = *state;
    const int fd = enter(house);

    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        assert_int_equal(house->arrivals, 0);
        say(house, fd, text + i, 1);
    }
    assert_int_equal(house->arrivals, 1);
    assert_int_equal(house->first_len, sizeof(text) - 1);
    (void)close(fd);
}

static void what_is_no_http_is_turned_away(void **state)
{
    static const struct {
        const char *text;
        size_t len;
    } cases[] = {
        {"\x16\x03\x01\x02", 4}, /* TLS */
        {"\0", 1},
        {" GET / HTTP/1.1\r\n", 17},
        {"GET / HTTP/1.1\r\nA: \0\r\n\r\n", 24},
    };
    struct house *house = *state;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const int fd = enter(house);

        say(house, fd, cases[i].text, cases[i].len);
        assert_true(was_closed(fd, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n"));
        (void)close(fd);
    }
    assert_int_equal(house->arrivals, 0);
    assert_int_equal(stats_counter_value(house->stats, STATS_REQUESTS_BAD),
                     ARRAY_SIZE(cases));
}

/* What libmicrohttpd takes, and somebody in front of us may take for something else. */
static void what_can_be_read_in_two_ways_is_turned_away(void **state)
{
    static const struct {
        const char *text;
        bool sound;
    } cases[] = {
        {"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", false}, /* folded */
        {"GET / HTTP/1.1\r\nA: b\r\n\tc\r\n\r\n", false},
        {"GET / HTTP/1.1\r\n A: b\r\n\r\n", false},
        {"GET / HTTP/1.1\n \n\n", false},
        {"\r\nGET / HTTP/1.1\r\n A: b\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n", false}, /* a CR alone */
        {"GET /\r HTTP/1.1\r\n\r\n", false},
        {"GET / HTTP/1.1\r\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nA: b\r\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nA: \tb \t\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nContent-Length:12\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nCONTENT-length:\t 12 \t\r\n\r\n", true},
        {"GET / HTTP/1.1\nContent-Length: 12\n\n", true},
        {"GET / HTTP/1.1\r\nContent-Length: 123456789012345678\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nContent-Length: 1234567890123456789\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length: \r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length: -5\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length: 5 5\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length: 0x5\r\n\r\n", false},
        {"GET / HTTP/1.1\r\nContent-Length: 5\v\r\n\r\n", false},
        {"GET / HTTP/1.1\nA: b\ncontent-length: x\n\n", false},
        {"GET / HTTP/1.1\r\nX-Content-Length: x\r\n\r\n", true},
        {"GET / HTTP/1.1\r\nContent-Lengths: x\r\n\r\n", true},
    };
    struct house *house = *state;
    int arrivals = 0;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const int fd = enter(house);

        say(house, fd, cases[i].text, strlen(cases[i].text));
        arrivals += cases[i].sound;
        if (house->arrivals != arrivals ||
            (!cases[i].sound && !was_closed(fd, "HTTP/1.1 400 Bad Request\r\n")))
            fail_msg("case %zu", i);
        (void)close(fd);
    }
    assert_int_equal(stats_counter_value(house->stats, STATS_REQUESTS_BAD),
                     ARRAY_SIZE(cases) - (size_t)arrivals);
}

/* Of how much memory libmicrohttpd will need. */
static void fields_and_cookies_are_counted(void **state)
{
    static const struct {
        const char *text;
        size_t field_count, cookie_len;
    } cases[] = {
        /* The request line, its parameters, the lines of the header, the blank one. */
        {"GET / HTTP/1.1\r\n\r\n", 2, 0},
        {"GET /?a&b=c&d HTTP/1.1\r\n\r\n", 5, 0},
        {"GET / HTTP/1.1\r\nA: ?&;\r\nB:\r\n\r\n", 4, 0},
        {"\r\nGET /?a HTTP/1.1\r\n\r\n", 4, 0},
        /* A cookie for the colon, and one for each semicolon. */
        {"GET / HTTP/1.1\r\nCookie: a=b\r\n\r\n", 4, 11},
        {"GET / HTTP/1.1\r\nCookie: a=b; c=d;e\r\n\r\n", 6, 18},
        {"GET / HTTP/1.1\r\ncookie:a\r\nCOOKIE: b;c\r\n\r\n", 7, 19},
        {"GET / HTTP/1.1\r\nCookies: a;b\r\nSet-Cookie: a;b\r\n\r\n", 4, 0},
    };
    struct house *house = *state;

    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        const int fd = enter(house);

        say(house, fd, cases[i].text, strlen(cases[i].text));
        assert_int_equal(house->arrivals, i + 1);
        assert_int_equal(house->last.field_count, cases[i].field_count);
        assert_int_equal(house->last.cookie_len, cases[i].cookie_len);
        (void)close(fd);
    }
}

/* `count` fields of which all but the request line and the blank one are made of `one`. */
static size_t make_fields(char *text, size_t count, const char *before, const char *one,
                          const char *behind)
{
    char *out = stpcpy(text, before);

    for (size_t i = 2; i < count; i++)
        out = stpcpy(out, one);
    return (size_t)(stpcpy(out, behind) - text);
}

static void a_header_has_a_largest_number_of_fields(void **state)
{
    static const struct {
        const char *before, *one, *behind;
    } cases[] = {
        {"GET / HTTP/1.1\n", "a:\n", "\n"},
        {"GET /?", "&", " HTTP/1.1\n\n"},         /* '?' is one more */
        {"GET / HTTP/1.1\nCookie:", ";", "\n\n"}, /* the line and its ':' are two more */
    };
    struct house *house = *state;
    struct lobby_settings settings = settings_of(house);
    char text[2048];

    lobby_free(house->lobby);
    settings.header_max = sizeof(text);
    house->lobby = lobby_new(&settings);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        int fd = enter(house);
        size_t len =
            make_fields(text, 512 - i, cases[i].before, cases[i].one, cases[i].behind);

        say(house, fd, text, len);
        assert_int_equal(house->arrivals, i + 1);
        assert_int_equal(house->last.field_count, 512);
        (void)close(fd);

        fd = enter(house);
        len = make_fields(text, 513 - i, cases[i].before, cases[i].one, cases[i].behind);
        say(house, fd, text, len);
        assert_true(was_closed(fd, "HTTP/1.1 431 Request Header Fields Too Large\r\n"));
        assert_int_equal(house->arrivals, i + 1);
        (void)close(fd);
    }
}

static void a_header_has_a_largest_length(void **state)
{
    struct house *house = *state;
    char text[HEADER_MAX + 1];

    memset(text, 'a', sizeof(text));
    memcpy(text, "GET /", 5);
    memcpy(text + HEADER_MAX - 4, "\r\n\r\n", 4);
    int fd = enter(house);
    say(house, fd, text, HEADER_MAX);
    assert_int_equal(house->arrivals, 1);
    assert_int_equal(house->last.header_len, HEADER_MAX);
    (void)close(fd);

    memset(text + HEADER_MAX - 4, 'a', 5);
    fd = enter(house);
    say(house, fd, text, HEADER_MAX - 1);
    assert_false(was_closed(fd, ""));
    say(house, fd, text, 1);
    assert_true(was_closed(fd, "HTTP/1.1 431 Request Header Fields Too Large\r\n"));
    assert_int_equal(house->arrivals, 1);
    (void)close(fd);
}

/* Absolute: a byte now and then does not move it. */
static void who_is_too_slow_goes(void **state)
{
    struct house *house = *state;
    const int silent = enter(house);
    const int dripping = enter(house);

    for (uint64_t at = 0; at < HEADER_USEC; at += HEADER_USEC / 5) {
        clock_set(BEGIN_USEC + at);
        wheel_advance(house->wheel, BEGIN_USEC + at);
        assert_false(was_closed(silent, ""));
        assert_false(was_closed(dripping, ""));
        say(house, dripping, "G", 1);
    }
    wheel_advance(house->wheel, BEGIN_USEC + HEADER_USEC + USEC_PER_SEC / 10);
    assert_true(was_closed(silent, ""));
    assert_true(was_closed(dripping, "") ||
                true); /* reset, perhaps: it had said something */
    assert_int_equal(stats_counter_value(house->stats, STATS_CONNECTIONS_EXPIRED), 2);
    assert_int_equal(house->arrivals, 0);
    (void)close(silent);
    (void)close(dripping);
}

static void who_has_waited_longest_makes_room(void **state)
{
    struct house *house = *state;
    int fds[GUESTS_MAX + 2];

    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        fds[i] = enter(house);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        assert_int_equal(was_closed(fds[i], ""), i < 2);
    /* From the middle, from the end: the order of the others stays. */
    say(house, fds[3], "GET / HTTP/1.1\r\n\r\n", 18);
    assert_int_equal(house->arrivals, 1);
    const int one = enter(house);
    const int two = enter(house);
    assert_true(was_closed(fds[2], ""));
    assert_false(was_closed(fds[4], ""));
    lobby_clear(house->lobby);
    assert_true(was_closed(fds[4], ""));
    assert_true(was_closed(one, ""));
    assert_true(was_closed(two, ""));
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        (void)close(fds[i]);
    (void)close(one);
    (void)close(two);
}

/* As when thousands come at once, and more have come in than could be looked at yet. */
static void who_has_said_everything_is_not_turned_out(void **state)
{
    static const char request[] = "GET / HTTP/1.1\r\n\r\n";
    struct house *house = *state;
    int fds[2 * GUESTS_MAX];

    for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
        fds[i] = enter(house);
        /* The second one has said the half of it. */
        const size_t len = i == 1 ? 5 : sizeof(request) - 1;
        assert_int_equal(send(fds[i], request, len, MSG_NOSIGNAL), (ssize_t)len);
    }
    assert_int_equal(house->arrivals, GUESTS_MAX - 1);
    assert_int_equal(lobby_count(house->lobby), GUESTS_MAX);
    (void)poller_wait(house->poller, 0);
    assert_int_equal(house->arrivals, ARRAY_SIZE(fds) - 1);
    assert_int_equal(lobby_count(house->lobby), 0);
    for (size_t i = 0; i < ARRAY_SIZE(fds); i++)
        (void)close(fds[i]);
}

static void who_leaves_is_forgotten(void **state)
{
    struct house *house = *state;

    for (int i = 0; i < 3 * GUESTS_MAX; i++) {
        const int fd = enter(house);

        (void)close(fd);
        (void)poller_wait(house->poller, 0);
    }
    assert_int_equal(stats_counter_value(house->stats, STATS_CONNECTIONS_EXPIRED), 0);
    assert_true(wheel_next_usec(house->wheel) == CLOCK_NEVER);
    assert_int_equal(house->arrivals, 0);
}

/* At once, not at its deadline; but who has said all may go on listening. */
static void who_will_not_say_the_rest_is_let_go(void **state)
{
    struct house *house = *state;
    const int silent = enter(house);
    const int cut_short = enter(house);
    const int done = enter(house);

    say(house, cut_short, "GET / HTTP/1.1\r\nHost", 20);
    assert_int_equal(lobby_count(house->lobby), 3);
    (void)shutdown(silent, SHUT_WR);
    (void)shutdown(cut_short, SHUT_WR);
    assert_int_equal(send(done, "GET / HTTP/1.1\r\n\r\n", 18, MSG_NOSIGNAL), 18);
    (void)shutdown(done, SHUT_WR);
    (void)poller_wait(house->poller, 0);
    assert_int_equal(lobby_count(house->lobby), 0);
    assert_int_equal(house->arrivals, 1);
    assert_int_equal(house->first_len, 18);
    assert_true(was_closed(silent, ""));
    assert_true(wheel_next_usec(house->wheel) == CLOCK_NEVER);
    assert_int_equal(stats_counter_value(house->stats, STATS_CONNECTIONS_EXPIRED), 0);
    assert_int_equal(stats_counter_value(house->stats, STATS_REQUESTS_BAD), 0);
    (void)close(silent);
    (void)close(cut_short);
    (void)close(done);
}

/* Half a header and the end in one piece: it is told of once only. */
static void who_leaves_in_the_middle_is_let_go(void **state)
{
    struct house *house = *state;
    const int fd = enter(house);

    assert_int_equal(send(fd, "GET / HTTP/1.1\r\n", 16, MSG_NOSIGNAL), 16);
    (void)shutdown(fd, SHUT_WR);
    (void)poller_wait(house->poller, 0);
    assert_int_equal(lobby_count(house->lobby), 0);
    assert_int_equal(house->arrivals, 0);
    (void)close(fd);
}

static void without_memory_nobody_comes_in(void **state)
{
    struct house *house = *state;
    const struct lobby_settings settings = settings_of(house);
    struct lobby *lobby = NULL;

    for (unsigned n = 1; lobby == NULL; n++) {
        failing_malloc_begin(n);
        lobby = lobby_new(&settings);
        assert_int_equal(lobby == NULL, failing_malloc_end());
    }
    lobby_free(lobby);
    lobby_free(NULL);

    failing_malloc_begin(1);
    const int refused = enter(house);
    assert_true(failing_malloc_end());
    assert_true(was_closed(refused, ""));
    const int fd = enter(house);
    assert_false(was_closed(fd, ""));
    (void)close(refused);
    (void)close(fd);
}

int main(void)
{
#define IN_A_HOUSE(test) cmocka_unit_test_setup_teardown(test, open_house, close_house)
    const struct CMUnitTest tests[] = {
        IN_A_HOUSE(whole_headers_are_handed_on_untouched),
        IN_A_HOUSE(a_header_may_come_byte_by_byte),
        IN_A_HOUSE(what_is_no_http_is_turned_away),
        IN_A_HOUSE(what_can_be_read_in_two_ways_is_turned_away),
        IN_A_HOUSE(fields_and_cookies_are_counted),
        IN_A_HOUSE(a_header_has_a_largest_number_of_fields),
        IN_A_HOUSE(a_header_has_a_largest_length),
        IN_A_HOUSE(who_is_too_slow_goes),
        IN_A_HOUSE(who_has_waited_longest_makes_room),
        IN_A_HOUSE(who_has_said_everything_is_not_turned_out),
        IN_A_HOUSE(who_leaves_is_forgotten),
        IN_A_HOUSE(who_will_not_say_the_rest_is_let_go),
        IN_A_HOUSE(who_leaves_in_the_middle_is_let_go),
        IN_A_HOUSE(without_memory_nobody_comes_in),
    };
    return cmocka_run_group_tests_name("lobby", tests, NULL, NULL);
}
