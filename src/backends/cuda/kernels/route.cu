/* SPDX-License-Identifier: MIT
 * ROUTE: one warp a token, one block a warp. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/route.cuh"

extern "C" __global__ void __launch_bounds__(32) cmoe_route(const __grid_constant__ cmoe_gpu_route r)
{
    extern __shared__ float shared[];
    const int64_t t = blockIdx.x;
    depend();
    if (t >= token_count(r.call))
        return;
    route(r, t, shared, r.ids + t * r.call.slots, r.weights + t * r.call.slots);
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
