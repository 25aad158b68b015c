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
#include <string.h>

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
