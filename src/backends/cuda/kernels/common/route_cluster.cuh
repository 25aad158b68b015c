/* SPDX-License-Identifier: MIT
 * ROUTE and SORT by a cluster, which is the whole grid: every block sends its counts of ids to all, as
 * stores that complete on a barrier of the receiver, so that nothing is fenced. */
#ifndef CMOE_KERNELS_ROUTE_CLUSTER_CUH
#define CMOE_KERNELS_ROUTE_CLUSTER_CUH

#include "backends/cuda/kernels/common/hopper.cuh"
#include "backends/cuda/kernels/common/route_sort.cuh"

/* The block's counts, in `own`, to row blockIdx.x of every block's. */
DEV void send_counts(const routed_memory &m, const uint16_t *own)
{
    const int pieces = m.experts / 8, blocks = (int)gridDim.x;
    const uint32_t barrier = shared_address(m.barrier), row = shared_address(m.count + blockIdx.x * m.experts);
#pragma unroll 1
    for (int i = threadIdx.x; i < pieces * blocks; i += blockDim.x)
        send(row + 16 * (i % pieces), ((const uint4 *)own)[i % pieces], barrier, i / pieces);
}

/* HELD: as of route_some(). */
template <int HELD> DEV void route_in_cluster(const cmoe_gpu_routing &g, const cmoe_gpu_sort &s, int4 *memory)
{
    const int blocks = (int)gridDim.x, e = (int)threadIdx.x;
    const routed_memory m(memory, g, s.call.local, blocks + 1);
    uint16_t *own = m.count + blocks * m.experts;
    if (e == 0) {
        barrier_init(shared_address(m.barrier), 1);
        fence_barrier_init();
        barrier_expect(shared_address(m.barrier), blocks * m.experts * 2);
    }
    __syncwarp();
    __cluster_barrier_arrive_relaxed(); /* the barrier is there */
    clear_masks(m);
    const tokens_of tokens = route_tokens<HELD>(g, s, m);
    if (e < m.experts)
        own[e] = (uint16_t)count_of(m, e);
    __syncthreads();
    __cluster_barrier_wait();
    send_counts(m, own);
    barrier_wait(shared_address(m.barrier), 0);
    int all = 0, before = 0;
#pragma unroll 4
    for (int b = 0; b < blocks && e < s.call.local; b++) {
        const int n = m.count[b * m.experts + e];
        all += n;
        before += b < (int)blockIdx.x ? n : 0;
    }
    start_experts(s, m.sums, m.start, all, before, blockIdx.x == 0);
    put_rows(s, m, tokens);
}

#endif
