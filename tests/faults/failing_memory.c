/*
 * failing_memory.c - LD_PRELOAD: memory that runs out, in a gateway, when a file says so.
 *
 * The file named by FAILING_MEMORY holds two numbers: every so many-th allocation of the
 * process fails (0: none does); and how many have failed. The gateway's own allocations and
 * those of its libraries are counted alike. Other programs, which inherit the library,
 * are left alone.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct failing_memory {
    _Atomic uint32_t every;
    _Atomic uint32_t failed;
};

/* glibc's own, which it keeps for those who put something before them. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);

static struct failing_memory *memory; /* NULL: nothing fails */
static _Atomic uint32_t allocations;

__attribute__((constructor)) static void open_file(void)
{
    const char *path = getenv("FAILING_MEMORY");

    if (path == NULL || strcmp(program_invocation_short_name, "pg-sse-gateway") != 0)
        return;
    const int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        abort();
    void *map = mmap(NULL, sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        abort();
    close(fd);
    memory = map;
}

static int fails_now(void)
{
    if (memory == NULL)
        return 0;
    const uint32_t every = atomic_load_explicit(&memory->every, memory_order_relaxed);
    const uint32_t number =
        atomic_fetch_add_explicit(&allocations, 1, memory_order_relaxed);
    if (every == 0 || number % every != 0)
        return 0;
    atomic_fetch_add_explicit(&memory->failed, 1, memory_order_relaxed);
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails_now() ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails_now() ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return fails_now() ? NULL : __libc_realloc(old, size);
}
