/* SPDX-License-Identifier: MIT
 * One canonical matrix: whether its view is complete, where its rows are, and how a fused tensor
 * of all experts is cut into such views. */
#include "core/fail.h"
#include "core/format.h"
#include "core/size.h"
#include "core/weights.h"
#include <cmoe/convert.h>
#include <string.h>

static cmoe_status check_pointers(cmoe_format f, const cmoe_matrix *m, const char *name)
{
    if (!m->data) return CMOE_FAIL(CMOE_ERR_INVALID, "%s has no data", name);
    if (f.scaling != CMOE_SCALE_NONE && !m->scale)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s has no scales, but its format needs them", name);
    if (f.zero && !m->zero)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s has no zero points, but its format needs them",
                         name);
    if (f.scaling == CMOE_SCALE_NV && !m->global)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s has no global multiplier, but nv16 needs one", name);
    return CMOE_OK;
}

/* Bytes that `n` steps of `stride` and one more item of `item` bytes span, or -1. */
static int64_t extent(int64_t n, int64_t stride, int64_t item)
{
    int64_t bytes;
    if (__builtin_mul_overflow(n - 1, stride, &bytes) ||
        __builtin_add_overflow(bytes, item, &bytes))
        return -1;
    return bytes;
}

cmoe_status cmoe__matrix_check(cmoe_format f, const cmoe_matrix *m, int64_t rows, int64_t cols,
                               const char *name)
{
    const int bits = cmoe_dtype_bits((cmoe_dtype)f.dtype);
    const int64_t row_bytes = (int64_t)cmoe_dtype_bytes((cmoe_dtype)f.dtype, cols);
    CMOE_TRY(check_pointers(f, m, name));
    if (m->col_stride != 0 && bits < 8)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s has a column stride, which %s cannot have", name,
                         cmoe_dtype_name((cmoe_dtype)f.dtype));
    if (m->col_stride != 0 && m->col_stride < bits / 8)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "%s: column stride %lld is less than an element's %d bytes", name,
                         (long long)m->col_stride, bits / 8);
    const int64_t least = m->col_stride > bits / 8 ? bits / 8 : row_bytes;
    if (m->row_stride != 0 && m->row_stride < least)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s: row stride %lld is less than %lld bytes", name,
                         (long long)m->row_stride, (long long)least);
    const int64_t row = m->col_stride ? extent(cols, m->col_stride, bits / 8) : row_bytes;
    if (row < 0 || extent(rows, m->row_stride ? m->row_stride : least, row) < 0)
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "%s: strides %lld and %lld do not fit %lld x %lld",
                         name, (long long)m->row_stride, (long long)m->col_stride, (long long)rows,
                         (long long)cols);
    return CMOE_OK;
}

void cmoe__matrix_row(cmoe_format f, const cmoe_matrix *m, int64_t row, int64_t grid, int64_t cols,
                      struct cmoe_row *out)
{
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    const int64_t element = cmoe_dtype_bits(dtype) / 8;
    int64_t stride = m->row_stride;
    if (stride == 0)
        stride = m->col_stride > element ? element : (int64_t)cmoe_dtype_bytes(dtype, cols);
    *out = (struct cmoe_row){
        .codes = (const uint8_t *)m->data + row * stride,
        .col_stride = m->col_stride == element ? 0 : m->col_stride,
        .global = 1,
    };
    if (f.scaling == CMOE_SCALE_NONE) return;
    const int64_t scale_row = f.scaling == CMOE_SCALE_TENSOR  ? 0
                              : f.scaling == CMOE_SCALE_BLOCK ? grid
                                                              : row;
    const int64_t first = scale_row * cmoe__format_row_scales(f, cols);
    const int64_t size = cmoe_dtype_bits(cmoe__format_scale_dtype(f)) / 8;
    out->scale = (const uint8_t *)m->scale + first * size;
    if (f.zero) out->zero = m->zero + first;
    if (f.scaling == CMOE_SCALE_NV) memcpy(&out->global, m->global, sizeof out->global);
}

/* Bytes of codes, scales and zero points from one expert to the next. */
struct step {
    size_t data, scale, zero;
};

static cmoe_status fused_step(const cmoe_fused *fused, cmoe_format f, struct step *out)
{
    CMOE_TRY(cmoe_format_bytes(f, fused->rows, fused->cols, &out->data, &out->scale, &out->zero));
    if (fused->transposed)
        CMOE_TRY(cmoe_format_bytes(f, fused->cols, fused->rows, &out->data, NULL, NULL));
    if (f.scaling == CMOE_SCALE_BLOCK && fused->scale_rows > 0) {
        const size_t row = 4 * (size_t)cmoe__format_row_scales(f, fused->cols);
        if (!cmoe__mul_size((size_t)fused->scale_rows, row, &out->scale))
            return CMOE_FAIL(CMOE_ERR_OVERFLOW, "a grid of %lld rows of scales does not fit",
                             (long long)fused->scale_rows);
    }
    size_t total;
    if (!cmoe__mul_size(out->data, (size_t)fused->experts, &total) || total > INT64_MAX)
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "%d experts of %zu bytes do not fit", fused->experts,
                         out->data);
    return CMOE_OK;
}

static cmoe_status check_fused(const cmoe_fused *fused, cmoe_format f, const cmoe_matrix *out)
{
    CMOE_TRY(cmoe__format_check(f, true));
    if (fused->experts < 0 || fused->rows <= 0 || fused->cols <= 0)
        return CMOE_FAIL(CMOE_ERR_INVALID, "a fused tensor of %d experts of %lld x %lld is empty",
                         fused->experts, (long long)fused->rows, (long long)fused->cols);
    if (fused->experts > 0 && !out) return CMOE_FAIL(CMOE_ERR_INVALID, "out is NULL");
    if (fused->transposed && cmoe_dtype_bits((cmoe_dtype)f.dtype) < 8)
        return CMOE_FAIL(CMOE_ERR_INVALID, "%s cannot be transposed: two columns share a byte",
                         cmoe_dtype_name((cmoe_dtype)f.dtype));
    const int64_t grid = cmoe__ceil_div(fused->rows, 128);
    if (fused->scale_rows != 0 && (f.scaling != CMOE_SCALE_BLOCK || fused->scale_rows < grid))
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "scale_rows is %lld: it is for b128 and at least ceil(%lld / 128) = %lld",
                         (long long)fused->scale_rows, (long long)fused->rows, (long long)grid);
    const cmoe_matrix whole = {
        .data = fused->data, .scale = fused->scale, .zero = fused->zero, .global = fused->global};
    return check_pointers(f, &whole, "the fused tensor");
}

cmoe_status cmoe_matrix_split(const cmoe_fused *fused, cmoe_format f, cmoe_matrix *out)
{
    if (!fused) return CMOE_FAIL(CMOE_ERR_INVALID, "the fused tensor is NULL");
    CMOE_TRY(check_fused(fused, f, out));
    struct step step;
    CMOE_TRY(fused_step(fused, f, &step));
    const int64_t element = cmoe_dtype_bits((cmoe_dtype)f.dtype) / 8;
    for (int e = 0; e < fused->experts; e++) {
        const size_t i = (size_t)e;
        out[e] = (cmoe_matrix){.data = (const uint8_t *)fused->data + i * step.data};
        if (fused->transposed) {
            out[e].row_stride = element;
            out[e].col_stride = fused->rows * element;
        }
        if (f.scaling != CMOE_SCALE_NONE)
            out[e].scale = (const uint8_t *)fused->scale + i * step.scale;
        if (f.zero) out[e].zero = fused->zero + i * step.zero;
        if (f.scaling == CMOE_SCALE_NV) out[e].global = fused->global + i;
        if (fused->bias) out[e].bias = fused->bias + (int64_t)e * fused->rows;
        if (fused->smooth) out[e].smooth = fused->smooth + (int64_t)e * fused->cols;
    }
    return CMOE_OK;
}
