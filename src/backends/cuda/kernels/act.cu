/* SPDX-License-Identifier: MIT
 * ACT and COMBINE: elementwise over the rows of the sort, and over tokens. */
#include "backends/cuda/kernels/common/numeric.cuh"

DEV float sigmoidf(float v)
{
    return 1.0f / (1.0f + expf(-v));
}

DEV float or_default(float given, float otherwise)
{
    return given != 0.0f ? given : otherwise;
}

DEV float gate_value(const cmoe_problem &p, float g)
{
    switch (p.act) {
    case CMOE_ACT_SILU:
        return g * sigmoidf(g);
    case CMOE_ACT_GELU:
        return 0.5f * g * (1.0f + erff(g * 0.707106781186547524f));
    case CMOE_ACT_GELU_TANH:
        return 0.5f * g * (1.0f + tanhf(0.797884560802865356f * (g + 0.044715f * g * g * g)));
    case CMOE_ACT_RELU:
        return g < 0.0f ? 0.0f : g;
    case CMOE_ACT_RELU2:
        return g < 0.0f ? 0.0f : g * g;
    case CMOE_ACT_SWIGLU_OAI:
        return g * sigmoidf(or_default(p.act_alpha, 1.702f) * g);
    case CMOE_ACT_SITUV2: {
        const float beta = or_default(p.act_beta, 4.0f);
        return beta * tanhf(g / beta) * sigmoidf(g);
    }
    default:
        return g;
    }
}

DEV float up_value(const cmoe_problem &p, float u)
{
    if (p.act == CMOE_ACT_SWIGLU_OAI)
        return u + or_default(p.act_beta, 1.0f);
    if (p.act == CMOE_ACT_SITUV2) {
        const float lbeta = or_default(p.act_lbeta, 25.0f);
        return lbeta > 0.0f ? lbeta * tanhf(u / lbeta) : u;
    }
    return u;
}

DEV float activation(const cmoe_problem &p, float g, float u)
{
    const float limit = or_default(p.act_limit, p.act == CMOE_ACT_SWIGLU_OAI ? 7.0f : 0.0f);
    if (limit > 0.0f) {
        g = g > limit ? limit : g;
        u = u > limit ? limit : (u < -limit ? -limit : u);
    }
    const float f = gate_value(p, g);
    return p.gate == CMOE_GATE_NONE ? f : f * up_value(p, u);
}

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
    const int row = (int)blockIdx.x, e = row / c.call.capacity;
    if (row % c.call.capacity >= c.call.counts[e])
        return;
    const float *z = c.z + (int64_t)row * c.h;
    char *y = (char *)c.y + row * c.y_stride;
    for (int h = threadIdx.x; h < c.h; h += blockDim.x)
        store(c.dtype, y, h, h < c.h_used ? z[h] : 0.0f);
}

/* One block a token; its slots' factors are worked out once, into shared memory. */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_combine(const __grid_constant__ cmoe_gpu_combine c)
{
    extern __shared__ float factor[]; /* [slots], then [slots] whether the slot is computed */
    const int t = (int)blockIdx.x, slots = c.call.slots;
    int *valid = (int *)(factor + slots);
    if (t >= token_count(c.call))
        return;
    for (int s = threadIdx.x; s < slots; s += blockDim.x) {
        const int64_t row = (int64_t)t * slots + s;
        valid[s] = local_expert(c.call, c.call.ids[row]) >= 0;
        factor[s] = c.weigh ? row_weight(c.call, row) : 1.0f;
    }
    __syncthreads();
    const float *z = c.z + (int64_t)t * slots * c.h;
    char *y = (char *)c.y + t * c.y_stride;
    for (int h = threadIdx.x; h < c.h; h += blockDim.x) {
        float sum = c.accumulate != 0.0f ? c.accumulate * load(c.dtype, y, h) : 0.0f;
        for (int s = 0; s < slots; s++)
            if (valid[s] && h < c.h_used)
                sum += factor[s] * z[(int64_t)s * c.h + h];
        store(c.dtype, y, h, sum);
    }
}

/* y[t, s] = factor * z, 0 where the slot is not computed: one block a slot row. */
extern "C" __global__ void __launch_bounds__(256)
    cmoe_combine_slots(const __grid_constant__ cmoe_gpu_combine c)
{
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
