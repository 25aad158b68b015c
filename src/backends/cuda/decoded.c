/* SPDX-License-Identifier: MIT
 * The wgmma GEMMs whose weights are decoded into registers, for many rows an expert of coded weights: which
 * kernel, what it takes, what it costs. Rows of x are arranged by a kernel of their own first. */
#include "backends/cuda/decoded.h"

#include "backends/cuda/families.h"
#include "backends/cuda/params_decoded.h"
#include "backends/cuda/products.h"
#include "backends/cuda/tiles.h"
#include "backends/cuda/wgmma.h"
#include "core/fail.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

/* As in kernels/common/decode_ring.cuh. */
enum { THREADS = 256, BM = 128, BN = 64, BK = 128 };
enum { MOST_COLUMNS = 131071 }; /* of products of 8-bit integers, for sums of 32 bits */

static const struct {
    uint8_t x, w, function; /* x: what rows become; I8 and I4 stand for unsigned w too */
} kernels[] = {
    {CMOE_BF16, CMOE_E4M3, CMOE_CUDA_cmoe_decode_bf16_e4m3},
    {CMOE_BF16, CMOE_I8, CMOE_CUDA_cmoe_decode_bf16_i8},
    {CMOE_BF16, CMOE_I4, CMOE_CUDA_cmoe_decode_bf16_i4},
    {CMOE_BF16, CMOE_E2M1, CMOE_CUDA_cmoe_decode_bf16_e2m1},
    {CMOE_I8, CMOE_I8, CMOE_CUDA_cmoe_decode_i8_i8},
    {CMOE_I8, CMOE_I4, CMOE_CUDA_cmoe_decode_i8_i4},
};

enum { KERNELS = sizeof kernels / sizeof *kernels };

static int find(cmoe_format x, cmoe_format w)
{
    const int as = w.dtype == CMOE_U8 ? CMOE_I8 : (w.dtype == CMOE_U4 ? CMOE_I4 : w.dtype);
    const bool floats = x.dtype == CMOE_E4M3 || x.dtype == CMOE_E2M1;
    const int operand = floats ? CMOE_BF16 : x.dtype;
    for (int i = 0; i < KERNELS; i++)
        if (kernels[i].x == operand && kernels[i].w == as) return i;
    return KERNELS;
}

/* Whether codes times the scales that change along k are exact in bf16. */
static bool is_exact(cmoe_format f)
{
    return cmoe__format_span(f, 0) == 0 || f.scaling == CMOE_SCALE_MX ||
           (f.scaling == CMOE_SCALE_NV && f.dtype == CMOE_E2M1);
}

static bool formats_fit(cmoe_format x, cmoe_format w, int64_t columns, struct cmoe_why *why)
{
    const int64_t span = cmoe__format_span(w, 0);
    if (find(x, w) == KERNELS || w.scaling == CMOE_SCALE_NONE)
        return cmoe__refuse(why, "there is no kernel for %s times %s",
                            cmoe_dtype_name((cmoe_dtype)x.dtype),
                            cmoe_dtype_name((cmoe_dtype)w.dtype));
    if (span > 0 && span < 32 && w.scaling != CMOE_SCALE_NV)
        return cmoe__refuse(why, "scales of 16 columns are for e2m1 with e4m3 scales");
    if (x.dtype == CMOE_E4M3 && w.dtype == CMOE_E4M3 && span == 0 && cmoe__format_span(x, 0) == 0)
        return cmoe__refuse(why, "e4m3 under one scale a row has an instruction of its own");
    if (x.dtype != CMOE_I8) {
        if (!is_exact(x) || (x.dtype != CMOE_BF16 && !is_exact(w)))
            return cmoe__refuse(why, "scales of 32 bits do not fit into operands");
        return true;
    }
    if (cmoe__format_span(x, 0) > 0 || (w.dtype == CMOE_U8 && w.zero))
        return cmoe__refuse(why, "x or w are no 8-bit integers under one scale a row");
    if ((cmoe__cuda_bits_of(w) == 8) != (span == 0))
        return cmoe__refuse(why, "8-bit weights have one scale a row, 4-bit ones more");
    if (columns > MOST_COLUMNS)
        return cmoe__refuse(why, "%lld columns of 8-bit integers are more than %d",
                            (long long)columns, MOST_COLUMNS);
    return true;
}

/* Whether GEMM2 leaves z to a combine of pairs of bf16. */
static bool has_short_z(const cmoe_problem *p, const struct cmoe_shape *s)
{
    return p->y == CMOE_BF16 && cmoe__cuda_wgmma_short_z(p, s);
}

bool cmoe__cuda_decoded_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                 struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const int64_t columns = k->first == CMOE_STAGE_GEMM1 ? q->shape->h_used : q->shape->i_used;
    const int64_t rows = cmoe__shape_rows(q->p, q->shape, q->tokens);
    if (q->props->arch != 90) return cmoe__refuse(why, "needs compute capability 9.0");
    if (!formats_fit(cmoe__cuda_input_of(q->p, k->first), q->p->w, columns, why)) return false;
    if (rows / BN + q->shape->local > 65535)
        return cmoe__refuse(why, "%lld rows need more tiles than a grid has", (long long)rows);
    if (!cmoe__cuda_starts_here(k, q, in, out, why)) return false;
    if (k->first == CMOE_STAGE_GEMM2 && has_short_z(q->p, q->shape)) out->layout = CMOE_EDGE_SLOT16;
    return true;
}

/* Bytes of a row of operands. */
static int64_t arranged_stride(cmoe_format x, int64_t columns)
{
    return cmoe__round_up(columns, BK) * (x.dtype == CMOE_I8 ? 1 : 2);
}

/* Rows of x that GEMM1 or GEMM2 reads. */
static int64_t input_rows(const cmoe_problem *p, const struct cmoe_shape *s, int stage, int tokens)
{
    return stage == CMOE_STAGE_GEMM1 && !s->x_slots ? tokens : cmoe__shape_rows(p, s, tokens);
}

size_t cmoe__cuda_decoded_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const struct cmoe_shape *s = q->shape;
    const int64_t columns = k->first == CMOE_STAGE_GEMM1 ? s->h_used : s->i_used;
    return (size_t)input_rows(q->p, s, k->first, q->tokens) *
           (size_t)arranged_stride(cmoe__cuda_input_of(q->p, k->first), columns);
}

/* The share of the tensor cores' bf16 rate that whole tiles reach, measured: decoding takes instructions, and
 * so do scaled sums of integers and scales of 32 columns that are not a 4-bit operand's. */
static double rate_share(cmoe_format x, cmoe_format w)
{
    const int64_t span = cmoe__format_span(w, 0);
    if (x.dtype == CMOE_I8) return span > 0 ? 0.207 : 0.44;
    return cmoe__cuda_bits_of(w) == 4 ? 0.235 : (span == 32 ? 0.215 : 0.265);
}

/* Blocks take turns, two a multiprocessor; a tile takes its stages and 3.6 us beside them however few rows it
 * has, a twelfth less with half of them, but half of that where a multiprocessor has one block only. */
double cmoe__cuda_decoded_cost(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const bool first = k->first == CMOE_STAGE_GEMM1;
    const struct cmoe_shape *s = q->shape;
    const cmoe_format x = cmoe__cuda_input_of(q->p, k->first);
    const double hit = cmoe__experts_hit(q->p, q->tokens) + 1e-9;
    const double each = cmoe__shape_local_rows(q->p, s, q->tokens) / hit;
    const double tiles = hit * (each < BN / 2 ? 1 : each / BN + 0.5);
    const int64_t n = first ? s->rows1 : s->H, columns = first ? s->H : s->I;
    const double slots = 2.0 * q->props->threads;
    const double blocks = tiles * (double)cmoe__ceil_div(n, BM);
    const double turns = blocks > 0.55 * slots ? blocks / slots : 0.55;
    const double rate = q->props->gflops * 1e3 * rate_share(x, q->p->w);
    const double stages = slots * (2.0 * BM * BN * BK) / rate * (double)cmoe__ceil_div(columns, BK);
    const double arithmetic = turns * (stages + 3.6) * (each < BN / 2 ? 0.92 : 1);
    const double arranged = 1.5 * (double)input_rows(q->p, s, k->first, q->tokens) *
                            (double)arranged_stride(x, columns) / (q->props->gbps * 1e3);
    const double memory =
        1.2 * cmoe__stage_bytes(q->p, k->first, q->tokens) / (q->props->gbps * 1e3);
    return 2 * CMOE_CUDA_LAUNCH_US + arranged + (arithmetic > memory ? arithmetic : memory);
}

static size_t shared_bytes(cmoe_format x, cmoe_format w)
{
    const int x_bits = x.dtype == CMOE_I8 ? 8 : 16;
    const size_t stage = BK / 8 * (size_t)(BM * cmoe__cuda_bits_of(w) + BN * x_bits);
    return 1024 + (stage > 24576 ? 3 : 4) * stage; /* aligned to 1024 */
}

cmoe_status cmoe__cuda_decoded(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    cmoe_gpu_decoded d = {.t = cmoe__cuda_tiles_params(step, x), .arranged = x->scratch};
    const cmoe_gpu_tiles *s = &d.t;
    const int64_t rows = cmoe__shape_rows(x->p, x->shape, x->tokens);
    const int64_t from = input_rows(x->p, x->shape, step->kernel->first, x->tokens);
    const int64_t tiles = rows / BN + cmoe__min64(rows, x->shape->local);
    d.short_z = step->kernel->first == CMOE_STAGE_GEMM2 && has_short_z(x->p, x->shape);
    d.arranged_stride = arranged_stride(s->g.x, s->g.k);
    const int64_t warps = cmoe__ceil_div(d.arranged_stride, 16 * 32);
    const struct cmoe_cuda_grid arrange = {(unsigned)from, 1, 32 * (unsigned)cmoe__min64(warps, 8),
                                           0};
    const struct cmoe_cuda_grid grid = {
        (unsigned)cmoe__ceil_div(s->outputs, s->gated ? BM / 2 : BM), (unsigned)tiles, THREADS,
        shared_bytes(s->g.x, s->g.w)};
    const int function = kernels[find(s->g.x, s->g.w)].function;
    void *args[] = {&d};
    CMOE_TRY(cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_arrange, arrange, args));
    return cmoe__cuda_launch_after(x, (enum cmoe_cuda_function)function, grid, args);
}
