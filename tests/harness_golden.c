/* SPDX-License-Identifier: MIT
 * The inputs of golden cases: tools/golden/inputs.py in C. A change here is a change there. */
#include "harness_golden.h"

#include <math.h>
#include <string.h>

/* What a case's tensors are made from and where they go. */
struct maker {
    struct guard *guard;
    const struct golden_case *c;
    const cmoe_problem *p;
};

/* The numbers behind a tensor. */
static struct rng stream(uint64_t seed, const char *name)
{
    uint64_t h = 0xCBF29CE484222325U;
    for (; *name; name++)
        h = (h ^ (uint8_t)*name) * 0x100000001B3U;
    return (struct rng){.state = h ^ seed};
}

static void *buffer(const struct maker *m, int64_t count, size_t size)
{
    return guard_alloc(m->guard, (size_t)count * size, size, GUARD_INPUT);
}

/* log2 of the scale that brings codes of a type to the size of weights, and of static activation
 * scales, which let the largest values saturate. */
static int code_base(cmoe_dtype dtype)
{
    static const int base[CMOE_DTYPE_COUNT] = {
        [CMOE_E4M3] = -9, [CMOE_E4M3FNUZ] = -8, [CMOE_E5M2] = -5, [CMOE_I8] = -8,
        [CMOE_U8] = -8,   [CMOE_I4] = -4,       [CMOE_U4] = -4,   [CMOE_E2M1] = -4,
    };
    return base[dtype];
}

static int static_base(cmoe_dtype dtype)
{
    static const int base[CMOE_DTYPE_COUNT] = {
        [CMOE_E4M3] = -8, [CMOE_E4M3FNUZ] = -7, [CMOE_E5M2] = -15,
        [CMOE_I8] = -6,   [CMOE_E2M1] = -10,
    };
    return base[dtype];
}

/* --- element rules ------------------------------------------------------------------------------*/

static float grid_value(uint64_t u, float unit)
{
    const float k = (float)((int)(u % 129) - 64);
    return k * unit * ((u >> 32) % 16 == 0 ? 4.0F : 1.0F);
}

static float scale_value(uint64_t u, int base)
{
    return ldexpf(1.0F + (float)((u >> 8) % 8) / 8.0F, base + (int)(u % 3) - 1);
}

static uint8_t code_value(uint64_t u, cmoe_dtype dtype)
{
    unsigned low = 0, high = 0;
    if (dtype == CMOE_E4M3) high = 0x7F;
    if (dtype == CMOE_E4M3FNUZ) high = 0x80;
    if (dtype == CMOE_E5M2) low = 0x28, high = 0x50;
    if (high == 0) return (uint8_t)(u % (cmoe_dtype_bits(dtype) == 8 ? 256 : 16));
    const unsigned magnitude = low + (unsigned)(u % (high - low));
    if (magnitude == 0 && dtype == CMOE_E4M3FNUZ) return 0;
    return (uint8_t)(magnitude | (unsigned)((u >> 32) % 2) << 7);
}

static float logit_value(uint64_t u, const char *kind)
{
    if (strcmp(kind, "real") == 0) return (float)(u % (1U << 20)) / 131072.0F - 4.0F;
    if (strcmp(kind, "ties") == 0) return (float)(u % 5) / 2.0F - 1.0F;
    const float eighths = (float)(u % 65) / 8.0F - 4.0F;
    if (strcmp(kind, "wild") != 0) return eighths;
    const unsigned pick = (unsigned)((u >> 32) % 12);
    if (pick == 0) return NAN;
    if (pick == 1) return INFINITY;
    return pick < 6 ? -INFINITY : eighths;
}

/* --- tensors ------------------------------------------------------------------------------------*/

/* count values of type dtype from floats. */
static void *converted(const struct maker *m, cmoe_dtype dtype, const float *v, int64_t count)
{
    void *const out = buffer(m, count, (size_t)cmoe_dtype_bits(dtype) / 8);
    expect_ok(cmoe_convert(dtype, out, CMOE_F32, v, count));
    return out;
}

static float *grid(const struct maker *m, const char *name, int64_t count, float unit)
{
    struct rng s = stream(m->c->seed, name);
    float *const v = buffer(m, count, sizeof *v);
    for (int64_t i = 0; i < count; i++)
        v[i] = grid_value(rng_u64(&s), unit);
    return v;
}

/* The caller's x [rows, H]: rows of three sizes. */
static void *activations(const struct maker *m, int64_t rows)
{
    const int64_t cols = m->p->hidden;
    float *const v = grid(m, "x", rows * cols, 1.0F / 64.0F);
    for (int64_t i = 0; i < rows * cols; i++)
        v[i] = ldexpf(v[i], (int)(i / cols % 3) - 1);
    return converted(m, (cmoe_dtype)m->p->in, v, rows * cols);
}

static float *scales(const struct maker *m, const char *name, int64_t count, int base)
{
    struct rng s = stream(m->c->seed, name);
    float *const v = buffer(m, count, sizeof *v);
    for (int64_t i = 0; i < count; i++)
        v[i] = scale_value(rng_u64(&s), base);
    return v;
}

/* rows of cols codes, each row starting on a byte. */
static uint8_t *codes(const struct maker *m, const char *name, int64_t rows, int64_t cols,
                      cmoe_dtype dtype)
{
    struct rng s = stream(m->c->seed, name);
    const bool nibbles = cmoe_dtype_bits(dtype) == 4;
    const int64_t stride = nibbles ? (cols + 1) / 2 : cols;
    uint8_t *const out = buffer(m, rows * stride, 1);
    memset(out, 0, (size_t)(rows * stride));
    for (int64_t i = 0; i < rows * cols; i++) {
        const uint8_t c = code_value(rng_u64(&s), dtype);
        const int64_t row = i / cols, col = i % cols;
        if (nibbles) {
            uint8_t *const byte = &out[row * stride + col / 2];
            *byte = (uint8_t)(*byte | (col % 2 ? c << 4 : c));
        } else {
            out[i] = c;
        }
    }
    return out;
}

/* Scales of a weight matrix or of pre-quantised x, in the type that the format has. */
static void *format_scales(const struct maker *m, const char *name, int64_t count, cmoe_format f,
                           int base)
{
    struct rng s = stream(m->c->seed, name);
    if (f.scaling == CMOE_SCALE_MX || f.scaling == CMOE_SCALE_NV) {
        uint8_t *const out = buffer(m, count, 1);
        for (int64_t i = 0; i < count; i++) {
            const uint64_t u = rng_u64(&s);
            const bool mx = f.scaling == CMOE_SCALE_MX;
            out[i] = (uint8_t)(mx ? 127 + base + (int)(u % 3) - 1 : 0x30 + (int)(u % 17));
        }
        return out;
    }
    float *const v = scales(m, name, count, base);
    return f.scale_dtype == CMOE_NONE ? v : converted(m, (cmoe_dtype)f.scale_dtype, v, count);
}

/* --- the experts --------------------------------------------------------------------------------*/

/* One kind of matrix for all experts, and how far apart an expert's parts are. */
struct fused {
    uint8_t *data, *scale, *zero;
    float *global, *bias, *smooth;
    int64_t rows, cols, row_bytes, scale_rows, scale_cols, scale_size;
};

static int64_t scale_columns(cmoe_format f, int64_t cols)
{
    const int64_t span = f.scaling == CMOE_SCALE_GROUP   ? f.group
                         : f.scaling == CMOE_SCALE_BLOCK ? 128
                         : f.scaling == CMOE_SCALE_MX    ? 32
                         : f.scaling == CMOE_SCALE_NV    ? 16
                                                         : cols;
    return (cols + span - 1) / span;
}

/* Rows of scales of `rows` rows that lie in one block grid. */
static int64_t scale_rows(cmoe_format f, int64_t rows)
{
    if (f.scaling == CMOE_SCALE_TENSOR) return 1;
    return f.scaling == CMOE_SCALE_BLOCK ? (rows + 127) / 128 : rows;
}

static uint8_t *zero_points(const struct maker *m, const char *name, int64_t count)
{
    struct rng s = stream(m->c->seed, name);
    uint8_t *const z = buffer(m, count, 1);
    for (int64_t i = 0; i < count; i++) {
        const uint64_t u = rng_u64(&s);
        z[i] = (uint8_t)(m->p->w.dtype == CMOE_U4 ? u % 16 : 112 + u % 33);
    }
    return z;
}

static void name_of(char name[3], char letter, int matrix)
{
    name[0] = letter;
    name[1] = (char)('0' + matrix);
    name[2] = '\0';
}

/* halves: gate and up rows have block grids of their own. */
static struct fused make_fused(const struct maker *m, int matrix, int64_t rows, int64_t cols,
                               bool halves)
{
    const cmoe_format f = m->p->w;
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    const int64_t n = cmoe_problem_local_experts(m->p);
    const int bits = cmoe_dtype_bits(dtype), base = code_base(dtype);
    struct fused w = {.rows = rows, .cols = cols, .row_bytes = (cols * bits + 7) / 8};
    char name[3];
    name_of(name, 'w', matrix);
    if (f.scaling == CMOE_SCALE_NONE) {
        w.data =
            converted(m, dtype, grid(m, name, n * rows * cols, 1.0F / 256.0F), n * rows * cols);
        return w;
    }
    w.data = codes(m, name, n * rows, cols, dtype);
    w.scale_rows = halves ? 2 * scale_rows(f, rows / 2) : scale_rows(f, rows);
    w.scale_cols = scale_columns(f, cols);
    const bool bytes = f.scaling == CMOE_SCALE_MX || f.scaling == CMOE_SCALE_NV;
    w.scale_size = bytes ? 1 : f.scale_dtype == CMOE_BF16 || f.scale_dtype == CMOE_F16 ? 2 : 4;
    const int64_t count = n * w.scale_rows * w.scale_cols;
    name_of(name, 's', matrix);
    w.scale = format_scales(m, name, count, f, base);
    name_of(name, 'z', matrix);
    if (f.zero) w.zero = zero_points(m, name, count);
    name_of(name, 'g', matrix);
    if (f.scaling == CMOE_SCALE_NV) w.global = scales(m, name, n, base);
    return w;
}

/* Rows [first, ...) of expert e; `grid_row` is the first row of scales they use. */
static cmoe_matrix view(const struct fused *w, int64_t e, int64_t first, int64_t grid_row)
{
    const int64_t scale = (e * w->scale_rows + grid_row) * w->scale_cols;
    return (cmoe_matrix){
        .data = w->data + (e * w->rows + first) * w->row_bytes,
        .scale = w->scale ? w->scale + scale * w->scale_size : NULL,
        .zero = w->zero ? w->zero + scale : NULL,
        .global = w->global ? w->global + e : NULL,
        .bias = w->bias ? w->bias + e * w->rows + first : NULL,
        .smooth = w->smooth ? w->smooth + e * w->cols : NULL,
    };
}

static void make_weights(const struct maker *m, cmoe_weights_desc *out)
{
    const cmoe_problem *const p = m->p;
    const int64_t n = cmoe_problem_local_experts(p), rows1 = cmoe_problem_rows1(p);
    const bool split = p->gate == CMOE_GATE_SPLIT && !(p->flags & CMOE_BLOCK_JOINT);
    const bool halves = split && p->w.scaling == CMOE_SCALE_BLOCK;
    struct fused w1 = make_fused(m, 1, rows1, p->hidden, halves);
    struct fused w2 = make_fused(m, 2, p->hidden, p->inter, false);
    if (p->flags & CMOE_BIAS1) w1.bias = grid(m, "b1", n * rows1, 1.0F / 128.0F);
    if (p->flags & CMOE_BIAS2) w2.bias = grid(m, "b2", n * p->hidden, 1.0F / 128.0F);
    if (p->x.scaling == CMOE_SCALE_SMOOTH) w1.smooth = scales(m, "m1", n * p->hidden, 0);
    if (p->mid.scaling == CMOE_SCALE_SMOOTH) w2.smooth = scales(m, "m2", n * p->inter, 0);
    /* Half of the cases give gate and up as two matrices. */
    const bool apart = split && m->c->seed % 2 == 1;
    cmoe_matrix *const gate = buffer(m, n, sizeof *gate), *const down = buffer(m, n, sizeof *down);
    cmoe_matrix *const up = apart ? buffer(m, n, sizeof *up) : NULL;
    for (int64_t e = 0; e < n; e++) {
        gate[e] = view(&w1, e, 0, 0);
        down[e] = view(&w2, e, 0, 0);
        const int64_t grid_row = p->w.scaling == CMOE_SCALE_TENSOR ? 0 : w1.scale_rows / 2;
        if (up) up[e] = view(&w1, e, p->inter, grid_row);
    }
    *out = (cmoe_weights_desc){.struct_size = sizeof *out, .gate_up = gate, .up = up, .down = down};
}

/* --- routing ------------------------------------------------------------------------------------*/

static int32_t *plain_ids(const struct maker *m)
{
    const cmoe_problem *const p = m->p;
    struct rng s = stream(m->c->seed, "ids");
    const int32_t slots = cmoe_problem_slots(p);
    int32_t *const ids = buffer(m, (int64_t)p->max_tokens * slots, sizeof *ids);
    for (int32_t t = 0; t < p->max_tokens; t++) {
        const int32_t start = (int32_t)(rng_u64(&s) % (uint64_t)p->experts);
        for (int32_t k = 0; k < slots; k++)
            ids[t * slots + k] = k < p->topk ? (start + k) % p->experts : p->experts + k - p->topk;
    }
    return ids;
}

/* Duplicates, ids out of range, and token 2 with none that is valid. */
static int32_t *rough_ids(const struct maker *m)
{
    const cmoe_problem *const p = m->p;
    struct rng s = stream(m->c->seed, "ids");
    const int32_t slots = cmoe_problem_slots(p), total = p->experts + p->shared;
    const int32_t wild[] = {-1, total, INT32_MAX, INT32_MIN};
    int32_t *const ids = buffer(m, (int64_t)p->max_tokens * slots, sizeof *ids);
    for (int32_t i = 0; i < p->max_tokens * slots; i++) {
        const uint64_t u = rng_u64(&s);
        const bool lost = i / slots == 2, first = i % slots == 0;
        const unsigned kind = (unsigned)(u % 8) % (lost ? 4U : 8U);
        ids[i] = (int32_t)((u >> 8) % (uint64_t)total);
        if (kind < 4 && (!first || lost)) ids[i] = wild[kind];
        if (kind == 4 && !first) ids[i] = ids[i - 1];
    }
    return ids;
}

static int32_t *batched_counts(const struct maker *m)
{
    const int64_t n = cmoe_problem_local_experts(m->p);
    struct rng s = stream(m->c->seed, "counts");
    int32_t *const counts = buffer(m, n, sizeof *counts);
    for (int64_t e = 0; e < n; e++)
        counts[e] = 2 + (int32_t)(rng_u64(&s) % (uint64_t)(m->p->capacity - 1));
    counts[1] = 0;
    return counts;
}

static float *route_weights(const struct maker *m)
{
    const int64_t count = (int64_t)m->p->max_tokens * cmoe_problem_slots(m->p);
    struct rng s = stream(m->c->seed, "r");
    float *const r = buffer(m, count, sizeof *r);
    for (int64_t i = 0; i < count; i++)
        r[i] = (float)(rng_u64(&s) % 64 + 1) / 64.0F;
    return r;
}

static int32_t *expert_map(const struct maker *m)
{
    const int32_t total = m->p->experts + m->p->shared;
    const int32_t local = cmoe_problem_local_experts(m->p);
    int32_t step = 7;
    while (step > 1 && total % step == 0)
        step -= 2;
    int32_t *const map = buffer(m, total, sizeof *map);
    for (int32_t i = 0; i < total; i++) {
        const int32_t v = (i * step + 3) % total;
        map[i] = v < local ? v : v % 2 == 0 ? 1000 + v : -1;
    }
    return map;
}

static void make_hash(const struct maker *m, cmoe_tensors *t)
{
    enum { VOCAB = 11 };
    const cmoe_problem *const p = m->p;
    const bool wild = m->c->kind == GOLDEN_ROUTER;
    struct rng s = stream(m->c->seed, "table"), r = stream(m->c->seed, "tokens");
    int32_t *const table = buffer(m, (int64_t)VOCAB * p->topk, sizeof *table);
    int64_t *const tokens = buffer(m, p->max_tokens, sizeof *tokens);
    for (int32_t i = 0; i < VOCAB * p->topk; i++) {
        const uint64_t range = (uint64_t)p->experts + (wild ? 2 : 0);
        table[i] = (int32_t)(rng_u64(&s) % range) - (wild ? 1 : 0);
    }
    for (int32_t i = 0; i < p->max_tokens; i++)
        tokens[i] = (int64_t)(rng_u64(&r) % VOCAB);
    t->hash_table = table;
    t->token_ids = tokens;
    t->vocab = VOCAB;
}

static const void *make_logits(const struct maker *m, int64_t columns)
{
    const cmoe_problem *const p = m->p;
    const char *const kind = m->c->inputs;
    const int64_t count = p->max_tokens * columns;
    struct rng s = stream(m->c->seed, "logits");
    float *const v = buffer(m, count, sizeof *v);
    for (int64_t i = 0; i < count; i++) {
        v[i] = logit_value(rng_u64(&s), kind);
        if (strcmp(kind, "wild") != 0) continue;
        if (i < columns || (i < 2 * columns && isfinite(v[i]))) v[i] = -INFINITY;
    }
    return converted(m, (cmoe_dtype)p->logits, v, count);
}

static void make_router(const struct maker *m, cmoe_tensors *t)
{
    const cmoe_problem *const p = m->p;
    const int64_t columns = p->experts + (p->flags & CMOE_SHARED_SIGMOID ? p->shared : 0);
    if (p->flags & CMOE_ROUTE_FROM_X) {
        t->router_w = grid(m, "wr", columns * p->hidden, 1.0F / 256.0F);
        if (strcmp(m->c->inputs, "nobr") != 0) t->router_b = grid(m, "br", columns, 1.0F / 64.0F);
    } else {
        t->logits = make_logits(m, columns);
    }
    if (p->flags & CMOE_ROUTE_BIAS) {
        struct rng s = stream(m->c->seed, "bias");
        float *const bias = buffer(m, p->experts, sizeof *bias);
        for (int64_t i = 0; i < p->experts; i++)
            bias[i] = (float)(rng_u64(&s) % 65536) / 262144.0F - 0.125F;
        t->route_bias = bias;
    }
    if (p->flags & CMOE_HASH) make_hash(m, t);
}

/* --- the call -----------------------------------------------------------------------------------*/

static void make_x(const struct maker *m, cmoe_tensors *t)
{
    const cmoe_problem *const p = m->p;
    const cmoe_format f = p->x;
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    const int64_t rows = p->max_tokens;
    if (!(p->flags & CMOE_X_QUANTIZED)) {
        t->x = activations(m, rows);
        if (f.fixed) t->x_scale = scales(m, "xfix", 1, static_base(dtype));
    } else {
        const int base = code_base(dtype) + 2;
        const int64_t per_row = f.scaling == CMOE_SCALE_TENSOR ? 0 : scale_columns(f, p->hidden);
        t->x = codes(m, "x", rows, p->hidden, dtype);
        t->x_scale = format_scales(m, "xs", per_row ? rows * per_row : 1, f, base);
        if (f.scaling == CMOE_SCALE_NV) t->x_global = scales(m, "xg", f.fixed ? 1 : rows, base);
    }
}

void golden_inputs_make(struct guard *g, const struct golden_case *c, const cmoe_problem *p,
                        struct golden_inputs *out)
{
    const struct maker m = {.guard = g, .c = c, .p = p};
    const int64_t slots = cmoe_problem_slots(p);
    *out = (struct golden_inputs){
        .tensors = {.struct_size = sizeof out->tensors, .n_tokens = p->max_tokens},
        .y_count = p->max_tokens * (p->flags & CMOE_NO_REDUCE ? slots : 1) * p->hidden,
    };
    const bool experts = p->last == CMOE_STAGE_COMBINE;
    if (experts || p->flags & CMOE_ROUTE_FROM_X) make_x(&m, &out->tensors);
    if (p->first == CMOE_STAGE_ROUTE && p->router != CMOE_ROUTE_ALL) make_router(&m, &out->tensors);
    if (!experts) return;
    make_weights(&m, &out->weights);
    if (p->mid.fixed) {
        const int base = static_base((cmoe_dtype)p->mid.dtype) + 2;
        out->tensors.mid_scale = scales(&m, "mfix", 1, base);
    }
    if (p->capacity > 0) {
        out->tensors.expert_offsets = batched_counts(&m);
    } else if (p->first > CMOE_STAGE_ROUTE) {
        out->tensors.topk_ids = strcmp(c->inputs, "rough") == 0 ? rough_ids(&m) : plain_ids(&m);
        out->tensors.topk_weights = route_weights(&m);
    }
    if (p->flags & CMOE_EXPERT_MAP) out->tensors.expert_map = expert_map(&m);
    if (p->accumulate > 0) {
        const float *const v = grid(&m, "y0", out->y_count, 1.0F / 16.0F);
        out->y0 = converted(&m, (cmoe_dtype)p->y, v, out->y_count);
    }
}

/* --- quantisers ---------------------------------------------------------------------------------*/

float *golden_wide(struct guard *g, const struct golden_case *c, const cmoe_problem *p)
{
    static const int size[10] = {0, 10, -20, -134, 3, 0, 1, -2, 14, -30}; /* log2, of row % 10 */
    const int64_t rows = p->max_tokens, cols = p->hidden;
    struct rng s = stream(c->seed, "wide");
    float *const v = guard_alloc(g, (size_t)(rows * cols) * sizeof *v, sizeof *v, GUARD_INPUT);
    for (int64_t i = 0; i < rows * cols; i++) {
        const uint64_t u = rng_u64(&s);
        const int64_t row = i / cols % 10;
        const int exponent = size[row] - 6 - (int)((u >> 8) % 4);
        const bool zero = (u >> 16) % 9 == 0 || row == 5;
        v[i] = zero ? 0 : ldexpf((float)((int)(u % 129) - 64), exponent);
    }
    if (strcmp(c->inputs, "broken") == 0) {
        v[6 * cols + cols / 2] = NAN;
        v[7 * cols + cols - 1] = -INFINITY;
    }
    return v;
}

float golden_static_scale(const struct golden_case *c, cmoe_dtype dtype)
{
    struct rng s = stream(c->seed, "xfix");
    return scale_value(rng_u64(&s), static_base(dtype));
}
