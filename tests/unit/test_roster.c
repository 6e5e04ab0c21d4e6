/* test_roster.c - the consumers of groups here, what each has in hand, and whose turn it is. */
#include "roster.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cmocka_all.h"

#include "clock.h"
#include "failing_malloc.h"

#define BEGIN (1000 * USEC_PER_SEC)

struct world {
    struct wheel *wheel;
    struct roster *roster;
    unsigned let_go;
};

static struct world world;

static int set_up(void **state)
{
    (void)state;
    clock_set(BEGIN);
    world = (struct world){.wheel = wheel_new(BEGIN)};
    world.roster = roster_new(&(struct roster_settings){
        .wheel = world.wheel, .look_usec = USEC_PER_SEC, .look_each_usec = 10000});
    assert_non_null(world.roster);
    return 0;
}

static void count_let_go(void *argument, const struct group *group, const char *id)
{
    (void)group;
    assert_true(strlen(id) > 0);
    ((struct world *)argument)->let_go++;
}

static void leave(struct member *member)
{
    roster_leave(world.roster, member, count_let_go, &world);
}

static int tear_down(void **state)
{
    (void)state;
    assert_null(roster_first(world.roster));
    assert_int_equal(roster_in_hand(world.roster), 0);
    roster_free(world.roster);
    wheel_free(world.wheel);
    clock_set(0);
    return 0;
}

static void join(struct member *member, const char *channel, const char *name,
                 unsigned max)
{
    *member = (struct member){.channel = channel,
                              .name = name,
                              .start = "now",
                              .max = max,
                              .lease_usec = 30 * USEC_PER_SEC};
    assert_int_equal(roster_join(world.roster, member), 0);
}

static void pass(uint64_t usec)
{
    clock_set(clock_usec() + usec);
    wheel_advance(world.wheel, clock_usec());
}

static struct member *deal(struct member *any, uint64_t seq)
{
    char id[DELIVERY_ID_MAX_BYTES + 1];

    (void)snprintf(id, sizeof(id), "%llu.1.aaaaaaaaaaaa", (unsigned long long)seq);
    return roster_deal(any->group, id, seq);
}

static struct group *take(const char *name, uint64_t seq)
{
    char id[DELIVERY_ID_MAX_BYTES + 1];

    (void)snprintf(id, sizeof(id), "%llu.1.aaaaaaaaaaaa", (unsigned long long)seq);
    return roster_take(world.roster, name, seq, id);
}

/* Wanted once; and then, if there is nothing, not before there is news. */
static void expect_wanted(struct group *group)
{
    assert_true(roster_has_wanted(world.roster));
    assert_ptr_equal(roster_next_wanted(world.roster), group);
    assert_false(roster_has_wanted(world.roster));
    roster_is_dry(group);
}

static void consumers_take_turns(void **state)
{
    struct member a, b;

    (void)state;
    join(&a, "jobs", "g", 2);
    join(&b, "jobs", "g", 3);
    assert_ptr_equal(a.group, b.group);
    assert_int_equal(roster_places(a.group), 5);
    assert_ptr_equal(deal(&a, 1), &a);
    assert_ptr_equal(deal(&a, 2), &b);
    assert_ptr_equal(deal(&a, 3), &a);
    assert_ptr_equal(deal(&a, 4), &b);
    assert_ptr_equal(deal(&a, 5), &b);
    assert_null(deal(&a, 6));
    assert_int_equal(roster_in_hand(world.roster), 5);
    leave(&a);
    leave(&b);
    assert_int_equal(world.let_go, 5);
}

static void a_place_is_free_when_it_is_acknowledged(void **state)
{
    struct member a;

    (void)state;
    join(&a, "jobs", "g", 1);
    expect_wanted(a.group);
    assert_non_null(deal(&a, 7));
    assert_int_equal(roster_places(a.group), 0);
    assert_null(take("other", 7));
    assert_null(take("g", 8));
    assert_null(roster_take(world.roster, "g", 7, "7.2.bbbbbbbbbbbb"));
    assert_ptr_equal(take("g", 7), a.group);
    assert_null(take("g", 7));
    assert_int_equal(roster_places(a.group), 1);
    leave(&a);
    assert_int_equal(world.let_go, 0);
}

static void a_group_is_wanted_when_there_is_news_and_a_place(void **state)
{
    struct member a;

    (void)state;
    join(&a, "jobs", "g", 1);
    expect_wanted(a.group);
    assert_non_null(deal(&a, 1));
    roster_news(a.group);
    assert_false(roster_has_wanted(world.roster));
    assert_non_null(take("g", 1));
    expect_wanted(a.group);
    roster_news_of_channel(world.roster, "other");
    assert_false(roster_has_wanted(world.roster));
    roster_news_of_channel(world.roster, "jobs");
    expect_wanted(a.group);
    leave(&a);
}

static void without_news_it_is_looked_at_all_the_same(void **state)
{
    struct member a;

    (void)state;
    join(&a, "jobs", "g", 1);
    expect_wanted(a.group);
    for (int i = 0; i < 3; i++) {
        pass(USEC_PER_SEC / 2);
        assert_false(roster_has_wanted(world.roster));
        pass(USEC_PER_SEC / 2 + 50000);
        expect_wanted(a.group);
        assert_false(a.group->full);
    }
    assert_non_null(deal(&a, 1));
    pass(USEC_PER_SEC + 50000);
    assert_false(roster_has_wanted(world.roster));
    assert_true(a.group->full);
    leave(&a);
}

static void a_lease_that_is_over_frees_its_place(void **state)
{
    struct member a;

    (void)state;
    join(&a, "jobs", "g", 1);
    expect_wanted(a.group);
    assert_non_null(deal(&a, 1));
    pass(29 * USEC_PER_SEC);
    assert_int_equal(roster_places(a.group), 0);
    pass(USEC_PER_SEC + 50000);
    assert_int_equal(roster_places(a.group), 1);
    expect_wanted(a.group);
    assert_null(take("g", 1));
    leave(&a);
    assert_int_equal(world.let_go, 0);
}

static void an_event_that_is_dealt_again_leaves_the_first_hand(void **state)
{
    struct member a, b;

    (void)state;
    join(&a, "jobs", "g", 1);
    join(&b, "jobs", "g", 1);
    assert_ptr_equal(deal(&a, 1), &a);
    assert_ptr_equal(roster_deal(a.group, "1.2.bbbbbbbbbbbb", 1), &b);
    assert_int_equal(roster_in_hand(world.roster), 1);
    assert_null(take("g", 1));
    assert_ptr_equal(roster_take(world.roster, "g", 1, "1.2.bbbbbbbbbbbb"), a.group);
    leave(&a);
    leave(&b);
}

static void groups_of_one_name_are_told_apart_by_their_events(void **state)
{
    struct member a, b;

    (void)state;
    join(&a, "jobs", "g", 5);
    join(&b, "letters", "g", 5);
    assert_ptr_not_equal(a.group, b.group);
    assert_ptr_equal(deal(&a, 1), &a);
    assert_ptr_equal(deal(&b, 2), &b);
    assert_ptr_equal(take("g", 1), a.group);
    assert_ptr_equal(take("g", 2), b.group);
    leave(&a);
    leave(&b);
}

static void who_does_not_read_is_dealt_no_more(void **state)
{
    struct member a, b;

    (void)state;
    join(&a, "jobs", "g", 5);
    join(&b, "jobs", "g", 5);
    atomic_store_explicit(&a.unsent_bytes, ROSTER_UNSENT_BYTES_MAX, memory_order_relaxed);
    assert_int_equal(roster_places(a.group), 5);
    assert_ptr_equal(deal(&a, 1), &b);
    assert_ptr_equal(deal(&a, 2), &b);
    /* What came in one answer with others has to go somewhere. */
    atomic_store_explicit(&b.unsent_bytes, ROSTER_UNSENT_BYTES_MAX, memory_order_relaxed);
    assert_int_equal(roster_places(a.group), 0);
    assert_non_null(deal(&a, 3));
    leave(&a);
    leave(&b);
    assert_int_equal(world.let_go, 3);
}

static void who_is_leaving_is_dealt_no_more(void **state)
{
    struct member a;

    (void)state;
    join(&a, "jobs", "g", 5);
    atomic_store_explicit(&a.leaving, true, memory_order_relaxed);
    assert_int_equal(roster_places(a.group), 0);
    assert_null(deal(&a, 1));
    leave(&a);
}

static void of_exclusive_members_the_holder_alone_has_places(void **state)
{
    struct member a = {.channel = "jobs",
                       .name = "g",
                       .max = 2,
                       .lease_usec = USEC_PER_SEC,
                       .exclusive = true};
    struct member b = a;

    (void)state;
    assert_int_equal(roster_join(world.roster, &a), 0);
    assert_int_equal(roster_join(world.roster, &b), 0);
    assert_int_equal(a.group->exclusive_count, 2);
    assert_int_equal(roster_places(a.group), 0);
    a.group->holder = &b;
    assert_int_equal(roster_places(a.group), 2);
    assert_ptr_equal(deal(&a, 1), &b);
    /* Its lease does not end by itself. */
    pass(10 * USEC_PER_SEC);
    assert_int_equal(roster_in_hand(world.roster), 1);
    leave(&b);
    assert_null(a.group->holder);
    assert_int_equal(a.group->exclusive_count, 1);
    leave(&a);
    assert_int_equal(world.let_go, 1);
}

static void a_group_goes_with_its_last_member_also_if_it_is_wanted(void **state)
{
    struct member a, b, c;

    (void)state;
    join(&a, "a", "g", 1);
    join(&b, "b", "g", 1);
    join(&c, "c", "g", 1);
    leave(&b);
    assert_ptr_equal(roster_next_wanted(world.roster), a.group);
    leave(&a);
    join(&b, "b", "g", 1);
    leave(&b);
    assert_ptr_equal(roster_next_wanted(world.roster), c.group);
    assert_null(roster_next_wanted(world.roster));
    leave(&c);
}

static void without_memory_nobody_is_in_and_nothing_is_dealt(void **state)
{
    struct member a = {.channel = "jobs", .name = "g", .max = 5, .lease_usec = 1000};

    (void)state;
    for (unsigned nth = 1;; nth++) {
        failing_malloc_begin(nth);
        const int r = roster_join(world.roster, &a);
        if (!failing_malloc_end()) {
            assert_int_equal(r, 0);
            break;
        }
        assert_int_equal(r, -ENOMEM);
        assert_null(roster_first(world.roster));
    }
    failing_malloc_begin(1);
    assert_null(deal(&a, 1));
    assert_true(failing_malloc_end());
    assert_int_equal(roster_in_hand(world.roster), 0);
    assert_non_null(deal(&a, 1));
    leave(&a);
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(consumers_take_turns),
        TEST(a_place_is_free_when_it_is_acknowledged),
        TEST(a_group_is_wanted_when_there_is_news_and_a_place),
        TEST(without_news_it_is_looked_at_all_the_same),
        TEST(a_lease_that_is_over_frees_its_place),
        TEST(an_event_that_is_dealt_again_leaves_the_first_hand),
        TEST(groups_of_one_name_are_told_apart_by_their_events),
        TEST(who_does_not_read_is_dealt_no_more),
        TEST(who_is_leaving_is_dealt_no_more),
        TEST(of_exclusive_members_the_holder_alone_has_places),
        TEST(a_group_goes_with_its_last_member_also_if_it_is_wanted),
        TEST(without_memory_nobody_is_in_and_nothing_is_dealt),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
