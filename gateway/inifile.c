/*
 * inifile.c - a file in ini form, line by line.
 *
 * inih is handed the lines by a reader of our own, and finds sections, keys and comments.
 * It gets them without their indentation, so that it never takes one for the continuation
 * of the one before; and the value is taken from the whole line here, because inih cuts
 * lines at 200 bytes and values at " ;", which a connection string may well hold.
 */
#include "inifile.h"

#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

#define WHITE         " \t\r\n\f\v"
#define UTF8_MARK     "\xef\xbb\xbf"
#define SECTION_BYTES 64

struct reading {
    const char *path;
    FILE *file;
    char *line; /* the current one, owned; grown by getline() */
    size_t capacity;
    unsigned number; /* of that line */
    inifile_take *take;
    void *argument;
    struct err *err;
    int code; /* the first failure; nothing is read any more behind it */
};

static char *trim(char *text)
{
    size_t len = strlen(text);

    while (len > 0 && strchr(WHITE, text[len - 1]) != NULL)
        text[--len] = '\0';
    return text + strspn(text, WHITE);
}

static int fail(struct reading *reading, const char *what)
{
    return err_set(reading->err, -EINVAL, "%s:%u: %s", reading->path, reading->number,
                   what);
}

static int fail_to_read(struct reading *reading)
{
    int code = errno == 0 ? EIO : errno;

    return err_set(reading->err, -code, "could not read %s: %s", reading->path,
                   strerror(code));
}

/* Told here, because inih tells of a section only with its first key. */
static int begin_section(struct reading *reading, const char *start)
{
    char section[SECTION_BYTES];
    const char *end = strchr(start, ']');

    if (end == NULL)
        return fail(reading, "a section without its ']'");
    snprintf(section, sizeof(section), "%.*s", (int)MIN(end - start - 1, SECTION_BYTES),
             start + 1);
    return reading->take(reading->argument,
                         &(struct inifile_line){.path = reading->path,
                                                .number = reading->number,
                                                .section = section},
                         reading->err);
}

/* Called by inih for a line, as fgets() would be; NULL ends the file. */
static char *read_line(char *text, int size, void *stream)
{
    struct reading *reading = stream;

    if (reading->code < 0)
        return NULL;
    errno = 0;
    ssize_t len = getline(&reading->line, &reading->capacity, reading->file);
    if (len < 0) {
        if (!feof(reading->file))
            reading->code = fail_to_read(reading);
        return NULL;
    }

    reading->number++;
    char *start = reading->line;
    if (memchr(start, '\0', (size_t)len) != NULL)
        reading->code = fail(reading, "holds a NUL byte");
    if (reading->number == 1 && strncmp(start, UTF8_MARK, strlen(UTF8_MARK)) == 0)
        start += strlen(UTF8_MARK);
    start = trim(start);
    if (reading->code == 0 && *start == '[')
        reading->code = begin_section(reading, start);
    if (reading->code < 0)
        return NULL;
    /* Cut short of inih's length, which is enough for the key; newer ones refuse a line that
     * fills it. */
    snprintf(text, (size_t)size - 1, "%s", start);
    return text;
}

/* Called by inih for a line "key = value"; 0 is its word for failure. */
static int take_value(void *argument, const char *section, const char *key,
                      const char *cut_value)
{
    struct reading *reading = argument;

    (void)cut_value;
    if (*section == '\0') {
        reading->code = fail(reading, "stands before the first [section]");
        return 0;
    }
    /* inih found one of the two, or it would not have called. */
    char *value = reading->line + strcspn(reading->line, "=:");
    value = trim(value + (*value != '\0'));
    reading->code = reading->take(reading->argument,
                                  &(struct inifile_line){.path = reading->path,
                                                         .number = reading->number,
                                                         .section = section,
                                                         .key = key,
                                                         .value = value},
                                  reading->err);
    return reading->code == 0;
}

int inifile_read(const char *path, inifile_take *take, void *argument, struct err *err)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return err_set(err, -errno, "could not open %s: %s", path, strerror(errno));

    struct reading reading = {
        .path = path, .file = file, .take = take, .argument = argument, .err = err};
    int line = ini_parse_stream(read_line, &reading, take_value, &reading);
    if (reading.code == 0 && line > 0) {
        reading.number = (unsigned)line; /* inih reads on behind what it did not like */
        reading.code = fail(&reading, "neither [section] nor key = value nor # comment");
    }
    if (reading.code == 0 && line < 0)
        reading.code = err_set(err, -ENOMEM, "no memory to read %s", path);
    free(reading.line);
    fclose(file);
    return reading.code;
}
