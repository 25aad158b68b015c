/* SPDX-License-Identifier: MIT
 * One warp routes one token. Logits and keys of the token lie in shared memory; the k best are taken
 * one by one by a warp-wide comparison whose order is total, so ids are distinct for every input. Loops
 * stay loops: in a layer the code comes from memory. */
#ifndef CMOE_KERNELS_ROUTE_CUH
#define CMOE_KERNELS_ROUTE_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

DEV int lane()
{
    return threadIdx.x % 32;
}

/* Keys rank +Inf > finite > -Inf > NaN: a monotone integer. Taken and dropped experts are 0. */
DEV uint32_t rank_of(float key)
{
    const uint32_t bits = __float_as_uint(key + 0.0f); /* -0 becomes 0 */
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 1;
    return bits >> 31 ? ~bits : bits | 0x80000000; /* of -Inf 0x7fffff */
}

DEV float score(int router, float z)
{
    if (router == CMOE_ROUTE_SIGMOID)
        return 1.0f / (1.0f + expf(-z));
    if (router == CMOE_ROUTE_SQRTSOFTPLUS)
        return sqrtf(z > 20.0f ? z : log1pf(expf(z)));
    return z;
}

DEV float warp_sum(float v)
{
    for (int offset = 16; offset > 0; offset >>= 1)
        v += __shfl_xor_sync(0xffffffff, v, offset);
    return v;
}

/* Unsigned integers in the order of floats that are no NaN. */
DEV uint32_t order_of(float v)
{
    const uint32_t bits = __float_as_uint(v);
    return bits >> 31 ? ~bits : bits | 0x80000000;
}

DEV float warp_max_nan(float v)
{
    const bool nan = __any_sync(0xffffffff, isnan(v));
    const uint32_t top = __reduce_max_sync(0xffffffff, order_of(v));
    return nan ? bits_f32(0x7fc00000) : bits_f32(top >> 31 ? top & 0x7fffffff : ~top);
}

/* The best of n ranks, ties to the lowest (high: highest) index; rank 0 is never better. */
DEV int warp_best(const uint32_t *rank, int n, bool high)
{
    uint32_t top = 0;
    int at = -1;
#pragma unroll 4
    for (int e = lane(); e < n; e += 32)
        if (rank[e] > top || (high && at >= 0 && rank[e] == top)) {
            top = rank[e];
            at = e;
        }
    const uint32_t most = __reduce_max_sync(0xffffffff, top);
    if (most == 0)
        return -1;
    if (high)
        return __reduce_max_sync(0xffffffff, top == most ? at : -1);
    return __reduce_min_sync(0xffffffff, top == most ? at : n);
}

enum { HELD = 8 }; /* ranks that a lane keeps in registers */

/* The k best of at most 32 * HELD ranks. */
DEV void choose_held(const uint32_t *rank, int n, int k, bool high, int32_t *chosen)
{
    uint32_t held[HELD];
#pragma unroll
    for (int i = 0; i < HELD; i++)
        held[i] = lane() + 32 * i < n ? rank[lane() + 32 * i] : 0;
#pragma unroll 1
    for (int j = 0; j < k; j++) {
        uint32_t top = 0;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            top = max(top, held[i]);
        const uint32_t most = __reduce_max_sync(0xffffffff, top);
        int at = high ? -1 : n;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (held[i] == most)
                at = high ? max(at, lane() + 32 * i) : min(at, lane() + 32 * i);
        const int best = most == 0 ? -1 : high ? __reduce_max_sync(0xffffffff, at) : __reduce_min_sync(0xffffffff, at);
#pragma unroll
        for (int i = 0; i < HELD; i++)
            if (lane() + 32 * i == best)
                held[i] = 0;
        if (lane() == 0)
            chosen[j] = best;
    }
}

/* The k best of any number, which are taken out. */
DEV void choose_any(uint32_t *rank, int n, int k, bool high, int32_t *chosen)
{
#pragma unroll 1
    for (int j = 0; j < k; j++) {
        const int best = warp_best(rank, n, high);
        __syncwarp();
        if (lane() == 0) {
            chosen[j] = best;
            rank[best] = 0;
        }
        __syncwarp();
    }
}

/* Whether keys are made of scores. */
DEV bool keys_by_score(const cmoe_gpu_route &r)
{
    return (r.p.flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2)) != 0;
}

/* Whether softmax is over the chosen alone. */
DEV bool softmax_after(const cmoe_gpu_route &r)
{
    return (r.p.flags & CMOE_TOPK_FIRST) && r.p.router == CMOE_ROUTE_SOFTMAX;
}

/* Scores of all experts into s, the same as cmoe__ref_route_row in f32, times what is returned: softmax is
 * divided by its sum only where it is asked for. */
DEV float scores(const cmoe_gpu_route &r, const float *z, float *s)
{
    const int n = r.p.experts;
    if (softmax_after(r) && !keys_by_score(r))
        return 1;
    if (r.p.router != CMOE_ROUTE_SOFTMAX) {
#pragma unroll 1
        for (int e = lane(); e < n; e += 32)
            s[e] = score(r.p.router, z[e]);
        return 1;
    }
    float top = -INFINITY, sum = 0;
#pragma unroll 1
    for (int e = lane(); e < n; e += 32)
        top = isnan(top) || isnan(z[e]) ? bits_f32(0x7fc00000) : fmaxf(top, z[e]);
    top = warp_max_nan(top);
#pragma unroll 1
    for (int e = lane(); e < n; e += 32)
        sum += s[e] = expf(z[e] - top);
    return warp_sum(sum);
}

/* sum: what s is to be divided by. */
DEV void make_keys(const cmoe_gpu_route &r, const float *z, const float *s, float sum, float *key, uint32_t *rank)
{
    const bool by_score = keys_by_score(r);
#pragma unroll 1
    for (int e = lane(); e < r.p.experts; e += 32) {
        float k = z[e];
        if (by_score && !isnan(z[e]) && z[e] != -INFINITY) {
            const float scored = s[e] / sum;
            k = (isnan(scored) ? z[e] : scored) + (r.bias ? r.bias[e] : 0.0f);
        }
        key[e] = k;
        rank[e] = rank_of(k);
    }
    __syncwarp();
}

/* Rank of a group: of its best key, or of the sum of its two best. One lane a group. */
DEV uint32_t group_rank(const cmoe_gpu_route &r, const float *key, const uint32_t *rank, int size)
{
    uint32_t first = 0, second = 0;
    float a = 0, b = 0;
#pragma unroll 1
    for (int e = 0; e < size; e++)
        if (rank[e] > first) {
            second = first;
            b = a;
            first = rank[e];
            a = key[e];
        } else if (rank[e] > second) {
            second = rank[e];
            b = key[e];
        }
    return r.p.flags & CMOE_GROUP_SUM2 ? rank_of(a + b) : first;
}

DEV void keep_groups(const cmoe_gpu_route &r, const float *key, uint32_t *rank, uint32_t *group)
{
    const int size = r.p.experts / r.p.groups;
#pragma unroll 1
    for (int g = lane(); g < r.p.groups; g += 32)
        group[g] = group_rank(r, key + g * size, rank + g * size, size);
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < r.p.groups_kept; i++) {
        const int g = warp_best(group, r.p.groups, r.p.flags & CMOE_TIE_HIGH);
        __syncwarp();
        if (lane() == 0)
            group[g] = 0;
        __syncwarp();
    }
#pragma unroll 1
    for (int e = lane(); e < r.p.experts; e += 32)
        if (group[e / size] != 0)
            rank[e] = 0;
    __syncwarp();
}

DEV float logit(const cmoe_gpu_route &r, int64_t t, int e)
{
    if (r.scratch)
        return r.scratch[t * r.columns + e];
    if (r.p.logits == CMOE_F32)
        return ((const float *)r.logits)[t * r.logits_stride + e];
    const uint16_t v = ((const uint16_t *)r.logits)[t * r.logits_stride + e];
    return r.p.logits == CMOE_F16 ? decode(CMOE_F16, v) : decode(CMOE_BF16, v);
}

/* z of one token into shared memory; four loads of a lane at once. */
DEV void load_logits(const cmoe_gpu_route &r, int64_t t, float *z)
{
    enum { AT_ONCE = 4 };
    for (int base = lane(); base < r.columns; base += 32 * AT_ONCE) {
        float v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            v[i] = base + 32 * i < r.columns ? logit(r, t, base + 32 * i) : 0.0f;
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++)
            if (base + 32 * i < r.columns)
                z[base + 32 * i] = v[i];
    }
    __syncwarp();
}

/* Weights of the chosen ids, each lane its own. sum: what s is to be divided by; w: room for them. */
DEV void write_weights(const cmoe_gpu_route &r, const float *z, const float *s, float sum, const int32_t *ids,
                       float *w, float *out)
{
    const int k = r.p.topk;
    const bool after = softmax_after(r);
    float top = -INFINITY, own = 0;
#pragma unroll 1
    for (int j = lane(); j < k && after; j += 32) {
        const float v = ids[j] >= 0 && ids[j] < r.p.experts ? z[ids[j]] : -INFINITY;
        top = isnan(top) || isnan(v) ? bits_f32(0x7fc00000) : fmaxf(top, v);
    }
    if (after)
        top = warp_max_nan(top);
#pragma unroll 1
    for (int j = lane(); j < k; j += 32) {
        const bool valid = ids[j] >= 0 && ids[j] < r.p.experts;
        w[j] = after ? expf((valid ? z[ids[j]] : -INFINITY) - top) : (valid ? s[ids[j]] : 0.0f);
        own += w[j];
    }
    if (after)
        sum = warp_sum(own);
    own = 0;
#pragma unroll 1
    for (int j = lane(); j < k; j += 32)
        own += w[j] /= sum;
    const float all = r.p.flags & CMOE_RENORMALIZE ? warp_sum(own) + r.p.renorm_eps : 1.0f;
#pragma unroll 1
    for (int j = lane(); j < k; j += 32)
        out[j] = (all == 0.0f ? 0.0f : w[j] / all) * r.p.route_scale;
}

/* The slots of token t: r.call.slots ids and weights. */
DEV void route_token(const cmoe_gpu_route &r, int64_t t, float *shared, int32_t *ids, float *weights)
{
    const int e = r.p.experts, k = r.p.topk;
    float *z = shared, *s = z + r.columns, *key = s + e;
    uint32_t *rank = (uint32_t *)(key + e), *group = rank + e;
    load_logits(r, t, z);
    bool routed = false;
#pragma unroll 1
    for (int i = lane(); i < e; i += 32)
        routed = routed || z[i] != -INFINITY;
    routed = __any_sync(0xffffffff, routed);
    const int64_t token = r.token_ids ? r.token_ids[t] : 0;
    const int32_t *given = NULL;
    if (r.hash_table) {
        routed = token >= 0 && token < r.vocab;
        given = routed ? r.hash_table + token * k : NULL;
    }
    const float sum = scores(r, z, s);
    __syncwarp();
    make_keys(r, z, s, sum, key, rank);
    if (r.p.groups > 0)
        keep_groups(r, key, rank, group);
    int32_t *chosen = (int32_t *)key; /* which nothing reads any more */
#pragma unroll 1
    for (int j = lane(); j < k && (given || !routed); j += 32)
        chosen[j] = given ? given[j] : -1;
    const bool high = r.p.flags & CMOE_TIE_HIGH;
    if (!given && routed && e <= 32 * HELD)
        choose_held(rank, e, k, high, chosen);
    else if (!given && routed)
        choose_any(rank, e, k, high, chosen);
    __syncwarp();
#pragma unroll 1
    for (int j = lane(); j < k; j += 32) {
        ids[j] = chosen[j];
        if (!routed)
            weights[j] = 0;
    }
    if (routed)
        write_weights(r, z, s, sum, chosen, (float *)rank, weights);
#pragma unroll 1
    for (int j = lane(); j < r.p.shared; j += 32) {
        ids[k + j] = e + j;
        weights[k + j] = r.p.flags & CMOE_SHARED_SIGMOID ? score(CMOE_ROUTE_SIGMOID, z[e + j]) : r.p.shared_weight;
    }
}

/* ROUTE_ALL: every expert, weight 1. */
DEV void route_to_all(const cmoe_gpu_route &r, int32_t *ids, float *weights)
{
#pragma unroll 1
    for (int j = lane(); j < r.call.slots; j += 32) {
        ids[j] = j;
        weights[j] = 1;
    }
}

/* By the router that the problem has; shared: cmoe__cuda_route_floats() of a warp. */
DEV void route(const cmoe_gpu_route &r, int64_t t, float *shared, int32_t *ids, float *weights)
{
    if (r.p.router == CMOE_ROUTE_ALL)
        route_to_all(r, ids, weights);
    else
        route_token(r, t, shared, ids, weights);
}

#endif
