/* SPDX-License-Identifier: MIT
 * Fused exports: one tensor for all experts. Plain ones are [experts, outputs, inputs], or
 * [experts, inputs, outputs] in families that say so; gpt-oss has MXFP4 _blocks and _scales. Every
 * form is read in place: a transposed matrix is a view with a column stride. */
#include "fail.h"
#include "family.h"
#include "layer.h"

#include <stdio.h>
#include <string.h>

/* One of the two tensors: all experts' [rows, cols]. */
struct fused {
    const char *module; /* "...experts" */
    const char *name;   /* ".gate_up_proj" */
    int64_t rows, cols;
    bool transposed;
};

bool cmoe__fused_exists(const struct cmoe_reading *r, const char *module)
{
    return cmoe__tensor_find(r, module, ".gate_up_proj") ||
           cmoe__tensor_find(r, module, ".gate_up_proj_blocks");
}

/* MXFP4: blocks [E, rows, cols / 32, 16], scales [E, rows, cols / 32]. */
static cmoe_status read_blocks(struct cmoe_reading *r, const struct fused *f,
                               const cmoe_tensor_info *blocks, cmoe_fused *out)
{
    const int64_t experts = r->layer->problem.experts, groups = f->cols / 32;
    char name[256], suffix[64];
    const cmoe_tensor_info *scales = NULL;
    snprintf(suffix, sizeof suffix, "%s_scales", f->name);
    snprintf(name, sizeof name, "%s%s_blocks", f->module, f->name);
    CMOE_TRY(cmoe__tensor_need(r, f->module, suffix, &scales));
    if (!cmoe__tensor_is(blocks, "U8") || !cmoe__tensor_is(scales, "U8") || f->cols % 32 != 0) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s and its scales have the types %s and %s and %lld columns; U8 "
                         "and multiples of 32 are read",
                         name, blocks->dtype, scales->dtype, (long long)f->cols);
    }
    CMOE_TRY(cmoe__tensor_shape(blocks, 4, (const int64_t[]){experts, f->rows, groups, 16}));
    CMOE_TRY(cmoe__tensor_shape(scales, 3, (const int64_t[]){experts, f->rows, groups}));
    out->data = blocks->data;
    out->scale = scales->data;
    return cmoe__reading_format(r, name,
                                (cmoe_format){.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX});
}

static cmoe_status read_plain(struct cmoe_reading *r, const struct fused *f,
                              const cmoe_tensor_info *t, cmoe_fused *out)
{
    const int64_t experts = r->layer->problem.experts;
    const cmoe_dtype dtype = cmoe__tensor_float(t);
    const int64_t shape[2][3] = {{experts, f->rows, f->cols}, {experts, f->cols, f->rows}};
    if (dtype == CMOE_NONE) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s has the type %s; BF16, F16, F32 are read of fused experts",
                         cmoe__quote(t->name).text, t->dtype);
    }
    /* A square matrix is as its family has it; else the shape tells. */
    const bool other =
        f->rows != f->cols && t->ndim == 3 && t->shape[1] == shape[!f->transposed][1];
    out->transposed = f->transposed != other;
    CMOE_TRY(cmoe__tensor_shape(t, 3, shape[out->transposed]));
    CMOE_TRY(cmoe__tensor_data(r, t, (size_t)cmoe_dtype_bits(dtype) / 8, &out->data));
    return cmoe__reading_format(r, f->module, (cmoe_format){.dtype = (uint8_t)dtype});
}

static cmoe_status read_bias(struct cmoe_reading *r, const struct fused *f, cmoe_fused *out)
{
    char suffix[64];
    const cmoe_tensor_info *t = NULL;
    const int64_t experts = r->layer->problem.experts;
    snprintf(suffix, sizeof suffix, "%s_bias", f->name);
    CMOE_TRY(cmoe__tensor_need(r, f->module, suffix, &t));
    CMOE_TRY(cmoe__tensor_shape(t, 2, (const int64_t[]){experts, f->rows}));
    return cmoe__tensor_f32(r, t, experts * f->rows, &out->bias);
}

static cmoe_status read_one(struct cmoe_reading *r, const struct fused *f, bool bias,
                            cmoe_matrix *table)
{
    char suffix[64];
    cmoe_fused all = {.rows = f->rows, .cols = f->cols, .experts = r->layer->problem.experts};
    snprintf(suffix, sizeof suffix, "%s_blocks", f->name);
    const cmoe_tensor_info *t = cmoe__tensor_find(r, f->module, suffix);
    if (t) {
        CMOE_TRY(read_blocks(r, f, t, &all));
    } else {
        CMOE_TRY(cmoe__tensor_need(r, f->module, f->name, &t));
        CMOE_TRY(read_plain(r, f, t, &all));
    }
    if (bias) CMOE_TRY(read_bias(r, f, &all));
    return cmoe_matrix_split(&all, r->format, table);
}

/* Tables of the up rows, which follow the gate rows in the same matrix. */
static void cut_up(cmoe_layer *layer, cmoe_format f)
{
    const int64_t inter = layer->problem.inter, hidden = layer->problem.hidden;
    for (int e = 0; e < layer->problem.experts; e++) {
        const cmoe_matrix *const gate = &layer->gate[e];
        const int64_t step = gate->row_stride
                                 ? gate->row_stride
                                 : (int64_t)cmoe_dtype_bytes((cmoe_dtype)f.dtype, hidden);
        layer->up[e] = *gate;
        layer->up[e].data = (const uint8_t *)gate->data + inter * step;
        if (f.scaling == CMOE_SCALE_MX)
            layer->up[e].scale = (const uint8_t *)gate->scale + inter * ((hidden + 31) / 32);
        if (gate->bias) layer->up[e].bias = gate->bias + inter;
    }
}

cmoe_status cmoe__fused_read(struct cmoe_reading *r, const struct cmoe_family *family,
                             const char *module)
{
    cmoe_layer *const layer = r->layer;
    const bool transposed = family->traits & CMOE_FAMILY_TRANSPOSED;
    const bool bias = family->traits & CMOE_FAMILY_BIASES;
    const int64_t inter = layer->problem.inter, hidden = layer->problem.hidden;
    const struct fused first = {module, ".gate_up_proj", 2 * inter, hidden, transposed};
    const struct fused second = {module, ".down_proj", hidden, inter, transposed};
    CMOE_TRY(read_one(r, &first, bias, layer->gate));
    CMOE_TRY(read_one(r, &second, bias, layer->down));
    if (layer->problem.gate == CMOE_GATE_SPLIT) cut_up(layer, r->format);
    return CMOE_OK;
}
