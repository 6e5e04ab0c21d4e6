/*
 * service.c - libsystemd.
 */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

/* The journal would like to know the line of our source: log.c's, always, so it does not.
 */
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include "log.h"
#include "thread.h"

#define IDENTIFIER     "pg-sse-gateway"
#define JOURNAL_SOCKET "/run/systemd/journal/socket"

static int take_socket(int fd, struct err *err)
{
    int is_stream = sd_is_socket(fd, AF_UNSPEC, SOCK_STREAM, 1);
    if (is_stream < 0)
        return err_set(err, is_stream, "could not look at handed-over descriptor %d: %s",
                       fd, strerror(-is_stream));
    if (is_stream == 0)
        return err_set(err, -EINVAL,
                       "handed-over descriptor %d is not a listening stream socket; the "
                       "socket unit needs ListenStream= and no Accept=yes",
                       fd);

    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return err_set(err, -errno, "could not set up handed-over descriptor %d: %s", fd,
                       strerror(errno));
    return 0;
}

int service_listen_fds(int ret_fds[SERVICE_SOCKETS_MAX], struct err *err)
{
    int count = sd_listen_fds(1);

    if (count < 0)
        return err_set(err, count, "could not read LISTEN_FDS: %s", strerror(-count));
    if (count > SERVICE_SOCKETS_MAX)
        return err_set(err, -E2BIG, "%d sockets were handed over; at most %d can be",
                       count, SERVICE_SOCKETS_MAX);
    for (int i = 0; i < count; i++) {
        int code = take_socket(SD_LISTEN_FDS_START + i, err);
        if (code < 0)
            return code;
    }
    for (int i = 0; i < count; i++)
        ret_fds[i] = SD_LISTEN_FDS_START + i;
    return count;
}

/* A lost notification is not worth a line: systemd itself notices what it waits for. */
void service_ready(void)
{
    sd_notify(0, "READY=1");
}

void service_stopping(void)
{
    sd_notify(0, "STOPPING=1");
}

void service_status(const char *format, ...)
{
    struct err line; /* one line, without control characters: what a status must be */
    char text[sizeof(line.text)];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    err_set(&line, 0, "%s", text);
    sd_notifyf(0, "STATUS=%s", line.text);
}

uint64_t service_watchdog_usec(void)
{
    uint64_t usec;

    return sd_watchdog_enabled(0, &usec) > 0 ? usec : 0;
}

void service_watchdog(void)
{
    sd_notify(0, "WATCHDOG=1");
}

static struct iovec field(char *text, size_t size, const char *format, ...)
    PRINTF_LIKE(3, 4);

static struct iovec field(char *text, size_t size, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    int len = vsnprintf(text, size, format, arguments);
    va_end(arguments);
    return (struct iovec){.iov_base = text,
                          .iov_len = len < 0 ? 0 : MIN((size_t)len, size - 1)};
}

static void send_to_journal(enum log_level level, const char *line)
{
    char message[2560], priority[16], thread[64],
        identifier[] = "SYSLOG_IDENTIFIER=" IDENTIFIER;
    struct iovec fields[] = {
        field(message, sizeof(message), "MESSAGE=%s", line),
        field(priority, sizeof(priority), "PRIORITY=%d", (int)level),
        field(thread, sizeof(thread), "PGSSE_THREAD=%s", thread_name()),
        {.iov_base = identifier, .iov_len = sizeof(identifier) - 1},
    };

    if (sd_journal_sendv(fields, (int)ARRAY_SIZE(fields)) < 0)
        log_to_stderr(level, line);
}

bool service_log_to_journal(void)
{
    /* Without that socket (a changed root, say) libsystemd drops lines and says nothing;
     * stderr still leads to the journal then. */
    if (!log_stderr_is_journal() || access(JOURNAL_SOCKET, W_OK) != 0)
        return false;
    log_set_sink(send_to_journal);
    return true;
}
