/* SPDX-License-Identifier: MIT
 * Scales from a largest magnitude: docs/numerics.md section 2. A magnitude is judged by its bits,
 * so that the power-of-two rules are decided exactly. */
#include "core/float_bits.h"
#include "core/numeric.h"
#include <cmoe/observe.h>

#define F32_MIN_NORMAL UINT32_C(0x00800000)

float cmoe__scale_from(float amax, float largest)
{
    if (!cmoe__f32_isfinite(amax)) return cmoe__f32_from_bits(CMOE_F32_NAN);
    const float s = cmoe__div_f32(amax, largest);
    return cmoe__f32_magnitude(s) < F32_MIN_NORMAL ? 1.0F : s;
}

float cmoe__scale_f32(cmoe_dtype dtype, float amax)
{
    return cmoe__scale_from(amax, cmoe__dtype_max(dtype));
}

float cmoe__scale_nv_global(float amax)
{
    return cmoe__scale_from(amax, 2688.0F); /* 6 * 448 */
}

uint8_t cmoe__scale_nv_block(float amax, float global)
{
    if (!cmoe__f32_isfinite(amax)) return 0x7f;
    const float quotient = cmoe__div_f32(amax, cmoe__mul_f32(6.0F, global));
    return (uint8_t)cmoe__encode(CMOE_E4M3, quotient, CMOE_ROUND_NEAREST_EVEN);
}

/* What the microscaling rules need to know of an element type. */
static const struct mx_element {
    int8_t emax;           /* exponent of the largest finite value */
    int8_t mantissa;       /* bits */
    uint32_t max_fraction; /* fraction bits of the largest finite value as f32 */
} mx_elements[CMOE_DTYPE_COUNT] = {
    [CMOE_E2M1] = {.emax = 2, .mantissa = 1, .max_fraction = 0x400000},
    [CMOE_E4M3] = {.emax = 8, .mantissa = 3, .max_fraction = 0x600000},
    [CMOE_E4M3FNUZ] = {.emax = 7, .mantissa = 3, .max_fraction = 0x700000},
    [CMOE_E5M2] = {.emax = 15, .mantissa = 2, .max_fraction = 0x600000},
};

uint8_t cmoe__scale_e8m0(cmoe_dtype dtype, float amax, cmoe_mx_rounding rounding)
{
    const struct mx_element element = mx_elements[dtype];
    uint32_t bits = cmoe__f32_magnitude(amax);
    if (bits >= CMOE_F32_INF) return 255;
    if (bits == 0) return 0;
    if (rounding == CMOE_MX_EVEN) bits += UINT32_C(1) << (22 - element.mantissa);
    int exponent = (int)(bits >> 23) - 127;
    uint32_t fraction = bits & (F32_MIN_NORMAL - 1);
    if (bits < F32_MIN_NORMAL) {
        const int top = 31 - __builtin_clz(bits);
        exponent = top - 149;
        fraction = (bits << (23 - top)) & (F32_MIN_NORMAL - 1);
    }
    if (rounding == CMOE_MX_UP)
        exponent += fraction > element.max_fraction;
    else if (rounding == CMOE_MX_CEIL)
        exponent += fraction > 0;
    const int code = exponent - element.emax + 127;
    return (uint8_t)(code < 0 ? 0 : code > 254 ? 254 : code);
}

float cmoe_static_scale(cmoe_format f, float amax)
{
    if (f.scaling == CMOE_SCALE_NV) return cmoe__scale_nv_global(amax);
    return cmoe__scale_f32((cmoe_dtype)f.dtype, amax);
}
