/*
 * page.h - static/: the files of the page, read once and served from memory.
 *
 * Always true: only files that lay in the folder at the start are ever served; a request's
 * path is looked up among them, and never becomes a file name.
 *
 * Threads: made on main; looked up from any. Cost: the files' bytes.
 */
#ifndef PAGE_H
#define PAGE_H

#include "base.h"
#include "err.h"

struct page;

struct page_file {
    char *path; /* as in the URL: "/style.css"; "/" for index.html */
    const char *content_type;
    char *content;
    size_t len;
    char etag[24]; /* with its quotes */
};

/* A folder that is not there is an error; one without index.html too. NULL: err says why. */
struct page *page_new(const char *dir, struct err *err) MUST_CHECK;
void page_free(struct page *page);

/* NULL: there is no such file. */
const struct page_file *page_find(const struct page *page, const char *path);

#endif
