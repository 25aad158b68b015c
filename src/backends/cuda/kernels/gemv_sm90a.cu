/* SPDX-License-Identifier: MIT
 * A handful of tokens from ids to y: the kernels of common/gemv_block.cuh for every type of weights. */
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

ENTRY(cmoe_gemv1_bf16, CMOE_BF16, CMOE_BF16, true)
ENTRY(cmoe_gemv1_f16, CMOE_F16, CMOE_F16, true)
ENTRY(cmoe_gemv1_e4m3_bf16, CMOE_E4M3, CMOE_BF16, true)
ENTRY(cmoe_gemv1_e4m3_f16, CMOE_E4M3, CMOE_F16, true)
ENTRY(cmoe_gemv1_i8_bf16, CMOE_I8, CMOE_BF16, true)
ENTRY(cmoe_gemv1_i8_f16, CMOE_I8, CMOE_F16, true)
ENTRY(cmoe_gemv1_i4_bf16, CMOE_I4, CMOE_BF16, true)
ENTRY(cmoe_gemv1_i4_f16, CMOE_I4, CMOE_F16, true)
ENTRY(cmoe_gemv1_e2m1_bf16, CMOE_E2M1, CMOE_BF16, true)
ENTRY(cmoe_gemv1_e2m1_f16, CMOE_E2M1, CMOE_F16, true)
ENTRY(cmoe_gemv2_bf16, CMOE_BF16, CMOE_BF16, false)
ENTRY(cmoe_gemv2_f16, CMOE_F16, CMOE_F16, false)
ENTRY(cmoe_gemv2_e4m3_bf16, CMOE_E4M3, CMOE_BF16, false)
ENTRY(cmoe_gemv2_e4m3_f16, CMOE_E4M3, CMOE_F16, false)
ENTRY(cmoe_gemv2_i8_bf16, CMOE_I8, CMOE_BF16, false)
ENTRY(cmoe_gemv2_i8_f16, CMOE_I8, CMOE_F16, false)
ENTRY(cmoe_gemv2_i4_bf16, CMOE_I4, CMOE_BF16, false)
ENTRY(cmoe_gemv2_i4_f16, CMOE_I4, CMOE_F16, false)
ENTRY(cmoe_gemv2_e2m1_bf16, CMOE_E2M1, CMOE_BF16, false)
ENTRY(cmoe_gemv2_e2m1_f16, CMOE_E2M1, CMOE_F16, false)
