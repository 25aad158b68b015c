/* SPDX-License-Identifier: MIT
 * GEMM1 with its activation and GEMM2 in one kernel: bf16, f16, and e4m3 with scales along k or one a row. */
#include "backends/cuda/kernels/common/pair.cuh"

/* Named by the type of both operands; z is 16 bits wide. */
#define PAIR(name, type, h, z, block)                                                                 \
    extern "C" __global__ void __launch_bounds__(CMOE_WGMMA_THREADS, 1)                            \
        name(const __grid_constant__ cmoe_gpu_wgmma_pair f)                                        \
    {                                                                                              \
        gemm_pair<type, h, z, block>(f);                                                        \
    }

PAIR(cmoe_wgmma_bf16_pair, CMOE_BF16, CMOE_BF16, CMOE_BF16, false)
PAIR(cmoe_wgmma_f16_pair, CMOE_F16, CMOE_F16, CMOE_F16, false)
PAIR(cmoe_wgmma_e4m3_block_pair, CMOE_E4M3, CMOE_E4M3, CMOE_BF16, true)
PAIR(cmoe_wgmma_e4m3_pair, CMOE_E4M3, CMOE_F32, CMOE_BF16, false)
