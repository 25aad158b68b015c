/* SPDX-License-Identifier: MIT
 * Scalar conversions and quantisers, bit-exact: docs/numerics.md sections 1 and 2 as code. */
#ifndef CMOE_CORE_NUMERIC_H
#define CMOE_CORE_NUMERIC_H

#include <cmoe/problem.h>
#include <stdbool.h>
#include <stdint.h>

/* Conversions by bits alone: no rounding mode, flush-to-zero or denormals-are-zero setting of the
 * caller reaches them. Narrowing rounds to nearest even. */
double cmoe__f32_to_f64(float v);
float cmoe__f64_to_f32(double v);
/* a / b and a * b rounded once to nearest even, under the caller's settings whatever they are.
 * A NaN a is returned as it is, any other NaN is the positive quiet one. */
float cmoe__div_f32(float a, float b);
float cmoe__mul_f32(float a, float b);

float cmoe__f16_to_f32(uint16_t code);
uint16_t cmoe__f32_to_f16(float v);
float cmoe__bf16_to_f32(uint16_t code);
uint16_t cmoe__f32_to_bf16(float v);

/* Any element type; what cmoe_decode and cmoe_encode are. */
float cmoe__decode(cmoe_dtype dtype, uint32_t code);
/* Values of all codes of e4m3, e4m3fnuz, e5m2 (256) and e2m1 (16); NULL for other types. */
const float *cmoe__decode_table(cmoe_dtype dtype);
uint32_t cmoe__encode(cmoe_dtype dtype, float v, cmoe_rounding rounding);
/* The same from a double, rounded once. */
uint32_t cmoe__encode_f64(cmoe_dtype dtype, double v, cmoe_rounding rounding);
/* The integer nearest to v, saturated to +-32767, 0 for NaN. */
int32_t cmoe__round_to_int(double v, cmoe_rounding rounding);

/* Element i of a contiguous row of codes (two 4-bit codes a byte, low nibble first). */
uint32_t cmoe__load_code(cmoe_dtype dtype, const void *row, int64_t i);
void cmoe__store_code(cmoe_dtype dtype, void *row, int64_t i, uint32_t code);
/* Store for rows written in order: clears the high nibble beside an even 4-bit element. */
void cmoe__append_code(cmoe_dtype dtype, void *row, int64_t i, uint32_t code);
/* The same through the value. */
float cmoe__load(cmoe_dtype dtype, const void *row, int64_t i);
void cmoe__store(cmoe_dtype dtype, void *row, int64_t i, float v);
/* n elements to f32 / from f32 (nearest even). */
void cmoe__load_row(cmoe_dtype dtype, const void *row, int64_t n, float *out);
void cmoe__store_row(cmoe_dtype dtype, void *row, int64_t n, const float *v);

/* Largest finite value (448, 240, 57344, 127, 7, 6, ...). */
float cmoe__dtype_max(cmoe_dtype dtype);
/* max |v|, NaN if any is NaN, 0 for n == 0. */
float cmoe__amax(const float *v, int64_t n);

/* Scales from a largest magnitude. */
float cmoe__scale_from(float amax, float largest); /* what the f32 ones share */
float cmoe__scale_f32(cmoe_dtype dtype, float amax);
uint8_t cmoe__scale_e8m0(cmoe_dtype dtype, float amax, cmoe_mx_rounding rounding);
float cmoe__scale_nv_global(float amax);
uint8_t cmoe__scale_nv_block(float amax, float global);

/* One activation row v[n] (f32, smooth already applied) to codes and scales, as QUANT and REQUANT
 * do; `scale` is the row's scale storage in the layout of cmoe_tensors.x_scale (TENSOR: not
 * written, `fixed` is the scale). global: NV only, written when dynamic, read when fixed is set. */
void cmoe__quantize_row(cmoe_format f, const float *v, int64_t n, const float *fixed, void *codes,
                        void *scale, float *global);
/* The inverse, exact in fp64. `fixed`: TENSOR scale or NV static global. */
void cmoe__dequantize_row_f64(cmoe_format f, const void *codes, const void *scale,
                              const float *fixed, const float *global, int64_t n, double *out);

/* Bytes of one row's codes / scales of an activation format (TENSOR: 0 scales). */
size_t cmoe__row_code_bytes(cmoe_format f, int64_t n);
size_t cmoe__row_scale_bytes(cmoe_format f, int64_t n);

#endif
