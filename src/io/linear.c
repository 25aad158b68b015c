/* SPDX-License-Identifier: MIT
 * A weight matrix by the tensors that are there: .weight with or without scales, .weight_packed,
 * .qweight. The scheme is read from names, types and shapes, which cannot disagree with the data,
 * rather than from what a configuration claims. */
#include "linear.h"

#include "fail.h"
#include "memory.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* ---- memory of a layer: blocks that point to the one before ---- */

struct block {
    struct block *before;
    _Alignas(max_align_t) uint8_t data[];
};

void *cmoe__layer_alloc(cmoe_layer *layer, size_t bytes)
{
    size_t total;
    if (__builtin_add_overflow(bytes, sizeof(struct block), &total)) return NULL;
    struct block *const b = cmoe__io_alloc(total);
    if (!b) return NULL;
    b->before = layer->storage;
    layer->storage = b;
    layer->owned_bytes += bytes;
    return b->data;
}

void cmoe__layer_release(cmoe_layer *layer)
{
    for (struct block *b = layer->storage; b;) {
        struct block *const before = b->before;
        cmoe__io_free(b);
        b = before;
    }
    layer->storage = NULL;
    layer->owned_bytes = 0;
}

/* ---- tensors ---- */

const cmoe_tensor_info *cmoe__tensor_find(const struct cmoe_reading *r, const char *module,
                                          const char *suffix)
{
    char name[256];
    snprintf(name, sizeof name, "%s%s", module, suffix);
    return cmoe_checkpoint_find(r->checkpoint, name);
}

cmoe_status cmoe__tensor_need(const struct cmoe_reading *r, const char *module, const char *suffix,
                              const cmoe_tensor_info **out)
{
    *out = cmoe__tensor_find(r, module, suffix);
    if (*out) return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s%s is missing", module, suffix);
}

static void shape_text(int ndim, const int64_t *shape, char *text, size_t size)
{
    size_t used = 0;
    text[0] = '\0';
    for (int d = 0; d < ndim && used < size; d++) {
        const int n = snprintf(text + used, size - used, "%s%" PRId64, d ? " x " : "", shape[d]);
        used += n > 0 ? (size_t)n : 0;
    }
}

cmoe_status cmoe__tensor_shape(const cmoe_tensor_info *t, int ndim, const int64_t *shape)
{
    char got[192], want[192];
    if (t->ndim == ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) == 0)
        return CMOE_OK;
    shape_text(t->ndim, t->shape, got, sizeof got);
    shape_text(ndim, shape, want, sizeof want);
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s has %d dimensions, %s, the configuration says %s",
                     cmoe__quote(t->name).text, t->ndim, got, want);
}

bool cmoe__tensor_is(const cmoe_tensor_info *t, const char *dtype)
{
    return strcmp(t->dtype, dtype) == 0;
}

cmoe_dtype cmoe__tensor_float(const cmoe_tensor_info *t)
{
    if (cmoe__tensor_is(t, "BF16")) return CMOE_BF16;
    if (cmoe__tensor_is(t, "F16")) return CMOE_F16;
    return cmoe__tensor_is(t, "F32") ? CMOE_F32 : CMOE_NONE;
}

cmoe_status cmoe__tensor_data(const struct cmoe_reading *r, const cmoe_tensor_info *t, size_t align,
                              const void **out)
{
    *out = t->data;
    if ((uintptr_t)t->data % align == 0) return CMOE_OK;
    void *const copy = cmoe__layer_alloc(r->layer, t->bytes);
    if (!copy) return cmoe__fail_memory(t->bytes, "an aligned copy of a tensor");
    memcpy(copy, t->data, t->bytes);
    *out = copy;
    return CMOE_OK;
}

static bool is_e8m0(const cmoe_tensor_info *t)
{
    return cmoe__tensor_is(t, "U8") || cmoe__tensor_is(t, "F8_E8M0");
}

static int64_t numel(const cmoe_tensor_info *t)
{
    int64_t n = 1;
    for (int d = 0; d < t->ndim; d++)
        n *= t->shape[d];
    return n;
}

cmoe_status cmoe__tensor_f32(const struct cmoe_reading *r, const cmoe_tensor_info *t, int64_t n,
                             const float **out)
{
    const cmoe_dtype from = cmoe__tensor_float(t);
    if ((from == CMOE_NONE && !is_e8m0(t)) || numel(t) != n) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s has %" PRId64 " elements of type %s; %" PRId64
                         " of BF16, F16 or F32 are read",
                         cmoe__quote(t->name).text, numel(t), t->dtype, n);
    }
    if (from == CMOE_F32) {
        const void *data = NULL;
        CMOE_TRY(cmoe__tensor_data(r, t, sizeof(float), &data));
        *out = data;
        return CMOE_OK;
    }
    float *const copy = cmoe__layer_alloc(r->layer, (size_t)n * sizeof *copy);
    if (!copy) return cmoe__fail_memory((size_t)n * sizeof *copy, "scales");
    *out = copy;
    if (from != CMOE_NONE) return cmoe_convert(CMOE_F32, copy, from, t->data, n);
    for (int64_t i = 0; i < n; i++)
        copy[i] = cmoe_decode(CMOE_E8M0, ((const uint8_t *)t->data)[i]);
    return CMOE_OK;
}

/* ---- formats ---- */

cmoe_status cmoe__reading_format(struct cmoe_reading *r, const char *module, cmoe_format format)
{
    if (r->format.dtype == CMOE_NONE) {
        r->format = format;
        snprintf(r->first, sizeof r->first, "%s", module);
        return CMOE_OK;
    }
    const cmoe_format *const f = &r->format;
    if (f->dtype != format.dtype) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s.weight has the type %s, those before it %s",
                         module, cmoe_dtype_name((cmoe_dtype)format.dtype),
                         cmoe_dtype_name((cmoe_dtype)f->dtype));
    }
    if (f->scaling == format.scaling && f->group == format.group && f->zero == format.zero &&
        f->scale_dtype == format.scale_dtype)
        return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                     "the scales of %s are laid out differently from those of %s", module,
                     r->first);
}

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
    if (is_e8m0(scale) && r == rows && c == (cols + 31) / 32)
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
        char text[192];
        shape_text(scale->ndim, scale->shape, text, sizeof text);
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s is %s %s, no scaling that is read for a matrix of %" PRId64
                         " x %" PRId64,
                         cmoe__quote(scale->name).text, scale->dtype, text, rows, cols);
    }
    f.dtype = (uint8_t)dtype;
    out->data = t->data;
    if (f.scaling == CMOE_SCALE_MX) {
        out->scale = scale->data;
    } else {
        const float *values = NULL;
        CMOE_TRY(cmoe__tensor_f32(r, scale, numel(scale), &values));
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
    if (is_e8m0(scale)) {
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
