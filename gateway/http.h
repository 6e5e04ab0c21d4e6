/*
 * http.h - the front door: what is HTTP enough to be let in, and who answers it.
 *
 *     libmicrohttpd ──> http_answer ──> is it sound? ──> route ──> endpoint
 *
 *   /events         GET, HEAD, POST     events.h
 *   /events/<id>    GET, HEAD           events.h
 *   /events/<id>/…  POST, GET, HEAD     jobs.h: ack, nack, result
 *   /groups         GET, HEAD, DELETE   jobs.h
 *   /healthz        GET, HEAD           the process is alive
 *   /readyz         GET, HEAD           notifications are listened to, writing is possible
 *   /metrics        GET, HEAD           stats.h
 *   /streams        GET, HEAD           slowest.h
 *   /, files        GET, HEAD           page.h
 *
 * libmicrohttpd lets through what makes two parties see two different requests in the same
 * bytes: two lengths, a length beside chunks, two Hosts, odd names. Such a request is
 * answered 400 and its connection closed (RFC 9112, 11.2).
 *
 * Threads: made on main; http_answer and http_completed on the shards'.
 */
#ifndef HTTP_H
#define HTTP_H

#include <microhttpd.h>

#include "base.h"
#include "groups.h"
#include "listener.h"
#include "page.h"
#include "publisher.h"
#include "readers.h"
#include "relay.h"
#include "stats.h"

struct http;

struct http_settings {
    struct stats *stats;
    struct listener *listener;
    struct publisher *publisher;
    struct readers *readers;
    const struct relay *relay; /* NULL: nothing is relayed */
    struct groups *groups;
    const struct page *page;
    const char *cors_origins;
    uint64_t retry_usec;
    size_t header_max;       /* bytes of one header */
    size_t body_max;         /* bytes of one POST */
    uint64_t body_time_usec; /* from a header to the end of its body; and for an answer */
    uint64_t keep_alive_usec;   /* between two requests of a connection */
    uint64_t publish_time_usec; /* from the end of a body to its answer */
    size_t channels_max;        /* of one subscriber */
};

/* The texts are copied, the rooms borrowed. NULL: no memory. */
struct http *http_new(const struct http_settings *settings) MUST_CHECK;
void http_free(struct http *http);

/* The callbacks for the shards, with the struct http as their argument. */
enum MHD_Result http_answer(void *argument, struct MHD_Connection *mhd, const char *path,
                            const char *method, const char *version, const char *upload,
                            size_t *upload_len, void **state);
void http_completed(void *argument, struct MHD_Connection *mhd, void **state,
                    enum MHD_RequestTerminationCode how);

/* For MHD_OPTION_URI_LOG_CALLBACK: a request line has been read. */
void *http_begun(void *argument, const char *uri, struct MHD_Connection *mhd);

/* For MHD_OPTION_UNESCAPE_CALLBACK: percent-decoding in place that cannot make a NUL. */
size_t http_unescape(void *argument, struct MHD_Connection *mhd, char *text);

#endif
