/* SPDX-License-Identifier: MIT
 * What each CUDA row supports, costs and needs; the table of rows. */
#include "backends/cuda/families.h"

#include "backends/cuda/cuda.h"
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

/* Bytes over bandwidth, or for GEMMs arithmetic if that takes longer; and the launches. */
static double cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double bytes = cmoe__stage_bytes(q->p, k->first, q->tokens) / (q->props->gbps * 1e3);
    double flops = cmoe__stage_flops(q->p, k->first, q->tokens);
    const bool gemm = k->first == CMOE_STAGE_GEMM1 || k->first == CMOE_STAGE_GEMM2;
    if (!gemm) return LAUNCH_US + bytes;
    const struct cmoe_cuda_gemm_config *config = k->config;
    /* A tile computes all its rows, used or not. */
    const double rows = (double)cmoe__shape_rows(q->p, q->shape, q->tokens);
    const double each = rows / (cmoe__experts_hit(q->p, q->tokens) + 1e-9);
    const int tile = config->rows ? config->rows : 32;
    const double padded = (double)cmoe__round_up((int64_t)(each + 0.999), tile);
    flops *= each > 0 ? padded / each : 1;
    const double rate = config->rows == 64 ? 0.15 : (config->rows == 16 ? 0.06 : 0.01);
    const double arithmetic = flops / (q->props->gflops * 1e3 * rate);
    return LAUNCH_US + (arithmetic > bytes ? arithmetic : bytes);
}

static size_t scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    if (k->first == CMOE_STAGE_ROUTE && (q->p->flags & CMOE_ROUTE_FROM_X))
        return (size_t)q->tokens * (size_t)q->shape->ids * 4;
    return k->first == CMOE_STAGE_QUANT || k->first == CMOE_STAGE_REQUANT ? 256 : 0;
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
static const struct cmoe_family quant = {quant_supports, cost_us, scratch, cmoe__cuda_quant};
static const struct cmoe_family sort = {starts_here, cost_us, NULL, cmoe__cuda_sort};
static const struct cmoe_family gemm1 = {gemm_supports, cost_us, NULL, cmoe__cuda_gemm1};
static const struct cmoe_family act = {starts_here, cost_us, NULL, cmoe__cuda_act};
static const struct cmoe_family requant = {quant_supports, cost_us, scratch, cmoe__cuda_requant};
static const struct cmoe_family gemm2 = {gemm_supports, cost_us, NULL, cmoe__cuda_gemm2};
static const struct cmoe_family wgmma1 = {cmoe__cuda_wgmma_supports, cmoe__cuda_wgmma_cost_us, NULL,
                                          cmoe__cuda_wgmma_gemm1};
static const struct cmoe_family wgmma2 = {cmoe__cuda_wgmma_supports, cmoe__cuda_wgmma_cost_us, NULL,
                                          cmoe__cuda_wgmma_gemm2};
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
