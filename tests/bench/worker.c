/*
 * worker.c - consumers of a group that do nothing but acknowledge, and how many cycles of a
 * delivery and its acknowledgement they get done.
 *
 *     worker --port N [--port N]... [--channel c] [--group workers] [--consumers 1] [--max 1]
 *            [--seconds 5] [--warmup 1]
 *
 * The consumers take turns at the ports. Each has one stream, in HTTP/1.0, so that its bytes
 * are frames and nothing else, and `max` kept connections to acknowledge on; so each delivery
 * is acknowledged as soon as it is read, whatever else is under way. One thread. Any answer but
 * 204 ends it all.
 *
 * Says "ready" when every stream is open; at the end one line of JSON. Status 1, and a text on
 * stderr, when anything went wrong.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base.h"
#include "figures.h"

#define PORTS_MAX     8
#define CONSUMERS_MAX 64
#define HANDS_MAX     100
#define ID_MAX        63
#define STREAM_BYTES  65536
#define ANSWER_MAX    1024

struct consumer;

/* A connection: a consumer's stream, or one of its hands, which acknowledge. */
struct line {
    int fd;
    struct consumer *consumer;
    bool is_stream;
    bool busy;   /* a hand: it waits for its answer */
    size_t have; /* bytes of an answer, or of a line of a frame, that is not whole yet */
    char *data;
    size_t size;
};

struct consumer {
    struct line stream;
    struct line hands[HANDS_MAX];
    int port;
    bool open;
    /* Ids for which no hand was free. There are more places than deliveries in hand: one is
     * free for the next a moment before its answer has arrived. */
    char waiting[2 * HANDS_MAX][ID_MAX + 1];
    size_t waiting_count;
};

static struct {
    int ports[PORTS_MAX];
    size_t port_count;
    const char *channel;
    const char *group;
    size_t consumers;
    size_t max;
    double seconds;
    double warmup;
    int epoll_fd;
    size_t open;
    uint64_t cycles;
} worker = {.channel = "c",
            .group = "workers",
            .consumers = 1,
            .max = 1,
            .seconds = 5,
            .warmup = 1};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "worker: %s: %s\n", what, why);
    exit(1);
}

static void send_all(const struct line *line, const char *text, int len, size_t size)
{
    if (len < 0 || (size_t)len >= size)
        die("a request", "it is too long");
    if (send(line->fd, text, (size_t)len, MSG_NOSIGNAL) != len)
        die("a request could not be sent whole", strerror(errno));
}

/* -- acknowledging -- */

static void acknowledge(struct line *hand, const char *id)
{
    char text[512];
    const int len = snprintf(text, sizeof(text),
                             "POST /events/%s/ack?group=%s HTTP/1.1\r\n"
                             "Host: 127.0.0.1:%d\r\nContent-Length: 0\r\n\r\n",
                             id, worker.group, hand->consumer->port);

    hand->busy = true;
    hand->have = 0;
    send_all(hand, text, len, sizeof(text));
}

static void take_delivery(struct consumer *consumer, const char *id)
{
    for (size_t i = 0; i < worker.max; i++) {
        if (!consumer->hands[i].busy) {
            acknowledge(&consumer->hands[i], id);
            return;
        }
    }
    if (consumer->waiting_count == ARRAY_SIZE(consumer->waiting))
        die("a consumer", "it has more in hand than it may");
    (void)snprintf(consumer->waiting[consumer->waiting_count++], ID_MAX + 1, "%s", id);
}

static void take_answer(struct line *hand)
{
    struct consumer *consumer = hand->consumer;

    hand->data[hand->have] = '\0';
    if (strstr(hand->data, "\r\n\r\n") == NULL)
        return;
    if (strncmp(hand->data, "HTTP/1.1 204 ", 13) != 0)
        die("an acknowledgement was not taken", hand->data);
    worker.cycles++;
    hand->busy = false;
    if (consumer->waiting_count > 0)
        acknowledge(hand, consumer->waiting[--consumer->waiting_count]);
}

/* -- the stream -- */

static void take_line(struct consumer *consumer, const char *line)
{
    if (!consumer->open && line[0] == '\0') {
        consumer->open = true;
        worker.open++;
    } else if (!consumer->open && strncmp(line, "HTTP/1.", 7) == 0 &&
               strncmp(line + 8, " 200", 4) != 0) {
        die("a stream was not opened", line);
    } else if (strncmp(line, "id: ", 4) == 0 && strlen(line + 4) <= ID_MAX) {
        take_delivery(consumer, line + 4);
    }
}

/* Each line that is whole; the rest is kept. */
static void take_lines(struct line *stream)
{
    char *begin = stream->data, *end;

    while ((end = memchr(begin, '\n', (size_t)(stream->data + stream->have - begin))) !=
           NULL) {
        *end = '\0';
        if (end > begin && end[-1] == '\r')
            end[-1] = '\0';
        take_line(stream->consumer, begin);
        begin = end + 1;
    }
    stream->have -= (size_t)(begin - stream->data);
    memmove(stream->data, begin, stream->have);
}

/* -- the whole -- */

static void ready(struct line *line)
{
    const ssize_t len = recv(line->fd, line->data + line->have,
                             line->size - 1 - line->have, MSG_DONTWAIT);

    if (len < 0 && errno == EAGAIN)
        return;
    if (len <= 0)
        die("a connection was closed", len < 0 ? strerror(errno) : "by the gateway");
    line->have += (size_t)len;
    if (line->is_stream)
        take_lines(line);
    else
        take_answer(line);
    if (line->have >= line->size - 1)
        die("a line or an answer", "it is too long");
}

static void run_until(uint64_t end_usec, size_t open)
{
    struct epoll_event events[256];

    while (figures_now_usec() < end_usec && worker.open < open) {
        const int count = epoll_wait(worker.epoll_fd, events, ARRAY_SIZE(events), 100);

        if (count < 0 && errno != EINTR)
            die("epoll_wait", strerror(errno));
        for (int i = 0; i < count; i++)
            ready(events[i].data.ptr);
    }
}

static void connect_line(struct line *line, struct consumer *consumer, bool is_stream)
{
    const struct sockaddr_in address = {.sin_family = AF_INET,
                                        .sin_port = htons((uint16_t)consumer->port),
                                        .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int one = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = line};

    line->consumer = consumer;
    line->is_stream = is_stream;
    line->size = is_stream ? STREAM_BYTES : ANSWER_MAX;
    line->data = malloc(line->size);
    line->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (line->data == NULL || line->fd < 0 ||
        connect(line->fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
        setsockopt(line->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)) < 0 ||
        epoll_ctl(worker.epoll_fd, EPOLL_CTL_ADD, line->fd, &event) < 0)
        die("could not connect", strerror(errno));
}

static void open_consumer(struct consumer *consumer)
{
    char text[512];

    for (size_t i = 0; i < worker.max; i++)
        connect_line(&consumer->hands[i], consumer, false);
    connect_line(&consumer->stream, consumer, true);
    const int len = snprintf(text, sizeof(text),
                             "GET /events?channel=%s&group=%s&max=%zu HTTP/1.0\r\n"
                             "Host: 127.0.0.1:%d\r\n\r\n",
                             worker.channel, worker.group, worker.max, consumer->port);
    send_all(&consumer->stream, text, len, sizeof(text));
}

static void read_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},
        {"channel", required_argument, NULL, 'c'},
        {"group", required_argument, NULL, 'g'},
        {"consumers", required_argument, NULL, 'n'},
        {"max", required_argument, NULL, 'm'},
        {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'w'},
        {NULL, 0, NULL, 0},
    };

    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'p' && worker.port_count < PORTS_MAX)
            worker.ports[worker.port_count++] = (int)strtol(optarg, NULL, 10);
        else if (option == 'c')
            worker.channel = optarg;
        else if (option == 'g')
            worker.group = optarg;
        else if (option == 'n')
            worker.consumers = strtoul(optarg, NULL, 10);
        else if (option == 'm')
            worker.max = strtoul(optarg, NULL, 10);
        else if (option == 's')
            worker.seconds = strtod(optarg, NULL);
        else if (option == 'w')
            worker.warmup = strtod(optarg, NULL);
        else
            exit(2);
    }
    if (worker.port_count == 0 || worker.consumers == 0 || worker.max == 0 ||
        worker.consumers > CONSUMERS_MAX || worker.max > HANDS_MAX) {
        fprintf(stderr,
                "worker: --port N is needed; --consumers is 1 to %d, --max 1 to %d\n",
                CONSUMERS_MAX, HANDS_MAX);
        exit(2);
    }
}

static void measure(void)
{
    const pid_t self = getpid();

    run_until(figures_now_usec() + (uint64_t)(worker.warmup * 1e6), SIZE_MAX);

    const double cpu_before = figures_cpu_seconds(&self, 1);
    const uint64_t begin = figures_now_usec(), before = worker.cycles;

    run_until(begin + (uint64_t)(worker.seconds * 1e6), SIZE_MAX);

    const double seconds = (double)(figures_now_usec() - begin) / 1e6;
    const uint64_t cycles = worker.cycles - before;

    printf("{\"consumers\":%zu,\"max\":%zu,\"seconds\":%.3f,\"cycles\":%llu,"
           "\"cycles_per_second\":%.0f,\"cycles_in_all\":%llu,"
           "\"worker_cpu_seconds\":%.3f}\n",
           worker.consumers, worker.max, seconds, (unsigned long long)cycles,
           (double)cycles / seconds, (unsigned long long)worker.cycles,
           figures_cpu_seconds(&self, 1) - cpu_before);
}

int main(int argc, char **argv)
{
    static struct consumer consumers[CONSUMERS_MAX];

    read_options(argc, argv);
    figures_raise_file_limit();
    worker.epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (worker.epoll_fd < 0)
        die("epoll_create1", strerror(errno));
    for (size_t i = 0; i < worker.consumers; i++) {
        consumers[i].port = worker.ports[i % worker.port_count];
        open_consumer(&consumers[i]);
    }
    run_until(figures_now_usec() + 10000000, worker.consumers);
    if (worker.open < worker.consumers)
        die("the streams", "not all were open within 10 s");
    printf("ready\n");
    (void)fflush(stdout);
    measure();
    for (size_t i = 0; i < worker.consumers; i++) {
        for (size_t j = 0; j < worker.max; j++)
            free(consumers[i].hands[j].data);
        free(consumers[i].stream.data);
    }
    return 0;
}
