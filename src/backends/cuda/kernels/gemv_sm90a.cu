/* SPDX-License-Identifier: MIT
 * The experts of a handful of tokens without a sort: a warp owns an output, reads its weights in
 * 16-byte pieces straight into registers, two batches in flight, and multiplies them in f32 by rows
 * that its block has quantised into shared memory itself. GEMM1 holds gate and up of a unit; GEMM2
 * runs through all slots of a token, so that its sum is the combined one, in one order. */
#include "backends/cuda/kernels/common/activation.cuh"
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/operand.cuh"
#include "backends/cuda/kernels/common/scale.cuh"

enum { THREADS = 512, WARPS = THREADS / 32, LOADS = 8, SPAN = 128, MOST_ROWS = 64 };

/* Codes are decoded in groups of one word, or two of 16-bit codes, that go with 4 or 8 columns of x. */
template <int W> struct piece_of {
    static constexpr int BITS = W == CMOE_BF16 || W == CMOE_F16 ? 16 : (W == CMOE_E4M3 || W == CMOE_I8 ? 8 : 4);
    static constexpr int COLUMNS = 128 / BITS, VECTORS = COLUMNS / 4;
    static constexpr int WORDS = BITS == 16 ? 2 : 1, GROUPS = 4 / WORDS, GROUP = COLUMNS / GROUPS;
};

/* Where the codes and scales of a row lie. */
struct matrix_row {
    const uint8_t *codes, *scales;
    int64_t col_stride;
};

/* What a block has in shared memory: vector v of 4 columns of piece p of token t's rows lies at
 * x[(t * VECTORS + v) * row + p], so that neighbouring lanes read neighbouring vectors. */
struct layout {
    float4 *x;
    cmoe_gpu_half *half; /* of slot rows: gate and up, or down; data NULL: the slot is not computed */
    int tokens, pieces;  /* pieces of a matrix row */
    int row;             /* pieces of a token: of one row (GEMM1), or of all slots' rows */
    int scale_type, shift, groups, scale_bytes; /* of the weights; columns a scale: 1 << shift */
    int grid_shift;                             /* rows a scale: 1 << grid_shift */
    bool whole;                                 /* every piece is one aligned load */

    /* Row n of a half; codes NULL: it is not computed. */
    MEMBER matrix_row row_of(int at, int n) const
    {
        const cmoe_gpu_half &h = half[at];
        const int grid = (n * h.step + h.first) >> grid_shift;
        return {h.data ? h.data + n * h.row_stride : NULL,
                (const uint8_t *)h.scale + (int64_t)grid * groups * scale_bytes, h.col_stride};
    }
};

DEV float2 floats_of_f16x2(uint32_t v)
{
    return __half22float2(*(const __half2 *)&v);
}

/* A weight's scale: f32 as a rule. */
DEV float scale_number(int type, uint32_t code)
{
    if (type == CMOE_F32)
        return bits_f32(code);
    if (type == CMOE_E8M0)
        return code == 255 ? bits_f32(0x7fc00000) : (code ? bits_f32(code << 23) : 0x1p-127f);
    return decode(type, code);
}

/* A group's codes as numbers, in the order of columns. */
template <int W> DEV void expand(const uint32_t *word, uint32_t flip, uint32_t zero, float *out)
{
    using shape = piece_of<W>;
    if (W == CMOE_BF16) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            out[2 * i] = bits_f32(word[i] << 16);
            out[2 * i + 1] = bits_f32(word[i] & 0xffff0000);
        }
        return;
    }
    uint32_t pairs[4] = {word[0], word[shape::WORDS - 1], 0, 0};
    if (shape::BITS == 8)
        operands8<W>(word[0], flip, zero, pairs);
    if (shape::BITS == 4)
        operands4<CMOE_F16, W>(word[0], flip, zero, pairs);
#pragma unroll
    for (int i = 0; i < shape::GROUP / 2; i++) {
        const float2 v = floats_of_f16x2(pairs[i]);
        out[shape::BITS == 4 ? i : 2 * i] = v.x;
        out[shape::BITS == 4 ? i + 4 : 2 * i + 1] = v.y;
    }
}

/* The pieces of one matrix row that do not lie at 16 bytes, or that end behind the last column. */
template <int W> DEV uint4 load_slowly(const uint8_t *row, int64_t col_stride, int k, int limit)
{
    constexpr int BITS = piece_of<W>::BITS;
    uint32_t word[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
        word[j] = 0;
#pragma unroll 1
        for (int i = 0; i < 32 / BITS; i++) {
            const int64_t at = k + j * (32 / BITS) + i;
            uint32_t code = 0;
            if (at < limit)
                code = BITS == 16 ? *(const uint16_t *)(row + at * (col_stride ? col_stride : 2))
                       : BITS == 8 ? row[at * (col_stride ? col_stride : 1)]
                                   : row[at / 2] >> (4 * (at & 1)) & 15;
            word[j] |= code << (i * BITS);
        }
    }
    return make_uint4(word[0], word[1], word[2], word[3]);
}

DEV uint4 load_once(const uint8_t *at)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

/* An output of a warp, and the next batch of its pieces. */
struct place {
    int unit, token, slot, n, batch; /* slot: of GEMM1, the unit's slot row */
};

template <bool FIRST> DEV place place_of(const cmoe_gpu_gemv &s, int unit)
{
    const int slot = unit / s.columns;
    return {unit, FIRST ? slot / s.g.call.slots : slot, slot, unit - slot * s.columns, 0};
}

/* LOADS pieces a lane with their scales: of GEMM1, half of them of either half. */
template <int W, bool FIRST> struct batch {
    using shape = piece_of<W>;
    static constexpr int STEPS = FIRST ? LOADS / 2 : LOADS; /* of 32 pieces */
    uint4 w[LOADS];
    uint32_t scale[LOADS];

    static MEMBER int piece_at(const place &at, int step)
    {
        return (at.batch * STEPS + step) * 32 + (int)(threadIdx.x % 32);
    }

    MEMBER void load_piece(const cmoe_gpu_gemv &s, const layout &m, int j, const matrix_row &r, int q)
    {
        const int k = q * shape::COLUMNS;
        if (!r.codes)
            return;
        if (m.whole || (s.vectors && k + shape::COLUMNS <= s.g.k))
            w[j] = load_once(r.codes + q * 16);
        else
            w[j] = load_slowly<W>(r.codes, r.col_stride, k, s.g.k);
        if (shape::BITS < 16)
            scale[j] = raw_scale(m.scale_type, r.scales, k >> m.shift);
    }

    MEMBER void load(const cmoe_gpu_gemv &s, const layout &m, const place &at, uint32_t reciprocal)
    {
        matrix_row r[2];
        if (FIRST) {
            r[0] = m.row_of(2 * at.slot, at.n);
            r[1] = m.row_of(2 * at.slot + 1, at.n);
            if (!s.gated)
                r[1].codes = NULL;
        }
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            const int p = piece_at(at, FIRST ? j / 2 : j);
            w[j] = make_uint4(0, 0, 0, 0);
            scale[j] = 0;
            if (p >= m.row)
                continue;
            if (FIRST) {
                load_piece(s, m, j, r[j % 2], p);
            } else {
                const int part = m.pieces == 1 ? p : (int)__umulhi((uint32_t)p, reciprocal);
                load_piece(s, m, j, m.row_of(at.token * s.g.call.slots + part, at.n), p - part * m.pieces);
            }
        }
    }

    /* The zero point of piece j, loaded late: few schemes have them. */
    MEMBER uint32_t zero_of(const cmoe_gpu_gemv &s, const layout &m, const place &at, int j, int p) const
    {
        uint32_t zero = shape::BITS == 4 ? 8 : 128;
        if (shape::BITS < 16 && s.g.w.zero) {
            const int part = FIRST ? 0 : p / m.pieces, shift = span_shift(s.g.w);
            const cmoe_gpu_half &h = m.half[FIRST ? 2 * at.slot + j % 2 : at.token * s.g.call.slots + part];
            if (h.data)
                zero = scales_of(s.g, h, at.n, shift).zero[(p - part * m.pieces) * shape::COLUMNS >> shift];
        }
        return zero_operand<CMOE_F16, shape::BITS>(zero);
    }

    /* sum[h] += pieces of half h (GEMM2: 0) times x. */
    MEMBER void add(const cmoe_gpu_gemv &s, const layout &m, const place &at, float *sum) const
    {
        const bool is_signed = s.g.w.dtype == CMOE_I8 || s.g.w.dtype == CMOE_I4;
        const uint32_t flip = is_signed ? (shape::BITS == 4 ? 0x88888888 : 0x80808080) : 0;
        const float4 *x = m.x + (int64_t)at.token * shape::VECTORS * m.row;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            const int p = piece_at(at, step);
            if (p >= m.row)
                break;
            float part[2] = {0, 0};
            uint32_t zero[2] = {0, 0};
#pragma unroll
            for (int h = 0; h < (FIRST ? 2 : 1); h++)
                zero[h] = zero_of(s, m, at, FIRST ? 2 * step + h : step, p);
#pragma unroll
            for (int g = 0; g < shape::GROUPS; g++) {
                float v[shape::GROUP], c[shape::GROUP];
#pragma unroll
                for (int i = 0; i < shape::GROUP / 4; i++)
                    *(float4 *)(v + 4 * i) = x[(g * (shape::GROUP / 4) + i) * m.row + p];
#pragma unroll
                for (int h = 0; h < (FIRST ? 2 : 1); h++) {
                    const uint4 &from = w[FIRST ? 2 * step + h : step];
                    const uint32_t words[4] = {from.x, from.y, from.z, from.w};
                    expand<W>(words + g * shape::WORDS, flip, zero[h], c);
#pragma unroll
                    for (int i = 0; i < shape::GROUP; i++)
                        part[h] = fmaf(v[i], c[i], part[h]);
                }
            }
#pragma unroll
            for (int h = 0; h < (FIRST ? 2 : 1); h++) {
                const uint32_t code = scale[FIRST ? 2 * step + h : step];
                sum[h] += shape::BITS == 16 ? part[h] : part[h] * scale_number(m.scale_type, code);
            }
        }
    }
};

/* ---- rows of x into shared memory ---- */

/* Four columns of a row from a multiple of 4 on, zero from `limit` on. */
DEV float4 four_columns(int dtype, const char *row, int column, int limit)
{
    const char *at = row + (int64_t)column * (dtype == CMOE_F32 ? 4 : 2);
    if (column + 4 <= limit && dtype == CMOE_F32 && (uintptr_t)at % 16 == 0)
        return __ldcg((const float4 *)at);
    if (column + 4 <= limit && dtype == CMOE_BF16 && (uintptr_t)at % 8 == 0) {
        const uint2 w = __ldcg((const uint2 *)at);
        return make_float4(bits_f32(w.x << 16), bits_f32(w.x & 0xffff0000), bits_f32(w.y << 16),
                           bits_f32(w.y & 0xffff0000));
    }
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++)
        v[i] = column + i < limit ? load(dtype, row, column + i) : 0.0f;
    return make_float4(v[0], v[1], v[2], v[3]);
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

/* v as e4m3 under the scale, decoded again: the same codes as quant_e4m3_sm90a.cu. */
DEV float requantized(float v, float scale)
{
    uint16_t code;
    uint32_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(code) : "f"(0.0f), "f"(__fdiv_rn(v, scale)));
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"(code));
    return floats_of_f16x2(pair).x * scale;
}

/* Rows that the tokens have, quantised if x is, times what the slot weighs; a warp 128 columns. */
template <int W, bool FIRST> DEV void stage_rows(const cmoe_gpu_gemv &s, const layout &m, uint32_t *amax)
{
    using shape = piece_of<W>;
    const int slots = s.g.call.slots, rows = FIRST ? m.tokens : m.tokens * slots, lane = threadIdx.x % 32;
    const int spans = (m.pieces * shape::COLUMNS + SPAN - 1) / SPAN, warp = threadIdx.x / 32;
    const bool quantized = s.g.x.dtype == CMOE_E4M3, by_row = quantized && s.g.x.scaling == CMOE_SCALE_TOKEN;
    for (int i = warp; by_row && i < rows * spans; i += WARPS) {
        const int r = i / spans;
        if (!FIRST && !m.half[r].data)
            continue;
        const char *row = (const char *)s.from + r * s.from_stride;
        const uint32_t top = warp_amax(four_columns(s.from_dtype, row, i % spans * SPAN + lane * 4, s.g.k));
        if (lane == 0)
            atomicMax(&amax[r], top); /* a maximum has one value in any order */
    }
    if (by_row)
        __syncthreads();
#pragma unroll 2
    for (int i = warp; i < rows * spans; i += WARPS) {
        const int r = i / spans, column = i % spans * SPAN + lane * 4, p = column / shape::COLUMNS;
        const bool counts = FIRST || m.half[r].data;
        const char *row = (const char *)s.from + r * s.from_stride;
        float4 v = make_float4(0, 0, 0, 0);
        if (counts)
            v = four_columns(s.from_dtype, row, column, s.g.k);
        if (quantized) {
            const float scale = scale_f32(CMOE_E4M3, bits_f32(by_row ? amax[r] : warp_amax(v)));
            v = make_float4(requantized(v.x, scale), requantized(v.y, scale), requantized(v.z, scale),
                            requantized(v.w, scale));
        }
        if (!FIRST && s.weigh && counts) {
            const float weight = row_weight(s.g.call, r);
            v = make_float4(v.x * weight, v.y * weight, v.z * weight, v.w * weight);
        }
        const int token = FIRST ? r : r / slots, first = FIRST ? 0 : r % slots * m.pieces;
        if (p < m.pieces)
            m.x[(token * shape::VECTORS + column % shape::COLUMNS / 4) * m.row + first + p] =
                counts ? v : make_float4(0, 0, 0, 0);
    }
}

/* ---- a block ---- */

/* Where the rows' matrices lie; 64 bytes of a half at a time. */
template <bool FIRST> DEV void find_halves(const cmoe_gpu_gemv &s, const layout &m)
{
    const int each = FIRST ? 2 : 1, n = m.tokens * s.g.call.slots * each;
    for (int i = threadIdx.x; i < n; i += THREADS) {
        const int e = local_expert(s.g.call, s.g.call.ids[i / each]);
        if (e >= 0)
            m.half[i] = s.g.experts[e].half[FIRST ? i % each : 2];
        else
            m.half[i].data = NULL;
    }
}

/* The sums of all lanes, in one order. */
DEV float warp_sum(float v)
{
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1)
        v += __shfl_xor_sync(0xffffffff, v, offset);
    return v;
}

/* One element of h. */
DEV void finish_h(const cmoe_gpu_gemv &s, const layout &m, const place &at, float gate, float up)
{
    const cmoe_gpu_half *h = m.half + 2 * at.slot;
    const float weight = s.g.weigh || s.p.weight_on == CMOE_WEIGHT_ON_ACT ? row_weight(s.g.call, at.slot) : 1.0f;
    if (!h[0].data)
        return;
    if (s.g.weigh) {
        gate *= weight;
        up *= weight;
    }
    if (s.g.bias) {
        gate += h[0].bias[(int64_t)at.n * h[0].step + h[0].first];
        up += s.gated ? h[1].bias[(int64_t)at.n * h[1].step + h[1].first] : 0.0f;
    }
    const float v = activation(s.p, gate, up) * (s.p.weight_on == CMOE_WEIGHT_ON_ACT ? weight : 1.0f);
    store(s.out_dtype, (char *)s.out + at.slot * s.out_stride, at.n, at.n < s.used ? v : 0.0f);
}

/* What the biases of a token's slots add to output n: a lane's share. */
DEV float biases(const cmoe_gpu_gemv &s, const layout &m, const place &at)
{
    float sum = 0;
    for (int slot = threadIdx.x % 32; s.g.bias && slot < s.g.call.slots; slot += 32) {
        const int row = at.token * s.g.call.slots + slot;
        const cmoe_gpu_half &h = m.half[row];
        if (h.data)
            sum += h.bias[(int64_t)at.n * h.step + h.first] * (s.weigh ? row_weight(s.g.call, row) : 1.0f);
    }
    return sum;
}

/* One element of y. */
DEV void finish_y(const cmoe_gpu_gemv &s, const place &at, float sum)
{
    char *y = (char *)s.out + at.token * s.out_stride;
    sum = at.n < s.used ? sum : 0.0f;
    if (s.accumulate != 0.0f)
        sum += s.accumulate * load(s.out_dtype, y, at.n);
    store(s.out_dtype, y, at.n, sum);
}

/* Adds `now`, whose place is `at`, and loads the batch behind it into `later`; false: it was the last. */
template <int W, bool FIRST>
DEV bool advance(const cmoe_gpu_gemv &s, const layout &m, place &at, int units, uint32_t reciprocal,
                 const batch<W, FIRST> &now, batch<W, FIRST> &later, float *sum)
{
    constexpr int EACH = 32 * batch<W, FIRST>::STEPS;
    const place here = at;
    const bool ends = (at.batch + 1) * EACH >= m.row;
    if (ends)
        at = place_of<FIRST>(s, at.unit + (int)gridDim.x * WARPS);
    else
        at.batch++;
    if (at.unit < units)
        later.load(s, m, at, reciprocal);
    now.add(s, m, here, sum);
    if (ends) {
        const float first = warp_sum(FIRST ? sum[0] : sum[0] + biases(s, m, here));
        const float second = FIRST ? warp_sum(sum[1]) : 0.0f;
        if (threadIdx.x % 32 == 0) {
            if (FIRST)
                finish_h(s, m, here, first, second);
            else
                finish_y(s, here, first);
        }
        sum[0] = sum[1] = 0;
    }
    return at.unit < units;
}

template <int W, bool FIRST> DEV void gemv(const cmoe_gpu_gemv &s)
{
    using shape = piece_of<W>;
    extern __shared__ float4 memory[];
    __shared__ uint32_t amax[MOST_ROWS];
    if (FIRST) /* nothing says that the ids are there before; GEMM2's are, since GEMM1 waited */
        depend();
    layout m;
    m.tokens = token_count(s.g.call);
    m.pieces = (s.g.k + shape::COLUMNS - 1) / shape::COLUMNS;
    m.row = FIRST ? m.pieces : m.pieces * s.g.call.slots;
    m.scale_type = scale_type(s.g.w);
    m.shift = span_shift(s.g.w);
    m.groups = (int)((s.g.a_cols + (1ll << m.shift) - 1) >> m.shift);
    m.scale_bytes = m.scale_type == CMOE_F32 ? 4 : (m.scale_type == CMOE_E8M0 ? 1 : 2);
    m.grid_shift = s.g.w.scaling == CMOE_SCALE_TENSOR ? 31 : (s.g.w.scaling == CMOE_SCALE_BLOCK ? 7 : 0);
    m.whole = s.vectors && s.g.k % shape::COLUMNS == 0;
    m.x = memory;
    m.half = (cmoe_gpu_half *)(memory + s.g.call.tokens * shape::VECTORS * m.row);
    if (threadIdx.x < MOST_ROWS)
        amax[threadIdx.x] = 0;
    find_halves<FIRST>(s, m);
    __syncthreads();
    const int units = m.tokens * s.columns * (FIRST ? s.g.call.slots : 1);
    const uint32_t reciprocal = 0xffffffffu / (uint32_t)m.pieces + 1;
    place at = place_of<FIRST>(s, (int)(threadIdx.x / 32 * gridDim.x + blockIdx.x));
    batch<W, FIRST> even, odd;
    bool more = at.unit < units;
    if (more)
        even.load(s, m, at, reciprocal);
    if (!FIRST)
        depend();
    stage_rows<W, FIRST>(s, m, amax);
    __syncthreads();
    float sum[2] = {0, 0};
#pragma unroll 1
    while (more) {
        more = advance(s, m, at, units, reciprocal, even, odd, sum);
        if (more)
            more = advance(s, m, at, units, reciprocal, odd, even, sum);
    }
}

/* Named by the type of w; i8 and i4 stand for unsigned codes too. */
#define ENTRY(name, w, first)                                                                      \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                       \
        name(const __grid_constant__ cmoe_gpu_gemv s)                                              \
    {                                                                                              \
        gemv<w, first>(s);                                                                         \
    }

ENTRY(cmoe_gemv1_bf16, CMOE_BF16, true)
ENTRY(cmoe_gemv1_f16, CMOE_F16, true)
ENTRY(cmoe_gemv1_e4m3, CMOE_E4M3, true)
ENTRY(cmoe_gemv1_i8, CMOE_I8, true)
ENTRY(cmoe_gemv1_i4, CMOE_I4, true)
ENTRY(cmoe_gemv1_e2m1, CMOE_E2M1, true)
ENTRY(cmoe_gemv2_bf16, CMOE_BF16, false)
ENTRY(cmoe_gemv2_f16, CMOE_F16, false)
ENTRY(cmoe_gemv2_e4m3, CMOE_E4M3, false)
ENTRY(cmoe_gemv2_i8, CMOE_I8, false)
ENTRY(cmoe_gemv2_i4, CMOE_I4, false)
ENTRY(cmoe_gemv2_e2m1, CMOE_E2M1, false)
