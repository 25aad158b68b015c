/* SPDX-License-Identifier: MIT
 * Quantised copies of a layer's experts, in the canonical layout. Gate and up stay two matrices, each
 * with scales of its own, unless the problem's rows interleave or share blocks. */
#include "fail.h"
#include "memory.h"

#include <cmoe/io.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { ALIGN = 64 };

/* One matrix of every local expert. */
struct part {
    int64_t rows, cols;
    size_t codes, scales, zeros; /* bytes of one expert */
    uint8_t *code_data, *scale_data, *zero_data;
    float *global;
    cmoe_matrix *table;
};

struct cmoe_quantized {
    cmoe_problem problem;
    int32_t experts;
    struct part gate, up, down; /* up.rows is 0 when gate holds both */
    float *ones;                /* smooth vector of either matrix */
    cmoe_weights_desc desc;
};

static cmoe_status check(const cmoe_layer *layer, const cmoe_problem *p)
{
    const cmoe_problem *const own = &layer->problem;
    CMOE_TRY(cmoe_problem_check(p));
    if (p->experts != own->experts || p->hidden != own->hidden || p->inter != own->inter) {
        return CMOE_FAIL(CMOE_ERR_MISMATCH,
                         "the problem has e=%d h=%d i=%d, the layer e=%d h=%d i=%d", p->experts,
                         p->hidden, p->inter, own->experts, own->hidden, own->inter);
    }
    if (p->gate == CMOE_GATE_NONE) {
        return CMOE_FAIL(CMOE_ERR_MISMATCH,
                         "the problem has gate=none, the layer's experts a gate");
    }
    if (p->shared > 0 || p->flags & (CMOE_BIAS1 | CMOE_BIAS2)) {
        return CMOE_FAIL(
            CMOE_ERR_MISMATCH,
            "the problem has shared=%d%s, the layer only routed experts without biases", p->shared,
            p->flags & (CMOE_BIAS1 | CMOE_BIAS2) ? " and biases" : "");
    }
    if (p->flags & CMOE_EXPERT_MAP) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "the flag map: which experts are local is not known before a call");
    }
    return CMOE_OK;
}

static size_t padded(size_t bytes)
{
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* Memory of `part` for n experts; a kind that the format lacks gets none. */
static cmoe_status allocate(struct part *part, cmoe_format f, int32_t n, int64_t rows, int64_t cols)
{
    const size_t count = (size_t)n;
    part->rows = rows;
    part->cols = cols;
    CMOE_TRY(cmoe_format_bytes(f, rows, cols, &part->codes, &part->scales, &part->zeros));
    part->codes = padded(part->codes);
    part->scales = padded(part->scales);
    part->zeros = padded(part->zeros);
    size_t total;
    if (__builtin_add_overflow(part->codes, part->scales + part->zeros, &total) ||
        __builtin_mul_overflow(total, count, &total)) {
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "%d quantised experts do not fit", n);
    }
    part->table = cmoe__io_alloc(count * sizeof part->table[0]);
    part->code_data = cmoe__io_alloc(count * part->codes);
    part->scale_data = part->scales ? cmoe__io_alloc(count * part->scales) : NULL;
    part->zero_data = part->zeros ? cmoe__io_alloc(count * part->zeros) : NULL;
    part->global =
        f.scaling == CMOE_SCALE_NV ? cmoe__io_alloc(count * sizeof part->global[0]) : NULL;
    const bool complete = part->table && part->code_data && (part->scale_data || !part->scales) &&
                          (part->zero_data || !part->zeros) &&
                          (part->global || f.scaling != CMOE_SCALE_NV);
    return complete ? CMOE_OK : cmoe__fail_memory(total, "quantised experts");
}

/* Quantise src [rows, cols] as expert `e` of a part. */
static cmoe_status quantize(const cmoe_quantized *q, struct part *part, int32_t e, const float *src,
                            const float *smooth)
{
    const size_t i = (size_t)e;
    uint8_t *const codes = part->code_data + i * part->codes;
    uint8_t *const scale = part->scale_data ? part->scale_data + i * part->scales : NULL;
    uint8_t *const zero = part->zero_data ? part->zero_data + i * part->zeros : NULL;
    float *const global = part->global ? part->global + i : NULL;
    part->table[e] = (cmoe_matrix){
        .data = codes, .scale = scale, .zero = zero, .global = global, .smooth = smooth};
    return cmoe_quantize_weight(q->problem.w, src, part->rows, part->cols, codes, scale, zero,
                                global);
}

/* A matrix of the layer as f32, its rows `step` rows apart in dst. */
static cmoe_status widen(const cmoe_layer *layer, const cmoe_matrix *m, int64_t rows, int64_t cols,
                         int64_t step, float *dst)
{
    const cmoe_dtype from = (cmoe_dtype)layer->problem.w.dtype;
    const size_t row = cmoe_dtype_bytes(from, cols);
    for (int64_t r = 0; r < rows; r++) {
        CMOE_TRY(cmoe_convert(CMOE_F32, dst + r * step * cols, from,
                              (const uint8_t *)m->data + (size_t)r * row, cols));
    }
    return CMOE_OK;
}

static cmoe_status quantize_expert(cmoe_quantized *q, const cmoe_layer *layer, int32_t e,
                                   float *scratch)
{
    const cmoe_problem *const p = &q->problem;
    const int32_t id = p->expert_first + e;
    const int64_t hidden = p->hidden, inter = p->inter;
    const float *const smooth1 = p->x.scaling == CMOE_SCALE_SMOOTH ? q->ones : NULL;
    const float *const smooth2 = p->mid.scaling == CMOE_SCALE_SMOOTH ? q->ones : NULL;
    const bool mixed = p->gate == CMOE_GATE_INTERLEAVED;
    float *const up = q->up.rows ? scratch : scratch + (mixed ? 1 : inter) * hidden;

    CMOE_TRY(widen(layer, &layer->gate[id], inter, hidden, mixed ? 2 : 1, scratch));
    if (q->up.rows) CMOE_TRY(quantize(q, &q->gate, e, scratch, smooth1));
    CMOE_TRY(widen(layer, &layer->up[id], inter, hidden, mixed ? 2 : 1, up));
    CMOE_TRY(quantize(q, q->up.rows ? &q->up : &q->gate, e, scratch, smooth1));
    CMOE_TRY(widen(layer, &layer->down[id], hidden, inter, 1, scratch));
    return quantize(q, &q->down, e, scratch, smooth2);
}

static cmoe_status fill(cmoe_quantized *q, const cmoe_layer *layer)
{
    const cmoe_problem *const p = &q->problem;
    const int64_t hidden = p->hidden, inter = p->inter;
    const int64_t most = hidden > inter ? hidden : inter;
    const bool fused = p->gate == CMOE_GATE_INTERLEAVED || p->flags & CMOE_BLOCK_JOINT;
    CMOE_TRY(allocate(&q->gate, p->w, q->experts, fused ? 2 * inter : inter, hidden));
    if (!fused) CMOE_TRY(allocate(&q->up, p->w, q->experts, inter, hidden));
    CMOE_TRY(allocate(&q->down, p->w, q->experts, hidden, inter));
    q->ones = cmoe__io_alloc((size_t)most * sizeof(float));
    if (!q->ones) return cmoe__fail_memory((size_t)most * sizeof(float), "smooth vectors");
    for (int64_t i = 0; i < most; i++)
        q->ones[i] = 1;

    size_t bytes;
    if (__builtin_mul_overflow((size_t)(2 * inter) * sizeof(float), (size_t)hidden, &bytes)) {
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "a matrix of %d x %d elements does not fit", p->inter,
                         p->hidden);
    }
    float *const scratch = cmoe__io_alloc(bytes);
    if (!scratch) return cmoe__fail_memory(bytes, "a matrix in f32");
    cmoe_status status = CMOE_OK;
    for (int32_t e = 0; e < q->experts && status == CMOE_OK; e++) {
        status = quantize_expert(q, layer, e, scratch);
    }
    cmoe__io_free(scratch);
    q->desc = (cmoe_weights_desc){
        .struct_size = sizeof q->desc,
        .gate_up = q->gate.table,
        .up = fused ? NULL : q->up.table,
        .down = q->down.table,
    };
    return status;
}

cmoe_status cmoe_layer_quantize(const cmoe_layer *layer, const cmoe_problem *p,
                                cmoe_quantized **out)
{
    CMOE_TRY(cmoe__check_argument(layer, "cmoe_layer_quantize", "layer"));
    CMOE_TRY(cmoe__check_argument(p, "cmoe_layer_quantize", "p"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_layer_quantize", "out"));
    *out = NULL;
    CMOE_TRY(check(layer, p));
    cmoe_quantized *const q = cmoe__io_alloc(sizeof *q);
    if (!q) return cmoe__fail_memory(sizeof *q, "a quantised layer");
    q->problem = *p;
    q->experts = cmoe_problem_local_experts(p);
    const cmoe_status status = fill(q, layer);
    if (status != CMOE_OK) {
        cmoe_quantized_free(q);
        return status;
    }
    *out = q;
    return CMOE_OK;
}

const cmoe_weights_desc *cmoe_quantized_desc(const cmoe_quantized *q)
{
    return &q->desc;
}

static double part_bytes(const cmoe_quantized *q, const struct part *part)
{
    size_t codes = 0, scales = 0, zeros = 0;
    if (part->rows == 0) return 0;
    const cmoe_status status =
        cmoe_format_bytes(q->problem.w, part->rows, part->cols, &codes, &scales, &zeros);
    return status == CMOE_OK ? (double)codes + (double)scales + (double)zeros : 0;
}

double cmoe_quantized_bytes_per_weight(const cmoe_quantized *q)
{
    const double weights = 3.0 * q->problem.hidden * q->problem.inter;
    return (part_bytes(q, &q->gate) + part_bytes(q, &q->up) + part_bytes(q, &q->down)) / weights;
}

static void free_part(struct part *part)
{
    cmoe__io_free(part->table);
    cmoe__io_free(part->code_data);
    cmoe__io_free(part->scale_data);
    cmoe__io_free(part->zero_data);
    cmoe__io_free(part->global);
}

void cmoe_quantized_free(cmoe_quantized *q)
{
    if (!q) return;
    free_part(&q->gate);
    free_part(&q->up);
    free_part(&q->down);
    cmoe__io_free(q->ones);
    cmoe__io_free(q);
}
