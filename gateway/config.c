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

enum type {
    TYPE_TEXT,   /* char * */
    TYPE_SECRET, /* char *, a connection string: never shown with its passwords */
    TYPE_FLAG,   /* bool */
    TYPE_COUNT,  /* uint64_t */
    TYPE_BYTES,  /* uint64_t */
    TYPE_USEC,   /* uint64_t */
    TYPE_USEC_0, /* uint64_t; 0 is allowed beside what is between the limits */
    TYPE_LEVEL,  /* enum log_level */
    TYPE_ORDER,  /* bool: exact */
};

struct setting {
    const char *section;
    const char *key;
    enum type type;
    size_t offset;        /* in struct config */
    const char *fallback; /* the default, as it would stand in the ini file */
    uint64_t min, max;    /* of numbers, in the type's unit */
};

#define SEC                    USEC_PER_SEC
#define HOUR                   (3600 * SEC)
#define DAY                    (24 * HOUR)
#define GIB                    (UINT64_C(1) << 30)
#define PLACE(section, member) offsetof(struct config, section.member)

/* gateway.ini says what each is for; a test compares the two. */
/* clang-format off */
static const struct setting settings[] = {
    {"http", "listen", TYPE_TEXT, PLACE(http, listen), "127.0.0.1:8080", 0, 0},
    {"http", "static_dir", TYPE_TEXT, PLACE(http, static_dir), "", 0, 0},
    {"http", "cors_origins", TYPE_TEXT, PLACE(http, cors_origins), "", 0, 0},

    {"database", "dsn", TYPE_SECRET, PLACE(database, dsn), "", 0, 0},
    {"database", "listen_dsn", TYPE_SECRET, PLACE(database, listen_dsn), "", 0, 0},
    {"database", "password_file", TYPE_TEXT, PLACE(database, password_file), "", 0, 0},
    {"database", "migrate_on_start", TYPE_FLAG, PLACE(database, migrate_on_start), "no", 0, 1},
    {"database", "migrations_dir", TYPE_TEXT, PLACE(database, migrations_dir), "", 0, 0},

    {"events", "retention", TYPE_USEC_0, PLACE(events, retention_usec), "0", SEC, 3650 * DAY},

    {"channels", "relay", TYPE_TEXT, PLACE(channels, relay), "", 0, 0},
    {"channels", "relay_max", TYPE_COUNT, PLACE(channels, relay_max_count), "10000", 1, 1000000},
    {"channels", "relay_order", TYPE_ORDER, PLACE(channels, relay_exact), "commit", 0, 1},

    {"stream", "heartbeat", TYPE_USEC, PLACE(stream, heartbeat_usec), "15s", SEC / 10, HOUR},
    {"stream", "retry", TYPE_USEC, PLACE(stream, retry_usec), "2s", SEC / 100, HOUR},
    {"stream", "max_age", TYPE_USEC, PLACE(stream, max_age_usec), "0", 0, 30 * DAY},
    {"stream", "idle_close", TYPE_USEC, PLACE(stream, idle_close_usec), "60s", SEC / 10, DAY},
    {"stream", "channels", TYPE_COUNT, PLACE(stream, channels_count), "64", 1, 256},

    {"ring", "bytes", TYPE_BYTES, PLACE(ring, bytes), "64MiB", 64 * KIB, 64 * GIB},

    {"limits", "body", TYPE_BYTES, PLACE(limits, body_bytes), "4MiB", KIB, 64 * MIB},
    {"limits", "header", TYPE_BYTES, PLACE(limits, header_bytes), "16KiB", KIB, 32 * KIB},
    {"limits", "connections", TYPE_COUNT, PLACE(limits, connections_count), "10000", 1, 1000000},
    {"limits", "header_time", TYPE_USEC, PLACE(limits, header_time_usec), "10s", SEC / 10, HOUR},
    {"limits", "body_time", TYPE_USEC, PLACE(limits, body_time_usec), "60s", SEC / 10, HOUR},
    {"limits", "keep_alive", TYPE_USEC, PLACE(limits, keep_alive_usec), "60s", SEC / 10, HOUR},
    {"limits", "publish_time", TYPE_USEC, PLACE(limits, publish_time_usec), "10s", SEC / 10, HOUR},
    {"limits", "publish_queue", TYPE_BYTES, PLACE(limits, publish_queue_bytes), "64MiB", 64 * KIB, 16 * GIB},
    {"limits", "consumers", TYPE_COUNT, PLACE(limits, consumers_count), "1000", 0, 100000},
    {"limits", "waits", TYPE_COUNT, PLACE(limits, waits_count), "1000", 0, 100000},
    {"limits", "groups", TYPE_COUNT, PLACE(limits, groups_count), "1000", 0, 100000},

    {"server", "shards", TYPE_COUNT, PLACE(server, shards_count), "0", 0, SHARDS_MAX},
    {"server", "drain", TYPE_USEC, PLACE(server, drain_usec), "10s", 0, HOUR},

    {"log", "level", TYPE_LEVEL, PLACE(log, level), "notice", 0, 0},
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

static bool is_text(const struct setting *setting)
{
    return setting->type == TYPE_TEXT || setting->type == TYPE_SECRET;
}

static char *copy_text(const char *text, size_t len)
{
    char *copy = malloc(len + 1);

    if (copy != NULL) {
        memcpy(copy, text, len);
        copy[len] = '\0';
    }
    return copy;
}

static int no_memory(struct err *err)
{
    return err_set(err, -ENOMEM, "no memory for the configuration");
}

/* Puts a copy in the place of an owned text. */
static int replace_text(char **place, const char *text, struct err *err)
{
    char *copy = copy_text(text, strlen(text));

    if (copy == NULL)
        return no_memory(err);
    free(*place);
    *place = copy;
    return 0;
}

/* ---- one value ---- */

static int parse_flag(const char *text, uint64_t *ret_flag)
{
    static const char *const words[] = {"no",  "yes", "false", "true",
                                        "off", "on",  "0",     "1"};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strcmp(text, words[i]) == 0) {
            *ret_flag = i % 2;
            return 0;
        }
    return -EINVAL;
}

static int parse_level(const char *text, uint64_t *ret_level)
{
    enum log_level level;
    int code = log_level_parse(text, &level);

    if (code == 0)
        *ret_level = (uint64_t)level;
    return code;
}

static int parse_order(const char *text, uint64_t *ret_exact)
{
    if (strcmp(text, "commit") != 0 && strcmp(text, "near") != 0)
        return -EINVAL;
    *ret_exact = text[0] == 'c';
    return 0;
}

static int check_text(const char *text)
{
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            return -EINVAL;
    return 0;
}

/* Texts have no number; theirs is 0. */
static int parse_value(const struct setting *setting, const char *text,
                       uint64_t *ret_number)
{
    int code = -EINVAL;
    uint64_t number = 0;

    switch (setting->type) {
    case TYPE_TEXT:
    case TYPE_SECRET:
        return check_text(text);
    case TYPE_FLAG:
        return parse_flag(text, ret_number);
    case TYPE_LEVEL:
        return parse_level(text, ret_number);
    case TYPE_ORDER:
        return parse_order(text, ret_number);
    case TYPE_COUNT:
        code = units_parse_count(text, &number);
        break;
    case TYPE_BYTES:
        code = units_parse_bytes(text, &number);
        break;
    case TYPE_USEC:
    case TYPE_USEC_0:
        code = units_parse_usec(text, &number);
        break;
    }
    bool zero = setting->type == TYPE_USEC_0 && number == 0;
    if (code == 0 && !zero && (number < setting->min || number > setting->max))
        code = -ERANGE;
    if (code == 0)
        *ret_number = number;
    return code;
}

static void describe_allowed(const struct setting *setting, char *text, size_t size)
{
    char min[UNITS_TEXT_MAX], max[UNITS_TEXT_MAX];

    switch (setting->type) {
    case TYPE_TEXT:
    case TYPE_SECRET:
        snprintf(text, size, "text without control characters");
        break;
    case TYPE_FLAG:
        snprintf(text, size, "yes, no, true, false, on, off, 1 or 0");
        break;
    case TYPE_LEVEL:
        snprintf(text, size, "error, warning, notice or debug");
        break;
    case TYPE_ORDER:
        snprintf(text, size, "commit or near");
        break;
    case TYPE_COUNT:
        snprintf(text, size, "a number from %" PRIu64 " to %" PRIu64, setting->min,
                 setting->max);
        break;
    case TYPE_BYTES:
        units_format_bytes(setting->min, min);
        units_format_bytes(setting->max, max);
        snprintf(text, size, "a size from %s to %s, in KiB, MiB or GiB", min, max);
        break;
    case TYPE_USEC:
    case TYPE_USEC_0:
        units_format_usec(setting->min, min);
        units_format_usec(setting->max, max);
        snprintf(text, size, "%sa duration from %s to %s, in ms, s, min, h or d",
                 setting->type == TYPE_USEC_0 ? "0, or " : "", min, max);
        break;
    }
}

static int fail_value(const struct setting *setting, const char *text, const char *where,
                      struct err *err)
{
    char allowed[128];

    describe_allowed(setting, allowed, sizeof(allowed));
    if (setting->type == TYPE_SECRET)
        return err_set(err, -EINVAL, "%s: [%s] %s: must be %s", where, setting->section,
                       setting->key, allowed);
    return err_set(err, -EINVAL, "%s: [%s] %s = '%.60s': must be %s", where,
                   setting->section, setting->key, text, allowed);
}

static int store_value(struct config *config, const struct setting *setting,
                       const char *text, uint64_t number, struct err *err)
{
    void *place = place_of(config, setting);

    switch (setting->type) {
    case TYPE_TEXT:
    case TYPE_SECRET:
        return replace_text(place, text, err);
    case TYPE_FLAG:
    case TYPE_ORDER:
        *(bool *)place = number != 0;
        break;
    case TYPE_COUNT:
    case TYPE_BYTES:
    case TYPE_USEC:
    case TYPE_USEC_0:
        *(uint64_t *)place = number;
        break;
    case TYPE_LEVEL:
        *(enum log_level *)place = (enum log_level)number;
        break;
    }
    return 0;
}

/* Checks the value, and keeps it unless one from a stronger origin is there already. */
static int assign(struct config *config, const struct setting *setting, const char *text,
                  enum origin origin, const char *where, struct err *err)
{
    size_t index = (size_t)(setting - settings);
    uint64_t number = 0;

    if (parse_value(setting, text, &number) < 0)
        return fail_value(setting, text, where, err);
    if (config->origin[index] > origin)
        return 0;
    int code = store_value(config, setting, text, number, err);
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
    return code < 0 ? code : replace_text(&config->file, path, err);
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
            return replace_text(ret_repository, path, err);
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
    const char *url = find_in(environment, "DATABASE_URL");
    int code = 0;

    if (*config->database.dsn == '\0' && url != NULL) {
        if (check_text(url) < 0)
            return err_set(err, -EINVAL,
                           "DATABASE_URL: must be text without control "
                           "characters");
        code = replace_text(&config->database.dsn, url, err);
        config->origin[find_setting("database", "dsn") - settings] = ORIGIN_DEFAULT;
    }
    if (code == 0 && *config->database.listen_dsn == '\0')
        code = replace_text(&config->database.listen_dsn, config->database.dsn, err);
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

    int code = replace_text(&config->file, "", NULL);
    if (code == 0)
        code = replace_text(&config->database.password, "", NULL);
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
        if (is_text(&settings[i]))
            free(*(char **)place_of(config, &settings[i]));
    secret_free(config->database.password);
    free(config->file);
    free(config);
}

static void print_value(const struct config *config, const struct setting *setting,
                        struct buf *text)
{
    const void *place = const_place_of(config, setting);
    char with_unit[UNITS_TEXT_MAX];

    switch (setting->type) {
    case TYPE_TEXT:
        buf_add_text(text, *(char *const *)place);
        break;
    case TYPE_SECRET:
        secret_mask_dsn(*(char *const *)place, text);
        break;
    case TYPE_FLAG:
        buf_add_text(text, *(const bool *)place ? "yes" : "no");
        break;
    case TYPE_ORDER:
        buf_add_text(text, *(const bool *)place ? "commit" : "near");
        break;
    case TYPE_COUNT:
        buf_add_format(text, "%" PRIu64, *(const uint64_t *)place);
        break;
    case TYPE_BYTES:
        units_format_bytes(*(const uint64_t *)place, with_unit);
        buf_add_text(text, with_unit);
        break;
    case TYPE_USEC:
    case TYPE_USEC_0:
        units_format_usec(*(const uint64_t *)place, with_unit);
        buf_add_text(text, with_unit);
        break;
    case TYPE_LEVEL:
        buf_add_text(text, log_level_word(*(const enum log_level *)place));
        break;
    }
}

int config_print(const struct config *config, FILE *file)
{
    struct buf text = BUF_EMPTY;

    for (size_t i = 0; i < SETTING_COUNT; i++) {
        if (section_begins_at(i))
            buf_add_format(&text, "%s[%s]\n", i == 0 ? "" : "\n", settings[i].section);
        buf_add_format(&text, "%s = ", settings[i].key);
        print_value(config, &settings[i], &text);
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
