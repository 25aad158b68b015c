/* SPDX-License-Identifier: MIT
 * ACT: elementwise over the rows of the sort. */
#include "backends/cuda/kernels/common/activation.cuh"
#include "backends/cuda/kernels/common/depend.cuh"

extern "C" __global__ void __launch_bounds__(256) cmoe_act(const __grid_constant__ cmoe_gpu_act a)
{
    if (blockIdx.x >= (unsigned)a.call.offsets[a.call.local])
        return;
    const int64_t row = a.call.rows[blockIdx.x];
    const float *gu = a.gu + row * a.rows1;
    const bool gated = a.p.gate != CMOE_GATE_NONE;
    const float r = a.p.weight_on == CMOE_WEIGHT_ON_ACT ? row_weight(a.call, row) : 1.0f;
    char *h = (char *)a.h + row * a.i * (a.h_dtype == CMOE_F32 ? 4 : 2);
    for (int c = threadIdx.x; c < a.i; c += blockDim.x) {
        const float v = c < a.i_used ? activation(a.p, gu[c], gated ? gu[a.i + c] : 0.0f) * r : 0.0f;
        store(a.h_dtype, h, c, v);
    }
}
