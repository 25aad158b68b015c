/* SPDX-License-Identifier: MIT
 * SORT: slots grouped by local expert by one stable counting sort, and the published formats made
 * from it or read into it. */
#include "backends/ref/ref.h"

#include "core/size.h"
#include <string.h>

/* Counts in offsets[1..], turned into starts; then `place` fills rows and shifts them back. */
static void starts(int32_t *offsets, int32_t local)
{
    for (int32_t e = 0; e < local; e++)
        offsets[e + 1] += offsets[e];
}

/* After every row e was placed at offsets[e]++, offsets[e] is the start of e + 1. */
static void unshift(int32_t *offsets, int32_t local)
{
    memmove(offsets + 1, offsets, (size_t)local * sizeof *offsets);
    offsets[0] = 0;
}

static void sort_batched(const struct cmoe_exec *x)
{
    const int32_t cap = x->p->capacity, *counts = x->t->expert_offsets;
    x->offsets[0] = 0;
    for (int32_t e = 0; e < x->shape->local; e++) {
        const int32_t n = counts[e] < 0 ? 0 : (counts[e] < cap ? counts[e] : cap);
        x->offsets[e + 1] = x->offsets[e] + n;
        for (int32_t r = 0; r < n; r++)
            x->rows[x->offsets[e] + r] = e * cap + r;
    }
}

/* ids[n] (any values) to rows and offsets. */
static void sort_ids(const struct cmoe_exec *x, const int32_t *ids, int64_t n)
{
    const int32_t local = x->shape->local;
    memset(x->offsets, 0, ((size_t)local + 1) * sizeof *x->offsets);
    for (int64_t i = 0; i < n; i++) {
        const int32_t e = cmoe__exec_local(x, ids[i]);
        if (e >= 0) x->offsets[e + 1]++;
    }
    starts(x->offsets, local);
    for (int64_t i = 0; i < n; i++) {
        const int32_t e = cmoe__exec_local(x, ids[i]);
        if (e >= 0) x->rows[x->offsets[e]++] = (int32_t)i;
    }
    unshift(x->offsets, local);
}

cmoe_status cmoe__ref_sort(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    (void)step;
    if (x->shape->batched)
        sort_batched(x);
    else
        sort_ids(x, x->ids, (int64_t)x->tokens * x->shape->slots);
    return CMOE_OK;
}

/* Index to (slot << 24) | token or token*S + slot, every expert padded to block_m. */
cmoe_status cmoe__ref_sort_export(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const cmoe_tensors *t = x->t;
    const bool packed = step->out.layout == CMOE_EDGE_PACKED;
    const int32_t slots = x->shape->slots, bm = x->p->block_m;
    const uint32_t pad = packed ? ((uint32_t)slots << 24) | (uint32_t)x->tokens
                                : (uint32_t)((int64_t)x->tokens * slots);
    int64_t at = 0;
    for (int32_t e = 0; e < x->shape->local; e++) {
        const int32_t n = x->offsets[e + 1] - x->offsets[e];
        const int64_t end = at + cmoe__round_up(n, bm);
        for (int64_t b = at / bm; b < end / bm; b++)
            t->block_experts[b] = e;
        for (int32_t i = 0; i < n; i++, at++) {
            const int32_t row = x->rows[x->offsets[e] + i];
            const uint32_t id = ((uint32_t)(row % slots) << 24) | (uint32_t)(row / slots);
            t->sorted_ids[at] = (int32_t)(packed ? id : (uint32_t)row);
            if (t->sorted_weights) t->sorted_weights[at] = cmoe__exec_weight(x, row);
        }
        for (; at < end; at++) {
            t->sorted_ids[at] = (int32_t)pad;
            if (t->sorted_weights) t->sorted_weights[at] = 0;
        }
    }
    t->num_valid[0] = (int32_t)at;
    if (packed) t->num_valid[1] = x->tokens;
    return CMOE_OK;
}

/* Slot row of entry i of a published list, or -1: padding, or a token or slot that is not there. */
static int64_t entry_row(const struct cmoe_exec *x, uint8_t layout, int64_t i)
{
    const int32_t slots = x->shape->slots;
    const uint32_t id = (uint32_t)x->t->sorted_ids[i];
    if (layout == CMOE_EDGE_FLAT)
        return id < (uint64_t)x->tokens * (uint32_t)slots ? (int64_t)id : -1;
    const uint32_t token = id & 0xffffff, slot = id >> 24;
    return token < (uint32_t)x->tokens && slot < (uint32_t)slots ? (int64_t)token * slots + slot
                                                                 : -1;
}

/* Visit every valid (row, local expert) of the published list in order; with rows NULL only count. */
static void import_list(const struct cmoe_exec *x, uint8_t layout, int32_t *next, int32_t *rows)
{
    const int32_t bm = x->p->block_m;
    const int64_t capacity = cmoe_sort_capacity(x->p, x->tokens);
    const int64_t n = cmoe__max64(0, cmoe__min64(x->t->num_valid[0], capacity));
    int64_t taken = 0;
    const int64_t most = (int64_t)x->tokens * x->shape->slots;
    for (int64_t i = 0; i < n && taken < most; i++) {
        const int32_t e = x->t->block_experts[i / bm];
        const int64_t row = entry_row(x, layout, i);
        if (e < 0 || e >= x->shape->local || row < 0) continue;
        taken++;
        if (rows)
            rows[next[e]++] = (int32_t)row;
        else
            next[e + 1]++;
    }
}

cmoe_status cmoe__ref_sort_import(const struct cmoe_step *step, const struct cmoe_exec *x)
{
    const uint8_t layout = step->in.layout;
    if (layout == CMOE_EDGE_BATCHED) {
        sort_batched(x);
    } else if (layout == CMOE_EDGE_M_INDICES) {
        sort_ids(x, x->t->sorted_ids, x->tokens);
    } else {
        memset(x->offsets, 0, ((size_t)x->shape->local + 1) * sizeof *x->offsets);
        import_list(x, layout, x->offsets, NULL);
        starts(x->offsets, x->shape->local);
        import_list(x, layout, x->offsets, x->rows);
        unshift(x->offsets, x->shape->local);
    }
    return CMOE_OK;
}
