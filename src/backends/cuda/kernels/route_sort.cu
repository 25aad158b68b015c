/* SPDX-License-Identifier: MIT
 * ROUTE and SORT of tokens that one block routes, and of any number in two kernels: blocks route their tokens and
 * sort them, then a block for each expert joins its ids of all of them. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/route_sort.cuh"

enum { PLACE_WARPS = 8, PLACE_THREADS = 32 * PLACE_WARPS, PLACED_BLOCKS = 128 };

template <int HELD> DEV void route_in_block(const cmoe_gpu_routing &g, const cmoe_gpu_sort &s, int4 *memory)
{
    const routed_memory m(memory, g, s.call.local, 1);
    clear_masks(m);
    const tokens_of tokens = route_tokens<HELD>(g, s, m);
    start_experts(s, m.sums, m.start, (int)threadIdx.x < s.call.local ? count_of(m, (int)threadIdx.x) : 0, 0, true);
    put_rows(s, m, tokens);
}

ROUTE_SORT_KERNEL(cmoe_route_sort, route_in_block, BY_LOGITS)
ROUTE_SORT_KERNEL(cmoe_route_sort_keyed, route_in_block, BY_KEYS)
ROUTE_COUNT_KERNEL(cmoe_route_count, 512, BY_LOGITS)
ROUTE_COUNT_KERNEL(cmoe_route_count_keyed, 512, BY_KEYS)

/* A block's shared memory of cmoe_route_place. */
struct placed {
    int sums[PLACE_WARPS], starts[PLACE_WARPS];
    int before[PLACED_BLOCKS]; /* ids of the expert in the blocks before */
    int from[PLACED_BLOCKS];   /* from them to the list */
};

/* The n-th of an expert's ids, n < before[blocks]: where it is in the list. */
DEV int find_id(const placed &m, int n)
{
    int block = 0;
#pragma unroll
    for (int step = PLACED_BLOCKS / 2; step > 0; step /= 2)
        block += m.before[block + step] <= n ? step : 0;
    return m.from[block] + n;
}

/* Ids of an expert, those of `part` among `parts`, from lists of so many blocks. Nothing leaves the block if there
 * are no lists. */
DEV void place_ids(const cmoe_gpu_sort &s, placed &m, const uint16_t *starts, const int32_t *list, int blocks, int each,
                   int parts)
{
    const int b = (int)threadIdx.x, warp = b / 32, expert = (int)blockIdx.x / parts, part = (int)blockIdx.x % parts;
    int begin = 0, n = 0;
    if (b < blocks) {
        const uint16_t *row = starts + b * start_stride(s.call.local) + expert;
        begin = row[0];
        n = row[1] - begin;
    }
    int sum = n;
#pragma unroll
    for (int offset = 1; offset < 32; offset <<= 1) {
        const int below = __shfl_up_sync(0xffffffff, sum, offset);
        sum += lane() >= offset ? below : 0;
    }
    const int start_here = __reduce_add_sync(0xffffffff, begin);
    if (lane() == 31) {
        m.sums[warp] = sum;
        m.starts[warp] = start_here;
    }
    __syncthreads();
    const int others = lane() < PLACE_WARPS ? m.sums[lane()] : 0, total = __reduce_add_sync(0xffffffff, others);
    const int start = __reduce_add_sync(0xffffffff, lane() < PLACE_WARPS ? m.starts[lane()] : 0);
    const int before = __reduce_add_sync(0xffffffff, lane() < warp ? others : 0) + sum - n;
    if (b < PLACED_BLOCKS) {
        m.before[b] = before;
        m.from[b] = b * each * s.call.slots + begin - before;
    }
    __syncthreads();
    if (blocks > 0 && part == 0 && b == 0) {
        s.offsets[expert] = start;
        if (expert == s.call.local - 1)
            s.offsets[expert + 1] = start + total;
    }
    if (blocks > 0 && blockIdx.x == 0)
        clear_progress(s, PLACE_THREADS);
#pragma unroll 2
    for (int i = part * PLACE_THREADS + b; i < total; i += parts * PLACE_THREADS)
        s.rows[start + i] = list[find_id(m, i)];
}

/* A block an expert, or `parts`. blocks: of the kernel that counted, which had `each` tokens of each. That one is
 * still at work when this starts: going through the code once without ids fetches it meanwhile. */
extern "C" __global__ void __launch_bounds__(PLACE_THREADS, 6)
    cmoe_route_place(const __grid_constant__ cmoe_gpu_sort s, const uint16_t *starts, const int32_t *list, int blocks,
                     int each, int parts)
{
    __shared__ placed m;
#pragma unroll 1
    for (int pass = 0; pass < 2; pass++) {
        if (pass == 1)
            depend();
        place_ids(s, m, starts, list, pass * blocks, each, parts);
    }
}
