/*
 * config.h - gateway.ini, the environment and the command line to one struct config.
 *
 *     command line   --set stream.heartbeat=5s      config_set()   wins
 *     environment    PGSSE_STREAM_HEARTBEAT=5s      config_load()
 *     gateway.ini    [stream] heartbeat = 5s        config_load()
 *     default        the table in config.c          config_new()
 *
 * Always true:
 *   - one table names every setting with its type, default and limits; nothing else does.
 *   - nobody shrugs: an unknown section, key or PGSSE_ variable, a value out of its
 *     limits, a key set twice is an error that says where, and what is allowed.
 *   - after config_load() nothing changes any more.
 *
 * Threads: built on main before the others start. main alone reads it.
 */
#ifndef CONFIG_H
#define CONFIG_H

#include <stdio.h>

#include "base.h"
#include "err.h"
#include "log.h"

#define CONFIG_SETTINGS_MAX 64

struct config {
    /* Texts are owned and never NULL; an empty one is "". */
    struct {
        char *listen; /* comma-separated, see sockets.h */
        char *static_dir;
        char *cors_origins;
    } http;
    struct {
        char *dsn;        /* "": libpq's own PG* variables and service files */
        char *listen_dsn; /* the dsn, if nothing else was set */
        char *password_file;
        char *password; /* read from that file or the credential; "" if neither */
        bool migrate_on_start;
        char *migrations_dir;
    } database;
    struct {
        uint64_t retention_usec; /* 0: for ever */
    } events;
    struct {
        char *relay; /* patterns, see relay.h */
        uint64_t relay_max_count;
        bool relay_exact;
    } channels;
    struct {
        uint64_t heartbeat_usec;
        uint64_t retry_usec;
        uint64_t max_age_usec; /* 0: never */
        uint64_t idle_close_usec;
        uint64_t channels_count;
    } stream;
    struct {
        uint64_t bytes;
    } ring;
    struct {
        uint64_t body_bytes;
        uint64_t header_bytes;
        uint64_t connections_count;
        uint64_t header_time_usec;
        uint64_t body_time_usec;
        uint64_t keep_alive_usec;
        uint64_t publish_time_usec;
        uint64_t publish_queue_bytes;
        uint64_t consumers_count;
        uint64_t waits_count;
        uint64_t groups_count;
    } limits;
    struct {
        uint64_t shards_count; /* 0: one per CPU, see config_shards() */
        uint64_t drain_usec;
    } server;
    struct {
        enum log_level level;
    } log;
    char *file; /* the ini file that was read; "" if there was none */

    /* config.c's own: where each value came from, and its line in the ini file. */
    uint8_t origin[CONFIG_SETTINGS_MAX];
    unsigned line[CONFIG_SETTINGS_MAX];
};

/* All defaults. NULL: no memory. */
struct config *config_new(void) MUST_CHECK;
void config_free(struct config *config); /* wipes the password; takes NULL */

/* "section.key=value" of the command line; before config_load(), which does not touch it.
 * -EINVAL with the reason, -ENOMEM. */
int config_set(struct config *config, const char *assignment, struct err *err) MUST_CHECK;

/* Reads the ini file and the environment (as in environ), then the password; fills in the
 * folders. `path` NULL: the default file, which may be missing. `environment`'s
 * DATABASE_URL is the dsn when nothing else sets one. -EINVAL: "gateway.ini:12: ...";
 * -ENOENT and other errnos: a file named could not be read; -ENOMEM. */
int config_load(struct config *config, const char *path, char *const environment[],
                struct err *err) MUST_CHECK;

/* The effective settings in ini form, with units, passwords masked. -ENOMEM, -EIO. */
int config_print(const struct config *config, FILE *file) MUST_CHECK;

/* A room would not have that setting's value: puts before its reason where the value comes from,
 * and the setting. Returns `code`. */
int config_blame(const struct config *config, const char *section, const char *key,
                 int code, struct err *err);

/* How many shards to start: as set, or one per online CPU, at most 64. */
unsigned config_shards(const struct config *config);

#endif
