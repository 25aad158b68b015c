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
DEV void release(const cmoe_gpu_wgmma &p, const ring &r, uint32_t barrier)
{
    barrier_arrive_warp(barrier, p.cluster > 1, r.rank ^ 1);
}

/* Where a warpgroup's operands of stage 0 lie, as descriptors; a stage is so many units of 16 bytes. */
struct operands {
    uint32_t a, b, stage;
};

DEV operands operands_of(const ring &r, const place &at)
{
    return {uniform(wgmma_place(r.stages + at.strip * 64 * SPAN)), wgmma_place(r.stages + A_BYTES),
            (uint32_t)r.stage_bytes / 16};
}

/* One span of k of a box: 4 instructions of 32 bytes. */
template <int TYPE, int N, int COUNT>
DEV void multiply(float (&d)[COUNT], const operands &o, const cursor &c, int box, bool fresh)
{
    const uint32_t from = c.stage * o.stage;
    const uint32_t a = o.a + from + box * (HALF_BYTES / 16), b = o.b + from;
#pragma unroll
    for (int i = 0; i < 4; i++)
        wgmma<TYPE, N>(d, wgmma_operand(a + i * 2), wgmma_operand(b + i * 2), !(fresh && i == 0));
}

/* All of k with one scale or none: one stage's instructions stay in flight. */
template <int TYPE, int N, int COUNT>
DEV void accumulate_all(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, float (&acc)[2][COUNT])
{
    constexpr int STEP = SPAN / element_bytes<TYPE>;
    const operands o = operands_of(r, at);
    uint32_t before = 0;
    for (int column = 0; column < p.g.k; column += STEP) {
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
        wgmma_begin();
        multiply<TYPE, N>(acc[0], o, c, 0, column == 0);
        multiply<TYPE, N>(acc[1], o, c, 1, column == 0);
        wgmma_commit();
        wgmma_wait<1>();
        if (before)
            release(p, r, before);
        before = empty_at(r, c);
        advance(c, r);
    }
    wgmma_wait<0>();
    wgmma_done(acc[0]);
    wgmma_done(acc[1]);
    release(p, r, before);
}

/* A span's scales: early, read while its products run, or each 16 rows' where they are first used, when the sums
 * that they scale leave registers to them. */
template <int N> struct span_scales {
    uint4 token[(N + 15) / 16]; /* of the thread's rows of x, four by four */
    float2 weight;              /* by box */
};

DEV uint32_t scales_at(const ring &r, const cursor &c)
{
    return shared_address(r.tail->scale[c.stage]);
}

template <int N> DEV void load_token_scales(span_scales<N> &s, uint32_t from, const place &at, int i)
{
    s.token[i] = load_shared_16(from + at.lane % 4 * 16 + i * 64);
}

template <bool EARLY, int N> DEV span_scales<N> load_span_scales(uint32_t from, const place &at)
{
    span_scales<N> s = {};
#pragma unroll
    for (int i = 0; EARLY && i < (N + 15) / 16; i++)
        load_token_scales<N>(s, from, at, i);
    s.weight = load_shared_f32x2(from + (SCALED_N + at.strip * 2) * 4);
    return s;
}

/* total += sums times their scales; LATE: which are read here */
template <bool BLOCK, bool LATE, int N, int COUNT>
DEV void add_scaled(float (&total)[COUNT], const float (&sums)[N / 2], span_scales<N> &scales, float weight,
                    uint32_t from, const place &at)
{
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        if (BLOCK && LATE && j % 2 == 0)
            load_token_scales<N>(scales, from, at, j / 2);
        const uint4 s = scales.token[j / 2];
        const float s0 = BLOCK ? bits_f32(j % 2 ? s.z : s.x) * weight : 1.0f;
        const float s1 = BLOCK ? bits_f32(j % 2 ? s.w : s.y) * weight : 1.0f;
        total[j * 4] += sums[j * 4] * s0;
        total[j * 4 + 1] += sums[j * 4 + 1] * s1;
        total[j * 4 + 2] += sums[j * 4 + 2] * s0;
        total[j * 4 + 3] += sums[j * 4 + 3] * s1;
    }
}

template <int N> DEV void multiply_box(float (&sums)[N / 2], const operands &o, const cursor &c, int box)
{
    wgmma_begin();
    multiply<CMOE_E4M3, N>(sums, o, c, box, true);
    wgmma_commit();
}

/* e4m3: the instruction keeps few bits of its sums, so each span's are added to the total in f32, with
 * BLOCK times their scales, while the other box's instructions run. */
template <bool BLOCK, int N, int COUNT>
DEV void accumulate_spans(const cmoe_gpu_wgmma &p, const ring &r, const place &at, cursor &c, float (&acc)[2][COUNT])
{
    constexpr bool EARLY = N <= 80; /* the widest tiles lose a sixth by it */
    const operands o = operands_of(r, at);
    float sums[2][N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++)
        acc[0][i] = acc[1][i] = 0.0f;
    for (int span = 0; span * SPAN < p.g.k; span++) {
        const uint32_t from = scales_at(r, c);
        span_scales<N> scales = {};
        barrier_wait(full_at(r, c), c.parity);
        fence_proxy();
        multiply_box<N>(sums[0], o, c, 0);
        multiply_box<N>(sums[1], o, c, 1);
        if (BLOCK)
            scales = load_span_scales<EARLY, N>(from, at);
        wgmma_wait<1>();
        wgmma_done(sums[0]);
        add_scaled<BLOCK, !EARLY, N>(acc[0], sums[0], scales, scales.weight.x, from, at);
        wgmma_wait<0>();
        wgmma_done(sums[1]);
        __syncwarp();
        release(p, r, empty_at(r, c));
        add_scaled<BLOCK, false, N>(acc[1], sums[1], scales, scales.weight.y, from, at);
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
