/*
 * units.h - durations and sizes as people write them.
 *
 *     15s  200ms  2min  1h  30d        microseconds; 0 needs no unit
 *     64KiB  4MiB  1GiB  512           bytes; a number alone is bytes
 *
 * White space may stand between number and unit. No fractions, no signs, no sums: one way
 * to write each, so that a slip is an error and not another value.
 *
 * Threads: any; pure functions.
 */
#ifndef UNITS_H
#define UNITS_H

#include "base.h"

/* -EINVAL: not one of the above. -ERANGE: more than 64 bits hold. */
int units_parse_count(const char *text, uint64_t *ret_count) MUST_CHECK;
int units_parse_usec(const char *text, uint64_t *ret_usec) MUST_CHECK;
int units_parse_bytes(const char *text, uint64_t *ret_bytes) MUST_CHECK;

/* The shortest exact way to write it that the functions above read back. */
#define UNITS_TEXT_MAX 32
void units_format_usec(uint64_t usec, char ret_text[UNITS_TEXT_MAX]);
void units_format_bytes(uint64_t bytes, char ret_text[UNITS_TEXT_MAX]);

#endif
