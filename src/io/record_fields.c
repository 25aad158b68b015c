/* SPDX-License-Identifier: MIT
 * Which arrays a call reads and how large they are, from its problem alone: docs of cmoe_tensors as
 * code. Pointers that a call ignores are never followed. */
#include "record.h"

/* The list being made. */
struct list {
    const cmoe_problem *p;
    const cmoe_tensors *t;
    struct cmoe_field *fields;
    int n;
    int64_t tokens, slots, local;
    int64_t rows; /* of slot-ordered arrays */
};

static void add(struct list *l, const char *name, size_t offset, cmoe_dtype dtype, int64_t rows,
                int64_t cols)
{
    l->fields[l->n++] = (struct cmoe_field){
        .name = name, .offset = offset, .dtype = dtype, .rows = rows, .cols = cols};
}

#define ADD(list, member, dtype, rows, cols)                                                       \
    add((list), #member, offsetof(cmoe_tensors, member), (dtype), (rows), (cols))

static bool runs(const cmoe_problem *p, cmoe_stage stage)
{
    return p->first <= stage && stage <= p->last;
}

static bool has(const cmoe_problem *p, enum cmoe_flag flag)
{
    return (p->flags & (uint32_t)flag) != 0;
}

static void add_route(struct list *l)
{
    const cmoe_problem *const p = l->p;
    const int64_t columns = (int64_t)p->experts + (has(p, CMOE_SHARED_SIGMOID) ? p->shared : 0);
    if (!runs(p, CMOE_STAGE_ROUTE) || p->router == CMOE_ROUTE_ALL) return;
    if (has(p, CMOE_ROUTE_FROM_X)) {
        ADD(l, router_w, CMOE_F32, columns, p->hidden);
        ADD(l, router_b, CMOE_F32, 1, columns);
    } else {
        const cmoe_dtype dtype = (cmoe_dtype)p->logits;
        ADD(l, logits, dtype, l->tokens, columns);
        l->fields[l->n - 1].stride = l->t->logits_stride * (cmoe_dtype_bits(dtype) / 8);
    }
    if (has(p, CMOE_ROUTE_BIAS)) ADD(l, route_bias, CMOE_F32, 1, p->experts);
    if (has(p, CMOE_HASH)) {
        ADD(l, hash_table, CMOE_I32, l->t->vocab, p->topk);
        ADD(l, token_ids, CMOE_I64, 1, l->tokens);
    }
}

/* Ids and weights of a plan that starts after ROUTE. */
static void add_routing(struct list *l)
{
    const cmoe_problem *const p = l->p;
    const bool combines = runs(p, CMOE_STAGE_COMBINE);
    const bool weighs = runs(p, CMOE_STAGE_SORT) || combines ||
                        (runs(p, CMOE_STAGE_QUANT) && p->weight_on == CMOE_WEIGHT_ON_INPUT) ||
                        (runs(p, CMOE_STAGE_GEMM1) && p->weight_on == CMOE_WEIGHT_ON_GEMM1) ||
                        (runs(p, CMOE_STAGE_ACT) && p->weight_on == CMOE_WEIGHT_ON_ACT);
    /* With one expert id a row of x, the order is the routing. */
    const bool one_each = p->first >= CMOE_STAGE_GEMM1 && p->sort_format == CMOE_SORT_M_INDICES;
    if (p->capacity > 0) return;
    if (p->first > CMOE_STAGE_ROUTE) {
        if (!one_each && (p->first <= CMOE_STAGE_SORT || combines)) {
            if (l->t->topk_ids64) {
                ADD(l, topk_ids64, CMOE_I64, l->tokens, l->slots);
            } else {
                ADD(l, topk_ids, CMOE_I32, l->tokens, l->slots);
            }
        }
        if (weighs) ADD(l, topk_weights, CMOE_F32, l->tokens, l->slots);
    }
    if (has(p, CMOE_EXPERT_MAP) && !one_each && (runs(p, CMOE_STAGE_SORT) || combines)) {
        ADD(l, expert_map, CMOE_I32, 1, (int64_t)p->experts + p->shared);
    }
}

/* Codes and scales of `rows` rows of an activation format. */
struct sizes {
    int64_t codes, scales; /* bytes a row; TENSOR: one scale in all */
};

static struct sizes row_sizes(cmoe_format f, int64_t cols)
{
    struct sizes s = {.codes = (int64_t)cmoe_dtype_bytes((cmoe_dtype)f.dtype, cols)};
    switch ((cmoe_scaling)f.scaling) {
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH:
        s.scales = 4;
        break;
    case CMOE_SCALE_GROUP:
        s.scales = 4 * ((cols + f.group - 1) / f.group);
        break;
    case CMOE_SCALE_MX:
        s.scales = (cols + 31) / 32;
        break;
    case CMOE_SCALE_NV:
        s.scales = (cols + 15) / 16;
        break;
    case CMOE_SCALE_NONE:
    case CMOE_SCALE_TENSOR:
    case CMOE_SCALE_CHANNEL:
    case CMOE_SCALE_BLOCK:
    case CMOE_SCALING_COUNT:
        break;
    }
    return s;
}

/* Scales of f: bytes, or f32 where they are. */
static void add_scales(struct list *l, const char *name, size_t offset, cmoe_format f, int64_t rows,
                       int64_t cols)
{
    const int64_t bytes = row_sizes(f, cols).scales;
    if (f.scaling == CMOE_SCALE_TENSOR) {
        add(l, name, offset, CMOE_F32, 1, 1);
    } else if (f.scaling == CMOE_SCALE_MX || f.scaling == CMOE_SCALE_NV) {
        add(l, name, offset, CMOE_U8, rows, bytes);
    } else {
        add(l, name, offset, CMOE_F32, rows, bytes / 4);
    }
}

static void add_x(struct list *l)
{
    const cmoe_problem *const p = l->p;
    const bool quantized = p->x.scaling != CMOE_SCALE_NONE;
    const bool weighted = p->weight_on == CMOE_WEIGHT_ON_INPUT;
    const bool given = p->first > CMOE_STAGE_QUANT || has(p, CMOE_X_QUANTIZED);
    const bool quantizes = runs(p, CMOE_STAGE_QUANT) && !given && (quantized || weighted);
    const bool gemm1 = runs(p, CMOE_STAGE_GEMM1);
    const bool by_slot =
        p->capacity > 0 || (given && (weighted || p->x.scaling == CMOE_SCALE_SMOOTH));
    const int64_t rows = by_slot ? l->rows : l->tokens;
    if (gemm1 || quantizes || (runs(p, CMOE_STAGE_ROUTE) && has(p, CMOE_ROUTE_FROM_X))) {
        if (given && quantized) {
            ADD(l, x, CMOE_U8, rows, row_sizes(p->x, p->hidden).codes);
        } else {
            ADD(l, x, (cmoe_dtype)p->in, rows, p->hidden);
        }
        l->fields[l->n - 1].stride = l->t->x_stride;
    }
    if (given && quantized && gemm1) {
        add_scales(l, "x_scale", offsetof(cmoe_tensors, x_scale), p->x, rows, p->hidden);
        if (p->x.scaling == CMOE_SCALE_NV) ADD(l, x_global, CMOE_F32, 1, p->x.fixed ? 1 : rows);
    } else if (p->x.fixed && (gemm1 || quantizes)) {
        ADD(l, x_scale, CMOE_F32, 1, 1);
    }
    if (p->mid.fixed && (runs(p, CMOE_STAGE_REQUANT) || runs(p, CMOE_STAGE_GEMM2))) {
        ADD(l, mid_scale, CMOE_F32, 1, 1);
    }
}

/* The token order of a plan that starts after SORT, and the counts of a batched one. */
static void add_order(struct list *l)
{
    const cmoe_problem *const p = l->p;
    if (p->capacity > 0) {
        ADD(l, expert_offsets, CMOE_I32, 1, l->local);
        return;
    }
    const bool one_each = p->sort_format == CMOE_SORT_M_INDICES;
    if (p->first < CMOE_STAGE_GEMM1 || (p->first == CMOE_STAGE_COMBINE && !one_each)) return;
    const int64_t capacity = cmoe_sort_capacity(p, l->tokens);
    const int64_t block = p->block_m > 0 ? p->block_m : 1;
    switch ((cmoe_sort_format)p->sort_format) {
    case CMOE_SORT_INDEX:
        ADD(l, sorted_ids, CMOE_I32, 1, l->rows);
        ADD(l, expert_offsets, CMOE_I32, 1, l->local + 1);
        break;
    case CMOE_SORT_PACKED:
        ADD(l, sorted_weights, CMOE_F32, 1, capacity);
        ADD(l, sorted_ids, CMOE_I32, 1, capacity);
        ADD(l, block_experts, CMOE_I32, 1, capacity / block);
        ADD(l, num_valid, CMOE_I32, 1, 2);
        break;
    case CMOE_SORT_FLAT:
        ADD(l, sorted_ids, CMOE_I32, 1, capacity);
        ADD(l, block_experts, CMOE_I32, 1, capacity / block);
        ADD(l, num_valid, CMOE_I32, 1, 1);
        break;
    case CMOE_SORT_M_INDICES:
        ADD(l, sorted_ids, CMOE_I32, 1, l->tokens);
        break;
    case CMOE_SORT_BATCHED:
    case CMOE_SORT_FORMAT_COUNT:
        break;
    }
}

/* What the first stage of a partial plan starts from, and the y that is added to. */
static void add_ends(struct list *l)
{
    const cmoe_problem *const p = l->p;
    const bool quantized = p->mid.scaling != CMOE_SCALE_NONE;
    const cmoe_dtype mid = quantized ? CMOE_F32 : (cmoe_dtype)p->mid.dtype;
    if (p->first == CMOE_STAGE_ACT) ADD(l, gate_up, CMOE_F32, l->rows, cmoe_problem_rows1(p));
    if (p->first == CMOE_STAGE_REQUANT || (p->first == CMOE_STAGE_GEMM2 && !quantized)) {
        ADD(l, mid, mid, l->rows, p->inter);
    }
    if (p->first == CMOE_STAGE_GEMM2 && quantized) {
        ADD(l, mid_q, CMOE_U8, l->rows, row_sizes(p->mid, p->inter).codes);
        add_scales(l, "mid_q_scale", offsetof(cmoe_tensors, mid_q_scale), p->mid, l->rows,
                   p->inter);
    }
    if (p->first == CMOE_STAGE_COMBINE) ADD(l, z, CMOE_F32, l->rows, p->hidden);
    if (p->last == CMOE_STAGE_COMBINE && p->accumulate != 0) {
        ADD(l, y, (cmoe_dtype)p->y, l->tokens, p->hidden);
        l->fields[l->n - 1].stride = l->t->y_stride;
    }
    ADD(l, n_tokens_dev, CMOE_I32, 1, 1);
}

int cmoe__record_fields(const cmoe_problem *p, const cmoe_tensors *t,
                        struct cmoe_field fields[CMOE_MAX_FIELDS])
{
    const int64_t local = cmoe_problem_local_experts(p), slots = cmoe_problem_slots(p);
    struct list l = {
        .p = p,
        .t = t,
        .fields = fields,
        .tokens = t->n_tokens,
        .slots = slots,
        .local = local,
        .rows = p->capacity > 0 ? local * p->capacity : t->n_tokens * slots,
    };
    add_route(&l);
    add_routing(&l);
    add_x(&l);
    add_order(&l);
    add_ends(&l);
    return l.n;
}

int cmoe__record_parts(const cmoe_problem *p, bool split, struct cmoe_part parts[CMOE_MAX_PARTS])
{
    int n = 0;
    if (runs(p, CMOE_STAGE_GEMM1)) {
        parts[n++] = (struct cmoe_part){.name = split ? "w_gate" : "w_gate_up",
                                        .matrix = 1,
                                        .rows = split ? p->inter : cmoe_problem_rows1(p),
                                        .cols = p->hidden};
        if (split) {
            parts[n++] = (struct cmoe_part){
                .name = "w_up", .matrix = 1, .up = true, .rows = p->inter, .cols = p->hidden};
        }
    }
    if (runs(p, CMOE_STAGE_GEMM2)) {
        parts[n++] =
            (struct cmoe_part){.name = "w_down", .matrix = 2, .rows = p->hidden, .cols = p->inter};
    }
    return n;
}

/* npy type that holds a matrix's scales. */
static cmoe_dtype scale_type(cmoe_format f)
{
    if (f.scaling == CMOE_SCALE_MX || f.scaling == CMOE_SCALE_NV) return CMOE_U8;
    return f.scale_dtype == CMOE_NONE ? CMOE_F32 : (cmoe_dtype)f.scale_dtype;
}

cmoe_status cmoe__part_fields(const cmoe_problem *p, const struct cmoe_part *part,
                              struct cmoe_part_field fields[CMOE_MAX_PART_FIELDS], int *n)
{
    const cmoe_format f = p->w;
    const cmoe_dtype scale = scale_type(f);
    size_t codes = 0, scales = 0, zeros = 0;
    int64_t grids = 1; /* of block scales: gate and up in one matrix have one each, unless joint */
    if (f.scaling == CMOE_SCALE_BLOCK && part->matrix == 1 && p->gate == CMOE_GATE_SPLIT &&
        part->rows != p->inter && !has(p, CMOE_BLOCK_JOINT)) {
        grids = 2;
    }
    const cmoe_status status =
        cmoe_format_bytes(f, part->rows / grids, part->cols, &codes, &scales, &zeros);
    if (status != CMOE_OK) return status;

    struct cmoe_part_field *at = fields;
    *at++ = (struct cmoe_part_field){
        .suffix = "",
        .offset = offsetof(cmoe_matrix, data),
        .dtype = CMOE_U8,
        .rows = part->rows,
        .cols = (int64_t)cmoe_dtype_bytes((cmoe_dtype)f.dtype, part->cols)};
    if (scales > 0) {
        const int64_t count = (int64_t)scales / (cmoe_dtype_bits(scale) / 8);
        *at++ = (struct cmoe_part_field){.suffix = "_scale",
                                         .offset = offsetof(cmoe_matrix, scale),
                                         .dtype = scale,
                                         .rows = grids,
                                         .cols = count};
    }
    if (zeros > 0) {
        *at++ = (struct cmoe_part_field){.suffix = "_zero",
                                         .offset = offsetof(cmoe_matrix, zero),
                                         .dtype = CMOE_U8,
                                         .rows = 1,
                                         .cols = (int64_t)zeros};
    }
    if (f.scaling == CMOE_SCALE_NV) {
        *at++ = (struct cmoe_part_field){.suffix = "_global",
                                         .offset = offsetof(cmoe_matrix, global),
                                         .dtype = CMOE_F32,
                                         .rows = 1,
                                         .cols = 1};
    }
    if (has(p, part->matrix == 1 ? CMOE_BIAS1 : CMOE_BIAS2)) {
        *at++ = (struct cmoe_part_field){.suffix = "_bias",
                                         .offset = offsetof(cmoe_matrix, bias),
                                         .dtype = CMOE_F32,
                                         .rows = 1,
                                         .cols = part->rows};
    }
    if ((part->matrix == 1 ? p->x : p->mid).scaling == CMOE_SCALE_SMOOTH && !part->up) {
        *at++ = (struct cmoe_part_field){.suffix = "_smooth",
                                         .offset = offsetof(cmoe_matrix, smooth),
                                         .dtype = CMOE_F32,
                                         .rows = 1,
                                         .cols = part->cols};
    }
    *n = (int)(at - fields);
    return CMOE_OK;
}
