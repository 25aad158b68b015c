/* SPDX-License-Identifier: MIT
 * Rows of a weight matrix to numbers.
 *
 * A row is decoded in chunks that share a scale and fit a small buffer. Within a chunk the element
 * type is decided once; 4-bit codes go through a table of 16 scaled values. code * scale is exact
 * in fp64, so the caller's rounding mode has no say. */
#include "core/float_bits.h"
#include "core/format.h"
#include "core/numeric.h"
#include "core/size.h"
#include "core/weights.h"

enum { CHUNK = 128 }; /* a multiple of every span that is smaller than a row */

static double load_scale(cmoe_dtype dtype, const void *scale, int64_t i)
{
    return cmoe__f32_widen(cmoe__load(dtype, scale, i));
}

/* value(code) * s of 16- and 32-bit floats. */
static void decode_wide(cmoe_dtype dtype, const uint8_t *codes, int64_t n, double s, double *out)
{
    if (dtype == CMOE_F32) {
        for (int64_t i = 0; i < n; i++) {
            float v;
            memcpy(&v, codes + 4 * i, sizeof v);
            out[i] = cmoe__f32_widen(v) * s;
        }
    } else if (dtype == CMOE_BF16) {
        for (int64_t i = 0; i < n; i++) {
            uint16_t code;
            memcpy(&code, codes + 2 * i, sizeof code);
            out[i] = cmoe__f32_widen(cmoe__f32_from_bits((uint32_t)code << 16)) * s;
        }
    } else {
        for (int64_t i = 0; i < n; i++) {
            uint16_t code;
            memcpy(&code, codes + 2 * i, sizeof code);
            out[i] = cmoe__f32_widen(cmoe__f16_to_f32(code)) * s;
        }
    }
}

static void decode_bytes(cmoe_dtype dtype, const uint8_t *codes, int64_t n, int zero, double s,
                         double *out)
{
    const float *const table = cmoe__decode_table(dtype);
    if (table) {
        for (int64_t i = 0; i < n; i++)
            out[i] = (double)table[codes[i]] * s;
    } else if (dtype == CMOE_I8) {
        for (int64_t i = 0; i < n; i++)
            out[i] = (double)((int8_t)codes[i] - zero) * s;
    } else {
        for (int64_t i = 0; i < n; i++)
            out[i] = (double)(codes[i] - zero) * s;
    }
}

static void decode_nibbles(cmoe_dtype dtype, const uint8_t *codes, int64_t n, int zero, double s,
                           double *out)
{
    const float *const table = cmoe__decode_table(dtype);
    const int sign = dtype == CMOE_I4 ? 8 : 0;
    double values[16];
    for (int c = 0; c < 16; c++)
        values[c] = (table ? (double)table[c] : (double)((c ^ sign) - sign - zero)) * s;
    for (int64_t i = 0; i < n / 2; i++) {
        out[2 * i] = values[codes[i] & 15];
        out[2 * i + 1] = values[codes[i] >> 4];
    }
    if (n % 2) out[n - 1] = values[codes[n / 2] & 15];
}

/* Codes of `n` strided elements side by side. */
static const uint8_t *gather(const uint8_t *codes, int64_t stride, int64_t n, size_t size,
                             uint8_t *buffer)
{
    for (int64_t i = 0; i < n; i++)
        memcpy(buffer + (size_t)i * size, codes + i * stride, size);
    return buffer;
}

/* Columns [first, first + n), n <= CHUNK, all under one scale. */
static void decode_chunk(cmoe_format f, const struct cmoe_row *row, int64_t span, int64_t first,
                         int64_t n, double *out)
{
    const cmoe_dtype dtype = (cmoe_dtype)f.dtype;
    const int64_t g = first / span;
    const double scale = row->scale ? load_scale(cmoe__format_scale_dtype(f), row->scale, g) : 1.0;
    const double s = f.scaling == CMOE_SCALE_NV ? scale * cmoe__f32_widen(row->global) : scale;
    const int zero = row->zero ? row->zero[g] : cmoe__format_zero_point(dtype);
    const int bits = cmoe_dtype_bits(dtype);
    const uint8_t *codes = row->codes;
    uint8_t buffer[4 * CHUNK];
    if (row->col_stride && bits >= 8)
        codes =
            gather(codes + first * row->col_stride, row->col_stride, n, (size_t)bits / 8, buffer);
    else
        codes += first * bits / 8;
    if (bits == 4)
        decode_nibbles(dtype, codes, n, zero, s, out);
    else if (bits == 8)
        decode_bytes(dtype, codes, n, zero, s, out);
    else
        decode_wide(dtype, codes, n, s, out);
}

void cmoe__row_decode_f64(cmoe_format f, const struct cmoe_row *row, int64_t n, double *out)
{
    const int64_t span = cmoe__format_span(f, n);
    const int64_t step = cmoe__min64(span, CHUNK);
    for (int64_t first = 0; first < n; first += step)
        decode_chunk(f, row, span, first, cmoe__min64(step, n - first), out + first);
}

void cmoe__row_decode_f32(cmoe_format f, const struct cmoe_row *row, int64_t n, float *out)
{
    const int64_t span = cmoe__format_span(f, n);
    const int64_t step = cmoe__min64(span, CHUNK);
    double exact[CHUNK];
    if (f.scaling == CMOE_SCALE_NONE && !row->col_stride) {
        const int zero = cmoe__format_zero_point((cmoe_dtype)f.dtype);
        if (zero == 0) {
            cmoe__load_row((cmoe_dtype)f.dtype, row->codes, n, out);
            return;
        }
    }
    for (int64_t first = 0; first < n; first += step) {
        const int64_t count = cmoe__min64(step, n - first);
        decode_chunk(f, row, span, first, count, exact);
        for (int64_t i = 0; i < count; i++)
            out[first + i] = cmoe__f64_to_f32(exact[i]);
    }
}
