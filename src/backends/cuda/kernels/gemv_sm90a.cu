/* SPDX-License-Identifier: MIT
 * A handful of tokens from ids to y: the kernels of common/gemv_block.cuh for rows of 16 bits, and for e4m3 that f16 stands for. */
#include "backends/cuda/kernels/common/gemv_entry.cuh"

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
