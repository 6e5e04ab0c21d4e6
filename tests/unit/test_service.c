/* test_service.c - libsystemd: sockets handed over, notifications, the journal. */
#include "service.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Else the header makes a macro of the function that is replaced below. */
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

#include "cmocka_all.h"
#include "log.h"
#include "thread.h"

/* ---- the notification socket ---- */

static char notify_path[64];
static int notify_fd;

static int begin(void **state)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};

    (void)state;
    snprintf(notify_path, sizeof(notify_path), "/tmp/test_service.%d", (int)getpid());
    unlink(notify_path);
    snprintf(to.sun_path, sizeof(to.sun_path), "%s", notify_path);
    notify_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setenv("NOTIFY_SOCKET", notify_path, 1);
    return notify_fd < 0 || bind(notify_fd, (const struct sockaddr *)&to, sizeof(to)) < 0;
}

static int end(void **state)
{
    (void)state;
    close(notify_fd);
    unlink(notify_path);
    unsetenv("NOTIFY_SOCKET");
    return 0;
}

static const char *told(void)
{
    static char text[2048];
    ssize_t len = recv(notify_fd, text, sizeof(text) - 1, 0);

    text[len < 0 ? 0 : len] = '\0';
    return text;
}

static void systemd_is_told(void **state)
{
    (void)state;
    service_ready();
    assert_string_equal(told(), "READY=1");
    service_status("%d streams,\nsecond line", 7);
    assert_string_equal(told(), "STATUS=7 streams, second line");
    service_watchdog();
    assert_string_equal(told(), "WATCHDOG=1");
    service_stopping();
    assert_string_equal(told(), "STOPPING=1");
    assert_string_equal(told(), "");
}

static void nobody_to_tell_is_no_error(void **state)
{
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    service_ready();
    service_status("x");
    setenv("NOTIFY_SOCKET", "/nowhere/at/all", 1);
    service_ready();
    service_watchdog();
}

static void the_watchdogs_time_is_ours_only_if_it_is_meant_for_us(void **state)
{
    char pid[32];

    (void)state;
    unsetenv("WATCHDOG_USEC");
    assert_int_equal(service_watchdog_usec(), 0);
    setenv("WATCHDOG_USEC", "30000000", 1);
    assert_int_equal(service_watchdog_usec(), 30000000);
    setenv("WATCHDOG_PID", "1", 1);
    assert_int_equal(service_watchdog_usec(), 0);
    snprintf(pid, sizeof(pid), "%d", (int)getpid());
    setenv("WATCHDOG_PID", pid, 1);
    assert_int_equal(service_watchdog_usec(), 30000000);
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
}

/* ---- handed-over sockets ---- */

enum handed { HANDED_TCP, HANDED_UNIX, HANDED_UDP, HANDED_NOT_LISTENING, HANDED_FILE };

static int make(enum handed kind)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un local = {.sun_family = AF_UNIX}; /* autobind: abstract */
    int fd;

    switch (kind) {
    case HANDED_TCP:
        fd = socket(AF_INET, SOCK_STREAM, 0);
        return bind(fd, (const struct sockaddr *)&v4, sizeof(v4)) < 0 || listen(fd, 5) < 0
                   ? -1
                   : fd;
    case HANDED_UNIX:
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        return bind(fd, (const struct sockaddr *)&local, sizeof(sa_family_t)) < 0 ||
                       listen(fd, 5) < 0
                   ? -1
                   : fd;
    case HANDED_UDP:
        return socket(AF_INET, SOCK_DGRAM, 0);
    case HANDED_NOT_LISTENING:
        return socket(AF_INET, SOCK_STREAM, 0);
    case HANDED_FILE:
        return open("/dev/null", O_RDONLY);
    }
    return -1;
}

/* What a process finds that was started with these: LISTEN_FDS begin at descriptor 3, so it
 * has to be a process of its own. Its exit status: 100 plus the count, or the errno; 1 and 2
 * when a check failed. */
static int take_in_child(const enum handed *kinds, int count, int claimed)
{
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        char text[32];
        int fds[SERVICE_SOCKETS_MAX];
        struct err err;
        for (int i = 0; i < count; i++) {
            int fd = make(kinds[i]);
            if (fd < 0 || dup2(fd, 50 + i) < 0)
                _exit(1);
        }
        for (int i = 0; i < count; i++)
            dup2(50 + i, 3 + i);
        snprintf(text, sizeof(text), "%d", (int)getpid());
        setenv("LISTEN_PID", text, 1);
        snprintf(text, sizeof(text), "%d", claimed);
        setenv("LISTEN_FDS", text, 1);
        int code = service_listen_fds(fds, &err);
        if (getenv("LISTEN_FDS") != NULL)
            _exit(2);
        for (int i = 0; i < code; i++)
            if (fds[i] != 3 + i || !(fcntl(fds[i], F_GETFL) & O_NONBLOCK) ||
                !(fcntl(fds[i], F_GETFD) & FD_CLOEXEC))
                _exit(2);
        _exit(code < 0 ? -code : 100 + code);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void sockets_handed_over_are_taken_in_order(void **state)
{
    static const enum handed both[] = {HANDED_TCP, HANDED_UNIX};

    (void)state;
    assert_int_equal(take_in_child(both, 2, 2), 102);
    assert_int_equal(take_in_child(both, 1, 1), 101);
}

static void without_sockets_there_are_none(void **state)
{
    int fds[SERVICE_SOCKETS_MAX];

    (void)state;
    unsetenv("LISTEN_FDS");
    assert_int_equal(service_listen_fds(fds, NULL), 0);
    setenv("LISTEN_FDS", "2", 1);
    setenv("LISTEN_PID", "1", 1); /* somebody else's */
    assert_int_equal(service_listen_fds(fds, NULL), 0);
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_PID");
}

static void what_is_not_a_listening_stream_socket_is_refused(void **state)
{
    static const enum handed wrong[] = {HANDED_UDP, HANDED_NOT_LISTENING, HANDED_FILE};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(wrong); i++)
        assert_int_equal(take_in_child(&wrong[i], 1, 1), EINVAL);
    assert_int_equal(take_in_child(NULL, 0, 1000), EBADF);
}

/* ---- the journal ---- */

#define JOURNAL_SOCKET "/run/systemd/journal/socket"

static char sent[4][2600];
static int sent_count;
static int send_result;
static bool journal_runs;

/* In libsystemd's and libc's place: the program's own symbols come first. No journal runs
 * where this is tested, and none is wanted. */
int sd_journal_sendv(const struct iovec *iov, int n)
{
    sent_count = n;
    for (int i = 0; i < n && i < 4; i++)
        snprintf(sent[i], sizeof(sent[i]), "%.*s", (int)iov[i].iov_len,
                 (const char *)iov[i].iov_base);
    return send_result;
}

int access(const char *path, int mode)
{
    if (strcmp(path, JOURNAL_SOCKET) == 0)
        return journal_runs ? 0 : -1;
    return faccessat(AT_FDCWD, path, mode, 0);
}

/* stderr goes to `file`, and that is the journal. */
static int begin_journal(FILE *file)
{
    struct stat status;
    char stream[64];
    int saved = dup(STDERR_FILENO);

    dup2(fileno(file), STDERR_FILENO);
    fstat(STDERR_FILENO, &status);
    snprintf(stream, sizeof(stream), "%llu:%llu", (unsigned long long)status.st_dev,
             (unsigned long long)status.st_ino);
    setenv("JOURNAL_STREAM", stream, 1);
    return saved;
}

static void end_journal(int saved)
{
    dup2(saved, STDERR_FILENO);
    close(saved);
    log_set_sink(NULL);
    unsetenv("JOURNAL_STREAM");
}

static void warn(void *argument)
{
    (void)argument;
    log_warning("it is %d", 5);
}

static void log_lines_become_fields_of_the_journal(void **state)
{
    struct thread thread = {0};
    FILE *file = tmpfile();
    int saved = begin_journal(file);

    (void)state;
    journal_runs = true;
    sent_count = 0;
    bool to_journal = service_log_to_journal();
    int code = thread_start(&thread, THREAD_SHARD, 2, warn, NULL, NULL);
    thread_join(&thread);
    end_journal(saved);

    assert_true(to_journal);
    assert_int_equal(code, 0);
    assert_int_equal(ftell(file), 0);
    assert_int_equal(sent_count, 4);
    assert_string_equal(sent[0], "MESSAGE=it is 5");
    assert_string_equal(sent[1], "PRIORITY=4");
    assert_string_equal(sent[2], "PGSSE_THREAD=shard/2");
    assert_string_equal(sent[3], "SYSLOG_IDENTIFIER=pg-sse-gateway");
    fclose(file);
}

static void a_line_that_the_journal_refuses_goes_to_stderr(void **state)
{
    FILE *file = tmpfile();
    int saved = begin_journal(file);
    char text[64] = "";

    (void)state;
    journal_runs = true;
    send_result = -EPERM;
    bool to_journal = service_log_to_journal();
    log_error("lost?");
    send_result = 0;
    end_journal(saved);

    assert_true(to_journal);
    rewind(file);
    assert_non_null(fgets(text, sizeof(text), file));
    assert_string_equal(text, "<3>lost?\n");
    fclose(file);
}

static void without_a_journal_the_lines_stay_on_stderr(void **state)
{
    FILE *file = tmpfile();

    (void)state;
    journal_runs = true;
    assert_false(service_log_to_journal()); /* stderr is something else */
    journal_runs = false;
    int saved = begin_journal(file);
    bool to_journal = service_log_to_journal();
    end_journal(saved);
    assert_false(to_journal);
    fclose(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(systemd_is_told, begin, end),
        cmocka_unit_test_setup_teardown(nobody_to_tell_is_no_error, begin, end),
        cmocka_unit_test(the_watchdogs_time_is_ours_only_if_it_is_meant_for_us),
        cmocka_unit_test(sockets_handed_over_are_taken_in_order),
        cmocka_unit_test(without_sockets_there_are_none),
        cmocka_unit_test(what_is_not_a_listening_stream_socket_is_refused),
        cmocka_unit_test(log_lines_become_fields_of_the_journal),
        cmocka_unit_test(a_line_that_the_journal_refuses_goes_to_stderr),
        cmocka_unit_test(without_a_journal_the_lines_stay_on_stderr),
    };
    return cmocka_run_group_tests_name("service", tests, NULL, NULL);
}
