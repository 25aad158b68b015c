/* SPDX-License-Identifier: MIT
 * wgmma of e4m3 with scales along k: 1x128 of x, 128x128 of the weights. */
#include "backends/cuda/kernels/common/gemm.cuh"

ENTRY(cmoe_wgmma_e4m3_block, CMOE_E4M3, CMOE_F32, false, true)
ENTRY(cmoe_wgmma_e4m3_block_z, CMOE_E4M3, CMOE_BF16, false, true)
ENTRY(cmoe_wgmma_e4m3_block_act, CMOE_E4M3, CMOE_F32, true, true)
ENTRY(cmoe_wgmma_e4m3_block_codes, CMOE_E4M3, CMOE_E4M3, true, true)
