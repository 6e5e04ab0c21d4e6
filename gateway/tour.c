#include <errno.h>
#include <pthread.h>

#include "tour.h"

struct stop {
    struct mailbox *mailbox; /* [const] */
    struct fanout *fanout;   /* [const] its thread's */
};

struct tours {
    pthread_mutex_t lock;
    pthread_cond_t all_home;
    bool closed;         /* [lock] */
    size_t under_way;    /* [lock] */
    unsigned count;      /* [lock] shards that have a thread */
    struct stop stops[]; /* [const] */
};

struct tours *tours_new(unsigned count)
{
    struct tours *tours = calloc(1, sizeof(*tours) + count * sizeof(tours->stops[0]));

    if (tours == NULL)
        return NULL;
    (void)pthread_mutex_init(&tours->lock, NULL);
    (void)pthread_cond_init(&tours->all_home, NULL);
    return tours;
}

void tours_free(struct tours *tours)
{
    if (tours == NULL)
        return;
    (void)pthread_cond_destroy(&tours->all_home);
    (void)pthread_mutex_destroy(&tours->lock);
    free(tours);
}

void tours_set(struct tours *tours, unsigned index, struct mailbox *mailbox,
               struct fanout *fanout)
{
    tours->stops[index] = (struct stop){.mailbox = mailbox, .fanout = fanout};
}

void tours_join(struct tours *tours, unsigned index)
{
    pthread_mutex_lock(&tours->lock);
    tours->count = MAX(tours->count, index + 1);
    pthread_mutex_unlock(&tours->lock);
}

void tours_close(struct tours *tours)
{
    pthread_mutex_lock(&tours->lock);
    tours->closed = true;
    while (tours->under_way > 0)
        pthread_cond_wait(&tours->all_home, &tours->lock);
    pthread_mutex_unlock(&tours->lock);
}

static void come_home(struct tour *tour)
{
    struct tours *tours = tour->tours;

    tour->home(tour);
    pthread_mutex_lock(&tours->lock);
    if (--tours->under_way == 0)
        pthread_cond_signal(&tours->all_home);
    pthread_mutex_unlock(&tours->lock);
}

/* The stop that it is at: `left` counts down to the way home. */
static const struct stop *stop_of(const struct tour *tour)
{
    const unsigned passed = tour->count - tour->left;

    return &tour->tours->stops[(tour->first + passed) % tour->count];
}

static void delivered(struct mail *mail)
{
    struct tour *tour = CONTAINER_OF(mail, struct tour, mail);

    if (tour->left == 0) {
        come_home(tour);
        return;
    }
    tour->visit(tour, stop_of(tour)->fanout);
    tour->left--;
    mailbox_post(stop_of(tour)->mailbox, &tour->mail);
}

int tour_begin(struct tour *tour, struct tours *tours, unsigned index)
{
    pthread_mutex_lock(&tours->lock);
    const bool closed = tours->closed;
    tours->under_way += !closed;
    tour->count = tours->count;
    pthread_mutex_unlock(&tours->lock);
    if (closed)
        return -ESHUTDOWN;

    tour->mail.deliver = delivered;
    tour->tours = tours;
    tour->first = index;
    tour->left = tour->count;
    mailbox_post(tours->stops[index].mailbox, &tour->mail);
    return 0;
}
