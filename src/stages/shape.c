/* SPDX-License-Identifier: MIT
 * Derived sizes of a problem. */
#include "stages/shape.h"

#include "core/size.h"

bool cmoe__format_is_quantized(cmoe_format f)
{
    return f.scaling != CMOE_SCALE_NONE;
}

void cmoe__shape(const cmoe_problem *p, struct cmoe_shape *s)
{
    const bool own_sort = p->first >= CMOE_STAGE_GEMM1;
    const bool x_quantized = cmoe__format_is_quantized(p->x);
    *s = (struct cmoe_shape){
        .slots = cmoe_problem_slots(p),
        .ids = p->experts + p->shared,
        .local = cmoe_problem_local_experts(p),
        .H = p->hidden,
        .I = p->inter,
        .h_used = (int64_t)p->hidden - p->hidden_pad,
        .i_used = (int64_t)p->inter - p->inter_pad,
        .rows1 = cmoe_problem_rows1(p),
        .gated = p->gate != CMOE_GATE_NONE,
        .batched = p->capacity > 0,
        .m_indices = own_sort && p->sort_format == CMOE_SORT_M_INDICES,
        .route_all = p->router == CMOE_ROUTE_ALL,
    };
    s->x_slots =
        s->batched || p->weight_on == CMOE_WEIGHT_ON_INPUT || p->x.scaling == CMOE_SCALE_SMOOTH;
    s->x_given = p->first > CMOE_STAGE_QUANT || (p->flags & CMOE_X_QUANTIZED);
    s->quant =
        !s->x_given && (x_quantized || p->weight_on == CMOE_WEIGHT_ON_INPUT || p->x.dtype != p->in);
    s->requant = cmoe__format_is_quantized(p->mid);
}

int64_t cmoe__shape_rows(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    return s->batched ? (int64_t)s->local * p->capacity : tokens * s->slots;
}

cmoe_dtype cmoe__shape_h_dtype(const cmoe_problem *p)
{
    return cmoe__format_is_quantized(p->mid) ? CMOE_F32 : (cmoe_dtype)p->mid.dtype;
}

static double scale_bytes(cmoe_format f, double rows, double cols)
{
    switch ((cmoe_scaling)f.scaling) {
    case CMOE_SCALE_CHANNEL:
        return rows * 4;
    case CMOE_SCALE_BLOCK:
        return rows * cols / (128.0 * 128.0) * 4;
    case CMOE_SCALE_GROUP:
        return rows * cols / f.group * (f.scale_dtype == CMOE_NONE ? 4 : 2) * (f.zero ? 1.25 : 1);
    case CMOE_SCALE_MX:
        return rows * cols / 32;
    case CMOE_SCALE_NV:
        return rows * cols / 16;
    case CMOE_SCALE_NONE:
    case CMOE_SCALE_TENSOR:
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
    case CMOE_SCALING_COUNT:
        break;
    }
    return 0;
}

double cmoe__expert_bytes(const cmoe_problem *p, int matrix)
{
    const double rows = matrix == 1 ? (double)cmoe_problem_rows1(p) : p->hidden;
    const double cols = matrix == 1 ? p->hidden : p->inter;
    return rows * cols * cmoe_dtype_bits((cmoe_dtype)p->w.dtype) / 8 +
           scale_bytes(p->w, rows, cols);
}

double cmoe__experts_hit(const cmoe_problem *p, int64_t tokens)
{
    struct cmoe_shape s;
    cmoe__shape(p, &s);
    if (s.route_all || s.batched) return s.local;
    /* 1 - (1 - k/E)^T, by repeated squaring */
    const double miss = 1.0 - (double)p->topk / p->experts;
    double none = 1, power = miss;
    for (int64_t n = tokens; n > 0; n >>= 1, power *= power)
        if (n & 1) none *= power;
    return (s.local - p->shared) * (1 - none) + p->shared;
}

double cmoe__shape_local_rows(const cmoe_problem *p, const struct cmoe_shape *s, int64_t tokens)
{
    const double rows = (double)cmoe__shape_rows(p, s, tokens);
    return s->batched || s->route_all ? rows : rows * s->local / s->ids;
}

double cmoe__stage_flops(const cmoe_problem *p, int stage, int64_t tokens)
{
    struct cmoe_shape s;
    cmoe__shape(p, &s);
    const double rows = cmoe__shape_local_rows(p, &s, tokens), H = (double)s.H, I = (double)s.I;
    switch ((cmoe_stage)stage) {
    case CMOE_STAGE_ROUTE:
        return (double)tokens * p->experts * (p->flags & CMOE_ROUTE_FROM_X ? 2 * H : 20);
    case CMOE_STAGE_QUANT:
        return (s.x_slots ? rows : (double)tokens) * H * 4;
    case CMOE_STAGE_SORT:
        return (double)tokens * s.slots * 8;
    case CMOE_STAGE_GEMM1:
        return rows * 2 * H * (double)s.rows1;
    case CMOE_STAGE_ACT:
        return rows * I * 20;
    case CMOE_STAGE_REQUANT:
        return rows * I * 4;
    case CMOE_STAGE_GEMM2:
        return rows * 2 * H * I;
    case CMOE_STAGE_COMBINE:
        return rows * H * 2;
    case CMOE_STAGE_COUNT:
        break;
    }
    return 0;
}

double cmoe__stage_bytes(const cmoe_problem *p, int stage, int64_t tokens)
{
    struct cmoe_shape s;
    cmoe__shape(p, &s);
    const double rows = cmoe__shape_local_rows(p, &s, tokens), H = (double)s.H, I = (double)s.I;
    const double in = cmoe_dtype_bits((cmoe_dtype)p->in) / 8.0;
    const double xb = cmoe_dtype_bits((cmoe_dtype)p->x.dtype) / 8.0;
    const double mb = cmoe_dtype_bits((cmoe_dtype)p->mid.dtype) / 8.0;
    const double hb = cmoe_dtype_bits(cmoe__shape_h_dtype(p)) / 8.0;
    const double hit = cmoe__experts_hit(p, tokens);
    switch ((cmoe_stage)stage) {
    case CMOE_STAGE_ROUTE:
        return (double)tokens * (4.0 * p->experts + 8.0 * s.slots);
    case CMOE_STAGE_QUANT:
        return (s.x_slots ? rows : (double)tokens) * H * (in + xb);
    case CMOE_STAGE_SORT:
        return (double)tokens * s.slots * 12;
    case CMOE_STAGE_GEMM1:
        return hit * cmoe__expert_bytes(p, 1) + rows * (H * xb + 4.0 * (double)s.rows1);
    case CMOE_STAGE_ACT:
        return rows * (4.0 * (double)s.rows1 + I * hb);
    case CMOE_STAGE_REQUANT:
        return rows * I * (hb + mb);
    case CMOE_STAGE_GEMM2:
        return hit * cmoe__expert_bytes(p, 2) + rows * (I * mb + 4 * H);
    case CMOE_STAGE_COMBINE:
        return rows * H * 4 + (double)tokens * H * cmoe_dtype_bits((cmoe_dtype)p->y) / 8.0;
    case CMOE_STAGE_COUNT:
        break;
    }
    return 0;
}
