/* SPDX-License-Identifier: MIT
 * Checked size arithmetic. */
#ifndef CMOE_CORE_SIZE_H
#define CMOE_CORE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* *out = a * b; false on overflow. */
static inline bool cmoe__mul_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool cmoe__add_size(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

static inline int64_t cmoe__ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline int64_t cmoe__round_up(int64_t a, int64_t b)
{
    return cmoe__ceil_div(a, b) * b;
}

static inline int64_t cmoe__min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t cmoe__max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

#endif
