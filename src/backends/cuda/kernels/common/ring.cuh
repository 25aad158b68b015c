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
    MOST_N = 128,
};

/* After the stages: [box 0 | box 1 | rows of x], each row one swizzled span. */
struct ring_tail {
    float scale[CMOE_WGMMA_STAGES][MOST_N]; /* of the stage's rows of x, where they change along k */
    uint64_t full[CMOE_WGMMA_STAGES], empty[CMOE_WGMMA_STAGES];
    int first_tile[CMOE_WGMMA_EXPERTS + 1];
};

struct ring {
    uint32_t stages, full, empty;
    ring_tail *tail;
    int stage_bytes, count;
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

/* Tiles of n rows: as few as hold them, all of about the same size. */
DEV int tiles_of(int n, int tile_n)
{
    return (n + tile_n - 1) / tile_n;
}

/* first_tile[e]: tiles of the experts before e, all of them counted along x's rows only. */
DEV void count_tiles(const cmoe_gpu_wgmma &p, int *first_tile)
{
    const int local = p.g.call.local;
    for (int e = threadIdx.x; e < local; e += CMOE_WGMMA_THREADS)
        first_tile[e + 1] = tiles_of(p.g.call.offsets[e + 1] - p.g.call.offsets[e], p.tile_n);
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

DEV ring make_ring(const cmoe_gpu_wgmma &p, uint8_t *memory)
{
    ring r;
    r.stages = (shared_address(memory) + 1023) & ~1023u;
    r.stage_bytes = A_BYTES + p.tile_n * SPAN;
    r.count = p.stages;
    r.tail = (ring_tail *)(memory + (r.stages - shared_address(memory)) + r.count * r.stage_bytes);
    r.full = shared_address(r.tail->full);
    r.empty = shared_address(r.tail->empty);
    if (threadIdx.x == 0) {
        for (int s = 0; s < r.count; s++) {
            barrier_init(r.full + s * 8, LOAD_THREADS + 1);
            barrier_init(r.empty + s * 8, MATH_WARPS);
        }
        fence_barrier_init();
    }
    count_tiles(p, r.tail->first_tile);
    return r;
}

struct work {
    int expert, first, count; /* rows [first, first + count) of the sort */
    int m;                    /* first weight row of box 0 */
};

DEV int tile_total(const cmoe_gpu_wgmma &p, const ring &r)
{
    return r.tail->first_tile[p.g.call.local] * p.m_tiles;
}

/* Weights outermost: blocks that run together share a weight tile's expert and its rows of x. */
DEV work work_at(const cmoe_gpu_wgmma &p, const ring &r, int index)
{
    int low = 0, high = p.g.call.local; /* first_tile[low] * m_tiles <= index < first_tile[high] * m_tiles */
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (r.tail->first_tile[middle] * p.m_tiles <= index)
            low = middle;
        else
            high = middle;
    }
    const int begin = p.g.call.offsets[low], n = p.g.call.offsets[low + 1] - begin;
    const int tiles = tiles_of(n, p.tile_n), at = index - r.tail->first_tile[low] * p.m_tiles;
    const int each = ((n + tiles - 1) / tiles + 7) / 8 * 8, t = at % tiles;
    return {low, begin + t * each, min(each, n - t * each),
            at / tiles * (p.gated ? CMOE_WGMMA_HALF : 2 * CMOE_WGMMA_HALF)};
}

#endif
