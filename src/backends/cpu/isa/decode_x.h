/* SPDX-License-Identifier: MIT
 * Rows of codes times their scales to chunks of floats. */
#ifndef CMOE_BACKENDS_CPU_ISA_DECODE_X_H
#define CMOE_BACKENDS_CPU_ISA_DECODE_X_H

#include "backends/cpu/isa/codes.h"

CMOE_INLINE void decode_x_as(cmoe_dtype dtype, const struct cmoe_cpu_x_scale *s, const void *codes,
                             int64_t k, float *a, int64_t stride)
{
    const int bits = dtype == CMOE_I4 || dtype == CMOE_E2M1 ? 4 : 8;
    for (int64_t at = 0; at < k; at += CMOE_CPU_CHUNK, a += stride) {
        const uint8_t *from = (const uint8_t *)codes + at * bits / 8;
        const int64_t n = k - at;
        uint8_t tail[CMOE_CPU_CHUNK] = {0};
        if (n < CMOE_CPU_CHUNK) from = memcpy(tail, from, (size_t)(n * bits + 7) / 8);
        const vf scale = v_set(s->span ? s->of_group[at / s->span] : s->one);
#pragma GCC unroll 4
        for (int i = 0; i < CMOE_CPU_CHUNK; i += VEC)
            v_store(a + i, row_values(dtype, from + i * bits / 8) * scale * v_set(s->global));
    }
}

static void decode_x(cmoe_dtype dtype, const struct cmoe_cpu_x_scale *s, const void *codes,
                     int64_t k, float *a, int64_t stride)
{
    if (dtype == CMOE_E4M3)
        decode_x_as(CMOE_E4M3, s, codes, k, a, stride);
    else if (dtype == CMOE_E4M3FNUZ)
        decode_x_as(CMOE_E4M3FNUZ, s, codes, k, a, stride);
    else if (dtype == CMOE_E5M2)
        decode_x_as(CMOE_E5M2, s, codes, k, a, stride);
    else if (dtype == CMOE_I8)
        decode_x_as(CMOE_I8, s, codes, k, a, stride);
    else if (dtype == CMOE_E2M1)
        decode_x_as(CMOE_E2M1, s, codes, k, a, stride);
    else
        decode_x_as(CMOE_I4, s, codes, k, a, stride);
}

#endif
