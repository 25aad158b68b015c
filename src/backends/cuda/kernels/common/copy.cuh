/* SPDX-License-Identifier: MIT
 * Pieces of 16 bytes from global to shared memory: asynchronously, or element by element where a row
 * has no alignment or ends. And lines of global memory that are not needed any more. */
#ifndef CMOE_KERNELS_COPY_CUH
#define CMOE_KERNELS_COPY_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

DEV void copy_async(void *to, const void *from)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
}

/* The same, or 16 zeros without reading. */
DEV void copy_or_clear(void *to, const void *from, bool copy)
{
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    const int bytes = copy ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
}

/* A line of 128 bytes that nobody reads again: its contents are lost, and never written to memory. */
DEV void discard_line(const void *at)
{
#ifdef __CUDA_ARCH__
    asm volatile("discard.global.L2 [%0], 128;" ::"l"(at) : "memory");
#else
    (void)at;
#endif
}

/* 16 bytes of codes from column k on, zeros from `limit` on, of a row of any stride. */
template <int BITS> DEV void copy_slowly(uint8_t *to, const uint8_t *row, int64_t col_stride, int k, int limit)
{
#pragma unroll 1
    for (int i = 0; i < 128 / BITS; i++) {
        uint32_t code = 0;
        if (k + i < limit) {
            if (BITS == 16)
                code = *(const uint16_t *)(row + (col_stride ? (k + i) * col_stride : (k + i) * 2ll));
            else if (BITS == 8)
                code = row[col_stride ? (k + i) * col_stride : k + i];
            else
                code = row[(k + i) / 2] >> (4 * ((k + i) & 1)) & 15;
        }
        if (BITS == 16)
            ((uint16_t *)to)[i] = (uint16_t)code;
        else if (BITS == 8)
            to[i] = (uint8_t)code;
        else
            to[i / 2] = (uint8_t)(i & 1 ? to[i / 2] | code << 4 : code);
    }
}

#endif
