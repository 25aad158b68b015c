/* SPDX-License-Identifier: MIT
 * The grouped GEMM's shared memory: a ring of stages, its barriers, and the table that turns a tile's
 * number into an expert, rows of the sort and rows of the weights. */
#ifndef CMOE_KERNELS_RING_CUH
#define CMOE_KERNELS_RING_CUH

#include "backends/cuda/kernels/common/hopper.cuh"
#include "backends/cuda/kernels/common/tile.cuh"
#include "backends/cuda/params_sm90a.h"

enum {
    MATH_WARPS = CMOE_WGMMA_MATH / 32,
    LOAD_THREADS = CMOE_WGMMA_THREADS - CMOE_WGMMA_MATH,
    SPAN = CMOE_WGMMA_SPAN,
    HALF_BYTES = CMOE_WGMMA_HALF * SPAN,
    A_BYTES = 2 * HALF_BYTES,
    MOST_N = CMOE_WGMMA_MOST_N,
    SCALED_N = CMOE_WGMMA_SCALED_N,
    UNITS = 2 * CMOE_WGMMA_HALF,
    STAGING_BYTES = 4096, /* of a math warpgroup, for results on their way out */
};

/* LOAD_BARRIER: a named barrier of the warpgroup that loads. NO_TILE: instead of a work's rows, past the last. */
enum { LOAD_BARRIER = 4, NO_TILE = -1 };

struct work {
    int expert, first, count; /* rows [first, first + count) of the sort */
    int m;                    /* first weight row of box 0 */
};

/* A tile as the producer tells of it: which it is, then while it is computed what its epilogue needs. */
struct tile_facts {
    work w;
    int row[MOST_N];      /* of the output; -1: none */
    float scale[MOST_N];  /* of the row of x */
    float weight[MOST_N]; /* routing weight of the row */
    float unit_scale[UNITS], bias[UNITS]; /* of a stage's weight rows: box 0's, then box 1's */
};

/* Rounds [round, end) of an expert's rows, for a block to quantise. */
struct turn {
    int expert, round, end;
};

/* After the stages: [box 0 | box 1 | rows of x], each row one swizzled span. Kernels without scales along
 * k do not have what begins at `scale`. */
struct ring_tail {
    uint8_t staging[2][STAGING_BYTES];
    uint64_t full[CMOE_WGMMA_STAGES], empty[CMOE_WGMMA_STAGES];
    uint64_t begun[2], ready[2], unused[2]; /* of the facts: the work, all of them, neither */
    tile_facts facts[2];          /* of this tile and the next */
    int first_tile[CMOE_WGMMA_EXPERTS + 1];
    /* Tiles taken by ticket: tickets as the producer hands them around and whether all of h is there, by turns; by facts
     * whether the tile is GEMM2's; rows to quantise, and the largest magnitudes of their parts, by round and warp. */
    int ticket[2], open[2], second[2];
    int wide, stored[2]; /* GEMM2's strips that all experts share; a strip that a warpgroup has stored a tile of */
    turn next;
    uint32_t top[2][MATH_WARPS];
    alignas(16) float scale[CMOE_WGMMA_STAGES][SCALED_N + 4]; /* of the stage's rows of x, then of [strip][box] */
    uint32_t amax[MATH_WARPS][SCALED_N];      /* of a row of h over a warp's units */
    float2 mid_scale[SCALED_N];               /* of a row of h over the tile's, and its reciprocal */
};
static_assert(offsetof(ring_tail, scale) <= CMOE_WGMMA_TAIL, "the host leaves room for it");
static_assert(sizeof(ring_tail) <= CMOE_WGMMA_SCALED_TAIL, "the host leaves room for it");

struct ring {
    uint32_t stages, full, empty;
    ring_tail *tail;
    int stage_bytes, count;
    uint32_t rank; /* in the cluster */
};

/* Where a role stands in the ring: every role walks the same sequence of stages. */
struct cursor {
    int stage, parity;
};

DEV void advance(cursor &c, const ring &r)
{
    if (++c.stage == r.count) {
        c.stage = 0;
        c.parity ^= 1;
    }
}

DEV uint32_t stage_at(const ring &r, const cursor &c)
{
    return r.stages + c.stage * r.stage_bytes;
}

DEV uint32_t full_at(const ring &r, const cursor &c)
{
    return r.full + c.stage * 8;
}

DEV uint32_t empty_at(const ring &r, const cursor &c)
{
    return r.empty + c.stage * 8;
}

/* Tiles of n rows: as few as hold them, a whole number for each of the cluster's blocks. */
DEV int tiles_of(const cmoe_gpu_wgmma &p, int n)
{
    const int most = p.tile_n * p.cluster;
    return (n + most - 1) / most * p.cluster;
}

/* first_tile[e]: tiles of the experts before e, all of them counted along x's rows only. */
DEV void count_tiles(const cmoe_gpu_wgmma &p, int *first_tile)
{
    const int local = p.g.call.local;
    for (int e = threadIdx.x; e < local; e += CMOE_WGMMA_THREADS)
        first_tile[e + 1] = tiles_of(p, p.g.call.offsets[e + 1] - p.g.call.offsets[e]);
    __syncthreads();
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        int carry = 0;
        for (int base = 0; base < local; base += 32) {
            const int e = base + lane;
            int sum = e < local ? first_tile[e + 1] : 0;
            for (int offset = 1; offset < 32; offset <<= 1) {
                const int below = __shfl_up_sync(0xffffffff, sum, offset);
                sum += lane >= offset ? below : 0;
            }
            if (e < local)
                first_tile[e + 1] = carry + sum;
            carry += __shfl_sync(0xffffffff, sum, 31);
        }
        if (lane == 0)
            first_tile[0] = 0;
    }
    __syncthreads();
}

/* readers: arrivals that leave a stage. Barriers of a cluster of two: a stage is empty when the readers of both
 * blocks are done with it, for each block's weights come from both. */
DEV ring make_ring(const cmoe_gpu_wgmma &p, uint8_t *memory, int readers = MATH_WARPS)
{
    ring r;
    r.stages = (shared_address(memory) + 1023) & ~1023u;
    r.stage_bytes = A_BYTES + p.tile_n * SPAN;
    r.count = p.stages;
    r.tail = (ring_tail *)(memory + (r.stages - shared_address(memory)) + r.count * r.stage_bytes);
    r.full = shared_address(r.tail->full);
    r.empty = shared_address(r.tail->empty);
    r.rank = p.cluster > 1 ? cluster_rank() : 0;
    if (threadIdx.x == 0) {
        for (int s = 0; s < r.count; s++) {
            barrier_init(r.full + s * 8, LOAD_THREADS + 1);
            barrier_init(r.empty + s * 8, readers * p.cluster);
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(shared_address(&r.tail->begun[i]), 1);
            barrier_init(shared_address(&r.tail->ready[i]), 2 * LOAD_THREADS); /* what is stored, what is copied */
            barrier_init(shared_address(&r.tail->unused[i]), MATH_WARPS);
        }
        fence_barrier_init();
    }
    return r;
}

/* The works of a block: those of its cluster's number, then every so many. (A cluster has 1 or 2 blocks:
 * shifts, for a division takes registers.) */
DEV int work_total(const cmoe_gpu_wgmma &p, const ring &r)
{
    return (r.tail->first_tile[p.g.call.local] >> (p.cluster - 1)) * p.m_tiles;
}

DEV int first_work(const cmoe_gpu_wgmma &p)
{
    return (int)blockIdx.x >> (p.cluster - 1);
}

DEV int work_step(const cmoe_gpu_wgmma &p)
{
    return (int)gridDim.x >> (p.cluster - 1);
}

/* a / b for 0 <= a < 2^24 */
DEV int quotient(int a, int b)
{
    const int q = (int)__fdividef((float)a, (float)b), rest = a - q * b;
    return q + (rest >= b) - (rest < 0);
}

/* Expert of a tile, which is `near` or a later one; there are m_tiles for each of the table's. */
DEV int expert_of_tile(const int *first_tile, int local, int m_tiles, int tile, int near)
{
    int low = near, high = tile < first_tile[near + 1] * m_tiles ? near : local - 1;
#pragma unroll 1
    while (low < high) {
        const int middle = (low + high) >> 1;
        if (first_tile[middle + 1] * m_tiles <= tile)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Tiles [first, first + count) along the weights' rows. */
struct strips {
    int first, count;
};

/* The index-th of the tiles of some strips, weights outermost: blocks that run together share a weight tile's expert
 * and its rows of x. The blocks of a cluster have the same weights and neighbouring rows. A tile's rows are a multiple
 * of STEP but for the expert's last. near: the expert of an earlier work. */
template <int STEP = 8>
DEV work work_in(const cmoe_gpu_wgmma &p, const ring &r, const strips &s, int index, int near)
{
    const int first = index << (p.cluster - 1), *first_tile = r.tail->first_tile;
    const int expert = expert_of_tile(first_tile, p.g.call.local, s.count, first, near);
    const int begin = p.g.call.offsets[expert], n = p.g.call.offsets[expert + 1] - begin;
    const int tiles = first_tile[expert + 1] - first_tile[expert], at = first - first_tile[expert] * s.count;
    const int each = (quotient(n + tiles - 1, tiles) + STEP - 1) & ~(STEP - 1), m = quotient(at, tiles);
    const int from = (at - m * tiles + (int)r.rank) * each;
    return {expert, begin + from, max(0, min(each, n - from)),
            (s.first + m) * (p.gated ? CMOE_WGMMA_HALF : 2 * CMOE_WGMMA_HALF)};
}

template <int STEP = 8> DEV work work_at(const cmoe_gpu_wgmma &p, const ring &r, int index, int near)
{
    return work_in<STEP>(p, r, strips{0, p.m_tiles}, index, near);
}

#endif
