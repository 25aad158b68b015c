/* SPDX-License-Identifier: MIT
 * Rows of any type times 4-bit codes by VNNI, which multiplies bytes only: a row's values have become
 * integers of one or three bytes over a scale of every span of k's, so that a span's sum is exact.
 *
 * A span of codes is decoded once, as unsigned bytes in registers, and all rows pass over it; what codes
 * count from is a span's first term. Spans meet in f32: of few rows in registers, of more in c. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_DIGITS_H
#define CMOE_BACKENDS_CPU_ISA_TILE_DIGITS_H

#include "backends/cpu/isa/codes.h"
#include "backends/cpu/isa/pack_digits.h"

#if defined CMOE_ISA_AVX512VNNI

/* DIGIT_ROWS1, DIGIT_ROWS3: rows of a step, by digits: twelve sums at a time cover the latency. DIGIT_FEW1,
 * DIGIT_FEW3: most rows whose results stay in registers over all of a panel, which have a loop of their own; three
 * and four rows of three digits do so by taking one half of a span's columns after the other. */
enum { DIGIT_ROWS1 = 6, DIGIT_ROWS3 = 2, DIGIT_FEW1 = 7, DIGIT_FEW3 = 4 };
enum { DIGIT_VECS = 2, MOST_QUADS = 8 };

/* --- codes ---------------------------------------------------------------------------------- */

/* A span of codes and what its sums are multiplied by, of 32 columns. */
struct code_span {
    const char *unit;
    uintptr_t ahead;                 /* what to ask the caches for beside the first unit */
    vi word[DIGIT_VECS][MOST_QUADS]; /* four k's a column, once decoded */
    vi zero[DIGIT_VECS];             /* zero points */
    vf scale[DIGIT_VECS];
};

/* Unit i, two words a column, of columns [from, to) in vectors. `streams`: what is ahead is read soon. */
CMOE_INLINE void decode_words(bool floats, bool streams, int i, int from, int to,
                              struct code_span *s)
{
    /* Twice the value of e2m1, plus 12. */
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    CMOE_UNROLL
    for (int v = from; v < to; v++) {
        const int at = (DIGIT_VECS * i + v) * 4 * VEC;
        const vi word = vi_load(s->unit + at);
        vi low = word & 0x0f0f0f0f, high = (vi)((vu)word >> 4) & 0x0f0f0f0f;
        fetch_line(s->ahead + (unsigned)at, streams);
        if (floats) {
            low = (vi)_mm512_shuffle_epi8(table, (__m512i)low);
            high = (vi)_mm512_shuffle_epi8(table, (__m512i)high);
        }
        s->word[v][2 * i] = low;
        s->word[v][2 * i + 1] = high;
    }
}

/* Codes of a panel from its k `at` on, which is `in` k's into a group. */
struct code_place {
    const char *panel, *group;
    int64_t at, in;
};

CMOE_INLINE void load_factors(bool zero, bool few, const struct cmoe_cpu_panel *l,
                              const struct code_place *p, struct code_span *out)
{
    const bool pair = few && l->scale == CMOE_E8M0;
    if (pair) load_e8m0_pair((const uint8_t *)p->group, out->scale);
    CMOE_UNROLL
    for (int v = 0; v < DIGIT_VECS; v++) {
        const int col = v * VEC;
        const uint8_t *const zeros = (const uint8_t *)p->group + l->scales - CMOE_CPU_PANEL + col;
        if (!pair) out->scale[v] = load_scale(l->scale, p->group, col);
        if (l->global) out->scale[v] *= v_load((const float *)(const void *)p->panel + col);
        out->zero[v] = zero ? load_u8(zeros) : vi_set(0);
    }
}

CMOE_INLINE void next_span(const struct cmoe_cpu_panel *l, int span, struct code_place *p)
{
    p->at += span;
    p->in += span;
    if (p->in < l->span) return;
    p->in = 0;
    p->group += l->group;
}

/* --- products ------------------------------------------------------------------------------- */

/* What a row brings to a panel, as constants after inlining: bytes of an integer, quads of a span, scales
 * of every span; and whether codes are e2m1 or have zero points. */
struct digit_kind {
    bool floats;
    int digits, quads;
    bool grouped, zero;
};

/* What rows bring to a span, and where their results lie. */
struct digit_rows {
    const char *words;
    const int32_t *offsets;
    const float *scales;
    float *c; /* [][32] */
};

/* Four codes a column times a row's quad. in_memory: as in v_fma_at. */
CMOE_INLINE vi dot_digit(bool in_memory, vi sum, vi codes, const char *quad)
{
    int32_t word;
    if (in_memory) {
        __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                : "+v"(sum)
                : "v"(codes), "m"(*(const char(*)[4])quad));
        return sum;
    }
    memcpy(&word, quad, sizeof word);
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, _mm512_set1_epi32(word));
}

/* m rows times a span's columns [from, to), in vectors; all but `s` and `x` are constants after inlining. Adds to
 * `total`, for which it decodes the span as it goes, or, without one, to c. Integers add up modulo 2^32: terms may
 * be out of the range that their sum is in. */
CMOE_INLINE void multiply_columns(struct digit_kind kind, int m, int from, int to,
                                  struct code_span *s, struct digit_rows x, vf (*total)[DIGIT_VECS])
{
    /* Steps of one digit over c are full of loads; a quad of one half meets nothing else. */
    const bool in_memory = total || kind.digits == 3, alone = to - from == 1;
    vi sum[DIGIT_FEW1][3][DIGIT_VECS];
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = from; v < to; v++) {
            const vu offset = (vu)vi_set(x.offsets[r]);
            sum[r][0][v] = (vi)(kind.zero ? (vu)s->zero[v] * offset : offset);
            sum[r][1][v] = sum[r][2][v] = vi_set(0);
        }
    }
    CMOE_UNROLL
    for (int q = 0; q < kind.quads; q++) {
        if (total && q % 2 == 0) decode_words(kind.floats, true, q / 2, from, to, s);
        CMOE_UNROLL
        for (int r = 0; r < m; r++) {
            CMOE_UNROLL
            for (int i = 0; i < kind.digits; i++) {
                const char *const quad = x.words + ((r * kind.digits + i) * kind.quads + q) * 4;
                CMOE_UNROLL
                for (int v = from; v < to; v++)
                    sum[r][i][v] = dot_digit(in_memory && (alone || (r + i) % 2), sum[r][i][v],
                                             s->word[v][q], quad);
            }
        }
    }
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = from; v < to; v++) {
            float *const c = x.c + r * CMOE_CPU_PANEL + v * VEC;
            vu whole = (vu)sum[r][0][v];
            if (kind.digits == 3) whole += (((vu)sum[r][2][v] << 8) + (vu)sum[r][1][v]) << 8;
            vf value = vi_to_float((vi)whole);
            if (kind.grouped) value *= v_set(x.scales[r]);
            if (total)
                total[r][v] = v_fma(value, s->scale[v], total[r][v]);
            else
                v_store(c, v_fma(value, s->scale[v], v_load(c)));
        }
    }
}

/* All columns: at once where sums have room. */
CMOE_INLINE void multiply_digits(struct digit_kind kind, int m, struct code_span *s,
                                 struct digit_rows x, vf (*total)[DIGIT_VECS])
{
    if (kind.digits == 3 && m > DIGIT_ROWS3) {
        multiply_columns(kind, m, 0, 1, s, x, total);
        multiply_columns(kind, m, 1, 2, s, x, total);
    } else {
        multiply_columns(kind, m, 0, DIGIT_VECS, s, x, total);
    }
}

/* All m rows of an item times one decoded span. */
CMOE_INLINE void digit_span(struct digit_kind kind, int m, struct code_span *s, struct digit_rows x)
{
    const int step = kind.digits == 1 ? DIGIT_ROWS1 : DIGIT_ROWS3;
    for (; m >= step; m -= step) {
        multiply_digits(kind, step, s, x, NULL);
        x.words += step * kind.digits * kind.quads * 4;
        x.offsets += step;
        x.scales += step;
        x.c += step * CMOE_CPU_PANEL;
    }
    if (m == 1) multiply_digits(kind, 1, s, x, NULL);
    if (m == 2 && step > 2) multiply_digits(kind, 2, s, x, NULL);
    if (m == 3 && step > 3) multiply_digits(kind, 3, s, x, NULL);
    if (m == 4 && step > 4) multiply_digits(kind, 4, s, x, NULL);
    if (m == 5 && step > 5) multiply_digits(kind, 5, s, x, NULL);
}

enum { SPAN_BYTES = MOST_QUADS * 4 * CMOE_CPU_PANEL / 2 };

/* Where the next span of a panel lies; what the panel lacks of it is 0, in `last`. */
CMOE_INLINE void find_span(struct digit_kind kind, bool few, const struct cmoe_cpu_panel *l,
                           const struct code_place *p, uintptr_t ahead, char last[SPAN_BYTES],
                           struct code_span *out)
{
    const int64_t units = (l->k - p->at + 7) >> 3;
    out->unit = p->group + l->scales + p->in * (4 * CMOE_CPU_PANEL / 8);
    out->ahead = (uintptr_t)out->unit + ahead;
    if (p->in == 0) fetch_scales(p->group, ahead, l->scales, few);
    if (units < kind.quads / 2) {
        memset(last, 0, SPAN_BYTES);
        out->unit = memcpy(last, out->unit, (size_t)units * 4 * CMOE_CPU_PANEL);
    }
    load_factors(kind.zero, few, l, p, out);
}

/* m rows, a constant: results stay in registers. */
CMOE_INLINE void digits_few(struct digit_kind kind, int m, const struct cmoe_cpu_panel *panel,
                            const char *from, struct digit_rows x)
{
    const struct cmoe_cpu_panel l = *panel;
    const float *const scale = x.scales;
    struct code_place p = {.panel = from, .group = from + l.head};
    char last[SPAN_BYTES];
    vf total[DIGIT_FEW1][DIGIT_VECS];
    CMOE_UNROLL
    for (int r = 0; r < m; r++)
        total[r][0] = total[r][1] = v_set(0);
    for (; p.at < l.k; next_span(&l, 4 * kind.quads, &p)) {
        struct code_span span;
        find_span(kind, true, &l, &p, CMOE_CPU_STREAM_AHEAD, last, &span);
        multiply_digits(kind, m, &span, x, total);
        x.words += m * kind.digits * kind.quads * 4;
        x.offsets += m;
        x.scales += m;
    }
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < DIGIT_VECS; v++) {
            const vf value = kind.grouped ? total[r][v] : total[r][v] * v_set(scale[r]);
            v_store(x.c + r * CMOE_CPU_PANEL + v * VEC, value);
        }
    }
}

/* Any number of rows, over c, which starts at 0. */
CMOE_INLINE void digits_many(struct digit_kind kind, int m, const struct cmoe_cpu_panel *panel,
                             const char *from, struct digit_rows x)
{
    const struct cmoe_cpu_panel l = *panel;
    const float *const scale = x.scales;
    struct code_place p = {.panel = from, .group = from + l.head};
    char last[SPAN_BYTES];
    memset(x.c, 0, (size_t)m * CMOE_CPU_PANEL * sizeof *x.c);
    for (; p.at < l.k; next_span(&l, 4 * kind.quads, &p)) {
        struct code_span span;
        find_span(kind, false, &l, &p, (uintptr_t)l.bytes, last, &span);
        CMOE_UNROLL
        for (int i = 0; i < kind.quads / 2; i++)
            decode_words(kind.floats, false, i, 0, DIGIT_VECS, &span);
        digit_span(kind, m, &span, x);
        x.words += (int64_t)m * kind.digits * kind.quads * 4;
        x.offsets += m;
        x.scales += m;
    }
    for (int r = 0; r < m && !kind.grouped; r++, x.c += CMOE_CPU_PANEL) {
        CMOE_UNROLL
        for (int j = 0; j < CMOE_CPU_PANEL; j += VEC)
            v_store(x.c + j, v_load(x.c + j) * v_set(scale[r]));
    }
}

CMOE_INLINE void digits_as(struct digit_kind kind, const struct cmoe_cpu_panel *l, const char *from,
                           int m, struct digit_rows x)
{
    const int few = kind.digits == 1 ? DIGIT_FEW1 : DIGIT_FEW3;
    if (m > few)
        digits_many(kind, m, l, from, x);
    else if (m == 1)
        digits_few(kind, 1, l, from, x);
    else if (few >= 2 && m == 2)
        digits_few(kind, 2, l, from, x);
    else if (few >= 3 && m == 3)
        digits_few(kind, 3, l, from, x);
    else if (few >= 4 && m == 4)
        digits_few(kind, 4, l, from, x);
    else if (few >= 5 && m == 5)
        digits_few(kind, 5, l, from, x);
    else if (few >= 6 && m == 6)
        digits_few(kind, 6, l, from, x);
    else if (few >= 7)
        digits_few(kind, 7, l, from, x);
}

/* --- ways ----------------------------------------------------------------------------------- */

/* One function for each way: a compiler that sees all of them at once keeps little in registers. */
typedef void multiply_panel(const struct cmoe_cpu_panel *l, const char *panel, int m,
                            struct digit_rows x);

static void dot_u4(const struct cmoe_cpu_panel *l, const char *panel, int m, struct digit_rows x)
{
    digits_as((struct digit_kind){false, 1, 8, false, false}, l, panel, m, x);
}

static void dot_u4_zero(const struct cmoe_cpu_panel *l, const char *panel, int m,
                        struct digit_rows x)
{
    digits_as((struct digit_kind){false, 1, 8, false, true}, l, panel, m, x);
}

static void dot_u4_grouped(const struct cmoe_cpu_panel *l, const char *panel, int m,
                           struct digit_rows x)
{
    digits_as((struct digit_kind){false, 1, 8, true, false}, l, panel, m, x);
}

static void dot_u4_zero_grouped(const struct cmoe_cpu_panel *l, const char *panel, int m,
                                struct digit_rows x)
{
    digits_as((struct digit_kind){false, 1, 8, true, true}, l, panel, m, x);
}

static void dot_u4_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                        struct digit_rows x)
{
    digits_as((struct digit_kind){false, 3, 8, true, false}, l, panel, m, x);
}

static void dot_u4_zero_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                             struct digit_rows x)
{
    digits_as((struct digit_kind){false, 3, 8, true, true}, l, panel, m, x);
}

static void dot_e2m1(const struct cmoe_cpu_panel *l, const char *panel, int m, struct digit_rows x)
{
    digits_as((struct digit_kind){true, 1, 8, false, false}, l, panel, m, x);
}

static void dot_e2m1_grouped(const struct cmoe_cpu_panel *l, const char *panel, int m,
                             struct digit_rows x)
{
    digits_as((struct digit_kind){true, 1, 8, true, false}, l, panel, m, x);
}

static void dot_e2m1_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                          struct digit_rows x)
{
    digits_as((struct digit_kind){true, 3, 8, true, false}, l, panel, m, x);
}

static void dot_e2m1_16(const struct cmoe_cpu_panel *l, const char *panel, int m,
                        struct digit_rows x)
{
    digits_as((struct digit_kind){true, 1, 4, true, false}, l, panel, m, x);
}

static void dot_e2m1_16_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                             struct digit_rows x)
{
    digits_as((struct digit_kind){true, 3, 4, true, false}, l, panel, m, x);
}

static const struct way {
    bool floats;
    int digits, span;
    bool grouped, zero;
    multiply_panel *multiply;
} ways[] = {
    {false, 1, 32, false, false, dot_u4},         {false, 1, 32, false, true, dot_u4_zero},
    {false, 1, 32, true, false, dot_u4_grouped},  {false, 1, 32, true, true, dot_u4_zero_grouped},
    {false, 3, 32, true, false, dot_u4_wide},     {false, 3, 32, true, true, dot_u4_zero_wide},
    {true, 1, 32, false, false, dot_e2m1},        {true, 1, 32, true, false, dot_e2m1_grouped},
    {true, 3, 32, true, false, dot_e2m1_wide},    {true, 1, 16, true, false, dot_e2m1_16},
    {true, 3, 16, true, false, dot_e2m1_16_wide},
};

static void dot_digits(const struct cmoe_cpu_digits *d, const struct cmoe_cpu_panel *l,
                       const void *panel, int m, const void *words, const int32_t *offsets,
                       const float *scales, float *c)
{
    const struct digit_rows x = {.words = words, .offsets = offsets, .scales = scales, .c = c};
    const bool floats = l->code == CMOE_CPU_CODE_E2M1;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (ways[i].floats == floats && ways[i].digits == d->digits && ways[i].span == d->span &&
            ways[i].grouped == d->grouped && ways[i].zero == l->zero)
            ways[i].multiply(l, panel, m, x);
}

#endif
#endif
