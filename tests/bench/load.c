/*
 * load.c - many subscribers and one publisher, and what came of it.
 *
 *     load --server gateway --port 8080 --subscribers 10000 --rate 20 --seconds 5 --pid 4711
 *
 * The subscribers (crowd.h) live in processes of their own, as many as the file limit makes
 * necessary. Events are published by POST at a fixed rate, whether or not the server keeps up, so
 * that a server that is late is seen to be late. First a time to warm up; when all of its events
 * have arrived, the measured time begins, and it ends when all of its events have arrived.
 *
 * Several loads that take turns (--slot) begin together (--hold): each says "ready" when its
 * subscribers are connected, and goes on when it is sent a line. Their times to warm up and to
 * measure begin with a turn, so that they are the same for all. Held, a storm waits for a line
 * of its own. When all that was measured has arrived, each says "done", and its subscribers stay
 * until it is sent a line or the end of its input: thousands who hang up at once would be a load
 * for a server that still has its turn.
 *
 * Prints one line of JSON. Status 1, and why on stderr, when an event is missing or doubled.
 */
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crowd.h"
#include "figures.h"
#include "posting.h"
#include "storm.h"

#define PIDS_MAX          8
#define CROWDS_MAX        8
#define CROWD_MAX         19500 /* of 20 000 files a process may have where this was written */
#define THREADS_MAX       64
#define CONNECT_USEC      60000000
#define SETTLE_USEC       1000000
#define STORM_MAX_SECONDS 60
#define SECOND            1000000

struct load {
    size_t subscribers;
    double seconds;
    double warmup;
    double patience; /* where nothing arrives any more */
    pid_t pids[PIDS_MAX];
    size_t pid_count;
    size_t storm_count;
    unsigned elsewhere; /* a port that the storm comes to first; 0: none */
    bool hold;
    bool each; /* event's completion is said */

    struct crowd_plan plan;
    struct crowd_order *order;
    struct crowd_report *reports[CROWDS_MAX];
    pid_t crowds[CROWDS_MAX];
    size_t crowd_count; /* of subscribers; one more returns if there is a storm */
    struct posting posting;

    /* what came of it */
    uint64_t measured_from;
    double cpu_seconds;
    double generator_cpu_seconds;
    double duration;
    struct thread_time {
        char name[20];
        double before;
        double after;
    } threads[THREADS_MAX];
    size_t thread_count;
    struct storm *storm; /* NULL: none */
    double elsewhere_seconds;
    uint64_t storm_missing;
};

static void end_crowds(struct load *load)
{
    CROWD_SET(load->order->over, true);
    for (size_t i = 0; i < load->crowd_count; i++)
        crowd_end(&load->crowds[i]);
}

static void die(struct load *load, const char *what)
{
    (void)fprintf(stderr, "load: %s\n", what);
    end_crowds(load);
    exit(1);
}

/* -- the crowds -- */

static void start_crowds(struct load *load)
{
    size_t begun = 0;

    load->crowd_count = (load->subscribers + CROWD_MAX - 1) / CROWD_MAX;
    for (size_t i = 0; i < load->crowd_count; i++) {
        const size_t count = (load->subscribers - begun) / (load->crowd_count - i);

        load->crowds[i] =
            crowd_start(&load->plan, load->order, begun, count, false, &load->reports[i]);
        if (load->crowds[i] < 0)
            exit(1);
        begun += count;
    }
}

static void check_crowds(struct load *load)
{
    for (size_t i = 0; i < load->crowd_count; i++) {
        if (!crowd_is_there(&load->crowds[i]))
            die(load, "it was needed");
    }
}

static size_t count_connected(const struct load *load)
{
    size_t sum = 0;

    for (size_t i = 0; i < load->crowd_count; i++)
        sum += CROWD_GET(load->reports[i]->connected);
    return sum;
}

static uint64_t count_deliveries(const struct load *load)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < load->crowd_count; i++)
        sum += CROWD_GET(load->reports[i]->deliveries);
    return sum;
}

static void await_connected(struct load *load)
{
    const uint64_t due = figures_now_usec() + CONNECT_USEC;

    while (count_connected(load) < load->subscribers) {
        check_crowds(load);
        if (figures_now_usec() > due)
            die(load, "not all subscribers could connect in a minute");
        figures_sleep_until(figures_now_usec() + 10000);
    }
    figures_sleep_until(figures_now_usec() + SETTLE_USEC);
    CROWD_SET(load->order->counting, true);
    for (size_t i = 0; i < load->crowd_count; i++) {
        while (!CROWD_GET(load->reports[i]->counting))
            figures_sleep_until(figures_now_usec() + 1000);
    }
}

/* How many deliveries that many events are. */
static uint64_t expected_deliveries(const struct load *load, uint64_t events)
{
    const size_t channels = load->plan.channels;
    uint64_t sum = 0;

    for (size_t channel = 0; channel < channels && channel < events; channel++) {
        const uint64_t members = (load->subscribers - channel + channels - 1) / channels;

        sum += (events - channel + channels - 1) / channels * members;
    }
    return sum;
}

/* -- publishing -- */

static void publish_for(struct load *load, double seconds, bool (*enough)(void *argument))
{
    if (posting_run(&load->posting, seconds, enough, load) < 0)
        die(load, "publishing failed");
    check_crowds(load);
}

/* Until all that was published has arrived, or nothing arrives any more. */
static void await_deliveries(struct load *load)
{
    const uint64_t expected =
        expected_deliveries(load, CROWD_GET(load->order->published));
    uint64_t before = 0, due = 0;

    for (;;) {
        const uint64_t now = figures_now_usec(), deliveries = count_deliveries(load);

        if (deliveries >= expected && load->posting.answers >= load->posting.answers_due)
            return;
        if (deliveries != before || due == 0)
            due = now + (uint64_t)(load->patience * SECOND);
        before = deliveries;
        if (now > due) {
            (void)fprintf(stderr, "load: %" PRIu64 " deliveries of %" PRIu64 "\n",
                          deliveries, expected);
            return; /* and is told in the result */
        }
        if (posting_look(&load->posting) < 0)
            die(load, "publishing failed");
        check_crowds(load);
        figures_sleep_until(now + 1000);
    }
}

/* -- measuring -- */

static void note_thread(void *argument, const char *name, double cpu_seconds)
{
    struct load *load = argument;
    struct thread_time *thread = load->threads;

    for (; thread < load->threads + load->thread_count; thread++) {
        if (strcmp(thread->name, name) == 0)
            break;
    }
    if (thread == load->threads + THREADS_MAX)
        return;
    if (thread == load->threads + load->thread_count) {
        load->thread_count++;
        (void)snprintf(thread->name, sizeof(thread->name), "%s", name);
    }
    thread->after += cpu_seconds;
}

static void look_at_threads(struct load *load)
{
    for (size_t i = 0; i < load->thread_count; i++) {
        load->threads[i].before = load->threads[i].after;
        load->threads[i].after = 0;
    }
    for (size_t i = 0; i < load->pid_count; i++)
        figures_each_thread(load->pids[i], note_thread, load);
}

static double generator_cpu(const struct load *load)
{
    const pid_t self = getpid();
    double sum = figures_cpu_seconds(&self, 1);

    for (size_t i = 0; i < CROWDS_MAX; i++) {
        if (load->crowds[i] > 0)
            sum += figures_cpu_seconds(&load->crowds[i], 1);
    }
    return sum;
}

static bool is_over(void *argument)
{
    const struct load *load = argument;

    return storm_is_over(load->storm);
}

static void weather(struct load *load, unsigned port, enum crowd_book book)
{
    if (storm_break(load->storm, port) < 0)
        die(load, "there was no storm");
    CROWD_SET(load->order->book, book);
    publish_for(load, STORM_MAX_SECONDS, is_over);
    storm_calm(load->storm);
}

/* Somebody waits until all of several are so far. false: nobody does. */
static bool await_word(const char *so_far)
{
    char line[16];

    (void)printf("%s\n", so_far);
    (void)fflush(stdout);
    return fgets(line, sizeof(line), stdin) != NULL;
}

static void await_beginning(struct load *load)
{
    if (load->hold && !await_word("ready"))
        die(load, "nobody said that it begins");
}

/* Where they come elsewhere first, the cores are all that they share with who is live here. */
static void weather_storms(struct load *load)
{
    if (load->elsewhere > 0) {
        weather(load, load->elsewhere, BOOK_ELSEWHERE);
        load->elsewhere_seconds = storm_seconds(load->storm);
        await_deliveries(load);
        figures_sleep_until(figures_now_usec() + SETTLE_USEC);
    }
    await_beginning(load);
    weather(load, load->plan.port, BOOK_DURING);
    load->storm_missing = storm_end(load->storm);
}

static void measure(struct load *load)
{
    CROWD_SET(load->order->first, UINT64_MAX);
    posting_await_turn(&load->posting);
    publish_for(load, load->warmup, NULL);
    if (load->storm != NULL && storm_gather(load->storm) < 0)
        die(load, "nobody publishes for the storm");
    await_deliveries(load);
    posting_await_turn(&load->posting);

    load->measured_from = CROWD_GET(load->order->published);
    CROWD_SET(load->order->first, load->measured_from);
    look_at_threads(load);
    load->generator_cpu_seconds = -generator_cpu(load);
    load->cpu_seconds = -figures_cpu_seconds(load->pids, load->pid_count);
    const uint64_t begin = figures_now_usec();
    publish_for(load, load->seconds, NULL);
    if (load->storm != NULL)
        weather_storms(load);
    await_deliveries(load);
    load->duration = (double)(figures_now_usec() - begin) / SECOND;
    load->cpu_seconds += figures_cpu_seconds(load->pids, load->pid_count);
    load->generator_cpu_seconds += generator_cpu(load);
    look_at_threads(load);
    if (CROWD_GET(load->order->published) == load->measured_from)
        die(load, "nothing was published in the measured time");
}

/* -- the result -- */

/* From an event's sending until its last subscriber had it. */
static uint64_t completion_usec(const struct load *load, uint64_t event)
{
    uint64_t last = load->posting.sent_usec[event];

    for (size_t i = 0; i < load->crowd_count; i++) {
        if (load->reports[i]->arrivals[event].last_usec > last)
            last = load->reports[i]->arrivals[event].last_usec;
    }
    return last - load->posting.sent_usec[event];
}

static void count_complete(const struct load *load, struct histogram *ret_complete)
{
    const uint64_t published = CROWD_GET(load->order->published);

    for (uint64_t k = load->measured_from; k < published; k++) {
        const uint64_t usec = completion_usec(load, k);

        if (usec > 0)
            histogram_add(ret_complete, usec);
    }
}

struct sums {
    uint64_t missing;
    uint64_t doubled;
    uint64_t gaps;
    size_t lost;
    struct histogram latency[BOOK_COUNT];
    struct histogram complete;
};

static void add_up(const struct load *load, struct sums *sums)
{
    const uint64_t expected =
        expected_deliveries(load, CROWD_GET(load->order->published));
    const uint64_t deliveries = count_deliveries(load);

    sums->missing = expected - deliveries + load->storm_missing;
    for (size_t i = 0; i < load->crowd_count; i++) {
        const struct crowd_report *report = load->reports[i];

        sums->doubled += report->doubled;
        sums->gaps += report->gaps;
        sums->lost += report->lost;
        for (size_t book = 0; book < BOOK_COUNT; book++)
            histogram_merge(&sums->latency[book], &report->latency[book]);
    }
    count_complete(load, &sums->complete);
}

static void print_each(const struct load *load)
{
    const uint64_t published = CROWD_GET(load->order->published);

    (void)printf(",\"each_complete_usec\":[");
    for (uint64_t k = load->measured_from; k < published; k++)
        (void)printf("%s%" PRIu64, k > load->measured_from ? "," : "",
                     completion_usec(load, k));
    (void)printf("]");
}

static void print_threads(const struct load *load)
{
    (void)printf(",\"threads\":{");
    for (size_t i = 0; i < load->thread_count; i++)
        (void)printf("%s\"%s\":%.6f", i > 0 ? "," : "", load->threads[i].name,
                     load->threads[i].after - load->threads[i].before);
    (void)printf("}");
}

static void print_storm(const struct load *load, const struct sums *sums)
{
    (void)printf(",\"storm\":{\"live_p99_before_usec\":%" PRIu64
                 ",\"live_p99_during_usec\":%" PRIu64 ",",
                 histogram_quantile(&sums->latency[BOOK_BEFORE], 0.99),
                 histogram_quantile(&sums->latency[BOOK_DURING], 0.99));
    if (load->elsewhere > 0)
        (void)printf("\"live_p99_elsewhere_usec\":%" PRIu64
                     ",\"caught_up_elsewhere_seconds\":%.3f,",
                     histogram_quantile(&sums->latency[BOOK_ELSEWHERE], 0.99),
                     load->elsewhere_seconds);
    storm_print(stdout, load->storm);
    (void)printf("}");
}

static void print_result(const struct load *load, const struct sums *sums)
{
    const uint64_t published = CROWD_GET(load->order->published);
    const uint64_t events = published - load->measured_from;
    const double deliveries = (double)(expected_deliveries(load, published) -
                                       expected_deliveries(load, load->measured_from));

    (void)printf("{\"server\":\"%s\",\"subscribers\":%zu,\"channels\":%zu,\"rate\":%g,"
                 "\"burst\":%u",
                 load->posting.dialect->name, load->subscribers, load->plan.channels,
                 load->posting.rate, load->posting.burst);
    (void)printf(",\"events\":%" PRIu64 ",\"deliveries\":%.0f,\"missing\":%" PRIu64
                 ",\"doubled\":%" PRIu64 ",\"gaps\":%" PRIu64 ",\"lost\":%zu"
                 ",\"seconds\":%.3f,\"deliveries_per_second\":%.0f"
                 ",\"server_cpu_seconds\":%.6f,\"cpu_usec_per_delivery\":%.4f"
                 ",\"cpu_usec_per_event\":%.2f,\"generator_cpu_seconds\":%.3f"
                 ",\"latency_usec\":",
                 events, deliveries, sums->missing, sums->doubled, sums->gaps, sums->lost,
                 load->duration, deliveries / load->duration, load->cpu_seconds,
                 load->cpu_seconds / deliveries * SECOND,
                 load->cpu_seconds / (double)events * SECOND,
                 load->generator_cpu_seconds);
    histogram_print(stdout, &sums->latency[BOOK_BEFORE]);
    (void)printf(",\"complete_usec\":");
    histogram_print(stdout, &sums->complete);
    if (load->each)
        print_each(load);
    print_threads(load);
    if (load->storm != NULL)
        print_storm(load, sums);
    (void)printf("}\n");
}

/* -- arguments -- */

static void usage(FILE *out)
{
    (void)fprintf(
        out,
        "usage: load --server gateway|bare|node|nchan --port PORT [OPTION]...\n"
        "  --publish-port PORT  where events are POSTed; the same, unless given\n"
        "  --subscribers N      1000\n"
        "  --channels N         1; subscriber i listens to channel i mod N, event k goes "
        "to\n"
        "                       channel k mod N\n"
        "  --prefix TEXT        c; the channels' names, before their number\n"
        "  --rate N             events a second, 10\n"
        "  --burst N            events in one POST, 1\n"
        "  --warmup SECONDS     1\n"
        "  --seconds SECONDS    5, of publishing that is measured\n"
        "  --patience SECONDS   15, without a delivery, until the rest is called "
        "missing\n"
        "  --slot I/N           publish in one second of N only, so that several take "
        "turns\n"
        "  --hold               say \"ready\" when all are connected, and \"done\" when "
        "all has\n"
        "                       arrived, and wait for a line each time\n"
        "  --each               say of each event when its last subscriber had it\n"
        "  --pid PID            of the server, for its processor time; "
        "repeatable\n"
        "  --count              read one subscriber in 50, and count the others' bytes\n"
        "  --storm N            so many more subscribers, of another channel, come at "
        "once\n"
        "                       after the measured time, and have missed all of it; "
        "with\n"
        "                       --hold, when they are sent a line for it\n"
        "  --elsewhere PORT     to a server of the same events that is there, and then "
        "here\n");
}

static void take_option(struct load *load, int option)
{
    switch (option) {
    case 's':
        load->posting.dialect = posting_find_dialect(optarg);
        break;
    case 'p':
        load->plan.port = (unsigned)strtoul(optarg, NULL, 10);
        break;
    case 'q':
        load->posting.port = (unsigned)strtoul(optarg, NULL, 10);
        break;
    case 'n':
        load->subscribers = strtoul(optarg, NULL, 10);
        break;
    case 'c':
        load->plan.channels = strtoul(optarg, NULL, 10);
        break;
    case 'f':
        load->plan.prefix = load->posting.prefix = optarg;
        break;
    case 'r':
        load->posting.rate = strtod(optarg, NULL);
        break;
    case 'b':
        load->posting.burst = (unsigned)strtoul(optarg, NULL, 10);
        break;
    case 't':
        load->seconds = strtod(optarg, NULL);
        break;
    case 'w':
        load->warmup = strtod(optarg, NULL);
        break;
    case 'u':
        if (sscanf(optarg, "%u/%u", &load->posting.slot, &load->posting.slots) != 2 ||
            load->posting.slot >= load->posting.slots)
            load->posting.burst = 0; /* is told as all that makes no sense */
        break;
    case 'x':
        load->patience = strtod(optarg, NULL);
        break;
    case 'i':
        if (load->pid_count < PIDS_MAX)
            load->pids[load->pid_count++] = (pid_t)strtol(optarg, NULL, 10);
        break;
    case 'o':
        load->plan.sampled = true;
        break;
    case 'h':
        load->hold = true;
        break;
    case 'e':
        load->each = true;
        break;
    case 'm':
        load->storm_count = strtoul(optarg, NULL, 10);
        break;
    case 'l':
        load->elsewhere = (unsigned)strtoul(optarg, NULL, 10);
        break;
    default:
        usage(stderr);
        exit(2);
    }
}

static void take_arguments(struct load *load, int argc, char **argv)
{
    static const struct option options[] = {
        {"server", required_argument, NULL, 's'},
        {"port", required_argument, NULL, 'p'},
        {"publish-port", required_argument, NULL, 'q'},
        {"subscribers", required_argument, NULL, 'n'},
        {"channels", required_argument, NULL, 'c'},
        {"prefix", required_argument, NULL, 'f'},
        {"rate", required_argument, NULL, 'r'},
        {"burst", required_argument, NULL, 'b'},
        {"seconds", required_argument, NULL, 't'},
        {"warmup", required_argument, NULL, 'w'},
        {"slot", required_argument, NULL, 'u'},
        {"hold", no_argument, NULL, 'h'},
        {"each", no_argument, NULL, 'e'},
        {"patience", required_argument, NULL, 'x'},
        {"pid", required_argument, NULL, 'i'},
        {"count", no_argument, NULL, 'o'},
        {"storm", required_argument, NULL, 'm'},
        {"elsewhere", required_argument, NULL, 'l'},
        {NULL, 0, NULL, 0},
    };

    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        take_option(load, option);
    if (load->posting.dialect == NULL || load->plan.port == 0 ||
        load->plan.channels == 0 || load->subscribers < load->plan.channels ||
        load->posting.burst == 0 || load->posting.rate <= 0 || load->seconds <= 0 ||
        (load->storm_count > 0 && load->plan.sampled) || load->storm_count > CROWD_MAX ||
        load->subscribers > (CROWDS_MAX - 1) * CROWD_MAX) {
        usage(stderr);
        exit(2);
    }
    if (load->posting.port == 0)
        load->posting.port = load->plan.port;
    load->plan.path = load->posting.dialect->subscribe;
    const double seconds =
        load->warmup + load->seconds +
        (load->storm_count > 0 ? STORM_MAX_SECONDS : 0) * (load->elsewhere > 0 ? 2 : 1);
    load->plan.events_max =
        (size_t)(seconds * load->posting.rate) + 2 * load->posting.burst + 2;
    load->posting.events_max = load->plan.events_max;
    load->posting.channels = load->plan.channels;
}

int main(int argc, char **argv)
{
    static struct sums sums;
    static struct load load = {.subscribers = 1000,
                               .posting = {.rate = 10, .burst = 1, .prefix = "c"},
                               .seconds = 5,
                               .warmup = 1,
                               .patience = 15,
                               .plan = {.channels = 1, .prefix = "c"}};

    take_arguments(&load, argc, argv);
    (void)signal(SIGPIPE, SIG_IGN);
    figures_raise_file_limit();
    load.order = crowd_share(sizeof(*load.order));
    load.posting.order = load.order;
    load.posting.sent_usec =
        crowd_share(load.plan.events_max * sizeof(*load.posting.sent_usec));
    start_crowds(&load);
    await_connected(&load);
    if (posting_connect(&load.posting) < 0)
        die(&load, "nothing can be published");
    if (load.storm_count > 0)
        load.storm = storm_new(&load.plan, &load.posting, load.storm_count, load.seconds);
    if (load.storm_count > 0 && load.storm == NULL)
        die(&load, "there is no storm");
    await_beginning(&load);
    measure(&load);
    if (load.hold)
        (void)await_word("done");
    end_crowds(&load);
    add_up(&load, &sums);
    print_result(&load, &sums);
    if (sums.missing + sums.doubled + sums.gaps + sums.lost == 0)
        return 0;
    (void)fprintf(stderr,
                  "load: WRONG: %" PRIu64 " events missing, %" PRIu64 " doubled, %" PRIu64
                  " gaps, %zu connections lost\n",
                  sums.missing, sums.doubled, sums.gaps, sums.lost);
    return 1;
}
