/* SPDX-License-Identifier: MIT
 * Where the scales of a weight row lie and what their codes mean: any scheme, along the row. */
#ifndef CMOE_KERNELS_SCALE_CUH
#define CMOE_KERNELS_SCALE_CUH

#include "backends/cuda/kernels/common/numeric.cuh"

/* Scales of one weight row along k. */
struct scale_row {
    const void *at;
    const uint8_t *zero;
    float factor;
};

DEV int scale_type(const cmoe_format &w)
{
    return w.scaling == CMOE_SCALE_MX   ? CMOE_E8M0
           : w.scaling == CMOE_SCALE_NV ? CMOE_E4M3
           : w.scaling == CMOE_SCALE_GROUP && w.scale_dtype != CMOE_NONE ? w.scale_dtype
                                                                         : CMOE_F32;
}

/* log2 of the columns that share a scale; 30 where a row has one. */
DEV int span_shift(const cmoe_format &w)
{
    switch (w.scaling) {
    case CMOE_SCALE_BLOCK:
        return 7;
    case CMOE_SCALE_GROUP:
        return 31 - __clz(w.group);
    case CMOE_SCALE_MX:
        return 5;
    case CMOE_SCALE_NV:
        return 4;
    default:
        return 30;
    }
}

DEV scale_row scales_of(const cmoe_gpu_gemm &g, const cmoe_gpu_half &h, int n, int shift)
{
    const int64_t row = (int64_t)n * h.step + h.first, groups = (g.a_cols + (1ll << shift) - 1) >> shift;
    const int64_t grid = g.w.scaling == CMOE_SCALE_TENSOR  ? 0
                         : g.w.scaling == CMOE_SCALE_BLOCK ? row / 128
                                                           : row;
    const int type = scale_type(g.w), bytes = type == CMOE_F32 ? 4 : (type == CMOE_BF16 || type == CMOE_F16 ? 2 : 1);
    return {(const uint8_t *)h.scale + grid * groups * bytes, h.zero ? h.zero + row * groups : NULL,
            g.w.scaling == CMOE_SCALE_NV ? *h.global : 1.0f};
}

/* The code of scale `i`, for later decoding. */
DEV uint32_t raw_scale(int type, const void *at, int i)
{
    if (type == CMOE_F32)
        return ((const uint32_t *)at)[i];
    return type == CMOE_BF16 || type == CMOE_F16 ? ((const uint16_t *)at)[i] : ((const uint8_t *)at)[i];
}

DEV float scale_value(int type, uint32_t code)
{
    if (type == CMOE_F32)
        return bits_f32(code);
    return decode(type, code);
}

#endif
