/* SPDX-License-Identifier: MIT
 * Element conversions, quantisation and the published 4-bit packings. docs/numerics.md gives the
 * arithmetic; every function here is bit-exact on every machine and independent of the caller's
 * rounding mode. */
#ifndef CMOE_CONVERT_H
#define CMOE_CONVERT_H

#include <cmoe/context.h>
#include <cmoe/problem.h>
#include <cmoe/weights.h>

CMOE_BEGIN_DECLS

/** Value of one code (the low bits of `code`) of an element type, exact in a float.
 *  f16, bf16 and f32 codes are their bit patterns. */
CMOE_API float cmoe_decode(cmoe_dtype dtype, uint32_t code);

/** Code nearest to v, ties to even; saturates: 8- and 4-bit floats and integers go to their largest
 *  finite value, f16 and bf16 to infinity. NaN becomes the type's NaN, 0 where it has none. */
CMOE_API uint32_t cmoe_encode(cmoe_dtype dtype, float v);

/** Convert n contiguous elements between any two of f32 f16 bf16 e4m3 e4m3fnuz e5m2 i8 u8 i4 u4
 *  e2m1 through f32, without scaling. @return CMOE_OK or CMOE_ERR_INVALID. */
CMOE_API cmoe_status cmoe_convert(cmoe_dtype to, void *dst, cmoe_dtype from, const void *src,
                                  int64_t n) CMOE_MUST_CHECK;

/** Bytes of codes, scales and zero points that format f takes for a weight matrix [rows, cols]
 *  (activations: rows tokens). Any pointer may be NULL. @return CMOE_OK, CMOE_ERR_INVALID,
 *  CMOE_ERR_OVERFLOW. */
CMOE_API cmoe_status cmoe_format_bytes(cmoe_format f, int64_t rows, int64_t cols, size_t *codes,
                                       size_t *scales, size_t *zeros) CMOE_MUST_CHECK;

/** Quantise a weight matrix src [rows, cols] of f32 into codes, scales, zero points and (NV) the
 *  global multiplier, in the canonical layouts of weights.h. Buffers are the caller's and sized by
 *  cmoe_format_bytes; zero and global may be NULL when the format has none.
 *  @return CMOE_OK; CMOE_ERR_INVALID. */
CMOE_API cmoe_status cmoe_quantize_weight(cmoe_format f, const float *src, int64_t rows,
                                          int64_t cols, void *codes, void *scale, uint8_t *zero,
                                          float *global) CMOE_MUST_CHECK;

/** Decode matrix m [rows, cols] in format f to f32 dst [rows, cols] (value = scaled code rounded once).
 *  m's strides hold; bias and smooth are not read.
 *  @return CMOE_OK; CMOE_ERR_INVALID (no weight format; what of m is NULL or does not fit);
 *          CMOE_ERR_OVERFLOW. */
CMOE_API cmoe_status cmoe_dequantize_weight(cmoe_format f, const cmoe_matrix *m, int64_t rows,
                                            int64_t cols, float *dst) CMOE_MUST_CHECK;

/** Quantise activation rows src [rows, cols] of f32 into codes and scales as QUANT and REQUANT do.
 *  fixed: the static scale (TENSOR, NV) or NULL; global: NV dynamic, f32 [rows], else NULL. Buffers are
 *  the caller's, sized by cmoe_format_bytes; scale is laid out as cmoe_tensors.x_scale.
 *  @return CMOE_OK; CMOE_ERR_INVALID (no activation format, a NULL that the format needs);
 *          CMOE_ERR_OVERFLOW. */
CMOE_API cmoe_status cmoe_quantize_rows(cmoe_format f, const float *src, int64_t rows, int64_t cols,
                                        const float *fixed, void *codes, void *scale, float *global)
    CMOE_MUST_CHECK;
/** The inverse: codes and scales to f32 dst [rows, cols]. A static scale is given in `scale`.
 *  @return as cmoe_quantize_rows. */
CMOE_API cmoe_status cmoe_dequantize_rows(cmoe_format f, const void *codes, const void *scale,
                                          const float *global, int64_t rows, int64_t cols,
                                          float *dst) CMOE_MUST_CHECK;

/** Published 4-bit packings. Unpacked values are one byte each, row-major [rows, cols]: 0..15. */
typedef enum cmoe_packing {
    CMOE_PACK_NIBBLE, /* u8 [rows, cols/2], low nibble = even column: cmoe's own, gpt-oss, vLLM */
    CMOE_PACK_GPTQ,   /* i32 [cols/8, rows], 8 sequential nibbles along the input */
    CMOE_PACK_AWQ,    /* i32 [cols, rows/8], nibble order 0 2 4 6 1 3 5 7 along the output */
    CMOE_PACK_COMPRESSED, /* i32 [rows, cols/8], sequential along the input (compressed-tensors) */
    CMOE_PACK_GGUF,       /* u8 [rows, cols/2], per 32: byte j holds columns j and j+16 */
    CMOE_PACK_AITER_I4,   /* u8 [rows, cols/2], per 8: byte i holds columns i and i+4 */
    CMOE_PACK_AITER_U32,  /* i32 [rows, cols/8], order 0 2 4 6 1 3 5 7, LSB first */
} cmoe_packing;

/** Pack / unpack rows x cols nibbles; sizes must be whole words of the packing.
 *  @return CMOE_OK or CMOE_ERR_INVALID naming the size that does not divide. */
CMOE_API cmoe_status cmoe_pack4(cmoe_packing packing, const uint8_t *src, int64_t rows,
                                int64_t cols, void *dst) CMOE_MUST_CHECK;
/** The inverse, one nibble a byte. @return as cmoe_pack4. */
CMOE_API cmoe_status cmoe_unpack4(cmoe_packing packing, const void *src, int64_t rows, int64_t cols,
                                  uint8_t *dst) CMOE_MUST_CHECK;

CMOE_END_DECLS

#endif
