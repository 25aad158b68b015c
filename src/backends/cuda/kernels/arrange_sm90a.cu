/* SPDX-License-Identifier: MIT
 * Rows of x as the GEMMs of decoded weights (gemm_decode_sm90a.cu) multiply them: bf16 with the scales that
 * change along k, or 8-bit integers, in an order in which a lane's codes of weights follow one another, and
 * zeros up to a whole stage of 128 columns. */
#include "backends/cuda/kernels/common/depend.cuh"
#include "backends/cuda/kernels/common/tile.cuh"
#include "backends/cuda/params_decoded.h"

enum { STAGE = 128 };

/* The row that a block arranges; false: none. */
DEV bool find_row(const cmoe_gpu_tiles &s, int64_t *at)
{
    const cmoe_gpu_call &c = s.g.call;
    const int b = (int)blockIdx.x;
    *at = b;
    if (!s.g.a_by_row)
        return b < token_count(c);
    if (b >= c.offsets[c.local])
        return false;
    *at = c.rows[b];
    return true;
}

/* The scale of columns 16 i .. + 15 of a row, of the kinds that go into operands. */
DEV float scale_at(const cmoe_gpu_tiles &s, const uint8_t *scales, int i)
{
    if (s.g.x.scaling == CMOE_SCALE_MX)
        return decode(CMOE_E8M0, scales[i / 2]);
    return s.g.x.scaling == CMOE_SCALE_NV ? decode(CMOE_E4M3, scales[i]) : 1.0f;
}

/* Columns k and k + 1, k even, as a pair of bf16. */
DEV uint32_t pair_at(const cmoe_gpu_tiles &s, const uint8_t *row, const uint8_t *scales, int k)
{
    if (s.g.x.dtype == CMOE_BF16 && s.x_vectors && k + 1 < s.g.k)
        return *(const uint32_t *)(row + k * 2ll);
    float v[2] = {0.0f, 0.0f};
    if (k < s.g.k)
        v[0] = load(s.g.x.dtype, row, k);
    if (k + 1 < s.g.k)
        v[1] = load(s.g.x.dtype, row, k + 1);
    const float scale = k < s.g.k ? scale_at(s, scales, k / 16) : 0.0f;
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(v[1] * scale), "f"(v[0] * scale));
    return pair;
}

/* Four bytes from column k on. */
DEV uint32_t bytes_at(const cmoe_gpu_tiles &s, const uint8_t *row, int k)
{
    if (s.x_vectors && k + 4 <= s.g.k)
        return *(const uint32_t *)(row + k);
    uint32_t word = 0;
    for (int i = 0; i < 4; i++)
        if (k + i < s.g.k)
            word |= (uint32_t)row[k + i] << (8 * i);
    return word;
}

extern "C" __global__ void __launch_bounds__(256)
    cmoe_arrange(const __grid_constant__ cmoe_gpu_decoded d)
{
    const cmoe_gpu_tiles &s = d.t;
    int64_t at;
    depend();
    if (!find_row(s, &at))
        return;
    const uint8_t *row = s.g.a + at * s.g.a_stride, *scales = s.g.a_scale + at * s.g.a_scale_stride;
    uint4 *out = (uint4 *)(d.arranged + at * d.arranged_stride);
    for (int i = threadIdx.x; i < d.arranged_stride / 16; i += (int)blockDim.x) {
        uint32_t word[4];
#pragma unroll
        for (int t = 0; t < 4; t++) /* of the lane that is t-th of its four */
            word[t] = s.g.x.dtype == CMOE_I8 ? bytes_at(s, row, i / 2 * 32 + 8 * t + i % 2 * 4)
                                             : pair_at(s, row, scales, i / 16 * STAGE + 32 * t + i % 16 * 2);
        out[i] = make_uint4(word[0], word[1], word[2], word[3]);
    }
}
