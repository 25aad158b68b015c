/* SPDX-License-Identifier: MIT
 * SORT of many ids by a cluster, which is the whole grid: its blocks take equal shares of the ids, read
 * them once, and learn from each other's shared memory how many ids of an expert come before theirs. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/sort_block.cuh"

/* count[] of every block to start[] and shift[], which still lacks the sums over experts. */
DEV void sum_blocks(const sort_memory &m, int local)
{
    const int blocks = (int)gridDim.x, own = (int)blockIdx.x;
    for (int e = threadIdx.x; e < m.experts; e += blockDim.x) {
        int before = 0, all = 0;
        for (int b = 0; e < local && b < blocks; b++) {
            const int n = *(const int *)__cluster_map_shared_rank(m.count + e, (unsigned)b);
            before += b < own ? n : 0;
            all += n;
        }
        m.start[e] = all;
        m.shift[e] = before;
    }
}

/* All ids by the cluster that is the grid; all its threads, after m.clear(). */
DEV void sort_in_cluster(const cmoe_gpu_sort &s, const sort_memory &m)
{
    const int blocks = (int)gridDim.x, total = token_count(s.call) * s.call.slots;
    const int share = (total + blocks - 1) / blocks, from = min(total, (int)blockIdx.x * share);
    const run_of run(min(share, total - from));
    count_ids(s, s.call.ids + from, run, m);
    sum_warps(m);
    __syncthreads();
    if (threadIdx.x < 32) /* one warp releases the block's counts: that is a fence of the whole GPU */
        __cluster_barrier_arrive();
    else
        __cluster_barrier_arrive_relaxed();
    __cluster_barrier_wait();
    sum_blocks(m, s.call.local);
    __syncthreads();
    __cluster_barrier_arrive_relaxed(); /* the other blocks' counts are read */
    if (threadIdx.x < 32)
        sum_experts(m.start, m.start, m.experts);
    else if (threadIdx.x < 64)
        sum_experts(m.count, m.first, m.experts);
    __syncthreads();
    if (blockIdx.x == 0)
        write_offsets(s, m.start);
    for (int e = threadIdx.x; e < s.call.local; e += blockDim.x)
        m.shift[e] += m.start[e] - m.first[e];
    put_ids(m, run, s.call.local);
    __syncthreads();
#pragma unroll 2
    for (int i = threadIdx.x; i < m.first[s.call.local]; i += blockDim.x) {
        const uint32_t id = m.list[i];
        s.rows[i + m.shift[id >> 16]] = from + (int32_t)(id & 0xffff);
    }
    __syncwarp();
    __cluster_barrier_wait();
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_sort_cluster(const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    const int blocks = (int)gridDim.x, most = (s.call.tokens * s.call.slots + blocks - 1) / blocks;
    const sort_memory m((int *)memory, s.call.local, most);
    m.clear();
    depend();
    sort_in_cluster(s, m);
}
