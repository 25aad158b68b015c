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
    const enum cmoe_cuda_function function = spans ? CMOE_CUDA_cmoe_quant_e4m3_spans
                                             : q->n <= CMOE_QUANT_SHORT
                                                 ? CMOE_CUDA_cmoe_quant_e4m3_short_rows
                                                 : CMOE_CUDA_cmoe_quant_e4m3_rows;
    return cmoe__cuda_launch_after(x, function, grid, args);
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

enum { LINE = 128 }; /* bytes, of L2 */

cmoe_gpu_combine cmoe__cuda_combine_params(const struct cmoe_exec *x)
{
    /* Lines are worth dropping where L2 still has a part of z's: bf16 of 8 times its size at most. */
    enum { MOST_L2 = 8 };
    const cmoe_problem *p = x->p;
    const int64_t z = (int64_t)x->tokens * x->shape->slots * x->shape->H * 2;
    const bool lines = x->shape->H % (LINE / 2) == 0, some = z < MOST_L2 * x->dev->props.l2;
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
        .discard = p->first < CMOE_STAGE_COMBINE && lines && some,
    };
}

/* Tokens of a block of the combine: as many rows of z as a thread loads at once, where that leaves every multiprocessor a
 * few blocks. */
static int32_t tokens_at_once(const struct cmoe_exec *x, int64_t column_blocks)
{
    enum { BLOCKS = 16 };
    const int64_t some = CMOE_COMBINE_ROWS / x->shape->slots,
                  sms = cmoe__cuda_of(x)->multiprocessors;
    return some > 1 && x->tokens / some * column_blocks >= BLOCKS * sms ? (int32_t)some : 1;
}

static enum cmoe_cuda_function combine_function(cmoe_dtype z, int y)
{
    if (z == CMOE_F16) return CMOE_CUDA_cmoe_combine_f16_f16;
    if (z == CMOE_BF16) return CMOE_CUDA_cmoe_combine_bf16_bf16;
    return y == CMOE_BF16  ? CMOE_CUDA_cmoe_combine_f32_bf16
           : y == CMOE_F16 ? CMOE_CUDA_cmoe_combine_f32_f16
                           : CMOE_CUDA_cmoe_combine_f32_f32;
}

/* By pieces of columns. z and what GEMM2 read leave L2 unwritten; of what is larger most has been written already. */
static cmoe_status combine_pieces(const struct cmoe_exec *x, cmoe_dtype z)
{
    enum { COLUMNS = CMOE_COMBINE_COLUMNS };
    const int64_t spent = (int64_t)x->spent_bytes;
    cmoe_gpu_combine c = cmoe__cuda_combine_params(x);
    c.spent = x->spent;
    c.spent_lines = spent < x->dev->props.l2 ? spent / LINE : 0;
    c.tokens = tokens_at_once(x, blocks(x->shape->H, COLUMNS));
    void *args[] = {&c};
    const struct cmoe_cuda_grid grid = {blocks(x->tokens, c.tokens), blocks(x->shape->H, COLUMNS),
                                        CMOE_COMBINE_THREADS,
                                        (size_t)c.tokens * (size_t)x->shape->slots * 8};
    return cmoe__cuda_launch_after(x, combine_function(z, x->p->y), grid, args);
}

/* Column by column: of z in f32, or of no slots, where no z is read. */
static cmoe_status combine_columns(const struct cmoe_exec *x)
{
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

cmoe_status cmoe__cuda_combine_pairs(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    return x->shape->slots > 0 ? combine_pieces(x, (cmoe_dtype)x->p->y) : combine_columns(x);
}

cmoe_status cmoe__cuda_combine(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const struct cmoe_shape *s = x->shape;
    const bool adds = !s->batched && !(x->p->flags & CMOE_NO_REDUCE) && s->slots > 0;
    const bool whole = s->H % 8 == 0 && s->h_used % 8 == 0 && (uintptr_t)x->z % 16 == 0;
    return adds && whole ? combine_pieces(x, CMOE_F32) : combine_columns(x);
}

cmoe_status cmoe__cuda_combine_absent(const struct cmoe_exec *x)
{
    enum { THREADS = 256, TOKENS = THREADS / 32 };
    cmoe_gpu_combine c = cmoe__cuda_combine_params(x);
    void *args[] = {&c};
    const struct cmoe_cuda_grid grid = {blocks(x->tokens, TOKENS), 1, THREADS, 0};
    return cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_combine_absent, grid, args);
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
