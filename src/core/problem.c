/* SPDX-License-Identifier: MIT
 * A problem's defaults and the counts that follow from it. */
#include <cmoe/problem.h>

#include "core/size.h"

#include <string.h>

void cmoe_problem_init(cmoe_problem *p)
{
    const cmoe_format bf16 = {.dtype = CMOE_BF16, .scaling = CMOE_SCALE_NONE};
    if (!p) return;
    memset(p, 0, sizeof *p);
    p->struct_size = sizeof *p;
    p->max_tokens = 1;
    p->experts = 1;
    p->topk = 1;
    p->route_scale = 1.0F;
    p->shared_weight = 1.0F;
    p->router = CMOE_ROUTE_SOFTMAX;
    p->act = CMOE_ACT_SILU;
    p->gate = CMOE_GATE_SPLIT;
    p->weight_on = CMOE_WEIGHT_ON_OUTPUT;
    p->first = CMOE_STAGE_ROUTE;
    p->last = CMOE_STAGE_COMBINE;
    p->sort_format = CMOE_SORT_INDEX;
    p->block_m = 32;
    p->logits = CMOE_F32;
    p->in = CMOE_BF16;
    p->y = CMOE_BF16;
    p->x = bf16;
    p->w = bf16;
    p->mid = bf16;
}

int32_t cmoe_problem_slots(const cmoe_problem *p)
{
    if (!p) return 0;
    return p->router == CMOE_ROUTE_ALL ? p->experts : p->topk + p->shared;
}

int32_t cmoe_problem_local_experts(const cmoe_problem *p)
{
    if (!p) return 0;
    const int32_t routed = p->expert_count > 0 ? p->expert_count : p->experts - p->expert_first;
    return routed + p->shared;
}

int64_t cmoe_problem_rows1(const cmoe_problem *p)
{
    if (!p) return 0;
    return p->gate == CMOE_GATE_NONE ? p->inter : 2 * (int64_t)p->inter;
}

void cmoe_rank_tokens(int64_t n, int size, int rank, int64_t *first, int64_t *end)
{
    if (n < 0) n = 0;
    if (size < 1) size = 1;
    const int64_t per = n / size + (n % size != 0);
    /* n itself where per * rank would pass it, so that nothing overflows */
    const int64_t at = rank > 0 && per > n / rank ? n : cmoe__min64(per * cmoe__max64(rank, 0), n);
    if (first) *first = at;
    if (end) *end = n - at < per ? n : at + per;
}
