/* SPDX-License-Identifier: MIT
 * From a tile's sums to memory: scales, bias, activation, routing weight; 16-bit results by way of
 * shared memory as 16-byte stores, e4m3 results with the scale of each row's 128 units. */
#ifndef CMOE_KERNELS_EPILOGUE_CUH
#define CMOE_KERNELS_EPILOGUE_CUH

#include "backends/cuda/kernels/common/e4m3.cuh"
#include "backends/cuda/kernels/common/multiply.cuh"

/* Named barriers: one for each math warpgroup, one for both. */
enum { STRIP_BARRIER = 1, MATH_BARRIER = 3 };

/* One of the thread's rows of a box: what its sums are multiplied by and what is added. */
struct unit {
    int at; /* row of the half */
    bool inside;
    float scale[2], bias[2]; /* by box (ungated: its own box's in both) */
};

template <bool SCALED> DEV unit unit_at(const cmoe_gpu_wgmma &p, const work &w, const tile_facts &facts, int box, int in_box)
{
    unit u;
    u.at = w.m + (p.gated ? 0 : box * CMOE_WGMMA_HALF) + in_box;
    u.inside = u.at < p.out_used;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const int known = (p.gated ? i : box) * CMOE_WGMMA_HALF + in_box;
        u.scale[i] = SCALED ? facts.unit_scale[known] : 1.0f;
        u.bias[i] = facts.bias[known];
    }
    return u;
}

template <bool SCALED>
DEV unit unit_of(const cmoe_gpu_wgmma &p, const work &w, const tile_facts &facts, const place &at, int box, int r)
{
    return unit_at<SCALED>(p, w, facts, box, at.strip * 64 + at.warp * 16 + at.lane / 4 + r * 8);
}

/* 2^v and 1/v by the units for them; about 2 units in the last place, and 2^v's argument is rounded. */
DEV float power_of_two(float v)
{
    float out;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
    return out;
}

DEV float reciprocal(float v)
{
    float out;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
    return out;
}

DEV float silu(float v)
{
    const float LOG2_E = 1.4426950408889634f;
    return v * reciprocal(1.0f + power_of_two(v * -LOG2_E));
}

/* gate*sigmoid(alpha*gate)*(up + beta): silu has alpha 1, beta 0. */
DEV float gated_value(const cmoe_gpu_wgmma &p, float gate, float up)
{
    if (p.limit > 0.0f) {
        gate = gate > p.limit ? p.limit : gate;
        up = up > p.limit ? p.limit : (up < -p.limit ? -p.limit : up);
    }
    return gate * __fdividef(1.0f, 1.0f + expf(-p.alpha * gate)) * (up + p.beta);
}

/* Two neighbouring rows of x. */
struct row_pair {
    int row[2]; /* of the output; -1: none */
    float scale[2], weight[2];
};

template <bool SCALED> DEV row_pair pair_of(const tile_facts &facts, int n)
{
    const int2 row = *(const int2 *)(facts.row + n);
    const float2 weight = *(const float2 *)(facts.weight + n);
    const float2 scale = SCALED ? *(const float2 *)(facts.scale + n) : make_float2(1.0f, 1.0f);
    return {{row.x, row.y}, {scale.x, scale.y}, {weight.x, weight.y}};
}

/* PLAIN (the host says so): sums go out as they are but for their scales, or through silu(gate)*up. */
template <bool SCALED, bool PLAIN>
DEV float linear(const cmoe_gpu_wgmma &p, const unit &u, int box, const row_pair &f, int i, float sum)
{
    float v = SCALED ? sum * f.scale[i] * u.scale[box] : sum;
    if (!PLAIN && p.g.weigh)
        v *= f.weight[i];
    return PLAIN ? v : v + u.bias[box];
}

/* Row i's sum of a box as the output has it; with ACT it is gate's, and `up` the other. */
template <bool ACT, bool SCALED, bool PLAIN>
DEV float result(const cmoe_gpu_wgmma &p, const unit &u, const row_pair &f, int i, int box, float sum, float up)
{
    float v = linear<SCALED, PLAIN>(p, u, ACT ? 0 : box, f, i, sum);
    if (ACT && PLAIN)
        return silu(v) * linear<SCALED, PLAIN>(p, u, 1, f, i, up);
    if (ACT) {
        v = gated_value(p, v, linear<SCALED, PLAIN>(p, u, 1, f, i, up));
        v = p.weigh_act ? v * f.weight[i] : v;
    }
    return PLAIN || u.inside ? v : 0.0f;
}

/* Accumulator e of a box. */
template <bool ACT, bool SCALED, bool PLAIN, int COUNT>
DEV float value(const cmoe_gpu_wgmma &p, const unit &u, const row_pair &f, const float (&acc)[2][COUNT], int box,
                int e)
{
    return result<ACT, SCALED, PLAIN>(p, u, f, e & 1, box, acc[box][e], acc[1][e]);
}

/* Boxes of results: gate and up become one. */
template <bool ACT> constexpr int boxes = ACT ? 1 : 2;

/* f32: a thread stores what it has. */
template <bool ACT, bool SCALED, bool PLAIN, int COUNT>
DEV void store_f32(const cmoe_gpu_wgmma &p, const work &w, const tile_facts &facts, const place &at,
                   const float (&acc)[2][COUNT])
{
#pragma unroll
    for (int box = 0; box < boxes<ACT>; box++) {
        const unit u[2] = {unit_of<SCALED>(p, w, facts, at, box, 0), unit_of<SCALED>(p, w, facts, at, box, 1)};
        /* Sums of gate and up: box 1's columns follow all of box 0's. */
        const int shift = !ACT && p.gated && box ? p.g.split : 0;
#pragma unroll
        for (int j = 0; j < COUNT / 4; j++) {
            if (j * 8 >= w.count)
                break;
            const row_pair f = pair_of<SCALED>(facts, j * 8 + at.lane % 4 * 2);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const unit &mine = u[e / 2];
                const float v = value<ACT, SCALED, PLAIN>(p, mine, f, acc, box, j * 4 + e);
                if (f.row[e & 1] >= 0 && mine.at < p.out_cols)
                    p.g.out[(int64_t)f.row[e & 1] * p.g.out_stride + mine.at + shift] = v;
            }
        }
    }
}

/* Columns [column, column + 16 / BYTES) of a row of the output, which PLAIN has and aligned. */
template <int BYTES, bool PLAIN> DEV void store_chunk(const cmoe_gpu_wgmma &p, int row, int column, uint4 v)
{
    constexpr int EACH = 16 / BYTES;
    uint8_t *to = (uint8_t *)p.g.out + (row * p.g.out_stride + column) * BYTES;
    if (PLAIN || (column + EACH <= p.out_cols && (uintptr_t)to % 16 == 0)) {
        *(uint4 *)to = v;
        return;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const uint32_t code = words[i * BYTES / 4] >> (i * BYTES % 4 * 8);
        if (column + i < p.out_cols) {
            if (BYTES == 2)
                ((uint16_t *)to)[i] = (uint16_t)code;
            else
                to[i] = (uint8_t)code;
        }
    }
}

template <int TYPE> DEV uint32_t pack(float a, float b)
{
    if constexpr (TYPE == CMOE_BF16) {
        const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
        return *(const uint32_t *)&v;
    } else {
        const __half2 v = __floats2half2_rn(a, b);
        return *(const uint32_t *)&v;
    }
}

/* 16 bits: 8 rows of x of both boxes, or 16 of one, are transposed into shared memory as lines of 64 columns,
 * the 16-byte parts of a line swizzled; then 8 threads store a line. Two halves of the staging take turns. */
template <int OUT, bool ACT, bool SCALED, bool PLAIN, int COUNT>
DEV void store_16(const cmoe_gpu_wgmma &p, const work &w, const ring &r, const tile_facts &facts, const place &at,
                  const float (&acc)[2][COUNT])
{
    constexpr int ROWS = ACT ? 16 : 8, LINE = 128, HALF = STAGING_BYTES / 2;
    const int thread = (int)threadIdx.x % 128, line = at.lane / 16 * 8 + at.lane % 8, part = thread % 8;
    const uint32_t staging = shared_address(r.tail->staging[at.strip]);
    const uint32_t put = staging + line * LINE + (((at.warp * 2 + at.lane / 8 % 2) ^ (line & 7)) << 4);
    const uint32_t get = staging + thread / 8 * LINE + ((part ^ (thread / 8 & 7)) << 4);
    const int n = ACT ? thread / 8 : thread / 8 % 8;
    const int column = w.m + (ACT ? 0 : thread / 64) * CMOE_WGMMA_HALF + at.strip * 64 + part * 8;
    unit u[4]; /* of stmatrix's four matrices */
#pragma unroll
    for (int i = 0; i < 4; i++)
        u[i] = unit_of<SCALED>(p, w, facts, at, ACT ? 0 : i / 2, i % 2);
#pragma unroll
    for (int from = 0; from < COUNT * 2; from += ROWS) {
        if (from >= w.count)
            break;
        const int to = from + n < w.count ? facts.row[from + n] : -1, turn = from / ROWS % 2 * HALF;
        uint32_t m[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int j = from / 8 + (ACT ? i / 2 : 0), box = ACT ? 0 : i / 2, e = j * 4 + i % 2 * 2;
            const row_pair f = pair_of<SCALED>(facts, j * 8 + at.lane % 4 * 2);
            m[i] = pack<OUT>(value<ACT, SCALED, PLAIN>(p, u[i], f, acc, box, e),
                             value<ACT, SCALED, PLAIN>(p, u[i], f, acc, box, e + 1));
        }
        store_transposed(put + turn, m);
        group_sync(STRIP_BARRIER + at.strip, 128);
        if (to >= 0)
            store_chunk<2, PLAIN>(p, to, column, load_shared_16(get + turn));
    }
    group_sync(STRIP_BARRIER + at.strip, 128);
}

/* Largest magnitudes of 8 values over the 8 lanes that share lane % 4: at each step a lane gives half of its
 * values away. A lane is left with number lane/4 (bits 4, 3, 2 of the lane pick bits 2, 1, 0). */
DEV uint32_t largest_of(uint32_t (&top)[8], int lane)
{
#pragma unroll
    for (int half = 4; half > 0; half /= 2) {
        const bool high = lane & (half * 4);
#pragma unroll
        for (int i = 0; i < half; i++) {
            const uint32_t mine = high ? top[i + half] : top[i], yours = high ? top[i] : top[i + half];
            top[i] = max(mine, __shfl_xor_sync(0xffffffff, yours, half * 4));
        }
    }
    return top[0];
}

/* The activation's result as e4m3, only where it is plain: the tile's 128 units are one span of h's scales.
 * acc[0] becomes what is quantised, 32 rows of x at a time. */
template <int COUNT>
DEV void store_codes(const cmoe_gpu_wgmma &p, const work &w, const ring &r, const tile_facts &facts,
                     const place &at, float (&acc)[2][COUNT])
{
    constexpr int ROWS = 32, ROW = 64;
    const unit u[2] = {unit_of<false>(p, w, facts, at, 0, 0), unit_of<false>(p, w, facts, at, 0, 1)};
    ring_tail *t = r.tail;
#pragma unroll
    for (int from = 0; from < COUNT * 2; from += ROWS) {
        if (from >= w.count)
            break;
        uint32_t top[8];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const row_pair f = pair_of<false>(facts, from + j * 8 + at.lane % 4 * 2);
            top[j * 2] = top[j * 2 + 1] = 0;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float &v = acc[0][from / 2 + j * 4 + e];
                v = value<true, false, true>(p, u[e / 2], f, acc, 0, from / 2 + j * 4 + e);
                top[j * 2 + (e & 1)] = max(top[j * 2 + (e & 1)], __float_as_uint(v) & 0x7fffffff);
            }
        }
        const uint32_t largest = largest_of(top, at.lane);
        t->amax[at.strip * 4 + at.warp][from + at.lane / 8 * 8 + at.lane % 4 * 2 + at.lane / 4 % 2] = largest;
    }
    group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
    const int mine = (int)threadIdx.x - LOAD_THREADS;
    if (mine < w.count) {
        uint32_t top = 0;
#pragma unroll
        for (int i = 0; i < MATH_WARPS; i++)
            top = max(top, t->amax[i][mine]);
        const float scale = scale_f32(CMOE_E4M3, bits_f32(top));
        t->mid_scale[mine] = make_float2(scale, __frcp_rn(scale));
        p.mid_scales[facts.row[mine] * p.mid_scale_stride + w.m / 128] = scale;
    }
    group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
    /* An element of stmatrix is the codes of units 8 apart, sorted out on the way back. */
    const int thread = (int)threadIdx.x % 128, out = thread / 4;
    const uint32_t staging = shared_address(t->staging[at.strip]);
    const uint32_t put = staging + at.lane * ROW + ((at.warp ^ (at.lane >> 1 & 3)) << 4);
    const uint32_t get = staging + out * ROW + ((thread % 4 ^ (out >> 1 & 3)) << 4);
#pragma unroll
    for (int from = 0; from < COUNT * 2; from += ROWS) {
        if (from >= w.count)
            break;
        uint32_t m[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float4 s = *(const float4 *)&t->mid_scale[from + j * 8 + at.lane % 4 * 2];
            const float *v = acc[0] + from / 2 + j * 4;
            m[j] = e4m3_pair(v[0], v[2], s.x, s.y) | e4m3_pair(v[1], v[3], s.z, s.w) << 16;
        }
        store_transposed(put, m);
        group_sync(STRIP_BARRIER + at.strip, 128);
        const int to = from + out < w.count ? facts.row[from + out] : -1;
        if (to >= 0) {
            const uint4 v = load_shared_16(get);
            store_chunk<1, false>(p, to, w.m + at.strip * 64 + thread % 4 * 16,
                           make_uint4(__byte_perm(v.x, v.y, 0x6420), __byte_perm(v.z, v.w, 0x6420),
                                      __byte_perm(v.x, v.y, 0x7531), __byte_perm(v.z, v.w, 0x7531)));
        }
        group_sync(STRIP_BARRIER + at.strip, 128);
    }
}

/* OUT: type of the output. ACT: of the activation's result, else of the sums. */
template <int OUT, bool ACT, bool SCALED, bool PLAIN, int COUNT>
DEV void store_tile(const cmoe_gpu_wgmma &p, const work &w, const ring &r, const tile_facts &facts, const place &at,
                    float (&acc)[2][COUNT])
{
    if constexpr (OUT == CMOE_F32)
        store_f32<ACT, SCALED, PLAIN>(p, w, facts, at, acc);
    else
        store_16<OUT, ACT, SCALED, PLAIN>(p, w, r, facts, at, acc);
}

template <int OUT, bool ACT, bool SCALED, int COUNT>
DEV void epilogue(const cmoe_gpu_wgmma &p, const ring &r, const tile_facts &facts, float (&acc)[2][COUNT])
{
    const work w = facts.w;
    const place at = place_of();
    if constexpr (OUT == CMOE_E4M3)
        store_codes(p, w, r, facts, at, acc);
    else if (p.plain)
        store_tile<OUT, ACT, SCALED, true>(p, w, r, facts, at, acc);
    else
        store_tile<OUT, ACT, SCALED, false>(p, w, r, facts, at, acc);
}

#endif
