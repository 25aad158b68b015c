/* SPDX-License-Identifier: MIT
 * docs/numerics.md sections 1 and 2 on the device: the same codes as src/core, bit for bit. */
#ifndef CMOE_KERNELS_NUMERIC_CUH
#define CMOE_KERNELS_NUMERIC_CUH

#include "backends/cuda/params.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEV    static __device__ __forceinline__
#define MEMBER __device__ __forceinline__

DEV float bits_f32(uint32_t bits)
{
    return __uint_as_float(bits);
}

/* Value of a code; 8- and 4-bit floats by moving exponent and mantissa into f32 and rescaling. */
DEV float decode(int dtype, uint32_t c)
{
    const float sign = c & 0x80 ? -1.0f : 1.0f;
    switch (dtype) {
    case CMOE_F32:
        return bits_f32(c);
    case CMOE_BF16:
        return bits_f32(c << 16);
    case CMOE_F16:
        return __half2float(__ushort_as_half((unsigned short)c));
    case CMOE_E4M3:
        return (c & 0x7f) == 0x7f ? bits_f32(0x7fc00000) : sign * bits_f32((c & 0x7f) << 20) * 0x1p120f;
    case CMOE_E4M3FNUZ:
        return c == 0x80 ? bits_f32(0x7fc00000) : sign * bits_f32((c & 0x7f) << 20) * 0x1p119f;
    case CMOE_E5M2:
        if ((c & 0x7c) == 0x7c)
            return c & 3 ? bits_f32(0x7fc00000) : sign * bits_f32(0x7f800000);
        return sign * bits_f32((c & 0x7f) << 21) * 0x1p112f;
    case CMOE_E2M1:
        return (c & 8 ? -1.0f : 1.0f) * bits_f32((c & 7) << 22) * 0x1p126f;
    case CMOE_E8M0:
        return c == 255 ? bits_f32(0x7fc00000) : (c ? bits_f32(c << 23) : 0x1p-127f);
    case CMOE_I8:
        return (float)(int)(signed char)c;
    case CMOE_I4:
        return (float)((int)(c & 15) - ((c & 8) ? 16 : 0));
    default: /* u8, u4 */
        return (float)c;
    }
}

DEV int mantissa_bits(int dtype)
{
    return dtype == CMOE_E2M1 ? 1 : (dtype == CMOE_E5M2 ? 2 : 3);
}

DEV float dtype_max(int dtype)
{
    switch (dtype) {
    case CMOE_E4M3:
        return 448.0f;
    case CMOE_E4M3FNUZ:
        return 240.0f;
    case CMOE_E5M2:
        return 57344.0f;
    case CMOE_E2M1:
        return 6.0f;
    case CMOE_I4:
    case CMOE_U4:
        return 7.0f;
    default:
        return 127.0f;
    }
}

/* Shift right with one rounding: nearest even, or ties away. */
DEV uint32_t shift_round(uint32_t v, int shift, bool away)
{
    if (shift > 25)
        return 0;
    const uint32_t kept = v >> shift, rest = v & ((1u << shift) - 1), half = 1u << (shift - 1);
    return kept + (away ? rest >= half : (rest > half || (rest == half && (kept & 1))));
}

DEV uint32_t encode_minifloat(int dtype, float v, bool away)
{
    const int m = mantissa_bits(dtype);
    const int bias = dtype == CMOE_E2M1 ? 1 : (dtype == CMOE_E5M2 ? 15 : (dtype == CMOE_E4M3 ? 7 : 8));
    const uint32_t top = dtype == CMOE_E2M1 ? 7 : (dtype == CMOE_E5M2 ? 0x7b : (dtype == CMOE_E4M3 ? 0x7e : 0x7f));
    const uint32_t bits = __float_as_uint(v), magnitude = bits & 0x7fffffff;
    const uint32_t sign = (bits >> 31) << (dtype == CMOE_E2M1 ? 3 : 7);
    if (magnitude > 0x7f800000)
        return dtype == CMOE_E2M1 ? 0 : (dtype == CMOE_E4M3FNUZ ? 0x80 : (sign | 0x7f));
    uint32_t code = 0;
    if (magnitude >= 0x00800000) { /* f32 subnormals are far below every grid */
        const int exponent = (int)(magnitude >> 23) - 127 + bias, bounded = exponent < 1 ? 1 : exponent;
        const uint32_t rounded =
            shift_round((magnitude & 0x7fffff) | 0x800000, 23 - m + bounded - exponent, away);
        const uint32_t grown = (magnitude >> 23) == 255 ? top : ((uint32_t)(bounded - 1) << m) + rounded;
        code = grown > top ? top : grown;
    }
    return code == 0 && dtype == CMOE_E4M3FNUZ ? 0 : (sign | code);
}

DEV uint32_t encode(int dtype, float v, int rounding)
{
    switch (dtype) {
    case CMOE_F32:
        return __float_as_uint(v);
    case CMOE_BF16:
        return isnan(v) ? (__float_as_uint(v) >> 16) | 0x40 : __bfloat16_as_ushort(__float2bfloat16_rn(v));
    case CMOE_F16:
        return __half_as_ushort(__float2half_rn(v));
    case CMOE_I8: {
        if (isnan(v))
            return 0;
        float r = rounding == CMOE_ROUND_TRUNCATE ? truncf(v) : (rounding == CMOE_ROUND_HALF_AWAY ? roundf(v) : rintf(v));
        r = fminf(fmaxf(r, -127.0f), 127.0f);
        return (uint32_t)(int)r & 0xff;
    }
    default:
        return encode_minifloat(dtype, v, dtype == CMOE_E2M1 && rounding == CMOE_ROUND_HALF_AWAY);
    }
}

DEV float load(int dtype, const void *row, int64_t i)
{
    const uint8_t *b = (const uint8_t *)row;
    switch (dtype) {
    case CMOE_F32:
        return ((const float *)row)[i];
    case CMOE_F16:
    case CMOE_BF16:
        return decode(dtype, ((const uint16_t *)row)[i]);
    case CMOE_I4:
    case CMOE_U4:
    case CMOE_E2M1:
        return decode(dtype, (b[i >> 1] >> (4 * (i & 1))) & 15);
    default:
        return decode(dtype, b[i]);
    }
}

/* Not for 4-bit types. */
DEV void store(int dtype, void *row, int64_t i, float v)
{
    const uint32_t code = encode(dtype, v, CMOE_ROUND_NEAREST_EVEN);
    if (dtype == CMOE_F32)
        ((uint32_t *)row)[i] = code;
    else if (dtype == CMOE_F16 || dtype == CMOE_BF16)
        ((uint16_t *)row)[i] = (uint16_t)code;
    else
        ((uint8_t *)row)[i] = (uint8_t)code;
}

/* Eight of f32 or 16 bits, to a place of 16 bytes. */
template <int TYPE> DEV void store_eight(void *to, const float (&v)[8])
{
    constexpr int WORDS = TYPE == CMOE_F32 ? 8 : 4;
    uint32_t word[WORDS];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t code = encode(TYPE, v[i], CMOE_ROUND_NEAREST_EVEN);
        if (WORDS == 8)
            word[i] = code;
        else
            word[i / 2] = i % 2 ? word[i / 2] | code << 16 : code;
    }
#pragma unroll
    for (int i = 0; i < WORDS / 4; i++)
        ((uint4 *)to)[i] = make_uint4(word[i * 4], word[i * 4 + 1], word[i * 4 + 2], word[i * 4 + 3]);
}

/* Scales from a largest magnitude (NaN allowed). */
DEV float guard_scale(float amax, float s)
{
    if (!(amax < bits_f32(0x7f800000)))
        return bits_f32(0x7fc00000);
    return s < 0x1p-126f ? 1.0f : s;
}

DEV float scale_f32(int dtype, float amax)
{
    return guard_scale(amax, __fdiv_rn(amax, dtype_max(dtype)));
}

DEV uint32_t scale_e8m0(int dtype, float amax, int rounding)
{
    const int emax = dtype == CMOE_E2M1 ? 2 : (dtype == CMOE_E4M3 ? 8 : (dtype == CMOE_E4M3FNUZ ? 7 : 15));
    uint32_t bits = __float_as_uint(amax) & 0x7fffffff;
    if (bits >= 0x7f800000)
        return 255;
    if (bits == 0)
        return 0;
    int shift = 0; /* normalise subnormals */
    if (bits < 0x00800000) {
        shift = __clz((int)bits) - 8;
        bits = (bits << shift) & 0x7fffff;
        bits |= 0x00800000;
    }
    if (rounding == CMOE_MX_EVEN)
        bits += 1u << (22 - mantissa_bits(dtype));
    const int exponent = (int)(bits >> 23) - 127 - shift;
    const uint32_t fraction = bits & 0x7fffff;
    int x = exponent - emax;
    if (rounding == CMOE_MX_UP)
        x += fraction > (__float_as_uint(dtype_max(dtype)) & 0x7fffff);
    if (rounding == CMOE_MX_CEIL)
        x += fraction != 0;
    x += 127;
    return (uint32_t)(x < 0 ? 0 : (x > 254 ? 254 : x));
}

/* Local expert of an id, or -1. */
DEV int local_expert(const cmoe_gpu_call &c, int32_t id)
{
    if (id < 0)
        return -1;
    if (c.local_ids)
        return id < c.local ? id : -1;
    if (id >= c.n_ids)
        return -1;
    if (c.expert_map) {
        const int32_t mapped = c.expert_map[id];
        return mapped >= 0 && mapped < c.local ? mapped : -1;
    }
    if (id >= c.experts)
        return c.routed_local + (id - c.experts);
    const int32_t at = id - c.expert_first;
    return at >= 0 && at < c.routed_local ? at : -1;
}

DEV int token_count(const cmoe_gpu_call &c)
{
    if (!c.n_tokens_dev)
        return c.tokens;
    const int n = *c.n_tokens_dev;
    return n < 0 ? 0 : (n < c.tokens ? n : c.tokens);
}

/* By the block's threads, of which there are so many. */
DEV void clear_progress(const cmoe_gpu_sort &s, int threads)
{
    for (int i = threadIdx.x; s.progress && i < CMOE_PROGRESS_EXPERTS + s.call.local; i += threads)
        s.progress[i] = 0;
}

DEV float row_weight(const cmoe_gpu_call &c, int64_t row)
{
    return c.weights && !c.batched ? c.weights[row] : 1.0f;
}

/* Max of |v| over a block, NaN kept: magnitudes as bits are ordered with NaN on top. */
DEV uint32_t block_max(uint32_t v, uint32_t *shared)
{
    for (int offset = 16; offset > 0; offset >>= 1)
        v = max(v, __shfl_xor_sync(0xffffffff, v, offset));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++)
        v = max(v, shared[w]);
    return v;
}

#endif
