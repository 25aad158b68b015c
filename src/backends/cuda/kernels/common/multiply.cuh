/* SPDX-License-Identifier: MIT
 * The sums of a tile by wgmma: as wide a tile as the expert has rows, each width an instruction and a
 * loop of its own; accumulators are declared for the widest. */
#ifndef CMOE_KERNELS_MULTIPLY_CUH
#define CMOE_KERNELS_MULTIPLY_CUH

#include "backends/cuda/kernels/common/produce.cuh"
#include "backends/cuda/kernels/common/wgmma.cuh"

/* What one thread holds of a tile: of both boxes rows lane/4 and lane/4 + 8 of its warp's 16, and of
 * every 8 rows of x columns lane%4*2 and + 1. */
struct place {
    int strip; /* 64 rows of each box */
    int warp, lane;
};

DEV place place_of(void)
{
    const int thread = (int)threadIdx.x - LOAD_THREADS;
    return {thread / 128, thread / 32 % 4, thread % 32};
}

/* Of a stage, to all blocks that wait for it. */
DEV void release(const cmoe_gpu_wgmma &p, uint32_t barrier)
{
    if (p.cluster > 1) {
        if (threadIdx.x % 32 < 2)
            barrier_arrive_at(barrier, threadIdx.x % 32);
    } else if (threadIdx.x % 32 == 0) {
        barrier_arrive(barrier);
    }
}

/* One span of k: 4 instructions of 32 bytes. */
template <int TYPE, int N, int COUNT> DEV void multiply(float (&d)[COUNT], uint32_t a, uint32_t b, bool fresh)
{
    const uint64_t x = wgmma_operand(a), y = wgmma_operand(b); /* addresses in units of 16 bytes */
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma<TYPE, N>(d, x + i * 2, y + i * 2, !(fresh && i == 0));
}

/* All of k with one scale or none: one stage's instructions stay in flight. */
template <int TYPE, int N, int COUNT>
DEV void accumulate_all(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, float (&acc)[2][COUNT])
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    uint32_t before = 0;
    for (int column = 0; column < p.g.k; column += STEP) {
        const uint32_t a = stage_at(r, c) + at.strip * 64 * SPAN, b = stage_at(r, c) + A_BYTES;
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
        wgmma_begin();
        multiply<TYPE, N>(acc[0], a, b, column == 0);
        multiply<TYPE, N>(acc[1], a + HALF_BYTES, b, column == 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (before)
            release(p, before);
        before = empty_at(r, c);
        advance(c, r);
    }
    wgmma_wait<0>();
    wgmma_done(acc[0]);
    wgmma_done(acc[1]);
    release(p, before);
}

/* Scale of the 128x128 block that the thread's 64 rows of a box lie in. */
[[maybe_unused]] DEV const float *block_scales(const cmoe_gpu_wgmma &p, const work &w, const place &at, int box)
{
    int row = w.m + at.strip * 64 + (p.gated ? 0 : box * CMOE_WGMMA_HALF);
    const cmoe_gpu_half &h = p.g.experts[w.expert].half[p.g.half + (p.gated ? box : 0)];
    row = min(row, p.out_used - 1) * h.step + h.first;
    return (const float *)h.scale + (int64_t)(row / 128) * ((p.g.a_cols + 127) / 128);
}

/* e4m3: the instruction keeps few bits of its sums, so each span's are added to the total in f32, with
 * BLOCK times their scales. The other warpgroup's instructions run meanwhile. */
template <bool BLOCK, int N, int COUNT>
DEV void accumulate_spans(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const place &at, cursor &c,
                           float (&acc)[2][COUNT])
{
    const float *scales[2] = {BLOCK ? block_scales(p, w, at, 0) : NULL, BLOCK ? block_scales(p, w, at, 1) : NULL};
    float part[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        acc[0][i] = acc[1][i] = 0.0f;
    for (int column = 0; column < p.g.k; column += SPAN) {
        const uint32_t a = stage_at(r, c) + at.strip * 64 * SPAN, b = stage_at(r, c) + A_BYTES;
        const float weight[2] = {BLOCK ? scales[0][column / 128] : 1.0f, BLOCK ? scales[1][column / 128] : 1.0f};
        const float4 *token = (const float4 *)r.tail->scale[c.stage] + at.lane % 4;
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
#pragma unroll
        for (int box = 0; box < 2; box++) {
            wgmma_begin();
            multiply<CMOE_E4M3, N>(part, a + box * HALF_BYTES, b, true);
            wgmma_commit();
            wgmma_wait<0>();
            wgmma_done(part);
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float4 s = BLOCK ? token[j / 2 * 4] : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
                const float s0 = (j % 2 ? s.z : s.x) * weight[box], s1 = (j % 2 ? s.w : s.y) * weight[box];
                acc[box][j * 4] += part[j * 4] * s0;
                acc[box][j * 4 + 1] += part[j * 4 + 1] * s1;
                acc[box][j * 4 + 2] += part[j * 4 + 2] * s0;
                acc[box][j * 4 + 3] += part[j * 4 + 3] * s1;
            }
        }
        __syncwarp();
        release(p, empty_at(r, c));
        advance(c, r);
    }
}

template <int TYPE, bool BLOCK, int N, int COUNT>
DEV void accumulate(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const place &at, cursor &c,
                    float (&acc)[2][COUNT])
{
    if constexpr (TYPE == CMOE_E4M3)
        accumulate_spans<BLOCK, N>(p, r, w, at, c, acc);
    else
        accumulate_all<TYPE, N>(p, r, at, c, acc);
}

/* The narrowest tile that has room for the work's rows. */
template <int TYPE, bool BLOCK, int N, int COUNT>
DEV void accumulate_from(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const place &at, cursor &c,
                         float (&acc)[2][COUNT])
{
    constexpr int NEXT = N == 8 ? 16 : N + 16;
    if constexpr (NEXT / 2 > COUNT) {
        accumulate<TYPE, BLOCK, N>(p, r, w, at, c, acc);
    } else {
        if (w.count <= N)
            accumulate<TYPE, BLOCK, N>(p, r, w, at, c, acc);
        else
            accumulate_from<TYPE, BLOCK, NEXT>(p, r, w, at, c, acc);
    }
}

#endif
