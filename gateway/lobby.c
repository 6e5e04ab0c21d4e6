#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "clock.h"
#include "lobby.h"

/* With more than so many header lines, query parameters and cookies, libmicrohttpd's memory
 * for a connection may not do; it would close without a word. */
#define FIELDS_MAX 512

struct guest {
    struct poller_source source;
    struct wheel_timer deadline;
    struct lobby *lobby;
    struct guest *newer;
    struct guest *older;
    struct lobby_arrival arrival;
};

struct lobby {
    struct lobby_settings settings;
    struct guest *newest;
    struct guest *oldest;
    size_t guest_count;
    char *peeked; /* header_max bytes, for looking at one guest's input */
};

struct lobby *lobby_new(const struct lobby_settings *settings)
{
    struct lobby *lobby = calloc(1, sizeof(*lobby));

    if (lobby == NULL)
        return NULL;
    lobby->settings = *settings;
    lobby->peeked = malloc(settings->header_max);
    if (lobby->peeked == NULL) {
        free(lobby);
        return NULL;
    }
    return lobby;
}

/* Takes the guest out, leaving its descriptor open. */
static void release(struct guest *guest)
{
    struct lobby *lobby = guest->lobby;

    poller_remove(lobby->settings.poller, &guest->source);
    wheel_remove(lobby->settings.wheel, &guest->deadline);
    *(guest->newer != NULL ? &guest->newer->older : &lobby->newest) = guest->older;
    *(guest->older != NULL ? &guest->older->newer : &lobby->oldest) = guest->newer;
    lobby->guest_count--;
    free(guest);
}

static void turn_out(struct guest *guest)
{
    const int fd = guest->arrival.fd;

    release(guest);
    close(fd);
}

/* A last word for those who sent something that is not HTTP, or too much of it. */
static void turn_away(struct guest *guest, const char *status)
{
    char answer[128];
    const int len =
        snprintf(answer, sizeof(answer),
                 "HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", status);

    stats_add(guest->lobby->settings.stats, STATS_REQUESTS_BAD, 1);
    (void)!send(guest->arrival.fd, answer, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT);
    /* What is left unread would turn our close into a reset that eats the answer. */
    (void)shutdown(guest->arrival.fd, SHUT_WR);
    (void)!recv(guest->arrival.fd, guest->lobby->peeked,
                guest->lobby->settings.header_max, MSG_DONTWAIT);
    turn_out(guest);
}

static void deadline_passed(struct wheel_timer *timer)
{
    struct guest *guest = CONTAINER_OF(timer, struct guest, deadline);

    stats_add(guest->lobby->settings.stats, STATS_CONNECTIONS_EXPIRED, 1);
    turn_out(guest);
}

void lobby_clear(struct lobby *lobby)
{
    while (lobby->newest != NULL)
        turn_out(lobby->newest);
}

void lobby_free(struct lobby *lobby)
{
    if (lobby == NULL)
        return;
    lobby_clear(lobby);
    free(lobby->peeked);
    free(lobby);
}

/* The length of the header with its blank line, or 0 while there is none. Lines end in
 * CRLF, or LF alone (RFC 9112, 2.2), as libmicrohttpd reads them too; empty lines before the
 * request are no header. */
static size_t header_length(const char *bytes, size_t len)
{
    const char *const end = bytes + len;
    const char *begin = bytes;

    while (begin < end && (*begin == '\r' || *begin == '\n'))
        begin++;
    for (const char *line_end = memchr(begin, '\n', (size_t)(end - begin));
         line_end != NULL;) {
        const char *next = line_end + 1;

        if (next < end && *next == '\n')
            return (size_t)(next + 1 - bytes);
        if (next + 1 < end && next[0] == '\r' && next[1] == '\n')
            return (size_t)(next + 2 - bytes);
        line_end = next < end ? memchr(next, '\n', (size_t)(end - next)) : NULL;
    }
    return 0;
}

static bool is_named(const char *line, size_t len, const char *name)
{
    const size_t name_len = strlen(name);

    return len > name_len && line[name_len] == ':' &&
           strncasecmp(line, name, name_len) == 0;
}

/* A length is digits, and white space around them. */
static bool is_length(const char *text, size_t len)
{
    size_t digits = 0;

    while (len > 0 && (*text == ' ' || *text == '\t')) {
        text++;
        len--;
    }
    while (len > 0 && (text[len - 1] == ' ' || text[len - 1] == '\t'))
        len--;
    while (digits < len && text[digits] >= '0' && text[digits] <= '9')
        digits++;
    return digits > 0 && digits == len && digits < 19;
}

/* What libmicrohttpd takes, and another reader of the same bytes may take for something
 * else: a field folded over two lines (RFC 9112, 5.2), a CR alone, a NUL, a length that is
 * none. `line` is without its end. */
static bool line_is_sound(const char *line, size_t len, bool first)
{
    static const char length[] = "Content-Length";

    if (memchr(line, '\0', len) != NULL || memchr(line, '\r', len) != NULL)
        return false;
    if (!first && len > 0 && (line[0] == ' ' || line[0] == '\t'))
        return false;
    return first || !is_named(line, len, length) ||
           is_length(line + sizeof(length), len - sizeof(length));
}

/* What libmicrohttpd keeps a record of: header lines, parameters of the query, cookies. And
 * what it keeps a copy of: the cookies. Both at the most. */
static void measure_line(const char *line, size_t len, bool first,
                         struct lobby_arrival *arrival)
{
    const bool cookies = is_named(line, len, "Cookie");

    arrival->field_count++;
    arrival->cookie_len += cookies ? len : 0;
    for (size_t i = 0; i < len; i++)
        arrival->field_count += (first && (line[i] == '?' || line[i] == '&')) ||
                                (cookies && (line[i] == ';' || line[i] == ':'));
}

/* Goes through the header; false if it is not sound. */
static bool look_through(const char *bytes, size_t len, struct lobby_arrival *arrival)
{
    const char *const end = bytes + len;
    bool first = true;

    for (const char *line = bytes; line < end;) {
        const char *line_end = memchr(line, '\n', (size_t)(end - line));
        const char *next = line_end != NULL ? line_end + 1 : end;
        size_t line_len = (size_t)((line_end != NULL ? line_end : end) - line);

        line_len -= line_len > 0 && line[line_len - 1] == '\r';
        if (!line_is_sound(line, line_len, first))
            return false;
        measure_line(line, line_len, first, arrival);
        first = first && line_len == 0; /* empty lines may come before the request's */
        line = next;
    }
    return true;
}

static bool is_stream_request(const char *bytes, size_t len)
{
    static const char begin[] = "GET /events";
    const size_t begin_len = sizeof(begin) - 1;

    return len > begin_len && memcmp(bytes, begin, begin_len) == 0 &&
           (bytes[begin_len] == ' ' || bytes[begin_len] == '?');
}

/* Every method is letters; empty lines before it are allowed (RFC 9112, 2.2). */
static bool may_be_http(char first)
{
    return (first >= 'A' && first <= 'Z') || (first >= 'a' && first <= 'z') ||
           first == '\r' || first == '\n';
}

static void hand_on(struct guest *guest, size_t header_len)
{
    struct lobby *lobby = guest->lobby;
    struct lobby_arrival arrival = guest->arrival;

    arrival.header_len = header_len;
    if (!look_through(lobby->peeked, header_len, &arrival)) {
        turn_away(guest, "400 Bad Request");
        return;
    }
    if (arrival.field_count > FIELDS_MAX) {
        turn_away(guest, "431 Request Header Fields Too Large");
        return;
    }
    arrival.wants_stream = is_stream_request(lobby->peeked, header_len);
    release(guest);
    lobby->settings.arrived(lobby->settings.argument, &arrival);
}

static void guest_ready(struct poller_source *source, uint32_t events)
{
    struct guest *guest = CONTAINER_OF(source, struct guest, source);
    struct lobby *lobby = guest->lobby;
    const size_t max = lobby->settings.header_max;
    const ssize_t len =
        recv(guest->arrival.fd, lobby->peeked, max, MSG_PEEK | MSG_DONTWAIT);

    if (len < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (len <= 0) {
        turn_out(guest);
        return;
    }

    const size_t header_len = header_length(lobby->peeked, (size_t)len);
    if (!may_be_http(lobby->peeked[0]))
        turn_away(guest, "400 Bad Request");
    else if (header_len > 0)
        hand_on(guest, header_len);
    else if ((size_t)len == max)
        turn_away(guest, "431 Request Header Fields Too Large");
    else if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        turn_out(guest); /* it will not say the rest any more */
}

size_t lobby_count(const struct lobby *lobby)
{
    return lobby->guest_count;
}

/* The one who has waited longest makes room. When thousands come at once he may have said
 * everything, and nobody has had the time to look: then he moves on. */
static void make_room(struct lobby *lobby)
{
    guest_ready(&lobby->oldest->source, 0);
    if (lobby->guest_count < lobby->settings.guests_max)
        return;
    stats_add(lobby->settings.stats, STATS_CONNECTIONS_EXPIRED, 1);
    turn_out(lobby->oldest);
}

void lobby_enter(struct lobby *lobby, int fd, const struct sockaddr *address,
                 socklen_t address_len)
{
    if (lobby->guest_count >= lobby->settings.guests_max)
        make_room(lobby);

    struct guest *guest = calloc(1, sizeof(*guest));
    if (guest == NULL) {
        close(fd);
        return;
    }
    guest->lobby = lobby;
    guest->source = POLLER_SOURCE(guest_ready);
    guest->deadline.fire = deadline_passed;
    guest->arrival.fd = fd;
    guest->arrival.address_len =
        MIN(address_len, (socklen_t)sizeof(guest->arrival.address));
    memcpy(&guest->arrival.address, address, guest->arrival.address_len);

    guest->older = lobby->newest;
    *(guest->older != NULL ? &guest->older->newer : &lobby->oldest) = guest;
    lobby->newest = guest;
    lobby->guest_count++;
    wheel_set(lobby->settings.wheel, &guest->deadline,
              clock_usec() + lobby->settings.header_time_usec);

    /* Edge-triggered: bytes that were looked at and left must not wake us again. */
    if (poller_add(lobby->settings.poller, &guest->source, fd,
                   EPOLLIN | EPOLLRDHUP | EPOLLET) < 0)
        turn_out(guest);
}
