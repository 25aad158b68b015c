/* SPDX-License-Identifier: MIT
 * Floats as bits. Moves only: nothing here is a floating-point operation. */
#ifndef CMOE_CORE_FLOAT_BITS_H
#define CMOE_CORE_FLOAT_BITS_H

#include "core/attr.h"
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define CMOE_F32_INF UINT32_C(0x7f800000)
#define CMOE_F32_NAN UINT32_C(0x7fc00000)

CMOE_INLINE uint32_t cmoe__f32_bits(float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

CMOE_INLINE float cmoe__f32_from_bits(uint32_t bits)
{
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

CMOE_INLINE uint64_t cmoe__f64_bits(double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

CMOE_INLINE double cmoe__f64_from_bits(uint64_t bits)
{
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* |v| as bits: ordered like the magnitudes, with NaN above infinity. */
CMOE_INLINE uint32_t cmoe__f32_magnitude(float v)
{
    return cmoe__f32_bits(v) & UINT32_C(0x7fffffff);
}

CMOE_INLINE bool cmoe__f32_isnan(float v)
{
    return cmoe__f32_magnitude(v) > CMOE_F32_INF;
}

CMOE_INLINE bool cmoe__f32_isfinite(float v)
{
    return cmoe__f32_magnitude(v) < CMOE_F32_INF;
}

/* Exact; see cmoe__f32_to_f64. The machine's conversion is left out where it may flush a denormal
 * or replace a NaN. */
CMOE_INLINE double cmoe__f32_widen(float v)
{
    const uint32_t bits = cmoe__f32_bits(v);
    const uint32_t magnitude = bits & UINT32_C(0x7fffffff);
    const uint64_t sign = (uint64_t)(bits >> 31) << 63;
    if (magnitude - UINT32_C(0x00800000) <= CMOE_F32_INF - UINT32_C(0x00800000)) return (double)v;
    if (magnitude == 0) return cmoe__f64_from_bits(sign);
    if (magnitude > CMOE_F32_INF)
        return cmoe__f64_from_bits(sign | (uint64_t)0x7ff << 52 | (uint64_t)magnitude << 29);
    const int top = 31 - __builtin_clz(magnitude); /* magnitude * 2^-149 */
    return cmoe__f64_from_bits(sign | (uint64_t)(1023 - 149 + top) << 52 |
                               (uint64_t)(magnitude ^ UINT32_C(1) << top) << (52 - top));
}

#endif
