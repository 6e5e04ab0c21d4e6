/*
 * service.h - libsystemd: sockets handed over, ready, watchdog, stopping, and
 * the journal. Let in here alone.
 *
 * Not started by systemd: there are no sockets, no watchdog, and what is told is told to
 * nobody; nothing of that is an error.
 *
 * Threads: service_listen_fds() and service_log_to_journal() on main before the others
 * start; the rest from any. Cost: a datagram each.
 */
#ifndef SERVICE_H
#define SERVICE_H

#include "base.h"
#include "err.h"

#define SERVICE_SOCKETS_MAX 64

/* The sockets handed over (sd_listen_fds(3)), TCP and Unix, in the order of the socket
 * unit; made non-blocking and close-on-exec. Returns how many, 0 to SERVICE_SOCKETS_MAX.
 * Forgets LISTEN_FDS, so that no child takes them for its own. -EINVAL: one of them is
 * not a listening stream socket (ListenDatagram=, Accept=yes); -E2BIG. */
int service_listen_fds(int ret_fds[SERVICE_SOCKETS_MAX], struct err *err) MUST_CHECK;

void service_ready(void);                                       /* READY=1 */
void service_stopping(void);                                    /* STOPPING=1 */
void service_status(const char *format, ...) PRINTF_LIKE(1, 2); /* STATUS=, one line */

/* How often WatchdogSec= wants a sign of life, in microseconds; 0: it does not. Give one
 * at half of that. */
uint64_t service_watchdog_usec(void);
void service_watchdog(void); /* WATCHDOG=1 */

/* When stderr is the journal, from now on log lines go there as fields (MESSAGE,
 * PRIORITY, SYSLOG_IDENTIFIER, PGSSE_THREAD). True if so. */
bool service_log_to_journal(void);

#endif
