/* SPDX-License-Identifier: MIT
 * Questions every stage asks about ids and rows. */
#include "stages/exec.h"

int32_t cmoe__exec_local(const struct cmoe_exec *x, int32_t id)
{
    const cmoe_problem *p = x->p;
    const int32_t local = x->shape->local;
    if (id < 0) return -1;
    if ((p->flags & CMOE_LOCAL_IDS) || x->shape->m_indices) return id < local ? id : -1;
    if (id >= x->shape->ids) return -1;
    if (p->flags & CMOE_EXPERT_MAP) {
        const int32_t mapped = x->t->expert_map[id];
        return mapped >= 0 && mapped < local ? mapped : -1;
    }
    const int32_t routed = local - p->shared;
    if (id >= p->experts) return routed + (id - p->experts);
    const int32_t at = id - p->expert_first;
    return at >= 0 && at < routed ? at : -1;
}

bool cmoe__exec_slot_counts(const struct cmoe_exec *x, int64_t row)
{
    const int32_t ids = x->p->flags & CMOE_LOCAL_IDS ? x->shape->local : x->shape->ids;
    return x->ids[row] >= 0 && x->ids[row] < ids;
}

bool cmoe__exec_token_counts(const struct cmoe_exec *x, int64_t t)
{
    for (int32_t s = 0; s < x->shape->slots; s++) {
        if (cmoe__exec_slot_counts(x, t * x->shape->slots + s)) return true;
    }
    return false;
}

float cmoe__exec_weight(const struct cmoe_exec *x, int64_t row)
{
    return x->weights && !x->shape->batched ? x->weights[row] : 1.0f;
}
