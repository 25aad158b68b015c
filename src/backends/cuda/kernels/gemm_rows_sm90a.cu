/* SPDX-License-Identifier: MIT
 * GEMM1 with ACT or with ACT and REQUANT, and GEMM2, for many rows an expert. */
#include "backends/cuda/kernels/common/rows.cuh"

/* Named by operand type, scales along k or sums that stay in the tensor cores, and what comes out: z, or the activation's result. */
#define ROWS(name, type, out, act, ...)                                                            \
    extern "C" __global__ void __launch_bounds__(CMOE_WGMMA_THREADS, 1)                            \
        name(const __grid_constant__ cmoe_gpu_rows f)                                              \
    {                                                                                              \
        gemm_rows<type, out, act, __VA_ARGS__>(f);                                                 \
    }

ROWS(cmoe_rows_bf16_act, CMOE_BF16, CMOE_BF16, true, false)
ROWS(cmoe_rows_bf16_z, CMOE_BF16, CMOE_BF16, false, false)
ROWS(cmoe_rows_f16_act, CMOE_F16, CMOE_F16, true, false)
ROWS(cmoe_rows_f16_z, CMOE_F16, CMOE_F16, false, false)
ROWS(cmoe_rows_e4m3_act, CMOE_E4M3, CMOE_F32, true, false)
ROWS(cmoe_rows_e4m3_short, CMOE_E4M3, CMOE_BF16, true, false)
ROWS(cmoe_rows_e4m3_z, CMOE_E4M3, CMOE_BF16, false, false)
ROWS(cmoe_rows_e4m3_fast_short, CMOE_E4M3, CMOE_BF16, true, false, true)
ROWS(cmoe_rows_e4m3_fast_z, CMOE_E4M3, CMOE_BF16, false, false, true)
ROWS(cmoe_rows_e4m3_block_codes, CMOE_E4M3, CMOE_E4M3, true, true)
ROWS(cmoe_rows_e4m3_block_z, CMOE_E4M3, CMOE_BF16, false, true)
