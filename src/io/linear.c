/* SPDX-License-Identifier: MIT
 * A weight matrix by the tensors that are there: .weight with or without scales, .weight_packed,
 * .qweight. The scheme is read from names, types and shapes, which cannot disagree with the data,
 * rather than from what a configuration claims. */
#include "linear.h"

#include "fail.h"

#include <inttypes.h>
#include <string.h>

static cmoe_status read_plain(struct cmoe_reading *r, const char *module, const cmoe_tensor_info *t,
                              cmoe_dtype dtype, cmoe_matrix *out)
{
    const int bytes = cmoe_dtype_bits(dtype) / 8;
    if ((uintptr_t)t->data % bytes != 0) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s lies at an odd place in %s, not at a multiple of its type's %d "
                         "bytes; a file written again by safetensors has it at one",
                         cmoe__quote(t->name).text, cmoe__quote(t->file).text, bytes);
    }
    out->data = t->data;
    return cmoe__reading_format(r, module, (cmoe_format){.dtype = (uint8_t)dtype});
}

/* What the shape of `scale` says about a matrix [rows, cols]; scaling NONE: nothing that is read. */
static cmoe_format scale_format(const cmoe_tensor_info *scale, bool blocks, int64_t rows,
                                int64_t cols)
{
    const int64_t r = scale->ndim > 0 ? scale->shape[0] : 1;
    const int64_t c = scale->ndim > 1 ? scale->shape[1] : 1;
    const bool grid = scale->ndim == 2 && r == (rows + 127) / 128 && c == (cols + 127) / 128;
    if (scale->ndim > 2) return (cmoe_format){0};
    if (cmoe__tensor_is_e8m0(scale) && r == rows && c == (cols + 31) / 32)
        return (cmoe_format){.scaling = CMOE_SCALE_MX};
    if (blocks && grid) return (cmoe_format){.scaling = CMOE_SCALE_BLOCK};
    if (r == 1 && c == 1) return (cmoe_format){.scaling = CMOE_SCALE_TENSOR};
    if (r == rows && c == 1) return (cmoe_format){.scaling = CMOE_SCALE_CHANNEL};
    if (grid) return (cmoe_format){.scaling = CMOE_SCALE_BLOCK};
    for (int64_t group = 16; group <= 128; group *= 2) {
        if (r == rows && c == (cols + group - 1) / group)
            return (cmoe_format){.scaling = CMOE_SCALE_GROUP, .group = (uint16_t)group};
    }
    return (cmoe_format){0};
}

/* 8-bit elements with .weight_scale or .weight_scale_inv, which multiply all the same. */
static cmoe_status read_scaled(struct cmoe_reading *r, const char *module,
                               const cmoe_tensor_info *t, cmoe_dtype dtype, int64_t rows,
                               int64_t cols, cmoe_matrix *out)
{
    const cmoe_tensor_info *scale = cmoe__tensor_find(r, module, ".weight_scale_inv");
    const bool blocks = scale != NULL;
    if (!scale) scale = cmoe__tensor_find(r, module, ".weight_scale");
    if (!scale) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s has the type %s, but neither %s.weight_scale nor "
                         "weight_scale_inv is there; BF16, F16, F32 are read without",
                         cmoe__quote(t->name).text, t->dtype, module);
    }
    if (cmoe__tensor_find(r, module, ".weight_zero_point")) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "%s.weight_zero_point: 8-bit zero points that are "
                         "not packed are not read",
                         module);
    }
    cmoe_format f = scale_format(scale, blocks, rows, cols);
    if (f.scaling == CMOE_SCALE_NONE) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s is %s %s, no scaling that is read for a matrix of %" PRId64
                         " x %" PRId64,
                         cmoe__quote(scale->name).text, scale->dtype,
                         cmoe__shape_text(scale->ndim, scale->shape).text, rows, cols);
    }
    f.dtype = (uint8_t)dtype;
    out->data = t->data;
    if (f.scaling == CMOE_SCALE_MX) {
        out->scale = scale->data;
    } else {
        const float *values = NULL;
        CMOE_TRY(cmoe__tensor_f32(r, scale, cmoe__tensor_elements(scale), &values));
        out->scale = values;
    }
    return cmoe__reading_format(r, module, f);
}

static cmoe_status read_weight(struct cmoe_reading *r, const char *module,
                               const cmoe_tensor_info *t, int64_t rows, int64_t cols,
                               cmoe_matrix *out)
{
    CMOE_TRY(cmoe__tensor_shape(t, 2, (const int64_t[]){rows, cols}));
    const cmoe_dtype plain = cmoe__tensor_float(t);
    if (plain != CMOE_NONE) return read_plain(r, module, t, plain, out);
    if (cmoe__tensor_is(t, "F8_E4M3")) return read_scaled(r, module, t, CMOE_E4M3, rows, cols, out);
    if (cmoe__tensor_is(t, "F8_E5M2")) return read_scaled(r, module, t, CMOE_E5M2, rows, cols, out);
    if (cmoe__tensor_is(t, "I8")) return read_scaled(r, module, t, CMOE_I8, rows, cols, out);
    return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                     "tensor %s has the type %s; BF16, F16, F32, F8_E4M3, F8_E5M2, I8 are read",
                     cmoe__quote(t->name).text, t->dtype);
}

/* Two e2m1 codes a byte, scales of 32 columns (MX) or of 16 with a global divisor (NV). */
static cmoe_status read_fp4(struct cmoe_reading *r, const char *module, const cmoe_tensor_info *t,
                            int64_t rows, int64_t cols, cmoe_matrix *out)
{
    const cmoe_tensor_info *scale = NULL;
    const float *divisor = NULL;
    CMOE_TRY(cmoe__tensor_shape(t, 2, (const int64_t[]){rows, (cols + 1) / 2}));
    CMOE_TRY(cmoe__tensor_need(r, module, ".weight_scale", &scale));
    out->data = t->data;
    out->scale = scale->data;
    if (cmoe__tensor_is_e8m0(scale)) {
        CMOE_TRY(cmoe__tensor_shape(scale, 2, (const int64_t[]){rows, (cols + 31) / 32}));
        return cmoe__reading_format(r, module,
                                    (cmoe_format){.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_MX});
    }
    if (!cmoe__tensor_is(scale, "F8_E4M3")) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s has the type %s; F8_E4M3 (nvfp4), U8 and F8_E8M0 (mxfp4) are "
                         "read",
                         cmoe__quote(scale->name).text, scale->dtype);
    }
    CMOE_TRY(cmoe__tensor_shape(scale, 2, (const int64_t[]){rows, (cols + 15) / 16}));
    const cmoe_tensor_info *global = NULL;
    CMOE_TRY(cmoe__tensor_need(r, module, ".weight_global_scale", &global));
    CMOE_TRY(cmoe__tensor_f32(r, global, 1, &divisor));
    float *const multiplier = cmoe__layer_alloc(r->layer, sizeof *multiplier);
    if (!multiplier) return cmoe__fail_memory(sizeof *multiplier, "a scale");
    *multiplier = 1 / *divisor;
    out->global = multiplier;
    return cmoe__reading_format(r, module,
                                (cmoe_format){.dtype = CMOE_E2M1, .scaling = CMOE_SCALE_NV});
}

/* Names what there is of a module that none of the readers knows. */
static cmoe_status unknown(const struct cmoe_reading *r, const char *module)
{
    const size_t n = strlen(module);
    for (int64_t i = 0; i < cmoe_checkpoint_count(r->checkpoint); i++) {
        const char *const name = cmoe_checkpoint_at(r->checkpoint, i)->name;
        if (strncmp(name, module, n) != 0 || name[n] != '.') continue;
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s.weight is missing; %s is there, of a scheme that is not read "
                         "(quantization \"%s\")",
                         module, cmoe__quote(name).text, r->quantization);
    }
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s.weight is missing", module);
}

cmoe_status cmoe__linear_read(struct cmoe_reading *r, const char *module, int64_t rows,
                              int64_t cols, cmoe_matrix *out)
{
    *out = (cmoe_matrix){0};
    const cmoe_tensor_info *const packed = cmoe__tensor_find(r, module, ".weight_packed");
    if (packed && cmoe__tensor_is(packed, "U8"))
        return read_fp4(r, module, packed, rows, cols, out);
    if (packed) return cmoe__linear_packed(r, module, rows, cols, out);
    if (cmoe__tensor_find(r, module, ".qweight"))
        return cmoe__linear_gptq(r, module, rows, cols, out);
    const cmoe_tensor_info *const t = cmoe__tensor_find(r, module, ".weight");
    return t ? read_weight(r, module, t, rows, cols, out) : unknown(r, module);
}
