/*
 * base.h - compiler words and small macros; every other room includes this one.
 *
 * Nothing here has state, and nothing here may include another room.
 */
#ifndef BASE_H
#define BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#define MUST_CHECK __attribute__((warn_unused_result))
#define PRINTF_LIKE(format_index, first_argument)                                        \
    __attribute__((format(printf, format_index, first_argument)))

/* CLEANUP(clear_result) PGresult *result = ...: clear_result(&result) runs when the
 * variable goes out of scope. For what one function borrows; never in a function with a
 * goto. */
#define CLEANUP(function) __attribute__((cleanup(function)))

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

/* The struct of which `pointer` is the member `member`. */
#define CONTAINER_OF(pointer, type, member)                                              \
    ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

#define USEC_PER_MSEC ((uint64_t)1000)
#define USEC_PER_SEC  ((uint64_t)1000000)

#define KIB ((size_t)1024)
#define MIB ((size_t)1024 * 1024)

#endif
