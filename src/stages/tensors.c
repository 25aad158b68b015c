/* SPDX-License-Identifier: MIT
 * Checking a call's arguments against its plan: every pointer the plan's ends need, named. */
#include "stages/tensors.h"

#include "core/fail.h"
#include "core/numeric.h"
#include "core/size.h"
#include <string.h>

static cmoe_status need(const void *pointer, const char *name, const char *because)
{
    if (pointer) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_INVALID, "cmoe_execute: tensors.%s is NULL; %s", name, because);
}

static bool runs(const cmoe_problem *p, cmoe_stage stage)
{
    return p->first <= stage && stage <= p->last;
}

static cmoe_status check_route(const cmoe_problem *p, const struct cmoe_shape *s,
                               const cmoe_tensors *t)
{
    if (p->last == CMOE_STAGE_ROUTE) {
        CMOE_TRY(need(t->topk_ids, "topk_ids", "the plan ends with ROUTE"));
        CMOE_TRY(need(t->topk_weights, "topk_weights", "the plan ends with ROUTE"));
    }
    if (s->route_all) return CMOE_OK;
    if (p->flags & CMOE_ROUTE_FROM_X) {
        CMOE_TRY(need(t->x, "x", "ROUTE computes the logits from x"));
        CMOE_TRY(need(t->router_w, "router_w", "ROUTE computes the logits from x"));
    } else {
        CMOE_TRY(need(t->logits, "logits", "the plan starts with ROUTE"));
    }
    if (p->flags & CMOE_ROUTE_BIAS)
        CMOE_TRY(need(t->route_bias, "route_bias", "the problem has rbias"));
    if (p->flags & CMOE_HASH) {
        CMOE_TRY(need(t->hash_table, "hash_table", "the problem has hash"));
        CMOE_TRY(need(t->token_ids, "token_ids", "the problem has hash"));
    }
    return CMOE_OK;
}

static cmoe_status check_ids(const cmoe_problem *p, const struct cmoe_shape *s,
                             const cmoe_tensors *t)
{
    const bool given = p->first > CMOE_STAGE_ROUTE && !s->batched && !s->m_indices;
    const bool wanted = p->first <= CMOE_STAGE_SORT || p->last == CMOE_STAGE_COMBINE;
    if (given && wanted && !t->topk_ids64)
        CMOE_TRY(need(t->topk_ids, "topk_ids", "the plan starts after ROUTE"));
    const bool maps = p->last >= CMOE_STAGE_SORT && !s->batched && !s->m_indices &&
                      (runs(p, CMOE_STAGE_SORT) || runs(p, CMOE_STAGE_COMBINE));
    if (maps && (p->flags & CMOE_EXPERT_MAP))
        CMOE_TRY(need(t->expert_map, "expert_map", "the problem has map"));
    return CMOE_OK;
}

static cmoe_status check_sort(const cmoe_problem *p, const struct cmoe_shape *s,
                              const cmoe_tensors *t)
{
    const bool ends = p->last == CMOE_STAGE_SORT, starts = p->first >= CMOE_STAGE_GEMM1;
    const char *because = ends ? "the plan ends with SORT" : "the plan starts after SORT";
    if (s->batched) {
        if (p->first <= CMOE_STAGE_COMBINE)
            CMOE_TRY(need(t->expert_offsets, "expert_offsets", "batched plans read counts"));
        return CMOE_OK;
    }
    if ((!ends && !starts) || p->first == CMOE_STAGE_COMBINE) return CMOE_OK;
    CMOE_TRY(need(t->sorted_ids, "sorted_ids", because));
    switch ((cmoe_sort_format)p->sort_format) {
    case CMOE_SORT_INDEX:
        return need(t->expert_offsets, "expert_offsets", because);
    case CMOE_SORT_PACKED:
    case CMOE_SORT_FLAT:
        CMOE_TRY(need(t->block_experts, "block_experts", because));
        return need(t->num_valid, "num_valid", because);
    case CMOE_SORT_M_INDICES:
    case CMOE_SORT_BATCHED:
    case CMOE_SORT_FORMAT_COUNT:
        break;
    }
    return CMOE_OK;
}

/* Codes with what decodes them: one scale may be the problem's own, NV has another level. */
static cmoe_status check_codes(cmoe_format f, const void *codes, const void *scale,
                               const float *global, const char *const names[3], const char *because)
{
    CMOE_TRY(need(codes, names[0], because));
    if (!(f.scaling == CMOE_SCALE_TENSOR && f.fixed)) CMOE_TRY(need(scale, names[1], because));
    if (f.scaling == CMOE_SCALE_NV && !f.fixed) CMOE_TRY(need(global, names[2], because));
    return CMOE_OK;
}

static cmoe_status check_xq(const cmoe_problem *p, const cmoe_tensors *t, const char *because)
{
    static const char *const names[3] = {"xq", "xq_scale", "xq_global"};
    if (!cmoe__format_is_quantized(p->x)) return need(t->xq, names[0], because);
    return check_codes(p->x, t->xq, t->xq_scale, t->xq_global, names, because);
}

static cmoe_status check_mid_q(const cmoe_problem *p, const cmoe_tensors *t, const char *because)
{
    static const char *const names[3] = {"mid_q", "mid_q_scale", "mid_q_global"};
    return check_codes(p->mid, t->mid_q, t->mid_q_scale, t->mid_q_global, names, because);
}

/* What each stage must find when the plan starts with it, and leave when the plan ends with it. */
static cmoe_status check_ends(const cmoe_problem *p, const struct cmoe_shape *s,
                              const cmoe_tensors *t)
{
    if (runs(p, CMOE_STAGE_GEMM1)) CMOE_TRY(need(t->x, "x", "GEMM1 reads it"));
    if (runs(p, CMOE_STAGE_QUANT) && s->quant) CMOE_TRY(need(t->x, "x", "QUANT reads it"));
    if (p->x.fixed && (runs(p, CMOE_STAGE_QUANT) || runs(p, CMOE_STAGE_GEMM1)))
        CMOE_TRY(need(t->x_scale, "x_scale", "x has a static scale"));
    if (s->x_given && cmoe__format_is_quantized(p->x) && runs(p, CMOE_STAGE_GEMM1))
        CMOE_TRY(need(t->x_scale, "x_scale", "x arrives quantised"));
    if (s->x_given && p->x.scaling == CMOE_SCALE_NV && runs(p, CMOE_STAGE_GEMM1))
        CMOE_TRY(need(t->x_global, "x_global", "x arrives quantised"));
    if (p->mid.fixed && (runs(p, CMOE_STAGE_REQUANT) || runs(p, CMOE_STAGE_GEMM2)))
        CMOE_TRY(need(t->mid_scale, "mid_scale", "mid has a static scale"));
    switch ((cmoe_stage)p->last) {
    case CMOE_STAGE_QUANT:
        if (s->quant) CMOE_TRY(check_xq(p, t, "the plan ends with QUANT"));
        break;
    case CMOE_STAGE_GEMM1:
        CMOE_TRY(need(t->gate_up, "gate_up", "the plan ends with GEMM1"));
        break;
    case CMOE_STAGE_ACT:
        CMOE_TRY(need(t->mid, "mid", "the plan ends with ACT"));
        break;
    case CMOE_STAGE_REQUANT:
        if (s->requant) CMOE_TRY(check_mid_q(p, t, "the plan ends with REQUANT"));
        break;
    case CMOE_STAGE_GEMM2:
        CMOE_TRY(need(t->z, "z", "the plan ends with GEMM2"));
        break;
    case CMOE_STAGE_COMBINE:
        CMOE_TRY(need(t->y, "y", "the plan ends with COMBINE"));
        break;
    case CMOE_STAGE_ROUTE:
    case CMOE_STAGE_SORT:
    case CMOE_STAGE_COUNT:
        break;
    }
    switch ((cmoe_stage)p->first) {
    case CMOE_STAGE_ACT:
        CMOE_TRY(need(t->gate_up, "gate_up", "the plan starts with ACT"));
        break;
    case CMOE_STAGE_REQUANT:
        CMOE_TRY(need(t->mid, "mid", "the plan starts with REQUANT"));
        break;
    case CMOE_STAGE_GEMM2:
        if (s->requant) {
            CMOE_TRY(check_mid_q(p, t, "the plan starts with GEMM2"));
        } else {
            CMOE_TRY(need(t->mid, "mid", "the plan starts with GEMM2"));
        }
        break;
    case CMOE_STAGE_COMBINE:
        CMOE_TRY(need(t->z, "z", "the plan starts with COMBINE"));
        break;
    case CMOE_STAGE_ROUTE:
    case CMOE_STAGE_QUANT:
    case CMOE_STAGE_SORT:
    case CMOE_STAGE_GEMM1:
    case CMOE_STAGE_COUNT:
        break;
    }
    return CMOE_OK;
}

/* y may be x itself (every x is read before its y is written) but not overlap it partly. */
static cmoe_status check_alias(const cmoe_problem *p, const struct cmoe_shape *s,
                               const cmoe_tensors *t)
{
    const int64_t tokens = t->n_tokens;
    if (!t->x || !t->y || p->last != CMOE_STAGE_COMBINE || tokens == 0) return CMOE_OK;
    const int64_t x_row = cmoe__tensors_x_stride(p, s, t);
    const int64_t y_row = cmoe__tensors_y_stride(p, s, t);
    const uintptr_t x0 = (uintptr_t)t->x, y0 = (uintptr_t)t->y;
    /* What follows the last row of a wider matrix's columns is not theirs. */
    cmoe_tensors tight = *t;
    tight.x_stride = tight.y_stride = 0;
    const int64_t x_last = cmoe__tensors_x_stride(p, s, &tight);
    const int64_t y_last = cmoe__tensors_y_stride(p, s, &tight);
    const uintptr_t x1 = x0 + (uintptr_t)(x_row * (tokens - 1) + x_last);
    const uintptr_t y1 = y0 + (uintptr_t)(y_row * (tokens - 1) + y_last);
    const bool same = x0 == y0 && x_row == y_row && p->in == p->y && !(p->flags & CMOE_NO_REDUCE);
    if (x0 < y1 && y0 < x1 && !same)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "cmoe_execute: y overlaps x; it must be x itself, with the same type and "
                         "stride, or lie apart from it");
    return CMOE_OK;
}

int64_t cmoe__tensors_x_stride(const cmoe_problem *p, const struct cmoe_shape *s,
                               const cmoe_tensors *t)
{
    if (t->x_stride != 0) return t->x_stride;
    return (int64_t)cmoe_dtype_bytes(s->x_given ? (cmoe_dtype)p->x.dtype : (cmoe_dtype)p->in,
                                     p->hidden);
}

int64_t cmoe__tensors_y_stride(const cmoe_problem *p, const struct cmoe_shape *s,
                               const cmoe_tensors *t)
{
    if (t->y_stride != 0) return t->y_stride;
    const int64_t row = (int64_t)cmoe_dtype_bytes((cmoe_dtype)p->y, p->hidden);
    return p->flags & CMOE_NO_REDUCE ? row * s->slots : row;
}

static cmoe_status check_strides(const cmoe_problem *p, const struct cmoe_shape *s,
                                 const cmoe_tensors *t)
{
    cmoe_tensors tight = *t;
    tight.x_stride = tight.y_stride = 0;
    const int64_t x_row = cmoe__tensors_x_stride(p, s, &tight);
    const int64_t y_row = cmoe__tensors_y_stride(p, s, &tight);
    if (t->x_stride != 0 && t->x_stride < x_row)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "cmoe_execute: x_stride %lld is shorter than a row of %lld bytes",
                         (long long)t->x_stride, (long long)x_row);
    if (t->y_stride != 0 && t->y_stride < y_row)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "cmoe_execute: y_stride %lld is shorter than a row of %lld bytes",
                         (long long)t->y_stride, (long long)y_row);
    const int64_t columns = p->experts + (p->flags & CMOE_SHARED_SIGMOID ? p->shared : 0);
    if (t->logits_stride != 0 && t->logits_stride < columns)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "cmoe_execute: logits_stride %lld is shorter than %lld columns",
                         (long long)t->logits_stride, (long long)columns);
    return CMOE_OK;
}

/* A caller's index is used in place, so it must point nowhere else: ascending offsets, rows that are
 * there. The other formats are read entry by entry, and entries that point elsewhere are skipped. */
static cmoe_status check_index(const cmoe_problem *p, const struct cmoe_shape *s,
                               const cmoe_tensors *t)
{
    const bool reads = p->first > CMOE_STAGE_SORT && p->first < CMOE_STAGE_COMBINE;
    if (!reads || s->batched || p->sort_format != CMOE_SORT_INDEX) return CMOE_OK;
    const int64_t rows = cmoe__shape_rows(p, s, t->n_tokens);
    int64_t before = 0;
    for (int32_t e = 0; e <= s->local; e++) {
        const int64_t offset = t->expert_offsets[e];
        if (offset < before || offset > rows || (e == 0 && offset != 0))
            return CMOE_FAIL(
                CMOE_ERR_INVALID,
                "cmoe_execute: expert_offsets[%d] is %lld; offsets begin with 0, ascend "
                "and end within %lld rows",
                e, (long long)offset, (long long)rows);
        before = offset;
    }
    for (int64_t i = 0; i < before; i++)
        if (t->sorted_ids[i] < 0 || t->sorted_ids[i] >= rows)
            return CMOE_FAIL(CMOE_ERR_INVALID,
                             "cmoe_execute: sorted_ids[%lld] is %d; there are rows 0..%lld",
                             (long long)i, t->sorted_ids[i], (long long)rows - 1);
    return CMOE_OK;
}

cmoe_status cmoe__tensors_check(const cmoe_problem *p, const struct cmoe_shape *s,
                                const cmoe_tensors *t, const cmoe_weights *w, bool host)
{
    if (runs(p, CMOE_STAGE_ROUTE)) CMOE_TRY(check_route(p, s, t));
    CMOE_TRY(check_ids(p, s, t));
    CMOE_TRY(check_sort(p, s, t));
    CMOE_TRY(check_ends(p, s, t));
    if ((runs(p, CMOE_STAGE_GEMM1) || runs(p, CMOE_STAGE_GEMM2)) && !w)
        return CMOE_FAIL(
            CMOE_ERR_INVALID,
            "cmoe_execute: tensors.weights is NULL and the plan was made without weights");
    CMOE_TRY(check_strides(p, s, t));
    if (!host) return CMOE_OK;
    CMOE_TRY(check_index(p, s, t));
    return check_alias(p, s, t);
}

cmoe_status cmoe__weights_fit(const cmoe_problem *p, const cmoe_weights *w)
{
    const cmoe_problem *q = &w->p;
    const uint32_t flags = CMOE_BIAS1 | CMOE_BIAS2 | CMOE_BLOCK_JOINT;
    const bool smooth1 = p->x.scaling != CMOE_SCALE_SMOOTH || q->x.scaling == CMOE_SCALE_SMOOTH;
    const bool smooth2 = p->mid.scaling != CMOE_SCALE_SMOOTH || q->mid.scaling == CMOE_SCALE_SMOOTH;
    if (p->hidden == q->hidden && p->inter == q->inter && p->gate == q->gate &&
        cmoe_problem_local_experts(p) == w->experts && memcmp(&p->w, &q->w, sizeof p->w) == 0 &&
        ((p->flags ^ q->flags) & flags) == 0 && smooth1 && smooth2) {
        for (int matrix = 1; matrix <= 2; matrix++)
            if (runs(p, matrix == 1 ? CMOE_STAGE_GEMM1 : CMOE_STAGE_GEMM2) && w->experts > 0 &&
                !w->has[matrix - 1])
                return CMOE_FAIL(CMOE_ERR_MISMATCH,
                                 "the problem reads matrix %d, which the weights were made without",
                                 matrix);
        return CMOE_OK;
    }
    char wanted[200], made[200];
    cmoe_problem_print(p, wanted, sizeof wanted);
    cmoe_problem_print(q, made, sizeof made);
    return CMOE_FAIL(CMOE_ERR_MISMATCH, "the problem \"%s\" does not fit weights made for \"%s\"",
                     wanted, made);
}
