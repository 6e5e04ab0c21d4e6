/*
 * fuzz_json.c - the JSON scanner reads what strangers send: it must stay within the text,
 * and agree with jansson wherever the two speak the same language.
 */
#include <jansson.h>
#include <string.h>

#include "json.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* Where jansson refuses and we do not, on purpose: lone surrogates, numbers it cannot hold.
 * Where we refuse and it does not: depth, and a NUL byte, which it takes for the end. */
static bool jansson_takes(const char *text, size_t len)
{
    json_t *value = json_loadb(text, len, JSON_DECODE_ANY, NULL);
    bool taken = value != NULL;

    json_decref(value);
    return taken;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    size_t begin, end, again;
    struct err err;

    /* A copy of exactly that size: the sanitizer sees a look behind the end. */
    char *text = malloc(len + (len == 0));
    if (text == NULL)
        return 0;
    memcpy(text, data, len);

    int code = json_check(text, len, &begin, &end, &err);
    if (code == 0) {
        if (begin >= end || end > len || json_skip_space(text, len, end) != len)
            abort();
        /* What was found is a value by itself, and scanning it again finds the same. */
        if (json_scan(text + begin, end - begin, 0, &again, &err) < 0 ||
            again != end - begin)
            abort();
    } else if (strncmp(err.text, "byte ", 5) != 0) {
        abort();
    }
    bool holds_nul = memchr(text, '\0', len) != NULL;
    bool deep = code < 0 && strstr(err.text, "nested too deeply") != NULL;
    if (code < 0 && !holds_nul && !deep && jansson_takes(text, len))
        abort();
    free(text);
    return 0;
}
