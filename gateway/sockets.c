/*
 * sockets.c - the addresses of [http] listen, as listening sockets.
 */
#include "sockets.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "clock.h"

#define UNIX_PREFIX "unix:"
#define HOST_MAX    256

struct socket_file {
    char *path; /* owned; NULL: not a Unix socket */
    dev_t device;
    ino_t inode;
};

struct sockets {
    size_t count;
    int fds[SOCKETS_MAX];
    struct socket_file files[SOCKETS_MAX];
};

/* One item of the list, taken apart. */
struct address {
    char text[HOST_MAX + sizeof(UNIX_PREFIX)]; /* as it was given, for messages */
    const char *path;                          /* in text; NULL: TCP */
    char host[HOST_MAX];                       /* "": every address */
    char port[8];
};

/* ---- the text ---- */

static int fail_address(const struct address *address, const char *why, struct err *err)
{
    return err_set(err, -EINVAL,
                   "'%.100s' is not an address to listen on: %s; write host:port, "
                   "[v6]:port or unix:/path",
                   address->text, why);
}

static int parse_unix(struct address *address, struct err *err)
{
    struct sockaddr_un limit;

    address->path = address->text + strlen(UNIX_PREFIX);
    if (*address->path != '/')
        return fail_address(address, "the path does not begin with '/'", err);
    if (strlen(address->path) >= sizeof(limit.sun_path))
        return fail_address(address, "the path is longer than 107 bytes", err);
    return 0;
}

static int parse_port(struct address *address, const char *port, struct err *err)
{
    unsigned long number = 0;

    for (size_t i = 0; port[i] != '\0'; i++) {
        if (port[i] < '0' || port[i] > '9' || i > 4)
            return fail_address(address, "the port is not a number from 0 to 65535", err);
        number = number * 10 + (unsigned long)(port[i] - '0');
    }
    if (*port == '\0' || number > 65535)
        return fail_address(address, "the port is not a number from 0 to 65535", err);
    snprintf(address->port, sizeof(address->port), "%lu", number);
    return 0;
}

static int parse_tcp(struct address *address, struct err *err)
{
    const char *host = address->text;
    const char *colon = strrchr(host, ':');

    if (colon == NULL)
        return fail_address(address, "it has no port", err);
    size_t len = (size_t)(colon - host);
    if (*host == '[') {
        if (len < 2 || host[len - 1] != ']')
            return fail_address(address, "']' and a port must follow '['", err);
        host++;
        len -= 2;
    } else if (memchr(host, ':', len) != NULL) {
        return fail_address(address, "an IPv6 address stands in brackets", err);
    }
    if (len == 1 && *host == '*')
        len = 0;
    snprintf(address->host, sizeof(address->host), "%.*s", (int)len, host);
    return parse_port(address, colon + 1, err);
}

/* Takes the next item off *list; 0 when there is none, 1 when there was. */
static int next_address(const char **list, struct address *ret_address, struct err *err)
{
    const char *item = *list + strspn(*list, ", \t");
    size_t len = strcspn(item, ",");

    *list = item + len;
    if (len == 0)
        return 0;
    while (item[len - 1] == ' ' || item[len - 1] == '\t')
        len--;

    struct address *address = ret_address;
    *address = (struct address){0};
    if (len >= HOST_MAX)
        return err_set(err, -EINVAL, "'%.100s...' is too long for an address", item);
    memcpy(address->text, item, len);
    int code = strncmp(address->text, UNIX_PREFIX, strlen(UNIX_PREFIX)) == 0
                   ? parse_unix(address, err)
                   : parse_tcp(address, err);
    return code < 0 ? code : 1;
}

/* ---- listening ---- */

static int fail_listen(const struct address *address, int code, struct err *err)
{
    const char *hint = "";

    if (code == EADDRINUSE)
        hint = "; is another gateway running?";
    if (code == EACCES && address->path == NULL)
        hint = "; a port below 1024 needs CAP_NET_BIND_SERVICE or a socket unit";
    if (code == EADDRNOTAVAIL)
        hint = "; this machine has no such address";
    return err_set(err, -code, "could not listen on %s: %s%s", address->text,
                   strerror(code), hint);
}

static int add(struct sockets *sockets, int fd, const struct address *address,
               struct err *err)
{
    if (sockets->count == SOCKETS_MAX) {
        close(fd);
        return err_set(err, -E2BIG, "could not listen on %s: more than %d sockets",
                       address->text, SOCKETS_MAX);
    }
    sockets->fds[sockets->count++] = fd;
    return 0;
}

/* A listening descriptor, or -errno. */
static int listen_at(const struct sockaddr *to, socklen_t len)
{
    int on = 1;
    int fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -errno;
    if ((to->sa_family == AF_UNIX ||
         setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0) &&
        (to->sa_family != AF_INET6 ||
         setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) == 0) &&
        bind(fd, to, len) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;

    int code = -errno;
    close(fd);
    return code;
}

static int resolve(const struct address *address, int flags, struct addrinfo **ret_list,
                   struct err *err)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC,
                             .ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICSERV | flags};
    const char *host = *address->host == '\0' ? NULL : address->host;

    int code = getaddrinfo(host, address->port, &hints, ret_list);
    if (code == 0)
        return 0;
    return err_set(err, code == EAI_MEMORY ? -ENOMEM : -EADDRNOTAVAIL,
                   "could not find the address %s: %s", address->text,
                   code == EAI_SYSTEM ? strerror(errno) : gai_strerror(code));
}

/* An address of a family that the machine does not have, passed over if there are others.
 */
static bool is_absent(int code)
{
    return code == -EAFNOSUPPORT || code == -EADDRNOTAVAIL;
}

static int open_tcp(struct sockets *sockets, const struct address *address,
                    struct err *err)
{
    struct addrinfo *list;
    size_t before = sockets->count;
    int absent = -EADDRNOTAVAIL;

    int code = resolve(address, AI_PASSIVE, &list, err);
    if (code < 0)
        return code;
    for (struct addrinfo *item = list; item != NULL && code == 0; item = item->ai_next) {
        int fd = listen_at(item->ai_addr, item->ai_addrlen);
        if (fd >= 0)
            code = add(sockets, fd, address, err);
        else if (is_absent(fd))
            absent = fd;
        else
            code = fail_listen(address, -fd, err);
    }
    freeaddrinfo(list);
    if (code == 0 && sockets->count == before)
        code = fail_listen(address, -absent, err);
    return code;
}

static struct sockaddr_un unix_address(const char *path)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};

    memcpy(to.sun_path, path, strlen(path)); /* parse_unix() measured it */
    return to;
}

/* Whether a socket's file was left behind by a process that is gone. Two gateways started
 * at the same moment could both find it so; the second one to bind is told. */
static bool is_stale(const struct sockaddr_un *to)
{
    struct stat status;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return false;
    bool refused = connect(fd, (const struct sockaddr *)to, sizeof(*to)) < 0 &&
                   errno == ECONNREFUSED;
    close(fd);
    return refused && lstat(to->sun_path, &status) == 0 && S_ISSOCK(status.st_mode);
}

static int open_unix(struct sockets *sockets, const struct address *address,
                     struct err *err)
{
    struct sockaddr_un to = unix_address(address->path);
    struct stat status;

    int fd = listen_at((const struct sockaddr *)&to, sizeof(to));
    if (fd == -EADDRINUSE && is_stale(&to) && unlink(to.sun_path) == 0)
        fd = listen_at((const struct sockaddr *)&to, sizeof(to));
    if (fd == -EADDRINUSE && lstat(to.sun_path, &status) == 0 &&
        !S_ISSOCK(status.st_mode))
        return err_set(err, -EEXIST,
                       "could not listen on %s: there is a file, not a socket",
                       address->text);
    if (fd < 0)
        return fail_listen(address, -fd, err);
    int code = add(sockets, fd, address, err);
    if (code < 0)
        return code;

    struct socket_file *file = &sockets->files[sockets->count - 1];
    size_t size = strlen(to.sun_path) + 1;
    file->path = malloc(size);
    if (file->path == NULL) {
        unlink(to.sun_path);
        return err_set(err, -ENOMEM, "no memory to listen on %s", address->text);
    }
    memcpy(file->path, to.sun_path, size);
    if (lstat(to.sun_path, &status) == 0) {
        file->device = status.st_dev;
        file->inode = status.st_ino;
    }
    return 0;
}

int sockets_check(const char *addresses, struct err *err)
{
    struct address address;
    size_t count = 0;
    int code;

    while ((code = next_address(&addresses, &address, err)) > 0)
        count++;
    if (code == 0 && count == 0)
        code = err_set(err, -EINVAL, "there is no address to listen on");
    return code;
}

int sockets_open(const char *addresses, struct sockets **ret_sockets, struct err *err)
{
    struct address address;
    struct sockets *sockets = calloc(1, sizeof(*sockets));

    if (sockets == NULL)
        return err_set(err, -ENOMEM, "no memory to listen on %.100s", addresses);
    int code = next_address(&addresses, &address, err);
    while (code > 0) {
        code = address.path != NULL ? open_unix(sockets, &address, err)
                                    : open_tcp(sockets, &address, err);
        if (code == 0)
            code = next_address(&addresses, &address, err);
    }
    if (code == 0 && sockets->count == 0)
        code = err_set(err, -EINVAL, "there is no address to listen on");
    if (code < 0) {
        sockets_close(sockets);
        return code;
    }
    *ret_sockets = sockets;
    return 0;
}

static void remove_file(struct socket_file *file)
{
    struct stat status;

    if (file->path == NULL)
        return;
    /* A successor may have put its own there meanwhile. */
    if (lstat(file->path, &status) == 0 && status.st_dev == file->device &&
        status.st_ino == file->inode)
        unlink(file->path);
    free(file->path);
}

void sockets_close(struct sockets *sockets)
{
    if (sockets == NULL)
        return;
    for (size_t i = 0; i < sockets->count; i++) {
        /* The file first: with the socket closed it would look stale to a successor. */
        remove_file(&sockets->files[i]);
        close(sockets->fds[i]);
    }
    free(sockets);
}

size_t sockets_count(const struct sockets *sockets)
{
    return sockets->count;
}

int sockets_fd(const struct sockets *sockets, size_t index)
{
    return sockets->fds[index];
}

void sockets_describe(int fd, char ret_text[SOCKETS_TEXT_MAX])
{
    struct sockaddr_storage bound = {0};
    socklen_t len = sizeof(bound);
    char host[INET6_ADDRSTRLEN] = "?";

    snprintf(ret_text, SOCKETS_TEXT_MAX, "?");
    if (getsockname(fd, (struct sockaddr *)&bound, &len) < 0)
        return;
    if (bound.ss_family == AF_INET) {
        const struct sockaddr_in *v4 = (const void *)&bound;
        inet_ntop(AF_INET, &v4->sin_addr, host, sizeof(host));
        snprintf(ret_text, SOCKETS_TEXT_MAX, "%s:%u", host, ntohs(v4->sin_port));
    } else if (bound.ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const void *)&bound;
        inet_ntop(AF_INET6, &v6->sin6_addr, host, sizeof(host));
        snprintf(ret_text, SOCKETS_TEXT_MAX, "[%s]:%u", host, ntohs(v6->sin6_port));
    } else if (bound.ss_family == AF_UNIX) {
        /* Not NUL-terminated when it fills its place; begins with NUL when abstract. */
        const struct sockaddr_un *local = (const void *)&bound;
        bool abstract = local->sun_path[0] == '\0';
        size_t head = offsetof(struct sockaddr_un, sun_path);
        size_t size = len > head ? len - head : 0;
        snprintf(ret_text, SOCKETS_TEXT_MAX, UNIX_PREFIX "%s%.*s", abstract ? "@" : "",
                 (int)(abstract && size > 0 ? size - 1 : size),
                 local->sun_path + abstract);
    }
}

/* ---- the way to them ---- */

/* Nobody can be reached at "every address"; the loopback is one of them. */
static void aim_at_loopback(struct sockaddr *to)
{
    if (to->sa_family == AF_INET) {
        struct sockaddr_in *v4 = (void *)to;
        if (v4->sin_addr.s_addr == htonl(INADDR_ANY))
            v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    } else if (to->sa_family == AF_INET6) {
        struct sockaddr_in6 *v6 = (void *)to;
        if (IN6_IS_ADDR_UNSPECIFIED(&v6->sin6_addr))
            v6->sin6_addr = in6addr_loopback;
    }
}

/* The outcome of a connection that is being made. */
static int await_connection(int fd, uint64_t due_usec)
{
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    int outcome = 0, count;
    socklen_t len = sizeof(outcome);

    do
        count = poll(&ready, 1, clock_timeout_msec(due_usec));
    while (count < 0 && errno == EINTR);
    if (count < 0)
        return -errno;
    if (count == 0)
        return -ETIMEDOUT;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &outcome, &len) < 0)
        return -errno;
    return -outcome;
}

/* A connected descriptor, or -errno. */
static int connect_to(const struct sockaddr *to, socklen_t len, uint64_t due_usec)
{
    int fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return -errno;

    int code = connect(fd, to, len) == 0 ? 0 : -errno;
    if (code == -EINPROGRESS)
        code = await_connection(fd, due_usec);
    if (code == 0)
        return fd;
    close(fd);
    return code;
}

static int connect_tcp(const struct address *address, uint64_t due_usec, struct err *err)
{
    struct addrinfo *list;
    int fd = -EADDRNOTAVAIL;

    int code = resolve(address, AI_PASSIVE, &list, err);
    if (code < 0)
        return code;
    for (struct addrinfo *item = list; item != NULL && fd < 0; item = item->ai_next) {
        aim_at_loopback(item->ai_addr);
        fd = connect_to(item->ai_addr, item->ai_addrlen, due_usec);
    }
    freeaddrinfo(list);
    if (fd < 0)
        return err_set(err, fd, "could not connect to %s: %s", address->text,
                       strerror(-fd));
    return fd;
}

int sockets_connect(const char *addresses, uint64_t due_usec, struct err *err)
{
    struct address address;
    int code = next_address(&addresses, &address, err);

    if (code < 0)
        return code;
    if (code == 0)
        return err_set(err, -EINVAL, "there is no address to connect to");
    if (address.path == NULL && strcmp(address.port, "0") == 0)
        return err_set(err, -EINVAL, "cannot connect to %s: port 0 is any free one",
                       address.text);
    if (address.path == NULL)
        return connect_tcp(&address, due_usec, err);

    struct sockaddr_un to = unix_address(address.path);
    int fd = connect_to((const struct sockaddr *)&to, sizeof(to), due_usec);
    if (fd < 0)
        return err_set(err, fd, "could not connect to %s: %s", address.text,
                       strerror(-fd));
    return fd;
}
