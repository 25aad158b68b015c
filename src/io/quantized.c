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
    float *biases;              /* [experts, 2I + H], or NULL */
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
    const uint32_t biases = CMOE_BIAS1 | CMOE_BIAS2;
    if (p->shared > 0 || (p->flags & biases) != (own->flags & biases)) {
        return CMOE_FAIL(CMOE_ERR_MISMATCH,
                         "the problem has shared=%d%s, the layer only routed experts %s biases",
                         p->shared, p->flags & biases ? " and biases" : "",
                         own->flags & biases ? "with" : "without");
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

/* Rows of a decoded matrix, `step` rows apart in dst. */
static void spread(const float *src, int64_t rows, int64_t cols, int64_t step, float *dst)
{
    for (int64_t r = 0; r < rows; r++)
        memcpy(dst + r * step * cols, src + r * cols, (size_t)cols * sizeof(float));
}

/* Row i of gate (0) or up (1) in the layer's first bias. */
static float bias_at(const cmoe_layer *layer, int32_t id, int matrix, int64_t i)
{
    if (!layer->up) return layer->gate[id].bias[2 * i + matrix];
    return (matrix ? layer->up : layer->gate)[id].bias[i];
}

/* Copies of the layer's biases: gate and up as the tables have them, then down. */
static void copy_biases(cmoe_quantized *q, const cmoe_layer *layer, int32_t e)
{
    const cmoe_problem *const p = &q->problem;
    const int32_t id = p->expert_first + e;
    const int64_t inter = p->inter, hidden = p->hidden;
    const bool mixed = p->gate == CMOE_GATE_INTERLEAVED;
    float *const first = q->biases + e * (2 * inter + hidden), *const second = first + 2 * inter;
    for (int64_t i = 0; i < inter && p->flags & CMOE_BIAS1; i++) {
        first[mixed ? 2 * i : i] = bias_at(layer, id, 0, i);
        first[mixed ? 2 * i + 1 : inter + i] = bias_at(layer, id, 1, i);
    }
    if (p->flags & CMOE_BIAS1) {
        q->gate.table[e].bias = first;
        if (q->up.rows) q->up.table[e].bias = first + inter;
    }
    if (!(p->flags & CMOE_BIAS2)) return;
    memcpy(second, layer->down[id].bias, (size_t)hidden * sizeof(float));
    q->down.table[e].bias = second;
}

/* scratch holds a matrix of 2I rows, then one of I. */
static cmoe_status quantize_expert(cmoe_quantized *q, const cmoe_layer *layer, int32_t e,
                                   float *scratch)
{
    const cmoe_problem *const p = &q->problem;
    const int32_t id = p->expert_first + e;
    const int64_t hidden = p->hidden, inter = p->inter;
    const float *const smooth1 = p->x.scaling == CMOE_SCALE_SMOOTH ? q->ones : NULL;
    const float *const smooth2 = p->mid.scaling == CMOE_SCALE_SMOOTH ? q->ones : NULL;
    const bool mixed = p->gate == CMOE_GATE_INTERLEAVED;
    float *const one = scratch + 2 * inter * hidden;
    float *const up = q->up.rows ? scratch : scratch + (mixed ? 1 : inter) * hidden;

    CMOE_TRY(cmoe_layer_decode(layer, id, 0, one));
    spread(one, inter, hidden, mixed ? 2 : 1, scratch);
    if (q->up.rows) CMOE_TRY(quantize(q, &q->gate, e, scratch, smooth1));
    CMOE_TRY(cmoe_layer_decode(layer, id, 1, one));
    spread(one, inter, hidden, mixed ? 2 : 1, up);
    CMOE_TRY(quantize(q, q->up.rows ? &q->up : &q->gate, e, scratch, smooth1));
    CMOE_TRY(cmoe_layer_decode(layer, id, 2, scratch));
    CMOE_TRY(quantize(q, &q->down, e, scratch, smooth2));
    if (q->biases) copy_biases(q, layer, e);
    return CMOE_OK;
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

    if (p->flags & (CMOE_BIAS1 | CMOE_BIAS2)) {
        const size_t size = (size_t)q->experts * (size_t)(2 * inter + hidden) * sizeof(float);
        q->biases = cmoe__io_alloc(size);
        if (!q->biases) return cmoe__fail_memory(size, "biases");
    }

    size_t bytes;
    if (__builtin_mul_overflow((size_t)(3 * inter) * sizeof(float), (size_t)hidden, &bytes)) {
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
    return q ? &q->desc : NULL;
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
    if (!q) return 0;
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
    cmoe__io_free(q->biases);
    cmoe__io_free(q);
}
