/* SPDX-License-Identifier: MIT
 * Weight tables. REAL matrices are normal values quantised by the library; EXACT ones are sparse
 * small codes with random power-of-two scales, so that a misread scale is seen. */
#include "cli/gen_state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* One table: matrix 1 (gate and up, or one of them) or 2 of every expert. */
struct table {
    enum gen_purpose purpose;
    bool has_gate, has_up; /* matrix 1: which rows it has */
    bool halves;           /* gate and up rows have scale grids of their own */
    bool bias, smooth;
    int64_t rows, cols, used;             /* columns, and those that count */
    int64_t stride;                       /* bytes from row to row */
    size_t codes, scales, zeros, strided; /* bytes an expert */
    unsigned char *code, *scale, *zero;
    float *global, *bias_values, *smooth_values;
};

static bool holds_nan(cmoe_dtype dtype)
{
    return cmoe_dtype_bits(dtype) >= 16 || dtype == CMOE_E4M3 || dtype == CMOE_E4M3FNUZ ||
           dtype == CMOE_E5M2;
}

/* What lies where nothing may be read. */
static float garbage(const struct gen_state *s, struct gen_rng *rng)
{
    const cmoe_format w = s->p->w;
    const bool exact = s->options.kind == GEN_EXACT;
    if (holds_nan(w.dtype) && (exact || !gen_is_quantized(w))) return NAN;
    return exact ? (float)(gen_below(rng, 7) - 3) : (float)gen_normal(rng);
}

static float sign(struct gen_rng *rng)
{
    return gen_chance(rng, 2) ? 1.0f : -1.0f;
}

/* A column of x that is 0, 1 or 2. */
static int64_t plain_column(const struct gen_state *s, struct gen_rng *rng)
{
    for (;;) {
        const int64_t j = 2 + gen_below(rng, s->h_used - 2);
        const bool planted = gen_needs_plant(s->p->x) && j % gen_scope(s->p->x, s->H) == 0;
        if (!planted && j != s->exact.one && j != s->exact.one - 1) return j;
    }
}

static void exact_row1(const struct gen_state *s, struct gen_rng *rng, bool up, int64_t i, float *v)
{
    if (s->exact.plant_mid && i % gen_scope(s->p->mid, s->I) == 0) {
        v[up || !s->gated ? 0 : s->exact.one] = 4;
        return;
    }
    if (!up) {
        v[plain_column(s, rng)] = 4;
        return;
    }
    for (int n = 0; n < 4; n++)
        v[plain_column(s, rng)] = sign(rng) * (float)(1 + gen_below(rng, 2));
}

static void exact_row2(const struct gen_state *s, struct gen_rng *rng, float *v)
{
    for (int n = 0; n < 4; n++)
        v[gen_below(rng, s->i_used)] = sign(rng) * (float)(1 + gen_below(rng, 2));
}

/* Row n of a table, as code values (EXACT) or values (REAL). */
static void fill_row(const struct gen_state *s, const struct table *t, struct gen_rng *rng,
                     int64_t n, float *v)
{
    const bool matrix2 = t->purpose == GEN_FOR_MATRIX2;
    bool up = t->has_up && !t->has_gate;
    int64_t i = n;
    if (t->has_up && t->has_gate) {
        const bool interleaved = s->p->gate == CMOE_GATE_INTERLEAVED;
        up = interleaved ? n % 2 == 1 : n >= s->I;
        i = interleaved ? n / 2 : n % s->I;
    }
    const bool counts = matrix2 ? n < s->h_used : i < s->i_used;
    const float spread = 1.5f / sqrtf((float)t->used);
    memset(v, 0, (size_t)t->cols * sizeof v[0]);
    if (counts && s->options.kind == GEN_EXACT && matrix2)
        exact_row2(s, rng, v);
    else if (counts && s->options.kind == GEN_EXACT)
        exact_row1(s, rng, up, i, v);
    for (int64_t c = 0; c < t->cols; c++) {
        if (c >= t->used || !counts)
            v[c] = garbage(s, rng);
        else if (s->options.kind == GEN_REAL)
            v[c] = (float)gen_normal(rng) * spread * (gen_chance(rng, 256) ? 6.0f : 1.0f);
    }
}

static cmoe_dtype scale_dtype(cmoe_format f)
{
    if (f.scaling == CMOE_SCALE_MX) return CMOE_E8M0;
    if (f.scaling == CMOE_SCALE_NV) return CMOE_E4M3;
    if (f.scaling == CMOE_SCALE_GROUP && f.scale_dtype != CMOE_NONE)
        return (cmoe_dtype)f.scale_dtype;
    return CMOE_F32;
}

static void store_scale(cmoe_dtype dtype, unsigned char *scale, int64_t i, float value)
{
    const uint32_t code = cmoe_encode(dtype, value);
    const uint16_t half = (uint16_t)code;
    if (cmoe_dtype_bits(dtype) == 32)
        memcpy(scale + 4 * i, &code, sizeof code);
    else if (cmoe_dtype_bits(dtype) == 16)
        memcpy(scale + 2 * i, &half, sizeof half);
    else
        scale[i] = (unsigned char)code;
}

/* Power-of-two scales, one of two values each. */
static void exact_scales(const struct gen_state *s, const struct table *t, struct gen_rng *rng,
                         unsigned char *scale, float *global)
{
    const cmoe_dtype dtype = scale_dtype(s->p->w);
    const int bytes = cmoe_dtype_bits(dtype) / 8;
    float low = t->purpose == GEN_FOR_MATRIX2 ? s->exact.scale2 : s->exact.scale1;
    if (s->p->w.scaling == CMOE_SCALE_NV) {
        *global = low;
        low = 1;
    }
    for (int64_t i = 0; i < (int64_t)t->scales / bytes; i++)
        store_scale(dtype, scale, i, low * (float)(1 + gen_below(rng, 2)));
}

/* Code values to the numbers that are stored, in place. */
static void exact_codes(const struct gen_state *s, const struct table *t, int64_t n,
                        const unsigned char *zero, float *v)
{
    const cmoe_format w = s->p->w;
    if (!gen_is_quantized(w)) {
        const float scale = t->purpose == GEN_FOR_MATRIX2 ? s->exact.scale2 : s->exact.scale1;
        for (int64_t c = 0; c < t->cols; c++)
            v[c] *= scale;
    }
    if (w.dtype != CMOE_U4 && w.dtype != CMOE_U8) return;
    const int64_t group = gen_scope(w, t->cols);
    const int64_t groups = (t->cols + group - 1) / group;
    for (int64_t c = 0; c < t->cols; c++) {
        const float middle = w.dtype == CMOE_U4 ? 8 : 128;
        v[c] += w.zero ? (float)zero[n * groups + c / group] : middle;
    }
}

static cmoe_status exact_matrix(const struct gen_state *s, const struct table *t,
                                struct gen_rng *rng, int64_t expert)
{
    unsigned char *zero = t->zero + expert * (int64_t)t->zeros;
    const int64_t middle = s->p->w.dtype == CMOE_U8 ? 124 : 4;
    for (size_t i = 0; i < t->zeros; i++)
        zero[i] = (unsigned char)(middle + gen_below(rng, 8));
    exact_scales(s, t, rng, t->scale + expert * (int64_t)t->scales, t->global + expert);
    float *v = malloc((size_t)t->cols * sizeof *v);
    if (v == NULL) return CMOE_ERR_NO_MEMORY;
    cmoe_status status = CMOE_OK;
    unsigned char *code = t->code + expert * (int64_t)t->strided;
    for (int64_t n = 0; n < t->rows && status == CMOE_OK; n++) {
        fill_row(s, t, rng, n, v);
        exact_codes(s, t, n, zero, v);
        status =
            cmoe_convert((cmoe_dtype)s->p->w.dtype, code + n * t->stride, CMOE_F32, v, t->cols);
    }
    free(v);
    return status;
}

/* Rows that are drawn; the rest repeat them. A multiple of every format's block of rows. */
static int64_t drawn_rows(const struct gen_state *s, const struct table *t)
{
    const int64_t rows = t->rows / (t->halves ? 2 : 1);
    return s->options.one_expert && rows > GEN_DRAWN_ROWS ? GEN_DRAWN_ROWS : rows;
}

static cmoe_status quantize(const struct gen_state *s, const struct table *t, const float *v,
                            int64_t expert, unsigned char *codes)
{
    const int parts = t->halves ? 2 : 1;
    const int64_t rows = drawn_rows(s, t);
    cmoe_status status = CMOE_OK;
    for (int part = 0; part < parts && status == CMOE_OK; part++)
        status = cmoe_quantize_weight(s->p->w, v + part * rows * t->cols, rows, t->cols,
                                      codes + (size_t)part * t->codes / (size_t)parts,
                                      t->scale + expert * (int64_t)t->scales +
                                          (size_t)part * t->scales / (size_t)parts,
                                      t->zeros > 0 ? t->zero + expert * (int64_t)t->zeros : NULL,
                                      s->p->w.scaling == CMOE_SCALE_NV ? t->global + expert : NULL);
    return status;
}

/* Fill data[bytes] from its own beginning of `period` bytes. */
static void repeat(unsigned char *data, size_t bytes, size_t period)
{
    for (size_t done = period; period > 0 && done < bytes; done *= 2)
        memcpy(data + done, data, done < bytes - done ? done : bytes - done);
}

/* Fill the rows behind the first `drawn` ones of each part of a table's only matrix. */
static cmoe_status repeat_rows(const struct gen_state *s, const struct table *t)
{
    const size_t parts = t->halves ? 2 : 1;
    size_t codes = 0, scales = 0, zeros = 0;
    const cmoe_status status =
        cmoe_format_bytes(s->p->w, drawn_rows(s, t), t->cols, &codes, &scales, &zeros);
    if (status != CMOE_OK) return status;
    for (size_t part = 0; part < parts; part++) {
        repeat(t->code + part * t->codes / parts, t->codes / parts, codes);
        repeat(t->scale + part * t->scales / parts, t->scales / parts, scales);
        if (t->zeros > 0) repeat(t->zero + part * t->zeros / parts, t->zeros / parts, zeros);
    }
    return CMOE_OK;
}

/* A matrix of few different rows: fast, and as good as any other for its time. */
static cmoe_status repeated_matrix(const struct gen_state *s, const struct table *t,
                                   struct gen_rng *rng)
{
    const int64_t rows = drawn_rows(s, t) * (t->halves ? 2 : 1);
    float *v = malloc((size_t)(rows * t->cols) * sizeof *v);
    if (v == NULL) return CMOE_ERR_NO_MEMORY;
    for (int64_t n = 0; n < rows; n++)
        fill_row(s, t, rng, n, v + n * t->cols);
    cmoe_status status = quantize(s, t, v, 0, t->code);
    if (status == CMOE_OK) status = repeat_rows(s, t);
    free(v);
    return status;
}

static cmoe_status real_matrix(const struct gen_state *s, const struct table *t,
                               struct gen_rng *rng, int64_t expert)
{
    float *v = malloc((size_t)(t->rows * t->cols) * sizeof *v);
    unsigned char *codes = malloc(t->codes);
    cmoe_status status = v == NULL || codes == NULL ? CMOE_ERR_NO_MEMORY : CMOE_OK;
    for (int64_t n = 0; n < t->rows && status == CMOE_OK; n++)
        fill_row(s, t, rng, n, v + n * t->cols);
    if (status == CMOE_OK) status = quantize(s, t, v, expert, codes);
    const size_t row = t->codes / (size_t)t->rows;
    for (int64_t n = 0; n < t->rows && status == CMOE_OK; n++)
        memcpy(t->code + expert * (int64_t)t->strided + n * t->stride, codes + (size_t)n * row,
               row);
    free(v);
    free(codes);
    return status;
}

static void fill_vectors(const struct gen_state *s, const struct table *t, struct gen_rng *rng,
                         int64_t expert)
{
    const bool exact = s->options.kind == GEN_EXACT;
    for (int64_t n = 0; t->bias && n < t->rows; n++) {
        const bool up =
            t->has_up &&
            (!t->has_gate || (s->p->gate == CMOE_GATE_INTERLEAVED ? n % 2 == 1 : n >= s->I));
        const bool free_row = t->purpose == GEN_FOR_MATRIX2 || (up && !s->exact.plant_mid);
        const float unit = t->purpose == GEN_FOR_MATRIX2 ? 1 : s->exact.scale1;
        t->bias_values[expert * t->rows + n] =
            exact ? (free_row ? unit * (float)(gen_below(rng, 3) - 1) : 0)
                  : 0.25f * (float)gen_normal(rng);
    }
    for (int64_t c = 0; t->smooth && c < t->cols; c++) {
        float v = (float)(0.5 + gen_unit(rng));
        const cmoe_format f = t->purpose == GEN_FOR_MATRIX2 ? s->p->mid : s->p->x;
        if (exact)
            v = c <= s->exact.one || c % gen_scope(f, t->cols) == 0 || gen_chance(rng, 2) ? 1
                                                                                          : 0.5f;
        t->smooth_values[expert * t->cols + c] = c < t->used ? v : NAN;
    }
}

static cmoe_status measure_table(struct gen_state *s, struct table *t)
{
    const cmoe_format w = s->p->w;
    t->halves = t->has_gate && t->has_up && w.scaling == CMOE_SCALE_BLOCK &&
                s->p->gate == CMOE_GATE_SPLIT && (s->p->flags & CMOE_BLOCK_JOINT) == 0;
    const int64_t parts = t->halves ? 2 : 1;
    const cmoe_status status =
        cmoe_format_bytes(w, t->rows / parts, t->cols, &t->codes, &t->scales, &t->zeros);
    if (status != CMOE_OK) return status;
    t->codes *= (size_t)parts;
    t->scales *= (size_t)parts;
    t->zeros *= (size_t)parts;
    struct gen_rng rng = gen_rng_make(s->options.seed, GEN_FOR_LAYOUT + 16 * t->purpose);
    const int bits = cmoe_dtype_bits((cmoe_dtype)w.dtype);
    const int64_t tight = (int64_t)cmoe_dtype_bytes((cmoe_dtype)w.dtype, t->cols);
    const int64_t pad = s->loose && gen_chance(&rng, 2) ? 1 + gen_below(&rng, 8) : 0;
    t->stride = gen_row_stride(s, tight) + pad * (bits > 8 ? bits / 8 : 1);
    t->strided = (size_t)(t->stride * t->rows);
    return CMOE_OK;
}

/* Experts in memory. */
static int64_t stored(const struct gen_state *s)
{
    return s->options.one_expert && s->local > 0 ? 1 : s->local;
}

static bool allocate_table(struct gen_state *s, struct table *t)
{
    const int64_t n = stored(s);
    t->code = gen_input(s, n * (int64_t)t->strided);
    t->scale = gen_input(s, n * (int64_t)t->scales);
    t->zero = gen_input(s, n * (int64_t)t->zeros);
    t->global = gen_input(s, n * (int64_t)sizeof(float));
    t->bias_values = gen_input(s, t->bias ? n * t->rows * (int64_t)sizeof(float) : 0);
    t->smooth_values = gen_input(s, t->smooth ? n * t->cols * (int64_t)sizeof(float) : 0);
    return t->code != NULL && t->scale != NULL && t->zero != NULL && t->global != NULL &&
           t->bias_values != NULL && t->smooth_values != NULL;
}

static void point_at(const struct gen_state *s, const struct table *t, cmoe_matrix *out)
{
    const cmoe_format w = s->p->w;
    for (int64_t i = 0; i < s->local; i++) {
        const int64_t e = i < stored(s) ? i : 0;
        out[i] = (cmoe_matrix){
            .data = t->code + e * (int64_t)t->strided,
            .row_stride = t->stride,
            .scale = gen_is_quantized(w) ? t->scale + e * (int64_t)t->scales : NULL,
            .zero = w.zero ? t->zero + e * (int64_t)t->zeros : NULL,
            .global = w.scaling == CMOE_SCALE_NV ? t->global + e : NULL,
            .bias = t->bias ? t->bias_values + e * t->rows : NULL,
            .smooth = t->smooth ? t->smooth_values + e * t->cols : NULL,
        };
    }
}

static cmoe_status make_table(struct gen_state *s, struct table t, const cmoe_matrix **out)
{
    cmoe_status status = measure_table(s, &t);
    if (status != CMOE_OK) return status;
    cmoe_matrix *matrices = calloc((size_t)s->local, sizeof *matrices);
    *out = matrices;
    if (matrices == NULL || !allocate_table(s, &t)) return CMOE_ERR_NO_MEMORY;
    for (int64_t e = 0; e < stored(s) && status == CMOE_OK; e++) {
        struct gen_rng rng =
            gen_rng_make(s->options.seed, (uint64_t)(1000 * (e + 1)) + (uint64_t)t.purpose);
        fill_vectors(s, &t, &rng, e);
        if (s->options.one_expert)
            status = repeated_matrix(s, &t, &rng);
        else if (s->options.kind == GEN_EXACT)
            status = exact_matrix(s, &t, &rng, e);
        else
            status = real_matrix(s, &t, &rng, e);
    }
    point_at(s, &t, matrices);
    return status;
}

cmoe_status gen_weights(struct gen_state *s)
{
    const cmoe_problem *p = s->p;
    struct gen_rng rng = gen_rng_make(s->options.seed, GEN_FOR_LAYOUT);
    const bool apart = p->gate == CMOE_GATE_SPLIT && (p->flags & CMOE_BLOCK_JOINT) == 0 &&
                       !s->options.plain && gen_chance(&rng, 2);
    const struct table gate = {
        .purpose = GEN_FOR_MATRIX1,
        .has_gate = true,
        .has_up = s->gated && !apart,
        .bias = (p->flags & CMOE_BIAS1) != 0,
        .smooth = p->x.scaling == CMOE_SCALE_SMOOTH,
        .rows = apart ? s->I : s->rows1,
        .cols = s->H,
        .used = s->h_used,
    };
    cmoe_status status = make_table(s, gate, &s->call->weights.gate_up);
    if (status == CMOE_OK && apart) {
        struct table up = gate;
        up.purpose = GEN_FOR_UP;
        up.has_gate = false;
        up.has_up = true;
        up.smooth = false;
        status = make_table(s, up, &s->call->weights.up);
    }
    const struct table down = {
        .purpose = GEN_FOR_MATRIX2,
        .bias = (p->flags & CMOE_BIAS2) != 0,
        .smooth = p->mid.scaling == CMOE_SCALE_SMOOTH,
        .rows = s->H,
        .cols = s->I,
        .used = s->i_used,
    };
    if (status == CMOE_OK) status = make_table(s, down, &s->call->weights.down);
    return status;
}
