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

DEV bool unwritten(float v)
{
    return __float_as_uint(v) == CMOE_SLICE_UNWRITTEN;
}

/* y, a thread a column; clusters' sums in their order. It starts when all blocks of the kernel before it have cleared
 * theirs, and takes each when it is there, which is sooner than that kernel counts as complete. */
extern "C" __global__ void __launch_bounds__(128) cmoe_slices_sum(const __grid_constant__ cmoe_gpu_slice_sum s)
{
    enum { AT_ONCE = 16 };
    const int column = (int)(blockIdx.x * blockDim.x + threadIdx.x), token = (int)blockIdx.y;
    /* Before it waits: all blocks run, and who comes next waits for them and what they wait for. */
    depend_release();
    const int tokens = token_count(s.call);
    if (token >= tokens || column >= s.hidden) {
        depend_wait();
        return;
    }
    const float *part = s.part + (int64_t)token * s.hidden + column;
    const int64_t stride = (int64_t)tokens * s.hidden;
    char *y = (char *)s.y + token * s.y_stride;
    float sum = s.accumulate != 0.0f ? s.accumulate * load(s.dtype, y, column) : 0.0f;
    /* A line a warp as long as weights are read, of the last cluster, which has least to do, if warps are few. */
    const float *first_there = part + (tokens <= 2 ? s.clusters - 1 : 0) * stride;
    while (unwritten(load_relaxed(first_there))) {
    }
#pragma unroll 1
    for (int first = 0; first < s.clusters; first += AT_ONCE) {
        float v[AT_ONCE];
        bool wait;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            v[i] = first + i < s.clusters ? load_relaxed(part + (first + i) * stride) : 0.0f;
        do {
            wait = false;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (unwritten(v[i]))
                    v[i] = load_relaxed(part + (first + i) * stride);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                wait |= unwritten(v[i]);
        } while (wait);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            sum += v[i];
    }
    store(s.dtype, y, column, sum);
    depend_wait();
}
