/* SPDX-License-Identifier: MIT
 * A stable counting sort of few ids by one block, without atomics: every warp ranks its share of the
 * ids by match, a histogram a warp gives the ranks before it. */
#ifndef CMOE_KERNELS_SORT_BLOCK_CUH
#define CMOE_KERNELS_SORT_BLOCK_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

enum { ROUNDS = 8 };

/* Sum of v over the threads before this one; *total: over all. shared: one int a warp. */
DEV int scan_block(int v, int *shared, int *total)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    int sum = v;
    for (int offset = 1; offset < 32; offset <<= 1) {
        const int below = __shfl_up_sync(0xffffffff, sum, offset);
        sum += lane >= offset ? below : 0;
    }
    if (lane == 31)
        shared[warp] = sum;
    __syncthreads();
    int before = 0, all = 0;
    for (int w = 0; w < warps; w++) {
        before += w < warp ? shared[w] : 0;
        all += shared[w];
    }
    __syncthreads();
    *total = all;
    return before + sum - v;
}

/* counts[warp][expert] to how many ids of the expert are in the warps before; starts of experts. With
 * parts, other blocks have ids too: parts[block][expert] of them. */
DEV void scan_experts(const cmoe_gpu_sort &s, uint16_t *counts, int *starts, int *shared, const int *parts)
{
    const int local = s.call.local, warps = blockDim.x / 32;
    int carry = 0;
    for (int base = 0; base < local; base += blockDim.x) {
        const int e = base + (int)threadIdx.x;
        int sum = 0, before = 0, total;
        for (int w = 0; e < local && w < warps; w++) {
            const int n = counts[w * local + e];
            counts[w * local + e] = (uint16_t)sum;
            sum += n;
        }
        for (int b = 0; parts && e < local && b < (int)gridDim.x; b++) {
            const int n = b == (int)blockIdx.x ? 0 : __ldcg(&parts[b * local + e]);
            before += b < (int)blockIdx.x ? n : 0;
            sum += n;
        }
        const int start = carry + scan_block(sum, shared, &total);
        if (e < local)
            starts[e] = start + before;
        if (e < local && blockIdx.x == 0)
            s.offsets[e] = start;
        carry += total;
    }
    if (threadIdx.x == 0 && blockIdx.x == 0)
        s.offsets[local] = carry;
    __syncthreads();
}

/* memory: [local] starts, then [warps][local] counts of 16 bits. */
DEV void sort_clear(const cmoe_gpu_sort &s, int *memory)
{
    const int n = (int)blockDim.x / 32 * s.call.local;
    uint16_t *counts = (uint16_t *)(memory + s.call.local);
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        counts[i] = 0;
    __syncthreads();
}

/* Experts of the block's ids and their ranks among the warp's, ROUNDS at most a lane; counts them. */
struct ranks {
    int first, rounds, expert[ROUNDS], rank[ROUNDS];

    MEMBER void count(const cmoe_gpu_sort &s, int from, int n, uint16_t *counts)
    {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        rounds = (n + (int)blockDim.x - 1) / (int)blockDim.x;
        first = from + warp * rounds * 32 + lane;
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            const int i = first + r * 32;
            expert[r] = r < rounds && i < from + n ? local_expert(s.call, s.call.ids[i]) : -1;
        }
#pragma unroll
        for (int r = 0; r < ROUNDS; r++) {
            if (r >= rounds)
                break;
            uint16_t *mine = counts + warp * s.call.local + expert[r];
            const uint32_t same = __match_any_sync(0xffffffff, expert[r]);
            const int before = expert[r] >= 0 ? *mine : 0;
            rank[r] = before + __popc(same & ((1u << lane) - 1));
            __syncwarp();
            if (expert[r] >= 0 && lane == __ffs((int)same) - 1)
                *mine = (uint16_t)(before + __popc(same));
            __syncwarp();
        }
        __syncthreads();
    }

    MEMBER void place(const cmoe_gpu_sort &s, const int *starts, const uint16_t *counts) const
    {
        const uint16_t *mine = counts + threadIdx.x / 32 * s.call.local;
#pragma unroll
        for (int r = 0; r < ROUNDS; r++)
            if (r < rounds && expert[r] >= 0)
                s.rows[starts[expert[r]] + mine[expert[r]] + rank[r]] = first + r * 32;
    }
};

/* All threads of a block, after sort_clear. */
DEV void sort_in_block(const cmoe_gpu_sort &s, int *starts, int *shared)
{
    uint16_t *counts = (uint16_t *)(starts + s.call.local);
    ranks r;
    r.count(s, 0, token_count(s.call) * s.call.slots, counts);
    scan_experts(s, counts, starts, shared, NULL);
    r.place(s, starts, counts);
}

#endif
