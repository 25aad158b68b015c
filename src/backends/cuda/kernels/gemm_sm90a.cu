/* SPDX-License-Identifier: MIT
 * wgmma of unscaled bf16 and f16. */
#include "backends/cuda/kernels/common/gemm.cuh"

ENTRY(cmoe_wgmma_bf16, CMOE_BF16, CMOE_F32, false, false)
ENTRY(cmoe_wgmma_bf16_z, CMOE_BF16, CMOE_BF16, false, false)
ENTRY(cmoe_wgmma_bf16_act, CMOE_BF16, CMOE_BF16, true, false)
ENTRY(cmoe_wgmma_f16, CMOE_F16, CMOE_F32, false, false)
ENTRY(cmoe_wgmma_f16_z, CMOE_F16, CMOE_F16, false, false)
ENTRY(cmoe_wgmma_f16_act, CMOE_F16, CMOE_F16, true, false)
