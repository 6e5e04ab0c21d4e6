/*
 * sockets.h - the addresses of [http] listen, as listening sockets; and the way to them.
 *
 *     127.0.0.1:8080   localhost:8080   [::1]:8080   *:8080   unix:/run/gateway.sock
 *
 * Several are separated by commas. "*" is every address of the machine, IPv4 and IPv6; a
 * name that has several addresses is listened to on all that the machine has; port 0 is
 * any free one (sockets_describe() tells which).
 *
 * Always true: the sockets are non-blocking and close-on-exec; an IPv6 socket takes no
 * IPv4; a socket file is replaced only if nobody answers behind it, and removed at the
 * end only if it is still the one made here.
 *
 * Threads: the caller's. sockets_open() may wait for the resolver if a name is given.
 */
#ifndef SOCKETS_H
#define SOCKETS_H

#include "base.h"
#include "err.h"

#define SOCKETS_MAX 64

struct sockets;

/* Can `addresses` be read? Opens nothing. -EINVAL. */
int sockets_check(const char *addresses, struct err *err) MUST_CHECK;

/* Opens all of `addresses`, or none. -EINVAL: not an address; -EADDRINUSE, -EACCES and
 * other errnos; -ENOMEM. The text says which address and why. */
int sockets_open(const char *addresses, struct sockets **ret_sockets,
                 struct err *err) MUST_CHECK;
void sockets_close(struct sockets *sockets); /* takes NULL */

size_t sockets_count(const struct sockets *sockets);
int sockets_fd(const struct sockets *sockets, size_t index); /* stays the sockets' own */

/* What a socket is bound to, as it could stand in `addresses`. */
#define SOCKETS_TEXT_MAX 128
void sockets_describe(int fd, char ret_text[SOCKETS_TEXT_MAX]);

/* Connects to the first of `addresses` that is listened to by this machine ("*" and the
 * like: its loopback), waiting until due_usec at most. Returns a non-blocking descriptor
 * that the caller closes. -EINVAL, -ECONNREFUSED, -ETIMEDOUT and other errnos. */
int sockets_connect(const char *addresses, uint64_t due_usec, struct err *err) MUST_CHECK;

#endif
