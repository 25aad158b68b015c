/* SPDX-License-Identifier: MIT
 * Reading memory as fast as it goes: 16 bytes a thread and load, four loads in flight, no reuse. */
#include "backends/cuda/kernels/common/numeric.cuh"

extern "C" __global__ void __launch_bounds__(512)
    cmoe_probe_read(const uint4 *__restrict__ data, int64_t n, uint32_t *sink)
{
    const int64_t step = (int64_t)gridDim.x * blockDim.x;
    uint32_t sum = 0;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * step < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int j = 0; j < 4; j++)
            v[j] = __ldcs(data + i + j * step);
#pragma unroll
        for (int j = 0; j < 4; j++)
            sum ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    for (; i < n; i += step) {
        const uint4 v = __ldcs(data + i);
        sum ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    /* Never true, but only the data say so. */
    if (sum == 0x9e3779b9u && n < 0)
        *sink = sum;
}
