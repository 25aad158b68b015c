/* SPDX-License-Identifier: MIT
 * Weight matrices to codes, scales and zero points: docs/numerics.md section 2.
 *
 * Matrix-wide scales (TENSOR, NV's global) are found in a first pass, scales of 128 x 128 blocks
 * when a row of blocks begins; everything else belongs to one row. */
#include "core/fail.h"
#include "core/float_bits.h"
#include "core/format.h"
#include "core/quantize.h"
#include "core/size.h"
#include "core/weights.h"
#include <cmoe/convert.h>

struct matrix {
    cmoe_format f;
    const float *src;
    int64_t rows, cols;
    uint8_t *codes;
    size_t code_stride;
    void *scale;
    uint8_t *zero;
};

/* Symmetric integers leave out their lowest value; unsigned ones are centred (L = 7 or 127). */
static float weight_max(cmoe_dtype dtype)
{
    return dtype == CMOE_U4 ? 7.0F : dtype == CMOE_U8 ? 127.0F : cmoe__dtype_max(dtype);
}

/* The scale as its type can hold it, between the smallest that is not 0 and the largest finite. */
static float round_scale(cmoe_dtype dtype, float s)
{
    if (dtype == CMOE_F32 || cmoe__f32_isnan(s)) return s;
    const float stored = cmoe__decode(dtype, cmoe__encode(dtype, s, CMOE_ROUND_NEAREST_EVEN));
    if (cmoe__f32_magnitude(stored) == 0) return 1.0F;
    return cmoe__f32_isfinite(stored) ? stored : cmoe__dtype_max(dtype);
}

static float symmetric_scale(cmoe_format f, float amax)
{
    const float s = cmoe__scale_from(amax, weight_max((cmoe_dtype)f.dtype));
    return round_scale(cmoe__format_scale_dtype(f), s);
}

static bool is_integer(cmoe_dtype dtype)
{
    return dtype == CMOE_I8 || dtype == CMOE_U8 || dtype == CMOE_I4 || dtype == CMOE_U4;
}

/* v / s to the nearest integer. */
static int32_t steps(float v, float s)
{
    return cmoe__round_to_int(cmoe__f32_widen(cmoe__div_f32(v, s)), CMOE_ROUND_NEAREST_EVEN);
}

static int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Columns [first, end) of a row whose scale is known; unsigned codes are offset to their middle. */
static void quantize_symmetric(const struct matrix *m, int64_t row, int64_t first, int64_t end,
                               float s)
{
    const cmoe_dtype dtype = (cmoe_dtype)m->f.dtype;
    const float *const v = m->src + row * m->cols;
    uint8_t *const codes = m->codes + (size_t)row * m->code_stride;
    if (!is_integer(dtype)) {
        cmoe__quantize_span(m->f, v, first, end, s, codes);
        return;
    }
    const int32_t limit = (int32_t)weight_max(dtype);
    const int32_t offset = cmoe__format_zero_point(dtype);
    for (int64_t i = first; i < end; i++)
        cmoe__append_code(dtype, codes, i,
                          (uint32_t)(clamp(steps(v[i], s), -limit, limit) + offset));
}

/* The same with a zero point; returns the scale. Doubles compare and subtract floats exactly
 * enough: their difference rounds to the right float. */
static float quantize_asymmetric(const struct matrix *m, int64_t row, int64_t first, int64_t end,
                                 uint8_t *zero)
{
    const cmoe_dtype dtype = (cmoe_dtype)m->f.dtype;
    const float *const v = m->src + row * m->cols;
    uint8_t *const codes = m->codes + (size_t)row * m->code_stride;
    const int32_t levels = dtype == CMOE_U4 ? 15 : 255;
    double low = 0, high = 0;
    for (int64_t i = first; i < end; i++) {
        const double value = cmoe__f32_widen(v[i]);
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    const float amax = cmoe__amax(v + first, end - first);
    const float range = cmoe__f64_to_f32(high - low);
    const float bad = cmoe__f32_isfinite(amax) ? range : amax;
    const float s =
        round_scale(cmoe__format_scale_dtype(m->f), cmoe__scale_from(bad, (float)levels));
    const int32_t z = clamp(steps(cmoe__f64_to_f32(-low), s), 0, levels);
    for (int64_t i = first; i < end; i++)
        cmoe__append_code(dtype, codes, i, (uint32_t)clamp(steps(v[i], s) + z, 0, levels));
    *zero = (uint8_t)z;
    return s;
}

/* Rows whose scales are their own: CHANNEL, GROUP. */
static void quantize_own_scales(const struct matrix *m, int64_t row)
{
    const cmoe_dtype scale_dtype = cmoe__format_scale_dtype(m->f);
    const int64_t span = cmoe__format_span(m->f, m->cols);
    const float *const v = m->src + row * m->cols;
    int64_t index = row * cmoe__format_row_scales(m->f, m->cols);
    for (int64_t first = 0; first < m->cols; first += span, index++) {
        const int64_t end = cmoe__min64(first + span, m->cols);
        float s;
        if (m->f.zero) {
            s = quantize_asymmetric(m, row, first, end, m->zero + index);
        } else {
            s = symmetric_scale(m->f, cmoe__amax(v + first, end - first));
            quantize_symmetric(m, row, first, end, s);
        }
        cmoe__store(scale_dtype, m->scale, index, s);
    }
}

/* The block row that begins at `row`. */
static void quantize_blocks(const struct matrix *m, int64_t row)
{
    const int64_t end_row = cmoe__min64(row + 128, m->rows);
    int64_t index = row / 128 * cmoe__format_row_scales(m->f, m->cols);
    for (int64_t first = 0; first < m->cols; first += 128, index++) {
        const int64_t end = cmoe__min64(first + 128, m->cols);
        float amax[128];
        for (int64_t r = row; r < end_row; r++)
            amax[r - row] = cmoe__amax(m->src + r * m->cols + first, end - first);
        const float s = symmetric_scale(m->f, cmoe__amax(amax, end_row - row));
        cmoe__store(CMOE_F32, m->scale, index, s);
        for (int64_t r = row; r < end_row; r++)
            quantize_symmetric(m, r, first, end, s);
    }
}

static void quantize_matrix(const struct matrix *m, float *global)
{
    const cmoe_scaling scaling = (cmoe_scaling)m->f.scaling;
    const int64_t blocks = cmoe__format_row_scales(m->f, m->cols);
    float whole = 1;
    if (scaling == CMOE_SCALE_TENSOR) {
        whole = symmetric_scale(m->f, cmoe__amax(m->src, m->rows * m->cols));
        cmoe__store(CMOE_F32, m->scale, 0, whole);
    } else if (scaling == CMOE_SCALE_NV) {
        *global = whole = cmoe__scale_nv_global(cmoe__amax(m->src, m->rows * m->cols));
    }
    for (int64_t row = 0; row < m->rows; row++) {
        const float *const v = m->src + row * m->cols;
        uint8_t *const codes = m->codes + (size_t)row * m->code_stride;
        uint8_t *const bytes = m->scale; /* MX, NV: scales are bytes */
        if (scaling == CMOE_SCALE_NONE)
            cmoe__store_row((cmoe_dtype)m->f.dtype, codes, m->cols, v);
        else if (scaling == CMOE_SCALE_TENSOR)
            quantize_symmetric(m, row, 0, m->cols, whole);
        else if (scaling == CMOE_SCALE_MX)
            cmoe__quantize_mx(m->f, v, m->cols, codes, bytes + row * blocks);
        else if (scaling == CMOE_SCALE_NV)
            cmoe__quantize_nv(m->f, v, m->cols, whole, codes, bytes + row * blocks);
        else if (scaling == CMOE_SCALE_BLOCK && row % 128 == 0)
            quantize_blocks(m, row);
        else if (scaling != CMOE_SCALE_BLOCK)
            quantize_own_scales(m, row);
    }
}

cmoe_status cmoe_quantize_weight(cmoe_format f, const float *src, int64_t rows, int64_t cols,
                                 void *codes, void *scale, uint8_t *zero, float *global)
{
    CMOE_TRY(cmoe__format_check(f, true));
    size_t code_bytes;
    CMOE_TRY(cmoe_format_bytes(f, rows, cols, &code_bytes, NULL, NULL));
    if (f.scaling == CMOE_SCALE_NV && !global)
        return CMOE_FAIL(CMOE_ERR_INVALID, "global is NULL, but nv16 has a global multiplier");
    if (code_bytes == 0) {
        if (global) *global = 1;
        return CMOE_OK;
    }
    if (!src || !codes) return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL", src ? "codes" : "src");
    if (f.scaling != CMOE_SCALE_NONE && !scale)
        return CMOE_FAIL(CMOE_ERR_INVALID, "scale is NULL, but the format has scales");
    if (f.zero && !zero)
        return CMOE_FAIL(CMOE_ERR_INVALID, "zero is NULL, but the format has zero points");
    f.rounding = CMOE_ROUND_NEAREST_EVEN;
    const struct matrix m = {
        .f = f,
        .src = src,
        .rows = rows,
        .cols = cols,
        .codes = codes,
        .code_stride = cmoe__row_code_bytes(f, cols),
        .scale = scale,
        .zero = zero,
    };
    quantize_matrix(&m, global);
    return CMOE_OK;
}

cmoe_status cmoe_dequantize_weight(cmoe_format f, const cmoe_matrix *m, int64_t rows, int64_t cols,
                                   float *dst)
{
    CMOE_TRY(cmoe__format_check(f, true));
    size_t code_bytes;
    CMOE_TRY(cmoe_format_bytes(f, rows, cols, &code_bytes, NULL, NULL));
    if (code_bytes == 0) return CMOE_OK;
    if (!m || !dst) return CMOE_FAIL(CMOE_ERR_INVALID, "%s is NULL", m ? "dst" : "the matrix");
    CMOE_TRY(cmoe__matrix_check(f, m, rows, cols, "the matrix"));
    for (int64_t row = 0; row < rows; row++) {
        struct cmoe_row place;
        cmoe__matrix_row(f, m, row, row / 128, cols, &place);
        cmoe__row_decode_f32(f, &place, cols, dst + row * cols);
    }
    return CMOE_OK;
}
