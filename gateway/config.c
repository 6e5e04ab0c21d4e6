/*
 * config.c - gateway.ini, the environment and the command line to one struct config.
 */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "buf.h"
#include "inifile.h"
#include "secret.h"
#include "setting.h"
#include "units.h"

#ifndef PGSSE_DATADIR
#define PGSSE_DATADIR "/usr/local/share/pg-sse-gateway"
#endif
#ifndef PGSSE_SYSCONFDIR
#define PGSSE_SYSCONFDIR "/usr/local/etc"
#endif
#define INI_NAME        "gateway.ini"
#define INSTALLED_INI   PGSSE_SYSCONFDIR "/pg-sse-gateway/" INI_NAME
#define VARIABLE_PREFIX "PGSSE_"
#define SHARDS_MAX      64

enum origin { ORIGIN_DEFAULT, ORIGIN_INI, ORIGIN_ENVIRONMENT, ORIGIN_COMMAND_LINE };

#define SEC                    USEC_PER_SEC
#define HOUR                   (3600 * SEC)
#define DAY                    (24 * HOUR)
#define GIB                    (UINT64_C(1) << 30)
#define PLACE(section, member) offsetof(struct config, section.member)

/* gateway.ini says what each is for; a test compares the two. */
/* clang-format off */
static const struct setting settings[] = {
    {"http", "listen", SETTING_TEXT, PLACE(http, listen), "127.0.0.1:8080", 0, 0},
    {"http", "static_dir", SETTING_TEXT, PLACE(http, static_dir), "", 0, 0},
    {"http", "cors_origins", SETTING_TEXT, PLACE(http, cors_origins), "", 0, 0},

    {"database", "dsn", SETTING_SECRET, PLACE(database, dsn), "", 0, 0},
    {"database", "listen_dsn", SETTING_SECRET, PLACE(database, listen_dsn), "", 0, 0},
    {"database", "password_file", SETTING_TEXT, PLACE(database, password_file), "", 0, 0},
    {"database", "migrate_on_start", SETTING_FLAG, PLACE(database, migrate_on_start), "no", 0, 1},
    {"database", "migrations_dir", SETTING_TEXT, PLACE(database, migrations_dir), "", 0, 0},

    {"events", "retention", SETTING_USEC_0, PLACE(events, retention_usec), "0", SEC, 3650 * DAY},

    {"channels", "relay", SETTING_TEXT, PLACE(channels, relay), "", 0, 0},
    {"channels", "relay_max", SETTING_COUNT, PLACE(channels, relay_max_count), "10000", 1, 1000000},
    {"channels", "relay_order", SETTING_ORDER, PLACE(channels, relay_exact), "commit", 0, 1},

    {"stream", "heartbeat", SETTING_USEC, PLACE(stream, heartbeat_usec), "15s", SEC / 10, HOUR},
    {"stream", "retry", SETTING_USEC, PLACE(stream, retry_usec), "2s", SEC / 100, HOUR},
    {"stream", "max_age", SETTING_USEC, PLACE(stream, max_age_usec), "0", 0, 30 * DAY},
    {"stream", "idle_close", SETTING_USEC, PLACE(stream, idle_close_usec), "60s", SEC / 10, DAY},
    {"stream", "channels", SETTING_COUNT, PLACE(stream, channels_count), "64", 1, 256},

    {"ring", "bytes", SETTING_BYTES, PLACE(ring, bytes), "64MiB", 64 * KIB, 64 * GIB},

    {"limits", "body", SETTING_BYTES, PLACE(limits, body_bytes), "4MiB", KIB, 64 * MIB},
    {"limits", "header", SETTING_BYTES, PLACE(limits, header_bytes), "16KiB", KIB, 32 * KIB},
    {"limits", "connections", SETTING_COUNT, PLACE(limits, connections_count), "10000", 1, 1000000},
    {"limits", "header_time", SETTING_USEC, PLACE(limits, header_time_usec), "10s", SEC / 10, HOUR},
    {"limits", "body_time", SETTING_USEC, PLACE(limits, body_time_usec), "60s", SEC / 10, HOUR},
    {"limits", "keep_alive", SETTING_USEC, PLACE(limits, keep_alive_usec), "60s", SEC / 10, HOUR},
    {"limits", "publish_time", SETTING_USEC, PLACE(limits, publish_time_usec), "10s", SEC / 10, HOUR},
    {"limits", "publish_queue", SETTING_BYTES, PLACE(limits, publish_queue_bytes), "64MiB", 64 * KIB, 16 * GIB},
    {"limits", "consumers", SETTING_COUNT, PLACE(limits, consumers_count), "1000", 0, 100000},
    {"limits", "waits", SETTING_COUNT, PLACE(limits, waits_count), "1000", 0, 100000},
    {"limits", "groups", SETTING_COUNT, PLACE(limits, groups_count), "1000", 0, 100000},

    {"server", "shards", SETTING_COUNT, PLACE(server, shards_count), "0", 0, SHARDS_MAX},
    {"server", "drain", SETTING_USEC, PLACE(server, drain_usec), "10s", 0, HOUR},

    {"log", "level", SETTING_LEVEL, PLACE(log, level), "notice", 0, 0},
};
/* clang-format on */

#define SETTING_COUNT ARRAY_SIZE(settings)
_Static_assert(ARRAY_SIZE(settings) <= CONFIG_SETTINGS_MAX,
               "config.h has too little room");

static void *place_of(struct config *config, const struct setting *setting)
{
    return (char *)config + setting->offset;
}

static const void *const_place_of(const struct config *config,
                                  const struct setting *setting)
{
    return (const char *)config + setting->offset;
}

static int no_memory(struct err *err)
{
    return err_set(err, -ENOMEM, "no memory for the configuration");
}

/* Checks the value, and keeps it unless one from a stronger origin is there already. */
static int assign(struct config *config, const struct setting *setting, const char *text,
                  enum origin origin, const char *where, struct err *err)
{
    size_t index = (size_t)(setting - settings);
    uint64_t number = 0;

    if (setting_parse(setting, text, &number) < 0)
        return setting_refuse(setting, text, where, err);
    if (config->origin[index] > origin)
        return 0;
    int code = setting_store(setting, place_of(config, setting), text, number, err);
    if (code == 0)
        config->origin[index] = (uint8_t)origin;
    return code;
}

/* ---- names ---- */

static const struct setting *find_setting(const char *section, const char *key)
{
    for (size_t i = 0; i < SETTING_COUNT; i++)
        if (strcmp(settings[i].section, section) == 0 &&
            strcmp(settings[i].key, key) == 0)
            return &settings[i];
    return NULL;
}

static bool section_begins_at(size_t i)
{
    return i == 0 || strcmp(settings[i].section, settings[i - 1].section) != 0;
}

static bool is_section(const char *section)
{
    for (size_t i = 0; i < SETTING_COUNT; i++)
        if (strcmp(settings[i].section, section) == 0)
            return true;
    return false;
}

static int fail_section(const char *section, const char *where, struct err *err)
{
    char known[256] = "";
    size_t len = 0;

    for (size_t i = 0; i < SETTING_COUNT && len < sizeof(known); i++)
        if (section_begins_at(i))
            len += (size_t)snprintf(known + len, sizeof(known) - len, "%s[%s]",
                                    i == 0 ? "" : " ", settings[i].section);
    return err_set(err, -EINVAL, "%s: unknown section [%.60s]; there are %s", where,
                   section, known);
}

static int fail_key(const char *section, const char *key, const char *where,
                    struct err *err)
{
    char known[256] = "";
    size_t len = 0;

    for (size_t i = 0; i < SETTING_COUNT && len < sizeof(known); i++)
        if (strcmp(settings[i].section, section) == 0)
            len += (size_t)snprintf(known + len, sizeof(known) - len, "%s%s",
                                    len == 0 ? "" : ", ", settings[i].key);
    return err_set(err, -EINVAL, "%s: unknown key '%.60s' in [%s]; there are %s", where,
                   key, section, known);
}

static void upper_case(char *text)
{
    for (; *text != '\0'; text++)
        if (*text >= 'a' && *text <= 'z')
            *text = (char)(*text - 'a' + 'A');
}

static void variable_name(const struct setting *setting, char *ret_name, size_t size)
{
    snprintf(ret_name, size, VARIABLE_PREFIX "%s_%s", setting->section, setting->key);
    upper_case(ret_name);
}

int config_blame(const struct config *config, const char *section, const char *key,
                 int code, struct err *err)
{
    const struct setting *setting = find_setting(section, key);
    const size_t index = (size_t)(setting - settings);
    char where[256] = "DATABASE_URL"; /* no other default can be wrong */

    if (config->origin[index] == ORIGIN_COMMAND_LINE)
        snprintf(where, sizeof(where), "--set %s.%s", section, key);
    else if (config->origin[index] == ORIGIN_ENVIRONMENT)
        variable_name(setting, where, sizeof(where));
    else if (config->origin[index] == ORIGIN_INI)
        snprintf(where, sizeof(where), "%.200s:%u", config->file, config->line[index]);
    return err_prefix(err, code, "%s: [%s] %s", where, section, key);
}

/* ---- the three sources ---- */

int config_set(struct config *config, const char *assignment, struct err *err)
{
    const char *equals = strchr(assignment, '=');
    const char *dot = strchr(assignment, '.');
    char section[32] = "", key[32] = "", where[80];

    if (equals == NULL || dot == NULL || dot > equals)
        return err_set(err, -EINVAL, "--set %.60s: must be section.key=value",
                       assignment);
    snprintf(section, sizeof(section), "%.*s", (int)(dot - assignment), assignment);
    snprintf(key, sizeof(key), "%.*s", (int)(equals - dot - 1), dot + 1);
    snprintf(where, sizeof(where), "--set %s.%s", section, key);

    const struct setting *setting = find_setting(section, key);
    if (setting == NULL)
        return is_section(section) ? fail_key(section, key, where, err)
                                   : fail_section(section, where, err);
    if (config->origin[setting - settings] == ORIGIN_COMMAND_LINE)
        return err_set(err, -EINVAL, "%s: is set twice", where);
    return assign(config, setting, equals + 1, ORIGIN_COMMAND_LINE, where, err);
}

static const struct setting *find_variable(const char *variable, size_t len)
{
    for (size_t i = 0; i < SETTING_COUNT; i++) {
        char name[80];
        variable_name(&settings[i], name, sizeof(name));
        if (strlen(name) == len && memcmp(name, variable, len) == 0)
            return &settings[i];
    }
    return NULL;
}

static const char *find_in(char *const environment[], const char *name)
{
    size_t len = strlen(name);

    for (; *environment != NULL; environment++)
        if (strncmp(*environment, name, len) == 0 && (*environment)[len] == '=')
            return *environment + len + 1;
    return NULL;
}

static int read_environment(struct config *config, char *const environment[],
                            struct err *err)
{
    for (; *environment != NULL; environment++) {
        const char *variable = *environment;
        const char *equals = strchr(variable, '=');
        if (equals == NULL ||
            strncmp(variable, VARIABLE_PREFIX, strlen(VARIABLE_PREFIX)) != 0)
            continue;

        char where[80];
        snprintf(where, sizeof(where), "%.*s", (int)(equals - variable), variable);
        const struct setting *setting =
            find_variable(variable, (size_t)(equals - variable));
        if (setting == NULL)
            return err_set(err, -EINVAL,
                           "%s: no such setting; a variable is " VARIABLE_PREFIX
                           "SECTION_KEY, see " INI_NAME,
                           where);
        int code = assign(config, setting, equals + 1, ORIGIN_ENVIRONMENT, where, err);
        if (code < 0)
            return code;
    }
    return 0;
}

/* Called with each section and each setting of the file. */
static int take_line(void *argument, const struct inifile_line *line, struct err *err)
{
    struct config *config = argument;
    char where[256];

    snprintf(where, sizeof(where), "%.200s:%u", line->path, line->number);
    if (!is_section(line->section))
        return fail_section(line->section, where, err);
    if (line->key == NULL)
        return 0;

    const struct setting *setting = find_setting(line->section, line->key);
    if (setting == NULL)
        return fail_key(line->section, line->key, where, err);
    unsigned *first = &config->line[setting - settings];
    if (*first != 0)
        return err_set(err, -EINVAL, "%s: [%s] %s is set twice, first in line %u", where,
                       line->section, line->key, *first);
    *first = line->number;
    return assign(config, setting, line->value, ORIGIN_INI, where, err);
}

static int read_ini(struct config *config, const char *path, bool may_be_missing,
                    struct err *err)
{
    int code = inifile_read(path, take_line, config, err);

    if (code == -ENOENT && may_be_missing)
        return 0;
    return code < 0 ? code : setting_replace_text(&config->file, path, err);
}

/* ---- what the sources leave open ---- */

/* The repository that the program was built in, left NULL if it was not: gateway.ini stands
 * one or two folders above the program (build/, or build/unit/ and the like). */
static int find_repository(char **ret_repository, struct err *err)
{
    char path[4096];
    ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - sizeof("/" INI_NAME));

    if (len <= 0)
        return 0;
    path[len] = '\0';
    for (int above = 0; above < 3; above++) {
        char *slash = strrchr(path, '/');
        if (slash == NULL || slash == path)
            return 0;
        memcpy(slash, "/" INI_NAME, sizeof("/" INI_NAME));
        bool found = above > 0 && access(path, F_OK) == 0;
        *slash = '\0';
        if (found)
            return setting_replace_text(ret_repository, path, err);
    }
    return 0;
}

static int fill_folder(char **place, const char *repository, const char *name,
                       struct err *err)
{
    struct buf path = BUF_EMPTY;

    if (**place != '\0')
        return 0;
    buf_add_format(&path, "%s/%s", repository != NULL ? repository : PGSSE_DATADIR, name);
    char *text = buf_steal(&path);
    if (text == NULL)
        return no_memory(err);
    free(*place);
    *place = text;
    return 0;
}

static int find_password(struct config *config, char *const environment[],
                         struct err *err)
{
    const char *folder = find_in(environment, "CREDENTIALS_DIRECTORY");
    const char *path = config->database.password_file;
    bool named = *path != '\0';
    char credential[4096], *password;

    if (!named && folder == NULL)
        return 0;
    if (!named) {
        snprintf(credential, sizeof(credential), "%s/pgpassword", folder);
        path = credential;
    }
    int code = secret_read(path, &password, err);
    if (code == -ENOENT && !named)
        return 0; /* systemd handed over other credentials, not this one */
    if (code < 0)
        return code;
    secret_free(config->database.password);
    config->database.password = password;
    return 0;
}

static int fill_gaps(struct config *config, const char *repository,
                     char *const environment[], struct err *err)
{
    const struct setting *dsn = find_setting("database", "dsn");
    const char *url = find_in(environment, "DATABASE_URL");
    uint64_t none;
    int code = 0;

    if (*config->database.dsn == '\0' && url != NULL) {
        if (setting_parse(dsn, url, &none) < 0)
            return err_set(err, -EINVAL,
                           "DATABASE_URL: must be text without control "
                           "characters");
        code = setting_replace_text(&config->database.dsn, url, err);
        config->origin[dsn - settings] = ORIGIN_DEFAULT;
    }
    if (code == 0 && *config->database.listen_dsn == '\0')
        code =
            setting_replace_text(&config->database.listen_dsn, config->database.dsn, err);
    if (code == 0)
        code = fill_folder(&config->http.static_dir, repository, "static", err);
    if (code == 0)
        code =
            fill_folder(&config->database.migrations_dir, repository, "migrations", err);
    if (code == 0)
        code = find_password(config, environment, err);
    return code;
}

int config_load(struct config *config, const char *path, char *const environment[],
                struct err *err)
{
    char *repository = NULL;
    struct buf repository_ini = BUF_EMPTY;
    bool may_be_missing = path == NULL;
    int code = find_repository(&repository, err);

    if (path == NULL && repository != NULL) {
        buf_add_format(&repository_ini, "%s/" INI_NAME, repository);
        if (buf_ok(&repository_ini) < 0)
            code = no_memory(err);
        path = repository_ini.data;
    } else if (path == NULL) {
        path = INSTALLED_INI;
    }
    if (code == 0)
        code = read_ini(config, path, may_be_missing, err);
    if (code == 0)
        code = read_environment(config, environment, err);
    if (code == 0)
        code = fill_gaps(config, repository, environment, err);
    buf_done(&repository_ini);
    free(repository);
    return code;
}

/* ---- life and print ---- */

struct config *config_new(void)
{
    struct config *config = calloc(1, sizeof(*config));
    if (config == NULL)
        return NULL;

    int code = setting_replace_text(&config->file, "", NULL);
    if (code == 0)
        code = setting_replace_text(&config->database.password, "", NULL);
    for (size_t i = 0; i < SETTING_COUNT && code == 0; i++)
        code = assign(config, &settings[i], settings[i].fallback, ORIGIN_DEFAULT,
                      "default", NULL);
    if (code < 0) {
        config_free(config);
        return NULL;
    }
    return config;
}

void config_free(struct config *config)
{
    if (config == NULL)
        return;
    for (size_t i = 0; i < SETTING_COUNT; i++)
        if (setting_is_text(&settings[i]))
            free(*(char **)place_of(config, &settings[i]));
    secret_free(config->database.password);
    free(config->file);
    free(config);
}

int config_print(const struct config *config, FILE *file)
{
    struct buf text = BUF_EMPTY;

    for (size_t i = 0; i < SETTING_COUNT; i++) {
        if (section_begins_at(i))
            buf_add_format(&text, "%s[%s]\n", i == 0 ? "" : "\n", settings[i].section);
        buf_add_format(&text, "%s = ", settings[i].key);
        setting_print(&settings[i], const_place_of(config, &settings[i]), &text);
        buf_add_text(&text, "\n");
    }
    int code = buf_ok(&text);
    if (code == 0 &&
        (fwrite(text.data, 1, text.len, file) != text.len || fflush(file) != 0))
        code = -EIO;
    buf_done(&text);
    return code;
}

unsigned config_shards(const struct config *config)
{
    long online = sysconf(_SC_NPROCESSORS_ONLN);

    if (config->server.shards_count != 0)
        return (unsigned)config->server.shards_count;
    return (unsigned)MIN(MAX(online, 1), SHARDS_MAX);
}
