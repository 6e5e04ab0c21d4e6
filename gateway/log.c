/*
 * log.c - levelled lines to stderr.
 */
#include "log.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 2048
#define CUT_MARK       "..."

static _Atomic int level_now = LOG_LEVEL_NOTICE;
static log_sink *sink_now; /* [const] set before the first thread starts */

void log_set_level(enum log_level level)
{
    atomic_store_explicit(&level_now, (int)level, memory_order_relaxed);
}

void log_set_sink(log_sink *sink)
{
    sink_now = sink;
}

static const char *level_word(enum log_level level)
{
    switch (level) {
    case LOG_LEVEL_ERROR:
        return "error";
    case LOG_LEVEL_WARNING:
        return "warning";
    case LOG_LEVEL_NOTICE:
        return "notice";
    case LOG_LEVEL_DEBUG:
        return "debug";
    }
    return "?";
}

int log_level_parse(const char *word, enum log_level *ret_level)
{
    static const enum log_level levels[] = {LOG_LEVEL_ERROR, LOG_LEVEL_WARNING,
                                            LOG_LEVEL_NOTICE, LOG_LEVEL_DEBUG};

    for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
        if (strcmp(word, level_word(levels[i])) == 0) {
            *ret_level = levels[i];
            return 0;
        }
    return -EINVAL;
}

const char *log_level_word(enum log_level level)
{
    return level_word(level);
}

/* systemd names the device and inode it connected stderr to; after "2>file" in a unit's
 * script the variable is still there, but no longer says the truth. Asked anew for each
 * line: lines are rare, and there is no state to go stale. */
bool log_stderr_is_journal(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    struct stat status;
    unsigned long long device, inode;

    return stream != NULL && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
           fstat(STDERR_FILENO, &status) == 0 && status.st_dev == (dev_t)device &&
           status.st_ino == (ino_t)inode;
}

/* The kernel's name of the thread, given to it by thread_start(): this room is below
 * thread.h and cannot ask there. The first thread carries the program's name. */
static void own_name(char name[16])
{
    if (getpid() == gettid() || pthread_getname_np(pthread_self(), name, 16) != 0)
        memcpy(name, "main", sizeof("main"));
}

static int write_head(char *text, size_t size, enum log_level level)
{
    if (log_stderr_is_journal())
        return snprintf(text, size, "<%d>", (int)level);

    struct timespec now;
    struct tm parts;
    char stamp[sizeof("2000-01-01T00:00:00")] = "";
    char name[16];

    clock_gettime(CLOCK_REALTIME, &now);
    if (gmtime_r(&now.tv_sec, &parts) != NULL)
        strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &parts);
    own_name(name);
    return snprintf(text, size, "%s.%03ldZ %s %s: ", stamp, now.tv_nsec / 1000000,
                    level_word(level), name);
}

void log_to_stderr(enum log_level level, const char *line)
{
    char text[LINE_MAX_BYTES + 128];
    int head = write_head(text, sizeof(text), level);
    size_t len = head < 0 ? 0 : (size_t)head;
    size_t line_len = strnlen(line, LINE_MAX_BYTES);

    memcpy(text + len, line, line_len);
    len += line_len;
    text[len++] = '\n';

    /* One call, so that lines never mix. There is nobody to tell when it fails. */
    ssize_t written;
    do
        written = write(STDERR_FILENO, text, len);
    while (written < 0 && errno == EINTR);
}

PRINTF_LIKE(2, 0)
static void log_line(enum log_level level, const char *format, va_list arguments)
{
    if ((int)level > atomic_load_explicit(&level_now, memory_order_relaxed))
        return;

    char line[LINE_MAX_BYTES];
    int saved_errno = errno;
    int len = vsnprintf(line, sizeof(line), format, arguments);

    if (len >= (int)sizeof(line))
        memcpy(line + sizeof(line) - sizeof(CUT_MARK), CUT_MARK, sizeof(CUT_MARK));
    /* Text of strangers cannot forge a second line, nor play with the terminal. */
    for (char *c = line; len >= 0 && *c != '\0'; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = ' ';
    if (len >= 0)
        (sink_now != NULL ? sink_now : log_to_stderr)(level, line);
    errno = saved_errno;
}

#define LOG_FUNCTION(name, level)                                                        \
    void name(const char *format, ...)                                                   \
    {                                                                                    \
        va_list arguments;                                                               \
        va_start(arguments, format);                                                     \
        log_line(level, format, arguments);                                              \
        va_end(arguments);                                                               \
    }

LOG_FUNCTION(log_error, LOG_LEVEL_ERROR)
LOG_FUNCTION(log_warning, LOG_LEVEL_WARNING)
LOG_FUNCTION(log_notice, LOG_LEVEL_NOTICE)
LOG_FUNCTION(log_debug, LOG_LEVEL_DEBUG)
