/* SPDX-License-Identifier: MIT
 * COMBINE of 16-bit z beside the kernel that makes it, on the multiprocessors that it has left: strip by strip of
 * columns, as soon as all rows of one are stored, so that z is read and dropped while L2 has it. A warp takes a few
 * tokens of a strip at a time. It is started when all blocks of the other kernel run, so it may wait for them. */
#include "backends/cuda/kernels/common/combine.cuh"
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/hopper.cuh"
#include "backends/cuda/params_sm90a.h"

enum {
    THREADS = 128,
    TOKENS = 2,
    SLOTS_AT_ONCE = 8,
    STRIP = 2 * CMOE_WGMMA_HALF,
    LINE = LINE_BYTES / 2,
    LINES = STRIP / LINE
};
static_assert(LINES * SLOTS_AT_ONCE == 32, "a lane drops one line");

/* Halves of tiles that a strip of z has. */
DEV int halves_of_strip(const cmoe_gpu_beside &b)
{
    const int32_t *offsets = b.c.call.offsets;
    int tiles = 0;
    for (int e = (int)threadIdx.x % 32; e < b.c.call.local; e += 32)
        tiles += (offsets[e + 1] - offsets[e] + b.tile_n - 1) / b.tile_n;
    return __reduce_add_sync(0xffffffff, tiles) * 2;
}

/* For the first lane, which tells the others when they need it. */
DEV int take_piece(const cmoe_gpu_beside &b)
{
    return threadIdx.x % 32 == 0 ? atomicAdd(b.progress + CMOE_PROGRESS_COMBINED, 1) : 0;
}

/* Until a strip is stored. */
DEV void wait_for_strip(const cmoe_gpu_beside &b, int strip, int halves)
{
    if (threadIdx.x % 32 == 0)
        while (load_acquire(b.progress + CMOE_PROGRESS_STRIPS + strip) < halves)
            __nanosleep(200);
    __syncwarp();
}

/* 8 columns of a token for each lane. Past L1: other blocks write z while this kernel runs. */
template <int TYPE> DEV void combine_strip(const cmoe_gpu_combine &c, int t, int strip)
{
    const int lane = (int)threadIdx.x % 32, slots = c.call.slots, h = strip * STRIP + lane * COLUMNS;
    const uint16_t *z = (const uint16_t *)c.z + (int64_t)t * slots * c.h;
    const bool inside = h < c.h;
    char *y = (char *)c.y + t * c.y_stride;
    float sum[COLUMNS] = {};
    if (inside)
        start_columns<TYPE>(c, y, h, sum);
#pragma unroll 1
    for (int first = 0; first < slots; first += SLOTS_AT_ONCE) {
        const int64_t row = (int64_t)t * slots + first + lane;
        const bool mine = lane < min(SLOTS_AT_ONCE, slots - first) && local_expert(c.call, c.call.ids[row]) >= 0;
        const uint32_t there = __ballot_sync(0xffffffff, mine);
        const float factor = mine && c.weigh ? row_weight(c.call, row) : 1.0f;
        slot_columns<TYPE> v[SLOTS_AT_ONCE];
#pragma unroll
        for (int i = 0; i < SLOTS_AT_ONCE; i++)
            if (inside && there >> i & 1)
                v[i].part[0] = __ldcg((const uint4 *)(z + (int64_t)(first + i) * c.h + h));
#pragma unroll
        for (int i = 0; i < SLOTS_AT_ONCE; i++) {
            const float by = __shfl_sync(0xffffffff, factor, i);
            if (inside && there >> i & 1)
                add_slot<TYPE>(sum, v[i], by);
        }
        __syncwarp();
        const int slot = lane / LINES, column = strip * STRIP + lane % LINES * LINE;
        if (c.discard && there >> slot & 1 && column < c.h)
            discard_line(z + (int64_t)(first + slot) * c.h + column);
    }
    if (inside)
        store_columns<TYPE>(c, y, h, sum);
}

template <int TYPE> DEV void combine_beside(const cmoe_gpu_beside &b)
{
    const int tokens = token_count(b.c.call), pieces = (tokens + TOKENS - 1) / TOKENS, halves = halves_of_strip(b);
    int piece = __shfl_sync(0xffffffff, take_piece(b), 0), known = -1;
    while (piece < pieces * b.strips) {
        const int next = take_piece(b), strip = piece / pieces, first = (piece - strip * pieces) * TOKENS;
        if (strip != known)
            wait_for_strip(b, strip, halves);
        known = strip;
#pragma unroll 1
        for (int t = first; t < min(first + TOKENS, tokens); t++)
            combine_strip<TYPE>(b.c, t, strip);
        piece = __shfl_sync(0xffffffff, next, 0);
    }
    depend();
}

extern "C" __global__ void __launch_bounds__(THREADS, 5)
    cmoe_combine_beside_bf16(const __grid_constant__ cmoe_gpu_beside b)
{
    combine_beside<CMOE_BF16>(b);
}

extern "C" __global__ void __launch_bounds__(THREADS, 5)
    cmoe_combine_beside_f16(const __grid_constant__ cmoe_gpu_beside b)
{
    combine_beside<CMOE_F16>(b);
}
