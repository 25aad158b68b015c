/* SPDX-License-Identifier: MIT
 * What follows a block's sums: those of the warps that shared a tile in the order of their steps, then
 * biases, weights and the activation, or what y had before. */
#ifndef CMOE_KERNELS_GEMV_FINISH_CUH
#define CMOE_KERNELS_GEMV_FINISH_CUH

#include "backends/cuda/kernels/common/activation.cuh"
#include "backends/cuda/kernels/common/gemv.cuh"

/* The sum of a tile's row over the warps; those that have no steps of it left 0. */
DEV float row_sum(const cmoe_gpu_gemv &s, const work &k, int count, int tile, int row)
{
    const float *part = k.part(s) + (tile * ROWS + row) * count;
    float sum = 0;
#pragma unroll 4
    for (int i = 0; i < count; i++)
        sum += part[i];
    return sum;
}

DEV float bias_of(const cmoe_gpu_gemv &s, int expert, int half, int n)
{
    if (s.strided) {
        const cmoe_gpu_rows &h = s.half[half % 2];
        return *(const float *)((const char *)h.bias + expert * h.bias_stride + ((int64_t)n * h.step + h.first) * 4);
    }
    const cmoe_gpu_half &h = s.g.experts[expert].half[half];
    return h.bias[(int64_t)n * h.step + h.first];
}

/* One element of h. */
DEV void finish_h(const cmoe_gpu_gemv &s, int expert, float weight, int slot, int n, float gate, float up)
{
    const bool on_act = s.p.weight_on == CMOE_WEIGHT_ON_ACT;
    if (s.g.weigh) {
        gate *= weight;
        up *= weight;
    }
    if (s.g.bias && n < s.used) {
        gate += bias_of(s, expert, 0, n);
        up += s.gated ? bias_of(s, expert, 1, n) : 0.0f;
    }
    const float v = activation(s.p, gate, up) * (on_act ? weight : 1.0f);
    store(s.out_dtype, (char *)s.out + slot * s.out_stride, n, n < s.used ? v : 0.0f);
}

/* One element of y. */
DEV void finish_y(const cmoe_gpu_gemv &s, const slots_of &known, int token, int n, float sum)
{
    const int slots = s.g.call.slots;
    char *y = (char *)s.out + token * s.out_stride;
    for (int slot = token * slots; s.g.bias && slot < (token + 1) * slots && n < s.used; slot++)
        if (known.experts[slot] >= 0)
            sum += bias_of(s, known.experts[slot], 2, n) * (s.weigh ? known.weights[slot] : 1.0f);
    sum = n < s.used ? sum : 0.0f;
    if (s.accumulate != 0.0f)
        sum += s.accumulate * load(s.out_dtype, y, n);
    store(s.out_dtype, y, n, sum);
}

/* All results of the block. */
template <bool FIRST, bool NV> DEV void finish(const cmoe_gpu_gemv &s, const work &k, const slots_of &known)
{
    const int count = parts(k);
    const int units = FIRST && s.gated ? ROWS / 2 : ROWS;
    for (int i = threadIdx.x; i < k.tiles * units; i += THREADS) {
        const int tile = i / units, unit = i - tile * units, at = k.first_tile + tile, row = at / s.strips;
        const int n = (at - row * s.strips) * units + unit;
        if (n >= s.columns || (FIRST && known.experts[row] < 0))
            continue;
        float sum = k.all_steps > 0 ? row_sum(s, k, count, tile, unit) : 0.0f;
        if (FIRST) {
            float up = s.gated ? row_sum(s, k, count, tile, units + unit) : 0.0f;
            if (NV) {
                sum *= known.global[0][row];
                up *= known.global[1][row];
            }
            finish_h(s, known.experts[row], known.weights[row], row, n, sum, up);
        } else
            finish_y(s, known, row, n, sum);
    }
}

#endif
