/* SPDX-License-Identifier: MIT
 * Failing in libcmoe-io: the core's macros over its public function, and safe quoting of names. */
#ifndef CMOE_IO_FAIL_H
#define CMOE_IO_FAIL_H

#include <cmoe/status.h>
#include <stddef.h>

#define CMOE_FAIL(status, ...) cmoe_set_error((status), __VA_ARGS__)

#define CMOE_TRY(expr)                                                                             \
    do {                                                                                           \
        const cmoe_status status_ = (expr);                                                        \
        if (status_ != CMOE_OK) return status_;                                                    \
    } while (0)

/* A name from a file, made fit for a message: cut to what fits with "..." and without control
 * characters, so that a hostile file cannot write escape sequences to a terminal. */
struct cmoe_quoted {
    char text[100];
};
struct cmoe_quoted cmoe__quote(const char *name);
struct cmoe_quoted cmoe__quote_bytes(const char *bytes, size_t n);

/* "no memory for ..." */
cmoe_status cmoe__fail_memory(size_t size, const char *what);

/* CMOE_ERR_INVALID when an argument of a public function is NULL. */
cmoe_status cmoe__check_argument(const void *pointer, const char *function, const char *name);

/* CMOE_ERR_CORRUPT when a Git LFS pointer stands in place of the file `what`. */
cmoe_status cmoe__check_not_pointer(const void *image, size_t size, const char *what);

#endif
