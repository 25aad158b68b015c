/* SPDX-License-Identifier: MIT
 * Routing with the logits in registers: by one lane a token up to 32 experts, by one warp a token up to
 * 512. A warp compares keys whose low bits are the expert, so that one reduction in hardware finds the
 * best and breaks ties; where that hides a difference, the few candidates are ranked by whole keys. */
#ifndef CMOE_KERNELS_ROUTE_HELD_CUH
#define CMOE_KERNELS_ROUTE_HELD_CUH

#include "backends/cuda/kernels/common/route_keys.cuh"

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
    load_held<HELD>(g, logit_row(r, t), 0, r.p.experts, z);
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
    enum : int32_t { LOW = room_of<HELD>::LOW };
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
        const float there = __shfl_sync(0xffffffff, z[i], place / room_of<HELD>::ROOM);
        v = place % room_of<HELD>::ROOM == i ? there : v;
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

/* Token t, whose logits the lanes hold, by a warp. False, and nothing is written, if a NaN is among what experts
 * are chosen by, or -Inf among the best. KEYED: by scores or groups, with a bias of the lane's places. */
template <int HELD, bool KEYED>
DEV bool route_together(const cmoe_gpu_routing &g, int64_t t, const float (&z)[HELD], const float (&bias)[HELD],
                        int32_t *ids, float *weights)
{
    enum : int32_t { ROOM = room_of<HELD>::ROOM, LOW = room_of<HELD>::LOW };
    const cmoe_gpu_route &r = g.r;
    const bool softmax = r.p.router == CMOE_ROUTE_SOFTMAX, by_score = KEYED && keys_by_score(r);
    softmax_sum over_all = {0, 1};
    float by[HELD];
    int32_t key[HELD];
    if (by_score)
        over_all = score_keys<HELD>(r, z, bias, by);
    else {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            by[i] = z[i];
    }
    const bool grouped = KEYED && g.lane_bits < 5;
    const float group = grouped ? value_of_group<HELD>(g, by) : 0.0f;
    const bool kept = !grouped || is_kept(g, group);
    float sum = group < INFINITY ? 0.0f : group; /* NaN if one is there */
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        sum += by[i];
        key[i] = kept ? (ordered(by[i]) & ~LOW) | (LOW - (lane() * ROOM + i)) : ABSENT;
    }
    const choice c = choose<HELD>(key, r.p.topk);
    if (__any_sync(0xffffffff, isnan(sum)) || !c.known)
        return false;
    const int e = held_expert<HELD, KEYED>(g, c.place / ROOM, c.place % ROOM);
    const float there = held_at<HELD>(z, c.place), v = lane() < c.n ? there : -INFINITY;
    int slot = lane();
    if (c.near) {
        float whole = v;
        if (by_score) {
            const float own_bias = r.bias && lane() < c.n ? r.bias[e] : 0.0f;
            whole = keys_of(r.p.router, make_float4(v, 0, 0, 0), over_all, make_float4(own_bias, 0, 0, 0)).x;
        }
        slot = rank_among(ordered(whole), c);
    }
    const bool chosen = lane() < c.n && slot < r.p.topk;
    float top = over_all.top, all = over_all.sum;
    if (softmax && !by_score)
        top = value_of(__reduce_max_sync(0xffffffff, ordered(chosen ? v : -INFINITY)));
    const float w = !chosen ? 0.0f : (softmax ? expf(v - top) : score_of(r.p.router, v));
    const float own = sum_of_first(w, c.n);
    if (softmax && !by_score && !among_chosen(r))
        all = warp_sum(sum_held<HELD>(z, top));
    if (chosen) {
        ids[slot] = e;
        weights[slot] = final_weight(r, w, divisor_of(r, own, among_chosen(r) ? own : all));
    }
#pragma unroll 1
    for (int j = lane(); j < r.p.shared; j += 32)
        shared_slot(r, t, j, ids, weights);
    return true;
}

#endif
