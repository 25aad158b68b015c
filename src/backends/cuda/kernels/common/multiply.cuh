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

/* Read anew at every call: to keep it takes registers that the sums need. */
DEV place place_of(void)
{
    int thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    thread -= LOAD_THREADS;
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

/* total += sums times their scales; token: where those of the thread's rows of x lie, four by four. */
template <bool BLOCK, int N, int COUNT>
DEV void add_scaled(float (&total)[COUNT], const float (&sums)[N / 2], uint32_t token, float weight)
{
    uint4 s = {};
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        if (BLOCK && j % 2 == 0)
            s = load_shared_16(token + j * 32);
        const float s0 = BLOCK ? bits_f32(j % 2 ? s.z : s.x) * weight : 1.0f;
        const float s1 = BLOCK ? bits_f32(j % 2 ? s.w : s.y) * weight : 1.0f;
        total[j * 4] += sums[j * 4] * s0;
        total[j * 4 + 1] += sums[j * 4 + 1] * s1;
        total[j * 4 + 2] += sums[j * 4 + 2] * s0;
        total[j * 4 + 3] += sums[j * 4 + 3] * s1;
    }
}

template <int N> DEV void multiply_box(float (&sums)[N / 2], const ring &r, const cursor &c, const place &at, int box)
{
    wgmma_begin();
    multiply<CMOE_E4M3, N>(sums, stage_at(r, c) + box * HALF_BYTES + at.strip * 64 * SPAN, stage_at(r, c) + A_BYTES,
                           true);
    wgmma_commit();
}

/* e4m3: the instruction keeps few bits of its sums, so each span's are added to the total in f32, with
 * BLOCK times their scales, while the other box's instructions run. */
template <bool BLOCK, int N, int COUNT>
DEV void accumulate_spans(const cmoe_gpu_wgmma &p, const ring &r, const work &w, const place &at, cursor &c,
                           float (&acc)[2][COUNT])
{
    const float *scales[2] = {BLOCK ? block_scales(p, w, at, 0) : NULL, BLOCK ? block_scales(p, w, at, 1) : NULL};
    float sums[2][N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        acc[0][i] = acc[1][i] = 0.0f;
    for (int span = 0; span * SPAN < p.g.k; span++) {
        const float weight[2] = {BLOCK ? scales[0][span] : 1.0f, BLOCK ? scales[1][span] : 1.0f};
        const uint32_t token = shared_address(r.tail->scale[c.stage]) + at.lane % 4 * 16;
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
        multiply_box<N>(sums[0], r, c, at, 0);
        multiply_box<N>(sums[1], r, c, at, 1);
        wgmma_wait<1>();
        wgmma_done(sums[0]);
        add_scaled<BLOCK, N>(acc[0], sums[0], token, weight[0]);
        wgmma_wait<0>();
        wgmma_done(sums[1]);
        add_scaled<BLOCK, N>(acc[1], sums[1], token, weight[1]);
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
