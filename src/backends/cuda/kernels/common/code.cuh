/* SPDX-License-Identifier: MIT
 * Eight values under one scale as codes of any 8-bit type or e2m1: those of docs/numerics.md by true
 * division and one rounding, with few instructions where the values leave no doubt. */
#ifndef CMOE_KERNELS_CODE_CUH
#define CMOE_KERNELS_CODE_CUH

#include "backends/cuda/kernels/common/columns.cuh"

/* v / scale, or for MX times it, any values: what few rows need is kept out of the way of the others. */
static __device__ __noinline__ uint32_t code_slowly(int dtype, int rounding, bool times, float v, float scale)
{
    return encode(dtype, times ? v * scale : __fdiv_rn(v, scale), rounding);
}

/* A finite value to e2m1, nearest even: adding 1.5 * 2^22 rounds to halves, from 1 on the mantissa is cut
 * to one bit. */
DEV uint32_t e2m1_code(float v)
{
    const uint32_t bits = __float_as_uint(v), magnitude = bits & 0x7fffffff;
    const uint32_t low = __float_as_uint(bits_f32(magnitude) + 0x1.8p22f) & 3;
    const uint32_t high = min(((magnitude + 0x1fffff + (magnitude >> 22 & 1)) >> 22) - 252, 7u);
    return (bits >> 31 << 3) | (magnitude < 0x3f800000 ? low : high);
}

/* Codes of two quotients far from overflow, the first in the low bits; `bits` a code. */
DEV uint32_t two_codes(const cmoe_format &f, float a, float b)
{
    if (f.dtype == CMOE_E2M1)
        return e2m1_code(a) | e2m1_code(b) << 4;
#if __CUDA_ARCH__ >= 890
    if (f.dtype == CMOE_E4M3)
        return e4m3_codes(a, b);
#endif
    return encode(f.dtype, a, f.rounding) | encode(f.dtype, b, f.rounding) << 8;
}

/* Codes of columns `column` .. + 7 of those before `past`. MX: values times the scale, else over it, and 0
 * over 0. */
DEV void store_codes(const cmoe_format &f, uint8_t *codes, int column, int past, const float (&v)[EACH], float scale)
{
    const bool times = f.scaling == CMOE_SCALE_MX, none = f.scaling == CMOE_SCALE_NV && scale == 0.0f;
    const bool packed = f.dtype == CMOE_E2M1, away = packed && f.rounding == CMOE_ROUND_HALF_AWAY;
    const float top = bits_f32(largest(v));
    uint32_t words[2] = {};
    if (times ? top < bits_f32(0x7f800000) && !away : divides_fast(scale) && top <= scale * 0x1p20f && !away) {
        const float inverse = times ? scale : __frcp_rn(scale);
#pragma unroll
        for (int i = 0; i < EACH; i += 2) {
            const float a = times ? v[i] * scale : copysignf(divided(v[i], scale, inverse), v[i]);
            const float b = times ? v[i + 1] * scale : copysignf(divided(v[i + 1], scale, inverse), v[i + 1]);
            const uint32_t pair = two_codes(f, a, b);
            if (packed)
                words[0] |= pair << (i * 4);
            else
                words[i / 4] |= pair << (i % 4 * 8);
        }
    } else {
#pragma unroll
        for (int i = 0; i < EACH && !none; i++) {
            const uint32_t code = code_slowly(f.dtype, f.rounding, times, v[i], scale);
            if (packed)
                words[0] |= code << (i * 4);
            else
                words[i / 4] |= code << (i % 4 * 8);
        }
    }
    uint8_t *to = codes + (packed ? column / 2 : column);
    const int bytes = packed ? 4 : 8, last = packed ? (past + 1) / 2 - column / 2 : past - column;
    if (last >= bytes && (uintptr_t)to % bytes == 0) {
        if (packed)
            *(uint32_t *)to = words[0];
        else
            *(uint2 *)to = make_uint2(words[0], words[1]);
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        if (i < bytes && i < last)
            to[i] = (uint8_t)(words[i / 4] >> (i % 4 * 8));
}

#endif
