/* SPDX-License-Identifier: MIT
 * wgmma of e4m3 with one scale a row on either side. */
#include "backends/cuda/kernels/common/gemm.cuh"

ENTRY(cmoe_wgmma_e4m3, CMOE_E4M3, CMOE_F32, false, false)
ENTRY(cmoe_wgmma_e4m3_z, CMOE_E4M3, CMOE_BF16, false, false)
ENTRY(cmoe_wgmma_e4m3_act, CMOE_E4M3, CMOE_F32, true, false)
