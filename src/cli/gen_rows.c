/* SPDX-License-Identifier: MIT
 * Activations, static scales and the buffers that a plan writes. */
#include "cli/gen_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static float exact_x(const struct gen_state *s, struct gen_rng *rng, int64_t c)
{
    const bool planted = c == 0 || (gen_needs_plant(s->p->x) && c % gen_scope(s->p->x, s->H) == 0);
    if (planted) return s->exact.plant;
    if (c == s->exact.one - 1) return 6; /* nv16; else it is planted */
    return c == s->exact.one ? 1 : (float)((gen_below(rng, 4) + 1) / 2);
}

/* One row of values; columns that do not count hold `hole`. */
static void fill_row(const struct gen_state *s, struct gen_rng *rng, float hole, float *v)
{
    const bool exact = s->options.kind == GEN_EXACT;
    const bool zero = !exact && !s->options.plain && gen_chance(rng, 32);
    for (int64_t c = 0; c < s->H; c++) {
        const float real = (float)gen_normal(rng) * (gen_chance(rng, 64) ? 8.0f : 1.0f);
        v[c] = exact ? exact_x(s, rng, c) : (zero ? 0 : real);
        if (c >= s->h_used) v[c] = hole;
    }
}

static bool is_batched(const struct gen_state *s)
{
    return s->p->capacity > 0;
}

/* Whether x arrives as GEMM1 reads it: in format x, and a row a slot where QUANT would make that. */
static bool is_given(const struct gen_state *s)
{
    return s->p->first > CMOE_STAGE_QUANT || (s->p->flags & CMOE_X_QUANTIZED) != 0;
}

static int64_t x_rows(const struct gen_state *s)
{
    const bool by_slot =
        s->p->weight_on == CMOE_WEIGHT_ON_INPUT || s->p->x.scaling == CMOE_SCALE_SMOOTH;
    if (is_batched(s)) return s->local * s->p->capacity;
    return is_given(s) && by_slot ? s->T * s->S : s->T;
}

/* From row to row of x or y; 0: rows of `tight` bytes lie side by side, and nobody is told. */
static int64_t draw_stride(const struct gen_state *s, struct gen_rng *rng, int64_t tight,
                           int64_t element)
{
    if (is_batched(s) || s->options.plain) return 0;
    if (s->options.aligned) return gen_row_stride(s, tight);
    return gen_chance(rng, 2) ? tight + gen_below(rng, 5) * element : 0;
}

static cmoe_status make_plain_x(struct gen_state *s, struct gen_rng *rng, float *v)
{
    const cmoe_dtype in = (cmoe_dtype)s->p->in;
    const int64_t tight = (int64_t)cmoe_dtype_bytes(in, s->H);
    const int64_t given = draw_stride(s, rng, tight, cmoe_dtype_bits(in) / 8);
    const int64_t stride = given > 0 ? given : tight;
    unsigned char *x = gen_input(s, x_rows(s) * stride);
    if (x == NULL) return CMOE_ERR_NO_MEMORY;
    memset(x, 0xff, (size_t)(x_rows(s) * stride));
    cmoe_status status = CMOE_OK;
    for (int64_t i = 0; i < x_rows(s) && status == CMOE_OK; i++) {
        if (s->options.one_expert && i >= GEN_DRAWN_ROWS) {
            memcpy(x + i * stride, x + i % GEN_DRAWN_ROWS * stride, (size_t)tight);
            continue;
        }
        fill_row(s, rng, s->options.plain ? 0 : NAN, v);
        status = cmoe_convert(in, x + i * stride, CMOE_F32, v, s->H);
    }
    s->call->tensors.x = x;
    s->call->tensors.x_stride = given;
    return status;
}

static cmoe_status make_static_scale(struct gen_state *s, float value, const float **out)
{
    float *scale = gen_input(s, (int64_t)sizeof(float));
    if (scale == NULL) return CMOE_ERR_NO_MEMORY;
    *scale = value;
    *out = scale;
    return CMOE_OK;
}

static cmoe_status make_quantized_x(struct gen_state *s, struct gen_rng *rng, const float *fixed)
{
    const cmoe_format f = s->p->x;
    const int64_t rows = x_rows(s);
    size_t codes = 0, scales = 0;
    cmoe_status status = cmoe_format_bytes(f, rows, s->H, &codes, &scales, NULL);
    if (status != CMOE_OK) return status;
    float *v = malloc((size_t)(rows * s->H) * sizeof *v);
    void *x = gen_input(s, (int64_t)codes);
    void *scale = gen_input(s, (int64_t)(scales > sizeof(float) ? scales : sizeof(float)));
    float *global = gen_input(s, (rows > 0 ? rows : 1) * (int64_t)sizeof(float));
    if (v == NULL || x == NULL || scale == NULL || global == NULL) {
        free(v);
        return CMOE_ERR_NO_MEMORY;
    }
    for (int64_t i = 0; i < rows; i++)
        fill_row(s, rng, 0, v + i * s->H);
    const bool dynamic_global = f.scaling == CMOE_SCALE_NV && fixed == NULL;
    status = cmoe_quantize_rows(f, v, rows, s->H, fixed, x, scale, dynamic_global ? global : NULL);
    if (fixed != NULL && f.scaling == CMOE_SCALE_NV) global[0] = *fixed;
    if (fixed != NULL && f.scaling == CMOE_SCALE_TENSOR) memcpy(scale, fixed, sizeof *fixed);
    free(v);
    s->call->tensors.x = x;
    s->call->tensors.x_scale = scale;
    s->call->tensors.x_global = f.scaling == CMOE_SCALE_NV ? global : NULL;
    return status;
}

static cmoe_status make_counts(struct gen_state *s, struct gen_rng *rng)
{
    int32_t *counts = gen_input(s, s->local * (int64_t)sizeof(int32_t));
    if (counts == NULL) return CMOE_ERR_NO_MEMORY;
    for (int64_t e = 0; e < s->local; e++)
        counts[e] = (int32_t)gen_below(rng, (int64_t)s->p->capacity + 1);
    /* Counts are data: what is out of range is cut. */
    if (!s->options.plain && gen_chance(rng, 4)) counts[0] = -3;
    if (!s->options.plain && gen_chance(rng, 4)) counts[s->local - 1] = s->p->capacity + 5;
    s->call->tensors.expert_offsets = counts;
    return CMOE_OK;
}

/* One local expert a row, or -1 for rows to skip; ascending as its producers write it. */
static cmoe_status make_m_indices(struct gen_state *s, struct gen_rng *rng)
{
    int32_t *rows = gen_input(s, s->T * (int64_t)sizeof(int32_t));
    if (rows == NULL) return CMOE_ERR_NO_MEMORY;
    for (int64_t i = 0; i < s->T; i++)
        rows[i] = gen_chance(rng, 8) ? -1 : (int32_t)(i * s->local / s->T);
    s->call->tensors.sorted_ids = rows;
    return CMOE_OK;
}

cmoe_status gen_rows(struct gen_state *s)
{
    const cmoe_problem *p = s->p;
    cmoe_tensors *t = &s->call->tensors;
    struct gen_rng rng = gen_rng_make(s->options.seed, GEN_FOR_X);
    const bool exact = s->options.kind == GEN_EXACT;
    const float *x_scale = NULL;
    cmoe_status status = CMOE_OK;
    /* REAL values reach about 28 in x and 20 in mid: a few of them saturate. */
    if (p->x.fixed) {
        status =
            make_static_scale(s, exact ? s->exact.x_scale : cmoe_static_scale(p->x, 12), &x_scale);
        t->x_scale = x_scale;
    }
    if (status == CMOE_OK && p->mid.fixed)
        status = make_static_scale(s, exact ? s->exact.mid_scale : cmoe_static_scale(p->mid, 10),
                                   &t->mid_scale);
    if (status == CMOE_OK && is_batched(s)) status = make_counts(s, &rng);
    if (status == CMOE_OK && p->first >= CMOE_STAGE_GEMM1 && p->sort_format == CMOE_SORT_M_INDICES)
        status = make_m_indices(s, &rng);
    if (status != CMOE_OK) return status;
    if (is_given(s) && gen_is_quantized(p->x)) return make_quantized_x(s, &rng, x_scale);
    float *v = malloc((size_t)s->H * sizeof *v);
    status = v == NULL ? CMOE_ERR_NO_MEMORY : make_plain_x(s, &rng, v);
    free(v);
    return status;
}

static cmoe_status make_y(struct gen_state *s)
{
    const cmoe_problem *p = s->p;
    struct gen_call *call = s->call;
    struct gen_rng rng = gen_rng_make(s->options.seed, GEN_FOR_Y);
    const cmoe_dtype dtype = (cmoe_dtype)p->y;
    const int64_t element = cmoe_dtype_bits(dtype) / 8;
    const int64_t rows = (p->flags & CMOE_NO_REDUCE) != 0 ? s->S : 1; /* of a token */
    call->y_block = rows > 0 ? rows : 1;
    call->y_rows = is_batched(s) ? s->local * p->capacity : s->T * rows;
    call->y_row = s->H * element;
    const int64_t tight = call->y_block * call->y_row;
    const int64_t given = draw_stride(s, &rng, tight, element);
    const int64_t stride = given > 0 ? given : tight;
    const int64_t bytes = (is_batched(s) ? call->y_rows : s->T) * stride;
    call->tensors.y = gen_output(s, bytes);
    call->tensors.y_stride = given;
    if (call->tensors.y == NULL) return CMOE_ERR_NO_MEMORY;
    if (p->accumulate == 0) return CMOE_OK;
    call->y_before = malloc((size_t)(bytes > 0 ? bytes : 1));
    if (call->y_before == NULL) return CMOE_ERR_NO_MEMORY;
    cmoe_status status = CMOE_OK;
    for (int64_t i = 0; i < bytes / element && status == CMOE_OK; i++) {
        const float v = s->options.kind == GEN_EXACT ? (float)(gen_below(&rng, 9) - 4)
                                                     : (float)gen_normal(&rng);
        status = cmoe_convert(dtype, (char *)call->y_before + i * element, CMOE_F32, &v, 1);
    }
    memcpy(call->tensors.y, call->y_before, (size_t)bytes);
    return status;
}

/* Codes and scales of an activation format, with room for every scaling. */
static cmoe_status make_codes(struct gen_state *s, int64_t rows, int64_t cols, void **codes,
                              void **scales)
{
    *codes = gen_output(s, rows * cols * (int64_t)sizeof(float));
    *scales = gen_output(s, rows * (cols / 16 + 1) * (int64_t)sizeof(float));
    return *codes == NULL || *scales == NULL ? CMOE_ERR_NO_MEMORY : CMOE_OK;
}

static cmoe_status make_values(struct gen_state *s, int64_t n, void **out)
{
    *out = gen_output(s, n * (int64_t)sizeof(float));
    return *out == NULL ? CMOE_ERR_NO_MEMORY : CMOE_OK;
}

static cmoe_status make_ids(struct gen_state *s)
{
    cmoe_tensors *t = &s->call->tensors;
    const int64_t n = s->T * s->S;
    t->topk_ids = gen_output(s, n * (int64_t)sizeof(int32_t));
    s->call->ids = t->topk_ids;
    t->topk_weights = gen_output(s, n * (int64_t)sizeof(float));
    return t->topk_ids == NULL || t->topk_weights == NULL ? CMOE_ERR_NO_MEMORY : CMOE_OK;
}

cmoe_status gen_outputs(struct gen_state *s)
{
    cmoe_tensors *t = &s->call->tensors;
    const int64_t rows = is_batched(s) ? x_rows(s) : s->T * s->S;
    cmoe_status status = CMOE_OK;
    if (s->p->first == CMOE_STAGE_ROUTE && s->p->router != CMOE_ROUTE_ALL) status = make_ids(s);
    if (status != CMOE_OK) return status;
    switch ((cmoe_stage)s->p->last) {
    case CMOE_STAGE_ROUTE:
        return CMOE_OK;
    case CMOE_STAGE_QUANT:
        return make_codes(s, rows, s->H, &t->xq, &t->xq_scale);
    case CMOE_STAGE_SORT:
        return gen_sort_buffers(s, gen_output);
    case CMOE_STAGE_GEMM1: {
        void *values = NULL;
        status = make_values(s, rows * s->rows1, &values);
        t->gate_up = values;
        return status;
    }
    case CMOE_STAGE_ACT:
        return make_values(s, rows * s->I, &t->mid);
    case CMOE_STAGE_REQUANT:
        return make_codes(s, rows, s->I, &t->mid_q, &t->mid_q_scale);
    case CMOE_STAGE_GEMM2: {
        void *values = NULL;
        status = make_values(s, rows * s->H, &values);
        t->z = values;
        return status;
    }
    case CMOE_STAGE_COMBINE:
        return make_y(s);
    case CMOE_STAGE_COUNT:
        break;
    }
    return CMOE_ERR_INVALID;
}
