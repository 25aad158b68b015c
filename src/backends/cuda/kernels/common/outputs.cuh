/* SPDX-License-Identifier: MIT
 * What a block of the GEMMs of 128 x 64 tiles has to do with: where its rows of weights and of x lie, what
 * its sums are multiplied by, and where they go, with the activation behind GEMM1. */
#ifndef CMOE_KERNELS_OUTPUTS_CUH
#define CMOE_KERNELS_OUTPUTS_CUH

#include "backends/cuda/kernels/common/activation.cuh"
#include "backends/cuda/kernels/common/scale.cuh"
#include "backends/cuda/kernels/common/tile.cuh"

enum {
    BM = 128, /* rows of weights: outputs */
    BN = 64,  /* rows of x */
    OUT_STRIDE = BM + 4,
};

/* Bits of a type of the kernels' names. */
template <int D> struct type_of {
    static constexpr int BITS = D == CMOE_BF16 || D == CMOE_F16 ? 16 : (D == CMOE_E4M3 || D == CMOE_I8 ? 8 : 4);
    static constexpr bool HAS_ZERO = D == CMOE_I8 || D == CMOE_I4;
};

/* A block's places that do not change along k. */
struct places {
    const uint8_t *w[BM], *x[BN]; /* column 0; past the last row: some other row */
    float factor[BN], weight[BN]; /* of rows of x: the scale of all columns; the routing weight */
    int rows[BN], where[3];
};

/* Where an output of the block lies: row n of a half's matrix. */
struct output {
    int half, n;
};

/* The r-th of the block's rows of weights: 8 gate rows, then their up rows, or simply rows. */
DEV output output_of(const cmoe_gpu_tiles &s, int r)
{
    if (s.gated)
        return {r / 8 & 1, (int)blockIdx.x * (BM / 2) + r / 16 * 8 + r % 8};
    const int n = (int)blockIdx.x * BM + r, up = n >= s.g.split;
    return {up, n - (up ? s.g.split : 0)};
}

DEV bool inside(const cmoe_gpu_tiles &s, const output &o)
{
    return o.n + (o.half && !s.gated ? s.g.split : 0) < s.outputs;
}

/* What an output's sums are multiplied by and what is added. */
struct factors {
    float scale, bias;
};

DEV factors factors_of(const cmoe_gpu_tiles &s, const tile &t, const output &o)
{
    if (!inside(s, o))
        return {0.0f, 0.0f};
    const cmoe_gpu_half &h = s.g.experts[t.expert].half[s.g.half + o.half];
    const bool nv = s.g.w.scaling == CMOE_SCALE_NV;
    const float scale = nv ? *h.global : (s.w_groups ? 1.0f : b_scale(s.g, h, o.n, 0));
    return {scale, s.g.bias ? h.bias[(int64_t)o.n * h.step + h.first] : 0.0f};
}

/* One of the block's outputs, or pair of gate and up, for every row of x: from sums to where it goes. Z: the
 * type of z. */
template <int THREADS, int Z = CMOE_F32>
DEV void write_outputs(const cmoe_gpu_tiles &s, const tile &t, const places &at, const float *sums)
{
    const int columns = s.gated ? BM / 2 : BM, c = threadIdx.x % columns;
    const int first = s.gated ? c / 8 * 16 + c % 8 : c, second = s.gated ? first + 8 : first;
    const output o = output_of(s, first);
    const factors low = factors_of(s, t, o), high = factors_of(s, t, output_of(s, second));
    const int n = (int)blockIdx.x * columns + c;
    if (!inside(s, o))
        return;
    if (!s.h) {
#pragma unroll 4
        for (int m = threadIdx.x / BM; m < t.count; m += THREADS / BM) {
            const float v = sums[m * OUT_STRIDE + first] * at.factor[m] * low.scale;
            store(Z, s.g.out, (int64_t)at.rows[m] * s.g.out_stride + n, (s.g.weigh ? v * at.weight[m] : v) + low.bias);
        }
        return;
    }
#pragma unroll 2
    for (int m = threadIdx.x / columns; m < t.count; m += THREADS / columns) {
        const float x = at.factor[m], weight = s.g.weigh ? at.weight[m] : 1.0f, by = s.g.weigh ? 1.0f : at.weight[m];
        const float v = sums[m * OUT_STRIDE + first] * x * low.scale * weight + low.bias;
        const float u = s.gated ? sums[m * OUT_STRIDE + second] * x * high.scale * weight + high.bias : 0.0f;
        char *h = (char *)s.h + (int64_t)at.rows[m] * s.i * (s.h_dtype == CMOE_F32 ? 4 : 2);
        store(s.h_dtype, h, n, n < s.i_used ? activation(s.p, v, u) * by : 0.0f);
    }
}

DEV float x_factor(const cmoe_gpu_tiles &s, int row)
{
    const int64_t at = a_row(s.g, row);
    if (s.g.x.scaling == CMOE_SCALE_NV)
        return s.g.a_global ? s.g.a_global[at] : *s.g.a_fixed;
    return s.x_groups ? 1.0f : a_scale(s.g, at, 0);
}

DEV void find_places(const cmoe_gpu_tiles &s, const tile &t, places &at)
{
    const int r = threadIdx.x;
    if (r >= BM)
        return;
    const output o = output_of(s, r);
    const bool in = inside(s, o);
    const cmoe_gpu_half &h = s.g.experts[t.expert].half[s.g.half + (in ? o.half : 0)];
    at.w[r] = h.data + (int64_t)(in ? o.n : 0) * h.row_stride;
    if (r >= BN)
        return;
    const int row = s.g.call.rows[t.first + (r < t.count ? r : 0)];
    const bool weigh = s.g.weigh || (s.h && s.p.weight_on == CMOE_WEIGHT_ON_ACT);
    at.rows[r] = row;
    at.x[r] = s.g.a + a_row(s.g, row) * s.g.a_stride;
    at.factor[r] = r < t.count ? x_factor(s, row) : 0.0f;
    at.weight[r] = r < t.count && weigh ? row_weight(s.g.call, row) : 1.0f;
}

#endif
