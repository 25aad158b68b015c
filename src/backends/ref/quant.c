/* SPDX-License-Identifier: MIT
 * QUANT and REQUANT: rows of values to codes and scales. */
#include "backends/ref/ref.h"

#include "core/numeric.h"
#include <math.h>

/* max |v| of a row folded into a running one; NaN stays. */
static float fold(float amax, const float *v, int64_t n)
{
    const float row = cmoe__amax(v, n);
    return isnan(amax) || isnan(row) ? NAN : (row > amax ? row : amax);
}

/* One x row as QUANT sees it: weighted and rounded to `in`, or multiplied by the smooth vector. */
static void x_row(const struct cmoe_exec *x, int64_t row, int64_t token, int32_t expert, float *v)
{
    const cmoe_problem *p = x->p;
    const int64_t n = x->shape->h_used;
    const cmoe_dtype in = (cmoe_dtype)p->in;
    cmoe__load_row(in, (const char *)x->x + token * x->x_stride, n, v);
    for (int64_t i = n; i < x->shape->H; i++)
        v[i] = 0;
    if (p->weight_on == CMOE_WEIGHT_ON_INPUT) {
        const float r = cmoe__exec_weight(x, row);
        for (int64_t i = 0; i < n; i++)
            v[i] = cmoe__decode(in, cmoe__encode(in, r * v[i], CMOE_ROUND_NEAREST_EVEN));
    }
    const float *smooth =
        p->x.scaling == CMOE_SCALE_SMOOTH ? cmoe__weights_smooth(x->w, 1, expert) : NULL;
    for (int64_t i = 0; smooth && i < n; i++)
        v[i] *= smooth[i];
}

/* Visit every x row that counts: (row of xq, token it comes from, expert or -1). */
typedef void (*visit)(const struct cmoe_exec *x, int64_t row, int64_t token, int32_t expert,
                      void *arg);

static void for_x_rows(const struct cmoe_exec *x, visit f, void *arg)
{
    const struct cmoe_shape *s = x->shape;
    const bool smooth = x->p->x.scaling == CMOE_SCALE_SMOOTH;
    if (s->batched) {
        for (int32_t e = 0; e < s->local; e++)
            for (int32_t r = 0; r < x->t->expert_offsets[e] && r < x->p->capacity; r++) {
                const int64_t row = (int64_t)e * x->p->capacity + r;
                f(x, row, row, e, arg);
            }
        return;
    }
    for (int64_t t = 0; t < x->tokens; t++) {
        if (!s->x_slots) {
            f(x, t, t, -1, arg);
            continue;
        }
        for (int32_t i = 0; i < s->slots; i++) {
            const int64_t row = t * s->slots + i;
            const int32_t e = cmoe__exec_local(x, x->ids[row]);
            /* A slot of another rank's expert counts in a scale of all rows; it has no smoothing. */
            if (e >= 0 || (!smooth && cmoe__exec_slot_counts(x, row))) f(x, row, t, e, arg);
        }
    }
}

static void amax_row(const struct cmoe_exec *x, int64_t row, int64_t token, int32_t expert,
                     void *arg)
{
    float *amax = arg, *v = x->scratch;
    if (!x->shape->batched && !cmoe__exec_token_counts(x, token)) return;
    x_row(x, row, token, expert, v);
    *amax = fold(*amax, v, x->shape->h_used);
}

static void quantize_x_row(const struct cmoe_exec *x, int64_t row, int64_t token, int32_t expert,
                           void *arg)
{
    (void)arg;
    const cmoe_format f = x->p->x;
    const int64_t H = x->shape->H;
    float *v = x->scratch;
    x_row(x, row, token, expert, v);
    void *codes = (char *)x->xq + row * x->xq_stride;
    if (!cmoe__format_is_quantized(f)) {
        cmoe__store_row((cmoe_dtype)f.dtype, codes, H, v);
        return;
    }
    const bool tensor = f.scaling == CMOE_SCALE_TENSOR;
    const bool nv_fixed = f.scaling == CMOE_SCALE_NV && f.fixed;
    const float *fixed = tensor ? x->xs : (nv_fixed ? x->t->x_scale : NULL);
    char *scale = tensor ? NULL : (char *)x->xs + (size_t)row * cmoe__row_scale_bytes(f, H);
    cmoe__quantize_row(f, v, H, fixed, codes, scale, x->xg ? x->xg + row : NULL);
}

cmoe_status cmoe__ref_quant(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const cmoe_format f = x->p->x;
    if (f.scaling == CMOE_SCALE_TENSOR && !f.fixed) {
        float amax = 0;
        for_x_rows(x, amax_row, &amax);
        *(float *)x->xs = cmoe__scale_f32((cmoe_dtype)f.dtype, amax);
    }
    for_x_rows(x, quantize_x_row, NULL);
    return CMOE_OK;
}

/* h of one row as f32, rounded and smoothed as the problem says. */
static void h_row(const struct cmoe_exec *x, int64_t row, int32_t expert, float *v)
{
    const cmoe_problem *p = x->p;
    const int64_t n = x->shape->i_used;
    const cmoe_dtype in = (cmoe_dtype)p->in;
    const float *h = (const float *)x->h + row * x->shape->I;
    const float *smooth =
        p->mid.scaling == CMOE_SCALE_SMOOTH ? cmoe__weights_smooth(x->w, 2, expert) : NULL;
    for (int64_t i = 0; i < x->shape->I; i++) {
        v[i] = i < n ? h[i] : 0;
        if (p->flags & CMOE_MID_ROUNDED)
            v[i] = cmoe__decode(in, cmoe__encode(in, v[i], CMOE_ROUND_NEAREST_EVEN));
        if (smooth && i < n) v[i] *= smooth[i];
    }
}

cmoe_status cmoe__ref_requant(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const cmoe_format f = x->p->mid;
    const struct cmoe_shape *s = x->shape;
    const size_t code_bytes = cmoe__row_code_bytes(f, s->I);
    const size_t scale_bytes = cmoe__row_scale_bytes(f, s->I);
    const bool tensor = f.scaling == CMOE_SCALE_TENSOR;
    float *v = x->scratch, amax = 0;
    const bool dynamic_tensor = tensor && !f.fixed;
    for (int pass = dynamic_tensor ? 0 : 1; pass < 2; pass++) {
        for (int32_t e = 0; e < s->local; e++)
            for (int32_t i = x->offsets[e]; i < x->offsets[e + 1]; i++) {
                const int64_t row = x->rows[i];
                h_row(x, row, e, v);
                if (pass == 0) {
                    amax = fold(amax, v, s->I);
                    continue;
                }
                const float *fixed = tensor || (f.scaling == CMOE_SCALE_NV && f.fixed)
                                         ? (f.fixed ? x->t->mid_scale : x->hs)
                                         : NULL;
                cmoe__quantize_row(f, v, s->I, fixed, (char *)x->hq + (size_t)row * code_bytes,
                                   tensor ? NULL : (char *)x->hs + (size_t)row * scale_bytes,
                                   x->hg ? x->hg + row : NULL);
            }
        if (pass == 0) *(float *)x->hs = cmoe__scale_f32((cmoe_dtype)f.dtype, amax);
    }
    return CMOE_OK;
}
