/* SPDX-License-Identifier: MIT
 * What blocks of the kernels of slices (slices.cuh) know, and the warp that asks for weights. */
#ifndef CMOE_KERNELS_SLICES_WEIGHTS_CUH
#define CMOE_KERNELS_SLICES_WEIGHTS_CUH

#include "backends/cuda/kernels/common/hopper.cuh"
#include "backends/cuda/params_slices.h"

enum {
    MATH = CMOE_SLICE_MATH,
    WARPS = MATH / 32,
    CLUSTER = CMOE_SLICE_CLUSTER,
    TOKENS = CMOE_SLICE_TOKENS,
    IDS = CMOE_SLICE_IDS,
    SPAN = CMOE_SLICE_SPAN,
    STAGE = CMOE_SLICE_STAGE,
    TILE = 16 * SPAN,     /* bytes of a stage that a warp multiplies */
    SWIZZLED = 8 * SPAN,  /* bytes of a span of 8 tokens as an operand of wgmma */
    MOST_DOWN = CMOE_SLICE_WIDEST / CLUSTER / CMOE_SLICE_DOWN,
};

enum { CODES_PITCH = CMOE_SLICE_BYTES + CMOE_SLICE_PAD };

/* Named barriers. */
enum { MATH_BARRIER = 1, EXPERTS_BARRIER, WEIGHTS_BARRIER };

template <int TYPE> struct slice_of {
    static constexpr bool CODES = TYPE == CMOE_E4M3;
    static constexpr int BYTES = CODES ? 1 : 2;
    static constexpr int UNITS = CMOE_SLICE_BYTES / BYTES;
    static constexpr int ROWS = UNITS / CLUSTER;                  /* of gate and of up, a block's */
    static constexpr int SPANS = STAGE / 2 / SPAN / ROWS;         /* of these rows in a stage */
    static constexpr int GROUPS = CMOE_SLICE_BYTES / SPAN;        /* of a slice */
};

/* What blocks know beside stages and x. */
struct slice_tail {
    alignas(1024) uint8_t codes[TOKENS * CODES_PITCH]; /* h as the second GEMM's operand */
    float h[2][TOKENS][CMOE_SLICE_BYTES];                       /* of a slice, by turns */
    float sums[WARPS][16][TOKENS];                              /* of a warp's tile of the first GEMM */
    float factor[2][TOKENS];                                    /* of the second GEMM's sums, by span */
    float weights[IDS][TOKENS];
    uint64_t full[CMOE_SLICE_STAGES], empty[CMOE_SLICE_STAGES], there[2], rows;
    uint32_t chosen[IDS]; /* tokens that have an expert, a bit each */
    int experts[IDS], count; /* experts that tokens have */
};
static_assert(sizeof(slice_tail) <= CMOE_SLICE_TAIL, "");

struct slice_memory {
    uint8_t *ring, *x;
    float *x_scale; /* [span][token] */
    slice_tail *tail;
    int tokens, rank, cluster, clusters;
};

/* The stage that comes next, and the parity of what is waited for. */
struct stage_cursor {
    int stage, parity;

    MEMBER void advance(const cmoe_gpu_slices &p)
    {
        stage = stage + 1 == p.stages ? 0 : stage + 1;
        parity ^= stage == 0;
    }
};

/* cp.async.bulk.tensor, four coordinates */
DEV void copy_box4(uint32_t to, const void *map, int row, int span, int expert, uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(to),
                 "l"(map), "r"(0), "r"(row), "r"(span), "r"(expert), "r"(barrier), "l"(policy)
                 : "memory");
}

/* What the asking warp has to do: a slice of an expert, by its number among those that tokens have. */
struct supply {
    stage_cursor at;
    int expert, slice, step;
};

template <int TYPE> DEV void ask(const cmoe_gpu_slices &p, const slice_memory &m, supply &s, uint64_t policy)
{
    using shape = slice_of<TYPE>;
    const uint32_t to = shared_address(m.ring + s.at.stage * STAGE);
    const uint32_t full = shared_address(&m.tail->full[s.at.stage]);
    const int expert = m.tail->experts[s.expert], second = s.step - p.stages1;
    barrier_wait(shared_address(&m.tail->empty[s.at.stage]), s.at.parity);
    barrier_expect(full, STAGE);
    if (second < 0) {
        const int row = s.slice * shape::UNITS + m.rank * shape::ROWS, span = s.step * shape::SPANS;
        constexpr int BOX = shape::CODES ? STAGE / 4 : STAGE / 2; /* e4m3: gate and up rows of a span lie together */
#pragma unroll
        for (int i = 0; i < STAGE / BOX; i++)
            copy_box4(to + i * BOX, &p.map[i % 2], row, span + i / 2, expert, full, policy);
    } else {
        const int row = (m.rank * p.stages2 + second) * CMOE_SLICE_DOWN;
        copy_box4(to, &p.map[2], row, s.slice * shape::GROUPS, expert, full, policy);
    }
    s.at.advance(p);
    if (++s.step == p.stages1 + p.stages2) {
        s.step = 0;
        s.slice += m.clusters;
        while (s.slice >= p.slices) {
            s.slice -= p.slices;
            s.expert++;
        }
    }
}

/* Experts that tokens have, in the order of the slots that name them first. A lane has slots `lane` and
 * lane + 32, whose experts become their numbers. */
DEV void list_experts(const cmoe_gpu_slices &p, const slice_memory &m, int (&slot)[2])
{
    const int lane = threadIdx.x % 32, slots = m.tokens * p.call.slots;
    int expert[2];
    for (int i = 0; i < 2; i++)
        expert[i] = lane + 32 * i < slots ? local_expert(p.call, p.call.ids[lane + 32 * i]) : -1;
    int known = 0;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        slot[i] = -1;
        if (i > 0 && slots <= 32)
            break;
        for (int j = 0; i > 0 && j < known; j++)
            if (m.tail->experts[j] == expert[i])
                slot[i] = j;
        const bool fresh = expert[i] >= 0 && slot[i] < 0;
        const uint32_t same = __match_any_sync(0xffffffff, fresh ? expert[i] : -1 - lane);
        const int leader = __ffs((int)same) - 1;
        const uint32_t leaders = __ballot_sync(0xffffffff, fresh && leader == lane);
        if (fresh)
            slot[i] = known + __popc(leaders & ((1u << leader) - 1));
        if (fresh && leader == lane)
            m.tail->experts[slot[i]] = expert[i];
        known += __popc(leaders);
        __syncwarp();
    }
    if (lane == 0)
        m.tail->count = known;
    __syncwarp();
}

/* Which tokens have an expert, and with which weight: a lane a token. A token that has one twice has both
 * weights. */
DEV void list_weights(const cmoe_gpu_slices &p, const slice_memory &m, const int (&slot)[2])
{
    const int lane = threadIdx.x % 32, slots = p.call.slots;
    float weight[2] = {1, 1};
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (p.weigh && slot[i] >= 0)
            weight[i] = row_weight(p.call, lane + 32 * i);
    for (int i = lane; i < m.tail->count; i += 32)
        m.tail->chosen[i] = 0;
    for (int i = lane; i < m.tail->count * TOKENS; i += 32)
        m.tail->weights[i / TOKENS][i % TOKENS] = 0;
    __syncwarp();
    for (int i = 0; i < slots; i++) {
        const int at = lane * slots + i;
        const int low = __shfl_sync(0xffffffff, slot[0], at), high = __shfl_sync(0xffffffff, slot[1], at);
        const float a = __shfl_sync(0xffffffff, weight[0], at), b = __shfl_sync(0xffffffff, weight[1], at);
        const int number = at < 32 ? low : high;
        if (lane < m.tokens && number >= 0) {
            float &w = m.tail->weights[number][lane];
            w = p.weigh ? w + (at < 32 ? a : b) : w + 1;
            atomicOr(&m.tail->chosen[number], 1u << lane);
        }
        __syncwarp();
    }
}

/* bar.arrive */
DEV void group_arrive(int barrier, int threads)
{
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

/* The warp that asks. */
template <int TYPE> DEV void supply_weights(const cmoe_gpu_slices &p, const slice_memory &m)
{
    int slot[2];
    const bool one = threadIdx.x % 32 == 0;
    const uint64_t policy = evict_first();
    list_experts(p, m, slot);
    group_arrive(EXPERTS_BARRIER, CMOE_SLICE_THREADS);
    supply s = {{0, 1}, m.cluster / p.slices, m.cluster % p.slices, 0};
    if (one)
        for (int i = 0; i < p.stages && s.expert < m.tail->count; i++)
            ask<TYPE>(p, m, s, policy);
    __syncwarp();
    list_weights(p, m, slot);
    group_arrive(WEIGHTS_BARRIER, CMOE_SLICE_THREADS);
    if (one)
        while (s.expert < m.tail->count)
            ask<TYPE>(p, m, s, policy);
}

#endif
