/* SPDX-License-Identifier: MIT
 * One layer of a GGUF file. Its blocks of 32 elements put the scale next to the codes, so scaled
 * weights are taken apart into the layer's memory; bf16, f16 and f32 are read in place. */
#include "fail.h"
#include "family.h"
#include "layer.h"

#include <cmoe/convert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { BLOCK = 32 };

static const struct layout {
    const char *type;
    cmoe_format format;
    int bytes, scale; /* of a block, of its scale, which comes first */
    bool halves;      /* byte j of the codes holds elements j and j + 16 */
} layouts[] = {
    {"Q8_0",
     {.dtype = CMOE_I8, .scaling = CMOE_SCALE_GROUP, .group = BLOCK, .scale_dtype = CMOE_F16},
     34,
     2,
     false},
    {"Q4_0",
     {.dtype = CMOE_U4, .scaling = CMOE_SCALE_GROUP, .group = BLOCK, .scale_dtype = CMOE_F16},
     18,
     2,
     true},
    {"MXFP4", {.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX}, 17, 1, true},
};

/* Blocks to codes and scales. */
static cmoe_status take_apart(const struct layout *l, const uint8_t *blocks, int64_t n,
                              uint8_t *codes, uint8_t *scales)
{
    const int size = l->bytes - l->scale;
    uint8_t nibbles[BLOCK];
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *const b = blocks + i * l->bytes;
        memcpy(scales + i * l->scale, b, (size_t)l->scale);
        if (l->halves) {
            CMOE_TRY(cmoe_unpack4(CMOE_PACK_GGUF, b + l->scale, 1, BLOCK, nibbles));
            CMOE_TRY(cmoe_pack4(CMOE_PACK_NIBBLE, nibbles, 1, BLOCK, codes + i * size));
        } else {
            memcpy(codes + i * size, b + l->scale, (size_t)size);
        }
    }
    return CMOE_OK;
}

static const struct layout *find_layout(const cmoe_tensor_info *t)
{
    for (size_t i = 0; i < sizeof layouts / sizeof layouts[0]; i++)
        if (cmoe__tensor_is(t, layouts[i].type)) return &layouts[i];
    return NULL;
}

static cmoe_status read_blocks(struct cmoe_reading *r, const cmoe_tensor_info *t, cmoe_fused *all)
{
    const struct layout *const l = find_layout(t);
    if (!l) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s has the type %s; BF16, F16, F32, Q8_0, Q4_0, MXFP4 are read",
                         cmoe__quote(t->name).text, t->dtype);
    }
    const int64_t n = (int64_t)all->experts * all->rows * (all->cols / BLOCK);
    uint8_t *const codes = cmoe__layer_alloc(r->layer, (size_t)n * (size_t)(l->bytes - l->scale));
    uint8_t *const scales = cmoe__layer_alloc(r->layer, (size_t)n * (size_t)l->scale);
    if (!codes || !scales) return cmoe__fail_memory(t->bytes, "unpacked experts");
    all->data = codes;
    all->scale = scales;
    CMOE_TRY(take_apart(l, t->data, n, codes, scales));
    return cmoe__reading_format(r, t->name, l->format);
}

/* The tensor [experts, rows, cols] of that name as a table of matrices. */
static cmoe_status read_tensor(struct cmoe_reading *r, const char *module, int64_t rows,
                               int64_t cols, bool bias, cmoe_matrix *table)
{
    const int32_t experts = r->layer->problem.experts;
    const cmoe_tensor_info *t = NULL, *b = NULL;
    cmoe_fused all = {.rows = rows, .cols = cols, .experts = experts};
    CMOE_TRY(cmoe__tensor_need(r, module, ".weight", &t));
    CMOE_TRY(cmoe__tensor_shape(t, 3, (const int64_t[]){experts, rows, cols}));
    const cmoe_dtype dtype = cmoe__tensor_float(t);
    if (dtype != CMOE_NONE) {
        CMOE_TRY(cmoe__tensor_data(r, t, (size_t)cmoe_dtype_bits(dtype) / 8, &all.data));
        CMOE_TRY(cmoe__reading_format(r, t->name, (cmoe_format){.dtype = (uint8_t)dtype}));
    } else {
        CMOE_TRY(read_blocks(r, t, &all));
    }
    if (bias) {
        CMOE_TRY(cmoe__tensor_need(r, module, ".bias", &b));
        CMOE_TRY(cmoe__tensor_shape(b, 2, (const int64_t[]){experts, rows}));
        CMOE_TRY(cmoe__tensor_f32(r, b, experts * rows, &all.bias));
    }
    return cmoe_matrix_split(&all, r->format, table);
}

static cmoe_status read_vector(struct cmoe_reading *r, const char *module, const char *suffix,
                               int ndim, const void **out, cmoe_dtype *dtype)
{
    const cmoe_tensor_info *t = NULL;
    const float *values = NULL;
    const int64_t shape[] = {r->layer->problem.experts, r->layer->problem.hidden};
    CMOE_TRY(cmoe__tensor_need(r, module, suffix, &t));
    CMOE_TRY(cmoe__tensor_shape(t, ndim, shape));
    CMOE_TRY(cmoe__tensor_f32(r, t, ndim == 2 ? shape[0] * shape[1] : shape[0], &values));
    *out = values;
    *dtype = CMOE_F32;
    return CMOE_OK;
}

static const char *name_of(char *text, size_t size, int layer, const char *name)
{
    snprintf(text, size, "blk.%d.%s", layer, name);
    return text;
}

bool cmoe__gguf_has(const cmoe_checkpoint *c, int layer)
{
    char name[64];
    return cmoe_checkpoint_find(c, name_of(name, sizeof name, layer, "ffn_gate_inp.weight"));
}

/* gate and up rows of one tensor, one after the other. */
static cmoe_status read_merged(struct cmoe_reading *r, const char *module, bool bias)
{
    cmoe_layer *const out = r->layer;
    const int64_t inter = out->problem.inter, hidden = out->problem.hidden;
    CMOE_TRY(read_tensor(r, module, 2 * inter, hidden, bias, out->gate));
    size_t codes = 0, scales = 0;
    CMOE_TRY(cmoe_format_bytes(r->format, inter, hidden, &codes, &scales, NULL));
    for (int e = 0; e < out->problem.experts; e++) {
        out->up[e] = out->gate[e];
        out->up[e].data = (const uint8_t *)out->gate[e].data + codes;
        if (out->gate[e].scale) out->up[e].scale = (const uint8_t *)out->gate[e].scale + scales;
        if (out->gate[e].bias) out->up[e].bias = out->gate[e].bias + inter;
    }
    return CMOE_OK;
}

cmoe_status cmoe__gguf_layer(struct cmoe_reading *r, const struct cmoe_family *family, int layer)
{
    char name[64];
    cmoe_layer *const out = r->layer;
    const bool bias = family->traits & CMOE_FAMILY_BIASES;
    const int64_t inter = out->problem.inter, hidden = out->problem.hidden;
    out->problem.gate = CMOE_GATE_SPLIT;
    name_of(name, sizeof name, layer, "ffn_gate_inp");
    CMOE_TRY(read_vector(r, name, ".weight", 2, &out->router_w, &out->router_dtype));
    if (bias) CMOE_TRY(read_vector(r, name, ".bias", 1, &out->logit_bias, &out->logit_bias_dtype));
    if (out->problem.flags & CMOE_ROUTE_BIAS) {
        name_of(name, sizeof name, layer, "exp_probs_b");
        CMOE_TRY(read_vector(r, name, ".bias", 1, &out->router_bias, &out->router_bias_dtype));
    }
    name_of(name, sizeof name, layer, "ffn_gate_up_exps");
    if (cmoe__tensor_find(r, name, ".weight")) {
        CMOE_TRY(read_merged(r, name, bias));
    } else {
        name_of(name, sizeof name, layer, "ffn_gate_exps");
        CMOE_TRY(read_tensor(r, name, inter, hidden, bias, out->gate));
        name_of(name, sizeof name, layer, "ffn_up_exps");
        CMOE_TRY(read_tensor(r, name, inter, hidden, bias, out->up));
    }
    name_of(name, sizeof name, layer, "ffn_down_exps");
    return read_tensor(r, name, hidden, inter, bias, out->down);
}
