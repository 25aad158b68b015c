/* SPDX-License-Identifier: MIT
 * A stable counting sort by one block, or by the blocks of a cluster, without atomics. Every warp
 * ranks its run of the ids by ballots; its counts, summed over the warps before it, over the experts
 * before and in a cluster over the blocks before, say where its ids go. The block's ids are put in
 * order in shared memory first, so that what leaves it is whole lines. */
#ifndef CMOE_KERNELS_SORT_BLOCK_CUH
#define CMOE_KERNELS_SORT_BLOCK_CUH

#include "backends/cuda/kernels/common/numeric.cuh"
#include <cuda_pipeline.h>

/* A block's shared memory; cmoe__cuda_sort_shared() is its size. Pairs of experts, because counts of a
 * block fit in 16 bits. */
struct sort_memory {
    int *count;      /* [experts]: ids of the block; of experts that are not there 0 */
    int *shift;      /* [experts]: from the list to rows */
    int *first;      /* [experts + 1]: ids of the block of the experts before: a place in the list */
    int *start;      /* [experts + 1]: the same of all blocks: a place in rows */
    uint32_t *pairs; /* [warps][stride]: ids of the warp, then of the warps before it */
    uint32_t *at;    /* the block's ids: expert, and rank in the warp; no expert: 0xffff */
    uint32_t *list;  /* the same in order: expert, and index in the block */
    int experts, stride, warps;

    MEMBER sort_memory(int *memory, int local, int n)
    {
        warps = (int)blockDim.x / 32;
        experts = (local + 127) / 128 * 128;
        stride = experts / 2 + 32 / warps; /* a column's words lie in different banks */
        count = memory;
        shift = count + experts;
        first = shift + experts;
        start = first + experts + 4;
        pairs = (uint32_t *)(start + experts + 4);
        at = pairs + warps * stride;
        list = at + n;
    }

    MEMBER uint16_t *of_warp() const
    {
        return (uint16_t *)(pairs + (int)threadIdx.x / 32 * stride);
    }

    MEMBER void clear() const
    {
        for (int i = threadIdx.x; i < warps * stride; i += blockDim.x)
            pairs[i] = 0;
        __syncthreads();
    }
};

/* Lanes whose expert is the same; experts are below `end`. By a ballot for each bit, in fours: match takes
 * time for each expert that is there. */
DEV uint32_t same_expert(int expert, int end)
{
    uint32_t same = 0xffffffff;
#pragma unroll 1
    for (; end > 0; end >>= 4, expert >>= 4)
#pragma unroll
        for (int bit = 1; bit < 16; bit <<= 1) {
            const uint32_t set = __ballot_sync(0xffffffff, expert & bit);
            same &= expert & bit ? set : ~set;
        }
    return same;
}

/* n ids of the block, counted: m.at[] is the expert and the rank among those of the warp, which takes
 * the ids from *first on up to the result. Ids are on their way all at once; loops are short, because code
 * comes from memory too when a layer's weights have passed since its last use. */
DEV int count_ids(const cmoe_gpu_sort &s, const int32_t *ids, int n, const sort_memory &m, int *first)
{
    const int lane = threadIdx.x % 32, run = (n + (int)blockDim.x - 1) / (int)blockDim.x * 32;
    const int begin = (int)threadIdx.x / 32 * run + lane, end = min(n, begin - lane + run);
    uint16_t *counts = m.of_warp();
#pragma unroll 1
    for (int i = begin; i < end; i += 32)
        __pipeline_memcpy_async(m.at + i, ids + i, 4);
    __pipeline_commit();
    __pipeline_wait_prior(0);
#pragma unroll 1
    for (int i = begin; i - lane < end; i += 32) {
        const int expert = i < end ? local_expert(s.call, (int32_t)m.at[i]) : -1;
        const uint32_t same = same_expert(expert < 0 ? s.call.local : expert, s.call.local);
        const int before = expert >= 0 ? counts[expert] : 0;
        __syncwarp();
        if (expert >= 0 && lane == __ffs((int)same) - 1)
            counts[expert] = (uint16_t)(before + __popc(same));
        if (i < end)
            m.at[i] = (uint32_t)expert << 16 | (uint32_t)(before + __popc(same & ((1u << lane) - 1)));
        __syncwarp();
    }
    __syncthreads();
    *first = begin;
    return end;
}

/* Ids of this lane, as counted, into the block's list. */
DEV void put_ids(const sort_memory &m, int begin, int end)
{
    const uint16_t *before = m.of_warp();
#pragma unroll 1
    for (int i = begin; i < end; i += 32) {
        const uint32_t at = m.at[i], expert = at >> 16;
        if (expert != 0xffff)
            m.list[m.first[expert] + before[expert] + (at & 0xffff)] = expert << 16 | (uint32_t)i;
    }
}

/* Every warp's counts to those of the warps before it; the block's. A column of counts is summed by as
 * many lanes as there are warps. */
DEV void sum_warps(const sort_memory &m)
{
    const int lane = threadIdx.x % 32, w = lane % m.warps, across = 32 / m.warps;
#pragma unroll 1
    for (int base = (int)threadIdx.x / 32 * across; base < m.experts / 2; base += 32) {
        const int pair = base + lane / m.warps;
        uint32_t *at = m.pairs + w * m.stride + pair;
        const uint32_t n = *at;
        uint32_t sum = n;
#pragma unroll 1
        for (int offset = 1; offset < m.warps; offset <<= 1) {
            const uint32_t below = __shfl_up_sync(0xffffffff, sum, offset, m.warps);
            sum += w >= offset ? below : 0;
        }
        *at = sum - n;
        if (w == m.warps - 1)
            *(int2 *)(m.count + 2 * pair) = make_int2((int)(sum & 0xffff), (int)(sum >> 16));
    }
}

/* Sums over the experts before, and of all; one warp, four experts a lane. `to` may be `from`. */
DEV void sum_experts(const int *from, int *to, int experts)
{
    const int lane = threadIdx.x % 32;
    int carry = 0;
#pragma unroll 1
    for (int e = lane * 4; e < experts; e += 128) {
        const int4 n = *(const int4 *)(from + e);
        int sum = n.x + n.y + n.z + n.w;
        const int own = sum;
        for (int offset = 1; offset < 32; offset <<= 1) {
            const int below = __shfl_up_sync(0xffffffff, sum, offset);
            sum += lane >= offset ? below : 0;
        }
        const int before = carry + sum - own;
        *(int4 *)(to + e) = make_int4(before, before + n.x, before + n.x + n.y, before + n.x + n.y + n.z);
        carry += __shfl_sync(0xffffffff, sum, 31);
    }
    if (lane == 0)
        to[experts] = carry;
}

DEV void write_offsets(const cmoe_gpu_sort &s, const int *start)
{
    for (int e = threadIdx.x; e <= s.call.local; e += blockDim.x)
        s.offsets[e] = start[e];
}

/* All ids by one block; all its threads, after m.clear(). */
DEV void sort_in_block(const cmoe_gpu_sort &s, const sort_memory &m)
{
    int first;
    const int end = count_ids(s, s.call.ids, token_count(s.call) * s.call.slots, m, &first);
    sum_warps(m);
    __syncthreads();
    if (threadIdx.x < 32)
        sum_experts(m.count, m.first, m.experts);
    __syncthreads();
    write_offsets(s, m.first);
    put_ids(m, first, end);
    __syncthreads();
#pragma unroll 2
    for (int i = threadIdx.x; i < m.first[s.call.local]; i += blockDim.x)
        s.rows[i] = (int32_t)(m.list[i] & 0xffff);
}

#endif
