/* test_poller.c - one epoll set: descriptors, and what to call when they are ready. */
#include "poller.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "failing_malloc.h"

struct bell {
    struct poller_source source;
    struct poller *poller;
    struct bell *victim; /* removed and freed when this one is ready; may be itself */
    struct bell **slot;  /* where the victim's owner keeps it */
    int rings;
    uint32_t events;
};

static void bell_free(struct bell *bell)
{
    const int fd = bell->source.fd;

    poller_remove(bell->poller, &bell->source);
    (void)close(fd);
    free(bell);
}

static void bell_rings(struct poller_source *source, uint32_t events)
{
    struct bell *bell = CONTAINER_OF(source, struct bell, source);
    struct bell *victim = bell->victim;

    bell->rings++;
    bell->events = events;
    bell->victim = NULL;
    if (victim != NULL) {
        *victim->slot = NULL;
        bell_free(victim);
    }
}

static void bell_new(struct poller *poller, struct bell **slot, unsigned ringing,
                     uint32_t events)
{
    struct bell *bell = calloc(1, sizeof(*bell));
    const int fd = eventfd(ringing, EFD_CLOEXEC | EFD_NONBLOCK);

    assert_non_null(bell);
    bell->source = POLLER_SOURCE(bell_rings);
    bell->poller = poller;
    bell->slot = slot;
    assert_int_equal(bell->source.fd, -1);
    assert_int_equal(poller_add(poller, &bell->source, fd, events), 0);
    *slot = bell;
}

static void the_ready_are_called(void **state)
{
    struct poller *poller = poller_new(NULL);
    struct bell *ringing, *silent;

    (void)state;
    bell_new(poller, &ringing, 1, EPOLLIN);
    bell_new(poller, &silent, 0, EPOLLIN);
    (void)poller_wait(poller, 0);
    (void)poller_wait(poller, -1); /* it does not wait: one is ready still */
    assert_int_equal(ringing->rings, 2);
    assert_int_equal(ringing->events, EPOLLIN);
    assert_int_equal(silent->rings, 0);
    poller_remove(poller, &silent->source); /* its descriptor is the caller's still */
    poller_remove(poller, &silent->source);
    free(silent);
    bell_free(ringing);
    (void)poller_wait(poller, 0);
    poller_free(poller);
    poller_free(NULL);
}

static void the_edge_comes_once_and_again_when_rearmed(void **state)
{
    const uint32_t events = EPOLLIN | EPOLLET;
    struct poller *poller = poller_new(NULL);
    struct bell *bell;

    (void)state;
    bell_new(poller, &bell, 1, events);
    (void)poller_wait(poller, 0);
    (void)poller_wait(poller, 0);
    assert_int_equal(bell->rings, 1);
    poller_rearm(poller, &bell->source, events);
    (void)poller_wait(poller, 0);
    (void)poller_wait(poller, 0);
    assert_int_equal(bell->rings, 2);
    bell_free(bell);
    poller_free(poller);
}

/* Whatever the kernel has reported of someone who is gone is forgotten: the sanitizer would
 * see a call into freed memory. */
static void a_source_may_remove_any_other_and_itself(void **state)
{
    enum { BELLS = 12 }; /* fewer than a batch */

    (void)state;
    for (int by = 0; by < BELLS; by++) {
        for (int victim = 0; victim < BELLS; victim++) {
            struct poller *poller = poller_new(NULL);
            struct bell *bells[BELLS];
            int rings = 0;

            for (int i = 0; i < BELLS; i++)
                bell_new(poller, &bells[i], 1, EPOLLIN);
            bells[by]->victim = bells[victim];
            (void)poller_wait(poller, 0);
            for (int i = 0; i < BELLS; i++) {
                if (bells[i] == NULL)
                    continue;
                rings += bells[i]->rings;
                assert_int_equal(bells[i]->rings, 1);
                bell_free(bells[i]);
            }
            assert_int_equal(rings, BELLS - 1);
            poller_free(poller);
        }
    }
}

static void nested_ready(struct poller_source *source, uint32_t events)
{
    (void)events;
    poller_remove(CONTAINER_OF(source, struct bell, source)->poller, source);
}

/* However many of them there are. And of them, each has its turn in the end. */
static void a_crowd_in_a_poller_of_its_own_is_one_among_few(void **state)
{
    enum { BELLS = 100 };
    struct poller *outer = poller_new(NULL), *inner = poller_new(NULL);
    struct bell nested = {.source = POLLER_SOURCE(nested_ready), .poller = outer};
    struct bell *crowd[BELLS], *single;

    (void)state;
    assert_int_equal(poller_add(outer, &nested.source, poller_fd(inner), EPOLLIN), 0);
    for (int i = 0; i < BELLS; i++)
        bell_new(inner, &crowd[i], 1, EPOLLIN | EPOLLET);
    bell_new(outer, &single, 1, EPOLLIN);
    assert_false(poller_wait(outer, 0));
    assert_int_equal(single->rings, 1);
    assert_int_equal(nested.source.fd, -1); /* it was called, too */
    assert_int_equal(crowd[0]->rings, 0);
    while (poller_wait(inner, 0)) {
    }
    for (int i = 0; i < BELLS; i++) {
        assert_int_equal(crowd[i]->rings, 1);
        bell_free(crowd[i]);
    }
    bell_free(single);
    poller_free(inner);
    poller_free(outer);
}

static void failures_are_told(void **state)
{
    struct poller_source source = POLLER_SOURCE(bell_rings);
    struct err err = {0};
    struct poller *poller;

    (void)state;
    failing_malloc_begin(1);
    assert_null(poller_new(&err));
    assert_true(failing_malloc_end());
    assert_true(err.text[0] != '\0');
    poller = poller_new(&err);
    assert_int_equal(poller_add(poller, &source, -1, EPOLLIN), -EBADF);
    assert_int_equal(source.fd, -1);
    poller_remove(poller, &source); /* it was never added */
    poller_free(poller);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_ready_are_called),
        cmocka_unit_test(the_edge_comes_once_and_again_when_rearmed),
        cmocka_unit_test(a_source_may_remove_any_other_and_itself),
        cmocka_unit_test(a_crowd_in_a_poller_of_its_own_is_one_among_few),
        cmocka_unit_test(failures_are_told),
    };
    return cmocka_run_group_tests_name("poller", tests, NULL, NULL);
}
