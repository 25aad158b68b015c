/* SPDX-License-Identifier: MIT
 * What readers of a layer share: its memory, its tensors by name, type and shape, its one format. */
#include "reading.h"

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

struct cmoe_shape_text cmoe__shape_text(int ndim, const int64_t *shape)
{
    struct cmoe_shape_text t = {""};
    size_t used = 0;
    for (int d = 0; d < ndim && used < sizeof t.text; d++) {
        const int n =
            snprintf(t.text + used, sizeof t.text - used, "%s%" PRId64, d ? " x " : "", shape[d]);
        used += n > 0 ? (size_t)n : 0;
    }
    return t;
}

cmoe_status cmoe__tensor_shape(const cmoe_tensor_info *t, int ndim, const int64_t *shape)
{
    if (t->ndim == ndim && memcmp(t->shape, shape, (size_t)ndim * sizeof *shape) == 0)
        return CMOE_OK;
    return CMOE_FAIL(CMOE_ERR_CORRUPT, "tensor %s has %d dimensions, %s, the configuration says %s",
                     cmoe__quote(t->name).text, t->ndim, cmoe__shape_text(t->ndim, t->shape).text,
                     cmoe__shape_text(ndim, shape).text);
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

bool cmoe__tensor_is_e8m0(const cmoe_tensor_info *t)
{
    return cmoe__tensor_is(t, "U8") || cmoe__tensor_is(t, "F8_E8M0");
}

int64_t cmoe__tensor_elements(const cmoe_tensor_info *t)
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
    if ((from == CMOE_NONE && !cmoe__tensor_is_e8m0(t)) || cmoe__tensor_elements(t) != n) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s has %" PRId64 " elements of type %s; %" PRId64
                         " of BF16, F16 or F32 are read",
                         cmoe__quote(t->name).text, cmoe__tensor_elements(t), t->dtype, n);
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
