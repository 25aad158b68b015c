/* SPDX-License-Identifier: MIT
 * One layer of a checkpoint as matrices: names from the family's row, every shape and type checked,
 * nothing copied that the canonical layout can point at. */
#include "layer.h"
#include "checkpoint.h"
#include "fail.h"
#include "family.h"
#include "linear.h"
#include "memory.h"

#include <cmoe/convert.h>
#include <stdio.h>
#include <string.h>

/* What the language model's layers are called, alone or inside a larger model. */
static const char *const prefixes[] = {"model.layers", "model.language_model.layers",
                                       "language_model.model.layers", "layers"};
enum { PREFIXES = sizeof prefixes / sizeof prefixes[0] };

/* "PREFIX.LAYER.BLOCK" under which the router is; the first prefix when it is nowhere. */
void cmoe__layer_block(const cmoe_checkpoint *c, const struct cmoe_family *f, int layer,
                       char *block, size_t size)
{
    const struct cmoe_reading r = {.checkpoint = c};
    for (int i = PREFIXES - 1; i >= 0; i--) {
        char suffix[64];
        snprintf(suffix, sizeof suffix, ".%s.weight", f->gate_name);
        snprintf(block, size, "%s.%d.%s", prefixes[i], layer, f->block);
        if (cmoe__tensor_find(&r, block, suffix)) return;
    }
}

static cmoe_status read_vector(const struct cmoe_reading *r, const char *module, const char *suffix,
                               int ndim, const int64_t *shape, const void **data, cmoe_dtype *dtype)
{
    const cmoe_tensor_info *t = NULL;
    CMOE_TRY(cmoe__tensor_need(r, module, suffix, &t));
    CMOE_TRY(cmoe__tensor_shape(t, ndim, shape));
    *dtype = cmoe__tensor_float(t);
    if (*dtype == CMOE_NONE) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "tensor %s has the type %s; BF16, F16, F32 are read",
                         cmoe__quote(t->name).text, t->dtype);
    }
    return cmoe__tensor_data(r, t, (size_t)cmoe_dtype_bits(*dtype) / 8, data);
}

static cmoe_status read_router(const struct cmoe_reading *r, const struct cmoe_family *f,
                               const char *block)
{
    char module[224];
    cmoe_layer *const out = r->layer;
    const int64_t shape[] = {out->problem.experts, out->problem.hidden};
    snprintf(module, sizeof module, "%s.%s", block, f->gate_name);
    CMOE_TRY(read_vector(r, module, ".weight", 2, shape, &out->router_w, &out->router_dtype));
    if (out->problem.flags & CMOE_ROUTE_BIAS) {
        CMOE_TRY(read_vector(r, module, ".e_score_correction_bias", 1, shape, &out->router_bias,
                             &out->router_bias_dtype));
    }
    if (!(f->traits & CMOE_FAMILY_BIASES)) return CMOE_OK;
    return read_vector(r, module, ".bias", 1, shape, &out->logit_bias, &out->logit_bias_dtype);
}

static cmoe_status read_matrix(struct cmoe_reading *r, const char *module, bool bias, int64_t rows,
                               int64_t cols, cmoe_matrix *out)
{
    const cmoe_tensor_info *t = NULL;
    CMOE_TRY(cmoe__linear_read(r, module, rows, cols, out));
    if (!bias) return CMOE_OK;
    CMOE_TRY(cmoe__tensor_need(r, module, ".bias", &t));
    CMOE_TRY(cmoe__tensor_shape(t, 1, &rows));
    return cmoe__tensor_f32(r, t, rows, &out->bias);
}

/* Experts one by one. */
static cmoe_status read_separate(struct cmoe_reading *r, const struct cmoe_family *f,
                                 const char *block)
{
    char module[224];
    cmoe_layer *const out = r->layer;
    const bool bias = f->traits & CMOE_FAMILY_BIASES;
    const int64_t hidden = out->problem.hidden, inter = out->problem.inter;
    snprintf(module, sizeof module, "%s.experts.0.%s", block, f->gate);
    r->group = cmoe__linear_group(r, module, hidden);
    snprintf(module, sizeof module, "%s.experts.0.%s", block, f->down);
    if (r->group == 0) r->group = cmoe__linear_group(r, module, inter);
    for (int32_t e = 0; e < out->problem.experts; e++) {
        snprintf(module, sizeof module, "%s.experts.%d.%s", block, e, f->gate);
        CMOE_TRY(read_matrix(r, module, bias, inter, hidden, &out->gate[e]));
        snprintf(module, sizeof module, "%s.experts.%d.%s", block, e, f->up);
        CMOE_TRY(read_matrix(r, module, bias, inter, hidden, &out->up[e]));
        snprintf(module, sizeof module, "%s.experts.%d.%s", block, e, f->down);
        CMOE_TRY(read_matrix(r, module, bias, hidden, inter, &out->down[e]));
        if (r->wants_dense && !r->dense) return CMOE_OK;
    }
    return CMOE_OK;
}

static cmoe_status read_experts(struct cmoe_reading *r, const struct cmoe_family *f,
                                const char *block)
{
    char module[224];
    snprintf(module, sizeof module, "%s.experts", block);
    if (cmoe__fused_exists(r, module)) return cmoe__fused_read(r, f, module);
    if (!(f->traits & CMOE_FAMILY_BIASES)) return read_separate(r, f, block);
    snprintf(module, sizeof module, "%s.experts.0.%s", block, f->gate);
    if (!cmoe__tensor_find(r, module, ".bias")) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s.experts.gate_up_proj is missing", block);
    }
    r->layer->problem.gate = CMOE_GATE_SPLIT;
    return read_separate(r, f, block);
}

/* The type in and out: the weights' own where they are not scaled, else bf16. */
static cmoe_status apply_format(cmoe_format format, cmoe_problem *p)
{
    const bool plain = format.scaling == CMOE_SCALE_NONE;
    CMOE_TRY(cmoe_problem_scheme(p, plain ? cmoe_dtype_name((cmoe_dtype)format.dtype) : "bf16"));
    p->w = format;
    return cmoe_problem_check(p);
}

static cmoe_status allocate(cmoe_layer *out)
{
    const size_t bytes = (size_t)out->problem.experts * sizeof(cmoe_matrix);
    out->gate = cmoe__io_alloc(bytes);
    out->up = cmoe__io_alloc(bytes);
    out->down = cmoe__io_alloc(bytes);
    if (out->gate && out->up && out->down) return CMOE_OK;
    return cmoe__fail_memory(bytes, "expert tables");
}

static cmoe_status open_layer(struct cmoe_reading *r, const struct cmoe_family *f, int layer)
{
    char block[160];
    cmoe_layer *const out = r->layer;
    if (cmoe__gguf_has(r->checkpoint, layer)) {
        CMOE_TRY(allocate(out));
        CMOE_TRY(cmoe__gguf_layer(r, f, layer));
    } else {
        cmoe__layer_block(r->checkpoint, f, layer, block, sizeof block);
        CMOE_TRY(read_router(r, f, block));
        CMOE_TRY(allocate(out));
        CMOE_TRY(read_experts(r, f, block));
        if (r->wants_dense && !r->dense) {
            r->dense = true;
            r->format = (cmoe_format){0};
            CMOE_TRY(read_experts(r, f, block));
        }
        CMOE_TRY(cmoe__activation_scales(r, f, block));
    }
    if (out->problem.gate == CMOE_GATE_INTERLEAVED) {
        cmoe__io_free(out->up);
        out->up = NULL;
    }
    return apply_format(r->format, &out->problem);
}

bool cmoe__layer_has_experts(const cmoe_model_config *c, int layer)
{
    const int step = c->moe_step > 1 ? c->moe_step : 1;
    return layer >= c->dense_layers && layer < c->layers && (layer - c->dense_layers) % step == 0;
}

cmoe_status cmoe_layer_open(const cmoe_checkpoint *c, const cmoe_model_config *config, int layer,
                            cmoe_layer *out)
{
    CMOE_TRY(cmoe__check_argument(c, "cmoe_layer_open", "c"));
    CMOE_TRY(cmoe__check_argument(config, "cmoe_layer_open", "config"));
    CMOE_TRY(cmoe__check_argument(out, "cmoe_layer_open", "out"));
    *out = (cmoe_layer){0};
    const struct cmoe_family *const family = cmoe__family_find(config->model_type);
    if (!family) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "model_type \"%s\" is not read",
                         cmoe__quote(config->model_type).text);
    }
    CMOE_TRY(cmoe_problem_check(&config->problem));
    if (!cmoe__layer_has_experts(config, layer)) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "layer %d: the layers with experts are %d to %d%s",
                         layer, config->dense_layers, config->layers - 1,
                         config->moe_step > 1 ? ", not all of them" : "");
    }
    struct cmoe_reading r = {.checkpoint = c, .quantization = config->quantization, .layer = out};
    out->problem = config->problem;
    const cmoe_status status = open_layer(&r, family, layer);
    if (status != CMOE_OK) cmoe_layer_free(out);
    return status;
}

cmoe_status cmoe_layer_decode(const cmoe_layer *layer, int expert, int matrix, float *dst)
{
    CMOE_TRY(cmoe__check_argument(layer, "cmoe_layer_decode", "layer"));
    CMOE_TRY(cmoe__check_argument(dst, "cmoe_layer_decode", "dst"));
    const cmoe_problem *const p = &layer->problem;
    if (expert < 0 || expert >= p->experts || matrix < 0 || matrix > 2) {
        return CMOE_FAIL(CMOE_ERR_INVALID, "there is no matrix %d of expert %d of %d", matrix,
                         expert, p->experts);
    }
    const int64_t hidden = p->hidden, inter = p->inter;
    if (matrix == 2) return cmoe_dequantize_weight(p->w, &layer->down[expert], hidden, inter, dst);
    if (layer->up) {
        const cmoe_matrix *const m = matrix == 0 ? &layer->gate[expert] : &layer->up[expert];
        return cmoe_dequantize_weight(p->w, m, inter, hidden, dst);
    }
    const size_t bytes = (size_t)(2 * inter) * (size_t)hidden * sizeof(float);
    float *const both = cmoe__io_alloc(bytes);
    if (!both) return cmoe__fail_memory(bytes, "a matrix in f32");
    const cmoe_status status =
        cmoe_dequantize_weight(p->w, &layer->gate[expert], 2 * inter, hidden, both);
    for (int64_t r = 0; r < inter && status == CMOE_OK; r++) {
        memcpy(dst + r * hidden, both + (2 * r + matrix) * hidden, (size_t)hidden * sizeof(float));
    }
    cmoe__io_free(both);
    return status;
}

void cmoe_layer_free(cmoe_layer *layer)
{
    if (!layer) return;
    cmoe__layer_release(layer);
    cmoe__io_free(layer->gate);
    cmoe__io_free(layer->up);
    cmoe__io_free(layer->down);
    *layer = (cmoe_layer){0};
}
