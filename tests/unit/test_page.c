/* test_page.c - static/: the files of the page, read once and served from memory. */
#include "page.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "failing_malloc.h"

/* What page.c allocates by this goes by failing_malloc.c, too. */
void *reallocarray(void *old, size_t count, size_t size)
{
    return realloc(old, count * size);
}

static const char *const names[] = {"index.html", "style.css", "app.js",    "a.b.svg",
                                    "notes.txt",  ".html",     ".x.html",   "noending",
                                    "data.json",  "empty.png", "style.css~"};

static void path_of(char path[300], const char *dir, const char *name)
{
    (void)snprintf(path, 300, "%s/%s", dir, name);
}

static void write_file(const char *dir, const char *name, const char *content)
{
    char path[300];

    path_of(path, dir, name);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_true(fputs(content, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void remove_file(const char *dir, const char *name)
{
    char path[300];

    path_of(path, dir, name);
    if (unlink(path) < 0)
        (void)rmdir(path);
}

static int make_folder(void **state)
{
    static char dir[40];

    (void)snprintf(dir, sizeof(dir), "/tmp/pgsse-page-XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        write_file(dir, names[i], strcmp(names[i], "empty.png") == 0 ? "" : names[i]);
    *state = dir;
    return 0;
}

static int remove_folder(void **state)
{
    const char *dir = *state;

    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        remove_file(dir, names[i]);
    remove_file(dir, "more.html");
    return rmdir(dir);
}

static void expect_file(const struct page *page, const char *path, const char *type,
                        const char *content)
{
    const struct page_file *file = page_find(page, path);

    if (file == NULL)
        fail_msg("%s is not there", path);
    assert_string_equal(file->path, path);
    assert_string_equal(file->content_type, type);
    assert_int_equal(file->len, strlen(content));
    assert_memory_equal(file->content, content, strlen(content));
    assert_int_equal(strlen(file->etag), 18);
    assert_true(file->etag[0] == '"' && file->etag[17] == '"');
}

static void the_page_and_its_parts_are_served(void **state)
{
    struct err err = {0};
    struct page *page = page_new(*state, &err);

    assert_non_null(page);
    expect_file(page, "/", "text/html; charset=utf-8", "index.html");
    expect_file(page, "/style.css", "text/css; charset=utf-8", "style.css");
    expect_file(page, "/app.js", "text/javascript; charset=utf-8", "app.js");
    expect_file(page, "/a.b.svg", "image/svg+xml", "a.b.svg");
    expect_file(page, "/data.json", "application/json", "data.json");
    expect_file(page, "/empty.png", "image/png", "");
    assert_string_not_equal(page_find(page, "/")->etag,
                            page_find(page, "/style.css")->etag);
    page_free(page);
    page_free(NULL);
}

static void nothing_else_is_served(void **state)
{
    static const char *const paths[] = {
        "",           "/index.html", "style.css", "/Style.css", "//style.css",
        "/notes.txt", "/.html",      "/.x.html",  "/noending",  "/style.css~",
        "/../page",   "/./app.js",   "/app.js/",  "/app.js?x",  "/etc/passwd"};
    struct page *page = page_new(*state, NULL);

    assert_non_null(page);
    for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
        assert_null(page_find(page, paths[i]));
    page_free(page);
}

static void what_is_read_once_stays(void **state)
{
    struct page *page = page_new(*state, NULL);

    assert_non_null(page);
    write_file(*state, "index.html", "changed");
    write_file(*state, "more.html", "new");
    expect_file(page, "/", "text/html; charset=utf-8", "index.html");
    assert_null(page_find(page, "/more.html"));
    page_free(page);
    page = page_new(*state, NULL);
    expect_file(page, "/", "text/html; charset=utf-8", "changed");
    expect_file(page, "/more.html", "text/html; charset=utf-8", "new");
    page_free(page);
}

static void expect_failure(const char *dir, const char *says)
{
    struct err err = {0};

    assert_null(page_new(dir, &err));
    if (strstr(err.text, says) == NULL)
        fail_msg("said: %s", err.text);
}

static void what_is_no_page_is_told(void **state)
{
    const char *dir = *state;
    char path[300];

    expect_failure("/nonexistent/folder", "/nonexistent/folder");
    remove_file(dir, "index.html");
    expect_failure(dir, "no index.html");
    path_of(path, dir, "index.html");
    assert_int_equal(mkdir(path, 0700), 0);
    expect_failure(dir, "not a file");
    remove_file(dir, "index.html");
    write_file(dir, "index.html", "index.html");
    write_file(dir, "more.html", "");
    path_of(path, dir, "more.html");
    assert_int_equal(truncate(path, 5000000), 0);
    expect_failure(dir, "more.html");
}

static void without_memory_there_is_no_page(void **state)
{
    bool failed = true;

    for (unsigned n = 1; failed; n++) {
        struct err err = {0};

        failing_malloc_begin(n);
        struct page *page = page_new(*state, &err);
        failed = failing_malloc_end();
        assert_int_equal(page == NULL, failed);
        assert_int_equal(err.text[0] != '\0', failed);
        page_free(page);
    }
}

int main(void)
{
#define IN_A_FOLDER(test)                                                                \
    cmocka_unit_test_setup_teardown(test, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        IN_A_FOLDER(the_page_and_its_parts_are_served),
        IN_A_FOLDER(nothing_else_is_served),
        IN_A_FOLDER(what_is_read_once_stays),
        IN_A_FOLDER(what_is_no_page_is_told),
        IN_A_FOLDER(without_memory_there_is_no_page),
    };
    return cmocka_run_group_tests_name("page", tests, NULL, NULL);
}
