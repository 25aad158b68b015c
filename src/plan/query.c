/* SPDX-License-Identifier: MIT
 * What rows are asked: for how many tokens, from what lies on the boundary before them, and whether they take it. */
#include "plan/plan.h"
#include <stdarg.h>
#include <stdio.h>

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
