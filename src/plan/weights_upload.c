/* SPDX-License-Identifier: MIT
 * Weights that own a copy in their device's memory, made from matrices in host memory.
 *
 * One block holds everything. Each array of all experts lies at one stride of whole 16-byte units and
 * every matrix is tight, whatever the source's strides: the layout that kernels read fastest. */
#include "core/device.h"
#include "core/fail.h"
#include "core/size.h"
#include "core/weights.h"
#include "plan/weights.h"
#include <cmoe/convert.h>
#include <string.h>

enum { TABLES = 3, ARRAYS = 6, ARRAY_ALIGN = 256, EXPERT_ALIGN = 16 };

/* Bytes of one expert's arrays, in the order of `pointers`; 0: the problem has none. */
struct sizes {
    size_t bytes[ARRAYS];
    int64_t rows;
    size_t row; /* bytes of a row of codes */
};

struct upload {
    cmoe_device *dev;
    const cmoe_problem *p;
    int32_t experts;
    const cmoe_matrix *from[TABLES]; /* gate_up, up, down; NULL: not given */
    cmoe_matrix *to[TABLES];
    struct sizes sizes[TABLES];
    size_t offset[TABLES][ARRAYS], stride[TABLES][ARRAYS], total;
    uint8_t *memory; /* the device's */
    uint8_t *tight;  /* one matrix on the host */
};

static cmoe_status find_sizes(const struct upload *u, int table, struct sizes *out)
{
    const cmoe_problem *p = u->p;
    const bool first = table < 2;
    const int64_t cols = first ? p->hidden : p->inter;
    const int64_t rows = !first ? p->hidden : u->from[1] ? p->inter : cmoe_problem_rows1(p);
    /* Gate and up in one matrix have a grid of block scales each, unless they are joint. */
    const bool grids = p->w.scaling == CMOE_SCALE_BLOCK && first && p->gate == CMOE_GATE_SPLIT &&
                       !u->from[1] && !(p->flags & CMOE_BLOCK_JOINT);
    size_t codes = 0, scales = 0, zeros = 0;
    CMOE_TRY(cmoe_format_bytes(p->w, grids ? p->inter : rows, cols, &codes, &scales, &zeros));
    const bool bias = p->flags & (first ? CMOE_BIAS1 : CMOE_BIAS2);
    const bool smooth = (first ? p->x : p->mid).scaling == CMOE_SCALE_SMOOTH && table != 1;
    *out = (struct sizes){
        .bytes = {grids ? 2 * codes : codes, grids ? 2 * scales : scales, zeros,
                  p->w.scaling == CMOE_SCALE_NV ? sizeof(float) : 0,
                  bias ? (size_t)rows * sizeof(float) : 0,
                  smooth ? (size_t)cols * sizeof(float) : 0},
        .rows = rows,
        .row = cmoe_dtype_bytes((cmoe_dtype)p->w.dtype, cols),
    };
    return CMOE_OK;
}

/* Where everything goes in the block. */
static cmoe_status lay_out(struct upload *u)
{
    for (int t = 0; t < TABLES; t++) {
        if (!u->from[t]) continue;
        CMOE_TRY(find_sizes(u, t, &u->sizes[t]));
        for (int a = 0; a < ARRAYS; a++) {
            const size_t bytes = u->sizes[t].bytes[a];
            size_t stride, all, end;
            if (!cmoe__add_size(bytes, EXPERT_ALIGN - 1, &stride) ||
                !cmoe__mul_size(stride / EXPERT_ALIGN * EXPERT_ALIGN, (size_t)u->experts, &all) ||
                !cmoe__add_size(u->total, all, &end) || !cmoe__add_size(end, ARRAY_ALIGN - 1, &end))
                return CMOE_FAIL(CMOE_ERR_OVERFLOW, "the weights of %d experts do not fit",
                                 u->experts);
            u->offset[t][a] = u->total;
            u->stride[t][a] = stride / EXPERT_ALIGN * EXPERT_ALIGN;
            u->total = end / ARRAY_ALIGN * ARRAY_ALIGN;
        }
    }
    return CMOE_OK;
}

/* The codes of a matrix without gaps: where they lie, or gathered. */
static const void *tighten(const struct upload *u, const cmoe_matrix *m, const struct sizes *s)
{
    const int bits = cmoe_dtype_bits((cmoe_dtype)u->p->w.dtype);
    const size_t element = bits >= 8 ? (size_t)bits / 8 : 1;
    const bool columns = m->col_stride != 0 && (size_t)m->col_stride != element;
    if (!columns && (m->row_stride == 0 || (size_t)m->row_stride == s->row)) return m->data;
    const int64_t stride = m->row_stride ? m->row_stride : (int64_t)(columns ? element : s->row);
    for (int64_t r = 0; r < s->rows; r++) {
        const uint8_t *const from = (const uint8_t *)m->data + r * stride;
        uint8_t *const to = u->tight + (size_t)r * s->row;
        if (!columns) memcpy(to, from, s->row);
        for (size_t c = 0; columns && c < s->row / element; c++)
            memcpy(to + c * element, from + (int64_t)c * m->col_stride, element);
    }
    return u->tight;
}

static cmoe_status copy_expert(const struct upload *u, int table, int32_t expert)
{
    const struct sizes *const s = &u->sizes[table];
    const cmoe_matrix *const m = &u->from[table][expert];
    const void *const from[ARRAYS] = {tighten(u, m, s), m->scale, m->zero,
                                      m->global,        m->bias,  m->smooth};
    void *to[ARRAYS] = {NULL};
    for (int a = 0; a < ARRAYS; a++) {
        if (s->bytes[a] == 0) continue;
        to[a] = u->memory + u->offset[table][a] + (size_t)expert * u->stride[table][a];
        if (!from[a])
            return CMOE_FAIL(CMOE_ERR_INVALID, "a matrix of expert %d lacks an array", expert);
        CMOE_TRY(cmoe_device_copy(u->dev, to[a], from[a], s->bytes[a], CMOE_COPY_TO_DEVICE, NULL));
    }
    u->to[table][expert] = (cmoe_matrix){.data = to[0],
                                         .scale = to[1],
                                         .zero = to[2],
                                         .global = to[3],
                                         .bias = to[4],
                                         .smooth = to[5]};
    /* The next matrix may be gathered in the same place. */
    return from[0] == u->tight ? cmoe_device_sync(u->dev, NULL) : CMOE_OK;
}

static cmoe_status allocate(struct upload *u)
{
    cmoe_context *const ctx = u->dev->ctx;
    size_t most = 0;
    for (int t = 0; t < TABLES; t++)
        most = u->sizes[t].bytes[0] > most ? u->sizes[t].bytes[0] : most;
    u->tight = cmoe__alloc(ctx, most, EXPERT_ALIGN);
    u->to[0] =
        cmoe__calloc(ctx, TABLES * (size_t)u->experts * sizeof(cmoe_matrix), _Alignof(cmoe_matrix));
    if (!u->tight || !u->to[0])
        return CMOE_FAIL(CMOE_ERR_NO_MEMORY, "no memory for the tables of %d experts", u->experts);
    u->to[1] = u->to[0] + u->experts;
    u->to[2] = u->to[1] + u->experts;
    void *memory = NULL;
    CMOE_TRY(cmoe_device_alloc(u->dev, u->total, &memory));
    u->memory = memory;
    return CMOE_OK;
}

static cmoe_status copy_all(struct upload *u, const cmoe_weights_desc *desc, cmoe_weights **out)
{
    CMOE_TRY(lay_out(u));
    CMOE_TRY(allocate(u));
    for (int t = 0; t < TABLES; t++)
        for (int32_t e = 0; u->from[t] && e < u->experts; e++)
            CMOE_TRY(copy_expert(u, t, e));
    CMOE_TRY(cmoe_device_sync(u->dev, NULL));
    cmoe_weights_desc copies = *desc;
    copies.gate_up = u->from[0] ? u->to[0] : NULL;
    copies.up = u->from[1] ? u->to[1] : NULL;
    copies.down = u->from[2] ? u->to[2] : NULL;
    return cmoe_weights_create(u->dev, u->p, &copies, out);
}

cmoe_status cmoe_weights_upload(cmoe_device *dev, const cmoe_problem *p,
                                const cmoe_weights_desc *desc, cmoe_weights **out)
{
    if (out) *out = NULL;
    CMOE_TRY(cmoe__weights_check(dev, p, desc, out));
    struct upload u = {.dev = dev,
                       .p = p,
                       .experts = cmoe_problem_local_experts(p),
                       .from = {desc->gate_up, desc->up, desc->down}};
    const cmoe_status status = copy_all(&u, desc, out);
    cmoe__free(dev->ctx, u.tight);
    cmoe__free(dev->ctx, u.to[0]);
    if (status != CMOE_OK) {
        cmoe_device_free(dev, u.memory);
        return status;
    }
    (*out)->memory = u.memory;
    (*out)->owned += u.total;
    return CMOE_OK;
}
