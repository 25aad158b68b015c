/* SPDX-License-Identifier: MIT
 * The streaming GEMMs for few rows an expert: which kernel, how the work is cut, what it costs. */
#include "backends/cuda/stream.h"

#include "backends/cuda/products.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

/* As in kernels/common/stream.cuh. */
enum { WARPS = 8, STAGES = 5, STAGE_BYTES = 64, TILES = 2, START_US = 2 };

static const enum cmoe_cuda_function kernels[CMOE_CUDA_PRODUCTS] = {
#define PRODUCT(name, x, w) CMOE_CUDA_cmoe_stream_##name,
#include "backends/cuda/products.def"
};

/* struct stage_of of kernels/common/stream.cuh. */
static size_t ring_bytes(int bits)
{
    const size_t stride = bits == 16 ? 64 : (bits == 8 ? 96 : 80);
    const size_t groups = bits == 16 ? 0 : (bits == 8 ? 2 : 8);
    return STAGES * 16 * (stride + groups * 5);
}

static size_t shared_bytes(int bits, int tiles, int experts)
{
    return WARPS * (ring_bytes(bits) + 2 * (size_t)tiles * 512) + ((size_t)experts + 1) * 4;
}

bool cmoe__cuda_stream_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const cmoe_format x = cmoe__cuda_input_of(q->p, k->first), w = q->p->w;
    const int span = (int)cmoe__format_span(w, 0);
    if (q->props->arch < 90) return cmoe__refuse(why, "needs a Hopper GPU");
    if (cmoe__cuda_product(x, w) == CMOE_CUDA_PRODUCTS)
        return cmoe__refuse(why, "there is no kernel for %s times %s",
                            cmoe_dtype_name((cmoe_dtype)x.dtype),
                            cmoe_dtype_name((cmoe_dtype)w.dtype));
    if (cmoe__cuda_bits_of(w) == 8 && span == 16)
        return cmoe__refuse(why, "scales of 16 columns are for 4-bit weights");
    const int64_t columns = k->first == CMOE_STAGE_GEMM1 ? q->shape->h_used : q->shape->i_used;
    if (x.scaling == CMOE_SCALE_NV && columns % 32 > 0 && columns % 32 <= 16)
        return cmoe__refuse(why, "%lld columns end in half a step of 32", (long long)columns);
    if (q->p->flags & CMOE_BATCH_INVARIANT)
        return cmoe__refuse(why, "sums in another order than the rows for many tokens");
    if (shared_bytes(cmoe__cuda_bits_of(w), TILES, q->shape->local) > 200 * 1024)
        return cmoe__refuse(why, "%d experts do not fit in shared memory", q->shape->local);
    if (in.layout != cmoe__usual_edge(q->p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    *out = cmoe__usual_edge(q->p, k->last + 1);
    return true;
}

/* The share of the memory's rate that weights are read at, measured: decoding takes instructions, and
 * sums that are scaled every 32 columns take more. */
static double rate_share(cmoe_format x, cmoe_format w)
{
    const int64_t x_span = cmoe__format_span(x, 0), w_span = cmoe__format_span(w, 0);
    const double share = cmoe__cuda_bits_of(w) == 16  ? 0.55
                         : cmoe__cuda_bits_of(w) == 8 ? 0.3
                                                      : (w_span == 16 ? 0.135 : 0.17);
    return x_span > 0 && x_span <= 32 && w_span > 0 && w_span <= 32 ? share * 0.4 : share;
}

/* Measured with one tile of 8 rows an expert; the second and later ones add their instructions. */
double cmoe__cuda_stream_cost(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const int stage = k->first;
    const double hit = cmoe__experts_hit(q->p, q->tokens) + 1e-9;
    const double each = cmoe__shape_local_rows(q->p, q->shape, q->tokens) / hit;
    const double weights = hit * cmoe__expert_bytes(q->p, stage == CMOE_STAGE_GEMM1 ? 1 : 2);
    const double more = each > 4 ? weights * 16 / cmoe__cuda_bits_of(q->p->w) * each / 8 : 0;
    const double bytes = cmoe__stage_bytes(q->p, stage, q->tokens) /
                         rate_share(cmoe__cuda_input_of(q->p, stage), q->p->w);
    return START_US + (bytes + more) / (q->props->gbps * 1e3);
}

/* Warps that share a strip's columns: as many as give every block six units or so of the experts
 * that are hit on average, and leave each warp four stages. */
static int k_parts(const struct cmoe_exec *x, int64_t k, int bits, int64_t strips)
{
    const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
    const int64_t stages = cmoe__ceil_div(k * bits, STAGE_BYTES * 8);
    const double units = cmoe__experts_hit(x->p, x->tokens) * (double)strips / WARPS;
    int parts = 1;
    while (parts < WARPS && units * parts < 12.0 * cuda->multiprocessors && stages >= 8 * parts)
        parts *= 2;
    return parts;
}

static cmoe_status launch(const struct cmoe_exec *x, cmoe_gpu_stream *s)
{
    const struct cmoe_cuda *cuda = cmoe__cuda_of(x);
    const struct cmoe_cuda_weights *w = x->w->state;
    const int bits = cmoe__cuda_bits_of(s->g.w);
    const int64_t rows = cmoe__shape_rows(x->p, x->shape, x->tokens);
    const int w_span = (int)cmoe__format_span(s->g.w, 0),
              x_span = (int)cmoe__format_span(s->g.x, 0);
    s->p = *x->p;
    /* Whole tiles cost time for absent rows; an expert with more rows has several tiles. */
    const double each = (double)rows / (cmoe__experts_hit(x->p, x->tokens) + 1e-9);
    s->tiles = each > 4 ? TILES : 1;
    s->x_vectors = (uintptr_t)s->g.a % 16 == 0 && s->g.a_stride % 16 == 0;
    s->w_vectors = w->vectors;
    s->w_varies = w_span > 0 || s->g.w.zero;
    s->x_varies = x_span > 0;
    s->ahead = x->p->first <= CMOE_STAGE_SORT && s->g.half == 2;
    const size_t shared = shared_bytes(bits, s->tiles, x->shape->local);
    const int64_t strips = cmoe__ceil_div(s->outputs, s->gated ? 8 : 16);
    s->k_parts = k_parts(x, s->g.k, bits, strips);
    const int64_t groups = cmoe__ceil_div(strips, WARPS / s->k_parts);
    const int64_t tiles = rows / (8 * s->tiles) + cmoe__min64(rows, x->shape->local);
    const int64_t fit = cuda->shared_limit / (int64_t)(shared + 4096);
    const int64_t per_sm = cmoe__max64(1, cmoe__min64(fit, 2));
    const int64_t blocks = cmoe__min64(cuda->multiprocessors * per_sm, tiles * groups);
    const struct cmoe_cuda_grid grid = {(unsigned)blocks, 1, WARPS * 32, shared};
    void *args[] = {s};
    return cmoe__cuda_launch_after(x, kernels[cmoe__cuda_product(s->g.x, s->g.w)], grid, args);
}

cmoe_status cmoe__cuda_stream_gemm1(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    const struct cmoe_shape *shape = x->shape;
    cmoe_gpu_stream s = {.g = cmoe__cuda_gemm1_params(x),
                         .h = x->h,
                         .i = (int32_t)shape->I,
                         .i_used = (int32_t)shape->i_used,
                         .h_dtype = (int32_t)cmoe__shape_h_dtype(x->p),
                         .gated = shape->gated,
                         .outputs = (int32_t)shape->I};
    return launch(x, &s);
}

cmoe_status cmoe__cuda_stream_gemm2(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_stream s = {.g = cmoe__cuda_gemm2_params(x)};
    s.outputs = s.g.n;
    return launch(x, &s);
}
