/* SPDX-License-Identifier: MIT
 * Rows of x as operands of the kernels of slices (slices.cuh): a cluster's blocks share the work. */
#ifndef CMOE_KERNELS_SLICES_ROWS_CUH
#define CMOE_KERNELS_SLICES_ROWS_CUH

#include "backends/cuda/kernels/common/e4m3.cuh"
#include "backends/cuda/kernels/common/slices_weights.cuh"

/* Four columns as they lie: f32 in all words, else in two. */
DEV uint4 four_columns(int dtype, const char *row, int column)
{
    if (dtype == CMOE_F32)
        return __ldcg((const uint4 *)(row + (int64_t)column * 4));
    const uint2 v = __ldcg((const uint2 *)(row + (int64_t)column * 2));
    return make_uint4(v.x, v.y, 0, 0);
}

DEV float4 column_values(int dtype, uint4 v)
{
    if (dtype == CMOE_F32)
        return make_float4(bits_f32(v.x), bits_f32(v.y), bits_f32(v.z), bits_f32(v.w));
    if (dtype == CMOE_BF16)
        return make_float4(bits_f32(v.x << 16), bits_f32(v.x & 0xffff0000), bits_f32(v.y << 16),
                           bits_f32(v.y & 0xffff0000));
    const float2 low = __half22float2(*(const __half2 *)&v.x), high = __half22float2(*(const __half2 *)&v.y);
    return make_float4(low.x, low.y, high.x, high.y);
}

/* Under scales that divides_fast does not take. */
static __device__ __noinline__ uint32_t codes_slowly(float4 v, float scale)
{
    return encode(CMOE_E4M3, __fdiv_rn(v.x, scale), CMOE_ROUND_NEAREST_EVEN) |
           encode(CMOE_E4M3, __fdiv_rn(v.y, scale), CMOE_ROUND_NEAREST_EVEN) << 8 |
           encode(CMOE_E4M3, __fdiv_rn(v.z, scale), CMOE_ROUND_NEAREST_EVEN) << 16 |
           encode(CMOE_E4M3, __fdiv_rn(v.w, scale), CMOE_ROUND_NEAREST_EVEN) << 24;
}

/* The scale of a warp's 128 columns. */
DEV float span_scale(float4 v)
{
    const uint32_t top = max(max(__float_as_uint(v.x) & 0x7fffffff, __float_as_uint(v.y) & 0x7fffffff),
                             max(__float_as_uint(v.z) & 0x7fffffff, __float_as_uint(v.w) & 0x7fffffff));
    return scale_f32(CMOE_E4M3, bits_f32(__reduce_max_sync(0xffffffff, top)));
}

/* A lane's codes of them. */
DEV uint32_t codes_of(float4 v, float scale)
{
    if (!divides_fast(scale))
        return codes_slowly(v, scale);
    const float inverse = __frcp_rn(scale);
    return e4m3_pair<true>(v.x, v.y, scale, inverse) | e4m3_pair<true>(v.z, v.w, scale, inverse) << 16;
}

/* A lane's four codes of a span of 8 tokens. */
DEV uint32_t *swizzled(uint8_t *span, int token)
{
    const int lane = threadIdx.x % 32;
    return (uint32_t *)(span + token * SPAN + ((lane / 4 ^ token) << 4)) + lane % 4;
}

/* To all blocks of the cluster. */
template <class V> DEV void send_all(const void *to, V v, const uint64_t *barrier)
{
#pragma unroll
    for (int b = 0; b < CLUSTER; b++)
        send(shared_address(to), v, shared_address(barrier), b);
}

/* Pieces of rows, 128 columns that are quantised or 512 bytes: the blocks of a cluster share them, so that a warp has
 * all of its own on their way at once, and send each other what becomes of them. */
enum { PIECES = CMOE_SLICE_WIDEST / 128 * TOKENS / (CLUSTER * WARPS) };

struct piece {
    int token, span;

    MEMBER piece(const cmoe_gpu_slices &p, int at)
    {
        token = (int)__umulhi((unsigned)at * 2, p.per_span);
        span = at - token * p.spans;
    }
};

/* A warp's next piece. */
DEV int piece_at(const slice_memory &m, int i)
{
    return (i * CLUSTER + m.rank) * WARPS + (int)threadIdx.x / 32;
}

template <int TYPE> DEV void load_rows(const cmoe_gpu_slices &p, const slice_memory &m, uint4 (&v)[PIECES])
{
    const int lane = threadIdx.x % 32, all = m.tokens * p.spans;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const piece at(p, min(piece_at(m, i), max(all, 1) - 1));
        const char *row = (const char *)p.x + at.token * p.x_stride;
        v[i] = slice_of<TYPE>::CODES ? four_columns(p.x_dtype, row, at.span * SPAN + lane * 4)
                                     : __ldcg((const uint4 *)row + at.span * 32 + lane);
    }
}

template <int TYPE> DEV void send_rows(const cmoe_gpu_slices &p, const slice_memory &m, const uint4 (&v)[PIECES])
{
    const int lane = threadIdx.x % 32, all = m.tokens * p.spans;
    const uint64_t *barrier = &m.tail->rows;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        if (piece_at(m, i) >= all)
            break;
        const piece at(p, piece_at(m, i));
        if (slice_of<TYPE>::CODES) {
            const float4 columns = column_values(p.x_dtype, v[i]);
            const float scale = span_scale(columns);
            send_all(swizzled(m.x + at.span * SWIZZLED, at.token), codes_of(columns, scale), barrier);
            if (lane < CLUSTER)
                send(shared_address(&m.x_scale[at.span * TOKENS + at.token]), __float_as_uint(scale),
                     shared_address(barrier), lane);
        } else {
            send_all((uint4 *)(m.x + at.token * p.x_pitch) + at.span * 32 + lane, v[i], barrier);
        }
    }
}

#endif
