/* SPDX-License-Identifier: MIT
 * A handful of tokens by slices of experts: one kernel of both GEMMs, one that adds up what its clusters made. */
#include "backends/cuda/slices.h"

#include "backends/cuda/gemv.h"
#include "backends/cuda/params_slices.h"
#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include <math.h>

enum {
    SPAN = CMOE_SLICE_SPAN,
    CLUSTER = CMOE_SLICE_CLUSTER,
    BLOCK = 128, /* rows and columns of a scale */
    SHARED_BYTES = 226 * 1024,
    START_US = 4,
    ANY_ROUNDS = 1000,
};

static bool is_coded(const cmoe_problem *p)
{
    return p->w.dtype == CMOE_E4M3;
}

static bool is_group(cmoe_format f)
{
    return f.dtype == CMOE_E4M3 && f.scaling == CMOE_SCALE_GROUP && f.group == BLOCK &&
           f.scale_dtype == CMOE_NONE;
}

static bool is_bf16(cmoe_format f)
{
    return f.dtype == CMOE_BF16 && f.scaling == CMOE_SCALE_NONE;
}

static bool formats_fit(const cmoe_problem *p, const struct cmoe_shape *s)
{
    if (is_bf16(p->w)) return is_bf16(p->x) && is_bf16(p->mid);
    return is_coded(p) && p->w.scaling == CMOE_SCALE_BLOCK && s->quant && is_group(p->x) &&
           is_group(p->mid);
}

/* Units of h in a slice, and rows of gate, or of up, of one of its blocks. */
static int units_of(const cmoe_problem *p)
{
    return CMOE_SLICE_BYTES / (is_coded(p) ? 1 : 2);
}

/* Slices left after fewer rounds of clusters than this are halved: where it was measured to end sooner. Of codes, gate
 * and up of half a slice of more tokens would not fit where its h goes. */
static int most_halved(const cmoe_problem *p, int tokens)
{
    if (!is_coded(p)) return 3;
    if (tokens == 1) return ANY_ROUNDS;
    return tokens <= CMOE_SLICE_TOKENS / 2 ? 3 : 0;
}

/* Shared memory from a multiple of 1024 on: the stages, rows of x (of codes all 8, span by span), their scales, the
 * tail. */
struct layout {
    int32_t stages, x_pitch, x_at, x_scale_at, tail_at;
    size_t bytes;
};

static struct layout layout_of(const cmoe_problem *p, const struct cmoe_shape *s, int tokens)
{
    const int64_t pitch = is_coded(p) ? s->H : 2 * s->H + CMOE_SLICE_PAD;
    const int64_t x = cmoe__round_up(pitch * (is_coded(p) ? CMOE_SLICE_TOKENS : tokens), 1024);
    const int64_t scales =
        is_coded(p) ? cmoe__round_up(s->H / BLOCK * CMOE_SLICE_TOKENS * 4, 1024) : 0;
    const int64_t rest = x + scales + CMOE_SLICE_TAIL + 1024;
    const int64_t stages = cmoe__min64((SHARED_BYTES - rest) / CMOE_SLICE_STAGE, CMOE_SLICE_STAGES);
    const int64_t x_at = stages * CMOE_SLICE_STAGE;
    return (struct layout){(int32_t)stages,
                           (int32_t)pitch,
                           (int32_t)x_at,
                           (int32_t)(x_at + x),
                           (int32_t)(x_at + x + scales),
                           (size_t)(x_at + rest)};
}

static bool sizes_fit(const struct cmoe_query *q, struct cmoe_why *why)
{
    const struct cmoe_shape *s = q->shape;
    const int units = units_of(q->p), columns = CLUSTER * CMOE_SLICE_DOWN;
    if (s->H % columns != 0 || s->H > CMOE_SLICE_WIDEST || s->h_used != s->H)
        return cmoe__refuse(why, "hidden=%lld is no multiple of %d up to %d", (long long)s->H,
                            columns, CMOE_SLICE_WIDEST);
    if (s->I % units != 0 || s->i_used != s->I)
        return cmoe__refuse(why, "inter=%lld is not a multiple of %d", (long long)s->I, units);
    if (q->tokens > CMOE_SLICE_TOKENS || q->tokens * s->slots > CMOE_SLICE_IDS)
        return cmoe__refuse(why, "%d tokens are more than a kernel takes", q->tokens);
    if (layout_of(q->p, s, q->tokens).stages < CMOE_SLICE_LEAST_STAGES)
        return cmoe__refuse(why, "the rows of %d tokens do not fit in shared memory", q->tokens);
    return true;
}

/* Whatever lies where no copy engine reads it is left to `*_gemv`, which takes all that these rows do. */
bool cmoe__cuda_slices_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    if (!cmoe__cuda_gemv_supports(k, q, in, out, why)) return false;
    if (!formats_fit(p, q->shape))
        return cmoe__refuse(why, "takes bf16, and e4m3 by blocks and groups of 128");
    if (!q->shape->gated || (p->flags & (CMOE_BIAS1 | CMOE_BIAS2)))
        return cmoe__refuse(why, "takes gated experts without biases");
    if (p->weight_on == CMOE_WEIGHT_ON_GEMM1 || p->weight_on == CMOE_WEIGHT_ON_ACT)
        return cmoe__refuse(why, "weights belong to results");
    return sizes_fit(q, why);
}

/* Rounds of clusters until the last has ended. */
static double rounds_of(const cmoe_problem *p, int tokens, double turns)
{
    const double whole = floor(turns + 1e-6), last = turns - whole;
    if (last <= 1e-6) return whole;
    return whole + (whole < most_halved(p, tokens) && last <= 0.5 ? 0.5 : 1);
}

/* Every expert's weights once, at the rate measured on an H100, and a part of what clusters wait for the last
 * ones: who is left then has the memory to itself. One multiprocessor in ten is in no cluster. */
double cmoe__cuda_slices_cost(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    const double hit = cmoe__experts_hit(q->p, q->tokens) + 1e-9;
    const double expert = cmoe__expert_bytes(q->p, 1) + cmoe__expert_bytes(q->p, 2);
    const double clusters = ceil(0.9 * (double)q->props->threads / CLUSTER);
    const double turns = hit * (double)(q->shape->I / units_of(q->p)) / clusters;
    const double uneven = 1 + 0.15 * (rounds_of(q->p, q->tokens, turns) / turns - 1);
    const double rate = q->props->gbps * 1e3 * (is_coded(q->p) ? 0.92 : 0.94);
    return START_US + hit * expert * (uneven < 1.25 ? uneven : 1.25) / rate;
}

static size_t part_bytes(const struct cmoe_shape *s, int tokens, int clusters)
{
    return (size_t)clusters * (size_t)tokens * (size_t)s->H * 4;
}

size_t cmoe__cuda_slices_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const size_t other = cmoe__cuda_gemv_scratch(k, q);
    const size_t own = part_bytes(q->shape, q->tokens, q->props->threads / CLUSTER);
    return own > other ? own : other;
}

/* Rows of a matrix's half, or of gate and up, and what of them is a box. */
struct source {
    int half;
    int64_t row_bytes, rows, apart; /* apart: bytes from gate to up; 0: one half only */
    int box_rows, box_spans;
};

/* (byte of a span, row, half, span, expert) */
static bool encode_map(const struct cmoe_exec *x, struct source from, CUtensorMap *map)
{
    const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
    const struct cmoe_cuda_weights *w = x->w->state;
    const struct cmoe_cuda_half *h = &w->half[from.half];
    const cuuint64_t halves = from.apart ? 2 : 1;
    const cuuint64_t sizes[5] = {SPAN, (cuuint64_t)from.rows, halves,
                                 (cuuint64_t)(from.row_bytes / SPAN),
                                 (cuuint64_t)cmoe__max64(1, x->w->experts)};
    const cuuint64_t strides[4] = {(cuuint64_t)h->row_stride,
                                   (cuuint64_t)(from.apart ? from.apart : SPAN), SPAN,
                                   (cuuint64_t)h->expert_stride};
    const cuuint32_t box[5] = {SPAN, (cuuint32_t)from.box_rows, (cuuint32_t)halves,
                               (cuuint32_t)from.box_spans, 1};
    const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
    return h->all_strided && cuda->driver->cuTensorMapEncodeTiled(
                                 map, CU_TENSOR_MAP_DATA_TYPE_UINT8, 5, (void *)(uintptr_t)h->data,
                                 sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                 CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* Boxes hold gate and up rows, whichever lie first. */
static bool encode_maps(const struct cmoe_exec *x, cmoe_gpu_slices *v)
{
    const struct cmoe_shape *s = x->shape;
    const struct cmoe_cuda_weights *w = x->w->state;
    const struct cmoe_cuda_half *gate = &w->half[0], *up = &w->half[1];
    const int64_t apart = (int64_t)up->data - (int64_t)gate->data;
    const int bytes = is_coded(x->p) ? 1 : 2, rows = units_of(x->p) / CLUSTER;
    if (!up->all_strided || gate->row_stride != up->row_stride ||
        gate->expert_stride != up->expert_stride)
        return false;
    const struct source first = {
        .half = apart < 0,
        .row_bytes = s->H * bytes,
        .rows = s->I,
        .apart = apart < 0 ? -apart : apart,
        .box_rows = rows,
        .box_spans = CMOE_SLICE_STAGE / 2 / SPAN / rows,
    };
    const struct source second = {
        .half = 2,
        .row_bytes = s->I * bytes,
        .rows = s->H,
        .box_rows = CMOE_SLICE_DOWN,
        .box_spans = CMOE_SLICE_BYTES / SPAN,
    };
    struct source half = second;
    half.box_spans = 1;
    v->swapped = apart < 0;
    return encode_map(x, first, &v->map[0]) && encode_map(x, second, &v->map[1]) &&
           encode_map(x, half, &v->map[2]);
}

/* Where scales lie; false: a block of rows is not a block of scales. */
static bool find_scales(const struct cmoe_exec *x, cmoe_gpu_slices *v)
{
    const struct cmoe_cuda_weights *w = x->w->state;
    if (!is_coded(x->p)) return true;
    v->blocks[0] = (int32_t)cmoe__ceil_div(x->shape->H, BLOCK);
    v->blocks[1] = (int32_t)cmoe__ceil_div(x->shape->I, BLOCK);
    for (int i = 0; i < 3; i++) {
        const cmoe_gpu_half *half = &w->half[i].first;
        if (half->step != 1 || half->first % BLOCK != 0) return false;
        v->scale[i] = (const float *)half->scale + half->first / BLOCK * v->blocks[i / 2];
        v->scale_stride[i] = w->half[i].scale_stride;
    }
    return true;
}

/* Rows of x in pieces of 16 bytes, or of four columns that are quantised. */
static bool x_is_aligned(const struct cmoe_exec *x)
{
    const int piece = is_coded(x->p) && x->p->in != CMOE_F32 ? 8 : 16;
    return (uintptr_t)x->x % (unsigned)piece == 0 && x->x_stride % piece == 0;
}

static cmoe_status add_up(const struct cmoe_exec *x, const cmoe_gpu_slices *v, int clusters)
{
    enum { THREADS = 128 };
    cmoe_gpu_slice_sum s = {
        .call = v->call,
        .part = v->part,
        .y = x->y,
        .y_stride = x->y_stride,
        .accumulate = x->p->accumulate,
        .hidden = v->hidden,
        .dtype = x->p->y,
        .clusters = clusters,
    };
    void *args[] = {&s};
    const struct cmoe_cuda_grid grid = {(unsigned)cmoe__ceil_div(v->hidden, THREADS),
                                        (unsigned)x->tokens, THREADS, 0};
    return cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_slices_sum, grid, args);
}

cmoe_status cmoe__cuda_slices(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const struct cmoe_shape *s = x->shape;
    const struct layout at = layout_of(x->p, s, x->tokens);
    const int clusters = cmoe__cuda_of(x)->slice_clusters, units = units_of(x->p);
    const int64_t spans = s->H * 2 / (is_coded(x->p) ? 256 : 512);
    if (x->tokens == 0) return CMOE_OK;
    cmoe_gpu_slices v = {
        .call = cmoe__cuda_call(x),
        .p = *x->p,
        .x = x->x,
        .x_stride = x->x_stride,
        .x_dtype = x->p->in,
        .spans = (int32_t)spans,
        .per_span = (1u << 31) / (unsigned)spans + 1,
        .slices = (int32_t)(s->I / units),
        .stages = at.stages,
        .stages1 = (int32_t)(s->H / 256),
        .stages2 = (int32_t)(s->H / CLUSTER / CMOE_SLICE_DOWN),
        .x_pitch = at.x_pitch,
        .x_at = at.x_at,
        .x_scale_at = at.x_scale_at,
        .tail_at = at.tail_at,
        .part = x->scratch,
        .hidden = (int32_t)s->H,
        .weigh = x->p->weight_on == CMOE_WEIGHT_ON_OUTPUT,
        .halves = most_halved(x->p, x->tokens),
    };
    if (clusters == 0 || !x_is_aligned(x) || !find_scales(x, &v) || !encode_maps(x, &v))
        return cmoe__cuda_gemv(step, x);
    void *args[] = {&v};
    const struct cmoe_cuda_grid grid = {(unsigned)(clusters * CLUSTER), 1, CMOE_SLICE_THREADS,
                                        at.bytes};
    CMOE_TRY(cmoe__cuda_launch_clusters(
        x, is_coded(x->p) ? CMOE_CUDA_cmoe_slices_e4m3_block : CMOE_CUDA_cmoe_slices_bf16, grid,
        CLUSTER, args));
    return add_up(x, &v, clusters);
}
