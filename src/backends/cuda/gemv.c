/* SPDX-License-Identifier: MIT
 * A handful of tokens without a sort: two kernels, one writes h of every slot, one y. */
#include "backends/cuda/gemv.h"

#include "backends/cuda/families.h"
#include "backends/cuda/params_gemv.h"
#include "backends/cuda/route.h"
#include "core/fail.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

enum {
    MOST_TOKENS = 8,
    MOST_DECODED = 32, /* of 4-bit weights, which the rows for many tokens are slow for */
    SHARED_BYTES = 200 * 1024,
    BOTH_BYTES = 221 * 1024,  /* of a block of either kernel, beside what blocks take anyway */
    ALONE_BYTES = 111 * 1024, /* the least of which two blocks do not fit */
    LEAST_DEPTH = 4,
    RELEASE_STEPS = 5,     /* GEMM2 starts when GEMM1's warps have as many steps to ask for */
    WIDE_BYTES = 16 << 20, /* experts whose rows L2 fetches 256 bytes at a time */
    START_US = 7,
    COLUMNS_A_US = 1000, /* of rows that are made to multiply 4-bit codes */
    ODD_US = 3,          /* a row that routes is dearer than two rows, measured on an H100 */
    LEAST_BLOCKS = 64,   /* a block then has tiles of two tokens at most */
    WARPS = CMOE_GEMV_THREADS / 32,
    ROWS = 8, /* of a tile */
};

#define PAIR(w, name, x)                                                                           \
    {                                                                                              \
        w, x, false, CMOE_CUDA_cmoe_gemv1_##name, CMOE_CUDA_cmoe_gemv2_##name                      \
    }
#define ROUTED(w, name, x)                                                                         \
    {                                                                                              \
        w, x, true, CMOE_CUDA_cmoe_route_gemv1_##name, CMOE_CUDA_cmoe_route_gemv2_##name           \
    }

static const struct {
    uint8_t w,
        x; /* types of w, and of what it is multiplied as; I8 and I4 stand for unsigned w too */
    bool routes;
    enum cmoe_cuda_function gemm1, gemm2;
} kernels[] = {
    PAIR(CMOE_BF16, bf16, CMOE_BF16),        PAIR(CMOE_F16, f16, CMOE_F16),
    PAIR(CMOE_E4M3, e4m3_bf16, CMOE_BF16),   PAIR(CMOE_E4M3, e4m3_f16, CMOE_F16),
    PAIR(CMOE_I8, i8_bf16, CMOE_BF16),       PAIR(CMOE_I8, i8_f16, CMOE_F16),
    PAIR(CMOE_I4, i4_bf16, CMOE_BF16),       PAIR(CMOE_I4, i4_f16, CMOE_F16),
    PAIR(CMOE_E2M1, e2m1_bf16, CMOE_BF16),   PAIR(CMOE_E2M1, e2m1_f16, CMOE_F16),
    PAIR(CMOE_I8, i8_i8, CMOE_I8),           PAIR(CMOE_I4, i4_i8, CMOE_I8),
    PAIR(CMOE_GEMV_NV, nv_bf16, CMOE_BF16),  PAIR(CMOE_GEMV_NV, nv_f16, CMOE_F16),
    PAIR(CMOE_GEMV_MX8, mx8_f16, CMOE_F16),  ROUTED(CMOE_BF16, bf16, CMOE_BF16),
    ROUTED(CMOE_E4M3, e4m3_f16, CMOE_F16),   ROUTED(CMOE_I4, i4_bf16, CMOE_BF16),
    ROUTED(CMOE_E2M1, e2m1_bf16, CMOE_BF16),
};

enum { KERNELS = sizeof kernels / sizeof *kernels };

static int kind_of(cmoe_format w)
{
    if (w.scaling == CMOE_SCALE_NV) return CMOE_GEMV_NV;
    if (w.dtype == CMOE_E4M3 && w.scaling == CMOE_SCALE_MX) return CMOE_GEMV_MX8;
    return w.dtype == CMOE_U8 ? CMOE_I8 : (w.dtype == CMOE_U4 ? CMOE_I4 : w.dtype);
}

/* Codes of e4m3 and e2m1 are exact in f16. */
static int operand_of(cmoe_format x)
{
    return x.dtype == CMOE_E4M3 || x.dtype == CMOE_E2M1 ? CMOE_F16 : x.dtype;
}

static int find(const struct cmoe_kernel *k, cmoe_format x, cmoe_format w)
{
    const bool routes = k->first == CMOE_STAGE_ROUTE;
    const int as = kind_of(w), operand = operand_of(x);
    for (int i = 0; i < KERNELS; i++)
        if (kernels[i].w == as && kernels[i].x == operand && kernels[i].routes == routes) return i;
    return KERNELS;
}

/* log2 of the columns of x that have a factor of their own, its scale or what makes bf16 fit f16; 30: all. */
static int factor_shift(cmoe_format w, cmoe_format x)
{
    if (x.scaling == CMOE_SCALE_MX) return 5;
    const bool fit = cmoe_dtype_bits((cmoe_dtype)w.dtype) == 4 && x.dtype == CMOE_BF16;
    return fit || x.scaling == CMOE_SCALE_GROUP ? 7 : 30;
}

/* How a kernel's work is cut, and its shared memory. */
struct cut {
    int32_t strips, pieces, steps, spans, x_spans, depth;
    int32_t x_at, factor_at, amax_at, part_at;
    size_t bytes;
};

static struct cut cut_at_depth(const cmoe_problem *p, const struct cmoe_shape *s, int tokens,
                               bool first, int depth)
{
    const int bits = cmoe_dtype_bits((cmoe_dtype)p->w.dtype);
    const cmoe_format x = first ? p->x : p->mid;
    const int64_t columns = first ? s->h_used : s->i_used, outputs = first ? s->I : s->H;
    const int64_t piece = 128 / bits, step = 8 * piece;
    const int64_t strips = cmoe__ceil_div(outputs, first && s->gated ? ROWS / 2 : ROWS);
    const int64_t steps = cmoe__ceil_div(columns, step);
    const int64_t spans = cmoe__ceil_div(steps * step, (int64_t)1 << factor_shift(p->w, x));
    const int64_t tiles = cmoe__ceil_div(tokens * strips * (first ? s->slots : 1), LEAST_BLOCKS);
    const int64_t rows = (tokens > 1 ? 2 : 1) * (first ? 1 : s->slots);
    const int64_t ring = CMOE_GEMV_CODES + (bits < 16 ? CMOE_GEMV_SCALES : 0);
    const int64_t x_at = (int64_t)WARPS * depth * ring;
    const int64_t factor_at = x_at + rows * steps * step * (operand_of(x) == CMOE_I8 ? 1 : 2);
    const int64_t amax_at = factor_at + rows * spans * 4, part_at = amax_at + rows * 4;
    const int64_t parts = 3 * tiles > WARPS * WARPS ? 3 * tiles : WARPS * WARPS;
    return (struct cut){
        .strips = (int32_t)strips,
        .pieces = (int32_t)cmoe__ceil_div(columns, piece),
        .steps = (int32_t)steps,
        .depth = depth,
        .spans = (int32_t)spans,
        .x_spans = (int32_t)cmoe__ceil_div(steps * step, 128),
        .x_at = (int32_t)x_at,
        .factor_at = (int32_t)factor_at,
        .amax_at = (int32_t)amax_at,
        .part_at = (int32_t)part_at,
        .bytes = (size_t)(part_at + parts * ROWS * 4),
    };
}

/* GEMM2 starts while GEMM1 still runs, a block of each on a multiprocessor: with as many steps in
 * flight as there is room for, and never so small that two of its blocks fit where GEMM1 ends first. */
static struct cut cut_work(const cmoe_problem *p, const struct cmoe_shape *s, int tokens,
                           bool first)
{
    static const int depths[] = {8, 6, CMOE_GEMV_DEPTH, LEAST_DEPTH};
    const struct cut one = cut_at_depth(p, s, tokens, true, CMOE_GEMV_DEPTH);
    if (first) return one;
    struct cut c;
    for (size_t i = 0; i < sizeof depths / sizeof *depths; i++) {
        c = cut_at_depth(p, s, tokens, false, depths[i]);
        if (c.bytes < ALONE_BYTES) c.bytes = ALONE_BYTES;
        if (one.bytes + c.bytes <= BOTH_BYTES) return c;
    }
    return cut_at_depth(p, s, tokens, false, CMOE_GEMV_DEPTH);
}

static bool is_plain(cmoe_format f)
{
    return f.scaling == CMOE_SCALE_NONE && (f.dtype == CMOE_BF16 || f.dtype == CMOE_F16);
}

/* What a block quantises by itself: it has whole rows, of one token all. */
static bool is_made(cmoe_format f, cmoe_format w, int tokens)
{
    const int kind = kind_of(w);
    if (f.rounding != CMOE_ROUND_NEAREST_EVEN) return false;
    if (f.dtype == CMOE_I8) /* 8-bit products have no room for zero points */
        return f.scaling == CMOE_SCALE_TOKEN &&
               (kind == CMOE_I4 || (w.dtype == CMOE_I8 && !w.zero));
    if (f.scaling == CMOE_SCALE_NV) return kind == CMOE_GEMV_NV;
    if (f.dtype == CMOE_E2M1) return f.scaling == CMOE_SCALE_MX && kind == CMOE_E2M1;
    if (f.dtype != CMOE_E4M3) return false;
    if (f.scaling == CMOE_SCALE_MX) return kind == CMOE_E2M1 || kind == CMOE_GEMV_MX8;
    if (f.scaling == CMOE_SCALE_TENSOR) return f.fixed || tokens == 1;
    if (f.scaling == CMOE_SCALE_GROUP) return f.group == 128 && f.scale_dtype == CMOE_NONE;
    return f.scaling == CMOE_SCALE_TOKEN;
}

/* Blocks route before weights come to the ring; what they choose, only GEMM2 sees of all blocks. */
static bool routing_fits(const struct cmoe_query *q, struct cmoe_why *why)
{
    const size_t room = (size_t)WARPS * LEAST_DEPTH * CMOE_GEMV_CODES;
    if (q->p->weight_on == CMOE_WEIGHT_ON_GEMM1 || q->p->weight_on == CMOE_WEIGHT_ON_ACT)
        return cmoe__refuse(why, "weights count before all blocks see them");
    if (q->p->x.scaling == CMOE_SCALE_TENSOR || q->p->mid.scaling == CMOE_SCALE_TENSOR)
        return cmoe__refuse(why, "rows share a scale");
    if (cmoe__cuda_route_floats(q->p) * 4 * (size_t)q->tokens > room)
        return cmoe__refuse(why, "routing %d tokens does not fit in shared memory", q->tokens);
    return true;
}

static bool formats_fit(const struct cmoe_kernel *k, const struct cmoe_query *q,
                        struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    const int bits = cmoe_dtype_bits((cmoe_dtype)p->w.dtype);
    const int span = (int)cmoe__format_span(p->w, 0);
    if ((bits < 16) != (p->w.scaling != CMOE_SCALE_NONE) ||
        (span > 0 && span < (p->w.scaling == CMOE_SCALE_NV ? 16 : 32)))
        return cmoe__refuse(why, "there is no kernel for these weights");
    if (find(k, p->x, p->w) == KERNELS || find(k, p->mid, p->w) == KERNELS)
        return cmoe__refuse(why, "there is no kernel for these weights and rows");
    const bool quantizes = q->shape->quant && is_made(p->x, p->w, q->tokens);
    const bool plain = !q->shape->quant && is_plain(p->x);
    if ((k->first == CMOE_STAGE_SORT || !quantizes) && (k->first == CMOE_STAGE_QUANT || !plain))
        return cmoe__refuse(why, "x is of another format than the row quantises or takes");
    if (!is_plain(p->mid) && !is_made(p->mid, p->w, q->tokens))
        return cmoe__refuse(why, "the intermediate is of another format than the row makes");
    if (!is_plain(p->mid) && (p->flags & CMOE_MID_ROUNDED))
        return cmoe__refuse(why, "the intermediate is rounded before it is quantised");
    return true;
}

bool cmoe__cuda_gemv_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                              struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    const struct cmoe_shape *s = q->shape;
    if (q->props->arch != 90) return cmoe__refuse(why, "needs compute capability 9.0");
    if (!formats_fit(k, q, why)) return false;
    if (s->batched || s->x_slots || s->m_indices || (p->flags & CMOE_NO_REDUCE))
        return cmoe__refuse(why, "only from token rows to token rows");
    if (p->flags & CMOE_BATCH_INVARIANT)
        return cmoe__refuse(why, "sums in another order than the rows for many tokens");
    const bool decodes =
        cmoe_dtype_bits((cmoe_dtype)p->w.dtype) == 4 && k->first != CMOE_STAGE_ROUTE;
    const int most = decodes ? MOST_DECODED : MOST_TOKENS;
    if (q->tokens > most || (int64_t)q->tokens * s->slots > CMOE_GEMV_ROWS)
        return cmoe__refuse(why, "%d tokens share too many weights", q->tokens);
    if (cut_work(p, s, q->tokens, true).bytes > SHARED_BYTES ||
        cut_work(p, s, q->tokens, false).bytes > SHARED_BYTES)
        return cmoe__refuse(why, "the rows of %d tokens do not fit in shared memory", q->tokens);
    if (k->first == CMOE_STAGE_ROUTE && !routing_fits(q, why)) return false;
    if (in.layout != cmoe__usual_edge(p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    *out = cmoe__usual_edge(p, k->last + 1);
    return true;
}

/* The part of the memory's rate that weights stream at, measured on an H100. Over 1: what the tokens of
 * a call share comes from L2 the second time, and the rows for many tokens have costs of their own. */
static double stream_share(int bits, bool integers, double expert, int tokens)
{
    if (bits == 16) return 0.88;
    if (bits == 4) return 0.8;
    if (expert > WIDE_BYTES || tokens == 1) return 0.825;
    return tokens > 4 ? (integers ? 0.9 : 0.75) : 1.0;
}

/* Weights are read again for every row of an expert. */
double cmoe__cuda_gemv_cost(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double rows = cmoe__shape_local_rows(q->p, q->shape, q->tokens);
    const double expert = cmoe__expert_bytes(q->p, 1) + cmoe__expert_bytes(q->p, 2);
    const int bits = cmoe_dtype_bits((cmoe_dtype)q->p->w.dtype);
    const double columns = (double)q->shape->H + (double)q->shape->slots * (double)q->shape->I;
    const double quantizing = bits == 4 ? columns / COLUMNS_A_US : (q->shape->quant ? 2 : 0);
    const double routing = k->first == CMOE_STAGE_ROUTE ? cmoe__cuda_cost_us(k, q) + ODD_US : 0;
    const double rate =
        q->props->gbps * 1e3 * stream_share(bits, q->p->x.dtype == CMOE_I8, expert, q->tokens);
    return START_US + routing + quantizing + rows * expert / rate;
}

static size_t h_bytes(const struct cmoe_shape *s, int tokens)
{
    return (size_t)((int64_t)tokens * s->slots * s->I) * 4;
}

/* h of every slot, and logits if they come from x. */
size_t cmoe__cuda_gemv_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const bool routes = k->first == CMOE_STAGE_ROUTE;
    return h_bytes(q->shape, q->tokens) + (routes ? cmoe__cuda_route_scratch(q->p, q->tokens) : 0);
}

static cmoe_gpu_rows rows_of(const struct cmoe_cuda_half *h)
{
    return (cmoe_gpu_rows){.data = h->first.data,
                           .scale = h->first.scale,
                           .bias = h->first.bias,
                           .row_stride = h->row_stride,
                           .expert_stride = h->expert_stride,
                           .scale_stride = h->scale_stride,
                           .bias_stride = h->bias_stride,
                           .first = h->first.first,
                           .step = h->first.step};
}

static bool words(const void *at, int64_t stride)
{
    return (uintptr_t)at % 4 == 0 && stride % 4 == 0;
}

/* Scales that are copied by the word: f32, two or more of e8m0 that share a word, four of NV. */
static bool plain_scales(const cmoe_gpu_gemv *v, int bits)
{
    if (bits == 16) return true;
    if (v->scale_bytes > 1 ? v->scale_type != CMOE_F32 || v->g.w.dtype == CMOE_E2M1
                           : v->scales % (v->scale_type == CMOE_E8M0 ? 2 : 4) != 0)
        return false;
    if (v->g.w.zero) return false;
    for (int h = 0; h < 2; h++)
        if (!words(v->half[h].scale, v->half[h].scale_stride)) return false;
    return true;
}

static int span_shift(cmoe_format w)
{
    const int64_t span = w.scaling == CMOE_SCALE_BLOCK ? 128 : cmoe__format_span(w, 0);
    int shift = 0;
    while (span > 0 && (int64_t)1 << shift < span)
        shift++;
    return span > 0 ? shift : 30;
}

/* Everything about the weights. */
static void describe(const struct cmoe_exec *x, cmoe_gpu_gemv *v, bool first)
{
    const struct cmoe_cuda_weights *w = x->w->state;
    const struct cmoe_cuda_half *half = w->half;
    const cmoe_format f = x->p->w;
    const int bits = cmoe_dtype_bits((cmoe_dtype)f.dtype);
    const bool given = f.scaling == CMOE_SCALE_GROUP && f.scale_dtype != CMOE_NONE;
    v->vectors = w->vectors;
    v->half[0] = rows_of(&half[first ? 0 : 2]);
    v->half[1] = rows_of(&half[first && x->shape->gated ? 1 : (first ? 0 : 2)]);
    v->strided = first ? half[0].all_strided && (!x->shape->gated || half[1].all_strided)
                       : half[2].all_strided;
    v->scale_type = given ? f.scale_dtype : CMOE_F32;
    if (f.scaling == CMOE_SCALE_MX) v->scale_type = CMOE_E8M0;
    if (f.scaling == CMOE_SCALE_NV) v->scale_type = CMOE_E4M3;
    v->scale_bytes = cmoe_dtype_bits((cmoe_dtype)v->scale_type) / 8;
    v->shift = span_shift(f);
    v->scales = (int32_t)((v->g.a_cols + ((int64_t)1 << v->shift) - 1) >> v->shift);
    v->step_scales = 1024 / bits >> v->shift > 1 ? 1024 / bits >> v->shift : 1;
    v->grid_shift = f.scaling == CMOE_SCALE_TENSOR ? 31 : (f.scaling == CMOE_SCALE_BLOCK ? 7 : 0);
    v->plain = v->strided && v->vectors && v->g.k % (128 / bits) == 0 && plain_scales(v, bits);
}

static cmoe_status launch(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                          cmoe_gpu_gemv *v, cmoe_gpu_route *route, bool first)
{
    const struct cut c = cut_work(x->p, x->shape, x->tokens, first);
    const int item = v->from_dtype == CMOE_F32 ? 4 : 2;
    v->p = *x->p;
    v->from_vectors = v->g.k % 4 == 0 && (uintptr_t)v->from % (unsigned)(4 * item) == 0 &&
                      v->from_stride % (4 * item) == 0;
    v->strips = c.strips;
    v->pieces = c.pieces;
    v->steps = c.steps;
    v->depth = c.depth;
    v->release = v->route_floats > 0 ? INT32_MAX : RELEASE_STEPS;
    v->wide = cmoe__expert_bytes(x->p, 1) + cmoe__expert_bytes(x->p, 2) > WIDE_BYTES;
    v->spans = c.spans;
    v->per_span = (1u << 31) / (unsigned)c.x_spans + 1;
    v->x_shift = factor_shift(v->g.w, v->g.x);
    v->x_at = c.x_at;
    v->factor_at = c.factor_at;
    v->amax_at = c.amax_at;
    v->part_at = c.part_at;
    describe(x, v, first);
    const int sms = cmoe__cuda_of(x)->multiprocessors;
    const struct cmoe_cuda_grid grid = {(unsigned)(sms > LEAST_BLOCKS ? sms : LEAST_BLOCKS), 1,
                                        CMOE_GEMV_THREADS, c.bytes};
    void *args[] = {v, route}; /* kernels that do not route have one parameter */
    return cmoe__cuda_launch_after(x, function, grid, args);
}

/* What routes, and the logits that it routes by. */
static cmoe_status prepare_route(const struct cmoe_exec *x, cmoe_gpu_route *route)
{
    char *const scratch = x->scratch; /* NULL where nothing needs any */
    *route = cmoe__cuda_route_params(x, scratch ? scratch + h_bytes(x->shape, x->tokens) : NULL);
    return cmoe__cuda_route_logits(x, route);
}

cmoe_status cmoe__cuda_gemv(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const struct cmoe_kernel *const k = step->kernel;
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const cmoe_dtype h = cmoe__shape_h_dtype(p);
    const int64_t h_stride = s->I * (h == CMOE_F32 ? 4 : 2);
    if (x->tokens == 0) return CMOE_OK;
    cmoe_gpu_gemv first = {
        .g = cmoe__cuda_gemm1_params(x),
        .from = x->x,
        .from_stride = x->x_stride,
        .from_dtype = p->in,
        .fixed = p->x.fixed ? x->t->x_scale : NULL,
        .out = x->scratch,
        .out_stride = h_stride,
        .out_dtype = (int32_t)h,
        .columns = (int32_t)s->I,
        .used = (int32_t)s->i_used,
        .gated = s->gated,
        .weigh = p->weight_on == CMOE_WEIGHT_ON_GEMM1,
    };
    cmoe_gpu_gemv second = {
        .g = cmoe__cuda_gemm2_params(x),
        .from = x->scratch,
        .from_stride = h_stride,
        .from_dtype = (int32_t)h,
        .fixed = p->mid.fixed ? x->t->mid_scale : NULL,
        .out = x->y,
        .out_stride = x->y_stride,
        .out_dtype = p->y,
        .columns = (int32_t)s->H,
        .used = (int32_t)s->h_used,
        .weigh = p->weight_on == CMOE_WEIGHT_ON_OUTPUT,
        .accumulate = p->accumulate,
    };
    cmoe_gpu_route route;
    if (k->first == CMOE_STAGE_ROUTE) {
        first.route_floats = second.route_floats = (int32_t)cmoe__cuda_route_floats(p);
        CMOE_TRY(prepare_route(x, &route));
    }
    CMOE_TRY(launch(x, kernels[find(k, p->x, p->w)].gemm1, &first, &route, true));
    return launch(x, kernels[find(k, p->mid, p->w)].gemm2, &second, &route, false);
}
