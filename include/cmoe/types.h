/* SPDX-License-Identifier: MIT
 * Enumerations of the vocabulary in types.def, their names, and element sizes. */
#ifndef CMOE_TYPES_H
#define CMOE_TYPES_H

#include <cmoe/export.h>
#include <stddef.h>
#include <stdint.h>

CMOE_BEGIN_DECLS

/* clang-format off */
typedef enum cmoe_dtype {
#define DTYPE(name, text, bits) CMOE_##name,
#include <cmoe/types.def>
#undef DTYPE
    CMOE_DTYPE_COUNT,
} cmoe_dtype;

typedef enum cmoe_scaling {
#define SCALING(name, text) CMOE_SCALE_##name,
#include <cmoe/types.def>
#undef SCALING
    CMOE_SCALING_COUNT,
} cmoe_scaling;

typedef enum cmoe_router {
#define ROUTER(name, text) CMOE_ROUTE_##name,
#include <cmoe/types.def>
#undef ROUTER
    CMOE_ROUTER_COUNT,
} cmoe_router;

typedef enum cmoe_activation {
#define ACTIVATION(name, text) CMOE_ACT_##name,
#include <cmoe/types.def>
#undef ACTIVATION
    CMOE_ACTIVATION_COUNT,
} cmoe_activation;

typedef enum cmoe_gate {
#define GATE(name, text) CMOE_GATE_##name,
#include <cmoe/types.def>
#undef GATE
    CMOE_GATE_COUNT,
} cmoe_gate;

typedef enum cmoe_weight_on {
#define WEIGHT_ON(name, text) CMOE_WEIGHT_ON_##name,
#include <cmoe/types.def>
#undef WEIGHT_ON
    CMOE_WEIGHT_ON_COUNT,
} cmoe_weight_on;

typedef enum cmoe_rounding {
#define ROUNDING(name, text) CMOE_ROUND_##name,
#include <cmoe/types.def>
#undef ROUNDING
    CMOE_ROUNDING_COUNT,
} cmoe_rounding;

typedef enum cmoe_mx_rounding {
#define MX_ROUNDING(name, text) CMOE_MX_##name,
#include <cmoe/types.def>
#undef MX_ROUNDING
    CMOE_MX_ROUNDING_COUNT,
} cmoe_mx_rounding;

typedef enum cmoe_stage {
#define STAGE(name, text) CMOE_STAGE_##name,
#include <cmoe/types.def>
#undef STAGE
    CMOE_STAGE_COUNT,
} cmoe_stage;

typedef enum cmoe_sort_format {
#define SORT_FORMAT(name, text) CMOE_SORT_##name,
#include <cmoe/types.def>
#undef SORT_FORMAT
    CMOE_SORT_FORMAT_COUNT,
} cmoe_sort_format;

enum cmoe_flag {
#define FLAG(name, text, bit) CMOE_##name = 1 << (bit),
#include <cmoe/types.def>
#undef FLAG
};
/* clang-format on */

/** Names as they stand in problem strings; "?" for values outside the enumeration. */
CMOE_API const char *cmoe_dtype_name(cmoe_dtype dtype);
CMOE_API const char *cmoe_stage_name(cmoe_stage stage);

/** Bits of one element: 32, 16, 8 or 4; 0 for CMOE_NONE and values outside the enumeration. */
CMOE_API int cmoe_dtype_bits(cmoe_dtype dtype);

/** Bytes that `n` consecutive elements take, 4-bit types packed two a byte (rounded up).
 *  SIZE_MAX when it does not fit. n < 0 counts as 0. */
CMOE_API size_t cmoe_dtype_bytes(cmoe_dtype dtype, int64_t n);

/** The value `name` has in problem strings as a dtype, or CMOE_DTYPE_COUNT. */
CMOE_API cmoe_dtype cmoe_dtype_parse(const char *name);

CMOE_END_DECLS

#endif
