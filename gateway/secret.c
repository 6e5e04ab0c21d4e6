/*
 * secret.c - passwords, masked and read.
 *
 * The masking is done by hand and not with PQconninfoParse(): libpq stays in the rooms
 * that talk to it, and it answers with a list that would have to be put together again.
 */
#include "secret.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define MASKED   "***"
#define FILE_MAX ((size_t)4096) /* bytes of a password file */

static bool is_space(char c)
{
    return c != '\0' && strchr(" \t\n\r\f\v", c) != NULL;
}

/* "password" and "sslpassword", and whatever else libpq will come to call so. A name with
 * a percent sign may spell it in another way. */
static bool is_secret_name(const char *name, size_t len)
{
    static const char word[] = "password";
    size_t word_len = sizeof(word) - 1;

    return memchr(name, '%', len) != NULL ||
           (len >= word_len && strncasecmp(name + len - word_len, word, word_len) == 0);
}

/* Behind the value at `at`, as conninfo_parse() of libpq reads it: 'quoted' or up to
 * white space, with a backslash before what is meant literally. NULL: the quote does not
 * end. */
static const char *skip_value(const char *at)
{
    bool quoted = *at == '\'';

    if (quoted)
        at++;
    while (*at != '\0' && (quoted ? *at != '\'' : !is_space(*at))) {
        if (*at == '\\' && at[1] != '\0')
            at++;
        at++;
    }
    if (!quoted)
        return at;
    return *at == '\'' ? at + 1 : NULL;
}

/* name = value pairs, split by white space. False if it is not that. */
static bool mask_pairs(const char *at, struct buf *text)
{
    while (*at != '\0') {
        const char *begin = at;
        while (is_space(*at))
            at++;
        const char *name = at;
        while (*at != '\0' && *at != '=' && !is_space(*at))
            at++;
        size_t name_len = (size_t)(at - name);
        while (is_space(*at))
            at++;
        if (name_len == 0 && *at == '\0')
            break; /* white space at the end */
        if (name_len == 0 || *at != '=')
            return false;
        at++;
        while (is_space(*at))
            at++;

        const char *value = at;
        at = skip_value(value);
        if (at == NULL)
            return false;
        if (is_secret_name(name, name_len)) {
            buf_add(text, begin, (size_t)(value - begin));
            buf_add_text(text, MASKED);
        } else {
            buf_add(text, begin, (size_t)(at - begin));
        }
    }
    return true;
}

/* Where the password's '@' is. A password may hold '@', '/' and '?' though it should not:
 * so the last '@' before the parameters counts, and the parameters begin only behind the
 * first one. */
static const char *find_at(const char *authority)
{
    const char *at = strchr(authority, '@');

    if (at == NULL)
        return NULL;
    const char *end = at + strcspn(at, "?");
    for (const char *c = at; c < end; c++)
        if (*c == '@')
            at = c;
    return at;
}

static void mask_parameters(const char *at, struct buf *text)
{
    while (*at != '\0') {
        buf_add(text, at++, 1); /* '?' or '&' */
        size_t len = strcspn(at, "&");
        const char *equals = memchr(at, '=', len);
        if (equals != NULL && is_secret_name(at, (size_t)(equals - at))) {
            buf_add(text, at, (size_t)(equals + 1 - at));
            buf_add_text(text, MASKED);
        } else {
            buf_add(text, at, len);
        }
        at += len;
    }
}

static void mask_uri(const char *uri, const char *authority, struct buf *text)
{
    const char *rest = authority;
    const char *at = find_at(authority);

    buf_add(text, uri, (size_t)(authority - uri));
    if (at != NULL) {
        const char *colon = memchr(authority, ':', (size_t)(at - authority));
        if (colon != NULL) {
            buf_add(text, authority, (size_t)(colon + 1 - authority));
            buf_add_text(text, MASKED);
            rest = at;
        }
    }
    size_t len = strlen(rest);
    const char *parameters = strchr(at != NULL ? at : rest, '?');
    if (parameters != NULL)
        len = (size_t)(parameters - rest);
    buf_add(text, rest, len);
    mask_parameters(rest + len, text);
}

void secret_mask_dsn(const char *dsn, struct buf *ret_text)
{
    static const char *const schemes[] = {"postgresql://", "postgres://"};
    size_t before = ret_text->len;

    for (size_t i = 0; i < ARRAY_SIZE(schemes); i++)
        if (strncmp(dsn, schemes[i], strlen(schemes[i])) == 0) {
            mask_uri(dsn, dsn + strlen(schemes[i]), ret_text);
            return;
        }
    if (!mask_pairs(dsn, ret_text)) {
        ret_text->len = before;
        buf_add_text(ret_text, MASKED);
    }
}

static int read_text(const char *path, FILE *file, char text[FILE_MAX + 1],
                     size_t *ret_len, struct err *err)
{
    setvbuf(file, NULL, _IONBF, 0); /* no second copy of it in a buffer */
    errno = 0;
    size_t len = fread(text, 1, FILE_MAX + 1, file);
    if (ferror(file)) {
        int code = errno == 0 ? EIO : errno;
        return err_set(err, -code, "could not read the password file %s: %s", path,
                       strerror(code));
    }
    if (len > FILE_MAX)
        return err_set(err, -EINVAL, "the password file %s is longer than %zu bytes",
                       path, FILE_MAX);
    while (len > 0 && (text[len - 1] == '\n' || text[len - 1] == '\r'))
        len--;
    if (len == 0)
        return err_set(err, -EINVAL, "the password file %s is empty", path);
    if (memchr(text, '\0', len) != NULL)
        return err_set(err, -EINVAL, "the password file %s holds a NUL byte", path);
    *ret_len = len;
    return 0;
}

int secret_read(const char *path, char **ret_secret, struct err *err)
{
    char text[FILE_MAX + 1];
    size_t len = 0;
    FILE *file = fopen(path, "re");

    if (file == NULL)
        return err_set(err, -errno, "could not open the password file %s: %s", path,
                       strerror(errno));
    int code = read_text(path, file, text, &len, err);
    fclose(file);
    if (code == 0) {
        char *secret = malloc(len + 1);
        if (secret != NULL) {
            memcpy(secret, text, len);
            secret[len] = '\0';
            *ret_secret = secret;
        } else {
            code = err_set(err, -ENOMEM, "no memory for the password");
        }
    }
    explicit_bzero(text, sizeof(text));
    return code;
}

void secret_free(char *secret)
{
    if (secret != NULL)
        explicit_bzero(secret, strlen(secret));
    free(secret);
}
