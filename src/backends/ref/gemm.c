/* SPDX-License-Identifier: MIT
 * GEMM1 and GEMM2: decode both operands to fp64 and multiply. The sum of one row runs over k in
 * order, whatever rows it shares a tile with, so results depend on nothing but the row. */
#include "backends/ref/ref.h"

#include "core/numeric.h"
#include "core/size.h"
#include <string.h>

size_t cmoe__ref_gemm_scratch(int64_t k)
{
    return (size_t)(CMOE_REF_CHUNK + 1) * (size_t)k * sizeof(double) + 64;
}

/* What differs between the two GEMMs. */
struct gemm {
    const struct cmoe_exec *x;
    int matrix;
    int64_t k, k_used;   /* inputs: stride, and those that count */
    int64_t n, n_stride; /* outputs computed, row stride of `out` */
    float *out;          /* rows in slot order */
    size_t scratch;      /* bytes a worker */
    int workers;
};

/* One activation row in fp64. */
static void decode_input(const struct gemm *g, int64_t row, double *v)
{
    const struct cmoe_exec *x = g->x;
    const bool first = g->matrix == 1;
    const cmoe_format f = first ? x->p->x : x->p->mid;
    const int64_t at = first ? cmoe__exec_x_row(x, row) : row;
    const int64_t stride = first ? x->xq_stride : (int64_t)cmoe__row_code_bytes(f, g->k);
    const char *codes = (const char *)(first ? x->xq : x->hq) + at * stride;
    const char *scales = first ? x->xs : x->hs;
    const float *globals = first ? x->xg : x->hg;
    const bool tensor = f.scaling == CMOE_SCALE_TENSOR;
    const bool nv_fixed = f.scaling == CMOE_SCALE_NV && f.fixed;
    const float *fixed = NULL;
    if (tensor)
        fixed = (const float *)(const void *)scales;
    else if (nv_fixed)
        fixed = first ? cmoe__exec_x_static_global(x) : x->t->mid_scale;
    if (scales && !tensor) scales += (size_t)at * cmoe__row_scale_bytes(f, g->k);
    cmoe__dequantize_row_f64(f, codes, scales, fixed, globals && !nv_fixed ? globals + at : NULL,
                             g->k_used, v);
}

/* acc[r] = sum_k w[k] * tile[k][r] for CMOE_REF_TILE rows. */
static void dot_tile(const double *w, const double *tile, int64_t k, double *acc)
{
    double sum[CMOE_REF_TILE] = {0};
    for (int64_t i = 0; i < k; i++)
        for (int r = 0; r < CMOE_REF_TILE; r++)
            sum[r] += w[i] * tile[i * CMOE_REF_TILE + r];
    memcpy(acc, sum, sizeof sum);
}

/* Output columns of `count` rows of one expert; tiles: decoded rows, [tile][k][CMOE_REF_TILE]. */
static void chunk_columns(const struct gemm *g, int expert, const int32_t *rows, int count,
                          const double *tiles, double *w)
{
    const struct cmoe_exec *x = g->x;
    const bool weighted = g->matrix == 1 && x->p->weight_on == CMOE_WEIGHT_ON_GEMM1;
    for (int64_t n = 0; n < g->n; n++) {
        struct cmoe_row row;
        cmoe__weights_row(x->w, g->matrix, expert, n, &row);
        cmoe__row_decode_f64(x->p->w, &row, g->k_used, w);
        const double bias = (double)cmoe__weights_bias(x->w, g->matrix, expert, n);
        for (int first = 0; first < count; first += CMOE_REF_TILE) {
            double acc[CMOE_REF_TILE];
            dot_tile(w, tiles + (int64_t)first * g->k_used, g->k_used, acc);
            for (int r = 0; r < CMOE_REF_TILE && first + r < count; r++) {
                const int64_t at = rows[first + r];
                const double scale = weighted ? (double)cmoe__exec_weight(x, at) : 1.0;
                g->out[at * g->n_stride + n] = (float)(acc[r] * scale + bias);
            }
        }
    }
}

static void one_expert(const struct gemm *g, int expert, double *scratch)
{
    const struct cmoe_exec *x = g->x;
    double *w = scratch, *tiles = scratch + g->k;
    const int32_t begin = x->offsets[expert], end = x->offsets[expert + 1];
    for (int32_t first = begin; first < end; first += CMOE_REF_CHUNK) {
        const int count = (int)cmoe__min64(CMOE_REF_CHUNK, end - first);
        for (int r = 0; r < CMOE_REF_CHUNK && r < cmoe__round_up(count, CMOE_REF_TILE); r++) {
            double *tile = tiles + (int64_t)(r / CMOE_REF_TILE * CMOE_REF_TILE) * g->k_used;
            if (r < count) decode_input(g, x->rows[first + r], w);
            for (int64_t i = 0; i < g->k_used; i++)
                tile[i * CMOE_REF_TILE + r % CMOE_REF_TILE] = r < count ? w[i] : 0;
        }
        chunk_columns(g, expert, x->rows + first, count, tiles, w);
    }
}

/* Worker i of g->workers: experts i, i + workers, ... with its own scratch. */
static void worker(void *arg, int i, int n)
{
    const struct gemm *g = arg;
    for (int e = i; e < g->x->shape->local; e += n)
        one_expert(g, e, (double *)(void *)((char *)g->x->scratch + (size_t)i * g->scratch));
}

static void run(struct gemm *g)
{
    g->scratch = cmoe__ref_gemm_scratch(g->k);
    cmoe__parallel(g->x->threads, g->x->n_threads, g->x->n_threads, worker, g);
}

cmoe_status cmoe__ref_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const struct cmoe_shape *s = x->shape;
    struct gemm g = {.x = x,
                     .matrix = 1,
                     .k = s->H,
                     .k_used = s->h_used,
                     .n = s->rows1,
                     .n_stride = s->rows1,
                     .out = x->gu};
    run(&g);
    return CMOE_OK;
}

cmoe_status cmoe__ref_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const struct cmoe_shape *s = x->shape;
    struct gemm g = {.x = x,
                     .matrix = 2,
                     .k = s->I,
                     .k_used = s->i_used,
                     .n = s->h_used,
                     .n_stride = s->H,
                     .out = x->z};
    run(&g);
    return CMOE_OK;
}
