/* SPDX-License-Identifier: MIT
 * One activation row to codes and scales and back: docs/numerics.md section 2.
 *
 * A row is cut into the spans that share a scale; every span is quantised the same way once its
 * scale is known. */
#include "core/quantize.h"
#include "core/float_bits.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"

static uint32_t nan_code(cmoe_dtype dtype)
{
    return cmoe__encode(dtype, cmoe__f32_from_bits(CMOE_F32_NAN), CMOE_ROUND_NEAREST_EVEN);
}

void cmoe__quantize_span(cmoe_format f, const float *v, int64_t first, int64_t end, float scale,
                         void *codes)
{
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    for (int64_t i = first; i < end; i++) {
        const float q = cmoe__div_f32(v[i], scale);
        cmoe__append_code(dtype, codes, i, cmoe__encode(dtype, q, (cmoe_rounding)f.rounding));
    }
}

/* The scale is 2^(code - 127): v / scale is exact in a double, so there is one rounding. */
static void quantize_span_mx(cmoe_format f, const float *v, int64_t first, int64_t end,
                             uint8_t scale, void *codes)
{
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    const double inverse = cmoe__f64_from_bits((uint64_t)(1023 + 127 - scale) << 52);
    for (int64_t i = first; i < end; i++) {
        uint32_t code = nan_code(dtype);
        if (cmoe__f32_isnan(v[i]))
            code = cmoe__encode(dtype, v[i], CMOE_ROUND_NEAREST_EVEN);
        else if (scale != 255)
            code =
                cmoe__encode_f64(dtype, cmoe__f32_widen(v[i]) * inverse, (cmoe_rounding)f.rounding);
        cmoe__append_code(dtype, codes, i, code);
    }
}

void cmoe__quantize_mx(cmoe_format f, const float *v, int64_t n, void *codes, uint8_t *scale)
{
    for (int64_t first = 0; first < n; first += 32) {
        const int64_t end = cmoe__min64(first + 32, n);
        const uint8_t s = cmoe__scale_e8m0((cmoe_dtype)f.dtype, cmoe__amax(v + first, end - first),
                                           (cmoe_mx_rounding)f.mx_rounding);
        quantize_span_mx(f, v, first, end, s, codes);
        *scale++ = s;
    }
}

void cmoe__quantize_nv(cmoe_format f, const float *v, int64_t n, float global, void *codes,
                       uint8_t *scale)
{
    for (int64_t first = 0; first < n; first += 16) {
        const int64_t end = cmoe__min64(first + 16, n);
        const float amax = cmoe__amax(v + first, end - first);
        const uint8_t block = cmoe__scale_nv_block(amax, global);
        const float s = cmoe__mul_f32(cmoe__decode(CMOE_E4M3, block), global);
        const uint32_t magnitude = cmoe__f32_magnitude(s);
        if (cmoe__f32_isfinite(amax) && (magnitude == 0 || magnitude >= CMOE_F32_INF)) {
            for (int64_t i = first; i < end; i++)
                cmoe__append_code((cmoe_dtype)f.dtype, codes, i, 0);
        } else {
            cmoe__quantize_span(f, v, first, end, s, codes);
        }
        *scale++ = block;
    }
}

static void quantize_groups(cmoe_format f, const float *v, int64_t n, void *codes, void *scale)
{
    for (int64_t first = 0, g = 0; first < n; first += f.group, g++) {
        const int64_t end = cmoe__min64(first + f.group, n);
        const float s = cmoe__scale_f32((cmoe_dtype)f.dtype, cmoe__amax(v + first, end - first));
        cmoe__store(CMOE_F32, scale, g, s);
        cmoe__quantize_span(f, v, first, end, s, codes);
    }
}

void cmoe__quantize_row(cmoe_format f, const float *v, int64_t n, const float *fixed, void *codes,
                        void *scale, float *global)
{
    switch ((cmoe_scaling)f.scaling) {
    case CMOE_SCALE_TENSOR:
        cmoe__quantize_span(f, v, 0, n, *fixed, codes);
        return;
    case CMOE_SCALE_TOKEN:
    case CMOE_SCALE_SMOOTH: {
        const float s = cmoe__scale_f32((cmoe_dtype)f.dtype, cmoe__amax(v, n));
        cmoe__store(CMOE_F32, scale, 0, s);
        cmoe__quantize_span(f, v, 0, n, s, codes);
        return;
    }
    case CMOE_SCALE_GROUP:
        quantize_groups(f, v, n, codes, scale);
        return;
    case CMOE_SCALE_MX:
        cmoe__quantize_mx(f, v, n, codes, scale);
        return;
    case CMOE_SCALE_NV: {
        float g;
        if (fixed || f.fixed)
            g = fixed ? *fixed : *global;
        else
            *global = g = cmoe__scale_nv_global(cmoe__amax(v, n));
        cmoe__quantize_nv(f, v, n, g, codes, scale);
        return;
    }
    case CMOE_SCALE_NONE:
    case CMOE_SCALE_CHANNEL: /* of weights only */
    case CMOE_SCALE_BLOCK:
    case CMOE_SCALING_COUNT:
        break;
    }
    cmoe__store_row((cmoe_dtype)f.dtype, codes, n, v);
}

void cmoe__dequantize_row_f64(cmoe_format f, const void *codes, const void *scale,
                              const float *fixed, const float *global, int64_t n, double *out)
{
    const int64_t span = cmoe__format_span(f, n);
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    for (int64_t first = 0, g = 0; first < n; first += span, g++) {
        double s = 1;
        if (f.scaling == CMOE_SCALE_TENSOR)
            s = cmoe__f32_widen(*fixed);
        else if (f.scaling == CMOE_SCALE_MX)
            s = cmoe__f32_widen(cmoe__load(CMOE_E8M0, scale, g));
        else if (f.scaling == CMOE_SCALE_NV)
            s = cmoe__f32_widen(cmoe__load(CMOE_E4M3, scale, g)) *
                cmoe__f32_widen(fixed ? *fixed : *global);
        else if (f.scaling != CMOE_SCALE_NONE)
            s = cmoe__f32_widen(cmoe__load(CMOE_F32, scale, g));
        const int64_t end = cmoe__min64(first + span, n);
        for (int64_t i = first; i < end; i++)
            out[i] = cmoe__f32_widen(cmoe__load(dtype, codes, i)) * s;
    }
}

size_t cmoe__row_code_bytes(cmoe_format f, int64_t n)
{
    return cmoe_dtype_bytes((cmoe_dtype)f.dtype, n);
}

size_t cmoe__row_scale_bytes(cmoe_format f, int64_t n)
{
    if (f.scaling == CMOE_SCALE_NONE || f.scaling == CMOE_SCALE_TENSOR) return 0;
    return cmoe_dtype_bytes(cmoe__format_scale_dtype(f), cmoe__format_row_scales(f, n));
}
