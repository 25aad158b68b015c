/* SPDX-License-Identifier: MIT
 * Rows x 32 columns by AVX512-BF16: a word of a panel holds two k's of a column, a word of a row the
 * same two, and one instruction adds both products to a sum in a register.
 *
 * Its order: the odd k's product, then the even one's, one rounding each; subnormals count as zero. */
#include "backends/cpu/isa/fetch.h"
#include "backends/cpu/isa/tile/code_pairs.h"
#include "backends/cpu/isa/tile/pack.h"

enum { PAIR_ROWS = 12, VECS = CMOE_CPU_PANEL / VEC, LINE = 4 * CMOE_CPU_PANEL };
enum { CHUNK_PAIRS = CMOE_CPU_CHUNK / 2 };

/* acc += the pairs of one word of a row by a vector of the panel's. */
CMOE_INLINE vf dot_pairs(vf acc, uint32_t row, const char *panel)
{
#ifdef CMOE_EMULATE
    vf even, odd;
    v_load_bf16_pairs((const uint16_t *)(const void *)panel, &even, &odd);
    acc = v_fma(v_float((vi){0} + (int32_t)(row & 0xffff0000)), odd, acc);
    return v_fma(v_float((vi){0} + (int32_t)(row << 16)), even, acc);
#else
    const __m512i words = _mm512_loadu_si512(panel);
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32((int)row),
                                (__m512bh)words);
#endif
}

static void begin(void) {}

static void end(void) {}

static void pack(const void *const *rows, int m, int64_t bytes, void *a)
{
    pack_steps(rows, m, m, bytes, a);
}

static void pack_values(const float *v, int64_t k, int r, int m, void *a)
{
    pack_floats(v, k, r, m, a);
}

/* One pair of k's. m is a constant after inlining. */
CMOE_INLINE void step(int m, const char *a, const char *b, vf acc[PAIR_ROWS][VECS])
{
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        uint32_t word;
        memcpy(&word, a + r * CMOE_CPU_STEP, sizeof word);
        CMOE_UNROLL
        for (int v = 0; v < VECS; v++)
            acc[r][v] = dot_pairs(acc[r][v], word, b + 4 * v * VEC);
    }
}

/* A chunk of k's. m is a constant after inlining. */
CMOE_INLINE void chunk(int m, const char *a, const char *b, struct cmoe_cpu_ahead ahead,
                       vf acc[PAIR_ROWS][VECS])
{
    CMOE_UNROLL
    for (int i = 0; i < CHUNK_PAIRS; i++) {
        fetch(ahead, i, CHUNK_PAIRS);
        step(m, a + 4 * i, b + i * LINE, acc);
    }
}

/* The pairs of a step of rows, whose panel is fetched soon before it is read: a few at a time, since a loop of
 * 32 loads ahead of memory is 4 to 9 % slower than one of 8 (docs/perf-log-cpu.md, 34). */
CMOE_INLINE void step_soon(int m, const char *a, const char *b, vf acc[PAIR_ROWS][VECS])
{
    enum { PAIRS = 4 };
#pragma GCC unroll 1
    for (int at = 0; at < 2 * CHUNK_PAIRS; at += PAIRS, a += 4 * PAIRS, b += PAIRS * LINE) {
        CMOE_UNROLL
        for (int i = 0; i < PAIRS; i++) {
            fetch_soon(b + i * LINE, LINE);
            step(m, a + 4 * i, b + i * LINE, acc);
        }
    }
}

CMOE_INLINE void tile(int m, int64_t k, const char *a, const char *b, float *c, int64_t ldc,
                      bool more, bool soon, struct cmoe_cpu_ahead ahead)
{
    int64_t pairs = (k + 1) / 2;
    vf acc[PAIR_ROWS][VECS];
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < VECS; v++)
            acc[r][v] = more ? v_load(c + r * ldc + v * VEC) : v_set(0);
    }
    for (; soon && pairs >= 2 * CHUNK_PAIRS; pairs -= 2 * CHUNK_PAIRS, a += m * CMOE_CPU_STEP) {
        step_soon(m, a, b, acc);
        b += 2 * CHUNK_PAIRS * LINE;
    }
    for (; pairs >= 2 * CHUNK_PAIRS; pairs -= 2 * CHUNK_PAIRS, a += m * CMOE_CPU_STEP)
        for (int half = 0; half < 2; half++, b += CHUNK_PAIRS * LINE) {
            chunk(m, a + 4 * CHUNK_PAIRS * half, b, ahead, acc);
            ahead.at = (const void *)((uintptr_t)ahead.at + 64U * (unsigned)ahead.lines);
        }
    for (; pairs > 0; pairs--, a += 4, b += LINE)
        step(m, a, b, acc);
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < VECS; v++)
            v_store(c + r * ldc + v * VEC, acc[r][v]);
    }
}

/* One body for each number of rows, so that accumulators are registers. */
static void dot_bf16(int m, int64_t k, const void *a, const void *b, float *c, int64_t ldc,
                     bool more, struct cmoe_cpu_ahead ahead)
{
    switch (m) {
#define ROWS(n)                                                                                    \
    case n:                                                                                        \
        if (ahead.soon)                                                                            \
            tile(n, k, a, b, c, ldc, more, true, ahead);                                           \
        else                                                                                       \
            tile(n, k, a, b, c, ldc, more, false, ahead);                                          \
        break;
        ROWS(1)
        ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#undef ROWS
    }
}

/* --- few rows by codes ---------------------------------------------------------------------- */

#ifndef CMOE_EMULATE
enum { FEW_ROWS = 12, HALF_STEP = 16 /* k's whose codes lie in whole units of one group */ };

/* Sums of a column: one takes six clocks for a pair, and 64 weights of 8 bits come in seven at 36 GB/s; of few
 * rows the pairs go to two in turn, which are added at the end. */
enum { SUMS = 2, SUMS_ROWS = 4 };

CMOE_INLINE int sums_of(int m)
{
    return m <= SUMS_ROWS ? SUMS : 1;
}

/* HALF_STEP k's, or the `k` that are left of a group; a: the rows' words of the first two. */
CMOE_INLINE void stream_codes(enum pair_kind kind, const struct pair_terms *t, const char *unit,
                              int k, int m, const char *a, vf acc[FEW_ROWS][SUMS][VECS])
{
    const int step = pair_step(kind);
    CMOE_UNROLL
    for (int at = 0; at < HALF_STEP; at += step, unit += pair_bytes(kind), a += 2 * step) {
        __m512i pairs[4][2];
        if (at >= k) return;
        ask_for(unit, pair_bytes(kind));
        unit_pairs(kind, t, unit, k - at, pairs);
        CMOE_UNROLL
        for (int i = 0; i < step / 2; i++) {
            if (at + 2 * i >= k) return;
            CMOE_UNROLL
            for (int r = 0; r < m; r++) {
                vf *const sum = acc[r][(at / 2 + i) % sums_of(m)];
                uint32_t word;
                memcpy(&word, a + r * CMOE_CPU_STEP + 4 * i, sizeof word);
                CMOE_UNROLL
                for (int v = 0; v < VECS; v++)
                    sum[v] =
                        (vf)_mm512_dpbf16_ps((__m512)sum[v], (__m512bh)_mm512_set1_epi32((int)word),
                                             (__m512bh)pairs[i][v]);
            }
        }
    }
}

/* Where k lies in m packed rows. */
CMOE_INLINE const char *packed_at(const char *a, int m, int64_t k)
{
    return a + k / (CMOE_CPU_STEP / 2) * CMOE_CPU_STEP * m + k % (CMOE_CPU_STEP / 2) * 2;
}

CMOE_INLINE bool stream_as(enum pair_kind kind, int m, const struct cmoe_cpu_panel *l,
                           const void *panel, int64_t first, int64_t k, const char *a, float *c,
                           int64_t ldc, bool more)
{
    struct pair_place p = find_pairs(l, panel, first);
    struct pair_terms t;
    vf acc[FEW_ROWS][SUMS][VECS];
    begin_pairs(kind, l, &t);
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < VECS; v++) {
            acc[r][0][v] = more ? v_load(c + r * ldc + v * VEC) : v_set(0);
            acc[r][1][v] = v_set(0);
        }
    }
    for (int64_t at = 0; at < k;) {
        const char *const group = p.group, *unit;
        int64_t n = group_pairs(kind, l, k - at, &p, &unit);
        if (!begin_group(kind, l, group, unit, n, &t)) return false;
        for (; n >= HALF_STEP; n -= HALF_STEP, at += HALF_STEP,
                               unit += HALF_STEP / pair_step(kind) * pair_bytes(kind))
            stream_codes(kind, &t, unit, HALF_STEP, m, packed_at(a, m, at), acc);
        if (n > 0) stream_codes(kind, &t, unit, (int)n, m, packed_at(a, m, at), acc);
        at += n;
    }
    CMOE_UNROLL
    for (int r = 0; r < m; r++) {
        CMOE_UNROLL
        for (int v = 0; v < VECS; v++) {
            const vf *const one = &acc[r][0][v];
            v_store(c + r * ldc + v * VEC, sums_of(m) > 1 ? *one + acc[r][1][v] : *one);
        }
    }
    return true;
}

CMOE_INLINE bool stream_kind(enum pair_kind kind, int m, const struct cmoe_cpu_panel *l,
                             const void *panel, int64_t first, int64_t k, const char *a, float *c,
                             int64_t ldc, bool more)
{
    switch (m) {
#    define ROWS(n)                                                                                \
    case n:                                                                                        \
        return stream_as(kind, n, l, panel, first, k, a, c, ldc, more);
        ROWS(1)
        ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#    undef ROWS
    }
    return false;
}

static bool stream_pairs(const struct cmoe_cpu_panel *l, const void *panel, int64_t first,
                         int64_t k, int m, const void *a, float *c, int64_t ldc, bool more)
{
    switch (pair_kind_of(l)) {
    case PAIRS_F8:
        return stream_kind(PAIRS_F8, m, l, panel, first, k, a, c, ldc, more);
    case PAIRS_MX4:
        return stream_kind(PAIRS_MX4, m, l, panel, first, k, a, c, ldc, more);
    case PAIRS_NV4:
        return stream_kind(PAIRS_NV4, m, l, panel, first, k, a, c, ldc, more);
    case PAIRS_U4:
        return stream_kind(PAIRS_U4, m, l, panel, first, k, a, c, ldc, more);
    case PAIRS_NONE:
        break;
    }
    return false;
}
#endif

const struct cmoe_cpu_tile_ops cmoe__cpu_tile_ops_avx512bf16 = {
    .rows = PAIR_ROWS,
    .unit = 1,
    .begin = begin,
    .end = end,
    .pack = pack,
    .pack_values = pack_values,
    .scale = scale,
    .dot_bf16 = dot_bf16,
    .pair = pair,
    .join = join,
#ifndef CMOE_EMULATE
    .few = FEW_ROWS,
    .few_apart = SUMS_ROWS,
    .stream = stream_pairs,
    .decode = decode_pairs,
#endif
};
