/* SPDX-License-Identifier: MIT
 * How the tokens of a problem are routed, and the kernels' parameters. */
#include "backends/cuda/route_way.h"

#include "backends/cuda/cuda.h"
#include "backends/cuda/route.h"
#include "core/size.h"

enum {
    WARP = 32,
    HELD_MOST = 16, /* logits that a lane holds */
};

/* Columns of logits. */
static int columns_of(const cmoe_problem *p)
{
    return p->experts + (p->flags & CMOE_SHARED_SIGMOID ? p->shared : 0);
}

/* Whether experts are dropped by groups. */
static bool drops_groups(const cmoe_problem *p)
{
    return p->groups > 1 && p->groups_kept < p->groups;
}

/* Whether experts are chosen by their logits alone. */
static bool chosen_by_logits(const cmoe_problem *p)
{
    return !drops_groups(p) && !(p->flags & (CMOE_ROUTE_BIAS | CMOE_GROUP_SUM2));
}

/* How a warp that holds a token's experts divides them; false: it cannot. */
static bool divide(const cmoe_problem *p, cmoe_gpu_routing *g)
{
    const int groups = drops_groups(p) ? p->groups : 1;
    g->size = p->experts / groups;
    g->lane_bits = 5;
    while (g->lane_bits > 0 && groups << g->lane_bits > WARP)
        g->lane_bits--;
    g->per = (int32_t)cmoe__ceil_div(g->size, 1 << g->lane_bits);
    return groups << g->lane_bits == WARP && g->per <= HELD_MOST;
}

int cmoe__cuda_route_way(const cmoe_problem *p, bool few)
{
    cmoe_gpu_routing g;
    if (p->router == CMOE_ROUTE_ALL || (p->flags & CMOE_HASH) || !divide(p, &g))
        return CMOE_ROUTE_MEMORY;
    if (chosen_by_logits(p)) {
        if (p->experts <= 8) return CMOE_ROUTE_LANE_8;
        if (p->experts <= 16) return CMOE_ROUTE_LANE_16;
        if (p->experts <= 32 && (!few || p->topk == 32)) return CMOE_ROUTE_LANE_32;
    }
    if (p->topk >= 32) return CMOE_ROUTE_MEMORY;
    return g.per <= 2    ? CMOE_ROUTE_WARP_64
           : g.per <= 4  ? CMOE_ROUTE_WARP_128
           : g.per <= 8  ? CMOE_ROUTE_WARP_256
           : g.per <= 12 ? CMOE_ROUTE_WARP_384
                         : CMOE_ROUTE_WARP_512;
}

int cmoe__cuda_route_octets(const cmoe_problem *p)
{
    if (cmoe__cuda_route_way(p, true) == CMOE_ROUTE_MEMORY || !chosen_by_logits(p) ||
        p->experts <= 16 || p->experts > 256 || p->topk > 8 || (p->flags & CMOE_BATCH_INVARIANT))
        return CMOE_ROUTE_MEMORY;
    return p->experts <= 32 && p->topk <= 4 ? CMOE_ROUTE_OCTET_32
           : p->experts <= 64               ? CMOE_ROUTE_OCTET_64
           : p->experts <= 128              ? CMOE_ROUTE_OCTET_128
                                            : CMOE_ROUTE_OCTET_256;
}

bool cmoe__cuda_route_keyed(const cmoe_problem *p, int way)
{
    return way != CMOE_ROUTE_MEMORY && !chosen_by_logits(p);
}

/* Logits in a lane's registers; of octets those that are read at once. */
static int held_of(int way)
{
    static const uint8_t held[] = {1, 8, 16, 32, 2, 4, 8, 12, 16, 4, 4, 4, 4};
    return held[way];
}

bool cmoe__cuda_route_vectors(const cmoe_gpu_route *r, int way)
{
    const int experts = drops_groups(&r->p) ? r->p.experts / r->p.groups : r->p.experts;
    const bool wide = r->scratch || r->p.logits == CMOE_F32;
    const void *at = r->scratch ? r->scratch : r->logits;
    const int64_t stride = (r->scratch ? r->columns : r->logits_stride) * (wide ? 4 : 2);
    return (uintptr_t)at % 16 == 0 && stride % 16 == 0 && (uintptr_t)r->bias % 16 == 0 &&
           !(r->p.flags & CMOE_TIE_HIGH) && experts % held_of(way) == 0;
}

cmoe_gpu_route cmoe__cuda_route_params(const struct cmoe_exec *x, void *scratch)
{
    const cmoe_problem *p = x->p;
    const cmoe_tensors *t = x->t;
    const int columns = columns_of(p);
    return (cmoe_gpu_route){
        .call = cmoe__cuda_call(x),
        .p = *p,
        .logits = t->logits,
        .x = x->x,
        .logits_stride = t->logits_stride ? t->logits_stride : columns,
        .x_stride = x->x_stride,
        .router_w = t->router_w,
        .router_b = t->router_b,
        .bias = p->flags & CMOE_ROUTE_BIAS ? t->route_bias : NULL,
        .hash_table = p->flags & CMOE_HASH ? t->hash_table : NULL,
        .token_ids = p->flags & CMOE_HASH ? t->token_ids : NULL,
        .vocab = t->vocab,
        .ids = x->ids,
        .weights = x->weights,
        .scratch = p->flags & CMOE_ROUTE_FROM_X ? scratch : NULL,
        .columns = columns,
        .h_used = (int32_t)x->shape->h_used,
    };
}

cmoe_gpu_routing cmoe__cuda_routing(const struct cmoe_exec *x, int way, void *scratch)
{
    cmoe_gpu_routing g = {
        .r = cmoe__cuda_route_params(x, scratch),
        .way = way,
        .floats = (int32_t)cmoe__cuda_route_floats(x->p),
    };
    divide(x->p, &g);
    if (!drops_groups(x->p)) g.per = held_of(way);
    g.vectors = cmoe__cuda_route_vectors(&g.r, way);
    return g;
}

size_t cmoe__cuda_route_floats(const cmoe_problem *p)
{
    return (size_t)columns_of(p) + (size_t)p->experts * 3 + (size_t)p->groups;
}

size_t cmoe__cuda_route_scratch(const cmoe_problem *p, int64_t tokens)
{
    return p->flags & CMOE_ROUTE_FROM_X ? (size_t)tokens * (size_t)columns_of(p) * 4 : 0;
}

double cmoe__cuda_route_token_us(const cmoe_problem *p, bool few)
{
    const int way = cmoe__cuda_route_way(p, few);
    if (way == CMOE_ROUTE_MEMORY) return 0.4 + 1.2e-3 * p->experts;
    if (!chosen_by_logits(p)) return 0.15 + 1e-3 * p->experts;
    if (by_lanes(way)) return 6e-4 * p->experts;
    return 0.045 + 2.5e-4 * p->experts;
}
