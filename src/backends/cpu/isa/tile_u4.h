/* SPDX-License-Identifier: MIT
 * The integer tile over a p32_u4 panel: 4-bit codes by int8 rows, exact in each group.
 *
 * Codes stay unsigned, so rows are multiplied as they are; a group's accumulators begin at minus the
 * zero point times the row's sum over the group. Groups meet in f32, in c: c += scale * group. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_U4_H
#define CMOE_BACKENDS_CPU_ISA_TILE_U4_H

#include "backends/cpu/isa/codes.h"

/* Without VNNI products of 32 k's are gathered in 16 bits: at most 16 * 15 * 128. */
#if defined CMOE_ISA_AVX512
enum { DOT4_ROWS = 6 };
#elif defined CMOE_ISA_AVX2
enum { DOT4_ROWS = 3 };
#else
enum { DOT4_ROWS = 4 };
#endif
enum { DOT4_VECS = 2, DOT4_UNITS = 4 };

/* Products of four codes a word with a row's four values, as dot4_widen wants them. */
CMOE_INLINE vi dot4(vi acc, vi codes, const int8_t *row)
{
#if defined CMOE_MADD16
    int32_t quad;
    memcpy(&quad, row, sizeof quad);
#endif
#if defined CMOE_ISA_AVX512
    const __m512i pairs = _mm512_maddubs_epi16((__m512i)codes, _mm512_set1_epi32(quad));
    return (vi)_mm512_add_epi16((__m512i)acc, pairs);
#elif defined CMOE_ISA_AVX2
    const __m256i pairs = _mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(quad));
    return (vi)_mm256_add_epi16((__m256i)acc, pairs);
#elif defined CMOE_MADD16
    acc += vi_madd16(codes & 0x00ff00ff, vi_even16(vi_set(quad)));
    return acc + vi_madd16((vi)((vu)codes >> 8) & 0x00ff00ff, vi_odd16(vi_set(quad)));
#else
    for (int i = 0; i < 4; i++)
        acc += (codes >> 8 * i & 15) * row[i];
    return acc;
#endif
}

/* sum + what dot4 has gathered since zero. */
CMOE_INLINE vi dot4_widen(vi sum, vi acc)
{
#if defined CMOE_ISA_AVX512
    return sum + (vi)_mm512_madd_epi16((__m512i)acc, _mm512_set1_epi16(1));
#elif defined CMOE_ISA_AVX2
    return sum + (vi)_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1));
#else
    return sum + acc;
#endif
}

/* rows of int8 to quads [ceil(k/8)*2][m], zero past k, and minus the sums of each group, times 8 where
 * there are no zero points: [groups][m]. */
static void pack_u4(const struct cmoe_cpu_panel *l, const void *const *rows, int m, void *a,
                    int32_t *offsets)
{
    const int64_t k = l->k, padded = (k + 7) / 8 * 8;
    for (int r = 0; r < m; r++) {
        const int8_t *const row = rows[r];
        int8_t *to = (int8_t *)a + 4 * r;
        for (int64_t i = 0; i < padded; i += 4, to += 4 * m) {
            const int64_t n = k - i < 4 ? k - i : 4;
            if (n < 4) memset(to, 0, 4);
            if (n == 4)
                memcpy(to, row + i, 4);
            else if (n > 0)
                memcpy(to, row + i, (size_t)n);
        }
        for (int64_t first = 0, g = 0; first < k; first += l->span, g++) {
            const int64_t end = first + l->span < k ? first + l->span : k;
            int32_t sum = 0;
            for (int64_t i = first; i < end; i++)
                sum -= row[i];
            offsets[g * m + r] = l->zero ? sum : 8 * sum;
        }
    }
}

/* Some units, at most DOT4_UNITS; m is a constant after inlining. */
CMOE_INLINE void dot_u4_units(const struct cmoe_cpu_panel *l, const char *unit, int64_t units,
                              int m, const int8_t *a, vi sum[DOT4_ROWS][DOT4_VECS])
{
    vi acc[DOT4_ROWS][DOT4_VECS];
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < DOT4_VECS; v++)
            acc[r][v] = vi_set(0);
    }
    const uintptr_t next = m >= CMOE_CPU_STREAM_ROWS ? (uintptr_t)l->bytes : CMOE_CPU_STREAM_AHEAD;
    for (; units > 0; units--, unit += l->unit, a += 8 * m) {
        for (uintptr_t line = 0; line < 128; line += 64)
            __builtin_prefetch((const void *)((uintptr_t)unit + next + line), 0, 2);
        vi low[DOT4_VECS], high[DOT4_VECS];
        CMOE_UNROLL
        for (int v = 0; v < DOT4_VECS; v++) {
            const vi word = vi_load(unit + 4 * v * VEC);
            low[v] = word & 0x0f0f0f0f;
            high[v] = word >> 4 & 0x0f0f0f0f;
        }
        CMOE_UNROLL
        for (int r = 0; r < m; r++) {
            CMOE_UNROLL
            for (int v = 0; v < DOT4_VECS; v++) {
                acc[r][v] = dot4(acc[r][v], low[v], a + 4 * r);
                acc[r][v] = dot4(acc[r][v], high[v], a + 4 * (m + r));
            }
        }
    }
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < DOT4_VECS; v++)
            sum[r][v] = dot4_widen(sum[r][v], acc[r][v]);
    }
}

/* One group of columns [col, ..): k's of it, rows at `a`; c += scale * sum. */
CMOE_INLINE void dot_u4_group(const struct cmoe_cpu_panel *l, const char *group, int col, int64_t k,
                              int m, const int8_t *a, const int32_t *offsets, float *c, int64_t ldc)
{
    const char *unit = group + l->scales + 4 * col;
    const uint8_t *const zeros = (const uint8_t *)group + l->scales - CMOE_CPU_PANEL + col;
    vi sum[DOT4_ROWS][DOT4_VECS];
    CMOE_UNROLL
    for (int v = 0; v < DOT4_VECS; v++) {
        const vi zero = l->zero ? (vi)((vu)load_u8(zeros + v * VEC) << 24) >> 24 : vi_set(1);
        CMOE_UNROLL
        for (int r = 0; r < m; r++)
            sum[r][v] = l->zero ? zero * vi_set(offsets[r]) : vi_set(offsets[r]);
    }
    const int64_t step = DOT4_UNITS * l->unit;
    int64_t units = (k + 7) / 8;
    for (; units > DOT4_UNITS; units -= DOT4_UNITS, unit += step, a += 8 * DOT4_UNITS * m)
        dot_u4_units(l, unit, DOT4_UNITS, m, a, sum);
    dot_u4_units(l, unit, units, m, a, sum);
    CMOE_UNROLL
    for (int v = 0; v < DOT4_VECS; v++) {
        const vf scale = load_scale(l->scale, group, col + v * VEC);
        CMOE_UNROLL
        for (int r = 0; r < m; r++) {
            float *const to = c + r * ldc + col + v * VEC;
            v_store(to, v_fma(vi_to_float(sum[r][v]), scale, v_load(to)));
        }
    }
}

CMOE_INLINE void dot_u4_rows(const struct cmoe_cpu_panel *l, const char *panel, int m,
                             const int8_t *a, const int32_t *offsets, const float *row_scale,
                             float *c, int64_t ldc)
{
    for (int r = 0; r < m; r++)
        memset(c + r * ldc, 0, CMOE_CPU_PANEL * sizeof *c);
    const char *group = panel + l->head;
    for (int64_t first = 0; first < l->k; first += l->span, group += l->group) {
        const int64_t k = l->k - first < l->span ? l->k - first : l->span;
        for (int col = 0; col < CMOE_CPU_PANEL; col += DOT4_VECS * VEC)
            dot_u4_group(l, group, col, k, m, a + first * m, offsets, c, ldc);
        offsets += m;
    }
    for (int r = 0; r < m; r++)
        for (int j = 0; j < CMOE_CPU_PANEL; j += VEC)
            v_store(c + r * ldc + j, v_load(c + r * ldc + j) * v_set(row_scale[r]));
}

/* One body for each number of rows, so that accumulators are registers. */
static void dot_u4(const struct cmoe_cpu_panel *l, const void *panel, int m, const void *a,
                   const int32_t *offsets, const float *row_scale, float *c, int64_t ldc)
{
    switch (m) {
    case 1:
        dot_u4_rows(l, panel, 1, a, offsets, row_scale, c, ldc);
        break;
    case 2:
        dot_u4_rows(l, panel, 2, a, offsets, row_scale, c, ldc);
        break;
    case 3:
        dot_u4_rows(l, panel, 3, a, offsets, row_scale, c, ldc);
        break;
#if !defined CMOE_ISA_AVX2 || defined CMOE_ISA_AVX512
    case 4:
        dot_u4_rows(l, panel, 4, a, offsets, row_scale, c, ldc);
        break;
#endif
#if defined CMOE_ISA_AVX512
    case 5:
        dot_u4_rows(l, panel, 5, a, offsets, row_scale, c, ldc);
        break;
    case 6:
        dot_u4_rows(l, panel, 6, a, offsets, row_scale, c, ldc);
        break;
#endif
    }
}

#endif
