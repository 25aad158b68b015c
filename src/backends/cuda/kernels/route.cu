/* SPDX-License-Identifier: MIT
 * ROUTE: blocks of a few warps, a share of the tokens each. */
#include "backends/cuda/kernels/common/route_block.cuh"

/* Shared memory: what the warps may need, then ids and weights of g.each tokens and one. */
template <bool KEYED> DEV void route_and_store(const cmoe_gpu_routing &g, float *memory)
{
    const cmoe_gpu_route &r = g.r;
    const int slots = r.call.slots, most = (g.each + 1) * slots;
    int32_t *ids = (int32_t *)memory + (int)blockDim.x / 32 * g.floats;
    float *weights = (float *)ids + most;
    const tokens_of tokens = wait_and_route<KEYED>(g, memory, ids, weights);
    __syncthreads();
    for (int i = threadIdx.x; i < tokens.n * slots; i += (int)blockDim.x) {
        r.ids[(int64_t)tokens.from * slots + i] = ids[i];
        r.weights[(int64_t)tokens.from * slots + i] = weights[i];
    }
}

/* By logits, or by other keys: a kernel each, because in a layer the code comes from memory. */
extern "C" __global__ void __launch_bounds__(160) cmoe_route(const __grid_constant__ cmoe_gpu_routing g)
{
    extern __shared__ float memory[];
    route_and_store<false>(g, memory);
}

extern "C" __global__ void __launch_bounds__(160) cmoe_route_keyed(const __grid_constant__ cmoe_gpu_routing g)
{
    extern __shared__ float memory[];
    route_and_store<true>(g, memory);
}

/* logits = x . Wr + b, one warp a (token, expert). */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_route_logits(const __grid_constant__ cmoe_gpu_route r)
{
    const int64_t t = blockIdx.x;
    const int e = blockIdx.y * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (t >= token_count(r.call) || e >= r.columns)
        return;
    const char *x = (const char *)r.x + t * r.x_stride;
    const float *w = r.router_w + (int64_t)e * r.p.hidden;
    float sum = 0;
    for (int h = lane; h < r.h_used; h += 32)
        sum = fmaf(load(r.p.in, x, h), w[h], sum);
    sum = warp_sum(sum);
    if (lane == 0)
        r.scratch[t * r.columns + e] = sum + (r.router_b ? r.router_b[e] : 0.0f);
}
