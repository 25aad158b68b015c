/* SPDX-License-Identifier: MIT
 * The search: cheapest chain of rows from the plan's first boundary to its last.
 *
 * Nodes are (boundary, edge layout); rows are arcs from the boundary before their first stage to
 * the one after their last; rows that cover no stage convert one layout into another on the same
 * boundary. Boundaries are visited in order, so one sweep of relaxations is enough. */
#include "plan/pin.h"
#include "plan/plan.h"
#include "plan/tuned.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool cmoe__refuse(struct cmoe_why *why, const char *format, ...)
{
    if (why) {
        va_list args;
        va_start(args, format);
        vsnprintf(why->text, sizeof why->text, format, args);
        va_end(args);
    }
    return false;
}

int cmoe__plan_bucket(int64_t n)
{
    int b = 0;
    while (((int64_t)1 << b) < n)
        b++;
    return b;
}

int cmoe__plan_bucket_tokens(const cmoe_problem *p, int b)
{
    const int64_t top = (int64_t)1 << b;
    return top < p->max_tokens ? (int)top : p->max_tokens;
}

static uint8_t sort_layout(const cmoe_problem *p)
{
    if (p->capacity > 0) return CMOE_EDGE_BATCHED;
    switch ((cmoe_sort_format)p->sort_format) {
    case CMOE_SORT_INDEX:
        return CMOE_EDGE_INDEX;
    case CMOE_SORT_PACKED:
        return CMOE_EDGE_PACKED;
    case CMOE_SORT_FLAT:
        return CMOE_EDGE_FLAT;
    case CMOE_SORT_M_INDICES:
        return CMOE_EDGE_M_INDICES;
    case CMOE_SORT_BATCHED:
        return CMOE_EDGE_BATCHED;
    case CMOE_SORT_FORMAT_COUNT:
        break;
    }
    return CMOE_EDGE_INDEX;
}

static struct cmoe_edge sort_edge(const cmoe_problem *p)
{
    const uint8_t layout = sort_layout(p);
    const bool padded = layout == CMOE_EDGE_PACKED || layout == CMOE_EDGE_FLAT;
    return (struct cmoe_edge){.layout = layout, .block_m = padded ? (uint16_t)p->block_m : 0};
}

struct cmoe_edge cmoe__usual_edge(const cmoe_problem *p, int stage)
{
    static const uint8_t usual[CMOE_STAGE_COUNT + 1] = {
        [CMOE_STAGE_ROUTE] = CMOE_EDGE_LOGITS, [CMOE_STAGE_QUANT] = CMOE_EDGE_IDS,
        [CMOE_STAGE_SORT] = CMOE_EDGE_ROWS,    [CMOE_STAGE_GEMM1] = CMOE_EDGE_INDEX,
        [CMOE_STAGE_ACT] = CMOE_EDGE_SLOT,     [CMOE_STAGE_REQUANT] = CMOE_EDGE_SLOT,
        [CMOE_STAGE_GEMM2] = CMOE_EDGE_SLOT,   [CMOE_STAGE_COMBINE] = CMOE_EDGE_SLOT,
        [CMOE_STAGE_COUNT] = CMOE_EDGE_OUT,
    };
    if (stage == CMOE_STAGE_ROUTE && (p->flags & CMOE_ROUTE_FROM_X))
        return (struct cmoe_edge){.layout = CMOE_EDGE_X};
    return (struct cmoe_edge){.layout = usual[stage]};
}

struct cmoe_edge cmoe__plan_first_edge(const cmoe_problem *p)
{
    return p->first == CMOE_STAGE_GEMM1 ? sort_edge(p) : cmoe__usual_edge(p, p->first);
}

struct cmoe_edge cmoe__plan_last_edge(const cmoe_problem *p)
{
    if (p->last == CMOE_STAGE_SORT && p->capacity == 0) return sort_edge(p);
    return cmoe__usual_edge(p, p->last + 1);
}

bool cmoe__plan_skips(const struct cmoe_shape *s, int stage)
{
    return (stage == CMOE_STAGE_QUANT && !s->quant) || (stage == CMOE_STAGE_REQUANT && !s->requant);
}

bool cmoe__kernel_usable(const struct cmoe_kernel *k, const struct cmoe_query *q,
                         struct cmoe_edge in, struct cmoe_edge *out, struct cmoe_why *why)
{
    if (q->props->host && k->target > q->props->isa)
        return cmoe__refuse(why, "needs %s, this device has %s",
                            cmoe__isa_name((enum cmoe_isa)k->target),
                            cmoe__isa_name(q->props->isa));
    return k->family->supports(k, q, in, out, why);
}

struct cmoe_query cmoe__plan_query(const struct cmoe_plan *plan, int tokens)
{
    return (struct cmoe_query){
        .p = &plan->p, .shape = &plan->shape, .props = &plan->props, .tokens = tokens};
}

static bool format_ok(const char *wanted, const char *read)
{
    return !read || !*wanted || strcmp(wanted, read) == 0;
}

struct node {
    double cost;
    int priority; /* sum over the steps, breaks ties */
    struct cmoe_edge edge;
    int from_stage, from_layout; /* -1: start */
    struct cmoe_step step;       /* kernel NULL: skipped stage */
};

struct search {
    const struct cmoe_plan *plan;
    struct cmoe_query q;
    const char *format1, *format2;
    uint32_t pinned; /* the stages that pinned rows do */
    struct node node[CMOE_STAGE_COUNT + 1][CMOE_EDGE_COUNT];
};

static void relax(struct search *s, int from, int layout, int to, struct cmoe_edge edge,
                  const struct cmoe_step *step)
{
    const struct node *a = &s->node[from][layout];
    struct node *b = &s->node[to][edge.layout];
    const double cost = a->cost + step->cost_us;
    const int priority = a->priority + (step->kernel ? step->kernel->priority : 0);
    if (cost < b->cost || (cost == b->cost && priority > b->priority)) {
        *b = (struct node){.cost = cost,
                           .priority = priority,
                           .edge = edge,
                           .from_stage = from,
                           .from_layout = layout,
                           .step = *step};
    }
}

/* One row, the index-th of all, from every layout that reaches its boundary. */
static void relax_row(struct search *s, const struct cmoe_kernel *k, int index)
{
    for (int layout = 0; layout < CMOE_EDGE_COUNT; layout++) {
        const struct node *n = &s->node[k->first][layout];
        struct cmoe_edge out;
        if (isinf(n->cost) || !cmoe__kernel_usable(k, &s->q, n->edge, &out, NULL)) continue;
        const double measured = cmoe__tuned_us(s->plan, index, cmoe__plan_bucket(s->q.tokens));
        const struct cmoe_step step = {.kernel = k,
                                       .cost_us =
                                           measured > 0 ? measured : k->family->cost_us(k, &s->q),
                                       .in = n->edge,
                                       .out = out};
        relax(s, k->first, layout, k->last + 1, out, &step);
    }
}

/* A backend's rows that start at boundary `at`; `base` is the first one's index. */
static void relax_backend(struct search *s, const struct cmoe_backend *backend, int base, int at,
                          bool stay)
{
    for (int i = 0; i < backend->n_kernels; i++) {
        const struct cmoe_kernel *const k = &backend->kernels[i];
        if (k->first != at || (k->last + 1 == k->first) != stay || k->last > s->plan->p.last ||
            !format_ok(s->format1, k->format1) || !format_ok(s->format2, k->format2) ||
            cmoe__pin_excludes(s->plan, base + i, s->pinned))
            continue;
        relax_row(s, k, base + i);
    }
}

/* All rows that start at boundary `at`: conversions (stay == true) or rows that cover stages. */
static void relax_rows(struct search *s, int at, bool stay)
{
    const struct cmoe_backend *backend;
    for (int b = 0, base = 0; (backend = cmoe__backends[b]) != NULL; b++) {
        if (cmoe__backend_visible(backend, s->plan->dev)) relax_backend(s, backend, base, at, stay);
        base += backend->n_kernels;
    }
}

static void relax_skip(struct search *s, int stage)
{
    for (int layout = 0; layout < CMOE_EDGE_COUNT; layout++) {
        const struct node *n = &s->node[stage][layout];
        if (isinf(n->cost)) continue;
        struct cmoe_edge out = n->edge;
        if (stage == CMOE_STAGE_QUANT) out.layout = CMOE_EDGE_ROWS;
        const struct cmoe_step none = {.in = n->edge, .out = out};
        relax(s, stage, layout, stage + 1, out, &none);
    }
}

static void collect(const struct search *s, int stage, int layout, struct cmoe_path *out)
{
    struct cmoe_step reversed[CMOE_PLAN_STEPS];
    int n = 0;
    out->cost_us = s->node[stage][layout].cost;
    while (s->node[stage][layout].from_stage >= 0) {
        const struct node *node = &s->node[stage][layout];
        if (node->step.kernel) reversed[n++] = node->step;
        stage = node->from_stage;
        layout = node->from_layout;
    }
    out->n_steps = n;
    for (int i = 0; i < n; i++)
        out->step[i] = reversed[n - 1 - i];
}

double cmoe__path_search(const struct cmoe_plan *plan, int tokens, const char *format1,
                         const char *format2, struct cmoe_path *out)
{
    struct search s = {
        .plan = plan, .q = cmoe__plan_query(plan, tokens), .format1 = format1, .format2 = format2};
    s.pinned = cmoe__pin_stages(plan, &s.q);
    for (int b = 0; b <= CMOE_STAGE_COUNT; b++)
        for (int layout = 0; layout < CMOE_EDGE_COUNT; layout++)
            s.node[b][layout] = (struct node){.cost = INFINITY, .from_stage = -1};

    const struct cmoe_edge first = cmoe__plan_first_edge(&plan->p);
    const struct cmoe_edge last = cmoe__plan_last_edge(&plan->p);
    s.node[plan->p.first][first.layout] = (struct node){.edge = first, .from_stage = -1};
    for (int at = plan->p.first; at <= plan->p.last; at++) {
        relax_rows(&s, at, true);
        relax_rows(&s, at, false);
        if (cmoe__plan_skips(&plan->shape, at)) relax_skip(&s, at);
    }
    const int end = plan->p.last + 1;
    relax_rows(&s, end, true);
    const double cost = s.node[end][last.layout].cost;
    if (out && isfinite(cost)) {
        out->tokens = tokens;
        collect(&s, end, last.layout, out);
    }
    return cost;
}

bool cmoe__path_repeat(const struct cmoe_plan *plan, int tokens, const struct cmoe_path *from,
                       struct cmoe_path *out)
{
    const struct cmoe_query q = cmoe__plan_query(plan, tokens);
    out->tokens = tokens;
    out->n_steps = from->n_steps;
    out->cost_us = 0;
    for (int i = 0; i < from->n_steps; i++) {
        const struct cmoe_kernel *k = from->step[i].kernel;
        struct cmoe_edge edge;
        if (!cmoe__kernel_usable(k, &q, from->step[i].in, &edge, NULL)) return false;
        out->step[i] = from->step[i];
        out->step[i].out = edge;
        out->step[i].cost_us = k->family->cost_us(k, &q);
        out->cost_us += out->step[i].cost_us;
    }
    return true;
}
