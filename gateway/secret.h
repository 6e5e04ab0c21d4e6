/*
 * secret.h - passwords: a connection string without them, fit to be shown; a file with
 * one.
 *
 *     host=db password='a b' user=x         host=db password=*** user=x
 *     postgresql://me:secret@db/app         postgresql://me:***@db/app
 *     postgresql://db/app?password=secret   postgresql://db/app?password=***
 *
 * Rather too much is hidden than too little: what cannot be understood is hidden whole.
 *
 * Threads: any; no state.
 */
#ifndef SECRET_H
#define SECRET_H

#include "base.h"
#include "buf.h"
#include "err.h"

/* Adds the dsn without its passwords; buf_ok() tells whether there was memory for it. */
void secret_mask_dsn(const char *dsn, struct buf *ret_text);

/* The password in a file: its text without the line breaks at its end (white space may
 * belong to a password), on the heap; the caller gives it to secret_free(). -ENOENT and
 * other errnos, -EINVAL for an empty file, a NUL byte or more than 4 KiB, -ENOMEM. */
int secret_read(const char *path, char **ret_secret, struct err *err) MUST_CHECK;
void secret_free(char *secret); /* wipes it first; takes NULL */

#endif
