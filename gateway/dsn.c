/*
 * dsn.c - a libpq connection string, host by host.
 */
#include "dsn.h"

#include <errno.h>
#include <string.h>

#define HOSTS_MAX    16
#define KEYWORDS_MAX 20

struct dsn {
    struct dsn_settings settings;
    PQconninfoOption *options;   /* the texts below live here */
    const char *host[HOSTS_MAX]; /* NULL: none to pass */
    const char *address[HOSTS_MAX];
    const char *port[HOSTS_MAX];
    size_t hosts;
    bool standby_first;
};

struct keywords {
    const char *names[KEYWORDS_MAX];
    const char *values[KEYWORDS_MAX];
    size_t count;
};

static void put(struct keywords *keywords, const char *name, const char *value)
{
    /* One place stays free: the lists end with NULL. */
    if (value == NULL || value[0] == '\0' || keywords->count + 1 >= KEYWORDS_MAX)
        return;
    keywords->names[keywords->count] = name;
    keywords->values[keywords->count] = value;
    keywords->count++;
}

/* What stands before dbname gives way to the user's connection string, what stands after
 * it does not. */
static void put_settings(struct keywords *keywords, const struct dsn_settings *settings)
{
    /* A network that drops everything silently is noticed within 11 s. */
    put(keywords, "keepalives_idle", "5");
    put(keywords, "keepalives_interval", "2");
    put(keywords, "keepalives_count", "3");
    put(keywords, "tcp_user_timeout", "9000");
    put(keywords, "fallback_application_name", settings->application);
    if (getenv("PGTARGETSESSIONATTRS") == NULL)
        put(keywords, "target_session_attrs", settings->target);
    put(keywords, "password", settings->password);
    put(keywords, "dbname", settings->text);
    put(keywords, "client_encoding", "UTF8");
}

/* Is one letter of the name wrong, missing or too many in the word, or are two of them changed
 * about? */
static bool is_misspelt(const char *name, const char *word, size_t len)
{
    const size_t name_len = strlen(name);
    size_t head = 0, tail = 0;

    while (head < len && head < name_len && word[head] == name[head])
        head++;
    while (tail < len - head && tail < name_len - head &&
           word[len - 1 - tail] == name[name_len - 1 - tail])
        tail++;
    const size_t left = len - head - tail, name_left = name_len - head - tail;
    return (left <= 1 && name_left <= 1) ||
           (left == 2 && name_left == 2 && word[head] == name[head + 1] &&
            word[head + 1] == name[head]);
}

/* The setting that is meant by the word that libpq has quoted; NULL: none seems to be. */
static const char *meant_by(const char *message, const PQconninfoOption *options)
{
    const char *word = message != NULL ? strchr(message, '"') : NULL;
    const char *end = word != NULL ? strchr(word + 1, '"') : NULL;

    for (; end != NULL && options != NULL && options->keyword != NULL; options++) {
        if (strlen(options->keyword) > 3 &&
            is_misspelt(options->keyword, word + 1, (size_t)(end - word - 1)))
            return options->keyword;
    }
    return NULL;
}

/* libpq quotes the piece it stumbled over, which may be a piece of a password: what is said
 * instead is a setting's name. */
static int unreadable(const char *message, struct err *err)
{
    PQconninfoOption *options = PQconndefaults();
    const char *meant = meant_by(message, options);
    char text[200];
    size_t len = 0;
    bool quoted = false;

    for (const char *at = message; at != NULL && *at != '\0'; at++) {
        if (len + sizeof("\"...") >= sizeof(text))
            break;
        if (*at == '"') {
            quoted = !quoted;
            text[len++] = '"';
            if (quoted) {
                memcpy(text + len, "...", 3);
                len += 3;
            }
        } else if (!quoted && *at != '\n') {
            text[len++] = *at;
        }
    }
    text[len] = '\0';
    (void)err_set(err, -EINVAL,
                  "the database's connection string cannot be read: %s%s%s%s", text,
                  meant != NULL ? " (is \"" : "", meant != NULL ? meant : "",
                  meant != NULL ? "\" meant?)" : "");
    PQconninfoFree(options);
    return -EINVAL;
}

/* The same question that libpq asks: a connection string, or the name of a database? */
static bool is_connection_string(const char *text)
{
    return strncmp(text, "postgres://", 11) == 0 ||
           strncmp(text, "postgresql://", 13) == 0 || strchr(text, '=') != NULL;
}

/* libpq would quote what is no port, and that may be a piece of a password. */
static int check_ports(const PQconninfoOption *options, struct err *err)
{
    for (; options->keyword != NULL; options++) {
        if (strcmp(options->keyword, "port") == 0 && options->val != NULL &&
            strspn(options->val, "0123456789,") != strlen(options->val))
            return err_set(err, -EINVAL,
                           "the port in the connection string is not a number (special "
                           "characters of a password in a URI are written as %%40 for @, "
                           "%%3A for :, %%2F for /)");
    }
    return 0;
}

int dsn_check(const char *text, struct err *err)
{
    char *message = NULL;

    if (text == NULL || !is_connection_string(text))
        return 0;
    PQconninfoOption *options = PQconninfoParse(text, &message);
    if (options == NULL) {
        /* PQconndefaults() asks for the user's name, and without memory glibc crashes at that. */
        const int r = message == NULL || strstr(message, "out of memory") != NULL
                          ? err_set(err, -ENOMEM, "no memory for a connection string")
                          : unreadable(message, err);
        PQfreemem(message);
        return r;
    }
    const int result = check_ports(options, err);
    PQconninfoFree(options);
    return result;
}

/* Every setting as libpq will see it: connection string, service file, environment and
 * defaults together. Only a connection object can tell; this one is given an sslmode that
 * does not exist, so that it never begins to connect. */
static PQconninfoOption *effective_options(const struct dsn_settings *settings)
{
    struct keywords keywords = {0};

    put_settings(&keywords, settings);
    put(&keywords, "sslmode", "none-of-them");
    PGconn *conn = PQconnectStartParams(keywords.names, keywords.values, 1);
    PQconninfoOption *options = conn != NULL ? PQconninfo(conn) : NULL;
    PQfinish(conn);
    return options;
}

static char *option_value(const PQconninfoOption *options, const char *name)
{
    for (; options->keyword != NULL; options++)
        if (strcmp(options->keyword, name) == 0)
            return options->val;
    return NULL;
}

/* Cuts "a,b,c" in place and returns how many there are; 0 for none. */
static size_t split(char *list, const char *ret_parts[HOSTS_MAX])
{
    size_t count = 0;

    if (list == NULL || list[0] == '\0')
        return 0;
    for (char *part; (part = strsep(&list, ",")) != NULL; count++)
        if (count < HOSTS_MAX)
            ret_parts[count] = part;
    return count;
}

static bool has_empty(const char *const parts[HOSTS_MAX], size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (parts[i][0] == '\0')
            return true;
    return false;
}

/* Lists that do not fit together, too long ones, and empty entries are left to libpq as a
 * whole: it knows what they mean, or what to say. So is a single host. */
static void find_hosts(struct dsn *dsn)
{
    size_t names = split(option_value(dsn->options, "host"), dsn->host);
    size_t addresses = split(option_value(dsn->options, "hostaddr"), dsn->address);
    size_t ports = split(option_value(dsn->options, "port"), dsn->port);
    size_t count = MAX(names, addresses);
    bool separable = count > 1 && count <= HOSTS_MAX && (names == 0 || names == count) &&
                     (addresses == 0 || addresses == count) &&
                     (ports <= 1 || ports == count) && !has_empty(dsn->host, names) &&
                     !has_empty(dsn->address, addresses) &&
                     !has_empty(dsn->port, MIN(ports, HOSTS_MAX));

    if (!separable) {
        dsn->hosts = 1;
        dsn->host[0] = dsn->address[0] = dsn->port[0] = NULL;
        return;
    }
    for (size_t i = 1; i < count && ports == 1; i++)
        dsn->port[i] = dsn->port[0];
    const char *target = option_value(dsn->options, "target_session_attrs");
    dsn->standby_first = target != NULL && strcmp(target, "prefer-standby") == 0;
    dsn->hosts = count;
}

int dsn_resolve(const struct dsn_settings *settings, struct dsn **ret_dsn,
                struct err *err)
{
    int r = dsn_check(settings->text, err);
    if (r < 0)
        return r;
    struct dsn *dsn = calloc(1, sizeof(*dsn));
    if (dsn == NULL)
        return err_set(err, -ENOMEM, "no memory for a connection");
    dsn->settings = *settings;
    dsn->options = effective_options(settings);
    if (dsn->options == NULL) {
        dsn_free(dsn);
        return err_set(err, -ENOMEM, "no memory for a connection");
    }
    find_hosts(dsn);
    *ret_dsn = dsn;
    return 0;
}

void dsn_free(struct dsn *dsn)
{
    if (dsn == NULL)
        return;
    PQconninfoFree(dsn->options);
    free(dsn);
}

size_t dsn_attempts(const struct dsn *dsn)
{
    return dsn->standby_first ? dsn->hosts * 2 : dsn->hosts;
}

const char *dsn_host(const struct dsn *dsn, size_t attempt)
{
    size_t i = attempt % dsn->hosts;

    return dsn->host[i] != NULL ? dsn->host[i] : dsn->address[i];
}

PGconn *dsn_start(const struct dsn *dsn, size_t attempt)
{
    struct keywords keywords = {0};
    size_t i = attempt % dsn->hosts;

    put_settings(&keywords, &dsn->settings);
    put(&keywords, "host", dsn->host[i]);
    put(&keywords, "hostaddr", dsn->address[i]);
    put(&keywords, "port", dsn->port[i]);
    if (dsn->standby_first)
        put(&keywords, "target_session_attrs", attempt < dsn->hosts ? "standby" : "any");
    return PQconnectStartParams(keywords.names, keywords.values, 1);
}
