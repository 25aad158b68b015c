/* SPDX-License-Identifier: MIT
 * ROUTE and SORT at once. A token has an expert at most once, so that a set of a block's tokens for each
 * expert, one bit a token, says everything a stable sort needs: an id's place among those of its expert is the
 * number of lower bits, whatever the order in which they were set. */
#ifndef CMOE_KERNELS_ROUTE_SORT_CUH
#define CMOE_KERNELS_ROUTE_SORT_CUH

#include "backends/cuda/kernels/common/route_block.cuh"
#include "backends/cuda/kernels/common/route_octet.cuh"
#include "backends/cuda/kernels/common/sort_block.cuh"

/* A block's shared memory; sort_shared() of route.c is its size. */
struct routed_memory {
    uint64_t *barrier;
    int *total;      /* ids in all */
    int *sums;       /* [32]: of the warps' experts */
    int *start;      /* [experts]: row of the block's first id of an expert */
    uint32_t *mask;  /* [words][experts]: the block's tokens */
    uint16_t *count; /* [blocks][experts]: ids of an expert; the first row the block's own until all have theirs */
    int32_t *ids;    /* [(each + 1) * slots]: then local experts */
    float *weights;  /* [(each + 1) * slots] */
    float *routing;
    int experts, words;

    MEMBER routed_memory(int4 *memory, const cmoe_gpu_routing &g, int local, int blocks)
    {
        experts = (local + 7) / 8 * 8;
        words = (g.each + 31) / 32;
        const int slots = ((g.each + 1) * g.r.call.slots + 3) / 4 * 4;
        barrier = (uint64_t *)memory;
        total = (int *)memory + 2;
        sums = (int *)memory + 4;
        start = sums + 32;
        count = (uint16_t *)(start + experts);
        mask = (uint32_t *)(count + blocks * experts);
        ids = (int32_t *)(mask + words * experts);
        weights = (float *)(ids + slots);
        routing = weights + slots;
    }
};

/* Tokens of slots, without a division: of less than 2^21 slots. */
struct token_of {
    float each;

    MEMBER token_of(int slots) : each(1.0f / (float)slots)
    {
    }

    MEMBER int operator()(int slot) const
    {
        return (int)(((float)slot + 0.5f) * each);
    }
};

/* Before the kernel waits. */
DEV void clear_masks(const routed_memory &m)
{
    for (int i = threadIdx.x; i < m.words * m.experts; i += blockDim.x)
        m.mask[i] = 0;
}

/* How many experts a lane of an octet holds; or the way that the problem has, for logits or for other keys. */
enum { BY_LOGITS = 0, BY_KEYS = -1 };

/* The block's tokens, when the kernel before is complete. */
template <int HELD> DEV tokens_of route_some(const cmoe_gpu_routing &g, const routed_memory &m)
{
    if constexpr (HELD <= 0)
        return wait_and_route<HELD == BY_KEYS>(g, m.routing, m.ids, m.weights);
    else {
        enum { BEST = HELD < 8 ? HELD : 8 };
        tokens_of tokens;
        tokens.wait(g);
        const uint32_t left = route_by_octets<HELD, BEST>(g, tokens.from, tokens.n, m.ids, m.weights);
        route_left(g, tokens.from, left, m.routing, m.ids, m.weights);
        return tokens;
    }
}

/* After clear_masks(): waits for the kernel before, routes the block's tokens, says what was chosen, and makes the
 * sets. */
template <int HELD>
DEV tokens_of route_tokens(const cmoe_gpu_routing &g, const cmoe_gpu_sort &s, const routed_memory &m)
{
    const cmoe_gpu_route &r = g.r;
    const int slots = r.call.slots;
    const expert_of local(s.call);
    const token_of token(slots);
    const tokens_of tokens = route_some<HELD>(g, m);
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < tokens.n * slots; i += blockDim.x) {
        const int64_t at = (int64_t)tokens.from * slots + i;
        const int id = m.ids[i], expert = local(id), t = token(i);
        r.ids[at] = id;
        r.weights[at] = m.weights[i];
        m.ids[i] = expert;
        if (expert < local.none)
            atomicOr(m.mask + t / 32 * m.experts + expert, 1u << t % 32);
    }
    __syncthreads();
    return tokens;
}

/* Ids of an expert in the block. */
DEV int count_of(const routed_memory &m, int expert)
{
    int n = 0;
#pragma unroll 4
    for (int w = 0; w < m.words; w++)
        n += __popc(m.mask[w * m.experts + expert]);
    return n;
}

/* How many of the block's tokens before t have its expert. */
DEV int rank_of_token(const routed_memory &m, int expert, int t)
{
    int n = __popc(m.mask[t / 32 * m.experts + expert] & ((1u << t % 32) - 1));
#pragma unroll 1
    for (int w = 0; w < t / 32; w++)
        n += __popc(m.mask[w * m.experts + expert]);
    return n;
}

/* Sum of v over the threads before this one; all of the block's call it. */
DEV int sum_before(int v, int *sums)
{
    const int warp = (int)threadIdx.x / 32;
    int sum = v;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const int below = __shfl_up_sync(0xffffffff, sum, offset);
        sum += lane() >= offset ? below : 0;
    }
    if (lane() == 31)
        sums[warp] = sum;
    __syncthreads();
    return __reduce_add_sync(0xffffffff, lane() < warp ? sums[lane()] : 0) + sum - v;
}

/* A thread an expert: all: its ids; before: those of the blocks before. Where the block's begin, and of the first
 * block all offsets. */
DEV void start_experts(const cmoe_gpu_sort &s, int *sums, int *start, int all, int before, bool first_block)
{
    const int e = (int)threadIdx.x, first = sum_before(all, sums);
    if (e < s.call.local)
        start[e] = first + before;
    if (first_block) {
        if (e < s.call.local)
            s.offsets[e] = first;
        if (e == s.call.local - 1)
            s.offsets[e + 1] = first + all;
        clear_progress(s, (int)blockDim.x);
    }
    __syncthreads();
}

DEV void put_rows(const cmoe_gpu_sort &s, const routed_memory &m, const tokens_of &tokens)
{
    const int slots = s.call.slots;
    const token_of token(slots);
#pragma unroll 1
    for (int i = threadIdx.x; i < tokens.n * slots; i += blockDim.x) {
        const int e = m.ids[i];
        if (e < s.call.local)
            s.rows[m.start[e] + rank_of_token(m, e, token(i))] = tokens.from * slots + i;
    }
}

/* Words of a row of starts of the first of two kernels. */
DEV int start_stride(int local)
{
    return (local + 8) / 8 * 8;
}

/* The first of two kernels. list: the block's slots by expert from the block's first on; starts: where in it an
 * expert's begin, with an end, [blocks][start_stride()]. */
template <int HELD>
DEV void count_tokens(const cmoe_gpu_routing &g, const cmoe_gpu_sort &s, int4 *memory, uint16_t *starts, int32_t *list)
{
    const routed_memory m(memory, g, s.call.local, 1);
    const int slots = s.call.slots, local = s.call.local, e = (int)threadIdx.x;
    const token_of token(slots);
    clear_masks(m);
    const tokens_of tokens = route_tokens<HELD>(g, s, m);
    const int first = tokens.from * slots;
    int32_t *sorted = (int32_t *)m.weights; /* which are stored */
    const int n = e < local ? count_of(m, e) : 0, start = sum_before(n, m.sums);
    if (e < local) {
        m.start[e] = start;
        starts[(int)blockIdx.x * start_stride(local) + e] = (uint16_t)start;
    }
    if (e == local - 1) {
        *m.total = start + n;
        starts[(int)blockIdx.x * start_stride(local) + local] = (uint16_t)(start + n);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = e; i < tokens.n * slots; i += (int)blockDim.x) {
        const int expert = m.ids[i];
        if (expert < local)
            sorted[m.start[expert] + rank_of_token(m, expert, token(i))] = first + i;
    }
    __syncthreads();
#pragma unroll 1
    for (int i = e; i < *m.total; i += (int)blockDim.x)
        list[first + i] = sorted[i];
}

/* A kernel of one launch; BODY<held> as route_some() has it. */
#define ROUTE_SORT_KERNEL(name, BODY, held)                                                                            \
    extern "C" __global__ void __launch_bounds__(512, 1)                                                               \
        name(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s)                      \
    {                                                                                                                  \
        extern __shared__ int4 memory[];                                                                               \
        BODY<held>(g, s, memory);                                                                                      \
    }

/* The first of two. */
#define ROUTE_COUNT_KERNEL(name, threads, held)                                                                        \
    extern "C" __global__ void __launch_bounds__(threads, 1)                                                           \
        name(const __grid_constant__ cmoe_gpu_routing g, const __grid_constant__ cmoe_gpu_sort s, uint16_t *starts,    \
             int32_t *list)                                                                                            \
    {                                                                                                                  \
        extern __shared__ int4 memory[];                                                                               \
        count_tokens<held>(g, s, memory, starts, list);                                                                \
    }

#endif
