/*
 * json.c - where a JSON value begins and ends.
 *
 * No recursion: strangers choose the depth. What is open is one bit a level, an array or
 * an object, and the scanner is a loop over what may stand next.
 */
#include "json.h"

#include <errno.h>
#include <string.h>

enum expected {
    EXPECT_VALUE,
    EXPECT_VALUE_OR_END, /* after '[' */
    EXPECT_KEY,          /* after ',' in an object */
    EXPECT_KEY_OR_END,   /* after '{' */
    EXPECT_COMMA_OR_END, /* after a value inside something */
    EXPECT_NOTHING,      /* the outermost value is complete */
};

struct scanner {
    const char *text;
    size_t len;
    size_t at;
    struct err *err;
    unsigned depth;
    uint8_t is_object[JSON_MAX_DEPTH / 8]; /* a bit a level, for levels 0 to depth - 1 */
};

_Static_assert(JSON_MAX_DEPTH % 8 == 0, "the stack is made of whole bytes");

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

size_t json_skip_space(const char *text, size_t len, size_t offset)
{
    while (offset < len && is_space(text[offset]))
        offset++;
    return offset;
}

static int fail(struct scanner *scanner, const char *what)
{
    return err_set(scanner->err, -EINVAL, "byte %zu: %s", scanner->at, what);
}

static int fail_expecting(struct scanner *scanner, const char *what)
{
    if (scanner->at >= scanner->len)
        return err_set(scanner->err, -EINVAL, "byte %zu: ends where %s was expected",
                       scanner->at, what);
    return err_set(scanner->err, -EINVAL, "byte %zu: expected %s", scanner->at, what);
}

/* The byte at the scanner, or NUL behind the end. NUL never is what anyone looks for. */
static char peek(const struct scanner *scanner)
{
    return scanner->at < scanner->len ? scanner->text[scanner->at] : '\0';
}

static bool inside_object(const struct scanner *scanner)
{
    unsigned top = scanner->depth - 1;
    return (scanner->is_object[top / 8] >> (top % 8)) & 1;
}

static int open_level(struct scanner *scanner, bool object)
{
    unsigned top = scanner->depth;

    if (top == JSON_MAX_DEPTH)
        return fail(scanner, "nested too deeply");
    if (object)
        scanner->is_object[top / 8] |= (uint8_t)(1u << (top % 8));
    else
        scanner->is_object[top / 8] &= (uint8_t) ~(1u << (top % 8));
    scanner->depth++;
    scanner->at++;
    return 0;
}

static enum expected close_level(struct scanner *scanner)
{
    scanner->at++;
    scanner->depth--;
    return scanner->depth == 0 ? EXPECT_NOTHING : EXPECT_COMMA_OR_END;
}

/* At the 'u' of \uXXXX. A lone surrogate passes: it is JSON, and type json of PostgreSQL
 * keeps it as it is written. */
static int scan_unicode_escape(struct scanner *scanner)
{
    bool zero = true;

    for (size_t i = 1; i <= 4; i++) {
        char c = scanner->at + i < scanner->len ? scanner->text[scanner->at + i] : '\0';
        char lower = (char)(c | 0x20);
        if (!is_digit(c) && !(lower >= 'a' && lower <= 'f')) {
            scanner->at += i;
            return fail_expecting(scanner, "four hexadecimal digits after \\u");
        }
        zero = zero && c == '0';
    }
    if (zero) {
        scanner->at--; /* where the backslash is */
        return fail(scanner, "\\u0000 cannot be stored");
    }
    scanner->at += 5;
    return 0;
}

/* At the backslash. */
static int scan_escape(struct scanner *scanner)
{
    scanner->at++;
    switch (peek(scanner)) {
    case '"':
    case '\\':
    case '/':
    case 'b':
    case 'f':
    case 'n':
    case 'r':
    case 't':
        scanner->at++;
        return 0;
    case 'u':
        return scan_unicode_escape(scanner);
    default:
        return fail_expecting(scanner, "one of \" \\ / b f n r t u after a backslash");
    }
}

/* At the opening quote. */
static int scan_string(struct scanner *scanner)
{
    scanner->at++;
    while (scanner->at < scanner->len) {
        unsigned char c = (unsigned char)scanner->text[scanner->at];
        if (c == '"') {
            scanner->at++;
            return 0;
        }
        if (c < 0x20)
            return fail(scanner, "control character in a string");
        if (c != '\\') {
            scanner->at++;
            continue;
        }
        int code = scan_escape(scanner);
        if (code < 0)
            return code;
    }
    return fail(scanner, "ends inside a string");
}

static int scan_digits(struct scanner *scanner)
{
    if (!is_digit(peek(scanner)))
        return fail_expecting(scanner, "a digit");
    while (is_digit(peek(scanner)))
        scanner->at++;
    return 0;
}

/* At the sign or the first digit. */
static int scan_number(struct scanner *scanner)
{
    int code = 0;

    if (peek(scanner) == '-')
        scanner->at++;
    if (peek(scanner) == '0')
        scanner->at++; /* nothing but '.', 'e' or the end may follow a leading zero */
    else
        code = scan_digits(scanner);
    if (code == 0 && peek(scanner) == '.') {
        scanner->at++;
        code = scan_digits(scanner);
    }
    if (code == 0 && (peek(scanner) == 'e' || peek(scanner) == 'E')) {
        scanner->at++;
        if (peek(scanner) == '+' || peek(scanner) == '-')
            scanner->at++;
        code = scan_digits(scanner);
    }
    return code;
}

static int scan_word(struct scanner *scanner, const char *word)
{
    size_t len = strlen(word);

    if (scanner->len - scanner->at < len ||
        memcmp(scanner->text + scanner->at, word, len) != 0)
        return fail_expecting(scanner, "a JSON value");
    scanner->at += len;
    return 0;
}

/* A string, number or word; or the bracket that opens more. */
static int scan_value(struct scanner *scanner, enum expected *ret_expected)
{
    int code;

    *ret_expected = scanner->depth == 0 ? EXPECT_NOTHING : EXPECT_COMMA_OR_END;
    switch (peek(scanner)) {
    case '{':
        *ret_expected = EXPECT_KEY_OR_END;
        return open_level(scanner, true);
    case '[':
        *ret_expected = EXPECT_VALUE_OR_END;
        return open_level(scanner, false);
    case '"':
        return scan_string(scanner);
    case 't':
        return scan_word(scanner, "true");
    case 'f':
        return scan_word(scanner, "false");
    case 'n':
        return scan_word(scanner, "null");
    default:
        if (peek(scanner) != '-' && !is_digit(peek(scanner)))
            return fail_expecting(scanner, "a JSON value");
        code = scan_number(scanner);
        return code;
    }
}

/* A member's name, its colon, and the space up to its value. */
static int scan_key(struct scanner *scanner)
{
    if (peek(scanner) != '"')
        return fail_expecting(scanner, "a member's name in double quotes");
    int code = scan_string(scanner);
    if (code < 0)
        return code;
    scanner->at = json_skip_space(scanner->text, scanner->len, scanner->at);
    if (peek(scanner) != ':')
        return fail_expecting(scanner, "':'");
    scanner->at++;
    return 0;
}

static int scan_comma_or_end(struct scanner *scanner, enum expected *ret_expected)
{
    bool object = inside_object(scanner);

    if (peek(scanner) == (object ? '}' : ']')) {
        *ret_expected = close_level(scanner);
        return 0;
    }
    if (peek(scanner) != ',')
        return fail_expecting(scanner, object ? "',' or '}'" : "',' or ']'");
    scanner->at++;
    *ret_expected = object ? EXPECT_KEY : EXPECT_VALUE;
    return 0;
}

/* One step: what stands at the scanner, and what may stand behind it. */
static int scan_next(struct scanner *scanner, enum expected *expected)
{
    int code;

    switch (*expected) {
    case EXPECT_VALUE_OR_END:
        if (peek(scanner) == ']') {
            *expected = close_level(scanner);
            return 0;
        }
        return scan_value(scanner, expected);
    case EXPECT_VALUE:
        return scan_value(scanner, expected);
    case EXPECT_KEY_OR_END:
        if (peek(scanner) == '}') {
            *expected = close_level(scanner);
            return 0;
        }
        /* fall through */
    case EXPECT_KEY:
        code = scan_key(scanner);
        *expected = EXPECT_VALUE;
        return code;
    case EXPECT_COMMA_OR_END:
        return scan_comma_or_end(scanner, expected);
    case EXPECT_NOTHING:
        break;
    }
    return 0;
}

int json_scan(const char *text, size_t len, size_t offset, size_t *ret_end,
              struct err *err)
{
    struct scanner scanner = {.text = text, .len = len, .at = offset, .err = err};
    enum expected expected = EXPECT_VALUE;

    for (;;) {
        int code = scan_next(&scanner, &expected);
        if (code < 0)
            return code;
        if (expected == EXPECT_NOTHING)
            break;
        scanner.at = json_skip_space(text, len, scanner.at);
    }
    *ret_end = scanner.at;
    return 0;
}

int json_check(const char *text, size_t len, size_t *ret_begin, size_t *ret_end,
               struct err *err)
{
    size_t begin = json_skip_space(text, len, 0);
    size_t end;

    int code = json_scan(text, len, begin, &end, err);
    if (code < 0)
        return code;
    size_t rest = json_skip_space(text, len, end);
    if (rest != len)
        return err_set(err, -EINVAL, "byte %zu: more text behind the JSON value", rest);

    if (ret_begin != NULL)
        *ret_begin = begin;
    if (ret_end != NULL)
        *ret_end = end;
    return 0;
}
