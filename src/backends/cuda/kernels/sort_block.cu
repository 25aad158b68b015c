/* SPDX-License-Identifier: MIT
 * SORT of few ids by one block, of many by some that exchange their counts, and ROUTE with the sort
 * behind it: the warps route the tokens first. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/route.cuh"
#include "backends/cuda/kernels/common/sort_block.cuh"

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_sort_block(const __grid_constant__ cmoe_gpu_sort s)
{
    extern __shared__ int memory[];
    __shared__ int shared[32];
    sort_clear(s, memory);
    depend();
    sort_in_block(s, memory, shared);
}

/* routers: bytes of shared memory that a token's routing takes, a warp each; the sort's are used after. */
extern "C" __global__ void __launch_bounds__(512)
    cmoe_route_sort(const __grid_constant__ cmoe_gpu_route r, const __grid_constant__ cmoe_gpu_sort s, int floats)
{
    extern __shared__ int memory[];
    __shared__ int shared[32];
    const int warp = threadIdx.x / 32, tokens = token_count(r.call);
    depend();
    for (int64_t t = warp; t < tokens; t += blockDim.x / 32)
        if (r.p.router == CMOE_ROUTE_ALL)
            route_to_all(r, t);
        else
            route_token(r, t, (float *)memory + warp * floats);
    __syncthreads();
    sort_clear(s, memory);
    sort_in_block(s, memory, shared);
}

/* Ids of this block of many. */
DEV int ids_of_block(const cmoe_gpu_sort &s, int *from)
{
    *from = (int)(blockIdx.x * blockDim.x) * ROUNDS;
    return max(0, min((int)blockDim.x * ROUNDS, token_count(s.call) * s.call.slots - *from));
}

/* parts[block][expert]: ids of the expert in the block's share. */
extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_sort_parts(const __grid_constant__ cmoe_gpu_sort s, int *parts)
{
    extern __shared__ int memory[];
    const int local = s.call.local, warps = blockDim.x / 32;
    uint16_t *counts = (uint16_t *)(memory + local);
    int from;
    sort_clear(s, memory);
    depend();
    const int n = ids_of_block(s, &from);
    ranks r;
    r.count(s, from, n, counts);
    for (int e = threadIdx.x; e < local; e += blockDim.x) {
        int sum = 0;
        for (int w = 0; w < warps; w++)
            sum += counts[w * local + e];
        parts[blockIdx.x * local + e] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    cmoe_sort_join(const __grid_constant__ cmoe_gpu_sort s, const int *parts)
{
    extern __shared__ int memory[];
    __shared__ int shared[32];
    uint16_t *counts = (uint16_t *)(memory + s.call.local);
    int from;
    sort_clear(s, memory);
    depend();
    const int n = ids_of_block(s, &from);
    ranks r;
    r.count(s, from, n, counts);
    scan_experts(s, counts, memory, shared, parts);
    r.place(s, memory, counts);
}
