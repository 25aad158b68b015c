/* SPDX-License-Identifier: MIT
 * The GEMMs for many rows an expert of every scheme: which kernel, what it takes, what it costs. */
#include "backends/cuda/tiles.h"

#include "backends/cuda/families.h"
#include "backends/cuda/products.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

/* As in kernels/common/tiles.cuh. */
enum { THREADS = 128, BM = 128, BN = 64, BK = 64, SCALES_BYTES = 4096, OUT_STRIDE = BM + 4 };
enum { MOST_COLUMNS = 131071 }; /* of products of 8-bit integers, for sums of 32 bits */

static const enum cmoe_cuda_function kernels[CMOE_CUDA_PRODUCTS] = {
#define PRODUCT(name, x, w) CMOE_CUDA_cmoe_tiles_##name,
#include "backends/cuda/products.def"
};

/* Columns between changes of a scale of sums; scales of NV are multiplied into operands. */
static int span_of(cmoe_format x, cmoe_format w)
{
    const int a = x.scaling == CMOE_SCALE_NV ? 0 : (int)cmoe__format_span(x, 0);
    const int b = w.scaling == CMOE_SCALE_NV ? 0 : (int)cmoe__format_span(w, 0);
    return a == 0 ? b : (b == 0 ? a : (a < b ? a : b));
}

/* Scales of a row in a stage, log2 of the columns that share one, and their dtype. */
static void describe(cmoe_format f, int32_t *groups, int32_t *shift, int32_t *dtype)
{
    const int span = (int)cmoe__format_span(f, 0);
    *groups = span == 0 ? 0 : (span >= BK ? 1 : BK / span);
    *shift = 30;
    while (span > 0 && 1 << *shift > span)
        --*shift;
    *dtype = (int32_t)cmoe__format_scale_dtype(f);
}

static size_t shared_bytes(cmoe_format x, cmoe_format w)
{
    const size_t stages = cmoe__cuda_bits_of(w) == 16 ? 3 : 4;
    const size_t codes =
        stages * BK / 8 * (size_t)(BM * cmoe__cuda_bits_of(w) + BN * cmoe__cuda_bits_of(x));
    const size_t ring = codes + (cmoe__cuda_bits_of(w) == 16 ? 0 : stages * SCALES_BYTES);
    const size_t sums = (size_t)BN * OUT_STRIDE * 4;
    return ring > sums ? ring : sums;
}

bool cmoe__cuda_tiles_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const cmoe_format x = cmoe__cuda_input_of(q->p, k->first), w = q->p->w;
    const int64_t columns = k->first == CMOE_STAGE_GEMM1 ? q->shape->h_used : q->shape->i_used;
    const int64_t rows = cmoe__shape_rows(q->p, q->shape, q->tokens);
    if (cmoe__cuda_product(x, w) == CMOE_CUDA_PRODUCTS)
        return cmoe__refuse(why, "there is no kernel for %s times %s",
                            cmoe_dtype_name((cmoe_dtype)x.dtype),
                            cmoe_dtype_name((cmoe_dtype)w.dtype));
    if (span_of(x, w) == 16)
        return cmoe__refuse(why, "scales of 16 columns are for e2m1 with e4m3 scales");
    if (x.dtype == CMOE_I8 && w.dtype == CMOE_U8 && w.zero)
        return cmoe__refuse(why, "8-bit weights less a zero point are no 8-bit integers");
    if (x.dtype == CMOE_I8 && columns > MOST_COLUMNS)
        return cmoe__refuse(why, "%lld columns of 8-bit integers are more than %d",
                            (long long)columns, MOST_COLUMNS);
    if (rows / BN + q->shape->local > 65535)
        return cmoe__refuse(why, "%lld rows need more tiles than a grid has", (long long)rows);
    if (in.layout != cmoe__usual_edge(q->p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    *out = cmoe__usual_edge(q->p, k->last + 1);
    return true;
}

/* The share of the tensor cores' bf16 rate that whole tiles reach, measured: decoding takes instructions,
 * and so do scales of 32 columns on both sides. */
static double rate_share(cmoe_format x, cmoe_format w)
{
    const bool narrow = cmoe__format_span(x, 0) == 32 && span_of(x, w) == 32;
    if (x.dtype == CMOE_I8 && cmoe__cuda_bits_of(w) == 8) return 0.195;
    if (cmoe__cuda_bits_of(w) >= 8) return narrow ? 0.108 : 0.15;
    return cmoe__cuda_bits_of(x) == 4 ? 0.082 : (narrow ? 0.103 : 0.112);
}

/* Blocks take turns, two a multiprocessor; a tile takes its time however few rows it has, and four
 * fifths of it with half of them. */
double cmoe__cuda_tiles_cost(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const bool first = k->first == CMOE_STAGE_GEMM1;
    const double hit = cmoe__experts_hit(q->p, q->tokens) + 1e-9;
    const double each = cmoe__shape_local_rows(q->p, q->shape, q->tokens) / hit;
    const double tiles = hit * (each < BN / 2 ? 1 : each / BN + 0.5);
    const int64_t n = first ? q->shape->rows1 : q->shape->H;
    const int64_t columns = first ? q->shape->H : q->shape->I;
    const double slots = 2.0 * q->props->threads;
    const double blocks = tiles * (double)cmoe__ceil_div(n, BM);
    const double turns =
        blocks < 8 * slots ? (double)(int64_t)(blocks / slots + 0.999) : blocks / slots;
    const double rate =
        q->props->gflops * 1e3 * rate_share(cmoe__cuda_input_of(q->p, k->first), q->p->w);
    const double stage = slots * (2.0 * BM * BN * BK) / rate * (each < BN / 2 ? 0.8 : 1);
    const double arithmetic = turns * (stage * (double)cmoe__ceil_div(columns, BK) + 1.2);
    const double memory =
        1.7 * cmoe__stage_bytes(q->p, k->first, q->tokens) / (q->props->gbps * 1e3);
    return CMOE_CUDA_LAUNCH_US + (arithmetic > memory ? arithmetic : memory);
}

cmoe_gpu_tiles cmoe__cuda_tiles_params(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const struct cmoe_cuda_weights *w = x->w->state;
    const struct cmoe_shape *shape = x->shape;
    const bool first = step->kernel->first == CMOE_STAGE_GEMM1;
    cmoe_gpu_tiles s = {.g = first ? cmoe__cuda_gemm1_params(x) : cmoe__cuda_gemm2_params(x)};
    s.p = *x->p;
    s.outputs = s.g.n;
    if (step->kernel->last == CMOE_STAGE_ACT) {
        s.h = x->h;
        s.i = s.outputs = (int32_t)shape->I;
        s.i_used = (int32_t)shape->i_used;
        s.h_dtype = (int32_t)cmoe__shape_h_dtype(x->p);
        s.gated = shape->gated;
    }
    s.span = span_of(s.g.x, s.g.w);
    describe(s.g.w, &s.w_groups, &s.w_shift, &s.w_scale);
    describe(s.g.x, &s.x_groups, &s.x_shift, &s.x_scale);
    s.x_vectors = (uintptr_t)s.g.a % 16 == 0 && s.g.a_stride % 16 == 0;
    s.w_vectors = w->vectors;
    return s;
}

cmoe_status cmoe__cuda_tiles(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    cmoe_gpu_tiles s = cmoe__cuda_tiles_params(step, x);
    const int64_t rows = cmoe__shape_rows(x->p, x->shape, x->tokens);
    const int64_t tiles = rows / BN + cmoe__min64(rows, x->shape->local);
    const struct cmoe_cuda_grid grid = {(unsigned)cmoe__ceil_div(s.outputs, s.gated ? BM / 2 : BM),
                                        (unsigned)tiles, THREADS, shared_bytes(s.g.x, s.g.w)};
    void *args[] = {&s};
    return cmoe__cuda_launch(x, kernels[cmoe__cuda_product(s.g.x, s.g.w)], grid, args);
}
