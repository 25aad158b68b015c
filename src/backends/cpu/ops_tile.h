/* SPDX-License-Identifier: MIT
 * Products of bf16 pairs and int8 quads with panels that lie in that order, one table per extension:
 * what a file of isa/tile is compiled into.
 *
 * Rows are packed in steps of 64 bytes: 32 bf16 or 64 int8 of every row of a call lie together. A
 * result depends on its own row and column alone, as in ops.h. */
#ifndef CMOE_BACKENDS_CPU_OPS_TILE_H
#define CMOE_BACKENDS_CPU_OPS_TILE_H

#include "backends/cpu/ops.h"
#include "backends/cpu/panel.h"

enum { CMOE_CPU_STEP = 64 /* bytes of a row that lie together */ };

struct cmoe_cpu_tile_ops {
    int rows; /* most rows of a call */
    int unit; /* a call takes the time, the memory of a and the rows of c of a multiple of this */

    /* Around all calls of an item. */
    void (*begin)(void);
    void (*end)(void);

    /* a[ceil(bytes / 64)][m, a multiple of unit][64] from m rows of `bytes` each; the rest is 0. */
    void (*pack)(const void *const *rows, int m, int64_t bytes, void *a);

    /* c[m, a multiple of unit][ldc] = a . panel (+ c when more): 32 columns of k bf16. */
    void (*dot_bf16)(int m, int64_t k, const void *a, const void *panel, float *c, int64_t ldc,
                     bool more, struct cmoe_cpu_ahead ahead);

    /* As dot_i8 of ops_quant.h, from rows as they are. NULL: there is none. */
    void (*dot_i8)(const struct cmoe_cpu_panel *l, const void *panel, int m, const void *a,
                   const float *row_scale, float *c, int64_t ldc);

    /* Row r of m that pack would make from v[k] rounded to bf16; rows from m on stay as they are.
     * Reads v to a multiple of CMOE_CPU_CHUNK. */
    void (*pack_values)(const float *v, int64_t k, int r, int m, void *a);

    /* c[m][ldc] (+)= from[m][ld_from] * (row[m] * col[32]). */
    void (*scale)(int m, const float *from, int64_t ld_from, const float *row, const float *col,
                  float *c, int64_t ldc, bool more);

    /* out[ceil(k / 2)][32][2] bf16, nearest even, from w[k][32]. */
    void (*pair)(int64_t k, const float *w, uint16_t *out);
    /* The same of values that are bf16 already. */
    void (*join)(int64_t k, const float *w, uint16_t *out);

    /* The same of weights [first, first + k) of a panel of codes, as `decode` of ops_quant.h and one of both
     * give them; first is a multiple of a step's k's. false, or NULL: not done here. */
    bool (*decode)(const struct cmoe_cpu_panel *l, const void *panel, int64_t first, int64_t k,
                   uint16_t *out);

    /* What dot_bf16 gives of that, for at most `few` rows and without the detour; of at most `few_apart` the
     * second of every two pairs of k's goes to a sum of its own, which is added at the end. false, c as it was,
     * or NULL: not done here. */
    int few, few_apart;
    bool (*stream)(const struct cmoe_cpu_panel *l, const void *panel, int64_t first, int64_t k,
                   int m, const void *a, float *c, int64_t ldc, bool more);
};

extern const struct cmoe_cpu_tile_ops cmoe__cpu_tile_ops_avx512bf16;
extern const struct cmoe_cpu_tile_ops cmoe__cpu_tile_ops_amx;

/* The table of a level, NULL when it has none. */
const struct cmoe_cpu_tile_ops *cmoe__cpu_tile_ops(enum cmoe_isa isa);

#endif
