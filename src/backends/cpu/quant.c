/* SPDX-License-Identifier: MIT
 * QUANT and REQUANT: rows of values to codes and scales by core/numeric.h's quantiser, some rows an
 * item. A dynamic scale of the whole tensor takes a loop of its own: a maximum for each item, then
 * the largest of them, whose order does not matter. */
#include "backends/cpu/run.h"

#include "backends/cpu/ops_quant.h"
#include "core/float_bits.h"
#include "core/numeric.h"
#include "core/size.h"
#include "core/weights.h"
#include <math.h>
#include <string.h>

/* One of the two stages. */
struct quant {
    cmoe_format f;
    int64_t n;    /* columns of a row */
    int64_t rows; /* x rows, or sorted rows */
    void *codes, *scales;
    float *globals;
    const float *fixed_scale; /* the caller's static scale */
    int64_t stride;           /* bytes from row to row of codes */
};

/* A row of values and where its codes go. */
struct source {
    int64_t row, token; /* of the codes; of x */
    int32_t expert;     /* -1: none */
    bool valid;         /* else the row is left alone */
    bool counts;        /* in the scale of all rows */
};

size_t cmoe__cpu_quant_worker(int64_t n)
{
    return (size_t)n * 2 * sizeof(float); /* the values, and their rounded copy */
}

int64_t cmoe__cpu_quant_items(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    return cmoe__ceil_div(cmoe__shape_rows(p, s, tokens) + tokens, CMOE_CPU_QUANT_ROWS);
}

/* v rounded to a float type and back. */
static void round_row(const struct cmoe_cpu_run *run, cmoe_dtype dtype, int64_t n, float *v,
                      void *copy)
{
    if (dtype == CMOE_F32) return;
    run->ops->store_row(dtype, copy, n, v);
    run->ops->load_row(dtype, copy, n, v);
}

static void smooth_row(const float *smooth, int64_t n, float *v)
{
    for (int64_t i = 0; smooth && i < n; i++)
        v[i] *= smooth[i];
}

static bool is_dynamic_tensor(cmoe_format f)
{
    return f.scaling == CMOE_SCALE_TENSOR && !f.fixed;
}

/* int8 and e4m3 under f32 scales by vectors; false: something is not finite, or another format. */
static bool store_plain(const struct cmoe_cpu_run *run, const struct quant *q, int64_t row,
                        const float *v)
{
    const cmoe_dtype dtype = (cmoe_dtype)q->f.dtype;
    const bool tensor = q->f.scaling == CMOE_SCALE_TENSOR;
    const bool group = q->f.scaling == CMOE_SCALE_GROUP;
    if (!tensor && !group && q->f.scaling != CMOE_SCALE_TOKEN && q->f.scaling != CMOE_SCALE_SMOOTH)
        return false;
    if (dtype != CMOE_I8 && dtype != CMOE_E4M3) return false;
    const int64_t span = group ? q->f.group : q->n;
    char *const codes = (char *)q->codes + row * q->stride;
    float *const scales =
        (float *)(void *)((char *)q->scales + (size_t)row * cmoe__row_scale_bytes(q->f, q->n));
    for (int64_t first = 0; first < q->n; first += span) {
        const int64_t n = cmoe__min64(span, q->n - first);
        const float most = run->quant->amax(v + first, n);
        float scale = cmoe__scale_f32(dtype, most);
        if (tensor) scale = q->f.fixed ? *q->fixed_scale : *(const float *)q->scales;
        if (!isfinite(most) || !isfinite(scale) || !isnormal(scale) || scale < 0) return false;
        if (!tensor) scales[first / span] = scale;
        if (!run->quant->quantize(dtype, v + first, n, scale, codes + first)) return false;
    }
    return true;
}

/* e4m3 and e2m1 under powers of two, by which division is exact. */
static bool store_mx(const struct cmoe_cpu_run *run, const struct quant *q, int64_t row,
                     const float *v)
{
    enum { SPAN = 32 };
    const cmoe_dtype dtype = (cmoe_dtype)q->f.dtype;
    char *const codes = (char *)q->codes + row * q->stride;
    uint8_t *const scales = (uint8_t *)q->scales + (size_t)row * cmoe__row_scale_bytes(q->f, q->n);
    if (dtype != CMOE_E4M3 && dtype != CMOE_E2M1) return false;
    for (int64_t first = 0; first < q->n; first += SPAN) {
        const int64_t n = cmoe__min64(SPAN, q->n - first);
        const float most = run->quant->amax(v + first, n);
        const uint8_t scale = cmoe__scale_e8m0(dtype, most, (cmoe_mx_rounding)q->f.mx_rounding);
        if (!isfinite(most)) return false;
        scales[first / SPAN] = scale;
        if (!run->quant->quantize(dtype, v + first, n, cmoe__decode(CMOE_E8M0, scale),
                                  codes + first * cmoe_dtype_bits(dtype) / 8))
            return false;
    }
    return true;
}

/* e2m1 under e4m3 scales and a row's or the caller's factor. */
static bool store_nv(const struct cmoe_cpu_run *run, const struct quant *q, int64_t row,
                     const float *v)
{
    enum { SPAN = 16, BLOCKS = 64 };
    char *const codes = (char *)q->codes + row * q->stride;
    uint8_t *const scales = (uint8_t *)q->scales + (size_t)row * cmoe__row_scale_bytes(q->f, q->n);
    const float *const values = cmoe__decode_table(CMOE_E4M3);
    const float all = run->quant->amax(v, q->n);
    const float global = q->f.fixed ? *q->fixed_scale : cmoe__scale_nv_global(all);
    const float six = cmoe__mul_f32(6, global);
    if (q->f.dtype != CMOE_E2M1 || !isfinite(all) || !isnormal(six) || six < 0) return false;
    if (!q->f.fixed) q->globals[row] = global;
    for (int64_t first = 0; first < q->n; first += BLOCKS * SPAN) {
        const int64_t end = cmoe__min64(first + BLOCKS * SPAN, q->n);
        float most[BLOCKS];
        for (int64_t at = first; at < end; at += SPAN)
            most[(at - first) / SPAN] = run->quant->amax(v + at, cmoe__min64(SPAN, end - at));
        if (!run->quant->quantize(CMOE_E4M3, most, cmoe__ceil_div(end - first, SPAN), six,
                                  scales + first / SPAN))
            return false;
        for (int64_t at = first; at < end; at += SPAN) {
            const int64_t n = cmoe__min64(SPAN, end - at);
            const float scale = cmoe__mul_f32(values[scales[at / SPAN]], global);
            if (scale == 0)
                memset(codes + at / 2, 0, (size_t)(n + 1) / 2);
            else if (!isnormal(scale))
                return false;
            else
                (void)run->quant->quantize(CMOE_E2M1, v + at, n, scale, codes + at / 2);
        }
    }
    return true;
}

/* By vectors what can be; false: the row has to be done value by value, all of it. */
static bool store_fast(const struct cmoe_cpu_run *run, const struct quant *q, int64_t row,
                       const float *v)
{
    if (q->f.rounding != CMOE_ROUND_NEAREST_EVEN) return false;
    if (q->f.scaling == CMOE_SCALE_MX) return store_mx(run, q, row, v);
    if (q->f.scaling == CMOE_SCALE_NV) return store_nv(run, q, row, v);
    return store_plain(run, q, row, v);
}

/* Write the codes and scales of one row. */
static void store_codes(const struct cmoe_cpu_run *run, const struct quant *q, int64_t row,
                        const float *v)
{
    if (store_fast(run, q, row, v)) return;
    const bool tensor = q->f.scaling == CMOE_SCALE_TENSOR;
    const bool nv_fixed = q->f.scaling == CMOE_SCALE_NV && q->f.fixed;
    const size_t scale_bytes = cmoe__row_scale_bytes(q->f, q->n);
    const float *fixed = NULL;
    if (tensor || nv_fixed) fixed = q->f.fixed ? q->fixed_scale : q->scales;
    cmoe__quantize_row(q->f, v, q->n, fixed, (char *)q->codes + row * q->stride,
                       tensor ? NULL : (char *)q->scales + (size_t)row * scale_bytes,
                       q->globals ? q->globals + row : NULL);
}

static int count_items(const struct quant *q)
{
    return (int)cmoe__ceil_div(q->rows, CMOE_CPU_QUANT_ROWS);
}

/* The larger magnitude; NaN stays. */
static float fold(float a, float b)
{
    return isnan(a) || isnan(b) ? NAN : (a > b ? a : b);
}

/* The tensor's scale from the items' maxima. */
static void finish_amax(const struct cmoe_cpu_run *run, const struct quant *q)
{
    float amax = 0;
    for (int i = 0; i < count_items(q); i++)
        amax = fold(amax, run->amax[i]);
    *(float *)q->scales = cmoe__scale_f32((cmoe_dtype)q->f.dtype, amax);
}

/* --- QUANT ---------------------------------------------------------------------------------- */

static struct quant quant_x(const struct cmoe_exec *x)
{
    const struct cmoe_shape *const s = x->shape;
    return (struct quant){
        .f = x->p->x,
        .n = s->H,
        .rows = s->x_slots ? cmoe__shape_rows(x->p, s, x->tokens) : x->tokens,
        .codes = x->xq,
        .scales = x->xs,
        .globals = x->xg,
        .fixed_scale = x->t->x_scale,
        .stride = x->xq_stride,
    };
}

static struct source x_source(const struct cmoe_exec *x, int64_t row)
{
    const struct cmoe_shape *const s = x->shape;
    struct source from = {.row = row, .token = row, .expert = -1, .valid = true, .counts = true};
    if (s->batched) {
        from.expert = (int32_t)(row / x->p->capacity);
        from.valid = row % x->p->capacity < x->t->expert_offsets[from.expert];
        return from;
    }
    if (s->x_slots) {
        from.token = row / s->slots;
        from.expert = cmoe__exec_local(x, x->ids[row]);
        /* Another rank's slot counts in a scale of all rows, but has no smoothing vector here. */
        from.valid = from.expert >= 0 ||
                     (x->p->x.scaling != CMOE_SCALE_SMOOTH && cmoe__exec_slot_counts(x, row));
    }
    from.counts = is_dynamic_tensor(x->p->x) && cmoe__exec_token_counts(x, from.token);
    return from;
}

/* x of a row as QUANT sees it: weighted and rounded to `in`, or smoothed. */
static void load_x(const struct cmoe_cpu_run *run, const struct source *from, float *v)
{
    const struct cmoe_exec *const x = &run->x;
    const cmoe_problem *const p = x->p;
    const int64_t n = x->shape->h_used, all = x->shape->H;
    const cmoe_dtype in = (cmoe_dtype)p->in;
    run->ops->load_row(in, (const char *)x->x + from->token * x->x_stride, n, v);
    for (int64_t i = n; i < all; i++)
        v[i] = 0;
    if (p->weight_on == CMOE_WEIGHT_ON_INPUT) {
        run->ops->scale(n, cmoe__exec_weight(x, from->row), v);
        round_row(run, in, n, v, v + all);
    }
    if (p->x.scaling == CMOE_SCALE_SMOOTH)
        smooth_row(cmoe__weights_smooth(x->w, 1, from->expert), n, v);
}

static int begin_x_amax(struct cmoe_cpu_run *run)
{
    const struct quant q = quant_x(&run->x);
    return is_dynamic_tensor(q.f) ? count_items(&q) : 0;
}

static void x_amax(struct cmoe_cpu_run *run, int item, int worker)
{
    const struct quant q = quant_x(&run->x);
    float *const v = cmoe__cpu_worker(run, worker), amax = 0;
    const int64_t first = (int64_t)item * CMOE_CPU_QUANT_ROWS;
    for (int64_t row = first; row < first + CMOE_CPU_QUANT_ROWS && row < q.rows; row++) {
        const struct source from = x_source(&run->x, row);
        if (!from.valid || !from.counts) continue;
        load_x(run, &from, v);
        amax = fold(amax, cmoe__amax(v, run->x.shape->h_used));
    }
    run->amax[item] = amax;
}

static int begin_x_codes(struct cmoe_cpu_run *run)
{
    const struct quant q = quant_x(&run->x);
    if (is_dynamic_tensor(q.f)) finish_amax(run, &q);
    return count_items(&q);
}

static void x_codes(struct cmoe_cpu_run *run, int item, int worker)
{
    const struct quant q = quant_x(&run->x);
    float *const v = cmoe__cpu_worker(run, worker);
    const int64_t first = (int64_t)item * CMOE_CPU_QUANT_ROWS;
    for (int64_t row = first; row < first + CMOE_CPU_QUANT_ROWS && row < q.rows; row++) {
        const struct source from = x_source(&run->x, row);
        if (!from.valid) continue;
        load_x(run, &from, v);
        if (cmoe__format_is_quantized(q.f))
            store_codes(run, &q, row, v);
        else
            run->ops->store_row((cmoe_dtype)q.f.dtype, (char *)q.codes + row * q.stride, q.n, v);
    }
}

/* --- REQUANT -------------------------------------------------------------------------------- */

static struct quant quant_h(const struct cmoe_exec *x)
{
    return (struct quant){
        .f = x->p->mid,
        .n = x->shape->I,
        .rows = x->offsets[x->shape->local],
        .codes = x->hq,
        .scales = x->hs,
        .globals = x->hg,
        .fixed_scale = x->t->mid_scale,
        .stride = (int64_t)cmoe__row_code_bytes(x->p->mid, x->shape->I),
    };
}

/* Expert of entry i of the sort. */
static int32_t sorted_expert(const struct cmoe_exec *x, int64_t i)
{
    int32_t low = 0, high = x->shape->local - 1; /* last expert that does not begin after i */
    while (low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (x->offsets[middle] <= i)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* h of a row, rounded and smoothed as the problem says. */
static void finish_h(const struct cmoe_cpu_run *run, int32_t expert, float *v, float *copy)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t n = x->shape->i_used;
    if (x->p->flags & CMOE_MID_ROUNDED) round_row(run, (cmoe_dtype)x->p->in, n, v, copy);
    if (x->p->mid.scaling == CMOE_SCALE_SMOOTH)
        smooth_row(cmoe__weights_smooth(x->w, 2, expert), n, v);
}

/* h of entry i of the sort. @return its row. */
static int64_t load_h(const struct cmoe_cpu_run *run, int64_t i, float *v)
{
    const struct cmoe_exec *const x = &run->x;
    const int64_t row = x->rows[i], n = x->shape->i_used, all = x->shape->I;
    const bool smooth = x->p->mid.scaling == CMOE_SCALE_SMOOTH;
    run->ops->load_row(CMOE_F32, (const float *)x->h + row * all, n, v);
    for (int64_t c = n; c < all; c++)
        v[c] = 0;
    finish_h(run, smooth ? sorted_expert(x, i) : -1, v, v + all);
    return row;
}

void cmoe__cpu_requant_row(const struct cmoe_cpu_run *run, int64_t row, int32_t expert, float *v,
                           float *copy)
{
    const struct quant q = quant_h(&run->x);
    finish_h(run, expert, v, copy);
    store_codes(run, &q, row, v);
}

static int begin_h_amax(struct cmoe_cpu_run *run)
{
    const struct quant q = quant_h(&run->x);
    return is_dynamic_tensor(q.f) ? count_items(&q) : 0;
}

static void h_amax(struct cmoe_cpu_run *run, int item, int worker)
{
    const struct quant q = quant_h(&run->x);
    float *const v = cmoe__cpu_worker(run, worker), amax = 0;
    const int64_t first = (int64_t)item * CMOE_CPU_QUANT_ROWS;
    for (int64_t i = first; i < first + CMOE_CPU_QUANT_ROWS && i < q.rows; i++) {
        (void)load_h(run, i, v);
        amax = fold(amax, cmoe__amax(v, q.n));
    }
    run->amax[item] = amax;
}

static int begin_h_codes(struct cmoe_cpu_run *run)
{
    const struct quant q = quant_h(&run->x);
    if (run->requants) return 0;
    if (is_dynamic_tensor(q.f)) finish_amax(run, &q);
    return count_items(&q);
}

static void h_codes(struct cmoe_cpu_run *run, int item, int worker)
{
    const struct quant q = quant_h(&run->x);
    float *const v = cmoe__cpu_worker(run, worker);
    const int64_t first = (int64_t)item * CMOE_CPU_QUANT_ROWS;
    for (int64_t i = first; i < first + CMOE_CPU_QUANT_ROWS && i < q.rows; i++) {
        const int64_t row = load_h(run, i, v);
        store_codes(run, &q, row, v);
    }
}

const struct cmoe_cpu_loop cmoe__cpu_loop_x_amax = {.begin = begin_x_amax, .item = x_amax};
const struct cmoe_cpu_loop cmoe__cpu_loop_x_codes = {.begin = begin_x_codes, .item = x_codes};
const struct cmoe_cpu_loop cmoe__cpu_loop_h_amax = {.begin = begin_h_amax, .item = h_amax};
const struct cmoe_cpu_loop cmoe__cpu_loop_h_codes = {.begin = begin_h_codes, .item = h_codes};
