/* SPDX-License-Identifier: MIT
 * GEMM1 and GEMM2: which kernel, and its parameters. */
#include "backends/cuda/cuda.h"

#include "core/fail.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

enum { TILE_N = 64, SIMT_ROWS = 32 };

static int bits_of(cmoe_format f)
{
    return cmoe_dtype_bits((cmoe_dtype)f.dtype);
}

/* Tensor-core kernels by operand type, rows a tile, bits of x and of w. */
static const struct {
    uint8_t type, rows, x, w, function;
} mma[] = {
    {CMOE_BF16, 16, 16, 16, CMOE_CUDA_cmoe_gemm_bf16_m16_x16_w16},
    {CMOE_BF16, 16, 16, 8, CMOE_CUDA_cmoe_gemm_bf16_m16_x16_w8},
    {CMOE_BF16, 16, 16, 4, CMOE_CUDA_cmoe_gemm_bf16_m16_x16_w4},
    {CMOE_BF16, 16, 8, 8, CMOE_CUDA_cmoe_gemm_bf16_m16_x8_w8},
    {CMOE_BF16, 16, 8, 4, CMOE_CUDA_cmoe_gemm_bf16_m16_x8_w4},
    {CMOE_BF16, 16, 4, 4, CMOE_CUDA_cmoe_gemm_bf16_m16_x4_w4},
    {CMOE_F16, 16, 16, 16, CMOE_CUDA_cmoe_gemm_f16_m16_x16_w16},
    {CMOE_F16, 16, 16, 8, CMOE_CUDA_cmoe_gemm_f16_m16_x16_w8},
    {CMOE_F16, 16, 16, 4, CMOE_CUDA_cmoe_gemm_f16_m16_x16_w4},
};

enum cmoe_cuda_function cmoe__cuda_mma(cmoe_format x, cmoe_format w, int rows)
{
    const int xb = bits_of(x), wb = bits_of(w);
    const int type = xb == 16 ? x.dtype : CMOE_BF16;
    if (xb == 32 || wb == 32 || (wb == 16 && w.dtype != x.dtype)) return CMOE_CUDA_FUNCTIONS;
    for (size_t i = 0; i < sizeof mma / sizeof *mma; i++)
        if (mma[i].type == type && mma[i].rows == rows && mma[i].x == xb && mma[i].w == wb)
            return (enum cmoe_cuda_function)mma[i].function;
    return CMOE_CUDA_FUNCTIONS;
}

/* Columns between changes of either format's scale along k, 0 when both have one for a whole row. */
static int group_of(cmoe_format x, cmoe_format w)
{
    const int a = (int)cmoe__format_span(x, 0), b = (int)cmoe__format_span(w, 0);
    return a == 0 ? b : (b == 0 ? a : (a < b ? a : b));
}

/* Shared memory of the tensor-core kernels: struct shared_tile of gemm_mma.cu, rounded up. */
static size_t mma_shared(int rows)
{
    const size_t operands = ((size_t)rows + TILE_N) * (64 + 8) * 2;
    const size_t scales = ((size_t)rows + TILE_N) * 4 * 4;
    return operands + scales + 2 * (256 * 2 + 256 * 4) + 64 + (size_t)rows * 4;
}

static cmoe_status run(const struct cmoe_step *step, const struct cmoe_exec *x, cmoe_gpu_gemm *g)
{
    const struct cmoe_cuda_gemm_config *config = step->kernel->config;
    const struct cmoe_cuda_weights *w = x->w->state;
    int rows = config->rows;
    enum cmoe_cuda_function function = CMOE_CUDA_cmoe_gemm_simt;
    if (rows > 0 && w->contiguous)
        function = cmoe__cuda_mma(g->x, g->w, rows);
    else
        rows = SIMT_ROWS;
    const int64_t all = cmoe__shape_rows(x->p, x->shape, x->tokens);
    const int64_t tiles = all / rows + cmoe__min64(all, x->shape->local);
    int a_vectors = (uintptr_t)g->a % 16 == 0 && g->a_stride % 16 == 0, b_vectors = w->vectors;
    void *args[] = {g, &a_vectors, &b_vectors};
    const bool simt = function == CMOE_CUDA_cmoe_gemm_simt;
    const struct cmoe_cuda_grid grid = {(unsigned)cmoe__ceil_div(g->n, TILE_N), (unsigned)tiles,
                                        simt ? 256 : 128, simt ? 0 : mma_shared(rows)};
    return cmoe__cuda_launch(x, function, grid, args);
}

cmoe_gpu_gemm cmoe__cuda_gemm1_params(const struct cmoe_exec *x)
{
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const struct cmoe_cuda_weights *w = x->w->state;
    const bool nv_fixed = p->x.scaling == CMOE_SCALE_NV && p->x.fixed;
    return (cmoe_gpu_gemm){
        .call = cmoe__cuda_call(x),
        .experts = w->experts,
        .x = p->x,
        .w = p->w,
        .a = x->xq,
        .a_scale = x->xs,
        .a_global = nv_fixed ? NULL : x->xg,
        .a_fixed = nv_fixed ? cmoe__exec_x_static_global(x) : x->xs,
        .a_stride = x->xq_stride,
        .a_scale_stride = (int64_t)cmoe__row_scale_bytes(p->x, s->H),
        .out_stride = s->rows1,
        .a_cols = s->H,
        .k = (int32_t)s->h_used,
        .n = (int32_t)s->rows1,
        .half = 0,
        .split = s->gated ? (int32_t)s->I : (int32_t)s->rows1,
        .a_by_row = s->x_slots,
        .weigh = p->weight_on == CMOE_WEIGHT_ON_GEMM1,
        .bias = (p->flags & CMOE_BIAS1) != 0,
        .group = group_of(p->x, p->w),
        .out = x->gu,
    };
}

cmoe_gpu_gemm cmoe__cuda_gemm2_params(const struct cmoe_exec *x)
{
    const cmoe_problem *p = x->p;
    const struct cmoe_shape *s = x->shape;
    const struct cmoe_cuda_weights *w = x->w->state;
    const bool nv_fixed = p->mid.scaling == CMOE_SCALE_NV && p->mid.fixed;
    return (cmoe_gpu_gemm){
        .call = cmoe__cuda_call(x),
        .experts = w->experts,
        .x = p->mid,
        .w = p->w,
        .a = x->hq,
        .a_scale = x->hs,
        .a_global = nv_fixed ? NULL : x->hg,
        .a_fixed = nv_fixed ? x->t->mid_scale : x->hs,
        .a_stride = (int64_t)cmoe__row_code_bytes(p->mid, s->I),
        .a_scale_stride = (int64_t)cmoe__row_scale_bytes(p->mid, s->I),
        .out_stride = s->H,
        .a_cols = s->I,
        .k = (int32_t)s->i_used,
        .n = (int32_t)s->h_used,
        .half = 2,
        .split = (int32_t)s->H,
        .a_by_row = 1,
        .bias = (p->flags & CMOE_BIAS2) != 0,
        .group = group_of(p->mid, p->w),
        .out = x->z,
    };
}

cmoe_status cmoe__cuda_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    cmoe_gpu_gemm g = cmoe__cuda_gemm1_params(x);
    return run(step, x, &g);
}

cmoe_status cmoe__cuda_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    cmoe_gpu_gemm g = cmoe__cuda_gemm2_params(x);
    return run(step, x, &g);
}
