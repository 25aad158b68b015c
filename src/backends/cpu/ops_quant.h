/* SPDX-License-Identifier: MIT
 * The inner loops over packed panels of quantised weights, one table per instruction set: what
 * isa/ops_quant.c is compiled into.
 *
 * As in ops.h, a result depends on its own row and column alone. Decoded weights are code times
 * scale rounded once to f32, so that stream and decode + gemm_p32 give the same bits. */
#ifndef CMOE_BACKENDS_CPU_OPS_QUANT_H
#define CMOE_BACKENDS_CPU_OPS_QUANT_H

#include "backends/cpu/ops.h"
#include "backends/cpu/panel.h"
#include "backends/cpu/run.h"

/* Scales of a row of quantised activations, as f32. */
struct cmoe_cpu_x_scale {
    int64_t span; /* k's of a group; 0: the row has one scale */
    const float *of_group;
    float one, global; /* the row's scale; NV: its second factor, else 1 */
};

/* A row to be made integers, from where a group begins. */
struct cmoe_cpu_digit_row {
    struct cmoe_cpu_x_scale scale;
    const void *codes;
    bool *streams; /* becomes true where no integers stand for it */
};

struct cmoe_cpu_quant_ops {
    int dot_rows;    /* most rows of one call of dot_i8 */
    int quad_bytes;  /* of four consecutive k's of a row that pack_i8 made */
    int stream_rows; /* most rows of one call of stream */

    /* a[ceil(k/4)][m] quads from m rows of k int8; what lies past k meets codes that are 0. */
    void (*pack_i8)(const void *const *rows, int m, int64_t k, void *a);

    /* c[m][ldc] = (a . codes) * (scale of the column * scale of the row): 32 columns, exact sums.
     * One group without zero points, k at most CMOE_CPU_DOT_K. `a` holds k's [first, first + k) alone,
     * first a multiple of 4: before the last of all c has int32 sums, to which the next call adds. */
    void (*dot_i8)(const struct cmoe_cpu_panel *l, const void *panel, int64_t first, int64_t k,
                   int m, const void *a, const float *row_scale, float *c, int64_t ldc,
                   struct cmoe_cpu_ahead ahead);

    /* The same over 4-bit codes in groups, zero points or not: quads [ceil(k/8)*2][m] of 4 bytes, and
     * what a group's sums begin with for a zero point of 1 (none: what they begin with):
     * offsets[groups][m]. Sums are exact in a group; groups add up in f32, in order. */
    int dot4_rows; /* most rows of one call of dot_u4 */
    void (*pack_u4)(const struct cmoe_cpu_panel *l, const void *const *rows, int m, void *a,
                    int32_t *offsets);
    void (*dot_u4)(const struct cmoe_cpu_panel *l, const void *panel, int m, const void *a,
                   const int32_t *offsets, const float *row_scale, float *c, int64_t ldc);

    /* m rows as integers: records of a span [ceil(k / span)][m][digits][span], minus what codes count from
     * times their sums [..][m], and scales [..][m]. NULL: not here. */
    void (*pack_digits)(const struct cmoe_cpu_digits *d, cmoe_dtype dtype,
                        const struct cmoe_cpu_digit_row *rows, int m, int64_t k, void *words,
                        int32_t *offsets, float *scales);

    /* c[m][32] = rows that pack_digits made times a panel, for any number of rows. */
    void (*dot_digits)(const struct cmoe_cpu_digits *d, const struct cmoe_cpu_panel *l,
                       const void *panel, int m, const void *words, const int32_t *offsets,
                       const float *scales, float *c);

    /* k columns of a row of codes, from where a group begins, in chunks of 16 that are `stride`
     * floats apart. */
    void (*decode_x)(cmoe_dtype dtype, const struct cmoe_cpu_x_scale *scale, const void *codes,
                     int64_t k, float *a, int64_t stride);

    /* out[k][32]: weights [first, first + k) of the panel; first is a multiple of 16. */
    void (*decode)(const struct cmoe_cpu_panel *l, const void *panel, int64_t first, int64_t k,
                   float *out);

    /* What decode and gemm_p32 give, for few rows and without the detour: `a` as in pack_rows, c as
     * in gemm_p32. */
    void (*stream)(const struct cmoe_cpu_panel *l, const void *panel, int m, int64_t first,
                   int64_t k, const float *a, float *c, int64_t ldc, bool more);

    /* max |v|, NaN if any is NaN. */
    float (*amax)(const float *v, int64_t n);
    /* Codes of v / scale, i8, e4m3 or e2m1, nearest even, all finite; false: not done here. */
    bool (*quantize)(cmoe_dtype dtype, const float *v, int64_t n, float scale, void *codes);
};

enum { CMOE_CPU_DOT_K = 1 << 16 }; /* 255 * 128 * k still fits int32 */

extern const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_generic;
extern const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_avx2;
extern const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_avx512;
extern const struct cmoe_cpu_quant_ops cmoe__cpu_quant_ops_avx512vnni;

/* The table of a level, NULL when this build has none. */
const struct cmoe_cpu_quant_ops *cmoe__cpu_quant_ops(enum cmoe_isa isa);

#endif
