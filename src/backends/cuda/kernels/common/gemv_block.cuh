/* SPDX-License-Identifier: MIT
 * The experts of a handful of tokens without a sort, in two kernels. Weights are the 16 rows of mma.sync:
 * 8 rows of the matrix with a step's first 64 bytes, and the same with the other 64. Its columns are not
 * tokens but pieces of x, so that every piece's sum comes out by itself and takes its own scale. GEMM2
 * runs through all slots of a token, so that its sum is the combined one, in one order. */
#ifndef CMOE_KERNELS_GEMV_BLOCK_CUH
#define CMOE_KERNELS_GEMV_BLOCK_CUH

#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/gemv_finish.cuh"
#include "backends/cuda/kernels/common/gemv_ring.cuh"
#include "backends/cuda/kernels/common/gemv_rows.cuh"

/* ---- a step out of the ring ---- */

/* Eight 4-bit codes as f16 pairs, in the order of in_code_order: e2m1 by way of e4m3, whose values are
 * 2^-6 of them; integers `flip` and `zero` as in operands4, but every other pair is made of 16 times the
 * code. */
template <int TYPE> DEV void operands4_f16(uint32_t word, uint32_t flip, uint32_t zero, uint32_t *out)
{
    if (TYPE == CMOE_E2M1) {
        const uint32_t even = ((word << 4) & 0x80808080) | ((word << 2) & 0x1c1c1c1c);
        const uint32_t odd = (word & 0x80808080) | ((word >> 2) & 0x1c1c1c1c);
        uint32_t pairs[4];
        operands8<CMOE_E4M3>(even, 0, 0, pairs);
        operands8<CMOE_E4M3>(odd, 0, 0, pairs + 2);
        out[0] = pairs[0];
        out[1] = pairs[2];
        out[2] = pairs[1];
        out[3] = pairs[3];
        return;
    }
    const uint32_t low = 0x64006400 | (flip & 0x000f000f), high = 0x64006400 | (flip & 0x00f000f0);
    const uint32_t offset = sub_f16x2(0x63806380, zero); /* 960 - (1024 + zero) */
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        out[i] = sub_f16x2((word & 0x000f000f) ^ low, zero);
        asm("fma.rn.f16x2 %0, %1, %2, %3;"
            : "=r"(out[i + 1])
            : "r"((word & 0x00f000f0) ^ high), "r"(0x2c002c00), "r"(offset)); /* by 2^-4 */
        word >>= 8;
    }
}

/* Four or eight codes of a word as operands, pairs in the order of x; i4, e2m1: 4, else 2. */
template <int W, int OP> DEV void operands(uint32_t word, uint32_t flip, uint32_t zero, uint32_t *out)
{
    constexpr int TYPE = piece_of<W>::TYPE;
    if (piece_of<W>::BITS == 4) {
        if (OP == CMOE_F16)
            operands4_f16<TYPE>(word, flip, zero, out);
        else
            operands4<OP, TYPE>(word, flip, zero, out);
        return;
    }
    operands8<TYPE>(word, flip, zero, out);
    if (OP == CMOE_BF16) {
        out[0] = bf16x2_of_f16x2(out[0]);
        out[1] = bf16x2_of_f16x2(out[1]);
    }
}

/* Eight 4-bit integers as bytes, the even ones first. PLAIN: 16 times them, and no zero points. */
template <bool PLAIN> DEV void bytes_of(uint32_t word, bool is_signed, uint32_t zero, uint32_t *out)
{
    if (PLAIN) {
        const uint32_t flip = is_signed ? 0 : 0x88888888;
        out[0] = (word ^ flip) << 4 & 0xf0f0f0f0;
        out[1] = (word ^ flip) & 0xf0f0f0f0;
        return;
    }
    word ^= is_signed ? 0x88888888 : 0;
    out[0] = (((word & 0x0f0f0f0f) | 0x80808080) - zero) ^ 0x80808080;
    out[1] = (((word >> 4 & 0x0f0f0f0f) | 0x80808080) - zero) ^ 0x80808080;
}

/* The zero point of a lane's piece, loaded late: few schemes have them. */
template <int W, int OP, bool FIRST, bool PLAIN>
DEV uint32_t zero_of(const cmoe_gpu_gemv &s, const int *experts, const cursor &c, int piece)
{
    using shape = piece_of<W>;
    uint32_t zero = shape::BITS == 4 ? 8 : 128;
    if (!PLAIN && s.g.w.zero) {
        const int e = experts[c.token * s.g.call.slots + c.slot], n = lane_row<FIRST>(s, c.strip);
        if (e >= 0 && n < s.used) {
            const cmoe_gpu_half &h = s.g.experts[e].half[FIRST ? lane_half<FIRST>(s) : 2];
            zero = scales_of(s.g, h, n, s.shift).zero[min((piece * shape::COLUMNS) >> s.shift, s.scales - 1)];
        }
    }
    constexpr int TYPE = shape::BITS == 4 ? OP : (int)CMOE_F16;
    return zero_operand<TYPE, shape::BITS>(zero);
}

/* Whether a lane's part of its column is a piece of x, and not zeros. */
template <int W> DEV bool has_column()
{
    const int lane = threadIdx.x % 32;
    return piece_of<W>::BITS == 16 || lane / 4 % 4 == lane % 4;
}

/* The products of a step: the sums of two neighbouring pieces of the lane's row, of NV those of their halves.
 * 16-bit weights have no scales, and all columns of mma.sync are the same row of x. */
template <int W, int OP>
DEV void multiply(const cmoe_gpu_gemv &s, uint32_t codes, uint32_t x, const uint32_t *zero, uint32_t *b, float *out)
{
    constexpr bool NV = W == CMOE_GEMV_NV;
    using shape = piece_of<W>;
    constexpr int EACH = shape::COLUMNS / 2;
    const bool is_signed = s.g.w.dtype == CMOE_I8 || s.g.w.dtype == CMOE_I4;
    const uint32_t flip = is_signed ? (shape::BITS == 4 ? 0x88888888 : 0x80808080) : 0;
    uint32_t w[2][4];
    float d[2][4] = {};
    load_shared(codes, w[0]);
    load_shared(codes + CODES / 2, w[1]);
#pragma unroll
    for (int i = 0; i < EACH; i += 4)
        load_shared_if(has_column<W>(), x + i * 4, b + i);
#pragma unroll
    for (int i = 0; i < 2 && shape::BITS == 16; i++) {
        const uint32_t a[4] = {w[0][2 * i], w[1][2 * i], w[0][2 * i + 1], w[1][2 * i + 1]};
        mma<OP>(d[i], a, b + 2 * i);
    }
#pragma unroll
    for (int i = 0; i < 4 && shape::BITS < 16; i++) {
        uint32_t low[4], high[4];
        operands<W, OP>(w[0][i], flip, zero[0], low);
        operands<W, OP>(w[1][i], flip, zero[1], high);
#pragma unroll
        for (int j = 0; j < EACH / 8; j++) {
            const uint32_t a[4] = {low[2 * j], high[2 * j], low[2 * j + 1], high[2 * j + 1]};
            mma<OP>(d[NV ? i / 2 : (i + j) % 2], a, b + (EACH / 8 * i + j) * 2);
        }
    }
    const bool upper = threadIdx.x & 2; /* columns 4..7 are of the other 64 bytes */
    if (NV) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[i] = upper ? d[i % 2][2 + i / 2] : d[i % 2][i / 2];
        return;
    }
    out[0] = upper ? d[0][2] + d[1][2] : d[0][0] + d[1][0];
    out[1] = upper ? d[0][3] + d[1][3] : d[0][1] + d[1][1];
}

/* The same of integers, whose sums are exact. */
template <int W, bool PLAIN>
DEV void multiply_bytes(const cmoe_gpu_gemv &s, uint32_t codes, uint32_t x, const uint32_t *zero, uint32_t *b, float *out)
{
    constexpr int WORDS = piece_of<W>::COLUMNS / 4;
    uint32_t w[2][4];
    int d[2][4] = {};
    load_shared(codes, w[0]);
    load_shared(codes + CODES / 2, w[1]);
#pragma unroll
    for (int i = 0; i < WORDS; i += 4)
        load_shared_if(has_column<W>(), x + i * 4, b + i);
#pragma unroll
    for (int i = 0; i < WORDS / 2; i++) {
        uint32_t low[2] = {w[0][2 * i % 4], w[0][(2 * i + 1) % 4]}, high[2] = {w[1][2 * i % 4], w[1][(2 * i + 1) % 4]};
        if (piece_of<W>::BITS == 4) {
            bytes_of<PLAIN>(w[0][i], s.g.w.dtype == CMOE_I4, zero[0], low);
            bytes_of<PLAIN>(w[1][i], s.g.w.dtype == CMOE_I4, zero[1], high);
        }
        const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
        mma_i8(d[i % 2], a, b + 2 * i);
    }
    const bool upper = threadIdx.x & 2;
    const float by = PLAIN && piece_of<W>::BITS == 4 ? 0.0625f : 1.0f;
    out[0] = (float)(upper ? d[0][2] + d[1][2] : d[0][0] + d[1][0]) * by;
    out[1] = (float)(upper ? d[0][3] + d[1][3] : d[0][1] + d[1][1]) * by;
}

/* The next step to multiply: where the lane's column of x lies at step 0, the row's first factor; where
 * in its words plain MX has the lane's scales; the lane's part of its column. */
template <int W, int OP> struct demand {
    cursor at;
    uint32_t x, factors, byte;
    float factor;
    uint32_t column[piece_of<W>::COLUMNS * operand_bytes<OP> / 4];
};

template <int W, int OP, bool FIRST> DEV void find_x(const cmoe_gpu_gemv &s, const work &k, demand<W, OP> &to)
{
    constexpr int BYTES = piece_of<W>::COLUMNS * operand_bytes<OP>;
    const int lane = threadIdx.x % 32, token = to.at.token - k.first_token;
    const int row = FIRST ? token : token * s.g.call.slots + to.at.slot;
    const int column = piece_of<W>::BITS == 16 ? (lane / 4 & 4) + lane % 4 : lane / 4;
    to.x = shared_address(k.memory) + s.x_at + row * s.steps * 8 * BYTES + column * BYTES;
    to.factors = shared_address(k.memory) + s.factor_at + row * s.spans * 4;
    to.factor = bits_f32(load_shared(to.factors));
    if (W == CMOE_E2M1 || W == CMOE_GEMV_MX8) {
        const cmoe_gpu_rows &h = s.half[lane_half<FIRST>(s)];
        const int n = lane_row<FIRST>(s, to.at.strip) * h.step + h.first;
        to.byte = (n * s.scales & 2) + (W == CMOE_E2M1 ? 2 : 1) * (lane % 4);
    }
}

/* The scales of the lane's two neighbouring pieces, NV: of their halves, times the factor of x. */
template <int W, int OP, bool PLAIN>
DEV void load_scales(const cmoe_gpu_gemv &s, const demand<W, OP> &to, uint32_t scales, float *scale)
{
    using shape = piece_of<W>;
    const int quad = threadIdx.x % 4, step = to.at.step, column = (step * 8 + 2 * quad) * shape::COLUMNS;
    float factor = to.factor;
    if (s.spans > 1)
        factor = bits_f32(load_shared(to.factors + (column >> s.x_shift) * 4));
    scale[0] = scale[1] = factor;
    if (W == CMOE_E2M1 && s.x_shift == 5)
        scale[1] = bits_f32(load_shared(to.factors + (column / 32 + 1) * 4));
    if (W == CMOE_GEMV_NV) {
        uint32_t pairs[2];
        operands8<CMOE_E4M3>(load_shared(scales + quad * 4), 0, 0, pairs);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float2 values = __half22float2(*(const __half2 *)&pairs[i]);
            scale[2 * i] = factor * values.x;
            scale[2 * i + 1] = factor * values.y;
        }
    } else if (PLAIN && W == CMOE_E2M1) {
        const uint32_t both = load_shared(scales + (to.byte & 12)) >> (to.byte & 2) * 8;
        scale[0] *= scale_of_e8m0(both & 255);
        scale[1] *= scale_of_e8m0(both >> 8 & 255);
    } else if (PLAIN && W == CMOE_GEMV_MX8) {
        scale[0] *= scale_of_e8m0(load_shared(scales + (to.byte & 4)) >> (to.byte & 3) * 8 & 255);
    } else if (shape::BITS < 16) {
        const int first = 2 * quad * s.step_scales / 8, second = (2 * quad + 1) * s.step_scales / 8;
        scale[0] *= bits_f32(load_shared(scales + first * 4));
        if (shape::BITS == 4)
            scale[1] *= bits_f32(load_shared(scales + second * 4));
    }
}

/* What a step adds to the lane's row. */
template <int W, int OP, bool FIRST, bool PLAIN>
DEV float step_sum(const cmoe_gpu_gemv &s, const int *experts, demand<W, OP> &to, uint32_t codes)
{
    using shape = piece_of<W>;
    float scale[4], d[4];
    uint32_t zero[2] = {0, 0};
    load_scales<W, OP, PLAIN>(s, to, ring_of<W>::scales(codes), scale);
#pragma unroll
    for (int h = 0; h < 2 && (W == CMOE_I8 || W == CMOE_I4); h++)
        zero[h] = zero_of<W, OP, FIRST, PLAIN>(s, experts, to.at, to.at.step * 8 + 4 * h + (int)(threadIdx.x % 4));
    const uint32_t x = to.x + to.at.step * shape::STEP * operand_bytes<OP>;
    if (OP == CMOE_I8)
        multiply_bytes<W, PLAIN>(s, codes, x, zero, to.column, d);
    else
        multiply<W, OP>(s, codes, x, zero, to.column, d);
    if (shape::BITS == 16)
        return d[0] * scale[0];
    if (W == CMOE_GEMV_NV)
        return d[0] * scale[0] + d[1] * scale[1] + d[2] * scale[2] + d[3] * scale[3];
    return shape::BITS == 8 ? (d[0] + d[1]) * scale[0] : d[0] * scale[0] + d[1] * scale[1];
}

/* A warp's sums of a tile, from the lanes that hold a row's pieces. */
template <int W> DEV void keep_sums(const cmoe_gpu_gemv &s, const work &k, int tile, int part, float sum)
{
    if (piece_of<W>::BITS < 16) /* else lanes 1 and 3 hold what 0 and 2 do */
        sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    const int lane = threadIdx.x % 32;
    if (lane % 4 == 0)
        k.part(s)[(tile * ROWS + lane / 4) * parts(k) + part] = sum;
}

/* ---- a block ---- */

template <int W, bool FIRST, bool PLAIN>
DEV void fill(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, supply &from)
{
    from.at = first_step<FIRST>(s, k);
    if (from.at.left > 0)
        find_row<FIRST, PLAIN>(s, known, from);
#pragma unroll 1
    for (int slot = 0; slot < s.depth; slot++) {
        if (from.at.left > 0)
            bring<W, FIRST, PLAIN>(s, known, from, ring_of<W>::codes(s, k, slot));
        commit_copies();
    }
}

template <int W, int OP, bool FIRST, bool PLAIN>
DEV void empty(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, supply &from)
{
    demand<W, OP> to = {};
    to.at = first_step<FIRST>(s, k);
    if (to.at.left == 0)
        return;
    find_x<W, OP, FIRST>(s, k, to);
    int part = (int)(threadIdx.x / 32) - warp_of(k, to.at.tile * k.tile_steps); /* 0 of tiles that begin here */
    const uint32_t first = ring_of<W>::codes(s, k, 0), last = ring_of<W>::codes(s, k, s.depth - 1);
    uint32_t slot = first;
    float sum = 0;
#pragma unroll 1
    while (true) {
        if (FIRST)
            wait_copies<CMOE_GEMV_DEPTH - 1>();
        else
            wait_step(s.depth);
        __syncwarp(); /* a row's scales were brought by one of its lanes */
        sum += step_sum<W, OP, FIRST, PLAIN>(s, known.experts, to, slot);
        __syncwarp();
        if (from.at.left > 0)
            bring<W, FIRST, PLAIN>(s, known, from, slot);
        commit_copies();
        if (FIRST && from.at.left == s.release)
            depend_release();
        slot = slot == last ? first : slot + ring_of<W>::BYTES;
        to.at.left--;
        if (++to.at.step < s.steps && to.at.left > 0)
            continue;
        const int tile = to.at.tile;
        if (next_row<FIRST>(s, to.at) || to.at.left == 0) {
            keep_sums<W>(s, k, tile, part, sum);
            sum = 0;
            part = 0;
        }
        if (to.at.left == 0)
            return;
        find_x<W, OP, FIRST>(s, k, to);
    }
}

template <int W, int OP, bool FIRST>
DEV void multiply_all(const cmoe_gpu_gemv &s, const work &k, const slots_of &known, supply &from)
{
    if (s.plain)
        empty<W, OP, FIRST, true>(s, k, known, from);
    else
        empty<W, OP, FIRST, false>(s, k, known, from);
}

/* The factors of NV's matrices. */
template <bool FIRST> DEV void find_globals(const cmoe_gpu_gemv &s, int expert, float *to)
{
    if (expert < 0)
        return;
    const cmoe_gpu_half *half = s.g.experts[expert].half + (FIRST ? 0 : 2);
    to[0] = *half[0].global;
    to[1] = FIRST && s.gated ? *half[1].global : 0.0f;
}

/* A block's part of a kernel. ids: those of a call that routes, of which GEMM1 has waited, and whose weights are
 * known; NULL: the call's. GEMM1 lets GEMM2 start late, so that its weights do not hold up GEMM1's. */
template <int W, int OP, bool FIRST, bool ROUTES>
DEV void gemv(const cmoe_gpu_gemv &s, uint8_t *memory, const int32_t *ids, slots_of &known)
{
    if (FIRST && !ROUTES) /* nothing says that the ids are there before; GEMM2's are, since GEMM1 waited */
        depend_wait();
    const cmoe_gpu_call &c = s.g.call;
    const int slot = threadIdx.x;
    int expert = -1;
    if (slot < (ROUTES ? token_count(c) : c.tokens) * c.slots)
        expert = local_expert(c, ROUTES ? ids[slot] : c.ids[slot]);
    if (slot < CMOE_GEMV_ROWS)
        known.experts[slot] = expert;
    const work k = cut_work<FIRST>(s, memory);
    float weight = 1;
    if (!ROUTES && slot < k.tokens * s.g.call.slots)
        weight = row_weight(s.g.call, slot);
    float global[2] = {0, 0};
    if (W == CMOE_GEMV_NV && slot < k.tokens * s.g.call.slots)
        find_globals<FIRST>(s, expert, global);
    batch_of<W, OP> rows;
    constexpr bool EARLY = FIRST && (piece_of<W>::BITS > 4 || OP == CMOE_BF16); /* else registers are short */
    if (EARLY) /* before weights are asked for, which what is asked for later would wait for */
        rows = load_batch<W, OP, FIRST>(s, k, known, threadIdx.x / 32);
    __syncthreads(); /* the experts */
    supply from;
    if (s.plain)
        fill<W, FIRST, true>(s, k, known, from);
    else
        fill<W, FIRST, false>(s, k, known, from);
    if (FIRST && from.at.left <= s.release)
        depend_release();
    for (int i = threadIdx.x; i < k.row_count; i += THREADS)
        k.amax(s)[i] = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < k.tiles * ROWS * parts(k); i += THREADS)
        k.part(s)[i] = 0;
    if (!ROUTES && slot < CMOE_GEMV_ROWS)
        known.weights[slot] = weight;
    if (!ROUTES && slot == 0 && s.fixed)
        known.fixed = *s.fixed;
    if (W == CMOE_GEMV_NV && slot < CMOE_GEMV_ROWS) {
        known.global[0][slot] = global[0];
        known.global[1][slot] = global[1];
    }
    __syncthreads();
    if (!FIRST)
        depend();
    if (!EARLY)
        rows = load_batch<W, OP, FIRST>(s, k, known, threadIdx.x / 32);
    /* Codes of 4 bits are decoded to f16 with fewer instructions: bf16 rows follow where they can. */
    constexpr bool MAY = piece_of<W>::BITS == 4 && OP == CMOE_BF16;
    const bool exact = stage_rows<W, OP, MAY ? (int)CMOE_F16 : OP, FIRST, ROUTES>(s, k, known, rows);
    if (!MAY || __syncthreads_and(exact)) {
        __syncthreads();
        multiply_all<W, MAY ? (int)CMOE_F16 : OP, FIRST>(s, k, known, from);
    } else {
        stage_rows<W, OP, OP, FIRST, ROUTES>(s, k, known, load_batch<W, OP, FIRST>(s, k, known, threadIdx.x / 32));
        __syncthreads();
        multiply_all<W, OP, FIRST>(s, k, known, from);
    }
    __syncthreads();
    finish<FIRST, W == CMOE_GEMV_NV>(s, k, known);
}

#endif
