/* SPDX-License-Identifier: MIT
 * SORT of many ids: a stable counting sort over blocks of ids. Every block counts its ids, one block
 * turns the counts into starts, every block puts its ids there. Within a block each warp has its own
 * run of ids and its own starts, so ranks follow the order of the slots without atomics on them. */
#include "backends/cuda/kernels/common/numeric.cuh"

enum { WARPS = 8, RUN = 256, BLOCK_IDS = WARPS * RUN, NONE = -1 };

DEV int64_t n_slots(const cmoe_gpu_sort &s)
{
    return (int64_t)token_count(s.call) * s.call.slots;
}

/* counts[block][expert] */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_sort_tally(const __grid_constant__ cmoe_gpu_sort s, int32_t *counts)
{
    extern __shared__ int32_t tally[]; /* [local] */
    const int local = s.call.local;
    const int64_t first = (int64_t)blockIdx.x * BLOCK_IDS, n = n_slots(s);
    for (int e = threadIdx.x; e < local; e += 256)
        tally[e] = 0;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < BLOCK_IDS / 256; i++) {
        const int64_t at = first + i * 256 + threadIdx.x;
        const int e = at < n ? local_expert(s.call, s.call.ids[at]) : NONE;
        if (e >= 0)
            atomicAdd(&tally[e], 1);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < local; e += 256)
        counts[(int64_t)blockIdx.x * local + e] = tally[e];
}

/* counts to starts, offsets; one block, a thread an expert. */
extern "C" __global__ void __launch_bounds__(1024)
    cmoe_sort_starts(const __grid_constant__ cmoe_gpu_sort s, int32_t *counts, int blocks)
{
    __shared__ int32_t warp_sum[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, local = s.call.local;
    int carry = 0;
    for (int base = 0; base < local; base += 1024) {
        const int e = base + (int)threadIdx.x;
        int total = 0;
        for (int b = 0; e < local && b < blocks; b++)
            total += counts[(int64_t)b * local + e];
        int sum = total;
        for (int offset = 1; offset < 32; offset <<= 1) {
            const int below = __shfl_up_sync(0xffffffff, sum, offset);
            sum += lane >= offset ? below : 0;
        }
        if (lane == 31)
            warp_sum[warp] = sum;
        __syncthreads();
        int before = carry;
        for (int w = 0; w < 32; w++) {
            before += w < warp ? warp_sum[w] : 0;
            carry += warp_sum[w];
        }
        int start = before + sum - total;
        if (e < local)
            s.offsets[e + 1] = start + total;
        for (int b = 0; e < local && b < blocks; b++) {
            const int n = counts[(int64_t)b * local + e];
            counts[(int64_t)b * local + e] = start;
            start += n;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        s.offsets[0] = 0;
    clear_progress(s, 1024);
}

extern "C" __global__ void __launch_bounds__(256)
    cmoe_sort_spread(const __grid_constant__ cmoe_gpu_sort s, const int32_t *starts)
{
    extern __shared__ int32_t next[]; /* [warp][local] */
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, local = s.call.local;
    const int64_t first = (int64_t)blockIdx.x * BLOCK_IDS + warp * RUN, n = n_slots(s);
    int32_t *mine = next + warp * local;
    for (int i = threadIdx.x; i < WARPS * local; i += 256)
        next[i] = 0;
    __syncthreads();
    int expert[RUN / 32];
#pragma unroll
    for (int i = 0; i < RUN / 32; i++) {
        const int64_t at = first + i * 32 + lane;
        expert[i] = at < n ? local_expert(s.call, s.call.ids[at]) : NONE;
        if (expert[i] >= 0)
            atomicAdd(&mine[expert[i]], 1);
    }
    __syncthreads();
    for (int e = threadIdx.x; e < local; e += 256) {
        int start = starts[(int64_t)blockIdx.x * local + e];
        for (int w = 0; w < WARPS; w++) {
            const int count = next[w * local + e];
            next[w * local + e] = start;
            start += count;
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < RUN / 32; i++) {
        const uint32_t same = __match_any_sync(0xffffffff, expert[i]);
        const int rank = __popc(same & ((1u << lane) - 1));
        const int start = expert[i] >= 0 ? mine[expert[i]] : 0;
        __syncwarp();
        if (expert[i] >= 0) {
            s.rows[start + rank] = (int32_t)(first + i * 32 + lane);
            if (rank == 0)
                mine[expert[i]] = start + __popc(same);
        }
        __syncwarp();
    }
}
