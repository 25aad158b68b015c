/* SPDX-License-Identifier: MIT
 * The stages but the GEMMs: fill in parameters, launch. Grids depend on the call's token count and
 * on the problem, never on what the device holds, so that every plan can be captured in a graph. */
#include "backends/cuda/cuda.h"

#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"

cmoe_gpu_call cmoe__cuda_call(const struct cmoe_exec *x)
{
    const struct cmoe_shape *s = x->shape;
    const cmoe_problem *p = x->p;
    return (cmoe_gpu_call){
        .n_tokens_dev = s->batched ? NULL : x->t->n_tokens_dev,
        .ids = x->ids,
        .weights = x->weights,
        .expert_map = p->flags & CMOE_EXPERT_MAP ? x->t->expert_map : NULL,
        .rows = x->rows,
        .offsets = x->offsets,
        .counts = s->batched ? x->t->expert_offsets : NULL,
        .tokens = x->tokens,
        .slots = s->slots,
        .n_ids = s->ids,
        .local = s->local,
        .routed_local = s->local - p->shared,
        .expert_first = p->expert_first,
        .experts = p->experts,
        .capacity = p->capacity,
        .local_ids = (p->flags & CMOE_LOCAL_IDS) || s->m_indices,
        .batched = s->batched,
        .x_slots = s->x_slots,
    };
}

static unsigned blocks(int64_t n, int64_t each)
{
    return (unsigned)cmoe__ceil_div(n, each);
}

static int64_t all_rows(const struct cmoe_exec *x)
{
    return cmoe__shape_rows(x->p, x->shape, x->tokens);
}

/* amax and scale of a dynamic tensor scale, then the rows. */
static cmoe_status quantize(const struct cmoe_exec *x, cmoe_gpu_quant *q, int64_t rows)
{
    void *args[] = {q};
    const int64_t warps = cmoe__ceil_div(q->n, 8 * 32); /* a thread has 8 columns */
    const struct cmoe_cuda_grid grid = {(unsigned)rows, 1, 32 * (unsigned)cmoe__min64(warps, 8), 0};
    if (q->f.scaling == CMOE_SCALE_TENSOR && !q->f.fixed) {
        const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
        q->amax = x->scratch;
        CMOE_CUDA_TRY("quantise", cuda->driver, cuMemsetD8Async, (CUdeviceptr)(uintptr_t)q->amax, 0,
                      4, x->stream);
        CMOE_TRY(cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_quant_amax, grid, args));
        const struct cmoe_cuda_grid one = {1, 1, 1, 0};
        CMOE_TRY(cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_quant_tensor_scale, one, args));
    }
    return cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_quant_rows, grid, args);
}

static const cmoe_gpu_expert *experts_of(const struct cmoe_exec *x)
{
    const struct cmoe_cuda_weights *w = x->w ? x->w->state : NULL;
    return w ? w->experts : NULL;
}

cmoe_gpu_quant cmoe__cuda_quant_params(const struct cmoe_exec *x)
{
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const cmoe_format f = p->x;
    const bool tensor = f.scaling == CMOE_SCALE_TENSOR,
               weigh = p->weight_on == CMOE_WEIGHT_ON_INPUT;
    return (cmoe_gpu_quant){
        .call = cmoe__cuda_call(x),
        .f = f,
        .experts = experts_of(x),
        .in = x->x,
        .in_stride = x->x_stride,
        .out_stride = x->xq_stride,
        .scale_stride = tensor ? 0 : (int64_t)cmoe__row_scale_bytes(f, s->H),
        .codes = x->xq,
        .scales = x->xs,
        .globals = x->xg,
        .fixed = f.fixed ? x->t->x_scale : NULL,
        .n = (int32_t)s->H,
        .n_used = (int32_t)s->h_used,
        .in_dtype = p->in,
        .round_dtype = weigh ? p->in : CMOE_NONE,
        .weigh = weigh,
        .smooth = f.scaling == CMOE_SCALE_SMOOTH ? 1 : 0,
    };
}

static cmoe_gpu_quant requant_params(const struct cmoe_exec *x)
{
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const cmoe_format f = p->mid;
    const bool tensor = f.scaling == CMOE_SCALE_TENSOR;
    return (cmoe_gpu_quant){
        .call = cmoe__cuda_call(x),
        .f = f,
        .experts = experts_of(x),
        .in = x->h,
        .in_stride = s->I * 4,
        .out_stride = (int64_t)cmoe__row_code_bytes(f, s->I),
        .scale_stride = tensor ? 0 : (int64_t)cmoe__row_scale_bytes(f, s->I),
        .codes = x->hq,
        .scales = x->hs,
        .globals = x->hg,
        .fixed = f.fixed ? x->t->mid_scale : NULL,
        .n = (int32_t)s->I,
        .n_used = (int32_t)s->i_used,
        .in_dtype = CMOE_F32,
        .round_dtype = p->flags & CMOE_MID_ROUNDED ? p->in : CMOE_NONE,
        .smooth = f.scaling == CMOE_SCALE_SMOOTH ? 2 : 0,
        .sorted = 1,
    };
}

cmoe_status cmoe__cuda_quant(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_quant q = cmoe__cuda_quant_params(x);
    return quantize(x, &q, x->shape->x_slots ? all_rows(x) : x->tokens);
}

cmoe_status cmoe__cuda_requant(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_quant q = requant_params(x);
    return quantize(x, &q, all_rows(x));
}

static cmoe_status quantize_e4m3(const struct cmoe_exec *x, cmoe_gpu_quant *q, int64_t rows)
{
    void *args[] = {q};
    const bool spans = q->f.scaling == CMOE_SCALE_GROUP;
    const struct cmoe_cuda_grid grid = {(unsigned)rows, spans ? blocks(q->n, 1024) : 1, 128, 0};
    return cmoe__cuda_launch_after(
        x, spans ? CMOE_CUDA_cmoe_quant_e4m3_spans : CMOE_CUDA_cmoe_quant_e4m3_rows, grid, args);
}

cmoe_status cmoe__cuda_quant_e4m3(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_quant q = cmoe__cuda_quant_params(x);
    return quantize_e4m3(x, &q, x->tokens);
}

cmoe_status cmoe__cuda_requant_e4m3(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_quant q = requant_params(x);
    return quantize_e4m3(x, &q, all_rows(x));
}

cmoe_status cmoe__cuda_requant_bf16(const struct cmoe_exec *x, bool stored)
{
    cmoe_gpu_quant q = requant_params(x);
    if (!stored) {
        q.round_dtype = CMOE_BF16;
        return quantize(x, &q, all_rows(x));
    }
    q.in_stride = x->shape->I * 2;
    q.in_dtype = CMOE_BF16;
    return quantize_e4m3(x, &q, all_rows(x));
}

cmoe_status cmoe__cuda_act(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_act a = {
        .call = cmoe__cuda_call(x),
        .p = *x->p,
        .gu = x->gu,
        .h = x->h,
        .rows1 = (int32_t)x->shape->rows1,
        .i = (int32_t)x->shape->I,
        .i_used = (int32_t)x->shape->i_used,
        .h_dtype = (int32_t)cmoe__shape_h_dtype(x->p),
    };
    void *args[] = {&a};
    const struct cmoe_cuda_grid grid = {(unsigned)all_rows(x), 1, 256, 0};
    return cmoe__cuda_launch(x, CMOE_CUDA_cmoe_act, grid, args);
}

cmoe_gpu_combine cmoe__cuda_combine_params(const struct cmoe_exec *x)
{
    enum { LINE = 128 };
    const cmoe_problem *p = x->p;
    return (cmoe_gpu_combine){
        .call = cmoe__cuda_call(x),
        .z = x->z,
        .y = x->y,
        .y_stride = x->y_stride,
        .accumulate = p->accumulate,
        .h = (int32_t)x->shape->H,
        .h_used = (int32_t)x->shape->h_used,
        .dtype = p->y,
        .weigh = p->weight_on == CMOE_WEIGHT_ON_OUTPUT,
        .ahead = p->first < CMOE_STAGE_COMBINE,
        .discard = p->first < CMOE_STAGE_COMBINE && x->shape->H % (LINE / 2) == 0,
    };
}

cmoe_status cmoe__cuda_combine(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const bool batched = x->shape->batched, slots = x->p->flags & CMOE_NO_REDUCE;
    cmoe_gpu_combine c = cmoe__cuda_combine_params(x);
    void *args[] = {&c};
    const int64_t rows = batched || slots ? all_rows(x) : x->tokens;
    const size_t shared = batched || slots ? 0 : (size_t)x->shape->slots * 8;
    const unsigned columns = batched || slots ? 1 : blocks(x->shape->H, 256);
    const struct cmoe_cuda_grid grid = {(unsigned)rows, columns, 256, shared};
    const enum cmoe_cuda_function function = batched ? CMOE_CUDA_cmoe_combine_batched
                                             : slots ? CMOE_CUDA_cmoe_combine_slots
                                                     : CMOE_CUDA_cmoe_combine;
    return cmoe__cuda_launch_after(x, function, grid, args);
}

/* z and what GEMM2 read leave L2 unwritten; where they are larger, most has been written already. */
cmoe_status cmoe__cuda_combine_pairs(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    enum { LINE = 128 };
    (void)step;
    const cmoe_problem *p = x->p;
    const int64_t spent = (int64_t)x->spent_bytes;
    cmoe_gpu_combine c = cmoe__cuda_combine_params(x);
    c.spent = x->spent;
    c.spent_lines = spent < x->dev->props.l2 ? spent / LINE : 0;
    void *args[] = {&c};
    const struct cmoe_cuda_grid grid = {(unsigned)x->tokens, blocks(x->shape->H, 1024), 128,
                                        (size_t)x->shape->slots * 8};
    return cmoe__cuda_launch_after(
        x, p->y == CMOE_BF16 ? CMOE_CUDA_cmoe_combine_bf16 : CMOE_CUDA_cmoe_combine_f16, grid,
        args);
}

static cmoe_status clear(const struct cmoe_exec *x, void *at, size_t bytes)
{
    const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
    if (bytes > 0)
        CMOE_CUDA_TRY("clearing the plan's end", cuda->driver, cuMemsetD8Async,
                      (CUdeviceptr)(uintptr_t)at, 0, bytes, x->stream);
    return CMOE_OK;
}

cmoe_status cmoe__cuda_prologue(const struct cmoe_exec *x)
{
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    if (x->ids && x->t->topk_ids64 && p->first != CMOE_STAGE_ROUTE) {
        cmoe_gpu_sort n = {.call = cmoe__cuda_call(x), .ids64 = x->t->topk_ids64, .ids = x->ids};
        void *args[] = {&n};
        const struct cmoe_cuda_grid grid = {blocks((int64_t)x->tokens * s->slots, 256), 1, 256, 0};
        CMOE_TRY(cmoe__cuda_launch(x, CMOE_CUDA_cmoe_narrow_ids, grid, args));
    }
    const size_t rows = (size_t)all_rows(x);
    if (p->last == CMOE_STAGE_GEMM1) return clear(x, x->gu, rows * (size_t)s->rows1 * 4);
    if (p->last == CMOE_STAGE_ACT || (p->last == CMOE_STAGE_REQUANT && !s->requant))
        return clear(x, x->h, rows * cmoe_dtype_bytes(cmoe__shape_h_dtype(p), s->I));
    if (p->last == CMOE_STAGE_REQUANT)
        return clear(x, x->hq, rows * cmoe__row_code_bytes(p->mid, s->I));
    if (p->last == CMOE_STAGE_GEMM2) return clear(x, x->z, rows * (size_t)s->H * 4);
    return CMOE_OK;
}

cmoe_status cmoe__cuda_epilogue(const struct cmoe_exec *x)
{
    int64_t *load = x->t->expert_load;
    if (!load || (!x->ids && !x->shape->batched)) return CMOE_OK;
    cmoe_gpu_sort s = {.call = cmoe__cuda_call(x)};
    void *args[] = {&s, &load};
    const struct cmoe_cuda_grid warps = {blocks(x->shape->local, 4), 1, 128, 0};
    return cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_load, warps, args);
}
