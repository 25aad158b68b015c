/* SPDX-License-Identifier: MIT
 * Packed panels of quantised weights to f32: into a scratch that the f32 tile reads, or straight
 * into the multiply-adds of a few rows.
 *
 * Both walk one group at a time with its scales in registers and give code * scale rounded once:
 * 4-bit codes by a table in a register or by shifts, 8-bit floats through f16, whose conversion
 * keeps subnormal codes exact under any setting of the caller. */
#ifndef CMOE_BACKENDS_CPU_ISA_PANEL_DECODE_H
#define CMOE_BACKENDS_CPU_ISA_PANEL_DECODE_H

#include "backends/cpu/isa/tile_i8.h"
#include "backends/cpu/isa/vec.h"
#include "backends/cpu/ops_quant.h"

/* Columns that stream's accumulators cover at a time, in vectors: 1 row, more rows. */
#if defined CMOE_ISA_AVX512
enum { STREAM_VECS1 = 2, STREAM_VECS = 2 };
#else
enum { STREAM_VECS1 = 4, STREAM_VECS = 2 };
#endif
enum { STREAM_ROWS = 4, MOST_VECS = 4 };

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

/* VEC scales of columns [col, ..) of a group. */
CMOE_INLINE vf load_scale(cmoe_dtype dtype, const char *group, int col)
{
    const uint8_t *const bytes = (const uint8_t *)group + col;
    const uint16_t *const halfs = (const uint16_t *)(const void *)group + col;
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

/* What all codes of a group share, for `vecs` vectors of columns from `col` on. */
struct group_terms {
    vf scale[MOST_VECS], zero[MOST_VECS], global[MOST_VECS];
};

CMOE_INLINE void load_terms(enum cmoe_cpu_code code, const struct cmoe_cpu_panel *l,
                            const char *panel, const char *group, int col, int vecs,
                            struct group_terms *t)
{
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) {
        const int at = col + v * VEC;
        const char *const zeros = group + l->scales - CMOE_CPU_PANEL;
        t->scale[v] = load_scale(l->scale, group, at);
        t->zero[v] = v_set(code == CMOE_CPU_CODE_U4 ? 8.0f : 0.0f);
        if (l->zero) t->zero[v] = load_s8((const uint8_t *)zeros + at);
        t->global[v] = l->global ? v_load((const float *)(const void *)panel + at) : v_set(1);
    }
}

/* Weight i of a unit for VEC columns; v: their vector. */
CMOE_INLINE vf decode_one(enum cmoe_cpu_code code, const char *unit, int i, int at,
                          const struct group_terms *t, int v)
{
    if (code == CMOE_CPU_CODE_E2M1)
        return e2m1(vi_load(unit + 4 * at), nibble_at(i)) * t->scale[v] * t->global[v];
    if (code == CMOE_CPU_CODE_U4) {
        const vi q = vi_load(unit + 4 * at) >> nibble_at(i) & 15;
        return (vi_to_float(q) - t->zero[v]) * t->scale[v];
    }
    if (code == CMOE_CPU_CODE_I8) {
        const vi q = (vi)((vu)vi_load(unit + 4 * at) << (24 - 8 * i)) >> 24;
        return (vi_to_float(q) - t->zero[v]) * t->scale[v];
    }
    return load_f8(code, (const uint8_t *)unit + at) * t->scale[v];
}

CMOE_INLINE int step_of(enum cmoe_cpu_code code)
{
    if (code == CMOE_CPU_CODE_U4 || code == CMOE_CPU_CODE_E2M1) return 8;
    return code == CMOE_CPU_CODE_I8 ? 4 : 1;
}

/* A piece of a panel that lies in one group. */
struct piece {
    const char *group, *unit;
    int64_t k; /* left in the group and in what is asked for */
};

CMOE_INLINE struct piece find_piece(const struct cmoe_cpu_panel *l, const char *panel,
                                    int64_t first, int64_t k)
{
    const char *const group = panel + l->head + first / l->span * l->group;
    const int64_t in = first % l->span;
    return (struct piece){.group = group,
                          .unit = group + l->scales + in / l->step * l->unit,
                          .k = k < l->span - in ? k : l->span - in};
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

CMOE_INLINE void decode_x_as(cmoe_dtype dtype, const struct cmoe_cpu_x_scale *s, const void *codes,
                             int64_t k, float *a, int64_t stride)
{
    const int bits = dtype == CMOE_I4 || dtype == CMOE_E2M1 ? 4 : 8;
    for (int64_t at = 0; at < k; at += CMOE_CPU_CHUNK, a += stride) {
        const uint8_t *from = (const uint8_t *)codes + at * bits / 8;
        const int64_t n = k - at;
        uint8_t tail[CMOE_CPU_CHUNK] = {0};
        if (n < CMOE_CPU_CHUNK) from = memcpy(tail, from, (size_t)(n * bits + 7) / 8);
        const vf scale = v_set(s->span ? s->of_group[at / s->span] : s->one);
#pragma GCC unroll 4
        for (int i = 0; i < CMOE_CPU_CHUNK; i += VEC)
            v_store(a + i, row_values(dtype, from + i * bits / 8) * scale * v_set(s->global));
    }
}

static void decode_x(cmoe_dtype dtype, const struct cmoe_cpu_x_scale *s, const void *codes,
                     int64_t k, float *a, int64_t stride)
{
    if (dtype == CMOE_E4M3)
        decode_x_as(CMOE_E4M3, s, codes, k, a, stride);
    else if (dtype == CMOE_E4M3FNUZ)
        decode_x_as(CMOE_E4M3FNUZ, s, codes, k, a, stride);
    else if (dtype == CMOE_E5M2)
        decode_x_as(CMOE_E5M2, s, codes, k, a, stride);
    else if (dtype == CMOE_I8)
        decode_x_as(CMOE_I8, s, codes, k, a, stride);
    else if (dtype == CMOE_E2M1)
        decode_x_as(CMOE_E2M1, s, codes, k, a, stride);
    else
        decode_x_as(CMOE_I4, s, codes, k, a, stride);
}

/* --- into scratch --------------------------------------------------------------------------- */

CMOE_INLINE void decode_unit(enum cmoe_cpu_code code, const char *unit, int n, int col, int vecs,
                             const struct group_terms *t, float *out)
{
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            v_store(out + i * CMOE_CPU_PANEL + col + v * VEC,
                    decode_one(code, unit, i, col + v * VEC, t, v));
}

CMOE_INLINE void decode_as(enum cmoe_cpu_code code, const struct cmoe_cpu_panel *l,
                           const char *panel, int64_t first, int64_t k, float *out)
{
    const int step = step_of(code);
    while (k > 0) {
        const struct piece p = find_piece(l, panel, first, k);
        for (int col = 0; col < CMOE_CPU_PANEL; col += STREAM_VECS * VEC) {
            struct group_terms t;
            const char *unit = p.unit;
            float *to = out;
            int64_t left = p.k;
            load_terms(code, l, panel, p.group, col, STREAM_VECS, &t);
            for (; left >= step; left -= step, unit += l->unit, to += step * CMOE_CPU_PANEL)
                decode_unit(code, unit, step, col, STREAM_VECS, &t, to);
            decode_unit(code, unit, (int)left, col, STREAM_VECS, &t, to);
        }
        first += p.k;
        k -= p.k;
        out += p.k * CMOE_CPU_PANEL;
    }
}

static void decode(const struct cmoe_cpu_panel *l, const void *panel, int64_t first, int64_t k,
                   float *out)
{
    switch (l->code) {
    case CMOE_CPU_CODE_I8:
        decode_as(CMOE_CPU_CODE_I8, l, panel, first, k, out);
        break;
    case CMOE_CPU_CODE_E4M3:
        decode_as(CMOE_CPU_CODE_E4M3, l, panel, first, k, out);
        break;
    case CMOE_CPU_CODE_E4M3FNUZ:
        decode_as(CMOE_CPU_CODE_E4M3FNUZ, l, panel, first, k, out);
        break;
    case CMOE_CPU_CODE_E5M2:
        decode_as(CMOE_CPU_CODE_E5M2, l, panel, first, k, out);
        break;
    case CMOE_CPU_CODE_U4:
        decode_as(CMOE_CPU_CODE_U4, l, panel, first, k, out);
        break;
    case CMOE_CPU_CODE_E2M1:
        decode_as(CMOE_CPU_CODE_E2M1, l, panel, first, k, out);
        break;
    }
}

/* --- straight into rows --------------------------------------------------------------------- */

/* a: the first row's value of the unit's first k; rows are a chunk apart. */
CMOE_INLINE void stream_unit(enum cmoe_cpu_code code, const char *unit, int n, int col, int vecs,
                             const struct group_terms *t, int m, const float *a,
                             vf acc[STREAM_ROWS][MOST_VECS])
{
#pragma GCC unroll 8
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) {
            const vf w = decode_one(code, unit, i, col + v * VEC, t, v);
#pragma GCC unroll 4
            for (int r = 0; r < m; r++)
                acc[r][v] = v_fma(v_set(a[r * CMOE_CPU_CHUNK + i]), w, acc[r][v]);
        }
}

/* Where k lies in packed rows. */
CMOE_INLINE const float *a_at(const float *a, int m, int64_t k)
{
    return a + k / CMOE_CPU_CHUNK * CMOE_CPU_CHUNK * m + k % CMOE_CPU_CHUNK;
}

CMOE_INLINE void stream_tile(enum cmoe_cpu_code code, const struct cmoe_cpu_panel *l,
                             const char *panel, int col, int vecs, int m, int64_t first, int64_t k,
                             const float *a, float *c, int64_t ldc, bool more)
{
    const int step = step_of(code);
    vf acc[STREAM_ROWS][MOST_VECS];
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            acc[r][v] = more ? v_load(c + r * ldc + col + v * VEC) : v_set(0);
    for (int64_t done = 0; done < k;) {
        const struct piece p = find_piece(l, panel, first + done, k - done);
        struct group_terms t;
        const char *unit = p.unit;
        int64_t left = p.k;
        load_terms(code, l, panel, p.group, col, vecs, &t);
        for (; left >= step; left -= step, done += step, unit += l->unit)
            stream_unit(code, unit, step, col, vecs, &t, m, a_at(a, m, done), acc);
        stream_unit(code, unit, (int)left, col, vecs, &t, m, a_at(a, m, done), acc);
        done += left;
    }
#pragma GCC unroll 4
    for (int r = 0; r < m; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++)
            v_store(c + r * ldc + col + v * VEC, acc[r][v]);
}

CMOE_INLINE void stream_rows(enum cmoe_cpu_code code, const struct cmoe_cpu_panel *l,
                             const char *panel, int m, int64_t first, int64_t k, const float *a,
                             float *c, int64_t ldc, bool more)
{
    const int vecs = m == 1 ? STREAM_VECS1 : STREAM_VECS;
    for (int col = 0; col < CMOE_CPU_PANEL; col += vecs * VEC)
        stream_tile(code, l, panel, col, vecs, m, first, k, a, c, ldc, more);
}

CMOE_INLINE void stream_as(enum cmoe_cpu_code code, const struct cmoe_cpu_panel *l,
                           const char *panel, int m, int64_t first, int64_t k, const float *a,
                           float *c, int64_t ldc, bool more)
{
    switch (m) {
    case 1:
        stream_rows(code, l, panel, 1, first, k, a, c, ldc, more);
        break;
    case 2:
        stream_rows(code, l, panel, 2, first, k, a, c, ldc, more);
        break;
    case 3:
        stream_rows(code, l, panel, 3, first, k, a, c, ldc, more);
        break;
    case 4:
        stream_rows(code, l, panel, 4, first, k, a, c, ldc, more);
        break;
    }
}

static void stream(const struct cmoe_cpu_panel *l, const void *panel, int m, int64_t first,
                   int64_t k, const float *a, float *c, int64_t ldc, bool more)
{
    switch (l->code) {
    case CMOE_CPU_CODE_I8:
        stream_as(CMOE_CPU_CODE_I8, l, panel, m, first, k, a, c, ldc, more);
        break;
    case CMOE_CPU_CODE_E4M3:
        stream_as(CMOE_CPU_CODE_E4M3, l, panel, m, first, k, a, c, ldc, more);
        break;
    case CMOE_CPU_CODE_E4M3FNUZ:
        stream_as(CMOE_CPU_CODE_E4M3FNUZ, l, panel, m, first, k, a, c, ldc, more);
        break;
    case CMOE_CPU_CODE_E5M2:
        stream_as(CMOE_CPU_CODE_E5M2, l, panel, m, first, k, a, c, ldc, more);
        break;
    case CMOE_CPU_CODE_U4:
        stream_as(CMOE_CPU_CODE_U4, l, panel, m, first, k, a, c, ldc, more);
        break;
    case CMOE_CPU_CODE_E2M1:
        stream_as(CMOE_CPU_CODE_E2M1, l, panel, m, first, k, a, c, ldc, more);
        break;
    }
}

#endif
