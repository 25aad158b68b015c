/* SPDX-License-Identifier: MIT
 * cmoe_reference: a layer's exact result and the bound on a correct kernel's distance from it.
 *
 * Written from docs/numerics.md apart from the stage kernels: everything between the quantised
 * input and the output stays in fp64, and next to every value runs its error. Stages that the
 * specification makes bit-exact (ROUTE on logits, QUANT, SORT) are the reference's own. */
#include "backends/ref/error.h"
#include "backends/ref/layer.h"
#include "backends/ref/ref.h"

#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include "stages/tensors.h"
#include <cmoe/reference.h>
#include <math.h>
#include <string.h>

/* ---- before and after the experts ---- */

/* How far another kernel's routing weight may be off: 8 units of f32, and with rx what an f32 dot
 * product may move the logits. The log of every score changes at most as fast as its logit. */
static void weight_errors(struct cmoe_layer_error *l)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const int64_t rows = (int64_t)x->tokens * x->shape->slots;
    for (int64_t i = 0; i < rows; i++) {
        double relative = 0;
        if (p->first == CMOE_STAGE_ROUTE && !x->shape->route_all) relative = 16 * U;
        if (p->first == CMOE_STAGE_ROUTE && (p->flags & CMOE_ROUTE_FROM_X)) {
            const char *at = (const char *)x->x + i / x->shape->slots * x->x_stride;
            double most = 0;
            for (int32_t e = 0; e < p->experts; e++) {
                double sum = 0;
                for (int64_t h = 0; h < x->shape->h_used; h++)
                    sum += fabs((double)cmoe__load((cmoe_dtype)p->in, at, h) *
                                (double)x->t->router_w[(int64_t)e * p->hidden + h]);
                most = fmax(most, sum);
            }
            relative += 4 * (double)(x->shape->h_used + 8) * U * most;
        }
        l->rd[i] = relative * fabs(cmoe__layer_weight(l, i));
    }
}

/* accumulate * y, then the output's own rounding. */
static void finish_output(struct cmoe_layer_error *l, int64_t y_rows, int64_t width)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const cmoe_dtype dtype = (cmoe_dtype)p->y;
    const double largest = dtype == CMOE_F16 ? 65504 : 0x1p127;
    const double tiny = dtype == CMOE_F16 ? 0x1p-24 : 0x1p-126;
    for (int64_t i = 0; i < y_rows * width; i++) {
        if (p->accumulate != 0) {
            const char *row = (const char *)x->y + i / width * x->y_stride;
            const double before = (double)p->accumulate * (double)cmoe__load(dtype, row, i % width);
            l->y[i] += before;
            l->bound[i] += 4 * U * fabs(before);
        }
        l->bound[i] += (cmoe__unit(dtype) + 2 * U) * (fabs(l->y[i]) + l->bound[i]) + tiny;
        if (!(fabs(l->y[i]) + l->bound[i] < largest)) l->bound[i] = INFINITY;
    }
}

/* ---- storage and driver ---- */

static size_t take(size_t *total, size_t bytes)
{
    const size_t at = *total;
    *total = (size_t)cmoe__round_up((int64_t)(at + bytes), 64);
    return at;
}

static cmoe_status allocate(struct cmoe_layer_error *l, cmoe_context *ctx)
{
    struct cmoe_exec *x = &l->x;
    const struct cmoe_shape *s = x->shape;
    const cmoe_problem *p = x->p;
    const size_t rows = (size_t)cmoe__shape_rows(p, s, x->tokens);
    const size_t wide = (size_t)cmoe__max64(s->H, s->I);
    const size_t x_rows = s->x_slots ? rows : (size_t)x->tokens;
    const size_t outputs = p->flags & CMOE_NO_REDUCE || s->batched ? rows : (size_t)x->tokens;
    const size_t ids = (size_t)s->ids, k = (size_t)p->topk;
    size_t total = 0;
    const size_t at[] = {
        take(&total, rows * (size_t)s->I * 8),
        take(&total, rows * (size_t)s->I * 8),
        take(&total, rows * 8),
        take(&total, wide * 8),
        take(&total, rows * (size_t)s->H * 8),
        take(&total, rows * (size_t)s->H * 8),
        take(&total, rows * (size_t)s->rows1 * 8),
        take(&total, rows * (size_t)s->rows1 * 8),
        take(&total, rows * (size_t)s->rows1 * 8),
        take(&total, rows * (size_t)s->I * 8),
        take(&total, outputs * (size_t)s->H * 8),
        take(&total, outputs * (size_t)s->H * 8),
        take(&total, rows * 4),
        take(&total, rows * 4),
        take(&total, x_rows * cmoe__row_code_bytes(p->x, s->H)),
        take(&total, x_rows * cmoe__row_scale_bytes(p->x, s->H) + 4),
        take(&total, x_rows * 4),
        take(&total, rows * 4),
        take(&total, ((size_t)s->local + 1) * 4),
        take(&total, (ids + 1) * 4 + (ids * 6 + k * 3 + 16) * 8 + (size_t)s->H * 4),
    };
    l->block = cmoe__calloc(ctx, total, 64);
    if (!l->block)
        return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for a reference of %zu bytes", total);
    char *b = l->block;
    double **doubles[] = {&l->hv, &l->hd, &l->rd, &l->w,  &l->xv, &l->xd,
                          &l->gv, &l->gd, &l->gq, &l->hq, &l->y,  &l->bound};
    enum { DOUBLES = sizeof doubles / sizeof *doubles };
    for (int i = 0; i < DOUBLES; i++)
        *doubles[i] = (double *)(void *)(b + at[i]);
    x->ids = (int32_t *)(void *)(b + at[12]);
    x->weights = (float *)(void *)(b + at[13]);
    x->xq = b + at[14];
    x->xs = b + at[15];
    x->xg = p->x.scaling == CMOE_SCALE_NV ? (float *)(void *)(b + at[16]) : NULL;
    x->rows = (int32_t *)(void *)(b + at[17]);
    x->offsets = (int32_t *)(void *)(b + at[18]);
    x->scratch = b + at[19];
    return CMOE_OK;
}

/* Ids, weights, x and the sort, by the specification's stages. */
static cmoe_status prepare(struct cmoe_layer_error *l)
{
    struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const cmoe_tensors *t = x->t;
    const int64_t n = x->shape->batched ? 0 : (int64_t)x->tokens * x->shape->slots;
    if (p->first == CMOE_STAGE_ROUTE) CMOE_TRY(cmoe__ref_route(NULL, x));
    for (int64_t i = 0; p->first > CMOE_STAGE_ROUTE && i < n; i++) {
        if (t->topk_ids64)
            x->ids[i] = t->topk_ids64[i] >= 0 && t->topk_ids64[i] <= INT32_MAX
                            ? (int32_t)t->topk_ids64[i]
                            : -1;
        else
            x->ids[i] = t->topk_ids[i];
        x->weights[i] = t->topk_weights ? t->topk_weights[i] : 1;
    }
    if (x->shape->quant) {
        if (p->x.fixed && p->x.scaling == CMOE_SCALE_TENSOR) x->xs = (void *)(uintptr_t)t->x_scale;
        x->xq_stride = (int64_t)cmoe__row_code_bytes(p->x, p->hidden);
        CMOE_TRY(cmoe__ref_quant(NULL, x));
    } else {
        x->xq = (void *)(uintptr_t)t->x;
        x->xq_stride = x->x_stride;
        x->xs = (void *)(uintptr_t)t->x_scale;
        x->xg = (float *)(uintptr_t)t->x_global;
    }
    CMOE_TRY(cmoe__ref_sort(NULL, x));
    if (!x->shape->batched) weight_errors(l);
    return CMOE_OK;
}

cmoe_status cmoe_reference(cmoe_context *ctx, const cmoe_problem *p, const cmoe_weights *w,
                           const cmoe_tensors *t, double *y, double *bound)
{
    if (!ctx || !p || !w || !t)
        return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_reference: %s is NULL",
                         !ctx ? "ctx" : (!p ? "p" : (!w ? "w" : "t")));
    CMOE_TRY(cmoe_problem_check(p));
    if (p->last != CMOE_STAGE_COMBINE || p->first > CMOE_STAGE_SORT)
        return CMOE_FAIL(
            CMOE_ERR_UNSUPPORTED,
            "cmoe_reference: the problem must run from ROUTE, QUANT or SORT to COMBINE");
    struct cmoe_layer_error l = {0};
    cmoe__shape(p, &l.shape);
    CMOE_TRY(cmoe__weights_fit(p, w));
    CMOE_TRY(cmoe__tensors_check(p, &l.shape, t, w, true));
    int64_t tokens = t->n_tokens;
    if (t->n_tokens_dev && !l.shape.batched)
        tokens = cmoe__max64(0, cmoe__min64(tokens, *t->n_tokens_dev));
    if (l.shape.batched && tokens > 0) tokens = cmoe__shape_rows(p, &l.shape, 0);
    l.x = (struct cmoe_exec){.p = p,
                             .shape = &l.shape,
                             .t = t,
                             .w = w,
                             .tokens = (int32_t)tokens,
                             .x = t->x,
                             .x_stride = cmoe__tensors_x_stride(p, &l.shape, t),
                             .y = t->y,
                             .y_stride = cmoe__tensors_y_stride(p, &l.shape, t)};
    if (tokens == 0) return CMOE_OK;
    CMOE_TRY(allocate(&l, ctx));
    const cmoe_status status = prepare(&l);
    if (status == CMOE_OK) {
        const struct cmoe_shape *s = l.x.shape;
        const int64_t width = p->flags & CMOE_NO_REDUCE ? s->H * s->slots : s->H;
        cmoe__layer_experts(&l);
        finish_output(&l, tokens, width);
        const size_t bytes = (size_t)(tokens * width) * sizeof(double);
        if (y) memcpy(y, l.y, bytes);
        if (bound) memcpy(bound, l.bound, bytes);
    }
    cmoe__free(ctx, l.block);
    return status;
}
