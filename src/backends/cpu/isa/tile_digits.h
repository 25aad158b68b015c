/* SPDX-License-Identifier: MIT
 * Rows of any type times 4-bit codes by VNNI, which multiplies bytes only: a row's values become
 * integers of one or three bytes over a scale of every span of k's, so that a span's sum is exact.
 *
 * A span of codes is decoded once, as unsigned bytes in registers, and all rows pass over it; what codes
 * count from is a span's first term. Spans meet in f32, in c. */
#ifndef CMOE_BACKENDS_CPU_ISA_TILE_DIGITS_H
#define CMOE_BACKENDS_CPU_ISA_TILE_DIGITS_H

#include "backends/cpu/isa/codes.h"

#if defined CMOE_ISA_AVX512VNNI

/* ROWS1, ROWS3: rows of a step, by digits: twelve sums at a time cover the latency. Of two rows with three
 * digits each clang 14 keeps the sums in memory, which takes twice as long as one row. */
#    if defined __clang__
enum { DIGIT_ROWS3 = 1 };
#    else
enum { DIGIT_ROWS3 = 2 };
#    endif
enum { DIGIT_ROWS1 = 6, DIGIT_VECS = 2, MOST_QUADS = 8 };

/* --- rows ----------------------------------------------------------------------------------- */

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

/* 16 integers of a span to its record. */
CMOE_INLINE void store_digits(int digits, int span, vi x, char *to)
{
#    pragma GCC unroll 3
    for (int i = 0; i < digits; i++, to += span) {
        _mm_storeu_si128((void *)to, _mm512_cvtepi32_epi8((__m512i)x));
        x = (x + 128) >> 8;
    }
}

/* A span of values, v[1] too where it has 32; digits and span are constants after inlining. False: no
 * integers stand for it. */
CMOE_INLINE bool pack_span(int digits, int span, const struct cmoe_cpu_digits *d, const vf v[2],
                           float given, char *words, int32_t *offset, float *one)
{
    struct digit_scale scale;
    vu most = (vu)v_bits(v_abs(v[0]));
    if (span > VEC) most = (vu)_mm512_max_epu32((__m512i)most, (__m512i)v_bits(v_abs(v[1])));
    if (!span_scale(d, _mm512_reduce_max_epu32((__m512i)most), given, &scale)) return false;
    vi sum = {0};
#    pragma GCC unroll 2
    for (int i = 0; i < span / VEC; i++) {
        const __m512 x = (__m512)(v[i] * v_set(scale.factor));
        const vi whole =
            (vi)_mm512_cvt_roundps_epi32(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        store_digits(digits, span, whole, words + i * VEC);
        sum += whole;
    }
    const uint32_t total = (uint32_t)_mm512_reduce_add_epi32((__m512i)sum);
    *offset = (int32_t)((uint32_t)-d->minus * total);
    *one = scale.one;
    return true;
}

/* The same of int8: bytes as they are. */
CMOE_INLINE int32_t pack_bytes(const struct cmoe_cpu_digits *d, const uint8_t *codes, int64_t k,
                               char *words)
{
    const __mmask32 held = k >= 2 * VEC ? 0xffffffff : (__mmask32)((1U << k) - 1);
    const __m256i x = _mm256_maskz_loadu_epi8(held, codes);
    const __m256i sums = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), x);
    const __m128i four =
        _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    const __m128i two = _mm_add_epi32(four, _mm_srli_si128(four, 8));
    _mm256_storeu_si256((void *)words, x);
    return -d->minus * (_mm_extract_epi32(two, 0) + _mm_extract_epi32(two, 1));
}

/* Where m rows of integers go. */
struct digit_records {
    char *words;
    int32_t *offsets;
    float *scales;
};

/* Spans of a row from its k `at` on, before k `end`; what comes first is constant after inlining. */
CMOE_INLINE void pack_row(cmoe_dtype dtype, int digits, int span, const struct cmoe_cpu_digits *d,
                          const struct cmoe_cpu_digit_row *row, int m, int64_t at, int64_t end,
                          struct digit_records to)
{
    const struct cmoe_cpu_x_scale *const s = &row->scale;
    const int64_t half = (int64_t)cmoe_dtype_bytes(dtype, VEC);
    const uint8_t *codes = (const uint8_t *)row->codes + at / VEC * half;
    for (; at < end; at += span, codes += span / VEC * half) {
        const float given = (s->span ? s->of_group[at / s->span] : s->one) * s->global;
        const int64_t left = end - at;
        vf v[2];
        if (dtype == CMOE_I8 && !d->grouped) {
            *to.offsets = pack_bytes(d, codes, left, to.words);
            *to.scales = given * d->unit;
        } else if (left >= 2 * VEC) {
            v[0] = digit_values(dtype, codes);
            v[1] = digit_values(dtype, codes + half);
        } else {
            v[0] = last_values(dtype, codes, left < VEC ? left : VEC);
            v[1] = last_values(dtype, codes + half, left - VEC);
        }
        if ((dtype != CMOE_I8 || d->grouped) &&
            !pack_span(digits, span, d, v, given, to.words, to.offsets, to.scales))
            *row->streams = true;
        to.words += (int64_t)m * digits * span;
        to.offsets += m;
        to.scales += m;
    }
}

CMOE_INLINE void pack_digits_as(cmoe_dtype dtype, int digits, int span,
                                const struct cmoe_cpu_digits *d,
                                const struct cmoe_cpu_digit_row *rows, int m, int64_t k,
                                struct digit_records to)
{
    enum { BLOCK = 32 }; /* so that records are written one after the other */
    for (int64_t at = 0; at < k; at += BLOCK) {
        const int64_t end = k - at < BLOCK ? k : at + BLOCK;
        for (int r = 0; r < m; r++) {
            const int64_t record = at / span * m + r;
            const struct digit_records one = {.words = to.words + record * digits * span,
                                              .offsets = to.offsets + record,
                                              .scales = to.scales + record};
            pack_row(dtype, digits, span, d, rows + r, m, at, end, one);
        }
    }
}

static void pack_digits(const struct cmoe_cpu_digits *d, cmoe_dtype dtype,
                        const struct cmoe_cpu_digit_row *rows, int m, int64_t k, void *words,
                        int32_t *offsets, float *scales)
{
    const struct digit_records to = {.words = words, .offsets = offsets, .scales = scales};
    const bool half = d->span == 16;
    if (dtype == CMOE_BF16 && half)
        pack_digits_as(CMOE_BF16, 3, 16, d, rows, m, k, to);
    else if (dtype == CMOE_BF16)
        pack_digits_as(CMOE_BF16, 3, 32, d, rows, m, k, to);
    else if (dtype == CMOE_F16)
        pack_digits_as(CMOE_F16, 3, d->span, d, rows, m, k, to);
    else if (dtype == CMOE_E4M3)
        pack_digits_as(CMOE_E4M3, 3, d->span, d, rows, m, k, to);
    else if (dtype == CMOE_E2M1)
        pack_digits_as(CMOE_E2M1, 1, d->span, d, rows, m, k, to);
    else
        pack_digits_as(CMOE_I8, 1, d->span, d, rows, m, k, to);
}

/* --- codes ---------------------------------------------------------------------------------- */

/* A span of codes and what its sums are multiplied by, of 32 columns. */
struct code_span {
    vi word[DIGIT_VECS][MOST_QUADS]; /* four k's a column */
    vi zero[DIGIT_VECS];             /* zero points */
    vf scale[DIGIT_VECS];
};

/* units: those that the panel holds; the rest is 0. Fetches the same span of what comes next. */
CMOE_INLINE void decode_span(bool floats, const char *unit, int64_t units, int quads,
                             uintptr_t next, struct code_span *out)
{
    /* Twice the value of e2m1, plus 12. */
    const __m512i table = _mm512_broadcast_i32x4(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    const uintptr_t ahead = (uintptr_t)unit + next;
#    pragma GCC unroll 4
    for (int i = 0; i < quads / 2; i++)
#    pragma GCC unroll 2
        for (int v = 0; v < DIGIT_VECS; v++) {
            const int at = (DIGIT_VECS * i + v) * 4 * VEC;
            const vi word = i < units ? vi_load(unit + at) : vi_set(0);
            __builtin_prefetch((const void *)(ahead + (uintptr_t)at), 0, 2);
            vi low = word & 0x0f0f0f0f, high = (vi)((vu)word >> 4) & 0x0f0f0f0f;
            if (floats) {
                low = (vi)_mm512_shuffle_epi8(table, (__m512i)low);
                high = (vi)_mm512_shuffle_epi8(table, (__m512i)high);
            }
            out->word[v][2 * i] = low;
            out->word[v][2 * i + 1] = high;
        }
}

/* Codes of a panel from its k `at` on, which is `in` k's into a group. */
struct code_place {
    const char *panel, *group;
    int64_t at, in;
};

CMOE_INLINE void load_span(bool floats, bool zero, const struct cmoe_cpu_panel *l,
                           const struct code_place *p, int quads, uintptr_t next,
                           struct code_span *out)
{
    const char *const unit = p->group + l->scales + p->in * (4 * CMOE_CPU_PANEL / 8);
    const int64_t units = (l->k - p->at + 7) >> 3;
    if (units >= quads / 2)
        decode_span(floats, unit, MOST_QUADS, quads, next, out);
    else
        decode_span(floats, unit, units, quads, next, out);
#    pragma GCC unroll 2
    for (int v = 0; v < DIGIT_VECS; v++) {
        const int col = v * VEC;
        const uint8_t *const zeros = (const uint8_t *)p->group + l->scales - CMOE_CPU_PANEL + col;
        out->scale[v] = load_scale(l->scale, p->group, col);
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

/* What rows bring to a span, and where their results lie. */
struct digit_rows {
    const char *words;
    const int32_t *offsets;
    const float *scales;
    float *c; /* [][32] */
};

/* m rows; all but `s` and `x` are constants after inlining. */
CMOE_INLINE void multiply_digits(int digits, int quads, bool grouped, bool zero, int m,
                                 const struct code_span *s, struct digit_rows x)
{
    vi sum[DIGIT_ROWS1][3][DIGIT_VECS];
#    pragma GCC unroll 6
    for (int r = 0; r < m; r++)
#    pragma GCC unroll 2
        for (int v = 0; v < DIGIT_VECS; v++) {
            sum[r][0][v] = zero ? s->zero[v] * vi_set(x.offsets[r]) : vi_set(x.offsets[r]);
            sum[r][1][v] = sum[r][2][v] = vi_set(0);
        }
#    pragma GCC unroll 8
    for (int q = 0; q < quads; q++)
#    pragma GCC unroll 6
        for (int r = 0; r < m; r++)
#    pragma GCC unroll 3
            for (int i = 0; i < digits; i++) {
                int32_t quad;
                memcpy(&quad, x.words + ((r * digits + i) * quads + q) * 4, sizeof quad);
#    pragma GCC unroll 2
                for (int v = 0; v < DIGIT_VECS; v++)
                    sum[r][i][v] = (vi)_mm512_dpbusd_epi32(
                        (__m512i)sum[r][i][v], (__m512i)s->word[v][q], _mm512_set1_epi32(quad));
            }
#    pragma GCC unroll 6
    for (int r = 0; r < m; r++)
#    pragma GCC unroll 2
        for (int v = 0; v < DIGIT_VECS; v++) {
            float *const c = x.c + r * CMOE_CPU_PANEL + v * VEC;
            vi whole = sum[r][0][v];
            if (digits == 3) whole += ((sum[r][2][v] << 8) + sum[r][1][v]) << 8;
            vf value = vi_to_float(whole);
            if (grouped) value *= v_set(x.scales[r]);
            v_store(c, v_fma(value, s->scale[v], v_load(c)));
        }
}

/* All m rows of an item times one span. */
CMOE_INLINE void digit_span(int digits, int quads, bool grouped, bool zero, int m,
                            const struct code_span *s, struct digit_rows x)
{
    const int step = digits == 1 ? DIGIT_ROWS1 : DIGIT_ROWS3;
    for (; m >= step; m -= step) {
        multiply_digits(digits, quads, grouped, zero, step, s, x);
        x.words += step * digits * quads * 4;
        x.offsets += step;
        x.scales += step;
        x.c += step * CMOE_CPU_PANEL;
    }
    if (m == 1) multiply_digits(digits, quads, grouped, zero, 1, s, x);
    if (m == 2 && step > 2) multiply_digits(digits, quads, grouped, zero, 2, s, x);
    if (m == 3 && step > 3) multiply_digits(digits, quads, grouped, zero, 3, s, x);
    if (m == 4 && step > 4) multiply_digits(digits, quads, grouped, zero, 4, s, x);
    if (m == 5 && step > 5) multiply_digits(digits, quads, grouped, zero, 5, s, x);
}

CMOE_INLINE void digits_as(bool floats, int digits, int quads, bool grouped, bool zero,
                           const struct cmoe_cpu_panel *panel, const char *from, int m,
                           struct digit_rows x)
{
    const uintptr_t next =
        m >= CMOE_CPU_STREAM_ROWS ? (uintptr_t)panel->bytes : CMOE_CPU_STREAM_AHEAD;
    const struct cmoe_cpu_panel l = *panel;
    struct code_place p = {.panel = from, .group = from + l.head};
    for (; p.at < l.k; next_span(&l, 4 * quads, &p)) {
        struct code_span span;
        load_span(floats, zero, &l, &p, quads, next, &span);
        digit_span(digits, quads, grouped, zero, m, &span, x);
        x.words += (int64_t)m * digits * quads * 4;
        x.offsets += m;
        x.scales += m;
    }
}

/* --- ways ----------------------------------------------------------------------------------- */

/* One function for each way: a compiler that sees all of them at once keeps little in registers. */
typedef void multiply_panel(const struct cmoe_cpu_panel *l, const char *panel, int m,
                            struct digit_rows x);

static void dot_u4(const struct cmoe_cpu_panel *l, const char *panel, int m, struct digit_rows x)
{
    digits_as(false, 1, 8, false, false, l, panel, m, x);
}

static void dot_u4_zero(const struct cmoe_cpu_panel *l, const char *panel, int m,
                        struct digit_rows x)
{
    digits_as(false, 1, 8, false, true, l, panel, m, x);
}

static void dot_u4_grouped(const struct cmoe_cpu_panel *l, const char *panel, int m,
                           struct digit_rows x)
{
    digits_as(false, 1, 8, true, false, l, panel, m, x);
}

static void dot_u4_zero_grouped(const struct cmoe_cpu_panel *l, const char *panel, int m,
                                struct digit_rows x)
{
    digits_as(false, 1, 8, true, true, l, panel, m, x);
}

static void dot_u4_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                        struct digit_rows x)
{
    digits_as(false, 3, 8, true, false, l, panel, m, x);
}

static void dot_u4_zero_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                             struct digit_rows x)
{
    digits_as(false, 3, 8, true, true, l, panel, m, x);
}

static void dot_e2m1(const struct cmoe_cpu_panel *l, const char *panel, int m, struct digit_rows x)
{
    digits_as(true, 1, 8, false, false, l, panel, m, x);
}

static void dot_e2m1_grouped(const struct cmoe_cpu_panel *l, const char *panel, int m,
                             struct digit_rows x)
{
    digits_as(true, 1, 8, true, false, l, panel, m, x);
}

static void dot_e2m1_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                          struct digit_rows x)
{
    digits_as(true, 3, 8, true, false, l, panel, m, x);
}

static void dot_e2m1_16(const struct cmoe_cpu_panel *l, const char *panel, int m,
                        struct digit_rows x)
{
    digits_as(true, 1, 4, true, false, l, panel, m, x);
}

static void dot_e2m1_16_wide(const struct cmoe_cpu_panel *l, const char *panel, int m,
                             struct digit_rows x)
{
    digits_as(true, 3, 4, true, false, l, panel, m, x);
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
    memset(c, 0, (size_t)m * CMOE_CPU_PANEL * sizeof *c);
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (ways[i].floats == floats && ways[i].digits == d->digits && ways[i].span == d->span &&
            ways[i].grouped == d->grouped && ways[i].zero == l->zero)
            ways[i].multiply(l, panel, m, x);
    for (int r = 0; r < m && !d->grouped; r++)
        for (int j = 0; j < CMOE_CPU_PANEL; j += VEC) {
            float *const to = c + r * CMOE_CPU_PANEL + j;
            v_store(to, v_load(to) * v_set(scales[r]));
        }
}

#endif
#endif
