/* test_mailbox.c - how one thread tells another something. */
#include "mailbox.h"

#include <poll.h>
#include <stdatomic.h>

#include "cmocka_all.h"
#include "thread.h"

struct letter {
    struct mail mail;
    struct mailbox *again; /* posted there when it is delivered; NULL: not */
    int number;
    int *last;
};

static void deliver(struct mail *mail)
{
    struct letter *letter = CONTAINER_OF(mail, struct letter, mail);

    assert_int_equal(letter->number, *letter->last + 1);
    *letter->last = letter->number;
    if (letter->again != NULL) {
        letter->number += 2; /* behind the one that is there already */
        mailbox_post(letter->again, mail);
    }
}

static bool is_ringing(const struct mailbox *mailbox)
{
    struct pollfd bell = {.fd = mailbox_fd(mailbox), .events = POLLIN};

    return poll(&bell, 1, 0) == 1;
}

static void letters_are_delivered_in_order_once(void **state)
{
    struct mailbox mailbox;
    struct letter letters[3];
    int last = 0;

    (void)state;
    assert_int_equal(mailbox_init(&mailbox, NULL), 0);
    assert_false(is_ringing(&mailbox));
    for (int i = 0; i < 3; i++) {
        letters[i] =
            (struct letter){.mail.deliver = deliver, .number = i + 1, .last = &last};
        mailbox_post(&mailbox, &letters[i].mail);
    }
    assert_true(is_ringing(&mailbox));
    assert_int_equal(mailbox_deliver(&mailbox), 3);
    assert_int_equal(last, 3);
    assert_false(is_ringing(&mailbox));
    assert_int_equal(mailbox_deliver(&mailbox), 0);
    mailbox_done(&mailbox);
}

static void what_is_posted_meanwhile_waits_for_the_next_call(void **state)
{
    struct mailbox mailbox;
    int last = 0;

    (void)state;
    assert_int_equal(mailbox_init(&mailbox, NULL), 0);
    struct letter one = {.mail.deliver = deliver, .number = 1, .last = &last};
    struct letter two = {.mail.deliver = deliver, .number = 2, .last = &last};
    one.again = &mailbox;
    mailbox_post(&mailbox, &one.mail);
    mailbox_post(&mailbox, &two.mail);
    assert_int_equal(mailbox_deliver(&mailbox), 2);
    assert_int_equal(last, 2);
    assert_true(is_ringing(&mailbox));
    one.again = NULL;
    assert_int_equal(mailbox_deliver(&mailbox), 1);
    assert_int_equal(last, 3);
    mailbox_done(&mailbox);
}

static void a_ring_wakes_without_a_letter(void **state)
{
    struct mailbox mailbox;

    (void)state;
    assert_int_equal(mailbox_init(&mailbox, NULL), 0);
    mailbox_ring(&mailbox);
    mailbox_ring(&mailbox);
    assert_true(is_ringing(&mailbox));
    assert_int_equal(mailbox_deliver(&mailbox), 0);
    assert_false(is_ringing(&mailbox));
    mailbox_done(&mailbox);
}

static void what_was_never_begun_can_be_ended(void **state)
{
    struct mailbox mailbox = {0};

    (void)state;
    mailbox_done(&mailbox); /* and does not close descriptor 0 */
    mailbox_done(NULL);
    assert_true(poll(&(struct pollfd){.fd = 0}, 1, 0) >= 0);
}

#define POSTERS 3
#define LETTERS 20000

struct poster {
    struct thread thread;
    struct mailbox *mailbox;
    struct letter *letters;
    int last;
};

static void post_many(void *argument)
{
    struct poster *poster = argument;

    for (int i = 0; i < LETTERS; i++) {
        poster->letters[i] = (struct letter){
            .mail.deliver = deliver, .number = i + 1, .last = &poster->last};
        mailbox_post(poster->mailbox, &poster->letters[i].mail);
    }
}

/* The owner sleeps on the descriptor alone: a lost ring would hang it. */
static void nobody_sleeps_through_a_letter(void **state)
{
    static struct poster posters[POSTERS];
    struct mailbox mailbox;
    size_t count = 0;

    (void)state;
    assert_int_equal(mailbox_init(&mailbox, NULL), 0);
    for (unsigned i = 0; i < POSTERS; i++) {
        posters[i].mailbox = &mailbox;
        posters[i].letters = calloc(LETTERS, sizeof(struct letter));
        assert_non_null(posters[i].letters);
        assert_int_equal(thread_start(&posters[i].thread, THREAD_SHARD, i, post_many,
                                      &posters[i], NULL),
                         0);
    }
    while (count < POSTERS * LETTERS) {
        struct pollfd bell = {.fd = mailbox_fd(&mailbox), .events = POLLIN};
        assert_int_equal(poll(&bell, 1, 10000), 1);
        count += mailbox_deliver(&mailbox);
    }
    for (unsigned i = 0; i < POSTERS; i++) {
        thread_join(&posters[i].thread);
        assert_int_equal(posters[i].last, LETTERS);
        free(posters[i].letters);
    }
    mailbox_done(&mailbox);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(letters_are_delivered_in_order_once),
        cmocka_unit_test(what_is_posted_meanwhile_waits_for_the_next_call),
        cmocka_unit_test(a_ring_wakes_without_a_letter),
        cmocka_unit_test(what_was_never_begun_can_be_ended),
        cmocka_unit_test(nobody_sleeps_through_a_letter),
    };
    return cmocka_run_group_tests_name("mailbox", tests, NULL, NULL);
}
