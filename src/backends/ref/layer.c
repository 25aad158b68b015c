/* SPDX-License-Identifier: MIT
 * The experts of cmoe_reference: both GEMMs, the activation and the requantisation in fp64, and
 * next to every value what a correct kernel's may differ by (docs/numerics.md, section 5). */
#include "backends/ref/layer.h"

#include "backends/ref/error.h"
#include "backends/ref/ref.h"
#include "core/numeric.h"
#include <float.h>
#include <math.h>
#include <string.h>

/* Errors come in two kinds. `d` bounds an error whatever its sign (sums add up). `q` is the root sum
 * of squares of independent roundings, each within its term: their sum stays within 8 q but for one
 * case in 10^13 (Hoeffding), so q adds up in squares and enters a result's bound as 8 q. */
struct dot {
    double value, magnitude; /* sum of products, of their magnitudes */
    double moved, q;         /* the operand's errors d and q through the weights */
    double lost;             /* what tensor cores lose of 8-bit products, and flushed subnormals */
};

/* Tensor cores may add 32 products of two e4m3 numbers to a sum after cutting all of them off 13 bits
 * below the largest one's leading bit; a kernel adds at most 128 so before it goes on in f32, or with
 * CMOE_FAST_SUMS all that share a scale. With one for every 32 products nothing is gained by it.
 * Returns how many it may be, 0: none. */
static int64_t narrow_sums(const cmoe_problem *p, cmoe_format a)
{
    const cmoe_format w = p->w;
    const bool groups = a.scaling == CMOE_SCALE_MX || w.scaling == CMOE_SCALE_MX;
    const bool rows = (a.scaling == CMOE_SCALE_TENSOR || a.scaling == CMOE_SCALE_TOKEN) &&
                      (w.scaling == CMOE_SCALE_TENSOR || w.scaling == CMOE_SCALE_CHANNEL);
    if (a.dtype != CMOE_E4M3 || w.dtype != CMOE_E4M3 || groups) return 0;
    return (p->flags & CMOE_FAST_SUMS) && rows ? INT64_MAX : 128;
}

static double narrow_error(const double *a, const double *w, int64_t n, int64_t span)
{
    enum { STEP = 32, STEPS = 4 };
    double error = 0;
    for (int64_t begin = 0, end; begin < n; begin = end) {
        end = span < n - begin ? begin + span : n;
        double sum = 0, largest = 0;
        for (int64_t i = begin; i < end; i++) {
            sum += a[i] * w[i];
            largest = fmax(largest, fabs(a[i] * w[i]));
            if ((i + 1) % STEP == 0) largest = fmax(largest, fabs(sum));
        }
        const int64_t steps = (end - begin + STEP - 1) / STEP;
        error += (double)(end - begin + (steps > STEPS ? steps : STEPS)) * 0x1p-13 * largest;
    }
    return error;
}

/* Instructions for pairs of bf16 take subnormals for 0 and make none: of operands, and of two sums a
 * product. */
static double flush_error(const double *a, const double *w, int64_t n)
{
    double error = 2 * (double)n * FLT_MIN;
    for (int64_t i = 0; i < n; i++)
        if (fabs(a[i]) < FLT_MIN || fabs(w[i]) < FLT_MIN) error += fabs(a[i] * w[i]);
    return error;
}

/* Kernels that multiply 4-bit codes by integers hold 16-bit values of x to 2^-22 of the largest of 32
 * k's, which is exact but for those that are far smaller. */
static double held_error(const double *a, const double *w, int64_t n, double exact)
{
    enum { SPAN = 32 };
    double error = 0;
    for (int64_t begin = 0; begin < n; begin += SPAN) {
        const int64_t end = begin + SPAN < n ? begin + SPAN : n;
        double largest = 0;
        for (int64_t i = begin; i < end; i++)
            largest = fmax(largest, fabs(a[i]));
        for (int64_t i = begin; i < end; i++)
            if (fabs(a[i]) < exact * largest)
                error += fmin(fabs(a[i]), 0x1p-22 * largest) * fabs(w[i]);
    }
    return error;
}

/* What a kernel may make of a product of two formats. */
struct product {
    double held;    /* held_error's `exact`; 0: exact in any case */
    double unit;    /* weight_unit */
    int64_t narrow; /* narrow_sums */
    bool flush;     /* subnormals may count as 0 */
    double code;    /* the largest, where sums of codes may be scaled instead of weights; else 0 */
};

/* Whether a sum of products with codes may overflow before it is scaled. */
static bool may_overflow(const double *a, int64_t n, double code)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++)
        sum += fabs(a[i]);
    return !(code * sum < 0x1p127);
}

static struct dot dot(const double *a, const double *d, const double *q, const double *w, int64_t n,
                      struct product kind)
{
    struct dot out = {.lost = kind.narrow ? narrow_error(a, w, n, kind.narrow) : 0};
    const double unit = kind.unit;
    if (kind.held > 0) out.lost += held_error(a, w, n, kind.held);
    if (kind.flush) out.lost += flush_error(a, w, n);
    if (kind.code > 0 && may_overflow(a, n, kind.code)) out.lost = INFINITY;
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

/* Values of x that are not smaller, beside the largest, keep all their bits. */
static double held_from(cmoe_format a, cmoe_format w)
{
    if (cmoe__format_is_quantized(a) || cmoe_dtype_bits((cmoe_dtype)w.dtype) != 4) return 0;
    return a.dtype == CMOE_BF16 ? 0x1p-13 : (a.dtype == CMOE_F16 ? 0x1p-10 : 0);
}

/* By what codes multiply bf16 before a scale of a channel, tensor or block does. */
static double code_from(cmoe_format a, cmoe_format w)
{
    if (a.dtype != CMOE_BF16 || a.scaling != CMOE_SCALE_NONE || !cmoe__format_is_quantized(w))
        return 0;
    if (w.scaling != CMOE_SCALE_CHANNEL && w.scaling != CMOE_SCALE_TENSOR &&
        w.scaling != CMOE_SCALE_BLOCK)
        return 0;
    return (double)cmoe__dtype_max((cmoe_dtype)w.dtype);
}

static struct product product_of(const cmoe_problem *p, cmoe_format a)
{
    const cmoe_format w = p->w;
    return (struct product){.unit = weight_unit(a, w),
                            .held = held_from(a, w),
                            .narrow = narrow_sums(p, a),
                            .code = code_from(a, w),
                            .flush = a.dtype == CMOE_BF16 && a.scaling == CMOE_SCALE_NONE};
}

/* f32 accumulation of n terms in any order, the operand's error, and what its columns share. */
static double dot_error(int64_t n, struct dot d, double common)
{
    return ((double)(n + 8) * U + common) * d.magnitude + d.moved + d.lost;
}

/* Relative error that all columns of a row of h (or of a weighted x) have in common. */
static double common_error(const struct cmoe_layer_error *l, int64_t row)
{
    const double r = fabs(cmoe__layer_weight(l, row));
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

/* x row of slot `row` as GEMM1 reads it, [0, h_used) of v, with its error d. */
static void read_input(const struct cmoe_layer_error *l, int64_t row, double *v, double *d)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const int64_t n = x->shape->h_used, at = cmoe__exec_x_row(x, row);
    const cmoe_format f = p->x;
    const bool tensor = f.scaling == CMOE_SCALE_TENSOR;
    const bool nv_fixed = f.scaling == CMOE_SCALE_NV && f.fixed;
    const float *fixed = tensor ? x->xs : (nv_fixed ? cmoe__exec_x_static_global(x) : NULL);
    const char *scale =
        tensor || !x->xs ? NULL
                         : (const char *)x->xs + (size_t)at * cmoe__row_scale_bytes(f, x->shape->H);
    cmoe__dequantize_row_f64(f, (const char *)x->xq + at * x->xq_stride, scale, fixed,
                             x->xg && !nv_fixed ? x->xg + at : NULL, n, v);
    memset(d, 0, (size_t)n * sizeof *d);
    if (p->weight_on != CMOE_WEIGHT_ON_INPUT || !x->shape->quant || l->rd[row] == 0) return;
    /* x' = in(r * x) with r off by rd: one step of `in` where the product is that near. */
    const char *given = (const char *)x->x + row / x->shape->slots * x->x_stride;
    const double r = cmoe__layer_weight(l, row);
    const float *smooth = f.scaling == CMOE_SCALE_SMOOTH
                              ? cmoe__weights_smooth(x->w, 1, cmoe__exec_local(x, x->ids[row]))
                              : NULL;
    for (int64_t i = 0; i < n; i++) {
        const double raw = (double)cmoe__load((cmoe_dtype)p->in, given, i);
        d[i] = cmoe__round_error((cmoe_dtype)p->in, r * raw,
                                 fabs(raw) * l->rd[row] + U * fabs(r * raw));
        v[i] = (double)cmoe__decode(
            (cmoe_dtype)p->in,
            cmoe__encode((cmoe_dtype)p->in, (float)r * (float)raw, CMOE_ROUND_NEAREST_EVEN));
        if (!smooth) continue;
        v[i] = (double)((float)v[i] * smooth[i]);
        d[i] = d[i] * fabs((double)smooth[i]) + U * fabs(v[i]);
    }
    if (cmoe__format_is_quantized(f)) cmoe__quantize_error(f, v, d, n, 0, 0, fixed, v, d);
}

/* GEMM1 of one expert into gv, gd: [row in expert, rows1]. */
static void first_gemm(struct cmoe_layer_error *l, int32_t e)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const int32_t begin = x->offsets[e], count = x->offsets[e + 1] - begin;
    const struct product kind = product_of(p, p->x);
    for (int32_t i = 0; i < count; i++)
        read_input(l, x->rows[begin + i], l->xv + i * s->H, l->xd + i * s->H);
    for (int64_t n = 0; n < s->rows1 && count > 0; n++) {
        struct cmoe_row r;
        cmoe__weights_row(x->w, 1, e, n, &r);
        cmoe__row_decode_f64(p->w, &r, s->h_used, l->w);
        const double bias = (double)cmoe__weights_bias(x->w, 1, e, n);
        for (int32_t i = 0; i < count; i++) {
            const int64_t row = x->rows[begin + i];
            const struct dot d =
                dot(l->xv + i * s->H, l->xd + i * s->H, NULL, l->w, s->h_used, kind);
            double value = d.value, q = d.q;
            double error = dot_error(s->h_used, d, common_error(l, row));
            if (p->weight_on == CMOE_WEIGHT_ON_GEMM1) {
                error = error * fabs(cmoe__layer_weight(l, row)) + fabs(value) * l->rd[row];
                value *= cmoe__layer_weight(l, row);
                q *= fabs(cmoe__layer_weight(l, row));
            }
            l->gv[i * s->rows1 + n] = value + bias;
            l->gd[i * s->rows1 + n] = error + 4 * U * (fabs(value) + fabs(bias)) + FLT_MIN;
            l->gq[i * s->rows1 + n] = q;
        }
    }
}

/* ACT of one row: [c] of hv, hd, hq from gv, gd, gq. */
static void act_row(struct cmoe_layer_error *l, int64_t row, const double *gv, const double *gd,
                    const double *gq)
{
    const cmoe_problem *p = l->x.p;
    const int64_t I = l->x.shape->I;
    const bool gated = l->x.shape->gated, weighted = p->weight_on == CMOE_WEIGHT_ON_ACT;
    const double r = weighted ? cmoe__layer_weight(l, row) : 1, rd = weighted ? l->rd[row] : 0;
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

static void first_act(struct cmoe_layer_error *l, int32_t e)
{
    const int64_t rows1 = l->x.shape->rows1;
    const int32_t begin = l->x.offsets[e], count = l->x.offsets[e + 1] - begin;
    for (int32_t i = 0; i < count; i++)
        act_row(l, l->x.rows[begin + i], l->gv + i * rows1, l->gd + i * rows1, l->gq + i * rows1);
}

/* Under one e4m3 scale a row h waits for the largest value of the row, and a kernel may keep it in
 * bf16 until then. */
static bool waits_in_bf16(const cmoe_problem *p)
{
    const bool row = p->mid.scaling == CMOE_SCALE_TENSOR || p->mid.scaling == CMOE_SCALE_TOKEN;
    return p->mid.dtype == CMOE_E4M3 && row && p->w.dtype == CMOE_E4M3 &&
           p->w.scaling != CMOE_SCALE_BLOCK && !(p->flags & CMOE_MID_ROUNDED);
}

/* h of a row as REQUANT takes it in: rounded to `in`, smoothed. */
static void prepare_mid(struct cmoe_layer_error *l, int32_t e, int64_t row)
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
        if (waits_in_bf16(p)) d[i] += cmoe__unit(CMOE_BF16) * (fabs(v[i]) + d[i]);
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
static void requantise(struct cmoe_layer_error *l)
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
static void add_slot(struct cmoe_layer_error *l, int64_t row, int64_t n, double z, double error)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    double r = 1, rd = 0;
    if (p->weight_on == CMOE_WEIGHT_ON_OUTPUT && !x->shape->batched) {
        r = cmoe__layer_weight(l, row);
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

static void second_gemm(struct cmoe_layer_error *l, int32_t e)
{
    const struct cmoe_exec *x = &l->x;
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const struct product kind = product_of(p, p->mid);
    for (int64_t n = 0; n < s->h_used; n++) {
        struct cmoe_row r;
        cmoe__weights_row(x->w, 2, e, n, &r);
        cmoe__row_decode_f64(p->w, &r, s->i_used, l->w);
        const double bias = (double)cmoe__weights_bias(x->w, 2, e, n);
        for (int32_t i = x->offsets[e]; i < x->offsets[e + 1]; i++) {
            const int64_t row = x->rows[i];
            const struct dot d = dot(l->hv + row * s->I, l->hd + row * s->I, l->hq + row * s->I,
                                     l->w, s->i_used, kind);
            const double error = dot_error(s->i_used, d, common_error(l, row)) + 8 * d.q +
                                 4 * U * (fabs(d.value) + fabs(bias)) + FLT_MIN;
            add_slot(l, row, n, d.value + bias, error);
        }
    }
}

void cmoe__layer_experts(struct cmoe_layer_error *l)
{
    const int32_t local = l->x.shape->local;
    for (int32_t e = 0; e < local; e++) {
        first_gemm(l, e);
        first_act(l, e);
    }
    requantise(l);
    for (int32_t e = 0; e < local; e++)
        second_gemm(l, e);
}
