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
    uint32_t *at;    /* the block's ids: expert, and rank in the warp; no expert: local */
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

/* local_expert() with its questions asked once; `none` instead of -1. */
struct expert_of {
    const int32_t *map;
    int first, routed, shared_first, shared, ids, none;

    MEMBER expert_of(const cmoe_gpu_call &c)
        : map(c.local_ids ? NULL : c.expert_map), first(c.local_ids ? 0 : c.expert_first),
          routed(c.local_ids ? c.local : c.routed_local), shared_first(c.experts),
          shared(c.local_ids ? 0 : c.local - c.routed_local), ids(c.n_ids), none(c.local)
    {
    }

    MEMBER int operator()(int id) const
    {
        if (map) {
            const int mapped = id >= 0 && id < ids ? map[id] : -1;
            return mapped >= 0 && mapped < none ? mapped : none;
        }
        const uint32_t at = (uint32_t)id - (uint32_t)first, extra = (uint32_t)id - (uint32_t)shared_first;
        return at < (uint32_t)routed ? (int)at : (extra < (uint32_t)shared ? routed + (int)extra : none);
    }
};

/* Of `same` the lanes whose bit of v is this lane's. */
template <int BIT> DEV void keep_same(uint32_t &same, int v)
{
#ifdef __CUDA_ARCH__
    asm volatile("{\n.reg .pred p;\n.reg .b32 set;\n"
                 "and.b32 set, %1, %2;\n"
                 "setp.ne.b32 p, set, 0;\n"
                 "vote.sync.ballot.b32 set, p, 0xffffffff;\n"
                 "@!p not.b32 set, set;\n"
                 "and.b32 %0, %0, set;\n}"
                 : "+r"(same)
                 : "r"(v), "n"(1 << BIT));
#else
    const uint32_t set = __ballot_sync(0xffffffff, v >> BIT & 1);
    same &= v >> BIT & 1 ? set : ~set;
#endif
}

/* Lanes whose expert is the same; no expert is above `most`. By a ballot for each bit, in fours: match
 * takes time for each expert that is there. */
DEV uint32_t same_expert(int expert, int most)
{
    uint32_t same = 0xffffffff;
#pragma unroll 1
    for (; most > 0; most >>= 4, expert >>= 4) {
        keep_same<0>(same, expert);
        keep_same<1>(same, expert);
        keep_same<2>(same, expert);
        keep_same<3>(same, expert);
    }
    return same;
}

/* A warp's run of the block's n ids: index of the lane's first, and where the run ends. */
struct run_of {
    int begin, end;

    MEMBER run_of(int n)
    {
        const int length = (n + (int)blockDim.x - 1) / (int)blockDim.x * 32, first = (int)threadIdx.x / 32 * length;
        begin = first + (int)threadIdx.x % 32;
        end = min(n, first + length);
    }
};

/* The block's ids, counted: m.at[] is the expert and the rank among those of the warp. Ids are on their way
 * all at once; loops are short, because code comes from memory too when a layer's weights have passed
 * since its last use. */
DEV void count_ids(const cmoe_gpu_sort &s, const int32_t *ids, const run_of &run, const sort_memory &m)
{
    const uint32_t lower = (1u << threadIdx.x % 32) - 1;
    const expert_of local(s.call);
    uint16_t *counts = m.of_warp();
#pragma unroll 1
    for (int i = run.begin; i < run.end; i += 32)
        __pipeline_memcpy_async(m.at + i, ids + i, 4);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    uint32_t *at = m.at + run.begin;
#pragma unroll 1
    for (int left = run.end - run.begin + (int)threadIdx.x % 32; left > 0; left -= 32, at += 32) {
        const bool inside = left > (int)threadIdx.x % 32;
        const int expert = inside ? local((int)*at) : local.none;
        const uint32_t same = same_expert(expert, local.none);
        const int rank = __popc(same & lower), before = expert < local.none ? counts[expert] : 0;
        __syncwarp();
        if (expert < local.none && rank == 0)
            counts[expert] = (uint16_t)(before + __popc(same));
        if (inside)
            *at = (uint32_t)expert << 16 | (uint32_t)(before + rank);
        __syncwarp();
    }
    __syncthreads();
}

/* The same ids into the block's list. */
DEV void put_ids(const sort_memory &m, const run_of &run, int local)
{
    const uint16_t *before = m.of_warp();
#pragma unroll 1
    for (int i = run.begin; i < run.end; i += 32) {
        const uint32_t at = m.at[i], expert = at >> 16;
        if (expert < (uint32_t)local)
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
    clear_progress(s, (int)blockDim.x);
}

/* All ids by one block; all its threads, after m.clear(). */
DEV void sort_in_block(const cmoe_gpu_sort &s, const sort_memory &m)
{
    const run_of run(token_count(s.call) * s.call.slots);
    count_ids(s, s.call.ids, run, m);
    sum_warps(m);
    __syncthreads();
    if (threadIdx.x < 32)
        sum_experts(m.count, m.first, m.experts);
    __syncthreads();
    write_offsets(s, m.first);
    put_ids(m, run, s.call.local);
    __syncthreads();
#pragma unroll 2
    for (int i = threadIdx.x; i < m.first[s.call.local]; i += blockDim.x)
        s.rows[i] = (int32_t)(m.list[i] & 0xffff);
}

#endif
