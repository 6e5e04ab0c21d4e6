/* test_config.c - gateway.ini, the environment and the command line. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "failing_malloc.h"

static char ini_path[64];
static const char *const nothing[] = {NULL};

/* environ is not const, and nobody writes to it. */
static int load_file(struct config *config, const char *path,
                     const char *const environment[], struct err *err)
{
    return config_load(config, path, (char *const *)(uintptr_t)environment, err);
}

/* A file of this process's own; its name begins every message about it. */
static void write_ini(const char *text, size_t len)
{
    snprintf(ini_path, sizeof(ini_path), "/tmp/test_config.%d.ini", (int)getpid());
    FILE *file = fopen(ini_path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    fclose(file);
}

static int load_into(struct config *config, const char *ini,
                     const char *const environment[], struct err *err)
{
    write_ini(ini, strlen(ini));
    int code = load_file(config, ini_path, environment, err);
    unlink(ini_path);
    return code;
}

static struct config *load(const char *ini, const char *const environment[])
{
    struct err err = {.text = ""};
    struct config *config = config_new();

    assert_non_null(config);
    if (load_into(config, ini, environment, &err) < 0)
        fail_msg("%s", err.text);
    return config;
}

/* `wanted` is the message without the file's name. */
static void assert_refused(const char *ini, const char *const environment[],
                           const char *wanted)
{
    struct err err;
    struct config *config = config_new();

    assert_non_null(config);
    assert_int_equal(load_into(config, ini, environment, &err), -EINVAL);
    size_t len = strlen(ini_path);
    const char *text = strncmp(err.text, ini_path, len) == 0 ? err.text + len : err.text;
    assert_string_equal(text, wanted);
    config_free(config);
}

static char *print(const struct config *config)
{
    char *text = NULL;
    size_t len;
    FILE *file = open_memstream(&text, &len);

    assert_non_null(file);
    assert_int_equal(config_print(config, file), 0);
    fclose(file);
    return text;
}

static void without_a_word_the_defaults_hold(void **state)
{
    struct config *config = load("", nothing);

    (void)state;
    assert_string_equal(config->http.listen, "127.0.0.1:8080");
    assert_string_equal(config->database.dsn, "");
    assert_string_equal(config->database.password, "");
    assert_false(config->database.migrate_on_start);
    assert_int_equal(config->stream.heartbeat_usec, 15 * USEC_PER_SEC);
    assert_int_equal(config->stream.max_age_usec, 0);
    assert_int_equal(config->ring.bytes, 64 * MIB);
    assert_int_equal(config->limits.body_bytes, 4 * MIB);
    assert_int_equal(config->limits.connections_count, 10000);
    assert_int_equal(config->log.level, LOG_LEVEL_NOTICE);
    assert_uint_in_range(config_shards(config), 1, 64);
    config_free(config);
}

static void a_setting_of_each_kind_is_read(void **state)
{
    struct config *config =
        load("\xef\xbb\xbf# a comment\r\n"
             "; another\n"
             "[http]\r\n"
             "  listen = 0.0.0.0:80, unix:/run/x.sock ; not a comment  \r\n"
             "[database]\nmigrate_on_start: on\n"
             "dsn = host=a port=5433\n\n"
             "[stream]\nheartbeat=200ms\nchannels = 7\n"
             "[ring]\n\tbytes = 1 GiB\n"
             "[server]\nshards=3\n"
             "[log]\nlevel = debug",
             nothing);

    (void)state;
    assert_string_equal(config->http.listen,
                        "0.0.0.0:80, unix:/run/x.sock ; not a comment");
    assert_true(config->database.migrate_on_start);
    assert_string_equal(config->database.dsn, "host=a port=5433");
    assert_string_equal(config->database.listen_dsn, "host=a port=5433");
    assert_int_equal(config->stream.heartbeat_usec, 200000);
    assert_int_equal(config->stream.channels_count, 7);
    assert_int_equal(config->ring.bytes, 1024 * MIB);
    assert_int_equal(config_shards(config), 3);
    assert_int_equal(config->log.level, LOG_LEVEL_DEBUG);
    assert_string_equal(config->file, ini_path);
    config_free(config);
}

static void an_indented_line_is_a_line_of_its_own(void **state)
{
    (void)state;
    struct config *config =
        load("[stream]\nheartbeat = 1s\n   retry = 3s\n  # note\n", nothing);
    assert_int_equal(config->stream.retry_usec, 3000000);
    config_free(config);
}

static void a_line_may_be_very_long(void **state)
{
    char ini[3000], host[2500] = {0};

    (void)state;
    memset(host, 'h', sizeof(host) - 1);
    host[sizeof(host) - 1] = '\0';
    (void)snprintf(ini, sizeof(ini), "[database]\ndsn = %s\n[stream]\nretry=1s\n", host);
    struct config *config = load(ini, nothing);
    assert_string_equal(config->database.dsn, host);
    assert_int_equal(config->stream.retry_usec, 1000000);
    config_free(config);
}

static void command_line_over_environment_over_ini_over_default(void **state)
{
    const char *environment[] = {"PGSSE_STREAM_RETRY=4s", "PGSSE_STREAM_HEARTBEAT=4s",
                                 "HOME=/", "odd", NULL};
    struct config *config = config_new();

    (void)state;
    assert_non_null(config);
    assert_int_equal(config_set(config, "stream.heartbeat=5s", NULL), 0);
    assert_int_equal(config_set(config, "http.listen=[::1]:9=8.5", NULL), 0);
    assert_int_equal(load_into(config,
                               "[stream]\nheartbeat=3s\nretry=3s\nidle_close=3s\n",
                               environment, NULL),
                     0);
    assert_int_equal(config->stream.heartbeat_usec, 5000000);
    assert_int_equal(config->stream.retry_usec, 4000000);
    assert_int_equal(config->stream.idle_close_usec, 3000000);
    assert_int_equal(config->limits.body_time_usec, 60000000);
    assert_string_equal(config->http.listen, "[::1]:9=8.5");
    config_free(config);
}

static void how_long_events_are_kept_is_never_or_a_second_and_more(void **state)
{
    static const struct {
        const char *ini;
        uint64_t usec;
    } cases[] = {
        {"", 0},
        {"[events]\nretention = 0\n", 0},
        {"[events]\nretention = 0s\n", 0},
        {"[events]\nretention = 1s\n", USEC_PER_SEC},
        {"[events]\nretention = 3650d\n", 3650 * 86400 * USEC_PER_SEC},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        struct config *config = load(cases[i].ini, nothing);
        assert_int_equal(config->events.retention_usec, cases[i].usec);
        config_free(config);
    }
}

static void a_mistake_in_the_file_is_named_with_its_line(void **state)
{
    (void)state;
    assert_refused("[http]\n\nlisten = x\nlisen = y\n", nothing,
                   ":4: unknown key 'lisen' in [http]; there are listen, static_dir, "
                   "cors_origins");
    assert_refused("[strem]\n", nothing,
                   ":1: unknown section [strem]; there are [http] [database] [events] "
                   "[channels] [stream] [ring] [limits] [server] [log]");
    assert_refused("[strem]\nretry = 1s\n", nothing,
                   ":1: unknown section [strem]; there are [http] [database] [events] "
                   "[channels] [stream] [ring] [limits] [server] [log]");
    assert_refused("[stream]\nheartbeat = 15 parsecs\n", nothing,
                   ":2: [stream] heartbeat = '15 parsecs': must be a duration from 100ms "
                   "to 1h, in ms, s, min, h or d");
    assert_refused("[stream]\nheartbeat = 15\n", nothing,
                   ":2: [stream] heartbeat = '15': must be a duration from 100ms to 1h, "
                   "in ms, s, min, h or d");
    assert_refused("[events]\nretention = 999ms\n", nothing,
                   ":2: [events] retention = '999ms': must be 0, or a duration from 1s "
                   "to 3650d, in ms, s, min, h or d");
    assert_refused("[events]\nretention = 3651d\n", nothing,
                   ":2: [events] retention = '3651d': must be 0, or a duration from 1s "
                   "to 3650d, in ms, s, min, h or d");
    assert_refused("[limits]\nbody = 1GiB\n", nothing,
                   ":2: [limits] body = '1GiB': must be a size from 1KiB to 64MiB, in "
                   "KiB, MiB or GiB");
    assert_refused("[limits]\nconnections = 0\n", nothing,
                   ":2: [limits] connections = '0': must be a number from 1 to 1000000");
    assert_refused("[database]\nmigrate_on_start = maybe\n", nothing,
                   ":2: [database] migrate_on_start = 'maybe': must be yes, no, true, "
                   "false, on, off, 1 or 0");
    assert_refused("[log]\nlevel = loud\n", nothing,
                   ":2: [log] level = 'loud': must be error, warning, notice or debug");
    assert_refused("[http]\nlisten\n[stream]\n", nothing,
                   ":2: neither [section] nor key = value nor # comment");
    assert_refused("listen = x\n", nothing, ":1: stands before the first [section]");
    assert_refused("[http\nlisten = x\n", nothing, ":1: a section without its ']'");
    assert_refused("[http]\n= x\n", nothing,
                   ":2: unknown key '' in [http]; there are listen, static_dir, "
                   "cors_origins");
}

static void a_key_set_twice_is_a_mistake(void **state)
{
    struct config *config = config_new();
    struct err err;

    (void)state;
    assert_refused("[stream]\nretry = 1s\n[log]\n[stream]\nretry = 2s\n", nothing,
                   ":5: [stream] retry is set twice, first in line 2");
    assert_int_equal(config_set(config, "stream.retry=1s", &err), 0);
    assert_int_equal(config_set(config, "stream.retry=1s", &err), -EINVAL);
    assert_string_equal(err.text, "--set stream.retry: is set twice");
    assert_int_equal(load_into(config, "[stream]\nretry=1s\nretry=1s", nothing, &err),
                     -EINVAL);
    config_free(config);
}

static void a_nul_byte_is_a_mistake(void **state)
{
    struct config *config = config_new();
    struct err err;

    (void)state;
    write_ini("[http]\nlisten = a\0b\n", 20);
    assert_int_equal(load_file(config, ini_path, nothing, &err), -EINVAL);
    assert_string_equal(err.text + strlen(ini_path), ":2: holds a NUL byte");
    unlink(ini_path);
    config_free(config);
}

static void a_mistake_in_the_environment_names_the_variable(void **state)
{
    const char *unknown[] = {"PGSSE_HTTP_LISEN=x", NULL};
    const char *bad[] = {"PGSSE_STREAM_RETRY=soon", NULL};
    const char *lower[] = {"PGSSE_stream_retry=1s", NULL};

    (void)state;
    assert_refused("", unknown,
                   "PGSSE_HTTP_LISEN: no such setting; a variable is PGSSE_SECTION_KEY, "
                   "see gateway.ini");
    assert_refused(
        "", lower,
        "PGSSE_stream_retry: no such setting; a variable is PGSSE_SECTION_KEY, "
        "see gateway.ini");
    assert_refused("", bad,
                   "PGSSE_STREAM_RETRY: [stream] retry = 'soon': must be a duration from "
                   "10ms to 1h, in ms, s, min, h or d");
}

static void a_mistake_on_the_command_line_is_named(void **state)
{
    struct config *config = config_new();
    struct err err;

    (void)state;
    assert_int_equal(config_set(config, "retry=1s", &err), -EINVAL);
    assert_string_equal(err.text, "--set retry=1s: must be section.key=value");
    assert_int_equal(config_set(config, "stream.retry", &err), -EINVAL);
    assert_int_equal(config_set(config, "stream.rety=1s", &err), -EINVAL);
    assert_string_equal(err.text,
                        "--set stream.rety: unknown key 'rety' in [stream]; there "
                        "are heartbeat, retry, max_age, idle_close, channels");
    assert_int_equal(config_set(config, "x.y=1", &err), -EINVAL);
    assert_int_equal(config_set(config, "log.level=4", &err), -EINVAL);
    config_free(config);
}

static void a_bad_secret_is_not_repeated(void **state)
{
    const char *environment[] = {"PGSSE_DATABASE_DSN=password=geheim\x01", NULL};
    const char *url[] = {"DATABASE_URL=postgres://u:geheim\n@h", NULL};

    (void)state;
    assert_refused("", environment,
                   "PGSSE_DATABASE_DSN: [database] dsn: must be text without control "
                   "characters");
    assert_refused("", url, "DATABASE_URL: must be text without control characters");
}

static void the_file_named_must_be_there_and_the_default_one_need_not(void **state)
{
    struct config *config = config_new();
    struct err err;

    (void)state;
    assert_int_equal(load_file(config, "/nowhere/gateway.ini", nothing, &err), -ENOENT);
    assert_string_equal(err.text,
                        "could not open /nowhere/gateway.ini: No such file or directory");
    assert_int_equal(load_file(config, "/tmp", nothing, &err), -EISDIR);
    assert_string_equal(config->file, "");
    assert_int_equal(load_file(config, NULL, nothing, &err), 0);
    config_free(config);
}

static void database_url_counts_when_nothing_else_names_a_database(void **state)
{
    const char *url[] = {"DATABASE_URL=postgresql://url", NULL};
    const char *both[] = {"DATABASE_URL=postgresql://url",
                          "PGSSE_DATABASE_DSN=host=variable", NULL};
    struct config *config = load("[database]\ndsn =\n", url);

    (void)state;
    assert_string_equal(config->database.dsn, "postgresql://url");
    assert_string_equal(config->database.listen_dsn, "postgresql://url");
    config_free(config);
    config = load("[database]\nlisten_dsn = host=other\n", both);
    assert_string_equal(config->database.dsn, "host=variable");
    assert_string_equal(config->database.listen_dsn, "host=other");
    config_free(config);
    config = load("[database]\ndsn = host=ini\n", url);
    assert_string_equal(config->database.dsn, "host=ini");
    config_free(config);
}

static void a_password_comes_from_its_file_or_the_credential(void **state)
{
    char folder[] = "/tmp/test_config.XXXXXX", path[64], ini[128], variable[64];
    const char *environment[] = {variable, NULL};

    (void)state;
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/pgpassword", folder);
    snprintf(variable, sizeof(variable), "CREDENTIALS_DIRECTORY=%s", folder);
    struct config *config = load("", environment); /* no such credential */
    assert_string_equal(config->database.password, "");
    config_free(config);

    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs("geheim\n", file);
    fclose(file);
    config = load("", environment);
    assert_string_equal(config->database.password, "geheim");
    char *text = print(config);
    assert_null(strstr(text, "geheim"));
    free(text);
    config_free(config);
    snprintf(ini, sizeof(ini), "[database]\npassword_file = %s\n", path);
    config = load(ini, nothing);
    assert_string_equal(config->database.password, "geheim");
    config_free(config);

    unlink(path);
    rmdir(folder);
    config = config_new();
    assert_int_equal(load_into(config, ini, nothing, NULL), -ENOENT);
    config_free(config);
}

static void what_is_printed_can_be_read_back_and_shows_no_secret(void **state)
{
    struct config *config = load("[database]\ndsn = postgresql://me:geheim@db/app\n"
                                 "listen_dsn = host=db password='ge heim'\n"
                                 "[stream]\nmax_age = 90min\n[ring]\nbytes = 100000\n",
                                 nothing);
    char *text = print(config);

    (void)state;
    assert_null(strstr(text, "heim"));
    assert_non_null(strstr(text, "\ndsn = postgresql://me:***@db/app\n"));
    assert_non_null(strstr(text, "\nlisten_dsn = host=db password=***\n"));
    assert_non_null(strstr(text, "\nmax_age = 90min\n"));
    assert_non_null(strstr(text, "\nbytes = 100000\n"));
    struct config *again = load(text, nothing);
    char *text_again = print(again);
    assert_string_equal(text, text_again);
    free(text);
    free(text_again);
    config_free(config);
    config_free(again);
}

/* gateway.ini is the documentation: each setting stands there, uncommented, with its
 * default and nothing else. The repository is found as the program itself finds it. */
static void gateway_ini_lists_every_setting_with_its_default(void **state)
{
    struct config *shipped = config_new(), *defaults = load("", nothing);
    struct err err = {.text = ""};
    char line[1024];

    (void)state;
    if (load_file(shipped, NULL, nothing, &err) < 0)
        fail_msg("%s", err.text);
    if (*shipped->file == '\0') /* not run from build/unit/: then from the repository */
        assert_int_equal(load_file(shipped, "gateway.ini", nothing, &err), 0);
    char *text = print(shipped), *wanted = print(defaults);
    assert_string_equal(text, wanted);

    FILE *file = fopen(shipped->file, "r");
    assert_non_null(file);
    size_t in_file = 0, in_print = 0;
    while (fgets(line, sizeof(line), file) != NULL)
        in_file += line[0] != '#' && strchr(line, '=') != NULL;
    fclose(file);
    for (const char *c = strchr(text, '='); c != NULL; c = strchr(c + 1, '='))
        in_print++;
    assert_int_equal(in_file, in_print);
    free(text);
    free(wanted);
    config_free(shipped);
    config_free(defaults);
}

static void without_memory_it_fails_cleanly_wherever_it_happens(void **state)
{
    const char *environment[] = {"PGSSE_HTTP_LISTEN=*:1", "DATABASE_URL=host=x", NULL};
    struct err err;
    bool failed = true;

    (void)state;
    write_ini("[http]\ncors_origins = *\n", 24);
    for (unsigned n = 1; failed; n++) {
        failing_malloc_begin(n);
        struct config *config = config_new();
        int code =
            config == NULL ? -ENOMEM : load_file(config, ini_path, environment, &err);
        if (code == 0)
            code = config_set(config, "stream.retry=1s", &err);
        failed = failing_malloc_end();
        if (!failed)
            assert_int_equal(code, 0);
        else
            assert_int_equal(code, -ENOMEM);
        config_free(config);
    }
    unlink(ini_path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_word_the_defaults_hold),
        cmocka_unit_test(a_setting_of_each_kind_is_read),
        cmocka_unit_test(how_long_events_are_kept_is_never_or_a_second_and_more),
        cmocka_unit_test(an_indented_line_is_a_line_of_its_own),
        cmocka_unit_test(a_line_may_be_very_long),
        cmocka_unit_test(command_line_over_environment_over_ini_over_default),
        cmocka_unit_test(a_mistake_in_the_file_is_named_with_its_line),
        cmocka_unit_test(a_key_set_twice_is_a_mistake),
        cmocka_unit_test(a_nul_byte_is_a_mistake),
        cmocka_unit_test(a_mistake_in_the_environment_names_the_variable),
        cmocka_unit_test(a_mistake_on_the_command_line_is_named),
        cmocka_unit_test(a_bad_secret_is_not_repeated),
        cmocka_unit_test(the_file_named_must_be_there_and_the_default_one_need_not),
        cmocka_unit_test(database_url_counts_when_nothing_else_names_a_database),
        cmocka_unit_test(a_password_comes_from_its_file_or_the_credential),
        cmocka_unit_test(what_is_printed_can_be_read_back_and_shows_no_secret),
        cmocka_unit_test(gateway_ini_lists_every_setting_with_its_default),
        cmocka_unit_test(without_memory_it_fails_cleanly_wherever_it_happens),
    };
    return cmocka_run_group_tests_name("config", tests, NULL, NULL);
}
