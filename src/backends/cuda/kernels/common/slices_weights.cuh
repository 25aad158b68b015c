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
    TILE = 16 * SPAN,    /* bytes of a stage that a warp multiplies */
    SWIZZLED = 8 * SPAN, /* bytes of a span of 8 tokens as an operand of wgmma */
    MOST_DOWN = CMOE_SLICE_WIDEST / CLUSTER / CMOE_SLICE_DOWN,
};

enum { CODES_PITCH = CMOE_SLICE_BYTES + CMOE_SLICE_PAD };

/* Named barriers. */
enum { MATH_BARRIER = 1, EXPERTS_BARRIER, WEIGHTS_BARRIER };

template <int TYPE> struct slice_of {
    static constexpr bool CODES = TYPE == CMOE_E4M3;
    static constexpr int BYTES = CODES ? 1 : 2;
    static constexpr int UNITS = CMOE_SLICE_BYTES / BYTES;
    static constexpr int ROWS = UNITS / CLUSTER;           /* of gate and of up, a block's */
    static constexpr int SPANS = STAGE / 2 / SPAN / ROWS;  /* of these rows in a stage: gate's, then up's */
    static constexpr int UP = ROWS / 16;                   /* warps from gate rows to up rows of a span */
    static constexpr int GROUPS = CMOE_SLICE_BYTES / SPAN; /* of a slice */
};

/* What blocks know beside stages and x. */
struct slice_tail {
    alignas(1024) uint8_t codes[TOKENS * CODES_PITCH]; /* h as the second GEMM's operand */
    float h[2][TOKENS][CMOE_SLICE_BYTES];              /* of a slice, by turns */
    float sums[WARPS][16][TOKENS];                     /* of a warp's tile of the first GEMM */
    float factor[2][TOKENS];                           /* of the second GEMM's sums, by span */
    float weights[IDS][TOKENS];
    uint64_t full[CMOE_SLICE_STAGES], empty[CMOE_SLICE_STAGES], there[2], rows;
    uint32_t chosen[IDS];    /* tokens that have an expert, a bit each */
    int experts[IDS], count; /* experts that tokens have */
    int wholes, turns;       /* slices that are not halved, and with all halves */
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

/* cp.async.bulk.tensor, five coordinates, by one lane of a warp, and how many bytes the barrier is to wait for. */
DEV void ask_box(uint32_t to, const void *map, int row, int span, int expert, int bytes, uint32_t barrier,
                 uint64_t policy)
{
    asm volatile("{\n.reg .pred p;\n"
                 "elect.sync _|p, 0xffffffff;\n"
                 "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%6], %8;\n"
                 "@p cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%2, %3, %2, %4, %5}], [%6], %7;\n}" ::"r"(to),
                 "l"(map), "r"(0), "r"(row), "r"(span), "r"(expert), "r"(barrier), "l"(policy), "r"(bytes)
                 : "memory");
}

/* A cluster's turn: a slice of an expert, by its number among those that tokens have, or half of one. Ranks 0 to 3 then
 * take their rows of half as many units times one half of x, ranks 4 to 7 the same rows times the other. */
struct slice_turn {
    int at, index, number, slice;
    bool halved;
    int half;

    MEMBER slice_turn(const cmoe_gpu_slices &p, const slice_memory &m) : at(m.cluster), index(0), number(0), slice(0)
    {
        find(p, m);
    }

    MEMBER void find(const cmoe_gpu_slices &p, const slice_memory &m)
    {
        const int beyond = at - m.tail->wholes;
        halved = beyond >= 0;
        half = halved ? beyond & 1 : 0;
        const int next = halved ? at - beyond + beyond / 2 : at;
        slice += next - index;
        for (index = next; slice >= p.slices; slice -= p.slices)
            number++;
    }

    MEMBER void advance(const cmoe_gpu_slices &p, const slice_memory &m)
    {
        at += m.clusters;
        find(p, m);
    }

    MEMBER bool is_there(const slice_memory &m) const { return at < m.tail->turns; }

    /* The block's first gate row, stages of the first GEMM, and first column of x in units of a stage's. */
    template <int TYPE> MEMBER int first_unit(const slice_memory &m) const
    {
        using shape = slice_of<TYPE>;
        return slice * shape::UNITS + half * (shape::UNITS / 2) + (halved ? m.rank % 4 : m.rank) * shape::ROWS;
    }

    MEMBER int stages1(const cmoe_gpu_slices &p) const { return halved ? p.stages1 / 2 : p.stages1; }

    MEMBER int first_stage(const cmoe_gpu_slices &p, const slice_memory &m) const
    {
        return halved && m.rank >= 4 ? p.stages1 / 2 : 0;
    }
};

/* What the asking warp does next, worked out once a matrix. */
struct supply {
    stage_cursor at;
    slice_turn turn;
    const CUtensorMap *map;
    bool second;
    int expert, left, bytes, row, row_step, span, span_step;
};

template <int TYPE> DEV void begin_first(const cmoe_gpu_slices &p, const slice_memory &m, supply &s)
{
    using shape = slice_of<TYPE>;
    if (!s.turn.is_there(m))
        return;
    s.map = &p.map[0];
    s.second = false;
    s.expert = m.tail->experts[s.turn.number];
    s.left = s.turn.stages1(p);
    s.bytes = STAGE;
    s.row = s.turn.first_unit<TYPE>(m);
    s.row_step = 0;
    s.span = s.turn.first_stage(p, m) * shape::SPANS;
    s.span_step = shape::SPANS;
}

template <int TYPE> DEV void begin_second(const cmoe_gpu_slices &p, const slice_memory &m, supply &s)
{
    s.map = &p.map[s.turn.halved ? 2 : 1];
    s.second = true;
    s.left = p.stages2;
    s.bytes = s.turn.halved ? STAGE / 2 : STAGE;
    s.row = m.rank * p.stages2 * CMOE_SLICE_DOWN;
    s.row_step = CMOE_SLICE_DOWN;
    s.span = s.turn.slice * slice_of<TYPE>::GROUPS + s.turn.half;
    s.span_step = 0;
}

template <int TYPE> DEV void ask(const cmoe_gpu_slices &p, const slice_memory &m, supply &s, uint64_t policy)
{
    barrier_wait(shared_address(&m.tail->empty[s.at.stage]), s.at.parity);
    __syncwarp();
    ask_box(shared_address(m.ring + s.at.stage * STAGE), s.map, s.row, s.span, s.expert, s.bytes,
            shared_address(&m.tail->full[s.at.stage]), policy);
    s.at.advance(p);
    s.row += s.row_step;
    s.span += s.span_step;
    if (--s.left > 0)
        return;
    if (s.second) {
        s.turn.advance(p, m);
        begin_first<TYPE>(p, m, s);
    } else {
        begin_second<TYPE>(p, m, s);
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
    if (lane == 0) {
        const int all = known * p.slices, rounds = all / m.clusters, last = all - rounds * m.clusters;
        const bool halve = rounds < p.halves && 2 * last <= m.clusters; /* else some clusters would have two */
        m.tail->count = known;
        m.tail->wholes = halve ? all - last : all;
        m.tail->turns = halve ? all + last : all;
    }
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
    const uint64_t policy = evict_first();
    list_experts(p, m, slot);
    group_arrive(EXPERTS_BARRIER, CMOE_SLICE_THREADS);
    supply s = {{0, 1}, slice_turn(p, m)};
    begin_first<TYPE>(p, m, s);
#pragma unroll 1
    for (int i = 0; i < p.stages && s.turn.is_there(m); i++)
        ask<TYPE>(p, m, s, policy);
    list_weights(p, m, slot);
    group_arrive(WEIGHTS_BARRIER, CMOE_SLICE_THREADS);
#pragma unroll 1
    while (s.turn.is_there(m))
        ask<TYPE>(p, m, s, policy);
}

#endif
