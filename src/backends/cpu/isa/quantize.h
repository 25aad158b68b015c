/* SPDX-License-Identifier: MIT
 * Rows of finite f32 to int8, e4m3 and e2m1 codes: the division and the rounding of docs/numerics.md by
 * vector instructions.
 *
 * These follow the caller's rounding mode and flushing, so under other than the usual settings
 * nothing is done here, and core/quantize.c works on bits instead. */
#ifndef CMOE_BACKENDS_CPU_ISA_QUANTIZE_H
#define CMOE_BACKENDS_CPU_ISA_QUANTIZE_H

#include "backends/cpu/isa/tile_i8.h"
#include "backends/cpu/isa/vec.h"

typedef int8_t v8 __attribute__((vector_size(VEC)));

CMOE_INLINE bool has_usual_settings(void)
{
#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
    return (_mm_getcsr() & 0xe040) == 0; /* rounding, flush to zero, denormals are zero */
#else
    return false;
#endif
}

/* Magnitudes compare as integers, infinity and NaN last. */
static float amax(const float *v, int64_t n)
{
    vi most = {0};
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) {
        const vi bits = v_bits(v_load(v + i)) & 0x7fffffff;
        const vi larger = bits > most;
        most = (bits & larger) | (most & ~larger);
    }
    int32_t lane[VEC], best = 0;
    float out;
    memcpy(lane, &most, sizeof lane);
    for (int j = 0; j < VEC; j++)
        if (lane[j] > best) best = lane[j];
    for (; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &v[i], sizeof bits);
        bits &= 0x7fffffff;
        if (bits > best) best = bits;
    }
    memcpy(&out, &best, sizeof out);
    return out;
}

CMOE_INLINE vf clamped(vf v, float most)
{
    const vf low = v_select(v < -most, v_set(-most), v);
    return v_select(low > most, v_set(most), low);
}

/* Adding 1.5 * 2^23 leaves the integer, rounded to nearest even, in the low bits. */
CMOE_INLINE vi encode_i8(vf v)
{
    return v_bits(clamped(v, 127) + 12582912.0f) - 0x4b400000;
}

/* The same for multiples of 2^-9 below 2^-6; above, mantissas are cut to three bits. */
CMOE_INLINE vi encode_e4m3(vf v)
{
    const vf size = v_abs(clamped(v, 448));
    const vi bits = v_bits(size);
    const vi small = v_bits(size + 16384.0f) - 0x46800000;
    const vi normal = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
    const vi is_small = size < 0x1p-6f;
    return (small & is_small) | (normal & ~is_small) | (vi)((vu)v_bits(v) >> 24 & 0x80);
}

/* The same: halves below 1, a mantissa of one bit above. */
CMOE_INLINE vi encode_e2m1(vf v)
{
    const vf size = v_abs(clamped(v, 6));
    const vi bits = v_bits(size);
    const vi small = v_bits(size + 4194304.0f) - 0x4a800000;
    const vi normal = ((bits + 0x1fffff + (bits >> 22 & 1)) >> 22) - (126 << 1);
    const vi is_small = size < 1.0f;
    return (small & is_small) | (normal & ~is_small) | (vi)((vu)v_bits(v) >> 28 & 8);
}

/* A vector of codes as bytes; two 4-bit ones a byte, the first in the low half. */
CMOE_INLINE v8 encode_as(cmoe_dtype dtype, vf v)
{
    if (dtype == CMOE_I8) return __builtin_convertvector(encode_i8(v), v8);
    if (dtype == CMOE_E4M3) return __builtin_convertvector(encode_e4m3(v), v8);
    typedef uint16_t words __attribute__((vector_size(VEC)));
    typedef uint8_t halves8 __attribute__((vector_size(VEC / 2)));
    const words two = (words) __builtin_convertvector(encode_e2m1(v), v8);
    const halves8 low = __builtin_convertvector((two & 15) | (two >> 4 & 0xf0), halves8);
    v8 out = {0};
    memcpy(&out, &low, sizeof low);
    return out;
}

CMOE_INLINE void quantize_as(cmoe_dtype dtype, const float *v, int64_t n, float scale,
                             uint8_t *codes)
{
    const int bits = dtype == CMOE_E2M1 ? 4 : 8;
    int64_t i = 0;
    for (; i + VEC <= n; i += VEC) {
        const v8 bytes = encode_as(dtype, v_load(v + i) / v_set(scale));
        memcpy(codes + i * bits / 8, &bytes, VEC * (size_t)bits / 8);
    }
    if (i < n) {
        float tail[VEC] = {0};
        memcpy(tail, v + i, (size_t)(n - i) * sizeof *v);
        const v8 bytes = encode_as(dtype, v_load(tail) / v_set(scale));
        memcpy(codes + i * bits / 8, &bytes, (size_t)((n - i) * bits + 7) / 8);
    }
}

static bool quantize(cmoe_dtype dtype, const float *v, int64_t n, float scale, void *codes)
{
    if (!has_usual_settings()) return false;
    if (dtype == CMOE_I8)
        quantize_as(CMOE_I8, v, n, scale, codes);
    else if (dtype == CMOE_E2M1)
        quantize_as(CMOE_E2M1, v, n, scale, codes);
    else
        quantize_as(CMOE_E4M3, v, n, scale, codes);
    return true;
}

#endif
