/* SPDX-License-Identifier: MIT
 * Eight columns of a row that is to be quantised: what a thread takes at a time. */
#ifndef CMOE_KERNELS_COLUMNS_CUH
#define CMOE_KERNELS_COLUMNS_CUH

#include "backends/cuda/kernels/common/e4m3.cuh"

enum { EACH = 8 };

/* What few rows need is kept out of the way of the others: code is loaded too. */
static __device__ __noinline__ float load_slowly(int dtype, const char *row, int column)
{
    return load(dtype, row, column);
}

/* Eight of bf16. */
DEV void widen(const uint4 &w, float (&v)[EACH])
{
    const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] = bits_f32(i % 2 ? words[i / 2] & 0xffff0000 : words[i / 2] << 16);
}

/* As the row has them, zeros from n_used on. */
DEV void load_columns(const cmoe_gpu_quant &q, const char *row, int column, float (&v)[EACH])
{
    const char *at = row + (int64_t)column * (q.in_dtype == CMOE_F32 ? 4 : 2);
    const bool vectors = column + EACH <= q.n_used && (uintptr_t)at % 16 == 0;
    if (vectors && q.in_dtype == CMOE_F32) {
        const float4 a = ((const float4 *)at)[0], b = ((const float4 *)at)[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
        v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
        return;
    }
    if (vectors && q.in_dtype == CMOE_BF16) {
        widen(*(const uint4 *)at, v);
        return;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++)
        v[i] = column + i < q.n_used ? load_slowly(q.in_dtype, row, column + i) : 0.0f;
}

/* The bits of the largest magnitude, which compare like it. */
DEV uint32_t largest(const float (&v)[EACH])
{
    uint32_t top = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
        top = max(top, __float_as_uint(v[i]) & 0x7fffffff);
    return top;
}

#endif
