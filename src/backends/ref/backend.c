/* SPDX-License-Identifier: MIT
 * The reference backend's rows and device. Its rows accept every problem that cmoe_problem_check
 * accepts, so that a path always exists on a host device. */
#include "backends/backend.h"
#include "backends/ref/ref.h"

#include "core/size.h"
#include <stdio.h>

static bool supports(const struct cmoe_kernel *k, const struct cmoe_query *q, struct cmoe_edge in,
                     struct cmoe_edge *out, struct cmoe_why *why)
{
    if (in.layout != cmoe__usual_edge(q->p, k->first).layout)
        return cmoe__refuse(why, "starts from another data layout");
    if (k->first == CMOE_STAGE_QUANT && !q->shape->quant)
        return cmoe__refuse(why, "x is used as it is");
    if (k->first == CMOE_STAGE_REQUANT && !q->shape->requant)
        return cmoe__refuse(why, "the intermediate is used as it is");
    *out = cmoe__usual_edge(q->p, k->last + 1);
    return true;
}

/* One fp64 multiply-add a nanosecond and thread; decoding costs like four. GEMMs wake all threads. */
static double cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double flops = cmoe__stage_flops(q->p, k->first, q->tokens);
    const double bytes = cmoe__stage_bytes(q->p, k->first, q->tokens);
    const bool gemm = k->first == CMOE_STAGE_GEMM1 || k->first == CMOE_STAGE_GEMM2;
    const double us = flops * 0.5e-3 + bytes * 4e-3;
    return 2 + (gemm ? CMOE_COST_FORK_US + us / CMOE_COST_THREADS : us);
}

static size_t scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const cmoe_problem *p = q->p;
    const size_t experts = (size_t)q->shape->ids, threads = (size_t)q->props->threads;
    switch ((cmoe_stage)k->first) {
    case CMOE_STAGE_ROUTE: /* logits, then scores, picked, keys, group keys and marks */
        return (experts + 1) * 4 + (experts * 6 + (size_t)p->topk * 3 + 16) * sizeof(double);
    case CMOE_STAGE_QUANT:
        return (size_t)q->shape->H * 4;
    case CMOE_STAGE_GEMM1:
        return threads * cmoe__ref_gemm_scratch(q->shape->H);
    case CMOE_STAGE_REQUANT:
        return (size_t)q->shape->I * 4;
    case CMOE_STAGE_GEMM2:
        return threads * cmoe__ref_gemm_scratch(q->shape->I);
    case CMOE_STAGE_SORT:
    case CMOE_STAGE_ACT:
    case CMOE_STAGE_COMBINE:
    case CMOE_STAGE_COUNT:
        break;
    }
    return 0;
}

static double convert_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 1 + cmoe__stage_flops(q->p, CMOE_STAGE_SORT, q->tokens) * 1e-3;
}

static const struct cmoe_family route = {supports, cost_us, scratch, cmoe__ref_route};
static const struct cmoe_family quant = {supports, cost_us, scratch, cmoe__ref_quant};
static const struct cmoe_family sort = {supports, cost_us, scratch, cmoe__ref_sort};
static const struct cmoe_family gemm1 = {supports, cost_us, scratch, cmoe__ref_gemm1};
static const struct cmoe_family act = {supports, cost_us, scratch, cmoe__ref_act};
static const struct cmoe_family requant = {supports, cost_us, scratch, cmoe__ref_requant};
static const struct cmoe_family gemm2 = {supports, cost_us, scratch, cmoe__ref_gemm2};
static const struct cmoe_family combine = {supports, cost_us, scratch, cmoe__ref_combine};
static const struct cmoe_family export_sort = {cmoe__conversion_supports, convert_cost_us, NULL,
                                               cmoe__ref_sort_export};
static const struct cmoe_family import_sort = {cmoe__conversion_supports, convert_cost_us, NULL,
                                               cmoe__ref_sort_import};

static const struct cmoe_kernel kernels[] = {
#define KERNEL(row, a, b, f1, f2, fam)                                                             \
    {                                                                                              \
        .name = #row,                                                                              \
        .first = CMOE_STAGE_##a,                                                                   \
        .last = CMOE_STAGE_##b,                                                                    \
        .target = CMOE_ISA_LEVEL_GENERIC,                                                          \
        .format1 = f1,                                                                             \
        .format2 = f2,                                                                             \
        .family = &fam,                                                                            \
    },
#define CONVERT(row, a, b, fam)                                                                    \
    {                                                                                              \
        .name = #row,                                                                              \
        .first = CMOE_STAGE_GEMM1,                                                                 \
        .last = CMOE_STAGE_SORT,                                                                   \
        .family = &fam,                                                                            \
        .config = &(const struct cmoe_conversion){CMOE_EDGE_##a, CMOE_EDGE_##b},                   \
    },
#include "backends/ref/kernels.def"
#undef KERNEL
#undef CONVERT
};

static int probe(char *why, size_t len)
{
    (void)why;
    (void)len;
    return 1;
}

static cmoe_status open_device(struct cmoe_device *dev)
{
    struct cmoe_props *props = &dev->props;
    snprintf(props->name, sizeof props->name, "reference (fp64, scalar)");
    props->host = true;
    props->isa = CMOE_ISA_LEVEL_GENERIC;
    props->threads = cmoe__threads_count(dev->ctx->threads);
    props->gbps = 8;
    props->gflops = 2 * CMOE_COST_THREADS;
    return CMOE_OK;
}

static void close_device(struct cmoe_device *dev)
{
    (void)dev;
}

const struct cmoe_backend cmoe__backend_ref = {
    .name = "ref",
    .probe = probe,
    .open = open_device,
    .close = close_device,
    .kernels = kernels,
    .n_kernels = sizeof kernels / sizeof *kernels,
    .formats = NULL,
};
