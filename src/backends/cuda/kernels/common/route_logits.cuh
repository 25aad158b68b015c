/* SPDX-License-Identifier: MIT
 * Logits in registers: where they lie, integers in their order, and what the weights of chosen ones are. */
#ifndef CMOE_KERNELS_ROUTE_LOGITS_CUH
#define CMOE_KERNELS_ROUTE_LOGITS_CUH

#include "backends/cuda/kernels/common/route.cuh"
#include "backends/cuda/params_route.h"

#include <stdint.h>

/* A function, because its code is longer than what is around it. */
static __device__ __noinline__ float score_of(int router, float z)
{
    return score(router, z);
}

/* Integers in the order of floats, -0 equal to 0; NaN is not ordered. Its own inverse but for -0. */
DEV int32_t ordered(float v)
{
    const int32_t bits = __float_as_int(v + 0.0f);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

DEV float value_of(int32_t key)
{
    return __int_as_float(key ^ ((key >> 31) & 0x7fffffff));
}

DEV int logit_dtype(const cmoe_gpu_route &r)
{
    return r.scratch ? (int)CMOE_F32 : r.p.logits;
}

/* From a token's logits to the next one's. */
DEV int64_t row_bytes(const cmoe_gpu_route &r)
{
    return r.scratch ? (int64_t)r.columns * 4 : r.logits_stride * (r.p.logits == CMOE_F32 ? 4 : 2);
}

DEV const char *logit_row(const cmoe_gpu_route &r, int64_t t)
{
    return (r.scratch ? (const char *)r.scratch : (const char *)r.logits) + t * row_bytes(r);
}

DEV float logit_16(int dtype, uint32_t code)
{
    return decode(dtype == CMOE_F16 ? CMOE_F16 : CMOE_BF16, code);
}

/* The expert at a place; among equals the lowest place is chosen. */
DEV int expert_at(const cmoe_gpu_route &r, int place)
{
    return r.p.flags & CMOE_TIE_HIGH ? r.p.experts - 1 - place : place;
}

/* Whole vectors of floats. */
template <int HELD> DEV void load_floats(const float *from, float (&z)[HELD])
{
    enum { WIDE = HELD < 4 ? 2 : 4 };
#pragma unroll
    for (int i = 0; i < HELD; i += WIDE) {
        float v[4];
        if (WIDE == 2)
            *(float2 *)v = *(const float2 *)(from + i);
        else
            *(float4 *)v = *(const float4 *)(from + i);
#pragma unroll
        for (int j = 0; j < WIDE; j++)
            z[i + j] = v[j];
    }
}

/* Logits at places first to first + HELD of rows that are whole vectors. */
template <int HELD> DEV void load_vectors(const cmoe_gpu_route &r, const void *row, int first, float (&z)[HELD])
{
    enum { CODES = HELD < 4 ? 2 : (HELD % 8 ? 4 : 8) };
    const int dtype = logit_dtype(r);
    if (dtype == CMOE_F32)
        return load_floats<HELD>((const float *)row + first, z);
#pragma unroll
    for (int i = 0; i < HELD; i += CODES) {
        uint32_t v[4];
        const uint16_t *from = (const uint16_t *)row + first + i;
        if (CODES == 2)
            v[0] = *(const uint32_t *)from;
        else if (CODES == 4)
            *(uint2 *)v = *(const uint2 *)from;
        else
            *(uint4 *)v = *(const uint4 *)from;
#pragma unroll
        for (int j = 0; j < CODES; j++)
            z[i + j] = logit_16(dtype, v[j / 2] >> 16 * (j % 2) & 0xffff);
    }
}

/* Logits at the n places from first on; beyond them -Inf. */
template <int HELD> DEV void load_held(const cmoe_gpu_routing &g, const void *row, int first, int n, float (&z)[HELD])
{
    const cmoe_gpu_route &r = g.r;
    const int dtype = logit_dtype(r);
    const int from = expert_at(r, first), step = r.p.flags & CMOE_TIE_HIGH ? -1 : 1;
    if (g.vectors && n >= HELD)
        load_vectors<HELD>(r, row, first, z);
    else if (dtype == CMOE_F32) {
        const float *at = (const float *)row + from;
#pragma unroll
        for (int i = 0; i < HELD; i++, at += step)
            z[i] = i < n ? *at : -INFINITY;
    } else {
        const uint16_t *at = (const uint16_t *)row + from;
#pragma unroll
        for (int i = 0; i < HELD; i++, at += step)
            z[i] = i < n ? logit_16(dtype, *at) : -INFINITY;
    }
}

/* Whether no sum over experts that are not chosen is needed: softmax over the chosen, or divided by their sum. */
DEV bool among_chosen(const cmoe_gpu_route &r)
{
    return (r.p.flags & CMOE_TOPK_FIRST) || ((r.p.flags & CMOE_RENORMALIZE) && r.p.renorm_eps == 0.0f);
}

/* What unscaled weights are divided by. own: sum of those of the chosen; all: of all experts, or own if that will
 * do. 0: weights are 0. */
DEV float divisor_of(const cmoe_gpu_route &r, float own, float all)
{
    const bool renorm = r.p.flags & CMOE_RENORMALIZE;
    if (r.p.router != CMOE_ROUTE_SOFTMAX)
        return renorm ? own + r.p.renorm_eps : 1.0f;
    if (r.p.flags & CMOE_TOPK_FIRST)
        return renorm ? own * (1.0f + r.p.renorm_eps) : own;
    return renorm ? own + all * r.p.renorm_eps : all;
}

DEV float final_weight(const cmoe_gpu_route &r, float w, float divisor)
{
    return (divisor == 0.0f ? 0.0f : w / divisor) * r.p.route_scale;
}

DEV void shared_slot(const cmoe_gpu_route &r, int64_t t, int j, int32_t *ids, float *weights)
{
    const int e = r.p.experts + j;
    ids[r.p.topk + j] = e;
    weights[r.p.topk + j] =
        r.p.flags & CMOE_SHARED_SIGMOID ? score_of(CMOE_ROUTE_SIGMOID, logit(r, t, e)) : r.p.shared_weight;
}

#endif
