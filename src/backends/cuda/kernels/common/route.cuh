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
    return (bits >> 31 ? ~bits : bits | 0x80000000) | 2;
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

DEV float warp_max_nan(float v)
{
    for (int offset = 16; offset > 0; offset >>= 1) {
        const float other = __shfl_xor_sync(0xffffffff, v, offset);
        v = isnan(v) || isnan(other) ? bits_f32(0x7fc00000) : fmaxf(v, other);
    }
    return v;
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

/* Scores of all experts into s; the same as cmoe__ref_route_row in f32. */
DEV void scores(const cmoe_gpu_route &r, const float *z, float *s)
{
    const int n = r.p.experts;
    if (r.p.router != CMOE_ROUTE_SOFTMAX) {
#pragma unroll 1
        for (int e = lane(); e < n; e += 32)
            s[e] = score(r.p.router, z[e]);
        return;
    }
    float top = -INFINITY, sum = 0;
#pragma unroll 1
    for (int e = lane(); e < n; e += 32)
        top = isnan(top) || isnan(z[e]) ? bits_f32(0x7fc00000) : fmaxf(top, z[e]);
    top = warp_max_nan(top);
#pragma unroll 1
    for (int e = lane(); e < n; e += 32)
        sum += s[e] = expf(z[e] - top);
    sum = warp_sum(sum);
#pragma unroll 1
    for (int e = lane(); e < n; e += 32)
        s[e] = s[e] / sum;
}

DEV void make_keys(const cmoe_gpu_route &r, const float *z, const float *s, float *key, uint32_t *rank)
{
    const bool by_score = (r.p.flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2)) != 0;
#pragma unroll 1
    for (int e = lane(); e < r.p.experts; e += 32) {
        float k = z[e];
        if (by_score && !isnan(z[e]) && z[e] != -INFINITY)
            k = (isnan(s[e]) ? z[e] : s[e]) + (r.bias ? r.bias[e] : 0.0f);
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

/* Weights of the chosen ids, one slot a lane (k over 32: several). */
DEV void write_weights(const cmoe_gpu_route &r, const float *z, const float *s, const int32_t *ids,
                       float *out)
{
    const int k = r.p.topk;
    const bool after = (r.p.flags & CMOE_TOPK_FIRST) && r.p.router == CMOE_ROUTE_SOFTMAX;
    float top = -INFINITY, sum = 0, total = 0;
    if (after) {
#pragma unroll 1
        for (int j = 0; j < k; j++) {
            const float v = ids[j] >= 0 && ids[j] < r.p.experts ? z[ids[j]] : -INFINITY;
            top = isnan(top) || isnan(v) ? bits_f32(0x7fc00000) : fmaxf(top, v);
        }
#pragma unroll 1
        for (int j = 0; j < k; j++)
            sum += expf((ids[j] >= 0 && ids[j] < r.p.experts ? z[ids[j]] : -INFINITY) - top);
    }
#pragma unroll 1
    for (int pass = r.p.flags & CMOE_RENORMALIZE ? 0 : 1; pass < 2; pass++)
#pragma unroll 1
        for (int j = pass ? lane() : 0; j < k; j += pass ? 32 : 1) {
            const bool valid = ids[j] >= 0 && ids[j] < r.p.experts;
            float w = valid ? s[ids[j]] : 0.0f;
            if (after)
                w = expf((valid ? z[ids[j]] : -INFINITY) - top) / sum;
            if (pass == 0) {
                total += w;
                continue;
            }
            if (r.p.flags & CMOE_RENORMALIZE) {
                const float d = total + r.p.renorm_eps;
                w = d == 0.0f ? 0.0f : w / d;
            }
            out[j] = w * r.p.route_scale;
        }
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
    scores(r, z, s);
    __syncwarp();
    make_keys(r, z, s, key, rank);
    if (r.p.groups > 0)
        keep_groups(r, key, rank, group);
    int32_t *chosen = (int32_t *)key; /* which nothing reads any more */
#pragma unroll 1
    for (int j = lane(); j < k && (given || !routed); j += 32)
        chosen[j] = given ? given[j] : -1;
#pragma unroll 1
    for (int j = 0; j < k && !given && routed; j++) {
        const int best = warp_best(rank, e, r.p.flags & CMOE_TIE_HIGH);
        __syncwarp();
        if (lane() == 0) {
            chosen[j] = best;
            rank[best] = 0;
        }
        __syncwarp();
    }
    __syncwarp();
#pragma unroll 1
    for (int j = lane(); j < k; j += 32) {
        ids[j] = chosen[j];
        if (!routed)
            weights[j] = 0;
    }
    if (routed)
        write_weights(r, z, s, chosen, weights);
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
