/* SPDX-License-Identifier: MIT
 * ROUTE, and ROUTE with SORT behind it: which rows there are, what they cost, how they are launched. */
#include "backends/cuda/route.h"

#include "backends/cuda/cuda.h"
#include "backends/cuda/families.h"
#include "backends/cuda/route_way.h"
#include "backends/cuda/sort.h"
#include "core/fail.h"
#include "core/size.h"

enum {
    ROUTE_WARPS = 4,   /* of a block that routes, a token each, */
    ROUTE_FEW = 528,   /* and one that goes ahead; up to so many tokens, */
    ROUTE_MANY = 4096, /* then without; up to so many */
    SORT_THREADS = 512,
    SORT_EXPERTS = SORT_THREADS, /* a thread each */
    BLOCK_TOKENS = 512,
    CLUSTER_TOKENS = 4096,
    WIDE_BLOCKS = 128,
    PLACE_BLOCKS = 256,
    PLACE_THREADS = 256,
    WIDE_TOKENS = WIDE_BLOCKS * 512 - 1,
};

static unsigned blocks(int64_t n, int64_t each)
{
    return (unsigned)cmoe__ceil_div(n, each);
}

/* ---- ROUTE ---- */

cmoe_status cmoe__cuda_route_logits(const struct cmoe_exec *x, cmoe_gpu_route *r)
{
    if (!r->scratch) return CMOE_OK;
    const struct cmoe_cuda_grid grid = {(unsigned)x->tokens, blocks(r->columns, 8), 256, 0};
    void *args[] = {r};
    return cmoe__cuda_launch(x, CMOE_CUDA_cmoe_route_logits, grid, args);
}

/* Of so many tokens, and of one that is made up. */
static size_t slot_bytes(const struct cmoe_shape *shape, int64_t tokens)
{
    return (size_t)cmoe__round_up((tokens + 1) * shape->slots, 4) * 8;
}

/* How many tokens a block has, and whether its last warp, which has none, goes ahead: not where a shared expert's logit
 * is read apart from the others. */
static void share(cmoe_gpu_routing *g, int64_t each, unsigned threads)
{
    g->each = (int32_t)each;
    g->ahead = by_warps(g->way) && threads / 32 > each && !(g->r.p.flags & CMOE_SHARED_SIGMOID);
}

static bool route_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                           struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    const size_t most = 192 * 1024;
    if (cmoe__cuda_route_floats(q->p) * 4 + slot_bytes(q->shape, 1) > most)
        return cmoe__refuse(why, "%d experts do not fit in a block's shared memory", q->shape->ids);
    return cmoe__cuda_starts_here(k, q, in, out, why);
}

/* A launch, a token from its first load on, and the multiprocessors' shares or the bytes. */
static double route_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    const double start = by_lanes(cmoe__cuda_route_way(q->p, false)) ? 0.035 * q->p->experts : 1;
    return cmoe__cuda_cost_us(k, q) + start +
           cmoe__cuda_route_token_us(q->p, false) * q->tokens / q->props->threads;
}

static size_t route_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return cmoe__cuda_route_scratch(q->p, q->tokens);
}

static cmoe_status route(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    cmoe_gpu_routing g = cmoe__cuda_routing(x, cmoe__cuda_route_way(x->p, false), x->scratch);
    CMOE_TRY(cmoe__cuda_route_logits(x, &g.r));
    int warps = ROUTE_WARPS;
    while (warps > 1 && warps * g.floats > 16 * 1024)
        warps /= 2;
    int each = by_lanes(g.way) ? 32 * warps : warps;
    if (by_warps(g.way) && x->tokens > ROUTE_MANY) each *= 4;
    if (by_warps(g.way) && x->tokens <= ROUTE_FEW) warps++;
    share(&g, each, (unsigned)warps * 32);
    void *args[] = {&g};
    const size_t shared = (size_t)(warps * g.floats) * 4 + slot_bytes(x->shape, g.each);
    const struct cmoe_cuda_grid grid = {blocks(x->tokens, g.each), 1, (unsigned)warps * 32, shared};
    return cmoe__cuda_launch_after(
        x, cmoe__cuda_route_keyed(x->p, g.way) ? CMOE_CUDA_cmoe_route_keyed : CMOE_CUDA_cmoe_route,
        grid, args);
}

/* ---- ROUTE with SORT behind it (kernels/common/route_sort.cuh) ---- */

/* A row's kernels: for each way, and for keys other than logits. */
struct functions {
    enum cmoe_cuda_function plain, keyed, octets[4];
};

static enum cmoe_cuda_function function_of(const struct functions *f, const cmoe_problem *p,
                                           int way)
{
    if (by_octets(way)) return f->octets[way - CMOE_ROUTE_OCTET_32];
    return cmoe__cuda_route_keyed(p, way) ? f->keyed : f->plain;
}

/* A row's way if logits lie as octets need them. */
static int usual_way(const cmoe_problem *p, bool few)
{
    const int octets = cmoe__cuda_route_octets(p);
    return by_octets(octets) ? octets : cmoe__cuda_route_way(p, few);
}

/* Or else. */
static int sort_way(const struct cmoe_exec *x, bool few, void *scratch)
{
    const cmoe_gpu_route r = cmoe__cuda_route_params(x, scratch);
    const int way = usual_way(x->p, few);
    return by_octets(way) && !cmoe__cuda_route_vectors(&r, way) ? cmoe__cuda_route_way(x->p, few)
                                                                : way;
}

/* Threads of a block that routes `each` tokens; many: where the kernel may have 1024. */
static unsigned sort_threads(const struct cmoe_shape *shape, int way, int64_t each, bool many)
{
    const int64_t routing = by_octets(way)  ? cmoe__round_up(each * 8, 32)
                            : by_lanes(way) ? cmoe__round_up(each, 32)
                                            : each * 32;
    const int64_t least = cmoe__max64(cmoe__max64(routing, cmoe__round_up(shape->local, 32)), 128);
    const bool large = many && (way == CMOE_ROUTE_OCTET_32 || way == CMOE_ROUTE_OCTET_64);
    return (unsigned)cmoe__min64(least, large ? 2 * SORT_THREADS : SORT_THREADS);
}

/* struct routed_memory of such a block, with so many rows of counts. */
static size_t sort_shared(const cmoe_problem *p, const struct cmoe_shape *shape, int way,
                          int64_t each, int rows, bool many)
{
    const size_t experts = (size_t)cmoe__round_up(shape->local, 8);
    const size_t words = (size_t)cmoe__ceil_div(each, 32);
    const size_t warps = sort_threads(shape, way, each, many) / 32;
    return 4 * (4 + 32 + experts) + 2 * experts * (size_t)rows + 4 * words * experts +
           slot_bytes(shape, each) + warps * cmoe__cuda_route_floats(p) * 4;
}

/* What a row needs: its tokens at most, rows of counts of a block, and tokens of a block in a way. */
struct sort_needs {
    bool few;
    int64_t most;
    int rows;
    int64_t (*each)(int way, int64_t tokens);
};

static bool sort_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                          const struct sort_needs *n, struct cmoe_edge in, struct cmoe_edge *out,
                          struct cmoe_why *why)
{
    const cmoe_problem *p = q->p;
    const size_t limit = (q->props->arch >= 90 ? 192 : 96) * 1024;
    if (q->shape->batched) return cmoe__refuse(why, "batched rows are sorted already");
    if (q->shape->quant) return cmoe__refuse(why, "x is quantised between routing and sorting");
    if (p->flags & (CMOE_HASH | CMOE_EXPERT_MAP))
        return cmoe__refuse(why, "a token may have an expert twice");
    if (q->tokens > n->most) return cmoe__refuse(why, "%d tokens are for more blocks", q->tokens);
    if (q->shape->local > SORT_EXPERTS)
        return cmoe__refuse(why, "%d experts are more than a block's threads", q->shape->local);
    const int ways[] = {cmoe__cuda_route_way(p, n->few),
                        cmoe__cuda_route_octets(p)}; /* logits may lie either way */
    for (int i = 0; i < 2; i++)
        if (sort_shared(p, q->shape, ways[i], n->each(ways[i], q->tokens), n->rows, !n->few) >
            limit)
            return cmoe__refuse(why,
                                "what a block needs for %d experts does not fit in shared memory",
                                q->shape->ids);
    return cmoe__cuda_starts_here(k, q, in, out, why);
}

static int64_t block_each(int way, int64_t tokens)
{
    (void)way;
    return tokens;
}

static bool block_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                           struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    static const struct sort_needs needs = {true, BLOCK_TOKENS, 1, block_each};
    return sort_supports(k, q, &needs, in, out, why);
}

static double block_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return 3.2 + cmoe__cuda_route_token_us(q->p, true) * q->tokens;
}

static cmoe_status route_sort(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    static const struct functions functions = {.plain = CMOE_CUDA_cmoe_route_sort,
                                               .keyed = CMOE_CUDA_cmoe_route_sort_keyed};
    const int way = cmoe__cuda_route_way(x->p, true);
    cmoe_gpu_routing g = cmoe__cuda_routing(x, way, x->scratch);
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    CMOE_TRY(cmoe__cuda_route_logits(x, &g.r));
    void *args[] = {&g, &s};
    const struct cmoe_cuda_grid one = {1, 1, sort_threads(x->shape, way, x->tokens, false),
                                       sort_shared(x->p, x->shape, way, x->tokens, 1, false)};
    share(&g, x->tokens, one.threads);
    return cmoe__cuda_launch_after(x, function_of(&functions, x->p, way), one, args);
}

/* Blocks of a cluster, of at most so many: a token a warp of a multiprocessor's four schedulers, four by octets, or
 * a few warps of lanes. */
static int cluster_of(int way, int64_t tokens, int most)
{
    const int64_t each = by_lanes(way) ? 128 : (by_octets(way) ? 16 : 4);
    int n = 2;
    while (n < most && n * each < tokens)
        n *= 2;
    return n;
}

enum { CLUSTER_USUAL = 8, CLUSTER_LARGE = 16 };

static int64_t cluster_each(int way, int64_t tokens)
{
    return cmoe__ceil_div(tokens, cluster_of(way, tokens, CLUSTER_USUAL));
}

static bool cluster_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                             struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    static const struct sort_needs needs = {true, CLUSTER_TOKENS, CLUSTER_LARGE + 1, cluster_each};
    if (q->props->arch != 90) return cmoe__refuse(why, "needs compute capability 9.0");
    return sort_supports(k, q, &needs, in, out, why);
}

/* us that a multiprocessor takes for a token by octets. The rows' launches are priced as those of other ways: 0.6 to 1 us
 * more than measured, in the order measured. */
static double octet_us(const cmoe_problem *p)
{
    return 0.012 + 1.9e-4 * p->experts;
}

static double cluster_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    const int way = usual_way(q->p, true);
    const int n = cluster_of(way, q->tokens, CLUSTER_LARGE);
    const double each = (double)cmoe__ceil_div(q->tokens, n);
    if (by_octets(way)) return 3.2 + 0.06 * n + octet_us(q->p) * each;
    return 3.2 + cmoe__cuda_route_token_us(q->p, true) * each;
}

static cmoe_status route_sort_cluster(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    static const struct functions functions = {
        CMOE_CUDA_cmoe_route_sort_cluster,
        CMOE_CUDA_cmoe_route_sort_cluster_keyed,
        {CMOE_CUDA_cmoe_route_cluster_32, CMOE_CUDA_cmoe_route_cluster_64,
         CMOE_CUDA_cmoe_route_cluster_128, CMOE_CUDA_cmoe_route_cluster_256}};
    const int way = sort_way(x, true, x->scratch);
    const int n = cluster_of(way, x->tokens, cmoe__cuda_of(x)->route_cluster);
    cmoe_gpu_routing g = cmoe__cuda_routing(x, way, x->scratch);
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    CMOE_TRY(cmoe__cuda_route_logits(x, &g.r));
    const int64_t each = cmoe__ceil_div(x->tokens, n);
    void *args[] = {&g, &s};
    const struct cmoe_cuda_grid grid = {(unsigned)n, 1, sort_threads(x->shape, way, each, false),
                                        sort_shared(x->p, x->shape, way, each, n + 1, false)};
    share(&g, each, grid.threads);
    return cmoe__cuda_launch_clusters(x, function_of(&functions, x->p, way), grid, (unsigned)n,
                                      args);
}

/* Tokens of a block of the kernel that counts: a warp each has one, or four of lanes or octets, before there are
 * more. */
static int64_t wide_each(int way, int64_t tokens)
{
    const int64_t least = by_lanes(way) ? 128 : (by_octets(way) ? 32 : 16);
    return cmoe__max64(cmoe__ceil_div(tokens, WIDE_BLOCKS), least);
}

/* Scratch: where experts start in lists, then lists, then logits if they come from x. */
static size_t wide_starts(const struct cmoe_shape *shape)
{
    return (size_t)WIDE_BLOCKS * (size_t)cmoe__round_up(shape->local + 1, 8) * 2;
}

static size_t wide_lists(const struct cmoe_shape *shape, int64_t tokens)
{
    return (size_t)cmoe__round_up(tokens * shape->slots, 4) * 4;
}

static size_t wide_scratch(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    return wide_starts(q->shape) + wide_lists(q->shape, q->tokens) +
           cmoe__cuda_route_scratch(q->p, q->tokens);
}

static bool wide_supports(const struct cmoe_kernel *k, const struct cmoe_query *q,
                          struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    static const struct sort_needs needs = {false, WIDE_TOKENS, 1, wide_each};
    if (wide_each(CMOE_ROUTE_LANE_8, q->tokens) * q->shape->slots > UINT16_MAX)
        return cmoe__refuse(why, "%d slots a token are too many for a block to count",
                            q->shape->slots);
    return sort_supports(k, q, &needs, in, out, why);
}

static double wide_cost_us(const struct cmoe_kernel *k, const struct cmoe_query *q)
{
    (void)k;
    const double ids = (double)q->tokens * q->shape->slots;
    const int way = usual_way(q->p, false);
    const double token = by_octets(way) ? octet_us(q->p) : cmoe__cuda_route_token_us(q->p, false);
    return (by_octets(way) ? 5.0 : 4.4) + ids * 1e-5 + token * (double)wide_each(way, q->tokens);
}

static cmoe_status route_sort_wide(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    static const struct functions functions = {
        CMOE_CUDA_cmoe_route_count,
        CMOE_CUDA_cmoe_route_count_keyed,
        {CMOE_CUDA_cmoe_route_count_32, CMOE_CUDA_cmoe_route_count_64,
         CMOE_CUDA_cmoe_route_count_128, CMOE_CUDA_cmoe_route_count_256}};
    const struct cmoe_shape *shape = x->shape;
    char *starts = x->scratch, *list = starts + wide_starts(shape);
    char *logits = list + wide_lists(shape, x->tokens);
    const int way = sort_way(x, false, logits);
    cmoe_gpu_routing g = cmoe__cuda_routing(x, way, logits);
    cmoe_gpu_sort s = cmoe__cuda_sort_params(x);
    CMOE_TRY(cmoe__cuda_route_logits(x, &g.r));
    const int64_t each = wide_each(way, x->tokens);
    const unsigned n = blocks(x->tokens, each);
    const struct cmoe_cuda_grid first = {n, 1, sort_threads(shape, way, each, true),
                                         sort_shared(x->p, shape, way, each, 1, true)};
    share(&g, each, first.threads);
    int lists = (int)n, parts = (int)cmoe__ceil_div(PLACE_BLOCKS, shape->local);
    const struct cmoe_cuda_grid second = {(unsigned)(shape->local * parts), 1, PLACE_THREADS, 0};
    void *counting[] = {&g, &s, &starts, &list};
    void *placing[] = {&s, &starts, &list, &lists, &g.each, &parts};
    CMOE_TRY(cmoe__cuda_launch_after(x, function_of(&functions, x->p, way), first, counting));
    return cmoe__cuda_launch_after(x, CMOE_CUDA_cmoe_route_place, second, placing);
}

const struct cmoe_family cmoe__cuda_route = {route_supports, route_cost_us, route_scratch, route};
const struct cmoe_family cmoe__cuda_route_sort = {block_supports, block_cost_us, route_scratch,
                                                  route_sort};
const struct cmoe_family cmoe__cuda_route_sort_cluster = {cluster_supports, cluster_cost_us,
                                                          route_scratch, route_sort_cluster};
const struct cmoe_family cmoe__cuda_route_sort_wide = {wide_supports, wide_cost_us, wide_scratch,
                                                       route_sort_wide};
