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

/* A span's scales, read while its products run: later they would wait for the other warpgroup's. */
template <int N> struct span_scales {
    uint4 token[(N + 15) / 16]; /* of the thread's rows of x, four by four */
    float2 weight;              /* by box */
};

template <int N> DEV span_scales<N> load_span_scales(const ring &r, const cursor &c, const place &at)
{
    const uint32_t from = shared_address(r.tail->scale[c.stage]);
    span_scales<N> s;
#pragma unroll
    for (int i = 0; i < (N + 15) / 16; i++)
        s.token[i] = load_shared_16(from + at.lane % 4 * 16 + i * 64);
    s.weight = load_shared_f32x2(from + (SCALED_N + at.strip * 2) * 4);
    return s;
}

/* total += sums times their scales */
template <bool BLOCK, int N, int COUNT>
DEV void add_scaled(float (&total)[COUNT], const float (&sums)[N / 2], const span_scales<N> &scales, float weight)
{
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const uint4 s = scales.token[j / 2];
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
DEV void accumulate_spans(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, float (&acc)[2][COUNT])
{
    constexpr bool EARLY = N <= 80; /* else they find no registers */
    float sums[2][N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        acc[0][i] = acc[1][i] = 0.0f;
    for (int span = 0; span * SPAN < p.g.k; span++) {
        span_scales<N> scales = {};
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
        multiply_box<N>(sums[0], r, c, at, 0);
        multiply_box<N>(sums[1], r, c, at, 1);
        if (BLOCK && EARLY)
            scales = load_span_scales<N>(r, c, at);
        wgmma_wait<1>();
        wgmma_done(sums[0]);
        if (BLOCK && !EARLY)
            scales = load_span_scales<N>(r, c, at);
        add_scaled<BLOCK, N>(acc[0], sums[0], scales, scales.weight.x);
        wgmma_wait<0>();
        wgmma_done(sums[1]);
        __syncwarp();
        release(p, empty_at(r, c));
        add_scaled<BLOCK, N>(acc[1], sums[1], scales, scales.weight.y);
        advance(c, r);
    }
}

template <int TYPE, bool BLOCK, int N, int COUNT>
DEV void accumulate(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, float (&acc)[2][COUNT])
{
    if constexpr (TYPE == CMOE_E4M3)
        accumulate_spans<BLOCK, N>(p, r, at, c, acc);
    else
        accumulate_all<TYPE, N>(p, r, at, c, acc);
}

/* The narrowest tile that has room for `count` rows. */
template <int TYPE, bool BLOCK, int N, int COUNT>
DEV void accumulate_from(const cmoe_gpu_wgmma &p, const ring &r, int count, const place &at, cursor &c,
                         float (&acc)[2][COUNT])
{
    constexpr int NEXT = N == 8 ? 16 : N + 16;
    if constexpr (NEXT / 2 > COUNT) {
        accumulate<TYPE, BLOCK, N>(p, r, at, c, acc);
    } else {
        if (count <= N)
            accumulate<TYPE, BLOCK, N>(p, r, at, c, acc);
        else
            accumulate_from<TYPE, BLOCK, NEXT>(p, r, count, at, c, acc);
    }
}

#endif
