/* SPDX-License-Identifier: MIT
 * Rows of h under one scale each in a kernel of both GEMMs: what GEMM1's tiles have stored as f32 becomes codes
 * once an expert has all of its tiles, in rounds of a few rows. The block that stores the last tile does the first
 * rounds, or all where a warp holds a row; blocks behind a tile of the next expert one each, and those that need the rows in GEMM2 what is left: none
 * is held up for long while others wait for its next tile. */
#ifndef CMOE_KERNELS_REQUANTISE_CUH
#define CMOE_KERNELS_REQUANTISE_CUH

#include "backends/cuda/kernels/common/copy.cuh"
#include "backends/cuda/kernels/common/gemm.cuh"

/* Fours of columns that a lane holds, 128 apart: the host shares a row out to as many warps as it takes. */
enum { MOST_FOURS = CMOE_WGMMA_MOST_H / MATH_WARPS / 128, FEW_FOURS = 8 };

enum { NO_EXPERT = -1 }; /* nothing to do */

/* Halves of GEMM1's tiles that make an expert's h. */
DEV int halves_of(const cmoe_gpu_wgmma_pair &f, const ring &r, int expert)
{
    return (r.tail->first_tile[expert + 1] - r.tail->first_tile[expert]) * f.gemm[0].m_tiles * 2;
}

/* Rounds of an expert. */
DEV int rounds_of(const cmoe_gpu_wgmma_pair &f, int expert)
{
    const int32_t *offsets = f.gemm[0].g.call.offsets;
    const int rows = MATH_WARPS / f.row_warps;
    return (offsets[expert + 1] - offsets[expert] + rows - 1) / rows;
}

/* What an expert's counter reaches: all of GEMM1's halves, then one, from which on turns may be taken, then its
 * rounds. */
DEV int whole_h(const cmoe_gpu_wgmma_pair &f, const ring &r, int expert)
{
    return halves_of(f, r, expert) + 1 + rounds_of(f, expert);
}

DEV uint32_t largest_of_four(float4 v)
{
    return max(max(__float_as_uint(v.x) & 0x7fffffff, __float_as_uint(v.y) & 0x7fffffff),
               max(__float_as_uint(v.z) & 0x7fffffff, __float_as_uint(v.w) & 0x7fffffff));
}

/* Where a lane's columns of a row of h lie, how many fours of them, 128 columns apart, count. */
struct row_part {
    const float *from;
    uint8_t *to;
    int count;
};

/* A part's codes one by one, for scales that divide otherwise. */
DEV void quantise_slowly(const row_part &part, float scale)
{
#pragma unroll 1
    for (int i = 0; i < part.count * 4; i++) {
        const int at = i / 4 * 128 + i % 4;
        part.to[at] = (uint8_t)encode(CMOE_E4M3, __fdiv_rn(__ldcg(part.from + at), scale), CMOE_ROUND_NEAREST_EVEN);
    }
}

/* The largest magnitude of a row whose warps have found their parts'; all threads that multiply. Two rounds use
 * different words, so that one barrier a round will do. */
DEV uint32_t largest_of_warps(const ring &r, uint32_t top, int round, int warp, int warps)
{
    uint32_t *tops = r.tail->top[round & 1];
    if (threadIdx.x % 32 == 0)
        tops[warp] = top;
    group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
    for (int i = 0; i < warps; i++)
        top = max(top, tops[(warp & -warps) + i]);
    return top;
}

/* Rows that are codes now need not go to memory as f32. */
DEV void discard_part(const row_part &part)
{
#pragma unroll 1
    for (int i = 0; threadIdx.x % 8 == 0 && i < part.count; i++)
        discard_line(part.from + i * 128);
}

/* The codes of quant_e4m3.cuh of as many rows as a round has; all threads that multiply. Past L1, which may have
 * lines from before other blocks wrote them. */
template <int FOURS> DEV void quantise_round(const cmoe_gpu_wgmma_pair &f, const ring &r, int expert, int round)
{
    const cmoe_gpu_gemm &to = f.gemm[1].g;
    const int32_t *offsets = to.call.offsets + expert;
    const int warps = f.row_warps, warp = ((int)threadIdx.x - LOAD_THREADS) / 32;
    const int at = offsets[0] + round * (MATH_WARPS / warps) + warp / warps;
    const int row = at < offsets[1] ? to.call.rows[at] : -1, columns = row < 0 ? 0 : f.gemm[0].out_cols;
    const int first = warp % warps * FOURS * 128 + (int)threadIdx.x % 32 * 4;
    const row_part part = {f.gemm[0].g.out + row * f.gemm[0].g.out_stride + first,
                           (uint8_t *)(uintptr_t)(to.a + row * to.a_stride + first),
                           min(max(columns - first + 127, 0) / 128, FOURS)};
    const uint32_t counts = (1u << part.count) - 1; /* as bits: comparisons become branches around branches */
    float4 v[FOURS];
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < FOURS; i++)
        v[i] = counts >> i & 1 ? __ldcg((const float4 *)(part.from + i * 128)) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int i = 0; i < FOURS; i++)
        top = max(top, largest_of_four(v[i]));
    top = __reduce_max_sync(0xffffffff, top);
    if (warps > 1)
        top = largest_of_warps(r, top, round, warp, warps);
    const float scale = scale_f32(CMOE_E4M3, bits_f32(top)), inverse = __frcp_rn(scale);
    if (row >= 0 && first == 0)
        *(float *)(uintptr_t)(to.a_scale + row * to.a_scale_stride) = scale;
    if (!divides_fast(scale)) {
        quantise_slowly(part, scale);
        return;
    }
    if (f.lines)
        discard_part(part);
#pragma unroll
    for (int i = 0; i < FOURS; i++)
        if (counts >> i & 1)
            *(uint32_t *)(part.to + i * 128) = e4m3_pair<true>(v[i].x, v[i].y, scale, inverse) |
                                               e4m3_pair<true>(v[i].z, v[i].w, scale, inverse) << 16;
}

/* Rounds [t.round, t.end) of an expert, then its count; the last of all opens its rows. All threads that multiply. */
DEV void quantise_rounds(const cmoe_gpu_wgmma_pair &f, const ring &r, const turn &t)
{
#pragma unroll 1
    for (int round = t.round; round < t.end; round++) {
        if (f.gemm[0].out_cols <= FEW_FOURS * 128)
            quantise_round<FEW_FOURS>(f, r, t.expert, round);
        else
            quantise_round<MOST_FOURS>(f, r, t.expert, round);
    }
    group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
    if (threadIdx.x == LOAD_THREADS) {
        const int rounds = t.end - t.round;
        fence_gpu();
        const int before = atomicAdd(f.progress + CMOE_PROGRESS_EXPERTS + t.expert, rounds);
        fence_gpu();
        if (before + rounds == whole_h(f, r, t.expert))
            add_relaxed(f.progress + CMOE_PROGRESS_DONE, halves_of(f, r, t.expert));
    }
}

/* The next round of an expert, if its tiles are all stored and one is left for whoever comes. wait: until they are
 * stored. The thread that leads. */
DEV turn take_round(const cmoe_gpu_wgmma_pair &f, const ring &r, int expert, bool wait)
{
    const int32_t *done = f.progress + CMOE_PROGRESS_EXPERTS + expert;
    const int rounds = expert < 0 ? 0 : rounds_of(f, expert);
    if (rounds <= f.first_rounds)
        return {NO_EXPERT, 0, 0};
    const int begin = halves_of(f, r, expert) + 1;
    int now = load_acquire(done);
    while (wait && now < begin)
        now = load_acquire(done);
    const int round = now >= begin && now < begin + rounds ? atomicAdd(f.turns + expert, 1) : rounds;
    return {round < rounds ? expert : (int)NO_EXPERT, round, round + 1};
}

/* Behind a tile of GEMM1: the first rounds, if it was its expert's last, else one of the expert before. */
DEV void say_stored(const cmoe_gpu_wgmma_pair &f, const ring &r, int expert)
{
    group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
    if (threadIdx.x == LOAD_THREADS) {
        int32_t *done = f.progress + CMOE_PROGRESS_EXPERTS + expert;
        fence_gpu();
        if (atomicAdd(done, 2) + 2 == halves_of(f, r, expert)) {
            r.tail->next = {expert, 0, min(rounds_of(f, expert), f.first_rounds)};
            f.turns[expert] = f.first_rounds;
            fence_gpu();
            add_relaxed(done, 1);
        } else {
            r.tail->next = take_round(f, r, expert - 1, false);
        }
    }
    group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
}

/* The rounds that the block has taken, then of the expert whose rows it needs all that it gets. */
DEV void quantise_rows(const cmoe_gpu_wgmma_pair &f, const ring &r, turn t, int needed)
{
#pragma unroll 1
    while (true) {
        if (t.expert != NO_EXPERT)
            quantise_rounds(f, r, t);
        if (needed == NO_EXPERT || rounds_of(f, needed) <= f.first_rounds)
            return;
        group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
        if (threadIdx.x == LOAD_THREADS)
            r.tail->next = take_round(f, r, needed, true);
        group_sync(MATH_BARRIER, CMOE_WGMMA_MATH);
        t = r.tail->next;
        if (t.expert == NO_EXPERT)
            return;
    }
}

#endif
