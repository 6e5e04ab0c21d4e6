/*
 * exchange.h - one request and its answer, between libmicrohttpd and the endpoints.
 *
 *     READING ──(body complete)──> begun by its endpoint ──> answered
 *                                        └──> asleep ──(news)──> endpoint again ──> answered
 *
 * Always true:
 *   - exactly one answer is queued for each exchange.
 *   - every answer has the CORS headers as configured, and says "Connection: close" when
 *     the connection will not be used again.
 *
 * Threads: its shard's; exchange_wake() from any.
 */
#ifndef EXCHANGE_H
#define EXCHANGE_H

#include <microhttpd.h>

#include "base.h"
#include "buf.h"
#include "connection.h"
#include "mailbox.h"
#include "request.h"
#include "stats.h"

struct exchange;

/* An endpoint. Called when the request is complete, and again after each sleep. It
 * answers, or puts the exchange to sleep. MHD_NO: the connection is closed. */
typedef enum MHD_Result exchange_endpoint(struct exchange *exchange);

/* What all exchanges share. [const] */
struct exchange_common {
    struct stats *stats;
    const char *cors_origins; /* "*", or origins separated by commas or spaces, or "" */
    uint64_t retry_usec;      /* for Retry-After and retry: */
};

struct exchange {
    struct MHD_Connection *mhd;
    struct connection *connection;
    const struct exchange_common *common;
    const char *path;   /* valid until the answer */
    const char *method; /* likewise */
    exchange_endpoint *endpoint;
    bool http10;
    bool close; /* the connection will not be used again */
    bool answered;
    bool incomplete;    /* there was no memory for a header of the answer */
    const char *header; /* one more for the answer, by exchange_say(); NULL: none */
    char header_value[64];
    char *header_long; /* instead of it; heap */

    bool takes_body;
    struct buf body;
    size_t body_max;
    unsigned body_status; /* what it will be answered, if it could not be taken whole */

    struct mail mail; /* for exchange_wake() */

    void *state; /* the endpoint's own, between its calls */
    void (*state_free)(void *state);
};

/* NULL: no memory. */
struct exchange *exchange_new(struct MHD_Connection *mhd, struct connection *connection,
                              const struct exchange_common *common, const char *path,
                              const char *method, const char *version) MUST_CHECK;
void exchange_free(struct exchange *exchange);

/* The value of the first header, or query parameter, of that name; NULL if there is none.
 * Valid until the answer. */
const char *exchange_header(const struct exchange *exchange, const char *name);
const char *exchange_query(const struct exchange *exchange, const char *name,
                           size_t *ret_len);

/* Until exchange_wake(), from any thread, once; then the endpoint is called again. */
void exchange_sleep(struct exchange *exchange);
void exchange_wake(struct exchange *exchange);

/* The answer will have this header too. One for each answer; `header` is a literal, the
 * value is copied. Without memory for a long one exchange_queue() returns MHD_NO. */
void exchange_say(struct exchange *exchange, const char *header, const char *value);

/* Answers with that text, a heap string that is taken, and a newline at its end. NULL: there
 * was no memory for it, and MHD_NO closes the connection. */
enum MHD_Result exchange_text(struct exchange *exchange, unsigned status,
                              const char *content_type, char *text);

/* Answers with a problem document (RFC 9457); with Retry-After when waiting helps. */
enum MHD_Result exchange_problem(struct exchange *exchange, unsigned status,
                                 const char *format, ...) PRINTF_LIKE(3, 4);

/* A header of a response that is being made for exchange_queue(). */
void exchange_add(struct exchange *exchange, struct MHD_Response *response,
                  const char *header, const char *value);

/* Answers with a response of the caller's making, which is taken. NULL, or a header that there
 * was no memory for: as above. Half an answer may be worse than none: an EventSource gives up
 * for ever on one without its media type. */
enum MHD_Result exchange_queue(struct exchange *exchange, unsigned status,
                               struct MHD_Response *response);

/* Is it the page's own origin, or an allowed one, or no browser at all? A form on a foreign
 * page must not be able to publish. */
bool exchange_origin_is_fine(const struct exchange *exchange);

/* Adds what a browser asks before a request from another origin (CORS preflight). */
void exchange_add_preflight(struct exchange *exchange, struct MHD_Response *response,
                            const char *methods);

#endif
