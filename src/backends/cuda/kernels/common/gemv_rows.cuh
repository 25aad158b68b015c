/* SPDX-License-Identifier: MIT
 * Rows of x or h into a block's shared memory as operands of mma.sync: quantised by the block itself
 * if they are, in the order in which codes of the weights come out of their words. */
#ifndef CMOE_KERNELS_GEMV_ROWS_CUH
#define CMOE_KERNELS_GEMV_ROWS_CUH

#include "backends/cuda/kernels/common/gemv.cuh"

/* Four columns of a row of f32, bf16 or f16 from a multiple of 4 on as they lie, in the first words: aligned,
 * four or none of them. */
template <int OP> DEV uint4 load_columns(int dtype, const char *row, int column)
{
    const char *at = row + (int64_t)column * (dtype == CMOE_F32 ? 4 : 2);
    if (OP != CMOE_BF16 && dtype == CMOE_F32)
        return __ldcg((const uint4 *)at);
    const uint2 pairs = __ldcg((const uint2 *)at);
    return make_uint4(pairs.x, pairs.y, 0, 0);
}

/* The same wherever they lie, zero from `limit` on. */
template <int OP> DEV uint4 load_columns_slowly(int dtype, const char *row, int column, int limit)
{
    const bool words = OP != CMOE_BF16 && dtype == CMOE_F32;
    uint32_t v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = column + i >= limit ? 0
               : words             ? ((const uint32_t *)row)[column + i]
                                   : ((const uint16_t *)row)[column + i];
    return words ? make_uint4(v[0], v[1], v[2], v[3]) : make_uint4(v[0] | v[1] << 16, v[2] | v[3] << 16, 0, 0);
}

DEV float2 pair_values(int dtype, uint32_t pair)
{
    if (dtype == CMOE_BF16)
        return make_float2(bits_f32(pair << 16), bits_f32(pair & 0xffff0000));
    return __half22float2(*(const __half2 *)&pair);
}

template <int OP> DEV float4 column_values(int dtype, const uint32_t *w)
{
    if (OP != CMOE_BF16 && dtype == CMOE_F32)
        return make_float4(bits_f32(w[0]), bits_f32(w[1]), bits_f32(w[2]), bits_f32(w[3]));
    const float2 low = pair_values(dtype, w[0]), high = pair_values(dtype, w[1]);
    return make_float4(low.x, low.y, high.x, high.y);
}

DEV uint32_t magnitude(float v)
{
    return __float_as_uint(v) & 0x7fffffff;
}

DEV uint32_t warp_amax(float4 v)
{
    const uint32_t top = max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
    return __reduce_max_sync(0xffffffff, top);
}

/* v / scale rounded once, as long as nothing underflows. */
DEV float quotient(float v, float scale, float reciprocal)
{
    float q = v * reciprocal;
    q = fmaf(fmaf(-q, scale, v), reciprocal, q);
    return fmaf(fmaf(-q, scale, v), reciprocal, q);
}

/* Four values over their scale. Far from 1 the scale and the values are moved together; what underflows
 * then has code 0. */
DEV float4 quotients(float4 v, float scale)
{
    const float by = scale > 0x1p60f ? 0x1p-64f : (scale < 0x1p-60f ? 0x1p64f : 1.0f);
    scale *= by;
    float r;
    asm("rcp.approx.f32 %0, %1;" : "=f"(r) : "f"(scale));
    r = fmaf(fmaf(-scale, r, 1.0f), r, r);
    return make_float4(quotient(v.x * by, scale, r), quotient(v.y * by, scale, r), quotient(v.z * by, scale, r),
                       quotient(v.w * by, scale, r));
}

/* Four values rounded to e4m3, as f16 pairs. */
DEV uint2 e4m3_values(float4 v)
{
    uint2 pairs;
    asm("{.reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f32 l, %3, %2; cvt.rn.satfinite.e4m3x2.f32 h, %5, %4; "
        "cvt.rn.f16x2.e4m3x2 %0, l; cvt.rn.f16x2.e4m3x2 %1, h;}"
        : "=r"(pairs.x), "=r"(pairs.y)
        : "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w));
    return pairs;
}

/* Rounded to e2m1: adding 2^23 times a step of its grid there rounds to steps. */
DEV float e2m1_value(float v)
{
    const float m = fabsf(v), big = bits_f32((max(magnitude(v) >> 23, 127u) + 22) << 23);
    return copysignf(fminf((m + big) - big, 6.0f), v);
}

/* Four quotients rounded to bytes, the even columns of an even lane and the odd one behind it in the former
 * for 4-bit weights (bytes_of). */
template <int W> DEV uint32_t byte_values(float4 q)
{
    const uint32_t low = __byte_perm(__float2int_rn(q.x), __float2int_rn(q.y), 0x0040);
    const uint32_t high = __byte_perm(__float2int_rn(q.z), __float2int_rn(q.w), 0x0040);
    const uint32_t own = __byte_perm(low, high, 0x5410);
    if (piece_of<W>::BITS == 8)
        return own;
    const uint32_t other = __shfl_xor_sync(0xffffffff, own, 1);
    return threadIdx.x & 1 ? __byte_perm(other, own, 0x7531) : __byte_perm(own, other, 0x6420);
}

/* The largest magnitude of a group of so many lanes. */
template <int LANES> DEV float group_amax(float4 v)
{
    uint32_t top = max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
#pragma unroll
    for (int lanes = 1; lanes < LANES; lanes *= 2)
        top = max(top, __shfl_xor_sync(0xffffffff, top, lanes));
    return bits_f32(top);
}

DEV float4 scaled(float4 v, float by)
{
    return make_float4(v.x * by, v.y * by, v.z * by, v.w * by);
}

/* Exact: the values are of the type. */
template <int OP> DEV uint32_t pair_of(float low, float high)
{
    uint32_t pair;
    if (OP == CMOE_BF16)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

/* Columns of an even lane and the odd one behind it in the order in which words of 4-bit codes decode:
 * 0, 4, 1, 5, 2, 6, 3, 7, or for e2m1 as f16 (operands4_f16) 0, 2, 1, 3, 4, 6, 5, 7. */
template <int W, int OP> DEV uint2 in_code_order(uint2 v)
{
    const bool odd = threadIdx.x & 1;
    uint32_t low = v.x, high = v.y;
    if (piece_of<W>::TYPE != CMOE_E2M1 || OP != CMOE_F16) {
        const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? v.x : v.y, 1);
        low = odd ? other : v.x;
        high = odd ? v.y : other;
    }
    return make_uint2(__byte_perm(low, high, 0x5410), __byte_perm(low, high, 0x7632));
}

/* Scales a span so that its largest value lies below 2^15; true: f16 has all its values then. `by` scales
 * them back. */
DEV bool fit_f16(float4 &v, float *by)
{
    const int exponent = max((int)(warp_amax(v) >> 23), 27) - 127;
    const float up = bits_f32((uint32_t)(127 + 14 - exponent) << 23);
    *by = bits_f32((uint32_t)(127 - 14 + exponent) << 23);
    const float4 moved = scaled(v, up);
    const bool fits = __half2float(__float2half_rn(moved.x)) * *by == v.x &&
                      __half2float(__float2half_rn(moved.y)) * *by == v.y &&
                      __half2float(__float2half_rn(moved.z)) * *by == v.z &&
                      __half2float(__float2half_rn(moved.w)) * *by == v.w;
    v = moved;
    return fits;
}

/* Columns of a group of 32 under MX; *factor: its scale. */
template <int W> DEV uint2 mx_values(const cmoe_format &f, float4 v, float *factor)
{
    const uint32_t c = scale_e8m0(f.dtype, group_amax<8>(v), f.mx_rounding);
    v = scaled(v, bits_f32(c < 254 ? (254 - c) << 23 : (c == 254 ? 0x00400000 : 0x00200000)));
    *factor = scale_of_e8m0(c);
    if (W == CMOE_E2M1 && f.dtype == CMOE_E2M1)
        return make_uint2(pair_of<CMOE_F16>(e2m1_value(v.x), e2m1_value(v.y)),
                          pair_of<CMOE_F16>(e2m1_value(v.z), e2m1_value(v.w)));
    return e4m3_values(v);
}

/* Columns of a group of 16 under NV, whose scales f16 has room for. */
DEV uint2 nv_values(float4 v, float global)
{
    const float amax = group_amax<4>(v), top = __fdiv_rn(amax, 6.0f * global);
    const bool finite = amax < bits_f32(0x7f800000);
    const uint2 pairs = e4m3_values(make_float4(finite ? top : bits_f32(0x7fc00000), 0, 0, 0));
    const float scale = __half2float(__ushort_as_half((unsigned short)pairs.x));
    const float4 q = quotients(v, scale * global);
    return make_uint2(pair_of<CMOE_F16>(e2m1_value(q.x) * scale, e2m1_value(q.y) * scale),
                      pair_of<CMOE_F16>(e2m1_value(q.z) * scale, e2m1_value(q.w) * scale));
}

/* Four columns as operands of mma.sync; *factor: the scale of the row on entry, of the columns on return. */
template <int W, int OP> DEV uint2 quantized_values(const cmoe_format &f, float4 v, float *factor)
{
    if (OP == CMOE_I8)
        return make_uint2(byte_values<W>(quotients(v, *factor)), 0);
    if ((W == CMOE_E2M1 || W == CMOE_GEMV_MX8) && f.scaling == CMOE_SCALE_MX)
        return mx_values<W>(f, v, factor);
    if (W == CMOE_GEMV_NV)
        return nv_values(v, *factor);
    if (f.scaling == CMOE_SCALE_GROUP)
        *factor = scale_f32(CMOE_E4M3, bits_f32(warp_amax(v)));
    return e4m3_values(quotients(v, *factor));
}

/* A warp's rows of x: span i of all, or zeros. */
struct row_span {
    int row, column;
    bool counts;
    const char *from;
};

/* Spans of a row. */
template <int W> DEV int spans_of(const cmoe_gpu_gemv &s)
{
    return (s.steps * piece_of<W>::STEP + SPAN - 1) / SPAN;
}

/* known: not needed for tokens. */
template <int W, bool FIRST>
DEV row_span span_of(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, int i)
{
    const int each = spans_of<W>(s), row = (int)__umulhi(2 * i, s.per_span); /* i / each */
    const int over = (FIRST ? k.first_token : k.first_token * s.g.call.slots) + row;
    return {row, (i - row * each) * SPAN + (int)(threadIdx.x % 32) * 4, FIRST || known.experts[over] >= 0,
            (const char *)s.from + over * s.from_stride};
}

/* Spans of a warp that are on their way at once, as they lie: f32 becomes e4m3 only, whose operands are of f16. */
template <int W, int OP> struct batch_of {
    static constexpr int WORDS = OP == CMOE_BF16 ? 2 : 4;
    static constexpr int SPANS = (piece_of<W>::BITS == 4 && WORDS == 4) || W == CMOE_GEMV_MX8 ? 2 : 4;
    uint32_t v[SPANS][WORDS];

    MEMBER void keep(int j, uint4 w)
    {
        v[j][0] = w.x;
        v[j][1] = w.y;
        if (WORDS == 4) {
            v[j][WORDS - 2] = w.z;
            v[j][WORDS - 1] = w.w;
        }
    }
};

/* A warp's spans from i on. */
template <int W, int OP, bool FIRST>
DEV batch_of<W, OP> load_batch(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, int i)
{
    constexpr int BATCH = batch_of<W, OP>::SPANS;
    const int all = k.row_count * spans_of<W>(s);
    batch_of<W, OP> to;
    if (s.from_vectors) {
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
            uint4 w = make_uint4(0, 0, 0, 0);
            if (i + j * WARPS < all) {
                const row_span at = span_of<W, FIRST>(s, k, known, i + j * WARPS);
                if (at.counts && at.column < s.g.k)
                    w = load_columns<OP>(s.from_dtype, at.from, at.column);
            }
            to.keep(j, w);
        }
        return to;
    }
#pragma unroll
    for (int j = 0; j < BATCH; j++) {
        uint4 w = make_uint4(0, 0, 0, 0);
        if (i + j * WARPS < all) {
            const row_span at = span_of<W, FIRST>(s, k, known, i + j * WARPS);
            if (at.counts)
                w = load_columns_slowly<OP>(s.from_dtype, at.from, at.column, s.g.k);
        }
        to.keep(j, w);
    }
    return to;
}

/* Largest magnitudes of whole rows; of all in the first where they share a scale. */
template <int W, int OP, bool FIRST>
DEV void find_amax(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, batch_of<W, OP> batch)
{
    constexpr int BATCH = batch_of<W, OP>::SPANS;
    const int each = spans_of<W>(s), all = k.row_count * each;
#pragma unroll 1
    for (int i = threadIdx.x / 32; i < all; i += WARPS * BATCH) {
        if (i >= WARPS || piece_of<W>::BITS == 4) /* again, where registers are short */
            batch = load_batch<W, OP, FIRST>(s, k, known, i);
#pragma unroll
        for (int j = 0; j < BATCH && i + j * WARPS < all; j++) {
            const uint32_t top = warp_amax(column_values<OP>(s.from_dtype, batch.v[j]));
            if (threadIdx.x % 32 == 0)
                atomicMax(&k.amax(s)[s.g.x.scaling == CMOE_SCALE_TENSOR ? 0 : (i + j * WARPS) / each],
                          top); /* a maximum has one value in any order */
        }
    }
}

/* What all columns of a row have in common, in the place of its largest magnitude: the scale or NV's global, which
 * are given or come from it. */
template <int W, int OP, bool FIRST>
DEV void find_scales(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, const batch_of<W, OP> &batch)
{
    const bool tensor = s.g.x.scaling == CMOE_SCALE_TENSOR;
    const int row = threadIdx.x;
    if (!s.fixed)
        find_amax<W, OP, FIRST>(s, k, known, batch);
    __syncthreads();
    const float amax = bits_f32(row < k.row_count ? k.amax(s)[tensor ? 0 : row] : 0);
    if (tensor)
        __syncthreads();
    if (row < k.row_count)
        k.amax(s)[row] = __float_as_uint(s.fixed ? known.fixed
                                         : W == CMOE_GEMV_NV
                                             ? guard_scale(amax, __fdiv_rn(amax, 2688.0f))
                                             : scale_f32(OP == CMOE_I8 ? CMOE_I8 : CMOE_E4M3, amax));
    __syncthreads();
}

/* Operands and factors: a row's scale times what its slot weighs. FROM is what rows are of if they are not
 * quantised, OP what they become. batch: the warp's first spans. ROUTES: a row's scale
 * is its own (registers are short). False: bf16 that f16 does not have. */
template <int W, int FROM, int OP, bool FIRST, bool ROUTES>
DEV bool stage_rows(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, batch_of<W, FROM> batch)
{
    using shape = piece_of<W>;
    constexpr int BATCH = batch_of<W, FROM>::SPANS;
    const int width = s.steps * shape::STEP, all = k.row_count * spans_of<W>(s);
    const int scaling = s.g.x.scaling;
    const bool quantized = FROM == CMOE_I8 || (FROM == CMOE_F16 && scaling != CMOE_SCALE_NONE);
    const bool whole = quantized && scaling != CMOE_SCALE_GROUP && scaling != CMOE_SCALE_MX;
    bool exact = true;
    if (whole && ROUTES) {
        find_amax<W, FROM, FIRST>(s, k, known, batch);
        __syncthreads();
    } else if (whole) {
        find_scales<W, FROM, FIRST>(s, k, known, batch);
    }
#pragma unroll 1
    for (int i = threadIdx.x / 32; i < all; i += WARPS * BATCH) {
        constexpr bool AHEAD = shape::BITS > 4; /* else registers are short */
        batch_of<W, FROM> next;
        if (!AHEAD && i >= WARPS)
            batch = load_batch<W, FROM, FIRST>(s, k, known, i);
        if (AHEAD && i + WARPS * BATCH < all)
            next = load_batch<W, FROM, FIRST>(s, k, known, i + WARPS * BATCH);
#pragma unroll
        for (int j = 0; j < BATCH && i + j * WARPS < all; j++) {
            const row_span at = span_of<W, FIRST>(s, k, known, i + j * WARPS);
            float4 v = column_values<FROM>(s.from_dtype, batch.v[j]);
            float factor = 1;
            if (whole)
                factor = ROUTES ? scale_f32(CMOE_E4M3, bits_f32(k.amax(s)[at.row])) : bits_f32(k.amax(s)[at.row]);
            if (FROM != OP)
                exact = fit_f16(v, &factor) && exact;
            uint2 pairs;
            if (quantized)
                pairs = quantized_values<W, OP>(s.g.x, v, &factor);
            else
                pairs = make_uint2(pair_of<OP>(v.x, v.y), pair_of<OP>(v.z, v.w));
            if (shape::BITS == 4 && OP != CMOE_I8)
                pairs = in_code_order<W, OP>(pairs);
            if (at.column < width && OP == CMOE_I8)
                ((uint32_t *)k.x(s))[(at.row * width + at.column) / 4] = pairs.x;
            else if (at.column < width)
                ((uint2 *)k.x(s))[(at.row * width + at.column) / 4] = pairs;
            if (shape::TYPE == CMOE_E2M1 && OP == CMOE_F16)
                factor *= 64; /* operands4_f16 */
            const int over = k.first_token * s.g.call.slots + at.row;
            if (!FIRST && W == CMOE_GEMV_NV)
                factor *= known.global[0][over];
            if (!FIRST && s.weigh)
                factor *= at.counts ? known.weights[over] : 0.0f;
            const bool mx = (W == CMOE_E2M1 || W == CMOE_GEMV_MX8) && s.x_shift == 5;
            if (threadIdx.x % (mx ? 8 : 32) == 0 && (s.spans > 1 || at.column == 0))
                k.factor(s)[at.row * s.spans + (s.spans > 1 ? at.column / (mx ? 32 : SPAN) : 0)] = factor;
        }
        if (AHEAD)
            batch = next;
    }
    return exact;
}

#endif
