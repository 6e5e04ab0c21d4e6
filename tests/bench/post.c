/*
 * post.c - publishes over and over on many kept connections, and says how fast it was answered.
 *
 *     post --port N [--connections 256] [--seconds 5] [--warmup 1] [--path /events]
 *          [--pid PID]...
 *
 * A closed loop: each connection POSTs one event, waits for the answer and POSTs the next
 * one. One thread, one recv and one send an answer, so that on a machine that it shares with
 * the server it takes as little as it can. Every answer is read to its last byte and must be
 * a 2xx with a Content-Length; anything else counts as an error and ends its connection.
 *
 * Prints one line of JSON. Server CPU is the sum over all threads of the --pid's. Status 1,
 * and a text on stderr, when anything went wrong or nothing was answered.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"
#include "figures.h"

#define CONNECTIONS_MAX 10000
#define PIDS_MAX        64
#define ANSWER_MAX      4096

/* Of the first event; it grows no digit in any time that somebody waits. */
#define FIRST_NUMBER 1000000000000

/* Nobody has answered for so long: it is over. */
#define SILENCE_MSEC 10000

struct client {
    int fd; /* -1: closed after an error */
    uint64_t sent_usec;
    size_t have; /* bytes of an answer that is not whole yet */
    char answer[ANSWER_MAX];
};

struct post {
    int port;
    size_t connections;
    double seconds;
    double warmup;
    const char *path;
    pid_t pids[PIDS_MAX];
    size_t pid_count;

    struct client *clients;
    size_t open;
    int epoll_fd;
    char request[1024]; /* the newest one */
    size_t request_len;
    char *last_digit; /* of its event's number */
    bool measuring;
    uint64_t answers_in_all;
    uint64_t answers; /* of these, while it was measured */
    uint64_t errors;
    char fault[200]; /* the first error */
    struct histogram latency;
};

static void die(const char *what)
{
    fprintf(stderr, "post: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* -- asking -- */

static void fail_client(struct post *post, struct client *client, const char *why)
{
    if (post->errors++ == 0)
        (void)snprintf(post->fault, sizeof(post->fault), "%.150s", why);
    (void)close(client->fd);
    client->fd = -1;
    post->open--;
}

/* The request is the same each time but for the digits of its event's number. */
static void write_request(struct post *post)
{
    char body[128];
    const int body_len =
        snprintf(body, sizeof(body), "{\"channel\":\"c\",\"data\":{\"n\":%llu}}",
                 (unsigned long long)FIRST_NUMBER);
    const int len = snprintf(post->request, sizeof(post->request),
                             "POST %s HTTP/1.1\r\n"
                             "Host: 127.0.0.1:%d\r\n"
                             "Content-Type: application/json\r\n"
                             "Content-Length: %d\r\n"
                             "\r\n%s",
                             post->path, post->port, body_len, body);

    if (len < 0 || (size_t)len >= sizeof(post->request))
        die("the request is too long");
    post->request_len = (size_t)len;
    post->last_digit = post->request + len - strlen("}}") - 1;
}

static void ask(struct post *post, struct client *client)
{
    char *digit = post->last_digit;

    for (; *digit == '9'; digit--)
        *digit = '0';
    ++*digit;
    client->have = 0;
    client->sent_usec = figures_now_usec();
    if (send(client->fd, post->request, post->request_len, MSG_NOSIGNAL) !=
        (ssize_t)post->request_len)
        fail_client(post, client, "a request could not be sent whole");
}

/* -- being answered -- */

/* The value of Content-Length in the header's text, or -1. */
static long content_length(const char *header, const char *end)
{
    static const char name[] = "Content-Length:";

    for (const char *line = header; line < end;) {
        const char *next = memchr(line, '\n', (size_t)(end - line));

        if (strncasecmp(line, name, sizeof(name) - 1) == 0) {
            char *behind;
            const long value = strtol(line + sizeof(name) - 1, &behind, 10);

            return *behind == '\r' ? value : -1;
        }
        if (next == NULL)
            break;
        line = next + 1;
    }
    return -1;
}

/* 1: one answer, whole and good; 0: not whole yet; -1: wrong, and *ret_why says how. */
static int look_at_answer(struct client *client, const char **ret_why)
{
    client->answer[client->have] = '\0';
    const char *blank = strstr(client->answer, "\r\n\r\n");
    const char *line_end = strstr(client->answer, "\r\n");

    if (blank == NULL) {
        *ret_why = "an answer's header is too long";
        return client->have < ANSWER_MAX - 1 ? 0 : -1;
    }
    if (strncmp(client->answer, "HTTP/1.1 2", 10) != 0 ||
        line_end < client->answer + 13) {
        *ret_why = client->answer;
        return -1;
    }
    const long body_len = content_length(client->answer, blank + 2);
    const size_t whole = (size_t)(blank + 4 - client->answer) + (size_t)body_len;
    if (body_len < 0 || whole >= ANSWER_MAX || client->have > whole) {
        *ret_why = "an answer has no Content-Length, or not that of its body";
        return -1;
    }
    return client->have == whole;
}

static void count_answer(struct post *post, const struct client *client)
{
    const uint64_t usec = figures_now_usec() - client->sent_usec;

    post->answers_in_all++;
    if (!post->measuring)
        return;
    post->answers++;
    histogram_add(&post->latency, usec);
}

static void client_ready(struct post *post, struct client *client)
{
    const char *why = NULL;
    const ssize_t len = recv(client->fd, client->answer + client->have,
                             ANSWER_MAX - 1 - client->have, MSG_DONTWAIT);

    if (len < 0 && errno == EAGAIN)
        return;
    if (len <= 0) {
        fail_client(post, client, "a connection was closed");
        return;
    }
    client->have += (size_t)len;
    const int whole = look_at_answer(client, &why);
    if (whole < 0)
        fail_client(post, client, why);
    if (whole <= 0)
        return;
    count_answer(post, client);
    ask(post, client);
}

static void run_until(struct post *post, uint64_t end_usec)
{
    struct epoll_event events[CONNECTIONS_MAX > 512 ? 512 : CONNECTIONS_MAX];

    while (post->open > 0 && figures_now_usec() < end_usec) {
        const int count =
            epoll_wait(post->epoll_fd, events, ARRAY_SIZE(events), SILENCE_MSEC);

        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        if (count == 0) {
            post->errors++;
            (void)snprintf(post->fault, sizeof(post->fault),
                           "nobody was answered for 10 s");
            return;
        }
        for (int i = 0; i < count; i++)
            client_ready(post, events[i].data.ptr);
    }
}

/* -- the whole -- */

static void connect_client(struct post *post, struct client *client)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons((uint16_t)post->port),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int one = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = client};

    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (client->fd < 0 ||
        connect(client->fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
        epoll_ctl(post->epoll_fd, EPOLL_CTL_ADD, client->fd, &event) < 0)
        die("could not connect");
    post->open++;
}

static void measure(struct post *post)
{
    const pid_t self = getpid();

    for (size_t i = 0; i < post->connections; i++)
        ask(post, &post->clients[i]);
    run_until(post, figures_now_usec() + (uint64_t)(post->warmup * 1e6));

    const double server_before = figures_cpu_seconds(post->pids, post->pid_count);
    const double own_before = figures_cpu_seconds(&self, 1);
    const uint64_t begin = figures_now_usec();

    post->measuring = true;
    run_until(post, begin + (uint64_t)(post->seconds * 1e6));

    const double seconds = (double)(figures_now_usec() - begin) / 1e6;
    const double own = figures_cpu_seconds(&self, 1) - own_before;
    const double server =
        figures_cpu_seconds(post->pids, post->pid_count) - server_before;
    const double answers = (double)MAX(post->answers, 1);

    printf("{\"connections\":%zu,\"seconds\":%.3f,\"answers\":%llu,"
           "\"answers_in_all\":%llu,\"answers_per_second\":%.0f,\"errors\":%llu,"
           "\"server_cpu_seconds\":%.3f,\"server_cpu_usec_per_answer\":%.3f,"
           "\"generator_cpu_seconds\":%.3f,\"generator_cpu_usec_per_answer\":%.3f,"
           "\"latency_usec\":",
           post->connections, seconds, (unsigned long long)post->answers,
           (unsigned long long)post->answers_in_all, (double)post->answers / seconds,
           (unsigned long long)post->errors, server, server * 1e6 / answers, own,
           own * 1e6 / answers);
    histogram_print(stdout, &post->latency);
    printf("}\n");
}

static void read_options(struct post *post, int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},
        {"connections", required_argument, NULL, 'c'},
        {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'w'},
        {"path", required_argument, NULL, 'u'},
        {"pid", required_argument, NULL, 'i'},
        {NULL, 0, NULL, 0},
    };

    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'p')
            post->port = (int)strtol(optarg, NULL, 10);
        else if (option == 'c')
            post->connections = strtoul(optarg, NULL, 10);
        else if (option == 's')
            post->seconds = strtod(optarg, NULL);
        else if (option == 'w')
            post->warmup = strtod(optarg, NULL);
        else if (option == 'u')
            post->path = optarg;
        else if (option == 'i' && post->pid_count < PIDS_MAX)
            post->pids[post->pid_count++] = (pid_t)strtol(optarg, NULL, 10);
        else
            exit(2);
    }
    if (post->port <= 0 || post->connections == 0 ||
        post->connections > CONNECTIONS_MAX) {
        fprintf(stderr, "post: --port N is needed; --connections is 1 to %d\n",
                CONNECTIONS_MAX);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static struct post post = {
        .connections = 256, .seconds = 5, .warmup = 1, .path = "/events"};

    read_options(&post, argc, argv);
    post.clients = calloc(post.connections, sizeof(*post.clients));
    post.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (post.clients == NULL || post.epoll_fd < 0)
        die("could not begin");
    write_request(&post);
    for (size_t i = 0; i < post.connections; i++)
        connect_client(&post, &post.clients[i]);
    measure(&post);
    free(post.clients);
    if (post.errors == 0 && post.answers > 0)
        return 0;
    fprintf(stderr, "post: %llu errors, %llu answers; the first error: %s\n",
            (unsigned long long)post.errors, (unsigned long long)post.answers,
            post.fault);
    return 1;
}
