/* SPDX-License-Identifier: MIT
 * One vector of floats, as wide as the instruction set this file is compiled for.
 *
 * Arithmetic is written with the compiler's vector operators, so that the same source gives every
 * body; only loads that convert, fused multiply-add and 16-bit stores differ. Nothing here has
 * external linkage: a body compiled for one instruction set must never be linked into another. */
#ifndef CMOE_BACKENDS_CPU_ISA_VEC_H
#define CMOE_BACKENDS_CPU_ISA_VEC_H

#include "core/attr.h"
#include "core/numeric.h"
#include <stdint.h>
#include <string.h>

#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
#    include <immintrin.h>
#elif defined __SSE2__
#    include <emmintrin.h>
#endif

#if defined CMOE_ISA_AVX512
enum { VEC = 16 };
#elif defined CMOE_ISA_AVX2
enum { VEC = 8 };
#else
enum { VEC = 4 };
#endif

typedef float vf __attribute__((vector_size(4 * VEC)));
typedef int32_t vi __attribute__((vector_size(4 * VEC)));
typedef uint32_t vu __attribute__((vector_size(4 * VEC)));

CMOE_INLINE vf v_load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

CMOE_INLINE void v_store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

CMOE_INLINE vi v_bits(vf v)
{
    return (vi)v;
}

CMOE_INLINE vf v_float(vi v)
{
    return (vf)v;
}

CMOE_INLINE vi vi_load(const void *p)
{
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

CMOE_INLINE vi vi_set(int32_t s)
{
    return (vi){0} + s;
}

#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2 || defined __SSE2__
#    define CMOE_MADD16 1
typedef int16_t v16 __attribute__((vector_size(4 * VEC)));
typedef uint16_t v16u __attribute__((vector_size(4 * VEC)));

/* The lower and the upper 16 bits of every word multiplied, and both products added. */
CMOE_INLINE vi vi_madd16(vi a, vi b)
{
#    if defined CMOE_ISA_AVX512
    return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#    elif defined CMOE_ISA_AVX2
    return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#    else
    return (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#    endif
}

/* Of four signed bytes a word: the first and third, and the second and fourth, in 16 bits each. */
CMOE_INLINE vi vi_even16(vi v)
{
    return (vi)((v16)((v16u)v << 8) >> 8);
}

CMOE_INLINE vi vi_odd16(vi v)
{
    return (vi)((v16)v >> 8);
}
#endif

CMOE_INLINE vf vi_to_float(vi v)
{
    return __builtin_convertvector(v, vf);
}

CMOE_INLINE vf v_set(float s)
{
#if defined CMOE_ISA_AVX512
    return (vf)_mm512_set1_ps(s);
#elif defined CMOE_ISA_AVX2
    return (vf)_mm256_set1_ps(s);
#else
    return (vf){s, s, s, s};
#endif
}

/* a*b + c: one rounding where the instruction set has it, else two. */
CMOE_INLINE vf v_fma(vf a, vf b, vf c)
{
#if defined CMOE_ISA_AVX512
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined CMOE_ISA_AVX2
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

/* *s*b + c. AVX-512 multiplies by a number in memory with one micro-operation less than v_set takes, but a load
 * each time: compilers make one v_set of two uses, hence the assembly. Under AVX2 it keeps a sum in its register:
 * where others share 16 of them, gcc moves sums about and into memory. */
CMOE_INLINE vf v_fma_at(const float *s, vf b, vf c)
{
#if defined CMOE_ISA_AVX512
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(b), "m"(*s));
    return c;
#elif defined CMOE_ISA_AVX2
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(c) : "x"(b), "x"(v_set(*s)));
    return c;
#else
    return v_fma(v_set(*s), b, c);
#endif
}

/* mask is all ones or all zeros in each lane, as comparisons give it. */
CMOE_INLINE vf v_select(vi mask, vf yes, vf no)
{
    return v_float((mask & v_bits(yes)) | (~mask & v_bits(no)));
}

CMOE_INLINE vf v_abs(vf v)
{
    return v_float(v_bits(v) & 0x7fffffff);
}

/* The rounding error of p = a*b, so that a*b == p + error; 0 where p is too large to care. */
CMOE_INLINE vf v_product_error(vf a, vf b, vf p)
{
#if defined CMOE_ISA_AVX512 || defined CMOE_ISA_AVX2
    const vf error = v_fma(a, b, -p);
#else
    /* Dekker: split both factors into halves of 12 bits whose products are exact. */
    const vf sa = a * 4097.0f, sb = b * 4097.0f;
    const vf ah = sa - (sa - a), bh = sb - (sb - b);
    const vf al = a - ah, bl = b - bh;
    const vf error = ((ah * bh - p) + ah * bl + al * bh) + al * bl;
#endif
    return v_select(v_abs(p) < 1e15f, error, v_set(0));
}

/* VEC bf16 codes to f32: the upper half of the word. */
CMOE_INLINE vf v_load_bf16(const uint16_t *p)
{
#if defined CMOE_ISA_AVX512
    const __m256i codes = _mm256_loadu_si256((const void *)p);
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(codes), 16);
#elif defined CMOE_ISA_AVX2
    const __m128i codes = _mm_loadu_si128((const void *)p);
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(codes), 16);
#else
    const vi codes = {p[0], p[1], p[2], p[3]};
    return (vf)(codes << 16);
#endif
}

CMOE_INLINE vf v_load_f16(const uint16_t *p)
{
#if defined CMOE_ISA_AVX512
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
#elif defined CMOE_ISA_AVX2
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
#else
    return (vf){cmoe__f16_to_f32(p[0]), cmoe__f16_to_f32(p[1]), cmoe__f16_to_f32(p[2]),
                cmoe__f16_to_f32(p[3])};
#endif
}

/* VEC pairs of bf16 codes: the even ones, the odd ones. */
CMOE_INLINE void v_load_bf16_pairs(const uint16_t *p, vf *even, vf *odd)
{
    vi pairs;
    memcpy(&pairs, p, sizeof pairs);
    *even = (vf)(pairs << 16);
    *odd = (vf)(pairs & (int32_t)0xffff0000);
}

/* VEC elements of a type, which must be a constant where this is inlined. */
CMOE_INLINE vf v_load_as(cmoe_dtype dtype, const void *p)
{
    if (dtype == CMOE_BF16) return v_load_bf16(p);
    if (dtype == CMOE_F16) return v_load_f16(p);
    return v_load(p);
}

CMOE_INLINE void v_store_bf16(uint16_t *p, vf v)
{
    /* Nearest even: add half a unit, one less when the kept part is even. NaN: keep it one. */
    const vi bits = v_bits(v);
    const vi kept = (bits >> 16) & 1;
    const vi rounded = (vi)((vu)bits + 0x7fff + (vu)kept);
    const vi nan = v != v;
    const vi code = ((nan & (bits | 0x400000)) | (~nan & rounded)) >> 16;
#if defined CMOE_ISA_AVX512
    _mm256_storeu_si256((void *)p, _mm512_cvtepi32_epi16((__m512i)code));
#elif defined CMOE_ISA_AVX2
    const __m256i low = (__m256i)(code & 0xffff);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    _mm_storeu_si128((void *)p, _mm256_castsi256_si128(packed));
#else
    for (int i = 0; i < VEC; i++)
        p[i] = (uint16_t)(code[i] & 0xffff);
#endif
}

CMOE_INLINE void v_store_f16(uint16_t *p, vf v)
{
#if defined CMOE_ISA_AVX512
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined CMOE_ISA_AVX2
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < VEC; i++)
        p[i] = cmoe__f32_to_f16(v[i]);
#endif
}

CMOE_INLINE void v_store_as(cmoe_dtype dtype, void *p, vf v)
{
    if (dtype == CMOE_BF16)
        v_store_bf16(p, v);
    else if (dtype == CMOE_F16)
        v_store_f16(p, v);
    else
        v_store(p, v);
}

/* Sum of the lanes, halves first: ((0+8)+(4+12)) + ... whatever the caller's loop was. */
CMOE_INLINE float v_sum(vf v)
{
    float lane[VEC];
    v_store(lane, v);
    for (int half = VEC / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            lane[i] += lane[i + half];
    return lane[0];
}

#endif
