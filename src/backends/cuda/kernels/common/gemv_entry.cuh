/* SPDX-License-Identifier: MIT
 * What the kernels of common/gemv_block.cuh look like from outside. */
#ifndef CMOE_KERNELS_GEMV_ENTRY_CUH
#define CMOE_KERNELS_GEMV_ENTRY_CUH

#include "backends/cuda/kernels/common/gemv_block.cuh"

/* Named by the types of w and of the operands; i8 and i4 stand for unsigned codes too. */
#define ENTRY(name, w, operand, first)                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                       \
        name(const __grid_constant__ cmoe_gpu_gemv s)                                              \
    {                                                                                              \
        extern __shared__ __align__(128) uint8_t memory[];                                         \
        __shared__ slots_of known;                                                                 \
        gemv<w, operand, first, false>(s, memory, NULL, known);                                    \
    }

#endif
