/* SPDX-License-Identifier: MIT
 * cmoe_reference: a layer's exact result and the bound on a correct kernel's distance from it.
 *
 * Written from docs/numerics.md apart from the stage kernels: everything between the quantised
 * input and the output stays in fp64, and next to every value runs its error. Stages that the
 * specification makes bit-exact (ROUTE on logits, QUANT, SORT) are the reference's own. */
#include "backends/ref/error.h"
#include "backends/ref/ref.h"

#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include "stages/tensors.h"
#include <cmoe/reference.h>
#include <float.h>
#include <math.h>
#include <string.h>

#define U 0x1p-24 /* u(f32) */

struct layer {
    struct cmoe_shape shape;
    struct cmoe_exec x;
    double *hv, *hd, *hq; /* [rows, I]: intermediate, its error, its independent error */
    double *rd;           /* [rows]: error of the routing weight */
    double *w;            /* one decoded weight row */
    double *xv, *xd;      /* an expert's inputs [row, H] */
    double *gv, *gd, *gq; /* an expert's GEMM1 results [row, rows1], as for h */
    double *y, *bound;
    void *block; /* all of it */
};

static double weight_of(const struct layer *l, int64_t row)
{
    return (double)cmoe__exec_weight(&l->x, row);
}

/* ---- routing and input: the specification's own stages ---- */

/* How far another kernel's routing weight may be off: 8 units of f32, and with rx what an f32 dot
 * product may move the logits. The log of every score changes at most as fast as its logit. */
static void weight_errors(struct layer *l)
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
        l->rd[i] = relative * fabs(weight_of(l, i));
    }
}

/* x row of slot `row` in fp64 with its error, in the format GEMM1 reads. */
static void input_row(const struct layer *l, int64_t row, double *v, double *d)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const int64_t n = x->shape->h_used, at = cmoe__exec_x_row(x, row);
    const cmoe_format f = p->x;
    const bool tensor = f.scaling == CMOE_SCALE_TENSOR;
    const bool nv_fixed = f.scaling == CMOE_SCALE_NV && f.fixed;
    const float *fixed = tensor ? x->xs : (nv_fixed ? x->t->x_scale : NULL);
    const char *scale =
        tensor || !x->xs ? NULL
                         : (const char *)x->xs + (size_t)at * cmoe__row_scale_bytes(f, x->shape->H);
    cmoe__dequantize_row_f64(f, (const char *)x->xq + at * x->xq_stride, scale, fixed,
                             x->xg && !nv_fixed ? x->xg + at : NULL, n, v);
    memset(d, 0, (size_t)n * sizeof *d);
    if (p->weight_on != CMOE_WEIGHT_ON_INPUT || !x->shape->quant || l->rd[row] == 0) return;
    /* x' = in(r * x) with r off by rd: one step of `in` where the product is that near. */
    const char *given = (const char *)x->x + row / x->shape->slots * x->x_stride;
    const double r = weight_of(l, row);
    for (int64_t i = 0; i < n; i++) {
        const double raw = (double)cmoe__load((cmoe_dtype)p->in, given, i);
        d[i] = cmoe__round_error((cmoe_dtype)p->in, r * raw,
                                 fabs(raw) * l->rd[row] + U * fabs(r * raw));
        v[i] = (double)cmoe__decode(
            (cmoe_dtype)p->in,
            cmoe__encode((cmoe_dtype)p->in, (float)r * (float)raw, CMOE_ROUND_NEAREST_EVEN));
    }
    if (cmoe__format_is_quantized(f)) cmoe__quantize_error(f, v, d, n, 0, 0, fixed, v, d);
}

/* ---- the experts ---- */

/* Errors come in two kinds. `d` bounds an error whatever its sign (sums add up). `q` is the root sum
 * of squares of independent roundings, each within its term: their sum stays within 8 q but for one
 * case in 10^13 (Hoeffding), so q adds up in squares and enters a result's bound as 8 q. */
struct dot {
    double value, magnitude; /* sum of products, of their magnitudes */
    double moved, q;         /* the operand's errors d and q through the weights */
};

static struct dot dot(const double *a, const double *d, const double *q, const double *w, int64_t n,
                      double unit)
{
    struct dot out = {0};
    double squares = 0, moved_squares = 0;
    for (int64_t i = 0; i < n; i++) {
        const double product = a[i] * w[i], off = d[i] * w[i], loose = q ? q[i] * w[i] : 0;
        out.value += product;
        out.magnitude += fabs(product);
        out.moved += fabs(off);
        moved_squares += off * off;
        squares += unit * product * unit * product + loose * loose;
    }
    out.moved = fmin(out.moved, 8 * sqrt(moved_squares) + 64 * U * out.magnitude);
    out.q = sqrt(squares);
    return out;
}

/* Rounding unit of a decoded weight that a kernel may keep in the activation's type, else 0. */
static double weight_unit(cmoe_format a, cmoe_format w)
{
    const bool weight_only = !cmoe__format_is_quantized(a) && cmoe__format_is_quantized(w);
    return weight_only ? cmoe__unit((cmoe_dtype)a.dtype) : 0;
}

/* f32 accumulation of n terms in any order, the operand's error, and what its columns share. */
static double dot_error(int64_t n, struct dot d, double common)
{
    return ((double)(n + 8) * U + common) * d.magnitude + d.moved;
}

/* Relative error that all columns of a row of h (or of a weighted x) have in common. */
static double common_error(const struct layer *l, int64_t row)
{
    const double r = fabs(weight_of(l, row));
    const bool weighted = l->x.p->weight_on != CMOE_WEIGHT_ON_OUTPUT && !l->x.shape->batched;
    return weighted && r > 0 ? 2 * l->rd[row] / r : 0;
}

/* Largest move of the activation over the corners of a box around (g, u). */
static double activation_moves(const cmoe_problem *p, double g, double gd, double u, double ud)
{
    const double f = cmoe__ref_activation(p, g, u);
    double worst = 0;
    for (int corner = 0; corner < 4 && (gd != 0 || ud != 0); corner++) {
        const double at =
            cmoe__ref_activation(p, g + (corner & 1 ? gd : -gd), u + (corner & 2 ? ud : -ud));
        worst = fmax(worst, fabs(at - f));
    }
    return 1.25 * worst;
}

/* 16 units of f32 of the pieces that an activation is made of. */
static double activation_error(const cmoe_problem *p, double g, double u, double f)
{
    const bool cancels =
        p->act == CMOE_ACT_GELU || p->act == CMOE_ACT_GELU_TANH || p->act == CMOE_ACT_SWIGLU_OAI;
    const double pieces = fabs(g) * (p->gate == CMOE_GATE_NONE ? 1 : fabs(u) + 1);
    return 16 * U * (cancels ? fmax(pieces, fabs(f)) : fabs(f)) + FLT_MIN;
}

static bool too_big(double v)
{
    return !(fabs(v) < 0x1p120);
}

/* GEMM1 of one expert into gv, gd: [row in expert, rows1]. */
static void first_gemm(struct layer *l, int32_t e)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const int32_t begin = x->offsets[e], count = x->offsets[e + 1] - begin;
    const double unit = weight_unit(p->x, p->w);
    for (int32_t i = 0; i < count; i++)
        input_row(l, x->rows[begin + i], l->xv + i * s->H, l->xd + i * s->H);
    for (int64_t n = 0; n < s->rows1 && count > 0; n++) {
        struct cmoe_row r;
        cmoe__weights_row(x->w, 1, e, n, &r);
        cmoe__row_decode_f64(p->w, &r, s->h_used, l->w);
        const double bias = (double)cmoe__weights_bias(x->w, 1, e, n);
        for (int32_t i = 0; i < count; i++) {
            const int64_t row = x->rows[begin + i];
            const struct dot d =
                dot(l->xv + i * s->H, l->xd + i * s->H, NULL, l->w, s->h_used, unit);
            double value = d.value, q = d.q;
            double error = dot_error(s->h_used, d, common_error(l, row));
            if (p->weight_on == CMOE_WEIGHT_ON_GEMM1) {
                error = error * fabs(weight_of(l, row)) + fabs(value) * l->rd[row];
                value *= weight_of(l, row);
                q *= fabs(weight_of(l, row));
            }
            l->gv[i * s->rows1 + n] = value + bias;
            l->gd[i * s->rows1 + n] = error + 4 * U * (fabs(value) + fabs(bias)) + FLT_MIN;
            l->gq[i * s->rows1 + n] = q;
        }
    }
}

/* ACT of one row: [c] of hv, hd, hq from gv, gd, gq. */
static void act_row(struct layer *l, int64_t row, const double *gv, const double *gd,
                    const double *gq)
{
    const cmoe_problem *p = l->x.p;
    const int64_t I = l->x.shape->I;
    const bool gated = l->x.shape->gated, weighted = p->weight_on == CMOE_WEIGHT_ON_ACT;
    const double r = weighted ? weight_of(l, row) : 1, rd = weighted ? l->rd[row] : 0;
    double *hv = l->hv + row * I, *hd = l->hd + row * I, *hq = l->hq + row * I;
    for (int64_t c = 0; c < l->x.shape->i_used; c++) {
        const double g = gv[c], u = gated ? gv[I + c] : 0;
        const double f = cmoe__ref_activation(p, g, u);
        const double d =
            activation_moves(p, g, gd[c], u, gated ? gd[I + c] : 0) + activation_error(p, g, u, f);
        hv[c] = f * r;
        hd[c] = d * fabs(r) + fabs(f) * rd + 2 * U * fabs(f * r);
        hq[c] = activation_moves(p, g, gq[c], u, gated ? gq[I + c] : 0) * fabs(r);
        if (too_big(hv[c]) || too_big(g) || too_big(u)) hd[c] = INFINITY;
    }
}

static void first_act(struct layer *l, int32_t e)
{
    const int64_t rows1 = l->x.shape->rows1;
    const int32_t begin = l->x.offsets[e], count = l->x.offsets[e + 1] - begin;
    for (int32_t i = 0; i < count; i++)
        act_row(l, l->x.rows[begin + i], l->gv + i * rows1, l->gd + i * rows1, l->gq + i * rows1);
}

/* h of a row as REQUANT takes it in: rounded to `in`, smoothed. */
static void prepare_mid(struct layer *l, int32_t e, int64_t row)
{
    const cmoe_problem *p = l->x.p;
    const int64_t I = l->x.shape->I, used = l->x.shape->i_used;
    const cmoe_dtype in = (cmoe_dtype)p->in;
    const float *smooth =
        p->mid.scaling == CMOE_SCALE_SMOOTH ? cmoe__weights_smooth(l->x.w, 2, e) : NULL;
    double *v = l->hv + row * I, *d = l->hd + row * I, *q = l->hq + row * I;
    for (int64_t i = 0; i < used && cmoe__format_is_quantized(p->mid); i++) {
        d[i] += 8 * q[i];
        q[i] = 0;
        if (p->flags & CMOE_MID_ROUNDED) {
            d[i] = cmoe__round_error(in, v[i], d[i]);
            v[i] = (double)cmoe__decode(in, cmoe__encode(in, (float)v[i], CMOE_ROUND_NEAREST_EVEN));
        }
        if (smooth) {
            v[i] *= (double)smooth[i];
            d[i] = d[i] * fabs((double)smooth[i]) + U * fabs(v[i]);
        }
    }
}

/* An unquantised intermediate: one rounding, which an independent error may flip by a unit. */
static void round_mid(cmoe_dtype dtype, int64_t n, double *v, double *d, double *q)
{
    const double unit = 2 * cmoe__unit(dtype);
    for (int64_t c = 0; c < n; c++) {
        if (q[c] > 0) q[c] = hypot(q[c], unit * v[c]);
        d[c] = cmoe__round_error(dtype, v[c], d[c]);
        v[c] =
            (double)cmoe__decode(dtype, cmoe__encode(dtype, (float)v[c], CMOE_ROUND_NEAREST_EVEN));
    }
}

/* Requantise every row's h in place. */
static void requantise(struct layer *l)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_format f = x->p->mid;
    const struct cmoe_shape *s = x->shape;
    double amax = 0, most = 0;
    for (int32_t e = 0; e < s->local; e++)
        for (int32_t i = x->offsets[e]; i < x->offsets[e + 1]; i++) {
            const int64_t row = x->rows[i];
            prepare_mid(l, e, row);
            for (int64_t c = 0; c < s->I; c++) {
                const double v = fabs(l->hv[row * s->I + c]), d = l->hd[row * s->I + c];
                amax = isnan(v) || isnan(amax) ? NAN : fmax(amax, v);
                most = fmax(most, d);
            }
        }
    for (int32_t i = 0; i < x->offsets[s->local]; i++) {
        const int64_t at = (int64_t)x->rows[i] * s->I;
        double *v = l->hv + at, *d = l->hd + at;
        if (cmoe__format_is_quantized(f))
            cmoe__quantize_error(f, v, d, s->I, amax, most, f.fixed ? x->t->mid_scale : NULL, v, d);
        else
            round_mid((cmoe_dtype)f.dtype, s->i_used, v, d, l->hq + at);
    }
}

/* Add z of one slot, weighted, to its output row. */
static void add_slot(struct layer *l, int64_t row, int64_t n, double z, double error)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    double r = 1, rd = 0;
    if (p->weight_on == CMOE_WEIGHT_ON_OUTPUT && !x->shape->batched) {
        r = weight_of(l, row);
        rd = l->rd[row];
    }
    if (p->flags & CMOE_REDUCED) error += cmoe__unit((cmoe_dtype)p->y) * fabs(z);
    const bool own_row = (p->flags & CMOE_NO_REDUCE) || x->shape->batched;
    const int64_t at = (own_row ? row : row / x->shape->slots) * x->shape->H + n;
    l->y[at] += r * z;
    if (isnan(error) || isnan(z)) error = INFINITY;
    l->bound[at] +=
        fabs(r) * error + rd * (fabs(z) + error) + (double)(x->shape->slots + 2) * U * fabs(r * z);
}

static void second_gemm(struct layer *l, int32_t e)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const double unit = weight_unit(p->mid, p->w);
    for (int64_t n = 0; n < s->h_used; n++) {
        struct cmoe_row r;
        cmoe__weights_row(x->w, 2, e, n, &r);
        cmoe__row_decode_f64(p->w, &r, s->i_used, l->w);
        const double bias = (double)cmoe__weights_bias(x->w, 2, e, n);
        for (int32_t i = x->offsets[e]; i < x->offsets[e + 1]; i++) {
            const int64_t row = x->rows[i];
            const struct dot d = dot(l->hv + row * s->I, l->hd + row * s->I, l->hq + row * s->I,
                                     l->w, s->i_used, unit);
            const double error = dot_error(s->i_used, d, common_error(l, row)) + 8 * d.q +
                                 4 * U * (fabs(d.value) + fabs(bias)) + FLT_MIN;
            add_slot(l, row, n, d.value + bias, error);
        }
    }
}

/* accumulate * y, then the output's own rounding. */
static void finish_output(struct layer *l, int64_t y_rows, int64_t width)
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

static cmoe_status allocate(struct layer *l, cmoe_context *ctx)
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
static cmoe_status prepare(struct layer *l)
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
    struct layer l = {0};
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
        for (int32_t e = 0; e < s->local; e++) {
            first_gemm(&l, e);
            first_act(&l, e);
        }
        requantise(&l);
        for (int32_t e = 0; e < s->local; e++)
            second_gemm(&l, e);
        finish_output(&l, tokens, width);
        const size_t bytes = (size_t)(tokens * width) * sizeof(double);
        if (y) memcpy(y, l.y, bytes);
        if (bound) memcpy(bound, l.bound, bytes);
    }
    cmoe__free(ctx, l.block);
    return status;
}
