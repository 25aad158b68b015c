/* SPDX-License-Identifier: MIT
 * e4m3 by the conversion instruction: the codes of docs/numerics.md, by true division and nearest even. */
#ifndef CMOE_KERNELS_E4M3_CUH
#define CMOE_KERNELS_E4M3_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

/* cvt: two f32 to e4m3, the first in the low byte; beyond 448 to 448. */
DEV uint32_t e4m3_codes(float a, float b)
{
#ifdef __CUDA_ARCH__
    uint16_t out;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(b), "f"(a));
    return out;
#else
    return encode(CMOE_E4M3, a, CMOE_ROUND_NEAREST_EVEN) | encode(CMOE_E4M3, b, CMOE_ROUND_NEAREST_EVEN) << 8;
#endif
}

/* v / scale to the nearest: a product with the nearest reciprocal, corrected once (Markstein). */
DEV float divided(float v, float scale, float inverse)
{
    const float q = v * inverse;
    return __fmaf_rn(__fmaf_rn(-scale, q, v), inverse, q);
}

/* Scales for which the correction would over- or underflow, and NaN, which keeps the signs, are divided as
 * usual; below 2^-100 times a scale both ways give zero. */
DEV bool divides_fast(float scale)
{
    return scale >= 0x1p-100f && scale <= 0x1p100f;
}

/* Codes of two values under one scale, whose nearest reciprocal is `inverse`. FAST: the caller has asked
 * divides_fast. */
template <bool FAST = false> DEV uint32_t e4m3_pair(float a, float b, float scale, float inverse)
{
    if (FAST || divides_fast(scale))
        return e4m3_codes(divided(a, scale, inverse), divided(b, scale, inverse));
    const float u = __fdiv_rn(a, scale), v = __fdiv_rn(b, scale);
    return encode(CMOE_E4M3, u, CMOE_ROUND_NEAREST_EVEN) | encode(CMOE_E4M3, v, CMOE_ROUND_NEAREST_EVEN) << 8;
}

#endif
