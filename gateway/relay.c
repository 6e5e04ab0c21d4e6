/*
 * relay.c - the NOTIFYs of applications: which channels are relayed, who wants them, and what
 * is listened to.
 */
#include "relay.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "buf.h"
#include "clock.h"
#include "event.h"
#include "log.h"
#include "sse.h"

/* Statements in one question, and the time it may take. */
#define STATEMENTS_MAX 100
#define LISTEN_USEC    (3 * USEC_PER_SEC)

/* How often it is looked who is wanted no more. */
#define LOOK_USEC USEC_PER_SEC

#define BUCKETS_MAX ((size_t)1 << 16)

/* The gateway's own channels, none of which is relayed. */
#define OWN_PREFIX "gateway_"

struct relay_channel {
    struct relay_channel *next;       /* [lock] in its bucket */
    struct relay_channel *work;       /* [listener] in a list */
    struct relay_channel *fresh_next; /* [lock] in that of the fresh */
    bool is_fresh;                    /* [lock] */
    uint64_t hash;                    /* [const] */
    size_t members;                   /* [lock] */
    uint64_t left_usec;               /* [lock] when the last of them left */
    bool listened;                    /* [listener] */
    bool missed;                      /* [listener] its members are to be told */
    _Atomic bool stands;              /* [atomic] */
    size_t len;                       /* [const] */
    char name[];                      /* [const] */
};

struct pattern {
    const char *text; /* in `patterns` */
    size_t len;       /* without the '*' */
    bool is_prefix;
};

struct relay {
    struct relay_settings settings; /* [const] */
    char *text;                     /* [const] the copy of the patterns */
    struct pattern *patterns;       /* [const] */
    size_t pattern_count;           /* [const] */
    struct relay_watcher *watchers; /* [const] once the listener runs */
    int fd;                         /* [const] eventfd */

    size_t listened_count; /* [listener] */
    uint64_t look_usec;    /* [listener] when to look who is wanted no more */
    bool some_missed;      /* [listener] */

    pthread_mutex_t lock;
    bool away;                       /* [lock] the listener is not connected */
    size_t count;                    /* [lock] channels there are */
    size_t wanted_count;             /* [lock] of these, with members */
    struct relay_channel *fresh;     /* [lock] to be listened to */
    size_t bucket_count;             /* [const] a power of two */
    struct relay_channel *buckets[]; /* [lock] */
};

/* ---- patterns ---- */

static bool is_own(const char *name, size_t len)
{
    return len >= strlen(OWN_PREFIX) && memcmp(name, OWN_PREFIX, strlen(OWN_PREFIX)) == 0;
}

/* The next of them, without the blanks around it; *text moves behind it. false: no more. */
static bool next_pattern(const char **text, struct pattern *ret_pattern)
{
    const char *begin = *text;

    if (begin == NULL)
        return false;
    size_t len = strcspn(begin, ",");
    *text = begin[len] == ',' ? begin + len + 1 : NULL;
    while (len > 0 && *begin == ' ') {
        begin++;
        len--;
    }
    while (len > 0 && begin[len - 1] == ' ')
        len--;
    const bool is_prefix = len > 0 && begin[len - 1] == '*';
    *ret_pattern = (struct pattern){begin, is_prefix ? len - 1 : len, is_prefix};
    return true;
}

static int check_pattern(const struct pattern *pattern, struct err *err)
{
    if (pattern->len == 0 && pattern->is_prefix)
        return 0;
    const int result = event_check_name("a channel", pattern->text, pattern->len, err);
    if (result < 0)
        return result;
    if (pattern->len > RELAY_NAME_MAX_BYTES)
        return err_set(err, -EINVAL, "'%.*s' is longer than the %d bytes of a channel",
                       (int)pattern->len, pattern->text, RELAY_NAME_MAX_BYTES);
    if (is_own(pattern->text, pattern->len))
        return err_set(err, -EINVAL,
                       "'%.*s': channels that begin with " OWN_PREFIX
                       " are the gateway's own and never relayed",
                       (int)pattern->len, pattern->text);
    return 0;
}

int relay_check(const char *patterns, struct err *err)
{
    struct pattern pattern;

    if (patterns[0] == '\0')
        return 0;
    while (next_pattern(&patterns, &pattern)) {
        const int result = check_pattern(&pattern, err);

        if (result < 0)
            return result;
    }
    return 0;
}

bool relay_allows(const struct relay *relay, const char *name, size_t len)
{
    if (relay == NULL || len == 0 || len > RELAY_NAME_MAX_BYTES || is_own(name, len))
        return false;
    for (size_t i = 0; i < relay->pattern_count; i++) {
        const struct pattern *pattern = &relay->patterns[i];

        if ((pattern->is_prefix ? len >= pattern->len : len == pattern->len) &&
            memcmp(name, pattern->text, pattern->len) == 0)
            return true;
    }
    return false;
}

/* ---- life ---- */

static int keep_patterns(struct relay *relay, const char *patterns)
{
    size_t most = 1;

    for (const char *comma = patterns; (comma = strchr(comma, ',')) != NULL; comma++)
        most++;
    relay->text = strdup(patterns);
    relay->patterns = calloc(most, sizeof(*relay->patterns));
    if (relay->text == NULL || relay->patterns == NULL)
        return -ENOMEM;
    const char *text = relay->text[0] != '\0' ? relay->text : NULL;
    while (next_pattern(&text, &relay->patterns[relay->pattern_count]))
        relay->pattern_count++;
    return 0;
}

struct relay *relay_new(const struct relay_settings *settings)
{
    size_t buckets = 64;

    while (buckets < settings->channels_max && buckets < BUCKETS_MAX)
        buckets *= 2;
    struct relay *relay = calloc(1, sizeof(*relay) + buckets * sizeof(relay->buckets[0]));
    if (relay == NULL)
        return NULL;
    if (pthread_mutex_init(&relay->lock, NULL) != 0) {
        free(relay);
        return NULL;
    }
    relay->settings = *settings;
    relay->settings.patterns = NULL; /* `text` is the copy */
    relay->bucket_count = buckets;
    relay->away = true;
    relay->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (relay->fd < 0 || keep_patterns(relay, settings->patterns) < 0) {
        relay_free(relay);
        return NULL;
    }
    return relay;
}

void relay_free(struct relay *relay)
{
    if (relay == NULL)
        return;
    for (size_t i = 0; i < relay->bucket_count; i++) {
        struct relay_channel *channel = relay->buckets[i];

        while (channel != NULL) {
            struct relay_channel *next = channel->next;

            free(channel);
            channel = next;
        }
    }
    free(relay->text);
    free(relay->patterns);
    if (relay->fd >= 0)
        close(relay->fd);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}

/* ---- who wants them ---- */

/* Under the lock. The place where it is, or would be. */
static struct relay_channel **find(struct relay *relay, const char *name, size_t len,
                                   uint64_t hash)
{
    /* FNV's high bits are the better mixed ones. */
    struct relay_channel **place =
        &relay->buckets[(hash ^ hash >> 32) & (relay->bucket_count - 1)];

    while (*place != NULL && ((*place)->hash != hash || (*place)->len != len ||
                              memcmp((*place)->name, name, len) != 0))
        place = &(*place)->next;
    return place;
}

static struct relay_channel *channel_new(const char *name, size_t len, uint64_t hash)
{
    struct relay_channel *channel = calloc(1, sizeof(*channel) + len + 1);

    if (channel == NULL)
        return NULL;
    channel->hash = hash;
    channel->len = len;
    memcpy(channel->name, name, len);
    return channel;
}

/* Under the lock. A new channel is for the listener to see to, unless it is away: then it
 * sees to all of them when it is back. */
static int join_locked(struct relay *relay, const char *name, size_t len,
                       struct relay_channel **ret_channel)
{
    const uint64_t hash = sse_hash(name, len);
    struct relay_channel **place = find(relay, name, len, hash);
    const bool is_new = *place == NULL;

    if ((is_new || (*place)->members == 0) &&
        relay->wanted_count >= relay->settings.channels_max)
        return -ENOSPC;
    if (is_new)
        *place = channel_new(name, len, hash);
    if (*place == NULL)
        return -ENOMEM;
    struct relay_channel *channel = *place;
    if (is_new) {
        relay->count++;
        atomic_init(&channel->stands, relay->away);
    }
    if (is_new && !relay->away) {
        channel->is_fresh = true;
        channel->fresh_next = relay->fresh;
        relay->fresh = channel;
    }
    relay->wanted_count += channel->members == 0;
    channel->members++;
    *ret_channel = channel;
    return 0;
}

int relay_join(struct relay *relay, const char *name, size_t len,
               struct relay_channel **ret_channel)
{
    static const uint64_t one = 1;

    pthread_mutex_lock(&relay->lock);
    const int result = join_locked(relay, name, len, ret_channel);
    const bool ring = relay->fresh != NULL;
    pthread_mutex_unlock(&relay->lock);

    /* Fails only if the counter is full, and then the descriptor is readable. */
    if (ring)
        (void)!write(relay->fd, &one, sizeof(one));
    return result;
}

void relay_leave(struct relay *relay, struct relay_channel *channel)
{
    pthread_mutex_lock(&relay->lock);
    channel->members--;
    if (channel->members == 0) {
        relay->wanted_count--;
        channel->left_usec = clock_usec();
    }
    pthread_mutex_unlock(&relay->lock);
}

bool relay_stands(const struct relay_channel *channel)
{
    return atomic_load_explicit(&channel->stands, memory_order_acquire);
}

const char *relay_name(const struct relay_channel *channel)
{
    return channel->name;
}

void relay_watch(struct relay *relay, struct relay_watcher *watcher)
{
    watcher->next = relay->watchers;
    relay->watchers = watcher;
}

/* ---- the listener's ---- */

int relay_fd(const struct relay *relay)
{
    return relay->fd;
}

bool relay_is_used(struct relay *relay)
{
    pthread_mutex_lock(&relay->lock);
    const bool is_wanted = relay->wanted_count > 0;
    pthread_mutex_unlock(&relay->lock);
    return is_wanted || relay_listens(relay);
}

bool relay_listens(const struct relay *relay)
{
    return relay != NULL && relay->listened_count > 0;
}

bool relay_wanted(struct relay *relay, const char *name)
{
    const size_t len = strlen(name);
    const uint64_t hash = sse_hash(name, len);

    pthread_mutex_lock(&relay->lock);
    const struct relay_channel *channel = *find(relay, name, len, hash);
    const bool wanted = channel != NULL && channel->members > 0;
    pthread_mutex_unlock(&relay->lock);
    return wanted;
}

uint64_t relay_due(struct relay *relay)
{
    pthread_mutex_lock(&relay->lock);
    const bool all_wanted = relay->count == relay->wanted_count;
    pthread_mutex_unlock(&relay->lock);
    return all_wanted ? CLOCK_NEVER : relay->look_usec;
}

static void set_listened(struct relay *relay, struct relay_channel *channel,
                         bool listened)
{
    relay->listened_count += (size_t)listened - (size_t)channel->listened;
    channel->listened = listened;
    stats_gauge_set(relay->settings.stats, STATS_RELAY_CHANNELS,
                    (int64_t)relay->listened_count);
}

/* Meets the acquire in relay_stands(): LISTEN is committed by then. */
static void let_stand(struct relay_channel *channel)
{
    atomic_store_explicit(&channel->stands, true, memory_order_release);
}

static void tell_watchers(const struct relay *relay)
{
    for (struct relay_watcher *watcher = relay->watchers; watcher != NULL;
         watcher = watcher->next)
        watcher->stood(watcher);
}

/* Under the lock: all that are there, as a list of the listener's. */
static struct relay_channel *list_all(struct relay *relay)
{
    struct relay_channel *list = NULL;

    for (size_t i = 0; i < relay->bucket_count; i++) {
        for (struct relay_channel *channel = relay->buckets[i]; channel != NULL;
             channel = channel->next) {
            channel->work = list;
            list = channel;
        }
    }
    return list;
}

/* Under the lock: takes out those that nobody has wanted since then, as a list likewise. */
static struct relay_channel *take_out(struct relay *relay, uint64_t since_usec)
{
    struct relay_channel *list = NULL;

    for (size_t i = 0; i < relay->bucket_count; i++) {
        struct relay_channel **place = &relay->buckets[i];

        while (*place != NULL) {
            struct relay_channel *channel = *place;

            if (channel->members > 0 || channel->left_usec > since_usec ||
                channel->is_fresh) {
                place = &channel->next;
                continue;
            }
            *place = channel->next;
            channel->work = list;
            list = channel;
            relay->count--;
        }
    }
    return list;
}

/* Under the lock: those to be listened to, as a list of the listener's. */
static struct relay_channel *take_fresh(struct relay *relay)
{
    struct relay_channel *list = relay->fresh;

    for (struct relay_channel *channel = list; channel != NULL;
         channel = channel->fresh_next) {
        channel->is_fresh = false;
        channel->work = channel->fresh_next;
    }
    relay->fresh = NULL;
    return list;
}

/* One statement for each of the list's first; *rest is what is left of it. */
static int ask(struct database *database, const char *word, struct relay_channel *list,
               size_t most, struct relay_channel **rest, struct err *err)
{
    CLEANUP(buf_done) struct buf sql = BUF_EMPTY;
    struct relay_channel *channel = list;

    for (size_t i = 0; i < most && channel != NULL; i++, channel = channel->work) {
        (void)buf_add_text(&sql, word);
        database_quote(database, channel->name, channel->len, &sql);
        (void)buf_add_text(&sql, ";");
    }
    if (buf_ok(&sql) < 0)
        return err_set(err, -ENOMEM, "no memory for a relayed channel");
    *rest = channel;
    return database_script(database, sql.data, clock_usec() + LISTEN_USEC, err);
}

/* LISTENs to the whole list. A name that cannot be listened to in this database cannot be
 * notified either: it harms no other, and stands. */
static int listen_to(struct relay *relay, struct database *database,
                     struct relay_channel *list, struct err *err)
{
    size_t most = STATEMENTS_MAX;

    for (struct relay_channel *rest; list != NULL;) {
        const int result = ask(database, "LISTEN ", list, most, &rest, err);

        if (result == -EIO && most > 1) {
            most = 1;
            continue;
        }
        if (result < 0 && result != -EIO)
            return result;
        if (result == -EIO)
            log_warning("a relayed channel cannot be listened to: %s", err->text);
        for (; list != rest; list = list->work) {
            set_listened(relay, list, result == 0);
            let_stand(list);
        }
    }
    return 0;
}

static void free_list(struct relay *relay, struct relay_channel *list)
{
    while (list != NULL) {
        struct relay_channel *next = list->work;

        set_listened(relay, list, false);
        free(list);
        list = next;
    }
}

int relay_restore(struct relay *relay, struct database *database, bool missed,
                  struct err *err)
{
    pthread_mutex_lock(&relay->lock);
    relay->away = false;
    (void)take_fresh(relay);
    struct relay_channel *unwanted = take_out(relay, CLOCK_NEVER);
    struct relay_channel *list = list_all(relay);
    pthread_mutex_unlock(&relay->lock);

    free_list(relay, unwanted);
    for (struct relay_channel *channel = list; missed && channel != NULL;
         channel = channel->work)
        channel->missed = relay->some_missed = true;
    return listen_to(relay, database, list, err);
}

void relay_lost(struct relay *relay)
{
    bool change = false;

    pthread_mutex_lock(&relay->lock);
    relay->away = true;
    (void)take_fresh(relay);
    struct relay_channel *unwanted = take_out(relay, CLOCK_NEVER);
    struct relay_channel *list = list_all(relay);
    pthread_mutex_unlock(&relay->lock);

    free_list(relay, unwanted);
    for (; list != NULL; list = list->work) {
        change = change || !relay_stands(list);
        set_listened(relay, list, false);
        let_stand(list);
    }
    if (change)
        tell_watchers(relay);
}

static int listen_to_fresh(struct relay *relay, struct database *database,
                           struct err *err)
{
    uint64_t rings;

    /* First the bell, then the list. The other end is relay_join(), which rings last. */
    (void)!read(relay->fd, &rings, sizeof(rings));
    pthread_mutex_lock(&relay->lock);
    struct relay_channel *list = take_fresh(relay);
    pthread_mutex_unlock(&relay->lock);

    if (list == NULL)
        return 0;
    const int result = listen_to(relay, database, list, err);
    if (result < 0)
        return result;
    tell_watchers(relay);
    return 1;
}

/* Who joins while it is asked finds none, and makes one anew, to be listened to after it. */
static int unlisten(struct relay *relay, struct database *database, struct err *err)
{
    const uint64_t now = clock_usec();
    int result = 0;

    if (now < relay_due(relay))
        return 0;
    relay->look_usec = now + LOOK_USEC;
    pthread_mutex_lock(&relay->lock);
    const bool too_many = relay->count > 2 * relay->settings.channels_max;
    struct relay_channel *unwanted =
        take_out(relay, too_many ? now : now - MIN(now, relay->settings.grace_usec));
    pthread_mutex_unlock(&relay->lock);

    for (struct relay_channel *list = unwanted; list != NULL && result >= 0;) {
        result = ask(database, "UNLISTEN ", list, STATEMENTS_MAX, &list, err);
        if (result == -EIO)
            log_warning("relayed channels are still listened to: %s", err->text);
        result = result == 0 || result == -EIO ? 1 : result;
    }
    free_list(relay, unwanted);
    return result;
}

int relay_tend(struct relay *relay, struct database *database, struct err *err)
{
    const int result = listen_to_fresh(relay, database, err);

    return result != 0 ? result : unlisten(relay, database, err);
}

/* ---- what was missed ---- */

void relay_missed(struct relay *relay)
{
    pthread_mutex_lock(&relay->lock);
    struct relay_channel *list = list_all(relay);
    pthread_mutex_unlock(&relay->lock);

    for (; list != NULL; list = list->work)
        list->missed = relay->some_missed = true;
}

size_t relay_tell_missed(struct relay *relay,
                         int (*tell)(void *argument, const char *name, size_t len),
                         void *argument)
{
    size_t told = 0;

    if (!relay->some_missed)
        return 0;
    pthread_mutex_lock(&relay->lock);
    struct relay_channel *list = list_all(relay);
    pthread_mutex_unlock(&relay->lock);

    relay->some_missed = false;
    for (; list != NULL; list = list->work) {
        if (!list->missed)
            continue;
        list->missed = tell(argument, list->name, list->len) < 0;
        relay->some_missed = relay->some_missed || list->missed;
        told += !list->missed;
    }
    return told;
}
