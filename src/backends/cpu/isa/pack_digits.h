/* SPDX-License-Identifier: MIT
 * Rows of any type as integers of one or three bytes over a scale of every span of k's: what
 * tile_digits.h multiplies.
 *
 * Records lie span by span, rows inside, in the order that a tile reads them. They are made for some rows at a
 * time: many rows at strides of powers of two fall on few lines of the first cache. */
#ifndef CMOE_BACKENDS_CPU_ISA_PACK_DIGITS_H
#define CMOE_BACKENDS_CPU_ISA_PACK_DIGITS_H

#include "backends/cpu/isa/codes.h"

#if defined CMOE_ISA_AVX512VNNI

enum {
    DIGIT_TOGETHER = 8, /* rows */
    DIGIT_AHEAD = 512,  /* bytes of a row that are asked for before their turn */
};

/* What lies ahead in a row, at whole lines of it. */
CMOE_INLINE void fetch_codes(const void *codes, int64_t at)
{
    if (at % 64 == 0) __builtin_prefetch((const void *)((uintptr_t)codes + DIGIT_AHEAD));
}

/* Bytes of 16 codes; dtype is a constant after inlining. */
CMOE_INLINE int64_t codes_bytes(cmoe_dtype dtype)
{
    if (dtype == CMOE_BF16 || dtype == CMOE_F16) return 2 * VEC;
    return dtype == CMOE_E2M1 ? VEC / 2 : VEC;
}

/* 16 values; dtype is a constant after inlining. */
CMOE_INLINE vf digit_values(cmoe_dtype dtype, const uint8_t *codes)
{
    if (dtype == CMOE_BF16 || dtype == CMOE_F16) return v_load_as(dtype, codes);
    return row_values(dtype, codes);
}

/* The first `left` of them, then 0. */
CMOE_INLINE vf last_values(cmoe_dtype dtype, const uint8_t *codes, int64_t left)
{
    uint8_t tail[2 * VEC] = {0};
    if (left <= 0) return v_set(0);
    memcpy(tail, codes, cmoe_dtype_bytes(dtype, left));
    return (vf)_mm512_maskz_mov_ps((__mmask16)((1U << left) - 1),
                                   (__m512)digit_values(dtype, tail));
}

CMOE_INLINE float float_of(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* What a span's values are multiplied by to be integers, and what 1 of them stands for. */
struct digit_scale {
    float factor, one;
};

/* most: the bits of the largest magnitude; given: the scale of quantised values. False: sums might leave
 * the range of f32. */
CMOE_INLINE bool span_scale(const struct cmoe_cpu_digits *d, uint32_t most, float given,
                            struct digit_scale *out)
{
    enum { BITS = 22 /* of an integer */, LEAST = 48, MOST = 227 /* exponents: 2^-79, 2^100 */ };
    *out = (struct digit_scale){.factor = d->factor, .one = given * d->unit};
    if (d->factor == 0) {
        const uint32_t e = most >> 23;
        if (most != 0 && (e < LEAST || e >= MOST)) return false;
        if (most == 0) return true;
        out->factor = float_of((2 * 127 + BITS - 1 - e) << 23);
        out->one = d->unit * float_of((e - (BITS - 1)) << 23);
        return true;
    }
    if (most >= (uint32_t)MOST << 23) return false; /* NaN */
    if (!d->grouped) return true;
    const float size = out->one < 0 ? -out->one : out->one;
    return size < 0x1p100f && (size >= 0x1p-100f || most == 0);
}

/* 16 or 32 integers, x[1] only of the latter, byte by byte: each is moved up so that its bytes are those of
 * three signed digits but for their signs. */
CMOE_INLINE void store_wide(int span, const vi x[2], char *to)
{
    const __m512i gather = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1));
    const vi middle = (vi){0} + 0x808080;
    __m512i digit[2];
    CMOE_UNROLL
    for (int i = 0; i < span / VEC; i++)
        digit[i] = _mm512_shuffle_epi8((__m512i)((x[i] + middle) ^ middle), gather);
    if (span == VEC) {
        const __m512i at = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_mask_storeu_epi32(to, 0x0fff, _mm512_permutexvar_epi32(at, digit[0]));
        return;
    }
    const __m512i low = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(2));
    _mm512_storeu_si512(to, _mm512_permutex2var_epi32(digit[0], low, digit[1]));
    _mm256_storeu_si256((void *)(to + 64), _mm512_castsi512_si256(_mm512_permutex2var_epi32(
                                               digit[0], high, digit[1])));
}

/* Where the integers of a row's span go. */
struct digit_record {
    char *words;
    int32_t *offset;
    float *scale;
};

/* A span of values, v[1] too where it has 32; digits and span are constants after inlining. False: no
 * integers stand for it. */
CMOE_INLINE bool pack_span(int digits, int span, const struct cmoe_cpu_digits *d, const vf v[2],
                           float given, struct digit_record to)
{
    struct digit_scale scale;
    vu most = (vu)v_bits(v_abs(v[0]));
    if (span > VEC) most = (vu)_mm512_max_epu32((__m512i)most, (__m512i)v_bits(v_abs(v[1])));
    if (!span_scale(d, _mm512_reduce_max_epu32((__m512i)most), given, &scale)) return false;
    vi x[2], sum = {0};
    CMOE_UNROLL
    for (int i = 0; i < span / VEC; i++) {
        const __m512 whole = (__m512)(v[i] * v_set(scale.factor));
        x[i] = (vi)_mm512_cvt_roundps_epi32(whole, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        if (digits == 1)
            _mm_storeu_si128((void *)(to.words + i * VEC), _mm512_cvtepi32_epi8((__m512i)x[i]));
        sum += x[i];
    }
    if (digits == 3) store_wide(span, x, to.words);
    *to.offset = (int32_t)((uint32_t)-d->minus * (uint32_t)_mm512_reduce_add_epi32((__m512i)sum));
    *to.scale = scale.one;
    return true;
}

/* Span `at` of n rows; g: the group of a scaled row that it lies in. */
CMOE_INLINE void pack_spans(cmoe_dtype dtype, int digits, int span, const struct cmoe_cpu_digits *d,
                            const struct cmoe_cpu_digit_row *rows, int n, int64_t at, int64_t left,
                            int64_t g, struct digit_record to)
{
    const int64_t half = codes_bytes(dtype);
    for (int r = 0; r < n; r++) {
        const struct cmoe_cpu_x_scale *const s = &rows[r].scale;
        const float given = (s->span ? s->of_group[g] : s->one) * s->global;
        const uint8_t *const codes = (const uint8_t *)rows[r].codes + at / VEC * half;
        vf v[2];
        fetch_codes(codes, at / VEC * half);
        if (left >= span) {
            v[0] = digit_values(dtype, codes);
            v[1] = span > VEC ? digit_values(dtype, codes + half) : v_set(0);
        } else {
            v[0] = last_values(dtype, codes, left < VEC ? left : VEC);
            v[1] = last_values(dtype, codes + half, left - VEC);
        }
        if (!pack_span(digits, span, d, v, given, to)) *rows[r].streams = true;
        to.words += digits * span;
        to.offset++;
        to.scale++;
    }
}

/* n rows of the m that lie together. */
CMOE_INLINE void pack_digits_as(cmoe_dtype dtype, int digits, int span,
                                const struct cmoe_cpu_digits *d,
                                const struct cmoe_cpu_digit_row *rows, int n, int m, int64_t k,
                                struct digit_record to)
{
    int64_t g = 0, in = 0;
    for (int64_t at = 0; at < k; at += span) {
        pack_spans(dtype, digits, span, d, rows, n, at, k - at, g, to);
        to.words += (int64_t)m * digits * span;
        to.offset += m;
        to.scale += m;
        in += span;
        if (in < rows->scale.span) continue;
        in = 0;
        g++;
    }
}

/* Rows of int8 with one scale each: bytes as they are. Sums are those of codes moved up by 128. */
static void pack_bytes(const struct cmoe_cpu_digits *d, const struct cmoe_cpu_digit_row *rows,
                       int n, int m, int64_t k, struct digit_record to)
{
    enum { SPAN = 2 * VEC };
    for (int64_t at = 0; at < k; at += SPAN) {
        const __mmask32 held = k - at >= SPAN ? 0xffffffff : (__mmask32)((1U << (k - at)) - 1);
        for (int r = 0; r < n; r++) {
            const uint8_t *const codes = (const uint8_t *)rows[r].codes + at;
            fetch_codes(codes, at);
            const __m256i x = _mm256_maskz_loadu_epi8(held, codes);
            const __m256i sums = _mm256_sad_epu8(_mm256_xor_si256(x, _mm256_set1_epi8(-128)),
                                                 _mm256_setzero_si256());
            const __m128i two =
                _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
            const int32_t sum = _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 2);
            _mm256_storeu_si256((void *)(to.words + r * SPAN), x);
            to.offset[r] = -d->minus * (sum - 128 * SPAN);
            to.scale[r] = rows[r].scale.one * rows[r].scale.global * d->unit;
        }
        to.words += m * SPAN;
        to.offset += m;
        to.scale += m;
    }
}

/* n rows of m. */
static void pack_some(const struct cmoe_cpu_digits *d, cmoe_dtype dtype,
                      const struct cmoe_cpu_digit_row *rows, int n, int m, int64_t k,
                      struct digit_record to)
{
    const bool half = d->span == 16;
    if (dtype == CMOE_BF16 && half)
        pack_digits_as(CMOE_BF16, 3, 16, d, rows, n, m, k, to);
    else if (dtype == CMOE_BF16)
        pack_digits_as(CMOE_BF16, 3, 32, d, rows, n, m, k, to);
    else if (dtype == CMOE_F16 && half)
        pack_digits_as(CMOE_F16, 3, 16, d, rows, n, m, k, to);
    else if (dtype == CMOE_F16)
        pack_digits_as(CMOE_F16, 3, 32, d, rows, n, m, k, to);
    else if (dtype == CMOE_E4M3 && half)
        pack_digits_as(CMOE_E4M3, 3, 16, d, rows, n, m, k, to);
    else if (dtype == CMOE_E4M3)
        pack_digits_as(CMOE_E4M3, 3, 32, d, rows, n, m, k, to);
    else if (dtype == CMOE_E2M1 && half)
        pack_digits_as(CMOE_E2M1, 1, 16, d, rows, n, m, k, to);
    else if (dtype == CMOE_E2M1)
        pack_digits_as(CMOE_E2M1, 1, 32, d, rows, n, m, k, to);
    else if (!d->grouped)
        pack_bytes(d, rows, n, m, k, to);
    else if (half)
        pack_digits_as(CMOE_I8, 1, 16, d, rows, n, m, k, to);
    else
        pack_digits_as(CMOE_I8, 1, 32, d, rows, n, m, k, to);
}

static void pack_digits(const struct cmoe_cpu_digits *d, cmoe_dtype dtype,
                        const struct cmoe_cpu_digit_row *rows, int m, int64_t k, void *words,
                        int32_t *offsets, float *scales)
{
    for (int r = 0; r < m; r += DIGIT_TOGETHER) {
        const struct digit_record to = {.words = (char *)words + r * d->digits * d->span,
                                        .offset = offsets + r,
                                        .scale = scales + r};
        pack_some(d, dtype, rows + r, m - r < DIGIT_TOGETHER ? m - r : DIGIT_TOGETHER, m, k, to);
    }
}

#endif
#endif
