/* SPDX-License-Identifier: MIT
 * Routing by octets: eight lanes a token, four tokens a warp, for up to 256 experts and 8 of them chosen. A lane
 * sorts the keys it holds, merges with the lanes 1, 2 and 4 away leave the best with all eight. Keys are those
 * of route_held.cuh: the expert is in their low bits. Many tokens take a third of a warp's instructions. */
#ifndef CMOE_KERNELS_ROUTE_OCTET_CUH
#define CMOE_KERNELS_ROUTE_OCTET_CUH

#include "backends/cuda/kernels/common/route_held.cuh"

/* Which of its octet a lane is. */
DEV int seat()
{
    return lane() % 8;
}

/* What the lanes 4, 2 and 1 away have, added. */
DEV float sum_octet(float v)
{
    v += __shfl_xor_sync(0xffffffff, v, 4);
    v += __shfl_xor_sync(0xffffffff, v, 2);
    v += __shfl_xor_sync(0xffffffff, v, 1);
    return v;
}

/* Expert of a lane's i-th logit: vectors of four, the octet's side by side. */
DEV int seat_expert(int i)
{
    return i / 4 * 32 + seat() * 4 + i % 4;
}

/* Four logits from an expert on; beyond the experts -Inf. */
DEV float4 load_four(const cmoe_gpu_route &r, const char *row, int expert)
{
    const int dtype = logit_dtype(r);
    if (expert >= r.p.experts)
        return make_float4(-INFINITY, -INFINITY, -INFINITY, -INFINITY);
    if (dtype == CMOE_F32)
        return *(const float4 *)(row + 4 * expert);
    const uint2 v = *(const uint2 *)(row + 2 * expert);
    if (dtype == CMOE_BF16)
        return make_float4(bits_f32(v.x << 16), bits_f32(v.x & 0xffff0000), bits_f32(v.y << 16),
                           bits_f32(v.y & 0xffff0000));
    return make_float4(decode(CMOE_F16, v.x & 0xffff), decode(CMOE_F16, v.x >> 16), decode(CMOE_F16, v.y & 0xffff),
                       decode(CMOE_F16, v.y >> 16));
}

DEV float logit_at(const cmoe_gpu_route &r, const char *row, int expert)
{
    if (logit_dtype(r) == CMOE_F32)
        return ((const float *)row)[expert];
    return logit_16(r.p.logits, ((const uint16_t *)row)[expert]);
}

/* The keys of a lane's HELD logits; of the low bits only those that are not the lane's. */
template <int HELD> DEV void load_keys(const cmoe_gpu_route &r, const char *row, bool there, int32_t (&key)[HELD])
{
    enum : int32_t { LOW = 8 * HELD - 1, OF_LANE = 28 };
    float4 z[HELD / 4];
#pragma unroll
    for (int i = 0; i < HELD / 4; i++)
        z[i] = load_four(r, row, there ? seat_expert(4 * i) : r.p.experts);
#pragma unroll
    for (int i = 0; i < HELD; i++) {
        const float v = i % 4 == 0 ? z[i / 4].x : (i % 4 == 1 ? z[i / 4].y : (i % 4 == 2 ? z[i / 4].z : z[i / 4].w));
        const int32_t bits = __float_as_int(v + 0.0f), place = LOW - OF_LANE - (i / 4 * 32 + i % 4);
        key[i] = (bits & ~LOW) ^ (((bits >> 31) & (INT32_MAX - LOW)) | place); /* as ordered() */
    }
}

/* The best of two lists in order, in order. */
template <int BEST> DEV void merge_best(int32_t (&a)[BEST], const int32_t (&b)[BEST])
{
    enum { STEPS = 3 };
#pragma unroll
    for (int i = 0; i < BEST; i++)
        a[i] = max(a[i], b[BEST - 1 - i]);
#pragma unroll
    for (int s = 1; s <= STEPS; s++)
#pragma unroll
        for (int i = 0; i < BEST; i++) {
            const int gap = BEST >> s;
            if (gap == 0 || (i & gap))
                continue;
            const int32_t x = a[i], y = a[i + gap];
            a[i] = max(x, y);
            a[i + gap] = min(x, y);
        }
}

/* The best of a lane's keys, in order. */
template <int HELD, int BEST> DEV void best_held(const int32_t (&key)[HELD], int32_t (&best)[BEST])
{
#pragma unroll
    for (int from = 0; from < HELD; from += BEST) {
        int32_t part[BEST];
#pragma unroll
        for (int i = 0; i < BEST; i++)
            part[i] = key[from + i];
        sort_held<BEST>(part);
        if (from > 0)
            merge_best<BEST>(best, part);
#pragma unroll
        for (int i = 0; i < BEST && from == 0; i++)
            best[i] = part[i];
    }
}

/* What an octet chose: its first k lanes hold an expert each. */
struct octet_choice {
    int expert, slot;
    float v, top;
};

/* Among equal high bits whole keys decide. own: each lane's best before the octet's; last: the k-th of all. */
template <int BEST>
DEV void settle_ties(const cmoe_gpu_route &r, const char *row, int32_t low, const int32_t (&own)[BEST], int32_t last,
                     bool known, octet_choice &c)
{
    const bool chosen = known && seat() < r.p.topk;
#pragma unroll 1
    for (int32_t before = last;;) { /* every other key with the last's high bits, if it is better than the worst */
        int32_t key = ABSENT;
#pragma unroll
        for (int i = 0; i < BEST; i++)
            key = own[i] < before && own[i] >= (last & ~low) ? max(key, own[i]) : key;
#pragma unroll
        for (int away = 4; away > 0; away /= 2)
            key = max(key, __shfl_xor_sync(0xffffffff, key, away));
        const bool there = known && key != ABSENT;
        if (!__any_sync(0xffffffff, there))
            break;
        before = key;
        const int expert = low - (key & low);
        const float v = there ? logit_at(r, row, expert) : -INFINITY;
        float least = chosen ? c.v : INFINITY;
        int worst = chosen ? c.expert : -1;
#pragma unroll
        for (int away = 4; away > 0; away /= 2) {
            const float other = __shfl_xor_sync(0xffffffff, least, away);
            const int place = __shfl_xor_sync(0xffffffff, worst, away);
            if (other < least || (other == least && place > worst)) {
                least = other;
                worst = place;
            }
        }
        if (there && chosen && c.expert == worst && (v > least || (v == least && expert < worst))) {
            c.v = v;
            c.expert = expert;
        }
    }
    c.slot = 0;
    c.top = -INFINITY;
#pragma unroll 1
    for (int i = 0; i < r.p.topk; i++) {
        const float v = __shfl_sync(0xffffffff, c.v, lane() / 8 * 8 + i);
        const int expert = __shfl_sync(0xffffffff, c.expert, lane() / 8 * 8 + i);
        c.slot += v > c.v || (v == c.v && expert < c.expert);
        c.top = fmaxf(c.top, v);
    }
}

/* Softmax's exponentials over all experts. */
template <int HELD> DEV float sum_of_all(const cmoe_gpu_route &r, const char *row, bool known, float top)
{
    float sum = 0;
#pragma unroll 2
    for (int i = 0; i < HELD; i += 4) {
        const float4 z = load_four(r, row, known ? seat_expert(i) : r.p.experts);
        sum += (expf(z.x - top) + expf(z.y - top)) + (expf(z.z - top) + expf(z.w - top));
    }
    return sum_octet(sum);
}

/* Token t of each octet, if it is there. False, and nothing is written, if a NaN is among its logits, -Inf
 * among the best, or too many are alike. */
template <int HELD, int BEST>
DEV bool route_octet(const cmoe_gpu_route &r, int64_t t, const char *row, bool there, int32_t *ids, float *weights)
{
    enum : int32_t { LOW = 8 * HELD - 1 };
    const bool softmax = r.p.router == CMOE_ROUTE_SOFTMAX, whole = logit_dtype(r) == CMOE_F32;
    const int k = r.p.topk;
    int32_t key[HELD], own[BEST], best[BEST];
    load_keys<HELD>(r, row, there, key);
    best_held<HELD, BEST>(key, own);
#pragma unroll
    for (int i = 0; i < BEST; i++)
        best[i] = own[i] |= 28 - 4 * seat();
#pragma unroll
    for (int away = 1; away < 8; away *= 2) {
        int32_t other[BEST];
#pragma unroll
        for (int i = 0; i < BEST; i++)
            other[i] = __shfl_xor_sync(0xffffffff, best[i], away);
        merge_best<BEST>(best, other);
    }
    int32_t mine = best[0];
#pragma unroll
    for (int i = 1; i < BEST; i++)
        mine = seat() >= i ? best[i] : mine;
    const int32_t last = __shfl_sync(0xffffffff, mine, lane() / 8 * 8 + k - 1);
    const int32_t after = __shfl_down_sync(0xffffffff, mine, 1);
    bool known = last > (ordered(-INFINITY) | LOW) && best[0] <= (ordered(INFINITY) | LOW);
    bool near = seat() < k - 1 && (uint32_t)(mine ^ after) <= (uint32_t)LOW;
#pragma unroll
    for (int i = 0; i < BEST; i++)
        near = near || (uint32_t)own[i] - (uint32_t)(last & ~LOW) < (uint32_t)(last & LOW);
    octet_choice c;
    c.expert = LOW - (mine & LOW);
    c.slot = seat();
    c.v = known && seat() < k ? logit_at(r, row, c.expert) : -INFINITY;
    c.top = __shfl_sync(0xffffffff, c.v, lane() / 8 * 8);
    if (whole && __any_sync(0xffffffff, near && known)) {
        const uint32_t full = __ballot_sync(0xffffffff, HELD > BEST && own[BEST - 1] >= (last & ~LOW));
        known = known && !(full >> lane() / 8 * 8 & 0xff);
        settle_ties<BEST>(r, row, LOW, own, last, known, c);
    }
    const bool chosen = known && seat() < k;
    const float w = !chosen ? 0.0f : (softmax ? expf(c.v - c.top) : score_of(r.p.router, c.v));
    const float sum = sum_octet(w);
    const float all = softmax && !among_chosen(r) ? sum_of_all<HELD>(r, row, known, c.top) : sum;
    if (chosen) {
        ids[c.slot] = c.expert;
        weights[c.slot] = final_weight(r, w, divisor_of(r, sum, all));
    }
#pragma unroll 1
    for (int j = seat(); j < r.p.shared && known; j += 8)
        shared_slot(r, t, j, ids, weights);
    return known;
}

/* route_by_warps() with four tokens of a warp at once: bits 4 i to 4 i + 3 are those of its i-th four. */
template <int HELD, int BEST>
DEV uint32_t route_by_octets(const cmoe_gpu_routing &g, int64_t from, int n, int32_t *ids, float *weights)
{
    const int slots = g.r.call.slots, step = (int)blockDim.x / 8;
    uint32_t left = 0;
    int bit = 0;
#pragma unroll 1
    for (int first = (int)threadIdx.x / 32 * 4; first < n; first += step, bit += 4) {
        const int at = first + lane() / 8;
        const bool known = route_octet<HELD, BEST>(g.r, from + at, logit_row(g.r, from + at), at < n, ids + at * slots,
                                                   weights + at * slots);
        const uint32_t gone = __ballot_sync(0xffffffff, at < n && !known) & 0x01010101;
        left |= (gone | gone >> 7 | gone >> 14 | gone >> 21) % 16 << bit;
    }
    return left;
}

/* Tokens that octets have left, each by the warp. */
DEV void route_left(const cmoe_gpu_routing &g, int64_t from, uint32_t left, float *memory, int32_t *ids, float *weights)
{
    const int warp = (int)threadIdx.x / 32, slots = g.r.call.slots, step = (int)blockDim.x / 8;
#pragma unroll 1
    for (int first = warp * 4; left != 0; first += step)
#pragma unroll 1
        for (int at = first; at < first + 4; at++, left >>= 1) {
            __syncwarp(); /* the memory of the token before */
            if (left & 1)
                route(g.r, from + at, memory + warp * g.floats, ids + at * slots, weights + at * slots);
        }
}

#endif
