/* SPDX-License-Identifier: MIT
 * Routing with the logits in registers: by one lane a token up to 32 experts, by one warp a token up to
 * 512. A warp compares keys whose low bits are the expert, so that one reduction in hardware finds the
 * best and breaks ties; where that hides a difference, the few candidates are ranked by whole keys. */
#ifndef CMOE_KERNELS_ROUTE_HELD_CUH
#define CMOE_KERNELS_ROUTE_HELD_CUH

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
    return r.scratch ? CMOE_F32 : r.p.logits;
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

/* Logits at places first to first + HELD of rows that are whole vectors. */
template <int HELD> DEV void load_vectors(const cmoe_gpu_route &r, const void *row, int first, float (&z)[HELD])
{
    enum { WIDE = HELD < 4 ? 2 : 4, CODES = HELD < 8 ? HELD : 8 };
    const int dtype = logit_dtype(r);
    if (dtype == CMOE_F32) {
#pragma unroll
        for (int i = 0; i < HELD; i += WIDE) {
            float v[4];
            if (WIDE == 2)
                *(float2 *)v = *(const float2 *)((const float *)row + first + i);
            else
                *(float4 *)v = *(const float4 *)((const float *)row + first + i);
#pragma unroll
            for (int j = 0; j < WIDE; j++)
                z[i + j] = v[j];
        }
        return;
    }
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

/* Logits at the places from first on; beyond the experts -Inf. */
template <int HELD> DEV void load_held(const cmoe_gpu_routing &g, const void *row, int first, float (&z)[HELD])
{
    const cmoe_gpu_route &r = g.r;
    const int n = r.p.experts - first, dtype = logit_dtype(r);
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

enum : int32_t { ABSENT = INT32_MIN, NAN_KEY = INT32_MIN + 1 };

/* The best of a lane's keys is taken out: its place, and the key. Pairs of pairs, because a chain takes longer. */
template <int HELD> DEV int take_best(int32_t (&key)[HELD], int32_t *best)
{
    enum { LEVELS = 5 };
    int32_t most[HELD];
    int at[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++)
        most[i] = key[i];
#pragma unroll
    for (int l = 1; l <= LEVELS; l++)
#pragma unroll
        for (int i = 0; i < HELD / 2; i++)
            if (i < HELD >> l)
                most[i] = max(most[i], most[i + (HELD >> l)]);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        at[i] = key[i] == most[0] ? i : HELD;
#pragma unroll
    for (int l = 1; l <= LEVELS; l++)
#pragma unroll
        for (int i = 0; i < HELD / 2; i++)
            if (i < HELD >> l)
                at[i] = min(at[i], at[i + (HELD >> l)]);
#pragma unroll
    for (int i = 0; i < HELD; i++)
        key[i] = i == at[0] ? ABSENT : key[i];
    *best = most[0];
    return at[0];
}

/* Sum of softmax's exponentials over all experts, or NaN where a logit is. */
template <int HELD> DEV float sum_held(const float (&z)[HELD], float top)
{
    float sum = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++)
        sum += expf(z[i] - top);
    return sum;
}

/* Token t by this lane alone. */
template <int HELD> DEV void route_alone(const cmoe_gpu_routing &g, int64_t t, int32_t *ids, float *weights)
{
    const cmoe_gpu_route &r = g.r;
    const bool softmax = r.p.router == CMOE_ROUTE_SOFTMAX;
    float z[HELD];
    int32_t key[HELD];
    bool routed = false, nan = false;
    load_held<HELD>(g, logit_row(r, t), 0, z);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        routed = routed || z[i] != -INFINITY;
        nan = nan || isnan(z[i]);
        key[i] = i >= r.p.experts ? ABSENT : (isnan(z[i]) ? NAN_KEY : ordered(z[i]));
    }
    float top = 0, own = 0;
#pragma unroll 1
    for (int j = 0; j < r.p.topk; j++) {
        int32_t best;
        const int e = expert_at(r, take_best<HELD>(key, &best));
        const float v = value_of(best);
        top = j == 0 ? v : top;
        const float w = softmax ? expf(v - top) : score_of(r.p.router, v);
        own += w;
        ids[j] = routed ? e : -1;
        weights[j] = routed ? w : 0.0f;
    }
    float all = own;
    if (softmax && !among_chosen(r))
        all = sum_held<HELD>(z, top);
    if (softmax && nan && !(r.p.flags & CMOE_TOPK_FIRST))
        all = bits_f32(0x7fc00000);
    const float divisor = divisor_of(r, own, all);
#pragma unroll 1
    for (int j = 0; j < r.p.topk && routed; j++)
        weights[j] = final_weight(r, weights[j], divisor);
#pragma unroll 1
    for (int j = 0; j < r.p.shared; j++)
        shared_slot(r, t, j, ids, weights);
}

/* Largest first, by Batcher's network. */
template <int HELD> DEV void sort_held(int32_t (&key)[HELD])
{
    enum { STEPS = 4 };
#pragma unroll
    for (int l = 0; l < STEPS; l++)
#pragma unroll
        for (int n = 0; n <= l; n++)
#pragma unroll
            for (int i = 0; i < HELD; i++) {
                const int p = 1 << l, q = p >> n;
                if (p >= HELD || i + q >= HELD || i < q % p || (i - q % p) % (2 * q) >= q ||
                    i / (2 * p) != (i + q) / (2 * p))
                    continue;
                const int32_t a = key[i], b = key[i + q];
                key[i] = max(a, b);
                key[i + q] = min(a, b);
            }
}

/* What a warp chose: lane i < n holds one of the k best places, in order unless `near`. */
struct choice {
    int n, place;
    bool near; /* keys of some are equal but for their low bits: there may be more than k, in any order */
    bool known;
};

/* The best of a warp's keys, taken out by the lane that has it. */
template <int HELD> DEV int32_t take_from_warp(int32_t (&key)[HELD])
{
    const int32_t most = __reduce_max_sync(0xffffffff, key[0]);
    if (key[0] == most) {
#pragma unroll
        for (int i = 1; i < HELD; i++)
            key[i - 1] = key[i];
        key[HELD - 1] = ABSENT;
    }
    return most;
}

/* The k < 32 best of a warp's keys, and all whose high bits are those of the last. */
template <int HELD> DEV choice choose(int32_t (&key)[HELD], int k)
{
    enum : int32_t { LOW = 32 * HELD - 1 };
    int32_t mine = ABSENT;
    sort_held<HELD>(key);
#pragma unroll 1
    for (int j = 0; j <= k; j++) {
        const int32_t most = take_from_warp<HELD>(key);
        mine = lane() == j ? most : mine;
    }
    const int32_t after = __shfl_down_sync(0xffffffff, mine, 1);
    const uint32_t near = __ballot_sync(0xffffffff, lane() < k && (uint32_t)(mine ^ after) <= (uint32_t)LOW);
    choice c = {k, 0, near != 0, true};
    int32_t last = __shfl_sync(0xffffffff, mine, k - 1);
    c.known = last > (ordered(-INFINITY) | LOW);
    if (near >> (k - 1)) {
        int32_t most = __shfl_sync(0xffffffff, mine, k);
#pragma unroll 1
        for (c.n = k + 1; (uint32_t)(most ^ last) <= (uint32_t)LOW && c.n < 32; c.n++) {
            most = take_from_warp<HELD>(key);
            mine = lane() == c.n ? most : mine;
        }
        c.known = c.known && (uint32_t)(most ^ last) > (uint32_t)LOW;
    }
    c.place = LOW - (mine & LOW);
    return c;
}

/* The warp's logit at a place. */
template <int HELD> DEV float held_at(const float (&z)[HELD], int place)
{
    float v = 0;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const float there = __shfl_sync(0xffffffff, z[i], place / HELD);
        v = place % HELD == i ? there : v;
    }
    return v;
}

/* Sum over lanes of what only the first n have. */
DEV float sum_of_first(float v, int n)
{
    if (n > 8) {
        v += __shfl_xor_sync(0xffffffff, v, 16);
        v += __shfl_xor_sync(0xffffffff, v, 8);
    }
    v += __shfl_xor_sync(0xffffffff, v, 4);
    v += __shfl_xor_sync(0xffffffff, v, 2);
    v += __shfl_xor_sync(0xffffffff, v, 1);
    return v;
}

/* How many candidates are better than the lane's. */
DEV int rank_among(int32_t key, const choice &c)
{
    int rank = 0;
#pragma unroll 1
    for (int i = 0; i < c.n; i++) {
        const int32_t other = __shfl_sync(0xffffffff, key, i);
        const int place = __shfl_sync(0xffffffff, c.place, i);
        rank += other > key || (other == key && place < c.place);
    }
    return rank;
}

/* Token t, whose logits the lanes hold, by a warp. False, and nothing is written, if a NaN is among the
 * logits or -Inf among the best. */
template <int HELD>
DEV bool route_together(const cmoe_gpu_route &r, int64_t t, const float (&z)[HELD], int32_t *ids, float *weights)
{
    enum : int32_t { LOW = 32 * HELD - 1 };
    const bool softmax = r.p.router == CMOE_ROUTE_SOFTMAX;
    int32_t key[HELD];
    float sum = 0; /* NaN if a logit is */
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const int place = lane() * HELD + i;
        sum += z[i];
        key[i] = (ordered(z[i]) & ~LOW) | (LOW - place);
    }
    const choice c = choose<HELD>(key, r.p.topk);
    if (__any_sync(0xffffffff, isnan(sum)) || !c.known)
        return false;
    const int e = expert_at(r, c.place);
    const float there = held_at<HELD>(z, c.place), v = lane() < c.n ? there : -INFINITY;
    int slot = lane();
    if (c.near)
        slot = rank_among(ordered(v), c);
    const bool chosen = lane() < c.n && slot < r.p.topk;
    const int first = c.near ? __ffs((int)__ballot_sync(0xffffffff, chosen && slot == 0)) - 1 : 0;
    const float top = softmax ? __shfl_sync(0xffffffff, v, first) : 0.0f;
    const float w = !chosen ? 0.0f : (softmax ? expf(v - top) : score_of(r.p.router, v));
    const float own = sum_of_first(w, c.n);
    float all = own;
    if (softmax && !among_chosen(r))
        all = warp_sum(sum_held<HELD>(z, top));
    if (chosen) {
        ids[slot] = e;
        weights[slot] = final_weight(r, w, divisor_of(r, own, all));
    }
#pragma unroll 1
    for (int j = lane(); j < r.p.shared; j += 32)
        shared_slot(r, t, j, ids, weights);
    return true;
}

#endif
