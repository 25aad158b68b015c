/* SPDX-License-Identifier: MIT
 * A handful of tokens without a sort: two kernels, one writes h of every slot, one y. */
#include "backends/cuda/gemv.h"

#include "core/fail.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

/* As in kernels/gemv_sm90a.cu. */
enum { THREADS = 512, MOST_ROWS = 64, MOST_TOKENS = 8, SHARED_BYTES = 200 * 1024, START_US = 12 };

static const struct {
    uint8_t w; /* I8 and I4 stand for unsigned weights too */
    enum cmoe_cuda_function gemm1, gemm2;
} kernels[] = {
    {CMOE_BF16, CMOE_CUDA_cmoe_gemv1_bf16, CMOE_CUDA_cmoe_gemv2_bf16},
    {CMOE_F16, CMOE_CUDA_cmoe_gemv1_f16, CMOE_CUDA_cmoe_gemv2_f16},
    {CMOE_E4M3, CMOE_CUDA_cmoe_gemv1_e4m3, CMOE_CUDA_cmoe_gemv2_e4m3},
    {CMOE_I8, CMOE_CUDA_cmoe_gemv1_i8, CMOE_CUDA_cmoe_gemv2_i8},
    {CMOE_I4, CMOE_CUDA_cmoe_gemv1_i4, CMOE_CUDA_cmoe_gemv2_i4},
    {CMOE_E2M1, CMOE_CUDA_cmoe_gemv1_e2m1, CMOE_CUDA_cmoe_gemv2_e2m1},
};

enum { KERNELS = sizeof kernels / sizeof *kernels };

static int find(cmoe_format w)
{
    const int as = w.dtype == CMOE_U8 ? CMOE_I8 : (w.dtype == CMOE_U4 ? CMOE_I4 : w.dtype);
    for (int i = 0; i < KERNELS; i++)
        if (kernels[i].w == as) return i;
    return KERNELS;
}

/* Columns of x or h as f32, in whole pieces of 16 bytes of weights. */
static int64_t staged_columns(cmoe_format w, int64_t columns)
{
    return cmoe__round_up(columns, 128 / cmoe_dtype_bits((cmoe_dtype)w.dtype));
}

static size_t shared_bytes(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens,
                           bool first)
{
    const int64_t columns =
        first ? staged_columns(p->w, s->h_used) : staged_columns(p->w, s->i_used) * s->slots;
    const size_t halves = (size_t)(tokens * s->slots) * (first ? 2 : 1) * sizeof(cmoe_gpu_half);
    return (size_t)(tokens * columns) * 4 + halves;
}

static bool is_plain(cmoe_format f)
{
    return f.scaling == CMOE_SCALE_NONE && (f.dtype == CMOE_BF16 || f.dtype == CMOE_F16);
}

/* What a block quantises by itself. */
static bool is_dynamic_e4m3(cmoe_format f)
{
    const bool group =
        f.scaling == CMOE_SCALE_GROUP && f.group == 128 && f.scale_dtype == CMOE_NONE;
    return f.dtype == CMOE_E4M3 && (group || f.scaling == CMOE_SCALE_TOKEN) && !f.fixed;
}

static bool formats_fit(const struct cmoe_kernel *k, const struct cmoe_query *q,
                        struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    const int bits = cmoe_dtype_bits((cmoe_dtype)p->w.dtype);
    const int span = (int)cmoe__format_span(p->w, 0);
    if (find(p->w) == KERNELS || (bits < 16) != (p->w.scaling != CMOE_SCALE_NONE) ||
        (span > 0 && span * bits < 128))
        return cmoe__refuse(why, "there is no kernel for these weights");
    if (k->first == CMOE_STAGE_QUANT ? !(q->shape->quant && is_dynamic_e4m3(p->x))
                                     : q->shape->quant || !is_plain(p->x))
        return cmoe__refuse(why, "x is of another format than the row quantises or takes");
    if (!is_plain(p->mid) && !is_dynamic_e4m3(p->mid))
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
    if (q->tokens > MOST_TOKENS || (int64_t)q->tokens * s->slots > MOST_ROWS)
        return cmoe__refuse(why, "%d tokens share too many weights", q->tokens);
    if (shared_bytes(p, s, q->tokens, true) > SHARED_BYTES ||
        shared_bytes(p, s, q->tokens, false) > SHARED_BYTES)
        return cmoe__refuse(why, "the rows of %d tokens do not fit in shared memory", q->tokens);
    if (in.layout != cmoe__usual_edge(p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    *out = cmoe__usual_edge(p, k->last + 1);
    return true;
}

/* Weights are read again for every row of an expert. Shares of the memory's rate were measured on an
 * H100: 16-bit weights are bound by memory, others by the instructions of their decoding. */
double cmoe__cuda_gemv_cost(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double rows = cmoe__shape_local_rows(q->p, q->shape, q->tokens);
    const double expert = cmoe__expert_bytes(q->p, 1) + cmoe__expert_bytes(q->p, 2);
    const int bits = cmoe_dtype_bits((cmoe_dtype)q->p->w.dtype);
    const double share = bits == 16 ? 0.8 : (bits == 8 ? 0.52 : 0.28);
    const double quantizing = k->first == CMOE_STAGE_QUANT ? 6 : 0;
    return START_US + quantizing + rows * expert / (q->props->gbps * 1e3 * share);
}

/* h of every slot. */
size_t cmoe__cuda_gemv_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return (size_t)((int64_t)q->tokens * q->shape->slots * q->shape->I) * 4;
}

static cmoe_status launch(const struct cmoe_exec *x, enum cmoe_cuda_function function,
                          cmoe_gpu_gemv *v, bool first)
{
    const struct cmoe_cuda_weights *w = x->w->state;
    v->p = *x->p;
    v->vectors = w->vectors;
    const struct cmoe_cuda_grid grid = {(unsigned)cmoe__cuda_of(x)->multiprocessors, 1, THREADS,
                                        shared_bytes(x->p, x->shape, x->tokens, first)};
    void *args[] = {v};
    return cmoe__cuda_launch_after(x, function, grid, args);
}

cmoe_status cmoe__cuda_gemv(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const int at = find(p->w);
    const cmoe_dtype h = cmoe__shape_h_dtype(p);
    const int64_t h_stride = s->I * (h == CMOE_F32 ? 4 : 2);
    if (x->tokens == 0) return CMOE_OK;
    cmoe_gpu_gemv first = {
        .g = cmoe__cuda_gemm1_params(x),
        .from = x->x,
        .from_stride = x->x_stride,
        .from_dtype = p->in,
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
        .out = x->y,
        .out_stride = x->y_stride,
        .out_dtype = p->y,
        .columns = (int32_t)s->H,
        .used = (int32_t)s->h_used,
        .weigh = p->weight_on == CMOE_WEIGHT_ON_OUTPUT,
        .accumulate = p->accumulate,
    };
    CMOE_TRY(launch(x, kernels[at].gemm1, &first, true));
    return launch(x, kernels[at].gemm2, &second, false);
}
