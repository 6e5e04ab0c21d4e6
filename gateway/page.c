#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "page.h"
#include "sse.h"

/* The page is small; this is for the folder that was named by mistake. */
#define FILE_MAX_BYTES ((long)(4 * MIB))

struct page {
    struct page_file *files;
    size_t count;
};

static const struct {
    const char *ending;
    const char *content_type;
} types[] = {
    {".html", "text/html; charset=utf-8"},
    {".css", "text/css; charset=utf-8"},
    {".js", "text/javascript; charset=utf-8"},
    {".json", "application/json"},
    {".svg", "image/svg+xml"},
    {".png", "image/png"},
    {".ico", "image/x-icon"},
};

/* NULL for files that are none of the page's. */
static const char *type_of(const char *name)
{
    const char *ending = strrchr(name, '.');

    for (size_t i = 0; ending != NULL && name[0] != '.' && i < ARRAY_SIZE(types); i++) {
        if (strcmp(ending, types[i].ending) == 0)
            return types[i].content_type;
    }
    return NULL;
}

static void close_file(FILE **file)
{
    if (*file != NULL)
        (void)fclose(*file);
}

static void close_dir(DIR **dir)
{
    if (*dir != NULL)
        (void)closedir(*dir);
}

static int read_content(struct page_file *page_file, const char *dir, const char *name,
                        struct err *err)
{
    char path[PATH_MAX];
    struct stat status;

    if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, name) >= sizeof(path))
        return err_set(err, -ENAMETOOLONG, "the path of %s is too long", name);

    CLEANUP(close_file) FILE *file = fopen(path, "rbe");
    if (file == NULL || fstat(fileno(file), &status) < 0)
        return err_set(err, -errno, "could not read %s: %s", path, strerror(errno));
    if (!S_ISREG(status.st_mode) || status.st_size > FILE_MAX_BYTES)
        return err_set(err, -EFBIG, "%s is not a file of a page", path);

    page_file->content = malloc((size_t)status.st_size + 1);
    if (page_file->content == NULL)
        return err_set(err, -ENOMEM, "no memory for %s", path);
    page_file->len = fread(page_file->content, 1, (size_t)status.st_size, file);
    if (ferror(file))
        return err_set(err, -EIO, "could not read %s", path);
    return 0;
}

static int add_file(struct page *page, const char *dir, const char *name, struct err *err)
{
    struct page_file *files =
        reallocarray(page->files, page->count + 1, sizeof(*page->files));

    if (files == NULL)
        return err_set(err, -ENOMEM, "no memory for the page");
    page->files = files;

    struct page_file *file = &files[page->count];
    *file = (struct page_file){.content_type = type_of(name)};
    page->count++;
    if (strcmp(name, "index.html") == 0)
        file->path = strdup("/");
    else if (asprintf(&file->path, "/%s", name) < 0)
        file->path = NULL;
    if (file->path == NULL)
        return err_set(err, -ENOMEM, "no memory for the page");

    const int result = read_content(file, dir, name, err);
    if (result < 0)
        return result;
    (void)snprintf(file->etag, sizeof(file->etag), "\"%016" PRIx64 "\"",
                   sse_hash(file->content, file->len));
    return 0;
}

static int read_folder(struct page *page, const char *dir, struct err *err)
{
    CLEANUP(close_dir) DIR *folder = opendir(dir);

    if (folder == NULL)
        return err_set(err, -errno,
                       "could not read the page's folder %s: %s; set [http] "
                       "static_dir",
                       dir, strerror(errno));
    for (const struct dirent *entry; (entry = readdir(folder)) != NULL;) {
        if (type_of(entry->d_name) == NULL)
            continue;
        const int result = add_file(page, dir, entry->d_name, err);
        if (result < 0)
            return result;
    }
    if (page_find(page, "/") == NULL)
        return err_set(err, -ENOENT,
                       "there is no index.html in %s; set [http] static_dir", dir);
    return 0;
}

struct page *page_new(const char *dir, struct err *err)
{
    struct page *page = calloc(1, sizeof(*page));

    if (page == NULL) {
        (void)err_set(err, -ENOMEM, "no memory for the page");
        return NULL;
    }
    if (read_folder(page, dir, err) < 0) {
        page_free(page);
        return NULL;
    }
    return page;
}

void page_free(struct page *page)
{
    if (page == NULL)
        return;
    for (size_t i = 0; i < page->count; i++) {
        free(page->files[i].path);
        free(page->files[i].content);
    }
    free(page->files);
    free(page);
}

const struct page_file *page_find(const struct page *page, const char *path)
{
    for (size_t i = 0; i < page->count; i++) {
        if (strcmp(page->files[i].path, path) == 0)
            return &page->files[i];
    }
    return NULL;
}
