/* SPDX-License-Identifier: MIT
 * Names and sizes of element types and stages, straight from types.def. */
#include <cmoe/types.h>

#include <string.h>

static const struct {
    const char *name;
    int bits;
} dtypes[] = {
#define DTYPE(name, text, bits) {text, bits},
#include <cmoe/types.def>
#undef DTYPE
};

static const char *const stages[] = {
#define STAGE(name, text) text,
#include <cmoe/types.def>
#undef STAGE
};

const char *cmoe_dtype_name(cmoe_dtype dtype)
{
    return (unsigned)dtype < CMOE_DTYPE_COUNT ? dtypes[dtype].name : "?";
}

const char *cmoe_stage_name(cmoe_stage stage)
{
    return (unsigned)stage < CMOE_STAGE_COUNT ? stages[stage] : "?";
}

int cmoe_dtype_bits(cmoe_dtype dtype)
{
    return (unsigned)dtype < CMOE_DTYPE_COUNT ? dtypes[dtype].bits : 0;
}

size_t cmoe_dtype_bytes(cmoe_dtype dtype, int64_t n)
{
    const unsigned bits = (unsigned)cmoe_dtype_bits(dtype);
    if (n <= 0 || bits == 0) return 0;
    /* Whole groups of eight elements first: their bits are a whole number of bytes. */
    const uint64_t groups = (uint64_t)n / 8;
    const uint64_t rest = (uint64_t)n % 8;
    size_t bytes;
    if (__builtin_mul_overflow(groups, bits, &bytes)) return SIZE_MAX;
    if (__builtin_add_overflow(bytes, (rest * bits + 7) / 8, &bytes)) return SIZE_MAX;
    return bytes;
}

cmoe_dtype cmoe_dtype_parse(const char *name)
{
    for (int i = 0; name && i < CMOE_DTYPE_COUNT; i++) {
        if (strcmp(name, dtypes[i].name) == 0) return (cmoe_dtype)i;
    }
    return CMOE_DTYPE_COUNT;
}
