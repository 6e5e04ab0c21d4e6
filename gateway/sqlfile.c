/*
 * sqlfile.c - an SQL text, statement by statement.
 */
#include "sqlfile.h"

#include <string.h>
#include <strings.h>

#define WORD_MAX_BYTES 16 /* longer words are none that matter here */

/* What a statement is known by. */
struct parsing {
    char first[WORD_MAX_BYTES];
    char second[WORD_MAX_BYTES];
    bool after_begin; /* the word before was BEGIN */
    int parentheses;
    int bodies; /* BEGIN ATOMIC and the CASEs in it that still want their END */
};

static bool is_word_start(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
           (unsigned char)c >= 0x80;
}

static bool is_word(char c)
{
    return is_word_start(c) || (c >= '0' && c <= '9') || c == '$';
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static const char *skip_block_comment(const char *at)
{
    int depth = 0;

    do {
        if (at[0] == '/' && at[1] == '*') {
            depth++;
            at += 2;
        } else if (at[0] == '*' && at[1] == '/') {
            depth--;
            at += 2;
        } else {
            at++;
        }
    } while (depth > 0 && *at != '\0');
    return at;
}

/* From the opening quote to behind the closing one. A doubled quote is two strings side
 * by side to us, which comes to the same. */
static const char *skip_quoted(const char *at, bool escapes)
{
    char quote = *at++;

    for (; *at != '\0' && *at != quote; at++)
        if (escapes && *at == '\\' && at[1] != '\0')
            at++;
    return *at == '\0' ? at : at + 1;
}

/* $tag$ ... $tag$, or a single '$' that begins none. */
static const char *skip_dollar(const char *at)
{
    const char *end = at + 1;

    if (is_word_start(*end))
        while (is_word(*end) && *end != '$')
            end++;
    if (*end != '$')
        return at + 1;

    size_t tag_len = (size_t)(end + 1 - at);
    for (const char *close = at + tag_len; *close != '\0'; close++)
        if (strncmp(close, at, tag_len) == 0)
            return close + tag_len;
    return at + strlen(at);
}

static const char *skip_word(const char *at)
{
    const char *start = at;

    while (is_word(*at))
        at++;
    bool escapes = at - start == 1 && (*start == 'e' || *start == 'E') && *at == '\'';
    return escapes ? skip_quoted(at, true) : at;
}

/* White space and comments; never goes past the end. */
static const char *skip_blank(const char *at)
{
    for (;;) {
        if (is_space(*at))
            at++;
        else if (at[0] == '-' && at[1] == '-')
            at += strcspn(at, "\n");
        else if (at[0] == '/' && at[1] == '*')
            at = skip_block_comment(at);
        else
            return at;
    }
}

static void note_word(struct parsing *parsing, const char *word, size_t len)
{
    char text[WORD_MAX_BYTES] = "?";

    if (len < sizeof(text)) {
        memcpy(text, word, len);
        text[len] = '\0';
    }
    if (parsing->first[0] == '\0')
        memcpy(parsing->first, text, sizeof(text));
    else if (parsing->second[0] == '\0')
        memcpy(parsing->second, text, sizeof(text));

    /* Only the body of a CREATE FUNCTION or PROCEDURE begins ATOMIC. */
    if (parsing->after_begin && strcasecmp(text, "atomic") == 0)
        parsing->bodies = 1;
    else if (parsing->bodies > 0 && strcasecmp(text, "case") == 0)
        parsing->bodies++;
    else if (parsing->bodies > 0 && strcasecmp(text, "end") == 0)
        parsing->bodies--;
    parsing->after_begin = strcasecmp(text, "begin") == 0;
}

/* One element of a statement. */
static const char *read_element(struct parsing *parsing, const char *at)
{
    const char *end = at + 1;

    if (is_word_start(*at)) {
        end = skip_word(at);
        note_word(parsing, at, (size_t)(end - at));
        return end;
    }
    if (*at == '(')
        parsing->parentheses++;
    else if (*at == ')')
        parsing->parentheses--;
    else if (*at == '\'' || *at == '"')
        end = skip_quoted(at, false);
    else if (*at == '$')
        end = skip_dollar(at);
    if (parsing->first[0] == '\0')
        parsing->first[0] = '?'; /* no word first: nothing we know */
    return end;
}

static bool ends_transaction(const struct parsing *parsing)
{
    static const char *const words[] = {"begin", "commit", "end", "rollback", "abort"};

    for (size_t i = 0; i < ARRAY_SIZE(words); i++)
        if (strcasecmp(parsing->first, words[i]) == 0)
            return true;
    return strcasecmp(parsing->second, "transaction") == 0 &&
           (strcasecmp(parsing->first, "start") == 0 ||
            strcasecmp(parsing->first, "prepare") == 0);
}

static long count_lines(const char *from, const char *to)
{
    long lines = 0;

    for (; from < to; from++)
        lines += *from == '\n';
    return lines;
}

bool sqlfile_next(struct sqlfile *file, struct sqlfile_statement *ret_statement)
{
    struct parsing parsing = {.parentheses = 0};
    const char *begin = skip_blank(file->at);

    while (*begin == ';')
        begin = skip_blank(begin + 1);
    long line = file->line + count_lines(file->at, begin);

    const char *at = begin;
    while (*at != '\0' &&
           !(*at == ';' && parsing.parentheses <= 0 && parsing.bodies == 0))
        at = skip_blank(read_element(&parsing, at));
    file->line = line + count_lines(begin, at);
    file->at = at;
    if (at == begin)
        return false;

    ret_statement->line = line;
    ret_statement->ends_transaction = ends_transaction(&parsing);
    return true;
}

long sqlfile_line(const char *text, long position)
{
    long line = 1;

    for (; *text != '\0'; text++) {
        /* Bytes 10xxxxxx continue a character. */
        if (((unsigned char)*text & 0xc0) != 0x80 && --position <= 0)
            break;
        line += *text == '\n';
    }
    return line;
}
