/* SPDX-License-Identifier: MIT
 * GEMM1, GEMM1 with ACT or with ACT and REQUANT, and GEMM2 on Hopper's wgmma; compiled for each kind of
 * operand by itself.
 *
 * Weights are the M operand (always dense, by TMA from the layout they have), rows of x the N operand,
 * so that a tile is as wide as an expert has rows. A block is persistent: one warpgroup fills a ring
 * of stages, two multiply. Each of these owns 64 rows of both of a stage's boxes; with box 0 gate
 * rows and box 1 up rows of the same units, a thread holds both and the activation is its own. Two
 * blocks may form a cluster that shares each tile of weights between two tiles of rows. */
#ifndef CMOE_KERNELS_GEMM_CUH
#define CMOE_KERNELS_GEMM_CUH

#include "backends/cuda/kernels/common/epilogue.cuh"

template <int TYPE, int OUT, bool ACT, bool BLOCK, int MOST>
DEV void consume(const cmoe_gpu_wgmma &p, const ring &r)
{
    cursor c = {0, 0};
    int turn = 0;
    float acc[2][MOST / 2] = {};
    for (int index = first_work(p); index < work_total(p, r); index += work_step(p), turn++) {
        const int slot = turn & 1, parity = turn >> 1 & 1;
        const tile_facts &facts = r.tail->facts[slot];
        barrier_wait(shared_address(&r.tail->begun[slot]), parity);
        accumulate_from<TYPE, BLOCK, 8>(p, r, facts.w.count, place_of(), c, acc);
        barrier_wait(shared_address(&r.tail->ready[slot]), parity);
        epilogue<OUT, ACT, TYPE == CMOE_E4M3 && !BLOCK>(p, r, facts, acc);
        __syncwarp();
        if (threadIdx.x % 32 == 0)
            barrier_arrive(shared_address(&r.tail->unused[slot]));
    }
}

template <int TYPE, int OUT, bool ACT, bool BLOCK> DEV void gemm(const cmoe_gpu_wgmma &p)
{
    extern __shared__ uint8_t memory[];
    constexpr int MOST = TYPE == CMOE_E4M3 ? SCALED_N : MOST_N;
    const ring r = make_ring(p, memory);
    if (threadIdx.x == 0 && p.tma) {
        prefetch_map(&p.map[0]);
        prefetch_map(&p.map[1]);
    }
    if (!p.ahead)
        depend_wait();
    count_tiles(p, r.tail->first_tile);
    if (p.cluster > 1)
        cluster_sync();
    if (threadIdx.x < LOAD_THREADS) {
        fewer_registers<56>();
        produce<TYPE, BLOCK, MOST>(p, r);
    } else {
        more_registers<224>();
        consume<TYPE, OUT, ACT, BLOCK, MOST>(p, r);
    }
    if (p.cluster > 1)
        cluster_sync();
}

/* Named by operand type, scales along k, and what comes out: sums, or the activation's result. */
#define ENTRY(name, type, out, act, block)                                                         \
    extern "C" __global__ void __launch_bounds__(CMOE_WGMMA_THREADS, 1)                            \
        name(const __grid_constant__ cmoe_gpu_wgmma p)                                             \
    {                                                                                              \
        gemm<type, out, act, block>(p);                                                            \
    }

#endif
