#include <errno.h>
#include <string.h>

#include "channels.h"
#include "event.h"
#include "sse.h"

#define FIRST_BUCKETS 64

struct channels {
    struct channels_topic **buckets;
    size_t bucket_count; /* a power of two */
    size_t topic_count;
    size_t topic_bytes;

    /* How many prefix topics there are of each length, and of any. */
    size_t prefixes_of_length[EVENT_CHANNEL_MAX_BYTES + 1];
    size_t prefix_count;
};

struct channels *channels_new(void)
{
    struct channels *channels = calloc(1, sizeof(*channels));

    if (channels == NULL)
        return NULL;
    channels->bucket_count = FIRST_BUCKETS;
    channels->buckets = calloc(channels->bucket_count, sizeof(*channels->buckets));
    if (channels->buckets == NULL) {
        free(channels);
        return NULL;
    }
    return channels;
}

void channels_free(struct channels *channels)
{
    if (channels == NULL)
        return;
    free(channels->buckets);
    free(channels);
}

static struct channels_topic **bucket_of(const struct channels *channels, uint64_t hash)
{
    /* FNV's high bits are the better mixed ones. */
    return &channels->buckets[(hash ^ hash >> 32) & (channels->bucket_count - 1)];
}

/* An exact name and a prefix of the same letters are two topics. */
static struct channels_topic *find(const struct channels *channels, const char *name,
                                   size_t len, uint64_t hash, bool is_prefix)
{
    for (struct channels_topic *topic = *bucket_of(channels, hash); topic != NULL;
         topic = topic->next) {
        if (topic->hash == hash && topic->is_prefix == is_prefix && topic->len == len &&
            memcmp(topic->name, name, len) == 0)
            return topic;
    }
    return NULL;
}

/* Twice as many buckets. Without memory for them the index goes on with those it has. */
static void grow(struct channels *channels)
{
    struct channels wider = *channels;

    wider.bucket_count *= 2;
    wider.buckets = calloc(wider.bucket_count, sizeof(*wider.buckets));
    if (wider.buckets == NULL)
        return;

    for (size_t i = 0; i < channels->bucket_count; i++) {
        while (channels->buckets[i] != NULL) {
            struct channels_topic *topic = channels->buckets[i];
            struct channels_topic **bucket = bucket_of(&wider, topic->hash);

            channels->buckets[i] = topic->next;
            topic->next = *bucket;
            *bucket = topic;
        }
    }
    free(channels->buckets);
    *channels = wider;
}

static struct channels_topic *topic_new(struct channels *channels, const char *name,
                                        size_t len, uint64_t hash, bool is_prefix)
{
    struct channels_topic *topic = calloc(1, sizeof(*topic) + len + 1);

    if (topic == NULL)
        return NULL;
    if (channels->topic_count >= channels->bucket_count)
        grow(channels);

    struct channels_topic **bucket = bucket_of(channels, hash);
    topic->next = *bucket;
    *bucket = topic;
    topic->hash = hash;
    topic->is_prefix = is_prefix;
    topic->len = len;
    memcpy(topic->name, name, len);

    channels->topic_count++;
    channels->topic_bytes += sizeof(*topic) + len + 1;
    if (is_prefix) {
        channels->prefix_count++;
        channels->prefixes_of_length[len]++;
    }
    return topic;
}

static void topic_free(struct channels *channels, struct channels_topic *topic)
{
    struct channels_topic **link = bucket_of(channels, topic->hash);

    while (*link != topic)
        link = &(*link)->next;
    *link = topic->next;

    channels->topic_count--;
    channels->topic_bytes -= sizeof(*topic) + topic->len + 1;
    if (topic->is_prefix) {
        channels->prefix_count--;
        channels->prefixes_of_length[topic->len]--;
    }
    free(topic);
}

int channels_join(struct channels *channels, const char *pattern, size_t len,
                  struct channels_member *member)
{
    const bool is_prefix = len > 0 && pattern[len - 1] == '*';
    const size_t name_len = is_prefix ? len - 1 : len;

    if (name_len > EVENT_CHANNEL_MAX_BYTES)
        return -EINVAL;

    const uint64_t hash = sse_hash(pattern, name_len);
    struct channels_topic *topic = find(channels, pattern, name_len, hash, is_prefix);

    if (topic == NULL)
        topic = topic_new(channels, pattern, name_len, hash, is_prefix);
    if (topic == NULL)
        return -ENOMEM;

    member->topic = topic;
    member->prev = NULL;
    member->next = topic->members;
    if (topic->members != NULL)
        topic->members->prev = member;
    topic->members = member;
    topic->member_count++;
    return 0;
}

void channels_leave(struct channels *channels, struct channels_member *member)
{
    struct channels_topic *topic = member->topic;

    if (topic == NULL)
        return;
    if (member->prev != NULL)
        member->prev->next = member->next;
    else
        topic->members = member->next;
    if (member->next != NULL)
        member->next->prev = member->prev;
    *member = (struct channels_member){.owner = member->owner};

    topic->member_count--;
    if (topic->member_count == 0)
        topic_free(channels, topic);
}

size_t channels_match(const struct channels *channels, const char *name, size_t len,
                      uint64_t hash,
                      struct channels_topic *ret_topics[CHANNELS_MATCH_MAX])
{
    size_t count = 0;
    struct channels_topic *topic = find(channels, name, len, hash, false);

    if (topic != NULL)
        ret_topics[count++] = topic;
    if (channels->prefix_count == 0)
        return count;

    /* One pass over the name: the hash so far is the hash of the prefix so far. */
    uint64_t prefix_hash = sse_hash_begin();
    for (size_t prefix = 0; prefix <= len; prefix++) {
        if (channels->prefixes_of_length[prefix] > 0) {
            topic = find(channels, name, prefix, prefix_hash, true);
            if (topic != NULL)
                ret_topics[count++] = topic;
        }
        if (prefix < len)
            prefix_hash = sse_hash_add(prefix_hash, name[prefix]);
    }
    return count;
}

size_t channels_bytes(const struct channels *channels)
{
    return channels->bucket_count * sizeof(*channels->buckets) + channels->topic_bytes;
}

bool channels_topic_takes(const struct channels_topic *topic, const char *name,
                          size_t len, uint64_t hash)
{
    if (topic->is_prefix)
        return len >= topic->len && memcmp(topic->name, name, topic->len) == 0;
    return topic->hash == hash && topic->len == len &&
           memcmp(topic->name, name, len) == 0;
}
