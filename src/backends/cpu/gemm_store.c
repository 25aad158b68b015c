/* SPDX-License-Identifier: MIT
 * What a GEMM does with its results, a panel at a time: gu or z as they are, or, in a row that covers
 * ACT, h. A panel of a gated first matrix has 16 gate columns and the 16 up columns that belong to them,
 * so that the activation needs nothing else. */
#include "backends/cpu/gemm_item.h"

#include "core/size.h"
#include <string.h>

/* What every result of some columns goes through. */
struct finish {
    bool weighted, biased;
    float bias[CMOE_CPU_PANEL];
};

/* Logical columns [to, to + n), n at most a panel. */
static struct finish finish_columns(const struct cmoe_cpu_item *it, int64_t to, int64_t n)
{
    const struct cmoe_exec *const x = &it->run->x;
    const bool first = it->g->matrix == 1;
    struct finish f = {.weighted = first && x->p->weight_on == CMOE_WEIGHT_ON_GEMM1,
                       .biased = (x->p->flags & (first ? CMOE_BIAS1 : CMOE_BIAS2)) != 0};
    for (int64_t j = 0; j < n && f.biased; j++)
        f.bias[j] = cmoe__weights_bias(x->w, it->g->matrix, it->expert, to + j);
    return f;
}

/* n results of one row: times the routing weight where it belongs here, plus bias. */
static void finish_row(const struct cmoe_cpu_item *it, const struct finish *f, int64_t row,
                       const float *c, int64_t n, float *out)
{
    if (!f->weighted && !f->biased) {
        memcpy(out, c, (size_t)n * sizeof *out);
        return;
    }
    const float weight = f->weighted ? cmoe__exec_weight(&it->run->x, row) : 1.0f;
    for (int64_t j = 0; j < n; j++) {
        const float v = f->weighted ? c[j] * weight : c[j];
        out[j] = f->biased ? v + f->bias[j] : v;
    }
}

/* Whether results need no routing weight before they are stored. */
static bool is_plain(const struct cmoe_cpu_item *it)
{
    const cmoe_problem *const p = it->run->x.p;
    return it->g->matrix == 2 ||
           (p->weight_on != CMOE_WEIGHT_ON_GEMM1 && p->weight_on != CMOE_WEIGHT_ON_ACT);
}

/* Whether gu or z is more than a cache keeps until it is read. */
static bool is_far(const struct cmoe_cpu_item *it)
{
    const struct cmoe_exec *const x = &it->run->x;
    const int64_t all = x->offsets[x->shape->local] * it->g->n_stride * (int64_t)sizeof *x->z;
    return all >= CMOE_CPU_FAR_BYTES;
}

bool cmoe__cpu_stores_tiles(const struct cmoe_cpu_item *it)
{
    return !it->g->fused && is_far(it);
}

/* n results of every row to logical columns [to, to + n) of gu or z. */
static void store_columns(const struct cmoe_cpu_item *it, const float *c, int64_t ldc, int64_t to,
                          int64_t n)
{
    const struct cmoe_exec *const x = &it->run->x;
    float *const out = (it->g->matrix == 1 ? x->gu : x->z) + to;
    const struct finish f = finish_columns(it, to, n);
    if (n == CMOE_CPU_PANEL && is_plain(it)) {
        float *rows[CMOE_CPU_TILE_ROWS];
        for (int r = 0; r < it->m; r++)
            rows[r] = out + it->rows[r] * it->g->n_stride;
        it->run->ops->store_panel(it->m, c, ldc, f.biased ? f.bias : NULL, is_far(it), rows);
        return;
    }
    for (int r = 0; r < it->m; r++)
        finish_row(it, &f, it->rows[r], c + r * ldc, n, out + it->rows[r] * it->g->n_stride);
}

/* Where column `at` of h of the item's row r goes; size: of a value. */
static void *h_at(const struct cmoe_cpu_item *it, int64_t size, int r, int64_t at)
{
    const struct cmoe_exec *const x = &it->run->x;
    const int64_t inter = x->shape->I;
    if (it->h) return it->h + r * inter + at;
    return (char *)x->h + (it->rows[r] * inter + at) * size;
}

/* Columns [at, at + n) of h from those of gate and up, `width` a row. */
static void store_activated(const struct cmoe_cpu_item *it, const float *gate, const float *up,
                            int64_t width, int64_t at, int64_t n)
{
    const struct cmoe_exec *const x = &it->run->x;
    const struct cmoe_cpu_ops *const ops = it->run->ops;
    const cmoe_dtype dtype = cmoe__shape_h_dtype(x->p);
    const int64_t size = dtype == CMOE_F32 ? 4 : 2;
    const int64_t used = cmoe__max64(0, cmoe__min64(n, x->shape->i_used - at));
    float h[CMOE_CPU_TILE_ROWS * CMOE_CPU_PANEL];
    ops->act(&it->run->act, it->m * width, gate, up, h);
    for (int r = 0; r < it->m; r++) {
        float *const v = h + r * width;
        if (x->p->weight_on == CMOE_WEIGHT_ON_ACT)
            ops->scale(n, cmoe__exec_weight(x, it->rows[r]), v);
        for (int64_t j = used; j < n; j++)
            v[j] = 0;
        ops->store_row(dtype, h_at(it, size, r, at), n, v);
    }
}

/* h of a whole panel of gate and up that lies at column `at`. */
static void activate_plain(const struct cmoe_cpu_item *it, const float *c, int64_t ldc, int64_t at)
{
    enum { HALF = CMOE_CPU_PANEL / 2 };
    const struct cmoe_exec *const x = &it->run->x;
    struct finish f = finish_columns(it, at, HALF);
    const cmoe_dtype dtype = cmoe__shape_h_dtype(x->p);
    const int64_t size = dtype == CMOE_F32 ? 4 : 2;
    void *h[CMOE_CPU_TILE_ROWS];
    for (int r = 0; r < it->m; r++)
        h[r] = h_at(it, size, r, at);
    if (f.biased) {
        const struct finish up = finish_columns(it, x->shape->I + at, HALF);
        memcpy(f.bias + HALF, up.bias, HALF * sizeof *f.bias);
    }
    it->run->ops->act_panel(&it->run->act, dtype, it->m, c, ldc, f.biased ? f.bias : NULL, h);
}

static void activate_panel(const struct cmoe_cpu_item *it, int64_t panel, const float *c,
                           int64_t ldc)
{
    const struct cmoe_shape *const s = it->run->x.shape;
    const int64_t width = s->gated ? CMOE_CPU_PANEL / 2 : CMOE_CPU_PANEL;
    const int64_t at = panel * width, n = cmoe__min64(width, s->I - at);
    if (s->gated && at + width <= s->i_used && is_plain(it)) {
        activate_plain(it, c, ldc, at);
        return;
    }
    const struct finish f = finish_columns(it, at, n);
    float gate[CMOE_CPU_TILE_ROWS * CMOE_CPU_PANEL];
    float up[CMOE_CPU_TILE_ROWS * CMOE_CPU_PANEL / 2];
    if (n < width) { /* what lies between rows is computed too, for nothing */
        memset(gate, 0, sizeof gate);
        memset(up, 0, sizeof up);
    }
    for (int r = 0; r < it->m; r++)
        finish_row(it, &f, it->rows[r], c + r * ldc, n, gate + r * width);
    if (s->gated) {
        const struct finish f_up = finish_columns(it, s->I + at, n);
        for (int r = 0; r < it->m; r++)
            finish_row(it, &f_up, it->rows[r], c + r * ldc + width, n, up + r * width);
    }
    store_activated(it, gate, s->gated ? up : NULL, width, at, n);
}

void cmoe__cpu_store_panel(const struct cmoe_cpu_item *it, int64_t j, const float *c, int64_t ldc)
{
    const cmoe_problem *const p = it->run->x.p;
    const bool paired = it->g->p32 && it->g->matrix == 1 && p->gate != CMOE_GATE_NONE;
    const int64_t col = it->col + j, panel = col / CMOE_CPU_PANEL, half = CMOE_CPU_PANEL / 2;
    if (it->g->fused) {
        activate_panel(it, panel, c, ldc);
    } else if (paired) {
        const int64_t n = cmoe__min64(half, p->inter - panel * half);
        store_columns(it, c, ldc, panel * half, n);
        store_columns(it, c + half, ldc, p->inter + panel * half, n);
    } else {
        const int64_t n = cmoe__min64(CMOE_CPU_PANEL, it->cols - j);
        store_columns(it, c, ldc, col, cmoe__min64(n, it->g->n - col));
    }
}

void cmoe__cpu_store_tile(const struct cmoe_cpu_item *it, int r, int m, int64_t j, const float *c,
                          int64_t ldc)
{
    struct cmoe_cpu_item part = *it;
    part.rows += r;
    part.m = m;
    cmoe__cpu_store_panel(&part, j, c, ldc);
}
