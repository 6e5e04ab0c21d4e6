/*
 * mailbox.c - how one thread tells another something.
 */
#include "mailbox.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int mailbox_init(struct mailbox *mailbox, struct err *err)
{
    *mailbox = (struct mailbox){.fd = -1};

    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0)
        return err_set(err, -errno, "could not make an eventfd: %s", strerror(errno));
    int code = pthread_mutex_init(&mailbox->lock, NULL);
    if (code != 0) {
        close(fd);
        return err_set(err, -code, "could not make a mutex: %s", strerror(code));
    }
    mailbox->tail = &mailbox->first;
    mailbox->fd = fd;
    return 0;
}

void mailbox_done(struct mailbox *mailbox)
{
    /* No tail: never begun, or failed to. What is still inside is not ours to free. */
    if (mailbox == NULL || mailbox->tail == NULL)
        return;
    close(mailbox->fd);
    pthread_mutex_destroy(&mailbox->lock);
    *mailbox = (struct mailbox){.fd = -1};
}

int mailbox_fd(const struct mailbox *mailbox)
{
    return mailbox->fd;
}

void mailbox_ring(struct mailbox *mailbox)
{
    uint64_t one = 1;
    ssize_t written;

    do
        written = write(mailbox->fd, &one, sizeof(one));
    while (written < 0 && errno == EINTR);
    /* EAGAIN: the counter is full, so the owner has been rung for already. */
    assert(written == (ssize_t)sizeof(one) || errno == EAGAIN);
}

void mailbox_post(struct mailbox *mailbox, struct mail *mail)
{
    mail->next = NULL;
    pthread_mutex_lock(&mailbox->lock);
    bool was_empty = mailbox->first == NULL;
    *mailbox->tail = mail;
    mailbox->tail = &mail->next;
    pthread_mutex_unlock(&mailbox->lock);

    /* The letter is in the list before the bell rings; mailbox_deliver() silences the
     * bell before it empties the list. So a letter that was not taken has a ring to come.
     * Who found the list not empty leaves the ring to the one who found it empty. */
    if (was_empty)
        mailbox_ring(mailbox);
}

size_t mailbox_deliver(struct mailbox *mailbox)
{
    uint64_t rings;
    ssize_t got;
    size_t count = 0;

    /* First the bell, then the list: see mailbox_post(). EAGAIN: nobody rang. */
    do
        got = read(mailbox->fd, &rings, sizeof(rings));
    while (got < 0 && errno == EINTR);

    pthread_mutex_lock(&mailbox->lock);
    struct mail *mail = mailbox->first;
    mailbox->first = NULL;
    mailbox->tail = &mailbox->first;
    pthread_mutex_unlock(&mailbox->lock);

    while (mail != NULL) {
        struct mail *next = mail->next; /* deliver() may free the letter, or post it on */
        mail->deliver(mail);
        mail = next;
        count++;
    }
    return count;
}
