/* SPDX-License-Identifier: MIT
 * What each CUDA row supports, costs and needs; the table of rows. */
#include "backends/cuda/families.h"

#include "backends/cuda/cuda.h"
#include "backends/cuda/gemv.h"
#include "backends/cuda/stream.h"
#include "backends/cuda/wgmma.h"
#include "core/size.h"

enum { LAUNCH_US = 3, SHARED_FLOATS = 48 * 1024 };

static bool starts_here(const struct cmoe_kernel *k, const struct cmoe_query *q,
                        struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    if (in.layout != cmoe__usual_edge(q->p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    *out = cmoe__usual_edge(q->p, k->last + 1);
    return true;
}

static bool route_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                           struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    if (q->shape->ids * 4 + q->p->groups > SHARED_FLOATS)
        return cmoe__refuse(why, "%d experts do not fit in a block's shared memory", q->shape->ids);
    return starts_here(k, q, in, out, why);
}

static bool quant_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                           struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const bool first = k->first == CMOE_STAGE_QUANT;
    const int64_t n = first ? q->shape->H : q->shape->I;
    if (first ? !q->shape->quant : !q->shape->requant)
        return cmoe__refuse(why,
                            first ? "x is used as it is" : "the intermediate is used as it is");
    if (n > SHARED_FLOATS)
        return cmoe__refuse(why, "a row of %lld columns does not fit in shared memory",
                            (long long)n);
    return starts_here(k, q, in, out, why);
}

static bool quant_e4m3_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const bool first = k->first == CMOE_STAGE_QUANT;
    const cmoe_format f = first ? q->p->x : q->p->mid;
    const bool span = f.scaling == CMOE_SCALE_GROUP && f.group == 128 && f.scale_dtype == CMOE_NONE;
    if (q->props->arch != 90) return cmoe__refuse(why, "needs compute capability 9.0");
    if (f.dtype != CMOE_E4M3 || (!span && f.scaling != CMOE_SCALE_TOKEN))
        return cmoe__refuse(why, "only for e4m3 with a scale a row or 128 columns");
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
    return starts_here(k, q, in, out, why);
}

enum { SORT_THREADS = 1024, SORT_IDS = 8 * SORT_THREADS };

/* What one block and some of them share. */
static bool sort_parts_support(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    if (q->shape->batched) return cmoe__refuse(why, "batched rows are sorted already");
    if (q->shape->local > SHARED_FLOATS / (SORT_THREADS / 32 / 2 + 1))
        return cmoe__refuse(why, "the counts of %d experts do not fit in shared memory",
                            q->shape->local);
    return starts_here(k, q, in, out, why);
}

static bool sort_block_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const int64_t ids = (int64_t)q->tokens * q->shape->slots;
    if (ids > SORT_IDS) return cmoe__refuse(why, "%lld ids are for many blocks", (long long)ids);
    return sort_parts_support(k, q, in, out, why);
}

static double sort_blocks_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    /* Measured: about 20 us behind sort_wide with 128 experts or more, level with 8. */
    const double experts = q->shape->local > 32 ? 20 : 0;
    return 3 * LAUNCH_US + experts + (double)q->tokens * q->shape->slots * 1e-4;
}

static size_t sort_blocks_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    const int64_t ids = (int64_t)q->tokens * q->shape->slots;
    return (size_t)(cmoe__ceil_div(ids, SORT_IDS) + 1) * (size_t)q->shape->local * 4;
}

static double sort_block_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 2 + (double)q->tokens * q->shape->slots * 2e-4;
}

/* Tokens that one block of 512 threads routes, a warp each, and ids that it then sorts. */
enum { ROUTE_TOKENS = 64, ROUTE_WARPS = 16 };

static bool route_sort_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                                struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    if (q->shape->quant) return cmoe__refuse(why, "x is quantised between routing and sorting");
    if (q->p->flags & CMOE_ROUTE_FROM_X)
        return cmoe__refuse(why, "logits from x are for many blocks");
    if (q->tokens > ROUTE_TOKENS)
        return cmoe__refuse(why, "%d tokens are for many blocks", q->tokens);
    if (q->tokens * (int64_t)q->shape->slots > SORT_IDS / 2)
        return cmoe__refuse(why, "%d slots a token are for many blocks", q->shape->slots);
    if (cmoe__cuda_route_floats(q->p) * ROUTE_WARPS > SHARED_FLOATS)
        return cmoe__refuse(why, "%d experts do not fit in a block's shared memory", q->shape->ids);
    return sort_block_supports(k, q, in, out, why);
}

static double route_sort_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    return sort_block_cost_us(k, q) + 1.5 * (double)cmoe__ceil_div(q->tokens, ROUTE_WARPS);
}

/* Bytes over bandwidth, or for GEMMs arithmetic if that takes longer; and the launches. */
static double cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double bytes = cmoe__stage_bytes(q->p, k->first, q->tokens) / (q->props->gbps * 1e3);
    double flops = cmoe__stage_flops(q->p, k->first, q->tokens);
    const bool gemm = k->first == CMOE_STAGE_GEMM1 || k->first == CMOE_STAGE_GEMM2;
    if (!gemm) return LAUNCH_US + bytes;
    const struct cmoe_cuda_gemm_config *config = k->config;
    /* A tile computes all its rows, used or not. */
    const double rows = cmoe__shape_local_rows(q->p, q->shape, q->tokens);
    const double each = rows / (cmoe__experts_hit(q->p, q->tokens) + 1e-9);
    const int tile = config->rows ? config->rows : 32;
    const double padded = (double)cmoe__round_up((int64_t)(each + 0.999), tile);
    flops *= each > 0 ? padded / each : 1;
    const bool wide = cmoe_dtype_bits((cmoe_dtype)q->p->w.dtype) == 16;
    const double small = config->rows == 16 ? (wide ? 0.036 : 0.025) : 0.01;
    const double rate = config->rows == 64 ? (wide ? 0.15 : 0.03) : small;
    double arithmetic = flops / (q->props->gflops * 1e3 * rate);
    /* However few tiles there are, one takes its steps of 64 columns one after the other. */
    const int64_t columns = k->first == CMOE_STAGE_GEMM1 ? q->shape->H : q->shape->I;
    const double steps = 2.5 * (double)cmoe__ceil_div(columns, 64);
    arithmetic = arithmetic > steps ? arithmetic : steps;
    /* Loads without a pipeline: 59 % of an H100's bandwidth at 128 tokens, less with few tiles. */
    const double memory = bytes * 1.7 + 10;
    return LAUNCH_US + (arithmetic > memory ? arithmetic : memory);
}

static size_t scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    if (k->first == CMOE_STAGE_ROUTE && (q->p->flags & CMOE_ROUTE_FROM_X))
        return (size_t)q->tokens * (size_t)q->shape->ids * 4;
    return k->first == CMOE_STAGE_QUANT || k->first == CMOE_STAGE_REQUANT ? 256 : 0;
}

static bool sort_wide_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                               struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    enum { WARPS = 8 };
    if (q->shape->batched) return cmoe__refuse(why, "batched rows are sorted already");
    if (q->shape->local * WARPS > SHARED_FLOATS)
        return cmoe__refuse(why, "the counts of %d experts do not fit in shared memory",
                            q->shape->local);
    return starts_here(k, q, in, out, why);
}

static size_t sort_wide_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    const int64_t ids = (int64_t)q->tokens * q->shape->slots;
    return (size_t)(cmoe__ceil_div(ids, CMOE_CUDA_SORT_BLOCK) * q->shape->local) * 4;
}

static double sort_wide_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 3 * LAUNCH_US + (double)q->tokens * q->shape->slots * 1e-4;
}

/* Every expert's warp walks all ids, twice. */
static double sort_ballot_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 3 * LAUNCH_US + (double)q->tokens * q->shape->slots * 0.02;
}

/* quant_rows is limited by its arithmetic, the conversion instruction by memory. */
static double quant_rows_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    return LAUNCH_US + 4 * (cost_us(k, q) - LAUNCH_US);
}

struct conversion {
    uint8_t from, to;
};

static bool converts(const struct cmoe_kernel *k, const struct cmoe_query *q, struct cmoe_edge in,
                     struct cmoe_edge *out, struct cmoe_why *why)
{
    const struct conversion *c = k->config;
    if (in.layout != c->from) return cmoe__refuse(why, "converts another sort format");
    const bool padded = c->to == CMOE_EDGE_PACKED || c->to == CMOE_EDGE_FLAT;
    *out = (struct cmoe_edge){.layout = c->to, .block_m = padded ? (uint16_t)q->p->block_m : 0};
    return true;
}

static double convert_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    (void)q;
    return LAUNCH_US;
}

static const struct cmoe_family route = {route_supports, cost_us, scratch, cmoe__cuda_route};
static const struct cmoe_family quant = {quant_supports, quant_rows_cost_us, scratch,
                                         cmoe__cuda_quant};
static const struct cmoe_family quant_e4m3 = {quant_e4m3_supports, cost_us, NULL,
                                              cmoe__cuda_quant_e4m3};
static const struct cmoe_family requant_e4m3 = {quant_e4m3_supports, cost_us, NULL,
                                                cmoe__cuda_requant_e4m3};
static const struct cmoe_family sort = {starts_here, sort_ballot_cost_us, NULL, cmoe__cuda_sort};
static const struct cmoe_family sort_wide = {sort_wide_supports, sort_wide_cost_us,
                                             sort_wide_scratch, cmoe__cuda_sort_wide};
static const struct cmoe_family combine_pairs = {cmoe__cuda_combine_pairs_supports,
                                                 cmoe__cuda_combine_pairs_cost_us, NULL,
                                                 cmoe__cuda_combine_pairs};
static const struct cmoe_family sort_one = {sort_block_supports, sort_block_cost_us, NULL,
                                            cmoe__cuda_sort_block};
static const struct cmoe_family sort_many = {sort_parts_support, sort_blocks_cost_us,
                                             sort_blocks_scratch, cmoe__cuda_sort_blocks};
static const struct cmoe_family route_sort = {route_sort_supports, route_sort_cost_us, NULL,
                                              cmoe__cuda_route_sort};
static const struct cmoe_family gemm1 = {gemm_supports, cost_us, NULL, cmoe__cuda_gemm1};
static const struct cmoe_family act = {starts_here, cost_us, NULL, cmoe__cuda_act};
static const struct cmoe_family requant = {quant_supports, quant_rows_cost_us, scratch,
                                           cmoe__cuda_requant};
static const struct cmoe_family gemm2 = {gemm_supports, cost_us, NULL, cmoe__cuda_gemm2};
static const struct cmoe_family wgmma1 = {cmoe__cuda_wgmma_supports, cmoe__cuda_wgmma_cost_us, NULL,
                                          cmoe__cuda_wgmma_gemm1};
static const struct cmoe_family wgmma2 = {cmoe__cuda_wgmma_supports, cmoe__cuda_wgmma_cost_us, NULL,
                                          cmoe__cuda_wgmma_gemm2};
static const struct cmoe_family stream1 = {cmoe__cuda_stream_supports, cmoe__cuda_stream_cost, NULL,
                                           cmoe__cuda_stream_gemm1};
static const struct cmoe_family stream2 = {cmoe__cuda_stream_supports, cmoe__cuda_stream_cost, NULL,
                                           cmoe__cuda_stream_gemm2};
static const struct cmoe_family gemv = {cmoe__cuda_gemv_supports, cmoe__cuda_gemv_cost,
                                        cmoe__cuda_gemv_scratch, cmoe__cuda_gemv};
static const struct cmoe_family combine = {starts_here, cost_us, NULL, cmoe__cuda_combine};
static const struct cmoe_family export_sort = {converts, convert_cost_us, NULL,
                                               cmoe__cuda_sort_export};
static const struct cmoe_family import_sort = {converts, convert_cost_us, NULL,
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
        .config = &(const struct conversion){CMOE_EDGE_##a, CMOE_EDGE_##b},                        \
    },
#include "backends/cuda/kernels.def"
#undef KERNEL
#undef CONVERT
};
