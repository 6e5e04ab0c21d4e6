/*
 * form.c - what the body of a POST is, by what it comes with.
 */
#include "form.h"

#include <errno.h>
#include <string.h>
#include <strings.h>

/* Of every form that CloudEvents have of their own. */
static const char cloudevents_type[] = "application/cloudevents";

/* The text begins with the word (letters in any case), and nothing of the word goes on. */
static bool is_media_type(const char *text, const char *word)
{
    const size_t len = strlen(word);

    return strncasecmp(text, word, len) == 0 && strchr("; \t", text[len]) != NULL;
}

/* application/vnd.github+json and the like: somebody's webhook. CloudEvents have a meaning
 * of their own. */
static bool is_vendor_json(const char *text)
{
    static const char application[] = "application/";
    const size_t len = strcspn(text, "; \t");

    return strncasecmp(text, application, sizeof(application) - 1) == 0 && len > 5 &&
           strncasecmp(text + len - 5, "+json", 5) == 0 &&
           strncasecmp(text + sizeof(application) - 1, "cloudevents", 11) != 0;
}

/* A charset parameter must be one that UTF-8 text is. */
static bool charset_is_utf8(const char *text)
{
    static const char *const fine[] = {"utf-8", "utf8", "us-ascii"};
    const char *parameters = strpbrk(text, "; \t"); /* most often there are none */
    const char *charset = parameters != NULL ? strcasestr(parameters, "charset=") : NULL;

    if (charset == NULL)
        return true;
    charset += strlen("charset=");
    charset += *charset == '"';
    for (size_t i = 0; i < ARRAY_SIZE(fine); i++) {
        const size_t len = strlen(fine[i]);

        if (strncasecmp(charset, fine[i], len) == 0 &&
            strchr("\"; \t", charset[len]) != NULL)
            return true;
    }
    return false;
}

static int refuse_type(const char *type, struct problem *problem)
{
    if (strncasecmp(type, cloudevents_type, strlen(cloudevents_type)) == 0)
        return problem_set(problem, 415,
                           "\"%s\" is not taken; CloudEvents are application/"
                           "cloudevents+json or application/cloudevents-batch+json",
                           type);
    return problem_set(problem, 415,
                       "\"%s\" is not taken; send application/json, "
                       "application/x-ndjson, or text/plain with ?channel=%s",
                       type,
                       is_media_type(type, "application/x-www-form-urlencoded")
                           ? " (curl -d needs -H 'Content-Type: application/json')"
                           : "");
}

/* CloudEvents, if it is one of their forms: those that their media types name, and headers
 * beside any other but a form, which somebody's curl -d sends without being asked. */
static bool find_cloudevents(const struct form *form, enum form_kind *ret_form)
{
    const char *type = form->content_type != NULL ? form->content_type : "";

    if (is_media_type(type, "application/cloudevents+json"))
        *ret_form = FORM_EVENT;
    else if (is_media_type(type, "application/cloudevents-batch+json"))
        *ret_form = FORM_BATCH;
    else if (cloudevents_in_headers(form->headers, form->header_count) &&
             strncasecmp(type, cloudevents_type, strlen(cloudevents_type)) != 0 &&
             !is_media_type(type, "application/x-www-form-urlencoded"))
        *ret_form = FORM_BINARY;
    else
        return false;
    return true;
}

int form_find(const struct form *form, enum form_kind *ret_form, struct problem *problem)
{
    const char *type = form->content_type;
    const bool cloudevents = find_cloudevents(form, ret_form);

    if (cloudevents && *ret_form == FORM_BINARY &&
        cloudevents_content(type) == CLOUDEVENTS_BYTES)
        return 0;
    if (type == NULL || *type == '\0')
        return problem_set(problem, 415,
                           "there is no Content-Type; for an event send "
                           "\"Content-Type: application/json\"");
    if (!charset_is_utf8(type))
        return problem_set(problem, 415, "the charset of \"%s\" is not UTF-8", type);

    if (cloudevents)
        return 0;
    if (is_media_type(type, "application/json"))
        *ret_form = FORM_JSON;
    else if (is_media_type(type, "application/x-ndjson"))
        *ret_form = FORM_NDJSON;
    else if (is_media_type(type, "text/plain") && form->channel != NULL)
        *ret_form = FORM_TEXT;
    else if (is_vendor_json(type) && form->channel != NULL)
        *ret_form = FORM_JSON;
    else if (is_media_type(type, "text/plain") || is_vendor_json(type))
        return problem_set(problem, 415,
                           "\"%s\" needs ?channel= in the query; without it send "
                           "application/json or application/x-ndjson",
                           type);
    else
        return refuse_type(type, problem);
    return 0;
}

/* A word of visible ASCII, short enough. */
static bool is_key(const char *key, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (key[i] <= ' ' || key[i] > '~')
            return false;
    return len >= 1 && len <= FORM_KEY_MAX_BYTES;
}

int form_check(const struct form *form, struct problem *ret_problem)
{
    enum form_kind kind;
    struct err err;
    const int result = form_find(form, &kind, ret_problem);

    if (result < 0)
        return result;
    if (form->idempotency_key != NULL &&
        !is_key(form->idempotency_key, form->idempotency_key_len))
        return problem_set(ret_problem, 400,
                           "an Idempotency-Key is 1 to %d visible ASCII characters "
                           "without a space",
                           FORM_KEY_MAX_BYTES);
    if (form->client != NULL &&
        event_check_name("X-Client-ID", form->client, form->client_len, &err) < 0)
        return problem_set(ret_problem, 400, "%s", err.text);
    if (form->type != NULL && kind >= FORM_EVENT)
        return problem_set(ret_problem, 400,
                           "?type= is not for a CloudEvent, which has a type of its own");
    if (form->type != NULL && form->channel == NULL)
        return problem_set(ret_problem, 400, "?type= needs ?channel= beside it");
    if (form->channel != NULL &&
        event_check_channel(form->channel, form->channel_len, &err) < 0)
        return problem_set(ret_problem, 400, "%s", err.text);
    if (form->type != NULL && event_check_type(form->type, form->type_len, &err) < 0)
        return problem_set(ret_problem, 400, "%s", err.text);
    return 0;
}
