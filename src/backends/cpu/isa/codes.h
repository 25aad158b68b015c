/* SPDX-License-Identifier: MIT
 * Codes of every packed type and of quantised rows as vectors of floats.
 *
 * 4-bit codes are an index into a table in a register, 8-bit floats go through f16, whose conversion
 * keeps subnormal codes exact under any setting of the caller. */
#ifndef CMOE_BACKENDS_CPU_ISA_CODES_H
#define CMOE_BACKENDS_CPU_ISA_CODES_H

#include "backends/cpu/isa/fetch.h"
#include "backends/cpu/isa/vec.h"
#include "backends/cpu/ops_quant.h"

#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
#    if defined CMOE_ISA_AVX512
typedef __m256i halves;
#    else
typedef __m128i halves;
#    endif
typedef int16_t vh __attribute__((vector_size(2 * VEC)));

/* VEC bytes to 16-bit lanes, the code in the upper byte. */
CMOE_INLINE vh load_upper(const void *p)
{
#    if defined CMOE_ISA_AVX512
    return (vh)_mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128(p)), 8);
#    else
    return (vh)_mm_slli_epi16(_mm_cvtepu8_epi16(_mm_loadl_epi64(p)), 8);
#    endif
}

CMOE_INLINE vf from_halves(vh bits)
{
#    if defined CMOE_ISA_AVX512
    return (vf)_mm512_cvtph_ps((halves)bits);
#    else
    return (vf)_mm256_cvtph_ps((halves)bits);
#    endif
}
#endif

/* VEC 8-bit floats; `code` is a constant after inlining. e4m3 becomes an f16 by moving exponent and
 * mantissa down one place, too small by 2^8 (fnuz: 2^7). */
CMOE_INLINE vf load_f8(enum cmoe_cpu_code code, const uint8_t *p)
{
#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
    const vh upper = load_upper(p);
    if (code == CMOE_CPU_CODE_E5M2) return from_halves(upper);
    const vh low = (upper >> 1 & 0x3fff) | (upper & (int16_t)0x8000);
    const vh nan = code == CMOE_CPU_CODE_E4M3 ? (vh)((upper & 0x7fff) == 0x7f00)
                                              : (vh)(upper == (int16_t)0x8000);
    return from_halves(low | (nan & 0x7e00)) * (code == CMOE_CPU_CODE_E4M3 ? 256.0f : 128.0f);
#else
    const cmoe_dtype dtype = code == CMOE_CPU_CODE_E5M2   ? CMOE_E5M2
                             : code == CMOE_CPU_CODE_E4M3 ? CMOE_E4M3
                                                          : CMOE_E4M3FNUZ;
    const float *const table = cmoe__decode_table(dtype);
    return (vf){table[p[0]], table[p[1]], table[p[2]], table[p[3]]};
#endif
}

/* 2 * VEC e4m3 or e5m2 codes; NaN of e4m3 comes out as 480, and e4m3 too small by 2^8. A code that is
 * sign-extended and moved up 7 places is an f16 but for a second sign bit. */
CMOE_INLINE void load_f8_pair(enum cmoe_cpu_code code, const uint8_t *p, vf out[2])
{
#if defined CMOE_ISA_AVX512
    const __m256i bytes = _mm256_loadu_si256((const void *)p);
    __m512i half;
    if (code == CMOE_CPU_CODE_E5M2)
        half = _mm512_slli_epi16(_mm512_cvtepu8_epi16(bytes), 8);
    else
        half = _mm512_and_si512(_mm512_slli_epi16(_mm512_cvtepi8_epi16(bytes), 7),
                                _mm512_set1_epi16((int16_t)0xbfff));
    out[0] = (vf)_mm512_cvtph_ps(_mm512_castsi512_si256(half));
    out[1] = (vf)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
#elif defined CMOE_ISA_AVX2
    const __m128i bytes = _mm_loadu_si128((const void *)p);
    __m256i half;
    if (code == CMOE_CPU_CODE_E5M2)
        half = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8);
    else
        half = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7),
                                _mm256_set1_epi16((int16_t)0xbfff));
    out[0] = (vf)_mm256_cvtph_ps(_mm256_castsi256_si128(half));
    out[1] = (vf)_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
#else
    for (int i = 0; i < 2; i++)
        out[i] = load_f8(code, p + i * VEC) * (code == CMOE_CPU_CODE_E4M3 ? 0.00390625f : 1.0f);
#endif
}

/* Whether none of some e4m3 codes is NaN; n is a multiple of 32. */
CMOE_INLINE bool all_finite(const uint8_t *codes, int64_t n)
{
    typedef uint8_t vb __attribute__((vector_size(64)));
    vb any = {0}, v = {0};
    uint64_t word[8], bits = 0;
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        memcpy(&v, codes + i, sizeof v);
        any |= (v & 0x7f) + 1; /* the upper bit: 0x7f */
    }
    if (i < n) {
        memcpy(&v, codes + i, 32);
        any |= (v & 0x7f) + 1;
    }
    memcpy(word, &any, sizeof word);
    for (int j = 0; j < 8; j++)
        bits |= word[j];
    return (bits & 0x8080808080808080u) == 0;
}

/* VEC bytes as unsigned or signed integers. */
CMOE_INLINE vi load_u8(const uint8_t *p)
{
#if defined CMOE_ISA_AVX512
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p));
#elif defined CMOE_ISA_AVX2
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
#else
    return (vi){p[0], p[1], p[2], p[3]};
#endif
}

CMOE_INLINE vf load_s8(const uint8_t *p)
{
    return vi_to_float((vi)((vu)load_u8(p) << 24) >> 24);
}

/* 2^(code - 127): the exponent field, but for its two ends. */
CMOE_INLINE vf load_e8m0(const uint8_t *p)
{
    const vi code = load_u8(p);
    const vi bits = code << 23;
    const vi zero = code == 0, nan = code == 255;
    return v_float((bits & ~nan) | (zero & 0x400000) | (nan & 0x7fc00000));
}

#if defined CMOE_ISA_AVX512
/* 32 of them, seldom one that is an end. */
CMOE_INLINE void load_e8m0_pair(const uint8_t *p, vf out[2])
{
    const __m256i code = _mm256_loadu_si256((const void *)p), one = _mm256_set1_epi8(1);
    if (_mm256_cmple_epu8_mask(_mm256_add_epi8(code, one), one)) {
        out[0] = load_e8m0(p);
        out[1] = load_e8m0(p + VEC);
        return;
    }
    out[0] = v_float(load_u8(p) << 23);
    out[1] = v_float(load_u8(p + VEC) << 23);
}
#endif

/* VEC scales of columns [col, ..) of a group; CMOE_NONE: codes are wanted as they are. */
CMOE_INLINE vf load_scale(cmoe_dtype dtype, const char *group, int col)
{
    const uint8_t *const bytes = (const uint8_t *)group + col;
    const uint16_t *const halfs = (const uint16_t *)(const void *)group + col;
    if (dtype == CMOE_NONE) return v_set(1);
    if (dtype == CMOE_E8M0) return load_e8m0(bytes);
    if (dtype == CMOE_E4M3) return load_f8(CMOE_CPU_CODE_E4M3, bytes);
    if (dtype == CMOE_BF16) return v_load_bf16(halfs);
    if (dtype == CMOE_F16) return v_load_f16(halfs);
    return v_load((const float *)(const void *)group + col);
}

/* Where the 4-bit code of k lies in its word, and an 8-bit one. */
CMOE_INLINE int nibble_at(int k)
{
    return k % 4 * 8 + k / 4 * 4;
}

static const float e2m1_value[16] = {0,     0.5f,  1,  1.5f,  2,  3,  4,  6,
                                     -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};

/* The 4-bit codes at bit `at` of words, as e2m1. */
CMOE_INLINE vf e2m1(vi words, int at)
{
#if defined CMOE_ISA_AVX512
    const vu index = (vu)words >> at;
    return (vf)_mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(e2m1_value));
#elif defined CMOE_ISA_AVX2
    const vu index = (vu)words >> at;
    const __m256 size = _mm256_permutevar8x32_ps(_mm256_loadu_ps(e2m1_value), (__m256i)index);
    const vi sign = (vi)(index << 28) & (int32_t)0x80000000;
    return v_float((vi)size | sign);
#else
    vf v = {0};
    for (int i = 0; i < VEC; i++)
        v[i] = e2m1_value[words[i] >> at & 15];
    return v;
#endif
}

/* As integers, minus 8 where the scheme has no zero points. */
CMOE_INLINE vf u4(vi words, int at, bool minus8)
{
#if defined CMOE_ISA_AVX512
    const vf value = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const vu index = (vu)words >> at;
    return (vf)_mm512_permutexvar_ps((__m512i)index, (__m512)(minus8 ? value - 8.0f : value));
#else
    if (minus8) words ^= (vi){0} + (int32_t)0x88888888;
    const vi left = (vi)((vu)words << (28 - at));
    return vi_to_float(minus8 ? left >> 28 : (vi)((vu)left >> 28));
#endif
}

/* --- rows of x ------------------------------------------------------------------------------ */

/* VEC 4-bit codes of a row, the first in the low bits of the first byte, each at bit 0 of a word
 * (what lies above it is other codes). */
CMOE_INLINE vu row_nibbles(const uint8_t *p)
{
#if defined CMOE_ISA_AVX512
    uint64_t bits;
    memcpy(&bits, p, sizeof bits);
    const vu at = {0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28};
    const __m512i words = _mm512_inserti64x4(_mm512_set1_epi32((int32_t)bits),
                                             _mm256_set1_epi32((int32_t)(bits >> 32)), 1);
    return (vu)words >> at;
#elif defined CMOE_ISA_AVX2
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    const vu at = {0, 4, 8, 12, 16, 20, 24, 28};
    return (vu)vi_set(bits) >> at;
#else
    return (vu){p[0], p[0] >> 4, p[1], p[1] >> 4};
#endif
}

/* VEC values of a row; dtype is a constant after inlining. */
CMOE_INLINE vf row_values(cmoe_dtype dtype, const uint8_t *p)
{
    if (dtype == CMOE_E4M3) return load_f8(CMOE_CPU_CODE_E4M3, p);
    if (dtype == CMOE_E4M3FNUZ) return load_f8(CMOE_CPU_CODE_E4M3FNUZ, p);
    if (dtype == CMOE_E5M2) return load_f8(CMOE_CPU_CODE_E5M2, p);
    if (dtype == CMOE_I8) return load_s8(p);
    if (dtype == CMOE_E2M1) return e2m1((vi)row_nibbles(p), 0);
    return vi_to_float((vi)(row_nibbles(p) << 28) >> 28);
}

#endif
