/* SPDX-License-Identifier: MIT
 * ACT and COMBINE: elementwise over the rows of the sort, and over tokens. */
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

/* y[row] = z[row] of every valid batched row. */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_combine_batched(const __grid_constant__ cmoe_gpu_combine c)
{
    depend();
    const int row = (int)blockIdx.x, e = row / c.call.capacity;
    if (row % c.call.capacity >= c.call.counts[e])
        return;
    const float *z = c.z + (int64_t)row * c.h;
    char *y = (char *)c.y + row * c.y_stride;
    for (int h = threadIdx.x; h < c.h; h += blockDim.x)
        store(c.dtype, y, h, h < c.h_used ? z[h] : 0.0f);
}

/* A block takes a token and 256 of its columns; the token's factors are worked out once, into shared
 * memory. */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_combine(const __grid_constant__ cmoe_gpu_combine c)
{
    extern __shared__ float factor[]; /* [slots], then [slots] whether the slot is computed */
    const int t = (int)blockIdx.x, slots = c.call.slots, h = (int)(blockIdx.y * blockDim.x + threadIdx.x);
    int *valid = (int *)(factor + slots);
    if (!c.ahead)
        depend();
    const bool there = t < token_count(c.call);
    for (int s = threadIdx.x; there && s < slots; s += blockDim.x) {
        const int64_t row = (int64_t)t * slots + s;
        valid[s] = local_expert(c.call, c.call.ids[row]) >= 0;
        factor[s] = c.weigh ? row_weight(c.call, row) : 1.0f;
    }
    __syncthreads();
    if (c.ahead)
        depend();
    if (!there || h >= c.h)
        return;
    const float *z = c.z + (int64_t)t * slots * c.h;
    char *y = (char *)c.y + t * c.y_stride;
    float sum = c.accumulate != 0.0f ? c.accumulate * load(c.dtype, y, h) : 0.0f;
    for (int first = 0; first < slots; first += 4) { /* four loads in flight, added in order */
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int s = first + i;
            const bool counts = s < slots && h < c.h_used && valid[s];
            v[i] = counts ? factor[s] * z[(int64_t)s * c.h + h] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (first + i < slots && h < c.h_used && valid[first + i])
                sum += v[i];
    }
    store(c.dtype, y, h, sum);
}

/* y[t, s] = factor * z, 0 where the slot is not computed: one block a slot row. */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_combine_slots(const __grid_constant__ cmoe_gpu_combine c)
{
    depend();
    const int row = (int)blockIdx.x, t = row / c.call.slots, s = row % c.call.slots;
    if (t >= token_count(c.call))
        return;
    const bool valid = local_expert(c.call, c.call.ids[row]) >= 0;
    const float factor = c.weigh ? row_weight(c.call, row) : 1.0f;
    const float *z = c.z + (int64_t)row * c.h;
    char *y = (char *)c.y + t * c.y_stride;
    for (int h = threadIdx.x; h < c.h; h += blockDim.x)
        store(c.dtype, y, (int64_t)s * c.h + h, valid && h < c.h_used ? factor * z[h] : 0.0f);
}
