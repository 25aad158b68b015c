/* SPDX-License-Identifier: MIT
 * Tokens routed by the warps of a block: in registers where the problem allows it (route_held.cuh), else a
 * warp a token through shared memory (route.cuh). */
#ifndef CMOE_KERNELS_ROUTE_BLOCK_CUH
#define CMOE_KERNELS_ROUTE_BLOCK_CUH

#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/route_held.cuh"

/* Tokens of a block: where they begin, how many there are. */
struct tokens_of {
    int from = 0, n = 0;

    /* They may be there when the kernel before is complete. */
    MEMBER void wait(const cmoe_gpu_routing &g)
    {
        depend();
        const int all = token_count(g.r.call);
        from = min(all, (int)blockIdx.x * g.each);
        n = min(g.each, all - from);
    }
};

/* Logits of no token, none like another, so that they are ranked as most are. */
template <int HELD> DEV void make_up_logits(float (&z)[HELD])
{
#pragma unroll
    for (int i = 0; i < HELD; i++)
        z[i] = (float)(lane() * HELD + i) / 128;
}

/* The n tokens from `from` on by the block's warps, ids and weights of their slots. Bit i of what is returned: the
 * warp's i-th token (they go round the warps) is left, because it has a NaN or too few finite logits. ahead: only the last
 * of them, which is made up: nothing of it is read. */
template <int HELD, bool KEYED>
DEV uint32_t route_by_warps(const cmoe_gpu_routing &g, int64_t from, int n, bool ahead, int32_t *ids, float *weights)
{
    const int warps = (int)blockDim.x / 32, slots = g.r.call.slots;
    uint32_t left = 0, bit = 1;
    const lane_places<HELD, KEYED> places(g);
    float z[HELD], next[HELD], bias[HELD];
    int at = ahead ? n - 1 : (int)threadIdx.x / 32;
    const char *row = logit_row(g.r, from + at);
    const int64_t step = warps * row_bytes(g.r);
    if (ahead)
        make_up_logits<HELD>(next);
    else if (at < n)
        load_held<HELD>(g, row, places.first, places.n, next);
    if (KEYED)
        load_bias<HELD>(g, places.first, ahead ? 0 : places.n, bias);
#pragma unroll 1
    for (; at < n; at += warps, bit <<= 1) {
#pragma unroll
        for (int i = 0; i < HELD; i++)
            z[i] = next[i];
        row += step;
        if (at + warps < n)
            load_held<HELD>(g, row, places.first, places.n, next);
        if (!route_together<HELD, KEYED>(g, from + at, z, bias, ids + at * slots, weights + at * slots))
            left |= bit;
    }
    return left;
}

template <int HELD>
DEV uint32_t route_by_lanes(const cmoe_gpu_routing &g, int64_t from, int n, int32_t *ids, float *weights)
{
    const int slots = g.r.call.slots;
#pragma unroll 1
    for (int at = threadIdx.x; at < n; at += blockDim.x)
        route_alone<HELD>(g, from + at, ids + at * slots, weights + at * slots);
    return 0;
}

/* The n tokens from `from` on by the block's warps, up to 32 tokens each; ids and weights of their slots. ahead: as of
 * route_by_warps(). memory: g.floats of each warp. Nothing is synchronised. KEYED: experts are not chosen by logits
 * alone. */
template <bool KEYED>
DEV void route_block(const cmoe_gpu_routing &g, int64_t from, int n, bool ahead, float *memory, int32_t *ids,
                     float *weights)
{
    const int warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32, slots = g.r.call.slots;
    uint32_t left = 0xffffffff;
    if constexpr (!KEYED)
        switch (g.way) {
        case CMOE_ROUTE_LANE_8:
            left = route_by_lanes<8>(g, from, n, ids, weights);
            break;
        case CMOE_ROUTE_LANE_16:
            left = route_by_lanes<16>(g, from, n, ids, weights);
            break;
        case CMOE_ROUTE_LANE_32:
            left = route_by_lanes<32>(g, from, n, ids, weights);
            break;
        }
    switch (g.way) {
    case CMOE_ROUTE_WARP_64:
        left = route_by_warps<2, KEYED>(g, from, n, ahead, ids, weights);
        break;
    case CMOE_ROUTE_WARP_128:
        left = route_by_warps<4, KEYED>(g, from, n, ahead, ids, weights);
        break;
    case CMOE_ROUTE_WARP_256:
        left = route_by_warps<8, KEYED>(g, from, n, ahead, ids, weights);
        break;
    case CMOE_ROUTE_WARP_384:
        left = route_by_warps<12, KEYED>(g, from, n, ahead, ids, weights);
        break;
    case CMOE_ROUTE_WARP_512:
        left = route_by_warps<16, KEYED>(g, from, n, ahead, ids, weights);
        break;
    }
#pragma unroll 1
    for (int at = warp; left != 0 && at < n; at += warps, left >>= 1) {
        __syncwarp(); /* the memory of the token before */
        if (left & 1)
            route(g.r, from + at, memory + warp * g.floats, ids + at * slots, weights + at * slots);
    }
}

/* The block's tokens, when the kernel before is complete. Meanwhile the last warp may go through the code with a token
 * that it makes up: in a layer the code comes from memory, which takes longer than what it does. ids and weights have
 * room for that token, too. */
template <bool KEYED>
DEV tokens_of wait_and_route(const cmoe_gpu_routing &g, float *memory, int32_t *ids, float *weights)
{
    const bool ahead = g.ahead && threadIdx.x / 32 == blockDim.x / 32 - 1;
    tokens_of tokens;
    if (!ahead)
        tokens.wait(g);
    route_block<KEYED>(g, tokens.from, ahead ? g.each + 1 : tokens.n, ahead, memory, ids, weights);
    if (ahead)
        tokens.wait(g);
    return tokens;
}

#endif
