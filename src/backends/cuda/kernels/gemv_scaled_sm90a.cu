/* SPDX-License-Identifier: MIT
 * The same as gemv_sm90a.cu by integers, and for weights under MX (e4m3) and NV scales. */
#include "backends/cuda/kernels/common/gemv_entry.cuh"

ENTRY(cmoe_gemv1_i8_i8, CMOE_I8, CMOE_I8, true)
ENTRY(cmoe_gemv1_i4_i8, CMOE_I4, CMOE_I8, true)
ENTRY(cmoe_gemv1_mx8_f16, CMOE_GEMV_MX8, CMOE_F16, true)
ENTRY(cmoe_gemv1_nv_bf16, CMOE_GEMV_NV, CMOE_BF16, true)
ENTRY(cmoe_gemv1_nv_f16, CMOE_GEMV_NV, CMOE_F16, true)
ENTRY(cmoe_gemv2_i8_i8, CMOE_I8, CMOE_I8, false)
ENTRY(cmoe_gemv2_i4_i8, CMOE_I4, CMOE_I8, false)
ENTRY(cmoe_gemv2_mx8_f16, CMOE_GEMV_MX8, CMOE_F16, false)
ENTRY(cmoe_gemv2_nv_bf16, CMOE_GEMV_NV, CMOE_BF16, false)
ENTRY(cmoe_gemv2_nv_f16, CMOE_GEMV_NV, CMOE_F16, false)
