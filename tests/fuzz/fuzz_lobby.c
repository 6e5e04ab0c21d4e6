/*
 * fuzz_lobby.c - whatever a newcomer sends, it is handed on with a sound header, or closed
 * after an answer, or waits until its time is over.
 *
 * The input: a byte of choices, two that say where what is sent is split in two, and what is
 * sent.
 */
#include <netinet/in.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "clock.h"
#include "lobby.h"

#define HEAD_BYTES  3
#define SENT_MAX    ((size_t)8192)
#define FIELDS_MAX  512
#define HEADER_USEC (10 * USEC_PER_SEC)
#define BEGIN_USEC  (1000 * USEC_PER_SEC)

/* Bits of the first byte. */
#define LEAVES     1 /* the client shuts its side when all is sent */
#define IS_TIGHT   2 /* the largest header is as large as all that is sent */
#define TIME_GOES  4 /* who waits is let go by time, not by lobby_clear() */
#define COMES_LATE 8 /* the first piece is there before the newcomer enters */

struct house {
    struct poller *poller;
    struct wheel *wheel;
    struct stats *stats;
    struct lobby *lobby;
    const char *text; /* what is sent */
    size_t len;
    size_t sent;
    size_t header_max;
    int arrivals;
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static void require(bool truth)
{
    if (!truth)
        abort();
}

static bool is_blank(char byte)
{
    return byte == ' ' || byte == '\t';
}

/* "Content-Length:" and then anything but one number. */
static bool is_bad_length(const char *line, size_t len)
{
    static const char name[] = "content-length:";
    size_t at = sizeof(name) - 1, digits = 0;

    if (len < at || strncasecmp(line, name, at) != 0)
        return false;
    while (at < len && is_blank(line[at]))
        at++;
    for (; at < len && line[at] >= '0' && line[at] <= '9'; at++)
        digits++;
    while (at < len && is_blank(line[at]))
        at++;
    return digits == 0 || at < len;
}

/* Every line of it is one that two readers take for the same. Returns how many there are. */
static size_t check_header(const char *text, size_t len)
{
    size_t lines = 0;
    bool seen_request = false;

    require(memchr(text, '\0', len) == NULL);
    for (size_t begin = 0; begin < len; lines++) {
        const char *line_end = memchr(text + begin, '\n', len - begin);

        require(line_end != NULL);
        const char *line = text + begin;
        const size_t next = (size_t)(line_end - text) + 1;
        size_t line_len = next - 1 - begin;

        if (line_len > 0 && line[line_len - 1] == '\r')
            line_len--;
        require(memchr(line, '\r', line_len) == NULL);
        require(!seen_request || line_len == 0 || !is_blank(line[0]));
        require(!seen_request || !is_bad_length(line, line_len));
        seen_request = seen_request || line_len > 0;
        begin = next;
    }
    return lines;
}

/* Behind which a blank line ends; 0 if none does. Of LF LF and LF CR LF, what comes first. */
static size_t blank_line_end(const char *text, size_t len)
{
    size_t begin = 0;

    /* Empty lines before a request are no header. */
    while (begin < len && (text[begin] == '\r' || text[begin] == '\n'))
        begin++;
    for (size_t i = begin + 1; i < len; i++) {
        if (text[i] == '\n' && (text[i - 1] == '\n' ||
                                (i > 1 && text[i - 1] == '\r' && text[i - 2] == '\n')))
            return i + 1;
    }
    return 0;
}

static void arrived(void *argument, const struct lobby_arrival *arrival)
{
    struct house *house = argument;
    const size_t len = arrival->header_len;
    char first[SENT_MAX];

    require(++house->arrivals == 1);
    require(len > 0 && len <= house->sent && len <= house->header_max);
    require(len == blank_line_end(house->text, house->sent));
    require(arrival->field_count <= FIELDS_MAX);
    require(arrival->field_count >= check_header(house->text, len));
    require(arrival->cookie_len <= len);
    require(!arrival->wants_stream || memcmp(house->text, "GET /events", 11) == 0);
    require(arrival->address_len == sizeof(struct sockaddr_in));
    /* Looked at, and not taken. */
    require(recv(arrival->fd, first, sizeof(first), MSG_DONTWAIT) ==
                (ssize_t)house->sent &&
            memcmp(first, house->text, house->sent) == 0);
    require(close(arrival->fd) == 0);
}

static void open_house(struct house *house)
{
    clock_set(BEGIN_USEC);
    house->poller = poller_new(NULL);
    house->wheel = wheel_new(BEGIN_USEC);
    house->stats = stats_new();
    require(house->poller != NULL && house->wheel != NULL && house->stats != NULL);
    house->lobby = lobby_new(&(struct lobby_settings){
        .poller = house->poller,
        .wheel = house->wheel,
        .stats = house->stats,
        .header_max = house->header_max,
        .header_time_usec = HEADER_USEC,
        .guests_max = 2,
        .arrived = arrived,
        .argument = house,
    });
    require(house->lobby != NULL);
}

static void close_house(struct house *house)
{
    lobby_free(house->lobby);
    stats_free(house->stats);
    wheel_free(house->wheel);
    poller_free(house->poller);
    clock_set(0);
}

static void say(struct house *house, int fd, size_t len)
{
    /* Who was turned away already cannot be spoken to any more. */
    if (len > 0 && send(fd, house->text + house->sent, len, MSG_NOSIGNAL) == (ssize_t)len)
        house->sent += len;
}

static void let_time_pass(struct house *house)
{
    for (int i = 0; i < 3; i++)
        poller_wait(house->poller, 0);
}

/* The whole of what it was told, and then the end. */
static bool was_turned_away(int fd)
{
    char answer[512] = "";
    const ssize_t len = recv(fd, answer, sizeof(answer) - 1, MSG_DONTWAIT);

    if (len <= 0)
        return false;
    require(strncmp(answer, "HTTP/1.1 4", 10) == 0 && strlen(answer) == (size_t)len);
    require(strstr(answer, "\r\nContent-Length: 0\r\n") != NULL &&
            strstr(answer, "\r\nConnection: close\r\n") != NULL);
    require(strstr(answer, "\r\n\r\n") == answer + len - 4);
    require(recv(fd, answer, sizeof(answer), 0) <= 0); /* would block if it were open */
    return true;
}

static void check_outcome(struct house *house, int fd, unsigned choices)
{
    const bool turned_away = was_turned_away(fd);
    const bool waits = lobby_count(house->lobby) > 0;
    const uint64_t bad = stats_counter_value(house->stats, STATS_REQUESTS_BAD);

    require(lobby_count(house->lobby) <= 1);
    require(house->arrivals + turned_away + waits <= 1);
    require(bad == turned_away);
    if (waits)
        require(house->sent < house->header_max && (choices & LEAVES) == 0 &&
                blank_line_end(house->text, house->sent) == 0);
    else if (house->arrivals == 0 && !turned_away)
        require((choices & LEAVES) != 0); /* gone before it had said all */

    if (choices & TIME_GOES) {
        wheel_advance(house->wheel, BEGIN_USEC + HEADER_USEC + USEC_PER_SEC);
        require(stats_counter_value(house->stats, STATS_CONNECTIONS_EXPIRED) == waits);
    } else {
        lobby_clear(house->lobby);
    }
    require(lobby_count(house->lobby) == 0);
    require(wheel_next_usec(house->wheel) == CLOCK_NEVER);
    let_time_pass(house);
}

/* The same as before if nobody keeps one. */
static int lowest_free_descriptor(void)
{
    const int fd = dup(STDERR_FILENO);

    require(fd >= 0 && close(fd) == 0);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    const struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(77)};
    const int first_free = lowest_free_descriptor();
    int ends[2];

    if (len < HEAD_BYTES || len - HEAD_BYTES > SENT_MAX)
        return 0;
    const unsigned choices = data[0];
    struct house house = {.text = (const char *)data + HEAD_BYTES,
                          .len = len - HEAD_BYTES};
    const size_t split = ((size_t)data[1] << 8 | data[2]) % (house.len + 1);

    /* Tight: the sanitizer sees a look behind the end. */
    house.header_max = choices & IS_TIGHT ? MAX(house.len, 1) : SENT_MAX / 2;
    open_house(&house);
    require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    if (choices & COMES_LATE)
        say(&house, ends[1], split);
    lobby_enter(house.lobby, ends[0], (const struct sockaddr *)&address, sizeof(address));
    if (!(choices & COMES_LATE))
        say(&house, ends[1], split);
    let_time_pass(&house);
    say(&house, ends[1], house.len - split);
    if (choices & LEAVES)
        (void)shutdown(ends[1], SHUT_WR);
    let_time_pass(&house);
    check_outcome(&house, ends[1], choices);
    (void)close(ends[1]);
    close_house(&house);
    require(lowest_free_descriptor() == first_free);
    return 0;
}
