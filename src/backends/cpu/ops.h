/* SPDX-License-Identifier: MIT
 * The inner loops, one table per instruction set: what isa/ops.c is compiled into.
 *
 * Every result is a function of its own row and column alone: it does not depend on how many other
 * rows share the call, so rows may be cut into tiles and items in any way without changing bits. */
#ifndef CMOE_BACKENDS_CPU_OPS_H
#define CMOE_BACKENDS_CPU_OPS_H

#include "core/device.h"
#include <cmoe/problem.h>
#include <stdbool.h>

enum {
    CMOE_CPU_PANEL = 32, /* columns of a p32 panel */
    CMOE_CPU_CHUNK = 16, /* k's of a row that lie together in a packed block of rows */

    /* Fewer rows than these keep pace with memory: they fetch what they read soon, as far ahead as this in
     * bytes. More rows fetch the next panel. */
    CMOE_CPU_STREAM_ROWS = 6,
    CMOE_CPU_STREAM_AHEAD = 8192,
};

/* Activation with its defaults filled in. */
struct cmoe_cpu_act {
    cmoe_activation act;
    bool gated;
    float limit; /* infinity: none */
    float alpha, beta, lbeta;
};

/* What to ask the caches for beside a tile: `lines` of 64 bytes from `at` on for every chunk of k, or the
 * tile's own weights. */
struct cmoe_cpu_ahead {
    const void *at;
    int lines;
    bool soon; /* its own, CMOE_CPU_STREAM_AHEAD bytes before they are read */
};

struct cmoe_cpu_ops {
    int tile_rows;  /* most rows of one call of gemm_p32 */
    int widen_rows; /* rows from which on 16-bit panels are widened first */
    int dot_rows;   /* most rows, and most columns, of one call of gemm_rows */
    int dot_cols;

    /* a[ceil(k/16)][m][16] f32 from m rows of k elements each; columns past k are 0. */
    void (*pack_rows)(cmoe_dtype dtype, const void *const *rows, int m, int64_t k, float *a);

    /* c[m][ldc] = a . panel (+ c when more): 32 columns. k counts what `a` holds; order: one
     * accumulator per element, k ascending. */
    void (*gemm_p32)(cmoe_dtype w, int m, int64_t k, const float *a, const void *panel, float *c,
                     int64_t ldc, bool more, struct cmoe_cpu_ahead ahead);

    /* out[k][32] f32 of a panel of f16 or bf16. */
    void (*widen)(cmoe_dtype w, int64_t k, const void *panel, float *out);

    /* c[m][ldc] column j = a . w[j], n columns. Order: lane i of a vector takes k = i, i + lanes,
     * ...; then halves are added. */
    void (*gemm_rows)(cmoe_dtype w, int m, int n, int64_t k, const float *a, const void *const *b,
                      float *c, int64_t ldc);

    /* h[n] = f(gate, up); up is not read when ungated. */
    void (*act)(const struct cmoe_cpu_act *act, int64_t n, const float *gate, const float *up,
                float *h);

    /* The same of a panel's 16 gate and 16 up columns, c[m][ldc] plus bias[32] (NULL: none), to 16
     * values of `dtype` a row. */
    void (*act_panel)(const struct cmoe_cpu_act *act, cmoe_dtype dtype, int m, const float *c,
                      int64_t ldc, const float *bias, void *const *h);

    /* 32 columns of every row plus bias[32] (NULL: none) to where it belongs; far: past the caches. */
    void (*store_panel)(int m, const float *c, int64_t ldc, const float *bias, bool far,
                        float *const *to);
    /* What was stored far is seen by whoever sees what this thread stores next. */
    void (*finish_far)(void);

    void (*load_row)(cmoe_dtype dtype, const void *src, int64_t n, float *dst);
    void (*store_row)(cmoe_dtype dtype, void *dst, int64_t n, const float *src);
    /* sum[n] += r[i] * z[i][n], i from 0 to m - 1 in turn. */
    void (*axpy)(int64_t n, int m, const float *r, const float *const *z, float *sum);
    /* v[n] *= r */
    void (*scale)(int64_t n, float r, float *v);
};

extern const struct cmoe_cpu_ops cmoe__cpu_ops_generic;
extern const struct cmoe_cpu_ops cmoe__cpu_ops_avx2;
extern const struct cmoe_cpu_ops cmoe__cpu_ops_avx512;

/* The table of a level, NULL when this build has none. */
const struct cmoe_cpu_ops *cmoe__cpu_ops(enum cmoe_isa isa);

/* Whether a type is one of the three that the loops read and write. */
bool cmoe__cpu_is_float(int dtype);

#endif
