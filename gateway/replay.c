/*
 * replay.c - events after an id, page by page; and whether that id can be gone on from.
 *
 * Those who ask for the same stand in one queue; a queue is a job of the readers while
 * somebody stands in it. A page is begun at the lowest id in the queue that is above the
 * last page's end, then again from the lowest: like a lift, so that many who are spread over
 * a stretch cost each page of it once. Whoever has waited for long comes first.
 */
#include "replay.h"

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "event.h"
#include "schema.h"

/* A page: soon read, soon sent, and not much lost if its receiver has room for less. */
#define PAGE_ROWS    TEXT(REPLAY_PAGE_MAX)
#define PAGE_BYTES   "262144"
#define PAGE_STRETCH "20000"  /* rows looked at for prefixes */
#define LAST_STRETCH "100000" /* rows looked at for the newest of a prefix or a type */
#define QUERY_USEC   (10 * USEC_PER_SEC)

#define TEXT(macro)  TEXT_(macro)
#define TEXT_(value) #value

/* Pages that nobody has taken yet weigh too much, or the server knows nothing new: the time
 * until the next try. */
#define FULL_USEC  (5 * USEC_PER_MSEC)
#define STALE_USEC (100 * USEC_PER_MSEC)

/* Who has waited so long has the next page, wherever the lift is. */
#define PATIENCE_USEC (500 * USEC_PER_MSEC)

/* So long a server may take to learn of an id: a standby lags. */
#define LAG_USEC (3 * USEC_PER_SEC)

#define BUCKETS ((size_t)1024)

/* The last pages, unless they are large. Together they weigh half of what all pages may. */
#define KEPT_PAGES    16
#define KEPT_FRACTION (2 * KEPT_PAGES)

/* All who ask for the same. */
struct replay_queue {
    struct reader_job job;
    struct replay *replay;         /* [const] */
    struct replay_queue *next;     /* [lock] in its bucket */
    struct replay_request *first;  /* [lock] */
    struct replay_request **tail;  /* [lock] */
    uint64_t reached;              /* [reader] end of the last page */
    enum replay_question question; /* [const] */
    unsigned count;                /* [const] */
    uint64_t hash;                 /* [const] */
    struct replay_choice choice;   /* [const] its texts are those below */
    char texts[];                  /* [const] */
};

struct replay {
    struct replay_settings settings; /* [const] */
    _Atomic size_t bytes;            /* [atomic] of all pages */
    pthread_mutex_t lock;
    struct replay_queue *buckets[BUCKETS]; /* [lock] */
    struct replay_page *kept[KEPT_PAGES];  /* [lock] */
    size_t kept_next;                      /* [lock] */
};

/* ---- pages ---- */

static void page_free(struct replay_page *page)
{
    for (size_t i = 0; i < page->count; i++)
        sse_frame_free(page->frames[i]);
    free(page->frames);
    free((void *)(uintptr_t)page->lost);
    free(page->patterns);
    free(page);
}

static void count_bytes(const struct replay_page *page, int64_t change)
{
    atomic_fetch_add_explicit(&page->replay->bytes, (size_t)change, memory_order_relaxed);
    stats_gauge_add(page->replay->settings.stats, STATS_REPLAY_BYTES, change);
}

void replay_page_free(struct replay_page *page)
{
    /* Release and acquire: whoever frees it sees all reading as done. */
    if (page == NULL ||
        atomic_fetch_sub_explicit(&page->holders, 1, memory_order_acq_rel) > 1)
        return;
    count_bytes(page, -(int64_t)page->bytes);
    page_free(page);
}

static void clear_page(struct replay_page **page)
{
    replay_page_free(*page);
}

uint64_t replay_place(const struct replay_page *page, uint64_t id)
{
    for (size_t i = 0; i + 1 < page->lost_count; i += 2) {
        if (id > page->lost[i] && id < page->lost[i + 1])
            return page->lost[i + 1];
    }
    return MIN(id, page->newest);
}

enum replay_verdict replay_judge(const struct replay_page *page, uint64_t id,
                                 uint64_t told)
{
    if (replay_place(page, id) != id)
        return REPLAY_FUTURE;
    return id < page->purged && (page->purged > told || id < page->oldest)
               ? REPLAY_EXPIRED
               : REPLAY_EXACT;
}

static uint64_t read_uint64(const PGresult *result, int row, int column)
{
    uint64_t network;

    memcpy(&network, PQgetvalue(result, row, column), sizeof(network));
    return be64toh(network);
}

/* "10 1099511627776 ..." */
static int read_lost(struct replay_page *page, const char *text)
{
    size_t room = 1;

    if (*text == '\0')
        return 0;
    for (const char *at = text; *at != '\0'; at++)
        room += *at == ' ';
    uint64_t *lost = calloc(room, sizeof(*lost));
    if (lost == NULL)
        return -ENOMEM;
    for (char *at = (char *)(uintptr_t)text; page->lost_count < room && *at != '\0';)
        lost[page->lost_count++] = strtoull(at, &at, 10);
    page->lost = lost;
    return 0;
}

enum column {
    THROUGH,
    NEWEST,
    PURGED,
    OLDEST,
    LOST,
    STANDBY,
    SEQ,
    CHANNEL,
    TYPE,
    DATA,
    CLIENT,
};

static int read_frames(struct replay_page *page, const PGresult *result)
{
    const int rows = PQgetisnull(result, 0, SEQ) ? 0 : PQntuples(result);

    page->frames = calloc((size_t)MAX(rows, 1), sizeof(struct sse_frame *));
    if (page->frames == NULL)
        return -ENOMEM;
    for (int row = 0; row < rows; row++) {
        struct sse_frame *frame = sse_frame_new(&(struct event){
            .seq = read_uint64(result, row, SEQ),
            .channel = PQgetvalue(result, row, CHANNEL),
            .channel_len = (size_t)PQgetlength(result, row, CHANNEL),
            .type = PQgetvalue(result, row, TYPE),
            .type_len = (size_t)PQgetlength(result, row, TYPE),
            .data = PQgetvalue(result, row, DATA),
            .data_len = (size_t)PQgetlength(result, row, DATA),
            .client = PQgetvalue(result, row, CLIENT),
            .client_len = (size_t)PQgetlength(result, row, CLIENT),
        });

        if (frame == NULL)
            return -ENOMEM;
        page->frames[page->count++] = frame;
        page->bytes += sse_frame_weight(frame);
    }
    return 0;
}

/* With one holder: whoever calls. */
static struct replay_page *page_new(struct replay *replay, uint64_t after,
                                    const PGresult *result)
{
    struct replay_page *page = calloc(1, sizeof(*page));

    if (page == NULL)
        return NULL;
    page->replay = replay;
    page->after = after;
    page->through = read_uint64(result, 0, THROUGH);
    page->newest = read_uint64(result, 0, NEWEST);
    page->purged = read_uint64(result, 0, PURGED);
    page->oldest = read_uint64(result, 0, OLDEST);
    page->bytes = sizeof(*page);
    atomic_init(&page->holders, 1);
    if (read_lost(page, PQgetvalue(result, 0, LOST)) < 0 ||
        read_frames(page, result) < 0) {
        page_free(page);
        return NULL;
    }
    count_bytes(page, (int64_t)page->bytes);
    return page;
}

/* ---- asking the database ---- */

/* What is asked, and what is known of the whole table, in one statement: one snapshot. The
 * order of the columns is that of enum column. */
#define HORIZON "h.newest, h.purged, h.oldest, h.lost, h.standby, "
#define NO_ROWS "CAST(NULL AS int8), NULL, NULL, NULL, NULL "

static const char *const questions[] = {
    [REPLAY_AFTER] =
        "SELECT p.through, " HORIZON "e.seq, e.channel, e.type, e.data, e.client "
        "FROM gateway.horizon($1) h, "
        "gateway.replay_page($2, $1, " PAGE_ROWS ", " PAGE_BYTES ", " PAGE_STRETCH ") p "
        "LEFT JOIN gateway.events e ON e.seq = ANY (p.seqs) ORDER BY e.seq",
    [REPLAY_EARLIEST] =
        "SELECT gateway.oldest_seq(), " HORIZON NO_ROWS "FROM gateway.horizon($1) h",
    [REPLAY_LAST] = "SELECT gateway.newest_after($2, $3, $4, " LAST_STRETCH
                    ", $5), " HORIZON NO_ROWS "FROM gateway.horizon($1) h",
};
static const int parameter_counts[] = {
    [REPLAY_AFTER] = 2, [REPLAY_EARLIEST] = 1, [REPLAY_LAST] = 5};

static int ask_database(const struct replay_queue *queue, struct database *database,
                        uint64_t after, PGresult **ret_result, struct err *err)
{
    const uint64_t network_after = htobe64(after);
    const uint32_t network_count = htobe32(queue->count);
    const struct replay_choice *choice = &queue->choice;
    const Oid types[] = {20, 25, 25, 23, 25}; /* int8, text, text, int4, text */
    const char *values[] = {(const char *)&network_after, choice->patterns, choice->types,
                            (const char *)&network_count, choice->without};
    const int lengths[] = {sizeof(network_after), 0, 0, sizeof(network_count), 0};
    const int formats[] = {1, 0, 0, 1, 0};
    const struct database_query query = {
        .sql = questions[queue->question],
        .count = parameter_counts[queue->question],
        .types = types,
        .values = values,
        .lengths = lengths,
        .formats = formats,
        .binary = true,
    };

    return schema_explain(
        database_ask(database, &query, clock_usec() + QUERY_USEC, ret_result, err),
        database, err);
}

/* ---- queues ---- */

static bool is_same(const struct replay_queue *queue,
                    const struct replay_request *request,
                    const struct replay_choice *choice)
{
    return queue->question == request->question && queue->count == request->count &&
           strcmp(queue->choice.patterns, choice->patterns) == 0 &&
           strcmp(queue->choice.types, choice->types) == 0 &&
           strcmp(queue->choice.without, choice->without) == 0;
}

static void unlink_request(struct replay_request *request)
{
    *request->link = request->next;
    if (request->next != NULL)
        request->next->link = request->link;
    else
        request->queue->tail = request->link;
    request->queue = NULL;
}

static void append_request(struct replay_queue *queue, struct replay_request *request)
{
    request->queue = queue;
    request->next = NULL;
    request->link = queue->tail;
    *queue->tail = request;
    queue->tail = &request->next;
}

/* Under the lock; nobody stands in it. */
static void remove_queue(struct replay *replay, struct replay_queue *queue)
{
    struct replay_queue **link = &replay->buckets[queue->hash % BUCKETS];

    while (*link != queue)
        link = &(*link)->next;
    *link = queue->next;
    free(queue);
}

/* The queue, or NULL: nobody stands in it any more, and it is gone. */
static struct replay_queue *keep_if_wanted(struct replay_queue *queue)
{
    struct replay *replay = queue->replay;

    pthread_mutex_lock(&replay->lock);
    if (queue->first == NULL) {
        remove_queue(replay, queue);
        queue = NULL;
    }
    pthread_mutex_unlock(&replay->lock);
    return queue;
}

/* Where the next page begins, and whether an answer was of no use to somebody before. */
static uint64_t next_place(const struct replay_queue *queue, bool *ret_again)
{
    uint64_t lowest = UINT64_MAX, above = UINT64_MAX, oldest = 0, asked_usec = 0;

    *ret_again = false;
    pthread_mutex_lock(&queue->replay->lock);
    if (queue->first != NULL) {
        oldest = queue->first->after;
        asked_usec = queue->first->asked_usec;
    }
    for (const struct replay_request *request = queue->first; request != NULL;
         request = request->next) {
        lowest = MIN(lowest, request->after);
        if (request->after >= queue->reached)
            above = MIN(above, request->after);
        *ret_again = *ret_again || request->again;
    }
    pthread_mutex_unlock(&queue->replay->lock);

    if (lowest == UINT64_MAX) /* everybody has left since: any page will do */
        return 0;
    if (clock_usec() >= asked_usec + PATIENCE_USEC)
        return oldest;
    return above != UINT64_MAX ? above : lowest;
}

/* Is the page an answer to that request? Not that of a server which lives in an earlier life
 * of the table. That there is no such id is believed of a server that knows all that the asker
 * has seen, and of a question begun after the id was asked about: it may have been given
 * since. */
static bool answers(const struct replay_page *page, const struct replay_request *request,
                    uint64_t begun_usec, bool standby)
{
    const uint64_t now = clock_usec();
    const bool may_lag = standby && now < request->asked_usec + LAG_USEC;

    if (page->newest >> EVENT_LIFE_BITS < request->floor >> EVENT_LIFE_BITS)
        return false;
    if (request->question != REPLAY_AFTER)
        return page->newest >= request->floor || !may_lag;
    if (request->after > page->newest)
        return page->newest >= request->floor && !may_lag &&
               request->asked_usec <= begun_usec;
    return request->after >= page->after &&
           (request->after < page->through || page->through >= page->newest);
}

/* ---- the last pages ---- */

/* Without memory for its name it is not kept. */
static void keep_page(struct replay_queue *queue, struct replay_page *page)
{
    struct replay *replay = queue->replay;

    if (queue->question != REPLAY_AFTER || page->count == 0 ||
        page->bytes > replay->settings.bytes_max / KEPT_FRACTION)
        return;
    page->hash = queue->hash;
    page->patterns = strdup(queue->choice.patterns);
    if (page->patterns == NULL)
        return;
    atomic_fetch_add_explicit(&page->holders, 1, memory_order_relaxed);

    pthread_mutex_lock(&replay->lock);
    struct replay_page *oldest = replay->kept[replay->kept_next];
    replay->kept[replay->kept_next] = page;
    replay->kept_next = (replay->kept_next + 1) % KEPT_PAGES;
    pthread_mutex_unlock(&replay->lock);
    replay_page_free(oldest);
}

/* A page that goes on after the request's id, held for the caller; or NULL. Under the lock.
 * It may be older than the request: what is between two ids of the table never changes, but
 * for what was deleted since, and that is in it. */
static struct replay_page *find_kept(struct replay *replay, uint64_t hash,
                                     const struct replay_request *request,
                                     const char *patterns)
{
    if (request->question != REPLAY_AFTER || request->again)
        return NULL;
    for (size_t i = 0; i < KEPT_PAGES; i++) {
        struct replay_page *page = replay->kept[i];

        if (page == NULL || page->hash != hash || request->after < page->after ||
            request->after >= page->through ||
            page->newest >> EVENT_LIFE_BITS != request->floor >> EVENT_LIFE_BITS ||
            strcmp(page->patterns, patterns) != 0)
            continue;
        atomic_fetch_add_explicit(&page->holders, 1, memory_order_relaxed);
        return page;
    }
    return NULL;
}

/* Takes those out of the queue whom the page answers, and answers them. False: it was of use
 * to nobody who stands there. */
static bool answer_with(struct replay_queue *queue, struct replay_page *page,
                        uint64_t begun_usec, bool standby)
{
    struct replay_request *answered = NULL, **tail = &answered, *next;

    pthread_mutex_lock(&queue->replay->lock);
    for (struct replay_request *request = queue->first; request != NULL; request = next) {
        next = request->next;
        if (!answers(page, request, begun_usec, standby))
            continue;
        unlink_request(request);
        request->next = NULL;
        *tail = request;
        tail = &request->next;
    }
    const bool any = answered != NULL || queue->first == NULL;
    pthread_mutex_unlock(&queue->replay->lock);

    for (struct replay_request *request = answered; request != NULL; request = next) {
        next = request->next;
        atomic_fetch_add_explicit(&page->holders, 1, memory_order_relaxed);
        request->page = page;
        request->done(request); /* the asker's again, and perhaps gone */
    }
    return any;
}

/* ---- as a job of the readers ---- */

static void fail(struct reader_job *job, const struct err *err)
{
    struct replay_queue *queue = CONTAINER_OF(job, struct replay_queue, job);
    struct replay *replay = queue->replay;
    struct replay_request *request;

    (void)err;
    pthread_mutex_lock(&replay->lock);
    struct replay_request *first = queue->first;
    for (request = first; request != NULL; request = request->next)
        request->queue = NULL;
    remove_queue(replay, queue);
    pthread_mutex_unlock(&replay->lock);

    for (struct replay_request *next; first != NULL; first = next) {
        next = first->next;
        first->page = NULL;
        first->done(first);
    }
}

/* Class 22: a name that the database's encoding does not have. There will never be a page. */
static bool is_refusal(const char *sqlstate)
{
    return strncmp(sqlstate, "22", 2) == 0;
}

static int run_later(struct reader_job *job, uint64_t usec)
{
    job->not_before_usec = clock_usec() + usec;
    return -EAGAIN;
}

/* One page for those who stand in the queue. A page that is of use to nobody comes from a
 * server that is behind, or stays in a life that is over: perhaps another one is there soon.
 */
static int serve_queue(struct replay_queue *queue, struct database *database,
                       bool *ret_stale, struct err *err)
{
    CLEANUP(database_clear) PGresult *result = NULL;
    CLEANUP(clear_page) struct replay_page *page = NULL;
    bool again;
    const uint64_t begun_usec = clock_usec();
    const uint64_t after = next_place(queue, &again);
    const int r = ask_database(queue, database, after, &result, err);

    if (r < 0)
        return r;
    page = page_new(queue->replay, after, result);
    if (page == NULL)
        return err_set(err, -ENOMEM, "no memory for a page of events");
    stats_add(queue->replay->settings.stats, STATS_REPLAY_PAGES, 1);
    stats_add(queue->replay->settings.stats, STATS_REPLAY_EVENTS, page->count);

    queue->reached = page->through;
    keep_page(queue, page);
    const bool standby = PQgetvalue(result, 0, STANDBY)[0] != 0;
    *ret_stale = !answer_with(queue, page, begun_usec, standby) || again;
    if (*ret_stale)
        database_close(database);
    return 0;
}

static int run(struct reader_job *job, struct database *database, struct err *err)
{
    struct replay_queue *queue =
        keep_if_wanted(CONTAINER_OF(job, struct replay_queue, job));
    bool stale = false;

    if (queue == NULL)
        return 0;
    struct replay *replay = queue->replay;
    if (atomic_load_explicit(&replay->bytes, memory_order_relaxed) >
        replay->settings.bytes_max)
        return run_later(&queue->job, FULL_USEC);

    const int r = serve_queue(queue, database, &stale, err);
    if (r == -EIO && is_refusal(database_sqlstate(database))) {
        fail(&queue->job, err);
        return 0;
    }
    if (r < 0)
        return r;
    queue = keep_if_wanted(queue);
    return queue != NULL ? run_later(&queue->job, stale ? STALE_USEC : 0) : 0;
}

/* ---- from other threads ---- */

static struct replay_queue *find_queue(const struct replay *replay, uint64_t hash,
                                       const struct replay_request *request,
                                       const struct replay_choice *choice)
{
    struct replay_queue *queue = replay->buckets[hash % BUCKETS];

    while (queue != NULL && (queue->hash != hash || !is_same(queue, request, choice)))
        queue = queue->next;
    return queue;
}

/* Copies the text to *end, and moves that behind it. */
static const char *keep_text(char **end, const char *text)
{
    char *const copy = *end;

    *end = stpcpy(copy, text) + 1;
    return copy;
}

static struct replay_queue *queue_new(struct replay *replay, uint64_t hash,
                                      const struct replay_request *request,
                                      const struct replay_choice *choice)
{
    struct replay_queue *queue =
        calloc(1, sizeof(*queue) + strlen(choice->patterns) + strlen(choice->types) +
                      strlen(choice->without) + 3);

    if (queue == NULL)
        return NULL;
    queue->job = (struct reader_job){
        .run = run,
        .fail = fail,
        .deadline_usec = CLOCK_NEVER,
        .not_before_usec = request->again ? clock_usec() + STALE_USEC : 0,
    };
    queue->replay = replay;
    queue->tail = &queue->first;
    queue->question = request->question;
    queue->count = request->count;
    queue->hash = hash;
    char *end = queue->texts;
    queue->choice = (struct replay_choice){
        .patterns = keep_text(&end, choice->patterns),
        .types = keep_text(&end, choice->types),
        .without = keep_text(&end, choice->without),
    };
    return queue;
}

int replay_ask(struct replay *replay, struct replay_request *request,
               const struct replay_choice *choice)
{
    const uint64_t hash =
        sse_hash(choice->patterns, strlen(choice->patterns)) + request->question;
    struct replay_queue *made = NULL;

    request->queue = NULL;
    request->asked_usec = clock_usec();
    pthread_mutex_lock(&replay->lock);
    request->page = find_kept(replay, hash, request, choice->patterns);
    if (request->page != NULL) {
        pthread_mutex_unlock(&replay->lock);
        request->done(request);
        return 0;
    }
    struct replay_queue *queue = find_queue(replay, hash, request, choice);
    if (queue == NULL) {
        queue = made = queue_new(replay, hash, request, choice);
        if (made != NULL) {
            made->next = replay->buckets[hash % BUCKETS];
            replay->buckets[hash % BUCKETS] = made;
        }
    }
    if (queue != NULL)
        append_request(queue, request);
    pthread_mutex_unlock(&replay->lock);

    if (queue == NULL)
        return -ENOMEM;
    if (made != NULL && readers_ask(replay->settings.readers, &made->job) < 0)
        fail(&made->job, NULL); /* done() comes, without a page */
    return 0;
}

bool replay_cancel(struct replay *replay, struct replay_request *request)
{
    pthread_mutex_lock(&replay->lock);
    const bool waiting = request->queue != NULL;
    if (waiting)
        unlink_request(request);
    pthread_mutex_unlock(&replay->lock);
    return waiting;
}

/* ---- life ---- */

struct replay *replay_new(const struct replay_settings *settings)
{
    struct replay *replay = calloc(1, sizeof(*replay));

    if (replay == NULL)
        return NULL;
    replay->settings = *settings;
    (void)pthread_mutex_init(&replay->lock, NULL);
    return replay;
}

void replay_free(struct replay *replay)
{
    if (replay == NULL)
        return;
    for (size_t i = 0; i < KEPT_PAGES; i++)
        replay_page_free(replay->kept[i]);
    pthread_mutex_destroy(&replay->lock);
    free(replay);
}
