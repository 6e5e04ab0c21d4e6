/*
 * cmocka_all.h - cmocka with the headers it wants before its own.
 */
#ifndef CMOCKA_ALL_H
#define CMOCKA_ALL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

/* Its name since cmocka 2, which warns of the old one. */
#ifndef assert_uint_in_range
#define assert_uint_in_range assert_in_range
#endif

#endif
