/* SPDX-License-Identifier: MIT
 * The public conversions of elements and of activation rows: arguments checked, then numeric.h. */
#include <cmoe/convert.h>

#include "core/fail.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"
#include <string.h>

float cmoe_decode(cmoe_dtype dtype, uint32_t code)
{
    return cmoe__decode(dtype, code);
}

uint32_t cmoe_encode(cmoe_dtype dtype, float v)
{
    return cmoe__encode(dtype, v, CMOE_ROUND_NEAREST_EVEN);
}

static cmoe_status check_element(cmoe_dtype dtype)
{
    const cmoe_format plain = {.dtype = (uint8_t)dtype, .scaling = CMOE_SCALE_NONE};
    if ((unsigned)dtype >= CMOE_DTYPE_COUNT)
        return CMOE_FAIL(CMOE_ERR_INVALID, "dtype %d is none of the %d there are", (int)dtype,
                         CMOE_DTYPE_COUNT);
    return cmoe__format_check(plain, true);
}

cmoe_status cmoe_convert(cmoe_dtype to, void *dst, cmoe_dtype from, const void *src, int64_t n)
{
    enum { CHUNK = 256 };
    CMOE_TRY(check_element(to));
    CMOE_TRY(check_element(from));
    if (n < 0) return CMOE_FAIL(CMOE_ERR_INVALID, "n is %lld, less than 0", (long long)n);
    if (n == 0) return CMOE_OK;
    if (!dst || !src) return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL", dst ? "src" : "dst");
    const size_t from_step = cmoe_dtype_bytes(from, CHUNK), to_step = cmoe_dtype_bytes(to, CHUNK);
    const uint8_t *in = src;
    uint8_t *out = dst;
    for (int64_t first = 0; first < n; first += CHUNK, in += from_step, out += to_step) {
        const int64_t count = cmoe__min64(CHUNK, n - first);
        float values[CHUNK];
        if (to == from) {
            memmove(out, in, cmoe_dtype_bytes(to, count));
            continue;
        }
        cmoe__load_row(from, in, count, values);
        cmoe__store_row(to, out, count, values);
    }
    return CMOE_OK;
}

/* Byte `offset` of a buffer that may be absent. */
static void *at(const void *base, size_t offset)
{
    return base ? (uint8_t *)base + offset : NULL;
}

/* What both directions of activation rows need. */
static cmoe_status check_rows(cmoe_format f, int64_t rows, int64_t cols, const void *scale)
{
    CMOE_TRY(cmoe__format_check(f, false));
    CMOE_TRY(cmoe_format_bytes(f, rows, cols, NULL, NULL, NULL));
    size_t values;
    if (!cmoe__mul_size((size_t)rows, (size_t)cols, &values) ||
        !cmoe__mul_size(values, sizeof(float), &values))
        return CMOE_FAIL(CMOE_ERR_OVERFLOW, "%lld rows of %lld values do not fit", (long long)rows,
                         (long long)cols);
    if (f.scaling != CMOE_SCALE_NONE && f.scaling != CMOE_SCALE_TENSOR && !scale && values > 0)
        return CMOE_FAIL(CMOE_ERR_INVALID, "scale is NULL, but the format has scales");
    return CMOE_OK;
}

cmoe_status cmoe_quantize_rows(cmoe_format f, const float *src, int64_t rows, int64_t cols,
                               const float *fixed, void *codes, void *scale, float *global)
{
    CMOE_TRY(check_rows(f, rows, cols, scale));
    if (f.fixed && !fixed)
        return CMOE_FAIL(CMOE_ERR_INVALID, "fixed is NULL, but the format has a static scale");
    if (rows == 0 || cols == 0) return CMOE_OK;
    if (!src || !codes) return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL", src ? "codes" : "src");
    if (f.scaling == CMOE_SCALE_NV && !fixed && !global)
        return CMOE_FAIL(CMOE_ERR_INVALID,
                         "global is NULL, but nv16 has a multiplier for each row");
    if (f.scaling == CMOE_SCALE_TENSOR && !fixed && !scale)
        return CMOE_FAIL(CMOE_ERR_INVALID, "fixed and scale are both NULL");
    float tensor = 1;
    if (f.scaling == CMOE_SCALE_TENSOR) {
        tensor =
            fixed ? *fixed : cmoe__scale_f32((cmoe_dtype)f.dtype, cmoe__amax(src, rows * cols));
        if (scale) cmoe__store(CMOE_F32, scale, 0, tensor);
        fixed = &tensor;
    }
    const size_t code_step = cmoe__row_code_bytes(f, cols);
    const size_t scale_step = cmoe__row_scale_bytes(f, cols);
    for (int64_t r = 0; r < rows; r++)
        cmoe__quantize_row(f, src + r * cols, cols, fixed, (uint8_t *)codes + (size_t)r * code_step,
                           at(scale, (size_t)r * scale_step), global ? global + r : NULL);
    return CMOE_OK;
}

/* One row through a small buffer; `tensor`: the TENSOR scale. */
static void dequantize_row(cmoe_format f, const uint8_t *codes, const void *scale, float tensor,
                           float global, int64_t cols, float *dst)
{
    enum { CHUNK = 256 }; /* a multiple of every group */
    const float *const fixed = f.scaling == CMOE_SCALE_TENSOR ? &tensor : NULL;
    const bool one_scale = cmoe__format_span(f, cols) == cols;
    double exact[CHUNK];
    for (int64_t first = 0; first < cols; first += CHUNK) {
        const int64_t count = cmoe__min64(CHUNK, cols - first);
        const size_t offset = one_scale ? 0 : cmoe__row_scale_bytes(f, first);
        cmoe__dequantize_row_f64(f, codes + cmoe__row_code_bytes(f, first), at(scale, offset),
                                 fixed, &global, count, exact);
        for (int64_t i = 0; i < count; i++)
            dst[first + i] = cmoe__f64_to_f32(exact[i]);
    }
}

cmoe_status cmoe_dequantize_rows(cmoe_format f, const void *codes, const void *scale,
                                 const float *global, int64_t rows, int64_t cols, float *dst)
{
    CMOE_TRY(check_rows(f, rows, cols, scale));
    if (rows == 0 || cols == 0) return CMOE_OK;
    if (!codes || !dst) return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL", codes ? "dst" : "codes");
    if (f.scaling == CMOE_SCALE_TENSOR && !scale)
        return CMOE_FAIL(CMOE_ERR_INVALID, "scale is NULL, but the format has scales");
    if (f.scaling == CMOE_SCALE_NV && !global)
        return CMOE_FAIL(CMOE_ERR_INVALID, "global is NULL, but nv16 needs it");
    const size_t code_step = cmoe__row_code_bytes(f, cols);
    const size_t scale_step = cmoe__row_scale_bytes(f, cols);
    const float tensor = f.scaling == CMOE_SCALE_TENSOR ? cmoe__load(CMOE_F32, scale, 0) : 1.0F;
    for (int64_t r = 0; r < rows; r++)
        dequantize_row(f, (const uint8_t *)codes + (size_t)r * code_step,
                       at(scale, (size_t)r * scale_step), tensor,
                       global ? global[f.fixed ? 0 : r] : 1.0F, cols, dst + r * cols);
    return CMOE_OK;
}
