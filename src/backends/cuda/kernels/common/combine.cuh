/* SPDX-License-Identifier: MIT
 * COMBINE of 16-bit z: a thread adds 8 columns of a token's slots in f32, in slot order, and rounds once. */
#ifndef CMOE_KERNELS_COMBINE_CUH
#define CMOE_KERNELS_COMBINE_CUH

#include "backends/cuda/kernels/common/copy.cuh"

enum { COLUMNS = 8, SLOTS_AT_ONCE = 8 };

template <int TYPE> DEV void add_slot(float (&sum)[COLUMNS], const uint4 v, float factor)
{
    const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        sum[i] += factor * decode(TYPE, word[i / 2] >> (i % 2 * 16) & 0xffff);
}

/* What columns [h, h + 8) of a row of y have before any slot is added. */
template <int TYPE> DEV void start_columns(const cmoe_gpu_combine &c, const char *y, int h, float (&sum)[COLUMNS])
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        sum[i] = c.accumulate != 0.0f ? c.accumulate * load(TYPE, y, h + i) : 0.0f;
}

template <int TYPE> DEV void store_columns(const cmoe_gpu_combine &c, char *y, int h, float (&sum)[COLUMNS])
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        if (h + i >= c.h_used) /* z has nothing there */
            sum[i] = c.accumulate != 0.0f ? c.accumulate * load(TYPE, y, h + i) : 0.0f;
    if ((uintptr_t)(y + h * 2) % 16 == 0) {
        uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            word[i] = encode(TYPE, sum[i * 2], CMOE_ROUND_NEAREST_EVEN) |
                      encode(TYPE, sum[i * 2 + 1], CMOE_ROUND_NEAREST_EVEN) << 16;
        *(uint4 *)(y + h * 2) = make_uint4(word[0], word[1], word[2], word[3]);
        return;
    }
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        store(TYPE, y, h + i, sum[i]);
}

#endif
