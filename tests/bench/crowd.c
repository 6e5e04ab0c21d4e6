#include "crowd.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

/* Ports of one source address are not enough: so many subscribers share one. */
#define SUBSCRIBERS_PER_ADDRESS 10000

#define CONNECTING_MAX 500     /* at the beginning, before anything is measured */
#define AGAIN_USEC     2000000 /* the time that a gateway tells, unless set otherwise */
#define READ_BYTES     (1024 * 1024)
#define LINE_MAX_BYTES 1024 /* of a line that is not whole yet */
#define DISCARD_BYTES  (16 * 1024 * 1024)

struct subscriber {
    int fd;
    uint32_t channel;
    uint64_t next; /* number of the event that comes next */
    uint64_t bytes;
    char *line; /* the beginning of one */
    uint32_t line_len;
    bool asked; /* connected, and its request is sent */
    bool greeted;
    bool sampled; /* is read, not only counted */
    bool caught_up;
};

struct crowd {
    const struct crowd_plan *plan;
    struct crowd_order *order;
    struct crowd_report *report;
    struct subscriber *subscribers;
    size_t first;
    size_t count;
    size_t begun;      /* connections */
    size_t connecting; /* of them, not greeted */
    bool returning;
    bool counting;
    uint64_t again_usec;  /* when who was refused tries again; 0: nobody was */
    uint64_t returned_to; /* published when they were told to return */
    int epoll_fd;
    char id[CROWD_ID_MAX]; /* of the frame being read, of the first subscriber */
    char *space;           /* LINE_MAX_BYTES, then READ_BYTES */
};

static void raise_count(_Atomic uint64_t *count, uint64_t by)
{
    atomic_fetch_add_explicit(count, by, memory_order_relaxed);
}

/* -- connecting -- */

/* -EAGAIN: the connection does not stand yet. */
static int send_request(struct crowd *crowd, struct subscriber *subscriber)
{
    char path[128], request[2048], resume[CROWD_ID_MAX + 20] = "";

    /* The path is the plan's own. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    (void)snprintf(path, sizeof(path), crowd->plan->path, crowd->plan->prefix,
                   subscriber->channel);
#pragma GCC diagnostic pop
    if (crowd->returning)
        (void)snprintf(resume, sizeof(resume), "Last-Event-ID: %s\r\n",
                       crowd->order->resume_id);
    const int len = snprintf(request, sizeof(request),
                             "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%u\r\n"
                             "Accept: text/event-stream\r\n%s\r\n",
                             path, crowd->plan->port, resume);
    const ssize_t sent = send(subscriber->fd, request, (size_t)len, MSG_NOSIGNAL);
    subscriber->asked = sent == len;
    return subscriber->asked ? 0 : sent < 0 ? -errno : -EIO;
}

/* Its request, and from then on its answers are waited for; until the connection stands, that. */
static int ask(struct crowd *crowd, struct subscriber *subscriber, int operation)
{
    const int result = send_request(crowd, subscriber);
    struct epoll_event event = {.events = result == 0 ? EPOLLIN : EPOLLOUT,
                                .data = {.ptr = subscriber}};

    if (result < 0 && result != -EAGAIN)
        return result;
    return epoll_ctl(crowd->epoll_fd, operation, subscriber->fd, &event) < 0 ? -errno : 0;
}

static int begin_one(struct crowd *crowd, size_t index)
{
    const size_t number = crowd->first + index;
    struct subscriber *subscriber = &crowd->subscribers[index];
    const int one = 1;
    const struct sockaddr_in from = {
        .sin_family = AF_INET,
        .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK + 1 +
                                     (uint32_t)(number / SUBSCRIBERS_PER_ADDRESS))},
    };
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)crowd->plan->port),
                                   .sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)}};

    subscriber->channel = (uint32_t)(number % crowd->plan->channels);
    subscriber->next =
        crowd->returning ? CROWD_GET(crowd->order->first) + 1 : subscriber->channel;
    subscriber->sampled = !crowd->plan->sampled || index % CROWD_SAMPLE == 0;
    subscriber->asked = false;
    subscriber->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (subscriber->fd < 0 ||
        setsockopt(subscriber->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one,
                   sizeof(one)) < 0 ||
        bind(subscriber->fd, (const struct sockaddr *)&from, sizeof(from)) < 0 ||
        (connect(subscriber->fd, (const struct sockaddr *)&to, sizeof(to)) < 0 &&
         errno != EINPROGRESS))
        return -errno;
    return ask(crowd, subscriber, EPOLL_CTL_ADD);
}

/* As many as may be under way; all who return are, and come one behind the other. */
static int begin_more(struct crowd *crowd)
{
    const size_t most = crowd->returning ? crowd->count : CONNECTING_MAX;

    while (crowd->begun < crowd->count && crowd->connecting < most) {
        const int result = begin_one(crowd, crowd->begun);

        if (result < 0) {
            (void)fprintf(stderr, "load: subscriber %zu cannot connect: %s\n",
                          crowd->first + crowd->begun, strerror(-result));
            return result;
        }
        crowd->begun++;
        crowd->connecting++;
    }
    return 0;
}

/* As an EventSource does: a little later it tries once more. */
static int be_refused(struct crowd *crowd, struct subscriber *subscriber)
{
    (void)close(subscriber->fd);
    subscriber->fd = -1;
    raise_count(&crowd->report->refused, 1);
    if (crowd->again_usec == 0)
        crowd->again_usec = figures_now_usec() + AGAIN_USEC;
    return 0;
}

static int begin_again(struct crowd *crowd)
{
    if (crowd->again_usec == 0 || figures_now_usec() < crowd->again_usec)
        return 0;
    crowd->again_usec = 0;
    for (size_t i = 0; i < crowd->begun; i++) {
        if (crowd->subscribers[i].fd < 0 && begin_one(crowd, i) < 0)
            return -1;
    }
    return 0;
}

/* -- reading -- */

static void have_caught_up(struct crowd *crowd, struct subscriber *subscriber,
                           uint64_t now)
{
    subscriber->caught_up = true;
    CROWD_SET(crowd->report->caught_up_usec, now);
    atomic_fetch_add_explicit(&crowd->report->caught_up, 1, memory_order_release);
}

static void take_event(struct crowd *crowd, struct subscriber *subscriber,
                       uint64_t number, uint64_t sent_usec, uint64_t now)
{
    struct crowd_report *report = crowd->report;

    if (number < subscriber->next) {
        raise_count(&report->doubled, 1);
        return;
    }
    raise_count(&report->missing, (number - subscriber->next) / crowd->plan->channels);
    subscriber->next = number + crowd->plan->channels;
    if (crowd->returning) {
        if (!subscriber->caught_up && subscriber->next >= crowd->returned_to)
            have_caught_up(crowd, subscriber, now);
        return;
    }
    if (number >= CROWD_GET(crowd->order->first))
        histogram_add(&report->latency[CROWD_GET(crowd->order->book)], now - sent_usec);
    if (number < crowd->plan->events_max) {
        report->arrivals[number].last_usec = now;
        report->arrivals[number].count++;
    }
    if (subscriber == crowd->subscribers && crowd->first == 0 &&
        number == CROWD_GET(crowd->order->first) && !crowd->order->resume_id_known) {
        memcpy(crowd->order->resume_id, crowd->id, sizeof(crowd->id));
        CROWD_SET(crowd->order->resume_id_known, true);
    }
    if (!crowd->plan->sampled)
        raise_count(&report->deliveries, 1);
}

/* One line, without its line feed; there is a byte behind it that ends a number. */
static void take_line(struct crowd *crowd, struct subscriber *subscriber,
                      const char *line, size_t len, uint64_t now)
{
    static const char data[] = "data: {\"n\":\"";

    if (len > 40 && memcmp(line, data, sizeof(data) - 1) == 0) {
        const uint64_t number = strtoull(line + 12, NULL, 10);
        const uint64_t sent = strtoull(line + 29, NULL, 10);

        take_event(crowd, subscriber, number, sent, now);
    } else if (len > 4 && memcmp(line, "id: ", 4) == 0) {
        if (subscriber == crowd->subscribers)
            (void)snprintf(crowd->id, sizeof(crowd->id), "%.*s", (int)(len - 4),
                           line + 4);
    } else if (len == 10 && memcmp(line, "event: gap", 10) == 0) {
        raise_count(&crowd->report->gaps, 1);
    }
}

static void greet(struct crowd *crowd, struct subscriber *subscriber)
{
    subscriber->greeted = true;
    crowd->connecting--;
    atomic_fetch_add_explicit(&crowd->report->connected, 1, memory_order_release);
}

/* What has come, with the beginning of a line from before in front of it. */
static int take_bytes(struct crowd *crowd, struct subscriber *subscriber, size_t len)
{
    char *bytes = crowd->space + LINE_MAX_BYTES - subscriber->line_len;
    char *const end = crowd->space + LINE_MAX_BYTES + len;
    const uint64_t now = figures_now_usec();

    memcpy(bytes, subscriber->line != NULL ? subscriber->line : "", subscriber->line_len);
    subscriber->line_len = 0;
    if (!subscriber->greeted) {
        static const char ok[] = "HTTP/1.1 200";

        if (memcmp(bytes, ok, sizeof(ok) - 1) != 0) {
            (void)fprintf(stderr, "load: a subscriber was answered %.60s\n", bytes);
            return -EPROTO;
        }
        greet(crowd, subscriber);
    }
    for (char *stop; (stop = memchr(bytes, '\n', (size_t)(end - bytes))) != NULL;
         bytes = stop + 1)
        take_line(crowd, subscriber, bytes, (size_t)(stop - bytes), now);
    if (bytes == end) {
        free(subscriber->line);
        subscriber->line = NULL;
        return 0;
    }
    const size_t rest = (size_t)(end - bytes);
    if (subscriber->line == NULL)
        subscriber->line = malloc(LINE_MAX_BYTES);
    if (subscriber->line == NULL || rest > LINE_MAX_BYTES)
        return -ENOMEM;
    memcpy(subscriber->line, bytes, rest);
    subscriber->line_len = (uint32_t)rest;
    return 0;
}

static int read_some(struct crowd *crowd, struct subscriber *subscriber)
{
    if (!subscriber->asked) {
        const int result = ask(crowd, subscriber, EPOLL_CTL_MOD);

        return result < 0 && crowd->returning ? be_refused(crowd, subscriber) : result;
    }
    const bool discard = !subscriber->sampled && subscriber->greeted;
    const ssize_t len = discard ? recv(subscriber->fd, crowd->space, DISCARD_BYTES,
                                       MSG_DONTWAIT | MSG_TRUNC)
                                : recv(subscriber->fd, crowd->space + LINE_MAX_BYTES,
                                       READ_BYTES, MSG_DONTWAIT);

    if (len < 0 && errno == EAGAIN)
        return 0;
    if (len <= 0 && crowd->returning && !subscriber->greeted)
        return be_refused(crowd, subscriber);
    if (len <= 0) {
        (void)epoll_ctl(crowd->epoll_fd, EPOLL_CTL_DEL, subscriber->fd, NULL);
        atomic_fetch_add_explicit(&crowd->report->lost, 1, memory_order_relaxed);
        return subscriber->greeted ? 0 : -ECONNRESET;
    }
    subscriber->bytes += (uint64_t)len;
    return discard ? 0 : take_bytes(crowd, subscriber, (size_t)len);
}

/* -- how far they are, where only bytes are counted -- */

/* From here on everybody is sent the same. */
static void begin_counting(struct crowd *crowd)
{
    crowd->counting = true;
    for (size_t i = 0; i < crowd->count; i++)
        crowd->subscribers[i].bytes = 0;
    CROWD_SET(crowd->report->counting, true);
}

static void compare_bytes(struct crowd *crowd)
{
    const uint64_t published = CROWD_GET(crowd->order->published);
    const uint64_t bytes = crowd->subscribers[0].bytes;
    uint64_t equal = 0;

    if (crowd->subscribers[0].next != published)
        return;
    for (size_t i = 0; i < crowd->count; i++) {
        const struct subscriber *subscriber = &crowd->subscribers[i];

        equal += subscriber->bytes == bytes &&
                 (!subscriber->sampled || subscriber->next == published);
    }
    CROWD_SET(crowd->report->deliveries, equal * published);
}

/* -- the loop -- */

static bool may_begin(struct crowd *crowd)
{
    if (!crowd->returning || crowd->begun > 0)
        return true;
    if (!CROWD_GET(crowd->order->returning))
        return false;
    crowd->returned_to = CROWD_GET(crowd->order->published);
    return true;
}

static int turn(struct crowd *crowd)
{
    struct epoll_event events[512];

    if (may_begin(crowd) && (begin_more(crowd) < 0 || begin_again(crowd) < 0))
        return -1;
    if (!crowd->counting && CROWD_GET(crowd->order->counting))
        begin_counting(crowd);
    const int count = epoll_wait(crowd->epoll_fd, events, 512, 5);
    for (int i = 0; i < count; i++) {
        const int result = read_some(crowd, events[i].data.ptr);

        if (result < 0) {
            (void)fprintf(stderr, "load: a subscriber could not go on: %s\n",
                          strerror(-result));
            return -1;
        }
    }
    if (crowd->plan->sampled && crowd->counting && count < 32)
        compare_bytes(crowd);
    return 0;
}

static int run(struct crowd *crowd)
{
    crowd->subscribers = calloc(crowd->count, sizeof(*crowd->subscribers));
    crowd->space = malloc(LINE_MAX_BYTES + READ_BYTES + 1);
    crowd->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (crowd->subscribers == NULL || crowd->space == NULL || crowd->epoll_fd < 0) {
        perror("load: a crowd");
        return 1;
    }
    while (!CROWD_GET(crowd->order->over)) {
        if (turn(crowd) < 0)
            return 1;
    }
    return 0;
}

/* -- as a process -- */

void *crowd_share(size_t bytes)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED) {
        perror("load: memory");
        exit(1);
    }
    return memory;
}

pid_t crowd_start(const struct crowd_plan *plan, struct crowd_order *order, size_t first,
                  size_t count, bool returning, struct crowd_report **ret_report)
{
    const pid_t parent = getpid();
    struct crowd crowd = {
        .plan = plan,
        .order = order,
        .report = crowd_share(sizeof(*crowd.report)),
        .first = first,
        .count = count,
        .returning = returning,
    };

    crowd.report->arrivals =
        crowd_share((plan->events_max + 1) * sizeof(*crowd.report->arrivals));
    *ret_report = crowd.report;
    const pid_t child = fork();
    if (child < 0)
        perror("load: a crowd");
    if (child != 0)
        return child;
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
    exit(getppid() == parent ? run(&crowd) : 1);
}

bool crowd_is_there(pid_t *crowd)
{
    if (waitpid(*crowd, NULL, WNOHANG) == 0)
        return true;
    *crowd = 0;
    (void)fprintf(stderr, "load: a process of subscribers has ended\n");
    return false;
}

void crowd_end(pid_t *crowd)
{
    if (*crowd > 0)
        (void)waitpid(*crowd, NULL, 0);
    *crowd = 0;
}
