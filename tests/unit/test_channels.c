/* test_channels.c - who listens to which channel, exact or by prefix. */
#include "channels.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmocka_all.h"
#include "event.h"
#include "failing_malloc.h"
#include "sse.h"

static void join(struct channels *channels, const char *pattern,
                 struct channels_member *member)
{
    assert_int_equal(channels_join(channels, pattern, strlen(pattern), member), 0);
}

/* How many members the topics of that name have; and each topic takes the name. */
static size_t listeners(const struct channels *channels, const char *name)
{
    struct channels_topic *topics[CHANNELS_MATCH_MAX];
    const size_t len = strlen(name);
    const uint64_t hash = sse_hash(name, len);
    const size_t count = channels_match(channels, name, len, hash, topics);
    size_t members = 0;

    for (size_t i = 0; i < count; i++) {
        size_t listed = 0;

        assert_true(channels_topic_takes(topics[i], name, len, hash));
        for (const struct channels_member *member = topics[i]->members; member != NULL;
             member = member->next) {
            assert_ptr_equal(member->topic, topics[i]);
            listed++;
        }
        assert_int_equal(listed, topics[i]->member_count);
        assert_true(listed > 0);
        members += listed;
    }
    return members;
}

static void names_are_exact_and_prefixes_are_not(void **state)
{
    struct channels *channels = channels_new();
    struct channels_member members[6] = {{0}};

    (void)state;
    join(channels, "orders", &members[0]);
    join(channels, "orders*", &members[1]);
    join(channels, "orders.*", &members[2]);
    join(channels, "*", &members[3]);
    join(channels, "orders.*", &members[4]);
    join(channels, "orders.*.x", &members[5]); /* a star elsewhere is a letter */
    assert_int_equal(listeners(channels, "orders"), 3);
    assert_int_equal(listeners(channels, "orders."), 4);
    assert_int_equal(listeners(channels, "orders.new"), 4);
    assert_int_equal(listeners(channels, "ordersnew"), 2);
    assert_int_equal(listeners(channels, "order"), 1);
    assert_int_equal(listeners(channels, "ORDERS"), 1);
    assert_int_equal(listeners(channels, "orders.*.x"), 5);
    assert_int_equal(listeners(channels, ""), 1);
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        channels_leave(channels, &members[i]);
    assert_int_equal(listeners(channels, "orders"), 0);
    channels_leave(channels, &members[0]); /* it has left already */
    channels_free(channels);
    channels_free(NULL);
}

static void leaving_keeps_the_owner_and_the_others(void **state)
{
    struct channels *channels = channels_new();
    struct channels_member members[3] = {{.owner = state}, {0}, {0}};

    (void)state;
    for (size_t i = 0; i < 3; i++)
        join(channels, "a", &members[i]);
    channels_leave(channels, &members[1]);
    assert_int_equal(listeners(channels, "a"), 2);
    channels_leave(channels, &members[2]);
    assert_int_equal(listeners(channels, "a"), 1);
    channels_leave(channels, &members[0]);
    assert_ptr_equal(members[0].owner, state);
    assert_null(members[0].topic);
    join(channels, "b", &members[0]);
    assert_int_equal(listeners(channels, "b"), 1);
    channels_leave(channels, &members[0]);
    channels_free(channels);
}

static void a_new_topic_is_unmarked(void **state)
{
    struct channels *channels = channels_new();
    struct channels_member member = {0};

    (void)state;
    for (int i = 0; i < 3; i++) {
        join(channels, "a*", &member);
        assert_int_equal(member.topic->mark, 0);
        member.topic->mark = 7;
        channels_leave(channels, &member);
    }
    channels_free(channels);
}

/* One topic for the name and for each of its 256 prefixes. */
static void the_longest_name_matches_all_its_prefixes(void **state)
{
    struct channels *channels = channels_new();
    static struct channels_member members[CHANNELS_MATCH_MAX + 1];
    char name[EVENT_CHANNEL_MAX_BYTES + 2];

    (void)state;
    memset(members, 0, sizeof(members));
    memset(name, 'x', sizeof(name));
    for (size_t len = 0; len <= EVENT_CHANNEL_MAX_BYTES; len++) {
        name[len] = '*';
        assert_int_equal(channels_join(channels, name, len + 1, &members[len]), 0);
        name[len] = 'x';
    }
    assert_int_equal(
        channels_join(channels, name, EVENT_CHANNEL_MAX_BYTES, &members[256]), 0);
    assert_int_equal(
        channels_join(channels, name, EVENT_CHANNEL_MAX_BYTES + 1, &members[257]),
        -EINVAL);
    name[EVENT_CHANNEL_MAX_BYTES] = '\0';
    assert_int_equal(listeners(channels, name), CHANNELS_MATCH_MAX);
    name[100] = '\0';
    assert_int_equal(listeners(channels, name), 101);
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        channels_leave(channels, &members[i]);
    channels_free(channels);
}

static uint64_t dice(uint64_t *state)
{
    *state = *state * 6364136223846793005U + 1442695040888963407U;
    return *state >> 33;
}

struct plain {
    struct channels_member member;
    char pattern[16];
};

static bool plain_takes(const struct plain *plain, const char *name)
{
    const size_t len = strlen(plain->pattern);

    if (plain->member.topic == NULL)
        return false;
    if (plain->pattern[len - 1] == '*')
        return strncmp(plain->pattern, name, len - 1) == 0;
    return strcmp(plain->pattern, name) == 0;
}

/* Names from two letters, so that they are often prefixes of each other. */
static void random_name(uint64_t *seed, char *name)
{
    const size_t len = 1 + dice(seed) % 7;

    for (size_t i = 0; i < len; i++)
        name[i] = dice(seed) % 2 == 0 ? 'a' : 'b';
    name[len] = '\0';
}

static void the_index_answers_like_a_plain_list(void **state)
{
    enum { PLAINS = 400 };
    struct channels *channels = channels_new();
    static struct plain plains[PLAINS];
    uint64_t seed = 3;

    (void)state;
    memset(plains, 0, sizeof(plains));
    for (int step = 0; step < 20000; step++) {
        struct plain *plain = &plains[dice(&seed) % PLAINS];
        char name[16];
        size_t wanted = 0;

        channels_leave(channels, &plain->member);
        if (dice(&seed) % 4 > 0) {
            random_name(&seed, plain->pattern);
            if (dice(&seed) % 2 == 0)
                plain->pattern[strlen(plain->pattern) - 1] = '*';
            join(channels, plain->pattern, &plain->member);
        }
        if (step % 10 > 0)
            continue;
        random_name(&seed, name);
        for (size_t i = 0; i < PLAINS; i++)
            wanted += plain_takes(&plains[i], name);
        assert_int_equal(listeners(channels, name), wanted);
    }
    for (size_t i = 0; i < PLAINS; i++)
        channels_leave(channels, &plains[i].member);
    channels_free(channels);
}

static void many_topics_are_all_found(void **state)
{
    enum { TOPICS = 5000 };
    struct channels *channels = channels_new();
    static struct channels_member members[TOPICS];
    char name[32];

    (void)state;
    memset(members, 0, sizeof(members));
    for (int i = 0; i < TOPICS; i++) {
        (void)snprintf(name, sizeof(name), "users.%d%s", i, i % 2 == 0 ? "" : ".*");
        join(channels, name, &members[i]);
    }
    for (int i = 0; i < TOPICS; i++) {
        (void)snprintf(name, sizeof(name), "users.%d%s", i, i % 2 == 0 ? "" : ".x");
        assert_int_equal(listeners(channels, name), 1);
        channels_leave(channels, &members[i]);
        assert_int_equal(listeners(channels, name), 0);
    }
    channels_free(channels);
}

static void whoever_finds_no_memory_has_not_joined(void **state)
{
    struct channels_member members[200] = {{0}};
    struct channels *channels = NULL;
    char name[16];

    (void)state;
    for (unsigned n = 1; channels == NULL; n++) {
        failing_malloc_begin(n);
        channels = channels_new();
        assert_int_equal(channels == NULL, failing_malloc_end());
    }
    /* With more topics than buckets: growing may fail, and nothing is lost by it. */
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        (void)snprintf(name, sizeof(name), "%zu%s", i, i % 3 == 0 ? "*" : "");
        for (unsigned n = 1; members[i].topic == NULL; n++) {
            failing_malloc_begin(n);
            const int result = channels_join(channels, name, strlen(name), &members[i]);
            if (failing_malloc_end() && result < 0)
                assert_int_equal(result, -ENOMEM);
            assert_int_equal(members[i].topic != NULL, result == 0);
        }
        assert_true(listeners(channels, name) >= (i % 3 == 0 ? 0 : 1));
    }
    for (size_t i = 0; i < ARRAY_SIZE(members); i++)
        channels_leave(channels, &members[i]);
    channels_free(channels);
}

static void an_index_that_cannot_grow_goes_on(void **state)
{
    struct channels_member members[200] = {{0}};
    struct channels *channels = channels_new();
    char name[16];

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        (void)snprintf(name, sizeof(name), "%zu", i);
        failing_malloc_begin(2); /* the topic itself is the first */
        join(channels, name, &members[i]);
        (void)failing_malloc_end();
    }
    for (size_t i = 0; i < ARRAY_SIZE(members); i++) {
        (void)snprintf(name, sizeof(name), "%zu", i);
        assert_int_equal(listeners(channels, name), 1);
        channels_leave(channels, &members[i]);
    }
    channels_free(channels);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_exact_and_prefixes_are_not),
        cmocka_unit_test(leaving_keeps_the_owner_and_the_others),
        cmocka_unit_test(a_new_topic_is_unmarked),
        cmocka_unit_test(the_longest_name_matches_all_its_prefixes),
        cmocka_unit_test(the_index_answers_like_a_plain_list),
        cmocka_unit_test(many_topics_are_all_found),
        cmocka_unit_test(whoever_finds_no_memory_has_not_joined),
        cmocka_unit_test(an_index_that_cannot_grow_goes_on),
    };
    return cmocka_run_group_tests_name("channels", tests, NULL, NULL);
}
