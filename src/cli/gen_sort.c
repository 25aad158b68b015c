/* SPDX-License-Identifier: MIT
 * Token orders, made here from the ids a second time: input of plans that start at GEMM1, and what
 * plans that end at SORT are compared with. */
#include "cli/gen_state.h"

#include <stdlib.h>
#include <string.h>

/* Local expert of an id, or -1. */
static int32_t local_expert(const cmoe_problem *p, const int32_t *map, int32_t id)
{
    const int32_t local = cmoe_problem_local_experts(p);
    if ((p->flags & CMOE_LOCAL_IDS) != 0) return id >= 0 && id < local ? id : -1;
    if (id < 0 || id >= p->experts + p->shared) return -1;
    if ((p->flags & CMOE_EXPERT_MAP) != 0) return map[id] >= 0 && map[id] < local ? map[id] : -1;
    if (id >= p->experts) return local - p->shared + id - p->experts;
    const int32_t at = id - p->expert_first;
    return at >= 0 && at < local - p->shared ? at : -1;
}

static bool is_padded(const cmoe_problem *p)
{
    return p->sort_format == CMOE_SORT_PACKED || p->sort_format == CMOE_SORT_FLAT;
}

cmoe_status gen_sort_buffers(struct gen_state *s, void *(*make)(struct gen_state *, int64_t))
{
    cmoe_tensors *t = &s->call->tensors;
    const int64_t word = sizeof(int32_t);
    const int64_t entries = is_padded(s->p) ? cmoe_sort_capacity(s->p, s->T) : s->T * s->S;
    const int64_t block = s->p->block_m > 0 ? s->p->block_m : 1;
    t->sorted_ids = make(s, entries * word);
    t->expert_offsets = make(s, (s->local + 1) * word);
    t->block_experts = make(s, entries / block * word);
    t->num_valid = make(s, 2 * word);
    t->sorted_weights = make(s, entries * word);
    return t->sorted_ids == NULL || t->expert_offsets == NULL || t->block_experts == NULL ||
                   t->num_valid == NULL || t->sorted_weights == NULL
               ? CMOE_ERR_NO_MEMORY
               : CMOE_OK;
}

/* Entry of slot `row` (token * S + slot), or of padding for row -1. */
static int32_t entry(const cmoe_problem *p, int64_t tokens, int64_t slots, int64_t row)
{
    if (p->sort_format != CMOE_SORT_PACKED) return (int32_t)(row >= 0 ? row : tokens * slots);
    const int64_t token = row >= 0 ? row / slots : tokens;
    const int64_t slot = row >= 0 ? row % slots : slots;
    return (int32_t)(uint32_t)(slot << 24 | token);
}

/* The order of `ids` [tokens, slots] into the buffers of t. @return entries written. */
static int64_t write_order(const cmoe_problem *p, const int32_t *ids, const float *weights,
                           const cmoe_tensors *t)
{
    const int64_t tokens = t->n_tokens, slots = cmoe_problem_slots(p);
    const int64_t block = is_padded(p) ? p->block_m : 1;
    int64_t at = 0;
    t->expert_offsets[0] = 0;
    for (int32_t e = 0; e < cmoe_problem_local_experts(p); e++) {
        for (int64_t row = 0; row < tokens * slots; row++) {
            if (local_expert(p, t->expert_map, ids[row]) != e) continue;
            if (is_padded(p)) t->block_experts[at / block] = e;
            t->sorted_weights[at] = weights != NULL ? weights[row] : 1;
            t->sorted_ids[at++] = entry(p, tokens, slots, row);
        }
        for (; at % block != 0; at++) {
            t->sorted_weights[at] = 0;
            t->sorted_ids[at] = entry(p, tokens, slots, -1);
        }
        t->expert_offsets[e + 1] = (int32_t)at;
    }
    t->num_valid[0] = (int32_t)at;
    t->num_valid[1] = (int32_t)tokens;
    return at;
}

cmoe_status gen_sorted(struct gen_state *s)
{
    const cmoe_problem *p = s->p;
    if (p->first < CMOE_STAGE_GEMM1 || p->capacity > 0 || p->sort_format == CMOE_SORT_M_INDICES)
        return CMOE_OK;
    const cmoe_status status = gen_sort_buffers(s, gen_input);
    if (status != CMOE_OK) return status;
    const cmoe_tensors *t = &s->call->tensors;
    write_order(p, s->call->ids, t->topk_weights, t);
    return CMOE_OK;
}

static bool differs(const void *a, const void *b, int64_t words)
{
    return memcmp(a, b, (size_t)words * sizeof(int32_t)) != 0;
}

static const char *compare_orders(const cmoe_problem *p, const cmoe_tensors *want,
                                  const cmoe_tensors *got, int64_t n)
{
    const bool packed = p->sort_format == CMOE_SORT_PACKED;
    const int64_t local = cmoe_problem_local_experts(p);
    if (differs(want->sorted_ids, got->sorted_ids, n)) return "sorted_ids differ";
    if (!is_padded(p))
        return differs(want->expert_offsets, got->expert_offsets, local + 1)
                   ? "expert_offsets differ"
                   : NULL;
    if (differs(want->num_valid, got->num_valid, packed ? 2 : 1)) return "num_valid differs";
    if (differs(want->block_experts, got->block_experts, n / p->block_m))
        return "block_experts differ";
    return packed && differs(want->sorted_weights, got->sorted_weights, n) ? "sorted_weights differ"
                                                                           : NULL;
}

const char *gen_sort_difference(const struct gen_call *call)
{
    const cmoe_problem *p = &call->problem;
    const cmoe_tensors *got = &call->tensors;
    struct gen_call scratch = {.problem = *p, .tensors = *got};
    struct gen_state s = {
        .call = &scratch,
        .p = p,
        .T = got->n_tokens,
        .S = cmoe_problem_slots(p),
        .local = cmoe_problem_local_experts(p),
    };
    const char *difference = "out of memory";
    if (gen_sort_buffers(&s, gen_output) == CMOE_OK) {
        const int64_t n = write_order(p, call->ids, got->topk_weights, &scratch.tensors);
        difference = compare_orders(p, &scratch.tensors, got, n);
    }
    gen_call_free(&scratch);
    return difference;
}

/* A local expert, or -1, for every row of x. */
static cmoe_status make_row_ids(struct gen_state *s, int64_t rows)
{
    struct gen_call *call = s->call;
    int32_t *ids = gen_input(s, rows * (int64_t)sizeof(int32_t));
    if (ids == NULL) return CMOE_ERR_NO_MEMORY;
    const int64_t capacity = s->p->capacity;
    for (int64_t r = 0; r < rows; r++) {
        if (capacity == 0)
            ids[r] = call->tensors.sorted_ids[r];
        else
            ids[r] = gen_y_row_counts(call, r) ? (int32_t)(r / capacity) : -1;
    }
    call->reference_tensors.topk_ids = ids;
    call->reference_tensors.n_tokens = (int32_t)rows;
    return CMOE_OK;
}

cmoe_status gen_reference(struct gen_state *s)
{
    struct gen_call *call = s->call;
    cmoe_problem *q = &call->reference;
    *q = *s->p;
    call->reference_tensors = call->tensors;
    const bool by_row =
        q->capacity > 0 || (q->first >= CMOE_STAGE_GEMM1 && q->sort_format == CMOE_SORT_M_INDICES);
    if (q->first >= CMOE_STAGE_GEMM1) q->first = CMOE_STAGE_SORT;
    if (q->last == CMOE_STAGE_COMBINE) q->sort_format = CMOE_SORT_INDEX;
    if (!by_row) return CMOE_OK;
    const int64_t rows = q->capacity > 0 ? s->local * q->capacity : s->T;
    q->max_tokens = (int32_t)rows;
    q->experts = (int32_t)s->local;
    q->topk = 1;
    q->shared = q->expert_first = q->expert_count = q->groups = q->groups_kept = q->capacity = 0;
    q->router = CMOE_ROUTE_SOFTMAX;
    q->flags &= ~(uint32_t)CMOE_EXPERT_MAP;
    q->flags |= CMOE_LOCAL_IDS;
    call->reference_tensors.y_stride = 0;
    return make_row_ids(s, rows);
}
