/* SPDX-License-Identifier: MIT
 * The integer tile over a p32_i8 panel: rows x 32 columns, int32 accumulators in registers.
 *
 * VNNI multiplies unsigned by signed bytes: rows are stored plus 128 and the accumulators begin at
 * -128 times the column's sum. Without it, bytes are widened to 16 bits and multiplied in pairs,
 * which is exact for every code; SSE2, which every x86-64 has, can do that too. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_I8_H
#define CMOE_BACKENDS_CPU_ISA_TILE_I8_H

#include "backends/cpu/isa/fetch.h"
#include "backends/cpu/isa/vec.h"
#include "backends/cpu/ops_quant.h"

/* PARTS: operands that a word of four codes is split into. */
#if defined CMOE_ISA_AVX512VNNI
enum { QUAD_BYTES = 4, DOT8_ROWS = 14, PARTS = 1 };
#elif defined CMOE_ISA_AVX512
enum { QUAD_BYTES = 8, DOT8_ROWS = 8, PARTS = 2 };
#elif defined CMOE_MADD16
enum { QUAD_BYTES = 8, DOT8_ROWS = 4, PARTS = 2 };
#else
enum { QUAD_BYTES = 4, DOT8_ROWS = 4, PARTS = 4 };
#endif
enum { DOT8_VECS = 2 };

/* Four codes a word to operands of the dot. */
CMOE_INLINE void split_codes(vi b, vi part[PARTS])
{
#if defined CMOE_ISA_AVX512VNNI
    part[0] = b;
#elif defined CMOE_MADD16
    part[0] = vi_even16(b);
    part[1] = vi_odd16(b);
#else
    for (int i = 0; i < PARTS; i++)
        part[i] = (vi)((vu)b << (24 - 8 * i)) >> 24;
#endif
}

/* A quad of a row beside every column. */
CMOE_INLINE void load_quad(const char *p, vi a[PARTS])
{
#if defined CMOE_ISA_AVX512VNNI || defined CMOE_MADD16
    for (int i = 0; i < PARTS; i++) {
        int32_t word;
        memcpy(&word, p + 4 * i, sizeof word);
        a[i] = vi_set(word);
    }
#else
    for (int i = 0; i < PARTS; i++)
        a[i] = vi_set((int8_t)p[i]);
#endif
}

CMOE_INLINE vi dot_quad(vi acc, const vi a[PARTS], const vi b[PARTS])
{
#if defined CMOE_ISA_AVX512VNNI
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)a[0], (__m512i)b[0]);
#elif defined CMOE_MADD16
    acc += vi_madd16(a[0], b[0]);
    return acc + vi_madd16(a[1], b[1]);
#else
    for (int i = 0; i < PARTS; i++)
        acc += a[i] * b[i];
    return acc;
#endif
}

/* One quad of codes as dot_quad wants it. */
CMOE_INLINE void store_quad(const int8_t code[4], char *a)
{
#if defined CMOE_ISA_AVX512VNNI
    uint32_t word;
    memcpy(&word, code, sizeof word);
    word ^= 0x80808080u;
    memcpy(a, &word, sizeof word);
#elif defined CMOE_MADD16
    const int16_t wide[4] = {code[0], code[2], code[1], code[3]};
    memcpy(a, wide, sizeof wide);
#else
    memcpy(a, code, 4);
#endif
}

#if defined CMOE_ISA_AVX512VNNI
/* Four quads of four rows to records of m quads. */
CMOE_INLINE void pack_4x4(const void *const *rows, int64_t at, int m, char *to)
{
    __m128i row[4];
    CMOE_UNROLL
    for (int r = 0; r < 4; r++)
        row[r] = _mm_xor_si128(_mm_loadu_si128((const void *)((const char *)rows[r] + at)),
                               _mm_set1_epi8(-128));
    const __m128i ab = _mm_unpacklo_epi32(row[0], row[1]), ab2 = _mm_unpackhi_epi32(row[0], row[1]);
    const __m128i cd = _mm_unpacklo_epi32(row[2], row[3]), cd2 = _mm_unpackhi_epi32(row[2], row[3]);
    _mm_storeu_si128((void *)to, _mm_unpacklo_epi64(ab, cd));
    _mm_storeu_si128((void *)(to + 4 * m), _mm_unpackhi_epi64(ab, cd));
    _mm_storeu_si128((void *)(to + 8 * m), _mm_unpacklo_epi64(ab2, cd2));
    _mm_storeu_si128((void *)(to + 12 * m), _mm_unpackhi_epi64(ab2, cd2));
}

/* Rows and k's that fill blocks of 4 rows by 16. @return the rows done, up to k 16 * (k / 16) */
CMOE_INLINE int pack_blocks(const void *const *rows, int m, int64_t k, char *a)
{
    int r = 0;
    for (; r + 4 <= m; r += 4)
        for (int64_t i = 0; i + 16 <= k; i += 16)
            pack_4x4(rows + r, i, m, a + i * m + 4 * r);
    return r;
}
#endif

static void pack_i8(const void *const *rows, int m, int64_t k, void *a)
{
    int blocks = 0; /* rows of which whole 16 k's are done */
#if defined CMOE_ISA_AVX512VNNI
    blocks = pack_blocks(rows, m, k, a);
#endif
    for (int r = 0; r < m; r++) {
        const int8_t *const row = rows[r];
        int64_t i = r < blocks ? k / 16 * 16 : 0;
        char *to = (char *)a + r * QUAD_BYTES + i / 4 * m * QUAD_BYTES;
        for (; i + 4 <= k; i += 4, to += m * QUAD_BYTES)
            store_quad(row + i, to);
        int8_t tail[4] = {0};
        for (int64_t j = i; j < k; j++)
            tail[j - i] = row[j];
        if (i < k) store_quad(tail, to);
    }
}

/* One quad of k's: `a` of all rows, `b` of the panel. */
CMOE_INLINE void dot_step(int m, const char *a, const char *b, vi acc[DOT8_ROWS][DOT8_VECS])
{
    vi part[DOT8_VECS][PARTS];
    CMOE_UNROLL
    for (int v = 0; v < DOT8_VECS; v++)
        split_codes(vi_load(b + 4 * v * VEC), part[v]);
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        vi quad[PARTS];
        load_quad(a + r * QUAD_BYTES, quad);
        CMOE_UNROLL
        for (int v = 0; v < DOT8_VECS; v++)
            acc[r][v] = dot_quad(acc[r][v], quad, part[v]);
    }
}

/* What the sums of the panel's columns begin with: those of the k's before, c, or none. */
CMOE_INLINE vi dot_i8_begin(const char *panel, int col, const float *c, bool more)
{
    if (more) return vi_load(c);
#if defined CMOE_ISA_AVX512VNNI
    return vi_load(panel + 4 * col);
#else
    (void)panel;
    (void)col;
    return vi_set(0);
#endif
}

/* DOT8_VECS vectors of columns from `col` on. m and soon are constants after inlining. */
CMOE_INLINE void dot_i8_tile(const struct cmoe_cpu_panel *l, const char *panel, int64_t first,
                             int64_t k, int col, int m, const char *a, const float *row_scale,
                             float *c, int64_t ldc, bool soon, struct cmoe_cpu_ahead ahead)
{
    enum { UNIT = 4 * CMOE_CPU_PANEL, QUADS = CMOE_CPU_CHUNK / 4 };
    const char *b = panel + l->head + l->scales + first * CMOE_CPU_PANEL + 4 * col;
    const float *const scale = (const float *)(const void *)(panel + l->head) + col;
    const bool last = first + k >= l->k;
    vi acc[DOT8_ROWS][DOT8_VECS];
    c += col;
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < DOT8_VECS; v++)
            acc[r][v] = dot_i8_begin(panel, col + v * VEC, c + r * ldc + v * VEC, first > 0);
    }
    int64_t quads = (k + 3) / 4;
    for (; quads >= QUADS; quads -= QUADS) {
        CMOE_UNROLL
        for (int q = 0; q < QUADS; q++) {
            if (soon)
                fetch_soon(b + q * UNIT, UNIT);
            else
                fetch(ahead, q, QUADS);
            dot_step(m, a + q * m * QUAD_BYTES, b + q * UNIT, acc);
        }
        ahead.at = (const void *)((uintptr_t)ahead.at + 64U * (unsigned)ahead.lines);
        a += QUADS * m * QUAD_BYTES;
        b += QUADS * UNIT;
    }
    for (; quads > 0; quads--, a += m * QUAD_BYTES, b += UNIT)
        dot_step(m, a, b, acc);
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < DOT8_VECS; v++) {
            const vf result =
                last ? vi_to_float(acc[r][v]) * (v_load(scale + v * VEC) * v_set(row_scale[r]))
                     : v_float(acc[r][v]);
            v_store(c + r * ldc + v * VEC, result);
        }
    }
}

CMOE_INLINE void dot_i8_rows(const struct cmoe_cpu_panel *l, const char *panel, int64_t first,
                             int64_t k, int m, const char *a, const float *row_scale, float *c,
                             int64_t ldc, struct cmoe_cpu_ahead ahead)
{
    for (int col = 0; col < CMOE_CPU_PANEL; col += DOT8_VECS * VEC) {
        if (col == 0 && ahead.soon)
            dot_i8_tile(l, panel, first, k, 0, m, a, row_scale, c, ldc, true, ahead);
        else
            dot_i8_tile(l, panel, first, k, col, m, a, row_scale, c, ldc, false,
                        col == 0 ? ahead : (struct cmoe_cpu_ahead){0});
    }
}

/* One body for each number of rows, so that accumulators are registers. */
static void dot_i8(const struct cmoe_cpu_panel *l, const void *panel, int64_t first, int64_t k,
                   int m, const void *a, const float *row_scale, float *c, int64_t ldc,
                   struct cmoe_cpu_ahead ahead)
{
    switch (m) {
    case 1:
        dot_i8_rows(l, panel, first, k, 1, a, row_scale, c, ldc, ahead);
        break;
    case 2:
        dot_i8_rows(l, panel, first, k, 2, a, row_scale, c, ldc, ahead);
        break;
    case 3:
        dot_i8_rows(l, panel, first, k, 3, a, row_scale, c, ldc, ahead);
        break;
    case 4:
        dot_i8_rows(l, panel, first, k, 4, a, row_scale, c, ldc, ahead);
        break;
#if defined CMOE_ISA_AVX512
    case 5:
        dot_i8_rows(l, panel, first, k, 5, a, row_scale, c, ldc, ahead);
        break;
    case 6:
        dot_i8_rows(l, panel, first, k, 6, a, row_scale, c, ldc, ahead);
        break;
    case 7:
        dot_i8_rows(l, panel, first, k, 7, a, row_scale, c, ldc, ahead);
        break;
    case 8:
        dot_i8_rows(l, panel, first, k, 8, a, row_scale, c, ldc, ahead);
        break;
#endif
#if defined CMOE_ISA_AVX512VNNI
    case 9:
        dot_i8_rows(l, panel, first, k, 9, a, row_scale, c, ldc, ahead);
        break;
    case 10:
        dot_i8_rows(l, panel, first, k, 10, a, row_scale, c, ldc, ahead);
        break;
    case 11:
        dot_i8_rows(l, panel, first, k, 11, a, row_scale, c, ldc, ahead);
        break;
    case 12:
        dot_i8_rows(l, panel, first, k, 12, a, row_scale, c, ldc, ahead);
        break;
    case 13:
        dot_i8_rows(l, panel, first, k, 13, a, row_scale, c, ldc, ahead);
        break;
    case 14:
        dot_i8_rows(l, panel, first, k, 14, a, row_scale, c, ldc, ahead);
        break;
#endif
    }
}

#endif
