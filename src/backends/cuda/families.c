/* SPDX-License-Identifier: MIT
 * What each CUDA row supports, costs and needs; the table of rows. */
#include "backends/cuda/families.h"

#include "backends/cuda/cuda.h"
#include "backends/cuda/decoded.h"
#include "backends/cuda/gemv.h"
#include "backends/cuda/route.h"
#include "backends/cuda/slices.h"
#include "backends/cuda/sort.h"
#include "backends/cuda/tiles.h"
#include "backends/cuda/wgmma.h"
#include "core/size.h"

bool cmoe__cuda_starts_here(const struct cmoe_kernel *k, const struct cmoe_query *q,
                            struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    if (in.layout != cmoe__usual_edge(q->p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    *out = cmoe__usual_edge(q->p, k->last + 1);
    return true;
}

static bool quant_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                           struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const bool first = k->first == CMOE_STAGE_QUANT;
    if (first ? !q->shape->quant : !q->shape->requant)
        return cmoe__refuse(why,
                            first ? "x is used as it is" : "the intermediate is used as it is");
    return cmoe__cuda_starts_here(k, q, in, out, why);
}

bool cmoe__cuda_quant_e4m3_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                    struct cmoe_edge in, struct cmoe_edge *out,
                                    struct cmoe_why *why)
{
    const bool first = k->first == CMOE_STAGE_QUANT;
    const cmoe_format f = first ? q->p->x : q->p->mid;
    const bool span = f.scaling == CMOE_SCALE_GROUP && f.group == 128 && f.scale_dtype == CMOE_NONE;
    const bool row = f.scaling == CMOE_SCALE_TOKEN || (f.scaling == CMOE_SCALE_TENSOR && f.fixed);
    if (q->props->arch != 90) return cmoe__refuse(why, "needs compute capability 9.0");
    if (f.dtype != CMOE_E4M3 || (!span && !row))
        return cmoe__refuse(why, "only for e4m3 with a scale a row, 128 columns or a given one");
    if (first ? q->shape->x_slots : (q->p->flags & CMOE_MID_ROUNDED) != 0)
        return cmoe__refuse(why, "takes rows as they are");
    return quant_supports(k, q, in, out, why);
}

static bool gemm_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                          struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const struct cmoe_cuda_gemm_config *config = k->config;
    const cmoe_format x = k->first == CMOE_STAGE_GEMM1 ? q->p->x : q->p->mid;
    const int64_t rows = cmoe__shape_rows(q->p, q->shape, q->tokens);
    if (config->rows > 0 && cmoe__cuda_mma(x, q->p->w, config->rows) == CMOE_CUDA_FUNCTIONS)
        return cmoe__refuse(why, "the tensor cores have no kernel for %s times %s",
                            cmoe_dtype_name((cmoe_dtype)x.dtype),
                            cmoe_dtype_name((cmoe_dtype)q->p->w.dtype));
    if (rows / 16 + q->shape->local > 65535)
        return cmoe__refuse(why, "%lld rows need more tiles than a grid has", (long long)rows);
    return cmoe__cuda_starts_here(k, q, in, out, why);
}

/* Bytes over bandwidth, or for GEMMs arithmetic if that takes longer; and the launches. */
double cmoe__cuda_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double bytes = cmoe__stage_bytes(q->p, k->first, q->tokens) / (q->props->gbps * 1e3);
    double flops = cmoe__stage_flops(q->p, k->first, q->tokens);
    const bool gemm = k->first == CMOE_STAGE_GEMM1 || k->first == CMOE_STAGE_GEMM2;
    if (!gemm) return CMOE_CUDA_LAUNCH_US + bytes;
    const struct cmoe_cuda_gemm_config *config = k->config;
    /* A tile computes all its rows, used or not. */
    const double rows = cmoe__shape_local_rows(q->p, q->shape, q->tokens);
    const double each = rows / (cmoe__experts_hit(q->p, q->tokens) + 1e-9);
    const int tile = config->rows ? config->rows : 32;
    const double padded = (double)cmoe__round_up((int64_t)(each + 0.999), tile);
    flops *= each > 0 ? padded / each : 1;
    const int bits = cmoe_dtype_bits((cmoe_dtype)q->p->w.dtype);
    const double mma = bits == 16 ? 0.036 : (bits == 8 ? 0.02 : 0.014);
    const double rate = config->rows == 16 ? mma : 0.01;
    double arithmetic = flops / (q->props->gflops * 1e3 * rate);
    /* However few tiles there are, one takes its steps of 64 columns one after the other. */
    const int64_t columns = k->first == CMOE_STAGE_GEMM1 ? q->shape->H : q->shape->I;
    const double steps = 2.5 * (double)cmoe__ceil_div(columns, 64);
    arithmetic = arithmetic > steps ? arithmetic : steps;
    /* Loads without a pipeline: 59 % of an H100's bandwidth at 128 tokens, less with few tiles. */
    const double memory = bytes * 1.7 + 10;
    return CMOE_CUDA_LAUNCH_US + (arithmetic > memory ? arithmetic : memory);
}

static size_t scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)q;
    return k->first == CMOE_STAGE_QUANT || k->first == CMOE_STAGE_REQUANT ? 256 : 0;
}

/* quant_rows takes every format, and half as much again as the memory does. */
static double quant_rows_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    return CMOE_CUDA_LAUNCH_US + 1.5 * (cmoe__cuda_cost_us(k, q) - CMOE_CUDA_LAUNCH_US);
}

static double convert_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    (void)q;
    return CMOE_CUDA_LAUNCH_US;
}

static const struct cmoe_family quant = {quant_supports, quant_rows_cost_us, scratch,
                                         cmoe__cuda_quant};
static const struct cmoe_family quant_e4m3 = {cmoe__cuda_quant_e4m3_supports, cmoe__cuda_cost_us,
                                              NULL, cmoe__cuda_quant_e4m3};
static const struct cmoe_family requant_e4m3 = {cmoe__cuda_quant_e4m3_supports, cmoe__cuda_cost_us,
                                                NULL, cmoe__cuda_requant_e4m3};
static const struct cmoe_family combine_pairs = {cmoe__cuda_combine_pairs_supports,
                                                 cmoe__cuda_combine_pairs_cost_us, NULL,
                                                 cmoe__cuda_combine_pairs};
static const struct cmoe_family gemm1 = {gemm_supports, cmoe__cuda_cost_us, NULL, cmoe__cuda_gemm1};
static const struct cmoe_family act = {cmoe__cuda_starts_here, cmoe__cuda_cost_us, NULL,
                                       cmoe__cuda_act};
static const struct cmoe_family requant = {quant_supports, quant_rows_cost_us, scratch,
                                           cmoe__cuda_requant};
static const struct cmoe_family gemm2 = {gemm_supports, cmoe__cuda_cost_us, NULL, cmoe__cuda_gemm2};
static const struct cmoe_family wgmma1 = {cmoe__cuda_wgmma_supports, cmoe__cuda_wgmma_cost_us, NULL,
                                          cmoe__cuda_wgmma_gemm1};
static const struct cmoe_family wgmma2 = {cmoe__cuda_wgmma_supports, cmoe__cuda_wgmma_cost_us, NULL,
                                          cmoe__cuda_wgmma_gemm2};
static const struct cmoe_family rows = {cmoe__cuda_rows_supports, cmoe__cuda_rows_cost_us,
                                        cmoe__cuda_rows_scratch, cmoe__cuda_rows};
static const struct cmoe_family pair = {cmoe__cuda_pair_supports, cmoe__cuda_pair_cost_us,
                                        cmoe__cuda_pair_scratch, cmoe__cuda_pair};
static const struct cmoe_family tiles = {cmoe__cuda_tiles_supports, cmoe__cuda_tiles_cost, NULL,
                                         cmoe__cuda_tiles};
static const struct cmoe_family decoded = {cmoe__cuda_decoded_supports, cmoe__cuda_decoded_cost,
                                           cmoe__cuda_decoded_scratch, cmoe__cuda_decoded};
static const struct cmoe_family gemv = {cmoe__cuda_gemv_supports, cmoe__cuda_gemv_cost,
                                        cmoe__cuda_gemv_scratch, cmoe__cuda_gemv};
static const struct cmoe_family slices = {cmoe__cuda_slices_supports, cmoe__cuda_slices_cost,
                                          cmoe__cuda_slices_scratch, cmoe__cuda_slices};
static const struct cmoe_family combine = {cmoe__cuda_starts_here, cmoe__cuda_cost_us, NULL,
                                           cmoe__cuda_combine};
static const struct cmoe_family export_sort = {cmoe__conversion_supports, convert_cost_us, NULL,
                                               cmoe__cuda_sort_export};
static const struct cmoe_family import_sort = {cmoe__conversion_supports, convert_cost_us, NULL,
                                               cmoe__cuda_sort_import};

const struct cmoe_kernel cmoe__cuda_kernels[CMOE_CUDA_KERNELS] = {
#define KERNEL(row, a, b, f1, f2, fam, tile)                                                       \
    {                                                                                              \
        .name = #row,                                                                              \
        .first = CMOE_STAGE_##a,                                                                   \
        .last = CMOE_STAGE_##b,                                                                    \
        .priority = 10,                                                                            \
        .format1 = f1,                                                                             \
        .format2 = f2,                                                                             \
        .family = &fam,                                                                            \
        .config = &(const struct cmoe_cuda_gemm_config){tile},                                     \
    },
#define CONVERT(row, a, b, fam)                                                                    \
    {                                                                                              \
        .name = #row,                                                                              \
        .first = CMOE_STAGE_GEMM1,                                                                 \
        .last = CMOE_STAGE_SORT,                                                                   \
        .family = &fam,                                                                            \
        .config = &(const struct cmoe_conversion){CMOE_EDGE_##a, CMOE_EDGE_##b},                   \
    },
#include "backends/cuda/kernels.def"
#undef KERNEL
#undef CONVERT
};
