/*
 * json.h - where a JSON value begins and ends (RFC 8259), and whether it is one.
 *
 * What people publish goes through as it came: numbers of any size, key order, duplicate
 * keys, white space. So the gateway needs to know where a value ends in the text, not
 * what it means; libraries that build values (jansson among them) round or refuse large
 * numbers and give no positions. This scanner builds nothing and allocates nothing.
 *
 * Stricter than RFC 8259 in two points: an escape \u0000 is refused, because no text in
 * PostgreSQL can hold what it means; and so is nesting deeper than JSON_MAX_DEPTH.
 *
 * Threads: any; pure functions. Cost: O(length), constant memory.
 */
#ifndef JSON_H
#define JSON_H

#include "base.h"
#include "err.h"

#define JSON_MAX_DEPTH 512

/* The offset of the first byte at or after `offset` that is not JSON white space. */
size_t json_skip_space(const char *text, size_t len, size_t offset);

/* Scans the one value that begins at `offset` (no white space before it); *ret_end is the
 * offset behind it. -EINVAL: not a value; the text says what and at which byte, counted
 * from 0: "byte 17: expected ',' or '}'". Does not check UTF-8: event_text_is_utf8(). */
int json_scan(const char *text, size_t len, size_t offset, size_t *ret_end,
              struct err *err) MUST_CHECK;

/* The whole text is one value with nothing but white space around it; it stands in
 * [*ret_begin, *ret_end). Either output may be NULL. */
int json_check(const char *text, size_t len, size_t *ret_begin, size_t *ret_end,
               struct err *err) MUST_CHECK;

#endif
