/* SPDX-License-Identifier: MIT
 * What the GEMM kernels share: which expert and rows a block has, where rows and scales lie. */
#ifndef CMOE_KERNELS_TILE_CUH
#define CMOE_KERNELS_TILE_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

struct tile {
    int expert, first, count; /* rows [first, first + count) of the sort; count 0: nothing to do */
};

/* The block's tile-th tile of `bm` rows, counting every expert's tiles in order. One warp scans the
 * experts' counts; all threads return with the answer. */
DEV tile find_tile(const cmoe_gpu_call &c, int index, int bm, int *shared)
{
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x;
        int carry = 0, expert = -1, before = 0;
        for (int base = 0; base < c.local && expert < 0; base += 32) {
            const int e = base + lane;
            const int n = e < c.local ? (c.offsets[e + 1] - c.offsets[e] + bm - 1) / bm : 0;
            int sum = n;
            for (int offset = 1; offset < 32; offset <<= 1) {
                const int below = __shfl_up_sync(0xffffffff, sum, offset);
                sum += lane >= offset ? below : 0;
            }
            const uint32_t past = __ballot_sync(0xffffffff, carry + sum > index);
            if (past) {
                const int at = __ffs((int)past) - 1;
                expert = base + at;
                before = carry + __shfl_sync(0xffffffff, sum - n, at);
            }
            carry += __shfl_sync(0xffffffff, sum, 31);
        }
        if (lane == 0) {
            shared[0] = expert;
            shared[1] = expert < 0 ? 0 : c.offsets[expert] + (index - before) * bm;
            shared[2] = expert < 0 ? 0 : min(bm, c.offsets[expert + 1] - shared[1]);
        }
    }
    __syncthreads();
    return {shared[0], shared[1], shared[2]};
}

/* Row of A that slot row `row` reads. */
DEV int64_t a_row(const cmoe_gpu_gemm &g, int row)
{
    return g.a_by_row ? row : row / g.call.slots;
}

/* Scale of A's row `at` around column k. */
DEV float a_scale(const cmoe_gpu_gemm &g, int64_t at, int k)
{
    const uint8_t *s = g.a_scale + at * g.a_scale_stride;
    switch (g.x.scaling) {
    case CMOE_SCALE_TENSOR:
        return *g.a_fixed;
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
        return *(const float *)s;
    case CMOE_SCALE_GROUP:
        return ((const float *)s)[k / g.x.group];
    case CMOE_SCALE_MX:
        return decode(CMOE_E8M0, s[k / 32]);
    case CMOE_SCALE_NV:
        return decode(CMOE_E4M3, s[k / 16]) * (g.a_global ? g.a_global[at] : *g.a_fixed);
    default:
        return 1.0f;
    }
}

/* The half that output n belongs to, and its row there. */
DEV const cmoe_gpu_half &b_half(const cmoe_gpu_gemm &g, int expert, int *n)
{
    const int up = *n >= g.split;
    *n -= up ? g.split : 0;
    return g.experts[expert].half[g.half + up];
}

/* Scale of weight row n of a half around column k; columns: of the whole matrix. */
DEV float b_scale(const cmoe_gpu_gemm &g, const cmoe_gpu_half &h, int n, int k)
{
    const int64_t row = (int64_t)n * h.step + h.first;
    const int cols = (int)g.a_cols;
    switch (g.w.scaling) {
    case CMOE_SCALE_TENSOR:
        return *(const float *)h.scale;
    case CMOE_SCALE_CHANNEL:
        return ((const float *)h.scale)[row];
    case CMOE_SCALE_BLOCK:
        return ((const float *)h.scale)[row / 128 * ((cols + 127) / 128) + k / 128];
    case CMOE_SCALE_GROUP: {
        const int64_t at = row * ((cols + g.w.group - 1) / g.w.group) + k / g.w.group;
        return g.w.scale_dtype == CMOE_NONE ? ((const float *)h.scale)[at] : load(g.w.scale_dtype, h.scale, at);
    }
    case CMOE_SCALE_MX:
        return decode(CMOE_E8M0, ((const uint8_t *)h.scale)[row * ((cols + 31) / 32) + k / 32]);
    case CMOE_SCALE_NV:
        return decode(CMOE_E4M3, ((const uint8_t *)h.scale)[row * ((cols + 15) / 16) + k / 16]) * *h.global;
    default:
        return 1.0f;
    }
}

/* Zero point of weight row n around column k. */
DEV float b_zero(const cmoe_gpu_gemm &g, const cmoe_gpu_half &h, int n, int k)
{
    if (!h.zero)
        return g.w.dtype == CMOE_U4 ? 8.0f : (g.w.dtype == CMOE_U8 ? 128.0f : 0.0f);
    const int64_t row = (int64_t)n * h.step + h.first;
    const int span = g.w.scaling == CMOE_SCALE_GROUP ? g.w.group : (int)g.a_cols;
    return (float)h.zero[row * ((g.a_cols + span - 1) / span) + k / span];
}

/* Code of weight row n, column k, as a number before its scale. */
DEV float b_code(const cmoe_gpu_gemm &g, const cmoe_gpu_half &h, int n, int k)
{
    const uint8_t *row = h.data + (int64_t)n * h.row_stride;
    const float v = h.col_stride ? load(g.w.dtype, row + (int64_t)k * h.col_stride, 0) : load(g.w.dtype, row, k);
    return v - (g.w.dtype == CMOE_U4 || g.w.dtype == CMOE_U8 ? b_zero(g, h, n, k) : 0.0f);
}

/* acc * scales -> out, with the routing weight and the bias where the problem wants them. */
DEV void store_output(const cmoe_gpu_gemm &g, int expert, int row, int n, float value)
{
    int at = n;
    const cmoe_gpu_half &h = b_half(g, expert, &at);
    if (g.weigh)
        value *= row_weight(g.call, row);
    if (g.bias)
        value += h.bias[(int64_t)at * h.step + h.first];
    g.out[(int64_t)row * g.out_stride + n] = value;
}

#endif
