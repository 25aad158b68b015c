/* SPDX-License-Identifier: MIT
 * What a warp that holds a token's logits chooses experts by: where experts lie in its registers, scores with a
 * bias instead of logits, groups of which some are kept. */
#ifndef CMOE_KERNELS_ROUTE_KEYS_CUH
#define CMOE_KERNELS_ROUTE_KEYS_CUH

#include "backends/cuda/kernels/common/route_logits.cuh"

/* A place is a lane and one of ROOM places there; of 12 a power of two holds them. */
template <int HELD> struct room_of {
    enum { ROOM = HELD == 12 ? 16 : HELD, LOW = 32 * ROOM - 1 };
};

/* The place, among all experts' places, of what a lane holds first, and how many lie there for it to hold. A
 * group's lanes lie side by side. */
template <int HELD, bool KEYED> struct lane_places {
    int first, n;

    MEMBER lane_places(const cmoe_gpu_routing &g)
    {
        const int inside = KEYED ? (lane() & ((1 << g.lane_bits) - 1)) * g.per : lane() * HELD;
        first = KEYED ? (lane() >> g.lane_bits) * g.size + inside : inside;
        n = KEYED ? min(g.per, g.size - inside) : g.r.p.experts - inside;
    }
};

/* The i-th expert that a lane holds. */
template <int HELD, bool KEYED> DEV int held_expert(const cmoe_gpu_routing &g, int holder, int i)
{
    if (!KEYED)
        return expert_at(g.r, holder * HELD + i);
    const int in_group = holder & ((1 << g.lane_bits) - 1);
    return expert_at(g.r, (holder >> g.lane_bits) * g.size + in_group * g.per + i);
}

/* Biases of the lane's experts; 0 where there are none. */
template <int HELD> DEV void load_bias(const cmoe_gpu_routing &g, int first, int n, float (&bias)[HELD])
{
#pragma unroll
    for (int i = 0; i < HELD; i++)
        bias[i] = 0;
    if (g.r.bias == NULL)
        return;
    const int step = g.r.p.flags & CMOE_TIE_HIGH ? -1 : 1;
    const float *from = g.r.bias + expert_at(g.r, first);
    if (g.vectors && n >= HELD)
        return load_floats<HELD>(from, bias);
#pragma unroll
    for (int i = 0; i < HELD; i++, from += step)
        if (i < n)
            bias[i] = *from;
}

/* Softmax over all experts: what exponentials are relative to, and their sum. */
struct softmax_sum {
    float top, sum;
};

DEV float biased(float z, float score, float bias)
{
    return z == -INFINITY ? -INFINITY : score + bias;
}

/* What experts are chosen by: scores and biases. A function, because a lane has up to 16; of four, because one by
 * one is a chain. */
static __device__ __noinline__ float4 keys_of(int router, float4 z, softmax_sum all, float4 bias)
{
    float4 s;
    if (router == CMOE_ROUTE_SOFTMAX)
        s = make_float4(expf(z.x - all.top) / all.sum, expf(z.y - all.top) / all.sum, expf(z.z - all.top) / all.sum,
                        expf(z.w - all.top) / all.sum);
    else if (router == CMOE_ROUTE_SIGMOID)
        s = make_float4(score(CMOE_ROUTE_SIGMOID, z.x), score(CMOE_ROUTE_SIGMOID, z.y), score(CMOE_ROUTE_SIGMOID, z.z),
                        score(CMOE_ROUTE_SIGMOID, z.w));
    else
        s = make_float4(score(router, z.x), score(router, z.y), score(router, z.z), score(router, z.w));
    return make_float4(biased(z.x, s.x, bias.x), biased(z.y, s.y, bias.y), biased(z.z, s.z, bias.z),
                       biased(z.w, s.w, bias.w));
}

/* These keys of all that lanes hold. */
template <int HELD>
DEV softmax_sum score_keys(const cmoe_gpu_route &r, const float (&z)[HELD], const float (&bias)[HELD],
                           float (&key)[HELD])
{
    softmax_sum all = {0, 1};
    if (r.p.router == CMOE_ROUTE_SOFTMAX) {
        float top = -INFINITY, sum = 0;
#pragma unroll
        for (int i = 0; i < HELD; i++)
            top = fmaxf(top, z[i]);
        all.top = value_of(__reduce_max_sync(0xffffffff, ordered(top)));
#pragma unroll
        for (int i = 0; i < HELD; i++)
            sum += expf(z[i] - all.top);
        all.sum = warp_sum(sum);
    }
    if constexpr (HELD == 2) {
        const float4 v = keys_of(r.p.router, make_float4(z[0], z[1], 0, 0), all, make_float4(bias[0], bias[1], 0, 0));
        key[0] = v.x;
        key[1] = v.y;
    } else {
#pragma unroll
        for (int i = 0; i < HELD; i += 4) {
            const float4 v = keys_of(r.p.router, make_float4(z[i], z[i + 1], z[i + 2], z[i + 3]), all,
                                     make_float4(bias[i], bias[i + 1], bias[i + 2], bias[i + 3]));
            key[i] = v.x;
            key[i + 1] = v.y;
            key[i + 2] = v.z;
            key[i + 3] = v.w;
        }
    }
    return all;
}

/* What the lane's group is chosen by: the best of its keys, or the sum of its two best. */
template <int HELD> DEV float value_of_group(const cmoe_gpu_routing &g, const float (&key)[HELD])
{
    float first = -INFINITY, second = -INFINITY;
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        second = fmaxf(second, fminf(first, key[i]));
        first = fmaxf(first, key[i]);
    }
#pragma unroll 1
    for (int away = 1; away < 1 << g.lane_bits; away *= 2) {
        const float one = __shfl_xor_sync(0xffffffff, first, away), two = __shfl_xor_sync(0xffffffff, second, away);
        second = fmaxf(fmaxf(second, two), fminf(first, one));
        first = fmaxf(first, one);
    }
    return g.r.p.flags & CMOE_GROUP_SUM2 ? first + second : first;
}

/* Whether the lane's group is among the best, ties to the one that lies first. */
DEV bool is_kept(const cmoe_gpu_routing &g, float value)
{
    int better = 0;
#pragma unroll 4
    for (int i = 0; i < g.r.p.groups; i++) {
        const float other = __shfl_sync(0xffffffff, value, i << g.lane_bits);
        better += other > value || (other == value && i < lane() >> g.lane_bits);
    }
    return better < g.r.p.groups_kept;
}

#endif
