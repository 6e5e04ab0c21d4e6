/* test_filter.c - what a subscriber takes of what its channels bring: some types, and not its
 * own. */
#include "filter.h"

#include <errno.h>
#include <string.h>

#include "cmocka_all.h"
#include "failing_malloc.h"

/* What filter.c allocates by these goes by failing_malloc.c, too. */
void *reallocarray(void *old, size_t count, size_t size)
{
    return realloc(old, count * size);
}

char *strndup(const char *text, size_t len)
{
    char *copy = malloc(len + 1);

    if (copy != NULL) {
        memcpy(copy, text, len);
        copy[len] = '\0';
    }
    return copy;
}

static bool takes(const struct filter *filter, const char *type, const char *client)
{
    struct sse_frame *frame = sse_frame_new(&(struct event){
        .seq = 1,
        .channel = "orders",
        .channel_len = 6,
        .type = type,
        .type_len = strlen(type),
        .data = "1",
        .data_len = 1,
        .client = client,
        .client_len = client != NULL ? strlen(client) : 0,
    });

    assert_non_null(frame);
    const bool taken = filter_takes(filter, frame);
    sse_frame_free(frame);
    return taken;
}

/* Names as they stand in a query: something goes on behind them. */
static void want(struct filter *filter, const char *type)
{
    assert_int_equal(filter_want_type(filter, type, strcspn(type, "&")), 0);
}

static void do_without(struct filter *filter, const char *client)
{
    assert_int_equal(filter_do_without(filter, client, strcspn(client, "&")), 0);
}

/* That notifications are missing concerns whoever hears the channel, whatever it wants. */
static void what_is_missing_is_told_to_everybody(void **state)
{
    struct filter filter = {0};
    struct sse_frame *frame = sse_frame_new(&(struct event){.seq = 1,
                                                            .channel = "orders",
                                                            .channel_len = 6,
                                                            .type = "gap",
                                                            .type_len = 3,
                                                            .data = "{}",
                                                            .data_len = 2});

    (void)state;
    assert_non_null(frame);
    want(&filter, "created");
    do_without(&filter, "shop");
    assert_false(filter_takes(&filter, frame));
    frame->kind = SSE_MISSED;
    assert_true(filter_takes(&filter, frame));
    sse_frame_free(frame);
    filter_done(&filter);
}

static void who_asks_for_nothing_gets_everything(void **state)
{
    struct filter filter = {0};

    (void)state;
    assert_true(filter_takes_everything(&filter));
    assert_true(takes(&filter, "message", NULL));
    assert_true(takes(&filter, "created", "shop"));
    assert_int_equal(filter_bytes(&filter), 0);
    filter_done(&filter);
}

static void types_are_whole_words(void **state)
{
    static const struct {
        const char *type;
        bool taken;
    } cases[] = {{"created", true},   {"a", true},  {"create", false}, {"updated", false},
                 {"created1", false}, {"A", false}, {"message", false}};
    struct filter filter = {0};

    (void)state;
    want(&filter, "created&type=a");
    want(&filter, "a");
    assert_false(filter_takes_everything(&filter));
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_int_equal(takes(&filter, cases[i].type, NULL), cases[i].taken);
        assert_int_equal(takes(&filter, cases[i].type, "created"), cases[i].taken);
    }
    filter_done(&filter);
}

static void clients_are_whole_words_and_nobody_is_none_of_them(void **state)
{
    static const struct {
        const char *client;
        bool taken;
    } cases[] = {{NULL, true},    {"shop", false},  {"b", false}, {"sho", true},
                 {"shops", true}, {"Shop", true},   {"B", true},  {"tills", true},
                 {" shop", true}, {"message", true}};
    struct filter filter = {0};

    (void)state;
    do_without(&filter, "shop&exclude_client=b");
    do_without(&filter, "b");
    assert_false(filter_takes_everything(&filter));
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(takes(&filter, "message", cases[i].client), cases[i].taken);
    filter_done(&filter);
}

static void both_have_to_let_it_pass(void **state)
{
    struct filter filter = {0};

    (void)state;
    want(&filter, "created");
    do_without(&filter, "shop");
    assert_true(takes(&filter, "created", NULL));
    assert_true(takes(&filter, "created", "till"));
    assert_false(takes(&filter, "created", "shop"));
    assert_false(takes(&filter, "deleted", "till"));
    assert_false(takes(&filter, "deleted", NULL));
    filter_done(&filter);
}

static void the_names_can_be_had(void **state)
{
    struct filter filter = {0};
    CLEANUP(buf_done) struct buf types = BUF_EMPTY, clients = BUF_EMPTY;
    size_t len;

    (void)state;
    want(&filter, "created&");
    do_without(&filter, "shop&");
    do_without(&filter, "till");
    filter_add_types(&filter, &types);
    filter_add_clients(&filter, &clients);
    assert_string_equal(types.data, "created");
    assert_string_equal(clients.data, "shop\ntill");
    assert_string_equal(filter_type(&filter, 0, &len), "created");
    assert_int_equal(len, 7);
    assert_null(filter_type(&filter, 1, &len));
    assert_true(filter_bytes(&filter) >=
                sizeof("created") + sizeof("shop") + sizeof("till"));
    filter_done(&filter);
}

static void without_memory_it_is_as_it_was(void **state)
{
    struct filter filter = {0};
    int results[2] = {-ENOMEM, -ENOMEM};

    (void)state;
    for (unsigned n = 1; results[1] < 0; n++) {
        failing_malloc_begin(n);
        if (results[0] < 0)
            results[0] = filter_want_type(&filter, "created", 7);
        if (results[0] == 0)
            results[1] = filter_do_without(&filter, "shop", 4);
        (void)failing_malloc_end();
        assert_int_equal(takes(&filter, "message", NULL), results[0] < 0);
        assert_int_equal(takes(&filter, "created", "shop"), results[1] < 0);
    }
    filter_done(&filter);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_missing_is_told_to_everybody),
        cmocka_unit_test(who_asks_for_nothing_gets_everything),
        cmocka_unit_test(types_are_whole_words),
        cmocka_unit_test(clients_are_whole_words_and_nobody_is_none_of_them),
        cmocka_unit_test(both_have_to_let_it_pass),
        cmocka_unit_test(the_names_can_be_had),
        cmocka_unit_test(without_memory_it_is_as_it_was),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
