/* SPDX-License-Identifier: MIT
 * SORT: which rows there are for how many ids, what they cost, how they are launched. */
#include "backends/cuda/sort.h"

#include "backends/cuda/cuda.h"
#include "backends/cuda/families.h"
#include "core/fail.h"
#include "core/size.h"

enum {
    LEAST_THREADS = 256,
    MOST_THREADS = 1024,
    BLOCK_IDS = 8192,   /* more are for several blocks */
    CLUSTER = 8,        /* blocks, for up to */
    CLUSTER_FEW = 6144, /* ids; for more as many as the GPU can */
    CLUSTER_IDS = CLUSTER * 16384,
    WIDE_IDS = 2048, /* of a block of sort_wide */
    WIDE_WARPS = 8,
};

static unsigned blocks(int64_t n, int64_t each)
{
    return (unsigned)cmoe__ceil_div(n, each);
}

cmoe_gpu_sort cmoe__cuda_sort_params(const struct cmoe_exec *x)
{
    return (cmoe_gpu_sort){
        .call = cmoe__cuda_call(x),
        .rows = x->rows,
        .offsets = x->offsets,
        .progress = x->progress,
        .sorted_ids = x->t->sorted_ids,
        .block_experts = x->t->block_experts,
        .num_valid = x->t->num_valid,
        .sorted_weights = x->t->sorted_weights,
        .block_m = x->p->block_m,
        .n = (int32_t)cmoe_sort_capacity(x->p, x->tokens),
    };
}

/* ---- few ids: one block; more: a cluster (kernels/common/sort_block.cuh) ---- */

/* A block for n ids: a power of two of warps. */
static unsigned threads_for(int64_t n, unsigned most)
{
    unsigned threads = LEAST_THREADS;
    while (threads < n && threads < most)
        threads *= 2;
    return threads;
}

/* struct sort_memory for n ids of a block. */
static size_t sort_shared(const struct cmoe_shape *shape, unsigned threads, int64_t n)
{
    const size_t experts = (size_t)cmoe__round_up(shape->local, 128), warps = threads / 32;
    return 4 * (4 * experts + 8 + warps * (experts / 2 + 32 / warps) + 2 * (size_t)n);
}

static int64_t ids_of(const struct cmoe_shape *shape, int64_t tokens)
{
    return tokens * shape->slots;
}

static bool fits(const struct cmoe_kernel *k, const struct cmoe_query *q, int64_t most,
                 int64_t of_block, struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const int64_t ids = ids_of(q->shape, q->tokens);
    const size_t limit = (q->props->arch >= 90 ? 192 : 96) * 1024;
    if (q->shape->batched) return cmoe__refuse(why, "batched rows are sorted already");
    if (ids > most) return cmoe__refuse(why, "%lld ids are for more blocks", (long long)ids);
    if (sort_shared(q->shape, MOST_THREADS, of_block) > limit)
        return cmoe__refuse(why, "the counts of %d experts do not fit in shared memory",
                            q->shape->local);
    return cmoe__cuda_starts_here(k, q, in, out, why);
}

static bool block_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                           struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    return fits(k, q, BLOCK_IDS, BLOCK_IDS, in, out, why);
}

/* Costs of a block and of a cluster as measured on an H100; they meet at 1100 ids. */
static double block_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 1.9 + (double)ids_of(q->shape, q->tokens) * 8.1e-4;
}

static cmoe_status sort_block(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    void *args[] = {&s};
    const int64_t ids = ids_of(x->shape, x->tokens);
    const unsigned threads = threads_for(ids, MOST_THREADS);
    const struct cmoe_cuda_grid one = {1, 1, threads, sort_shared(x->shape, threads, ids)};
    return cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_sort_block, one, args);
}

static bool cluster_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                             struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const int64_t ids = ids_of(q->shape, q->tokens);
    if (q->props->arch != 90) return cmoe__refuse(why, "needs compute capability 9.0");
    return fits(k, q, CLUSTER_IDS, cmoe__ceil_div(ids, CLUSTER), in, out, why);
}

static double cluster_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 2.7 + (double)ids_of(q->shape, q->tokens) * 8e-5;
}

static cmoe_status sort_cluster(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    void *args[] = {&s};
    const int64_t ids = ids_of(x->shape, x->tokens);
    const unsigned n = ids > CLUSTER_FEW ? (unsigned)cmoe__cuda_of(x)->sort_cluster : CLUSTER;
    const int64_t share = cmoe__ceil_div(ids, n);
    const unsigned threads = threads_for(share, MOST_THREADS);
    const struct cmoe_cuda_grid grid = {n, 1, threads, sort_shared(x->shape, threads, share)};
    return cmoe__cuda_launch_clusters(x, CMOE_CUDA_cmoe_sort_cluster, grid, n, args);
}

/* ---- SORT by the first block, QUANT to e4m3 by the others ---- */

static bool quant_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                           struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    struct cmoe_edge any;
    if (q->p->last == CMOE_STAGE_SORT)
        return cmoe__refuse(why, "the plan ends before the codes are read");
    return block_supports(k, q, in, &any, why) &&
           cmoe__cuda_quant_e4m3_supports(k, q, in, out, why);
}

static double quant_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double sort = block_cost_us(k, q), quant = cmoe__cuda_cost_us(k, q);
    return sort > quant ? sort : quant;
}

static cmoe_status quant_sort(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_quant q = cmoe__cuda_quant_params(x);
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    void *args[] = {&q, &s};
    const int64_t ids = ids_of(x->shape, x->tokens);
    const unsigned threads = threads_for(ids, MOST_THREADS);
    const bool spans = q.f.scaling == CMOE_SCALE_GROUP;
    /* 8 columns a thread; a row with one scale has 128 threads. */
    const int64_t row = spans ? cmoe__round_up(q.n, 128) / 8 : 128;
    const struct cmoe_cuda_grid grid = {1 + blocks(x->tokens * row, threads), 1, threads,
                                        sort_shared(x->shape, threads, ids)};
    return cmoe__cuda_launch_after(
        x, spans ? CMOE_CUDA_cmoe_quant_sort_spans : CMOE_CUDA_cmoe_quant_sort_rows, grid, args);
}

/* ---- any number of ids, in three launches ---- */

static bool wide_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                          struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    if (q->shape->batched) return cmoe__refuse(why, "batched rows are sorted already");
    if (q->shape->local * WIDE_WARPS > 48 * 1024)
        return cmoe__refuse(why, "the counts of %d experts do not fit in shared memory",
                            q->shape->local);
    return cmoe__cuda_starts_here(k, q, in, out, why);
}

static size_t wide_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return blocks(ids_of(q->shape, q->tokens), WIDE_IDS) * (size_t)q->shape->local * 4;
}

static double wide_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 3 * CMOE_CUDA_LAUNCH_US + (double)ids_of(q->shape, q->tokens) * 1e-4;
}

static cmoe_status sort_wide(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    int32_t *counts = x->scratch;
    int n = (int)blocks(ids_of(x->shape, x->tokens), WIDE_IDS);
    const size_t row = (size_t)x->shape->local * 4;
    const struct cmoe_cuda_grid tally = {(unsigned)n, 1, WIDE_WARPS * 32, row};
    const struct cmoe_cuda_grid one = {1, 1, 1024, 0};
    const struct cmoe_cuda_grid spread = {(unsigned)n, 1, WIDE_WARPS * 32, row * WIDE_WARPS};
    void *args[] = {&s, &counts, &n};
    CMOE_TRY(cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_tally, tally, args));
    CMOE_TRY(cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_starts, one, args));
    return cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_spread, spread, args);
}

/* ---- anything, batched rows too, and conversions of sort formats ---- */

/* Counts, starts and places of the ids in s->call.ids (or of batched counts). */
static cmoe_status sort_ids(const struct cmoe_exec *x, cmoe_gpu_sort *s)
{
    void *args[] = {s};
    const struct cmoe_cuda_grid warps = {blocks(x->shape->local, 4), 1, 128, 0};
    const struct cmoe_cuda_grid one = {1, 1, 32, 0};
    CMOE_TRY(cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_count, warps, args));
    CMOE_TRY(cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_scan, one, args));
    return cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_place, warps, args);
}

static cmoe_status sort_ballot(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    return sort_ids(x, &s);
}

/* Every expert's warp walks all ids, twice. */
static double ballot_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 3 * CMOE_CUDA_LAUNCH_US + (double)ids_of(q->shape, q->tokens) * 0.02;
}

cmoe_status cmoe__cuda_sort_export(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    s.packed = step->out.layout == CMOE_EDGE_PACKED;
    void *args[] = {&s};
    const struct cmoe_cuda_grid grid = {(unsigned)x->shape->local, 1, 256, 0};
    return cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_export, grid, args);
}

cmoe_status cmoe__cuda_sort_import(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    if (step->in.layout == CMOE_EDGE_BATCHED || step->in.layout == CMOE_EDGE_M_INDICES)
        return sort_ids(x, &s);
    s.packed = step->in.layout == CMOE_EDGE_PACKED;
    s.rows = NULL; /* count first */
    void *args[] = {&s};
    const struct cmoe_cuda_grid warps = {blocks(x->shape->local, 4), 1, 128, 0};
    const struct cmoe_cuda_grid one = {1, 1, 32, 0};
    CMOE_TRY(cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_import, warps, args));
    CMOE_TRY(cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_scan, one, args));
    s.rows = x->rows;
    return cmoe__cuda_launch(x, CMOE_CUDA_cmoe_sort_import, warps, args);
}

const struct cmoe_family cmoe__cuda_sort_ballot = {cmoe__cuda_starts_here, ballot_cost_us, NULL,
                                                   sort_ballot};
const struct cmoe_family cmoe__cuda_sort_block = {block_supports, block_cost_us, NULL, sort_block};
const struct cmoe_family cmoe__cuda_sort_cluster = {cluster_supports, cluster_cost_us, NULL,
                                                    sort_cluster};
const struct cmoe_family cmoe__cuda_sort_wide = {wide_supports, wide_cost_us, wide_scratch,
                                                 sort_wide};
const struct cmoe_family cmoe__cuda_quant_sort = {quant_supports, quant_cost_us, NULL, quant_sort};
