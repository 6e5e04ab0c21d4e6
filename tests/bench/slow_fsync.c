/*
 * slow_fsync.c - LD_PRELOAD: a disk whose fdatasync takes 2 ms longer, as a cloud's does.
 *
 * PostgreSQL makes a commit durable with fdatasync (wal_sync_method on Linux). The data is
 * really written: only the answer comes later.
 */
#include <errno.h>
#include <time.h>
#include <unistd.h>

#include <sys/syscall.h>

#define DELAY_NSEC (2 * 1000 * 1000)

int fdatasync(int fd)
{
    struct timespec left = {.tv_nsec = DELAY_NSEC};
    const int r = (int)syscall(SYS_fdatasync, fd);
    const int error = errno;

    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
    errno = error;
    return r;
}
