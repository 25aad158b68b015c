/* SPDX-License-Identifier: MIT
 * SORT of few ids by one block, and ROUTE with the sort behind it: the warps route the tokens first. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/route.cuh"
#include "backends/cuda/kernels/common/sort_block.cuh"

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_sort_block(const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int4 memory[];
    const sort_memory m((int *)memory, s.call.local, s.call.tokens * s.call.slots);
    m.clear();
    depend();
    sort_in_block(s, m);
}

/* floats: of shared memory that a token's routing takes, a warp each; the sort's is used after. */
extern "C" __global__ void __launch_bounds__(512)
    cmoe_route_sort(const __grid_constant__ cmoe_gpu_route r, const __grid_constant__ cmoe_gpu_sort s, int floats)
{
    extern __shared__ int4 memory[];
    const int warp = threadIdx.x / 32, tokens = token_count(r.call);
    depend();
    for (int64_t t = warp; t < tokens; t += blockDim.x / 32)
        route(r, t, (float *)memory + warp * floats, r.ids + t * r.call.slots, r.weights + t * r.call.slots);
    __syncthreads();
    const sort_memory m((int *)memory, s.call.local, s.call.tokens * s.call.slots);
    m.clear();
    sort_in_block(s, m);
}
