/* SPDX-License-Identifier: MIT
 * A handful of tokens from ids to y by slices of experts (common/slices.cuh), and the sum of what clusters made. */
#include "backends/cuda/kernels/common/slices.cuh"

#define ENTRY(name, type)                                                                          \
    extern "C" __global__ void __launch_bounds__(CMOE_SLICE_THREADS, 1)                            \
        name(const __grid_constant__ cmoe_gpu_slices p)                                            \
    {                                                                                              \
        extern __shared__ __align__(128) uint8_t memory[];                                         \
        slices<type>(p, memory);                                                                   \
    }

ENTRY(cmoe_slices_bf16, CMOE_BF16)
ENTRY(cmoe_slices_e4m3_block, CMOE_E4M3)

/* y, a thread a column; clusters' sums in their order. */
extern "C" __global__ void __launch_bounds__(128) cmoe_slices_sum(const __grid_constant__ cmoe_gpu_slice_sum s)
{
    enum { AT_ONCE = 16 };
    const int column = (int)(blockIdx.x * blockDim.x + threadIdx.x), token = (int)blockIdx.y;
    /* The other way round: all blocks run, and who comes next waits for them and what they wait for. */
    depend_release();
    depend_wait();
    const int tokens = token_count(s.call);
    if (token >= tokens || column >= s.hidden)
        return;
    const float *part = s.part + (int64_t)token * s.hidden + column;
    const int64_t stride = (int64_t)tokens * s.hidden;
    char *y = (char *)s.y + token * s.y_stride;
    float sum = s.accumulate != 0.0f ? s.accumulate * load(s.dtype, y, column) : 0.0f;
#pragma unroll 1
    for (int first = 0; first < s.clusters; first += AT_ONCE) {
        float v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            v[i] = first + i < s.clusters ? __ldcg(part + (first + i) * stride) : 0.0f;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            sum += v[i];
    }
    store(s.dtype, y, column, sum);
}
