/* SPDX-License-Identifier: MIT
 * Packed integers: compressed-tensors' .weight_packed, and .qweight of GPTQ and AWQ.
 *
 * compressed-tensors packs along the inputs, low bits first, with 8 (128) added: that is u4 (u8) as
 * the canonical layout has it, read in place. GPTQ and AWQ are transposed and re-packed. Where
 * groups are not consecutive columns (GPTQ's activation order) the matrix is decoded to f32. */
#include "fail.h"
#include "linear.h"
#include "memory.h"

#include <cmoe/convert.h>
#include <inttypes.h>
#include <string.h>

/* A matrix of unsigned codes, one a byte, before it gets its final layout. */
struct codes {
    int64_t rows, cols, groups;
    int bits;
    uint8_t *values;      /* [rows, cols] */
    uint8_t *zeros;       /* [rows, groups] */
    float *scales;        /* [rows, groups] */
    const int32_t *g_idx; /* [cols]: group of each column, or NULL: consecutive */
};

static uint32_t word_at(const void *data, int64_t i)
{
    const uint8_t *const b = (const uint8_t *)data + 4 * i;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

/* Columns of a group that the canonical layout has, CHANNEL for the whole row, else NONE. */
static cmoe_format group_format(const struct cmoe_reading *r, int64_t cols, int64_t groups)
{
    cmoe_format f = {0};
    if (groups == 1 && r->group >= cols) {
        f.scaling = CMOE_SCALE_GROUP;
        f.group = (uint16_t)r->group;
        return f;
    }
    if (groups == 1) {
        f.scaling = CMOE_SCALE_CHANNEL;
        return f;
    }
    for (int group = 16; group <= 128; group *= 2) {
        if ((cols + group - 1) / group == groups && cols / groups <= group) {
            f.scaling = CMOE_SCALE_GROUP;
            f.group = (uint16_t)group;
        }
    }
    return f;
}

int cmoe__linear_group(const struct cmoe_reading *r, const char *module, int64_t cols)
{
    const cmoe_tensor_info *t = cmoe__tensor_find(r, module, ".weight_packed");
    const bool packed = t && cmoe__tensor_is(t, "I32");
    if (!packed && !cmoe__tensor_find(r, module, ".qweight")) return 0;
    t = cmoe__tensor_find(r, module, packed ? ".weight_scale" : ".scales");
    if (!t || t->ndim != 2) return 0;
    const int64_t n = t->shape[packed ? 1 : 0];
    return n > 1 ? group_format(r, cols, n).group : 0;
}

/* Whether g_idx is what consecutive groups give; *valid says that its entries are groups. */
static bool consecutive(const struct codes *c, bool *valid)
{
    const int64_t size = (c->cols + c->groups - 1) / c->groups;
    bool same = true;
    *valid = true;
    for (int64_t i = 0; c->g_idx && i < c->cols; i++) {
        const int32_t g = c->g_idx[i];
        if (g < 0 || g >= c->groups) *valid = false;
        same = same && g == i / size;
    }
    return same;
}

static cmoe_status decode_dense(struct cmoe_reading *r, const char *module, const struct codes *c,
                                cmoe_matrix *out)
{
    const size_t bytes = (size_t)c->rows * (size_t)c->cols * sizeof(float);
    const int64_t size = (c->cols + c->groups - 1) / c->groups;
    float *const dst = cmoe__layer_alloc(r->layer, bytes);
    if (!dst) return cmoe__fail_memory(bytes, "a decoded matrix");
    for (int64_t row = 0; row < c->rows; row++) {
        for (int64_t col = 0; col < c->cols; col++) {
            const int64_t group = c->g_idx ? c->g_idx[col] : col / size;
            const int64_t g = row * c->groups + group;
            dst[row * c->cols + col] =
                (float)(c->values[row * c->cols + col] - c->zeros[g]) * c->scales[g];
        }
    }
    *out = (cmoe_matrix){.data = dst};
    return cmoe__reading_format(r, module, (cmoe_format){.dtype = CMOE_F32});
}

/* Codes in their final layout: u4 or u8 with zero points, or decoded. */
static cmoe_status finish(struct cmoe_reading *r, const char *module, const struct codes *c,
                          cmoe_matrix *out)
{
    bool valid = true;
    cmoe_format f = group_format(r, c->cols, c->groups);
    if (!consecutive(c, &valid) || f.scaling == CMOE_SCALE_NONE) r->wants_dense = true;
    if (!valid) return CMOE_FAIL(CMOE_ERR_CORRUPT, "%s: an entry of g_idx is no group", module);
    if (r->dense) return decode_dense(r, module, c, out);
    if (r->wants_dense) return CMOE_OK;
    f.dtype = c->bits == 4 ? CMOE_U4 : CMOE_U8;
    f.zero = 1;
    *out = (cmoe_matrix){.data = c->values, .scale = c->scales, .zero = c->zeros};
    if (c->bits == 4) {
        const size_t bytes = (size_t)c->rows * (size_t)((c->cols + 1) / 2);
        uint8_t *const packed = cmoe__layer_alloc(r->layer, bytes);
        if (!packed) return cmoe__fail_memory(bytes, "packed weights");
        CMOE_TRY(cmoe_pack4(CMOE_PACK_NIBBLE, c->values, c->rows, c->cols, packed));
        out->data = packed;
    }
    return cmoe__reading_format(r, module, f);
}

static cmoe_status allocate(const struct cmoe_reading *r, struct codes *c)
{
    const size_t values = (size_t)c->rows * (size_t)c->cols;
    const size_t groups = (size_t)c->rows * (size_t)c->groups;
    c->values = cmoe__layer_alloc(r->layer, values);
    c->zeros = cmoe__layer_alloc(r->layer, groups);
    c->scales = cmoe__layer_alloc(r->layer, groups * sizeof(float));
    if (c->values && c->zeros && c->scales) return CMOE_OK;
    return cmoe__fail_memory(values + 5 * groups, "unpacked weights");
}

static cmoe_status read_g_idx(const struct cmoe_reading *r, const char *module, const char *suffix,
                              struct codes *c)
{
    const cmoe_tensor_info *const t = cmoe__tensor_find(r, module, suffix);
    const void *data = NULL;
    if (!t) return CMOE_OK;
    CMOE_TRY(cmoe__tensor_shape(t, 1, (const int64_t[]){c->cols}));
    if (!cmoe__tensor_is(t, "I32")) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "tensor %s has the type %s; I32 is read",
                         cmoe__quote(t->name).text, t->dtype);
    }
    CMOE_TRY(cmoe__tensor_data(r, t, sizeof(int32_t), &data));
    c->g_idx = data;
    return CMOE_OK;
}

/* ---- GPTQ and AWQ: [inputs, outputs] ---- */

/* What GPTQ adds to stored zero points: 1 in the first format, 0 in gptq_v2. Files of symmetric
 * weights show it, whatever their configuration says: all zero points are the middle, or one less. */
static int zero_offset(const struct cmoe_reading *r, const struct codes *c)
{
    const int middle = 1 << (c->bits - 1);
    const size_t n = (size_t)c->rows * (size_t)c->groups;
    bool at_middle = true, below = true;
    for (size_t i = 0; i < n; i++) {
        at_middle = at_middle && c->zeros[i] == middle;
        below = below && c->zeros[i] == middle - 1;
    }
    if (at_middle || below) return below;
    return strstr(r->quantization, "gptq_v2") == NULL;
}

/* scales [groups, outputs] to [rows, groups]. */
static cmoe_status read_scales(const struct cmoe_reading *r, const char *module, struct codes *c)
{
    const cmoe_tensor_info *t = NULL;
    const float *values = NULL;
    CMOE_TRY(cmoe__tensor_need(r, module, ".scales", &t));
    CMOE_TRY(cmoe__tensor_shape(t, 2, (const int64_t[]){c->groups, c->rows}));
    CMOE_TRY(cmoe__tensor_f32(r, t, c->groups * c->rows, &values));
    for (int64_t g = 0; g < c->groups; g++)
        for (int64_t row = 0; row < c->rows; row++)
            c->scales[row * c->groups + g] = values[g * c->rows + row];
    return CMOE_OK;
}

static cmoe_status unpack_gptq(const struct cmoe_reading *r, struct codes *c, const void *qweight,
                               const void *qzeros)
{
    const int per = 32 / c->bits;
    const uint32_t mask = (1u << c->bits) - 1;
    for (int64_t w = 0; w < c->cols / per; w++) {
        for (int64_t row = 0; row < c->rows; row++) {
            const uint32_t word = word_at(qweight, w * c->rows + row);
            for (int i = 0; i < per; i++)
                c->values[row * c->cols + w * per + i] = (uint8_t)(word >> (i * c->bits) & mask);
        }
    }
    for (int64_t g = 0; g < c->groups; g++) {
        for (int64_t row = 0; row < c->rows; row++) {
            const uint32_t word = word_at(qzeros, g * (c->rows / per) + row / per);
            c->zeros[row * c->groups + g] = (uint8_t)(word >> (row % per * c->bits) & mask);
        }
    }
    const int offset = zero_offset(r, c);
    for (int64_t i = 0; i < c->rows * c->groups; i++)
        c->zeros[i] = (uint8_t)(c->zeros[i] + offset);
    return CMOE_OK;
}

static cmoe_status unpack_awq(struct codes *c, const void *qweight, const void *qzeros)
{
    CMOE_TRY(cmoe_unpack4(CMOE_PACK_AWQ, qweight, c->rows, c->cols, c->values));
    return cmoe_unpack4(CMOE_PACK_AWQ, qzeros, c->rows, c->groups, c->zeros);
}

cmoe_status cmoe__linear_gptq(struct cmoe_reading *r, const char *module, int64_t rows,
                              int64_t cols, cmoe_matrix *out)
{
    struct codes c = {.rows = rows, .cols = cols, .bits = 4};
    const cmoe_tensor_info *w = NULL, *z = NULL;
    const void *qweight = NULL, *qzeros = NULL;
    CMOE_TRY(cmoe__tensor_need(r, module, ".qweight", &w));
    CMOE_TRY(cmoe__tensor_need(r, module, ".qzeros", &z));
    if (!cmoe__tensor_is(w, "I32") || !cmoe__tensor_is(z, "I32")) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensors %s.qweight and qzeros have the types %s "
                         "and %s; I32 is read",
                         module, w->dtype, z->dtype);
    }
    const int64_t r0 = w->ndim == 2 ? w->shape[0] : 0, r1 = w->ndim == 2 ? w->shape[1] : 0;
    const bool awq = r0 == cols && rows % 8 == 0 && r1 == rows / 8;
    if (!awq && r1 == rows && cols % 4 == 0 && r0 == cols / 4) c.bits = 8;
    const int per = 32 / c.bits;
    const bool gptq = r1 == rows && cols % per == 0 && rows % per == 0 && r0 == cols / per;
    if (!awq && !gptq) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s.qweight is %" PRId64 " x %" PRId64
                         ", neither GPTQ nor AWQ with 4 or GPTQ with 8 bits of a matrix of %" PRId64
                         " x %" PRId64,
                         module, r0, r1, rows, cols);
    }
    c.groups = z->ndim == 2 ? z->shape[0] : 0;
    CMOE_TRY(cmoe__tensor_shape(z, 2, (const int64_t[]){c.groups, rows / per}));
    if (c.groups < 1 || c.groups > cols) {
        return CMOE_FAIL(CMOE_ERR_CORRUPT,
                         "tensor %s.qzeros has %" PRId64 " groups for %" PRId64 " columns", module,
                         c.groups, cols);
    }
    CMOE_TRY(allocate(r, &c));
    CMOE_TRY(read_scales(r, module, &c));
    CMOE_TRY(cmoe__tensor_data(r, w, sizeof(int32_t), &qweight));
    CMOE_TRY(cmoe__tensor_data(r, z, sizeof(int32_t), &qzeros));
    CMOE_TRY(awq ? unpack_awq(&c, qweight, qzeros) : unpack_gptq(r, &c, qweight, qzeros));
    if (!awq) CMOE_TRY(read_g_idx(r, module, ".g_idx", &c));
    return finish(r, module, &c, out);
}

/* ---- compressed-tensors ---- */

/* Zero points [ceil(rows * bits / 32), groups] i32, packed along the outputs, the middle added. */
static void unpack_zeros(const struct codes *c, const void *packed, uint8_t *out)
{
    const int per = 32 / c->bits;
    const uint32_t mask = (1u << c->bits) - 1;
    for (int64_t row = 0; row < c->rows; row++) {
        for (int64_t g = 0; g < c->groups; g++) {
            const uint32_t word = word_at(packed, row / per * c->groups + g);
            out[row * c->groups + g] = (uint8_t)(word >> (row % per * c->bits) & mask);
        }
    }
}

static cmoe_status read_zeros(const struct cmoe_reading *r, const char *module, struct codes *c)
{
    const cmoe_tensor_info *const t = cmoe__tensor_find(r, module, ".weight_zero_point");
    const size_t n = (size_t)c->rows * (size_t)c->groups;
    const int per = 32 / c->bits;
    if (!t) return CMOE_OK;
    CMOE_TRY(cmoe__tensor_shape(t, 2, (const int64_t[]){(c->rows + per - 1) / per, c->groups}));
    if (!cmoe__tensor_is(t, "I32")) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED, "tensor %s has the type %s; packed I32 is read",
                         cmoe__quote(t->name).text, t->dtype);
    }
    c->zeros = cmoe__layer_alloc(r->layer, n);
    if (!c->zeros) return cmoe__fail_memory(n, "zero points");
    unpack_zeros(c, t->data, c->zeros);
    return CMOE_OK;
}

/* The scales as the format has them: f32, bf16 and f16 a group in place, f32 a row. */
static cmoe_status packed_scales(const struct cmoe_reading *r, const cmoe_tensor_info *t,
                                 const struct codes *c, cmoe_format *f, const void **out)
{
    const cmoe_dtype dtype = cmoe__tensor_float(t);
    if (f->scaling == CMOE_SCALE_GROUP && dtype != CMOE_NONE) {
        f->scale_dtype = (uint8_t)(dtype == CMOE_F32 ? CMOE_NONE : dtype);
        return cmoe__tensor_data(r, t, (size_t)cmoe_dtype_bits(dtype) / 8, out);
    }
    const float *values = NULL;
    CMOE_TRY(cmoe__tensor_f32(r, t, c->rows * c->groups, &values));
    *out = values;
    return CMOE_OK;
}

/* Decode: the groups are those of g_idx, or of a size that the canonical layout lacks. */
static cmoe_status packed_dense(struct cmoe_reading *r, const char *module,
                                const cmoe_tensor_info *w, const cmoe_tensor_info *scale,
                                struct codes *c, cmoe_matrix *out)
{
    const int per = 32 / c->bits;
    const uint32_t mask = (1u << c->bits) - 1;
    const uint8_t *const zeros = c->zeros;
    const float *scales = NULL;
    CMOE_TRY(cmoe__tensor_f32(r, scale, c->rows * c->groups, &scales));
    CMOE_TRY(allocate(r, c));
    memcpy(c->scales, scales, (size_t)(c->rows * c->groups) * sizeof(float));
    memset(c->zeros, 1 << (c->bits - 1), (size_t)(c->rows * c->groups));
    if (zeros) memcpy(c->zeros, zeros, (size_t)(c->rows * c->groups));
    for (int64_t row = 0; row < c->rows; row++) {
        for (int64_t col = 0; col < c->cols; col++) {
            const uint32_t word = word_at(w->data, row * w->shape[1] + col / per);
            c->values[row * c->cols + col] = (uint8_t)(word >> (col % per * c->bits) & mask);
        }
    }
    return finish(r, module, c, out);
}

cmoe_status cmoe__linear_packed(struct cmoe_reading *r, const char *module, int64_t rows,
                                int64_t cols, cmoe_matrix *out)
{
    const cmoe_tensor_info *w = NULL, *scale = NULL;
    CMOE_TRY(cmoe__tensor_need(r, module, ".weight_packed", &w));
    CMOE_TRY(cmoe__tensor_need(r, module, ".weight_scale", &scale));
    const int64_t words = w->ndim == 2 && w->shape[0] == rows ? w->shape[1] : -1;
    const int bits = words == (cols + 7) / 8 ? 4 : words == (cols + 3) / 4 ? 8 : 0;
    if (bits == 0 || !cmoe__tensor_is(w, "I32")) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s.weight_packed is %s with %" PRId64 " words a row, not integers "
                         "of 4 or 8 bits of a matrix of %" PRId64 " x %" PRId64,
                         module, w->dtype, words, rows, cols);
    }
    struct codes c = {.rows = rows, .cols = cols, .bits = bits, .groups = 1};
    if (scale->ndim == 2) c.groups = scale->shape[1];
    if (scale->ndim < 1 || scale->ndim > 2 || scale->shape[0] != rows || c.groups < 1 ||
        c.groups > cols) {
        return CMOE_FAIL(CMOE_ERR_UNSUPPORTED,
                         "tensor %s is no scale a row or a group of columns of %" PRId64
                         " x %" PRId64,
                         cmoe__quote(scale->name).text, rows, cols);
    }
    bool valid = true;
    cmoe_format f = group_format(r, cols, c.groups);
    CMOE_TRY(read_g_idx(r, module, ".weight_g_idx", &c));
    CMOE_TRY(read_zeros(r, module, &c));
    if (f.scaling == CMOE_SCALE_NONE || !consecutive(&c, &valid)) r->wants_dense = true;
    if (r->dense) return packed_dense(r, module, w, scale, &c, out);
    if (r->wants_dense) return CMOE_OK;
    f.dtype = bits == 4 ? CMOE_U4 : CMOE_U8;
    f.zero = c.zeros != NULL;
    *out = (cmoe_matrix){.data = w->data, .row_stride = words * 4, .zero = c.zeros};
    CMOE_TRY(packed_scales(r, scale, &c, &f, &out->scale));
    return cmoe__reading_format(r, module, f);
}
