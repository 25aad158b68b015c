/* SPDX-License-Identifier: MIT
 * COMBINE of a thread's 8 columns: slots are added in f32, in slot order, and rounded once. */
#ifndef CMOE_KERNELS_COMBINE_CUH
#define CMOE_KERNELS_COMBINE_CUH

#include "backends/cuda/kernels/common/copy.cuh"

enum { COLUMNS = 8, LINE_BYTES = 128 };

/* 8 columns of a row of z, on their way. */
template <int Z> struct slot_columns {
    enum { BYTES = Z == CMOE_F32 ? 4 : 2, WORDS = COLUMNS * BYTES / 4 };
    uint4 part[WORDS / 4];
};

template <int Z> DEV void add_slot(float (&sum)[COLUMNS], const slot_columns<Z> &v, float factor)
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        const int word = Z == CMOE_F32 ? i : i / 2;
        const uint4 &from = v.part[word / 4];
        const uint32_t bits = word % 4 == 0 ? from.x : word % 4 == 1 ? from.y : word % 4 == 2 ? from.z : from.w;
        sum[i] += factor * decode(Z, Z == CMOE_F32 ? bits : bits >> (i % 2 * 16) & 0xffff);
    }
}

/* What columns [h, h + 8) of a row of y have before any slot is added. */
template <int Y> DEV void start_columns(const cmoe_gpu_combine &c, const char *y, int h, float (&sum)[COLUMNS])
{
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        sum[i] = c.accumulate != 0.0f ? c.accumulate * load(Y, y, h + i) : 0.0f;
}

template <int Y> DEV void store_columns(const cmoe_gpu_combine &c, char *y, int h, float (&sum)[COLUMNS])
{
    constexpr int BYTES = Y == CMOE_F32 ? 4 : 2;
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        if (h + i >= c.h_used) /* z has nothing there */
            sum[i] = c.accumulate != 0.0f ? c.accumulate * load(Y, y, h + i) : 0.0f;
    if ((uintptr_t)(y + h * BYTES) % 16 == 0) {
        store_eight<Y>(y + h * BYTES, sum);
        return;
    }
#pragma unroll
    for (int i = 0; i < COLUMNS; i++)
        store(Y, y, h + i, sum[i]);
}

#endif
